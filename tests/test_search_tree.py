"""The batched trees against slow ones of their own, node by node; proofs, kept subtrees, what a search says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from worlds import World

from nomoat.core.errors import ConfigError
from nomoat.search.planning import Effort, Rollouts, Usage, plan, uniform
from nomoat.search.selection import LOW, PUCT, Gumbel, halving
from nomoat.search.tree import Trees

F = np.float32
WORLDS = {
    "two players": World(),
    "one player": World(players=1),
    "graded": World(graded=True, depth=8),
    "bandit": World(players=1, depth=1, actions=6, graded=True),
    "deep and wide": World(actions=9, depth=12, ends=0.02),
}
RULES: dict[str, Any] = {"gumbel": Gumbel(), "few": Gumbel(considered=3, visit=5, scale=1.0), "puct": PUCT()}


class Node:
    """One node of the slow tree."""

    def __init__(self, world: World, state: np.ndarray) -> None:
        self.state = state
        self.legal = world.legal(state)[0]
        logits, value = world.guess(state)
        self.logits = np.where(self.legal, logits[0], -np.inf).astype(F)
        self.prior = np.exp(self.logits - self.logits.max())
        self.prior /= self.prior.sum()
        self.sign = F(1 - 2 * int(world.mover(state)[0]))
        self.guess = value[0]
        self.visits, self.sum = np.zeros(world.actions, F), np.zeros(world.actions, F)
        self.known: dict[int, F] = {}  # action -> the mover's result
        self.children: dict[int, Node] = {}

    def q(self) -> np.ndarray:
        q = self.sum / np.maximum(self.visits, 1)
        for action, known in self.known.items():
            q[action] = known
        return q

    def seen(self) -> np.ndarray:
        known = np.array([action in self.known for action in range(len(self.visits))])
        return (self.visits > 0) | known

    def open(self, solve: bool) -> np.ndarray:
        lost = np.array([solve and self.known.get(action, F(0)) <= -1 for action in range(len(self.visits))])
        hopeful = self.legal & ~lost
        return hopeful if hopeful.any() else self.legal


class Slow:
    """One tree, an object a node, as the papers tell it."""

    def __init__(self, world: World, state: np.ndarray, rule: Any, solve: bool, gumbel: np.ndarray) -> None:
        self.world, self.rule, self.solve, self.gumbel = world, rule, solve, gumbel
        self.root = Node(world, state)
        self.result: F | None = None
        self.before = np.zeros(world.actions, F)

    def strength(self, node: Node) -> np.ndarray:
        seen, q, value = node.seen(), node.q(), node.guess * node.sign
        total = node.visits.sum()
        if (mass := (node.prior * seen).sum()) > 0:
            value = (value + total * ((node.prior * seen * q).sum() / mass)) / (1 + total)
        return (self.rule.visit + node.visits.max()) * F(self.rule.scale) * np.where(seen, q, value)

    def improved(self, node: Node) -> np.ndarray:
        score = np.where(node.open(self.solve), node.logits + self.strength(node), LOW)
        policy = np.exp(score - score.max())
        return policy / policy.sum()

    def choose(self, node: Node, simulation: int) -> int:
        opened, total = node.open(self.solve), node.visits.sum()
        if isinstance(self.rule, PUCT):
            mean = ((node.q() * node.visits).sum() + node.guess * node.sign) / (1 + total)
            q = np.where(node.seen(), node.q(), mean - F(self.rule.first))
            score = q + F(self.rule.c) * node.prior * np.sqrt(1 + total) / (1 + node.visits)
            return int(np.where(opened, score, LOW).argmax())
        if node is not self.root:
            return int(np.where(opened, self.improved(node) - node.visits / (1 + total), LOW).argmax())
        fresh = node.visits - self.before
        wanted = halving(min(self.rule.considered, self.world.actions, int(opened.sum())), self.simulations)
        turn = opened & (fresh == wanted[simulation])
        if not turn.any():
            turn = opened & (fresh == fresh[opened].min())
        return int(np.where(turn, self.gumbel + node.logits + self.strength(node), LOW).argmax())

    def down(self, node: Node, simulation: int) -> tuple[F, F | None]:
        """The first player's value of one simulation from here, and his result, if this node's is known now."""
        action = self.choose(node, simulation)
        value, known = F(0), None
        if action in node.known:
            value = known = node.known[action] * node.sign
        elif action in node.children:
            value, known = self.down(node.children[action], simulation)
        else:
            state = self.world.step(node.state, np.array([action]))
            over, result = self.world.outcome(state)
            if over[0]:
                value = known = result[0]
            else:
                node.children[action] = Node(self.world, state)
                value = node.children[action].guess
        if known is not None:
            value = known
            node.known[action] = known * node.sign
        node.visits[action] += 1
        node.sum[action] += value * node.sign
        if known is None or not self.solve:
            return value, None
        best = max(node.known.values())
        settled = best >= 1 or all(a in node.known for a in np.flatnonzero(node.legal))
        return value, best * node.sign if settled else None

    def run(self, simulations: int) -> None:
        self.simulations = simulations
        for simulation in range(simulations):
            if self.result is None:
                _, self.result = self.down(self.root, simulation)


def same(trees: Trees, number: int, row: int, node: Node) -> int:
    """Assert that a node and all below it are the slow tree's; how many there are."""
    at = number * trees.width + row
    assert trees.state[at] == node.state[0]
    np.testing.assert_array_equal(trees.visits[at], node.visits)
    np.testing.assert_array_equal(trees.sum[at], node.sum)
    known = np.array([node.known.get(action, np.nan) for action in range(len(node.visits))], F)
    np.testing.assert_array_equal(trees.known[at], known)
    assert set(np.flatnonzero(trees.child[at] >= 0)) == set(node.children)
    below = [(trees.child[at, action], child) for action, child in node.children.items()]
    for child_row, child in below:
        assert trees.parent[number * trees.width + child_row] == row
        # A node was made by one visit, and each visit after that went on below it, until its result was known.
        action = trees.by[number * trees.width + child_row]
        if action not in node.known:
            assert node.visits[action] == child.visits.sum() + 1
    return 1 + sum(same(trees, number, child_row, child) for child_row, child in below)


