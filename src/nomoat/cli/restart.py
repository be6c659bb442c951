"""The allocator's settings: glibc reads them when a process starts, so the command starts itself once more.

    nomoat make -> environment + GLIBC_TUNABLES, NOMOAT_ALLOCATOR=tuned -> the same command, the same process id

Worth 15-30 % of the training speed on two cores (docs/experiments.md). NOMOAT_ALLOCATOR=off leaves it out.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

MARK = "NOMOAT_ALLOCATOR"


def tuned(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment to start again with, or None where there is nothing to gain: not glibc, off, or done already."""
    if environment.get(MARK) or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    from nomoat.core.allocator import tune_allocator

    wanted = tune_allocator()
    if all(environment.get(name) == value for name, value in wanted.items()):
        return None
    return {**environment, **wanted, MARK: "tuned"}


def with_allocator() -> None:
    """Start this very command again under the tuned allocator; returns only where that is not wanted.

    Only a process whose command line is ours is replaced: not a test, a notebook or a program that calls `main`.
    """
    if "torch" in sys.modules or not is_ours(sys.orig_argv):
        return
    environment = tuned(os.environ)
    if environment is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def is_ours(command: list[str]) -> bool:
    """Whether a process with this command line was started to run `nomoat`: the script, or `python -m nomoat.cli`."""
    words = command[1:]
    while words and words[0].startswith("-"):
        if words[0] == "-m":
            return words[1:2] == ["nomoat.cli"]
        if words[0] == "-c":
            return False
        words = words[2:] if words[0] in ("-X", "-W") else words[1:]
    return bool(words) and Path(words[0]).name == "nomoat"
