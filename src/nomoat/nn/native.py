"""A language model decoded by native code: the same `Decodes` as the model itself, near the memory's bandwidth.

    model -> weights as they lie (bf16, f32) or packed (8, 4 bits) -> tables -> Native(memory, begin, decode)

Steps go through nn/steps.py, 16 tokens at a time; longer pieces of a text (a prompt) through PyTorch's stack, into the
same memory.
What this cannot do it says in words (`why_not`), and the model decodes by itself as before.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.device import has_bf16
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family
from nomoat.core.types import Batch
from nomoat.nn.layer import PrePart, Skip
from nomoat.nn.lora import merged
from nomoat.nn.memory import AttentionMemory, Memory
from nomoat.nn.packed import Packed, PackedEmbedding, PackedLinear, pack_

MANY = 48
"""From so many tokens on, PyTorch's products of bf16 are faster than ours where the processor multiplies tiles (AMX):
64 rows of SmolLM2 750 tokens/s against 310."""
MARGIN = 64
"""Bytes that vectors may read or write behind the end of an area."""


def is_available() -> bool:
    """Whether Numba is there to translate the kernels."""
    return importlib.util.find_spec("numba") is not None


def product(matrix: Packed, x: Tensor) -> Tensor:
    """x W^T [..., outputs] in float: by the crew where Numba is, else with the weights unpacked."""
    if not is_available() or not x.is_cpu:
        return F.linear(x.float(), matrix.weight().to(x.device))
    from nomoat.nn.crew import crew
    from nomoat.nn.steps import BLOCK

    rows = x.reshape(-1, matrix.inputs).float().contiguous()
    hands = crew()
    padded = matrix.tiles.shape[0] * 16
    out = torch.empty(len(rows), padded)
    described = _describe(matrix, None)
    own = [_area(min(BLOCK, len(rows)) * matrix.inputs * 5 + MARGIN) for _ in range(hands.threads)]
    owned = np.array([area.ctypes.data for area in own], dtype=np.int64)
    counters = np.zeros(2 * (len(rows) // BLOCK + 1), dtype=np.int64)
    tables = np.array(
        [
            0,
            described.ctypes.data,
            rows.data_ptr(),
            len(rows),
            out.data_ptr(),
            counters.ctypes.data,
            owned.ctypes.data,
            0,
        ],
        dtype=np.int64,
    )
    hands.perform(tables.ctypes.data)
    return out[:, : matrix.outputs].view(*x.shape[:-1], matrix.outputs)


def _area(size: int) -> Any:
    """Bytes for scratch, with the margin that vectors need."""
    return np.zeros(size + MARGIN, dtype=np.uint8)


def _floats(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows * columns + MARGIN)


def _describe(matrix: Packed | nn.Module, bias: Any) -> Any:
    """The row of the table of matrices that says how these weights lie."""
    from nomoat.nn.steps import KINDS

    address = 0 if bias is None else bias.ctypes.data
    if isinstance(matrix, Packed):
        kind, weights, scales = KINDS[f"q{matrix.bits}"], matrix.tiles, matrix.scales.data_ptr()
        outputs, inputs, row = matrix.outputs, matrix.inputs, 0
    else:
        weights, scales = matrix.weight, 0  # type: ignore[assignment]
        kind = KINDS["bf16" if weights.dtype == torch.bfloat16 else "f32"]
        (outputs, inputs), row = weights.shape, weights.stride(0) * weights.element_size()
    return np.array([kind, weights.data_ptr(), scales, address, outputs, inputs, inputs, row], dtype=np.int64)


def why_not(model: Any) -> str:
    """Why a language model cannot be decoded natively, in words; empty where it can."""
    backbone = model.stack.backbone
    dialect = backbone.dialect
    sizes = backbone.width, backbone.inner, backbone.head_size * backbone.heads
    weights = ((type(module), module._parameters.get("weight")) for module in model.modules())
    linear = {kind for kind, weight in weights if weight is not None and weight.ndim == 2}
    faults = {
        "Numba is not installed": not is_available(),
        "it has layers that are no attention": set(backbone.pattern) != {"attention"},
        "its norms stand after the sums": dialect.place != "pre",
        "its positions are relative": dialect.positions == "relative",
        "it has layer factors or residual scalars": dialect.layer_scale is not None or dialect.residual_scalars,
        "its parts are bounded": dialect.bounded,
        "its norms have no weights": dialect.norm == "rms_bare" and dialect.qk_norm != "none",
        "it has no MLP": dialect.mlp == "none",
        "it has condition or context ports": bool(backbone.cond_width or backbone.context_width),
        "its heads are no multiple of 16 wide": bool(backbone.head_size % 16),
        "a width is no multiple of 32": any(size % 32 for size in sizes),
        "several adapters share its weights": bool(model.stack.rules.adapters),
        "it is not on the CPU": any(not one.is_cpu for one in model.parameters()),
        "its weights are neither bf16 nor fp32": any(
            one.dtype not in (torch.bfloat16, torch.float32) for one in model.parameters()
        ),
        "its linear layers are of another kind": any(
            not issubclass(kind, nn.Linear | nn.Embedding) and kind.__name__ != "Table" for kind in linear
        ),
    }
    return next((words for words, so in faults.items() if so), "")


def quickest(model: Any, bits: int | None = None, threads: int | None = None) -> Any:
    """The fastest `Decodes` that a model has here: native code where that can be, else the model itself.

    Args:
        model: a family in eval mode; its own weights are changed to those asked for, an adapter worked into them.
        bits: 32 or 16 (floats), 8 or 4 (packed on the way in); None: packed weights as they are, floats in 16 where
            native code reads them, else as they are.
        threads: of native code; None: as many as torch uses.

    Raises:
        ConfigError: such weights cannot be had of this model.
    """
    model = merged(model) if isinstance(model, Family) else model
    stored = getattr(model.config, "bits", 16)
    if not hasattr(model, "stack"):
        if bits is not None:
            raise ConfigError(f"{type(model).__name__} is read as it is", "only language models are packed")
        return model
    if bits not in (None, 32, 16, 8, 4) or (stored < 16 and bits not in (None, stored)):
        raise ConfigError(
            f"weights of {bits} bits cannot be had", f"the model holds {stored}", "32, 16, 8 and 4 are known"
        )
    on_cpu = all(parameter.is_cpu for parameter in model.parameters())
    if bits in (8, 4) and stored == 16:
        if not on_cpu:
            raise ConfigError(f"{bits} bits are for the CPU", "", "leave --bits out on a GPU")
        model = pack_(model.float(), bits)
    elif stored == 16:
        half = bits == 16 or (bits is None and on_cpu and has_bf16(torch.device("cpu")) and not why_not(model.float()))
        model = model.bfloat16() if half else model.float()
    return model if why_not(model) else Native(model, threads)


def _has_tiles() -> bool:
    """Whether the processor multiplies tiles of bf16 (AMX)."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known and known())


