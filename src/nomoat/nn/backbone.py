"""The backbone: one frozen config, one stack of mixers and MLPs, for every family.

    x_BLD + learned positions -> [norm -> mixer -> +] [norm -> cross-attention -> +] [norm -> MLP -> +] x depth
          -> norm -> Trace(x_BLD, layers)

Vaswani et al. 2017, arXiv:1706.03762; the dialects' sources stand in nn/dialect.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from nomoat.core.device import hollow
from nomoat.core.errors import ConfigError, nearest
from nomoat.core.types import Ports, Trace
from nomoat.nn.condition import make_port
from nomoat.nn.dialect import OURS, Dialect, MambaConfig
from nomoat.nn.layer import Layer, PrePart, make_layer, make_relative, make_rules, make_table
from nomoat.nn.memory import LayerMemory, Memory
from nomoat.nn.norms import make_norm
from nomoat.nn.resolve import Call, Slots, resolve
from nomoat.nn.scene import working_dtype

MIXERS = ("attention", "mamba")


@dataclass(frozen=True)
class Backbone:
    """A stack of layers. `width`, `depth` and `heads` are enough; the rest follows.

    Args:
        width: D, numbers a position.
        depth: layers.
        heads: query heads H.
        kv_heads: key-value heads G; None: as many as heads.
        head_width: K; None: width / heads.
        mlp_width: inner width of the MLP; None: 4 width, or 8/3 width rounded up to 32 where it is gated.
        mixers: "attention", "mamba", or a pattern of both that repeats over the depth.
        dialect: the closed set of choices, nn/dialect.py.
        causal: read from left to right; False: every position sees every other.
        window: attention sees this many tokens back (and forth, where not causal); None: all.
        positions_length: rows of the table of learned positions, or number of relative buckets.
        position_axes: 1 for text, 2 for pictures: rotary positions are [B, L, axes].
        cond_width: width of the condition vector; 0: no such port.
        context_width: width of the sequence for cross-attention; 0: no such port.
        mamba: sizes of the Mamba mixer.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_width: int | None = None
    mlp_width: int | None = None
    mixers: str | tuple[str, ...] = "attention"
    dialect: Dialect = OURS
    causal: bool = True
    window: int | None = None
    positions_length: int = 0
    position_axes: int = 1
    cond_width: int = 0
    context_width: int = 0
    mamba: MambaConfig = MambaConfig()

    @property
    def pattern(self) -> tuple[str, ...]:
        """The mixer of each layer."""
        words = (self.mixers,) if isinstance(self.mixers, str) else self.mixers
        return tuple(words[layer % len(words)] for layer in range(self.depth))

    @property
    def head_size(self) -> int:
        """K: numbers a head."""
        return self.head_width or self.width // self.heads

    @property
    def groups(self) -> int:
        """G: key-value heads."""
        return self.kv_heads or self.heads

    @property
    def inner(self) -> int:
        """Inner width of the MLP."""
        default = math.ceil(self.width * 8 / 3 / 32) * 32 if self.dialect.gated else 4 * self.width
        return self.mlp_width or default

    def __post_init__(self) -> None:
        for wrong, what, fix in self._faults():
            if wrong:
                raise ConfigError(what, fix=fix)

    def _faults(self) -> list[tuple[bool, str, str]]:
        """What cannot work, in the order in which it is told: (it is so, what, how to fix it)."""
        words = (self.mixers,) if isinstance(self.mixers, str) else tuple(self.mixers)
        unknown = [word for word in words if word not in MIXERS]
        near = max(1, round(self.width / max(self.heads, 1))) * self.heads
        table = self.dialect.positions in ("learned", "relative")
        optional = (self.kv_heads, self.head_width, self.mlp_width)
        return [
            (min(self.width, self.depth, self.heads) < 1, "width, depth and heads are at least 1", ""),
            (
                any(size is not None and size < 1 for size in optional),
                "kv_heads, head_width and mlp_width are at least 1",
                "leave them out for the usual ones",
            ),
            (not words, "mixers is empty", f"name {' or '.join(MIXERS)}"),
            (bool(unknown), f"no mixer is called {unknown[:1]}", nearest("".join(unknown[:1]), MIXERS)),
            (
                self.head_width is None and bool(self.width % max(self.heads, 1)),
                f"width {self.width} cannot be split among {self.heads} heads; nearest that can: {near}",
                "or give head_width",
            ),
            (
                bool(self.heads % max(self.groups, 1)),
                f"{self.heads} heads cannot share {self.groups} key-value heads",
                "kv_heads divides heads",
            ),
            (self.window is not None and self.window < 1, f"a window of {self.window} tokens sees nothing", ""),
            (
                table and self.positions_length < 1,
                f"{self.dialect.positions} positions need positions_length",
                "the context length for learned positions, the number of buckets (T5: 32) for relative ones",
            ),
        ]

    def build(self) -> Stack:
        """The stack with fresh weights, drawn from torch's generator."""
        return Stack(self)

    def parameters(self) -> int:
        """Number of weights, counted without making them."""
        return _counts(self)[0]

    def flops_per_token(self, context_length: int) -> float:
        """Forward and backward floating-point operations a token: 6 a weight, and what the mixers add.

        Learned positions are looked up, not multiplied; attention counts as full, as is the custom (Chowdhery et al.
        2022, arXiv:2204.02311, appendix B).
        """
        _, multiplied, stack = _counts(self)
        mixers = sum(layer.mixer.body.flops_per_token(context_length) for layer in stack.layers)
        return 6.0 * multiplied + mixers


