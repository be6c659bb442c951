"""generate: text from a model, written as it comes.

run + prompt -> nomoat.verbs.generate(..., watch) -> pieces of text -> standard output
"""

from __future__ import annotations

import sys
import time

import click

from nomoat.cli import options
from nomoat.cli.output import Event, Output


@click.command()
@click.argument("run")
@click.argument("prompt", default="")
@click.option("--max-tokens", type=click.IntRange(1), default=256, help="Stop after so many tokens. [256]")
@click.option("--temperature", type=click.FloatRange(0), default=0.8, help="0: always the likeliest token. [0.8]")
@click.option("--top-k", type=click.IntRange(0), default=0, help="Only the k likeliest tokens; 0: all. [0]")
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, help="Only tokens that make up this share. [0.95]")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.0, help="Only tokens of this share of the best. [0]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def generate(output: Output, run: str, prompt: str, device: str, **sampling: object) -> None:
    """Write what RUN would write after PROMPT (`-`: read it from standard input)."""
    from nomoat import verbs

    if prompt == "-":
        prompt = sys.stdin.read()
    told: list[Event] = []

    def watch(event: Event) -> None:
        if event["kind"] == "text":
            output.stream(str(event["text"]))
        else:
            told.append(event)
            output.event(event)

    if not output.json:
        output.stream(prompt)
    start = time.perf_counter()
    written = verbs.generate(run, prompt, device=device, watch=watch, **sampling)
    where = next((event["run"] for event in told if event["kind"] == "begin"), run)
    output.stream("" if output.json else "\n")
    output.result({"run": where, "prompt": prompt, "text": written, "seconds": time.perf_counter() - start, **sampling})
