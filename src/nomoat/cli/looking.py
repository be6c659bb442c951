"""runs, evaluate, surprise, doctor: the commands that look and change nothing.

arguments -> nomoat.verbs -> a table, a figure with its interval, lines with their surprise, findings
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nomoat.cli import options
from nomoat.cli.output import Output
from nomoat.cli.standing import size

if TYPE_CHECKING:
    from nomoat.core.runs import RunSummary


@click.command()
@options.as_json
@click.pass_obj
def runs(output: Output) -> None:
    """List all runs below $NOMOAT_RUNS (or ./runs), the latest last."""
    from nomoat import verbs
    from nomoat.core.runs import runs_root

    found = verbs.runs()
    for summary in found:
        output.event({"kind": "run", **summary._asdict(), "bytes": _bytes(summary.path)})
    table = "\n".join(_rows(found)) or f"no runs in {runs_root().resolve()}; `nomoat make` makes the first"
    output.result({"run": None, "count": len(found)}, table)


def _rows(found: list[RunSummary]) -> list[str]:
    """One line a run, in columns as wide as their widest entry."""
    if not found:
        return []
    rows = [("run", "state", "step", "bits per byte", "size", "about")]
    for one in found:
        figure = "" if one.bits_per_byte is None else f"{one.bits_per_byte:.3f}"
        rows.append((one.name, one.status, str(one.step or 0), figure, size(_bytes(one.path)), one.about))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join(
            cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        + "  "
        + row[5]
        for row in rows
    ]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.command()
@click.argument("run")
@click.argument("what", required=False, metavar="[PATH or TASK]")
@click.option("--shots", type=click.Choice(["0", "1", "5"]), default="0", help="Worked examples before a question. [0]")
@click.option("--limit", type=click.IntRange(1), help="Only so many questions.")
@options.device
@options.as_json
@click.pass_obj
def evaluate(output: Output, run: str, what: str | None, shots: str, limit: int | None, device: str) -> None:
    """Measure RUN on its own held-out part, on the text of PATH, or on a TASK (a .jsonl of multiple choice).

    A model that draws gets its report card, a CLIP is asked to find and to classify, a codec to give pictures back.
    """
    from nomoat import verbs
    from nomoat.core.run import Run

    start = time.perf_counter()
    measured = verbs.evaluate(run, what, shots=int(shots), limit=limit, device=device, watch=output.event)
    told = measured.as_json() if hasattr(measured, "as_json") else asdict(measured)
    fields = {"run": Run.open(run).path.resolve(), **told, "seconds": time.perf_counter() - start}
    if "value" in fields:
        fields["bits_per_byte"] = fields.pop("value")
    output.result(fields, measured.as_text())


@click.command()
@click.argument("run")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--top", type=click.IntRange(1), default=10, help="How many lines to show. [10]")
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a heat map of all characters to this file.")
@options.device
@options.as_json
@click.pass_obj
def surprise(output: Output, run: str, files: tuple[str, ...], top: int, html: str | None, device: str) -> None:
    """Show the lines of FILES that RUN finds oddest: typos, odd code, passages that do not belong."""
    from nomoat import verbs
    from nomoat.core.run import Run

    found = verbs.surprise(run, files, device=device, watch=output.event)
    text = found.as_text(top)
    if html is not None:
        Path(html).write_text(found.as_html(top), encoding="utf-8")
        text += f"\nheat map: {html}"
    output.result({"run": Run.open(run).path.resolve(), **found.as_json(top), "html": html}, text)


@click.command()
@options.device
@options.as_json
@click.pass_obj
def doctor(output: Output, device: str) -> None:
    """Say what this machine has for making models, and what to mend."""
    from nomoat import verbs

    findings = verbs.doctor(device)
    for finding in findings:
        output.event({"kind": "finding", **finding._asdict()})
    output.result({"run": None, "ok": all(finding.ok for finding in findings)}, "\n".join(map(str, findings)))
