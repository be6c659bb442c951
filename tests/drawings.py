"""Small pictures made by Pillow, and folders of them: what the tests of pictures read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (20, 160, 60)}
SHAPES = ("circle", "square", "triangle")


def drawing(seed: int, side: int = 48, mode: str = "RGB") -> Image.Image:
    """Blocks of random colours with a random shape on them; no two seeds look alike."""
    chance = np.random.default_rng(seed)
    image = Image.fromarray(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side), 0)
    left, top = chance.integers(0, side // 2, 2)
    colour = tuple(int(value) for value in chance.integers(0, 256, 3))
    ImageDraw.Draw(image).ellipse((left, top, left + side // 2, top + side // 2), fill=colour)
    return image.convert(mode)


def shape(kind: str, colour: str, side: int = 48, mode: str = "RGBA") -> Image.Image:
    """A coloured shape on nothing."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen, box = ImageDraw.Draw(image), (side // 6, side // 6, 5 * side // 6, 5 * side // 6)
    if kind == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif kind == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), (side // 2, box[1])], fill=COLOURS[colour])
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def folder_of(root: Path, files: Mapping[str, bytes | str | Image.Image]) -> Path:
    """Write files into a folder; pictures as PNG."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(content) if isinstance(content, Image.Image) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def drawings(root: Path, count: int = 30, side: int = 48, first: int = 0) -> Path:
    """A folder of pictures that do not look alike."""
    return folder_of(root, {f"{number:03d}.png": drawing(number, side) for number in range(first, first + count)})


def icons(root: Path, count: int, side: int = 64) -> Path:
    """A folder of pictures on nothing with a table of what they are called, as collections of emoji are."""
    files: dict[str, bytes | str | Image.Image] = {"README.md": "Licence: CC-BY-SA-4.0"}
    rows = []
    for number in range(count):
        chance = np.random.default_rng(number)
        image, name = (
            Image.new("RGBA", (side, side), (0, 0, 0, 0)),
            ("red heart", "blue bell", "green leaf")[number % 3],
        )
        colour = tuple(int(value) for value in chance.integers(0, 256, 3))
        points = [tuple(map(int, point)) for point in chance.integers(8, side - 8, (5, 2))]
        ImageDraw.Draw(image).polygon(points, fill=colour)
        files[f"{number:04X}.png"] = image
        rows.append({"hexcode": f"{number:04X}", "name": name, "tags": ["sign"]})
    return folder_of(root, {**files, "emoji.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})


def shrink(monkeypatch: pytest.MonkeyPatch, judged: int = 64) -> None:
    """Let `make` of pictures choose among tiny networks and draw little."""
    from nomoat import picture_plan, picturing

    quick = {name: kind._replace(steps=min(kind.steps, 2), batch=8) for name, kind in picture_plan.KINDS.items()}
    small: dict[str, object] = {"SIZES": ((32, 1, 2), (32, 2, 2), (32, 2, 2)), "TIMED": 0, "BATCH": 8}
    small["WIDTHS"] = ((16,), (16, 16), (16, 32))
    for name, value in {**small, "KINDS": quick}.items():
        monkeypatch.setattr(picture_plan, name, value)
    for name, value in {"KINDS": quick, "JUDGED": judged, "LEARNED_FROM": 160}.items():
        monkeypatch.setattr(picturing, name, value)
