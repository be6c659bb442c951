"""Outlines: control pictures of lines, made while pictures are read.

    alpha -> the pixels of what shows that touch what does not; where all shows: where brightness changes fast

One pixel wide where there is an alpha, about two where there is none (central differences; Prewitt 1970).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF = 128
"""An alpha from here on shows."""
STEEP = 24.0
"""Levels of 255 that the brightness changes by from one pixel to the next, at least, where a line is."""
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue (ITU-R BT.601)


def of_alpha(alpha_BYX: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """255 on the border of what shows [B, Y, X], else 0; the picture's own edge is no border."""
    inside_BYX = alpha_BYX >= HALF
    around = np.pad(~inside_BYX, ((0, 0), (1, 1), (1, 1)))
    beside = around[:, :-2, 1:-1] | around[:, 2:, 1:-1] | around[:, 1:-1, :-2] | around[:, 1:-1, 2:]
    return _drawn(inside_BYX & beside)


def of_pixels(pixels_BYXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """255 where the brightness of a picture [B, Y, X, C] changes fast, else 0 [B, Y, X]."""
    many = pixels_BYXC.shape[-1] == LUMINANCE.size
    bright_BYX: Any = pixels_BYXC @ LUMINANCE if many else pixels_BYXC[..., 0].astype(np.float32)
    around = np.pad(bright_BYX, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down_BYX = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]) / 2
    across_BYX = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]) / 2
    return _drawn(np.hypot(down_BYX, across_BYX) >= STEEP)


def _drawn(line_BYX: Any) -> NDArray[np.uint8]:
    return np.asarray(line_BYX * np.uint8(255), dtype=np.uint8)
