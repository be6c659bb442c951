"""Compose-2: characters of four parts, drawn by captions whose pairs of parts were never seen together.

    python benchmarks/nouns.py --minutes 60 --work FOLDER [--pictures 60000] [--set family.trunk.width=256]...
    (to try it: --minutes 1 --pictures 2000 --asked 50 --results /tmp/nouns.json)

A tenth of all (head, glasses) pairs and a tenth of all (body, accessory) pairs never occur in the training pictures,
which are written as files with a table of captions and read as `nomoat make` reads a folder; reading and training are
in the minutes. Asked for are characters that hold a held-out pair of each kind. Read by analysis: glasses and head are
the nearest of their kind in their own pixels, body and accessory the pair that explains best what the two leave to be
seen. A part counts as right too where putting it in the other's place leaves the true picture as it is. Beside it: the
truth's rank (0: nearest) among 1,000 pictures that differ from it in one part, for what was drawn and for the training
picture with the caption most alike. The curve is that of copies of the run, taken while it was trained. Merged into
benchmarks/results/nouns.json; sheets lie in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import ROOT, SHARED, record
from PIL import Image

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.run import Run, load
from nomoat.data.pictures import PictureFiles
from nomoat.data.words import padded
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.figure import wilson
from nomoat.picture_plan import SIZES, sized
from nomoat.sampling.drawing import Drawing

KINDS = ("bodies", "accessories", "heads", "glasses")
SAID = "a {heads} head with {glasses} glasses on a {bodies} body with {accessories} in front"
PIXELS, RIVALS, ROWS = 32 * 32, 1000, 64
SHARES = (0.1, 0.25, 0.5)
"""Of the minutes, when copies are taken for the curve."""

Numbers = NDArray[np.int64]


@dataclass
class Parts:
    """The parts: whether each pixel is theirs [n, pixels], its colour in [0, 1] [n, pixels, 3], and their names."""

    mask: list[Any]
    colour: list[Any]
    ground_GC: Any
    names: dict[str, list[str]]

    @classmethod
    def read(cls, folder: Path) -> Parts:
        held, known = np.load(folder / "parts.npz"), json.loads((folder / "names.json").read_text())
        rgba = [held[kind].reshape(-1, PIXELS, 4).astype(np.float32) / 255 for kind in KINDS]
        grounds = [[int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)] for code in known["bgcolors"]]
        mask = [(each[..., 3] > 0).astype(np.float32) for each in rgba]
        return cls(mask, [each[..., :3] for each in rgba], np.array(grounds, dtype=np.float32), known["names"])

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(each) for each in self.mask)

    def render(self, asked_NK: Numbers, ground_N: Numbers) -> Any:
        """Pictures [N, pixels, 3] in [0, 1]: ground, body, accessory, head, glasses, each over what is below it."""
        made = np.repeat(self.ground_GC[ground_N][:, None], PIXELS, 1)
        for kind in range(4):
            chosen = asked_NK[:, kind]
            made = np.where(self.mask[kind][chosen][..., None] > 0, self.colour[kind][chosen], made)
        return made

    def caption(self, asked_K: Numbers) -> str:
        return SAID.format(**{kind: self.names[kind][number] for kind, number in zip(KINDS, asked_K, strict=True)})

    def parts_of(self, image_NPC: Any) -> Numbers:
        """What each picture shows [N, 4]."""
        seen_NP, found = np.ones(image_NPC.shape[:2], dtype=np.float32), np.zeros((len(image_NPC), 4), dtype=np.int64)
        for kind in (3, 2):
            off_NK = self._off(image_NPC, seen_NP, kind)
            area_NK = seen_NP @ self.mask[kind].T
            found[:, kind] = (np.round(off_NK / np.maximum(area_NK, 1), 6) - 1e-9 * area_NK).argmin(1)
            seen_NP = seen_NP * (1 - self.mask[kind][found[:, kind]])
        off_NGP = np.square(image_NPC[:, None] - self.ground_GC[None, :, None]).sum(-1)
        off_NP = np.take_along_axis(off_NGP, (off_NGP * seen_NP[:, None]).sum(-1).argmin(1)[:, None, None], 1)[:, 0]
        off_NBP = np.square(image_NPC[:, None] - self.colour[0][None]).sum(-1)
        off_NBP = np.where(self.mask[0][None] > 0, off_NBP, off_NP[:, None]) * seen_NP[:, None]
        off_NBA = self._off(image_NPC, seen_NP, 1)[:, None] + off_NBP @ (1 - self.mask[1]).T
        best_N = off_NBA.reshape(len(image_NPC), -1).argmin(1)
        found[:, 0], found[:, 1] = np.divmod(best_N, len(self.mask[1]))
        return found

    def _off(self, image_NPC: Any, seen_NP: Any, kind: int) -> Any:
        """Square differences from each part of a kind, summed over its own pixels that are seen [N, parts]."""
        mask_KP, colour_KPC = self.mask[kind], self.colour[kind] * self.mask[kind][..., None]
        own_NK = (seen_NP * np.square(image_NPC).sum(-1)) @ mask_KP.T
        off_NK = own_NK + seen_NP @ np.square(colour_KPC).sum(-1).T
        for channel in range(3):
            off_NK = off_NK - 2 * (seen_NP * image_NPC[..., channel]) @ colour_KPC[..., channel].T
        return np.maximum(off_NK, 0)

    def right(self, image_NPC: Any, asked_NK: Numbers) -> Any:
        """Which parts of each picture are those that were asked for [N, 4]."""
        nowhere = np.zeros(len(asked_NK), dtype=np.int64)
        true_NPC, read_NK = self.render(asked_NK, nowhere), self.parts_of(image_NPC)
        whole_N = np.abs(self.render(read_NK, nowhere) - true_NPC).max((1, 2)) == 0
        told = np.zeros(asked_NK.shape, dtype=bool)
        for kind in range(4):
            other_NK = asked_NK.copy()
            other_NK[:, kind] = read_NK[:, kind]
            told[:, kind] = whole_N | (np.abs(self.render(other_NK, nowhere) - true_NPC).max((1, 2)) == 0)
        return told

    def rank(self, image_NPC: Any, asked_NK: Numbers, ground_N: Numbers, chance: Any) -> Any:
        """How many of 1,000 pictures that differ from the truth in one part are nearer to what was drawn [N]."""
        ranks = []
        for image_PC, asked_K, ground in zip(image_NPC, asked_NK, ground_N, strict=True):
            rivals_RK = np.repeat(asked_K[None], RIVALS, 0)
            kinds = chance.integers(0, 4, RIVALS)
            more = 1 + chance.integers(0, np.array(self.counts)[kinds] - 1)
            rivals_RK[np.arange(RIVALS), kinds] = (asked_K[kinds] + more) % np.array(self.counts)[kinds]
            near = [
                np.square(self.render(each, np.full(len(each), ground)) - image_PC).sum((1, 2))
                for each in (asked_K[None], rivals_RK)
            ]
            ranks.append(int((near[1] < near[0] - 1e-6).sum()))
        return np.array(ranks)


def held_out(one: Numbers, other: Numbers) -> Any:
    """Whether a pair of numbers is among the tenth that is never seen."""
    return (one * 2_654_435_761 + other * 40_503 + 12_345) // 7 % 10 == 0


def drawn_lots(parts: Parts, count: int, seed: int, seen: bool) -> Numbers:
    """Characters [count, 4]: with no held-out pair, or with one of each kind."""
    chance, found = np.random.default_rng(seed), np.zeros((0, 4), dtype=np.int64)
    while len(found) < count:
        lot = np.stack([chance.integers(0, each, 4 * count) for each in parts.counts], 1)
        heads, bodies = held_out(lot[:, 2], lot[:, 3]), held_out(lot[:, 0], lot[:, 1])
        found = np.concatenate([found, lot[~heads & ~bodies] if seen else lot[heads & bodies]])
    return found[:count]


def written(parts: Parts, folder: Path, count: int, seed: int) -> Numbers:
    """The training pictures as files with their captions; what they show."""
    asked_NK = drawn_lots(parts, count, seed, seen=True)
    ground_N = np.random.default_rng(seed + 1).integers(0, len(parts.ground_GC), count)
    if not (folder / "captions.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, count, 1000):
            some = slice(first, first + 1000)
            image = (parts.render(asked_NK[some], ground_N[some]) * 255).round().astype(np.uint8)
            for number, each in enumerate(image.reshape(-1, 32, 32, 3), first):
                Image.fromarray(each).save(folder / f"{number:06}.png", compress_level=1)
        with (folder / "captions.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "caption", "licence"])
            rows.writerows([f"{n:06}.png", parts.caption(each), "CC0-1.0"] for n, each in enumerate(asked_NK))
    return asked_NK


class Copies(threading.Thread):
    """Copies of a run, taken while it is trained."""

    def __init__(self, run: Run, folder: Path, at: list[float]) -> None:
        super().__init__(daemon=True)
        self.run_path, self.folder, self.at = run.path, folder, at
        self.made: dict[float, Path] = {}

    def run(self) -> None:
        began = time.perf_counter()
        for seconds in self.at:
            time.sleep(max(0.0, began + seconds - time.perf_counter()))
            for _ in range(20):
                target = self.folder / f"copy-{seconds:.0f}"
                shutil.rmtree(target, ignore_errors=True)
                try:
                    shutil.copytree(self.run_path, target, ignore=shutil.ignore_patterns("lock"))
                    load(Run.open(target))
                except Exception:  # a checkpoint that is being written or taken away: again
                    time.sleep(1)
                    continue
                self.made[seconds] = target
                break


def pictures(run: Run, parts: Parts, asked_NK: Numbers, guidance: float) -> Any:
    """What the run draws by these captions, [N, pixels, 3] in [0, 1]."""
    family: Any = load(run)
    words = run.recipe.data.words()
    ids = [words.known(parts.caption(each)) for each in asked_NK]
    ids_NM, there_NM = padded(ids, run.recipe.data.caption_length, words.eot)
    told, made = {"caption": torch.from_numpy(ids_NM), "caption_mask": torch.from_numpy(there_NM)}, []
    for first in range(0, len(ids), ROWS):
        prompts = {name: each[first : first + ROWS] for name, each in told.items()}
        with torch.no_grad():
            drawing = Drawing(steps=20, guidance=guidance)
            made.append(family.generate({**prompts, "first": first}, drawing, torch.Generator())["image"].float())
    image_NCYX = torch.cat(made).clamp(-1, 1)
    return image_NCYX.permute(0, 2, 3, 1).reshape(len(ids), PIXELS, 3).numpy() / 2 + 0.5


def told(parts: Parts, image_NPC: Any, asked_NK: Numbers) -> dict[str, Any]:
    """Shares right with their intervals, and the truth's rank."""
    right_NK = np.concatenate(
        [parts.right(image_NPC[n : n + 200], asked_NK[n : n + 200]) for n in range(0, len(asked_NK), 200)]
    )
    found: dict[str, Any] = {kind: list(wilson(right_NK[:, k].sum(), len(right_NK))) for k, kind in enumerate(KINDS)}
    found["all four"] = list(wilson(right_NK.all(1).sum(), len(right_NK)))
    some = slice(0, 100)
    ground = np.square(image_NPC[some, :, None] - parts.ground_GC).sum(-1).mean(1).argmin(1)
    rank = parts.rank(image_NPC[some], asked_NK[some], ground, np.random.default_rng(5))
    found["rank"] = {"median": float(np.median(rank)), "mean": float(rank.mean()), "first": float((rank == 0).mean())}
    return found


