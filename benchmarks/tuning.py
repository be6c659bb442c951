"""What tuning SmolLM2-135M-Instruct with default settings teaches it and makes it forget, with what that costs.

    python benchmarks/tuning.py dolly [--budget 1epochs] [--questions 128]      dolly-short, forgetting on wikitext-2
    python benchmarks/tuning.py summaries [--budget 3epochs]                    dialogsum: 500 dev, tested on 244
    python benchmarks/tuning.py dolly --base RUN --rows 60 --budget 2steps      a small form

"dolly": `nomoat.tune` on the conversations, a tenth of which it holds out; the figures are those of its own report.
"summaries": tuned on the human summaries of the dev part; ROUGE-L (the best of three references) of the likeliest
summaries of the test part, base and tuned asked by the same words, with a paired bootstrap over dialogues.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import SHARED, record

import nomoat
from nomoat import card, comparing
from nomoat.core.run import Run, load
from nomoat.data.chat import Chat
from nomoat.data.conversations import Columns
from nomoat.evaluate.rouge import rouge_l
from nomoat.evaluate.tuned import answers, difference
from nomoat.nn.native import quickest
from nomoat.texts import spelling
from nomoat.tuning import Manner, tune

DATA = SHARED / "data"
ASKED = "Summarize this dialogue in one or two sentences.\n\n{dialogue}"


def first_rows(path: Path, rows: int | None) -> Path:
    """The file, or its first rows beside its README, for a small form."""
    if rows is None:
        return path
    folder = Path(tempfile.mkdtemp())
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for _, line in zip(range(rows), file, strict=False)]
    (folder / path.name.removesuffix(".gz")).write_text("".join(lines), encoding="utf-8")
    (folder / "README.md").write_bytes((path.parent / "README.md").read_bytes())
    return folder


def manner(chosen: argparse.Namespace) -> Manner:
    share = {} if chosen.rehearsal is None else {"rehearsal": chosen.rehearsal}
    return Manner(None if chosen.full else chosen.lora, learning_rate=chosen.learning_rate, **share)


def told(event: Any) -> None:
    if event.get("kind") in ("evaluate", "warning"):
        print({name: value for name, value in event.items() if name != "time"}, flush=True)


def facts(run: Run, began: float) -> dict[str, Any]:
    last = run.metrics("step")[-1]
    cost = {name: figure.value for name, figure in card.costs(run).items()}
    return {"about": run.recipe.about, "steps": last["step"], "tokens": last["tokens"], **cost,
            "training_seconds": last["seconds"], "whole_seconds": time.perf_counter() - began}  # fmt: skip


def dolly(chosen: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    comparing.QUESTIONS = chosen.questions
    data = first_rows(DATA / "dolly-short" / "dolly.jsonl.gz", chosen.rows)
    general = DATA / "wikitext-2" / "test-a.txt.gz"
    run = tune(chosen.base, data, chosen.budget or "1epochs", manner(chosen), general=general, watch=told)
    report = run.read_json("report.json")
    return {**facts(run, began), **{name: report[name] for name in ("learned", "forgotten", "warnings")}}


def summaries(chosen: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    data = first_rows(DATA / "dialogsum" / "dev.jsonl.gz", chosen.rows)
    columns, budget = Columns(ASKED, "summary"), chosen.budget or "3epochs"
    run = tune(
        chosen.base, data, budget, manner(chosen), columns, general=DATA / "wikitext-2" / "test-a.txt.gz", watch=told
    )
    with gzip.open(DATA / "dialogsum" / "test-a.jsonl.gz", "rt", encoding="utf-8") as file:
        tests = [json.loads(line) for line in file][: chosen.rows]
    asked = [[{"role": "user", "content": ASKED.replace("{dialogue}", one["dialogue"])}] for one in tests]
    scores = []
    for each in (run.recipe.start, run):
        assert each is not None
        writer = quickest(load(each))
        wrote = [one.text for _, one in answers(writer, spelling(run), Chat.of(run.path), asked)]
        scores.append(np.array([rouge_l(text, one["summaries"]) for text, one in zip(wrote, tests, strict=True)]))
    found = difference("ROUGE-L of summaries, best of three references", "", *scores)
    report = run.read_json("report.json")
    kept = {name: report[name] for name in ("learned", "forgotten")}
    return {**facts(run, began), "summaries": {**vars(found), "change": found.change}, **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("dolly", "summaries"))
    parser.add_argument("--base", default=None, help="a run; default: pulls smollm2-135m-instruct")
    parser.add_argument("--budget")
    parser.add_argument("--lora", type=int, default=8)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--rehearsal", type=float)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--rows", type=int, help="only so many rows, for a small form")
    chosen = parser.parse_args()
    chosen.base = chosen.base or nomoat.pull("smollm2-135m-instruct")
    found = {"dolly": dolly, "summaries": summaries}[chosen.what](chosen)
    print(json.dumps(found, indent=1))
    if chosen.rows is None:
        record(f"tuning_{chosen.what}", found)


if __name__ == "__main__":
    main()
