"""A model that learns from what it finds: it answers, a verifier says what is right, it is taught that, and again.

run, task -> star: [answers -> those that are right -> the loop] x rounds
          -> grpo | rloo: the loop over Rollouts
          -> prm: answers -> how they ended -> the loop: a process reward
          -> pass@1, pass@k before and after, on the exam -> report, card

STaR: Zelikman et al. 2022, arXiv:2203.14465 (without rationalisation); expert iteration: Anthony et al. 2017,
arXiv:1705.08439. That pass@k stays while pass@1 grows is usual: what search found has moved into the weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run, of_text
from nomoat.texts import at_hand

if TYPE_CHECKING:
    from nomoat.search.tasks import Task

Watch = Callable[[Mapping[str, Any]], None]

WAYS = ("star", "grpo", "rloo", "prm")
IMPROVED = "improved.json"
ROUNDS, SAMPLING = 3, 0.4
"""Of STaR; the share of a round in which answers are written."""
TRIES, GROUPS = 8, 16
"""Answers to a question, and questions of a batch."""
RATES = {"star": 0.3, "grpo": 0.05, "rloo": 0.05, "prm": 0.3}
"""Learning rates, as a share of those that the model was trained with."""
EXAM, EXAM_TRIES = 200, 16
NARROWED = 0.1
"""A fall of pass@k beyond what 200 questions leave to chance that is told."""
WRITTEN = 512
"""Questions that are answered together."""


def improve(
    model: Run | Path | str,
    task: str,
    by: str = "star",
    budget: str = "30m",
    rounds: int = ROUNDS,
    device: str = "auto",
    seed: int = 0,
    watch: Watch | None = None,
) -> Run:
    """Improve a model on a task by its own answers; returns the last new run, with what it came to.

    Args:
        model: a run of a language model; it stays as it is.
        task: `countdown:4`, or `VERIFIER:FILE.jsonl`.
        by: `star` (learns its right answers, in rounds), `grpo` or `rloo` (reinforcement), or `prm`: a process reward,
            which does not change the model but can guide its search.
        budget: as everywhere; for all rounds together, answers included.
        rounds: of `star`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: of all chance.
        watch: told what happens.

    Raises:
        RunError: no such run.
        ConfigError: there is no such way or task, or a budget that no clock bounds for `star`.
        DataError: nothing was right, so that nothing can be learned; the verifier accepts wrong answers.
        StoppedError: Ctrl-C; what was trained is kept.
    """
    from nomoat.search.tasks import find

    if by not in WAYS:
        raise ConfigError(f"there is no way `{by}`", f"there is {', '.join(WAYS)}", nearest(by, WAYS))
    if rounds < 1:
        raise ConfigError("there is at least one round", f"it is {rounds}")
    base, found = of_text(at_hand(model)), find(task)
    _doubted(found, watch)
    before = examined(base, found, device, seed, watch)
    began, spend = time.perf_counter(), Budget.parse(budget)
    run, course = base, list[str]()
    if by == "star":
        whole = spend.seconds()
        if whole is None:
            raise ConfigError(f"rounds cannot be made of {budget}", "each takes a share of the time", "say 30m")
        for number in range(rounds):
            left = whole - (time.perf_counter() - began)
            run, told = _round(run, found, left / (rounds - number), (device, seed + number, watch))
            course.append(f"round {number + 1}: {told}")
    else:
        make = _judging if by == "prm" else _reinforced
        run = make(base, found, spend, by, (device, seed, watch))
        course = _course(run)
    after = None if by == "prm" else examined(run, found, device, seed, watch)
    return making.reported(run, Improvement(by, found.name, before, after, tuple(course)), began)


def _round(run: Run, task: Task, seconds: float, how: tuple[str, int, Watch | None]) -> tuple[Run, str]:
    """Answers for a part of the time, and learning those that are right for the rest; and what the answers were."""
    device, seed, watch = how
    path, right_QT = written(run, task, SAMPLING * seconds, device, seed, watch)
    if not right_QT.any():
        raise DataError(
            f"{run.name} has no right answer to {task.name}",
            "there is nothing to learn from",
            "begin with a better model, or easier questions",
        )
    from nomoat.data.rollouts import Kept

    recipe = _of(run, "star", Budget.parse(f"{max(2.0, (1 - SAMPLING) * seconds):.1f}s"), seed)
    recipe = replace(recipe, about=f"{run.label}, taught its right answers to {task.name}.", data=Kept(str(path)))
    alike = (right_QT == right_QT[:, :1]).all(1).mean()
    told = f"{right_QT.size:,} answers, right {right_QT.mean():.3f}, groups without advantage {alike:.3f}"
    return _trained(run, recipe, "star", how), told


def _reinforced(run: Run, task: Task, budget: Budget, by: str, how: tuple[str, int, Watch | None]) -> Run:
    """GRPO or RLOO."""
    from nomoat.data.rollouts import Rollouts
    from nomoat.families.grpo import GRPO
    from nomoat.search.tasks import CountdownTask

    _, seed, _ = how
    spelling = run.path / "tokenizer.json"
    # What is reinforced must be what wrote: were only legal tokens drawn, nothing would hold the probability of all of
    # them together, and it runs away.
    free = replace(task, legal=False) if isinstance(task, CountdownTask) else task
    data = Rollouts(free, TRIES, "group" if by == "grpo" else "others", str(spelling) if spelling.exists() else "")
    recipe = replace(
        _of(run, by, budget, seed),
        about=f"{run.label}, reinforced on {task.name} ({by}).",
        family=GRPO(run.recipe.product),
        data=data,
        batch_size=TRIES * GROUPS,
    )
    return _trained(run, recipe, by, how)


def _judging(run: Run, task: Task, budget: Budget, by: str, how: tuple[str, int, Watch | None]) -> Run:
    """A process reward: which beginnings end right."""
    from nomoat.data.rollouts import Kept
    from nomoat.families.process_reward import ProcessReward

    device, seed, watch = how
    seconds = budget.seconds()
    if seconds is None:
        raise ConfigError(f"a process reward cannot be made of {budget.text}", "answers take time too", "say 10m")
    path, _ = written(run, task, SAMPLING * seconds, device, seed, watch)
    recipe = replace(
        _of(run, by, Budget.parse(f"{max(2.0, (1 - SAMPLING) * seconds):.1f}s"), seed),
        about=f"How likely it is that what {run.label} writes on {task.name} ends right.",
        family=ProcessReward(run.recipe.product),
        data=Kept(str(path), only_right=False),
        ema=None,
    )
    return _trained(run, recipe, by, how)


def _trained(base: Run, recipe: Recipe, by: str, how: tuple[str, int, Watch | None]) -> Run:
    """A new run beside its base, which spells and talks as that does, trained to its end."""
    device, _, watch = how
    run = making.started(f"{base.label.removesuffix(f'-{by}')}-{by}", recipe, None, watch, None)
    for name in ("tokenizer.json", "chat.json"):
        if (base.path / name).exists():
            shutil.copyfile(base.path / name, run.path / name)
    return making.trained(run, device, watch)


def _of(run: Run, by: str, budget: Budget, seed: int) -> Recipe:
    """The run's recipe, going on from its weights, more slowly."""
    was = run.recipe
    rates = {name: RATES[by] * getattr(was.optimizer, name) for name in ("learning_rate", "adam_learning_rate")}
    optimizer: Optimizer = replace(was.optimizer, **rates, warmdown=0.3)
    return replace(
        was,
        family=was.product,
        budget=budget,
        seed=seed,
        optimizer=optimizer,
        start=Ref(str(run.path)).pinned(),
        expect={},
    )


