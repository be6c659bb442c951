"""generate: text from a model, written as it comes.

run + prompt -> nomoat.verbs.generate(..., watch) -> pieces of text -> standard output
"""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from nomoat.cli import options
from nomoat.cli.output import Event, Output


@click.command()
@click.argument("run")
@click.argument("prompt", default="")
@options.sampling
@options.seed
@options.device
@options.as_json
@click.pass_obj
def generate(output: Output, run: str, prompt: str, device: str, **sampling: Any) -> None:
    """Write what RUN would write after PROMPT (`-`: read it from standard input)."""
    from nomoat import verbs
    from nomoat.core.run import Run

    if prompt == "-":
        prompt = sys.stdin.read()
    chosen = options.given(sampling)
    opened = Run.open(run)

    shown = output.json

    def watch(event: Event) -> None:
        nonlocal shown
        if event["kind"] != "text":
            output.event(event)
            return
        if not shown:
            output.stream(prompt)
            shown = True
        output.stream(str(event["text"]))

    start = time.perf_counter()
    written = verbs.generate(opened, prompt, device, watch, **chosen)
    if not output.json:
        output.stream("\n")
    seconds = time.perf_counter() - start
    output.result({"run": opened.path.resolve(), "prompt": prompt, "text": written, "seconds": seconds, **chosen})
