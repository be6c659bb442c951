"""Pictures of the shapes world from signed distances: any size, anti-aliased, with exact masks, edges and depth.

    Scenes -> for each thing a window of pixels -> distance to its outline [rows, Y, X] -> coverage, stripes
           -> painted far to near -> image [B, 3, Y, X]; what is visible of each -> masks [B, N, Y, X] -> hint

A signed distance is negative inside; half a pixel on either side of the outline fades, so coverage is the share of a
pixel that is covered. Distances after Quilez ("2D distance functions"), written from geometry; at mitred corners they
are bounds, which anti-aliasing does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError, nearest
from nomoat.data.shapes_scene import BACKGROUNDS, COLOURS, RADII, SHAPES, Floats, Numbers, Scenes

SMALLEST, LARGEST = 16, 128
HINTS = ("mask", "edges", "depth")
RGB = {
    "red": (214, 40, 48),
    "orange": (247, 129, 24),
    "yellow": (250, 214, 40),
    "green": (46, 158, 72),
    "cyan": (52, 188, 212),
    "blue": (38, 84, 212),
    "purple": (128, 58, 186),
    "pink": (240, 98, 172),
}
BACKDROP = {"paper": (248, 246, 240), "sky": (222, 236, 248), "mint": (224, 243, 229), "rose": (248, 232, 240)}
SHADE = 0.55
"""What the dark stripes' colour is multiplied by."""
PERIOD = 0.145
"""From one stripe to the next, as a share of the picture's side."""

COLOUR_RGB = np.array([RGB[name] for name in COLOURS], dtype=np.float32) / 127.5 - 1
DARK_RGB = (COLOUR_RGB + 1) * SHADE - 1
BACKGROUND_RGB = np.array([BACKDROP[name] for name in BACKGROUNDS], dtype=np.float32) / 127.5 - 1
"""In [-1, 1], each [number, 3]."""
RADIUS = np.array(RADII, dtype=np.float32)

Floated = NDArray[Any]


def images(scenes: Scenes, size: int) -> Floats:
    """Pictures [B, 3, Y, X] in [-1, 1].

    Raises:
        ConfigError: a size that is not made.
    """
    check(size)
    image_BYXC = np.empty((len(scenes), size, size, 3), dtype=np.float32)
    image_BYXC[:] = BACKGROUND_RGB[scenes.background_B][:, None, None]
    for window in _windows(scenes, size):
        colour_R = scenes.kind_BND[window.row_R, window.slot_R, 1]
        bright_RC, dark_RC = COLOUR_RGB[colour_R], DARK_RGB[colour_R]
        striped_R11 = scenes.kind_BND[window.row_R, window.slot_R, 3][:, None, None] == 1
        bright_RYX = np.where(striped_R11, window.bright(), np.float32(1))
        tone_RYXC = dark_RC[:, None, None] + bright_RYX[..., None] * (bright_RC - dark_RC)[:, None, None]
        here = window.pixels
        under_RYXC = image_BYXC[here]
        image_BYXC[here] = under_RYXC + window.cover_RYX[..., None] * (tone_RYXC - under_RYXC)
    return np.ascontiguousarray(image_BYXC.transpose(0, 3, 1, 2))


def masks(scenes: Scenes, size: int) -> Floats:
    """The share of each pixel in which each thing is seen [B, N, Y, X]; their sum is the mask of all."""
    check(size)
    mask_BNYX = np.zeros((*scenes.kind_BND.shape[:2], size, size), dtype=np.float32)
    for window in _windows(scenes, size):
        rows, ys, xs = window.pixels
        cover_RYX = window.cover_RYX
        for slot in range(mask_BNYX.shape[1]):
            mask_BNYX[rows, slot, ys, xs] *= 1 - cover_RYX
        mask_BNYX[rows, window.slot_R[:, None, None], ys, xs] = cover_RYX
    return mask_BNYX


