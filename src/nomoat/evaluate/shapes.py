"""The analytic reader: what a picture of the shapes world shows, found by rule, and whether that is what was asked for.

    image [B, C, Y, X] -> background from the border -> difference -> connected pieces -> of each:
    pixels = ground + coverage x (colour - ground) + shading x (dark - colour), least squares in each of 8 colours
    coverage -> area, middle -> best overlap with 8 templates of that area -> shape, size; shading -> stripes

Nothing here is learned, so nothing can be learned by heart: the reader is as good on combinations that a model never
saw. What looks like no shape, or like no colour, is read as None and never counts as right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError
from nomoat.data.shapes_picture import BACKGROUND_RGB, COLOUR_RGB, DARK_RGB, PERIOD, covered, distances
from nomoat.data.shapes_scene import ATTRIBUTES, BACKGROUNDS, COLOURS, RADII, SHAPES, SIZES, Scene

LEAST_CONTRAST = 0.55
"""What differs less from the ground is ground, in units in which black and white differ by 2 in each channel."""
LEAST_AREA = 8 / 32**2
"""Smaller pieces are specks, as a share of the picture."""
LEAST_OVERLAP = 0.6
MOST_RESIDUAL, MOST_SHADE = 0.35, 0.5
"""What overlaps less with every template has no shape; what lies further from every colour, or is half as dark as
stripes are without having any, has no colour."""
SHADED, WAVED = 0.5, 0.12
"""Least shading and wave together, and least wave, of what is striped: whole stripes have about 0.5 and 0.6."""

MOST_PAIRED = 6
"""Where more things are found, the largest are held against those that were asked for."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Found:
    """A thing as it was read.

    Args:
        shape, colour: None where it looks like none.
        size, texture: the nearest.
        x, y: its middle, as shares of the side.
        overlap: with the template of its shape, 0 to 1.
        radius: half its width, as a share of the side.
    """

    shape: str | None
    colour: str | None
    size: str
    texture: str
    x: float
    y: float
    overlap: float
    radius: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows.

    Args:
        things: from left to right.
        background: the nearest.
    """

    things: tuple[Found, ...]
    background: str


def read(image_BCYX: Any) -> list[Reading]:
    """What each picture shows.

    Args:
        image_BCYX: an array or a tensor on the CPU, three channels in [-1, 1].

    Raises:
        ConfigError: it is no batch of colour pictures.
    """
    if image_BCYX.ndim != 4 or image_BCYX.shape[1] != 3:
        raise ConfigError(
            f"pictures of shape {tuple(image_BCYX.shape)} cannot be read", "", "give [pictures, 3, rows, columns]"
        )
    image_BYXC = np.asarray(image_BCYX, dtype=np.float32).transpose(0, 2, 3, 1)
    border_BPC = np.concatenate(
        [image_BYXC[:, 0], image_BYXC[:, -1], image_BYXC[:, :, 0], image_BYXC[:, :, -1]], axis=1
    )
    ground_BC = np.median(border_BPC, axis=1)
    label_BYX = _pieces(image_BYXC, ground_BC)
    nearest_B = np.square(ground_BC[:, None] - BACKGROUND_RGB).sum(-1).argmin(1)
    return [
        Reading(_things(image, ground, label), BACKGROUNDS[number])
        for image, ground, label, number in zip(image_BYXC, ground_BC, label_BYX, nearest_B, strict=True)
    ]


def marks(scene: Scene, reading: Reading) -> dict[str, bool]:
    """What of a scene is right in a picture.

    Returns:
        `count`; each of shape, colour, size and texture: all things of the scene are there with it right; `bound`:
        each shape has its own colour; `relation`, where there is one; and `joint`: all that its caption tells.
    """
    asked, seen = scene.things, reading.things
    right: dict[str, bool] = {"count": len(asked) == len(seen)}
    paired = _paired(scene, reading)
    for name in ATTRIBUTES:
        right[name] = bool(paired) and all(
            getattr(a, name) == getattr(f, name) for a, f in zip(asked, paired, strict=True)
        )
    right["bound"] = right["shape"] and right["colour"]
    if scene.relation is not None:
        right["relation"] = bool(paired) and relation(paired[0], paired[1]) == scene.relation
    told = ["count", *scene.said, *(["relation"] if scene.relation is not None else [])]
    right["joint"] = all(right[name] for name in told)
    return right


def relation(first: Found, second: Found) -> str:
    """Where the first is, seen from the second."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def _paired(scene: Scene, reading: Reading) -> tuple[Found, ...]:
    """Found things, one for each of the scene's, so that as much as possible agrees; none where they are fewer."""
    wanted = (*scene.said, *(name for name in ATTRIBUTES if name not in scene.said))
    weights = [8 ** (name in scene.said) for name in wanted]
    best: tuple[Found, ...] = ()
    most = -1
    largest = sorted(reading.things, key=lambda found: -found.radius)[:MOST_PAIRED]
    for chosen in permutations(largest, len(scene.things)):
        agree = sum(
            weight
            for thing, found in zip(scene.things, chosen, strict=True)
            for name, weight in zip(wanted, weights, strict=True)
            if getattr(thing, name) == getattr(found, name)
        )
        if agree > most:
            best, most = chosen, agree
    return best


