"""The verbs, as functions: what `import nomoat` offers and what the commands call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nomoat.core import run as _run
from nomoat.doctor import examine

if TYPE_CHECKING:
    from nomoat.core.run import RunSummary
    from nomoat.doctor import Finding


def runs(root: Path | str | None = None) -> list[RunSummary]:
    """The runs below `root` (default: $NOMOAT_RUNS or ./runs), oldest first."""
    return _run.listing(root)


def doctor(device: str = "auto") -> list[Finding]:
    """What this machine has, what ails it, and what mends it.

    Raises:
        ConfigError: there is no such device.
    """
    return examine(device)
