"""The contract between a model and everything else: players, a loss, and what a family may add.

    batch -> draw(batch, generator) -> loss(batch, player, progress) -> Loss(total, count, parts)

All chance that enters a loss is drawn once, for the whole batch, in `draw`; `loss` is then a function of weights,
batch and progress alone, so that the gradient is the same however the batch is split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from nomoat.core.types import Batch, Loss


class Frozen:
    """A part that is used and not trained: in eval mode, without gradient, and no submodule of whoever holds it.

    It therefore stays outside `parameters()`, `state_dict()`, the slow copy and the checkpoint, which only names it.
    Everything else is the part's own: `frozen.encode(batch)` is `part.encode(batch)`.
    """

    def __init__(self, part: Family) -> None:
        self._part = part.eval().requires_grad_(False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_part"], name)

    def to(self, device: torch.device) -> Frozen:
        """Move the part's weights."""
        self._part.to(device)
        return self


Parts = Mapping[str, Frozen]
"""Name -> part, handed to `build`."""

WRAPPING = "wrapping."
"""How the names begin, in a checkpoint, of what a wrapping family needs to go on and its product does not have."""
ROLES = ("matrix", "embedding", "head", "vector")
"""What a parameter is to the optimizer: a hidden matrix (Muon), a table, an output layer, or anything else."""


class Family(nn.Module):
    """A model with its loss. Subclasses add whichever capabilities of `core.types` they have.

    `players` names the groups of parameters that are moved in turn, each by an optimizer of its own. `claims` switches
    a contract test off, with the reason in words. `splittable = False` where the loss couples the samples. `counts`
    names what a loss is divided by, for people.
    """

    players: ClassVar[tuple[str, ...]] = ("model",)
    claims: ClassVar[Mapping[str, str]] = {}
    splittable: ClassVar[bool] = True
    counts: ClassVar[str] = "token"
    config: Any
    shared: frozenset[str] = frozenset()
    """Names in the state of what an adapted model has from its base: a checkpoint leaves them out."""

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """The summed loss of `player` on `batch`; `progress` runs from 0 to 1 with the steps."""
        raise NotImplementedError

    def first_loss(self, batch: Batch) -> float | None:
        """The analytic loss per count of an untrained model on `batch`, or None where there is none."""
        return None

    @property
    def positions_a_sample(self) -> int:
        """Of the largest stack, for which the machine is measured; 0: as many as `tokens` has, or 1."""
        return 0

    def chance(self, batch: Batch) -> float | None:
        """The loss per count of a guess that knows nothing of its input; where it stays there, people are told."""
        return self.first_loss(batch)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Add all chance that the loss needs (noise, times, masks) to the whole batch, before it is split."""
        return batch

    def parameters_of(self, player: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The named parameters that `player` moves."""
        return self.named_parameters()

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """One of `ROLES`. Default: tables and outputs by module name, other matrices "matrix", the rest "vector".

        What makes shifts, scales and gates of a condition counts as an output: under Muon they outgrow all else.
        """
        leaf = name.rsplit(".", 2)[-2:]
        if "embed" in leaf[0] or "positions" in leaf[0]:
            return "embedding"
        if leaf[0] in ("head", "output") or {"cond", "norm_cond"} & set(name.split(".")):
            return "head"
        return "matrix" if parameter.ndim == 2 else "vector"

    def kept(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds: the product's state, without what an adapted model has from its base."""
        if self.product is not self:
            return self.product.kept()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in self.shared}

    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `kept` gave. Raises RuntimeError where a name is missing, unknown or misshapen."""
        if self.product is not self:
            return self.product.take(tensors)
        found = self.load_state_dict(tensors, strict=False)
        wrong = [*found.unexpected_keys, *(set(found.missing_keys) - self.shared), *(self.shared & tensors.keys())]
        if wrong:
            raise RuntimeError(f"{len(wrong)} names do not agree, among them `{wrong[0]}`")
        return None

    def after_step(self, progress: float) -> None:
        """Move what no gradient moves (slow teachers)."""

    @property
    def product(self) -> Family:
        """The family that is kept: the run's weights, load, serve and export are the product's."""
        return self

    @property
    def starts(self) -> Family:
        """The part that begins with the weights of a recipe's `start`, and that is adapted."""
        return self.product

    def example(self, samples: int = 2) -> Batch:
        """A small valid batch, the same every time."""
        raise NotImplementedError