def written(
    run: Run, task: Task, seconds: float, device: str, seed: int, watch: Watch | None = None
) -> tuple[Path, Any]:
    """Answers of a run to training questions for so long, as a file in it; which are right, bool [Q, TRIES]."""
    import numpy as np

    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.data.chat import talking
    from nomoat.search.replay import store
    from nomoat.search.tasks import Attempts

    began, number, done = time.perf_counter(), 0, list[Attempts]()
    model: Any = load(run).to(choose(device))
    while not done or time.perf_counter() - began < seconds:
        index = number * WRITTEN // TRIES + np.arange(WRITTEN // TRIES)
        with run.autocast(choose(device)):
            done.append(
                task.attempts(model, talking(run.path), task.train(seed + 7, index), TRIES, seed * 7919 + number)
            )
        number += 1
        if watch is not None:
            spent = time.perf_counter() - began
            watch({"kind": "phase", "phase": "writing answers", "step": min(spent, seconds), "steps": seconds})
    length = max(each.tokens.shape[1] for each in done)
    arrays: dict[str, Any] = {}
    for name in ("tokens", "mask", "ends"):
        parts = [getattr(each, name) for each in done]
        wide = [np.pad(np.asarray(part), ((0, 0), (0, length - part.shape[1]))) for part in parts]
        arrays[name] = np.concatenate(wide).astype(np.int32 if name == "tokens" else bool)
    arrays["right"] = np.concatenate([each.right for each in done])
    path = run.path / f"answers-{seed}.npz"
    store(path, arrays)
    return path, arrays["right"].reshape(-1, TRIES) >= 1


