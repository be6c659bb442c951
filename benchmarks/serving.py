"""The engine and the server: prefix reuse, speculation, memory, and many clients beside llama.cpp's server.

    python benchmarks/serving.py prefix|lookup|memory|clients|overhead [--gguf FILE] [--llama FOLDER] [--rounds 5]

prefix: seconds to the first token of a 1,000-token prompt, read before / new; SmolLM2's shape and a hybrid of it.
lookup: new tokens a second with and without drafts by n-gram lookup, batch 1: stories of `tinystories-char105`, and
SmolLM2 (FILE) quoting a text with one word corrected.
memory: FILE read, packed in 8 bits, and decoded with, in a process of its own: most bytes above one with torch alone.
clients: 32 clients stream from SmolLM2 at once, one light client program for both servers.
overhead: 8 texts at once from SmolLM2 in 8 bits, 128 tokens each: streamed by the server to 8 clients of that program,
and by the bare engine in a process that does nothing else; seconds of the server / of the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import SHARED, record, spread

import nomoat
from nomoat.core.run import load
from nomoat.data.chat import Chat
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import LLAMA
from nomoat.nn.native import quickest
from nomoat.sampling.speculate import NgramDrafts
from nomoat.sampling.tokens import SamplingOptions
from nomoat.serve.engine import Ask, Engine
from nomoat.texts import spelling

SHAPE = Backbone(width=576, depth=30, heads=9, kv_heads=3, mlp_width=1536, dialect=replace(LLAMA, output="tied"))
STARTS = [
    *("Once upon a time, ", "One day, ", "There was a ", "Lily and Tom ", "The little ", "A boy named "),
    *("Mom said ", "In the park, ", "A big dog ", "Ben liked to ", "She was sad ", "They went to "),
]
TEXT = """The lighthouse keeper rose before dawn, as he had every day for thirty years. He lit the stove, filled the
kettle and looked out over the grey water. A ship was comming in from the north, low and slow, and he knew her by the
patched sail. He put on his coat and went down the stairs to meet her. The path to the harbour was wet, and the gulls
were already quarrelling over the nets. By the time he reached the pier, the ship had dropped her anchor."""


def asked(engine: Engine, tokens: list[int], new: int, stops: tuple[int, ...] = ()) -> tuple[float, float, list[int]]:
    """Seconds to the first token, seconds from it to the last, and the tokens."""
    events: queue.Queue[Any] = queue.Queue()
    start = time.perf_counter()
    engine.submit(Ask(tuple(tokens), SamplingOptions(temperature=0, max_tokens=new), stops), events.put)
    found, first = [], 0.0
    while True:
        event = events.get()
        if event.token is not None:
            first = first or time.perf_counter()
            found.append(event.token)
        if event.finish:
            assert event.finish != "error", event.error
            return first - start, time.perf_counter() - first, found


def prefix(rounds: int) -> dict[str, Any]:
    figures = {}
    for name, mixers in (("attention", "attention"), ("hybrid", ("attention", "mamba"))):
        torch.manual_seed(0)
        model = quickest(LM(49152, 2048, replace(SHAPE, mixers=mixers)).build({}).eval().requires_grad_(False))
        with Engine(model, slots=4) as engine:
            ratios, cold, again = [], [], []
            for number in range(rounds + 1):
                prompt = torch.randint(49152, (1000,), generator=torch.Generator().manual_seed(number)).tolist()
                new, old = asked(engine, prompt, 1)[0], asked(engine, prompt, 1)[0]
                if number:
                    ratios, cold, again = [*ratios, old / new], [*cold, new], [*again, old]
        figures[f"{name}: warm / cold"] = spread(ratios)
        figures[f"{name}: seconds cold"], figures[f"{name}: seconds warm"] = spread(cold), spread(again)
    return figures


def lookup(rounds: int, gguf: Path, work: Path) -> dict[str, Any]:
    small = nomoat.import_model(SHARED / "weights" / "tinystories-char105" / "model5000.bin", root=work / "runs")
    big = nomoat.import_model(gguf, root=work / "runs")
    figures: dict[str, Any] = {}
    for name, run in (("stories", small), ("quote and correct", big)):
        tokenizer: Any = spelling(run)
        prompts = [[*tokenizer.begin, *(int(token) for token in tokenizer.encode(start))] for start in STARTS]
        if run is big:
            words = f"Quote this text word for word, but correct the misspelled word:\n\n{TEXT}"
            prompts = [Chat.of(run.path).tokens([{"role": "user", "content": words}], tokenizer)[0]]
        rates: dict[str, list[float]] = {"plain": [], "drafted": []}
        texts: dict[str, list[list[int]]] = {}
        models = {case: quickest(load(run), 32 if run is small else None) for case in rates}
        kept = 0.0
        for number in range(rounds + 1):
            for case, model in models.items():
                # A new engine each time: no draft may come from the last round, which wrote the same texts.
                with Engine(model, slots=2, draft=NgramDrafts() if case == "drafted" else None) as engine:
                    count, seconds, texts[case] = 0, 0.0, []
                    for prompt in prompts:
                        _, took, found = asked(engine, prompt, 140, tuple(tokenizer.stops))
                        count, seconds, texts[case] = count + len(found) - 1, seconds + took, [*texts[case], found]
                    stats = engine.stats()
                if number:
                    rates[case].append(count / seconds)
                kept = stats.drafts_accepted / max(1, stats.drafts_proposed)
        figures[name] = {case: spread(found) for case, found in rates.items()} | {
            "ratio": spread([b / a for a, b in zip(rates["plain"], rates["drafted"], strict=True)]),
            "same text": texts["plain"] == texts["drafted"],
            "drafts accepted": kept,
        }
    return figures


PEAK = """
import sys
from nomoat.core.device import peak_memory
import torch
torch.set_num_threads(2)
start = peak_memory()
if len(sys.argv) > 1:
    import nomoat
    from nomoat.core.run import load
    from nomoat.nn.native import quickest
    run = nomoat.import_model(sys.argv[1], root=sys.argv[2], dtype="q8")
    model = quickest(load(run))
    memory = model.memory(1, 512)
    model.decode(torch.ones(1, 128, dtype=torch.int64), memory, [0], last=True)
    for _ in range(64):
        model.decode(torch.ones(1, 1, dtype=torch.int64), memory, [0])
    held = sum(t.nbytes for t in (*model.model.parameters(), *model.model.buffers()))
    print(peak_memory() - start, held, memory.bytes())