def hint(scenes: Scenes, size: int, kind: str) -> Floats:
    """A control picture [B, 1, Y, X] in [0, 1].

    Args:
        scenes: of which.
        size: pixels a side.
        kind: `mask`, where anything is; `edges`, lines of about a pixel along the outlines; `depth`, how near it is:
            ground from far at the top to near at the bottom, and things upright on it where their feet are.

    Raises:
        ConfigError: an unknown kind, a size that is not made.
    """
    if kind not in HINTS:
        raise ConfigError(f"there is no hint `{kind}`", f"there is {', '.join(HINTS)}", nearest(kind, HINTS))
    if kind == "mask":
        return masks(scenes, size).sum(1, keepdims=True)
    check(size)
    found_BYX = np.zeros((len(scenes), size, size), dtype=np.float32)
    if kind == "depth":
        found_BYX += 0.3 * ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None]
    for window in _windows(scenes, size):
        here = window.pixels
        if kind == "edges":
            line_RYX = np.clip(1.25 - np.abs(window.distance_RYX), 0, 1)
            found_BYX[here] = np.maximum(found_BYX[here] * (1 - window.cover_RYX), line_RYX)
        else:
            near_R11 = (0.4 + 0.6 * feet(scenes)[window.row_R, window.slot_R])[:, None, None]
            found_BYX[here] += window.cover_RYX * (near_R11 - found_BYX[here])
    return found_BYX[:, None]


def feet(scenes: Scenes) -> Floats:
    """The lowest point of each thing [B, N], as a share of the side: what is lower is nearer, and in front."""
    return np.clip(scenes.place_BND[..., 1] + RADIUS[scenes.kind_BND[..., 2]], 0, 1)


def check(size: int) -> None:
    """Raises ConfigError where pictures of that size are not made."""
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(
            f"pictures of {size} pixels a side cannot be made",
            f"below {SMALLEST} shapes cannot be told apart" if size < SMALLEST else "",
            f"size is {SMALLEST} to {LARGEST}",
        )


class _Window:
    """The pixels around one thing in each of some pictures.

    Attributes:
        row_R, slot_R: which picture, and which thing of it.
        pixels: index of the windows in an array [B, Y, X].
        distance_RYX: to the outline, in pixels; negative inside.
        cover_RYX: the share of each pixel that the thing covers.
    """

    def __init__(self, scenes: Scenes, size: int, row_R: Numbers, slot_R: Numbers) -> None:
        self.row_R, self.slot_R, self.size = row_R, slot_R, size
        kind_RD, place_RD = scenes.kind_BND[row_R, slot_R], scenes.place_BND[row_R, slot_R] * size
        radius_R = RADIUS[kind_RD[:, 2]] * size
        side = min(size, int(np.ceil(2 * radius_R.max())) + 3)
        first_RD = np.clip(np.floor(place_RD - side / 2 + 0.5), 0, size - side).astype(np.int64)
        at_RDP = first_RD[:, :, None] + np.arange(side)
        self.pixels = row_R[:, None, None], at_RDP[:, 1, :, None], at_RDP[:, 0, None, :]
        off_RDP = (at_RDP + np.float32(0.5)) - place_RD[:, :, None]
        self.x_R1X, self.y_RY1 = off_RDP[:, 0, None, :], off_RDP[:, 1, :, None]
        self.distance_RYX = distances(kind_RD[:, 0], radius_R, self.x_R1X, self.y_RY1)
        self.cover_RYX = covered(self.distance_RYX)

    def bright(self) -> Floats:
        """The share of each pixel [R, Y, X] that is bright where the thing is striped."""
        return stripes(self.x_R1X, self.y_RY1, self.size)


def _windows(scenes: Scenes, size: int) -> Iterator[_Window]:
    """The windows to paint one after the other, from far to near; each has one thing of a picture at most."""
    order_BN = np.argsort(feet(scenes), axis=1, kind="stable")
    there_BN = order_BN < scenes.count_B[:, None]
    for place in range(order_BN.shape[1]):
        row_R = np.flatnonzero(there_BN[:, place])
        if len(row_R):
            yield _Window(scenes, size, row_R, order_BN[row_R, place])


def covered(distance_RYX: Floats) -> Floats:
    """The share of a pixel that is inside, by its middle's distance in pixels."""
    return np.clip(np.float32(0.5) - distance_RYX, 0, 1)


