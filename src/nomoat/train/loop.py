"""The loop: one function trains every family, and a run directory holds all that came of it.

    recipe, run -> restore or build -> decide -> [batch -> draw -> move each player -> note -> look] x steps -> family

No hooks and no callbacks: what happens is noted in the run (journal.py), and `run.watch` sees it. Nothing that is
trained depends on a clock but the number of steps of a budget in time, and that is a decision (budget.py).
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from nomoat.core import checkpoint
from nomoat.core.device import generator
from nomoat.core.errors import RunError
from nomoat.core.family import Family
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.train.launch import Group, gather
from nomoat.train.training import Training


@dataclass
class Stop:
    """Whether Ctrl-C or a polite kill has asked for the end."""

    asked: bool = False


def train(recipe: Recipe, run: Run, device: str = "auto") -> Family:
    """Train `recipe` in `run` until its budget is spent, from the last good checkpoint where there is one.

    Ctrl-C or SIGTERM finishes the step, keeps a checkpoint and leaves the run `stopped`; a second one ends at once.

    Args:
        recipe: what to train.
        run: where; one process at a time.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Returns:
        The family as `load` would give it: in eval mode, with the slow copy's weights where there is one.

    Raises:
        RunError: the run is locked, its data changed, memory is too small, a loss is no number, a process died.
        CheckpointError: no checkpoint is good, or one cannot be written; the last good one is untouched.
        ConfigError: a setting that cannot work.
    """
    began = time.perf_counter()
    if hasattr(recipe.data, "at"):  # a live source that keeps what it made in the run
        recipe = replace(recipe, data=recipe.data.at(run.path))
    with run.lock(), _status(run), _threads(), _asked_to_stop() as stop:
        found = _last_good(recipe, run)
        with gather(recipe.processes, run.path, partial(_follow, recipe, run.path, device, found)) as group:
            training = Training(recipe, run, group, device, began)
            training.begin(found)
            _loop(training, stop)
        run.mark("done" if training.plan.done(training.state.step) else "stopped")
        return training.state.finished()


def _loop(training: Training, stop: Stop) -> None:
    """Every step of a run; the same on every process."""
    recipe, state = training.recipe, training.state
    if training.plan.done(state.step):
        return
    stream = recipe.data.stream(state.family, recipe.batch_size, recipe.seed, start=state.step)
    for step, batch in enumerate(stream, state.step):
        progress, stopped = training.plan.progress(step), False
        training.count(batch)
        for player, mover in state.movers.items():
            drawn = state.family.draw(batch, generator(recipe.seed, step, player))
            moved = mover.move(drawn, progress, stop.asked)
            training.note(player, moved)
            stopped = stopped or moved.stop
        state.follow(progress)
        training.look()
        # Among several processes the wish to stop travels with the sums, so that all stop after the same step.
        if stopped or (stop.asked and training.group.world == 1) or training.plan.done(state.step):
            break
    training.end()


def _follow(recipe: Recipe, path: Path, device: str, found: Path | None, group: Group) -> None:
    """What a worker process does: the same steps, without writing anything."""
    training = Training(recipe, Run(path, recipe), group, device, time.perf_counter())
    training.begin(found)
    _loop(training, Stop())


def _last_good(recipe: Recipe, run: Run) -> Path | None:
    """The newest good checkpoint, or None; what the run noted after it is forgotten."""
    found = checkpoint.latest(run.checkpoints)
    if found is None:
        run.rewind(0)
        return None
    changed = list(recipe.data.changed()) if hasattr(recipe.data, "changed") else []
    if changed:
        raise RunError(
            "the data of this run has changed since it was begun, so it cannot go on",
            "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else ""),
            "put the files back as they were, or begin a new run on what is there now",
        )
    run.rewind(found.step)
    for text in found.warnings():
        run.note("warning", step=found.step, text=text)
    return found.path


@contextmanager
def _status(run: Run) -> Iterator[None]:
    """STATUS is running now; failed where training ends in an error, stopped where it is interrupted."""
    try:
        run.mark("running")
        yield
    except BaseException as error:
        with suppress(OSError):  # a full disk must not hide the error itself
            run.mark("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise RunError(
                f"nothing more can be written to {run.path}",
                str(error.strerror),
                f"free some disk space, then `nomoat resume {run.name}`",
            ) from error
        raise


@contextmanager
def _threads() -> Iterator[None]:
    """Leave the number of threads as it was; a run may have decided for another."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _asked_to_stop() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask for the end once; the second time they interrupt. Signals reach the main thread alone."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before: dict[Any, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
