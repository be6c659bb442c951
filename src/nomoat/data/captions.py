"""What is said of pictures: a text beside each, a table that names them, or the folders that they lie in.

    Listing -> NAME.txt | rows whose values are pictures' names | folder names -> Captions(of: name -> Said, classes)

A table is recognised by its values: the column that names the most pictures says which row is whose, whatever it is
called. Texts beside pictures go before tables; folder names are captions only where there is neither, but classes in
any case, if there are two or more. Who has no caption is drawn without one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

from nomoat.core.errors import ConfigError, nearest
from nomoat.data.columns import LEDGER_NAMES, mean_length, note
from nomoat.data.conversations import tables_of
from nomoat.data.document import Document, Dropped
from nomoat.data.picture_listing import SIDECARS, Item, Listing, contents, without_suffix
from nomoat.data.readers import losses
from nomoat.data.streams import UnreadableError, decoded

LOOKED_AT = 1000  # rows by which the columns of a table are told
CAPTION_NAMES = (
    "caption", "captions", "text", "description", "prompt", "sentence", "sentences", "alt", "annotation", "title",
    "name", "label", "class", "category",
)  # fmt: skip
LABEL_NAMES = ("label", "class", "category", "class_name", "label_name")
TAG_NAMES = ("tags", "keywords", "tag")
FILE_NAMES = ("file", "file_name", "filename", "path", "image", "img", "picture", "hexcode", "id")
LEDGER_COLUMNS = {name for names in LEDGER_NAMES.values() for name in names}
NO_CLASS_FOLDERS = {
    "train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "images", "image", "imgs",
    "img", "pictures", "photos", "data", "png", "jpg", "jpeg", "x_train", "x_test", "train_images", "test_images",
}  # fmt: skip
OTHER = "other"
"""The class of those that have none where the rest have one."""
MOST_TEXT = 20_000  # bytes of a text beside a picture
MOST_CAPTIONS = 32  # of one picture


@dataclass
class Said:
    """What is said of one picture.

    Args:
        captions: any of which describes it.
        label: its class; "" where none.
        ledger: licence, author, date, origin and generation as its row says them.
    """

    captions: list[str] = field(default_factory=list)
    label: str = ""
    ledger: Document | None = None


@dataclass
class Captions:
    """What is said of all pictures.

    Args:
        of: a picture's name -> what is said of it; missing where nothing is.
        classes: sorted; () where there are fewer than two.
        how: in words: where captions come from.
        columns: which columns of tables were taken -> the tables.
        dropped: tables and rows that name nothing, texts that cannot be read.
    """

    of: dict[str, Said] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    how: str = "none"
    columns: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)


def captions_of(listing: Listing, tags: bool = False, column: str | None = None) -> Captions:
    """Find what is said of the pictures.

    Args:
        listing: of the pictures and of what lies beside them.
        tags: take a table's tags as one more caption.
        column: the table's column with the captions; None: by name, else the one with the longest text.

    Raises:
        ConfigError: a column that no table has.
    """
    made = Captions()
    sources = [name for name, count in (("texts", _beside(listing, made)),) if count]
    sources += [name for name, count in (("tables", _in_tables(listing, made, tags, column)),) if count]
    _folders(listing.pictures, made, speak=not sources)
    if not sources and any(said.captions for said in made.of.values()):
        sources = ["folder names"]
    made.how = " and ".join(sources) or "none"
    return made


def _beside(listing: Listing, made: Captions) -> int:
    """Captions in `NAME.txt` or `NAME.png.txt`, one a line; returns how many pictures have one."""
    owner: dict[str, Item] = {}
    for item in listing.pictures:
        for suffix in SIDECARS:
            for name in (item.stem + suffix, item.name + suffix):
                if name in listing.texts:
                    owner.setdefault(name, item)
    count = 0
    for text, content in contents(listing.texts[name] for name in sorted(owner)):
        try:
            if isinstance(content, Dropped):
                raise UnreadableError(content.reason, content.detail)
            said, _ = decoded(bytes(content)[:MOST_TEXT])
        except UnreadableError as error:
            made.dropped.append(Dropped(text.found.shown, text.member, error.reason, error.detail))
            continue
        lines = [line.strip() for line in said.lstrip("\ufeff").splitlines() if line.strip()]
        made.of.setdefault(owner[text.name].name, Said()).captions += lines[:MOST_CAPTIONS]
        count += bool(lines)
    lost = (item for name, item in listing.texts.items() if name not in owner)
    made.dropped += [Dropped(item.found.shown, item.member, "text without a picture of its name") for item in lost]
    return count


def _in_tables(listing: Listing, made: Captions, tags: bool, column: str | None) -> int:
    """Captions and ledger lines in tables; returns how many pictures have a caption now."""
    index, before = _index(listing.pictures), {name for name, said in made.of.items() if said.captions}
    heads: list[str] = []
    for found in listing.tables:
        with losses(found.shown) as lost, found.path.open("rb") as file:
            for name, rows in tables_of(file, found.shown, found.size):
                with losses(name) as broken:
                    heads += _of_table(_Table(name, index, before), rows, made, tags, column)
                made.dropped += broken
        made.dropped += lost
    if column is not None and column not in heads:
        raise ConfigError(
            f"no table beside the pictures has a column `{column}`",
            f"the columns are {', '.join(dict.fromkeys(heads))}" if heads else "there is no table that names pictures",
            nearest(column, heads),
        )
    _settle_labels(made)
    return sum(bool(said.captions) for name, said in made.of.items() if name not in before)


@dataclass(frozen=True)
class _Table:
    """A table and how its rows find their pictures.

    Args:
        shown: as it is named.
        index: any way to name a picture -> its name; "" where several are called so.
        spoken: pictures that have captions from elsewhere.
    """

    shown: str
    index: Mapping[str, str]
    spoken: set[str]

    def picture(self, value: Any) -> str:
        """The picture that a value names, relative to the table or anywhere; "" for none."""
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            return ""
        said = str(value).strip().replace("\\", "/").removeprefix("./").casefold()
        folder = self.shown.replace(".zip, ", "/").rpartition("/")[0].casefold()
        ways = (f"{folder}/{said}", said, said.rpartition("/")[2])
        return next((name for way in ways if (name := self.index.get(way, ""))), "")


def _index(pictures: Sequence[Item]) -> dict[str, str]:
    """The ways to name a picture: its path, its path in the archive, its own name; with and without the suffix."""
    index: dict[str, str] = {}
    for item in pictures:
        whole = [item.name, item.member or item.name, item.name.rpartition("/")[2]]
        plain = [without_suffix(way) for way in whole]
        for way in {way.casefold() for way in (*whole, *plain)}:
            index[way] = item.name if index.get(way, item.name) == item.name else ""
    return index


def _of_table(table: _Table, rows: Iterator[Any], made: Captions, tags: bool, column: str | None) -> list[str]:
    """Read one table; returns the names of its columns where it names pictures."""
    first = list(islice(rows, LOOKED_AT))
    held = [item[1] for item in first if not isinstance(item, Dropped) and isinstance(item[1], dict)]
    names = list(dict.fromkeys(str(key) for row in held for key in row))
    key = _naming(table, held, names)
    if not key:
        what = ", ".join(names)[:200]
        made.dropped.append(Dropped(table.shown, "", "table that names none of the pictures", what))
        return []
    chosen = _chosen(held, names, key, column)
    lower = {name.lower(): name for name in reversed(names)}
    ledger = [(field, lower[one]) for field, ones in LEDGER_NAMES.items() for one in ones if one in lower]
    label = next((lower[name] for name in LABEL_NAMES if name in lower and lower[name] != key), "")
    tagged = next((lower[name] for name in TAG_NAMES if name in lower), "") if tags or not chosen else ""
    said = [text for text in (f"names: {key}", chosen and f"captions: {chosen}", tagged and f"tags: {tagged}") if text]
    made.columns.setdefault(", ".join(said), []).append(table.shown)
    nameless = 0
    for item in chain(first, rows):
        if isinstance(item, Dropped):
            made.dropped.append(item)
        elif isinstance(item[1], dict):
            row = item[1]
            if not (picture := table.picture(row.get(key))):
                nameless += 1
                continue
            of = made.of.setdefault(picture, Said())
            if picture not in table.spoken:
                new = [*_texts(row.get(chosen)), *([joined] if (joined := ", ".join(_words(row.get(tagged)))) else [])]
                of.captions += [text for text in new if text not in of.captions][: MOST_CAPTIONS - len(of.captions)]
            if label and row.get(label) not in (None, ""):
                of.label = of.label or str(row[label])
            _note(of, ledger, row)
    if nameless:
        made.dropped.append(Dropped(table.shown, "", "table with rows that name no picture here", f"{nameless:,} rows"))
    return names


def _naming(table: _Table, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The column whose values name the most pictures; a few chance hits are none."""
    hits = {name: [table.picture(row.get(name)) for row in rows] for name in names}
    named = {name: len({*found} - {""}) for name, found in hits.items()}
    rank = {name: place for place, name in enumerate(reversed(FILE_NAMES), 1)}
    best = max(names, key=lambda name: (named[name], rank.get(name.lower(), 0)), default="")
    if not best or not named[best]:
        return ""
    pictures = len({*table.index.values()} - {""})
    spelled = any("." in str(row.get(best)) for row, hit in zip(rows, hits[best], strict=True) if hit)
    return best if spelled or 2 * named[best] >= min(len(rows), pictures) else ""