def stripes(x_R1X: Floats, y_RY1: Floats, size: int) -> Floats:
    """The share of each pixel that lies in a bright stripe, by its place seen from the thing's middle, in pixels."""
    period = PERIOD * size
    turn_RYX = (x_R1X + y_RY1) * np.float32(np.sqrt(0.5) / period)
    off_RYX = np.abs(turn_RYX - np.rint(turn_RYX))
    return np.clip(np.float32(0.5) + (np.float32(0.25) - off_RYX) * np.float32(period), 0, 1)


def distances(shape_R: Numbers, radius_R: Floats, x_R1X: Floats, y_RY1: Floats) -> Floats:
    """Signed distance [R, Y, X] to the outline of each shape.

    Args:
        shape_R: number in `SHAPES`.
        radius_R: half its width, in pixels; the distance has the same unit.
        x_R1X: columns seen from its middle, in pixels.
        y_RY1: rows seen from its middle, downwards.
    """
    scale_R11 = radius_R[:, None, None]
    x_R1X, y_RY1 = x_R1X / scale_R11, y_RY1 / scale_R11
    found_RYX = np.empty((len(shape_R), y_RY1.shape[1], x_R1X.shape[2]), dtype=np.float32)
    for number in np.unique(shape_R):
        here = np.flatnonzero(shape_R == number)
        found_RYX[here] = _DISTANCES[number](x_R1X[here], y_RY1[here])
    return found_RYX * scale_R11


def _circle(x: Floated, y: Floated) -> Floated:
    return np.sqrt(x * x + y * y) - 0.97


def _square(x: Floated, y: Floated) -> Floated:
    return _box(x, y, 0.86, 0.86)


def _triangle(x: Floated, y: Floated) -> Floated:
    """Equilateral, one corner up."""
    high = np.float32(np.sqrt(3) / 2)
    return np.maximum((2 * high * np.abs(x) - y - high) / 2, y - high)


def _diamond(x: Floated, y: Floated) -> Floated:
    wide, high = 0.72, 1.0
    return (np.abs(x) * high + np.abs(y) * wide - wide * high) / np.float32(np.hypot(wide, high))


def _star(x: Floated, y: Floated) -> Floated:
    """Five points, one up. Folded twice into half a point, it is one straight line from the tip to the notch."""
    outer, inner, cosine, sine = 1.06, 0.46, np.float32(np.cos(np.pi / 5)), np.float32(np.sin(np.pi / 5))
    x, up = np.abs(x), 0.1 - y
    for _ in range(2):
        beyond = 2 * np.maximum(x * cosine - up * sine, 0)
        x, up = np.abs(x - beyond * cosine), up + beyond * sine
    step_up, step_x = inner * cosine - outer, inner * sine
    return ((up - outer) * step_x - x * step_up) / np.float32(np.hypot(step_up, step_x))


def _heart(x: Floated, y: Floated) -> Floated:
    """A square on its corner, half as wide as `tip`, and half a disc on each of its two upper sides."""
    tip, root = 0.82, np.float32(np.sqrt(0.5))
    x, y = np.abs(x), y - 0.085
    lobe = np.sqrt((x - tip / 2) ** 2 + (y + tip / 2) ** 2) - tip * root
    return np.minimum((x + np.abs(y) - tip) * root, lobe)


def _cross(x: Floated, y: Floated) -> Floated:
    return np.minimum(_box(x, y, 0.95, 0.34), _box(x, y, 0.34, 0.95))


def _ring(x: Floated, y: Floated) -> Floated:
    return np.abs(np.sqrt(x * x + y * y) - 0.74) - 0.24


def _box(x: Floated, y: Floated, wide: float, high: float) -> Floated:
    over_x, over_y = np.abs(x) - np.float32(wide), np.abs(y) - np.float32(high)
    outside = np.sqrt(np.maximum(over_x, 0) ** 2 + np.maximum(over_y, 0) ** 2)
    return outside + np.minimum(np.maximum(over_x, over_y), 0)


_DISTANCES: tuple[Callable[[Floated, Floated], Floated], ...] = (
    _circle, _square, _triangle, _diamond, _star, _heart, _cross, _ring
)  # fmt: skip
assert len(_DISTANCES) == len(SHAPES)
