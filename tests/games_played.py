"""What tests of games share: games played at random, and rules written again, slowly and in another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def chosen(legal_BA: Any, rng: np.random.Generator, liking_BA: Any = 1.0) -> Any:
    """A legal action of each row by chance, the more likely the more it is liked."""
    return ((rng.random(legal_BA.shape) + 0.001) * liking_BA * legal_BA).argmax(1)


def random_play(game: Any, count: int, seed: int, liking_A: Any = 1.0) -> Iterator[tuple[Any, Any]]:
    """Each ply's states that are not over, with the actions that are taken then; games end one by one."""
    rng = np.random.default_rng(seed)
    state_B = game.start(count)
    while len(state_B):
        action_B = chosen(game.legal(state_B), rng, liking_A)
        yield state_B, action_B
        state_B = game.step(state_B, action_B)
        state_B = state_B[~game.outcome(state_B).over_B]


def some_states(game: Any, count: int, seed: int, most: int = 400) -> Any:
    """States that are not over from all parts of random games."""
    states = np.concatenate([state_B for state_B, _ in random_play(game, count, seed)])
    return states[np.random.default_rng(seed).permutation(len(states))[:most]]


def same(one: Any, other: Any) -> bool:
    """Whether states are equal in every part; objects: by their text and their history."""
    if one.dtype == object:
        return [(str(s), s.history()) for s in one] == [(str(s), s.history()) for s in other]
    return one.dtype == other.dtype and all(np.array_equal(one[name], other[name]) for name in one.dtype.names)


class SlowGo:
    """Go with a set of whole boards; points are (y, x), row 0 above."""

    def __init__(self, size: int, komi: float) -> None:
        self.size, self.komi = size, komi
        self.stones: dict[tuple[int, int], int] = {}
        self.seen = {frozenset(self.stones.items()): 0}
        self.mover, self.passes, self.plies = 0, 0, 0

    def beside(self, point: tuple[int, int]) -> list[tuple[int, int]]:
        y, x = point
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        return [(a, b) for a, b in near if 0 <= a < self.size and 0 <= b < self.size]

    def region(self, stones: dict, point: tuple[int, int]) -> tuple[set, set]:
        """The points of one kind that hang together with this one, and what lies around them."""
        kind, inside, around, open_ends = stones.get(point), {point}, set(), [point]
        while open_ends:
            for near in self.beside(open_ends.pop()):
                if stones.get(near) != kind:
                    around.add(near)
                elif near not in inside:
                    inside.add(near)
                    open_ends.append(near)
        return inside, around

    def after(self, point: tuple[int, int]) -> dict | None:
        """The stones after a move, or None: occupied, or suicide."""
        if point in self.stones:
            return None
        stones = {**self.stones, point: self.mover}
        for near in self.beside(point):
            if stones.get(near) == 1 - self.mover:
                group, around = self.region(stones, near)
                if all(edge in stones for edge in around):
                    stones = {place: colour for place, colour in stones.items() if place not in group}
        _, around = self.region(stones, point)
        return None if all(edge in stones for edge in around) else stones

    def legal(self) -> tuple[list[int], list[int], list[int]]:
        """The actions; those of them that take stones; how many plies ago was what superko forbids to bring back."""
        actions, taking, forbidden = [], [], []
        for action in range(self.size**2):
            stones = self.after(divmod(action, self.size))
            if stones is None:
                continue
            if (before := self.seen.get(frozenset(stones.items()))) is not None:
                forbidden.append(self.plies - before)
            else:
                actions.append(action)
                taking += [action] if len(stones) <= len(self.stones) else []
        return [*actions, self.size**2], taking, forbidden

    def play(self, action: int) -> None:
        self.passes = self.passes + 1 if action == self.size**2 else 0
        if action < self.size**2:
            stones = self.after(divmod(action, self.size))
            assert stones is not None
            self.stones = stones
        self.mover, self.plies = 1 - self.mover, self.plies + 1
        self.seen.setdefault(frozenset(self.stones.items()), self.plies)

    @property
    def over(self) -> bool:
        return self.passes == 2 or self.plies == 3 * self.size**2

    def value(self) -> float:
        lead = -self.komi
        for action in range(self.size**2):
            point = divmod(action, self.size)
            owners = {self.stones.get(point)}
            if owners == {None}:
                owners = {self.stones[edge] for edge in self.region(self.stones, point)[1]}
            lead += {(0,): 1, (1,): -1}.get(tuple(owners), 0)
        return float(np.sign(lead))


class SlowOthello:
    """Othello on a dictionary; points are (y, x), row 0 above."""

    def __init__(self, size: int) -> None:
        self.size, half = size, size // 2
        self.stones = {(half - 1, half - 1): 1, (half - 1, half): 0, (half, half - 1): 0, (half, half): 1}
        self.mover = 0

    def turns(self, point: tuple[int, int], mover: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        if point in self.stones:
            return found
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                line, (y, x) = [], (point[0] + down, point[1] + right)
                while (down or right) and self.stones.get((y, x)) == 1 - mover:
                    line.append((y, x))
                    y, x = y + down, x + right
                found += line if self.stones.get((y, x)) == mover else []
        return found

    def moves(self, mover: int) -> list[int]:
        return [action for action in range(self.size**2) if self.turns(divmod(action, self.size), mover)]

    def legal(self) -> list[int]:
        if self.over:
            return []
        return self.moves(self.mover) or [self.size**2]

    def play(self, action: int) -> None:
        if action < self.size**2:
            point = divmod(action, self.size)
            for turned in [*self.turns(point, self.mover), point]:
                self.stones[turned] = self.mover
        self.mover = 1 - self.mover

    @property
    def over(self) -> bool:
        return not self.moves(0) and not self.moves(1)

    def value(self) -> float:
        return float(np.sign(sum(1 - 2 * colour for colour in self.stones.values())))
