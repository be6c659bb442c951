"""Compose-2 on real drawings: emoji of a thing and a form, some of which were never seen together.

    python benchmarks/openmoji.py --minutes 50 --work FOLDER [--set family.trunk.width=256]...
    (to try it: --minutes 1 --each 1 --results /tmp/openmoji.json)

Things that OpenMoji draws in at least three forms: people who do something (as a man, a woman, a person), and hearts,
circles, squares, hexagons, flags in colours. One form of every second thing of people, and two colours of each shape,
are left out of the training pictures, which are the other 2,000 emoji and more, all with their names as captions, as
`nomoat make` reads a folder; reading and training are in the minutes. The missing drawings exist, so what is drawn by a
name that was never seen is held against all drawings of such things (mean square difference, on white): joint, where
the truth is the nearest of all; thing, where the nearest is of the same thing; form, where the truth is the nearest of
its thing; and the truth's median rank. Beside it: the same for names that were seen, the training picture whose name
shares most words, the mean drawing of the thing's other forms, and the product of the two single shares. Drawings that
look like another's are not asked for. Written to
benchmarks/results/openmoji.json; a sheet (drawn, true) lies in FOLDER.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nouns import asked_for, begun
from numpy.typing import NDArray
from peers import SHARED, record
from torch import Tensor

from nomoat import making
from nomoat.core.run import Run, load
from nomoat.data.picture_files import fitted, whole_of
from nomoat.data.words import padded
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.figure import wilson
from nomoat.sampling.drawing import Drawing

SIZE, ROWS, SHOWN, ALIKE = 64, 32, 24, 4 / 127.5
"""Pixels a side of the true drawings; and the root of the mean square within which two of them are one."""
PEOPLE = {"man": "man", "men": "man", "woman": "woman", "women": "woman", "person": "person", "people": "person"}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink", "grey")
SHAPES = ("heart", "circle", "square", "hexagon", "flag")


@dataclass(frozen=True)
class Emoji:
    """A drawing of a thing in a form."""

    code: str
    name: str
    thing: str
    form: str


def formed(rows: list[dict[str, Any]]) -> list[Emoji]:
    """The emoji whose name says a thing and a form, of things with three forms or more."""
    people = re.compile(rf"^({'|'.join(PEOPLE)})\b[ :]*(.+)$")
    colours = re.compile(rf"^({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})$")
    found = []
    for row in rows:
        if told := people.match(row["name"]):
            found.append(Emoji(row["hexcode"], row["name"], told[2], PEOPLE[told[1]]))
        elif told := colours.match(row["name"]):
            found.append(Emoji(row["hexcode"], row["name"], told[2], told[1]))
    forms = {thing: {each.form for each in found if each.thing == thing} for thing in {each.thing for each in found}}
    return [each for each in found if len(forms[each.thing]) >= 3]


def kept_back(emoji: list[Emoji]) -> set[str]:
    """Codes that are never trained on: the same at every seed, each thing and each form seen in other company."""
    back, turn = set[str](), 0
    for number, thing in enumerate(sorted({each.thing for each in emoji})):
        forms = sorted({each.form for each in emoji if each.thing == thing})
        many = 2 if thing in SHAPES else number % 2
        for step in range(many):
            form = forms[(turn + step * len(forms) // 2) % len(forms)]
            back |= {each.code for each in emoji if (each.thing, each.form) == (thing, form)}
        turn += many > 0
    return back


def written(rows: list[dict[str, Any]], back: set[str], folder: Path) -> None:
    """The training pictures as files with a table of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(SHARED / "data" / "openmoji" / "png64.zip") as archive:
        for row in rows:
            if row["hexcode"] not in back:
                archive.extract(f"{row['hexcode']}.png", folder)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption", "licence"])
        table.writerows([f"{r['hexcode']}.png", r["name"], "CC-BY-SA-4.0"] for r in rows if r["hexcode"] not in back)


def true_pictures(emoji: list[Emoji]) -> Tensor:
    """[N, 3, 64, 64], in [-1, 1], on white."""
    with zipfile.ZipFile(SHARED / "data" / "openmoji" / "png64.zip") as archive:
        made = [fitted(whole_of(archive.read(f"{each.code}.png")), SIZE) for each in emoji]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) / 127.5 - 1


def drawn(run: Run, names: list[str], guidance: float) -> Tensor:
    """What the run draws by these names, as large as the true ones."""
    family: Any = load(run)
    words = run.recipe.data.words()
    ids_NM, there_NM = padded([words.known(name) for name in names], run.recipe.data.caption_length, words.eot)
    made = []
    for first in range(0, len(names), ROWS):
        some = slice(first, first + ROWS)
        told = {"caption": torch.from_numpy(ids_NM[some]), "caption_mask": torch.from_numpy(there_NM[some])}
        with torch.no_grad():
            pictures = family.generate({**told, "first": first}, Drawing(guidance=guidance), torch.Generator())
        made.append(pictures["image"].float())
    image = torch.cat(made).clamp(-1, 1)
    return torch.nn.functional.interpolate(image, (SIZE, SIZE), mode="bilinear").clamp(-1, 1)


