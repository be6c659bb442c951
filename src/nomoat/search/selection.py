"""Which edge a simulation takes, and what a finished search says: Gumbel AlphaZero and PUCT.

    Trees -simulate by a rule-> visits, q -> policy_BA (what the network should have said), action_B, value_B

Gumbel: Danihelka et al. 2022 (ICLR, "Policy improvement by planning with Gumbel"). At the root, actions drawn without
replacement by their noise are halved in rounds; below it, visits follow the improved policy without chance. PUCT:
Silver et al. 2017, with noise at the root; unvisited edges are worth what the node is (its mean), less a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil, log2
from typing import TYPE_CHECKING, Any

import numpy as np

from nomoat.core.errors import ConfigError
from nomoat.search.tree import Edges, Trees

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

LOW = np.float32(-1e30)


@dataclass(frozen=True)
class Gumbel:
    """Few simulations, spent well: the policy is improved whatever their number.

    Args:
        considered: actions that are tried at the root, at most.
        visit: what one visit of the most visited edge adds to how strongly q counts against the logits.
        scale: the strength itself, for q in [-1, 1].
    """

    considered: int = 16
    visit: float = 50.0
    scale: float = 0.25

    def __post_init__(self) -> None:
        if self.considered < 1 or self.visit < 0 or self.scale <= 0:
            raise ConfigError(
                f"considered {self.considered}, visit {self.visit} and scale {self.scale} cannot be",
                "considered is at least 1, visit at least 0, scale above 0",
            )

    def begin(self, trees: Trees, simulations: int, noise: np.random.Generator | Array | None) -> Gumbels:
        """The rule of one search.

        Args:
            trees: what is searched.
            simulations: how many there will be.
            noise: from which Gumbel noise is drawn, or the noise itself [B, A]; None: play as well as can be.
        """
        shape = (trees.count, trees.domain.actions)
        if noise is None:
            gumbel_BA: Any = np.zeros(shape, np.float32)
        else:
            gumbel_BA = noise.gumbel(size=shape) if isinstance(noise, np.random.Generator) else noise
        return Gumbels(self, trees, simulations, np.asarray(gumbel_BA, np.float32))

    def strength(self, edges: Edges) -> Array:
        """Sigma(q) [B, A], q of edges that were not visited being mixed from the node's value and theirs."""
        seen = (edges.visits > 0) | edges.known
        prior, q = edges.prior * seen, edges.q
        mass = prior.sum(1)
        mean = (prior * q).sum(1) / np.where(mass > 0, mass, 1)
        mixed = (edges.value + edges.total * mean) / (1 + edges.total)
        mixed = np.where(mass > 0, mixed, edges.value)
        most = edges.visits.max(1, keepdims=True)
        return (self.visit + most) * np.float32(self.scale) * np.where(seen, q, mixed[:, None])

    def improved(self, edges: Edges) -> Array:
        """The improved policy [B, A]: softmax of logits + sigma(q) over what is open."""
        score = np.where(edges.open, edges.logits + self.strength(edges), LOW)
        policy = np.exp(score - score.max(1, keepdims=True))
        return policy / policy.sum(1, keepdims=True)


class Gumbels:
    """The rule of one search of `Gumbel`; see there."""

    def __init__(self, config: Gumbel, trees: Trees, simulations: int, gumbel_BA: Array) -> None:
        self.config, self.gumbel_BA = config, gumbel_BA
        self.before_BA = trees.visits[trees.roots]
        """Visits that the roots had already, where subtrees were kept."""
        most = min(config.considered, trees.domain.actions)
        self.wanted = np.array([halving(number, simulations) for number in range(most + 1)])

    def below(self, edges: Edges) -> Array:
        """Where visits are furthest behind the improved policy."""
        behind = self.config.improved(edges) - edges.visits / (1 + edges.total)[:, None]
        return np.where(edges.open, behind, LOW).argmax(1)

    def root(self, edges: Edges, simulation: int) -> Array:
        """The best among those that had as many visits in this search as the round wants."""
        fresh = edges.visits - self.before_BA[edges.numbers]
        counts = np.minimum(edges.open.sum(1), len(self.wanted) - 1)
        wanted = self.wanted[counts, min(simulation, self.wanted.shape[1] - 1)]
        score = self._score(edges)
        in_turn = edges.open & (fresh == wanted[:, None])
        # Results that became known have upset the rounds: the least visited are next.
        upset = ~in_turn.any(1, keepdims=True)
        least = np.where(edges.open, fresh, np.inf).min(1, keepdims=True)
        in_turn |= upset & edges.open & (fresh == least)
        return np.where(in_turn, score, LOW).argmax(1)

    def finish(self, trees: Trees) -> tuple[Array, Array]:
        """The improved policy [B, A], and the action [B]: the best of those visited most."""
        edges, settled = trees.edges(trees.roots, np.arange(trees.count)), ~np.isnan(trees.result)
        fresh = np.where(edges.open, edges.visits - self.before_BA, -1)
        best = np.where(settled[:, None], edges.best_known, fresh == fresh.max(1, keepdims=True))
        policy_BA = self.config.improved(edges)
        policy_BA[settled] *= best[settled]
        policy_BA /= policy_BA.sum(1, keepdims=True)
        return policy_BA, np.where(best, self._score(edges), LOW).argmax(1)

    def _score(self, edges: Edges) -> Array:
        return self.gumbel_BA[edges.numbers] + edges.logits + self.config.strength(edges)


