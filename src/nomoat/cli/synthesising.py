"""synth: data that a teacher writes, by a recipe, within a cap.

recipe, a.b=c -> nomoat.synth(..., watch=progress) -> rows.jsonl, dropped.jsonl, card.md -> what it cost, what to type
"""

from __future__ import annotations

import sys
import time

import click

from nomoat.cli import options
from nomoat.cli.output import Event, Output, Watch
from nomoat.cli.standing import clock
from nomoat.core.recipe import listing

SECONDS_BETWEEN_LINES = 10.0


class _WithRecipes(click.Command):
    """Lists the recipes below its options, from their files' text."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Recipes"):
            known = listing(kind="Synth")
            formatter.write_dl([(each.name.replace("_", "-"), each.about) for each in known])
        super().format_epilog(ctx, formatter)


@click.command(cls=_WithRecipes)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[a.b=c]...")
@click.option("--output", "path", metavar="PATH", help="The folder that is written. [synth/RECIPE]")
@options.device
@options.as_json
@click.pass_obj
def synth(output: Output, recipe: str, overrides: tuple[str, ...], path: str | None, device: str) -> None:
    """Write data by RECIPE (a name or a .py file), with settings changed by a.b=c.

    teacher=RUN, or teacher=http://host:8000/v1#model with licence= and terms=; its key is read from $NOMOAT_KEY. Every
    answer is stored before it is used: typed again, the same command goes on where it stopped.
    """
    from nomoat import synthesising

    start = time.perf_counter()
    made = synthesising.synth(recipe, overrides, path, device=device, watch=_watching(output))
    report, cost = made.report, made.report["cost"]
    left = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items()) or "none"
    text = f"""{report["rows"]:,} rows of {report["wanted"]:,}: {report["status"]}
Left out: {left}
Cost:     {cost["prompt_tokens"]:,} tokens read, {cost["completion_tokens"]:,} written, {clock(cost["seconds"])}
Licence:  the teacher's is {report["licence"]}; {report["terms"] or "no contract"}
Card:     {made.path / "card.md"}

What to type next:
  nomoat tune MODEL {made.path}
  nomoat licence {made.path}"""
    output.result({"path": made.path.resolve(), **report, "seconds": time.perf_counter() - start}, text)


def _watching(output: Output) -> Watch:
    """Progress on standard error, a line now and then; all events with --json."""
    last = [0.0]

    def watch(event: Event) -> None:
        if output.json or event["kind"] == "warning":
            output.event(event)
        elif event["kind"] == "forecast":
            money = f", {event['money']:.2f} by the price" if event["money"] else ""
            whole = f"{event['tokens']:,.0f} tokens, {clock(event['seconds'])}{money}"
            sys.stderr.write(f"forecast for {event['rows']:,} rows: {whole}\n")
        elif time.monotonic() - last[0] > SECONDS_BETWEEN_LINES:
            last[0] = time.monotonic()
            state = f"{event['rows']:,} of {event['wanted']:,} rows, {event['dropped']:,} left out"
            sys.stderr.write(f"{state}, {event['tokens']:,} tokens, {clock(event['seconds_left'])} left\n")

    return watch
