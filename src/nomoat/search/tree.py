"""Many search trees in lock-step, as arrays: each simulation goes down every tree once, and the leaves are one batch.

    state_B -plant-> roots -[go down by a rule -> step -> Value of the leaves -> go back up] x simulations-> visits, q
            -advance(action_B)-> the subtrees below the moves that were made, and on

Node n of tree b is row b * N + n of each array; edges have a second axis, the actions. An edge that ends the game has
no node: its result is known. With `solve`, what is known goes up: a node is won where one of its edges is, lost where
all are (MCTS-Solver: Winands et al. 2008). Edges' values are those of the node's mover, all others the first player's;
who moves is read from the states, so one side may move several times in a row. The layout is that of Danihelka et al.
2022 (ICLR, "Policy improvement by planning with Gumbel"), in NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nomoat.core.domain import Domain, Value

if TYPE_CHECKING:
    from nomoat.core.domain import States

Array = np.ndarray[Any, Any]

UNKNOWN = np.float32(np.nan)
ROOT = 0
KEPT = ("state", "sign", "guess", "legal", "logits", "prior", "visits", "sum", "known")
"""Arrays of nodes that stay as they are when nodes are renumbered."""


class Edges(NamedTuple):
    """All that a rule may look at of some nodes; shapes [B, A] but for the last three, [B].

    Args:
        legal: bool.
        logits: of the policy; -inf where not legal.
        prior: their softmax.
        visits: float32.
        q: the mean value of the mover, what is known where it is; 0 where there were no visits.
        known: bool: the result of the edge is known.
        lost: bool: it is known, and the mover has lost.
        value: the mover's own guess at the node.
        total: visits of all edges.
        numbers: of the trees.
    """

    legal: Array
    logits: Array
    prior: Array
    visits: Array
    q: Array
    known: Array
    lost: Array
    value: Array
    total: Array
    numbers: Array

    @property
    def open(self) -> Array:
        """Bool [B, A]: legal, and not lost unless all are."""
        hopeful = self.legal & ~self.lost
        return np.where(hopeful.any(1, keepdims=True), hopeful, self.legal)

    @property
    def best_known(self) -> Array:
        """Bool [B, A]: no known result of an action is better for the mover."""
        known = np.where(self.known & self.legal, self.q, -np.inf)
        return self.known & self.legal & (known == known.max(1, keepdims=True))


class Rule(Protocol):
    """How an edge is chosen on the way down: below the root, and at the root."""

    def below(self, edges: Edges) -> Array: ...
    def root(self, edges: Edges, simulation: int) -> Array: ...


class Trees:
    """See the module's first lines.

    Args:
        domain: what is searched.
        state_B: the roots' states; none of them over.
        value: guesses at nodes.
        capacity: nodes of a tree that there is room for at first; arrays grow where more are needed.
        solve: carry results that are known up the tree.
    """

    def __init__(self, domain: Domain, state_B: States, value: Value, capacity: int = 64, solve: bool = True) -> None:
        self.domain, self.value, self.solve = domain, value, solve
        self.count, self.width = len(state_B), max(2, capacity)
        rows, actions = self.count * self.width, domain.actions
        self.state = np.zeros((rows, *state_B.shape[1:]), state_B.dtype)
        self.sign, self.guess = np.ones(rows, np.float32), np.zeros(rows, np.float32)
        self.legal = np.zeros((rows, actions), bool)
        self.logits, self.prior = (np.zeros((rows, actions), np.float32) for _ in range(2))
        self.visits, self.sum = (np.zeros((rows, actions), np.float32) for _ in range(2))
        self.known = np.full((rows, actions), UNKNOWN)
        self.child = np.full((rows, actions), -1, np.int32)
        self.parent, self.by = (np.full(rows, -1, np.int32) for _ in range(2))
        self.nodes = np.zeros(self.count, np.int64)
        self.result = np.full(self.count, UNKNOWN)
        """Of the roots, where it is known."""
        self.evaluations = 0
        self.plant(np.arange(self.count), state_B)

    @property
    def roots(self) -> Array:
        """Rows of the roots."""
        return np.arange(self.count) * self.width

    def plant(self, numbers: Array, state_B: States) -> None:
        """Begin these trees anew from these states."""
        rows = (numbers[:, None] * self.width + np.arange(self.width)).ravel()
        self.parent[rows] = self.by[rows] = -1
        self.nodes[numbers], self.result[numbers] = 0, UNKNOWN
        self._add(numbers, state_B)

    def edges(self, rows: Array, numbers: Array) -> Edges:
        """What a rule looks at of some nodes."""
        visits, known = self.visits[rows], self.known[rows]
        is_known = ~np.isnan(known)
        q = self.sum[rows] / np.maximum(visits, 1)
        np.copyto(q, known, where=is_known)
        lost = is_known & (known <= -1) if self.solve else np.zeros_like(is_known)
        return Edges(
            self.legal[rows],
            self.logits[rows],
            self.prior[rows],
            visits,
            q,
            is_known,
            lost,
            self.guess[rows] * self.sign[rows],
            visits.sum(1),
            numbers,
        )

    def simulate(self, rule: Rule, simulation: int) -> int:
        """Go down each tree whose root's result is not known, and back up; how many did.

        Args:
            rule: chooses edges.
            simulation: its number in this search, from 0.
        """
        numbers = np.flatnonzero(np.isnan(self.result))
        if not len(numbers):
            return 0
        if int(self.nodes.max()) == self.width:
            self._grow()
        path, leaves, rows, actions = self._down(rule, simulation, numbers)
        value_B = np.zeros(self.count, np.float32)
        known_B = np.full(self.count, UNKNOWN)
        value_B[leaves], known_B[leaves] = self._leaf(leaves, rows, actions)
        self._up(path, value_B, known_B)
        return len(numbers)

    def advance(self, action_B: Array, state_B: States) -> None:
        """Make a move in each tree; what lies below it is kept.

        Args:
            action_B: the moves.
            state_B: the states after them; where one is not that of the kept root, its tree begins anew from it
                (another game).
        """
        roots = self.roots
        child_B = self.child[roots, action_B]
        same_B = child_B >= 0
        same_B[same_B] = self.domain.key(self.state[roots + child_B][same_B]) == self.domain.key(state_B[same_B])
        gone = np.flatnonzero(~same_B)
        kept = np.flatnonzero(same_B)
        if len(kept):
            self._keep(kept, child_B[kept])
        if len(gone):
            self.plant(gone, state_B[gone])

    def _down(self, rule: Rule, simulation: int, numbers: Array) -> tuple[list[Any], Array, Array, Array]:
        """The edges that were gone through, a step at a time (trees, rows, actions), and those that ended it."""
        path, ended = list[Any](), list[Any]()
        rows = numbers * self.width
        while len(numbers):
            edges = self.edges(rows, numbers)
            actions = rule.below(edges) if path else rule.root(edges, simulation)
            path.append((numbers, rows, actions))
            child = self.child[rows, actions]
            stops = (child < 0) | edges.known[np.arange(len(rows)), actions]
            ended.append((numbers[stops], rows[stops], actions[stops]))
            numbers, rows = numbers[~stops], (numbers * self.width + child)[~stops]
        leaves, rows, actions = (np.concatenate(each) for each in zip(*ended, strict=True))
        return path, leaves, rows, actions

    def _leaf(self, numbers: Array, rows: Array, actions: Array) -> tuple[Array, Array]:
        """The first player's values at the ends of these edges, and what is known of them, with nodes for new ones."""
        known = self.known[rows, actions] * self.sign[rows]
        value = known.copy()
        unseen = np.flatnonzero(np.isnan(known))
        if len(unseen):
            state = self.domain.step(self.state[rows[unseen]], actions[unseen])
            over, result = self.domain.outcome(state)
            ends, goes_on = unseen[over], unseen[~over]
            known[ends] = value[ends] = result[over]
            if len(goes_on):
                value[goes_on] = self._add(numbers[goes_on], state[~over], rows[goes_on], actions[goes_on])
        return value, known

    def _add(self, numbers: Array, state: States, rows: Array | None = None, actions: Array | None = None) -> Array:
        """New nodes, one a tree, below these edges (None: roots); their values."""
        new = numbers * self.width + self.nodes[numbers]
        legal = self.domain.legal(state)
        logits, value = self.value(state)
        self.evaluations += len(new)
        logits = np.where(legal, logits, -np.inf).astype(np.float32)
        prior = np.exp(logits - logits.max(1, keepdims=True))
        prior /= prior.sum(1, keepdims=True)
        self.state[new], self.legal[new], self.logits[new], self.prior[new] = state, legal, logits, prior
        self.guess[new] = value
        self.sign[new] = 1 - 2 * self.domain.mover(state).astype(np.float32)
        self.visits[new], self.sum[new], self.known[new], self.child[new] = 0, 0, UNKNOWN, -1
        if rows is not None and actions is not None:
            self.child[rows, actions] = self.nodes[numbers]
            self.parent[new], self.by[new] = rows - numbers * self.width, actions
        self.nodes[numbers] += 1
        return np.asarray(value, np.float32)

    def _up(self, path: list[Any], value_B: Array, known_B: Array) -> None:
        """Add the values to all edges of the way, and carry what is known as far as it goes."""
        for numbers, rows, actions in reversed(path):
            sign = self.sign[rows]
            known = known_B[numbers]
            proved = np.flatnonzero(~np.isnan(known))
            if len(proved):
                value_B[numbers[proved]] = known[proved]
                at = rows[proved]
                self.known[at, actions[proved]] = known[proved] * sign[proved]
                known_B[numbers[proved]] = self._settled(at) if self.solve else UNKNOWN
            self.visits[rows, actions] += 1
            self.sum[rows, actions] += value_B[numbers] * sign
        self.result = np.fmax(self.result, known_B)  # of a number and a NaN it is the number

    def _settled(self, rows: Array) -> Array:
        """The first player's results of nodes where they follow from their edges, else unknown."""
        known = self.known[rows]
        best = np.fmax.reduce(known, axis=1)
        all_known = (~self.legal[rows] | ~np.isnan(known)).all(1)
        return np.where((best >= 1) | all_known, best, UNKNOWN) * self.sign[rows]

    def _keep(self, numbers: Array, child: Array) -> None:
        """Make a child the root of each of these trees, with all that is below it, in the same order."""
        width, size = self.width, int(self.nodes[numbers].max())
        first = numbers * width
        new = np.full((len(numbers), size), -1, np.int32)
        each = np.arange(len(numbers))
        new[each, child] = ROOT
        kept = np.ones(len(numbers), np.int64)
        parents = self.parent[first[:, None] + np.arange(size)]
        for node in range(1, size):  # parents come before their children
            below = (parents[:, node] >= 0) & (node < self.nodes[numbers]) & (node != child)
            below &= new[each, parents[:, node]] >= 0
            new[below, node] = kept[below]
            kept += below
        tree, stays = np.nonzero(new >= 0)
        old, now = first[tree] + stays, first[tree] + new[tree, stays]
        parent = np.where(new[tree, stays] == ROOT, -1, new[tree, np.maximum(parents[tree, stays], 0)])
        child_rows = self.child[old]
        moved = np.where(child_rows >= 0, new[tree[:, None], np.maximum(child_rows, 0)], -1)
        edge_known = self.known[first, self.by[first + child]] * self.sign[first]
        self.by[now] = np.where(new[tree, stays] == ROOT, -1, self.by[old])
        self.parent[now], self.child[now] = parent, moved
        for name in KEPT:
            array = getattr(self, name)
            array[now] = array[old]
        self.nodes[numbers], self.result[numbers] = kept, edge_known if self.solve else UNKNOWN

    def _grow(self) -> None:
        """Room for twice as many nodes."""
        before = self.width
        self.width *= 2
        for name in (*KEPT, "child", "parent", "by"):
            array = getattr(self, name)
            wide = np.zeros((self.count, self.width, *array.shape[1:]), array.dtype)
            wide[:, :before] = array.reshape(self.count, before, *array.shape[1:])
            if name in ("parent", "by", "child"):
                wide[:, before:] = -1
            setattr(self, name, wide.reshape(self.count * self.width, *array.shape[1:]))
