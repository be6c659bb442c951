"""ControlNet: a frozen denoiser is led by a control picture, through a copy of the first half of its trunk.

    hint_BHYX -> added to what a copy of the trunk's first half reads -> a layer each, zero at first
        -> Ports.residuals, added within the frozen trunk -> its clean guess

Those layers begin at zero, so that the model begins as what it leads. Only the copy, what reads the hint and those
layers are trained: the trunk's follower (nn/trunk.py, nn/unet.py).

Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nomoat.core.config import from_json, to_json
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Frozen, Parts
from nomoat.core.types import Batch, Loss, Ports
from nomoat.nn.backbone import Backbone
from nomoat.sampling.drawing import Drawing

BASE = "base"


@dataclass(frozen=True)
class Control:
    """A control network over a denoiser of pictures.

    Args:
        hint_channels: H of the control pictures.
        layers: how many of a transformer's layers are copied; 0: the first half.
        base: the denoiser's config; None: that of the part `base`. Without such a part an untrained one stands in its
            place, with weights that are the same every time.
    """

    hint_channels: int = 1
    layers: int = 0
    base: Any = None

    def __post_init__(self) -> None:
        if self.hint_channels < 1 or self.layers < 0:
            raise ConfigError(
                f"a hint of {self.hint_channels} channels for {self.layers} layers cannot be",
                fix="hint_channels is at least 1; layers is 1 or more, or 0 for the first half",
            )

    def __getattr__(self, name: str) -> Any:
        """What pictures there are, and what is said of them, is as in the denoiser: `size`, `vocab_size`, ..."""
        if name.startswith("_") or self.base is None:
            raise AttributeError(name)
        return getattr(self.base, name)

    def build(self, parts: Parts) -> ControlNet:
        return ControlNet(self, parts)

    @classmethod
    def tiny(cls) -> Control:
        trunk = to_json(Backbone(width=32, depth=3, heads=2, causal=False))
        sizes = {"size": 8, "patch": 2, "trunk": trunk, "vocab_size": 11, "caption_length": 5, "caption_depth": 0}
        # Found by its name, as in a run: families do not import each other.
        return cls(base=from_json({"type": "nomoat.families.diffusion:Diffusion", **sizes}))


class ControlNet(Family):
    """See the module's first lines. Denoises and Generates, by the methods of what it leads."""

    counts: ClassVar[str] = "picture"
    claims: ClassVar[Mapping[str, str]] = {
        "overfits": "it can only say what the frozen model can, and an untrained one can say little",
    }

    def __init__(self, config: Control, parts: Parts | None = None) -> None:
        super().__init__()
        base: Any = (parts or {}).get(BASE)
        if base is None and config.base is None:
            raise ConfigError(
                "there is no model to lead", "a control network begins as a copy of one", "name it: parts.base=RUN"
            )
        if base is None:
            base = Frozen(_stand_in(config.base))
        if not hasattr(getattr(base, "trunk", None), "follower"):
            raise ConfigError(
                f"{type(base.config).__name__} has no trunk to copy", "a control network leads a model of diffusion"
            )
        self.config = config if config.base is not None else replace(config, base=base.config)
        self.base, shape = base, base.config.shape
        self.follower = base.trunk.follower(config.hint_channels, base.config.size // shape[1], config.layers)

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """As of any family; the layers that begin at zero are outputs."""
        is_output = name.startswith("follower.outputs.") and parameter.ndim >= 2
        return "head" if is_output else super().role_of(name, parameter)

    @property
    def positions_a_sample(self) -> int:
        """Tokens of the stack that is led."""
        return int(self.base.positions_a_sample)

    # What is learned

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """As of the model that is led."""
        return self._here().draw(batch, generator)

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """As of the model that is led."""
        return self._here().loss_by(self, batch)

    def first_loss(self, batch: Batch) -> float:
        """That of the model that is led: nothing has been changed."""
        with torch.no_grad():
            loss = self._here().loss(batch)
        return float(loss.total / loss.count)

    def chance(self, batch: Batch) -> None:
        """None: what it begins with is not the loss of one that knows nothing."""
        return

    # What is told, and what is guessed

    def conditions(self, batch: Batch) -> Hinted:
        """What the model is told, and what the hint tells.

        Raises:
            ConfigError: no hint, or one of another size.
        """
        if "hint" not in batch:
            raise ConfigError("there is no control picture", "this model is led by one", "give `hint`")
        size, hint_BHYX = self.config.size, batch["hint"]
        wanted = self.config.hint_channels, size, size
        if tuple(hint_BHYX.shape[1:]) != wanted:
            shown, needed = (" x ".join(map(str, shape)) for shape in (hint_BHYX.shape[1:], wanted))
            raise ConfigError(
                f"the control picture is {shown}, this model needs {needed}",
                "channels, height, width: those that it was trained with",
                f"resize it to {size} x {size} pixels",
            )
        told = self.follower.read(hint_BHYX.to(self._weight()))
        return Hinted(self._here().conditions(batch), told)

    def denoise(self, x: Tensor, t_B: Tensor, r_B: Tensor, condition: Hinted | Ports | None = None) -> Tensor:
        """The guess of the clean picture; without a hint that of the model that is led."""
        if not isinstance(condition, Hinted):
            return self.base.denoise(x, t_B, r_B, condition)
        ports = self.base.ports(t_B, r_B, condition.base)
        entered = self.base.enter(x, t_B, condition.base)
        added = self.follower(self.base.trunk, entered, condition.hint, ports)
        return self.base.denoise(x, t_B, r_B, condition.led(added))

    # How pictures are drawn

    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        """As of the model that is led, with `hint` [B, H, Y, X] in [0, 1]. Guidance exaggerates the prompt alone."""
        return self._here().generate_by(self, prompts, options)

    @property
    def reads(self) -> frozenset[str]:
        """What prompts may hold."""
        return frozenset(self.base.reads) | {"hint"}

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Of the noise that it begins with."""
        return tuple(self.base.noise_shape)

    def _here(self) -> Any:
        """The model that is led, where the copy is."""
        self.base.to(self._weight().device)
        return self.base

    def _weight(self) -> Tensor:
        return next(self.parameters())

    def example(self, samples: int = 2) -> Batch:
        size, generator = self.config.size, torch.Generator().manual_seed(1)
        hint_BHYX = torch.rand(samples, self.config.hint_channels, size, size, generator=generator)
        return {**self.base.example(samples), "hint": (hint_BHYX > 0.5).float()}


@dataclass(frozen=True)
class Hinted:
    """What a control network is told.

    Args:
        base: what the model that is led is told.
        hint: what the hint tells the follower, row by row.
    """

    base: Any
    hint: Tensor

    def of(self, rows_N: Tensor) -> Hinted:
        """That of some rows."""
        return Hinted(self.base.of(rows_N), self.hint[rows_N])

    def led(self, residuals: list[Tensor]) -> Any:
        """What the model is told, with what is to be added within its trunk."""
        return replace(self.base, ports=replace(self.base.ports, residuals=residuals))


def _stand_in(config: Any) -> Family:
    """An untrained model with weights away from zero, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = config.build({})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model
