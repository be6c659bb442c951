"""Pictures by search over noises, on a stand-in whose picture is its noise; a judge that is fooled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nomoat.core.errors import ConfigError
from nomoat.families.diffusion import Diffusion
from nomoat.sampling.drawing import Drawing, noise
from nomoat.search.noises import Search, searched, spread

SHAPE = (1, 4, 4)
PROMPTS = {"label": torch.zeros(12, dtype=torch.long)}


def draw(prompts):
    return prompts["noise"].tanh()


def bright(image, prompts):
    return image.mean((1, 2, 3))


def centred(image, prompts):
    """What the chooser should have wanted: bright, but not all alike."""
    return image.mean((1, 2, 3)) + 3 * image.std((1, 2, 3)) - 6 * (image.mean((1, 2, 3)) - 0.25).clamp(min=0)


def test_more_tries_please_the_chooser_more_and_neighbours_most() -> None:
    best = searched(draw, PROMPTS, SHAPE, Search(64), bright)
    near = searched(draw, PROMPTS, SHAPE, Search(64, "zero-order"), bright)
    scores = [each.chosen for each in best.course]
    assert [each.tries for each in best.course] == [1, 2, 4, 8, 16, 32, 64]
    assert scores == sorted(scores)
    assert near.course[-1].chosen > scores[-1] + 0.05
    torch.testing.assert_close(draw({"noise": best.noise}), best.image)
    assert float(bright(best.image, PROMPTS).mean()) == pytest.approx(scores[-1])


def test_the_first_try_is_what_would_be_drawn_without_a_search() -> None:
    found = searched(draw, PROMPTS, SHAPE, Search(1, seed=5), bright)
    torch.testing.assert_close(found.noise, noise(12, SHAPE, 5))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(searched(draw, PROMPTS, SHAPE, Search(1, seed=6), bright).noise, found.noise)


def test_a_judge_that_is_fooled_is_exposed_by_the_second() -> None:
    found = searched(draw, PROMPTS, SHAPE, Search(256, "zero-order"), bright, centred)
    assert found.course[-1].chosen > found.course[0].chosen
    assert found.course[-1].reported < max(each.reported for each in found.course)
    assert "fooled" in found.warning
    agreed = searched(draw, PROMPTS, SHAPE, Search(32), bright, bright)
    assert agreed.warning == ""
    assert agreed.course[-1].spread < agreed.course[0].spread
    assert spread(torch.zeros(1, 1, 2, 2)) == 0


def test_a_diffusion_model_is_searched_by_its_own_noises() -> None:
    torch.manual_seed(0)
    family = Diffusion.tiny().build({}).eval()
    for weight in family.parameters():
        weight.data += 0.05 * torch.randn(weight.shape)
    prompts = {name: value for name, value in family.example(3).items() if name != "image"}

    def drawn(given):
        return family.generate(given, Drawing(steps=3), torch.Generator())["image"]

    found = searched(drawn, {**prompts, "rows": 3}, family.config.shape, Search(6), bright)
    assert found.course[-1].chosen > found.course[0].chosen
    plain = family.generate(prompts, Drawing(steps=3, seed=0), torch.Generator())["image"]
    first = searched(drawn, {**prompts, "rows": 3}, family.config.shape, Search(1), bright).image
    torch.testing.assert_close(first, plain)


def test_searches_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="no way"):
        Search(way="hill")
    for wrong in ({"tries": 0}, {"radius": 0.0}, {"radius": 2.0}):
        with pytest.raises(ConfigError, match="cannot be"):
            Search(**wrong)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Runs of a small model that draws shapes, and of a small CLIP."""
    import os

    from nomoat import train
    from nomoat.core.budget import Budget
    from nomoat.core.recipe import find
    from nomoat.nn.backbone import Backbone
    from nomoat.nn.unet import UNet

    before = os.environ.get("NOMOAT_RUNS")
    os.environ["NOMOAT_RUNS"] = str(tmp_path_factory.mktemp("runs"))
    few = {"budget": Budget.parse("3steps"), "batch_size": 8}
    plain, clip = find("diffusion-small"), find("clip-small")
    small = replace(plain.family, trunk=UNet((8, 16), heads=2), caption_depth=1)
    vision = Backbone(width=32, depth=1, heads=2, dialect=clip.family.vision.dialect, causal=False, position_axes=2)
    judge = replace(clip.family, vision=vision, caption_width=32, width=16)
    yield train(replace(plain, family=small, **few)), train(replace(clip, family=judge, **few))
    os.environ.pop("NOMOAT_RUNS")
    if before is not None:
        os.environ["NOMOAT_RUNS"] = before


def test_pictures_are_searched_and_what_was_found_can_be_drawn_again(shapes, tmp_path) -> None:
    from nomoat import drawing
    from nomoat.imagining import imagine

    run, clip = shapes
    how = Drawing(steps=2, guidance=2.0, seed=4)
    said, judges = "a small red circle", (str(clip.path), "reader")
    found = imagine(run, said, judges, n=2, search=Search(4, "zero-order"), out=tmp_path, drawn=how)
    assert [each.tries for each in found.course] == [1, 2, 4]
    assert found.course[-1].chosen >= found.course[0].chosen
    assert all(0 <= each.reported <= 1 for each in found.course)
    again = drawing.again(found.pictures[1].path)
    assert (again.image_YXC == found.pictures[1].image_YXC).all()
    assert "judge" in found.as_text()


def test_judges_that_cannot_be(shapes) -> None:
    from nomoat.imagining import imagine

    run, clip = shapes
    for judges, said in (
        (("reader", "reader"), "the same"),
        ((), "0 judges"),
        ((str(run.path),), "judges no pictures"),
    ):
        with pytest.raises(ConfigError, match=said):
            imagine(run, "a red circle", judges, 1, Search(1), drawn=Drawing(steps=1))
    with pytest.raises(ConfigError, match="one thing"):
        imagine(run, "a red circle left of a blue square", ("reader",), 1, Search(1), drawn=Drawing(steps=1))
    with pytest.raises(ConfigError, match="does not draw"):
        imagine(clip, "a red circle", ("reader",), 1, Search(1))
