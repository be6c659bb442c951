"""Control: a control network over a model that draws, taught on that model's own pictures.

run, "mask" -> its data with that hint -> Recipe(Control, parts.base=run) -> the loop
    -> drawn under held-out control pictures: how far they are followed -> report, sheet, card

Zhang et al. 2023, arXiv:2302.05543 (ControlNet).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run
from nomoat.texts import at_hand

if TYPE_CHECKING:
    from nomoat.evaluate.control import Followed

Watch = Callable[[Mapping[str, Any]], None]

CONTROL = "control.json"
"""What a run knows that `control` began; by this file it is known for one."""
SHEET = "sheet.png"
JUDGED, ROWS, SHOWN, STEPS = 128, 32, 12, 20
"""Pictures drawn to see how far control pictures are followed, together, on the sheet; steps of each."""


def control(
    model: Run | Path | str,
    hint: str = "mask",
    budget: str = "10m",
    device: str = "auto",
    seed: int = 0,
    watch: Watch | None = None,
    allow: str | None = None,
) -> Run:
    """Teach a model that draws to follow control pictures; returns the new run, with how far it follows them.

    Args:
        model: a run of a diffusion model with a transformer; it stays as it is.
        hint: `mask`, `edges`, `depth` (the shapes world) or `pair` (pictures that lie beside others).
        budget: as everywhere.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: of chance.
        watch: told what happens.
        allow: why it may be trained although licences cannot be kept together; recorded.

    Raises:
        RunError: no such run, or licences that cannot be kept together.
        ConfigError: a model that cannot be led, pictures that have no such hint.
        DataError: its pictures are gone.
        StoppedError: Ctrl-C; `resume` goes on.
    """
    from nomoat.families.control import Control

    base = at_hand(model)
    data = base.recipe.data
    if not hasattr(base.recipe.product, "size") or "hint" not in {field.name for field in fields(data)}:
        why = f"it was trained on {type(data).__name__}, which has no control pictures"
        raise ConfigError(f"{base.name} cannot be led", why, "name a run that `nomoat make` made of pictures")
    hinted = replace(data, hint=hint)
    example = next(iter(hinted.stream(None, 2, seed)))
    recipe = Recipe(
        about=f"{base.label}, led by control pictures ({hint}).",
        family=Control(hint_channels=int(example["hint"].shape[1])),
        data=hinted,
        budget=Budget.parse(budget),
        batch_size=base.recipe.batch_size,
        seed=seed,
        ema=0.998,
        parts={"base": Ref(str(base.path)).pinned()},
    )
    recipe.family.build(recipe.found())  # what cannot be led is refused before there is a run
    run = making.started(f"{base.label}-{hint}", recipe, None, watch, allow)
    run.write_json(CONTROL, {"hint": hint, "base": base.name})
    return controlled(run, device, watch)


def is_controlled(run: Run) -> bool:
    """Whether `control` began this run, so that its end is a report."""
    return (run.path / CONTROL).exists()


def controlled(run: Run, device: str, watch: Watch | None) -> Run:
    """Train a run to its end, then see how far it follows held-out control pictures."""
    making.trained(run, device, watch)
    try:
        return making.reported(run, judged(run, device, watch))
    except DataError as few:
        run.note("warning", step=0, text=(text := f"No report: {few.what}"))
        if watch is not None:
            watch({"kind": "warning", "text": text})
        return run


def judged(run: Run, device: str = "auto", watch: Watch | None = None) -> ControlReport:
    """How far a run follows held-out control pictures; a sheet of some, with what was drawn under them, is written.

    Raises:
        DataError: no two held-out control pictures.
    """
    import torch

    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.drawing import guidance
    from nomoat.evaluate.contact import sheet
    from nomoat.evaluate.control import KINDS, followed
    from nomoat.sampling.drawing import Drawing

    if watch is not None:
        watch({"kind": "phase", "phase": "reporting", "detail": "drawing under held-out control pictures"})
    place = choose(device)
    family: Any = load(run).to(place)
    hint = run.recipe.data.hint
    how = Drawing(steps=STEPS, guidance=guidance(run, "anything"))
    shown = next(_batches(run, place), None)
    if shown is None:
        raise DataError("there are no two held-out control pictures", fix="give it more pictures")
    rows = len(shown["hint"])  # evenly chosen: neighbours are often alike
    some = {name: value[torch.linspace(0, rows - 1, min(SHOWN, rows)).long()] for name, value in shown.items()}
    with torch.no_grad(), run.autocast(place):
        drawn = family.generate({k: v for k, v in some.items() if k != "image"}, how, torch.Generator())["image"]
        figures = [] if hint not in KINDS else [followed(family, _batches(run, place), how, hint)]
    lead = some["hint"].expand(-1, drawn.shape[1], -1, -1) * 2 - 1
    laid = torch.stack([lead, drawn, some["image"]], 1).flatten(0, 1).float().cpu().clamp(-1, 1)
    sheet(laid, ["led by", "drawn", "true"] * len(lead), columns=9).save(run.path / SHEET)
    return ControlReport(hint, tuple(figures))


def _batches(run: Run, place: Any) -> Iterator[dict[str, Any]]:
    """Held-out pictures with their control pictures, in batches of two or more."""
    data: Any = run.recipe.data
    patches = (data.size // 2) ** 2  # at least as many tokens as any data counts for a picture
    done = 0
    for batch in data.held_out(None, ROWS, JUDGED * patches):
        if len(batch["hint"]) < 2 or done >= JUDGED:
            return
        done += len(batch["hint"])
        yield {name: value.to(place) for name, value in batch.items() if name != "index"}


@dataclass(frozen=True)
class ControlReport:
    """How far control pictures are followed.

    Args:
        hint: their kind.
        figures: nothing for kinds that nothing measures.
    """

    hint: str
    figures: tuple[Followed, ...]

    def as_text(self) -> str:
        """A line a figure."""
        none = f"Nothing measures how far a control picture of the kind `{self.hint}` is followed: look at the sheet."
        return "\n".join(map(str, self.figures)) or none

    def as_markdown(self) -> str:
        """For the card."""
        return f"## Followed\n\n{self.as_text()}\n\nThe sheet shows control picture, drawn picture and true one.\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"hint": self.hint, "figures": [asdict(figure) for figure in self.figures]}
