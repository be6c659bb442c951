"""A small folder of text, and a recipe of a few seconds for it: what the tests of the terminal train on."""

from __future__ import annotations

import random
from pathlib import Path

TEXT = "the cat dog sat ran on under mat river mountain and then slowly quickly it was a day of rain when we saw"
WORDS = TEXT.split()

TINY = (
    *("data.vocab_size=280", "family.vocab_size=280", "data.context_length=32", "family.context_length=32"),
    *("family.backbone.width=32", "family.backbone.depth=1", "family.backbone.heads=1", "batch_size=4"),
    *("precision=fp32", "keep_every_seconds=0.2"),
)
"""Overrides of `gpt-small` that make it learn in seconds."""


def notes(folder: Path, files: int = 30, lines: int = 30, seed: int = 0) -> Path:
    """Fill `folder` with files of random sentences and a licence; returns it."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        text = "\n".join(" ".join(chance.choices(WORDS, k=9)) + "." for _ in range(lines))
        (folder / f"{number:02}.txt").write_text(f"# {number}\n{text}\n", encoding="utf-8")
    return folder
