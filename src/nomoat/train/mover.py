"""One step of one player: the only place that knows of splits, precision and processes.

    batch (all chance drawn) -> this process's rows -> micro-batches -> autocast(family.loss) -> backward of the sums
        -> sums of gradients, totals and counts over processes -> one division -> clip -> step -> zero

The gradient is that of sum(total) / sum(count) however the batch is split: each split adds its *sum*, and the division
comes once, after all of them (the error that "Fixing Gradient Accumulation", Hugging Face 2024, describes is to divide
in each split).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nomoat.core import device as machine
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family
from nomoat.core.recipe import Recipe, schedule
from nomoat.core.types import Batch, Loss
from nomoat.train.launch import Group
from nomoat.train.optimizer import PlayerOptimizer


@dataclass(frozen=True)
class Settings:
    """What was decided at the start and holds for the whole run.

    Args:
        device: where the weights are.
        precision: "fp32" or "bf16", of what autocast casts.
        micro_batch: rows of the whole batch that are computed at a time, in one process.
        muon_dtype: what Newton-Schulz computes in.
    """

    device: torch.device
    precision: str
    micro_batch: int
    muon_dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Moved:
    """What a step came to.

    Args:
        loss: the training loss, sum over the whole batch divided by `count`.
        count: what it was divided by: tokens, pictures.
        gradient_norm: before clipping.
        multiplier: of the learning rates, by the schedule.
        parts: the family's further sums, divided by `count` too.
        stop: whether any process was asked to stop.
    """

    loss: float
    count: float
    gradient_norm: float
    multiplier: float
    parts: Mapping[str, float] = field(default_factory=dict)
    stop: bool = False

    @property
    def finite(self) -> bool:
        """Whether the step was taken: where loss or gradient are not finite numbers, the weights were left alone."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def rows_of(batch: Batch) -> int:
    """How many samples a batch holds: the length of `index`, or of its first tensor or list."""
    named = [batch["index"]] if "index" in batch else [value for value in batch.values() if _has_rows(value)]
    return len(named[0])


def rows(batch: Batch, start: int, end: int) -> Batch:
    """Rows `start` to `end`: every tensor and list with one entry a sample is cut, all else is passed on."""
    whole = rows_of(batch)
    return {
        name: value[start:end] if _has_rows(value) and len(value) == whole else value for name, value in batch.items()
    }


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in micro-batches of `size` rows, the last one perhaps smaller."""
    whole = rows_of(batch)
    return (rows(batch, start, min(start + size, whole)) for start in range(0, whole, size))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor, also those in lists, on `device`."""
    return {name: _placed(value, device) for name, value in batch.items()}


class Mover:
    """Moves one player's parameters. It calls `family.loss` itself: handed a finished loss it could not split.

    Args:
        family: the model, on the device already.
        player: one of `family.players`.
        recipe: for the optimizer, compile and processes.
        settings: what was decided at the start.
        group: the processes that share the batch.

    Raises:
        ConfigError: a family that cannot be split, on several processes.
    """

    def __init__(
        self, family: Family, player: str, recipe: Recipe, settings: Settings, group: Group | None = None
    ) -> None:
        self.family, self.player, self.recipe, self.settings = family, player, recipe, settings
        self.group = group or Group()
        if not family.splittable and self.group.world > 1:
            raise ConfigError(
                f"{type(family).__name__} cannot be trained by {self.group.world} processes",
                "its loss couples all samples of a batch, so that no process can have a part of it",
                "set processes=1",
            )
        named = [(name, p, family.role_of(name, p)) for name, p in family.parameters_of(player) if p.requires_grad]
        self.parameters = [parameter for _, parameter, _ in named]
        self.optimizer = PlayerOptimizer(named, recipe.optimizer, settings.muon_dtype)
        self._loss = torch.compile(family.loss) if recipe.compile else family.loss

    def move(self, batch: Batch, progress: float, stop: bool = False) -> Moved:
        """Take one step on a whole batch, in which all chance has been drawn.

        Args:
            batch: the same on every process; each computes its own rows.
            progress: in [0, 1]; sets the learning rate.
            stop: whether this process was asked to stop; the answer says whether any was.

        Raises:
            RunError: another process died.
        """
        sums, names = self.accumulate(batch, progress)
        gradients = self._reduce(sums, stop)
        total, count, stops, *parts, norm = torch.cat([sums, self._norm(gradients)]).tolist()
        count = count or 1.0
        moved = Moved(
            loss=total / count,
            count=count,
            gradient_norm=norm / count,
            multiplier=schedule(progress, self.recipe.optimizer),
            parts={name: part / count for name, part in zip(names, parts, strict=True)},
            stop=stops > 0,
        )
        if moved.finite:
            clip = self.recipe.optimizer.clip
            shrink = min(1.0, clip / (moved.gradient_norm + 1e-6)) if clip else 1.0
            self.optimizer.step(moved.multiplier, shrink / count)
        self.zero()
        return moved

    def accumulate(self, batch: Batch, progress: float) -> tuple[Tensor, list[str]]:
        """Add the gradients of the *summed* loss of this process's rows to `.grad`.

        Returns:
            Total, count, 0 and the parts, summed over this process's micro-batches; and the names of the parts.
        """
        whole, rank, world = rows_of(batch), self.group.rank, self.group.world
        mine = rows(batch, rank * whole // world, (rank + 1) * whole // world)
        size = self.settings.micro_batch if self.family.splittable else whole
        only = self.parameters if len(self.family.players) > 1 else None  # leave the other players' gradients alone
        sums, names = None, []
        for piece in split(mine, size):
            loss = self.loss(to_device(piece, self.settings.device), progress)
            loss.total.backward(inputs=only)
            names = list(loss.parts)
            zero = torch.zeros_like(loss.total)
            found = [loss.total, torch.as_tensor(loss.count), zero, *loss.parts.values()]
            row = torch.stack([value.detach().to(loss.total).reshape(()).float() for value in found])
            sums = row if sums is None else sums + row
        assert sums is not None, "an empty batch"
        return sums, names

    def loss(self, batch: Batch, progress: float) -> Loss:
        """The family's loss on a micro-batch that is on the device, in the precision decided.

        Raises:
            ConfigError: the recipe asks for torch.compile, and it does not work here.
        """
        try:
            with machine.autocast(self.settings.device, self.settings.precision):
                return self._loss(batch, self.player, progress)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise ConfigError(
                    "torch.compile does not work here", " ".join(str(error).split("\n")[:2]), "set compile=false"
                ) from error
            raise

    def zero(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as plain tensors, named by kind and parameter."""
        return self.optimizer.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.optimizer.load(tensors)

    def _reduce(self, sums: Tensor, stop: bool) -> list[Tensor]:
        """Sum `sums` and the gradients over the processes, in place; returns the gradients."""
        sums[2] = float(stop)
        if self.group.world > 1:
            for parameter in self.parameters:  # one that only some processes used must still be summed by all
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.group.sum_([sums])
        self.group.sum_(gradients)
        return gradients

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm [1] of all gradients together."""
        if not gradients:
            return torch.zeros(1, device=self.settings.device)
        return torch.nn.utils.get_total_norm(gradients).reshape(1).float()


def _has_rows(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.ndim > 0) or isinstance(value, list | tuple)


def _placed(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [_placed(item, device) for item in value] if isinstance(value, list | tuple) else value