def scores(image_NCYX: Tensor, asked: NDArray[np.int64], emoji: list[Emoji], true_ECYX: Tensor) -> dict[str, Any]:
    """How the pictures stand to all drawings of such things."""
    off_NE = torch.cdist(image_NCYX.flatten(1), true_ECYX.flatten(1)).numpy()
    things, forms = (np.array([getattr(each, name) for each in emoji]) for name in ("thing", "form"))
    nearest = off_NE.argmin(1)
    siblings_NE = things[None] == things[asked][:, None]
    told = {
        "joint": nearest == asked,
        "thing": things[nearest] == things[asked],
        "form": np.where(siblings_NE, off_NE, np.inf).argmin(1) == asked,
    }
    rank = (off_NE < off_NE[np.arange(len(asked)), asked][:, None]).sum(1)
    chance = float(np.mean([1 / siblings_NE[row].sum() for row in range(len(asked))]))
    shares = {name: list(wilson(each.sum(), len(each))) for name, each in told.items()}
    people = np.isin(forms[asked], list(PEOPLE.values()))
    parts = {
        kind: {name: float(each[rows].mean()) for name, each in told.items()}
        for kind, rows in (("people", people), ("shapes", ~people))
        if rows.any()
    }
    product = shares["thing"][0] * shares["form"][0]
    return {**shares, "product": product, "chance of form": chance, "median rank": float(np.median(rank)), **parts}


def copied(names: list[str], learned: list[Emoji], pictures: Tensor) -> Tensor:
    """For each name the training picture whose name shares most words with it and has fewest others."""
    words = [frozenset(each.name.split()) for each in learned]
    best = []
    for name in names:
        own = frozenset(name.split())
        best.append(int(np.argmax([len(own & each) / len(own | each) for each in words])))
    return pictures[best]


def main() -> None:
    parser = asked_for(__doc__, "openmoji", 50)
    parser.add_argument("--each", type=int, default=4, help="drawings by each name")
    chosen = parser.parse_args()
    with gzip.open(SHARED / "data" / "openmoji" / "emoji.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    emoji = formed(rows)
    back = kept_back(emoji)
    true = true_pictures(emoji)
    apart = torch.cdist(true.flatten(1), true.flatten(1)) / true[0].numel() ** 0.5
    alone = (apart.fill_diagonal_(torch.inf).amin(1) > ALIKE).numpy()  # a copy of its double would be the truth
    out = np.array([one.code in back for one in emoji])
    never, seen = (np.flatnonzero(alone & which) for which in (out, ~out))
    seen = seen[np.random.default_rng(3).permutation(len(seen))[: len(never)]]
    asked = {"never seen": np.repeat(never, chosen.each), "seen": np.repeat(seen, chosen.each)}
    learned = [one for one in emoji if one.code not in back]
    learned_true = true[[n for n, one in enumerate(emoji) if one.code not in back]]
    figures: dict[str, Any] = {**vars(chosen), "work": "FOLDER", "results": "", "drawings": len(emoji)}
    figures |= {"held back": len(never), "nearest caption": {}, "mean of the other forms": {}, "drawn": {}}
    copies = copied([emoji[n].name for n in never], learned, learned_true)
    figures["nearest caption"] = scores(copies, never, emoji, true)
    things = np.array([one.thing for one in learned])
    means = torch.stack([learned_true[np.flatnonzero(things == emoji[n].thing)].mean(0) for n in never])
    figures["mean of the other forms"] = scores(means, never, emoji, true)

    began = time.perf_counter()
    folder = chosen.work / "emoji"
    written(rows, back, folder)
    run = begun("openmoji", folder, chosen, began)
    making.trained(run, "auto", None)
    figures["took"] = (time.perf_counter() - began) / 60
    figures["steps"] = run.metrics("step")[-1]["step"]
    figures["parameters"] = sum(each.numel() for each in load(run).parameters())
    for name, numbers in asked.items():
        image = drawn(run, [emoji[n].name for n in numbers], chosen.guidance)
        figures["drawn"][name] = scores(image, numbers, emoji, true)
        some = range(0, min(len(numbers), SHOWN * chosen.each), chosen.each)
        shown = torch.stack([each for n in some for each in (image[n], true[numbers[n]])])
        labels = [text for n in some for text in (emoji[numbers[n]].name, "true")]
        sheet(shown, labels, columns=8).save(chosen.work / f"{name.replace(' ', '-')}.png")
    record("openmoji", figures, chosen.results)


if __name__ == "__main__":
    main()
