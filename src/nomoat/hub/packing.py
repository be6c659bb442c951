"""A float model's tensors as packed ones of 8 or 4 bits, made some rows at a time: no whole matrix is in memory.

    config, name -> Later(float) -> which are linear layers or tables -> name.matrix.tiles, name.matrix.scales, the rest

What GGUF holds as Q8_0 or Q4_0, and its own quantiser made, comes out bit for bit: the largest weight of a group gives
back the group's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nomoat.core.device import hollow
from nomoat.core.errors import ConfigError
from nomoat.core.tensors import Later
from nomoat.families.lm import LM
from nomoat.nn.packed import LANES, packs, tiled, untiled


def packed(config: LM, tensors: Mapping[str, Later], bits: int) -> tuple[LM, dict[str, Later]]:
    """The config and the tensors of the same model with packed matrices.

    Raises:
        ConfigError: it is no language model, is packed already, or nothing of it can be.
    """
    if not isinstance(config, LM):
        raise ConfigError(f"{type(config).__name__} cannot be packed", "only language models can", "use f16 or bf16")
    if config.bits != 16:
        raise ConfigError(f"this model holds weights of {config.bits} bits already", fix="quantize the float model")
    small = replace(config, bits=bits)
    with hollow():
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
        for part, pieces in (("tiles", both.tiles), ("scales", both.scales)):
            new = f"{name.removesuffix('weight')}matrix.{part}"
            found[new] = Later.by_rows(tuple(wanted[new].shape), wanted[new].dtype, pieces)
    return small, found


def unpacked(config: LM, tensors: Mapping[str, Later]) -> dict[str, Later]:
    """The float tensors that a packed model's stand for; those of a float model as they are."""
    with hollow():
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
    """A matrix's tiles and scales, made together, some rows at a time; the scales, which are few, wait their turn."""

    def __init__(self, tensor: Later, bits: int) -> None:
        self.tensor, self.bits = tensor, bits
        self.kept: list[Tensor] | None = None

    def tiles(self) -> Iterator[Tensor]:
        """The tiles of some rows after the other."""
        kept = []
        for rows_RD in _by_lanes(self.tensor.rows()):
            tiles, scales = tiled(rows_RD, self.bits)
            kept.append(scales)
            yield tiles
        self.kept = kept

    def scales(self) -> Iterator[Tensor]:
        """The scales, in the same pieces; where the tiles have not been asked for before, those are made for them."""
        if self.kept is None:
            for _ in self.tiles():
                pass
        kept, self.kept = self.kept, None
        return iter(kept or ())


def _by_lanes(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same rows in pieces that fill whole tiles, but for the last."""
    rest: Tensor | None = None
    for piece in pieces:
        whole = piece if rest is None else torch.cat((rest, piece))
        cut = len(whole) // LANES * LANES
        if cut:
            yield whole[:cut]
        rest = whole[cut:]
    if rest is not None and len(rest):
        yield rest
