"""One search: so many simulations in every tree, or as many as the effort allows, and what they say.

trees, rule -> [simulate] x n -> Planned(policy_BA, action_B, value_B, visits_BA, q_BA)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nomoat.core.domain import Guess
from nomoat.core.errors import ConfigError
from nomoat.games.rules import random_actions
from nomoat.search.selection import PUCT, Gumbel
from nomoat.search.tree import Trees

if TYPE_CHECKING:
    from nomoat.core.domain import Domain, States

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Effort:
    """How much one search may spend; what is reached first ends it, None is no limit.

    Args:
        evaluations: guesses or judgements of a network or a verifier.
        tokens: written by a model.
        nodes: states that were made.
        seconds: on the clock.
    """

    evaluations: int | None = None
    tokens: int | None = None
    nodes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [each for each in (self.evaluations, self.tokens, self.nodes, self.seconds) if each is not None]
        if not given or min(given) <= 0:
            raise ConfigError(
                "a search needs something to spend",
                f"evaluations {self.evaluations}, tokens {self.tokens}, nodes {self.nodes}, seconds {self.seconds}",
                "give at least one of them, above zero",
            )


@dataclass
class Usage:
    """What a search has spent, counted as it goes."""

    evaluations: int = 0
    tokens: int = 0
    nodes: int = 0
    seconds: float = 0.0

    def within(self, effort: Effort) -> bool:
        """Whether nothing is spent up."""
        names = ("evaluations", "tokens", "nodes", "seconds")
        return all(getattr(effort, name) is None or getattr(self, name) < getattr(effort, name) for name in names)


class Planned(NamedTuple):
    """What a search says of each tree's root.

    Args:
        policy_BA: float32, better than the one that it began with.
        action_B: the move.
        value_B: float32, the first player's: the mean of all visits, or the result where it is known.
        visits_BA: of each action.
        q_BA: the mover's mean value of each action that was visited, NaN of others.
        known_B: the first player's result, NaN where it is not known.
        simulations: that were made, in the tree that had most.
    """

    policy_BA: Array
    action_B: Array
    value_B: Array
    visits_BA: Array
    q_BA: Array
    known_B: Array
    simulations: int


def plan(
    trees: Trees,
    rule: Gumbel | PUCT,
    simulations: int,
    noise: np.random.Generator | Array | None = None,
    seconds: float | None = None,
) -> Planned:
    """Search every tree from where it stands.

    Args:
        trees: with what was kept of earlier searches.
        rule: how edges are chosen.
        simulations: in each tree whose result is not known.
        noise: for exploration; None: none.
        seconds: after which no further simulation begins.

    Raises:
        ConfigError: fewer than no simulations.
    """
    if simulations < 0:
        raise ConfigError("simulations are at least 0", f"it is {simulations}")
    choosing, began, made = rule.begin(trees, simulations, noise), time.perf_counter(), 0
    for number in range(simulations):
        if (seconds is not None and time.perf_counter() - began > seconds) or not trees.simulate(choosing, number):
            break
        made += 1
    policy_BA, action_B = choosing.finish(trees)
    edges = trees.edges(trees.roots, np.arange(trees.count))
    sign_B = trees.sign[trees.roots]
    mean_B = ((edges.q * edges.visits).sum(1) + edges.value) / (1 + edges.total) * sign_B
    value_B = np.where(np.isnan(trees.result), mean_B, trees.result)
    q_BA = np.where((edges.visits > 0) | edges.known, edges.q, np.nan)
    return Planned(policy_BA, action_B, value_B, edges.visits, q_BA, trees.result.copy(), made)


def uniform(actions: int) -> Callable[[States], Guess]:
    """The value of one who knows nothing: all actions alike, and nobody ahead."""

    def guess(state_B: States) -> Guess:
        count = len(state_B)
        return Guess(np.zeros((count, actions), np.float32), np.zeros(count, np.float32))

    return guess


class Rollouts:
    """Guesses by playing on at random to the end (Coulom 2006): the mean result of `games` of them.

    Args:
        domain: whose states are played on.
        games: from each state.
        chance: from which moves are drawn.
    """

    def __init__(self, domain: Domain, games: int, chance: np.random.Generator) -> None:
        self.domain, self.games, self.chance = domain, games, chance

    def __call__(self, state_B: States) -> Guess:
        state = np.repeat(state_B, self.games, axis=0)
        result, alive = np.zeros(len(state), np.float32), np.arange(len(state))
        while len(alive):
            state[alive] = self.domain.step(state[alive], random_actions(self.domain, state[alive], self.chance))
            over, value = self.domain.outcome(state[alive])
            result[alive[over]] = value[over]
            alive = alive[~over]
        mean = result.reshape(len(state_B), self.games).mean(1)
        return Guess(np.zeros((len(state_B), self.domain.actions), np.float32), mean)
