"""CLIP on OpenMoji: recall@5 among 220 emoji never seen, of which no variant was seen either; beside a random split.

    python benchmarks/clip_openmoji.py SHARED [--minutes 20] [--seeds 1] [--objective siglip|infonce] [--smoke]

2,204 emoji; a tenth (220) is held out, whole bases at a time. A picture's caption is its name and its keywords; in
training some keywords, drawn anew each time, are left out. Words that no training caption has are not read; a caption
of such words alone is read as one word that means nothing.

Base: two emoji are of one base where they share (1) the code points that are left without joiners, variation selectors,
skin tones, signs of gender, direction and hair, with man and woman read as person, boy and girl as child; or (2) the
subgroup and the words of the name that are left without those of gender, hair, direction, number and order; and so are
all that are linked by others. The random split holds out single emoji and shows what variants give away.

Copying is the way without learning: a held-out caption's nearest training caption (by rare words in common) lends its
picture, and the gallery is ranked by the distance of pixels to it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import re
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import record
from PIL import Image
from torch import Tensor

from nomoat.core.budget import Budget
from nomoat.core.device import generator
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.run import Run
from nomoat.data.order import Order, key, permute
from nomoat.data.words import WordTokenizer, padded
from nomoat.evaluate.retrieval import Share, retrieval, share
from nomoat.families.clip import CLIP, PICTURES
from nomoat.nn.backbone import Backbone
from nomoat.nn.distort import Augment
from nomoat.train.loop import train

GALLERY, AT, SIZE, LENGTH = 220, 5, 64, 24
PERSONS = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}
SIGNS = {"200D", "FE0F", "2640", "2642", "27A1", "2194", "2195", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
TONES = {f"1F3F{digit}" for digit in "BCDEF"}
VARIANTS = {
    *("man", "woman", "men", "women", "person", "people", "boy", "girl", "child", "adult", "male", "female", "lady"),
    *("mr", "mrs", "mx", "ms", "prince", "princess", "king", "queen", "santa", "mother", "father"),
    *("hair", "haired", "red-haired", "blond", "curly", "bald", "beard", "bearded"),
    *("left", "right", "up", "down", "upward", "downward", "upwards", "downwards", "leftwards", "rightwards"),
    *("north", "south", "east", "west", "northeast", "northwest", "southeast", "southwest", "facing", "pointing"),
    *("pointed", "tilted", "leaning", "horizontal", "vertical", "horizontally", "vertically", "clockwise"),
    *("anticlockwise", "counterclockwise", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    *("nine", "ten", "eleven", "twelve", "twenty", "thirty", "hundred", "thousand", "first", "second", "third"),
    *("last", "single", "double", "triple", "half", "quarter", "and", "with", "of", "the", "a", "in", "to"),
}


@dataclass(frozen=True)
class Emoji:
    """One drawing.

    Args:
        hexcode: its code points.
        name: as the collection has it.
        subgroup: likewise.
        tags: keywords, each once.
    """

    hexcode: str
    name: str
    subgroup: str
    tags: tuple[str, ...]


@cache
def emoji(shared: str) -> tuple[Emoji, ...]:
    """All of them."""
    with gzip.open(Path(shared) / "data/openmoji/emoji.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return tuple(
        Emoji(row["hexcode"], row["name"], row["subgroup"], tuple(dict.fromkeys(map(str.lower, row["tags"]))))
        for row in rows
    )


@cache
def images(shared: str) -> Tensor:
    """Pictures [N, 3, 64, 64] on white, in [-1, 1]."""
    pictures = []
    with zipfile.ZipFile(Path(shared) / "data/openmoji/png64.zip") as archive:
        for each in emoji(shared):
            drawn = Image.open(io.BytesIO(archive.read(f"{each.hexcode}.png"))).convert("RGBA")
            page = Image.new("RGBA", drawn.size, "white")
            page.alpha_composite(drawn)
            pictures.append(np.array(page.convert("RGB")))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def points(each: Emoji) -> tuple[str, ...]:
    """The code points without what makes variants; all of them, where nothing would be left."""
    whole = tuple(each.hexcode.split("-"))
    return tuple(PERSONS.get(point, point) for point in whole if point not in SIGNS | TONES) or whole


def words_left(each: Emoji) -> tuple[str, ...]:
    """The words of the name without what makes variants."""
    words = re.findall(r"[\w']+", each.name.lower())
    return tuple(word for word in words if word not in VARIANTS and not re.fullmatch(r"\d+(st|nd|rd|th)?", word))


def bases(rows: Sequence[Emoji]) -> list[list[int]]:
    """The numbers of the emoji of each base, in the order of their first."""
    above: dict[Any, Any] = {}

    def top(node: Any) -> Any:
        above.setdefault(node, node)
        while above[node] != node:
            above[node] = node = above[above[node]]
        return node

    for number, each in enumerate(rows):
        for mark in (("points", points(each)), (each.subgroup, words_left(each))):
            above[top(number)] = top(mark)
    found = defaultdict(list)
    for number in range(len(rows)):
        found[top(number)].append(number)
    return list(found.values())


def held_out(rows: Sequence[Emoji], by_base: bool, seed: int) -> list[int]:
    """220 emoji: whole bases in an order by the seed, passing over those that no longer fit; or single ones."""
    groups = bases(rows) if by_base else [[number] for number in range(len(rows))]
    chosen: list[int] = []
    for place in permute(np.arange(len(groups)), len(groups), key(seed, int(by_base))):
        if len(chosen) + len(groups[place]) <= GALLERY:
            chosen += groups[place]
    return sorted(chosen)


@dataclass(frozen=True)
class Drawings:
    """Recipe data: the emoji that are not held out.

    Args:
        shared: folder with data/openmoji.
        by_base: how they are split.
        seed: of the split.
        keep: share of the keywords that a caption keeps, on average.
    """

    shared: str
    by_base: bool = True
    seed: int = 0
    keep: float = 0.6

    @property
    def shown(self) -> list[int]:
        """Numbers of the emoji for training."""
        hidden = {*held_out(emoji(self.shared), self.by_base, self.seed)}
        return [number for number in range(len(emoji(self.shared))) if number not in hidden]

    def words(self) -> WordTokenizer:
        """Of the training captions."""
        return WordTokenizer.of(caption(emoji(self.shared)[number]) for number in self.shown)

    def batch(self, numbers: Sequence[int], said: Sequence[str], tokenizer: WordTokenizer) -> dict[str, Tensor]:
        """Pictures with what is said of them; unknown words are left out, and where all are, one stands for all."""
        ids = [known if len(known := tokenizer.known(text)) else np.array([tokenizer.eot]) for text in said]
        caption_BM, mask_BM = padded(ids, LENGTH, tokenizer.eot)
        pictures = images(self.shared)[torch.tensor(numbers)]
        return {
            "image": pictures,
            "caption": torch.from_numpy(caption_BM),
            "caption_mask": torch.from_numpy(mask_BM),
            "index": torch.arange(len(numbers)),
        }

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on."""
        shown, tokenizer, rows = self.shown, self.words(), emoji(self.shared)
        order, step = Order([len(shown)], None, seed), start
        while True:
            _, item_B, _ = order.at(np.arange(step * batch_size, (step + 1) * batch_size))
            numbers, chance = [shown[item] for item in item_B], generator(seed, "keywords", step)
            said = [caption(rows[number], torch.rand(64, generator=chance), self.keep) for number in numbers]
            yield self.batch(numbers, said, tokenizer)
            step += 1


