"""Rows of tokens with all that a model needs to keep documents apart: windows, packed rows, held-out windows.

    items [B] -> token positions -> tokens [B, L+1], mask [B, L+1], document [B, L+1], positions [B, L+1]

The token before a document's first one is the document end of the document before, and it counts as the *beginning* of
the document that follows: it carries that document's number and position 0, so that a document is predicted from
`<|endoftext|>` alone, as a model writes it. Hence the target in slot t + 1 belongs to document[:, t], and an input
never sees another document. Padding: the document end as token, mask False, document -1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch
from nomoat.data.packing import Indices, Plan
from nomoat.data.shards import ShardReader


@dataclass(frozen=True)
class Rows:
    """B rows of L + 1 slots.

    Args:
        tokens_BL: ids.
        mask_BL: True where the token is to be learned or scored; slot 0 never is.
        document_BL: number of the document each slot belongs to as an input; -1 in padding.
        positions_BL: place in the document, or in what the row holds of it.
    """

    tokens_BL: Indices
    mask_BL: NDArray[np.bool_]
    document_BL: Indices
    positions_BL: Indices

    def batch(self, index: ArrayLike) -> Batch:
        """As tensors, int64 and bool, with the global index [B] of each row."""
        import torch

        return {
            "tokens": torch.from_numpy(self.tokens_BL),
            "mask": torch.from_numpy(self.mask_BL),
            "document": torch.from_numpy(self.document_BL),
            "positions": torch.from_numpy(self.positions_BL),
            "index": torch.from_numpy(np.array(index, dtype=np.int64)),
        }


def together(batches: Sequence[Batch], places: Sequence[Indices]) -> Batch:
    """Batches as one: row i of each goes to its i-th place; what not all of them have is left out."""
    import torch

    back = torch.from_numpy(np.argsort(np.concatenate(places)))
    names = [name for name in batches[0] if all(name in batch for batch in batches)]
    return {name: torch.cat([batch[name] for batch in batches])[back] for name in names}


class StreamRows:
    """Windows over all documents in a row: item i holds the targets from i x L on, moved by the epoch's phase.

    Nothing is lost: the text is a ring, every token is a target once an epoch (up to L - 1 of them twice).

    Attributes:
        size: rows in an epoch.
    """

    def __init__(self, reader: ShardReader, length: int) -> None:
        check_length(reader.tokens, length)
        self.reader, self.length = reader, length
        self.size = -(-reader.tokens // length)
        again = reader.ends[: np.searchsorted(reader.ends, length + 1, side="right")]
        self.ring_ends = np.concatenate([reader.ends, again + reader.tokens])

    def rows(self, items: ArrayLike, phases: ArrayLike) -> Rows:
        """The rows of `items` [B], each begun `phases` [B] tokens later than in phase 0."""
        start_B = (np.asarray(items) * self.length + np.asarray(phases)) % self.reader.tokens
        tokens_BL = self.reader.windows(start_B, self.length + 1).astype(np.int64)
        low_B = np.searchsorted(self.ring_ends, start_B + 1, side="right")
        high_B = np.searchsorted(self.ring_ends, start_B + self.length + 1, side="right")
        parts_B = 1 + high_B - low_B
        row_S = np.repeat(np.arange(len(start_B)), parts_B)
        nth_S = np.arange(len(row_S)) - np.repeat(np.cumsum(parts_B) - parts_B, parts_B)
        document_S = low_B[row_S] + nth_S
        slot_S = np.where(nth_S == 0, 0, self.ring_ends[document_S - 1] - 1 - start_B[row_S])
        document_BL, positions_BL = _spread(row_S, slot_S, document_S, tokens_BL.shape)
        return Rows(tokens_BL, _all_but_first(tokens_BL.shape), document_BL, positions_BL)


class PackedRows:
    """Rows of whole documents, as a plan lays them out.

    Attributes:
        size: rows in an epoch.
    """

    def __init__(self, reader: ShardReader, length: int, plan: Plan) -> None:
        check_length(reader.tokens, length)
        self.reader, self.length, self.plan = reader, length, plan
        self.size = plan.rows

    def rows(self, items: ArrayLike, phases: ArrayLike = 0) -> Rows:
        """The rows of `items` [B]; a packed row has no phase."""
        item_B = np.asarray(items)
        plan, slots = self.plan, self.length + 1
        first_B = plan.firsts[item_B]
        runs_B = plan.firsts[item_B + 1] - first_B
        row_S = np.repeat(np.arange(len(item_B)), runs_B)
        run_S = np.arange(len(row_S)) + np.repeat(first_B - (np.cumsum(runs_B) - runs_B), runs_B)
        target_S, context_S = plan.target[run_S], plan.context[run_S]
        slots_S = plan.targets[run_S] + context_S
        before_S = np.cumsum(slots_S) - slots_S
        slot_S = before_S - before_S[np.cumsum(runs_B) - runs_B][row_S]
        place_N = np.arange(int(slots_S.sum()))
        tokens_N = self.reader.gather(place_N + np.repeat(target_S - context_S - before_S, slots_S))
        there_N = place_N + np.repeat(row_S * slots + slot_S - before_S, slots_S)
        tokens_BL = np.full((len(item_B), slots), self.reader.eot, dtype=np.int64)
        mask_BL = np.zeros(tokens_BL.shape, dtype=bool)
        tokens_BL.reshape(-1)[there_N] = tokens_N
        mask_BL.reshape(-1)[there_N] = True
        mask_BL[row_S, slot_S] &= context_S == 0
        # A run without a context slot begins at the document end before it.
        begin_S = slot_S - (1 - context_S)
        document_S = self.reader.document_of(target_S)
        used_B = np.add.reduceat(slots_S, np.cumsum(runs_B) - runs_B)
        short = np.flatnonzero(used_B < slots)
        row_S = np.concatenate([row_S, short])
        order = np.argsort(row_S, kind="stable")
        begin_S = np.concatenate([begin_S, used_B[short]])[order]
        document_S = np.concatenate([document_S, np.full(len(short), -1)])[order]
        document_BL, positions_BL = _spread(row_S[order], begin_S, document_S, tokens_BL.shape)
        return Rows(tokens_BL, mask_BL, document_BL, positions_BL)


class Windows:
    """Windows without overlap over a text, every token of which is the target of exactly one slot.

    The first token of each document is predicted from the document end before it, the text's first one from a document
    end put before it; the last window is padded.

    Args:
        tokens: ids [tokens] of documents, each closed by the document end.
        eot: id of the document end.
        length: targets in a window, L.
        token_lengths: bytes of each id [vocabulary] (`Tokenizer.lengths`).

    Attributes:
        bytes: bytes of the text; the summed nats / (ln 2 x bytes) are the bits per byte.
    """

    def __init__(self, tokens: ArrayLike, eot: int, length: int, token_lengths: NDArray[np.int64]) -> None:
        self.tokens, self.eot, self.length = np.asarray(tokens), eot, length
        if length < 1 or not len(self.tokens):
            raise ConfigError(
                "Nothing can be scored", f"{len(self.tokens)} tokens in windows of {length}", "Give a text"
            )
        self.bytes = int(token_lengths[self.tokens].sum())
        self.ends = np.flatnonzero(self.tokens == eot) + 1
        self.documents = len(self.ends) + int(self.tokens[-1] != eot)

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    def rows(self, windows: ArrayLike) -> Rows:
        """The windows of these numbers [B]."""
        place_BL = np.asarray(windows)[:, None] * self.length + np.arange(-1, self.length)
        valid_BL = place_BL < len(self.tokens)
        tokens_BL = self.tokens[np.clip(place_BL, 0, len(self.tokens) - 1)].astype(np.int64)
        tokens_BL[(place_BL < 0) | ~valid_BL] = self.eot
        document_BL = np.searchsorted(self.ends, place_BL + 1, side="right")
        document_BL[~valid_BL] = -1
        slot_L = np.arange(self.length + 1)
        fresh_BL = np.diff(document_BL, axis=1, prepend=-2) != 0
        positions_BL = slot_L - np.maximum.accumulate(np.where(fresh_BL, slot_L, 0), axis=1)
        return Rows(tokens_BL, valid_BL & (slot_L > 0), document_BL, positions_BL)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every window once, in order; `index` is the window's number."""
        for first in range(0, len(self), batch_size):
            windows = np.arange(first, min(first + batch_size, len(self)))
            yield self.rows(windows).batch(windows)


