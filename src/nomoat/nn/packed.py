"""Weights of 8 or 4 bits: 32 weights share one half-float scale, laid out as the CPU's byte products read them.

    weight_ND -> groups of 32 -> round(w / scale) -> tiles of 16 rows [N/16, D/32, bytes] + scales [N/16, D/32, 16]
    x -> bytes -> products in int32 -> x scales -> y     (nn/vectors.py; without Numba: unpacked, multiplied, dropped)

The formats hold exactly what llama.cpp's Q8_0 and Q4_0 hold, so such files are kept bit for bit. In 4 bits the scale is
the one of a few candidates that has the least squared error.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.nn.scene import working_dtype

GROUP, LANES = 32, 16
OFFSETS = {8: 128, 4: 8}
ROUND_NUMBERS = 1 << 20
"""Weights that are packed at a time."""
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Candidates for the scale of a 4-bit group, as shares of the one that loses no weight off the end."""


def groups_of(weight_ND: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers [N, D] in int8 and scales [N, D / 32] in half floats, nearest to the weights.

    Raises:
        ConfigError: the inputs cannot be split in groups of 32.
    """
    if weight_ND.shape[1] % GROUP:
        raise ConfigError(
            f"{weight_ND.shape[1]} inputs cannot be split in groups of {GROUP}", "each group has a scale of its own"
        )
    w = weight_ND.float().unflatten(1, (-1, GROUP))
    if bits == 8:
        scale = (w.abs().amax(2, keepdim=True) / 127).half().float()
        return _integers(w, scale, -127, 127), scale.squeeze(2).half()
    largest = w.gather(2, w.abs().argmax(2, keepdim=True))  # it becomes -8, the end that has one step more
    best, error = largest / -8, torch.full_like(largest, torch.inf)
    for shrink in SHRINKS:
        scale = (largest / -8 * shrink).half().float()
        lost = (_integers(w, scale, -8, 7).view_as(w) * scale - w).square().sum(2, keepdim=True)
        best, error = torch.where(lost < error, scale, best), torch.minimum(lost, error)
    return _integers(w, best, -8, 7), best.squeeze(2).half()


def _integers(w: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    safe = torch.where(scale == 0, 1.0, scale)
    return (w / safe).round_().clamp_(low, high).to(torch.int8).flatten(1)


def tiles_of(integers_ND: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers and scales as tiles: bytes [N/16, D/32, 512 or 256] and half floats [N/16, D/32, 16]; N is filled up."""
    extra = -len(integers_ND) % LANES
    integers_ND, scales = F.pad(integers_ND, (0, 0, 0, extra)), F.pad(scales, (0, 0, 0, extra))
    shifted = (integers_ND.to(torch.int16) + OFFSETS[bits]).to(torch.uint8)
    # [tile, row, group, block, byte] -> [tile, group, block, row, byte]
    tiles = shifted.view(-1, LANES, integers_ND.shape[1] // GROUP, 8, 4).permute(0, 2, 3, 1, 4)
    if bits == 4:
        tiles = tiles[:, :, :4] | (tiles[:, :, 4:] << 4)
    return tiles.flatten(2).contiguous(), scales.view(len(tiles), LANES, -1).transpose(1, 2).contiguous()


def tiled(weight_ND: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Weights as tiles and scales, some rows at a time: what is in between takes little memory."""
    rows = max(LANES, ROUND_NUMBERS // weight_ND.shape[1] // LANES * LANES)
    parts = [tiles_of(*groups_of(some_RD, bits), bits) for some_RD in weight_ND.split(rows)]
    tiles, scales = (torch.cat(both) for both in zip(*parts, strict=True))
    return tiles, scales


def untiled(tiles: Tensor, scales: Tensor, bits: int, outputs: int) -> Tensor:
    """The weights [outputs, D] in float that the tiles stand for."""
    blocks = tiles.unflatten(2, (-1, LANES, 4))
    if bits == 4:
        blocks = torch.cat((blocks & 15, blocks >> 4), dim=2)
    integers = blocks.permute(0, 3, 1, 2, 4).flatten(3).float() - OFFSETS[bits]  # [tile, row, group, 32]
    return (integers * scales.float().transpose(1, 2).unsqueeze(3)).flatten(2).flatten(0, 1)[:outputs]


class Packed(nn.Module):
    """A matrix [outputs, inputs] of 8 or 4 bits in the buffers `tiles` and `scales`, and so in a run's file."""

    tiles: Tensor
    scales: Tensor

    def __init__(self, outputs: int, inputs: int, bits: int) -> None:
        super().__init__()
        if bits not in OFFSETS:
            raise ConfigError(f"weights of {bits} bits are not known", fix="8 and 4 bits are")
        self.outputs, self.inputs, self.bits = outputs, inputs, bits
        count, groups = -(-outputs // LANES), inputs // GROUP
        self.register_buffer("tiles", torch.zeros(count, groups, 64 * bits, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(count, groups, LANES, dtype=torch.float16))

    def fill(self, weight_ND: Tensor) -> Packed:
        """Take over weights, rounded."""
        self.tiles, self.scales = tiled(weight_ND, self.bits)
        return self

    def weight(self) -> Tensor:
        """The weights [outputs, inputs] in float."""
        return untiled(self.tiles, self.scales, self.bits, self.outputs)

    def rows(self, index: Tensor) -> Tensor:
        """Single rows [..., inputs] in float."""
        flat = index.reshape(-1)
        tiles = self.tiles.unflatten(2, (-1, LANES, 4))
        blocks = tiles[flat // LANES, :, :, flat % LANES]  # [N, groups, blocks, 4]: only those rows of their tiles
        if self.bits == 4:
            blocks = torch.cat((blocks & 15, blocks >> 4), dim=2)
        scales = self.scales[flat // LANES, :, flat % LANES].float()
        return ((blocks.flatten(2).float() - OFFSETS[self.bits]) * scales[..., None]).view(*index.shape, -1)

    def few_rows(self, index_N: Any) -> Any:
        """Single rows [N, inputs] in float32, as NumPy arrays: only those rows of their tiles are touched."""
        tiles = self.tiles.numpy().reshape(len(self.tiles), self.tiles.shape[1], -1, LANES, 4)
        blocks = tiles[index_N // LANES, :, :, index_N % LANES]  # [N, groups, blocks, 4]
        if self.bits == 4:
            blocks = np.concatenate((blocks & 15, blocks >> 4), axis=2)
        integers = blocks.reshape(len(index_N), -1, GROUP).astype(np.float32) - OFFSETS[self.bits]
        scales = self.scales.numpy()[index_N // LANES, :, index_N % LANES].astype(np.float32)
        return (integers * scales[:, :, None]).reshape(len(index_N), -1)

    def multiply(self, x: Tensor) -> Tensor:
        """x W^T [..., outputs] in float."""
        from nomoat.nn.native import product

        return product(self, x)


class _Through(torch.autograd.Function):
    """x W^T with the weights unpacked for it, and again for the gradient of x: they are never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Packed) -> Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix.weight().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.matrix.weight().to(grad.dtype), None


class PackedLinear(nn.Module):
    """Stands in a linear layer's place: x W^T + b with packed weights.

    `exact` takes the very weights that the packed ones stand for, in x's dtype, and hands a gradient on to x; else x is
    rounded to bytes, and there is no gradient.
    """

    exact = False

    def __init__(self, outputs: int, inputs: int, bits: int, bias: bool) -> None:
        super().__init__()
        self.matrix = Packed(outputs, inputs, bits)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs] in x's dtype."""
        if self.exact:
            low = x.to(working_dtype(x))
            y = _Through.apply(low, self.matrix)
            return y if self.bias is None else y + self.bias.to(y.dtype)
        y = self.matrix.multiply(x)
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class PackedEmbedding(nn.Module):
    """Stands in a token table's place; the output layer may share its matrix."""

    def __init__(self, vocab_size: int, width: int, bits: int) -> None:
        super().__init__()
        self.matrix = Packed(vocab_size, width, bits)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """[B, L] to [B, L, D] in float."""
        return self.matrix.rows(tokens_BL)


Model = TypeVar("Model", bound=nn.Module)


def packs(module: nn.Module) -> bool:
    """Whether a module is one that is packed: a linear layer or a table whose inputs split in groups."""
    return isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[1] % GROUP == 0


def pack_(model: Model, bits: int) -> Model:
    """Put packed modules in the place of all linear layers and tables, one by one, so that little is held twice.

    What is on the meta device comes out empty, ready to be loaded.
    """
    for name, module in list(model.named_modules()):
        if not packs(module):
            for own, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    module._parameters[own] = nn.Parameter(torch.zeros(parameter.shape), requires_grad=False)
            continue
        outputs, inputs = module.weight.shape
        packed: Any = PackedEmbedding(outputs, inputs, bits)
        if isinstance(module, nn.Linear):
            packed = PackedLinear(outputs, inputs, bits, module.bias is not None)
            packed.blocks = getattr(module, "blocks", (outputs,))
        if not module.weight.is_meta:
            packed.matrix.fill(module.weight.detach())
            if getattr(packed, "bias", None) is not None:
                packed.bias.data.copy_(module.bias.detach())
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed)
    return model
