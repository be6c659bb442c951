"""What every recipe promises, checked on each file of `recipes/` that the folder listing finds."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import nomoat.recipes
from nomoat.core.config import from_json, override, to_json
from nomoat.core.device import machine
from nomoat.core.recipe import find, listing
from nomoat.families.lm import LM
from nomoat.train.mover import Mover, Settings

FOLDER = Path(nomoat.recipes.__file__).parent
NAMES = [listed.name for listed in listing()]


def parameters(recipe):
    """Parameters by shape alone, without the memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.family.build({}).parameters())


def one_step(recipe, rows=2):
    family = recipe.build()
    mover = Mover(family, family.players[0], recipe, Settings(torch.device("cpu"), "fp32", rows))
    before = [p.clone() for p in family.parameters()]
    drawn = family.draw(family.example(rows), torch.Generator())
    moved = mover.move(drawn, 0.5)
    assert moved.finite
    if "first_loss" not in family.claims:
        assert moved.loss == pytest.approx(family.first_loss(drawn), rel=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(before, family.parameters(), strict=True))


def test_the_listing_reads_every_file():
    written = [listed.name for listed in listing(kind="Synth")]
    assert sorted(path.stem for path in FOLDER.glob("[!_]*.py")) == sorted([*NAMES, *written])
    assert all(listed.about and listed.docstring for listed in listing())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_how_to_run_it(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 50
    assert "nomoat " in text.split('"""')[1]


@pytest.mark.parametrize("name", NAMES)
def test_it_survives_json_and_takes_overrides(name):
    recipe = find(name.replace("_", "-"))
    assert from_json(to_json(recipe)) == recipe
    assert override(recipe, ["batch_size=3"]).batch_size == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt2_124m"])
def test_it_builds_and_takes_a_step(name):
    recipe = find(name)
    if hasattr(recipe.family, "policy"):  # it wraps the model that it begins with
        one_step(replace(recipe, family=replace(recipe.family, policy=LM.tiny()), start=None))
    elif hasattr(recipe.family, "student"):  # it wraps a model that its start and its teacher have the weights of
        one_step(replace(recipe, family=type(recipe.family).tiny(), start=None, parts={}))
    elif hasattr(recipe.family, "base"):  # it leads a model that is trained already
        one_step(replace(recipe, family=replace(recipe.family, base=type(recipe.family).tiny().base), parts={}))
    else:
        names = {field.name for field in fields(recipe.family)}
        shorter = replace(recipe.family, context_length=32) if "context_length" in names else recipe.family
        one_step(replace(recipe, family=shorter, parts={}))  # nobody has trained its parts


def test_gpt2_has_the_published_count():
    recipe = find("gpt2_124m")
    assert parameters(recipe) == recipe.expect["parameters"] == 124_439_808


@pytest.mark.slow
def test_gpt2_takes_a_step():
    recipe = find("gpt2_124m")
    if machine().memory_bytes < 6e9:
        pytest.skip("needs 6 GB")
    one_step(recipe, rows=1)
