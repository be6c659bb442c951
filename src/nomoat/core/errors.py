"""Errors in the reader's words: what is wrong, why, and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class NomoatError(Exception):
    """What is wrong, why, and how to fix it; the terminal prints the three parts on lines of their own.

    Args:
        what: one sentence that says what is wrong.
        why: the reason, where it is not plain from `what`.
        fix: what to do or to type next.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(". ".join(part.rstrip(".") for part in (what, why, fix) if part))
        self.what, self.why, self.fix = what, why, fix


class ConfigError(NomoatError):
    """A setting that cannot work: found at the door, before anything is computed (exit code 2)."""

    exit_code = 2


class DataError(NomoatError):
    """Files that cannot be read as what they claim to be, or too few of them."""


class CheckpointError(NomoatError):
    """A checkpoint that is truncated, tampered with or missing."""


class RunError(NomoatError):
    """A run directory that cannot be used as asked: locked, changed data, not a run."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known word nearest to `word`, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else ""
