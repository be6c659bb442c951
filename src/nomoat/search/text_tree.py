"""Trees over texts: a node is a beginning, its edges are the next steps that a writer proposed, each of them once.

    state_B (numbers of beginnings) -Writer: several next steps-> edges, their probabilities -Trees, plan-> visits
    a text that has ended -Verifier-> 1 or -1       one that has not -Assess-> how promising

So texts are searched by the tree that games are searched by. Hao et al. 2023, arXiv:2305.14992 (language models as
planners over Monte-Carlo trees).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nomoat.core.domain import Guess, Outcome, Verdict, Verifier
from nomoat.search.planning import Effort, Usage, plan
from nomoat.search.selection import PUCT
from nomoat.search.thoughts import Assess, Piece, Question, Thinking, Thought, Writer
from nomoat.search.tree import Trees

if TYPE_CHECKING:
    from nomoat.core.domain import States

    Array = np.ndarray[Any, Any]

BRANCHES = 4
"""Next steps that are proposed."""


class Texts:
    """A `Domain` and its `Value`: states are numbers of thoughts in `held`.

    Args:
        questions: a tree each.
        writer: proposes steps.
        assess: how promising a beginning is; None: all alike.
        verify: judges what has ended; None: it is as good as it is promising.
        seed: of the writer.
    """

    players, actions = 1, BRANCHES

    def __init__(
        self,
        questions: Sequence[Question],
        writer: Writer,
        assess: Assess | None,
        verify: Verifier | None,
        seed: int = 0,
    ) -> None:
        self.questions, self.writer, self.assess, self.verify, self.seed = questions, writer, assess, verify, seed
        self.held = [Thought(number) for number in range(len(questions))]
        self.next: dict[int, list[int]] = {}
        """Of a beginning, the numbers of its distinct next steps."""
        self.usage = [Usage() for _ in questions]
        self.verdicts: dict[int, Verdict] = {}

    def start(self) -> States:
        """The questions themselves."""
        return np.arange(len(self.questions))

    def mover(self, state_B: States) -> Array:
        """The one who thinks."""
        return np.zeros(len(state_B), np.int8)

    def legal(self, state_B: States) -> Array:
        """Which edges there are, bool [B, A]; next steps are written here, all together."""
        new = [int(s) for s in state_B if int(s) not in self.next and not self.held[int(s)].done]
        parents = [number for number in dict.fromkeys(new) for _ in range(BRANCHES)]
        if parents:
            prompts = [self.questions[self.held[number].problem].prompt for number in parents]
            pieces = self.writer(prompts, [self.held[n].text for n in parents], False, self.seed + len(self.next))
            for number, piece in zip(parents, pieces, strict=True):
                self._propose(number, piece)
            self._judge([each for number in dict.fromkeys(new) for each in self.next[number]])
        counts = np.array([len(self.next.get(int(s), ())) for s in state_B])
        return np.arange(BRANCHES) < counts[:, None]

    def step(self, state_B: States, action_B: Array) -> States:
        """The beginnings with a step more."""
        return np.array([self.next[int(s)][int(a)] for s, a in zip(state_B, action_B, strict=True)])

    def outcome(self, state_B: States) -> Outcome:
        """Over where a text has ended."""
        over = np.array([self.held[int(s)].done for s in state_B])
        value = np.array([2 * self._worth(int(s)) - 1 for s in state_B], np.float32)
        return Outcome(over, np.where(over, value, 0).astype(np.float32))

    def key(self, state_B: States) -> Array:
        """The numbers."""
        return state_B.astype(np.uint64)

    def guess(self, state_B: States) -> Guess:
        """Log-probabilities of the edges, and how promising the beginnings are."""
        logits = np.full((len(state_B), BRANCHES), -1e9, np.float32)
        for row, state in enumerate(state_B):
            before = self.held[int(state)].logprob
            for edge, number in enumerate(self.next.get(int(state), ())):
                logits[row, edge] = self.held[number].logprob - before
        value = np.array([2 * self._worth(int(s)) - 1 for s in state_B], np.float32)
        return Guess(logits, value if self.assess is not None else np.zeros_like(value))

    def _propose(self, number: int, piece: Piece) -> None:
        parent, edges = self.held[number], self.next.setdefault(number, [])
        usage = self.usage[parent.problem]
        usage.nodes, usage.tokens = usage.nodes + 1, usage.tokens + piece.tokens
        child = parent.with_piece(piece)
        if any(self.held[edge].text == child.text for edge in edges):
            return
        edges.append(len(self.held))
        self.held.append(child)

    def _judge(self, numbers: Sequence[int]) -> None:
        """Assess all new beginnings together, and verify those that have ended."""
        if self.assess is not None and numbers:
            prompts = [self.questions[self.held[n].problem].prompt for n in numbers]
            for number, score in zip(numbers, self.assess(prompts, [self.held[n].text for n in numbers]), strict=True):
                self.held[number].score, self.held[number].assessed = float(score), True
                self.usage[self.held[number].problem].evaluations += 1
        for number in numbers:
            thought = self.held[number]
            if thought.done and self.verify is not None:
                self.verdicts[number] = self.verify(self.questions[thought.problem].given, [thought.text])[0]
                thought.right = self.verdicts[number].score
                self.usage[thought.problem].evaluations += 1

    def _worth(self, number: int) -> float:
        thought = self.held[number]
        return thought.score if thought.right is None else thought.right


def searched(
    questions: Sequence[Question],
    writer: Writer,
    effort: Effort,
    assess: Assess | None = None,
    verify: Verifier | None = None,
    seed: int = 0,
) -> list[Thinking]:
    """Answer all questions by one tree each; what is chosen is the best that ended.

    Args:
        questions: all in lock-step.
        writer: proposes steps.
        effort: of each; steps that are proposed are its nodes.
        assess: how promising beginnings are.
        verify: judges what has ended.
        seed: of the writer.
    """
    began = time.perf_counter()
    texts = Texts(questions, writer, assess, verify, seed)
    trees = Trees(texts, texts.start(), texts.guess)
    while any(usage.within(effort) for usage in texts.usage):
        before = sum(usage.nodes for usage in texts.usage)
        made = plan(trees, PUCT(), 1).simulations
        for usage in texts.usage:
            usage.seconds = time.perf_counter() - began
        idle = sum(usage.nodes for usage in texts.usage) == before
        if not made or (idle and _exhausted(trees)):
            break
    found = []
    for number, usage in enumerate(texts.usage):
        ended = [(n, each) for n, each in enumerate(texts.held) if each.done and each.problem == number]
        verdicts = [texts.verdicts[n] for n, _ in ended if n in texts.verdicts]
        best = max((each for _, each in ended), key=lambda each: (each.right or 0.0, each.score), default=None)
        found.append(Thinking(best, [each for _, each in ended], usage, verdicts))
    return found


def _exhausted(trees: Trees) -> bool:
    """Whether every edge of every node leads to a node or has a known result: nothing new can be written."""
    rows = np.concatenate([n * trees.width + np.arange(trees.nodes[n]) for n in range(trees.count)])
    open_edges = trees.legal[rows] & (trees.child[rows] < 0) & np.isnan(trees.known[rows])
    return not open_edges.any()
