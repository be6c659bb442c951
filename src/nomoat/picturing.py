"""From a folder of pictures, or the shapes world, and a budget to a model that draws, with its report card.

    files -> picture_plan.foreseen -> the loop, a sheet now and then -> drawn by the held-out pictures' prompts
          -> judged -> report, contact sheet, card

The budget is for the whole way: what reading took, and what the report will take, is left out of what training gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.core.errors import DataError
from nomoat.core.run import Run
from nomoat.making import Spending
from nomoat.picture_plan import ANY, KINDS, Wanted, foreseen, reserve

if TYPE_CHECKING:
    from nomoat.evaluate.knows import Knows
    from nomoat.evaluate.picture_report import Prompts, Truth

Watch = Callable[[Mapping[str, Any]], None]

DRAW = "draw.json"
"""What a run knows that was made of pictures; by this file it is known for one."""
SHEET = "sheet.png"
JUDGED, LEARNED_FROM = 512, 2000
"""Pictures drawn for the report, at most; and of an endless world, how many stand for those that were learned from."""
LEAST_JUDGED, DRAWING, JUDGING = 64, 0.3, 0.6
"""At least so many; of what is kept for the report, the shares that drawing and judging may take."""
GUIDANCE, SHOWN = 2.0, 36
"""How the report draws; pictures on its sheet."""


def is_drawn(run: Run) -> bool:
    """Whether `make_pictures` began this run, so that its end is a report on pictures."""
    return (run.path / DRAW).exists()


def make_pictures(
    path: Path | str | None,
    spending: Spending,
    licence: str | None = None,
    device: str = "auto",
    seed: int = 0,
    watch: Watch | None = None,
    allow: str | None = None,
    wanted: Wanted = ANY,
) -> Run:
    """Make a model that draws.

    Args:
        path: a folder or archive of pictures; None: the shapes world.
        spending: the budget, for the whole way.
        licence: SPDX id of all files; None: what stands beside them.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: same seed, same model.
        watch: told what happens.
        allow: why it may be made although the licences cannot be kept together; recorded.
        wanted: of which family, and how large.

    Raises:
        ConfigError: there is no such kind or size.
        DataError: no pictures, or too few.
        RunError: licences that cannot be kept together.
        StoppedError: Ctrl-C while training; `resume` goes on.
    """
    forecast = foreseen(path, spending, licence, seed, watch, wanted, device)
    recipe = forecast.recipe
    whole = spending.budget.seconds(spending.budget.watts)
    left = None if whole is None else spending.left(reserve(whole)) or forecast.seconds
    if whole is not None and left is not None:
        recipe = replace(recipe, budget=replace(spending.budget, amount=spending.budget.amount * left / whole))
    run = making.started("shapes" if path is None else Path(path).resolve().name, recipe, None, watch, allow)
    spending.state(run)
    guidance = GUIDANCE if getattr(recipe.family, "tells", False) else 1.0
    known = {"guidance": guidance, "steps": KINDS[forecast.kind].steps}
    run.write_json(DRAW, {**known, "seconds": None if whole is None else reserve(whole)})
    return drawn(run, device, watch, spending.began)


def are_pictures(path: Path | str | None) -> bool:
    """Whether `make` would make a model that draws of what lies there."""
    from nomoat.data.picture_listing import is_pictures

    return path is not None and is_pictures(path)


def drawn(run: Run, device: str, watch: Watch | None, began: float | None = None) -> Run:
    """Train a run to its end, then judge what it draws in report.txt, report.json, sheet.png and the card."""
    making.trained(run, device, watch)
    try:
        return making.reported(run, judged(run, device, watch), began)
    except DataError as few:  # a model of thirty pictures is a model all the same
        from nomoat import card

        text = f"No report: {few.what} ({few.why})."
        run.note("warning", step=0, text=text)
        card.write(run)
        if watch is not None:
            watch({"kind": "warning", "text": text})
        return run


def judged(run: Run, device: str = "auto", watch: Watch | None = None, most: int | None = None) -> Any:
    """The report card of a run that draws, on the prompts of held-out pictures; its contact sheet is written too.

    Args:
        run: trained.
        device: where it draws.
        watch: told what happens.
        most: pictures that are drawn of each kind; None: `JUDGED`, or as many as there was time kept for.

    Raises:
        DataError: its data is gone, or has too few held-out pictures.
    """
    import torch

    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.core.types import Codec, Generates
    from nomoat.evaluate.contact import sheet
    from nomoat.evaluate.picture_report import Judging, picture_report
    from nomoat.sampling.drawing import Drawing

    known = run.read_json(DRAW) or {}
    place = choose(device)
    family: Any = load(run)
    draws = isinstance(family, Generates) and not isinstance(family, Codec)
    if not draws:  # asked on the CPU, where its pictures are
        return _known(family, run.recipe.data, most or JUDGED)
    family = family.to(place)
    drawing = Drawing(**{name: known[name] for name in ("steps", "guidance") if name in known})
    groups, truth, captions, reader = _material(run.recipe.data, SHOWN)

    def draw(prompts: Any) -> Any:
        placed = {name: value.to(place) if hasattr(value, "to") else value for name, value in prompts.items()}
        with torch.no_grad(), run.autocast(place):
            return family.generate(placed, drawing, torch.Generator())["image"].float().cpu()

    began = time.perf_counter()
    sheet(draw({**groups[0].batch, "first": 0}), captions).save(run.path / SHEET)
    pace = (time.perf_counter() - began) / groups[0].count * len(groups)
    kept = known.get("seconds")
    if most is None:
        most = JUDGED if kept is None else max(LEAST_JUDGED, min(JUDGED, int(DRAWING * kept / pace)))
    groups, truth, _, reader = _material(run.recipe.data, most)
    judging = Judging(seconds=None if kept is None else JUDGING * kept)
    return picture_report(draw, groups, truth, reader, judging, watch)


def _known(family: Any, data: Any, most: int) -> Knows:
    """What a model knows that draws nothing."""
    from nomoat.evaluate.knows import knows

    groups, truth, _, _ = _material(data, most)
    given = {
        each.name: {**each.batch, "image": truth.held_out_NCYX if each.real_NCYX is None else each.real_NCYX}
        | ({} if each.label_N is None else {"label": each.label_N})
        for each in groups
    }
    return knows(family, given, truth.classes, data.words())


def _material(data: Any, most: int) -> tuple[list[Prompts], Truth, list[str], Any]:
    """Prompts to draw from, real pictures to hold against, captions of the first group, and who reads pictures."""
    return _of_shapes(data, most) if not data.paths else _of_files(data, most)


def _of_shapes(data: Any, most: int) -> tuple[list[Prompts], Truth, list[str], Any]:
    from nomoat.evaluate.picture_report import Prompts, Truth
    from nomoat.evaluate.shapes import read

    groups, first = [], None
    for name, split in (("combinations like those seen", data.split), ("combinations never seen", "pair")):
        made = replace(data, split=split).asked(range(most))
        asked = [_attributes(scene) for scene in made.scenes] if data.objects == 1 else []
        image = made.batch["image"]
        groups.append(Prompts(name, _told(made.batch), most, asked, made.batch["label"], image))
        first = first or made
    assert first is not None
    trained = data.shown(range(LEARNED_FROM), 0)
    lines = [{"source": "the shapes world", "licence": "CC0-1.0", "author": "nomoat"}] * LEARNED_FROM
    training = list(zip(trained.batch["image"], lines, strict=True))
    truth = Truth(first.batch["image"], training, first.batch["label"], trained.batch["label"], data.classes)

    def reader(image_CYX: Any) -> Mapping[str, Any]:
        [reading] = read(image_CYX[None])
        if len(reading.things) != 1:
            return dict.fromkeys(ATTRIBUTES)
        return {name: getattr(reading.things[0], name) for name in ATTRIBUTES}

    return groups, truth, first.captions, reader


ATTRIBUTES = ("shape", "colour", "size", "texture")


def _attributes(scene: Any) -> dict[str, str]:
    return {name: getattr(scene.things[0], name) for name in ATTRIBUTES}


def _of_files(data: Any, most: int) -> tuple[list[Prompts], Truth, list[str], Any]:
    import numpy as np

    from nomoat.evaluate.picture_report import Prompts, Truth

    held, training = (data.open(split) for split in ("heldout", "train"))
    items = np.linspace(0, held.size - 1, min(most, held.size)).round().astype(np.int64)
    batch = held.batch(items, items)
    prompts = Prompts("the held-out pictures' own", _told(batch), len(items), (), batch.get("label"))
    whole = training.batch(np.arange(training.size), np.arange(training.size)) if "label" in batch else {}
    truth = Truth(batch["image"], _Learned(training), batch.get("label"), whole.get("label"), data.classes)
    captions = _captions(data.words(), batch)
    return [prompts], truth, captions if any(captions) else [], None


def _captions(words: Any, batch: Mapping[str, Any]) -> list[str]:
    """What the pictures of a batch are called; nothing where nobody has said."""
    if words is None or "caption" not in batch:
        return []
    rows = zip(batch["caption"].numpy(), batch["caption_mask"].numpy(), strict=True)
    return [words.decode(ids_M[there_M]) for ids_M, there_M in rows]


def _told(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model that draws may be told of held-out pictures."""
    return {name: batch[name] for name in ("caption", "caption_mask", "label", "hint", "index") if name in batch}


@dataclass(frozen=True)
class _Learned(Sequence[Any]):
    """The training pictures with their ledger lines, read one by one."""

    rows: Any

    def __len__(self) -> int:
        return int(self.rows.size)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        lines = self.__dict__.setdefault("lines", self.rows.ledger().to_pylist())
        return self.rows.batch([number], [number])["image"][0], lines[number]