def _pieces(image_BYXC: Floats, ground_BC: Floats) -> NDArray[np.int64]:
    """The number of the thing that each pixel belongs to [B, Y, X], 0 for none, a little beyond its outline."""
    size = image_BYXC.shape[1]
    soft = image_BYXC
    for axis in (1, 2):
        soft = 0.5 * soft + 0.25 * (_shifted(soft, axis, 1) + _shifted(soft, axis, -1))
    contrast_BYX = np.sqrt(np.square(soft - ground_BC[:, None, None]).sum(-1))
    near_BYX = contrast_BYX
    for _ in range(max(1, round(3 * size / 32))):
        near_BYX = _grown(near_BYX)
    mask_BYX = contrast_BYX > np.maximum(LEAST_CONTRAST, 0.45 * near_BYX)
    label_BYX = _connected(mask_BYX)
    area = np.bincount(label_BYX.ravel(), minlength=label_BYX.max() + 1)
    label_BYX = np.where(area[label_BYX] >= max(LEAST_AREA * size * size, 1), label_BYX, 0)
    for _ in range(max(1, round(2 * size / 32))):
        label_BYX = np.where(label_BYX > 0, label_BYX, _grown(label_BYX))
    return label_BYX


def _connected(mask_BYX: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Eight-connected pieces: every pixel takes the largest number among its neighbours until none changes."""
    label_BYX = np.where(mask_BYX, np.arange(1, mask_BYX.size + 1).reshape(mask_BYX.shape), 0)
    while True:
        grown_BYX = np.where(mask_BYX, _grown(label_BYX), 0)
        if (grown_BYX == label_BYX).all():
            return label_BYX
        label_BYX = grown_BYX


def _grown(x_BYX: Any) -> Any:
    """The largest of each pixel and its eight neighbours."""
    for axis in (1, 2):
        x_BYX = np.maximum(x_BYX, np.maximum(_shifted(x_BYX, axis, 1), _shifted(x_BYX, axis, -1)))
    return x_BYX


def _shifted(x: Any, axis: int, step: int) -> Any:
    """The neighbour on one side of each pixel; at the border the pixel itself."""
    at = np.clip(np.arange(x.shape[axis]) + step, 0, x.shape[axis] - 1)
    return np.take(x, at, axis)


def _things(image_YXC: Floats, ground_C: Floats, label_YX: NDArray[np.int64]) -> tuple[Found, ...]:
    found = []
    for number in np.unique(label_YX[label_YX > 0]):
        ys, xs = np.nonzero(label_YX == number)
        box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
        found.append(
            _thing(image_YXC[box] - ground_C, ground_C, label_YX[box] == number, (xs.min(), ys.min(), len(image_YXC)))
        )
    return tuple(sorted((thing for thing in found if thing), key=lambda thing: thing.x))


def _thing(
    change_YXC: Floats, ground_C: Floats, inside_YX: NDArray[np.bool_], at: tuple[int, int, int]
) -> Found | None:
    """One thing in its window of pixels.

    Args:
        change_YXC: what the window has more than the ground.
        ground_C: the ground's colour.
        inside_YX: which pixels are its own.
        at: first column, first row, pixels a side of the whole picture.
    """
    column, row, size = at
    pixel_PC = change_YXC[inside_YX]
    colour, residual, part_PD = _colour(pixel_PC, ground_C)
    cover_YX: Floats = np.zeros(inside_YX.shape, dtype=np.float32)
    shade_YX: Floats = np.zeros_like(cover_YX)
    cover_YX[inside_YX], shade_YX[inside_YX] = part_PD[:, 0], part_PD[:, 1]
    area = float(cover_YX.sum())
    if area < LEAST_AREA * size * size / 2:
        return None
    ys, xs = np.arange(len(cover_YX)) + 0.5, np.arange(cover_YX.shape[1]) + 0.5
    middle = float((cover_YX.sum(0) * xs).sum() / area), float((cover_YX.sum(1) * ys).sum() / area)
    cover_YX = np.clip(cover_YX, 0, 1)
    shape, overlap, radius, (x, y) = _shape(cover_YX, area, middle)
    shade, wave = _shading(cover_YX, shade_YX, size)
    striped = wave > WAVED and shade + wave > SHADED
    known = residual <= MOST_RESIDUAL and (striped or shade <= MOST_SHADE)
    return Found(
        SHAPES[shape] if overlap >= LEAST_OVERLAP else None,
        COLOURS[colour] if known else None,
        SIZES[int(np.abs(np.log(np.array(RADII) * size / radius)).argmin())],
        "striped" if striped else "plain",
        (x + column) / size,
        (y + row) / size,
        overlap,
        radius / size,
    )


def _colour(pixel_PC: Floats, ground_C: Floats) -> tuple[int, float, Floats]:
    """Number of the colour, how far pixels lie from it, and coverage and shading of each pixel [P, 2] in it."""
    basis_KDC = np.stack([COLOUR_RGB - ground_C, DARK_RGB - COLOUR_RGB], axis=1)
    part_KPD = np.einsum("kcd,pc->kpd", np.linalg.pinv(basis_KDC), pixel_PC)
    cover_KP = np.clip(part_KPD[..., 0], 0, 1)
    held_KPD = np.stack([cover_KP, np.clip(part_KPD[..., 1], 0, cover_KP)], axis=-1)
    off_KP = np.square(pixel_PC - np.einsum("kpd,kdc->kpc", held_KPD, basis_KDC)).sum(-1)
    best = int(off_KP.sum(1).argmin())
    return best, float(np.median(np.sqrt(off_KP[best]))), part_KPD[best]


@cache
def _units() -> tuple[Floats, Floats]:
    """Area [8] and centroid [8, 2] of every shape with radius 1."""
    grid = ((np.arange(512) + 0.5) / 200 - 1.28).astype(np.float32)
    every = np.arange(len(SHAPES))
    across_K1X = np.repeat(grid[None, None, :], len(SHAPES), 0)
    inside = distances(every, np.ones(len(SHAPES), dtype=np.float32), across_K1X, across_K1X.transpose(0, 2, 1)) < 0
    area = inside.sum((1, 2))
    centre = np.stack([(inside.sum(1) * grid).sum(1), (inside.sum(2) * grid).sum(1)], axis=1) / area[:, None]
    return area / 200**2, centre


def _shape(cover_YX: Floats, area: float, middle: tuple[float, float]) -> tuple[int, float, float, tuple[float, float]]:
    """Number of the shape, overlap with its template, its radius and its middle in pixels of the window."""
    unit_K, centre_KD = _units()
    radius_K = np.sqrt(area / unit_K).astype(np.float32)
    middle_KD = np.array(middle) - centre_KD * radius_K[:, None]
    x_K1X = (np.arange(cover_YX.shape[1]) + 0.5 - middle_KD[:, :1]).astype(np.float32)[:, None, :]
    y_KY1 = (np.arange(cover_YX.shape[0]) + 0.5 - middle_KD[:, 1:]).astype(np.float32)[:, :, None]
    sharp_KYX = covered(distances(np.arange(len(SHAPES)), radius_K, x_K1X, y_KY1))
    soft_KYX = sharp_KYX
    for axis in (1, 2):
        soft_KYX = (soft_KYX + _shifted(soft_KYX, axis, 1) + _shifted(soft_KYX, axis, -1)) / 3
    overlap_EK = np.stack([_overlap(each_KYX, cover_YX) for each_KYX in (sharp_KYX, soft_KYX)])
    best = int(overlap_EK.max(0).argmax())
    x, y = middle_KD[best].tolist()
    return best, float(overlap_EK[:, best].max()), float(radius_K[best]), (x, y)


def _overlap(template_KYX: Floats, cover_YX: Floats) -> Floats:
    """Intersection over union [K] of coverages."""
    return np.minimum(template_KYX, cover_YX).sum((1, 2)) / np.maximum(template_KYX, cover_YX).sum((1, 2))


def _shading(cover_YX: Floats, shade_YX: Floats, size: int) -> tuple[float, float]:
    """The mean shading, and how far it swings in waves of the stripes' length and direction, whatever their phase."""
    down, across = np.indices(cover_YX.shape)
    turn_YX = (across + down) * (2 * np.pi * np.sqrt(0.5) / (PERIOD * size))
    basis_DP = np.stack([cover_YX, cover_YX * np.cos(turn_YX), cover_YX * np.sin(turn_YX)]).reshape(3, -1)
    mean, cosine, sine = np.linalg.lstsq(basis_DP.T, shade_YX.ravel(), rcond=None)[0]
    return float(mean), float(np.hypot(cosine, sine))
