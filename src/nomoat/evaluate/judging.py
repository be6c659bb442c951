"""Judging: which of two answers is better, asked in both orders; and how far such a judge can be trusted.

    pairs -> judge(first, second), judge(second, first) -> Votes -> win, loss, tie (the orders disagree), invalid
          -> Comparison: win rate, length-controlled win rate, intervals, what length alone would say
    pairs with a known preference -> Votes -> Agreement, beside a coin's and that of taking the longer answer

The length-controlled rate follows AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475): a logistic regression of the
verdict on the difference of lengths, read where the lengths are equal. Simplified: no term for how hard each prompt is
(that takes verdicts on many models), ties are half a win, and a weak prior keeps both weights finite:

    P(A wins) = sigmoid(quality + verbosity tanh(d / spread of d)),   d = characters of A - characters of B
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nomoat.evaluate.bits import interval

Numbers = NDArray[np.float64]

RESAMPLES = 1000
PRIOR = 0.01
"""Weight of the prior on both terms of the regression: that of a hundredth of a verdict."""
NEWTON_STEPS = 25
REFUSES = re.compile(
    r"\s*(i['’]?m sorry|sorry,|i (can['’]?t|cannot|am unable|am not able|won['’]?t)|as an ai\b|unfortunately, i\b)",
    re.IGNORECASE,
)


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: str
    first: str
    second: str

    def swapped(self) -> Pair:
        """The same answers, shown in the other order."""
        return Pair(self.prompt, self.second, self.first)


class Judge(Protocol):
    """Compares answers.

    Attributes:
        name: for reports.
    """

    name: str

    def votes(self, pairs: Sequence[Pair]) -> Numbers:
        """For each pair [N]: above 0 where the first answer is better, below 0 the second, NaN where it says neither.

        It is asked for all at once, both orders among them.
        """
        ...


class Longer:
    """Takes the longer answer: what a judge must be better than to be worth asking."""

    name = "length"

    def votes(self, pairs: Sequence[Pair]) -> Numbers:
        """The difference of lengths, in characters."""
        return np.array([len(pair.first) - len(pair.second) for pair in pairs], dtype=np.float64)


@dataclass(frozen=True)
class Votes:
    """What a judge said of N pairs.

    Args:
        forth_N: when the first answer was shown first.
        back_N: when it was shown second; above 0 where what was shown first is better.
    """

    forth_N: Numbers
    back_N: Numbers

    @property
    def verdicts(self) -> Numbers:
        """[N]: 1 where the first answer wins, -1 where it loses, 0 for a tie, NaN where a vote is invalid."""
        return np.trunc((np.sign(self.forth_N) - np.sign(self.back_N)) / 2)

    @property
    def shown_first(self) -> float:
        """Share of the valid votes that went to what was shown first; 0.5 for a judge that looks at the answers."""
        votes = np.sign(np.concatenate([self.forth_N, self.back_N]))
        return float(np.nanmean((votes + 1) / 2)) if not np.isnan(votes).all() else float("nan")

    @property
    def swayed(self) -> float:
        """Share of the valid pairs in which both votes went to the same place: the order decided, hence a tie."""
        same_N = np.sign(self.forth_N) * np.sign(self.back_N)
        return float((same_N[~np.isnan(same_N)] > 0).mean()) if not np.isnan(same_N).all() else float("nan")


def ask(judge: Judge, pairs: Sequence[Pair]) -> Votes:
    """Show each pair to the judge in both orders."""
    votes_M = judge.votes([*pairs, *(pair.swapped() for pair in pairs)])
    return Votes(votes_M[: len(pairs)], votes_M[len(pairs) :])


@dataclass(frozen=True)
class Comparison:
    """What came of comparing A and B; rates are A's, from 0 to 1, with 95 % intervals over prompts.

    Args:
        wins, ties, losses, invalid: pairs.
        rate, low, high: wins and half of the ties, of the valid pairs.
        controlled, controlled_low, controlled_high: the same at equal lengths; see the module's first lines.
        longer: the rate by a judge that takes the longer answer.
        characters: mean length of the answers of A and of B.
        refusals: share of the answers of A and of B that are empty or begin as refusals do.
        shown_first, swayed: see `Votes`.
    """

    wins: int
    ties: int
    losses: int
    invalid: int
    rate: float
    low: float
    high: float
    controlled: float
    controlled_low: float
    controlled_high: float
    longer: float
    characters: tuple[float, float]
    refusals: tuple[float, float]
    shown_first: float
    swayed: float

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def compare(votes: Votes, pairs: Sequence[Pair], seed: int = 0) -> Comparison:
    """Sum up the votes on pairs whose first answers are A's and whose second are B's."""
    verdict_N, gap_N = votes.verdicts, Longer().votes(pairs)
    valid = ~np.isnan(verdict_N)
    score_N, gap_V = (verdict_N[valid] + 1) / 2, gap_N[valid]
    rate, low, high = _mean(score_N, seed)
    again_R = length_controlled(score_N, gap_V, RESAMPLES, seed) if len(score_N) else np.full(1, np.nan)
    answers = [[pair.first for pair in pairs], [pair.second for pair in pairs]]
    lengths, refused = zip(
        *((np.mean([*map(len, side)]), np.mean([*map(refuses, side)])) for side in answers), strict=True
    )
    return Comparison(
        wins=int((verdict_N == 1).sum()),
        ties=int((verdict_N == 0).sum()),
        losses=int((verdict_N == -1).sum()),
        invalid=int((~valid).sum()),
        rate=rate,
        low=low,
        high=high,
        controlled=float(again_R[0]),
        controlled_low=float(np.percentile(again_R, 2.5)),
        controlled_high=float(np.percentile(again_R, 97.5)),
        longer=float((np.sign(gap_N) + 1).mean() / 2),
        characters=(float(lengths[0]), float(lengths[1])),
        refusals=(float(refused[0]), float(refused[1])),
        shown_first=votes.shown_first,
        swayed=votes.swayed,
    )


def refuses(answer: str) -> bool:
    """Whether an answer is empty or begins as refusals do."""
    return not answer.strip() or REFUSES.match(answer) is not None


def length_controlled(score_N: Numbers, gap_N: Numbers, draws: int = 0, seed: int = 0) -> Numbers:
    """The win rate at equal lengths [1 + draws], by Newton's method on the regression in the module's first lines.

    The first is of the verdicts as they are, the others of as many drawn from them with replacement.

    Args:
        score_N: 1 for a win, 0.5 for a tie, 0 for a loss.
        gap_N: how much longer the answer is than the other one.
        draws: of the bootstrap.
        seed: of the draws.
    """
    count = len(score_N)
    drawn_RN = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    weight_RN = np.concatenate([np.ones((1, count)), drawn_RN])
    spread = float(np.sqrt((gap_N**2).mean())) or 1.0  # about 0, not the mean: swapped sides give the mirror image
    bent_N, (quality_R, verbosity_R) = np.tanh(gap_N / spread), np.zeros((2, 1 + draws))
    for _ in range(NEWTON_STEPS):
        logit_RN = np.clip(quality_R[:, None] + verbosity_R[:, None] * bent_N, -30, 30)
        chance_RN = 1 / (1 + np.exp(-logit_RN))
        miss_RN, curve_RN = weight_RN * (score_N - chance_RN), weight_RN * chance_RN * (1 - chance_RN)
        slope_R, tilt_R = miss_RN.sum(1) - PRIOR * quality_R, miss_RN @ bent_N - PRIOR * verbosity_R
        a_R, b_R, c_R = curve_RN.sum(1) + PRIOR, curve_RN @ bent_N, curve_RN @ bent_N**2 + PRIOR
        whole_R = a_R * c_R - b_R**2
        quality_R = quality_R + np.clip((c_R * slope_R - b_R * tilt_R) / whole_R, -2, 2)
        verbosity_R = verbosity_R + np.clip((a_R * tilt_R - b_R * slope_R) / whole_R, -2, 2)
    return 1 / (1 + np.exp(-quality_R))


@dataclass(frozen=True)
class Agreement:
    """How often a judge prefers what the reference prefers; ties and invalid votes are half right. 95 % intervals.

    Args:
        judge: its name.
        pairs: of the reference.
        value, low, high: share.
        longer: the same share for taking the longer answer.
        margin_low: lower end of the interval of the difference between the two, on the same pairs.
        shorter, shorter_low, shorter_high, shorter_pairs: the share where the reference prefers the shorter answer:
            there, length is always wrong, and a coin is half right.
        invalid: pairs with a vote for neither.
        shown_first, swayed: see `Votes`.
    """

    judge: str
    pairs: int
    value: float
    low: float
    high: float
    longer: float
    margin_low: float
    shorter: float
    shorter_low: float
    shorter_high: float
    shorter_pairs: int
    invalid: int
    shown_first: float
    swayed: float

    @property
    def warning(self) -> str:
        """Why its verdicts are worth little; "" where they are worth something."""
        if self.low <= 0.5 <= self.high or self.value < 0.5:
            return f"{self.judge} agrees with the reference no more than a coin does: its verdicts say nothing"
        if self.margin_low <= 0:
            return f"{self.judge} is not shown to be better than taking the longer answer: its verdicts say little"
        return ""

    def as_text(self) -> str:
        """One line for people, and the warning."""
        line = (
            f"judge: {self.judge}, agrees with {self.value:.1%} of {self.pairs:,} reference preferences "
            f"(95 %: {self.low:.1%} to {self.high:.1%}); the longer answer {self.longer:.1%}, a coin 50.0%"
        )
        if self.shorter_pairs:
            line += (
                f"; where the shorter is preferred ({self.shorter_pairs:,}): {self.shorter:.1%} "
                f"(95 %: {self.shorter_low:.1%} to {self.shorter_high:.1%})"
            )
        return line + (f"\nwarning: {self.warning}" if self.warning else "")


def agreement(judge: Judge, reference: Sequence[Pair], weight_N: Numbers | None = None, seed: int = 0) -> Agreement:
    """Measure a judge on pairs whose first answer is the preferred one.

    Args:
        judge: whom to measure.
        reference: the pairs.
        weight_N: of each, where some kinds were drawn more often than they occur; None: all the same.
        seed: of the intervals.
    """
    votes, gap_N = ask(judge, reference), Longer().votes(reference)
    weight_N = np.ones(len(reference)) if weight_N is None else weight_N
    right_N = (np.nan_to_num(votes.verdicts) + 1) / 2
    longer_N = (np.sign(gap_N) + 1) / 2
    value, low, high = _mean(right_N, seed, weight_N)
    shorter, shorter_low, shorter_high = _mean(right_N[gap_N < 0], seed)
    return Agreement(
        judge=judge.name,
        pairs=len(reference),
        value=value,
        low=low,
        high=high,
        longer=_mean(longer_N, seed, weight_N)[0],
        margin_low=_mean(right_N - longer_N, seed, weight_N)[1],
        shorter=shorter,
        shorter_low=shorter_low,
        shorter_high=shorter_high,
        shorter_pairs=int((gap_N < 0).sum()),
        invalid=int(np.isnan(votes.verdicts).sum()),
        shown_first=votes.shown_first,
        swayed=votes.swayed,
    )


def drawn(whole: Sequence[tuple[str, str, str]], most: int, seed: int = 0) -> tuple[list[Pair], Numbers]:
    """Some pairs (prompt, preferred, other) to measure a judge on, and how many of all each stands for.

    Half of them are drawn from those in which the shorter answer is preferred, as far as there are so many: there a
    judge shows that it does not just like length.
    """
    order = [Pair(*whole[place]) for place in np.random.default_rng(seed).permutation(len(whole))]
    short = [pair for pair in order if len(pair.first) < len(pair.second)]
    other = [pair for pair in order if len(pair.first) >= len(pair.second)]
    few = min(len(short), max(most // 2, most - len(other)))
    parts = [(kind, kind[:count]) for kind, count in ((short, few), (other, most - few))]
    weight_N = np.concatenate([np.full(len(part), len(kind) / max(1, len(part))) for kind, part in parts])
    return [pair for _, part in parts for pair in part], weight_N


def _mean(values_N: Numbers, seed: int, weight_N: Numbers | None = None) -> tuple[float, float, float]:
    """The weighted mean and its 95 % interval; NaN where there is nothing."""
    if not len(values_N):
        return float("nan"), float("nan"), float("nan")
    weight_N = np.ones(len(values_N)) if weight_N is None else weight_N
    value = float((values_N * weight_N).sum() / weight_N.sum())
    return value, *interval(values_N * weight_N, weight_N, seed, RESAMPLES)
