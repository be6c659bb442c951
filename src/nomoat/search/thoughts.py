"""Thinking in texts: answers are written whole or a step at a time, scored, and the better ones go on.

    prompts -begin-> thoughts -[Writer: a step of each -> Assess -> keep] until all are done -> Verifier -> choose

One loop for best-of-n, votes, beams, DVTS, tree of thoughts and particles: they differ in what they keep. All problems
go in lock-step, so that the next steps of all their thoughts are one batch. Self-consistency: Wang et al. 2022,
arXiv:2203.11171; tree of thoughts: Yao et al. 2023, arXiv:2305.10601; DVTS: Beeching et al. 2024 ("Scaling test-time
compute"); particles: Puri et al. 2025, arXiv:2502.01618.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nomoat.core.domain import Verdict, Verifier
from nomoat.core.errors import ConfigError, nearest
from nomoat.search.planning import Effort, Usage

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


class Piece(NamedTuple):
    """What a writer adds to a text.

    Args:
        text: that is added.
        tokens: drawn for it.
        logprob: of them, summed, in nats.
        done: the text is at its end.
    """

    text: str
    tokens: int
    logprob: float
    done: bool


class Question(NamedTuple):
    """A problem.

    Args:
        prompt: with which its texts begin.
        given: what the verifier is told of it.
    """

    prompt: str
    given: Any = None


class Writer(Protocol):
    """Goes on with texts, each by chance of its own.

    `whole` asks for all the rest, else for one step; the same seed gives the same pieces.
    """

    def __call__(self, prompts: Sequence[str], texts: Sequence[str], whole: bool, seed: int) -> list[Piece]: ...


class Assess(Protocol):
    """How promising unfinished or finished texts are: [B] in [0, 1]. A process reward, or a verifier of halves."""

    def __call__(self, prompts: Sequence[str], texts: Sequence[str], /) -> Array: ...


@dataclass
class Thought:
    """A text on its way to an answer.

    Args:
        problem: its number.
        text: so far.
        group: that it competes in.
        steps, tokens, logprob: of all that was written.
        score: how promising; the mean probability of its tokens where nothing else is asked.
        assessed: something else was.
        done: it has ended.
        right: the verifier's score, where it was asked.
    """

    problem: int
    text: str = ""
    group: int = 0
    steps: int = 0
    tokens: int = 0
    logprob: float = 0.0
    score: float = 0.5
    assessed: bool = False
    done: bool = False
    right: float | None = None

    def with_piece(self, piece: Piece) -> Thought:
        """The thought that goes on so."""
        return replace(
            self,
            text=self.text + piece.text,
            steps=self.steps + 1,
            tokens=self.tokens + piece.tokens,
            logprob=self.logprob + piece.logprob,
            done=piece.done,
        )


@dataclass(frozen=True)
class Strategy:
    """What is written at a time, and what is kept. See the functions below for the usual ones.

    Args:
        name: as on the command line.
        groups: that do not compete with each other.
        expand: continuations of each thought.
        width: thoughts that a group begins with, and keeps.
        whole: an answer is written at once.
        resample: keep by drawing in proportion to e^(score / heat), not the best.
        heat: of `resample`.
        back: go back to the best thought that was ever left, rather than on from those at hand.
        vote: the answer that most agree on, each counting once, or its score where it was assessed or verified.
        depth: steps of a thought at most.
    """

    name: str
    groups: int = 1
    expand: int = 1
    width: int = 1
    whole: bool = False
    resample: bool = False
    heat: float = 0.1
    back: bool = False
    vote: bool = False
    depth: int = 64

    def __post_init__(self) -> None:
        if min(self.groups, self.expand, self.width, self.depth) < 1 or self.heat <= 0:
            raise ConfigError(
                f"{self.name} with groups {self.groups}, expand {self.expand}, width {self.width} cannot be",
                "each is at least 1, and heat above 0",
            )


def best_of(n: int) -> Strategy:
    """`n` answers, the best of them."""
    return Strategy("best-of-n", groups=n, whole=True)


def voted(n: int) -> Strategy:
    """`n` answers, the one that most agree on."""
    return Strategy("vote", groups=n, whole=True, vote=True)


def beam(width: int, expand: int) -> Strategy:
    """The best `width` of all continuations, a step at a time."""
    return Strategy("beam", expand=expand, width=width)


def dvts(groups: int, expand: int) -> Strategy:
    """Beams of one beside each other, which do not compete: diverse verifier tree search."""
    return Strategy("dvts", groups=groups, expand=expand)


def tree_of_thoughts(width: int, expand: int) -> Strategy:
    """Best first, with the way back to what was left."""
    return Strategy("tot", expand=expand, width=width, back=True)


def particles(n: int, heat: float = 0.1) -> Strategy:
    """`n` thoughts, drawn anew after each step by how promising they are (sequential Monte Carlo)."""
    return Strategy("particles", width=n, resample=True, heat=heat)


def strategy_of(name: str, budget: int) -> tuple[Strategy, Effort]:
    """The strategy of a name, sized so that about `budget` answers (of the first two) or steps are written.

    Raises:
        ConfigError: there is none of that name, or nothing to spend.
    """
    made = {
        "best-of-n": lambda: best_of(budget),
        "vote": lambda: voted(budget),
        "beam": lambda: beam(max(1, round((budget / 4) ** 0.5)), 4),
        "dvts": lambda: dvts(max(1, budget // 16), 4),
        "tot": lambda: tree_of_thoughts(1, 4),
        "particles": lambda: particles(max(2, budget // 4)),
    }
    if name not in made:
        raise ConfigError(f"there is no strategy `{name}`", f"there is {', '.join(made)}, mcts", nearest(name, made))
    if budget < 1:
        raise ConfigError(f"a budget of {budget} buys no thought", fix="use --budget 16")
    chosen = made[name]()
    # Whole answers are counted by the strategy itself.
    return chosen, Effort(nodes=10**9 if chosen.whole else budget)


@dataclass
class Thinking:
    """What came of one problem.

    Args:
        best: the thought that was chosen; None where nothing was finished within the effort.
        done: all that were finished.
        usage: what it took.
        verdicts: of `done`, where there was a verifier.
    """

    best: Thought | None
    done: list[Thought]
    usage: Usage
    verdicts: list[Verdict] = field(default_factory=list)


def think(
    questions: Sequence[Question],
    writer: Writer,
    strategy: Strategy,
    effort: Effort,
    assess: Assess | None = None,
    verify: Verifier | None = None,
    answer: Callable[[str], str] = str.strip,
    seed: int = 0,
) -> list[Thinking]:
    """Answer all questions.

    Args:
        questions: all go in lock-step.
        writer: goes on with texts.
        strategy: what is kept.
        effort: of each question; what is not finished when it is spent up is lost.
        assess: how promising a text is; None: by its mean log-probability a token.
        verify: chooses among finished answers; None: their scores do.
        answer: what of a text is voted on.
        seed: of all chance.
    """
    began, chance = time.perf_counter(), np.random.default_rng(seed)
    usages = [Usage() for _ in questions]
    done: list[list[Thought]] = [[] for _ in questions]
    begun = [group for group in range(strategy.groups) for _ in range(strategy.width)]
    live = [Thought(number, group=group) for number in range(len(questions)) for group in begun]
    left: list[Thought] = []
    turn = 0
    while live:
        parents = [each for each in live for _ in range(strategy.expand)]
        prompts = [questions[each.problem].prompt for each in parents]
        pieces = writer(prompts, [each.text for each in parents], strategy.whole, seed + turn)
        children = [parent.with_piece(piece) for parent, piece in zip(parents, pieces, strict=True)]
        _score(children, prompts, assess, usages)
        seconds = time.perf_counter() - began
        for child, piece in zip(children, pieces, strict=True):
            usage = usages[child.problem]
            usage.nodes, usage.tokens, usage.seconds = usage.nodes + 1, usage.tokens + piece.tokens, seconds
            if child.done or child.steps >= strategy.depth:
                done[child.problem].append(child)
        goes_on = [child for child in children if not child.done and child.steps < strategy.depth]
        live, left = _kept(goes_on, left, strategy, chance)
        live = [each for each in live if usages[each.problem].within(effort)]
        turn += 1
    return [
        _chosen(question.given, done[number], usages[number], strategy, verify, answer)
        for number, question in enumerate(questions)
    ]


def _score(children: list[Thought], prompts: Sequence[str], assess: Assess | None, usages: list[Usage]) -> None:
    """Say of each child how promising it is."""
    if assess is None:
        for child in children:
            child.score = float(np.exp(child.logprob / max(1, child.tokens)))
        return
    scores = assess(prompts, [each.text for each in children])
    for child, score in zip(children, scores, strict=True):
        child.score, child.assessed = float(score), True
        usages[child.problem].evaluations += 1


def _kept(
    children: list[Thought], left: list[Thought], strategy: Strategy, chance: np.random.Generator
) -> tuple[list[Thought], list[Thought]]:
    """Those that go on, and those to which the way back is open."""
    groups: dict[tuple[int, int], list[Thought]] = defaultdict(list)
    for each in [*left, *children] if strategy.back else children:
        groups[each.problem, each.group].append(each)
    kept, rest = list[Thought](), list[Thought]()
    for group in groups.values():
        if strategy.resample:
            weight = np.exp(
                (np.array([each.score for each in group]) - max(each.score for each in group)) / strategy.heat
            )
            # Systematic: each is kept as often as its weight says, but for a fraction.
            places = (chance.random() + np.arange(strategy.width)) / strategy.width
            drawn = np.searchsorted(np.cumsum(weight / weight.sum()), places).clip(max=len(group) - 1)
            kept += [replace(group[number]) for number in drawn]
            continue
        group.sort(key=lambda each: -each.score)
        kept += group[: strategy.width]
        rest += group[strategy.width :]
    return kept, rest if strategy.back else []


def _chosen(
    problem: Any,
    done: list[Thought],
    usage: Usage,
    strategy: Strategy,
    verify: Verifier | None,
    answer: Callable[[str], str],
) -> Thinking:
    """The answer to one problem."""
    verdicts = verify(problem, [each.text for each in done]) if verify is not None and done else []
    for each, verdict in zip(done, verdicts, strict=False):
        each.right = verdict.score
        usage.evaluations += 1
    if not done:
        return Thinking(None, done, usage)
    if strategy.vote:
        votes = dict.fromkeys((answer(each.text) for each in done), 0.0)
        for each in done:
            weight = each.score if each.assessed else 1.0
            votes[answer(each.text)] += weight if each.right is None else each.right
        winner = max(votes, key=lambda text: votes[text])
        agreed = [each for each in done if answer(each.text) == winner]
        return Thinking(max(agreed, key=lambda each: each.score), done, usage, verdicts)
    best = max(done, key=lambda each: (each.score if each.right is None else each.right, each.score))
    return Thinking(best, done, usage, verdicts)
