"""A line chart as SVG: few lines, an axis that doubles, bands for intervals, labels beside the lines' ends.

lines, title -> scales -> paths -> text of an .svg file that any browser shows

Written by hand because it is one kind of chart, and plotting libraries are larger than what they would replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log2
from typing import NamedTuple

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 44, 52
COLOURS = ("#0b6e99", "#b8541a", "#5a7d2a", "#7a4a9e", "#a3324b", "#50585f")
LEAST_GAP = 15
"""Pixels between labels."""


class Line(NamedTuple):
    """One line.

    Args:
        name: beside its end.
        xs: above 0; the axis doubles.
        ys: in [0, 1].
        band: an interval for each, or None.
        dashed: a control.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    band: Sequence[tuple[float, float]] | None = None
    dashed: bool = False


def plot(lines: Sequence[Line], title: str, across: str, upward: str) -> str:
    """The chart.

    Args:
        lines: at least one, with at least one point.
        title: above it.
        across: what the axis below is.
        upward: what the other one is.
    """
    low, high = (log2(pick(x for line in lines for x in line.xs)) for pick in (min, max))
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> str:
        return f"{LEFT + (log2(x) - low) / max(high - low, 1e-9) * wide:.1f},{TOP + (1 - y) * tall:.1f}"

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for tenth in range(0, 11, 2):
        y = TOP + (1 - tenth / 10) * tall
        drawn.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y}" y2="{y}" stroke="#e3e6e8"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end" fill="#50585f">{10 * tenth} %</text>')
    for x in sorted({x for line in lines for x in line.xs}):
        place = at(x, 0).split(",")[0]
        drawn.append(f'<text x="{place}" y="{TOP + tall + 18}" text-anchor="middle" fill="#50585f">{x:g}</text>')
    drawn.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>')
    middle = TOP + tall / 2
    drawn.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(upward)}</text>'
    )
    for line, y in zip(lines, _apart([TOP + (1 - line.ys[-1]) * tall for line in lines]), strict=True):
        colour = COLOURS[[each.name for each in lines].index(line.name) % len(COLOURS)]
        if line.band is not None:
            upper = [at(x, each[1]) for x, each in zip(line.xs, line.band, strict=True)]
            lower = [at(x, each[0]) for x, each in zip(line.xs, line.band, strict=True)]
            drawn.append(f'<polygon points="{" ".join([*upper, *lower[::-1]])}" fill="{colour}" opacity="0.15"/>')
        points = " ".join(at(x, y) for x, y in zip(line.xs, line.ys, strict=True))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        drawn.append(f'<text x="{LEFT + wide + 8}" y="{y + 4:.1f}" fill="{colour}">{escape(line.name[:30])}</text>')
    return "\n".join([*drawn, "</svg>\n"])


def _apart(ys: list[float]) -> list[float]:
    """Heights of labels, moved down where they would lie over each other."""
    order, placed = sorted(range(len(ys)), key=lambda number: ys[number]), dict[int, float]()
    last = -float(LEAST_GAP)
    for number in order:
        last = placed[number] = max(ys[number], last + LEAST_GAP)
    return [placed[number] for number in range(len(ys))]
