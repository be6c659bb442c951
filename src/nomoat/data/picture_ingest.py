"""Pictures to a dataset: made squares, duplicates dropped, captions spelled, a part held out, each with a ledger line.

    Listing -> Item -> Square -> pixels on disk + facts -> equal ones dropped, those that look alike kept together
            -> held-out part -> words -> pictures.npy [N, Y, X, C], pictures.parquet, tokenizer.json, dataset.json

Row n of `pictures.npy` (and of `mask.npy` and `pair.npy`, where there are any) is row n of `pictures.parquet`: first
what is trained on, then what is held out. The folder is made under another name and renamed at the end, whole or not at
all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageColor

from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.ledger import HUMAN, Entry, summarise
from nomoat.data.blocks import workers
from nomoat.data.captions import Captions, Said, captions_of
from nomoat.data.document import Document, Dropped, place
from nomoat.data.held_out import DROP, HOLD, KEEP, by_hash, first_equal
from nomoat.data.ingest import MOST_THREADS, check, told_in_words
from nomoat.data.licence import LicenceFinder
from nomoat.data.lookalikes import lookalikes
from nomoat.data.manifest import DROPPED, NAME, Manifest, digest
from nomoat.data.picture_files import Square, is_coloured, square_of
from nomoat.data.picture_listing import Item, Listing, contents, listing
from nomoat.data.readers import losses
from nomoat.data.shards import LEDGER
from nomoat.data.streams import UnreadableError
from nomoat.data.words import WordTokenizer

PICTURES, FACTS, TOKENIZER = "pictures.npy", "pictures.parquet", "tokenizer.json"
HINTS = ("mask", "pair")
SPLITS = ("train", "heldout")
SMALLEST, LARGEST = 8, 1024  # pixels a side
MOST_HELD = 5000
MOST_WORDS = 8192
AT_ONCE = 512  # pictures in memory while arrays are written
TOLD = 100  # pictures between two words of progress
LUMINANCE = np.array([299, 587, 114])  # of red, green and blue (ITU-R BT.601), as Pillow has it
OWN = (FACTS, DROPPED, TOKENIZER)
NOTHING = np.zeros(0, dtype=np.uint8)
SCHEMA = pa.schema(
    [
        *LEDGER,
        ("split", pa.string()),
        ("name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("noted", pa.list_(pa.string())),
        ("label", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("words", pa.list_(pa.list_(pa.int32()))),
        *((name, pa.bool_()) for name in HINTS),
    ]
)

Watch = Callable[[dict[str, Any]], None]


@dataclass
class _Kept:
    """A picture that was read: its ledger line, what is said of it, and where its pixels lie."""

    line: Document
    said: Said
    item: Item
    square: Square
    row: int
    hints: dict[str, int] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return place_of(self.item)


def place_of(item: Item) -> str:
    """Where a picture stands, in words."""
    return ", ".join(filter(None, (item.found.shown, item.member)))


def write_pictures(
    folder: Path | str,
    source: Path | str,
    size: int = 32,
    settings: Mapping[str, Any] = {},
    held_out_share: float = 0.1,
    watch: Watch | None = None,
) -> Manifest:
    """Read the pictures of a path into a dataset folder, whole or not at all.

    Args:
        folder: made by this call.
        source: a folder, a zip, an npz of arrays, or one picture.
        size: pixels a side; at most twice the short side of a picture, or it is left out.
        settings: `licence` (SPDX, in place of what the files say), `ground` (colour below transparent pictures),
            `tags` and `caption_column` (see `captions_of`); noted in the manifest.
        held_out_share: of the pictures, chosen by their contents; those that look alike stay together. Nothing where
            that is less than one picture.
        watch: told {"kind": "ingest", "stage": "pictures", done, total, documents, dropped}, in bytes.

    Raises:
        ConfigError: no such path, no such size or colour, no name of a licence.
        DataError: no picture is left, with the reasons; or the folder exists.
    """
    root, target = Path(source).absolute(), Path(folder)
    check(root, source, held_out_share, settings.get("licence"))
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"pictures of {size} pixels a side are not made", f"it is {SMALLEST} to {LARGEST}", "use 32")
    try:
        ImageColor.getrgb(settings.get("ground", "white"))
    except ValueError as error:
        raise ConfigError(f"`{settings['ground']}` is no colour", "", "write white, black or #RRGGBB") from error
    if target.exists():
        raise DataError(f"{target} exists already", "", "name another folder")
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    with told_in_words(root, partial):
        partial.mkdir(parents=True)
        try:
            _Writing(root, partial, size, dict(settings), watch).run(held_out_share)
            with suppress(OSError) if (target / NAME).is_file() else nullcontext():  # another process was faster
                partial.rename(target)
            durable.sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Manifest.load(target)


class _Writing:
    """A dataset of pictures while it is written."""

    def __init__(self, root: Path, folder: Path, size: int, settings: dict[str, Any], watch: Watch | None) -> None:
        self.root, self.folder, self.size, self.settings, self.watch = root, folder, size, settings, watch
        self.ground = settings.get("ground", "white")
        self.finder = LicenceFinder(root if root.is_dir() else root.parent, settings.get("licence"))
        self.kept: list[_Kept] = []
        self.dropped: list[Dropped] = []
        self.raw: dict[str, IO[bytes]] = {}
        self.rows = Counter[str]()
        self.coloured: dict[str, bool] = {"pictures": False, "pair": False}

    def run(self, share: float) -> None:
        """All of it, in order."""
        there = listing(self.root)
        said = captions_of(there, bool(self.settings.get("tags")), self.settings.get("caption_column"))
        lost = [Dropped(item.found.shown, item.member, "no picture") for item in there.others]
        self.dropped += [*there.dropped, *lost, *said.dropped]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused, and said so
            self._read(there, said)
        if not self.kept:
            raise self._nothing()
        fate_N, near = self._fates(share)
        order = [*np.flatnonzero(fate_N == KEEP).tolist(), *np.flatnonzero(fate_N == HOLD).tolist()]
        used, taught = [self.kept[place] for place in order], int((fate_N == KEEP).sum())
        tokenizer = self._words(used[:taught])
        for file in self.raw.values():
            file.close()
        arrays = self._arrays(used)
        parts = self._facts(used, taught, said.classes, tokenizer)
        noted = Counter(word for kept in used for word in (*kept.square.noted, *kept.hints))
        facts = {
            "size": self.size,
            "channels": 3 if self.coloured["pictures"] else 1,
            "classes": list(said.classes),
            "captions": said.how,
            "without_caption": sum(not kept.said.captions for kept in used),
            "noted": dict(noted.most_common()),
        }
        written = {**parts, "near_duplicates": near, "settings": {**self.settings, **facts}, "columns": said.columns}
        self._manifest(written, there, arrays, tokenizer)

    def _read(self, there: Listing, said: Captions) -> None:
        """Decode every picture, several at once, in the order of the listing."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        total, done = sum(item.size for item in there.pictures), 0
        waiting: deque[tuple[Item, Future[Square] | Dropped]] = deque()
        hints = contents(there.hints[item.name] for item in there.pictures if item.name in there.hints)
        with workers(min(cores, MOST_THREADS)) as pool:

            def finish(most: int) -> None:
                nonlocal done
                while len(waiting) > most:
                    item, made = waiting.popleft()
                    done += item.size
                    self._take(item, made, said.of.get(item.name, Said()), hints if item.name in there.hints else None)
                    if self.watch is not None and (len(self.kept) % TOLD == 0 or done == total):
                        counts = {"documents": len(self.kept), "dropped": len(self.dropped)}
                        self.watch({"kind": "ingest", "stage": "pictures", "done": done, "total": total, **counts})

            for item, content in contents(there.pictures):
                job = (
                    content if isinstance(content, Dropped) else pool.submit(square_of, content, self.size, self.ground)
                )
                waiting.append((item, job))
                finish(4 * cores)
            finish(0)
        _settle(self.kept, self.finder)

    def _take(self, item: Item, made: Future[Square] | Dropped, said: Said, hints: Iterator[Any] | None) -> None:
        """Keep a picture, or the reason why not; `hints` gives what accompanies it."""
        hint = next(hints)[1] if hints is not None else None
        try:
            if isinstance(made, Dropped):
                raise UnreadableError(made.reason, made.detail)
            square = made.result()
        except UnreadableError as error:
            self.dropped.append(Dropped(item.found.shown, item.member, error.reason, error.detail))
            return
        self.coloured["pictures"] = self.coloured["pictures"] or is_coloured(square.pixels)
        kept = _Kept(_line(item, said, square), said, item, square, self._put("pictures", square.pixels))
        if square.alpha is not None:
            kept.hints["mask"] = self._put("mask", square.alpha)
        if hint is not None and (drawn := self._hint(item, square, hint)) is not None:
            kept.hints["pair"] = self._put("pair", drawn)
        kept.square = replace(square, pixels=NOTHING, alpha=None)
        self.kept.append(kept)

    def _hint(self, item: Item, square: Square, content: Any) -> NDArray[np.uint8] | None:
        """The picture that accompanies another, at its size."""
        try:
            if isinstance(content, Dropped):
                raise UnreadableError(content.reason, content.detail)
            drawn = square_of(content, self.size, self.ground, least=1, codes=True)
            if abs(drawn.width * square.height - drawn.height * square.width) > 0.05 * square.width * square.height:
                raise UnreadableError("of another shape", f"{drawn.width} x {drawn.height} pixels")
        except UnreadableError as error:
            reason = f"control picture that is left out: {error.reason}"
            self.dropped.append(Dropped(item.found.shown, item.member, reason, error.detail))
            return None
        self.coloured["pair"] = self.coloured["pair"] or is_coloured(drawn.pixels)
        return drawn.pixels

    def _put(self, name: str, pixels: NDArray[np.uint8]) -> int:
        """Append pixels to what lies on disk until the order is known; returns their row there."""
        if name not in self.raw:
            self.raw[name] = (self.folder / f"{name}.raw").open("wb")
        self.raw[name].write(np.ascontiguousarray(pixels).data)
        self.rows[name] += 1
        return self.rows[name] - 1

    def _nothing(self) -> DataError:
        counted = Counter(item.reason for item in self.dropped).most_common(5)
        first = next((item for item in self.dropped if item.detail), None)
        why = ", ".join(f"{count:,} x {reason}" for reason, count in counted) or "the folder is empty"
        return DataError(
            f"there is no picture in {self.root}",
            why + (f"; the first: {place(first.source, first.member)}, {first.detail}" if first else ""),
            "png, jpg, webp, gif, bmp and tiff are read, also inside a .zip, and arrays in an .npz",
        )

    def _fates(self, share: float) -> tuple[NDArray[np.int8], int]:
        """KEEP, HOLD or DROP [N], and how many pictures look like another."""
        hashes = np.frombuffer(b"".join(kept.square.hash for kept in self.kept), np.uint8).reshape(-1, 32)
        first = first_equal(hashes)
        fate = np.where(first == np.arange(len(first)), KEEP, DROP).astype(np.int8)
        for number in np.flatnonzero(fate == DROP).tolist():
            equal, same = self.kept[number], self.kept[int(first[number])]
            detail = f"the same pixels as {same.where}"
            self.dropped.append(Dropped(equal.item.found.shown, equal.item.member, "duplicate", detail))
            new = [text for text in equal.said.captions if text not in same.said.captions]
            same.said = Said([*same.said.captions, *new], same.said.label, same.said.ledger)
        kept = np.flatnonzero(fate == KEEP)
        member = lookalikes(np.stack([self.kept[number].square.thumbnail for number in kept.tolist()]))
        weight = np.bincount(member, minlength=len(kept))[member]
        budget = min(share * len(kept), MOST_HELD)
        small = weight <= max(1.0, budget)  # a group that is larger than the part to be held out is trained on
        if budget >= 1 and small.any():
            among, ones = kept[small], np.ones(len(hashes), dtype=np.int64)
            _, renumbered = np.unique(member[small], return_inverse=True)
            by_hash(fate, np.zeros(len(fate)), among, renumbered.reshape(-1), (hashes, ones, budget, MOST_HELD))
            fate[~np.isin(fate, (HOLD, DROP))] = KEEP  # a picture is not cut in two
        return fate, int((weight > 1).sum())

    def _words(self, taught: Sequence[_Kept]) -> WordTokenizer | None:
        """The words of the captions that are taught; None where there are none."""
        made = WordTokenizer.of((text for kept in taught for text in kept.said.captions), MOST_WORDS)
        if not made.words:
            return None
        durable.replace(self.folder / TOKENIZER, made.to_json().encode())
        return made

    def _arrays(self, used: Sequence[_Kept]) -> list[Path]:
        """The pixels in their final order."""
        paths = []
        places = {"pictures": [kept.row for kept in used]}
        for name in HINTS:
            found = [kept.hints.get(name, -1) for kept in used]
            places |= {name: found} if max(found) >= 0 else {}
        for name, rows in places.items():
            raw, path = self.folder / f"{name}.raw", self.folder / f"{name}.npy"
            channels = 1 if name == "mask" else 3
            shape = self.rows[name], self.size, self.size, channels
            pixels = np.memmap(raw, np.uint8, "r", shape=shape)
            durable.write(path, _reordered(pixels, rows, self.coloured.get(name, False)))
            paths.append(path)
        for path in self.folder.glob("*.raw"):
            path.unlink()
        return paths

    def _facts(
        self, used: Sequence[_Kept], taught: int, classes: Sequence[str], tokenizer: WordTokenizer | None
    ) -> dict[str, Any]:
        """Write the ledger and what is said of each; returns what the manifest says of the parts."""
        number = {name: label for label, name in enumerate(classes)}
        lines, entries, held = list[dict[str, Any]](), list[tuple[Entry, int, int]](), list[dict[str, Any]]()
        splits = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
        for row, kept in enumerate(used):
            split, line, key, size = SPLITS[row >= taught], kept.line, kept.square.hash.hex(), kept.item.size
            spelled = [tokenizer.known(text).tolist() for text in kept.said.captions] if tokenizer else []
            words = sum(map(len, spelled))
            ledger = {name: getattr(line, name) for name in LEDGER.names if hasattr(line, name)}
            lines.append(
                {
                    **{"id": key, "bytes": size, "offset": 0, **ledger, "split": split, "name": kept.item.name},
                    **{"width": kept.square.width, "height": kept.square.height, "noted": list(kept.square.noted)},
                    **{"captions": kept.said.captions, "words": spelled, "label": number.get(kept.said.label, -1)},
                    **{name: name in kept.hints for name in HINTS},
                }
            )
            for name, count in {"documents": 1, "tokens": words, "bytes": size}.items():
                splits[split][name] += count
            if split == "train":
                whose = (line.source, line.licence, line.evidence, line.author, line.date, line.origin, line.generation)
                entries.append((Entry(key, *whose), words, size))
            else:
                held.append({"hash": key, "source": line.source, "member": line.member, "bytes": size})
        pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), self.folder / FACTS, compression="zstd")
        return {"splits": splits, "ledger": asdict(summarise(entries)), "held_out": held}

    def _manifest(
        self, parts: dict[str, Any], there: Listing, arrays: Sequence[Path], tokenizer: WordTokenizer | None
    ) -> None:
        lost = [{"source": d.source, "member": d.member, "reason": d.reason, "detail": d.detail} for d in self.dropped]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lost)
        durable.replace(self.folder / DROPPED, text.encode())
        own = [path for path in (*arrays, *(self.folder / name for name in OWN)) if path.is_file()]
        shards = [{"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)} for path in own]
        manifest = Manifest(
            id=hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest(),
            source=str(self.root),
            title=self.root.name,
            request="",
            files=[
                {"path": f.shown, "size": f.size, "mtime_ns": f.mtime_ns, "sha256": digest(f.path)} for f in there.found
            ],
            tokenizer=tokenizer.hash if tokenizer else "",
            shards=shards,
            dropped=dict(Counter(item.reason for item in self.dropped).most_common()),
            encodings={},
            **parts,
        )
        durable.replace(self.folder / NAME, manifest.to_json())


def _line(item: Item, said: Said, square: Square) -> Document:
    """A picture's ledger line, as far as its row and its file say it themselves; the row goes before."""
    line = replace(said.ledger or Document("", ""), source=item.found.shown, member=item.member)
    line.author = line.author or square.author
    if square.origin and line.origin == HUMAN:
        line.origin, line.generation = square.origin, max(1, line.generation)
    return line


def _settle(kept: Iterable[_Kept], finder: LicenceFinder) -> None:
    """Give each picture the licence of what stands around it, unless its row has spoken."""
    for found, group in groupby(kept, key=lambda one: one.item.found):
        if not found.shown.lower().endswith(".zip"):
            for one in group:
                finder.settle(one.line, found.path)
            continue
        with losses(found.shown), zipfile.ZipFile(found.path) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            local = finder.within(members, archive, found.path)
            for one in group:
                local.settle(one.line, PurePosixPath(one.item.member))


def _reordered(pixels: NDArray[np.uint8], rows: Sequence[int], coloured: bool) -> Iterator[Any]:
    """The parts of an .npy file: rows [N, Y, X, C] of `pixels`, 0 for row -1, in shades of grey unless coloured."""
    head = io.BytesIO()
    shape = (len(rows), *pixels.shape[1:3], 3 if coloured else 1)
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    yield head.getvalue()
    for first in range(0, len(rows), AT_ONCE):
        row_N = np.array(rows[first : first + AT_ONCE])
        here = np.where((row_N < 0)[:, None, None, None], 0, pixels[row_N])
        if not coloured and here.shape[-1] == 3:
            here = (here @ LUMINANCE + 500)[..., None] // 1000
        yield np.ascontiguousarray(here, dtype=np.uint8)
