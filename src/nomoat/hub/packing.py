"""A float model's tensors as packed ones of 8 or 4 bits, made one by one: no more than one matrix is in memory.

    config, name -> Later(float) -> which are linear layers or tables -> name.matrix.tiles, name.matrix.scales, the rest

What GGUF holds as Q8_0 or Q4_0, and its own quantiser made, comes out bit for bit: the largest weight of a group gives
back the group's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nomoat.core.checkpoint import Later
from nomoat.core.errors import ConfigError
from nomoat.families.lm import LM
from nomoat.nn.packed import packs, tiled, untiled


def packed(config: LM, tensors: Mapping[str, Later], bits: int) -> tuple[LM, dict[str, Later]]:
    """The config and the tensors of the same model with packed matrices.

    Raises:
        ConfigError: the model is packed already, or nothing of it can be.
    """
    if config.bits != 16:
        raise ConfigError(f"this model holds weights of {config.bits} bits already", fix="quantize the float model")
    small = replace(config, bits=bits)
    with torch.device("meta"):
        names = {f"{name}.weight" for name, module in config.build({}).named_modules() if packs(module)}
        wanted = small.build({}).state_dict()
    if not names & tensors.keys():
        raise ConfigError("nothing of this model can be packed", "no matrix has a multiple of 32 inputs")
    found: dict[str, Later] = {}
    for name, tensor in tensors.items():
        if name not in names:
            found[name] = tensor
            continue
        both = _Once(tensor, bits)
        for place, part in enumerate(("tiles", "scales")):
            new = f"{name.removesuffix('weight')}matrix.{part}"
            found[new] = Later(tuple(wanted[new].shape), wanted[new].dtype, both.making(place))
    return small, found


def unpacked(config: LM, tensors: Mapping[str, Later]) -> dict[str, Later]:
    """The float tensors that a packed model's stand for; those of a float model as they are."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in replace(config, bits=16).build({}).state_dict().items()}
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((".tiles", ".scales"))}
    for name, tiles in tensors.items():
        if name.endswith(".matrix.tiles"):
            plain = name.removesuffix("matrix.tiles") + "weight"
            make = partial(
                _unpack, tiles, tensors[name.removesuffix("tiles") + "scales"], config.bits, shapes[plain][0]
            )
            found[plain] = Later(tuple(shapes[plain]), torch.float32, make)
    return found


def _unpack(tiles: Later, scales: Later, bits: int, outputs: int) -> Tensor:
    return untiled(tiles.make(), scales.make(), bits, outputs)


class _Once:
    """A matrix's tiles and scales, which are made together and asked for one after the other."""

    def __init__(self, tensor: Later, bits: int) -> None:
        self.tensor, self.bits = tensor, bits
        self.kept: tuple[Tensor, Tensor] | None = None

    def making(self, place: int) -> Callable[[], Tensor]:
        """What makes the tiles (0) or the scales (1); the second of them forgets both."""

        def make() -> Tensor:
            made = self.kept
            if made is None:
                made = tiled(self.tensor.make(), self.bits)
            self.kept = made if self.kept is None else None
            return made[place]

        return make
