"""Five rounds of learning from one's own text: replacing the real text with it, or laying it beside the real text.

    python benchmarks/collapse.py --corpus gutenberg-stories --rounds 5
    python benchmarks/collapse.py --plot gutenberg-stories,us-presidents

    real text -> model 0 -> as much text of its own -> (instead of | beside) the real text -> model 1 -> ... -> model 5

Every model starts from fresh weights and reads its text as often (`--epochs`), as in Gerstgrasser et al. 2024,
arXiv:2404.01413: a model that reads more text takes more steps, and one that learns from the real text alone for as
many steps stands beside it. Text is drawn as `nomoat
generate` draws it, at temperature 0.8 and top-p 0.95. After each round: the loss on held-out real text, and how
varied the model's own text is. The guard is `evaluate.collapse.guard`, handed the shards as any training is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers import ROOT, SHARED, record

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.run import Run
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.text import Text
from nomoat.data.tokenizer import Tokenizer, train_bpe
from nomoat.evaluate.bits import Excerpt, measure
from nomoat.evaluate.collapse import LEAST_REAL, CollapseError, drifted, guard, mixture
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write
from nomoat.train.loop import train

VOCAB, CONTEXT, BATCH, ROWS = 2048, 160, 16, 512
PASSAGE = 400
"""Characters of a document: paragraphs up to this length together, so that each corpus has documents of one size."""


def passages(corpus: str) -> list[str]:
    """The corpus cut into passages of whole paragraphs, in an order of chance.

    Raises:
        SystemExit: there is no such corpus.
    """
    folder, fields = SHARED / "data" / corpus, ("instruction", "output", "text", "fable")
    texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    for path in sorted(folder.glob("*.jsonl.gz")):
        rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
        texts += ["\n\n".join(row[key] for key in fields if row.get(key)) for row in rows]
    if not texts:
        raise SystemExit(f"there is no text in {folder}; $NOMOAT_SHARED names the folder of data")
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
                line = {
                    "origin": "human" if not generation else "model",
                    "generation": generation,
                    "licence": "CC0-1.0",
                }
                for document in documents:
                    writer.add(document, line)
            writer.finish()
        self.tokenizer.save(folder / "tokenizer.json")
        return folder

    def steps(self, folder: Path) -> int:
        """How many steps read a dataset so many times."""
        return max(1, round(self.settings.epochs * ShardReader(folder, "train").tokens / (BATCH * CONTEXT)))

    def model(self, folder: Path, seed: int, steps: int | None = None) -> Any:
        """A fresh model trained on a dataset: so many epochs of it, or so many steps."""
        steps = steps or self.steps(folder)
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
            options = SamplingOptions(
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                max_tokens=CONTEXT,
                seed=seed * 1000 + len(made),
            )
            rows: list[list[int]] = [[] for _ in range(ROWS)]
            for row, token, _ in write(model, [[self.tokenizer.eot]] * ROWS, options, [self.tokenizer.eot]):
                if token != self.tokenizer.eot:
                    rows[row].append(token)
            made += [row for row in rows if row]
        return [np.array(row) for row in made]


def rounds(study: Study, first: Any, replaces: bool) -> list[dict[str, Any]]:
    """Self-training, round by round; the guard looks at each dataset before a model is trained on it.

    The share of real text and its removal are overridden, with the reason that this is what is studied: without that,
    the guard stops `replace` before its first round. What is left to stop it is the drift, which stops a training on
    less than `LEAST_REAL` of real text, and is told of any other.
    """
    model, parts, told = first, [(0, study.real)], []
    for number in range(1, study.settings.rounds + 1):
        start = time.perf_counter()
        parts = [*([] if replaces else parts), (number, study.written(model, number))]
        folder = study.shards("replace" if replaces else "accumulate", parts)
        found = mixture([folder])
        figures = guard([folder], real=study.real if replaces else (), override="to see it happen").drift[number]
        one = {"round": number, "real_share": found.real_share, "figures": figures, "drifted": drifted(figures)}
        model = study.model(folder, number)
        told.append(one | {"bits_per_byte": study.loss(model), "seconds": time.perf_counter() - start})
        print(json.dumps(told[-1]), flush=True)
    return told


def refused(study: Study) -> str:
    """What the guard says of the first round of replacing, nothing overridden."""
    folder, before = study.folder / "replace", mixture([study.folder / "real"])
    try:
        guard([folder], before, study.real)
    except CollapseError as error:
        return error.what
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="gutenberg-stories")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=150_000, help="of real text, and of text written in each round")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--plot", help="write docs/collapse.svg from results of these corpora, and train nothing")
    arguments = parser.parse_args()
    if arguments.plot:
        names = arguments.plot.split(",")
        results = [json.loads((ROOT / "benchmarks/results" / f"collapse-{name}.json").read_text()) for name in names]
        (ROOT / "docs" / "collapse.svg").write_text(drawn([guarded(result["figures"]) for result in results]))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        study = Study(arguments, Path(place))
        folder = study.shards("real", [(0, study.real)])
        first = study.model(folder, 0)
        figures: dict[str, Any] = {"settings": vars(arguments), "real_tokens": study.tokens, "real": study.loss(first)}
        figures["parameters"] = sum(one.numel() for one in first.parameters())
        figures["replace"] = rounds(study, first, replaces=True)
        figures["refused"] = refused(study)
        figures["accumulate"] = rounds(study, first, replaces=False)
        steps = study.steps(study.folder / "accumulate")
        figures["real_as_many_steps"] = study.loss(study.model(folder, arguments.rounds, steps))
        figures["minutes"] = (time.perf_counter() - start) / 60
    record(f"collapse-{arguments.corpus}", guarded(figures))


def guarded(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with where the guard stops each series: it changes nothing else."""
    for name in ("replace", "accumulate"):
        stops = (one["round"] for one in figures[name] if one["drifted"] and one["real_share"] < LEAST_REAL)
        figures[f"{name}_stopped_at"] = stopped = next(stops, None)
        figures[f"{name}_guarded"] = figures[name][: None if stopped is None else stopped - 1]
        figures[f"{name}_drifts_at"] = next((one["round"] for one in figures[name] if one["drifted"]), None)
    return figures