@pytest.mark.parametrize("solve", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WORLDS)
def test_the_batched_trees_are_the_slow_ones_node_by_node(name: str, rule: str, solve: bool) -> None:
    world, count, simulations = WORLDS[name], 12, 40
    state = world.start(count, seed=len(name))
    noise = np.random.default_rng(1).gumbel(size=(count, world.actions)).astype(F)
    trees = Trees(world, state, world.guess, capacity=8, solve=solve)  # grows on the way
    planned = plan(trees, RULES[rule], simulations, None if rule == "puct" else noise)
    for number in range(count):
        slow = Slow(world, state[number : number + 1], RULES[rule], solve, noise[number])
        slow.run(simulations)
        assert same(trees, number, 0, slow.root) == trees.nodes[number]
        assert (slow.result is None) == np.isnan(planned.known_B[number])
        if slow.result is not None:
            assert slow.result == planned.known_B[number]
        if rule != "puct":
            policy = slow.improved(slow.root)
            if slow.result is not None:  # the best of what is known alone
                known = slow.root.known
                policy *= [known.get(a, F(-9)) == max(known.values()) for a in range(world.actions)]
            np.testing.assert_allclose(planned.policy_BA[number], policy / policy.sum(), rtol=1e-6)
    illegal = ~trees.legal[trees.roots]
    assert not planned.visits_BA[illegal].any()
    assert not planned.policy_BA[illegal].any()
    assert not illegal[np.arange(count), planned.action_B].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["two players", "deep and wide", "one player"])
def test_a_kept_subtree_is_the_tree_below_the_move(name: str, rule: str) -> None:
    world, count = WORLDS[name], 12
    state = world.start(count, seed=3)
    trees = Trees(world, state, world.guess, capacity=8)
    slows = [Slow(world, state[n : n + 1], RULES[rule], True, np.zeros(world.actions, F)) for n in range(count)]
    alive = np.ones(count, bool)
    for simulations in (30, 12, 25):
        planned = plan(trees, RULES[rule], simulations)
        after = world.step(trees.state[trees.roots], planned.action_B)
        goes_on = alive & ~world.outcome(after).over_B
        new = world.start(count, seed=4 + simulations)
        after = np.where(goes_on, after, new)
        for number, slow in enumerate(slows):
            slow.run(simulations)
            assert same(trees, number, 0, slow.root) == trees.nodes[number]
            child = slow.root.children.get(int(planned.action_B[number]))
            known = slow.root.known.get(int(planned.action_B[number]))
            slow.result = None
            if goes_on[number] and child is not None:
                slow.result = known if known is None else known * slow.root.sign
                slow.root, slow.before = child, child.visits.copy()
            else:
                slow.root, slow.before = Node(world, after[number : number + 1]), np.zeros(world.actions, F)
        trees.advance(planned.action_B, after)


@pytest.mark.parametrize("rule", [Gumbel(scale=0.02, visit=5), PUCT()], ids=["gumbel", "puct"])
@pytest.mark.parametrize("world", [World(depth=4), World(players=1, depth=4)], ids=["two players", "one player"])
def test_what_is_known_is_what_perfect_play_gives(world: World, rule: Any) -> None:
    state = world.start(24)
    planned = plan(Trees(world, state, world.guess), rule, 600)
    truth = np.array([world.minimax(state[n : n + 1]) for n in range(24)], F)
    known = ~np.isnan(planned.known_B)
    assert known.mean() > 0.8  # where a draw can be had, the rule need not look at the rest
    np.testing.assert_allclose(planned.known_B[known], truth[known])
    after = world.step(state, planned.action_B)
    got = np.array([world.minimax(after[n : n + 1]) for n in np.flatnonzero(known)], F)
    np.testing.assert_allclose(got, truth[known])


