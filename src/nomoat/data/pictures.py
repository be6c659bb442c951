"""Pictures as training data: a dataset folder and a size; batches for any step, at any world size.

    step -> sample indices -> Order (item, epoch) -> rows of a memory map -> image [B, C, Y, X] in [-1, 1]
         -> caption [B, M], caption_mask [B, M], label [B], hint [B, H, Y, X] in [0, 1], index [B]

A picture with several captions shows one an epoch, in turn. `PictureFiles` names files that are read when a recipe is
first run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.types import Batch
from nomoat.data.manifest import NAME, Manifest, changed
from nomoat.data.order import Indices, Order, key
from nomoat.data.outlines import of_alpha, of_pixels
from nomoat.data.picture_ingest import FACTS, HINTS, PICTURES, SPLITS, TOKENIZER, write_pictures
from nomoat.data.picture_listing import choose_size, is_pictures
from nomoat.data.rows import batches
from nomoat.data.tokenizer import load
from nomoat.data.words import WordTokenizer, padded

__all__ = ["PictureFiles", "PictureRows", "Pictures", "choose_size", "is_pictures", "write_pictures"]

EDGES = "edges"
"""The control picture that is made while pictures are read."""
CAPTION, FLIP = -3, -4  # apart from the sources' own numbers, which name the keys of their permutations
PATCH = 4  # a picture counts as many tokens as it has patches of 4 x 4 pixels

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Pictures:
    """Recipe data: pictures that `write_pictures` wrote.

    Args:
        path: the dataset's folder.
        size: pixels a side, those of the folder.
        caption_length: most words of a caption, M; of longer ones the beginning is read.
        ids: the manifest's id as it was when the recipe was resolved; empty: not checked.
        hint: "mask" (the alpha of transparent pictures) or "pair" (the pictures that lie beside others); only pictures
            that have one are read then. "edges": outlines, of the alpha where there is one, else of the brightness.
            Empty: none.
        flip: mirror every other picture, drawn anew each epoch.
    """

    path: str
    size: int = 32
    caption_length: int = 16
    ids: tuple[str, ...] = ()
    hint: str = ""
    flip: bool = False

    def __post_init__(self) -> None:
        if self.hint and self.hint not in (known := (*HINTS, EDGES)):
            near = nearest(self.hint, known)
            raise ConfigError(f"there is no hint `{self.hint}`", f"there is {', '.join(known)}", near)
        if self.caption_length < 1:
            raise ConfigError("caption_length must be at least 1", f"it is {self.caption_length}")

    @property
    def paths(self) -> tuple[str, ...]:
        """The folder, as of any data."""
        return (self.path,)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels stand for, in their order; () where there are no classes."""
        return tuple(Manifest.load(self.path).settings.get("classes", ()))

    @property
    def channels(self) -> int:
        """3; 1 where all pictures are grey."""
        return int(Manifest.load(self.path).settings["channels"])

    def words(self) -> WordTokenizer | None:
        """What captions are spelled with; None where there are no captions."""
        path = Path(self.path) / TOKENIZER
        if not path.is_file():
            return None
        read = load(path)
        if not isinstance(read, WordTokenizer):
            raise DataError(f"{path} is no list of words", "it spells text, not captions", "read the pictures again")
        return read

    def changed(self) -> list[str]:
        """Say in words how the data differs from what the recipe was resolved with; [] where it does not."""
        anew = self.ids and Manifest.load(self.path).id != self.ids[0]
        found = [f"the pictures in {self.path} were made anew from other files"] if anew else []
        return found + changed(self.path)

    def open(self, split: str = "train") -> PictureRows:
        """One part, "train" or "heldout".

        Raises:
            DataError: no pictures there, or files that do not fit together.
            ConfigError: they are of another size, or have no such hint.
        """
        return PictureRows(self, split)

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls.

        Raises:
            ConfigError: the family's size, channels, words or classes are not those of the data.
        """
        self.suits(family)
        return batches(self.sampler(seed), batch_size, start, rank, world)

    def sampler(self, seed: int) -> Callable[[ArrayLike], Batch]:
        """What gives the samples of any global indices [B]."""
        opened = self.open()
        order = Order([opened.size], None, seed)

        def read(index_B: ArrayLike) -> Batch:
            _, item_B, epoch_B = order.at(index_B)
            return opened.batch(item_B, index_B, epoch_B, seed)

        return read

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Batches of held-out pictures, evenly chosen, as many as have `tokens` patches of 4 x 4 pixels in all.

        Each with its first caption, none mirrored. Nothing where the data has no held-out part.
        """
        opened = self.open("heldout")
        most = min(opened.size, max(1, tokens * PATCH * PATCH // self.size**2))
        chosen = np.linspace(0, opened.size - 1, most).round().astype(np.int64) if most else np.zeros(0, np.int64)
        for first in range(0, most, batch_size):
            here = chosen[first : first + batch_size]
            yield opened.batch(here, here)

    def suits(self, family: Any) -> None:
        """Refuse a family whose config says another size, channels, words or classes than the data has.

        Raises:
            ConfigError: with the setting that mends it.
        """
        config, words = getattr(family, "config", None), self.words()
        has = {"size": self.size, "channels": self.channels, "classes": len(self.classes)}
        if getattr(config, "vocab_size", 0):
            has |= (
                {"vocab_size": words.vocab_size, "caption_length": self.caption_length} if words else {"vocab_size": 0}
            )
        for name, number in has.items():
            takes = getattr(config, name, None)
            exact = name in ("size", "channels") or not number  # a family may have room for more words than there are
            if isinstance(takes, int) and (takes != number if exact else 0 < takes < number):
                raise ConfigError(
                    f"the model has {name} {takes:,}, the pictures in {self.path} have {number:,}",
                    fix=f"set family.{name}={number}",
                )


class PictureRows:
    """One part of the pictures: any of them in constant time.

    Args:
        data: which folder, and how it is read.
        split: `train` or `heldout`.

    Attributes:
        rows: of each item in the arrays [items].
        size: items in an epoch.
        pixels: all pictures of the folder [N, Y, X, C], on disk.
        manifest: of the folder.
    """

    def __init__(self, data: Pictures, split: str) -> None:
        self.data, self.split, folder = data, split, Path(data.path)
        self.manifest = Manifest.load(folder)
        counts = [self.manifest.splits[name]["documents"] for name in SPLITS]
        self.pixels = _mapped(folder / PICTURES, sum(counts))
        if self.pixels.shape[1] != data.size:
            raise ConfigError(
                f"the pictures in {folder} have {self.pixels.shape[1]} pixels a side, not {data.size}",
                fix=f"set data.size={self.pixels.shape[1]}, or read the files again at the other size",
            )
        first = 0 if split == SPLITS[0] else counts[0]
        self.rows = np.arange(first, first + counts[SPLITS.index(split)])
        self.hints: NDArray[np.uint8] | None = None
        if data.hint == EDGES:
            path = folder / "mask.npy"
            self.hints = _mapped(path, sum(counts)) if path.is_file() else None
            self.clear = np.array(self.column("mask").to_pylist(), dtype=bool)
        elif data.hint:
            there = np.array(self.column(data.hint).to_pylist(), dtype=bool)
            if not there.any():
                others = [name for name in HINTS if (folder / f"{name}.npy").is_file()]
                raise ConfigError(
                    f"the pictures in {folder} have no `{data.hint}`",
                    "mask: what transparent pictures show; pair: pictures that lie beside others of the same name",
                    f"set data.hint={others[0]}" if others else "set data.hint=",
                )
            self.hints, self.rows = _mapped(folder / f"{data.hint}.npy", sum(counts)), self.rows[there[self.rows]]
        self.size = len(self.rows)
        self.labels = np.array(self.column("label").to_pylist(), dtype=np.int64) if data.classes else None

    @cached_property
    def captions(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], Indices, Indices] | None:
        """Word ids [K, M] of all captions and where they stand [K, M]; each picture's first one [N], and how many [N].

        Caption 0 is silence. None where there are no words.
        """
        words = self.data.words()
        if words is None:
            return None
        spelled = self.column("words").to_pylist()
        many = np.array([len(each) for each in spelled], dtype=np.int64)
        flat = [np.array(ids, dtype=np.int64) for each in ([[]], *spelled) for ids in each]
        return (*padded(flat, self.data.caption_length, words.eot), 1 + np.cumsum(many) - many, many)

    @property
    def epoch_samples(self) -> int:
        """The same by the name that text has for it."""
        return self.size

    def ledger(self) -> Any:
        """The ledger lines of this part, with captions and names, as a pyarrow table."""
        return pq.read_table(Path(self.data.path) / FACTS).take(self.rows)

    def column(self, name: str) -> Any:
        """One column of `pictures.parquet`, of both parts."""
        return pq.read_table(Path(self.data.path) / FACTS, columns=[name])[name]

    def batch(self, items: ArrayLike, index: ArrayLike, epoch: ArrayLike = 0, seed: int | None = None) -> Batch:
        """The pictures of these numbers [B], with the global index [B] of each.

        Args:
            items: 0 to `size` - 1 [B].
            index: goes into the batch [B].
            epoch: of each [B]; with the seed it says which caption, and whether mirrored.
            seed: None: the first caption, not mirrored.
        """
        import torch

        item_B = np.atleast_1d(np.asarray(items, dtype=np.int64))
        row_B, epoch_B = self.rows[item_B], np.broadcast_to(np.asarray(epoch, dtype=np.int64), item_B.shape)
        mirrored_B = np.zeros(len(row_B), dtype=bool)
        if self.data.flip and seed is not None:
            mirrored_B = key(seed, FLIP, item_B, epoch_B) % np.uint64(2) == 1
        made: Batch = {"image": _channels_first(self.pixels[row_B], mirrored_B) / 127.5 - 1.0}
        if self.captions is not None:
            ids_KM, there_KM, first_N, many_N = self.captions
            begin_B = (key(seed, CAPTION, item_B) >> np.uint64(1)).astype(np.int64) if seed is not None else 0
            turn_B = (begin_B + epoch_B) % np.maximum(many_N[row_B], 1)
            chosen_B = np.where(many_N[row_B] > 0, first_N[row_B] + turn_B, 0)
            made["caption"], made["caption_mask"] = (torch.from_numpy(each[chosen_B]) for each in (ids_KM, there_KM))
        if self.labels is not None:
            made["label"] = torch.from_numpy(self.labels[row_B])
        if self.data.hint:
            made["hint"] = _channels_first(self._hints(row_B), mirrored_B) / 255.0
        return {**made, "index": torch.from_numpy(np.array(index, dtype=np.int64).reshape(-1))}

    def _hints(self, row_B: Indices) -> NDArray[np.uint8]:
        """The control pictures of rows, [B, Y, X, H]."""
        if self.data.hint != EDGES:
            assert self.hints is not None
            return self.hints[row_B]
        line_BYX = of_pixels(self.pixels[row_B])
        if self.hints is not None:
            clear_B = self.clear[row_B]
            line_BYX[clear_B] = of_alpha(self.hints[row_B[clear_B]][..., 0])
        return line_BYX[..., None]


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that have not been read yet: named in a recipe, read when it is first run.

    Args:
        path: a folder, a zip, an npz of arrays.
        size: pixels a side; `choose_size` gives one that suits.
        licence: SPDX id of all files; None: what stands beside them.
        caption_length, hint, flip: see `Pictures`.
        ground: colour on which transparent pictures are laid.
        tags: take the tags of a table as one more caption.
        caption_column: the table's column with the captions; None: by name, else the longest.
    """

    path: str
    size: int = 32
    licence: str | None = None
    caption_length: int = 16
    hint: str = ""
    flip: bool = False
    ground: str = "white"
    tags: bool = False
    caption_column: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the dataset's folder depends on, beside path and size."""
        return {name: getattr(self, name) for name in ("licence", "ground", "tags", "caption_column")}

    def folder(self, root: Path) -> Path:
        """Where the dataset of these files with these settings lies under `root`."""
        source = Path(self.path).resolve()
        spelled = repr((str(source), self.size, *self.settings.values()))
        return root / f"{source.name}-{self.size}px-{hashlib.sha256(spelled.encode()).hexdigest()[:8]}"

    def prepare(self, root: Path, watch: Watch | None = None) -> Pictures:
        """Read the files into a folder under `root`, or find them there, and return the data that a run can stream.

        Files that have changed since they were last read are read into a folder of their own: the runs that were made
        from the older ones keep theirs.

        Raises:
            ConfigError, DataError: see `write_pictures`; or there is no such hint.
        """
        asked = Pictures("", self.size, self.caption_length, (), self.hint, self.flip)
        first = self.folder(root)
        folders = (first if number == 1 else first.with_name(f"{first.name}-{number}") for number in count(1))
        folder = next(each for each in folders if not (each / NAME).is_file() or not changed(each))
        if (folder / NAME).is_file():
            made = Manifest.load(folder)
        else:
            made = write_pictures(folder, self.path, self.size, self.settings, watch=watch)
        ready = replace(asked, path=str(folder), ids=(made.id,))
        opened = ready.open()
        if watch is not None:
            for text in filter(None, (made.left_out(folder), *told(opened))):
                watch({"kind": "warning", "text": text})
        return ready


def told(opened: PictureRows) -> list[str]:
    """What whoever trains on pictures should know of them, in sentences."""
    settings, said = opened.manifest.settings, []
    noted, silent = settings["noted"], settings["without_caption"]
    total = sum(split["documents"] for split in opened.manifest.splits.values())
    if settings["captions"] == "none":
        said.append("There are no captions" + (", only classes." if settings["classes"] else " and no classes."))
    elif silent:
        said.append(f"Without a caption, and learned without one: {silent:,} of {total:,} pictures.")
    if noted.get("enlarged"):
        said.append(
            f"Smaller than {opened.data.size} pixels, and enlarged: {noted['enlarged']:,} of {total:,} pictures."
        )
    if noted.get("animated"):
        said.append(f"Moving, of which the first frame is taken: {noted['animated']:,} of {total:,} pictures.")
    if opened.captions is not None:
        longest = max(map(len, (ids for each in opened.column("words").to_pylist() for ids in each)), default=0)
        if longest > opened.data.caption_length:
            length = opened.data.caption_length
            said.append(f"Captions have up to {longest} words; the first {length} of each are read.")
    if not opened.manifest.splits["heldout"]["documents"]:
        said.append(f"Too few pictures, or too much alike, to hold some back: {total:,}. Nothing measures the model.")
    return said


def _mapped(path: Path, rows: int) -> NDArray[np.uint8]:
    """An array of pictures on disk [N, Y, X, C]."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged", str(error).split("\n")[0], "read the pictures again") from error
    if pixels.ndim != 4 or len(pixels) != rows or pixels.dtype != np.uint8:
        raise DataError(f"{path} is damaged", "it is not what dataset.json says", "read the pictures again")
    return np.asarray(pixels)


def _channels_first(pixels_BYXC: NDArray[np.uint8], mirrored_B: NDArray[np.bool_]) -> Any:
    """Pixels as float32 [B, C, Y, X], 0 to 255, some of them mirrored."""
    import torch

    pixels_BYXC[mirrored_B] = pixels_BYXC[mirrored_B, :, ::-1]
    return torch.from_numpy(pixels_BYXC).permute(0, 3, 1, 2).float().contiguous()
