"""Where pictures lie: in folders, in zips, and as arrays in npz files; and which of them only accompany another.

    path -walk-> Found -> Listing(pictures, hints, texts, tables, dropped);  contents: Item -> bytes | pixels | Dropped

A picture's name is its path with an archive's own name as a folder: `a.zip` holding `cats/1.png` gives `a/cats/1.png`.
Pictures that belong to others are not trained on but are their hints: `x.png` beside `x.jpg` where nearly every photo
has one, and `masks/x.png` beside `images/x.jpg` (`depth`, `edges`, `annot`, ... likewise).
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nomoat.data.conversations import SUFFIXES as TABLES
from nomoat.data.document import Dropped
from nomoat.data.licence import README_FILE
from nomoat.data.picture_files import MOST_BYTES, SUFFIXES, looks_like_one, sides_of
from nomoat.data.readers import Found, losses, member_set_aside, visible, walk
from nomoat.data.streams import FREE_BYTES, RATIO, UnreadableError, inner_name

SIDECARS = (".txt", ".caption", ".cap")
PHOTOS, MAPS = (".jpg", ".jpeg", ".webp"), (".png",)
HINT_FOLDER = re.compile(
    r"(.*?)[-_ ]?(?:masks?|labels?|annotations?|annots?|depths?|edges?|hints?|controls?|seg(?:mentations?)?|"
    r"conditioning(?:[-_ ]images)?)"
)
ENOUGH = 0.9  # of the maps must have a picture, to be taken for hints
ARRAY_BYTES = 4_000_000_000  # an array of an npz is held in memory
LABELS = (("x", "y"), ("images", "labels"), ("image", "label"), ("data", "labels"), ("data", "target"))
SAMPLED = 64
LOOKED_AT = 20_000  # files whose names are looked at to tell what a folder is


@dataclass(frozen=True)
class Item:
    """Something in a file: the file itself, a member of a zip, or a row of an array.

    Args:
        found: the file.
        member: in it; "" for the file itself; `ARRAY, row N` in an npz.
        name: the whole path, with `/`.
        size: bytes.
    """

    found: Found
    member: str
    name: str
    size: int

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return without_suffix(self.name)

    @property
    def suffix(self) -> str:
        """What its name ends in, in small letters."""
        return self.name[len(self.stem) :].lower()

    @property
    def is_picture(self) -> bool:
        """Whether its name says so."""
        return self.suffix in SUFFIXES or (bool(self.member) and self.found.shown.lower().endswith(".npz"))


@dataclass
class Listing:
    """What a path holds.

    Args:
        pictures: in an order that depends on the names alone.
        hints: name of a picture -> the picture that accompanies it.
        texts: files beside pictures that may hold a caption each, by their names.
        tables: files with tables, archives that hold some among them.
        others: what is no picture and belongs to none.
        dropped: what was left out, with the reason.
        found: every file, for the manifest.
    """

    pictures: list[Item] = field(default_factory=list)
    hints: dict[str, Item] = field(default_factory=dict)
    texts: dict[str, Item] = field(default_factory=dict)
    tables: list[Found] = field(default_factory=list)
    others: list[Item] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)


def without_suffix(name: str) -> str:
    """A path without what its last name ends in, as pathlib has it but a tenth of its time."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and suffix and "/" not in suffix and stem and not stem.endswith("/") else name


def listing(root: Path) -> Listing:
    """List a folder, an archive or a single file; no picture is decoded."""
    made = Listing()
    for found in walk(root):
        if isinstance(found, Dropped):
            made.dropped.append(found)
            continue
        made.found.append(found)
        before = len(made.tables)
        for item in _items(found):
            if isinstance(item, Dropped):
                made.dropped.append(item)
            elif _is_table(item.name):
                made.tables[before:] = [found]
            elif item.suffix in SIDECARS:
                made.texts[item.name] = item
            elif item.is_picture or (not item.suffix and not item.member and _begins_like_one(found.path)):
                made.pictures.append(item)
            elif not README_FILE.fullmatch(PurePosixPath(item.name).name):
                made.others.append(item)
    _set_hints(made)
    return made


def contents(items: Iterable[Item]) -> Iterator[tuple[Item, bytes | NDArray[Any] | Dropped]]:
    """What each item holds, in their order; items of one file that stand together have it opened once."""
    for found, group in groupby(items, key=lambda item: item.found):
        together = list(group)
        given = 0
        with losses(found.shown) as lost, found.path.open("rb") as file:
            for item, content in _of_file(file, found, together):
                yield item, content
                given += 1
        for item in together[given:]:
            yield item, Dropped(found.shown, item.member, lost[0].reason, lost[0].detail)


