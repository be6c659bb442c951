"""A budget becomes a number of steps before the first step, and the steps become progress from 0 to 1.

    Budget -> (steps and tokens: counted; time, money, energy: a few real steps, timed) -> Plan -> progress(step)

Nothing here looks at a clock while a step is taken. Where a run in time proves slower or faster than measured, its plan
is bent at a few fixed marks: the steps still to come are more or fewer, progress goes on from where it is without a
jump, and the bend is one more decision in the run, which resume replays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from nomoat.core.budget import Budget

MARKS = (0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96)
"""The progress at which a run in time compares its pace with its plan."""

EVALUATIONS = 20
EVALUATION_SHARE = 0.05  # of the time
SAMPLING_SHARE = 0.02  # of the time: what the caller may spend on showing samples
MEASURED_SHARE = 0.02  # of the time: what measuring the steps may cost, after the two that it takes at least
MEASURED_STEPS = 30


@dataclass(frozen=True)
class Plan:
    """How many steps, and how far along each of them is.

    Args:
        bends: (from which step on, how many steps in all), in order; the first is from step 0.
    """

    bends: tuple[tuple[int, int], ...]

    @property
    def steps(self) -> int:
        """How many steps in all, as planned now."""
        return self.bends[-1][1]

    def progress(self, step: int) -> float:
        """Progress in the middle of step `step` (counted from 0), in (0, 1): never the 0 that wastes a step."""
        return self._at(step, step + 0.5)

    def reached(self, done: int) -> float:
        """Progress after `done` steps, in [0, 1]."""
        return self._at(max(0, done - 1), done)

    def done(self, done: int) -> bool:
        """Whether `done` steps are all."""
        return done >= self.steps

    def bend(self, done: int, steps: int) -> Plan:
        """The plan with `steps` steps in all from now, after `done` steps, on."""
        return Plan((*((start, total) for start, total in self.bends if start < done), (done, max(steps, done))))

    def mark(self, done: int) -> float | None:
        """The mark that the last of `done` steps went past, if it did."""
        before, now = self.reached(done - 1), self.reached(done)
        return next((mark for mark in MARKS if before < mark <= now), None)

    def _at(self, step: int, place: float) -> float:
        progress = 0.0
        for (start, total), (end, _) in zip(self.bends, (*self.bends[1:], (step + 1, 0)), strict=True):
            upto = place if end > step else end
            progress += (1 - progress) * (upto - start) / max(total - start, 1)
            if end > step:
                break
        return min(progress, 1.0)

    @classmethod
    def of(cls, decisions: Iterable[Mapping[str, Any]]) -> Plan | None:
        """The plan that a run's decisions named `steps` make, or None where there is none yet."""
        plan: Plan | None = None
        for decision in decisions:
            start, steps = int(decision["step"]), int(decision["value"])
            plan = cls(((0, steps),)) if plan is None or start == 0 else plan.bend(start, steps)
        return plan


@dataclass(frozen=True)
class Pace:
    """What was measured at the start.

    Args:
        step: median seconds of a step.
        low, high: the fastest and the slowest of them.
        count: how many were timed.
        evaluation: seconds of evaluating one held-out batch.
        saving: seconds that one checkpoint is reckoned to take.
    """

    step: float
    low: float
    high: float
    count: int
    evaluation: float = 0.0
    saving: float = 0.0


def counted_steps(budget: Budget, tokens_per_step: int) -> tuple[int, str] | None:
    """Steps and the reason in words for a budget in steps or tokens (never more tokens than given); None for others."""
    if budget.unit == "steps":
        return max(1, int(budget.amount)), f"the budget is {budget.text}"
    if budget.unit == "tokens":
        steps = max(1, int(budget.amount // max(1, tokens_per_step)))
        return steps, f"{budget.text} at {tokens_per_step:,} tokens a step"
    return None


def measure(step: Callable[[int], None], seconds: float, agree: Callable[[bool], bool], least: float = 0.0) -> Pace:
    """Time real steps, which the caller throws away: one to warm up, then at least one, at most `MEASURED_STEPS`.

    Args:
        step: takes step number i.
        seconds: the whole budget; measuring stops at `MEASURED_SHARE` of it.
        agree: rank 0's word on whether to go on, on every process (`Group.share`).
        least: seconds that measuring takes at least, however many steps they are (an energy meter needs one).
    """
    began = time.perf_counter()
    step(0)
    taken: list[float] = []

    def more() -> bool:
        spent = time.perf_counter() - began
        return not taken or spent < least or (len(taken) < MEASURED_STEPS and spent < MEASURED_SHARE * seconds)

    while agree(more()):
        start = time.perf_counter()
        step(len(taken) + 1)
        taken.append(time.perf_counter() - start)
    return Pace(median(taken), min(taken), max(taken), len(taken))


def affordable(whole: float, batch: float, batches: int) -> tuple[int, int]:
    """How often to evaluate, and on how many held-out batches, for `EVALUATION_SHARE` of the whole.

    Twenty times where that leaves a quarter of the batches, else ten times, else five times on what there is time for.

    Args:
        whole: the run's cost, in any unit.
        batch: the cost of evaluating one batch, in the same unit.
        batches: how many there are.
    """
    total = EVALUATION_SHARE * whole / batch
    for times in (EVALUATIONS, EVALUATIONS // 2, EVALUATIONS // 4):
        each = int(total / times)
        if 4 * each >= batches:
            break
    return times, max(1, min(batches, each))


def timed_steps(seconds: float, spent: float, pace: Pace, saves: float, evaluations: int) -> tuple[int, str]:
    """Steps that fit in `seconds`, and the reason in words.

    Args:
        seconds: the budget.
        spent: of it, what has been spent already (building, measuring, compiling).
        pace: what was measured.
        saves: how many checkpoints on the way, the last one not counted.
        evaluations: how many held-out batches are evaluated in the whole run.
    """
    aside = SAMPLING_SHARE * seconds + evaluations * pace.evaluation + (saves + 1) * pace.saving
    left = max(0.0, seconds - spent - aside)
    steps = max(1, int(left / pace.step))
    return steps, (
        f"{seconds:.4g} s, less {spent:.1f} s spent before the first step and {aside:.1f} s for evaluation, "
        f"checkpoints and samples, at {pace.step:.4g} s a step (median of {pace.count} timed, "
        f"{pace.low:.4g} to {pace.high:.4g})"
    )


def corrected_steps(plan: Plan, done: int, left: float, pace: float) -> tuple[int, str]:
    """Steps in all that fit now, and the reason in words.

    Args:
        plan: the plan so far.
        done: steps done.
        left: seconds left for steps.
        pace: seconds a step has taken lately, with all that went on beside it.
    """
    steps = done + max(0, round(left / pace))
    return steps, (
        f"after {done:,} of {plan.steps:,} steps a step takes {pace:.4g} s with all that goes on beside it, "
        f"and {left:.1f} s are left"
    )
