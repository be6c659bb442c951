"""A subject from four pictures, by adapters with its class preserved and by one word's vector: learned, and lost.

    python benchmarks/subject.py --base RUN --work FOLDER [--budget 400steps]

RUN draws the shapes world at 32 pixels by captions (`compose.py diffusion` leaves one). The subject is a two-coloured
disc with a white dot, which the world does not have: `a wug`, one of `a circle`. An independent judge, a small net
trained on true pictures of the subject (in other places and sizes than the four) and of the eight shapes, says what is
in 200 drawn pictures of it, and in as many true ones. What was lost: captions of seen combinations, read by rule,
before and after. Results are merged into benchmarks/results/subject.json; sheets lie in FOLDER.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import ROOT, record
from PIL import Image
from torch import Tensor

from nomoat.core.run import Run
from nomoat.data.shapes import Shapes
from nomoat.data.shapes_picture import BACKGROUND_RGB
from nomoat.data.shapes_scene import SHAPES
from nomoat.drawing import draw
from nomoat.evaluate.classifier import Classifier, train
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.figure import wilson
from nomoat.evaluate.shapes import marks, read
from nomoat.sampling.drawing import Drawing
from nomoat.subjects import Subject, teach

SIZE, DRAWN, TRUE, GUIDANCE = 32, 200, 1500, 2.0
LEFT, RIGHT, DOT = (np.array(rgb) / 127.5 - 1 for rgb in ((250, 130, 20), (120, 30, 160), (255, 255, 255)))
WAYS: Mapping[str, Mapping[str, Any]] = {
    "adapters, class preserved": {"caption": "a wug", "of": "a circle"},
    "adapters, nothing preserved": {"caption": "a wug"},
    "one word": {"caption": "a wug", "word": "wug", "begins": "circle"},
}


def subject(count: int, seed: int) -> Tensor:
    """True pictures of it [count, 3, Y, X]: everywhere, in all sizes, on all grounds."""
    chance = np.random.default_rng(seed)
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    made = []
    for _ in range(count):
        radius = chance.uniform(0.16, 0.3)
        across, down = chance.uniform(radius, 1 - radius, 2)
        ground = BACKGROUND_RGB[chance.integers(len(BACKGROUND_RGB))]
        far = np.hypot(x - across, y - down)
        image = np.where((x < across)[..., None], LEFT, RIGHT)
        image = np.where((far < 0.35 * radius)[..., None], DOT, image)
        cover = np.clip((radius - far) * SIZE + 0.5, 0, 1)[..., None]
        made.append(ground + cover * (image - ground))
    return torch.from_numpy(np.stack(made)).float().permute(0, 3, 1, 2)


def judge() -> tuple[Classifier, float]:
    """The net, and how often it is right on true pictures that it has not seen."""
    world = Shapes(split="all")

    def pictures(first: int, many: int, seed: int) -> tuple[Tensor, Tensor]:
        shown = world.shown(np.arange(first, first + many), 3)
        own = subject(many // len(SHAPES), seed)
        label_N = torch.cat([shown.batch["label"], torch.full((len(own),), len(SHAPES))])
        return torch.cat([shown.batch["image"], own]), label_N

    image_NCYX, label_N = pictures(0, 8 * TRUE, 11)
    net = train(image_NCYX, label_N, len(SHAPES) + 1, 1200)
    image_NCYX, label_N = pictures(100_000, 1600, 12)
    return net, float((net.labels(image_NCYX) == label_N).float().mean())


def drawn(run: Run, caption: str, count: int) -> Tensor:
    found = draw(run, caption, count, Drawing(guidance=GUIDANCE))
    return torch.from_numpy(np.stack([one.image_YXC for one in found])).permute(0, 3, 1, 2).float() / 127.5 - 1


def obedience(run: Run) -> list[float]:
    """Share of seen combinations that are drawn as they are told, with its interval."""
    from nomoat.core.run import load

    shown, family = Shapes(size=SIZE).asked(np.arange(DRAWN)), load(run)
    prompts = {name: shown.batch[name] for name in ("caption", "caption_mask")}
    with torch.no_grad():
        image = family.generate({**prompts, "first": 0}, Drawing(guidance=GUIDANCE), torch.Generator())["image"]  # type: ignore[operator]
    right = [marks(scene, one)["joint"] for scene, one in zip(shown.scenes, read(image.clamp(-1, 1)), strict=True)]
    return list(wilson(sum(right), len(right)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--budget", default="400steps")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "subject.json")
    asked = parser.parse_args()
    base, folder = Run.open(asked.base), asked.work / "wug"
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(subject(4, 1)):
        Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    net, right = judge()
    true = net.labels(subject(DRAWN, 13)) == len(SHAPES)
    before = net.labels(drawn(base, "a wug", DRAWN)) == len(SHAPES)
    figures: dict[str, Any] = {
        "judge": {"right": right, "true pictures of it": float(true.float().mean())},
        "base": {"recognised": list(wilson(int(before.sum()), DRAWN)), "as told": obedience(base)},
    }
    for name, settings in WAYS.items():
        began = time.perf_counter()
        run = teach(base, folder, Subject(**settings), asked.budget)
        image = drawn(run, "a wug", DRAWN)
        hits = int((net.labels(image) == len(SHAPES)).sum())
        figures[name] = {"recognised": list(wilson(hits, DRAWN)), "as told": obedience(run)}
        figures[name]["minutes"] = (time.perf_counter() - began) / 60
        sheet(image[:36]).save(asked.work / f"{name.replace(' ', '-').replace(',', '')}.png")
    record("subject", figures, asked.results)


if __name__ == "__main__":
    main()
