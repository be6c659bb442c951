"""Adapted runs: trained, saved without their base, resumed, loaded, merged; and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from test_lora import USUAL, model, near, stirred
from torch.testing import assert_close
from toys import Chain

import nomoat
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import CheckpointError, ConfigError, RunError
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.lora import LoRA, adapted_layers
from nomoat.nn.native import Native, quickest, why_not
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


@pytest.fixture
def talking():
    """An adapted run that spells in bytes."""
    torch.manual_seed(0)
    tokenizer = ByteTokenizer()
    family = stirred(LM(tokenizer.vocab_size, 64, Backbone(width=32, depth=2, heads=2)).build({}))
    recipe = Recipe("A base.", family.config, Chain(), Budget.parse("1steps"), 1)
    base = Run.create(None, "base", recipe)
    checkpoint.save(base.checkpoints, 0, {"weights": family.state_dict()}, {"step": 0})
    run = Run.create(None, "talking", replace(recipe, start=Ref(base.name), adapt=LoRA(4, dora=True)))
    checkpoint.save(run.checkpoints, 0, {"weights": stirred(run.recipe.build()).kept()}, {"step": 0})
    for each in (base, run):
        tokenizer.save(each.path / "tokenizer.json")
    return run


def test_every_verb_takes_an_adapted_run(talking, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 30)
    plain = nomoat.import_model(nomoat.export(talking, "hf", tmp_path / "plain"))
    assert plain.recipe.adapt is None
    for verb in (
        lambda run: nomoat.generate(run, "hello", max_tokens=8, temperature=0),
        lambda run: nomoat.evaluate(run, tmp_path / "text.txt").value,
    ):
        found, wanted = verb(talking), verb(plain)
        assert found == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-5))
    assert isinstance("".join(nomoat.chat(talking, max_tokens=4, bits=32).say("hello")), str)
    small = nomoat.quantize(talking, 8, tmp_path / "text.txt")
    assert (small.recipe.adapt, small.recipe.start, small.recipe.family.bits) == (None, None, 8)
    wanted = nomoat.evaluate(plain, tmp_path / "text.txt").value
    assert nomoat.evaluate(small, tmp_path / "text.txt").value == pytest.approx(wanted, rel=0.05)


def test_it_decodes_natively_as_what_it_is_merged(talking):
    reader = quickest(load(talking), 32)
    assert why_not(load(talking, merged=True)) or isinstance(reader, Native)
    whole, tokens = load(talking), torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        found = reader.decode(tokens, reader.memory(1, 8), [0])
        assert_close(found, whole.decode(tokens, whole.memory(1, 8), [0]), rtol=1e-4, atol=1e-4)


def test_its_card_names_the_base(talking):
    from nomoat import card

    facts = card.write(talking)["model"]
    assert facts["adapts"] == {"base": talking.recipe.start.run, "sha256": talking.recipe.start.sha256}
    assert f"beside the weights of `{talking.recipe.start.run}`" in (talking.path / "card.md").read_text()


def test_a_base_elsewhere_is_named_by_its_path(talking, tmp_path):
    from nomoat.core.runs import runs_root

    base = Run.open(talking.recipe.start)
    elsewhere = tmp_path / "elsewhere" / base.name
    shutil.copytree(base.path, elsewhere)
    made = Run.create(None, "far", replace(talking.recipe, start=Ref(str(elsewhere))))
    assert made.recipe.start == Ref(str(elsewhere), talking.recipe.start.sha256)
    shutil.rmtree(runs_root() / base.name)
    with pytest.raises(RunError, match=f"there is no run `{base.name}`"):
        load(talking)