def copied(parts: Parts, learned_NK: Numbers, asked_NK: Numbers) -> Any:
    """For each caption the training picture that shares most parts with it, heads before the rest."""
    worth = np.array([1.0, 1.0, 1.5, 1.0])
    best = np.array([((learned_NK == each) * worth).sum(1).argmax() for each in asked_NK])
    return parts.render(learned_NK[best], np.zeros(len(best), dtype=np.int64))


def asked_for(about: str | None, name: str, minutes: float) -> argparse.ArgumentParser:
    """The options of a benchmark that trains on a folder of pictures."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--size", type=int, default=3, choices=range(len(SIZES)), help="of picture_plan.SIZES")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    return parser


def begun(name: str, files: Path, chosen: argparse.Namespace, began: float) -> Run:
    """A run of what `make` would train on a folder at 32 pixels, with what is left of the minutes since `began`."""
    data = PictureFiles(str(files), 32).prepare(making.data_root(chosen.work), None)
    recipe = override(sized(data, chosen.size, Budget.parse("1steps"), chosen.seed), chosen.changes)
    left = 60 * chosen.minutes - (time.perf_counter() - began) - 6
    recipe = replace(recipe, budget=Budget.parse(f"{left:.0f}s"))
    return making.started(name, recipe, chosen.work / "runs", None, None)


def main() -> None:
    parser = asked_for(__doc__, "nouns", 60)
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--asked", type=int, default=500, help="characters that are asked for")
    chosen = parser.parse_args()
    parts = Parts.read(SHARED / "data" / "nouns")
    files = chosen.work / f"files-{chosen.pictures}-{chosen.seed}"
    learned_NK = written(parts, files, chosen.pictures, chosen.seed)
    asked = {"never seen": drawn_lots(parts, chosen.asked, 99, seen=False)}
    asked["seen pairs"] = drawn_lots(parts, chosen.asked, 98, seen=True)
    zero = np.zeros(chosen.asked, dtype=np.int64)
    figures: dict[str, Any] = {"minutes": chosen.minutes, "pictures": chosen.pictures, "settings": chosen.changes}
    figures["true pictures"] = {name: told(parts, parts.render(each, zero), each) for name, each in asked.items()}
    figures["nearest caption"] = {n: told(parts, copied(parts, learned_NK, each), each) for n, each in asked.items()}
    some_NK = learned_NK[:2000]
    mean_PC = parts.render(some_NK, np.zeros(len(some_NK), dtype=np.int64)).mean(0)
    mean_NPC = np.repeat(mean_PC[None], chosen.asked, 0)
    figures["mean picture"] = {name: told(parts, mean_NPC, each) for name, each in asked.items()}

    began = time.perf_counter()
    run = begun("nouns", files, chosen, began)
    copies = Copies(run, chosen.work, [60 * chosen.minutes * share for share in SHARES])
    copies.start()
    making.trained(run, "auto", None)
    figures["took"] = (time.perf_counter() - began) / 60
    figures["steps"] = run.metrics("step")[-1]["step"]
    figures["parameters"] = sum(each.numel() for each in load(run).parameters())
    figures["curve"] = {}
    for seconds, path in copies.made.items():
        each = asked["never seen"]
        figures["curve"][f"{seconds / 60:.3g}"] = told(
            parts, pictures(Run.open(path), parts, each, chosen.guidance), each
        )
    figures["drawn"] = {}
    for name, each in asked.items():
        image_NPC = pictures(run, parts, each, chosen.guidance)
        figures["drawn"][name] = told(parts, image_NPC, each)
        shown = torch.from_numpy(image_NPC[:36]).reshape(-1, 32, 32, 3).permute(0, 3, 1, 2) * 2 - 1
        sheet(shown, [parts.caption(one) for one in each[:36]]).save(chosen.work / f"{name.replace(' ', '-')}.png")
    record("nouns", figures, chosen.results)


if __name__ == "__main__":
    main()
