"""The words all parts share: shape letters, Batch, Loss, Ports, Trace and the capabilities.

Shape letters at the end of a tensor's name:

    B batch   L sequence   M other sequence   D width    H heads    K head width   V vocabulary
    C channels   Y rows   X columns   A actions   T time steps   G key-value heads   N state of a state-space mixer

A mask is True where attended, counted or valid. `1` stands for a kept axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # commands that need no tensors must not wait for torch
    import torch
    from torch import Tensor

Batch = dict[str, Any]
"""Named tensors with known keys (`tokens`, `mask`, `document`, `image`, `label`, ...; a list where sizes differ),
plus `index`, the global index [B] of each sample."""


@dataclass(frozen=True)
class Loss:
    """A sum and what it is divided by, so that splits and processes can be added up before the one division.

    Args:
        total: scalar, the summed loss in nats (or the family's own unit).
        count: scalar, what `total` is divided by: tokens under the mask, pictures.
        parts: further sums to report, each divided by `count` too.
    """

    total: Tensor
    count: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Ports:
    """All that a call of a stack may add to its input; every port left out changes nothing.

    Args:
        valid_BL: True where a position is no padding.
        documents_BL: integer id of the document each position belongs to; positions of different documents never mix.
        prefix_B: length of the prefix that every position may see (prefix-causal).
        cond_BD: one condition vector a row (adaLN-zero).
        context_BMD: a sequence to attend to (cross-attention).
        context_valid_BM: True where the context is no padding.
        residuals: one tensor [B, L, D] a layer, added to the stream after that layer (ControlNet).
        adapter_B: the low-rank adapter of each row, where the stack has several; -1: none.
        want: the layers whose outputs come back in `Trace.layers`.
    """

    valid_BL: Tensor | None = None
    documents_BL: Tensor | None = None
    prefix_B: Tensor | None = None
    cond_BD: Tensor | None = None
    context_BMD: Tensor | None = None
    context_valid_BM: Tensor | None = None
    residuals: Sequence[Tensor] | None = None
    adapter_B: Tensor | None = None
    want: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What a stack returns: its output and the outputs of the layers asked for.

    Args:
        x_BLD: the output after the last norm.
        layers: layer number -> the stream [B, L, D] after that layer.
    """

    x_BLD: Tensor
    layers: Mapping[int, Tensor] = field(default_factory=dict)


@runtime_checkable
class Remembers(Protocol):
    """What a stack remembers between calls: one object for all layers, rows are slots."""

    def reserve(self, slot: int, length: int) -> None: ...
    def fork(self, source: int, target: int) -> None: ...
    def rewind(self, slot: int, length: int) -> int: ...
    def free(self, slot: int) -> None: ...
    def bytes(self) -> int: ...


@runtime_checkable
class Decodes(Protocol):
    """Can be read token by token: a prefill chunk (L = chunk), a step (L = 1) or the check of a draft (L = k).

    `decode` gives the logits [B, L, V] after each token, or [B, 1, V] after the `last` alone.
    """

    def memory(self, slots: int, length: int) -> Remembers: ...
    def begin(self, batch: Batch, memory: Remembers, slots: Sequence[int]) -> None: ...
    def decode(self, tokens_BL: Tensor, memory: Remembers, slots: Sequence[int], last: bool = False) -> Tensor: ...


@runtime_checkable
class Generates(Protocol):
    """Makes samples that are not written token by token."""

    def generate(self, prompts: Batch, options: Any, generator: torch.Generator) -> Batch: ...


@runtime_checkable
class Scores(Protocol):
    """Log-probability in nats of each token [B, L] under the mask (a reward model: [B, 1])."""

    def score(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """One vector a row [B, D], or one a position [B, L, D]."""

    def encode(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Codec(Encodes, Protocol):
    """Encodes to latents and back."""

    def decode_latent(self, latent: Tensor) -> Batch: ...


@runtime_checkable
class Tokenizes(Codec, Protocol):
    """A codec whose latents are codes: tokens [B, y, x] below `codes`, on a `grid` of rows and columns."""

    @property
    def codes(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    def tokens(self, batch: Batch) -> Tensor: ...
    def from_tokens(self, tokens: Tensor) -> Batch: ...


@runtime_checkable
class Denoises(Protocol):
    """The clean sample from a noisy one at times t and r: all that a solver needs."""

    def denoise(self, x: Tensor, t_B: Tensor, r_B: Tensor, ports: Ports) -> Tensor: ...