def _of_file(file: IO[bytes], found: Found, items: Sequence[Item]) -> Iterator[tuple[Item, Any]]:
    if not items[0].member:
        for item in items:
            if found.size > MOST_BYTES:
                raise UnreadableError("file too large", f"{found.size / 1e6:,.0f} MB")
            yield item, file.read()
    elif found.shown.lower().endswith(".npz"):
        arrays = np.load(file, allow_pickle=False)
        for name, rows in groupby(items, key=lambda item: item.member.rpartition(", ")[0]):
            pixels = _channels_last(_array(arrays, name))
            for item in rows:
                yield item, pixels[int(item.member.rpartition(" ")[2]) - 1]
    else:
        with zipfile.ZipFile(file) as archive:
            infos = {visible(info.filename): info for info in archive.infolist()}
            for item in items:
                with losses(found.shown) as lost:
                    content = archive.read(infos[item.member])
                yield item, Dropped(found.shown, item.member, lost[0].reason, lost[0].detail) if lost else content


def _items(found: Found) -> Iterator[Item | Dropped]:
    """What there is in one file."""
    lower = found.shown.lower()
    if not lower.endswith((".zip", ".npz")):
        yield Item(found, "", found.shown, found.size)
        return
    inner = _of_zip if lower.endswith(".zip") else _of_npz
    with losses(found.shown) as lost, found.path.open("rb") as file:
        yield from inner(file, found, found.shown[:-4])
    yield from lost


def _of_zip(file: IO[bytes], found: Found, folder: str) -> Iterator[Item | Dropped]:
    with zipfile.ZipFile(file) as archive:
        infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    _refuse_bomb(infos, found)
    for info in infos:
        member = visible(info.filename)
        if reason := member_set_aside(info):
            yield Dropped(found.shown, member, reason)
        elif info.file_size > MOST_BYTES:
            yield Dropped(found.shown, member, "file too large", f"{info.file_size / 1e6:,.0f} MB")
        else:
            yield Item(found, member, f"{folder}/{member}", info.file_size)


def _of_npz(file: IO[bytes], found: Found, folder: str) -> Iterator[Item | Dropped]:
    """Rows of the arrays of pictures; the label that belongs to a row, or else the array's name, is its folder."""
    with zipfile.ZipFile(file) as archive:
        _refuse_bomb(archive.infolist(), found)
        heads = {info.filename.removesuffix(".npy"): _head(archive, info) for info in archive.infolist()}
    file.seek(0)
    arrays = np.load(file, allow_pickle=False)
    there = False
    for name, (shape, dtype) in heads.items():
        if not _holds_pictures(shape, dtype):
            continue
        if int(np.prod(shape)) * dtype.itemsize > ARRAY_BYTES:
            yield Dropped(found.shown, name, "file too large", "an array is held in memory")
            continue
        there = True
        labels = _labels_of(name, shape[0], heads)
        words = _array(arrays, labels).tolist() if labels else [name] * shape[0]
        size = int(np.prod(shape[1:])) * dtype.itemsize
        for number, word in enumerate(words, 1):
            yield Item(found, f"{name}, row {number}", f"{folder}/{word}/{name}-{number}", size)
    if not there:
        said = ", ".join(f"{name} {shape}" for name, (shape, _) in heads.items())
        yield Dropped(found.shown, "", "no pictures among its arrays", said[:200])


