"""A scene of the shapes world: which things it has, where they are, and what a caption tells of them.

    Scene (things with shape, colour, size, texture and place; background; relation) <-> Scenes (the same, as arrays)

Places are shares of the picture's side, x to the right and y downwards, so that a scene is the same at every size.
Things never overlap and never touch: what cannot be told apart cannot be counted. There is no "inside": a thing within
another has eight pixels or fewer at 32 and hides the middle of what it lies in, and rings, crosses and stars cannot
hold one, so neither of the two could be read exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError, nearest

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped")
BACKGROUNDS = ("paper", "sky", "mint", "rose")
RELATIONS = ("left", "right", "above", "below")
ATTRIBUTES = ("shape", "colour", "size", "texture")
VALUES = (SHAPES, COLOURS, SIZES, TEXTURES)
"""The values of each of the attributes; a kind is one number of each."""

RADII = (0.125, 0.165, 0.21)
"""Half the width of a thing of each size, as a share of the picture's side."""
MARGIN, GAP = 0.03, 0.08
"""Least distance from the border and between two things, as shares of the side; four large things just fit."""

Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Args:
        shape, colour, size, texture: one of `SHAPES`, `COLOURS`, `SIZES`, `TEXTURES`.
        x, y: its middle, as shares of the picture's side, from the left and from the top.
    """

    shape: str
    colour: str
    size: str = "medium"
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.5

    def __post_init__(self) -> None:
        for name, known in zip(ATTRIBUTES, VALUES, strict=True):
            _one_of(getattr(self, name), name, known)
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise ConfigError(f"a thing cannot be at ({self.x}, {self.y})", "places are shares of the side, 0 to 1")

    @property
    def radius(self) -> float:
        """Half its width, as a share of the picture's side."""
        return RADII[SIZES.index(self.size)]


@dataclass(frozen=True)
class Scene:
    """What is in a picture.

    Args:
        things: in the order in which a caption names them.
        background: one of `BACKGROUNDS`; no caption tells it.
        relation: where the first of two things is, seen from the second; None: nothing is said of it.
        said: the attributes that its caption tells.
    """

    things: tuple[Thing, ...]
    background: str = "paper"
    relation: str | None = None
    said: tuple[str, ...] = ATTRIBUTES

    def __post_init__(self) -> None:
        _one_of(self.background, "background", BACKGROUNDS)
        if self.relation is not None:
            _one_of(self.relation, "relation", RELATIONS)
            if len(self.things) != 2:
                raise ConfigError(f"a relation is between two things, not {len(self.things)}")
        for name in self.said:
            _one_of(name, "attribute", ATTRIBUTES)

    @property
    def alike(self) -> bool:
        """Whether it has several things and all are of one kind: such are counted, not listed."""
        kinds = {(thing.shape, thing.colour, thing.size, thing.texture) for thing in self.things}
        return len(self.things) > 1 and len(kinds) == 1


@dataclass(frozen=True)
class Scenes:
    """Scenes as arrays, N things at most in each; places beyond a scene's own count hold nothing.

    Args:
        count_B: things in each.
        kind_BND: number of shape, colour, size and texture of each thing, in the order of `VALUES`.
        place_BND: x and y of each thing.
        background_B: number of the background.
        relation_B: number of the relation, or -1.
        said_BD: whether each of `ATTRIBUTES` is told.
    """

    count_B: Numbers
    kind_BND: Numbers
    place_BND: Floats
    background_B: Numbers
    relation_B: Numbers
    said_BD: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.count_B)

    def scene(self, row: int) -> Scene:
        """One of them."""
        return Scene(
            tuple(
                Thing(*(names[number] for names, number in zip(VALUES, kind, strict=True)), *place)
                for kind, place in zip(
                    self.kind_BND[row, : self.count_B[row]].tolist(), self.place_BND[row].tolist(), strict=False
                )
            ),
            BACKGROUNDS[self.background_B[row]],
            RELATIONS[self.relation_B[row]] if self.relation_B[row] >= 0 else None,
            tuple(name for name, told in zip(ATTRIBUTES, self.said_BD[row].tolist(), strict=True) if told),
        )

    @property
    def all(self) -> list[Scene]:
        """Each of them."""
        return [self.scene(row) for row in range(len(self))]

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Scenes:
        """The arrays of some scenes."""
        most = max((len(scene.things) for scene in scenes), default=0)
        kind_BND = np.zeros((len(scenes), most, len(VALUES)), dtype=np.int64)
        place_BND = np.zeros((len(scenes), most, 2), dtype=np.float32)
        for row, scene in enumerate(scenes):
            for slot, thing in enumerate(scene.things):
                kind_BND[row, slot] = [
                    names.index(getattr(thing, name)) for name, names in zip(ATTRIBUTES, VALUES, strict=True)
                ]
                place_BND[row, slot] = thing.x, thing.y
        relations = [RELATIONS.index(scene.relation) if scene.relation else -1 for scene in scenes]
        return cls(
            np.array([len(scene.things) for scene in scenes], dtype=np.int64),
            kind_BND,
            place_BND,
            np.array([BACKGROUNDS.index(scene.background) for scene in scenes], dtype=np.int64),
            np.array(relations, dtype=np.int64),
            np.array([[name in scene.said for name in ATTRIBUTES] for scene in scenes], dtype=bool).reshape(-1, 4),
        )


def _one_of(value: Any, name: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"there is no {name} `{value}`", f"there is {', '.join(known)}", nearest(str(value), known))
