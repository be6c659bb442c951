"""Sheets of pictures while a model is trained: whatever it draws or makes of pictures, and no end of the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.data.shapes import Shapes
from nomoat.families.autoencoder import Autoencoder
from nomoat.families.diffusion import Diffusion, DiffusionModel

WORLD = Shapes(size=16)
DRAWS = replace(
    Diffusion.tiny(), size=16, patch=8, vocab_size=WORLD.words().vocab_size, caption_length=WORLD.caption_length,
    classes=0, embedding_width=0,
)  # fmt: skip


def trained(family: Any, root: Any) -> Run:
    recipe = Recipe("G.", family, WORLD, Budget.parse("2steps"), 4)
    return making.trained(Run.create(root, "glimpsed", recipe), "cpu", None)


@pytest.mark.parametrize(
    ("family", "pictures"),
    [(DRAWS, 16), (replace(DRAWS, upscale=2), 16), (replace(Autoencoder.tiny(), size=16), 16)],
    ids=["diffusion", "upsampler", "codec: each beside what comes back"],
)
def test_a_sheet_is_drawn_on_the_way(family: Any, pictures: int, tmp_path: Any) -> None:
    run = trained(family, tmp_path)
    told = run.metrics("sample")[-1]
    assert told["text"] == f"{pictures} pictures"
    with Image.open(told["path"]) as sheet:
        assert sheet.size[0] > 16


def test_what_cannot_draw_is_trained_all_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*asked: Any) -> None:
        raise ConfigError("this cannot draw")

    monkeypatch.setattr(DiffusionModel, "generate", refuses)
    run = trained(DRAWS, tmp_path)
    assert run.status == "done" and not run.metrics("sample")