def test_a_gumbel_search_makes_the_policy_better_whatever_its_size() -> None:
    world = World(players=1, depth=1, actions=8, graded=True)
    state = world.start(2000)
    after = [world.outcome(world.step(state, np.full(2000, action))).value_B for action in range(8)]
    legal, q = world.legal(state), np.stack(after, 1)
    prior = Trees(world, state, world.guess).prior[np.arange(2000) * 64]
    before = (prior * np.where(legal, q, 0)).sum(1)
    gains = []
    for simulations in (1, 2, 4, 16):
        trees = Trees(world, state, world.guess)
        policy = plan(trees, Gumbel(scale=1.0, visit=20), simulations, np.random.default_rng(0)).policy_BA
        gains.append(float(((policy * np.where(legal, q, 0)).sum(1) - before).mean()))
    assert gains[0] > 0
    assert gains == sorted(gains)
    assert gains[-1] > 0.3


def test_the_same_noise_gives_the_same_tree_and_other_noise_another() -> None:
    world = WORLDS["deep and wide"]
    state = world.start(16)
    first, again, other = (
        plan(Trees(world, state, world.guess), Gumbel(), 20, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.visits_BA, again.visits_BA)
    assert (first.visits_BA != other.visits_BA).any()
    drawn = plan(Trees(world, state, world.guess), PUCT(), 20, np.random.default_rng(5))
    plain = plan(Trees(world, state, world.guess), PUCT(), 20)
    assert (drawn.visits_BA != plain.visits_BA).any()


def test_trees_do_not_depend_on_each_other() -> None:
    world = WORLDS["deep and wide"]
    state = world.start(12)
    whole = plan(Trees(world, state, world.guess), Gumbel(), 30)
    for number in (0, 7):
        alone = plan(Trees(world, state[number : number + 1], world.guess), Gumbel(), 30)
        np.testing.assert_array_equal(alone.visits_BA[0], whole.visits_BA[number])


@pytest.mark.parametrize(("actions", "simulations"), [(1, 5), (2, 9), (7, 32), (16, 16), (5, 200), (3, 1)])
def test_halving_gives_each_round_its_share(actions: int, simulations: int) -> None:
    wanted = halving(actions, simulations)
    assert len(wanted) == simulations
    visits = [0] * actions
    for count in wanted:  # who has as many visits as is wanted gets the next; the first ones stay longest
        visits[visits.index(count)] += 1
    assert sum(visits) == simulations
    assert visits == sorted(visits, reverse=True)
    if simulations >= 2 * actions > 4:
        assert visits[0] > visits[-1] > 0


def test_playing_on_at_random_gives_the_mean_result() -> None:
    world = World(depth=3)

    def mean(state: np.ndarray) -> float:
        over, value = world.outcome(state)
        if over[0]:
            return float(value[0])
        legal = np.flatnonzero(world.legal(state)[0])
        return float(np.mean([mean(world.step(state, np.array([action]))) for action in legal]))

    state = world.start(10)
    guess = Rollouts(world, 1000, np.random.default_rng(0))(state).value_B
    np.testing.assert_allclose(guess, [mean(state[n : n + 1]) for n in range(10)], atol=0.12)


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(ConfigError, match="something to spend"):
        Effort()
    with pytest.raises(ConfigError, match="something to spend"):
        Effort(evaluations=0)
    with pytest.raises(ConfigError, match="at least 0"):
        plan(Trees(World(), World().start(1), World().guess), Gumbel(), -1)
    with pytest.raises(ConfigError, match="draws its own"):
        plan(Trees(World(), World().start(1), World().guess), PUCT(), 1, np.zeros((1, 4)))
    for broken in ({"considered": 0}, {"scale": 0.0}):
        with pytest.raises(ConfigError, match="cannot be"):
            Gumbel(**broken)
    with pytest.raises(ConfigError, match="cannot be"):
        PUCT(share=2)
    assert Usage(evaluations=3).within(Effort(evaluations=4))
    assert not Usage(evaluations=4).within(Effort(evaluations=4, seconds=9))


def test_a_search_without_simulations_says_what_the_policy_says() -> None:
    world = World()
    state = world.start(30)
    trees = Trees(world, state, uniform(4))
    planned = plan(trees, Gumbel(), 0)
    legal = world.legal(state)
    np.testing.assert_allclose(planned.policy_BA, legal / legal.sum(1, keepdims=True), rtol=1e-6)
    assert planned.simulations == 0
    assert np.isnan(planned.q_BA).all()
