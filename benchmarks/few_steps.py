"""Few steps: how much further from real pictures 4 evaluations are than 128, and what learning to take few costs.

    python benchmarks/few_steps.py --minutes 20 --work FOLDER [--cases shortcut,meanflow]
    (to try it: --minutes 0.3 --drawn 64 --results /tmp/few.json)

Plain flow matching, a shortcut model and MeanFlow (their recipes) on the shapes world, each for the same time. By the
captions of held-out scenes each draws the same number of pictures in 1, 2, 4, 8 and 128 evaluations; kernel distance
x 1000 to true pictures of other scenes like them, less that of real pictures among themselves (the floor), by a small
net trained on true pictures. Results are merged into benchmarks/results/few_steps.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from compose import drawn
from peers import ROOT, record

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.recipe import find
from nomoat.core.run import load
from nomoat.data.shapes import Shapes
from nomoat.data.shapes_scene import SHAPES
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.distances import compare
from nomoat.evaluate.features import own_domain
from nomoat.evaluate.seen import as_seen

EVALUATIONS = (1, 2, 4, 8, 128)
OWN = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--drawn", type=int, default=1024)
    parser.add_argument("--cases", default="diffusion,shortcut,meanflow")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "few_steps.json")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    world = Shapes()
    own = world.shown(np.arange(OWN), 5)
    net = own_domain(as_seen(own.batch["image"], "true pictures"), own.batch["label"], len(SHAPES))
    real, floor, told = (world.asked(np.arange(first, first + asked.drawn)) for first in (50_000, 60_000, 70_000))
    true_ND, floor_ND = (net.of(as_seen(each.batch["image"], "true pictures")) for each in (real, floor))
    figures = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
    for case in asked.cases.split(","):
        began = time.perf_counter()
        recipe = replace(find(f"{case}-small"), budget=Budget.parse(f"{60 * asked.minutes - 4:.0f}s"))
        run = making.started(f"few-{case}", recipe, asked.work / "runs", None, None)
        making.trained(run, "auto", None)
        found: dict[str, Any] = {"minutes": (time.perf_counter() - began) / 60}
        found["steps"] = run.metrics("step")[-1]["step"]
        family = load(run)
        for evaluations in EVALUATIONS:
            image = drawn(family, told, 1.0, 0, evaluations)
            sheet(image[:36]).save(asked.work / f"{case}-{evaluations}.png")
            sets = {"drawn": net.of(as_seen(image, "drawn", drawn=True)), "other real": floor_ND}
            row = compare(true_ND, sets, "other real", (net.name, net.about, net.hash)).row("drawn")
            found[str(evaluations)] = {"kernel": [*row.kernel], "above the floor": [*row.above]}
        found["4 / 128"] = found["4"]["above the floor"][0] / found["128"]["above the floor"][0]
        figures[case] = found
        if "diffusion" in figures and case != "diffusion":
            plain = figures["diffusion"]["128"]["above the floor"][0]
            found["128 / plain 128"] = found["128"]["above the floor"][0] / plain
        record("few_steps", figures, asked.results)


if __name__ == "__main__":
    main()
