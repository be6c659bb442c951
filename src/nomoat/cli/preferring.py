"""prefer: a model taught by better and worse answers.

arguments -> nomoat.preferring.prefer(..., watch=display) -> run -> what it prefers now, its card, what to type next
"""

from __future__ import annotations

from typing import Any

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.output import Output


@click.command()
@click.argument("model")
@click.argument("pairs", type=click.Path(exists=True))
@click.option("--by", metavar="dpo|orpo|kto|reward", default="dpo", help="Which loss. [dpo]")
@click.option("--lora", type=click.IntRange(1), metavar="RANK", help="Train an adapter of this rank.")
@click.option("--full", is_flag=True, help="Train all weights. [unless --lora]")
@click.option("--set", "changes", multiple=True, metavar="a.b=c", help="A setting of the recipe, as in train.")
@click.option("--beta", type=float, help="How dear it is to leave the old model: family.beta. [0.1]")
@click.option("--budget", help="Time, steps, ... as in make. [each row is read once]")
@options.device
@options.as_json
@click.pass_obj
def prefer(output: Output, model: str, pairs: str, by: str, lora: int | None, device: str, **asked: Any) -> None:
    """Tune MODEL towards the better answers of PAIRS: rows of prompt, chosen and rejected, or of prompt, completion
    and label (good or bad)."""
    from nomoat import preferring

    if asked["full"] and lora:
        raise click.UsageError("--full trains all weights, --lora an adapter: give one of them")
    changes = [*asked["changes"], *([f"family.beta={asked['beta']}"] if asked["beta"] is not None else [])]
    with watching(output, f"nomoat prefer {model} {pairs} --by {by}") as watch:
        run = preferring.prefer(model, pairs, by, lora, asked["budget"], changes, device, watch)
    text = f"""{(run.path / "report.txt").read_text(encoding="utf-8").rstrip()}

Your model: {run.path}
Its card:   {run.path / "card.md"}

What to type next:
  nomoat chat last            talk with it
  nomoat export last --to hf  the same for other programs"""
    fields = {"run": run.path.resolve(), "report": run.read_json("report.json"), "card": run.read_json("card.json")}
    output.result(fields, text)
