"""`nomoat train RECIPE --pictures FOLDER`: every family of pictures on one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawings import drawings, icons

from nomoat import drawing, verbs
from nomoat.cli import main
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import find
from nomoat.core.run import Run
from nomoat.picture_plan import of
from nomoat.sampling.drawing import Drawing

CAPTIONED = ("clip-small", "dalle-small", "diffusion-small", "dit-small", "control-small", "unclip-small")
CHAIN = ("codec-small", "clip-small", "dalle-small", "unclip-small", "decoder-small", "diffusion-small")
CHAIN += (
    "control-small",
    "consistency-small",
    "gan-small",
    "vae-small",
    "vq-small",
    "shortcut-small",
    "upsampler-small",
)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))


def test_a_recipe_is_told_what_the_pictures_are(tmp_path: Path) -> None:
    folder = icons(tmp_path / "icons", 60)
    for name in CAPTIONED:
        recipe = of(folder, find(name))
        family, words = recipe.family, recipe.data.words()
        assert recipe.data.size == 32 and recipe.data.hint == getattr(find(name).data, "hint", "")
        if hasattr(family, "vocab_size"):
            assert (family.vocab_size, family.caption_length) == (words.vocab_size, recipe.data.caption_length)
        assert "on the pictures of icons" in recipe.about
    inner = of(folder, find("decoder-small")).data
    assert inner.data.paths and inner.encoder == find("decoder-small").data.encoder
    assert of(folder, find("consistency-small")).family.student.vocab_size == words.vocab_size
    assert of(folder, find("upsampler-small")).data.size == 64
    assert of(folder, find("gan-small")).family == find("gan-small").family  # it is told nothing


def test_without_captions_a_model_that_draws_learns_without(tmp_path: Path) -> None:
    folder = drawings(tmp_path / "plain", 40)
    assert of(folder, find("diffusion-small")).family.vocab_size == 0
    with pytest.raises(ConfigError, match="nothing says what is in the pictures"):
        of(folder, find("clip-small"))


def test_what_cannot_be_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = drawings(tmp_path / "small", 40, side=40)
    for words, said in (
        (["gpt-small", "--pictures", str(folder)], "learns from no pictures"),
        (["upsampler-small", "--pictures", str(folder)], "a recipe of that size"),
        (["clip-small", "--pictures", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert main(["train", *words, "budget=1steps"]) in (1, 2)
        assert said in capfd.readouterr().err


def test_a_family_learns_ones_own_pictures(tmp_path: Path) -> None:
    run = verbs.train("codec-small", ["budget=1steps", "batch_size=4"], pictures=icons(tmp_path / "icons", 60))
    assert "on the pictures of icons" in run.recipe.about
    assert [*verbs.evaluate(run, limit=8).groups] == ["the held-out pictures' own"]


@pytest.mark.slow
def test_every_family_learns_ones_own_pictures(tmp_path: Path) -> None:
    folder = icons(tmp_path / "icons", 120)
    for name in CHAIN:
        run = verbs.train(name, ["budget=2steps", "batch_size=4"], pictures=folder)
        assert Run.open(run.path).status == "done", name
        if name in ("dalle-small", "diffusion-small", "consistency-small"):
            assert drawing.draw(run, "red heart", drawing=Drawing(steps=2), out=tmp_path / name), name
        elif name in ("clip-small", "codec-small"):
            assert verbs.evaluate(run, limit=8).groups