def _refuse_bomb(infos: Sequence[zipfile.ZipInfo], found: Found) -> None:
    if sum(info.file_size for info in infos) > max(FREE_BYTES, RATIO * found.size):
        raise UnreadableError("expands without end", f"its members claim more than {RATIO} times its size: a zip bomb")


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, from its first bytes."""
    with suppress(ValueError), archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype
    return (), np.dtype("O")


def _array(arrays: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(arrays[name])
    except (ValueError, KeyError) as error:
        raise UnreadableError("damaged archive", f"{name}: {error}"[:200]) from error


def _holds_pictures(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    if dtype.kind not in "uifb" or len(shape) not in (3, 4) or not shape[0]:
        return False
    sides = shape[1:] if len(shape) == 3 else shape[1:3] if shape[3] in (1, 3, 4) else shape[2:]
    return min(sides) >= 8 and (len(shape) == 3 or shape[3] in (1, 3, 4) or shape[1] in (1, 3, 4))


def _channels_last(pixels: NDArray[Any]) -> NDArray[Any]:
    """[N, Y, X] or [N, Y, X, C] of either."""
    return np.moveaxis(pixels, 1, -1) if pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4) else pixels


def _labels_of(name: str, count: int, heads: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    """The array of as many labels that belongs to an array of pictures; "" where there is none."""
    fitting = [other for other, (shape, dtype) in heads.items() if shape == (count,) and dtype.kind in "uiUS"]
    named = [name.replace(mine, its) for mine, its in LABELS if mine in name]
    return next((other for other in named if other in fitting), fitting[0] if len(fitting) == 1 else "")


def _is_table(name: str) -> bool:
    return PurePosixPath(inner_name(name)[0]).suffix.lower() in TABLES


def _begins_like_one(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return looks_like_one(file.read(12))
    return False


def _set_hints(made: Listing) -> None:
    """Take the pictures that accompany others out of the pictures."""
    by_stem: dict[str, list[Item]] = defaultdict(list)
    for item in made.pictures:
        by_stem[item.stem].append(item)
    photos = sum(item.suffix in PHOTOS for item in made.pictures)
    twos = {
        photo.name: drawn
        for both in by_stem.values()
        if len(both) == 2
        for photo, drawn in (both, both[::-1])
        if photo.suffix in PHOTOS and drawn.suffix in MAPS
    }
    if len(twos) > 1 and len(twos) >= ENOUGH * photos:
        made.hints = twos
    else:
        made.hints = _in_folders_of_their_own(made.pictures)
    taken = {item.name for item in made.hints.values()}
    made.pictures = [item for item in made.pictures if item.name not in taken]


def _in_folders_of_their_own(pictures: Sequence[Item]) -> dict[str, Item]:
    """Hints by the names of folders: `masks/x.png` of `images/x.jpg`, `trainannot/x.png` of `train/x.jpg`."""
    places: dict[tuple[Any, ...], list[tuple[str, Item]]] = defaultdict(list)
    split = [(item, PurePosixPath(item.stem).parts) for item in pictures]
    for item, parts in split:
        for place, part in enumerate(parts[:-1]):
            places[parts[:place], parts[place + 1 :]].append((part, item))
    hints: dict[str, Item] = {}
    asked = Counter[bool]()
    for item, parts in split:
        for place, part in enumerate(parts[:-1]):
            if (match := HINT_FOLDER.fullmatch(part.lower())) is None:
                continue
            beside = [
                other.name
                for folder, other in places[parts[:place], parts[place + 1 :]]
                if (folder.lower() == match[1] if match[1] else HINT_FOLDER.fullmatch(folder.lower()) is None)
            ]
            asked[len(beside) == 1] += 1
            hints |= {beside[0]: item} if len(beside) == 1 else {}
            break
    return hints if asked[True] > 1 and asked[True] >= ENOUGH * asked.total() else {}


def is_pictures(path: Path | str) -> bool:
    """Whether a path is to be taken for pictures: there are some, and at most a quarter as many files of other kinds.

    Captions, tables, READMEs and licences count for neither. Only names are looked at, of a large folder the first.
    """
    root = Path(path)
    if not root.exists():
        return False
    pictures, texts, others = set[str](), list[str](), 0
    seen = 0
    for found in walk(root):
        if isinstance(found, Dropped):
            continue
        for item in _items(found):
            if isinstance(item, Dropped):
                continue
            seen += 1
            if item.is_picture:
                pictures.add(item.stem)
            elif item.suffix in SIDECARS:
                texts.append(item.stem)
            elif not _is_table(item.name) and not README_FILE.fullmatch(PurePosixPath(item.name).name):
                others += 1
        if seen > LOOKED_AT:
            break
    others += sum(stem not in pictures and not README_FILE.fullmatch(PurePosixPath(stem).name) for stem in texts)
    return bool(pictures) and others * 4 <= len(pictures)


def choose_size(path: Path | str, most: int = 32) -> int:
    """Pixels a side that suit the pictures of a path.

    32 unless asked for more: `most=64` gives 64 where three quarters of the pictures have that many on their short
    side. Smaller pictures are not enlarged: the largest multiple of 4 that three quarters of them have, 8 at least.
    Looked at are the headers of up to 64 pictures.
    """
    items = listing(Path(path)).pictures
    chosen = [items[number * len(items) // SAMPLED] for number in range(SAMPLED)] if len(items) > SAMPLED else items
    sides = []
    for _, content in contents(chosen):
        if isinstance(content, np.ndarray):
            sides.append(min(content.shape[:2]))
        elif not isinstance(content, Dropped) and (side := min(sides_of(content))):
            sides.append(side)
    if not sides:  # whoever reads them says so
        return most
    side = sorted(sides)[len(sides) // 4]
    if side >= most:
        return most
    return next((size for size in (64, 32) if size <= side), max(8, side // 4 * 4))