def check_length(tokens: int, length: int) -> None:
    """Raise ConfigError where the text is shorter than one row."""
    if length < 1:
        raise ConfigError(f"A context of {length} tokens is none", fix="Ask for 1 or more")
    if tokens < length + 1:
        raise ConfigError(
            f"A context of {length:,} tokens is longer than the text, which has {tokens:,}",
            fix=f"The longest context that works is {tokens - 1:,}" if tokens > 1 else "Give more text",
        )


def _spread(row_S: Indices, slot_S: Indices, document_S: Indices, shape: tuple[Any, ...]) -> tuple[Indices, Indices]:
    """Document and position of every slot [B, L+1] from the segments' rows, first slots and documents."""
    begin_S = row_S * shape[1] + slot_S
    slots_S = np.diff(begin_S, append=shape[0] * shape[1])
    document_BL = np.repeat(document_S, slots_S).reshape(shape)
    positions_BL = np.arange(shape[1]) - np.repeat(slot_S, slots_S).reshape(shape)
    return document_BL, positions_BL


def _all_but_first(shape: tuple[Any, ...]) -> NDArray[np.bool_]:
    mask_BL = np.ones(shape, dtype=bool)
    mask_BL[:, 0] = False
    return mask_BL


def batches(
    read: Callable[[ArrayLike], Batch], batch_size: int, step: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """This worker's part of the batch of every step from `step` on, without end, of what gives any samples [B]."""
    share = np.arange(rank, batch_size, world)
    while True:
        yield read(step * batch_size + share)
        step += 1