def _chosen(rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str, asked: str | None) -> str:
    """The column of the captions; "" where there is none."""
    if asked is not None and asked in names:
        return asked
    lower = {name.lower(): name for name in reversed(names) if name != key}
    for name in CAPTION_NAMES:
        if name in lower and any(_texts(row.get(lower[name])) for row in rows):
            return lower[name]
    left = [name for low, name in lower.items() if low not in LEDGER_COLUMNS and low not in TAG_NAMES]
    lengths = {name: mean_length([row.get(name) for row in rows]) for name in left}
    best = max(lengths, key=lambda name: lengths[name], default="")
    return best if best and lengths[best] else ""


def _texts(value: Any) -> list[str]:
    """The captions in a cell: a text, a number, or a list of either."""
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return []
    text = " ".join(str(value).split())
    return [text] if text else []


def _words(value: Any) -> list[str]:
    """The tags in a cell, each once: a list, or a text with commas, semicolons or bars between."""
    found = _texts(value) if isinstance(value, list | tuple) else re.split(r"[,;|]", str(value or ""))
    return list(dict.fromkeys(word.strip() for word in found if word.strip()))


def _note(of: Said, ledger: Iterable[tuple[str, str]], row: Mapping[str, Any]) -> None:
    for name, column in ledger:
        if row.get(column) in (None, "") or (name == "origin" and "generation" not in row):
            continue
        of.ledger = of.ledger or Document("", "")
        note(of.ledger, name, column, row[column])


