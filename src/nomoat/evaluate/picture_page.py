"""How a report on pictures reads: for the terminal, for the card, and as plain values.

distances, copies, accuracy, conditions, speed -> PictureReport -> verdict, as_text, as_markdown, as_json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nomoat.evaluate.cas import AccuracyScore
from nomoat.evaluate.condition import Agreed, Condition
from nomoat.evaluate.distances import Distance, Distances
from nomoat.evaluate.figure import Figure, plain
from nomoat.evaluate.memorised import COPY, Memorised
from nomoat.evaluate.report import escaped
from nomoat.evaluate.surprise import printable

DRAWN, FLOOR, NOISE, MEAN = "drawn", "other real", "real + noise", "mean picture"
FEW = 500
"""Pictures below which most intervals are wide enough to hide what matters."""
Row = tuple[str, ...]


@dataclass(frozen=True)
class PictureReport:
    """What have I got?

    Args:
        drawn, held_out, training: pictures of each kind.
        size: columns and rows of a picture.
        pictures_per_second: drawn.
        distances: one table a network, the fixed judge's first where it is installed.
        memorised: the search for copies.
        accuracy: classifier accuracy; None: no classes.
        conditions: condition accuracy, one a group of prompts.
        notes: what could not be measured, and why.
        drawn_NCYX: the pictures.
    """

    drawn: int
    held_out: int
    training: int
    size: tuple[int, int]
    pictures_per_second: Figure
    distances: tuple[Distances, ...]
    memorised: Memorised
    accuracy: AccuracyScore | None
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...]
    drawn_NCYX: Tensor = field(repr=False, compare=False)
    limits = (
        "It draws what its training pictures hold, with their gaps and their habits, and nothing that they lack.",
        "It can draw a training picture again; the report says how near those come that were drawn for it, no others.",
        "Its figures were measured once, with one seed, on prompts and pictures like those it was trained on.",
    )

    @property
    def verdict(self) -> str:
        """How it does, in plain words."""
        said = [*_reality(self.distances[0]), self.memorised.verdict]
        said += [self.accuracy.verdict] if self.accuracy else []
        said += [one.verdict for one in self.conditions]
        if (count := self.distances[0].count) < FEW:
            said.append(f"Only {count:,} pictures a set: differences that matter can hide in these intervals.")
        return " ".join(said)

    def as_text(self) -> str:
        """For the terminal."""
        parts = ["What have I got?", "", self.verdict]
        for title, rows in self._tables(everything=False):
            parts += ["", f"{title}:", *_aligned(rows)]
        parts += ["", self._pairs_title(), *(f"  {line}" for line in self._pairs())]
        return "\n".join([*parts, *(["", *self.notes] if self.notes else [])])

    def as_markdown(self) -> str:
        """For the card."""
        parts = ["## What have I got?", "", self.verdict]
        for title, rows in self._tables(everything=True):
            parts += ["", f"{escaped(title)}:", ""]
            for number, row in enumerate(rows):
                parts.append(f"| {' | '.join(map(escaped, row))} |")
                parts += [] if number else ["|---" * len(row) + "|"]
        parts += ["", "## Nearest training pictures", "", self._pairs_title(), ""]
        parts += [f"    {line}" for line in self._pairs()]
        return "\n".join([*parts, *(line for note in self.notes for line in ("", escaped(note)))]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values; null where a figure does not exist."""
        return {
            **plain(self),
            "verdict": self.verdict,
            "memorised": self.memorised.as_json(),
            "accuracy": self.accuracy.as_json() if self.accuracy else None,
            "conditions": [one.as_json() for one in self.conditions],
            "limits": list(self.limits),
        }

    def _tables(self, everything: bool) -> Iterator[tuple[str, list[Row]]]:
        for found in self.distances:
            title = (
                f"{found.features}: {found.about}; {found.count:,} pictures a column, beside as many held-out real ones"
            )
            yield title, _distance_rows(found, everything)
        yield f"Copies, by {self.memorised.features} and by pixels", _copy_rows(self.memorised)
        if self.accuracy:
            yield _accuracy_table(self.accuracy)
        for one in self.conditions:
            yield f"What was asked for: {one.name}, {one.count:,} pictures", _condition_rows(one)
        speed: list[Row] = [("", "drawn (95 %)"), ("pictures a second", self.pictures_per_second.shown(".3g"))]
        yield f"Speed, at {self.size[0]} x {self.size[1]} pixels", speed

    def _pairs_title(self) -> str:
        found = self.memorised
        return (
            f"The {len(found.pairs)} samples nearest to a training picture, and whose that picture is (1: as near as "
            "the median held-out picture):"
        )

    def _pairs(self) -> list[str]:
        return [
            f"sample {pair.sample}: {pair.distance:.2f} from picture {pair.training} "
            f"({pair.levels:.0f} of 255 levels); {printable(pair.origin())}"
            for pair in self.memorised.pairs
        ]


