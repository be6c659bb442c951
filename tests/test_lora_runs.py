"""Adapted runs: trained, saved without their base, resumed, loaded, merged; and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_lora import USUAL, model, near, stirred
from torch.testing import assert_close
from toys import Chain

from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import CheckpointError, ConfigError
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.nn.lora import LoRA, adapted_layers
from nomoat.train.loop import train


@pytest.fixture(autouse=True)
def _runs(runs_root):
    pass


def base_run(name="base", **how):
    """A run of step 0 that holds a tiny model."""
    family = model(**how)
    recipe = Recipe("A base.", family.config, Chain(33, 8), Budget.parse("1steps"), 8)
    run = Run.create(None, name, recipe)
    checkpoint.save(run.checkpoints, 0, {"weights": family.state_dict()}, {"step": 0})
    run.mark("done")
    return run


def recipe_on(base, budget="6steps", lora=USUAL, **more):
    optimizer = Optimizer("adamw", adam_learning_rate=0.01, warmdown=0.0)
    return Recipe("Adapted.", base.recipe.family, Chain(33, 8), Budget.parse(budget), 8, optimizer=optimizer,
                  precision="fp32", start=Ref(base.name), adapt=lora, **more)  # fmt: skip


def adapted_run(base, name="adapted", **how):
    recipe = recipe_on(base, **how)
    run = Run.create(None, name, recipe)
    train(run.recipe, run, "cpu")
    return run


def scores(family):
    with torch.no_grad():
        return family.score(family.example(4))


@pytest.mark.parametrize(
    ("mixers", "bits", "dora", "ema"),
    [("attention", 16, False, None), ("mamba", 16, True, 0.9), ("attention", 8, True, None), ("mamba", 8, False, 0.9)],
)
def test_a_checkpoint_holds_what_moves_and_load_gives_the_whole(mixers, bits, dora, ema):
    base = base_run(mixers=mixers, bits=bits)
    recipe = recipe_on(base, lora=LoRA(4, dora=dora), ema=ema)
    run = Run.create(None, "adapted", recipe)
    trained = train(run.recipe, run, "cpu")
    found = checkpoint.newest(run.checkpoints)
    for group in ("weights", checkpoint.model_group(found.path)):
        held = checkpoint.read(found.path, group)
        assert {name.rsplit(".", 1)[-1] for name in held} == {"a", "b"} | ({"magnitude"} if dora else set())
    start = Run.open(run.name).recipe.start
    newest = checkpoint.newest(base.checkpoints).path
    assert start == Ref(base.name, checkpoint.digest(newest, "weights"))
    whole = load(run)
    assert torch.equal(scores(whole), scores(trained)) and not whole.training
    assert (scores(whole) - scores(load(base))).abs().max() > 1e-3
    plain = load(run, merged=True)
    assert not adapted_layers(plain)
    near(scores(plain), scores(whole))
    assert not any(parameter.requires_grad for parameter in plain.parameters())


def test_training_lowers_the_loss_and_leaves_the_base_alone():
    base = base_run()
    before = load(base).state_dict()
    run = adapted_run(base, budget="60steps")
    losses = [event["training_loss"] for event in run.metrics("step")]
    assert losses[-1] < 0.7 * losses[0]
    whole = load(run).state_dict()
    for name, tensor in before.items():
        assert torch.equal(whole[name], tensor)


@pytest.mark.parametrize(("mixers", "optimizer"), [("attention", "adamw"), ("mamba", "muon")])
def test_resumed_it_is_the_same_bit_for_bit(mixers, optimizer):
    base = base_run(mixers=mixers)
    recipe = replace(recipe_on(base), keep_every_seconds=0.0, optimizer=Optimizer(optimizer))
    whole = Run.create(None, "whole", recipe)
    train(whole.recipe, whole, "cpu")
    halves = Run.create(None, "halves", recipe)
    halves.watch = lambda event: stop(event, 3)
    with pytest.raises(KeyboardInterrupt):
        train(halves.recipe, halves, "cpu")
    halves.watch = None
    halves = Run.open(halves.name)
    train(halves.recipe, halves, "cpu")
    one, other = (checkpoint.newest(run.checkpoints).path for run in (whole, halves))
    for group in ("weights", "optimizer"):
        for name, tensor in checkpoint.read(one, group).items():
            assert torch.equal(tensor, checkpoint.read(other, group)[name]), name


def stop(event, step):
    if event["kind"] == "step" and event["step"] == step:
        raise KeyboardInterrupt


def test_a_base_that_has_changed_is_refused_with_both_hashes():
    base = base_run()
    run = adapted_run(base)
    held = checkpoint.read(checkpoint.newest(base.checkpoints).path, "weights")
    checkpoint.save(base.checkpoints, 1, {"weights": {k: v + 1 for k, v in held.items()}}, {"step": 1})
    with pytest.raises(CheckpointError, match=f"{base.name} no longer holds.*wanted SHA-256 .*found"):
        load(run)


def test_an_adapter_is_not_put_on_another():
    run = adapted_run(base_run())
    with pytest.raises(ConfigError, match=r"adapted model.*another adapter.*merge it first"):
        adapted_run(run, "twice")
    family = LoRA(2).apply(model())
    with pytest.raises(ConfigError, match=r"adapted already.*merge it first"):
        LoRA(2).apply(family)


def test_full_tuning_begins_with_the_merged_weights_of_an_adapted_run():
    run = adapted_run(base_run())
    recipe = replace(recipe_on(run), adapt=None)
    near(scores(recipe.build()), scores(load(run)))
    full = Run.create(None, "full", recipe)
    train(full.recipe, full, "cpu")
    for path in run.checkpoints.iterdir():
        path.rename(path.with_name("gone"))
    assert len(load(full).state_dict()) == len(load(full, merged=True).state_dict())  # it needs its start no more


def test_packed_weights_are_not_tuned_themselves():
    base = base_run(bits=8)
    with pytest.raises(ConfigError, match=r"8 bits cannot be trained.*adapt=LoRA"):
        adapted_run(base, lora=None)
    float_recipe = replace(recipe_on(base), family=replace(base.recipe.family, bits=16))
    with pytest.raises(ConfigError, match="not of this recipe's family"):
        float_recipe.build()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"rank": 0}, "rank 0 holds nothing"),
        ({"rank": -3}, "rank -3 holds nothing"),
        ({"rank": 33}, "rank 33 is above 32"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"targets": ("q_proj",)}, "no layer is called `q_proj`"),
        ({"targets": ("upp",)}, "did you mean `up`"),
        ({"targets": ()}, "has no layer"),
        ({"targets": ("embed",)}, "no layer is called `embed`"),
    ],
)
def test_what_cannot_be_adapted_is_refused(how, words):
    with pytest.raises(ConfigError, match=words):
        LoRA(**how).apply(model())


def test_a_mamba_layer_is_adapted_under_the_usual_names():
    family = LoRA().apply(model(("mamba", "attention")))
    leaves = {name.rsplit(".", 1)[-1] for name in adapted_layers(family)}
    assert leaves == {"in_proj", "out", "qkv", "up", "down"}
    stirred(family)
    assert_close(scores(family), scores(family))