def _settle_labels(made: Captions) -> None:
    """Labels of tables are classes where there are at least two, of two pictures each on average."""
    counts = Counter(said.label for said in made.of.values() if said.label)
    if 2 <= len(counts) <= counts.total() / 2:
        made.classes = tuple(sorted(counts))
        return
    for said in made.of.values():
        said.label = ""


def _folders(pictures: Sequence[Item], made: Captions, speak: bool) -> None:
    """Classes of the folders, and captions where nothing else speaks."""
    folders = {
        item.name: [part for part in PurePosixPath(item.name).parts[:-1] if part.lower() not in NO_CLASS_FOLDERS]
        for item in pictures
    }
    while folders and len({parts[0] if parts else "" for parts in folders.values()}) == 1 and any(folders.values()):
        folders = {name: parts[1:] for name, parts in folders.items()}
    counts = Counter("/".join(parts) for parts in folders.values() if parts)
    if speak:
        for name, parts in folders.items():
            if parts and len(counts) > 1:
                made.of.setdefault(name, Said()).captions = [" ".join(re.split(r"[\W_]+", " ".join(parts))).strip()]
    if not made.classes and 2 <= len(counts) <= len(pictures) / 2:
        made.classes = tuple(sorted(counts))
        for name, parts in folders.items():
            made.of.setdefault(name, Said()).label = "/".join(parts)
    if made.classes and any(not made.of.setdefault(item.name, Said()).label for item in pictures):
        made.classes = tuple(sorted({*made.classes, OTHER}))
        for item in pictures:
            made.of[item.name].label = made.of[item.name].label or OTHER
