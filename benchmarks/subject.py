"""A subject from four pictures, by adapters with its class preserved and by one word's vector: learned, and lost.

    python benchmarks/subject.py --base RUN --work FOLDER

RUN draws the shapes world at 32 pixels by captions (`compose.py diffusion` leaves one). Two subjects are called
`a wug`: a two-coloured disc with a white dot, which the world does not have (one of `a circle`), and a ring of a colour
between cyan and blue, which no caption names but a vector may (one of `a ring`). An independent judge, a small net
trained on true pictures of both (in other places and sizes than the four) and of the eight shapes, says what is in 200
drawn pictures, and in as many true ones. What was lost: captions of seen combinations, read by rule, before and after.
Results are merged into benchmarks/results/subject.json; sheets lie in FOLDER.
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
from nomoat.data.shapes_picture import BACKGROUND_RGB, COLOUR_RGB
from nomoat.data.shapes_scene import COLOURS, SHAPES
from nomoat.drawing import draw
from nomoat.evaluate.classifier import Classifier, train
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.figure import wilson
from nomoat.evaluate.shapes import marks, read
from nomoat.sampling.drawing import Drawing
from nomoat.subjects import Subject, teach

SIZE, DRAWN, TRUE, GUIDANCE = 32, 200, 1500, 2.0
LEFT, RIGHT, DOT = (np.array(rgb) / 127.5 - 1 for rgb in ((250, 130, 20), (120, 30, 160), (255, 255, 255)))
BETWEEN = (COLOUR_RGB[COLOURS.index("cyan")] + COLOUR_RGB[COLOURS.index("blue")]) / 2
SUBJECTS = {"disc": "circle", "ring": "ring"}
"""What is a wug, and of which class it is."""
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adapters, class preserved": ("400steps", {"of": True}),
    "adapters, nothing preserved": ("400steps", {}),
    "one word": ("800steps", {"word": "wug"}),
}


def subject(kind: str, count: int, seed: int) -> Tensor:
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
        if kind == "ring":
            image, cover = BETWEEN, cover * np.clip((far - 0.55 * radius) * SIZE + 0.5, 0, 1)[..., None]
        made.append(ground + cover * (image - ground))
    return torch.from_numpy(np.stack(made)).float().permute(0, 3, 1, 2)


def label_of(kind: str) -> int:
    return len(SHAPES) + list(SUBJECTS).index(kind)


def judge() -> tuple[Classifier, float]:
    """The net, and how often it is right on true pictures that it has not seen."""
    world = Shapes(split="all")

    def pictures(first: int, many: int, seed: int) -> tuple[Tensor, Tensor]:
        shown = world.shown(np.arange(first, first + many), 3)
        own = [subject(kind, many // len(SHAPES), seed) for kind in SUBJECTS]
        told = [torch.full((len(each),), label_of(kind)) for kind, each in zip(SUBJECTS, own, strict=True)]
        return torch.cat([shown.batch["image"], *own]), torch.cat([shown.batch["label"], *told])

    image_NCYX, label_N = pictures(0, 8 * TRUE, 11)
    net = train(image_NCYX, label_N, len(SHAPES) + len(SUBJECTS), 1200)
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
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "subject.json")
    asked = parser.parse_args()
    base = Run.open(asked.base)
    net, right = judge()
    before = net.labels(drawn(base, "a wug", DRAWN))
    figures: dict[str, Any] = {"judge": {"right": right}, "base": {"as told": obedience(base)}}
    for kind, above in SUBJECTS.items():
        folder = asked.work / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(subject(kind, 4, 1)):
            pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        hits = {"true pictures": net.labels(subject(kind, DRAWN, 13)), "base": before}
        found = {name: share(labels, kind) for name, labels in hits.items()}
        for name, (budget, settings) in WAYS.items():
            began = time.perf_counter()
            settings = {**settings, "of": f"a {above}"} if "of" in settings else settings
            run = teach(base, folder, Subject("a wug", begins=above, **settings), budget)
            image = drawn(run, "a wug", DRAWN)
            found[name] = {"recognised": share(net.labels(image), kind), "as told": obedience(run)}
            found[name]["minutes"] = (time.perf_counter() - began) / 60
            sheet(image[:36]).save(asked.work / f"{kind}-{name.replace(' ', '-').replace(',', '')}.png")
        figures[kind] = found
        record("subject", figures, asked.results)


def share(label_N: Tensor, kind: str) -> Any:
    """Of the pictures in which the judge sees it, with its interval."""
    return list(wilson(int((label_N == label_of(kind)).sum()), len(label_N)))


if __name__ == "__main__":
    main()
