"""import, export, quantize: models from other programs, for them, and in fewer bits.

path -> nomoat.verbs.import_model -> run -> nomoat.quantising.quantize -> run -> nomoat.verbs.export -> folder or file
"""

from __future__ import annotations

import time

import click

from nomoat.cli import options
from nomoat.cli.output import Output
from nomoat.cli.standing import size


@click.command("import")
@click.argument("path")
@click.option("--name", help="What to call the run. [the file's name]")
@click.option("--dtype", metavar="auto|f32|f16|bf16|q8|q4", default="auto", help="Type of weights. [auto: as they are]")
@click.option("--base", metavar="RUN", help="The run that an adapter was made for.")
@options.licence
@options.as_json
@click.pass_obj
def import_(output: Output, path: str, base: str | None, name: str | None, dtype: str, licence: str | None) -> None:
    """Make a run of the model at PATH: a GGUF file, a Hugging Face folder, a llama2.c file, or a PEFT adapter."""
    from nomoat import verbs

    start = time.perf_counter()
    run = verbs.import_model(path, name, dtype, licence, watch=output.event, base=base)
    card = run.read_json("card.json")
    text = f"""Your model: {run.path}
Its card:   {run.path / "card.md"}

What to type next:
  nomoat generate last "..."      text from it
  nomoat evaluate last PATH       bits per byte on some text
  nomoat export last --to gguf    the same for other programs"""
    output.result({"run": run.path.resolve(), "card": card, "seconds": time.perf_counter() - start}, text)


@click.command()
@click.argument("run")
@click.option("--to", metavar="hf|gguf|peft", default="hf", help="For transformers, llama.cpp, or PEFT. [hf]")
@click.option("--output", "path", metavar="PATH", help="The new folder or file. [the run's name]")
@click.option("--dtype", metavar="auto|f32|f16|bf16|q8_0", default="auto", help="Type of weights. [auto: as they are]")
@options.as_json
@click.pass_obj
def export(output: Output, run: str, to: str, path: str | None, dtype: str) -> None:
    """Write the model of RUN, with its tokenizer and its card, for other programs."""
    from nomoat import verbs
    from nomoat.core.run import Run

    start = time.perf_counter()
    written = verbs.export(run, to, path, dtype, watch=output.event)
    files = [each for each in written.rglob("*") if each.is_file()] if written.is_dir() else [written]
    count = sum(each.stat().st_size for each in files)
    fields = {"run": Run.open(run).path.resolve(), "path": written.resolve(), "to": to, "bytes": count}
    output.result(fields | {"seconds": time.perf_counter() - start}, f"{written}  ({size(count)})")


@click.command()
@click.argument("run")
@click.argument("text", required=False)
@click.option("--bits", type=click.Choice(["8", "4"]), default="8", help="Bits of each weight. [8]")
@options.as_json
@click.pass_obj
def quantize(output: Output, run: str, text: str | None, bits: str) -> None:
    """Make a run of RUN's model in 8 or 4 bits; the loss is measured on TEXT (or on the held-out part)."""
    from nomoat import quantising

    start = time.perf_counter()
    made = quantising.quantize(run, int(bits), text, watch=output.event)
    found = next(iter(made.metrics("quantize")), None)
    fields = {"run": made.path.resolve(), "seconds": time.perf_counter() - start}
    if found is None:
        output.result(fields, f"{made.path}\nIt has no tokenizer, so nothing could be measured.")
        return
    before, after = found["before"], found["after"]
    table = [f"Your model: {made.path}", "", f"{'':18}{'before':>10}{bits + ' bits':>10}   on {found['measured_on']}"]
    for label, key, shown in (
        ("bits per byte", "bits_per_byte", "{:.4f}".format),
        ("weights", "bytes", size),
        ("tokens a second", "tokens_per_second", "{:.0f}".format),
    ):
        table.append(f"{label:<18}{shown(before[key]):>10}{shown(after[key]):>10}")
    lines = "\n".join(table)
    output.result({**fields, **{key: found[key] for key in ("before", "after", "measured_on")}}, lines)
