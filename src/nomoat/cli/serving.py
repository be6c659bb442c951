"""serve: models behind OpenAI's endpoints, on this machine, until Ctrl-C.

runs + options -> nomoat.verbs.serve(..., watch) -> where it listens, and two lines that use it
"""

from __future__ import annotations

from typing import Any

import click

from nomoat.cli import options
from nomoat.cli.output import Event, Output

LISTENING = """{base}/v1 answers as OpenAI's API does, for: {names}
Ctrl-C ends it. To try it:

curl {base}/v1/chat/completions{header} -H 'content-type: application/json' \\
  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

python -c 'import openai; print(openai.OpenAI(base_url="{base}/v1", api_key="{key}").chat.completions.create(\\
  model="{name}", messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)'"""


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--host", help="Address to listen on; any but this machine's own needs a key. [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one. [8000]")
@click.option("--key-file", type=click.Path(dir_okay=False), help="Keys that let clients in, one a line. [$NOMOAT_KEY]")
@click.option("--origin", "origins", multiple=True, metavar="URL", help="Web pages that may call, if any.")
@click.option("--slots", type=click.IntRange(1), help="Texts written at once, a model. [8]")
@click.option("--context", "context_length", type=click.IntRange(2), help="Tokens of prompt and answer. [the model's]")
@click.option("--queue", type=click.IntRange(1), help="Requests that may wait; beyond it, 429. [64]")
@click.option("--idle", "idle_minutes", type=click.FloatRange(0), help="Free a model after so many minutes. [never]")
@click.option("--deadline", "deadline_seconds", type=click.FloatRange(1), help="Longest time of a request, s. [600]")
@click.option("--drain", "drain_seconds", type=click.FloatRange(0), help="Time to end in when told to stop, s. [30]")
@options.bits
@options.device
@options.as_json
@click.pass_obj
def serve(output: Output, runs: tuple[str, ...], bits: int | None, **given: Any) -> None:
    """Serve RUNs to OpenAI's clients; the first is loaded at once, the others when they are asked for."""
    from nomoat import verbs

    settings = {name: value for name, value in given.items() if value not in (None, ())}

    def watch(event: Event) -> None:
        output.event(event)
        if event["kind"] == "listening":
            names = event["names"]
            key = ("", "none") if not event["keys"] else (" -H 'authorization: Bearer KEY'", "KEY")
            fields = {"base": event["base"], "name": names[0], "names": ", ".join(names)}
            output.say(LISTENING.format(**fields, header=key[0], key=key[1]))

    verbs.serve(runs, watch, bits=bits, **settings)
    output.result({"run": runs[0], "stopped": True}, "stopped")