def examined(run: Run, task: Task, device: str, seed: int, watch: Watch | None = None) -> dict[str, float]:
    """pass@1 and pass@k of a run on the task's exam."""
    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.data.chat import talking
    from nomoat.search.worded import pass_at

    if watch is not None:
        watch({"kind": "phase", "phase": "reporting", "detail": f"{run.name} on the exam"})
    model: Any = load(run).to(choose(device))
    questions = task.exam(EXAM)
    with run.autocast(choose(device)):
        right = task.attempts(model, talking(run.path), questions, EXAM_TRIES, seed + 31).right
    solved = right.reshape(-1, EXAM_TRIES) >= 1
    return {f"pass@{k}": float(pass_at(solved, k).mean()) for k in (1, 4, EXAM_TRIES)} | {
        "questions": float(len(solved))
    }


def _doubted(task: Task, watch: Watch | None) -> None:
    """A verifier that accepts what is wrong would teach it: that is refused.

    Raises:
        DataError: it does.
    """
    from nomoat.search.verdicts import suspicious

    verify = getattr(task, "verify", None)
    if verify is not None and (said := suspicious(verify, task.exam(4))):
        raise DataError("this verifier cannot teach", said, "mend it, or name another")


def _course(run: Run) -> list[str]:
    """How a reinforcement went: its first and last tenth."""
    steps = [event for event in run.metrics("step") if "reward" in event]
    if len(steps) < 10:
        return []
    tenth = len(steps) // 10
    told = []
    for name, words in (
        ("reward", "right"),
        ("idle", "groups without advantage"),
        ("nats", "nats a token"),
        ("kl", "kl"),
    ):
        first, last = (sum(each[name] for each in part) / tenth for part in (steps[:tenth], steps[-tenth:]))
        told.append(f"{words}: {first:.3f} at first, {last:.3f} at the end")
    if sum(each["idle"] for each in steps[-tenth:]) / tenth > 0.8:
        told.append("in most groups all answers are alike: the questions are too easy or too hard to learn from")
    return told


@dataclass(frozen=True)
class Improvement:
    """What a model has become.

    Args:
        by: the way.
        task: its name.
        before, after: pass@k on the exam; None: the model itself was not changed.
        course: how it went, in words.
    """

    by: str
    task: str
    before: Mapping[str, float]
    after: Mapping[str, float] | None
    course: tuple[str, ...]

    def as_text(self) -> str:
        """A line a figure."""
        count = int(self.before["questions"])
        lines = [f"{self.task}, {count} held-out questions, by {self.by}"]
        for name in (each for each in self.before if each.startswith("pass@")):
            after = "" if self.after is None else f" -> {self.after[name]:.1%}"
            lines.append(f"{name:<8}{self.before[name]:.1%}{after}")
        most = f"pass@{EXAM_TRIES}"
        if self.after is not None and self.after[most] < self.before[most] - NARROWED:
            lines.append(
                f"its tries have become alike: where a search makes {EXAM_TRIES}, the model of before finds more"
            )
        return "\n".join([*lines, *self.course])

    def as_markdown(self) -> str:
        """For the card."""
        return f"## Improved\n\n```\n{self.as_text()}\n```\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "by": self.by,
            "task": self.task,
            "before": dict(self.before),
            "after": self.after,
            "course": self.course,
        }
