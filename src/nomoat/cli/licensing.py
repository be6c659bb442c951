"""licence: what binds a run or data, why, and what would change it.

targets -> nomoat.licensing.licence -> verdict, causes, the way out -> text or JSON, NOTICE, Croissant card
"""

from __future__ import annotations

from pathlib import Path

import click

from nomoat.cli import options
from nomoat.cli.output import Output


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="RUN|DATA...")
@click.option("--profile", metavar="strict|contract-blind|tdm", default="strict", help="How terms are read. [strict]")
@click.option(
    "--override", "overrides", multiple=True, metavar="ID=RULE", help="A licence or stream, by R1..R14 or id."
)
@click.option("--reason", default="", help="Why an override, or the profile tdm, holds; kept and printed.")
@click.option("--notice", metavar="FILE", help="Write the NOTICE that goes along.")
@click.option("--croissant", metavar="FILE", help="Write a Croissant 1.1 card of the data.")
@options.as_json
@click.pass_obj
def licence(
    output: Output,
    targets: tuple[str, ...],
    profile: str,
    overrides: tuple[str, ...],
    reason: str,
    notice: str | None,
    croissant: str | None,
) -> None:
    """Say what binds a run, a dataset, or files: several are a mixture. It is no legal advice.

    What the files, their READMEs and data cards say is the evidence. Own entries lie in licences.json beside the data.
    """
    from nomoat import licensing

    said = dict(each.partition("=")[::2] for each in overrides)
    found = licensing.licence(*targets, profile=profile, overrides=said, reason=reason, watch=output.event)
    for path, write in ((notice, licensing.write_notice), (croissant, licensing.write_croissant)):
        if path:
            write(found, Path(path))
            output.say(f"written: {path}" + "; add url, creator and citeAs before publishing" * (path == croissant))
    output.result(found.as_json(), found.as_text())
