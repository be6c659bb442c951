"""tune: an open model, taught by conversations or texts, beside what it was before.

model, files -> nomoat.tuning.tune(..., watch=display) -> Run -> the comparison, the card's path, what to type next
"""

from __future__ import annotations

from typing import Any

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.making import ended
from nomoat.cli.output import Output
from nomoat.core.errors import ConfigError


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(exists=True))
@click.option("--lora", type=click.IntRange(1), metavar="RANK", help="Train adapters of this rank. [8]")
@click.option("--full", is_flag=True, help="Train the weights themselves.")
@click.option("--dora", is_flag=True, help="Adapters that learn the lengths of rows too.")
@click.option("--budget", help="Passes over the data, or as everywhere: 2epochs, 10m. [1epochs]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[1e-3; --full: 1e-5]")
@click.option("--bits", type=click.Choice(["8", "4"]), help="Bits of the base's weights meanwhile. [as they are]")
@click.option("--context", type=click.IntRange(8), help="Most tokens of a conversation. [1024]")
@click.option("--rehearsal", type=float, default=0.4, help="Share of rows with the base's own answers. [0.4]")
@click.option("--prompt", metavar="COLUMN", help='Prompts of a table: columns, or "Shorten this: {text}".')
@click.option("--answer", metavar="COLUMN", help="Its answers.")
@click.option("--subject", metavar="CAPTION", help='A model that draws: what the pictures are called, "a wug".')
@click.option("--of", default="", metavar="CAPTION", help='What the subject is one of, "a circle": it is preserved.')
@click.option("--word", help="Learn this word of --subject alone, no adapters (textual inversion).")
@click.option("--general", type=click.Path(exists=True), help="Text to see what is forgotten. [Python's documentation]")
@options.licence
@options.allow
@options.seed
@options.device
@options.as_json
@click.pass_obj
def tune(output: Output, model: str, data: str, **asked: Any) -> None:
    """Teach MODEL (a run, or what `nomoat pull` fetched) by DATA, and show it beside what it was.

    DATA holds conversations: chat jsonl, Alpaca, ShareGPT, or tables of prompts and answers; or else texts of any kind
    that `make` reads. With --subject: a few pictures, for a MODEL that draws.
    """
    if not asked["subject"] and (asked["of"] or asked["word"]):
        raise ConfigError("--of and --word are for pictures of a subject", "no --subject was given", "add it")
    (_subject if asked["subject"] else _tuned)(output, model, data, asked)


def _subject(output: Output, model: str, data: str, asked: dict[str, Any]) -> None:
    from nomoat import subjects

    if asked["full"]:
        raise ConfigError(
            "a subject is taught by adapters, or as a word", "--full asks for all weights", "leave it out"
        )
    same = {name: asked[name] for name in ("learning_rate", "seed", "allow", "of", "word")}
    subject = subjects.Subject(asked["subject"], rank=asked["lora"] or 8, **same)
    budget = asked["budget"] or subjects.BUDGET
    with watching(output, f"nomoat tune {model} {data} \u00b7 {budget}") as watch:
        run = subjects.teach(model, data, subject, budget, asked["licence"], asked["device"], watch)
    ended(output, run)


def _tuned(output: Output, model: str, data: str, asked: dict[str, Any]) -> None:
    from nomoat import tuning
    from nomoat.data.conversations import Columns

    if asked["lora"] and asked["full"]:
        raise ConfigError("--lora and --full are two ways", "one trains adapters, one all weights", "leave one out")
    if (asked["prompt"] is None) != (asked["answer"] is None):
        raise ConfigError("--prompt and --answer belong together", "one was given", "give both")
    columns = Columns(asked["prompt"], asked["answer"]) if asked["prompt"] else None
    lora, bits = None if asked["full"] else asked["lora"] or 8, asked["bits"] and int(asked["bits"])
    own = {name: asked[name] for name in ("dora", "learning_rate", "rehearsal", "seed", "allow")}
    manner = tuning.Manner(lora, bits=bits, context_length=asked["context"], **own)
    same = {name: asked[name] for name in ("licence", "general", "device")}
    budget = asked["budget"] or "1epochs"
    with watching(output, f"nomoat tune {model} {data} \u00b7 {budget}") as watch:
        run = tuning.tune(model, data, budget, manner, columns=columns, watch=watch, **same)
    ended(output, run)
