"""control: a network is taught to lead a model that draws, on that model's own pictures, and measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nomoat.cli import main
from nomoat.controlling import control
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.data.outlines import of_alpha, of_pixels
from nomoat.data.pictures import PictureFiles
from nomoat.data.shapes import Shapes
from nomoat.drawing import Given, draw
from nomoat.families.diffusion import Diffusion
from nomoat.families.lm import LM


def based(data: Any) -> Run:
    words = data.words()
    config = replace(
        Diffusion.tiny(), size=16, patch=8, channels=3, vocab_size=words.vocab_size if words else 0,
        caption_length=data.caption_length, classes=0, embedding_width=0,
    )  # fmt: skip
    torch.manual_seed(0)
    run = Run.create(None, "base", Recipe("B.", config, data, Budget.parse("1steps"), 4))
    checkpoint.save(run.checkpoints, 1, {"weights": config.build({}).kept()}, {"step": 1})
    if words:
        words.save(run.path / "tokenizer.json")
    run.mark("done")
    return run


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def transparent(tmp_path: Path) -> Path:
    """Discs and squares on nothing."""
    folder = tmp_path / "icons"
    folder.mkdir()
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    for number in range(40):
        across, down, radius = *chance.uniform(5, 11, 2), chance.uniform(2, 5)
        shape = (np.hypot(y - down, x - across) if number % 2 else np.maximum(abs(y - down), abs(x - across))) < radius
        colour = chance.integers(0, 200, 3)
        rgba = np.concatenate([np.broadcast_to(colour, (16, 16, 3)), 255 * shape[..., None]], 2).astype(np.uint8)
        Image.fromarray(rgba).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a disc" if number % 2 else "a square")
    return folder


@pytest.mark.parametrize("hint", ["mask", "edges"])
def test_a_model_of_files_is_led_by_their_alpha_and_its_outline(transparent: Path, tmp_path: Path, hint: str) -> None:
    data = PictureFiles(str(transparent), 16).prepare(tmp_path / "runs" / "data")
    base = based(data)
    run = control(base, hint, "3steps")
    report = run.read_json("report.json")
    [figure] = report["figures"]
    assert report["hint"] == hint and 0 <= figure["value"] <= 1 and figure["count"] >= 2
    assert "against the control pictures of others" in (run.path / "report.txt").read_text()
    assert (run.path / "sheet.png").exists() and "## Followed" in (run.path / "card.md").read_text()
    [one] = draw(run, "a disc", given=Given(hint=transparent / "1.png"))
    assert one.image_YXC.shape == (16, 16, 3)


def test_outlines_lie_on_the_border_of_what_shows_or_where_brightness_changes(
    transparent: Path, tmp_path: Path
) -> None:
    data = replace(PictureFiles(str(transparent), 16).prepare(tmp_path / "data"), hint="edges")
    batch = next(data.stream(None, 8, 0))
    mask = next(replace(data, hint="mask").stream(None, 8, 0))["hint"] > 0.5
    edge = batch["hint"] > 0.5
    assert edge.shape == (8, 1, 16, 16) and edge.any() and not (edge & ~mask).any(), "within what shows"
    assert (edge.sum((1, 2, 3)) < mask.sum((1, 2, 3))).all()
    alpha = np.zeros((1, 6, 6), dtype=np.uint8)
    alpha[0, 1:5, 1:5] = 255
    assert of_alpha(alpha).sum() == 12 * 255 and of_alpha(alpha)[0, 2, 2] == 0
    opaque = np.zeros((1, 6, 6, 3), dtype=np.uint8)
    opaque[0, :, 3:] = 200
    assert (of_pixels(opaque)[0, :, 2:4] == 255).all() and (of_pixels(opaque)[0, :, [0, 1, 4, 5]] == 0).all()


def test_the_shapes_world_and_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    base = based(Shapes(size=16))
    assert main(["control", str(base.path), "depth", "--budget", "2steps"]) == 0
    shown = capfd.readouterr().out
    assert "look at the sheet" in shown and "nomoat draw last" in shown
    assert main(["evaluate", "last"]) == 0
    assert "look at the sheet" in capfd.readouterr().out, "the report of a run that is led is its report"


def test_what_cannot_be_led_says_so(transparent: Path, tmp_path: Path) -> None:
    text = Run.create(None, "text", Recipe("T.", LM.tiny(), None, Budget.parse("1steps"), 1))
    with pytest.raises(ConfigError, match="cannot be led"):
        control(text)
    base = based(PictureFiles(str(transparent), 16).prepare(tmp_path / "runs" / "data"))
    with pytest.raises(ConfigError, match="no hint `masks`"):
        control(base, "masks")
    with pytest.raises(ConfigError, match="no `pair`"):
        control(base, "pair")
