"""Games in lock-step, a move at a time: each position is searched, the moves are made, what has ended is learned from.

    state_G -Trees, plan-> policy_GA, action_G -step-> ... over -> positions with the result; a new game takes its place

Playout-cap randomisation (Wu 2019, arXiv:1902.10565): a share of the searches is full, with noise, and its policies
are learned; the others are cheap, without noise, and only carry the game on. Where a search has proved the result of a
position, that is its value, whatever came later.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nomoat.core.errors import ConfigError
from nomoat.games.rules import random_actions
from nomoat.search.planning import Planned, plan
from nomoat.search.replay import Positions
from nomoat.search.selection import Gumbel
from nomoat.search.tree import Trees

if TYPE_CHECKING:
    from nomoat.core.domain import Value
    from nomoat.games.rules import Game

    Array = np.ndarray[Any, Any]

VARIETY_PLY = 8
"""Opening variety is counted at this ply, in games that came to it by moves of their own."""
FORKED = 2
"""Moves at random with which a game forks off, at most."""
BETWEEN = ("state", "length", "begun", "left", "astray")
"""What is known of each game that goes on: where it is, how many moves it has, how many came before its own, how many
are left of its opening, and what share of those is at random."""


@dataclass(frozen=True)
class Manner:
    """How games are played for learning.

    Args:
        simulations: of a full search.
        cheap: of a cheap one.
        full: share of the searches that are full.
        rule: how edges are chosen.
        openings: half of the games begin with 1 to so many moves that are not searched and not learned.
        astray: least share of such moves that are at random, each game having its own between this and 1; the others
            are the policy's first choices.
        forks: share of the games that go off from some position of the game before, by `FORKED` moves at random at
            most, so that more is learned than the lines that both sides have come to like (as some games of Wu 2019).
        mix: weight of the search's own value in what the value learns, beside how the game ended.
        noisy: moves of a game that full searches make with noise; later ones are the best that was found, so that games
            end as their positions deserve. None: all.
    """

    simulations: int = 32
    cheap: int = 8
    full: float = 0.5
    rule: Gumbel = Gumbel()
    openings: int = 6
    astray: float = 1.0
    forks: float = 0.0
    mix: float = 0.25
    noisy: int | None = None

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("full", "astray", "forks", "mix")}
        if wrong := [f"{name} is {share}" for name, share in shares.items() if not 0 <= share <= 1]:
            raise ConfigError("shares of how games are played lie in [0, 1]", ", ".join(wrong))
        if min(self.simulations, self.cheap) < 1 or self.openings < 0:
            raise ConfigError(
                "a search has at least one simulation, an opening no fewer than no moves",
                f"simulations {self.simulations}, cheap {self.cheap}, openings {self.openings}",
            )


@dataclass
class Health:
    """What tells whether play is sound, counted over games that have ended."""

    games: int = 0
    plies: int = 0
    first: int = 0
    drawn: int = 0
    entropy: float = 0.0
    policies: int = 0
    proved: int = 0
    mistaken: int = 0
    guesses: list[tuple[float, float]] = field(default_factory=list)
    openings: Counter[int] = field(default_factory=Counter)

    def told(self) -> dict[str, float]:
        """As numbers for the journal.

        `calibration` is the mean gap between values and results, by fifths of value; `mistakes` the share of proved
        positions in which the policy's first choice, before the search, is proved to be worse than another.
        """
        games, policies = max(1, self.games), max(1, self.policies)
        guessed = np.array(self.guesses or [(0.0, 0.0)])
        fifth = np.clip(((guessed[:, 0] + 1) * 2.5).astype(int), 0, 4)
        gaps = [
            abs(guessed[fifth == k].mean(0) @ (1, -1)) * (fifth == k).mean() for k in range(5) if (fifth == k).any()
        ]
        return {
            "games": self.games,
            "plies": self.plies / games,
            "first_wins": self.first / games,
            "draws": self.drawn / games,
            "policy_entropy": self.entropy / policies,
            "openings": len(self.openings) / max(1, sum(self.openings.values())),
            "proved": self.proved / policies,
            "mistakes": self.mistaken / max(1, self.proved),
            "calibration": float(sum(gaps)),
        }


class Table:
    """Games that are being played.

    Args:
        game: the rules.
        count: G, how many at once.
        manner: how.
        chance: for the first openings.
    """

    def __init__(self, game: Game, count: int, manner: Manner, chance: np.random.Generator) -> None:
        self.game, self.count, self.manner = game, count, manner
        shape = (count, game.plies)
        self.state = game.start(count)
        self.length, self.begun, self.left = (np.zeros(count, np.int64) for _ in range(3))
        self.astray = np.zeros(count, np.float32)
        self.states = np.zeros(shape, self.state.dtype)
        self.policies = np.zeros((*shape, game.actions), np.float32)
        self.masks, self.values, self.known = (np.zeros(shape, np.float32) for _ in range(3))
        self.health = Health()
        self._open(np.arange(count), chance)

    def play(self, value: Value, moves: int, chance: np.random.Generator) -> Positions:
        """Make so many moves in every game.

        Args:
            value: guesses of the one who plays both sides.
            moves: in each game.
            chance: for openings, noise, and which searches are full.

        Returns:
            the positions of the games that have ended.
        """
        done = [self._move(value, chance) for _ in range(moves)]
        return {name: np.concatenate([each[name] for each in done]) for name in done[0]}

    def kept(self) -> dict[str, Any]:
        """All that is needed to go on, as arrays."""
        most = int(self.length.max())
        names = ("states", "policies", "masks", "values", "known")
        arrays = {name: getattr(self, name)[:, :most] for name in names}
        return {**arrays, **{name: getattr(self, name) for name in BETWEEN}}

    def take(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` gave."""
        for name in ("states", "policies", "masks", "values", "known"):
            getattr(self, name)[:, : kept[name].shape[1]] = kept[name]
        for name in BETWEEN:
            setattr(self, name, kept[name])

    def _move(self, value: Value, chance: np.random.Generator) -> Positions:
        manner, rows = self.manner, np.arange(self.count)
        opening = self.left > 0
        full = chance.random(self.count) < manner.full
        noise = chance.gumbel(size=(self.count, self.game.actions)).astype(np.float32)
        if manner.noisy is not None:
            noise[self.length >= manner.noisy] = 0
        policy = np.zeros((self.count, self.game.actions), np.float32)
        action = np.zeros(self.count, np.int64)
        root, known = np.zeros(self.count, np.float32), np.zeros(self.count, np.float32)
        action[opening] = self._astray(value, np.flatnonzero(opening), chance)
        for noisy, chosen, simulations in (
            (True, full & ~opening, manner.simulations),
            (False, ~full & ~opening, manner.cheap),
        ):
            if not chosen.any():
                continue
            trees = Trees(self.game, self.state[chosen], value, simulations + 1)
            planned = plan(trees, manner.rule, simulations, noise[chosen] if noisy else None)
            policy[chosen], action[chosen] = planned.policy_BA, planned.action_B
            root[chosen], known[chosen] = planned.value_B, planned.known_B
            self._count(trees, planned)
        self.states[rows, self.length], self.policies[rows, self.length] = self.state, policy
        # Where the mover has lost whatever he does, there is no policy to learn.
        lost = known * (1 - 2 * self.game.mover(self.state)) == -1
        self.masks[rows, self.length], self.values[rows, self.length] = full & ~lost & ~opening, root
        self.known[rows, self.length] = known
        opened = self.state[(self.length == VARIETY_PLY) & (self.begun < VARIETY_PLY)]
        self.health.openings.update(self.game.key(opened).tolist())
        after = self.game.step(self.state, action)
        over, result = self.game.outcome(after)
        early = opening & over  # an opening ends before the move that would end the game
        self.state = np.where(early, self.state, after)
        self.length += ~early
        self.left = np.where(early, 0, np.maximum(0, self.left - 1))
        self.begun = np.where(opening, self.length, self.begun)
        return self._ended(np.flatnonzero(over & ~early), result, chance)

    def _astray(self, value: Value, rows: Array, chance: np.random.Generator) -> Array:
        """The next moves of openings: at random, or what the policy likes best."""
        state = self.state[rows]
        if not len(rows):
            return np.zeros(0, np.int64)
        liked = np.where(self.game.legal(state), value(state).logits_BA, -np.inf).argmax(1)
        return np.where(chance.random(len(rows)) < self.astray[rows], random_actions(self.game, state, chance), liked)

    def _ended(self, over: Array, result: Array, chance: np.random.Generator) -> Positions:
        """What is learned from games that have ended; others begin in their places."""
        plies = np.arange(self.game.plies)
        played = (plies >= self.begun[over, None]) & (plies < self.length[over, None])
        mix, game, ply = self.manner.mix, *np.nonzero(played)
        at = (over[game], ply)
        ended, root, known = result[at[0]], self.values[at], self.known[at]
        value = np.where(np.isnan(known), (1 - mix) * ended + mix * root, known).astype(np.float32)
        positions = {
            "state": self.states[at],
            "policy": self.policies[at],
            "policy_mask": self.masks[at],
            "value": value,
        }
        health = self.health
        health.games, health.plies = health.games + len(over), health.plies + int(self.length[over].sum())
        health.first += int((result[over] > 0).sum())
        health.drawn += int((result[over] == 0).sum())
        guessed = np.isnan(known)
        health.guesses += list(zip(root[guessed].tolist(), ended[guessed].tolist(), strict=True))
        self._open(over, chance)
        return positions

    def _count(self, trees: Trees, planned: Planned) -> None:
        """Note what the health panel shows of some searches."""
        health, policy, proved = self.health, planned.policy_BA, ~np.isnan(planned.known_B)
        health.entropy -= float((policy * np.log(np.maximum(policy, 1e-9))).sum())
        health.policies, health.proved = health.policies + len(policy), health.proved + int(proved.sum())
        edges = trees.edges(trees.roots, np.arange(trees.count))
        first = edges.prior.argmax(1)
        at = np.arange(len(first))
        health.mistaken += int((proved & edges.known[at, first] & ~edges.best_known[at, first]).sum())

    def _open(self, games: Array, chance: np.random.Generator) -> None:
        """New games in these places, half of them with an opening; or what forks off from those there.

        What comes before a game's own moves stays in its row, so that what forks off from a fork may do so anywhere in
        the line that led to it: else games would begin later and later.
        """
        if not len(games):
            return
        manner, most = self.manner, self.manner.openings
        left = chance.integers(1, most + 1, len(games)) if most else np.zeros(len(games), int)
        left *= chance.random(len(games)) < 0.5
        astray = chance.uniform(manner.astray, 1, len(games)).astype(np.float32)
        ply, state = np.zeros(len(games), np.int64), self.game.start(len(games))
        if manner.forks:
            forked = (chance.random(len(games)) < manner.forks) & (self.length[games] > 0)
            ply = np.where(forked, chance.random(len(games)) * self.length[games], 0).astype(np.int64)
            state[forked] = self.states[games, ply][forked]
            left[forked], astray[forked] = chance.integers(1, FORKED + 1, int(forked.sum())), 1
        self.state[games], self.left[games], self.astray[games] = state, left, astray
        self.length[games] = self.begun[games] = ply