def _reality(found: Distances) -> list[str]:
    """How real and how varied, by the first network's table."""
    drawn, floor, noise, mean = (found.row(name) for name in (DRAWN, FLOOR, NOISE, MEAN))
    beside = f"kernel distance {drawn.kernel.value:.1f}, other real pictures {floor.kernel.value:.1f}"
    beside += f", real ones under noise {noise.kernel.value:.1f}"
    if drawn.above.low <= 0:
        said = [f"By the {found.features} features its pictures cannot be told from real ones ({beside})."]
    elif drawn.kernel.low >= mean.kernel.value:
        said = [f"Its pictures are further from real ones than their mean picture is ({beside})."]
    elif drawn.kernel.low >= noise.kernel.value:
        said = [f"Its pictures are further from real ones than real pictures under strong noise are ({beside})."]
    else:
        said = [
            f"Its pictures can be told from real ones, and are nearer to them than real ones under noise ({beside})."
        ]
    if drawn.recall.high < floor.recall.low:
        said.append(
            f"It leaves out part of what there is: recall {drawn.recall.value:.2f}, other real pictures "
            f"{floor.recall.value:.2f}."
        )
    if drawn.precision.high < floor.precision.low:
        said.append(
            f"Some look like nothing real: precision {drawn.precision.value:.2f}, other real pictures "
            f"{floor.precision.value:.2f}."
        )
    if drawn.twins.low > floor.twins.high:
        said.append(f"{drawn.twins.value:.0%} of them have a twin among the others.")
    return said


def _distance_rows(found: Distances, everything: bool) -> list[Row]:
    """One line a figure, one column a set; intervals of what is no ceiling, or of all."""
    named = (
        (f"KD-{found.features} x 1,000 (down)", "kernel", ".2f"),
        ("  above the floor", "above", ".2f"),
        ("sliced Wasserstein x 1,000 (down)", "sliced", ".1f"),
        ("precision (up)", "precision", ".3f"),
        ("recall (up)", "recall", ".3f"),
        ("density (up)", "density", ".3f"),
        ("coverage (up)", "coverage", ".3f"),
        ("twins (down)", "twins", ".3f"),
        ("FID (down)" if found.features == "Inception" else f"FD-{found.features} (down)", "frechet", ".1f"),
    )

    def cell(row: Distance, name: str, form: str) -> str:
        figure: Figure = getattr(row, name)
        whole = everything or row.name in (DRAWN, FLOOR)
        return figure.shown(form) if whole else Figure(figure.value, float("nan"), float("nan")).shown(form)

    shown = {DRAWN: "drawn (95 %)", FLOOR: "other real: the floor", NOISE: "real + noise 25/255", MEAN: "mean picture"}
    head = ("", *(shown.get(row.name, row.name) for row in found.rows))
    return [head, *((title, *(cell(row, name, form) for row in found.rows)) for title, name, form in named)]


def _copy_rows(found: Memorised) -> list[Row]:
    share = f"{found.by_features.share:.0%}"
    named = (
        ("distance to the nearest / held-out's", "ratio", ".2f", "1", "0"),
        ("nearer than a held-out picture", "nearer", ".1%", "50%", "100%"),
        (f"nearer than the nearest {share} of them", "nearest", ".1%", share, "100%"),
    )
    rows: list[Row] = [("", f"by {found.features} (95 %)", "by pixels (95 %)", "real", "copies")]
    for title, name, form, real, copies in named:
        sides = (getattr(side, name).shown(form) for side in (found.by_features, found.by_pixels))
        rows.append((title, *sides, real, copies))
    same = (found.copies.shown(".1%"), found.copies_held_out.shown(".1%"))
    return [*rows, (f"the same but for {COPY:g} of 255 levels", "", *same, "100%")]


def _accuracy_table(found: AccuracyScore) -> tuple[str, list[Row]]:
    title = f"Classifier accuracy on {found.tested:,} held-out real pictures of {found.classes} classes"
    title += f", {found.pictures:,} pictures to learn from, {found.steps} steps"
    head = ("", "trained on drawn (95 %)", "on as many real", "the most frequent class")
    return title, [head, ("right (up)", *(one.shown(".1%") for one in (found.drawn, found.real, found.chance)))]


def _condition_rows(found: Condition) -> list[Row]:
    sides: list[tuple[str, Agreed | None]] = [
        ("drawn (95 %)", found.drawn),
        ("drawn, others' prompts", found.otherwise),
        ("real", found.real),
        ("real, others' prompts", found.real_otherwise),
    ]
    there = [(name, side) for name, side in sides if side is not None]
    rows: list[Row] = [("", *(name for name, _ in there))]
    rows += [(f"{name} (up)", *(side.single[name].shown(".1%") for _, side in there)) for name in found.drawn.single]
    rows.append(("all of them (up)", *(side.joint.shown(".1%") for _, side in there)))
    rows.append(("  if each were got alone", *(side.product.shown(".1%") for _, side in there)))
    rows.append((f"of {found.combinations:,} combinations", *(f"{side.modes:,}" for _, side in there)))
    return rows


def _aligned(rows: list[Row]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