@cache
def halving(actions: int, simulations: int) -> tuple[int, ...]:
    """Sequential halving: how many visits the action has that each simulation goes to.

    Args:
        actions: that are considered.
        simulations: in all.
    """
    visits, left, wanted = [0] * max(1, actions), max(1, actions), list[int]()
    rounds = max(1, ceil(log2(left)))
    while len(wanted) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            wanted += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(min(2, left), left // 2)
    return tuple(wanted[: max(1, simulations)])


@dataclass(frozen=True)
class PUCT:
    """AlphaZero's rule.

    Args:
        c: how much the prior counts.
        first: what an edge that was not visited is worth less than its node.
        noise: Dirichlet's alpha at the root, where noise is asked for; 0: 10 / legal actions.
        share: of the noise in the root's prior.
        temperature: of the action at the end, where noise is asked for: drawn by visits ^ (1 / temperature).
    """

    c: float = 1.5
    first: float = 0.2
    noise: float = 0.0
    share: float = 0.25
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.c <= 0 or self.noise < 0 or not 0 <= self.share <= 1 or self.temperature < 0:
            raise ConfigError(
                f"c {self.c}, noise {self.noise}, share {self.share} and temperature {self.temperature} cannot be",
                "c is above 0, noise and temperature at least 0, share in [0, 1]",
            )

    def begin(self, trees: Trees, simulations: int, noise: np.random.Generator | Array | None) -> PUCTs:
        """The rule of one search.

        Args:
            trees: what is searched.
            simulations: how many there will be.
            noise: from which the roots' noise and the moves are drawn; None: play as well as can be.
        """
        if isinstance(noise, np.ndarray):
            raise ConfigError("PUCT draws its own noise", "it was given an array", "give it a random generator")
        return PUCTs(self, trees, noise)


class PUCTs:
    """The rule of one search of `PUCT`; see there."""

    def __init__(self, config: PUCT, trees: Trees, chance: np.random.Generator | None) -> None:
        self.config, self.chance = config, chance
        legal = trees.legal[trees.roots]
        self.prior_BA = trees.prior[trees.roots]
        if chance is not None and config.share:
            alpha = np.where(legal, config.noise or 10 / legal.sum(1, keepdims=True), 0)
            drawn = chance.standard_gamma(np.maximum(alpha, 1e-3)) * legal + 1e-9 * legal
            drawn /= drawn.sum(1, keepdims=True)
            self.prior_BA = ((1 - config.share) * self.prior_BA + config.share * drawn).astype(np.float32)

    def below(self, edges: Edges) -> Array:
        """The largest q + u."""
        return self._best(edges, edges.prior)

    def root(self, edges: Edges, simulation: int) -> Array:
        """The same, with noise in the prior."""
        return self._best(edges, self.prior_BA[edges.numbers])

    def finish(self, trees: Trees) -> tuple[Array, Array]:
        """Shares of the visits [B, A], and the action [B]: the most visited, or drawn where there is noise."""
        edges, settled = trees.edges(trees.roots, np.arange(trees.count)), ~np.isnan(trees.result)
        counts = np.where(edges.open, edges.visits, 0).astype(np.float64)
        counts = np.where(settled[:, None], edges.best_known * (1 + counts), counts)
        idle = counts.sum(1, keepdims=True) == 0
        counts = np.where(idle, edges.prior * edges.open + 1e-9 * edges.open, counts)
        policy = counts / counts.sum(1, keepdims=True)
        if self.chance is None or not self.config.temperature:
            return policy.astype(np.float32), (policy + 1e-6 * edges.prior).argmax(1)
        heated = policy ** (1 / self.config.temperature)
        edge_BA = np.cumsum(heated / heated.sum(1, keepdims=True), 1)
        drawn = (self.chance.random((trees.count, 1)) >= edge_BA).sum(1)
        return policy.astype(np.float32), np.minimum(drawn, trees.domain.actions - 1)

    def _best(self, edges: Edges, prior: Array) -> Array:
        seen = (edges.visits > 0) | edges.known
        total = edges.total
        mean = ((edges.q * edges.visits).sum(1) + edges.value) / (1 + total)
        q = np.where(seen, edges.q, (mean - np.float32(self.config.first))[:, None])
        u = np.float32(self.config.c) * prior * np.sqrt(1 + total)[:, None] / (1 + edges.visits)
        return np.where(edges.open, q + u, LOW).argmax(1)
