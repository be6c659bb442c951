"""A glimpse of what a model writes or draws while it is trained: after a checkpoint, as long as it costs little.

    event "keep" -> the checkpoint's model -> a few tokens, or a sheet -> run.note("sample", text=..., path=...)

The checkpoint is read back, so the training itself is not touched; its random numbers are left as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from nomoat.core import run as runs
from nomoat.core.errors import NomoatError
from nomoat.core.run import Run
from nomoat.data import tokenizer
from nomoat.sampling.drawing import Drawing
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import continue_text
from nomoat.train.budget import SAMPLING_SHARE

OPTIONS = SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=60)
SHOWN_CHARACTERS = 400
PICTURES, MANY = 16, 1 << 16
"""Pictures of a sheet; more tokens than they have."""


def glimpsing(run: Run, watch: Callable[[Mapping[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
    """The function to set as `run.watch`: hands every event to `watch`, and notes a sample now and then.

    Samples are taken after a checkpoint, from the second on, while they have cost less than the share of the time that
    the plan left for them.
    """
    began, spent, seen = time.perf_counter(), 0.0, 0

    def watching(event: dict[str, Any]) -> None:
        nonlocal spent, seen
        if watch is not None:
            watch(event)
        if event.get("kind") != "keep":
            return
        seen += 1
        start = time.perf_counter()
        if seen == 1 or spent <= SAMPLING_SHARE * (start - began):
            told = shown(run, int(event.get("step") or 0))
            spent += time.perf_counter() - start
            if told:
                run.note("sample", step=event.get("step"), prompt="", **told)

    return watching


def shown(run: Run, step: int) -> dict[str, str]:
    """What there is to see of the last checkpoint: pictures, a few games, or text."""
    if hasattr(run.recipe.product, "game"):
        return {"text": live(run)}
    return sheet(run, step) if run.recipe.of_pictures else written(run)


def written(run: Run) -> dict[str, str]:
    """What the model of the last checkpoint writes, where it does."""
    text = sample(run)
    return {"text": text} if text else {}


def sheet(run: Run, step: int) -> dict[str, str]:
    """Sixteen pictures by the model of the last checkpoint, to held-out prompts, as samples/step-N.png of the run."""
    from nomoat.evaluate.contact import sheet as laid_out

    with torch.random.fork_rng(devices=[]):
        model: Any = runs.load(run)
    if not hasattr(model, "generate"):
        return {}
    batch = next(iter(run.recipe.data.held_out(model, PICTURES, MANY)), None)
    if batch is None:
        return {}
    try:
        with run.autocast(next(model.parameters()).device):
            image = _drawn(model, batch)[:PICTURES].float()
    except NomoatError:  # what cannot draw by itself is trained all the same
        return {}
    (run.path / "samples").mkdir(exist_ok=True)
    path = laid_out(image).save(run.path / "samples" / f"step-{step:07}.png")
    return {"text": f"{len(image)} pictures", "path": str(path)}


@torch.no_grad()
def _drawn(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Pictures [N, C, Y, X] by the prompts of a batch; of a codec its pictures, each before what comes back of it."""
    image_BCYX = batch["image"]
    if hasattr(model, "decode_latent"):
        returned_BCYX = model.decode_latent(model.encode({"image": image_BCYX}))["image"]
        return torch.stack([image_BCYX, returned_BCYX], 1).flatten(0, 1)
    if times := getattr(model.config, "upscale", 0):
        batch = {**batch, "small": F.interpolate(image_BCYX, scale_factor=1 / times, mode="area")}
    drawn: torch.Tensor = model.generate(batch, Drawing(steps=10), torch.Generator())["image"]
    return drawn


def sample(run: Run) -> str:
    """What the model of the last checkpoint writes at the start of a document; empty if it does not write text."""
    with torch.random.fork_rng(devices=[]):
        model: Any = runs.load(run)
    spelling = run.path / "tokenizer.json"
    if not hasattr(model, "decode") or not spelling.exists():
        return ""
    return "".join(continue_text(model, tokenizer.load(spelling), "", OPTIONS))[:SHOWN_CHARACTERS]


def live(run: Run) -> str:
    """How the player of the last checkpoint fares, in a line: a few quick games, and the health of its self-play."""
    from nomoat.games.match import Player, Random, match
    from nomoat.search.players import Searcher, playouts
    from nomoat.search.selfplay import health, panel, playing

    with torch.random.fork_rng(devices=[]):
        family: Any = runs.load(run)
    game = family.config.game
    told = []
    with playing(family, "fp32") as guess:
        others: list[Player] = [Random(game, 1), playouts(game, 50, 1)]
        for other in others:
            won, drawn, lost = match(game, Searcher(game, guess, 0), other, 20, seed=1, openings=2).counts()
            told.append(f"{won}-{drawn}-{lost} against {other.name}")
    return "raw policy " + ", ".join(told) + "".join(f"; {panel(each)}" for each in health(run.path)[-1:])
