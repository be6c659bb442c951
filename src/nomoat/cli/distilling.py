"""distil: a small model that writes like a large one.

teacher, student, prompts -> nomoat.distilling.distil(..., watch=display) -> Run -> both side by side, what to type next
"""

from __future__ import annotations

from typing import Any

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.making import ended
from nomoat.cli.output import Output


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.argument("data", type=click.Path(exists=True), required=False)
@click.option("--by", metavar="text|logits|features", default="text", help="What is learned. [text]")
@click.option("--budget", default="30m", help="For the whole way, the teacher's writing too. [30m]")
@click.option("--loss", metavar="forward|reverse|jsd|sorted", default="forward", help="Of logits. [forward]")
@click.option("--beta", type=float, default=0.5, help="Of jsd. [0.5]")
@click.option("--temperature", type=float, default=1.0, help="Of the logits of both. [1]")
@click.option("--text", type=click.FloatRange(0, 1), default=0.0, help="Weight of the text beside the logits. [0]")
@click.option("--on-policy", type=click.FloatRange(0, 1), default=0.0, help="Share of text the student writes. [0]")
@click.option("--heat", type=click.FloatRange(0), default=0.7, help="Temperature at which the teacher writes. [0.7]")
@click.option("--max-tokens", type=click.IntRange(1), default=256, help="Of an answer. [256]")
@click.option("--vocabulary", type=click.IntRange(257), default=8192, help="Tokens of a new student. [8192]")
@click.option("--beside", metavar="RUN", help="Another student, for the report.")
@click.option("--licence", "--license", help="Of a teacher's address: SPDX id, or unknown.")
@click.option("--terms", help="Of a teacher's address: openai, anthropic, ..., or none.")
@options.allow
@options.seed
@options.device
@options.as_json
@click.pass_obj
def distil(output: Output, teacher: str, student: str, data: str | None, **asked: Any) -> None:
    """Let TEACHER (a run, or http://host/v1#model) teach STUDENT (a run, a recipe, or a size such as 15M) by its
    answers to the prompts in DATA: a .txt with one a line, jsonl, or conversations."""
    from nomoat import distilling

    same = {name: asked.pop(name) for name in ("budget", "licence", "terms", "device")}
    manner = distilling.Manner(**asked)
    with watching(output, f"nomoat distil {teacher} {student} \u00b7 {same['budget']}") as watch:
        run = distilling.distil(teacher, student, data, manner=manner, watch=watch, **same)
    ended(output, run)
