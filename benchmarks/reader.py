"""The two readers of the shapes world on true pictures: how often each is right, and how often they agree.

    python benchmarks/reader.py [--size 32] [--steps 4000] [--pictures 2000]

Trains the convolutional reader (minutes on two cores), writes it to FOLDER/reader-SIZE.safetensors, and holds both
against the renderer: clean, with noise of 8, 16 and 25 of 255, and blurred over 3 pixels. Where either is below 99 % on
clean pictures, or they agree on less, what they say of a model is void.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import ROOT, record
from torch import Tensor

from nomoat.data.shapes import Shapes, Shown
from nomoat.data.shapes_scene import ATTRIBUTES, VALUES
from nomoat.evaluate.reader import Reader, kinds, right, train_reader
from nomoat.evaluate.shapes import marks, read

NOISES = (8, 16, 25)
AT_ONCE = 250


def worse(image_BCYX: Tensor) -> dict[str, Tensor]:
    """The pictures as they are, and in four worse states."""
    chance = torch.Generator().manual_seed(0)
    noise_BCYX = torch.randn(image_BCYX.shape, generator=chance)
    states = {"clean": image_BCYX}
    states |= {f"noise {level}": (image_BCYX + noise_BCYX * level / 127.5).clamp(-1, 1) for level in NOISES}
    padded = F.pad(image_BCYX, (1, 1, 1, 1), mode="replicate")
    return {**states, "blur 3": F.avg_pool2d(padded, 3, 1)}


def analytic(image_BCYX: Tensor, shown: Shown) -> tuple[dict[str, float], list[Any]]:
    """How often the analytic reader is right, and what it read."""
    readings = [reading for part in image_BCYX.split(AT_ONCE) for reading in read(part)]
    marked = [marks(scene, reading) for scene, reading in zip(shown.scenes, readings, strict=True)]
    for each in marked:
        each["all four"] = each["count"] and all(each[name] for name in ATTRIBUTES)
    names = list(dict.fromkeys(name for each in marked for name in each))
    return {n: float(np.mean([each[n] for each in marked if n in each])) for n in names}, readings


def agreement(readings: list[Any], kind_BD: Tensor) -> dict[str, float]:
    """The share of pictures in which the analytic reader says what the net says."""
    same = []
    for reading, kind in zip(readings, kind_BD.tolist(), strict=True):
        told = reading.things[0] if len(reading.things) == 1 else None
        pairs = zip(ATTRIBUTES, VALUES, kind, strict=True)
        same.append([told is not None and getattr(told, name) == values[k] for name, values, k in pairs])
    table = np.array(same)
    return {**dict(zip(ATTRIBUTES, table.mean(0).tolist(), strict=True)), "joint": float(table.all(1).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=ROOT / "build")
    chosen = parser.parse_args()
    began, spent = time.perf_counter(), time.process_time()
    reader = train_reader(chosen.size, chosen.steps, watch=_told)
    trained = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path = chosen.folder / f"reader-{chosen.size}.safetensors"
    reader.save(path)
    reader = Reader.load(path)
    figures: dict[str, Any] = {**vars(chosen), "folder": chosen.folder.name, "training": trained, "states": {}}
    figures["parameters"] = sum(p.numel() for p in reader.parameters())
    for objects in (1, 2):
        shown = Shapes(size=chosen.size, objects=objects, split="all").asked(np.arange(chosen.pictures))
        for state, image_BCYX in worse(shown.batch["image"]).items():
            told, readings = analytic(image_BCYX, shown)
            found: dict[str, Any] = {"analytic": told}
            if objects == 1:
                kind_BD = kinds(shown.scenes)
                found["trained"] = right(reader, image_BCYX, kind_BD)
                found["agreement"] = agreement(readings, reader.read(image_BCYX))
            figures["states"][f"{objects} x {state}"] = found
    record("reader", figures)


def _told(step: int, loss: float) -> None:
    if step % 200 == 0:
        print(f"step {step:,}: {loss:.3f} nats", flush=True)


if __name__ == "__main__":
    main()