def caption(each: Emoji, chance_N: Tensor | None = None, keep: float = 1.0) -> str:
    """The name and its keywords, some of them left out by chance."""
    tags = each.tags
    if chance_N is not None:
        tags = tuple(tag for tag, chance in zip(tags, chance_N.tolist(), strict=False) if chance < keep)
    return " ".join((each.name, *tags))


def recipe(data: Drawings, budget: str, seed: int, objective: Any) -> Recipe:
    """Ours."""
    family = CLIP(
        vocab_size=data.words().vocab_size,
        size=SIZE,
        patch=8,
        vision=Backbone(192, 4, 6, dialect=PICTURES, causal=False, position_axes=2),
        caption_length=LENGTH,
        caption_depth=1,
        objective=objective,
        augment=Augment(crop=0.75, turn=15.0, colour=0.2),
    )
    return Recipe(
        about="CLIP on OpenMoji.",
        family=family,
        data=data,
        budget=Budget.parse(budget),
        batch_size=256,
        ema=0.998,
        seed=seed,
        optimizer=Optimizer(weight_decay=0.2, warmdown=0.6),
    )


def copied(data: Drawings, gallery: Sequence[int]) -> Share:
    """Caption to picture by the nearest training caption's picture."""
    rows, pictures = emoji(data.shared), images(data.shared).flatten(1)
    bags = [{*re.findall(r"\w+", caption(each).lower())} for each in rows]
    seen = Counter(word for bag in bags for word in bag)
    lent = []
    for number in gallery:
        gain = {other: sum(1 / seen[word] for word in bags[number] & bags[other]) for other in data.shown}
        lent.append(max(gain, key=lambda other: gain[other] / math.sqrt(1 + len(bags[other]))))
    apart_NN = torch.cdist(pictures[lent], pictures[list(gallery)])
    own_N1 = apart_NN.diagonal()[:, None]
    hits_N = ((apart_NN <= own_N1).sum(1) - 1 < AT).numpy().astype(np.float64)
    return share(f"copying, caption to picture, recall@{AT}", hits_N, AT / len(gallery))


