"""Guesses that were made are not made again, as long as the weights are the same.

    state_B -key-> slot -the same key there?-> Guess        else -unique-> Value -> into the slots

A table with one place for each slot: what comes later takes the place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nomoat.core.domain import Domain, Guess, Value

if TYPE_CHECKING:
    from nomoat.core.domain import States

    Array = np.ndarray[Any, Any]

MOST_BYTES = 1 << 26


class Cached:
    """A `Value` that remembers another's guesses.

    Args:
        domain: whose states have keys.
        value: which guesses.
        bits: there are 2^bits places; None: as many as fit into 64 MiB, 2^18 at most.
    """

    def __init__(self, domain: Domain, value: Value, bits: int | None = None) -> None:
        self.domain, self.value = domain, value
        size = 1 << (min(18, (MOST_BYTES // (4 * domain.actions + 12)).bit_length() - 1) if bits is None else bits)
        self.mask = np.uint64(size - 1)
        self.keys = np.arange(1, size + 1, dtype=np.uint64)  # none of them belongs in its slot: all are free
        self.logits = np.zeros((size, domain.actions), np.float32)
        self.values = np.zeros(size, np.float32)
        self.asked = self.missed = 0

    def __call__(self, state_B: States) -> Guess:
        """The guesses; those of new states are made in one call."""
        key_B = self.domain.key(state_B)
        slot_B = (key_B & self.mask).astype(np.int64)
        new = np.flatnonzero(self.keys[slot_B] != key_B)
        self.asked += len(key_B)
        logits_BA, value_B = self.logits[slot_B], self.values[slot_B]
        if len(new):
            _, first, again = np.unique(key_B[new], return_index=True, return_inverse=True)
            self.missed += len(first)
            guess = self.value(state_B[new[first]])
            logits_BA[new], value_B[new] = guess.logits_BA[again], guess.value_B[again]
            slots = slot_B[new[first]]
            self.keys[slots], self.logits[slots], self.values[slots] = key_B[new[first]], *guess
        return Guess(logits_BA, value_B)
