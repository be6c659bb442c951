"""compose: runs that draw together become one, DALL-E 2's design.

prior, decoder, upsamplers -> nomoat.composing.compose -> a run to draw from
"""

from __future__ import annotations

import click

from nomoat.cli import options
from nomoat.cli.output import Output


@click.command()
@click.argument("prior")
@click.argument("decoder")
@click.argument("upsamplers", nargs=-1)
@click.option("--name", default="unclip", help="Of the new run. [unclip]")
@options.as_json
@click.pass_obj
def compose(output: Output, prior: str, decoder: str, upsamplers: tuple[str, ...], name: str) -> None:
    """Make one run of a PRIOR, a DECODER and UPSAMPLERS, the one for the smallest pictures first (DALL-E 2)."""
    from nomoat.composing import compose as composed

    run = composed(prior, decoder, upsamplers, name)
    output.result({"run": run.path.resolve()}, f'Composed: {run.path}\n\nnomoat draw last "..." --n 16')
