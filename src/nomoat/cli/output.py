"""Where a command's words go: a terminal for people, or standard output as one JSON object a line.

    event / result / error -> Lines (people) or JsonLines (programs)

With --json nothing but our objects reaches standard output: whatever a library prints there is sent to standard error.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

Event = Mapping[str, Any]


class Output(Protocol):
    """What every command writes to."""

    json: bool

    def event(self, event: Event) -> None:
        """Something that happened on the way; `event["kind"]` says what."""

    def say(self, text: str) -> None:
        """Words for people; programs do not see them."""

    def stream(self, piece: str) -> None:
        """A piece of the product itself, written at once and without a line end."""

    def result(self, fields: Event, text: str = "") -> None:
        """The last word: `fields` for programs, `text` for people."""

    def error(self, what: str, why: str, fix: str, **more: Any) -> None:
        """What is wrong, why, and the way out; `more` is for programs."""


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: paths as strings, records as objects, no NaN, no infinity."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and not isinstance(value, Path):  # a number of NumPy or torch
        return plain(value.item())
    return str(value)


class Lines:
    """For people: products on standard output, errors on standard error."""

    json = False

    def event(self, event: Event) -> None:
        if event.get("kind") == "warning":
            sys.stderr.write(f"note: {event.get('text', '')}\n")

    def say(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def stream(self, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    def result(self, fields: Event, text: str = "") -> None:
        if text:
            self.say(text)

    def error(self, what: str, why: str, fix: str, **more: Any) -> None:
        sys.stdout.flush()
        for label, text in (("error", what), ("  why", why), ("  fix", fix)):
            if text:
                sys.stderr.write(f"{label}: {' '.join(text.split())}\n")
        sys.stderr.flush()


class JsonLines:
    """For programs: one object a line on `file`, the last one of kind "result" or "error"."""

    json = True

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def event(self, event: Event) -> None:
        self.file.write(json.dumps(plain(event), ensure_ascii=False, allow_nan=False) + "\n")
        self.file.flush()

    def say(self, text: str) -> None:
        pass

    def stream(self, piece: str) -> None:
        if piece:
            self.event({"kind": "text", "text": piece})

    def result(self, fields: Event, text: str = "") -> None:
        self.event({"kind": "result", **fields})

    def error(self, what: str, why: str, fix: str, **more: Any) -> None:
        self.event({"kind": "error", "what": what, "why": why, "fix": fix, **more})


@contextmanager
def json_lines() -> Iterator[JsonLines]:
    """Keep standard output for our objects; everything else that is printed goes to standard error meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with (
            os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="backslashreplace") as file,
            redirect_stdout(sys.stderr),
        ):
            yield JsonLines(file)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def colours(file: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a live display with colours is wanted: a terminal that is not dumb, and no NO_COLOR."""
    return file.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


Watch = Callable[[Event], None]