"""


def memory(gguf: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        words = [sys.executable, "-c", PEAK, str(gguf), root]
        peak, held, remembered = map(
            int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        )
    return {"peak bytes": peak, "weights": held, "memory": remembered, "ratio": peak / (held + remembered)}


async def stream(port: int, prompt: str, new: int) -> int:
    """One light client: a streamed completion over a bare socket; counts the chunks with text."""
    body = json.dumps({"prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True, "ignore_eos": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    count = 0
    async for line in reader:
        count += line.startswith(b"data: {")
    writer.close()
    return count


@contextmanager
def listening(words: list[str], port: int) -> Iterator[None]:
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                if asyncio.run(stream(port, "Hi", 2)) >= 1:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def clients(rounds: int, gguf: Path, llama: Path, work: Path, count: int = 32, new: int = 64) -> dict[str, Any]:
    run = nomoat.import_model(gguf, root=work / "runs")
    small = nomoat.quantize(run, 8, root=work / "runs")
    file = nomoat.export(run, "gguf", work / "q8.gguf", "q8_0")
    prompts = [f"Story number {number}. Once upon a time there was" for number in range(count)]

    async def all_at_once(port: int) -> int:
        return sum(await asyncio.gather(*(stream(port, prompt, new) for prompt in prompts)))

    ours = [sys.executable, "-m", "nomoat.cli", "serve", str(small.path), "--port", "8101", "--slots", "8"]
    theirs = [str(llama / "llama-server"), "-m", str(file), "--port", "8102", "-np", "8", "-t", "2", "-c", "16384"]
    rates: dict[str, list[float]] = {"nomoat": [], "llama-server": []}
    for _ in range(rounds):
        for name, words, port in (("nomoat", ours, 8101), ("llama-server", theirs, 8102)):
            with listening(words, port):
                start = time.perf_counter()
                found = asyncio.run(all_at_once(port))
                rates[name].append(found / (time.perf_counter() - start))
    pairs = zip(rates["nomoat"], rates["llama-server"], strict=True)
    return {"tokens_per_second": {n: spread(v) for n, v in rates.items()}, "ratio": spread([a / b for a, b in pairs])}


def bare(model: Any, prompts: list[list[int]], new: int) -> float:
    """Tokens a second of an engine alone, all prompts at once."""
    events: queue.Queue[Any] = queue.Queue()
    with Engine(model, slots=len(prompts), draft=NgramDrafts()) as engine:
        start = time.perf_counter()
        for prompt in prompts:
            engine.submit(Ask(tuple(prompt), SamplingOptions(temperature=0, max_tokens=new)), events.put)
        count = ended = 0
        while ended < len(prompts):
            event = events.get()
            count, ended = count + (event.token is not None), ended + bool(event.finish)
        return count / (time.perf_counter() - start)


def overhead(rounds: int, gguf: Path, work: Path, count: int = 8, new: int = 128) -> dict[str, Any]:
    small = nomoat.import_model(gguf, root=work / "runs", dtype="q8")
    tokenizer: Any = spelling(small)
    prompts = [f"Story number {number}. Once upon a time there was" for number in range(count)]
    ids = [[*tokenizer.begin, *map(int, tokenizer.encode(prompt))] for prompt in prompts]
    model = quickest(load(small))
    bare(model, ids, 8)
    words = [sys.executable, "-m", "nomoat.cli", "serve", str(small.path), "--port", "8101", "--slots", str(count)]
    rates: dict[str, list[float]] = {"engine": [], "server": []}

    async def all_at_once() -> int:
        return sum(await asyncio.gather(*(stream(8101, prompt, new) for prompt in prompts)))

    with listening(words, 8101):
        for _ in range(rounds):
            rates["engine"].append(bare(model, ids, new))
            start = time.perf_counter()
            found = asyncio.run(all_at_once())
            rates["server"].append(found / (time.perf_counter() - start))
            assert found >= count * new, found
    pairs = zip(rates["engine"], rates["server"], strict=True)
    return {
        "tokens_per_second": {name: spread(found) for name, found in rates.items()},
        "seconds, server / engine": spread([engine / server for engine, server in pairs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prefix", "lookup", "memory", "clients", "overhead"))
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if chosen.what == "prefix":
            figures = prefix(chosen.rounds)
        elif chosen.what == "lookup":
            figures = lookup(chosen.rounds, chosen.gguf, work)
        elif chosen.what == "memory":
            figures = memory(chosen.gguf)
        elif chosen.what == "overhead":
            figures = overhead(chosen.rounds, chosen.gguf, work)
        else:
            figures = clients(chosen.rounds, chosen.gguf, chosen.llama, work)
    record(f"serving_{chosen.what}", figures)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
