"""A run while it is trained: begun, looked at after every step, kept, ended; only rank 0 writes.

begin: build -> decide -> restore      look: evaluate (held out) -> bend the plan -> keep      end: evaluate -> keep
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nomoat.core import energy
from nomoat.core.device import autocast, choose, generator
from nomoat.core.errors import RunError
from nomoat.core.family import Family
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.types import Batch
from nomoat.train import start
from nomoat.train.budget import Plan, corrected_steps
from nomoat.train.journal import Journal
from nomoat.train.launch import Group
from nomoat.train.mover import Moved, Settings, to_device
from nomoat.train.state import State, build
from nomoat.train.warn import not_finite

EVALUATION_TOKENS = 65_536
EVALUATION_ROWS = 32
SAVING_SHARE = 8  # a checkpoint that takes s seconds is written every 8 s seconds at most


@dataclass
class Training:
    """A run while it is trained.

    Args:
        recipe: what is trained.
        run: where.
        group: the processes.
        device: as the caller named it.
        began: when, by the performance counter.
    """

    recipe: Recipe
    run: Run
    group: Group
    device: str
    began: float
    state: State = field(init=False)
    plan: Plan = field(init=False)
    settings: Settings = field(init=False)
    journal: Journal = field(init=False)
    evaluations: list[Batch] = field(default_factory=list)
    evaluate_every: int = 0
    tokens_per_step: int = 0
    seconds: float | None = None
    meter: energy.EnergyMeter | None = None
    _offset: float = 0.0
    _evaluating: float = 0.0
    _saving: float = 0.0
    _last_kept: float = 0.0
    _last_mark: tuple[int, float] = (0, 0.0)

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes."""
        return self.group.rank == 0

    def begin(self, found: Path | None) -> None:
        """Build, decide what is not decided yet, and restore the checkpoint `found`."""
        recipe, place = self.recipe, choose(self.device)
        self.state = State(build(recipe, place))
        family = self.state.family
        first = next(iter(recipe.data.stream(family, recipe.batch_size, recipe.seed, start=0)))
        drawn = family.draw(first, generator(recipe.seed, 0, family.players[0]))
        self.tokens_per_step = start.tokens_in(first)
        if self.writes:
            self.evaluations = self._held_out(family)
            self.meter = energy.meter()
        decisions = start.Decisions(self.run, self.group)
        with self.state.thrown_away():
            self.settings = start.settings(recipe, family, place, drawn, decisions)
        self.plan = self._plan(decisions)
        self.state.prepare(recipe, self.settings, self.group)
        if found is not None:
            self.state.restore(found)
            self._offset = self.state.seconds
        self.evaluate_every, self.seconds = self.run.decided("evaluate_every"), self.run.decided("seconds")
        count = self.run.decided("evaluation_batches", len(self.evaluations))
        self.evaluations = _spread(self.evaluations, count)
        self._last_kept, self._last_mark = time.perf_counter(), (self.state.step, self.elapsed())
        if self.writes:
            chance = family.chance(drawn)
            self.journal = Journal(self.run, recipe, family.players, chance, self.tokens_per_step)
            to_do = {"step": self.state.step, "steps": self.plan.steps}
            self.run.note("phase", phase="training", **to_do, counts=self.state.family.counts)
            for text in start.warnings(recipe, self.run, self.settings):
                self.journal.warn(self.state.step, text)

    def elapsed(self) -> float:
        """Seconds spent on the run, by this process and those before it up to their last checkpoint."""
        return self._offset + time.perf_counter() - self.began

    def watt_hours(self) -> float:
        """Energy measured on the run, likewise; 0 where nothing can be measured."""
        return self.state.watt_hours + (self.meter.watt_hours() if self.meter is not None else 0.0)

    def count(self, batch: Batch) -> None:
        """Count the batch of the step that comes."""
        self.state.tokens += start.tokens_in(batch)
        if self.writes:
            self.journal.count(batch)

    def note(self, player: str, moved: Moved) -> None:
        """Write down what a player's move came to.

        Raises:
            RunError: the loss or the gradient is not finite; the weights were left as they were.
        """
        done = self.state.step + 1
        if not moved.finite:
            raise RunError(*not_finite(done, player, self.state.kept))
        if self.writes:
            seconds = self.elapsed()
            told: dict[str, float | int | None] = {"tokens": self.state.tokens, "seconds": seconds}
            if self.seconds is not None:
                told["seconds_left"] = max(0.0, self.seconds - seconds)
            self.journal.step(player, moved, done, self.plan.steps, told)

    def look(self) -> None:
        """After a step: evaluate, bend the plan, keep a checkpoint, each where it is due."""
        done = self.state.step
        if self.plan.done(done):
            return
        if done % self.evaluate_every == 0:
            self.evaluate()
        self._bend(done)
        wanted = self.recipe.keep_every_seconds
        interval = max(wanted, SAVING_SHARE * self._saving) if wanted else 0.0  # 0: after every step
        if self.writes and time.perf_counter() - self._last_kept >= interval:
            self.keep()

    def end(self) -> None:
        """After the last step, or when asked to stop: evaluate where the run is done, and keep."""
        if self.plan.done(self.state.step):
            self.evaluate()
        if self.writes:
            self.keep()

    def keep(self) -> None:
        """Write a checkpoint, unless this step has one.

        Raises:
            CheckpointError: it cannot be written; the last good one is untouched.
        """
        if self.state.kept != self.state.step:
            began = time.perf_counter()
            used = self.watt_hours()  # the meter's counters wrap, so it must be read now and then
            path = self.state.keep(self.run.checkpoints, self.elapsed(), used)
            self._saving = time.perf_counter() - began
            told = {"watt_hours": used} if self.meter is not None else {}
            self.run.note("keep", step=self.state.step, path=path.name, seconds_to_save=self._saving, **told)
        self._last_kept = time.perf_counter()

    def evaluate(self) -> None:
        """Note the loss on held-out data."""
        if self.evaluations and self.writes:
            figures = self._measured(self.plan.reached(self.state.step), self.evaluations)
            self.run.note("evaluate", step=self.state.step, seconds=self.elapsed(), **figures)

    def _measured(self, progress: float, batches: Sequence[Batch]) -> dict[str, float]:
        """Held-out loss, and bits per byte where the data tells its bytes, of the family as it would be loaded."""
        began = time.perf_counter()
        total = count = size = 0.0
        parts: dict[str, float] = {}
        with self.state.product() as family:
            for number, batch in enumerate(batches):
                drawn = family.draw(batch, generator(self.recipe.seed, "held out", number))
                placed = to_device(drawn, self.settings.device)
                with autocast(self.settings.device, self.settings.precision):
                    loss = family.loss(placed, family.players[-1], progress)
                total, count = total + float(loss.total), count + float(loss.count)
                size += float(sum(batch.get("bytes", ())))
                parts |= {name: parts.get(name, 0.0) + float(part) for name, part in loss.parts.items()}
        self._evaluating = time.perf_counter() - began
        bits = {"bits_per_byte": total / math.log(2) / size} if size else {}
        told = {name: part / max(count, 1.0) for name, part in parts.items()}
        return {**told, "loss": total / max(count, 1.0), **bits}

    def _held_out(self, family: Family) -> list[Batch]:
        """The same few held-out batches for every evaluation, spread over the held-out part by the data."""
        if not hasattr(self.recipe.data, "held_out"):
            return []
        rows = min(self.recipe.batch_size, EVALUATION_ROWS)
        return list(self.recipe.data.held_out(family, rows, EVALUATION_TOKENS))

    def _plan(self, decisions: start.Decisions) -> Plan:
        """The plan decided, or measured now with steps that are thrown away."""
        recipe = self.recipe
        trial = recipe.data.stream(self.state.family, recipe.batch_size, recipe.seed, start=0)
        tools = start.Tools(
            partial(self._try, trial),
            self._time_evaluation,
            self.elapsed,
            self.meter,
            self.tokens_per_step,
            self.group.share(len(self.evaluations)),
            self.group.share(start.tokens_in(self.evaluations[0]) if self.evaluations else 0),
        )
        return start.plan(recipe, self.state, self.settings, decisions, tools)

    def _try(self, stream: Iterator[Batch], number: int) -> None:
        """Take step `number` as it would be, for its time alone."""
        family, batch = self.state.family, next(stream)
        for player, mover in self.state.movers.items():
            mover.move(family.draw(batch, generator(self.recipe.seed, number, player)), 0.5)
        self.state.follow(0.5)

    def _time_evaluation(self) -> float:
        """Seconds that evaluating one batch takes; the first time is for warming up."""
        for _ in range(2 if self.evaluations else 0):
            self._measured(0.0, self.evaluations[:1])
        return self._evaluating

    def _bend(self, done: int) -> None:
        """At a mark of a run in time: correct the steps still to come, as one more decision."""
        mark = self.plan.mark(done) if self.seconds is not None else None
        if mark is None or self.plan.bends[-1][0] >= done:  # decided before the run was interrupted
            return
        steps = None
        if self.writes:
            assert self.seconds is not None
            now = self.elapsed()
            pace = (now - self._last_mark[1]) / max(1, done - self._last_mark[0])
            if self.meter is not None and self.recipe.budget.unit == "watt_hours" and (watts := self.meter.watts()):
                self.seconds = self.recipe.budget.seconds(watts)
            left = (self.seconds or 0.0) - now - self._evaluating - self._saving
            steps, why = self.recipe.budget.bounded(*corrected_steps(self.plan, done, left, pace))
            self.run.decide("steps", steps, done, why)
            self._last_mark = (done, now)
        self.plan = self.plan.bend(done, self.group.share(steps))


def _spread(batches: list[Batch], count: int) -> list[Batch]:
    """`count` of the batches, evenly spread."""
    return [batches[number * len(batches) // count] for number in range(min(count, len(batches)))]
