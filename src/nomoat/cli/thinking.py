"""think, curve, improve: answers by search, what more search buys, and a model that learns from what it finds.

arguments -> nomoat.thinking.think | curve, nomoat.improving.improve -> the answer, the table, the report
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.making import ended
from nomoat.cli.output import Output


@click.command()
@click.argument("model", metavar="RUN")
@click.argument("question")
@click.option("--strategy", default="best-of-n", help="best-of-n, vote, beam, dvts, tot, mcts, particles. [best-of-n]")
@click.option(
    "--verifier", metavar="WHAT", help="number, countdown, regex:PATTERN, tests, judge:RUN, mine.py:check, ..."
)
@click.option("--answer", help="What the verifier is told is right.")
@click.option("--budget", default=16, show_default=True, help="Answers (best-of-n, vote) or steps that are written.")
@click.option("--prm", metavar="RUN", help="A run of `improve --by prm`: how promising beginnings are.")
@click.option("--mark", default="\n", help="What ends a step. [a line end]")
@click.option("--temperature", default=0.8, show_default=True)
@click.option("--max-tokens", default=256, show_default=True, help="Of an answer.")
@click.option("--min-think", default=0, help="Tokens thought at least before an answer.")
@click.option("--max-think", default=0, help="Tokens thought at most; 0: no limit.")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def think(output: Output, model: str, question: str, **asked: Any) -> None:
    """Let RUN answer QUESTION by search, and say what it took.

    Without --verifier the likeliest answer is chosen; with one, the answer that it calls right.
    """
    from nomoat import thinking

    found = thinking.think(model, question, **asked)
    usage = asdict(found.usage)
    counts = f"{usage['tokens']:,} tokens, {usage['nodes']:,} pieces, {usage['evaluations']:,} judgements"
    told = f"{counts}, {usage['seconds']:.1f} s"
    if found.best is None:
        text = f"Nothing was finished within the budget ({told}): raise --budget"
        output.result({"answer": None, "right": None, "usage": usage}, text)
        return
    score = found.best.right
    right = "not verified" if score is None else "right" if score >= 1 else f"not right ({score:g})"
    told += f"; {right}; {len(found.done)} finished"
    output.result(
        {"answer": found.best.text, "right": found.best.right, "usage": usage}, f"{found.best.text.strip()}\n\n{told}"
    )


@click.command()
@click.argument("model", metavar="RUN")
@click.argument("task")
@click.option("--tries", default=64, show_default=True, help="Answers to each question.")
@click.option("--questions", default=200, show_default=True, help="Of the exam, at most.")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def curve(output: Output, model: str, task: str, **asked: Any) -> None:
    """What more tries buy RUN on TASK, against tokens, FLOPs and seconds, beside search without a model.

    TASK is countdown:5, game24:FILE, or VERIFIER:FILE.jsonl with questions of your own. The table and the plot
    (curve.json, curve.csv, curve.svg) are written into the run.
    """
    from nomoat import thinking
    from nomoat.core.run import Run

    with watching(output, f"nomoat curve {model} {task}") as watch:
        found = thinking.curve(model, task, watch=watch, **asked)
    output.result(found.as_json(), f"{found.as_text()}\n\nThe plot: {Run.open(model).path / 'curve.svg'}")


@click.command()
@click.argument("model", metavar="RUN")
@click.argument("task")
@click.option("--by", default="star", help="star, grpo, rloo, or prm (a process reward). [star]")
@click.option("--budget", default="30m", help="As everywhere, for all of it. [30m]")
@click.option("--rounds", default=3, show_default=True, help="Of star.")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def improve(output: Output, model: str, task: str, by: str, budget: str, **asked: Any) -> None:
    """Let RUN answer TASK's questions, and teach it what a verifier calls right.

    TASK is countdown:4, or VERIFIER:FILE.jsonl with questions of your own. --by prm makes a second model, which says
    how promising beginnings are.
    """
    from nomoat import improving

    with watching(output, f"nomoat improve {model} {task} · {budget}") as watch:
        run = improving.improve(model, task, by, budget, watch=watch, **asked)
    ended(output, run)
