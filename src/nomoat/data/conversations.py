"""Conversations in files: chat jsonl, Alpaca, ShareGPT, prompt and completion; jsonl, json, csv, parquet, also packed.

    files -> rows -> form, by its keys -> turns -> checked: system?, user, assistant, ... -> Conversation | Dropped

A row that is broken is left out with its number and the reason; none is mended. Several rows come of one with a list of
`instances` (Self-Instruct), or where the asked-for columns lie in a list (`questions.question`).

Taori et al. 2023 (Alpaca); Wang et al. 2023, arXiv:2212.10560 (Self-Instruct).
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.columns import LEDGER_NAMES, note
from nomoat.data.document import Document, Dropped
from nomoat.data.licence import README_FILE, LicenceFinder
from nomoat.data.readers import Found, losses, member_set_aside, visible, walk
from nomoat.data.streams import (
    Source,
    UnreadableError,
    as_seekable,
    decoded,
    inner_name,
    lines,
    opened,
    text_source,
    unified,
)
from nomoat.data.tables import Physical, csv_rows, likely_separator, parse

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq")
WHOLE_BYTES = 256_000_000  # a .json or packed parquet is held in memory, up to this
LOOKED_AT = 50  # rows without a known form, after which a file is taken for one of another kind
ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "tool": "tool",
}  # fmt: skip
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("question", "answer"),
    ("query", "response"), ("query", "answer"), ("instruction", "response"), ("input", "output"),
    ("dialogue", "summary"), ("document", "summary"), ("article", "summary"), ("text", "summary"),
)  # fmt: skip
NO_FORM = "no conversation in it"
FILLED = re.compile(r"{([\w. -]+)}")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation that ends with an answer.

    Args:
        messages: dicts of `role` and `content`.
        source: the file, as shown; with the member of an archive behind a comma.
        line: of the file, or the number of the row.
        form: how the row was read, in words.
        licence: SPDX expression, None where unknown.
        evidence: where the licence was found.
        origin: `human`, or the teacher that wrote the answers.
        terms: of the teacher's maker; "" where there are none.
        teacher_licence: of the teacher, where the row says it: not that of the row, which what it was made from joins.
        generation: 0 for human work, one more than the deepest source for a model's.
        derived_from: hashes of what it was made from.
        open_end: whether the last answer goes on, so that its end is none.
    """

    messages: tuple[Mapping[str, Any], ...]
    source: str = ""
    line: int = 0
    form: str = "messages"
    licence: str | None = None
    evidence: str = ""
    origin: str = "human"
    terms: str = ""
    teacher_licence: str | None = None
    generation: int = 0
    derived_from: tuple[str, ...] = ()
    open_end: bool = False

    @property
    def text(self) -> str:
        """All that is said, a blank line between the turns."""
        return "\n\n".join(message["content"] for message in self.messages)

    @property
    def canonical(self) -> str:
        """The messages as JSON: equal conversations have equal ones."""
        return json.dumps(list(self.messages), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Columns:
    """Where prompt and answer stand, where no known form fits.

    Args:
        prompt: a column, several with commas between, a path into a list (`questions.question`), or a text with
            columns in braces: `"Summarise:\\n{dialogue}"`.
        answer: likewise; of a list of answers the first is taken.
    """

    prompt: str
    answer: str
    names: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        found = [FILLED.findall(said) or [*map(str.strip, said.split(","))] for said in (self.prompt, self.answer)]
        if not all(map(all, found)):
            raise ConfigError("--prompt and --answer belong together", "one of them names no column", "give both")
        object.__setattr__(self, "names", tuple(found[0] + found[1]))

    def turns(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The two messages of a row."""
        answers = {name: value[0] if isinstance(value, list) and value else value for name, value in row.items()}
        return _pair(_filled(self.prompt, row), _filled(self.answer, answers))


def read_conversations(
    paths: Iterable[Path | str], columns: Columns | None = None, licence: str | None = None
) -> Iterator[Conversation | Dropped]:
    """Every conversation of some files and folders, and what was left out, with the reason.

    Args:
        paths: files or folders.
        columns: where prompt and answer stand; None: by the names of the columns.
        licence: SPDX id of everything, in place of what rows and files say.

    Raises:
        ConfigError: a path that does not exist.
        DataError: a column that was asked for is in no row of a file.
    """
    for root in map(Path, paths):
        if not root.exists():
            raise ConfigError(f"there is no file or folder {root}", "", "check the path")
        finder = LicenceFinder(root if root.is_dir() else root.parent, licence)
        for found in walk(root):
            if isinstance(found, Dropped):
                yield found
            elif PurePosixPath(inner_name(found.shown)[0]).suffix.lower() not in (*SUFFIXES, ".zip"):
                if not README_FILE.fullmatch(found.path.name):  # that is evidence of the licence
                    yield Dropped(found.shown, "", "no table")
            else:
                for item in _read(found, columns):
                    yield item if isinstance(item, Dropped) else _settled(item, found.path, finder)


def _settled(item: Conversation, path: Path, finder: LicenceFinder) -> Conversation:
    """With the licence of its file, unless its row has spoken."""
    held = finder.settle(Document("", item.source, licence=item.licence, evidence=item.evidence), path)
    return replace(item, licence=held.licence, evidence=held.evidence)


def _read(found: Found, columns: Columns | None) -> Iterator[Conversation | Dropped]:
    """The conversations of one file; a file in whose first rows there is none is left out as a whole."""
    with losses(found.shown) as lost, found.path.open("rb") as file:
        for name, rows in tables_of(file, found.shown, found.size):
            with losses(name) as broken:
                yield from _of_table(rows, name, columns)
            yield from broken
    yield from lost


def _of_table(rows: Iterator[Any], name: str, columns: Columns | None) -> Iterator[Conversation | Dropped]:
    first = list(islice(rows, LOOKED_AT))
    held = [row for _, row in (item for item in first if not isinstance(item, Dropped)) if isinstance(row, dict)]
    names = list(dict.fromkeys(key for row in held for key in row))
    if columns is not None and held:
        if missing := [one for one in columns.names if one.partition(".")[0] not in names]:
            raise DataError(f"{name} has no column `{missing[0]}`", f"it has {', '.join(names)}", "name one of them")
    elif not any(form_of(row) for row in held):
        yield from (item for item in first if isinstance(item, Dropped))
        detail = f"its columns are {', '.join(map(str, names))[:200]}" if names else ""
        yield Dropped(name, "", NO_FORM if first else "empty", detail)
        return
    for item in chain(first, rows):
        yield from _conversations(item, name, columns)


def _conversations(item: Any, name: str, columns: Columns | None) -> Iterator[Conversation | Dropped]:
    """What a row comes to: usually one."""
    if isinstance(item, Dropped):
        yield item
        return
    number, whole = item
    if not isinstance(whole, dict):
        yield Dropped(name, f"line {number}", "not a JSON object", f"a {type(whole).__name__}")
        return
    for row in _spread(whole, columns):
        try:
            form, turns = ("as asked", columns.turns(row)) if columns else _turns(row)
            messages = tuple(checked(turns))
        except UnreadableError as error:
            yield Dropped(name, f"line {number}", error.reason, error.detail)
            continue
        yield Conversation(messages, name, number, form, **_ledger(row))


def _spread(row: dict[str, Any], columns: Columns | None) -> Iterator[dict[str, Any]]:
    """A row for each entry of the list that the asked-for columns, or Self-Instruct's `instances`, lie in."""
    heads = {name.partition(".")[0] for name in columns.names if "." in name} if columns else {"instances"}
    head = next((one for one in heads if isinstance(row.get(one), list)), None)
    if head is None:
        yield row
        return
    for entry in row[head]:
        inner = entry if isinstance(entry, dict) else {}
        yield {**row, **({f"{head}.{name}": value for name, value in inner.items()} if columns else inner)}


def form_of(row: Mapping[str, Any]) -> str:
    """Which form a row has, by its keys; "" for none."""
    for key in ("messages", "conversations"):
        if isinstance(row.get(key), list):
            return key
    if "instruction" in row and ("output" in row or "instances" in row):
        return "Alpaca"
    pair = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)
    return f"{pair[0]} and {pair[1]}" if pair else ""


def _turns(row: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The form of a row and its messages, not checked yet."""
    form = form_of(row)
    if form in ("messages", "conversations"):
        turns = [turn if isinstance(turn, dict) else {} for turn in row[form]]
        if form == "conversations":
            said = [{"role": "system", "content": row["system"]}] if row.get("system") else []
            turns = said + [{"role": turn.get("from"), "content": turn.get("value")} for turn in turns]
        return {"conversations": "ShareGPT"}.get(form, form), turns
    if form == "Alpaca":
        given = row.get("input") or row.get("context") or ""
        asked = row["instruction"]
        both = asked and isinstance(given, str) and given.strip()
        return form, _pair(f"{asked}\n\n{given}" if both else asked, row.get("output"))
    if form:
        prompt, answer = form.split(" and ")
        return form, _pair(row[prompt], row[answer])
    raise UnreadableError(NO_FORM, f"its columns are {', '.join(map(str, row))[:200]}")


def _pair(prompt: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _filled(said: str, row: Mapping[str, Any]) -> str:
    """The columns that `said` names, or its text with them filled in; a list is lettered, A to Z."""

    def shown(name: str) -> str:
        value = row.get(name)
        if isinstance(value, list):
            return "\n".join(f"{chr(65 + place % 26)}. {item}" for place, item in enumerate(value))
        return "" if value is None else str(value)

    if "{" in said:
        return FILLED.sub(lambda found: shown(found[1]), said.replace("\\n", "\n"))
    return "\n\n".join(filter(None, (shown(name.strip()) for name in said.split(","))))


def checked(turns: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages in our words; a conversation that nobody could have had is refused.

    Raises:
        UnreadableError: with the reason.
    """
    before = ""
    for place, turn in enumerate(turns, 1):
        role, content = ROLES.get(str(turn.get("role")).lower(), ""), turn.get("content")
        if not role:
            raise UnreadableError("unknown role", f"turn {place}: {turn.get('role')!r}")
        allowed = {"system": ("",), "user": ("", "system", "assistant"), "tool": ("assistant", "tool")}
        if before not in allowed.get(role, ("user", "tool")):
            reason = "no prompt" if role == "assistant" and before in ("", "system") else "role out of order"
            raise UnreadableError(reason, f"turn {place}: {role} after {before or 'nothing'}")
        calls = turn.get("tool_calls") if role == "assistant" else None
        if content is not None and not isinstance(content, str):
            raise UnreadableError("content that is no text", f"turn {place}: a {type(content).__name__}")
        if not calls and not (content or "").strip():
            reason = {"user": "no prompt", "assistant": "empty answer"}.get(role, "empty message")
            raise UnreadableError(reason, f"turn {place}")
        yield {"role": role, "content": unified(content or ""), **({"tool_calls": calls} if calls else {})}
        before = role
    if before != "assistant":
        raise UnreadableError("no answer at its end", f"it ends with {before or 'nothing'}")


def _ledger(row: Mapping[str, Any]) -> dict[str, Any]:
    """Whose the row is, as far as it says so itself; `origin` may name a teacher with its licence and terms."""
    held, terms, own = Document("", ""), "", None
    for key in ("licence", "generation", "derived_from"):
        name = next((name for name in LEDGER_NAMES[key] if row.get(name) not in (None, "")), None)
        if name is not None:
            note(held, key, name, row[name])
    origin = row.get("origin")
    if isinstance(origin, dict):
        held.origin, terms = str(origin.get("teacher") or "unknown"), str(origin.get("terms") or "")
        held.generation, own = max(held.generation, 1), origin.get("licence")
        if not held.evidence and origin.get("licence"):
            note(held, "licence", "origin.licence", origin["licence"])
    elif isinstance(origin, str) and origin and "generation" in row:
        held.origin = origin
    named = {name: getattr(held, name) for name in ("licence", "evidence", "origin", "generation", "derived_from")}
    return {**named, "terms": terms, "teacher_licence": str(own) if own else None}


def tables_of(file: IO[bytes], name: str, size: int) -> Iterator[tuple[str, Iterator[Any]]]:
    """The tables of a file: itself, or the members of a zip; each with its rows (number, value) | Dropped."""
    if not name.lower().endswith(".zip"):
        with _rows(file, name, size) as rows:
            yield name, rows
        return
    with zipfile.ZipFile(file) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            inner = visible(info.filename)
            known = PurePosixPath(inner_name(inner)[0]).suffix.lower() in SUFFIXES
            if known and not info.is_dir() and not member_set_aside(info):
                shown = f"{name}, {inner}"
                with archive.open(info) as stream, _rows(stream, shown, info.compress_size, packed=True) as rows:
                    yield shown, rows


@contextmanager
def _rows(file: IO[bytes], name: str, size: int, packed: bool = False) -> Iterator[Iterator[Any]]:
    inner, compression = inner_name(name)
    suffix = PurePosixPath(inner).suffix.lower()
    with opened(file, compression, size if compression or packed else None) as source:
        if suffix in (".parquet", ".pq"):
            yield _of_parquet(as_seekable(source, WHOLE_BYTES), name)
            return
        text = text_source(source).source if source.peek(1) else source
        if suffix == ".json":
            yield _of_json(text, name)
        elif suffix in (".csv", ".tsv"):
            yield _of_csv(text, inner, name)
        else:
            parsed = (parse(piece, name) for piece in lines(text) if piece.line < 0 or piece.data.strip())
            yield (item if isinstance(item, Dropped) else (item[0].line, item[1]) for item in parsed)


def _of_json(source: Source, name: str) -> Iterator[Any]:
    """The entries of a list, alone or as the one list in an object; else an object a line."""
    text, _ = decoded(as_seekable(source, WHOLE_BYTES).getvalue())
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        rows = [parse(piece, name) for piece in lines(Source(io.BytesIO(text.encode()))) if piece.data.strip()]
        if not rows or isinstance(rows[0], Dropped):
            raise UnreadableError("broken JSON", str(error)) from error
        yield from (item if isinstance(item, Dropped) else (item[0].line, item[1]) for item in rows)
        return
    if isinstance(value, dict) and not form_of(value):
        value = next((held for held in value.values() if isinstance(held, list)), [value])
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def _of_csv(source: Source, inner: str, name: str) -> Iterator[Any]:
    separator = "\t" if inner.lower().endswith(".tsv") else likely_separator(source.peek())
    csv.field_size_limit(max(csv.field_size_limit(), 32_000_000))
    physical = Physical(source)
    rows = csv_rows(csv.reader(physical, delimiter=separator), physical, name)
    head: list[str] | None = None
    for item in rows:
        if isinstance(item, Dropped):
            yield item
        elif head is None:
            head = [cell.strip() for cell in item[2]]
        elif len(item[2]) > len(head):
            yield Dropped(name, f"line {item[0]}", "broken csv row", f"{len(item[2])} fields, not {len(head)}")
        else:
            yield item[0], dict(zip(head, item[2], strict=False))


def _of_parquet(file: IO[bytes], name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = (batch.to_pylist() for batch in pq.ParquetFile(file).iter_batches(256))
        yield from enumerate((row for batch in batches for row in batch), 1)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError("broken parquet", str(error).split("\n")[0][:200]) from error
