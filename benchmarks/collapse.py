"""Five rounds of learning from one's own text: replacing the real text with it, or laying it beside the real text.

    python benchmarks/collapse.py --corpus gutenberg-stories --rounds 5 [--units 400 --epochs 3] [--plot]

    real text -> model 0 -> as much text of its own -> (instead of | beside) the real text -> model 1 -> ... -> model 5

Every model starts from fresh weights and reads its text as often (`--epochs`), as in Gerstgrasser et al. 2024,
arXiv:2404.01413: a model that reads more text takes more steps, and one that learns from the real text alone for as
many steps stands beside it. Text is drawn at temperature 1. After each round: the loss on held-out real text, and how
varied the model's own text is. The guard is `evaluate.collapse.guard`, handed the shards as any training is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import SHARED, record

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.run import Run
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.text import Text
from nomoat.data.tokenizer import Tokenizer, train_bpe
from nomoat.evaluate.bits import Excerpt, measure
from nomoat.evaluate.diversity import compare
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write
from nomoat.train.loop import train

VOCAB, CONTEXT, BATCH, ROWS = 2048, 160, 16, 512
PASSAGE = 400
"""Characters of a document: paragraphs up to this length together, so that each corpus has documents of one size."""


def passages(corpus: str) -> list[str]:
    """The corpus cut into passages of whole paragraphs, in an order of its own."""
    folder = SHARED / "data" / corpus
    texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    for path in sorted(folder.glob("*.jsonl.gz")):
        rows = [json.loads(line) for line in gzip.open(path, "rt")]
        texts += ["\n\n".join(str(row.get(key) or "") for key in ("instruction", "output", "text", "fable") if row.get(key)) for row in rows]
    made = []
    for text in texts:
        held = ""
        for paragraph in text.replace("\r", "").split("\n\n"):
            if held and len(held) + len(paragraph) > PASSAGE:
                made.append(held)
                held = ""
            held = (held + "\n\n" + paragraph).strip()
        made += [held] if held else []
    order = np.random.default_rng(0).permutation(len(made))
    return [made[place] for place in order]


class Study:
    """A corpus, its tokenizer, and models that are trained on it and on each other.

    Args:
        arguments: of the command line.
        folder: where shards and runs lie.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.settings, self.folder = arguments, folder
        texts = passages(arguments.corpus)
        held = max(1, len(texts) // 10)
        self.tokenizer: Tokenizer = train_bpe(texts[held:], VOCAB)
        self.held_out = [self.tokenizer.encode(text) for text in texts[:held]][:400]
        real = [self.tokenizer.encode(text) for text in texts[held:]]
        limit, self.real = arguments.tokens, []
        for document in real:
            if sum(map(len, self.real)) < limit:
                self.real.append(document)
        self.tokens = sum(len(document) + 1 for document in self.real)
        parts = [np.append(document, self.tokenizer.eot) for document in self.held_out]
        self.excerpt = Excerpt(np.concatenate(parts), np.cumsum([len(part) for part in parts]), np.arange(len(parts)))

    def shards(self, name: str, parts: Sequence[tuple[int, Sequence[Any]]]) -> Path:
        """A dataset of documents by generation."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        for split, chosen in (("train", parts), ("heldout", [(0, self.held_out)])):
            writer = ShardWriter(folder, split, self.tokenizer)
            for generation, documents in chosen:
                line = {"origin": "human" if not generation else "model", "generation": generation, "licence": "CC0-1.0"}
                for document in documents:
                    writer.add(document, line)
            writer.finish()
        self.tokenizer.save(folder / "tokenizer.json")
        return folder

    def model(self, folder: Path, seed: int, steps: int | None = None) -> Any:
        """A fresh model trained on a dataset: so many epochs of it, or so many steps."""
        tokens = ShardReader(folder, "train").tokens
        steps = steps or max(1, round(self.settings.epochs * tokens / (BATCH * CONTEXT)))
        backbone = Backbone(width=self.settings.width, depth=3, heads=self.settings.width // 32)
        recipe = Recipe(
            about="A round of self-training.",
            family=LM(vocab_size=self.tokenizer.vocab_size, context_length=CONTEXT, backbone=backbone),
            data=Text(str(folder), CONTEXT),
            budget=Budget.parse(f"{steps}steps"),
            batch_size=BATCH,
            optimizer=Optimizer(warmdown=0.6),
            seed=seed,
            precision="fp32",
            evaluate_every=10**9,
            keep_every_seconds=10**6,
        )
        run = Run.create(self.folder / "runs", "collapse", recipe)
        model = train(recipe, run).eval()
        shutil.rmtree(run.path)
        return model

    def loss(self, model: Any) -> float:
        """Bits per byte of held-out real text."""
        return measure(model, self.excerpt, self.tokenizer.lengths, self.tokenizer.eot).value

    def written(self, model: Any, seed: int) -> list[Any]:
        """As many tokens as the real text has, each document begun from nothing and ended by the model itself."""
        made: list[list[int]] = []
        while sum(map(len, made)) < self.tokens:
            options = SamplingOptions(temperature=self.settings.temperature, top_p=self.settings.top_p, max_tokens=CONTEXT, seed=seed * 1000 + len(made))
            rows: list[list[int]] = [[] for _ in range(ROWS)]
            for row, token, _ in write(model, [[self.tokenizer.eot]] * ROWS, options, [self.tokenizer.eot]):
                if token != self.tokenizer.eot:
                    rows[row].append(token)
            made += [row for row in rows if row]
        return [np.array(row) for row in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="gutenberg-stories")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        study = Study(arguments, Path(place))
        print("tokens", study.tokens, "held", len(study.excerpt.tokens_N), "docs", len(study.real))
        start = time.perf_counter()
        first = study.model(study.shards("real", [(0, study.real)]), 0)
        print("params", sum(p.numel() for p in first.parameters()))
        base = study.loss(first)
        print("real", round(base, 4), "seconds", round(time.perf_counter() - start))
        for mode in ("replace", "accumulate"):
            model, parts = first, [(0, study.real)]
            for number in range(1, arguments.rounds + 1):
                start = time.perf_counter()
                made = study.written(model, number)
                wrote = time.perf_counter() - start
                a, b = compare(made, study.real)
                parts = [*([] if mode == "replace" else parts), (number, made)]
                model = study.model(study.shards(mode, parts), number)
                print(mode, number, round(study.loss(model), 4), round(study.loss(model) / base - 1, 4), "wrote", round(wrote), "all", round(time.perf_counter() - start),
                      {k: round(v, 3) for k, v in a.against(b).items()}, flush=True)


if __name__ == "__main__":
    main()
