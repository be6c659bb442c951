"""judge, arena: which model answers better, by a judge whose own worth is printed beside the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nomoat.cli import options
from nomoat.cli.output import Event, Output

if TYPE_CHECKING:
    from nomoat.evaluate.judging import Agreement
    from nomoat.judging import Verdict

SHOWN = 160
"""Characters of an example's prompt and answers."""


def _judged(function: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take."""
    for option in (
        options.as_json,
        options.device,
        options.seed,
        click.option("--reference-pairs", type=click.IntRange(2), default=100, help="So many of them. [100]"),
        click.option(
            "--reference",
            metavar="FILE",
            help="Pairs with a known preference, to measure the judge on. [$NOMOAT_SHARED/data/alpaca-eval-pairs]",
        ),
        click.option("--max-tokens", type=click.IntRange(1), default=256, help="Of each answer. [256]"),
        click.option("--temperature", type=click.FloatRange(0), default=0.0, help="Of the answers. [0: the likeliest]"),
        click.option(
            "--judge",
            "by",
            required=True,
            metavar="JUDGE",
            help="A run, likelihood:RUN, http://host/v1#model, or length.",
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("a")
@click.argument("b")
@click.argument("prompts")
@_judged
@click.option("--out", metavar="FILE", default="judge.json", help="Where figures and examples go. [judge.json]")
@click.pass_obj
def judge(output: Output, a: str, b: str, prompts: str, by: str, out: str, **given: Any) -> None:
    """Compare A and B, runs or .jsonl files of answers, on PROMPTS (.txt or .jsonl), in both orders."""
    from nomoat import judging

    found = judging.judge(a, b, prompts, by, judging.Options(**given), _watch(output))
    judging.keep(Path(out), asdict(found))
    for text in found.warnings:
        output.event({"kind": "warning", "text": text})
    output.result({**asdict(found), "path": Path(out).resolve()}, f"{_as_text(found)}\n\n{out}")


@click.command()
@click.argument("contestants", nargs=-1, required=True, metavar="RUN... PROMPTS")
@_judged
@click.option("--out", metavar="FILE", default="arena.json", help="What is kept, and extended by later calls.")
@click.pass_obj
def arena(output: Output, contestants: tuple[str, ...], by: str, out: str, **given: Any) -> None:
    """Let all RUNs meet on PROMPTS, and those that --out knows already; pairs that were judged are not judged again."""
    from nomoat import judging

    *runs, prompts = contestants
    rungs, measured = judging.arena(runs, prompts, by, out, judging.Options(**given), _watch(output))
    width = max(len(rung.name) for rung in rungs)
    lines = [f"{'':{width}}  points  {'95 %':16}  won     games"]
    for rung in rungs:
        between = f"{rung.low:+.0f} to {rung.high:+.0f}"
        lines.append(f"{rung.name:{width}}  {rung.points:+6.0f}  {between:16}  {rung.won:6.1%} {rung.games:6,}")
    fields = {"ladder": rungs, "agreement": measured, "path": Path(out).resolve()}
    output.result(fields, "\n".join([*lines, "", _trust(measured), out]))


def _watch(output: Output) -> Callable[[Event], None]:
    """Progress, said now and then to people, always to programs."""

    def watch(event: Event) -> None:
        output.event(event)
        if event["kind"] == "phase":
            output.say(str(event["text"]))
        if event["kind"] == "answer" and event["done"] in (event["total"], event["total"] // 2):
            output.say(f"{event['run']}: {event['done']:,} of {event['total']:,} answers")

    return watch


def _as_text(found: Verdict) -> str:
    """The table, what the judge is worth, and examples."""
    c = found.comparison
    count = c.wins + c.ties + c.losses
    rows = [
        f"A  {found.a}",
        f"B  {found.b}",
        "",
        f"A wins {c.wins:,}, ties {c.ties:,}, loses {c.losses:,} of {count:,} prompts"
        + (f"; {c.invalid:,} invalid" if c.invalid else ""),
        f"win rate of A                 {c.rate:.1%}  (95 %: {c.low:.1%} to {c.high:.1%})",
        f"at equal lengths              {c.controlled:.1%}  (95 %: {c.controlled_low:.1%} to {c.controlled_high:.1%})",
        f"by taking the longer answer   {c.longer:.1%}",
        f"characters an answer          A {c.characters[0]:,.0f}, B {c.characters[1]:,.0f}",
        f"refusals and empty answers    A {c.refusals[0]:.1%}, B {c.refusals[1]:.1%}",
        f"position: {c.shown_first:.1%} of the votes went to what was shown first; the order decided {c.swayed:.1%} of"
        " the pairs, which are ties",
        _trust(found.agreement),
    ]
    for example in found.examples:
        rows += ["", f"{example['winner'].upper()} wins: {_short(example['prompt'])}"]
        rows += [f"  {side.upper()}: {_short(example[side])}" for side in "ab"]
    return "\n".join(rows)


def _trust(measured: Agreement | None) -> str:
    from nomoat.judging import UNMEASURED

    return UNMEASURED if measured is None else measured.as_text()


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN else plain[:SHOWN] + " ..."
