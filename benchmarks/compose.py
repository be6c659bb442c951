"""Compose-1: does a generator draw combinations that it never saw? Every family on the shapes world, in equal time.

    python benchmarks/reader.py                                                  once: the second reader
    python benchmarks/compose.py diffusion dalle unclip r3gan --minutes 60 --work FOLDER
    python benchmarks/compose.py diffusion --objects 2 --minutes 60 --work FOLDER
    (to try it: --minutes 2 --pictures 64 --results /tmp/compose.json; other settings: --set family.stem=32)

A family's minutes hold all that it needs: a CLIP, a codec, a prior, an upsampler are trained in their share of them
(`CASES`). How much a caption is exaggerated (`GUIDANCE`) is chosen on combinations that were seen. Then pictures are
drawn by the captions of each split and read twice, by rule and by a net (pictures of one thing). A picture counts where
all that its caption says is there: by rule; by both readers in `both`. Beside it: the shares of the single attributes
and their product; what the same pictures come to against other captions; what copying comes to (the training picture
with the caption most alike, the mean picture of the shape); and how far the pictures are from the nearest training
picture, over how far true pictures of the same captions are. Results are merged into benchmarks/results/compose.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import ROOT, record
from torch import Tensor

from nomoat import making
from nomoat.composing import compose
from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.device import autocast, bf16_is_faster
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe, Ref, find
from nomoat.core.run import Run, load
from nomoat.data.shapes import Shapes, Shown
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.figure import wilson
from nomoat.evaluate.reader import Reader, kinds
from nomoat.evaluate.shapes import marks, read
from nomoat.sampling.drawing import Drawing

CASES: dict[str, dict[str, float]] = {
    "diffusion": {"diffusion": 1},
    "dit": {"dit": 1},
    "shortcut": {"shortcut": 1},
    "meanflow": {"meanflow": 1},
    "r3gan": {"r3gan": 1},
    "transgan": {"transgan": 1},
    "dalle": {"codec": 0.1, "clip": 0.15, "dalle": 0.75},
    "unclip": {"clip": 0.2, "unclip": 0.15, "decoder": 0.4, "upsampler": 0.25},
}
"""Recipes of each family (their names without `-small`), and the share of the minutes that each gets."""
PARTS = {"dalle": {"codec": "codec", "ranker": "clip"}, "unclip": {"clip": "clip"}}
CANDIDATES = 8
"""Drawn for each picture by those that have a CLIP to choose by (DALL-E 2's prior too)."""
SPLITS = {1: ("seen", "pair", "triple", "paraphrase"), 2: ("seen", "pair", "relation", "count", "paraphrase")}
GUIDANCE, TRIED, STEPS, ROWS, SHOWN = (1.0, 2.0, 3.0, 5.0), 192, 20, 64, 48
LEARNED = 20_000
"""Training pictures that are looked through for the nearest."""
CPU = torch.device("cpu")
START = 6.0
"""Seconds of a stage outside its training: measuring the machine, writing."""


def staged(name: str, seconds: float, parts: Mapping[str, Run], asked: argparse.Namespace) -> Run:
    """One stage: a recipe of the library on this world, for so many seconds."""
    recipe: Recipe = override(find(f"{name}-small"), asked.settings if name in asked.cases else [])
    data: Any = recipe.data
    world = data.data if name == "decoder" else data
    world = replace(world, objects=max(asked.objects, world.objects))
    pinned = {part: Ref(str(parts[run].path)) for part, run in PARTS.get(name, {}).items()}
    data = replace(data, data=world, encoder=Ref(str(parts["clip"].path))) if name == "decoder" else world
    recipe = replace(recipe, data=data, budget=Budget.parse(f"{max(5.0, seconds - START):.0f}s"), seed=asked.seed)
    if pinned:
        recipe = replace(recipe, parts=pinned)
    run = making.started(f"compose-{name}", recipe, asked.work / "runs", None, None)
    making.trained(run, "auto", None)
    return run


def trained(case: str, asked: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The run that draws, and what making it took."""
    began, runs, told = time.perf_counter(), dict[str, Run](), dict[str, Any]()
    total, left = 60 * asked.minutes, 1.0
    for name, share in CASES[case].items():
        rest = total - (time.perf_counter() - began)
        runs[name] = staged(name, rest * share / left, runs, asked)
        last = runs[name].metrics("step")[-1]
        told[name] = {"steps": last["step"], "seconds": last["seconds"], "loss": last["training_loss"]}
        told[name]["parameters"] = sum(each.numel() for each in load(runs[name]).parameters())
        left -= share
    run = runs[next(reversed(runs))]
    if case == "unclip":
        chain = asked.work / "runs"
        run = compose(runs["unclip"].path, runs["decoder"].path, [runs["upsampler"].path], "compose-chain", chain)
    return run, {"minutes": (time.perf_counter() - began) / 60, "stages": told}


@cache
def faster() -> str:
    """The precision in which pictures are drawn: the faster here, as while training."""
    return "bf16" if bf16_is_faster(CPU, 4096, 192).yes else "fp32"


def drawn(family: Any, shown: Shown, guidance: float, seed: int, steps: int = STEPS) -> Tensor:
    """Pictures by the captions alone."""
    many = CANDIDATES if "candidates" in getattr(family, "takes", ()) else None
    made, drawing = [], Drawing(steps=steps, guidance=guidance, candidates=many, seed=seed)
    for first in range(0, len(shown.scenes), ROWS):
        prompts = {name: shown.batch[name][first : first + ROWS] for name in ("caption", "caption_mask")}
        with torch.no_grad(), autocast(CPU, faster()):
            made.append(family.generate({**prompts, "first": first}, drawing, torch.Generator())["image"].float())
    return torch.cat(made).clamp(-1, 1)


def read_all(image_NCYX: Tensor, shown: Shown) -> list[dict[str, bool]]:
    """What of each scene is right, by rule."""
    readings = [one for part in image_NCYX.split(256) for one in read(part)]
    return [marks(scene, reading) for scene, reading in zip(shown.scenes, readings, strict=True)]


def shares(marked: list[dict[str, bool]]) -> dict[str, Any]:
    """Share of each mark with its interval."""
    names = list(dict.fromkeys(name for each in marked for name in each))
    rows = {name: [each[name] for each in marked if name in each] for name in names}
    return {name: list(wilson(sum(row), len(row))) for name, row in rows.items()}


def judged(image_NCYX: Tensor, shown: Shown, reader: Reader | None) -> dict[str, Any]:
    """All that is read from the pictures of one split."""
    marked = read_all(image_NCYX, shown)
    found = shares(marked)
    told = [name for name in ("count", "shape", "colour", "size", "texture", "relation") if name in found]
    product = float(np.prod([found[name][0] for name in told if name != "count"]))
    other = shown._replace(scenes=shown.scenes[1:] + shown.scenes[:1])
    figures = {"read": found, "product": product, "other_captions": shares(read_all(image_NCYX, other))["joint"]}
    if reader is not None and all(len(scene.things) == 1 for scene in shown.scenes):
        small = torch.nn.functional.interpolate(image_NCYX, (reader.size, reader.size), mode="area")
        same_ND = reader.read(small) == kinds(shown.scenes)
        second_N = same_ND.all(1).tolist()
        both = sum(a["joint"] and b for a, b in zip(marked, second_N, strict=True))
        figures["second_reader"] = float(np.mean(second_N))
        figures["both"] = list(wilson(both, len(marked)))
    return figures


class Learned:
    """Training pictures, in which the nearest are looked for, and what copying them comes to."""

    def __init__(self, world: Shapes, count: int, seed: int) -> None:
        self.shown = world.shown(np.arange(count), seed)
        self.image_NP = self.shown.batch["image"].flatten(1)
        self.words = [frozenset(caption.split()) for caption in self.shown.captions]

    def distance(self, image_NCYX: Tensor) -> Tensor:
        """Root of the mean square difference from the nearest, in levels of 255."""
        size = self.shown.batch["image"].shape[-1]
        small = torch.nn.functional.interpolate(image_NCYX, (size, size), mode="area").flatten(1)
        nearest = torch.cat([torch.cdist(part, self.image_NP).amin(1) for part in small.split(64)])
        return nearest / small.shape[1] ** 0.5 * 127.5

    def copied(self, shown: Shown) -> Tensor:
        """For each caption the training picture whose caption shares most words with it and has fewest others."""
        best = []
        for caption in shown.captions:
            words = frozenset(caption.split())
            alike = [len(words & each) / len(words | each) for each in self.words]
            best.append(int(np.argmax(alike)))
        return self.shown.batch["image"][best]

    def means(self, shown: Shown) -> Tensor:
        """For each scene the mean training picture of its first thing's shape."""
        label_N = self.shown.batch["label"]
        mean_S = {kind: self.shown.batch["image"][label_N == kind].mean(0) for kind in label_N.unique().tolist()}
        return torch.stack([mean_S[kind] for kind in shown.batch["label"].tolist()])


def measured(case: str, asked: argparse.Namespace, learned: Learned, reader: Reader | None) -> dict[str, Any]:
    """One family: trained, its guidance chosen on what was seen, its pictures read."""
    run, cost = trained(case, asked)
    family: Any = load(run)
    size = family.config.size if hasattr(family.config, "size") else 32
    world = Shapes(size=size, objects=asked.objects)
    trial = world.asked(np.arange(10_000, 10_000 + min(TRIED, asked.pictures)))
    tried = {}
    for g in GUIDANCE:
        with suppress(ConfigError):  # a GAN has none
            tried[g] = shares(read_all(drawn(family, trial, g, 7), trial))["joint"][0]
    guidance = max(tried, key=lambda g: (tried[g], -g))
    figures: dict[str, Any] = {**cost, "guidance_on_seen": tried, "guidance": guidance, "splits": {}}
    began, count = time.perf_counter(), 0
    for split in SPLITS[asked.objects]:
        shown = replace(world, split=split).asked(np.arange(asked.pictures))
        image_NCYX = drawn(family, shown, guidance, 0)
        count += len(image_NCYX)
        told = judged(image_NCYX, shown, reader)
        near, true = (float(learned.distance(each).median()) for each in (image_NCYX, shown.batch["image"]))
        figures["splits"][split] = {**told, "nearest_training_over_true": near / true}
        page = sheet(image_NCYX[:SHOWN], shown.captions[:SHOWN])
        page.save(asked.work / f"{case}-{asked.objects}-{split}.png")
    figures["pictures_a_second"] = count / (time.perf_counter() - began)
    return figures


def baselines(asked: argparse.Namespace, learned: Learned, reader: Reader | None) -> dict[str, Any]:
    """What true pictures and copies come to on the same captions."""
    found = dict[str, Any]()
    for split in SPLITS[asked.objects]:
        shown = Shapes(objects=asked.objects, split=split).asked(np.arange(asked.pictures))
        ways: dict[str, Callable[[], Tensor]] = {
            "true pictures": partial(shown.batch.__getitem__, "image"),
            "nearest caption": partial(learned.copied, shown),
            "mean of the shape": partial(learned.means, shown),
        }
        for name, pictures in ways.items():
            found.setdefault(name, {})[split] = judged(pictures(), shown, reader)
    return found


def table(held: Mapping[str, Any]) -> str:
    """Joint shares, a family a line."""
    lines = []
    for key, case in held.items():
        told = ", ".join(f"{split} {each['read']['joint'][0]:.1%}" for split, each in case.get("splits", {}).items())
        lines.append(f"{key}: {told} ({case.get('minutes', 0):.0f} minutes)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--objects", type=int, default=1, choices=SPLITS)
    parser.add_argument("--pictures", type=int, default=512, help="of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="of the case's own recipe")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--reader", type=Path, default=ROOT / "build" / "reader-32.safetensors")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "compose.json")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    reader = Reader.load(asked.reader) if asked.reader.exists() else None
    learned = Learned(Shapes(objects=asked.objects), LEARNED, asked.seed)
    for case in asked.cases:
        held = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
        held.setdefault(f"baselines, {asked.objects} objects", baselines(asked, learned, reader))
        key = ", ".join([case, f"{asked.objects} objects", f"{asked.minutes:g} minutes", *asked.settings])
        held[key] = measured(case, asked, learned, reader)
        record("compose", held, asked.results)
        print(table({key: held[key]}), flush=True)


if __name__ == "__main__":
    main()
