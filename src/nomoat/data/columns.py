"""Which columns of a table hold the text, the licence, the author: chosen by name, else by length, and said so.

names + the first rows -> Choice(text columns, ledger columns, how it was chosen) -> a row -> Document
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nomoat.core.errors import nearest
from nomoat.core.ledger import UNKNOWN, Origin
from nomoat.data.document import Document, Dropped
from nomoat.data.spdx import licence_id
from nomoat.data.streams import UnreadableError, unified

SAMPLE_ROWS = 200
LONG = 20  # a string column shorter than this on average is a label, not text

TEXT_NAMES = (
    "text",
    "content",
    "body",
    "document",
    "article",
    "story",
    "passage",
    "abstract",
    "raw_content",
    "full_text",
    "fulltext",
    "page_content",
    "markdown",
    "code",
    "message",
    "sentence",
    "review",
    "paragraph",
    "speech",
    "lyrics",
    "poem",
    "transcript",
)
OUTPUT = "LicenseRef-provider-output"  # the provider's terms leave it to its user, with a contract about its use
LEDGER_NAMES = {
    "licence": ("licence", "license", "spdx", "spdx_id", "license_id", "licence_id"),
    "author": ("author", "author_name", "creator", "authors"),
    "date": ("date", "published", "created", "created_at", "timestamp", "year"),
    "origin": ("origin", "generator"),
    "generation": ("generation",),
    "derived_from": ("derived_from",),
}


@dataclass(frozen=True)
class Choice:
    """Args:
    text: the columns joined by an empty line to make the text; empty: the row is written out name by name.
    ledger: ledger field -> column.
    how: a few words for the manifest.
    """

    text: tuple[str, ...]
    how: str
    ledger: Mapping[str, str] = field(default_factory=dict)


def choose(names: Sequence[str], rows: Sequence[Mapping[str, Any]], asked: str | None = None) -> Choice:
    """Pick the columns of a table from its names and first rows.

    Args:
        names: all column names in order.
        rows: the first rows.
        asked: the user's choice, several names with commas between; it wins over everything.

    Raises:
        UnreadableError: where a column that was asked for does not exist; names the nearest.
    """
    lower = {name.strip().lower(): name for name in reversed(names)}
    ledger = {key: lower[word] for key, words in LEDGER_NAMES.items() for word in reversed(words) if word in lower}
    if "generation" not in ledger:
        ledger.pop("origin", None)  # without a generation, "origin" is any word: a city, an airport
    lengths = {name: mean_length([row.get(name) for row in rows]) for name in names if name not in ledger.values()}
    if asked:
        wanted = tuple(part.strip() for part in asked.split(","))
        for name in wanted:
            if name not in names:
                hint = nearest(name, names) or f"the columns are {', '.join(names)}"
                raise UnreadableError("no such column", f"`{name}`: {hint}")
        return Choice(wanted, f"{', '.join(wanted)} (as asked)", ledger)
    for word in TEXT_NAMES:
        if lengths.get(lower.get(word, ""), 0) >= (1 if word in ("text", "content") else LONG):
            return Choice((lower[word],), f"{lower[word]} (by name)", ledger)
    longest = max(lengths, key=lambda name: lengths[name], default="")
    if longest and lengths[longest] >= LONG:
        return Choice((longest,), f"{longest} (the longest text)", ledger)
    return Choice((), "every column, row by row (none holds long text)", ledger)


def mean_length(values: Sequence[Any]) -> float:
    """Mean characters of the strings among the values that are there; 0 where most are no strings."""
    there = [value for value in values if value not in (None, "")]
    strings = [value for value in there if isinstance(value, str) and not is_number(value)]
    return sum(map(len, strings)) / len(strings) if strings and len(strings) * 2 > len(there) else 0.0


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def document(row: Mapping[str, Any], choice: Choice, source: str, member: str) -> Document | Dropped:
    """Make a document of a row, its ledger fields from the row's own columns."""
    if choice.text:
        parts = [value for name in choice.text if isinstance(value := row.get(name), str) and value.strip()]
        if not parts:
            return Dropped(source, member, "no text in its column", ", ".join(choice.text))
        text = parts[0] if len(parts) == 1 else "\n\n".join(parts)
    else:
        said = [f"{name}: {shown(value)}" for name, value in row.items() if value not in (None, "")]
        if not said:
            return Dropped(source, member, "empty row")
        text = "\n".join(said)
    made = Document(unified(text), source, member, column=choice.how)
    for key, name in choice.ledger.items():
        value = row.get(name)
        if value not in (None, ""):
            note(made, key, name, value)
    teacher = Origin.of(made.origin)
    if not made.evidence and made.generation and (teacher.terms or teacher.licence not in ("", UNKNOWN)):
        made.licence = licence_id(teacher.licence) or (OUTPUT if teacher.terms else None)
        made.evidence = f"column origin: written by {teacher.name}"
    return made


def note(made: Document, key: str, name: str, value: Any) -> None:
    """Write one ledger field; a value that cannot be read as one is left out, and for a licence said so."""
    if key == "licence":
        made.licence = licence_id(str(value))
        made.evidence = (
            f"column {name}" if made.licence else f"column {name} says {str(value)[:60]!r}: no known licence"
        )
    elif key == "generation":
        made.generation = int(value) if str(value).isdigit() else 0
    elif key == "origin":
        made.origin = str(Origin.of(value))
    elif key == "derived_from":
        made.derived_from = tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
    else:
        setattr(made, key, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
