"""Surprise: how many bits each character of a text costs a model, and the lines that cost more than they should.

    text -> tokens -> windows with half overlap -> bits of each token -> byte -> character -> line

A small model of one's own folder finds what does not belong there: odd code, typos, passages from elsewhere.

A line's raw figures mislead: long lines cost more in all, and bits per character are extreme on short lines by chance
alone. So a line is ranked by its *excess*: with n the characters of the line (indentation left out, its end counted),
m the mean bits of such a character over all lines given, and s the spread of bits around n m per square root of n,

    excess = (bits - n m) / (s sqrt(n)),   for n beyond 200: as a line of 200 characters with the same mean

the distance from what a line of its length costs here, in standard deviations. Shannon 1951 for the bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.types import Scores
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import Watch, token_bits

Bits = NDArray[np.float64]

LONG = 200
APART = 5
SHOWN = 100


@dataclass(frozen=True)
class Line:
    """One line of a text.

    Args:
        file: the text's name.
        number: counted from 1.
        where: file and line, as one reads it aloud.
        text: without its line end.
        bits: what it costs, its line end included.
        excess: standard deviations above what a line of its length costs; 0 for a blank line.
        bits_C: of each character of `text`.
    """

    file: str
    number: int
    where: str
    text: str
    bits: float
    excess: float
    bits_C: Bits

    @property
    def bits_per_character(self) -> float:
        """Mean over the characters that count: without indentation, with the line end."""
        return self.bits / _weight(self.text)

    def as_text(self) -> str:
        """The line, cut to its oddest part, and marks under the characters that cost most."""
        start = 0
        if len(self.text) > SHOWN:
            reach = np.convolve(self.bits_C, np.ones(SHOWN), mode="valid")
            start = int(reach.argmax())
        shown = printable(self.text[start : start + SHOWN])
        costly_C = self.bits_C[start : start + SHOWN] > max(1.0, 2 * self.bits / max(1, len(self.text)))
        marks = "".join("^" if costly else " " for costly in costly_C).rstrip()
        head = f"{printable(self.where)}: {self.excess:+.1f} deviations, {self.bits_per_character:.1f} bits a character"
        return f"{head}\n    {shown}" + (f"\n    {marks}" if marks else "")

    def as_json(self) -> dict[str, Any]:
        """The line as plain values."""
        return {
            "file": self.file,
            "line": self.number,
            "where": self.where,
            "text": self.text,
            "bits": round(self.bits, 2),
            "bits_per_character": round(self.bits_per_character, 3),
            "excess": round(self.excess, 2),
        }


@dataclass(frozen=True)
class Surprise:
    """The bits of every character of some texts.

    Args:
        texts: name -> text.
        bits: name -> bits of each character of that text.
    """

    texts: Mapping[str, str]
    bits: Mapping[str, Bits]

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """All lines of all texts, in order."""
        cut = [(name, *line) for name, text in self.texts.items() for line in cut_lines(text, self.bits[name])]
        usual = Usual.of([text for _, _, text, _, _ in cut], np.array([bits for *_, bits, _ in cut]))
        return tuple(
            Line(name, number, f"{name}, line {number}", text, bits, usual.excess(text, bits), bits_C)
            for name, number, text, bits, bits_C in cut
        )

    @property
    def bits_per_byte(self) -> float:
        """Over all texts."""
        size = sum(len(text.encode("utf-8", "replace")) for text in self.texts.values())
        return float(sum(bits.sum() for bits in self.bits.values())) / max(1, size)

    def top(self, count: int = 10) -> list[Line]:
        """The lines with the greatest excess."""
        return top(self.lines, count)

    def as_text(self, count: int = 10) -> str:
        """The oddest lines for people."""
        odd = self.top(count)
        head = f"{self.bits_per_byte:.3f} bits per byte over {len(self.lines):,} lines; the {len(odd)} oddest:"
        return "\n".join([head, *(line.as_text() for line in odd)])

    def as_json(self, count: int = 10) -> dict[str, Any]:
        """Figures of each text and its lines, and the oddest lines in full."""
        files: dict[str, list[list[float]]] = {name: [] for name in self.texts}
        for line in self.lines:
            files[line.file].append([round(line.bits, 2), round(line.excess, 2)])
        return {
            "bits_per_byte": round(self.bits_per_byte, 4),
            "top": [line.as_json() for line in self.top(count)],
            "files": [{"file": name, "lines": lines} for name, lines in files.items()],
            "columns": ["bits", "excess"],
        }

    def as_html(self, count: int = 10) -> str:
        """One page that needs nothing else: the oddest lines, then every character on a background of its bits."""
        from nomoat.evaluate.heat import page

        return page(self, count)


def surprise(
    model: Scores,
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
    context_length: int | None = None,
    watch: Watch | None = None,
) -> Surprise:
    """Measure texts, each a document of its own, with at least half a window of context before each token.

    Args:
        model: scores tokens.
        tokenizer: the model's.
        texts: name -> text.
        context_length: default: `model.config.context_length`.
        watch: told the progress in tokens.
    """
    aligned = [tokenizer.aligned(text) for text in texts.values()]
    sequences = [np.concatenate([[tokenizer.opening], ids_N]) for ids_N, _ in aligned]
    found = token_bits(model, sequences, context_length, watch=watch)
    whole = {name: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for name, text in texts.items()}
    spread = {
        name: character_bits(bits, lengths_N, whole[name])
        for name, bits, (_, lengths_N) in zip(whole, found, aligned, strict=True)
    }
    return Surprise(whole, spread)


def character_bits(bits_N: NDArray[Any], lengths_N: NDArray[np.int64], text: str) -> Bits:
    """Bits of each character: a token's bits fall on its bytes in equal parts, a character takes those of its bytes.

    The bits of a token without bytes fall on the next that has some.
    """
    full_N = lengths_N > 0
    if not full_N.any():
        return np.zeros(len(text))
    bytes_M = np.frombuffer(text.encode(), dtype=np.uint8)
    bits_F = np.bincount(np.minimum(full_N.cumsum() - full_N, full_N.sum() - 1), bits_N)
    bits_M = np.repeat(bits_F / lengths_N[full_N], lengths_N[full_N])
    return np.add.reduceat(bits_M.astype(np.float64), np.flatnonzero(bytes_M & 0xC0 != 0x80))


def cut_lines(text: str, bits_C: Bits) -> Iterator[tuple[int, str, float, Bits]]:
    """Number, text, bits with the line end, and bits of the characters, of each line of `text`."""
    start = 0
    for number, line in enumerate(text.split("\n"), 1):
        end = start + len(line)
        if line or end < len(text):
            yield number, line, float(bits_C[start : end + 1].sum()), bits_C[start:end]
        start = end + 1


@dataclass(frozen=True)
class Usual:
    """What lines cost here.

    Args:
        mean: bits of a character.
        spread: of a line's bits about its length times the mean, per square root of the length.
    """

    mean: float
    spread: float

    @classmethod
    def of(cls, texts: Sequence[str], bits_L: NDArray[Any]) -> Usual:
        """Measure it over lines and their bits; blank lines do not count."""
        full_L = np.array([bool(text.strip()) for text in texts], dtype=bool)
        if not full_L.any():
            return cls(0.0, 1.0)
        weight_L = np.array([_weight(text) for text in texts], dtype=np.float64)[full_L]
        mean = bits_L[full_L].sum() / weight_L.sum()
        above_L = bits_L[full_L] - weight_L * mean
        return cls(float(mean), math.sqrt(float(np.mean(above_L**2 / weight_L))) or 1.0)

    def excess(self, text: str, bits: float) -> float:
        """How far above the usual a line is (see the module's first lines); 0 for a blank one."""
        if not text.strip():
            return 0.0
        weight = _weight(text)
        return (bits / weight - self.mean) * math.sqrt(min(weight, LONG)) / self.spread


def top(lines: Sequence[Line], count: int) -> list[Line]:
    """The lines with the greatest excess, the oddest first; of equal lines the first one.

    A line within five of an odder one stands back, as one passage would fill the list, unless there is room left.
    """
    chosen: list[Line] = []
    beside: list[Line] = []
    known: set[str] = set()
    for line in sorted(lines, key=lambda line: -line.excess):
        if len(chosen) == count or line.excess <= 0:
            break
        if line.text.strip() in known:
            continue
        known.add(line.text.strip())
        near = any(other.file == line.file and abs(other.number - line.number) <= APART for other in chosen)
        (beside if near else chosen).append(line)
    return sorted([*chosen, *beside[: count - len(chosen)]], key=lambda line: -line.excess)


def printable(text: str) -> str:
    """The text as a terminal or a page can show it: no control characters, tabs as spaces, length unchanged."""
    return "".join(symbol if symbol.isprintable() else " " if symbol == "\t" else "\ufffd" for symbol in text)


def _weight(text: str) -> int:
    return len(text.strip()) + 1
