"""What was played, kept in the run: append-only parts on disk, the newest positions of them in memory.

    Positions -write(step)-> part-00000032.npz ...      parts up to a step -read-> window -draw(step)-> positions

A part is whole or absent. A run that goes on from step s reads the parts up to s; the first that it writes removes
those beyond, so that what is learned from is what an uninterrupted run would have had.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nomoat.core import durable
from nomoat.core.errors import DataError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

Positions = dict[str, Any]
"""Arrays with one row a position: `state`, `policy` [B, A], `policy_mask`, `value`, the first player's."""


class Replay:
    """The newest positions of a folder of parts.

    Args:
        folder: where parts are; None: in memory alone.
        window: positions that are kept at most.
        game: whose states they are, where these are objects.
    """

    def __init__(self, folder: Path | None, window: int, game: Any = None) -> None:
        self.folder, self.window, self.game = folder, window, game
        self.rows: Positions = {}
        self.count = self.total = 0
        """Positions in the window; and in all, with those that have left it."""
        self.seen: set[str] = set()

    def read(self, until: int | None = None) -> int:
        """Take in parts that are not known yet, up to a step; how many positions came.

        Raises:
            DataError: a part cannot be read.
        """
        came = 0
        for path in sorted(self.folder.glob("part-*.npz")) if self.folder is not None else ():
            if path.name not in self.seen and (until is None or number(path) <= until):
                self.seen.add(path.name)
                came += self.take(load(path, self.game))
        return came

    def write(self, step: int, positions: Positions, worker: int = 0) -> None:
        """Keep a part of a step, and forget all of this worker that are later.

        Raises:
            OSError: the disk is full or broken.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"part-*-{worker}.npz"):
                if number(path) >= step:
                    path.unlink()
            name = f"part-{step:08}-{worker}.npz"
            store(self.folder / name, positions, self.game)
            self.seen.add(name)
        self.take(positions)

    def take(self, positions: Positions) -> int:
        """Add positions to the window; the oldest leave it. How many came."""
        came = len(positions["state"])
        self.total += came
        for name, rows in positions.items():
            both = np.concatenate((self.rows[name], rows)) if name in self.rows else rows
            # A copy, or the window would hold on to all that was ever in it.
            self.rows[name] = both[-self.window :].copy() if len(both) > self.window else both
        self.count = len(self.rows["state"])
        return came

    def draw(self, rows: int, chance: np.random.Generator) -> Positions:
        """That many positions of the window, each as likely as any."""
        chosen = chance.integers(self.count, size=rows)
        return {name: array[chosen] for name, array in self.rows.items()}


def number(path: Path) -> int:
    """The step of a part or a table."""
    return int(path.stem.split("-")[1])


def store(path: Path, arrays: Mapping[str, Any], game: Any = None) -> None:
    """Write arrays as one .npz, whole or not at all; a game whose states are objects packs them (`packed`)."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: game.packed(each) if each.dtype == object else each for name, each in arrays.items()})
    durable.replace(path, buffer.getvalue())


def load(path: Path, game: Any = None) -> dict[str, Any]:
    """Read what `store` wrote; a game whose states are objects unpacks them (`unpacked`).

    Raises:
        DataError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: game.unpacked(each) if each.dtype.kind == "U" else each for name, each in file.items()}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(
            f"{path.name} cannot be read as what was played", str(error), f"remove {path}; what it held is lost"
        ) from error
    except Exception as error:  # a torn archive: zipfile's own errors
        raise DataError(f"{path.name} is torn", str(error), f"remove {path}; what it held is lost") from error
