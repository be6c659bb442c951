"""draw: what is asked reaches the model, what it cannot do is refused, and a PNG can be drawn again, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_toys import Toy, ToyModel
from PIL import Image

from nomoat import drawing
from nomoat.cli import main
from nomoat.cli.drawing import grid
from nomoat.core import checkpoint
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.data.words import WordTokenizer
from nomoat.drawing import Given, again, draw, parameters
from nomoat.sampling.drawing import Drawing


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))

    def make(config: Toy | None = None, classes: tuple[str, ...] = ()) -> Run:
        config = config or Toy()
        run = Run.create(None, "toy", Recipe("A toy", config, None, "1steps", 1))  # type: ignore[arg-type]
        torch.manual_seed(0)
        checkpoint.save(run.checkpoints, 0, {"weights": ToyModel(config).state_dict()}, {"step": 0})
        WordTokenizer(["a", "red", "green", "circle", "square", "."]).save(run.path / "tokenizer.json")
        run.write_json("classes.json", list(classes))
        run.mark("done")
        return run

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Any:
    def make(name: str, side: int = 8, mode: str = "RGB", seed: int = 0) -> Path:
        values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(values).convert(mode).save(tmp_path / name)
        return tmp_path / name

    return make


def test_pictures_carry_their_parameters_and_are_drawn_again_to_the_bit(made: Any, tmp_path: Path) -> None:
    run = made()
    found = draw(run, "a red circle.", 19, Drawing(steps=3, guidance=2.0, seed=5), out=tmp_path / "out")
    assert len({one.path for one in found}) == 19 and len({one.image_YXC.tobytes() for one in found}) == 19
    for number in (0, 15, 16, 18):
        path = found[number].path
        assert path is not None
        held = parameters(path)
        assert (held["prompt"], held["steps"], held["guidance"], held["row"]) == ("a red circle.", 3, 2.0, number)
        redrawn = again(path, tmp_path / "out")
        assert np.array_equal(redrawn.image_YXC, np.array(Image.open(path)))
        assert redrawn.path not in {one.path for one in found} and redrawn.path is not None
        assert parameters(redrawn.path) == held
    few = draw(run, "a red circle.", 3, Drawing(steps=3, guidance=2.0, seed=5))
    assert all(np.array_equal(a.image_YXC, b.image_YXC) for a, b in zip(few, found, strict=False))
    assert few[0].path is None


def test_given_pictures_go_along_and_need_not_be_kept(made: Any, picture: Any, tmp_path: Path) -> None:
    run, start, mask = made(), picture("start.png"), tmp_path / "mask.png"
    Image.fromarray(np.repeat(np.eye(8, dtype=np.uint8)[..., None] * 255, 3, 2)).save(mask)
    [one] = draw(run, given=Given(init=start, mask=mask), out=tmp_path / "out")
    kept = np.array(Image.open(start))
    assert np.array_equal(one.image_YXC[~np.eye(8, dtype=bool)], kept[~np.eye(8, dtype=bool)]), "to the bit"
    assert not np.array_equal(one.image_YXC, kept)
    start.unlink()
    mask.unlink()
    assert one.path is not None
    assert np.array_equal(again(one.path).image_YXC, one.image_YXC)


def test_what_lies_between_two_seeds_and_two_pictures(made: Any, picture: Any) -> None:
    a, b = picture("a.png", seed=1), picture("b.png", seed=2)
    run = made()
    seeds = draw(run, "red", 3, Drawing(strength=1.0), Given(between=("3", "9")))
    ends = [draw(run, "red", 1, Drawing(strength=1.0, seed=seed))[0] for seed in (3, 9)]
    assert np.array_equal(seeds[0].image_YXC, ends[0].image_YXC)
    assert np.array_equal(seeds[2].image_YXC, ends[1].image_YXC)
    pictures = draw(run, "", 5, Drawing(strength=1e-6), Given(between=(str(a), str(b))))
    one, other = (np.array(Image.open(path)).astype(int) for path in (a, b))
    for number, drawn in enumerate(pictures):
        assert np.abs(drawn.image_YXC - (one + (other - one) * number / 4)).max() <= 1
    varied = draw(made(Toy(reads=("like",))), "", 2, given=Given(between=(str(a), str(b))))
    assert np.array_equal(varied[0].image_YXC, one) and np.array_equal(varied[1].image_YXC, other)


@pytest.mark.parametrize(
    ("reads", "given", "prompt", "what"),
    [
        ((), {}, "red", "was taught no captions"),
        (("caption",), {"init": 8}, "", "--init"),
        (("caption",), {"hint": 8}, "", "control-small"),
        (("caption",), {"like": 8}, "", "--variation-of"),
        (("caption",), {"small": 8}, "", "--upscale"),
        (("caption", "init", "mask"), {"mask": 8}, "", "add --init"),
        (("hint",), {}, "", "add --control"),
        (("small",), {}, "", "add --upscale"),
        (("hint",), {"hint": 9}, "", "9 x 9 pixels, the model draws 8 x 8"),
        (("caption",), {}, "a blue circel", "unknown words: blue, circel"),
        (("label",), {}, "cat", "no class `cat`"),
    ],
)
def test_what_the_model_cannot_be_asked(
    made: Any, picture: Any, reads: Any, given: Any, prompt: str, what: str
) -> None:
    files = {name: picture(f"{name}.png", side) for name, side in given.items()}
    with pytest.raises((ConfigError, DataError)) as told:
        draw(made(Toy(reads=reads), ("dog",)), prompt, given=Given(**files))
    assert what in f"{told.value.what} {told.value.why} {told.value.fix}"


def test_settings_of_other_models_are_refused(made: Any) -> None:
    with pytest.raises(ConfigError, match="takes no candidates"):
        draw(made(), "red", drawing=Drawing(candidates=4))


def test_another_size_is_fitted_where_asked(made: Any, picture: Any) -> None:
    [one] = draw(made(Toy(reads=("hint",))), given=Given(hint=picture("wide.png", 19), fit=True))
    assert one.image_YXC.shape == (8, 8, 3)
    [grown] = draw(made(Toy(reads=("small",), upscale=2)), given=Given(small=picture("small.png", 4)))
    assert np.array_equal(grown.image_YXC[::2, ::2], np.array(Image.open(picture("small.png", 4))))


def test_given_pictures_are_read_as_training_pictures_are(made: Any, tmp_path: Path) -> None:
    run = made(Toy(reads=("small",), upscale=2))
    grey = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    shown = {}
    for name in ("deep.png", "cmyk.tif", "clear.png"):
        [one] = draw(run, given=Given(small=tmp_path / name))
        shown[name] = one.image_YXC[::2, ::2]
    assert np.abs(shown["deep.png"][..., 0].astype(int) - grey / 257).max() <= 1
    assert (shown["cmyk.tif"][0, 0] == [0, 255, 255]).all() and (shown["clear.png"] == 255).all()


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "empty"), (b"nothing", "not a picture"), (b"\x89PNG\r\n\x1a\n", "damaged picture")]
)
def test_a_given_file_that_is_no_picture(made: Any, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "it.png").write_bytes(content)
    with pytest.raises(DataError) as told:
        draw(made(Toy(reads=("hint",))), given=Given(hint=tmp_path / "it.png"))
    assert why in told.value.why and "it.png" in told.value.what


def test_files_that_are_no_pictures_of_ours(made: Any, picture: Any, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"nothing")
    for path in (picture("plain.png"), tmp_path / "no.png", tmp_path / "absent.png"):
        with pytest.raises(DataError):
            parameters(path)
    run = made()
    [one] = draw(run, "red", out=tmp_path / "out")
    checkpoint.save(run.checkpoints, 1, {"weights": ToyModel(Toy()).state_dict()}, {"step": 1})
    assert one.path is not None
    with pytest.raises(RunError, match="no longer"):
        again(one.path)


def test_a_model_of_text_does_not_draw(made: Any, tmp_path: Path) -> None:
    from nomoat.families.lm import LM, LanguageModel

    run = Run.create(None, "text", Recipe("Text", LM.tiny(), None, "1steps", 1))  # type: ignore[arg-type]
    checkpoint.save(run.checkpoints, 0, {"weights": LanguageModel(LM.tiny()).state_dict()}, {"step": 0})
    with pytest.raises(ConfigError, match="does not draw"):
        draw(run)
    with pytest.raises(ConfigError, match="0 pictures"):
        draw(made(), n=0)


def test_the_command(made: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, out = made(), str(tmp_path / "drawn")
    assert main(["draw", run.name, "a red square", "--n", "2", "--out", out, "--json"]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert len(last["pictures"]) == 2 and last["pictures"][0]["guidance"] == drawing.GUIDANCE
    first = last["pictures"][0]["path"]
    assert main(["draw", "--again", first, "--out", out]) == 0
    assert capfd.readouterr().out.strip().endswith("-2.png")
    assert main(["draw"]) == 2 and main(["draw", run.name, "--again", first]) == 2
    assert main(["draw", run.name, "a blue square"]) == 1
    assert "unknown words: blue" in capfd.readouterr().err


def test_the_grid_fits_the_terminal() -> None:
    images = [np.full((8, 8, 3), 40 * number, np.uint8) for number in range(3)]
    lines = grid(images, 17).splitlines()
    assert len(lines) == 4 + 1 + 4
    assert lines[0].count("\u2580") == 16 and lines[-1].count("\u2580") == 8
    assert "38;2;40;40;40" in lines[0]
    assert max(line.count("\u2580") for line in grid([np.zeros((64, 64, 1), np.uint8)], 20).splitlines()) <= 20