@cache
def _counts(backbone: Backbone) -> tuple[int, int, Stack]:
    with hollow():
        stack = Stack(backbone)
    weights = sum(weight.numel() for weight in stack.parameters())
    tables = [table for table in (stack.positions, stack.relative_positions) if table is not None]
    return weights, weights - sum(weight.numel() for table in tables for weight in table.parameters()), stack


class Stack(nn.Module):
    """The layers of a backbone.

    `kernel` is attention's default, "fused" or "plain" (nn/attention.py: `fastest_kernel` measures which is faster).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        dialect, width = backbone.dialect, backbone.width
        self.backbone = backbone
        self.kernel = "fused"
        self.rules = make_rules(backbone)
        self.positions = make_table(backbone)
        self.relative_positions = make_relative(backbone)
        self.input_norm = make_norm(dialect, width) if dialect.place == "post" else nn.Identity()
        self.layers = cast("list[Layer]", nn.ModuleList(make_layer(backbone, mixer) for mixer in backbone.pattern))
        self.norm = make_norm(dialect, width) if dialect.place == "pre" else nn.Identity()
        self.norm_cond = make_port(backbone.cond_width if dialect.place == "pre" else 0, width)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith(("body.out.weight", "body.down.weight")):
                    weight.div_(math.sqrt(2 * backbone.depth))

    def forward(
        self,
        x_BLD: Tensor,
        positions: Tensor | None = None,
        ports: Ports = Ports(),
        memory: Memory | None = None,
        slots: Slots = None,
        kernel: str | None = None,
    ) -> Trace:
        """The stream after all layers.

        Args:
            x_BLD: embedded tokens [B, L, D].
            positions: integers [B, L] or [B, L, axes], negative where there is none; None: 0, 1, 2, ... from the
                start of the row (or of the document, or from where the memory stands), padding not counted.
            ports: what else the call brings; what is left out changes nothing.
            memory: from `self.memory`; what it holds is read, and this call's tokens are added.
            slots: the memory's row for each row of the batch; None: 0 to B - 1.
            kernel: "fused" or "plain" for this call ("plain" where second derivatives are needed).

        Raises:
            ConfigError: a port that this stack lacks, or positions beyond its table.
        """
        scene = resolve(
            self.rules, Call(positions, ports, memory, slots, kernel or self.kernel), x_BLD, self.relative_positions
        )
        x_BLD = self.input_norm(self.positions(x_BLD, scene.positions))
        first_BLD = x_BLD
        layers: dict[int, Tensor] = {}
        for number, (layer, memories) in enumerate(zip(self.layers, _of_layers(memory, len(self.layers)), strict=True)):
            x_BLD = layer(x_BLD, first_BLD, scene, memories)
            if ports.residuals is not None:
                x_BLD = x_BLD + ports.residuals[number]
            if number in ports.want:
                layers[number] = x_BLD
        if memory is not None:
            memory.advance(scene.seats, scene.counts, chunk=x_BLD.shape[1] > 1)
        return Trace(self.norm_cond(scene).enter(self.norm(x_BLD)), layers)

    def memory(self, slots: int, length: int, dtype: torch.dtype | None = None) -> Memory:
        """An empty memory of `slots` rows with room for `length` tokens each; it grows by `reserve`.

        `dtype` is that of keys and values; None: what the products are computed in.
        """
        dtype = dtype or working_dtype(next(self.parameters()))
        layers = [layer.mixer.body.memory(slots, length, dtype) for layer in self.layers]
        contexts = [layer.cross.body.memory(slots, dtype) for layer in self.layers if isinstance(layer.cross, PrePart)]
        return Memory(layers, slots, contexts)

    def remember(self, context_BMD: Tensor, valid_BM: Tensor | None, memory: Memory, slots: Slots = None) -> None:
        """Put the context's keys and values into the memory's slots, so that later calls need not bring it.

        Args:
            context_BMD: the sequence for the cross-attention.
            valid_BM: True where it is no padding; None: all of it.
            memory: from `self.memory`.
            slots: the memory's row for each row of the context; None: 0 to B - 1.
        """
        slots_B = torch.arange(len(context_BMD)) if slots is None else torch.as_tensor(slots)
        slots_B = slots_B.to(context_BMD.device)
        valid_BM = context_BMD.new_ones(context_BMD.shape[:2], dtype=torch.bool) if valid_BM is None else valid_BM
        order_BM, counts = valid_BM.long().cumsum(1) - 1, valid_BM.sum(1).tolist()
        crosses = [layer.cross for layer in self.layers if isinstance(layer.cross, PrePart)]
        for cross, context in zip(crosses, memory.contexts, strict=True):
            keys_BMGK, values_BMGK = cross.body.keys_values(context_BMD)
            context.reserve(0, max(counts))
            context.write(keys_BMGK, values_BMGK, slots_B, order_BM, valid_BM)
        for slot, count in zip(slots_B.tolist(), counts, strict=True):
            memory.context_lengths[slot] = count


def _of_layers(memory: Memory | None, depth: int) -> list[tuple[LayerMemory | None, LayerMemory | None]]:
    """Each layer's two memories: the mixer's and the cross-attention's."""
    if memory is None:
        return [(None, None)] * depth
    return list(zip(memory.layers, memory.contexts or (None,) * depth, strict=True))
