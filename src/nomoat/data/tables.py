"""Tables as documents: jsonl, csv and parquet, a row at a time; a broken row is left out, with its number.

bytes -> lines -> rows -> the text's column -> Document | Dropped
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any

from nomoat.data.columns import SAMPLE_ROWS, Choice, choose, document, is_number
from nomoat.data.document import Document, Dropped
from nomoat.data.streams import LINE_BYTES, Piece, Source, UnreadableError, decoded, lines

ROWS_AT_ONCE = 256
TOO_LONG = "line too long"


def read_jsonl(source: Source, name: str, asked: str | None, encoding: str) -> Iterator[Document | Dropped]:
    """A JSON object or string a line; anything else is left out with its line number."""
    parsed = (parse(piece, name) for piece in lines(source) if piece.line < 0 or piece.data.strip())
    first = list(islice(parsed, SAMPLE_ROWS))
    rows = [item[1] for item in first if not isinstance(item, Dropped) and isinstance(item[1], dict)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    choice = choose(names, rows, asked) if rows else Choice((), "")
    for item in chain(first, parsed):
        if isinstance(item, Dropped):
            yield item
            continue
        piece, value, spelled = item
        member = f"line {piece.line}"
        if isinstance(value, str):
            value, chosen = {"text": value}, Choice(("text",), "the line itself")
        else:
            chosen = choice
        made = document(value, chosen, name, member)
        if isinstance(made, Document):
            made.offset_bytes = piece.offset
            made.encoding = encoding if encoding != "utf-8" else spelled
        yield made


def parse(piece: Piece, name: str) -> tuple[Piece, dict[str, Any] | str, str] | Dropped:
    """One line of a jsonl as an object or a string."""
    if piece.line < 0:
        return Dropped(name, f"line {-piece.line}", TOO_LONG, f"more than {LINE_BYTES // 1_000_000} MB")
    try:
        text, spelled = decoded(piece.data)
        value = json.loads(text)
    except UnreadableError as error:
        return Dropped(name, f"line {piece.line}", error.reason, error.detail)
    except (ValueError, RecursionError) as error:
        return Dropped(name, f"line {piece.line}", "broken JSON", str(error) or type(error).__name__)
    if not isinstance(value, dict | str):
        return Dropped(name, f"line {piece.line}", "not a JSON object", f"a {type(value).__name__}")
    return piece, value, spelled


class Physical:
    """The lines of a csv as the csv module wants them, remembering where the next one begins."""

    def __init__(self, source: Source) -> None:
        self.pieces, self.offset, self.line = lines(source), 0, 1
        self.spelled = "utf-8"

    def __iter__(self) -> Physical:
        return self

    def __next__(self) -> str:
        piece = next(self.pieces)
        self.offset, self.line = piece.offset + len(piece.data) + 1, abs(piece.line) + 1
        text, spelled = decoded(piece.data)
        self.spelled = self.spelled if spelled == "utf-8" else spelled
        return text + "\n"


def read_csv(source: Source, name: str, asked: str | None, encoding: str) -> Iterator[Document | Dropped]:
    """A row a document; the separator and whether the first row is a header are read off the first lines."""
    separator = "\t" if name.lower().endswith(".tsv") else likely_separator(source.peek())
    csv.field_size_limit(max(csv.field_size_limit(), LINE_BYTES))  # its default refuses articles of 131 kB
    physical = Physical(source)
    rows = csv_rows(csv.reader(physical, delimiter=separator), physical, name)
    first = list(islice(rows, SAMPLE_ROWS + 1))
    good = [item[2] for item in first if not isinstance(item, Dropped)]
    if not good:
        yield from (item for item in first if isinstance(item, Dropped))
        return
    headed = is_header(good[0], good[1:])
    names = [cell.strip() for cell in good[0]] if headed else [f"column {n}" for n in range(1, len(good[0]) + 1)]
    table = [dict(zip(names, row, strict=False)) for row in good[headed:]]
    choice = choose(names, table, asked)
    skip = headed
    for item in chain(first, rows):
        if isinstance(item, Dropped):
            yield item
            continue
        line, offset, cells = item
        if skip:
            skip = False
            continue
        if len(cells) > len(names):  # fewer are common: empty ones at the end that were not written
            yield Dropped(name, f"line {line}", "broken csv row", f"{len(cells)} fields, not {len(names)}")
            continue
        made = document(dict(zip(names, cells, strict=False)), choice, name, f"line {line}")
        if isinstance(made, Document):
            made.offset_bytes = offset
            made.encoding = encoding if encoding != "utf-8" else physical.spelled
        yield made


def csv_rows(
    reader: Iterator[list[str]], physical: Physical, name: str
) -> Iterator[tuple[int, int, list[str]] | Dropped]:
    """Rows with the line and offset where they begin; what the csv module or the encoding refuses is `Dropped`."""
    while True:
        line, offset = physical.line, physical.offset
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Dropped(name, f"line {line}", "broken csv row", str(error))
        except UnreadableError as error:
            yield Dropped(name, f"line {line}", error.reason, error.detail)
        else:
            if cells:
                yield line, offset, cells


def likely_separator(head: bytes) -> str:
    """The one of `, ; tab |` that stands most often in the first line."""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    return max(",;\t|", key=first.count)


def is_header(first: list[str], others: list[list[str]]) -> bool:
    """Distinct short words that are no numbers, above at least one other row, are a header."""
    cells = [cell.strip() for cell in first]
    short = all(cell and len(cell) <= 64 and not is_number(cell) and cell[-1] not in ".!?" for cell in cells)
    return bool(others) and short and len(set(cells)) == len(cells)


def read_parquet(file: IO[bytes], name: str, asked: str | None) -> Iterator[Document | Dropped]:
    """A row a document, a few hundred rows in memory at a time; a damaged row group is left out with its rows.

    Raises:
        UnreadableError: where the file's own table of contents is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError("broken parquet", first_line(error)) from error
    names = [field.name for field in table.schema_arrow]
    choice, row = None, 0
    for group in range(table.num_row_groups):
        end = row + table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=wanted(choice, names)):
                rows = batch.to_pylist()
                choice = choice or choose(names, rows[:SAMPLE_ROWS], asked)
                for values in rows:
                    row += 1
                    yield document(values, choice, name, f"row {row}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if row < end:
                yield Dropped(name, f"row {row + 1}", "broken parquet", f"to row {end}: {first_line(error)}")
        row = end


def wanted(choice: Choice | None, names: list[str]) -> list[str]:
    return list(dict.fromkeys([*choice.text, *choice.ledger.values()])) if choice and choice.text else names


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
