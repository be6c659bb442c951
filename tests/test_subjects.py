"""A subject of one's own: a handful of pictures, a caption, and a class that stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nomoat import subjects
from nomoat.cli import main
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run, load
from nomoat.data.called import Called
from nomoat.data.rehearsal import Preserved
from nomoat.data.words import WordTokenizer
from nomoat.drawing import draw
from nomoat.families.diffusion import Diffusion
from nomoat.families.lm import LM
from nomoat.subjects import Subject, teach

WORDS = WordTokenizer(["a", "circle", "red", "wug", "."])


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    config = replace(
        Diffusion.tiny(), size=16, patch=8, channels=3, vocab_size=WORDS.vocab_size, caption_length=4, classes=0,
        embedding_width=0,
    )  # fmt: skip
    torch.manual_seed(0)
    run = Run.create(None, "base", Recipe("B.", config, None, Budget.parse("1steps"), 1))
    checkpoint.save(run.checkpoints, 1, {"weights": config.build({}).kept()}, {"step": 1})
    WORDS.save(run.path / "tokenizer.json")
    run.mark("done")
    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "wug"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(chance.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_a_subject_is_taught_beside_its_class_and_the_base_stays(base: Run, pictures: Path) -> None:
    before = {name: tensor.clone() for name, tensor in load(base).state_dict().items()}
    run = teach(base, pictures, Subject("a wug", "a circle", preserved=3, rank=2), "4steps")
    data: Any = run.recipe.data
    assert isinstance(data, Preserved) and (data.data.caption, data.priors[0].caption) == ("a wug", "a circle")
    batch = next(data.stream(None, 8, 0))
    told = [
        WORDS.decode(row[there])
        for row, there in zip(batch["caption"].numpy(), batch["caption_mask"].numpy(), strict=True)
    ]
    assert sorted(told) == ["a circle"] * 4 + ["a wug"] * 4 and batch["image"].shape == (8, 3, 16, 16)
    after = load(base).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (run.path / "sheet.png").exists() and (run.path / "card.md").exists()
    [one] = draw(run, "a wug")
    assert one.image_YXC.shape == (16, 16, 3)
    again = teach(base, pictures, Subject("a wug", "a circle", preserved=3, rank=2), "1steps")
    assert again.recipe.data.priors[0].paths == data.priors[0].paths, "the class is drawn once"


def test_what_a_model_was_taught_is_shown_again_where_it_is_there(base: Run, tmp_path: Path) -> None:
    assert subjects._taught(base) == [], "this one has no data"

    class Taught:
        paths: tuple[str, ...] = (str(tmp_path),)

        def __init__(self, changes: list[str]) -> None:
            self.changes = changes

        def sampler(self, seed: int) -> None: ...

        def changed(self) -> list[str]:
            return self.changes

    def of(data: Any) -> list[Any]:
        return subjects._taught(SimpleNamespace(recipe=SimpleNamespace(data=data)))  # type: ignore[arg-type]

    there, gone = Taught([]), Taught([])
    gone.paths = (str(tmp_path / "gone"),)
    assert of(there) == [there] and of(Taught(["a file"])) == [] and of(gone) == []


def test_a_word_alone_is_learned(base: Run, pictures: Path) -> None:
    run = teach(base, pictures, Subject("a red wug", word="wug", begins="circle"), "3steps")
    assert isinstance(run.recipe.data, Called)
    changed = {name for name, tensor in load(run, merged=True).state_dict().items()
               if not torch.equal(tensor, load(base).state_dict()[name])}  # fmt: skip
    assert changed == {"told.caption.embed.weight"}


def test_what_cannot_be_taught_says_so(base: Run, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown words: dog"):
        teach(base, pictures, Subject("a dog"))
    teach(base, pictures, Subject("a wug.", word="wug"), "1steps")
    with pytest.raises(ConfigError, match="`red` is not in `a wug`"):
        teach(base, pictures, Subject("a wug", word="red"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        teach(base, tmp_path / "empty", Subject("a wug"))
    with pytest.raises(RunError):
        teach("nobody", pictures, Subject("a wug"))
    text = Run.create(None, "text", Recipe("T.", LM.tiny(), None, Budget.parse("1steps"), 1))
    with pytest.raises(ConfigError, match="does not draw by captions"):
        teach(text, pictures, Subject("a wug"))


def test_the_command(base: Run, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = ["tune", str(base.path), str(pictures), "--subject", "a wug", "--word", "wug", "--budget", "2steps"]
    assert main(told) == 0
    assert "nomoat draw last" in capfd.readouterr().out
    assert main(["tune", str(base.path), str(pictures), "--subject", "a wug", "--full"]) != 0
    assert "leave it out" in capfd.readouterr().err
    assert main(["tune", str(base.path), str(pictures), "--word", "wug"]) != 0
