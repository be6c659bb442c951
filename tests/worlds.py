"""Random worlds to search in: every state is a hash, from which all else follows. Used by the tests of search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nomoat.core.domain import Guess, Outcome

MIX = np.uint64(0x9E3779B97F4A7C15)


def mixed(x: np.ndarray, salt: int) -> np.ndarray:
    """A hash of 64 bits (splitmix64)."""
    with np.errstate(over="ignore"):
        x = (np.asarray(x, np.uint64) + np.uint64(salt + 1) * MIX).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def share(x: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) that follows from a hash."""
    return (mixed(x, salt) >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True)
class World:
    """A random game: who moves, what is legal, when it ends and who wins follow from the state's hash.

    Args:
        players: 1 or 2; of two, either moves, whatever was before.
        actions: of which about two thirds are legal.
        depth: after which every game has ended.
        ends: share of the states that are over before.
        graded: results lie anywhere in [-1, 1]; else they are -1, 0 or 1.
    """

    players: int = 2
    actions: int = 4
    depth: int = 6
    ends: float = 0.15
    graded: bool = False

    def start(self, count: int, seed: int = 0) -> np.ndarray:
        state = np.zeros(count, [("hash", "u8"), ("depth", "i4")])
        state["hash"] = mixed(np.arange(count) + 1000 * seed, 99)
        return state

    def mover(self, state: np.ndarray) -> np.ndarray:
        return (self.players > 1) * (share(state["hash"], 1) < 0.5).astype(np.int8)

    def legal(self, state: np.ndarray) -> np.ndarray:
        some = np.stack([share(state["hash"], 10 + action) < 0.67 for action in range(self.actions)], 1)
        some[np.arange(len(state)), mixed(state["hash"], 2) % np.uint64(self.actions)] = True
        return some & ~self.outcome(state).over_B[:, None]

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        after = state.copy()
        after["hash"] = mixed(state["hash"] ^ (np.asarray(action, np.uint64) << np.uint64(7)), 3)
        after["depth"] += 1
        return after

    def outcome(self, state: np.ndarray) -> Outcome:
        over = (state["depth"] >= self.depth) | ((state["depth"] > 0) & (share(state["hash"], 4) < self.ends))
        value = 2 * share(state["hash"], 5) - 1
        value = value if self.graded else np.round(1.5 * value).clip(-1, 1)
        return Outcome(over, np.where(over, value, 0).astype(np.float32))

    def key(self, state: np.ndarray) -> np.ndarray:
        return state["hash"]

    def guess(self, state: np.ndarray) -> Guess:
        logits = np.stack([4 * share(state["hash"], 20 + action) - 2 for action in range(self.actions)], 1)
        return Guess(logits.astype(np.float32), (1.6 * share(state["hash"], 6) - 0.8).astype(np.float32))

    def minimax(self, state: np.ndarray) -> float:
        """The first player's result under perfect play, by brute force; `state` [1]."""
        over, value = self.outcome(state)
        if over[0]:
            return float(value[0])
        after = [self.minimax(self.step(state, np.array([a]))) for a in np.flatnonzero(self.legal(state)[0])]
        return min(after) if self.mover(state)[0] else max(after)
