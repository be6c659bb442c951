"""From a folder of emoji to a model that draws by captions, is led by masks and outlines, and enlarges.

    python benchmarks/emoji.py make --minutes 25 --work FOLDER [--size 64] [--shapes]
    python benchmarks/emoji.py mask --minutes 12 --work FOLDER      over the model of `make`, --size and all; or: edges
    python benchmarks/emoji.py upsampler --minutes 20 --work FOLDER
    (to try it: --minutes 1 --results /tmp/emoji.json)

`make`, `mask` and `edges` are what `nomoat make` and `nomoat control` do, with their own reports as figures. The
upsampler (32 to 64 pixels, noise added to the small picture) is held against bicubic enlarging: kernel distance x 1000
of both to the same real pictures of 64 pixels, by the fixed judge (extra `judge`) and by a net of our own, with the
95 % interval of the difference between them (drawn together). Results are merged into benchmarks/results/emoji.json.
"""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import ROOT, SHARED, record
from torch import Tensor

import nomoat
from nomoat import controlling, making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe, find
from nomoat.core.run import Run, load
from nomoat.data.pictures import PictureFiles
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.distances import compare
from nomoat.evaluate.features import judge, own_domain
from nomoat.evaluate.seen import as_seen
from nomoat.making import Spending
from nomoat.picture_plan import Wanted
from nomoat.picturing import make_pictures
from nomoat.sampling.drawing import Drawing

SIZE, ROWS, STEPS, SHOWN = 64, 32, 20, 12


