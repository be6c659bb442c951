"""Stacked digits: three handwritten digits as the three colours of a picture, which makes 1,000 kinds of picture.

    .npz of digits -> training and held-out digits -> sample i -> Order of each colour -> image [B, 3, Y, X], label [B]

How many of the 1,000 kinds a generator makes is how well it covers what it was shown. Metz et al. 2016,
arXiv:1611.02163 (from MNIST, LeCun et al. 1998).
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Batch
from nomoat.data.order import Order, permute

SIDE = 28
KINDS = 1000
HELD_OUT = 0.1
"""Share of the digits that no training picture shows."""
MOST_BYTES = 2**30
"""A file that unpacks to more is refused: a thousand times what MNIST has."""
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class StackedDigits:
    """Recipe data: `image` [B, 3, size, size] in [-1, 1] and `label` [B], the number that the digits spell.

    Args:
        path: an .npz with `x` uint8 [n, 28, 28] and `y` uint8 [n] in 0..9.
        size: pixels a side; above 28 there is a black edge about the digits.
        sha256: of the file as it was when the recipe was resolved; empty: not checked.
    """

    path: str
    size: int = SIDE
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.size < SIDE:
            raise ConfigError(f"digits of {SIDE} pixels do not fit in {self.size}", fix=f"use a size from {SIDE} on")

    @property
    def paths(self) -> tuple[str, ...]:
        """The file, as of any data."""
        return (self.path,)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return tuple(f"{kind:03}" for kind in range(KINDS))

    def words(self) -> None:
        """There are no captions."""
        return

    def changed(self) -> list[str]:
        """Say in words how the file differs from what the recipe was resolved with; [] where it does not."""
        file = Path(self.path)
        if not file.is_file():
            return [f"{file} is no longer there"]
        same = not self.sha256 or hashlib.sha256(file.read_bytes()).hexdigest() == self.sha256
        return [] if same else [f"{file} holds other digits now"]

    def digits(self, split: str = "train") -> tuple[Tensor, Tensor]:
        """The single digits of a part, [n, 1, size, size] in [-1, 1], and what each shows [n].

        Raises:
            DataError: there is no such file, or it does not hold digits.
        """
        x_NYX, y_N = _read(Path(self.path))
        count = len(y_N)
        held = max(1, round(HELD_OUT * count))
        order_N = permute(np.arange(count), count, 0)
        chosen = order_N[held:] if split == "train" else order_N[:held]
        edge = self.size - SIDE
        padding = edge // 2, edge - edge // 2
        padded_NYX = np.pad(x_NYX[chosen], ((0, 0), padding, padding))
        image = torch.from_numpy(padded_NYX).float()[:, None] / 127.5 - 1
        return image, torch.from_numpy(y_N[chosen].astype(np.int64))

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls."""
        digits = self.digits()
        share, step = np.arange(rank, batch_size, world), start
        while True:
            yield _stacked(digits, step * batch_size + share, seed)
            step += 1

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Batches of held-out digits: as many pictures as `tokens` pays for at a token a pixel, 1,000 at most."""
        digits, count = self.digits("heldout"), max(1, min(KINDS, tokens // self.size**2))
        for first in range(0, count, batch_size):
            yield _stacked(digits, np.arange(first, min(first + batch_size, count)), 0)


def _stacked(digits: tuple[Tensor, Tensor], index_B: NDArray[np.int64], seed: int) -> Batch:
    """The pictures of some global indices; each colour has an order of its own."""
    x, y = digits
    orders = (Order([len(y)], None, 3 * seed + colour) for colour in range(3))
    items_3B = np.stack([order.at(index_B)[1] for order in orders])
    image = torch.cat([x[items_B] for items_B in items_3B], 1)
    hundreds, tens, ones = (y[items_B] for items_B in items_3B)
    return {"image": image, "label": 100 * hundreds + 10 * tens + ones, "index": torch.from_numpy(index_B)}


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
    """The digits of a file, checked."""
    fix = "name an .npz with `x` uint8 [n, 28, 28] and `y` [n] in 0..9"
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise DataError(f"{path} would unpack to {size / 2**30:.1f} GiB", "that is no file of digits", fix)
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", "", fix) from None
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as digits", str(error), fix) from error
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1:] != (SIDE, SIDE) or y.shape != x.shape[:1]:
        raise DataError(f"{path} holds no digits", f"x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}", fix)
    if not np.issubdtype(y.dtype, np.integer) or set(np.unique(y)) != set(range(10)):
        raise DataError(f"{path} does not show all ten digits", f"y has {np.unique(y)[:12].tolist()}", fix)
    return x, y
