"""Somebody else's settings, each taken once and checked; what nobody asked for is refused by name.

A field that is passed over could change what the model says, and nobody would notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from nomoat.core.errors import DataError

MOST = 1 << 24
"""No width, depth or vocabulary is larger."""
MOST_BYTES = 1 << 28
REQUIRED: Any = object()

Value = TypeVar("Value")


class Fields:
    """Fields by name.

    Args:
        values: name -> value; None counts as absent.
        source: the file, for errors.
        neutral: a pattern of names that change nothing in what the model says.
    """

    def __init__(self, values: Mapping[str, Any], source: str, neutral: str = r"(?!)") -> None:
        self.values = {name: value for name, value in values.items() if value is not None}
        self.source, self.neutral = source, neutral

    def refused(self, name: str, value: Any, why: str) -> DataError:
        """The error for a field that cannot be honoured."""
        return DataError(f"{self.source}: `{name}` is {str(value)[:80]}, which cannot be honoured", why)

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """A field's value as it is."""
        value = self.values.pop(name, default)
        if value is REQUIRED:
            raise DataError(f"{self.source} has no `{name}`", "the model cannot be built without it")
        return value

    def whole(self, name: str, default: Any = REQUIRED, most: int = MOST) -> int:
        """A whole number above zero."""
        value = self.take(name, default)
        if value is not default and (type(value) is not int or not 1 <= value <= most):
            raise self.refused(name, value, f"it must be a whole number from 1 to {most:,}")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        """A finite number above zero."""
        value = self.take(name, default)
        if value is not default and (type(value) not in (int, float) or not 0 < value < 1e12):
            raise self.refused(name, value, "it must be a number above zero")
        return value if value is None else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self.word(name, {True: True, False: False}, default)

    def word(self, name: str, known: Mapping[Any, Value], default: Any = REQUIRED) -> Value:
        """What a word means; others than the known ones are refused."""
        value = self.take(name, default)
        if not isinstance(value, str | bool) or value not in known:
            raise self.refused(name, value, f"there is {', '.join(map(str, known))}")
        return known[value]

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse any value but these; absent is fine."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise self.refused(name, value, f"only {' or '.join(map(str, allowed))} can")

    def close(self) -> None:
        """Refuse what nobody has asked for, but for what is off or empty."""
        for name, value in self.values.items():
            if value not in (False, "", [], {}) and not re.fullmatch(self.neutral, name):
                raise DataError(
                    f"{self.source} has a field that is not known here: `{name}` = {str(value)[:80]}",
                    "it may change what the model says",
                    "if you know that it does not, take it out of the file",
                )


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        DataError: it cannot be read, or is no object.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read as JSON", str(error)[:200]) from error
    return found
