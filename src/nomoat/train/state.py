"""The training state: all that a checkpoint holds, and nothing that depends on a clock.

    recipe -> build (seeded) -> family, movers, slow copy, step 0
    checkpoint -> weights, optimizer, ema, state.json -> the same, at step N

What `keep` writes is what `restore` reads: family (buffers and slow teachers included), the optimizer of each player,
the slow copy, and the counters of state.json. The order of the data is computed from the step, so it needs no place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomoat.core import checkpoint
from nomoat.core.errors import CheckpointError
from nomoat.core.family import Family
from nomoat.core.recipe import Recipe
from nomoat.nn.ema import SlowCopy
from nomoat.train.launch import Group
from nomoat.train.mover import Mover, Settings


@dataclass
class State:
    """Everything that moves while a run is trained.

    Args:
        family: the model, on its device, in train mode.
        movers: player -> what moves its parameters.
        slow: the slow copy of all that learns, where the recipe asks for one.
        decay: of the slow copy.
        step: number of steps done.
        tokens: tokens read for training so far (samples, where the data has no tokens).
        seconds: time spent so far, up to the last checkpoint.
        watt_hours: energy measured so far, up to the last checkpoint; 0 where nothing can be measured.
        kept: the step of the last checkpoint, None where there is none.
    """

    family: Family
    movers: dict[str, Mover] = field(default_factory=dict)
    slow: SlowCopy | None = None
    decay: float = 0.0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    watt_hours: float = 0.0
    kept: int | None = None

    def prepare(self, recipe: Recipe, settings: Settings, group: Group) -> None:
        """Make the movers and the slow copy, empty as at step 0."""
        self.movers = {player: Mover(self.family, player, recipe, settings, group) for player in self.family.players}
        learned = {name: p for name, p in self.family.named_parameters() if p.requires_grad}
        self.slow, self.decay = (SlowCopy(learned), recipe.ema) if recipe.ema is not None else (None, 0.0)

    def follow(self, progress: float) -> None:
        """After all players have moved: what no gradient moves follows, and the step is done."""
        self.family.after_step(progress)
        if self.slow is not None:
            # Less than the decay at first, so that the random start is soon forgotten (TensorFlow's moving average).
            self.slow.update(min(self.decay, (1 + self.step) / (10 + self.step)))
        self.step += 1

    def keep(self, folder: Path, seconds: float, watt_hours: float = 0.0) -> Path:
        """Write a checkpoint of this step, with the time and the energy spent so far.

        Raises:
            CheckpointError: the disk is full or broken; the last good checkpoint is still there.
        """
        weights = self.family.kept()
        groups = {"weights": weights, "optimizer": self._optimizers()}
        if self.slow is not None:
            slow, own = self.slow.tensors, self._learned_as(self.slow)
            groups["ema"] = {name: slow[own[name]] if name in own else each for name, each in weights.items()}
        counters = {"step": self.step, "tokens": self.tokens, "seconds": seconds, "watt_hours": watt_hours}
        path = checkpoint.save(folder, self.step, groups, counters)
        self.kept = self.step
        return path

    def restore(self, path: Path) -> None:
        """Take over a checkpoint.

        Raises:
            CheckpointError: it does not fit the recipe.
        """
        try:
            self.family.take(checkpoint.read(path, "weights"))
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights of {path.name} do not fit the model of the recipe",
                " ".join(str(error).split())[:300],
                "resume with the recipe that lies in the run",
            ) from error
        of_player: dict[str, dict[str, Tensor]] = {player: {} for player in self.movers}
        for key, tensor in checkpoint.read(path, "optimizer").items():
            player, _, name = key.partition("/")
            of_player[player][name] = tensor
        for player, mover in self.movers.items():
            mover.load(of_player[player])
        if self.slow is not None:
            held = checkpoint.read(path, "ema")
            self.slow.load({own: held[name] for name, own in self._learned_as(self.slow).items()})
        counters: dict[str, Any] = checkpoint.state(path)
        self.step, self.tokens = counters["step"], counters["tokens"]
        self.seconds, self.watt_hours = counters["seconds"], counters["watt_hours"]
        self.kept = self.step

    @contextmanager
    def thrown_away(self) -> Iterator[None]:
        """Whatever is trained within is undone bit for bit. Movers and slow copy must be prepared anew afterwards."""
        step = self.step
        before = {name: value.detach().clone() for name, value in self.family.kept().items()}
        try:
            yield
        finally:
            self.family.take(before)
            self.movers, self.slow, self.step = {}, None, step

    @contextmanager
    def product(self) -> Iterator[Family]:
        """The family as it would be loaded: in eval mode, without gradients, with the slow copy's weights."""
        self.family.eval()
        try:
            with torch.no_grad(), self.slow.swapped() if self.slow is not None else nullcontext():
                yield self.family
        finally:
            self.family.train()

    def finished(self) -> Family:
        """The family as `load` gives it, for good."""
        if self.slow is not None:
            self.slow.copy_to_live()
        return self.family.eval()

    def _learned_as(self, slow: SlowCopy) -> dict[str, str]:
        """Name that a checkpoint has -> name in the family, of what is learned: a wrapped model is kept without the
        wrapping's names, and two names may share one weight."""
        at = {(weight.data_ptr(), weight.shape): name for name, weight in slow.live.items() if weight.numel()}
        kept = {name: at.get((each.data_ptr(), each.shape)) for name, each in self.family.kept().items()}
        return {name: own for name, own in kept.items() if own is not None}

    def _optimizers(self) -> dict[str, Tensor]:
        return {f"{player}/{name}": t for player, mover in self.movers.items() for name, t in mover.tensors().items()}


def build(recipe: Recipe, device: torch.device) -> Family:
    """The untrained family of a recipe, on its device; its weights depend on the seed alone.

    Data that know something of their tokens may say so before the first step (`begin`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        family = recipe.build()
        if recipe.start is None and (begin := getattr(recipe.data, "begin", None)) is not None:
            begin(family.product)
    return family.to(device).train()
