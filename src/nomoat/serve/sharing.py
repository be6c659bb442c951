"""Runs that were adapted from one base share its weights and one engine, each under a name of its own.

runs -> groups of one base -> base, loaded once + the adapters alone -> one engine -> a Served for each run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from nomoat.core import checkpoint
from nomoat.core.errors import RunError
from nomoat.core.recipe import Ref
from nomoat.core.run import Run, load
from nomoat.nn.several import together

if TYPE_CHECKING:
    from nomoat.core.family import Family


def groups(runs: Mapping[str, Run]) -> dict[str, tuple[str, ...]]:
    """For each run that shares weights with others, by name, the names of all of them; the rest are served alone.

    Raises:
        RunError: the base of an adapted run is gone.
    """
    bases: dict[str, Any] = {}
    for name, run in runs.items():
        recipe = getattr(run, "recipe", None)
        if getattr(recipe, "adapt", None) is not None:
            bases[name] = Run.open(run.recipe.start or run).path.resolve()
    shared = set(bases.values())
    whose = bases | {name: path for name, run in runs.items() if (path := run.path.resolve()) in shared}
    found = {name: tuple(other for other in whose if whose[other] == whose[name]) for name in whose}
    return {name: names for name, names in found.items() if len(names) > 1}


def read_group(runs: Iterable[Run]) -> tuple[Family, dict[str, int]]:
    """The base with the adapters of some runs, and which of them a run is: -1 the base itself.

    Raises:
        RunError: they were adapted from different states of the base.
        CheckpointError: no checkpoint is good, or the base is no longer what they were adapted from.
    """
    runs = list(runs)
    adapted = [run for run in runs if run.recipe.adapt is not None]
    first, *others = {run.recipe.start or Ref(run.name) for run in adapted}
    if any(other.sha256 != first.sha256 for other in others):
        what = f"{' and '.join(run.name for run in adapted)} were adapted from different states of one run"
        raise RunError(what, "they cannot share its weights", "serve them apart")
    family = together(load(first), [_alone(run) for run in adapted])
    return family, {run.name: adapted.index(run) if run in adapted else -1 for run in runs}


def _alone(run: Run) -> Family:
    """An adapted run's model, of which only the adapter is in memory."""
    path = checkpoint.newest(run.checkpoints).path
    tensors = checkpoint.read(path, "weights") | checkpoint.read(path, checkpoint.model_group(path))
    with torch.device("meta"):
        family = run.recipe.adapt.apply(run.recipe.family.build({}))
    family.load_state_dict(tensors, strict=False, assign=True)
    return family
