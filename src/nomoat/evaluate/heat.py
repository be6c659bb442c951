"""A page of text on a background of its bits: one HTML file without scripts, fonts or links.

    Surprise -> the oddest lines with links to them -> every line of every text, characters of equal heat in one span

Everything that comes from a text or a file's name is escaped: it is shown, never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nomoat.evaluate.surprise import Line, Surprise

STEPS = (1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 10.0, 13.0)
"""Bits of a character from which on the next deeper colour is used."""

STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 2em; }
h1, h2, p { font-family: system-ui, sans-serif; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { display: inline-block; width: 5em; font-weight: normal; opacity: .5; user-select: none; }
pre:target { outline: 2px solid #d33; }
"""


def page(found: Surprise, count: int = 10) -> str:
    """The whole page as text."""
    style = STYLE + "".join(
        f".h{step} {{ background: rgba(226, 60, 20, {0.12 + 0.78 * step / len(STEPS):.2f}); }}\n"
        for step in range(1, len(STEPS) + 1)
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f"<title>Surprise: {escape(', '.join(found.texts)[:200])}</title>",
            f"<style>{style}</style>\n</head>\n<body>",
            f"<h1>Surprise</h1>\n<p>{found.bits_per_byte:.3f} bits per byte over {len(found.lines):,} lines.",
            f"{_legend()}</p>",
            f"<h2>The {len(found.top(count))} oddest lines</h2>",
            *_top(found, count),
            *_texts(found),
            "</body>\n</html>\n",
        ]
    )


def _legend() -> str:
    keys = " ".join(f'<span class="h{step}">&nbsp;{bits:g}&nbsp;</span>' for step, bits in enumerate(STEPS, 1))
    return f"Bits of a character, from: {keys}"


def _top(found: Surprise, count: int) -> Iterator[str]:
    order = {name: number for number, name in enumerate(found.texts)}
    for line in found.top(count):
        link = f'<a href="#{order[line.file]}-{line.number}">{escape(line.where)}</a>'
        yield f"<p>{link}: {line.excess:+.1f} deviations, {line.bits_per_character:.1f} bits a character</p>"
        yield f"<pre>{_hot(line)}</pre>"


def _texts(found: Surprise) -> Iterator[str]:
    order = {name: number for number, name in enumerate(found.texts)}
    for name, lines in groupby(found.lines, key=lambda line: line.file):
        yield f"<h2>{escape(name)}</h2>"
        for line in lines:
            yield f'<pre id="{order[name]}-{line.number}"><b>{line.number}</b>{_hot(line)}</pre>'


def _hot(line: Line) -> str:
    """The line's characters, neighbours of equal heat in one span."""
    heat_C = np.searchsorted(STEPS, line.bits_C, side="right")
    parts = []
    for heat, group in groupby(zip(heat_C.tolist(), line.text, strict=True), key=lambda pair: pair[0]):
        text = escape("".join(symbol if symbol.isprintable() or symbol == "\t" else "\ufffd" for _, symbol in group))
        parts.append(f'<span class="h{heat}">{text}</span>' if heat else text)
    return "".join(parts)
