"""Contact sheets: pictures in a grid with short captions below, as one PNG that says how it is laid out.

    image_NCYX, captions -> sheet -> save -> PNG   (text chunk `layout`: columns, cell, gap, picture, scale; pixels)
    samples, their nearest training pictures, captions -> beside -> sheet: sample | training picture | sample | ...

Small pictures are enlarged by whole pixels: a sheet shows what is there, no better and no worse.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nomoat.core.durable import replace
from nomoat.core.errors import ConfigError
from nomoat.evaluate.seen import as_colour, as_seen
from nomoat.evaluate.surprise import printable

GAP = 6
SHOWN = 96  # pixels a side that small pictures are enlarged to, about
MOST_COLUMNS = 10
LINES = 3  # of a caption
FONT_SIZE = 11
INK, PAPER = (32, 32, 32), (240, 240, 240)  # so that white pictures have edges


@dataclass(frozen=True)
class Layout:
    """Where pictures lie on a sheet, in pixels: picture i at gap + (i mod columns) (cell + gap), and likewise below.

    Args:
        columns: pictures in a row.
        cell: width and height of one place, caption included.
        gap: between places and around them.
        picture: width and height of one picture as it is shown.
        scale: how many times it is enlarged.
        count: pictures.
    """

    columns: int
    cell: tuple[int, int]
    gap: int
    picture: tuple[int, int]
    scale: int
    count: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        rows = -(-self.count // self.columns)
        wide, high = self.cell
        return self.gap + self.columns * (wide + self.gap), self.gap + rows * (high + self.gap)

    def corner(self, number: int) -> tuple[int, int]:
        """The upper left corner of a picture."""
        row, column = divmod(number, self.columns)
        return self.gap + column * (self.cell[0] + self.gap), self.gap + row * (self.cell[1] + self.gap)


@dataclass(frozen=True)
class Sheet:
    """A sheet and how it is laid out."""

    image: Image.Image
    layout: Layout

    def save(self, path: Path, about: Mapping[str, str] | None = None) -> Path:
        """Write it as PNG, whole or not at all.

        Args:
            path: of the file.
            about: further text chunks: what the pictures are.
        """
        chunks = PngInfo()
        for name, text in {"layout": json.dumps(asdict(self.layout)), **(about or {})}.items():
            chunks.add_itxt(name, text)
        held = io.BytesIO()
        self.image.save(held, "PNG", pnginfo=chunks)
        replace(path, held.getvalue())
        return path


def sheet(
    image_NCYX: Tensor,
    captions: Sequence[str] = (),
    columns: int | None = None,
    gap: int = GAP,
    scale: int | None = None,
) -> Sheet:
    """Lay pictures out in a grid.

    Args:
        image_NCYX: in [-1, 1].
        captions: one a picture, or none; what does not fit in three lines is cut off.
        columns: None: about as many as rows, 10 at most.
        gap: pixels between pictures, and around them.
        scale: how many times each pixel is enlarged; None: until the picture is about 96 pixels high.

    Raises:
        ConfigError: no pictures, or captions that are not theirs.
        DataError: they are not pictures.
    """
    image_NCYX = as_seen(image_NCYX, "the sheet", drawn=True)
    count = len(image_NCYX)
    if not count or (captions and len(captions) != count) or gap < 0 or (columns is not None and columns < 1):
        what = f"{len(captions)} captions, {columns} columns and a gap of {gap} for {count} pictures"
        raise ConfigError(
            what, "a sheet needs pictures, one caption each or none", "columns of 1 or more, gap of 0 or more"
        )
    scale = scale or max(1, round(SHOWN / max(image_NCYX.shape[-2:])))
    high, wide = (scale * side for side in image_NCYX.shape[-2:])
    font = ImageFont.load_default(FONT_SIZE)
    below = [_lines(text, wide, font) for text in captions]
    line = FONT_SIZE + 3
    deep = max(map(len, below), default=0) * line
    columns = min(columns or min(MOST_COLUMNS, math.ceil(math.sqrt(count))), count)
    layout = Layout(columns, (wide, high + deep), gap, (wide, high), scale, count)
    page = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(page)
    for number, image_CYX in enumerate(as_colour(image_NCYX)):
        left, top = layout.corner(number)
        levels_YXC = ((image_CYX + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        page.paste(Image.fromarray(levels_YXC.numpy()).resize((wide, high), Image.Resampling.NEAREST), (left, top))
        for place, words in enumerate(below[number] if below else ()):
            pen.text((left, top + high + 1 + place * line), words, fill=INK, font=font)
    return Sheet(page, layout)


def beside(
    sample_NCYX: Tensor, nearest_NCYX: Tensor, captions: Sequence[str] = (), origins: Sequence[str] = (), pairs: int = 2
) -> Sheet:
    """Each sample with its nearest training picture on its right.

    Args:
        sample_NCYX: what was drawn.
        nearest_NCYX: a training picture for each.
        captions: below the samples.
        origins: below the training pictures: whose they are.
        pairs: in one row.

    Raises:
        ConfigError: not one training picture a sample.
    """
    if sample_NCYX.shape != nearest_NCYX.shape:
        what = f"{list(sample_NCYX.shape)} samples beside {list(nearest_NCYX.shape)} training pictures"
        raise ConfigError(what, "each sample needs one of its own size")
    both_NCYX = torch.stack([sample_NCYX.cpu(), nearest_NCYX.cpu()], 1).flatten(0, 1)
    count = len(sample_NCYX)
    said = zip(captions or [""] * count, origins or [""] * count, strict=True)
    texts = [text for pair in said for text in pair] if captions or origins else []
    return sheet(both_NCYX, texts, 2 * pairs)


def _lines(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """A caption in at most `LINES` lines that fit; what is left out shows as two dots."""
    lines, words = [""], printable(text).split()
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[number:]]).strip()
            break
    return [_cut(line, width, font) for line in lines if line]


def _cut(line: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "..") > width:
        line = line[:-1]
    return line.rstrip() + ".."