def files(work: Path) -> Path:
    """The emoji as a user would have them: a folder of pictures with a table."""
    folder, source = work / "emoji", SHARED / "data" / "openmoji"
    if not (folder / "emoji.jsonl.gz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(source / "png64.zip") as archive:
            archive.extractall(folder)
        for name in ("README.md", "emoji.jsonl.gz"):
            (folder / name).write_bytes((source / name).read_bytes())
    return folder


def told(event: Any) -> None:
    """A line now and then."""
    if event.get("kind") in ("phase", "warning", "evaluate"):
        print({name: value for name, value in event.items() if name not in ("time", "image")}, flush=True)


def told_of(run: Run, began: float) -> dict[str, Any]:
    """What came of it, and what it took; of a run that is only judged again, what its training took."""
    return {
        "minutes": (time.perf_counter() - began) / 60 if began else run.metrics("step")[-1]["seconds"] / 60,
        "steps": run.metrics("step")[-1]["step"],
        "about": run.recipe.about,
        "report": run.read_json("report.json"),
        "run": run.name,
    }


def told_apart(asked: argparse.Namespace) -> str:
    """What was asked beside the defaults: part of a result's name."""
    return " ".join([*([str(asked.size)] if asked.size else []), *(["shapes"] if asked.shapes else [])])


def made(asked: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    spending = Spending.of(f"{asked.minutes:g}m")
    run = make_pictures(
        None if asked.shapes else files(asked.work),
        spending,
        seed=asked.seed,
        watch=told,
        wanted=Wanted(size=asked.size),
    )
    (asked.work / f"base-{told_apart(asked)}.txt").write_text(str(run.path.resolve()))
    return told_of(run, began)


def led(asked: argparse.Namespace) -> dict[str, Any]:
    if asked.run is not None:
        run = Run.open(asked.run)
        return told_of(making.reported(run, controlling.judged(run)), 0.0)
    began, base = time.perf_counter(), (asked.work / f"base-{told_apart(asked)}.txt").read_text()
    run = nomoat.control(base, asked.what, f"{60 * asked.minutes - 60:.0f}s", seed=asked.seed, watch=told)
    return told_of(run, began)


def upsampled(asked: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    data: Any = PictureFiles(str(files(asked.work)), SIZE).prepare(making.data_root(), told)
    recipe: Recipe = find("upsampler-small")
    words = data.words()
    family = replace(recipe.family, vocab_size=words.vocab_size, caption_length=data.caption_length)
    left = 60 * asked.minutes - (time.perf_counter() - began) - 6
    recipe = replace(recipe, family=family, data=data, budget=Budget.parse(f"{left:.0f}s"), seed=asked.seed)
    run = making.started("emoji-upsampler", recipe, None, None, None)
    making.trained(run, "auto", told)
    figures = {"minutes": (time.perf_counter() - began) / 60, "steps": run.metrics("step")[-1]["step"]}
    return {**figures, **beside_bicubic(run, data, asked.work)}


def beside_bicubic(run: Run, data: Any, work: Path) -> dict[str, Any]:
    """Held-out pictures made half as large, enlarged in both ways, and held against training pictures as they are."""
    family: Any = load(run)
    held, learned = data.open("heldout"), data.open("train")
    batch = held.batch(np.arange(held.size), np.arange(held.size))
    small = F.interpolate(batch["image"], scale_factor=0.5, mode="area")
    drawn = []
    for first in range(0, held.size, ROWS):
        some = {name: batch[name][first : first + ROWS] for name in ("caption", "caption_mask")}
        with torch.no_grad():
            prompts = {**some, "small": small[first : first + ROWS], "first": first}
            drawn.append(family.generate(prompts, Drawing(steps=STEPS), torch.Generator())["image"].float())
    ours = torch.cat(drawn).clamp(-1, 1)
    bicubic = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(-1, 1)
    shown = torch.stack([F.interpolate(small, scale_factor=2), bicubic, ours, batch["image"]], 1)[:SHOWN].flatten(0, 1)
    sheet(shown, ["small", "bicubic", "ours", "true"] * SHOWN, columns=8).save(work / "upsampler.png")
    chance = torch.randperm(learned.size, generator=torch.Generator().manual_seed(0)).numpy()
    floor, own = (learned.batch(part, part)["image"] for part in (chance[: held.size], chance[held.size :]))
    seen = {"true": batch["image"], "ours": ours, "bicubic": bicubic, "other real": floor}
    seen = {name: as_seen(each, name, drawn=name == "ours") for name, each in seen.items()}
    nets = [own_domain(as_seen(own, "training pictures"))]
    try:
        nets.insert(0, judge())
    except ConfigError as missing:
        print(missing)
    found: dict[str, Any] = {"pictures": held.size}
    for net in nets:
        sets = {name: net.of(each) for name, each in seen.items()}
        real_ND = sets.pop("true")
        table = compare(real_ND, sets, "other real", (net.name, net.about, net.hash))
        rows = {row.name: [*row.kernel] for row in table.rows}
        found[net.name] = {"kernel x 1000": rows, "bicubic - ours": gap(real_ND, sets)}
    found["mean square error"] = {
        "ours": mean_square(ours, batch["image"]),
        "bicubic": mean_square(bicubic, batch["image"]),
    }
    return found


def gap(real_ND: Tensor, sets: dict[str, Tensor]) -> list[float]:
    """Kernel distance x 1000 of bicubic less that of ours, with its interval: the same pictures drawn for both."""
    count = len(real_ND)
    squares = torch.cdist(real_ND, real_ND).square()
    width = 2 * squares[squares > 0].median()

    def distance(one_ND: Tensor, rows: Tensor, others: Tensor) -> float:
        x_ND, y_ND = real_ND[rows], one_ND[others]
        between = torch.exp(-torch.cdist(x_ND, y_ND).square() / width).mean()
        inside = [torch.exp(-torch.cdist(each, each).square() / width) for each in (x_ND, y_ND)]
        within = [(kernel.sum() - len(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in inside]
        return 1000 * float(within[0] + within[1] - 2 * between)

    chance, differences = torch.Generator().manual_seed(1), []
    whole = torch.arange(count)
    value = distance(sets["bicubic"], whole, whole) - distance(sets["ours"], whole, whole)
    for _ in range(200):
        rows, others = (torch.randperm(count, generator=chance)[: count // 2] for _ in range(2))
        differences.append(distance(sets["bicubic"], rows, others) - distance(sets["ours"], rows, others))
    spread = (np.array(differences) - np.mean(differences)) / 2**0.5  # halves spread by root two more
    low, high = np.percentile(spread, [2.5, 97.5])
    return [value, value + float(low), value + float(high)]


def mean_square(one: Tensor, other: Tensor) -> float:
    """In squares of levels of 255."""
    return float((one - other).square().mean() * 127.5**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "mask", "edges", "upsampler"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--run", help="of `mask` and `edges`: judge this run again, and train none")
    parser.add_argument("--shapes", action="store_true", help="the shapes world in place of the emoji")
    parser.add_argument("--size", type=int, help="pixels of what `make` draws [what suits]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "emoji.json")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    held = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
    key = f"{asked.what} {told_apart(asked)}".strip()
    held[key] = {"make": made, "upsampler": upsampled}.get(asked.what, led)(asked)
    record("emoji", held, asked.results)


if __name__ == "__main__":
    main()
