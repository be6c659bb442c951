"""The run directory: the only thing that stages share.

recipe -> Run.create -> runs/<date>-<name>-<hash>/ -> note, decide, checkpoints -> Run.open -> load -> Family

recipe.json      the resolved recipe            environment.json   machine and versions
metrics.jsonl    one line an event              decisions.jsonl    what was measured or chosen, and why
checkpoints/     step-N/                        samples/           what the model wrote on the way
ledger.json      whose data, which licences     card.md card.json  what it is, cost and can do
STATUS           running, done, stopped, failed lock               held by the process that trains
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core import durable
from nomoat.core.config import fingerprint, from_json, to_json
from nomoat.core.errors import CheckpointError, ConfigError, RunError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.runs import LABEL, STATUSES, locate, runs_root, status_of

if TYPE_CHECKING:
    import torch

    from nomoat.core.family import Family


Watch = Callable[[dict[str, Any]], None]


class Run:
    """A run directory. One process at a time may train in it (`lock`); any number may read it.

    Args:
        path: the directory.
        recipe: what it trains.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.watch: Watch | None = None
        self._locks = 0

    @classmethod
    def create(cls, root: Path | str | None, name: str, recipe: Recipe) -> Run:
        """Make a new directory `root/<date>-<name>-<first 8 digits of the recipe's hash>`; a second one gets `-2`.

        Args:
            root: the folder of runs; None: `runs_root()`.
            name: for people; anything but letters, digits, dots and dashes becomes a dash.
            recipe: saved as recipe.json.

        Raises:
            RunError, CheckpointError: the folder cannot be written; what an adapter is for, or a part, is no run.
            ConfigError: the recipe holds something that cannot be saved.
        """
        root = Path(root) if root is not None else runs_root()
        if recipe.adapt is not None and recipe.start is not None:
            recipe = replace(recipe, start=recipe.start.pinned())
        recipe = recipe.pinned() if recipe.parts else recipe
        label = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower()[:40] or "run"
        stem = f"{datetime.date.today().isoformat()}-{label}-{fingerprint(recipe)[:8]}"
        fresh = cls(root / f".new-{os.getpid()}-{secrets.token_hex(4)}", recipe)
        with fresh._disk(), fresh._gone_if_it_fails():
            for folder in (fresh.checkpoints, fresh.path / "samples"):
                folder.mkdir(parents=True)
            fresh.write_json("recipe.json", to_json(recipe))
            fresh.write_json("environment.json", _environment())
            fresh.mark("running")
            target = fresh._settle(root, stem)
        return cls(target, recipe)

    @contextmanager
    def _gone_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _settle(self, root: Path, stem: str) -> Path:
        """Rename into place, whole, so that no half-made directory ever looks like a run."""
        number = 1
        while True:
            target = root / (stem if number == 1 else f"{stem}-{number}")
            try:
                if not target.exists():
                    self.path.rename(target)
                    durable.sync_folder(root)
                    return target
            except OSError:
                if not target.exists():  # otherwise another process took the name meanwhile
                    raise
            number += 1

    @classmethod
    def open(cls, where: Path | str | Ref | Run) -> Run:
        """Open a run by path, by name, label, unique prefix or part of a name below the runs root, or `last`.

        Raises:
            RunError: there is none (the nearest is named), or several fit.
            ConfigError: its recipe is of another version of nomoat.
        """
        if isinstance(where, Run):
            return where
        path = locate(str(where.run if isinstance(where, Ref) else where))
        try:
            data = json.loads((path / "recipe.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a run", f"its recipe.json cannot be read: {error}") from error
        recipe = from_json(data)
        if not isinstance(recipe, Recipe):
            raise RunError(f"{path} is not a run", "its recipe.json is no recipe")
        return cls(path, recipe)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def label(self) -> str:
        """What it was called when it was made: the name without date and hash."""
        return LABEL.sub("", self.name)

    @property
    def checkpoints(self) -> Path:
        """The folder of step-N directories."""
        return self.path / "checkpoints"

    @property
    def status(self) -> str:
        """What STATUS says; `stopped` where it says running and nobody holds the lock."""
        return status_of(self.path)

    def mark(self, status: str) -> None:
        """Write STATUS: one of `STATUSES`."""
        assert status in STATUSES
        self.write_text("STATUS", status + "\n")

    @contextmanager
    def lock(self) -> Iterator[Run]:
        """Hold the run for this process; the system lets go when the process ends, however it ends.

        Raises:
            RunError: another process holds it (its id is named), or this file system has no locks.
        """
        if self._locks:
            self._locks += 1
            try:
                yield self
            finally:
                self._locks -= 1
            return
        handle = self._acquire()
        self._locks = 1
        try:
            yield self
        finally:
            self._locks = 0
            os.close(handle)

    def _acquire(self) -> int:
        try:
            return durable.acquire(self.path / "lock")
        except BlockingIOError:
            pid = durable.holder(self.path / "lock") or "unknown"
            raise RunError(
                f"{self.name} is in use by process {pid}",
                "two processes in one run would write over each other",
                "wait for it" if pid == "unknown" else f"wait for it, or stop it: `kill -INT {pid}`",
            ) from None
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be locked", str(error), "put the runs on a local disk: $NOMOAT_RUNS"
            ) from error

    def note(self, kind: str, **fields: Any) -> None:
        """Append one event to metrics.jsonl and hand it to `self.watch`.

        Args:
            kind: what happened: `step`, `evaluate`, `sample`, `warning`, ...
            fields: numbers (also of numpy or torch), texts, lists; `step` is the number of steps done.
        """
        event = {"kind": kind, "time": time.time(), **{name: _plain(value) for name, value in fields.items()}}
        with self._disk():
            durable.append(self.path / "metrics.jsonl", event)
        if self.watch is not None:
            self.watch(event)

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the events noted so far, in order; a line torn by a kill is left out."""
        return [event for event in durable.lines(self.path / "metrics.jsonl") if kind in (None, event.get("kind"))]

    def rewind(self, step: int) -> int:
        """Drop the events of steps after `step`, so that a resumed run counts nothing twice; returns how many."""
        events = self.metrics()
        kept = [event for event in events if not (isinstance(event.get("step"), int) and event["step"] > step)]
        if len(kept) < len(events):
            self.write_text("metrics.jsonl", "".join(durable.dump(event) for event in kept))
        return len(events) - len(kept)

    def decide(self, name: str, value: Any, step: int, why: str) -> None:
        """Append a decision to decisions.jsonl, on disk before this returns: resume replays it, never measures again.

        Args:
            name: what was decided: `steps`, `precision`, `threads`, ...
            value: JSON, or a frozen dataclass.
            step: from which step on it holds.
            why: the measurement or the reason, in words.
        """
        line = {"name": name, "value": to_json(value), "step": step, "why": why}
        with self._disk():
            durable.append(self.path / "decisions.jsonl", line, sync=True)

    def decisions(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the decisions in the order made: dicts of name, value, step, why."""
        found = [line for line in durable.lines(self.path / "decisions.jsonl") if name in (None, line.get("name"))]
        return [{**line, "value": from_json(line.get("value"))} for line in found]

    def decided(self, name: str, default: Any = None, step: int | None = None) -> Any:
        """Return the value that holds for `name` (at `step`, or now), or `default` where nothing was decided."""
        found = [line["value"] for line in self.decisions(name) if step is None or line["step"] <= step]
        return found[-1] if found else default

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which its model is used: as precisely as it was trained, where the device can.

        In bf16 most of what a model does takes half the time or less.
        """
        from nomoat.core.device import autocast, has_bf16

        return autocast(device, self.decided("precision", "fp32") if has_bf16(device) else "fp32")

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the run whole or not at all; returns its path."""
        path = self.path / name
        with self._disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(path, text.encode())
        return path

    def write_json(self, name: str, data: Any) -> Path:
        """Write JSON (also frozen dataclasses and paths, by `to_json`) whole or not at all; returns its path."""
        return self.write_text(
            name, json.dumps(durable.strict(data), indent=2, ensure_ascii=False, default=_as_json) + "\n"
        )

    def read_json(self, name: str) -> Any:
        """Return what a JSON file of the run holds, or None where there is no such file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path.parent} cannot be written",
                error.strerror or str(error),
                "free some disk space, or set $NOMOAT_RUNS to a folder that can be written",
            ) from error


def load(
    ref: Ref | Run | Path | str,
    weights: str | None = None,
    parts: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    merged: bool = False,
) -> Family:
    """Return the trained model of a run, on the CPU, in eval mode and without gradients; the one place that does so.

    The newest checkpoint that verifies is taken; where a newer one is damaged, `watch` is told, or else standard error.

    Args:
        ref: a run, its path or name, or a Ref, whose SHA-256 is held against the weights.
        weights: `ema` or `weights`; None: the slow copy where there is one, else the weights.
        parts: handed to `recipe.build`.
        watch: receives {"kind": "warning", "text": ...}.
        merged: work the adapter of an adapted model into plain float weights.

    Raises:
        RunError: no such run.
        CheckpointError: no checkpoint verifies, or it is not the one that the Ref names.
    """
    from nomoat.core import checkpoint

    run = Run.open(ref)
    found = checkpoint.newest(run.checkpoints)
    for warning in found.warnings():
        (watch or _say)({"kind": "warning", "text": warning})
    group = weights or checkpoint.model_group(found.path)
    wanted, held = ref.sha256 if isinstance(ref, Ref) else None, checkpoint.digest(found.path, group)
    if wanted not in (None, held):
        raise CheckpointError(
            f"{run.name} no longer holds the weights that were asked for",
            f"wanted SHA-256 {str(wanted)[:12]}..., found {held[:12]}...",
            "it was trained further, or changed; name it without the hash to take it as it is",
        )
    # The slow copy may hold the parameters alone: what else a model keeps (buffers) is with the weights.
    tensors = {} if group == "weights" else checkpoint.read(found.path, "weights")
    tensors |= checkpoint.read(found.path, group)
    try:
        family = _filled(run.recipe, parts, tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {run.name} do not fit its recipe", str(error)) from error
    product = family.product.eval().requires_grad_(False)
    return run.recipe.adapt.merged(product) if merged and run.recipe.adapt else product


def of_text(run: Run) -> Run:
    """The run itself, if its model reads and writes text.

    Raises:
        ConfigError: it is one of pictures or of a game.
    """
    if run.recipe.of_pictures:
        raise ConfigError(f"{run.name} is no model of text", run.recipe.about, f"`nomoat draw {run.name}`, if it draws")
    if hasattr(run.recipe.product, "game"):
        raise ConfigError(f"{run.name} is no model of text", run.recipe.about, f"`nomoat play {run.name}`")
    return run


def _filled(recipe: Recipe, parts: Mapping[str, Any] | None, tensors: dict[str, Any]) -> Family:
    """The recipe's family around these very tensors, in its own types: nothing is drawn, nothing held twice."""
    from nomoat.core.device import hollow
    from nomoat.core.family import WRAPPING

    if recipe.adapt:
        family = recipe.build(parts)  # what it shares with its base is the base's
        family.take(tensors)
        return family
    # Whatever it began with, the checkpoint holds all of it; and of what wraps it, nothing.
    recipe = replace(recipe, start=None, family=recipe.product)
    parts = recipe.found(parts)  # before what follows is hollow: these are real
    with hollow():
        family = recipe.build(parts)
    own = family.state_dict()
    wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith(WRAPPING)}
    fitting = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in wanted.items()}
    tensors.clear()
    wanted.clear()
    family.load_state_dict(fitting, assign=True)
    if any(tensor.is_meta for tensor in (*family.parameters(), *family.buffers())):
        family = recipe.build(parts)  # it computes something that no checkpoint holds
        family.load_state_dict(fitting)
    return family


def _say(event: Mapping[str, Any]) -> None:
    sys.stderr.write(f"{event['text']}\n")


def _as_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else to_json(value)


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's, arrays as lists; what JSON has no word for as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def _environment() -> dict[str, Any]:
    import nomoat

    return {
        "created": time.time(),
        "nomoat": nomoat.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
