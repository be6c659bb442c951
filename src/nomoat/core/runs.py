"""Which runs there are, and which one is meant: by path, name, label, prefix or part of a name, or `last`.

runs/ -> listing -> RunSummary ...        text -> locate -> the run's folder

Reads the folders alone and imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from nomoat.core import durable
from nomoat.core.errors import RunError, nearest

STATUSES = ("running", "done", "stopped", "failed")
TAIL_BYTES = 65_536
LABEL = re.compile(r"^\d{4}-\d\d-\d\d-|-[0-9a-f]{8}(-\d+)?$")
"""What a run's name has around what it was called."""


def runs_root() -> Path:
    """Return the folder that holds the runs: $NOMOAT_RUNS, or `runs` in the working directory."""
    return Path(os.environ.get("NOMOAT_RUNS") or "runs")


class RunSummary(NamedTuple):
    """One line of the list of runs. `step`, `loss` and `bits_per_byte` are the last noted, None where there is none."""

    name: str
    path: Path
    status: str
    about: str
    created: float
    step: int | None
    loss: float | None
    bits_per_byte: float | None


def listing(root: Path | str | None = None) -> list[RunSummary]:
    """Return the runs below `root` (default: `runs_root()`), oldest first; imports no torch."""
    root = Path(root) if root is not None else runs_root()
    if not root.is_dir():
        return []
    found = [_summary(path) for path in root.iterdir() if not path.name.startswith(".") and is_run(path)]
    return sorted(found, key=lambda summary: (summary.created, summary.name))


def locate(text: str) -> Path:
    """The folder of the run that is meant.

    Raises:
        RunError: there is none (the nearest is named), or several fit.
    """
    root = runs_root()
    for path in (Path(text), root / text):
        if text and is_run(path):
            return path
    known = listing(root)
    if text == "last" and known:
        return known[-1].path
    labelled = [run for run in known if LABEL.sub("", run.name) == text]
    begun, within = [run for run in known if run.name.startswith(text)], [run for run in known if text in run.name]
    for fits in (labelled, begun, within):
        if text and len(fits) == 1:
            return fits[0].path
        if text and fits:
            raise RunError(f"`{text}` names {len(fits)} runs", ", ".join(run.name for run in fits), "name one of them")
    raise RunError(
        f"there is no run `{text}`",
        f"looked in {root.resolve()}, which holds {len(known)} runs"
        if Path(text) != root
        else "that is the folder of runs",
        nearest(text, [run.name for run in known]) or "`nomoat runs` lists them; $NOMOAT_RUNS says where they are",
    )


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return (path / "recipe.json").is_file()


def _summary(path: Path) -> RunSummary:
    about, created = "", path.stat().st_mtime
    try:
        about = str(json.loads((path / "recipe.json").read_text(encoding="utf-8")).get("about", ""))
        created = float(json.loads((path / "environment.json").read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass  # a damaged run is still listed, by what its folder shows
    last: dict[str, Any] = {}
    for event in durable.lines(path / "metrics.jsonl", TAIL_BYTES):
        last |= {name: event[name] for name in ("step", "loss", "bits_per_byte") if event.get(name) is not None}
    return RunSummary(
        path.name, path, status_of(path), about, created, last.get("step"), last.get("loss"), last.get("bits_per_byte")
    )


def status_of(path: Path) -> str:
    """What STATUS says; `stopped` where it says running and nobody holds the lock."""
    try:
        said = (path / "STATUS").read_text(encoding="utf-8").strip()
    except OSError:
        said = ""
    if said == "running" and durable.holder(path / "lock") is None:
        return "stopped"
    return said if said in STATUSES else "stopped"