class Native:
    """A language model's `Decodes`, natively. The weights stay the model's own.

    Args:
        model: for which `why_not` says nothing; has embed, stack, output, soft_cap and output_scale.
        threads: None: as many as torch uses.
    """

    def __init__(self, model: Any, threads: int | None = None) -> None:
        from nomoat.nn.crew import crew

        self.model, self.config, self.stack = model, model.config, model.stack
        self.crew = crew(threads)
        self._kept: list[Any] = []
        self._one = threading.Lock()  # the scratch areas are one step's at a time
        packed = any(isinstance(module, Packed) for module in model.modules())
        whole = not packed and next(model.parameters()).dtype == torch.float32
        self.memory_dtype = torch.float32 if whole else torch.bfloat16
        self.most = MANY if not packed and not whole and _has_tiles() else None
        self._lay_out()

    def memory(self, slots: int, length: int) -> Memory:
        """Room for `slots` sequences of up to `length` tokens, in bf16; in fp32 where the weights are."""
        return self.stack.memory(slots, length, self.memory_dtype)

    def begin(self, batch: Batch, memory: Memory, slots: Sequence[int]) -> None:
        """Nothing to read before the first token."""

    @torch.no_grad()
    def decode(self, tokens_BL: Tensor, memory: Memory, slots: Sequence[int], last: bool = False) -> Tensor:
        """Append tokens [B, L] to the slots and return the logits [B, L, V] after each, in float; `last`: [B, 1, V]."""
        from nomoat.nn.steps import ROWS

        batch, length = tokens_BL.shape
        if length > ROWS or (self.most is not None and batch * length >= self.most):
            with self._one:
                return self.model.decode(tokens_BL, memory, slots, last)
        most, made = ROWS // length, list[Tensor]()
        for first in range(0, batch, most):  # in PyTorch its threads would spin on the cores that the crew needs
            some = slice(first, first + most)
            with self._one:
                logits_BLV = self._step(tokens_BL[some], memory, slots[some])
            made.append(logits_BLV[:, -1:] if last else logits_BLV)
        return made[0] if len(made) == 1 else torch.cat(made)

    def _step(self, tokens_BL: Tensor, memory: Memory, slots: Sequence[int]) -> Tensor:
        batch, length = tokens_BL.shape
        starts = [memory.lengths[slot] for slot in slots]
        reach = max(starts) + length
        for slot, start in zip(slots, starts, strict=True):
            memory.reserve(slot, start + length)
        self._point_at(memory, reach)
        rows = batch * length
        self._read_in(tokens_BL, starts)
        self.slots[:batch], self.starts[:batch] = slots, starts
        self.sizes[self._at["sequences"]], self.sizes[self._at["length"]] = batch, length
        self.counters[:] = 0
        self.crew.perform(self.tables.ctypes.data)
        memory.advance(slots, (length,) * batch, chunk=False)
        # Copied by NumPy: a pool of threads that PyTorch wakes would spin on the cores that the crew needs.
        logits_NV = self.logits.numpy()[: rows * self.padded].reshape(rows, self.padded)[:, : self.config.vocab_size]
        logits_BLV = torch.from_numpy(logits_NV.copy()).view(batch, length, -1)
        if self.model.output_scale != 1.0:
            logits_BLV *= self.model.output_scale
        cap = self.model.soft_cap
        return logits_BLV if cap is None else cap * torch.tanh(logits_BLV / cap)

    def _read_in(self, tokens_BL: Tensor, starts: Sequence[int]) -> None:
        """The tokens' vectors, and learned positions, as the first x."""
        batch, length = tokens_BL.shape
        if isinstance(self.model.embed, PackedEmbedding):
            x_ND = torch.from_numpy(self.model.embed.matrix.few_rows(tokens_BL.flatten().numpy()))
        else:
            x_ND = self.model.embed(tokens_BL).flatten(0, 1)
        if self.learned is not None:
            places = torch.tensor(starts)[:, None] + torch.arange(length)
            x_ND = self.learned(x_ND.view(batch, length, -1), places).flatten(0, 1)
        self.x[: x_ND.numel()].copy_(x_ND.reshape(-1))

    def _lay_out(self) -> None:
        """Tables of all that does not change, and the scratch areas."""
        from nomoat.nn import steps

        backbone, dialect = self.stack.backbone, self.stack.backbone.dialect
        width, inner, heads = backbone.width, backbone.inner, backbone.heads
        mixed = (heads + 2 * backbone.groups) * backbone.head_size
        table = self.model.embed if self.model.output is None else self.model.output
        rows = [self._matrix(module) for layer in self.stack.layers for module in _linears(layer)]
        self.matrices = np.stack([*rows, self._matrix(table)])
        self.layers = np.zeros((backbone.depth, 12), dtype=np.int64)
        for number, layer in enumerate(self.stack.layers):
            body, norms = layer.mixer.body, (layer.mixer.norm, layer.mlp.norm)
            heads_norms = body.query_norm, body.key_norm
            self.layers[number, :10] = [
                *range(4 * number, 4 * number + 4),
                *(address for norm in norms for address in self._norm(norm)),
                *(self._norm(norm)[0] for norm in heads_norms),
            ]
        final = self._norm(self.stack.norm)
        rotary, self.learned = self.stack.rules.rotary, None
        if not isinstance(self.stack.positions, Skip):
            self.learned = self.stack.positions
        self.rotary, self.pairs = rotary, 0 if rotary is None else len(rotary.frequencies)
        self._at = {name: place for place, name in enumerate(steps.SIZE_NAMES)}
        values = {
            "depth": backbone.depth, "width": width, "heads": heads, "groups": backbone.groups,
            "head_width": backbone.head_size, "inner": inner, "gated": int(dialect.gated),
            "activation": steps.ACTIVATIONS[dialect.activation], "norm": steps.NORMS[dialect.norm],
            "pairs": self.pairs, "window": backbone.window or 0, "half_memory": int(self.memory_dtype != torch.float32),
            "final_norm": final[0], "final_bias": final[1], "table": 4 * backbone.depth,
        }  # fmt: skip
        self.sizes = np.array([values.get(name, 0) for name in steps.SIZE_NAMES], dtype=np.int64)
        self.numbers = np.array([dialect.epsilon, self.stack.layers[0].mixer.body.scale], dtype=np.float32)
        most = steps.ROWS
        self.padded = -(-self.config.vocab_size // 16) * 16
        self.x, self.mixed, self.wide = _floats(most, width), _floats(most, mixed), _floats(most, 2 * inner)
        self.attended = _floats(most, max(width, heads * backbone.head_size))
        self.hidden, self.logits = _floats(most, max(inner, width)), _floats(most, self.padded)
        self.slots, self.starts = np.zeros(most, dtype=np.int64), np.zeros(most, dtype=np.int64)
        self.counters = np.zeros(2 * (5 * backbone.depth + 1), dtype=np.int64)
        self._capacity, self._width_of_area = 0, 5 * most * max(inner, width, heads * backbone.head_size)
        self.areas = np.zeros(len(steps.AREA_NAMES), dtype=np.int64)
        self.tables = np.array(
            [one.ctypes.data for one in (self.matrices, self.layers, self.sizes, self.numbers, self.areas)] + [0] * 3,
            dtype=np.int64,
        )
        self._grow(256)

    def _grow(self, capacity: int) -> None:
        """Angles and scratch for so many positions."""
        width = self.stack.backbone.width
        self._capacity = capacity
        self.own = [
            (_area(self._width_of_area), _area(4 * max(16 * width, capacity + 16))) for _ in range(self.crew.threads)
        ]
        self.owned = np.array([area.ctypes.data for pair in self.own for area in pair], dtype=np.int64)
        self.cos = self.sin = torch.zeros(1)
        if self.rotary is not None:
            angles = self.rotary.angles(torch.arange(capacity)[None], torch.float32)
            self.cos = angles.cos[0, :, 0, : self.pairs].contiguous()
            self.sin = angles.sin[0, :, 0, self.pairs : 2 * self.pairs].contiguous()
        tensors = (self.x, self.mixed, self.attended, self.wide, self.hidden, self.logits, self.cos, self.sin)
        arrays = self.slots, self.starts, self.owned, self.counters
        self.areas[:] = [
            *(one.data_ptr() for one in tensors),
            *(one.ctypes.data for one in arrays),
        ]

    def _point_at(self, memory: Memory, reach: int) -> None:
        """Write where the memory's keys and values lie now."""
        from nomoat.nn import steps

        if reach > self._capacity:
            self._grow(max(reach, 2 * self._capacity))
        for number, layer in enumerate(memory.layers):
            assert isinstance(layer, AttentionMemory)
            self.layers[number, steps.KEYS] = layer.keys.data_ptr()
            self.layers[number, steps.VALUES] = layer.values.data_ptr()
        keys = memory.layers[0].keys  # type: ignore[attr-defined]
        size = keys.element_size()
        self.sizes[self._at["slot_bytes"]], self.sizes[self._at["head_bytes"]] = (
            keys.stride(0) * size,
            keys.stride(1) * size,
        )

    def _matrix(self, module: Any) -> Any:
        bias = getattr(module, "bias", None)
        bias = None if bias is None else self._keep(bias.detach().float().numpy().copy())
        return _describe(module.matrix if isinstance(module, PackedLinear | PackedEmbedding) else module, bias)

    def _norm(self, norm: nn.Module) -> tuple[int, int]:
        """Addresses of a norm's weight and bias as floats; 0 where there is none."""
        parts = (getattr(norm, "weight", None), getattr(norm, "bias", None))
        return tuple(  # type: ignore[return-value]
            0 if part is None else self._keep(part.detach().float().numpy().copy()).ctypes.data for part in parts
        )

    def _keep(self, array: Any) -> Any:
        self._kept.append(array)
        return array


def _linears(layer: Any) -> tuple[nn.Module, ...]:
    """A layer's four products: qkv, out, up, down."""
    assert isinstance(layer.mixer, PrePart)
    return layer.mixer.body.qkv, layer.mixer.body.out, layer.mlp.body.up, layer.mlp.body.down
