"""Mamba-2: a mixer whose memory does not grow with the sequence, as one linear recurrence a head.

    x_BLD -> in_proj -> gate z_BLE | x_BLE, b_BLN, c_BLN | dt_BLH          E = expand D = heads x head_width
                          |            short_conv (4 taps), SiLU
                          |            ssd: state = exp(dt a) state + dt x b^T, y = state c, then y + skip x
          out_BLD <- out <- norm(y SiLU(z))

Causal: Dao and Gu 2024, arXiv:2405.21060; rows of `in_proj` and all weights stand as in transformers' Mamba2.

In both directions: the quasiseparable form of Hwang et al. 2024 (Hydra, arXiv:2407.09941), which they found better
than adding, multiplying or concatenating two causal mixers. One projection makes x, which both directions share, and
b, c and dt for each; the convolution is centred, 2 x 4 - 1 taps; each direction's output is shifted by one position,
so that the two never both count a position itself, whose factor is learned and depends on the input. Unlike the
paper's code the norm comes after the gate, as in the causal form.

Padding may stand anywhere: valid positions are moved together first. A new document resets the state and the
convolution. A prefix (`prefix_B`) changes nothing: a causal stack reads it from left to right, a full one both ways.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.nn.dialect import Dialect, MambaConfig
from nomoat.nn.linear import linear, output_linear
from nomoat.nn.mamba_memory import MambaMemory
from nomoat.nn.norms import BareRMSNorm, RMSNorm
from nomoat.nn.scene import Scene
from nomoat.nn.short_conv import conv_step, short_conv
from nomoat.nn.ssd import ssd, ssd_scan

FIRST_STEPS = (0.001, 0.1)
"""Step sizes dt of a fresh layer lie between these, their logarithms evenly spread (Gu and Dao 2023, section 3.6)."""

FIRST_RATES = (1.0, 16.0)
"""Decay rates -a of a fresh layer lie between these (Dao and Gu 2024, their code's default)."""


class GroupedRMSNorm(nn.Module):
    """x / rms(x) * weight, with the mean taken over each group of heads by itself."""

    def __init__(self, width: int, groups: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups, self.unit = groups, BareRMSNorm(width // groups, epsilon)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """[B, L, E] to [B, L, E]."""
        return self.unit(x_BLE.unflatten(2, (self.groups, -1))).flatten(2) * self.weight.to(x_BLE.dtype)


class _Rows(NamedTuple):
    """The rows of a call with their valid positions at the front.

    Args:
        there: where each position of the packed rows comes from, in the rows flattened [B L]; None: nothing moved.
        back: where each position of the call went; None: nothing moved.
        valid_BL: True at the front of each packed row, as far as it is valid; None: all is.
        documents_BL: number of the document within the row, -1 for padding; None: one document and no padding.
        starts_BL: True at the first position of every document but the first; None: there is one document.
    """

    there: Tensor | None = None
    back: Tensor | None = None
    valid_BL: Tensor | None = None
    documents_BL: Tensor | None = None
    starts_BL: Tensor | None = None

    @classmethod
    def of(cls, scene: Scene) -> _Rows:
        """Packed as the scene's padding and documents ask."""
        documents_BL, valid_BL = scene.documents_BL, scene.valid_BL
        there = back = starts_BL = None
        if valid_BL is not None and bool((valid_BL[:, 1:] > valid_BL[:, :-1]).any()):
            order_BL = valid_BL.int().argsort(dim=1, descending=True, stable=True)
            first_B1 = torch.arange(len(order_BL), device=order_BL.device).unsqueeze(1) * order_BL.shape[1]
            there, back = (order_BL + first_B1).flatten(), (order_BL.argsort(dim=1) + first_B1).flatten()
            valid_BL = valid_BL.gather(1, order_BL)
            documents_BL = None if documents_BL is None else documents_BL.gather(1, order_BL)
        if documents_BL is not None:
            starts_BL = documents_BL.diff(dim=1, prepend=documents_BL[:, :1]) != 0
            documents_BL = starts_BL.cumsum(1)
        if valid_BL is not None:
            starts_BL = None if starts_BL is None else starts_BL & valid_BL
            documents_BL = torch.where(valid_BL, 0 if documents_BL is None else documents_BL, -1)
        return cls(there, back, valid_BL, documents_BL, starts_BL)


def _move(x_BLD: Tensor, to: Tensor | None) -> Tensor:
    """The positions [B L] in another order."""
    return x_BLD if to is None else x_BLD.flatten(0, 1).index_select(0, to).view_as(x_BLD)


def _full(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MambaMixer(nn.Module):
    """The mixer. Rows of `in_proj`: gate E, x E, b and c G N each (twice in both directions), dt H (twice).

    Args:
        width: D.
        config: sizes of the mixer.
        causal: read from left to right; False: in both directions.
        dialect: biases of the projections, epsilon of the norm, first weights.

    Raises:
        ConfigError: the inner width cannot be split into heads, or the heads into groups.
    """

    def __init__(self, width: int, config: MambaConfig, causal: bool, dialect: Dialect) -> None:
        super().__init__()
        inner = config.expand * width
        heads, rest = divmod(inner, config.head_width)
        if rest:
            near = max(1, round(inner / config.head_width)) * config.head_width
            raise ConfigError(
                f"an inner width of {config.expand} x {width} cannot be split into heads of {config.head_width}",
                f"nearest inner width that can: {near}",
                "change width, mamba.expand or mamba.head_width",
            )
        if heads % config.groups:
            raise ConfigError(f"{heads} heads cannot share {config.groups} groups", fix="mamba.groups divides heads")
        ways = 1 if causal else 2
        self.config, self.causal = config, causal
        self.sizes = (inner, inner + 2 * ways * config.groups * config.state_width, ways * heads)
        taps, bias = config.conv_width if causal else 2 * config.conv_width - 1, dialect.bias == "all"
        self.in_proj = linear(width, sum(self.sizes), bias, dialect)
        # Three axes, as a convolution's weights have: with two they would be a matrix to the optimizer.
        self.conv_weight = nn.Parameter(torch.empty(self.sizes[1], 1, taps).uniform_(-1, 1) / math.sqrt(taps))
        self.conv_bias = nn.Parameter(torch.zeros(self.sizes[1]))
        low, high = (math.log(step) for step in FIRST_STEPS)
        steps_H = torch.empty(heads).uniform_(low, high).exp()
        self.dt_bias = nn.Parameter(steps_H + torch.log(-torch.expm1(-steps_H)))  # softplus of it is steps_H again
        self.a_log = nn.Parameter(torch.empty(heads).uniform_(*FIRST_RATES).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.diagonal = None if causal else linear(inner, heads, False, dialect)
        norm = RMSNorm if config.groups == 1 else partial(GroupedRMSNorm, groups=config.groups)
        self.norm = norm(inner, epsilon=dialect.epsilon)
        self.out = output_linear(inner, width, bias, dialect)

    def forward(self, x_BLD: Tensor, scene: Scene, layer_memory: MambaMemory | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        rows = _Rows.of(scene)
        z_BLE, mixed_BLC, dt_BLH = scene.linear(self.in_proj, _move(x_BLD, rows.there)).split(self.sizes, dim=2)
        heads = self.skip.shape[0]
        dt_BLH = F.softplus(_full(dt_BLH) + _full(self.dt_bias).repeat(dt_BLH.shape[2] // heads))
        if rows.valid_BL is not None:
            dt_BLH = dt_BLH * rows.valid_BL.unsqueeze(2)
        if self.causal:
            y_BLHK = self._forwards(mixed_BLC, dt_BLH, rows, scene, layer_memory)
        else:
            y_BLHK = self._both_ways(mixed_BLC, dt_BLH, rows)
        y_BLD = scene.linear(self.out, self.norm(y_BLHK.flatten(2) * F.silu(z_BLE)))
        return _move(y_BLD, rows.back)

    def _forwards(
        self, mixed_BLC: Tensor, dt_BLH: Tensor, rows: _Rows, scene: Scene, memory: MambaMemory | None
    ) -> Tensor:
        """Convolution and recurrence from left to right, [B, L, H, K]; goes on from the memory where there is one."""
        state_BHKN, one = None, mixed_BLC.shape[1] == 1
        if memory is None:
            bent_BLC = self._convolve(mixed_BLC, rows.documents_BL)
        else:
            assert scene.rows is not None
            state_BHKN, tail_BWC = memory.read(scene.rows)
            seen_BLC = torch.cat([tail_BWC.to(mixed_BLC.dtype), mixed_BLC], dim=1)
            if one:
                bent_BLC = conv_step(seen_BLC, _full(self.conv_weight)[:, 0], _full(self.conv_bias))
            else:
                bent_BLC = self._convolve(seen_BLC, None)[:, tail_BWC.shape[1] :]
        x_BLHK, b_BLGN, c_BLGN = self._heads(bent_BLC)
        inputs = (x_BLHK, dt_BLH, -_full(self.a_log).exp(), b_BLGN, c_BLGN, rows.starts_BL, state_BHKN)
        y_BLHK, state_BHKN = ssd_scan(*inputs) if one else ssd(*inputs, chunk=self.config.chunk)
        if memory is not None:
            memory.write(scene, state_BHKN, seen_BLC)
        return torch.addcmul(y_BLHK, x_BLHK, self.skip.to(y_BLHK.dtype).unsqueeze(1))

    def _both_ways(self, mixed_BLC: Tensor, dt_BLH: Tensor, rows: _Rows) -> Tensor:
        """Two recurrences, each shifted by one, and the factor of each position itself, [B, L, H, K]."""
        x_BLC, forth_BLC, back_BLC = self._convolve(mixed_BLC, rows.documents_BL).tensor_split(
            (self.sizes[0], (self.sizes[0] + self.sizes[1]) // 2), dim=2
        )
        x_BLHK, b_BLGN, c_BLGN = self._heads(torch.cat([_twice(x_BLC, x_BLC), _twice(forth_BLC, back_BLC)], dim=2))
        starts_BL = None
        if rows.starts_BL is not None and rows.documents_BL is not None:
            turned_BL = rows.documents_BL.flip(1)
            starts_BL = torch.cat([rows.starts_BL, turned_BL.diff(dim=1, prepend=turned_BL[:, :1]) != 0])
        rate_H, dt_BLH = -_full(self.a_log).exp(), _twice(*dt_BLH.chunk(2, dim=2))
        y_BLHK, _ = ssd(x_BLHK, dt_BLH, rate_H, b_BLGN, c_BLGN, starts_BL, chunk=self.config.chunk)
        y_BLHK = F.pad(y_BLHK[:, :-1], (0, 0, 0, 0, 1, 0))
        if starts_BL is not None:
            y_BLHK = y_BLHK.masked_fill(starts_BL[:, :, None, None], 0.0)
        forth_BLHK, back_BLHK = y_BLHK.chunk(2)
        assert self.diagonal is not None
        own_BLH = self.diagonal(x_BLC) + self.skip
        return forth_BLHK + back_BLHK.flip(1) + x_BLHK[: len(x_BLC)] * own_BLH.to(x_BLC.dtype).unsqueeze(3)

    def _convolve(self, mixed_BLC: Tensor, documents_BL: Tensor | None) -> Tensor:
        ahead = 0 if self.causal else self.config.conv_width - 1
        return short_conv(mixed_BLC, _full(self.conv_weight)[:, 0], _full(self.conv_bias), documents_BL, ahead)

    def _heads(self, bent_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, H, K], b and c [B, L, G, N]."""
        groups, state_width = self.config.groups, self.config.state_width
        x_BLE, b_BLE, c_BLE = bent_BLC.split([self.sizes[0], groups * state_width, groups * state_width], dim=2)
        b_BLGN, c_BLGN = (each.unflatten(2, (groups, state_width)) for each in (b_BLE, c_BLE))
        return x_BLE.unflatten(2, (-1, self.config.head_width)), b_BLGN, c_BLGN

    def memory(self, slots: int, length: int, dtype: torch.dtype) -> MambaMemory:
        """Empty states of `slots` rows; the length does not matter."""
        heads, state_width = self.skip.shape[0], self.config.state_width
        states_SHKN = _full(self.skip.new_zeros(slots, heads, self.config.head_width, state_width))
        return MambaMemory(
            states_SHKN, self.skip.new_zeros(slots, self.config.conv_width - 1, self.sizes[1], dtype=dtype)
        )

    def flops_per_token(self, context_length: int) -> float:
        """Forward and backward of the core: c b^T a group; within the chunk, into and out of the state a head."""
        config, heads = self.config, self.skip.shape[0]
        chunk, state_width = min(config.chunk, context_length), config.state_width
        scores = config.groups * chunk * state_width
        a_head = config.head_width * (chunk + 2 * state_width)
        return 6.0 * (scores + heads * a_head) * (1 if self.causal else 2)


def _twice(forth: Tensor, back: Tensor) -> Tensor:
    """Both directions as rows of one batch, the second turned around."""
    return torch.cat([forth, back.flip(1)])