def measured(data: Drawings, budget: str, seed: int, objective: str) -> dict[str, Any]:
    """One training and what it found."""
    gallery, rows, tokenizer = held_out(emoji(data.shared), data.by_base, data.seed), emoji(data.shared), data.words()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, "clip-openmoji", recipe(data, budget, seed, objective))
        family = train(run.recipe, run)
        last = run.metrics("step")[-1]
        for warning in run.metrics("warning"):
            print(warning["text"], flush=True)
    batch = data.batch(gallery, [caption(rows[number]) for number in gallery], tokenizer)
    found = {each.name: each for each in retrieval(family.eval(), [batch], (1, AT))}
    for each in found.values():
        print(f"{'by base' if data.by_base else 'random'}: {each}", flush=True)
    return {
        "steps": last["step"],
        "seconds": time.perf_counter() - began,
        "parameters": sum(p.numel() for p in family.parameters()),
        "vocabulary": tokenizer.vocab_size,
        "picked_in_batch": last["picked"],
        **{name: _row(each) for name, each in found.items()},
    }


def _row(each: Share) -> dict[str, float]:
    return {"value": each.value, "low": each.low, "high": each.high, "times_chance": each.times_chance}


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shared")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--objective", default="siglip")
    parser.add_argument("--smoke", action="store_true", help="two steps, nothing recorded")
    given = parser.parse_args()
    budget = "2steps" if given.smoke else f"{given.minutes}m"
    rows = emoji(given.shared)
    groups = bases(rows)
    figures: dict[str, Any] = {
        "emoji": len(rows),
        "bases": len(groups),
        "bases_with_variants": sum(len(group) > 1 for group in groups),
        "emoji_with_variants": sum(len(group) for group in groups if len(group) > 1),
        "gallery": GALLERY,
        "minutes_each": given.minutes,
        "objective": given.objective,
        "chance": AT / GALLERY,
    }
    for by_base in (True, False):
        name = "by_base" if by_base else "random"
        data = Drawings(given.shared, by_base)
        hidden = held_out(rows, by_base, data.seed)
        of = {number: place for place, group in enumerate(groups) for number in group}
        shown_bases = {of[number] for number in data.shown}
        alike = sum(of[number] in shown_bases for number in hidden)
        print(f"{name}: {len(hidden)} held out, {alike} of them with a variant in training", flush=True)
        trained = [measured(data, budget, seed, given.objective) for seed in range(given.seeds)]
        figures[name] = {
            "held_out": len(hidden),
            "with_a_variant_in_training": alike,
            "copying": _row(copied(data, hidden)),
            "seeds": trained,
        }
    print(json.dumps(figures, indent=1)) if given.smoke else record("clip_openmoji", figures)


if __name__ == "__main__":
    main()