WIDTH, HEIGHT, LEFT, TOP = 380, 240, 62, 58
LINES = (("replace", "#c0392b"), ("accumulate", "#1f6fb2"))
PANELS = (
    ("bits per byte of held-out real text", lambda one: one["bits_per_byte"]),
    ("different pairs of tokens, of real text's", lambda one: one["figures"]["distinct_2"]),
    ("rare tokens, of real text's", lambda one: one["figures"]["tail"]),
)


def drawn(results: list[dict[str, Any]]) -> str:
    """One row a corpus, one panel a figure: rounds to the right, a bar where the guard stops."""
    across, down = WIDTH + LEFT + 18, HEIGHT + TOP + 34
    size = f'width="{across * len(PANELS)}" height="{down * len(results)}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for row, result in enumerate(results):
        for column, (title, value) in enumerate(PANELS):
            place = f'<g transform="translate({column * across + LEFT},{row * down + TOP})">'
            parts += [place, *panel(result, title, value, column == 0), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def panel(result: dict[str, Any], title: str, value: Any, is_loss: bool) -> list[str]:
    """Axes, both lines, the real text's level, and where the guard stops."""
    level, count = result["real"] if is_loss else 1.0, len(result["replace"])
    series = {name: [level] * is_loss + [value(one) for one in result[name]] for name, _ in LINES}
    every = [level, *(number for line in series.values() for number in line)]
    low, high = (min(every) * 0.9, max(every) * 1.03) if is_loss else (0.0, max(every) * 1.1)

    def at(step: float, number: float) -> tuple[float, float]:
        return WIDTH * step / count, HEIGHT * (1 - (number - low) / (high - low))

    corpus = result["settings"]["corpus"]
    said = [f'<text y="-34" font-weight="bold">{corpus}</text>' if is_loss else "", f'<text y="-14">{title}</text>']
    said.append(f'<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="#555"/>')
    for mark in np.linspace(low, high, 5):
        y = at(0, mark)[1]
        said.append(f'<text x="-8" y="{y + 4:.1f}" text-anchor="end" fill="#555">{mark:.2f}</text>')
    said += [
        f'<text x="{at(step, low)[0]:.1f}" y="{HEIGHT + 18}" text-anchor="middle" fill="#555">{step}</text>'
        for step in range(count + 1)
    ]
    y = at(0, level)[1]
    said.append(f'<path d="M0 {y:.1f}H{WIDTH}" stroke="#999" stroke-dasharray="5 4"/>')
    said.append(f'<text x="{WIDTH}" y="{y - 5:.1f}" text-anchor="end" fill="#777">real text</text>')
    for name, colour in LINES:
        points = [at(step, number) for step, number in enumerate(series[name], 0 if is_loss else 1)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        said.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        said += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        if is_loss:  # elsewhere the lines lie too near for words; the colours are the same
            under = 18 if name == "accumulate" else -9
            place = f'x="{x - 6:.1f}" y="{y + under:.1f}" text-anchor="end" fill="{colour}"'
            said.append(f"<text {place}>{name}</text>")
    if stop := result["replace_stopped_at"]:
        x = at(stop, low)[0]
        said.append(f'<path d="M{x:.1f} 0V{HEIGHT}" stroke="#c0392b" stroke-dasharray="2 3"/>')
        said.append(f'<text x="{x + 4:.1f}" y="12" fill="#c0392b">guard stops replace</text>')
    return said


if __name__ == "__main__":
    main()
