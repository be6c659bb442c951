"""GANs: losses and penalties by hand, augmentations, what is generated, and toys that both kinds of net must cover."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import test_every_family as contract
import torch
from torch import nn

from nomoat.core.config import from_json, override, to_json
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.run import Run, load
from nomoat.families.gan import GAN, OBJECTIVES
from nomoat.nn.augment import DRAWS, Augment, coloured, cut, moved
from nomoat.nn.backbone import Backbone
from nomoat.nn.conv import Conv
from nomoat.sampling.drawing import Drawing
from nomoat.train.loop import train

ALL = Augment(translation=0.25, cutout=0.5, colour=1.0)
SMALL, WORDS = Backbone(width=16, depth=1, heads=2), {"vocab_size": 11, "caption_length": 3, "cond_width": 16}
TINY = replace(GAN.tiny(), augment=ALL)
CONV = replace(TINY, generator=Conv((8, 8), 1), discriminator=Conv((8, 8), 1))
CASES = {
    "conv alone": replace(CONV, classes=0, objective="minimax"),
    "conv, captions": replace(CONV, classes=0, objective="nonsaturating", **WORDS),
    "conv, hinge with penalties": replace(CONV, objective="hinge", gamma=0.5),
    "transformers, captions": replace(TINY, generator=SMALL, discriminator=SMALL, classes=0, **WORDS),
    "conv and transformer": TINY,
}
FIRST = {"minimax": 2 * math.log(2), "nonsaturating": 2 * math.log(2), "hinge": 2.0, "r3gan": math.log(2)}


@pytest.fixture(params=CASES.values(), ids=CASES)
def family(request):
    torch.manual_seed(0)
    return request.param.build({})


def made(config):
    torch.manual_seed(0)
    return config.build({})


def softplus(x):
    return math.log1p(math.exp(x))


def test_every_choice_keeps_the_contract(family):
    batch = contract.drawn(family, family.example(8))
    first = contract.mean_loss(family, batch, "discriminator").item()
    assert first == pytest.approx(FIRST[family.config.objective]) == pytest.approx(family.first_loss(batch))
    contract.test_every_parameter_belongs_to_one_player_and_moves(family)
    for player in family.players:
        whole = contract.gradients(family, [batch], player)
        parts = contract.gradients(family, contract.split(batch, 4), player)
        for name, grad in whole.items():
            torch.testing.assert_close(parts[name], grad, rtol=1e-4, atol=1e-6)


def test_the_discriminator_leaves_the_generator_alone():
    family = contract.moved(made(TINY))
    batch = contract.drawn(family, family.example(4))
    family.loss(batch, "discriminator").total.backward()
    assert all(weight.grad is None for _, weight in family.parameters_of("generator"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_by_hand(objective):
    real, fake = [1.0, 0.0, -0.5], [0.0, 2.0, 0.25]
    by_hand = {
        "minimax": (lambda r, f: softplus(-r) + softplus(f), lambda r, f: math.log(1 - 1 / (1 + math.exp(-f)))),
        "nonsaturating": (lambda r, f: softplus(-r) + softplus(f), lambda r, f: -math.log(1 / (1 + math.exp(-f)))),
        "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda r, f: -f),
        "r3gan": (lambda r, f: softplus(-(r - f)), lambda r, f: softplus(-(f - r))),
    }[objective]
    ours = OBJECTIVES[objective]
    for function, expected in zip((ours.discriminator, ours.generator), by_hand, strict=True):
        found = function(torch.tensor(real), torch.tensor(fake))
        assert found.tolist() == pytest.approx([expected(r, f) for r, f in zip(real, fake, strict=True)], abs=1e-5)


class Squares(nn.Module):
    """Its features are each number squared, so that a discriminator's logit is sum w x^2 and its slope 2 w x."""

    def forward(self, image_BCYX):
        return image_BCYX.flatten(1).square()


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_penalties_are_the_slopes_at_real_and_generated_pictures(progress):
    family = made(replace(CONV, classes=0, objective="r3gan", gamma=0.8, augment=Augment()))
    judge = family.discriminator
    judge.body, judge.output = Squares(), nn.Linear(3 * 8 * 8, 1, bias=False)
    batch = contract.drawn(family, family.example(4))
    weight = judge.output.weight
    found = family.loss(batch, "discriminator", progress)
    [grad] = torch.autograd.grad(found.total, weight)

    fake = family.generator(batch).detach()
    squares = torch.cat([batch["image"], fake]).flatten(1).square()
    gamma = family.gamma(progress)
    penalty = gamma / 2 * (4 * weight.detach().square() * squares).sum()
    by_hand = gamma * 4 * weight.detach() * squares.sum(0)
    real, generated = judge(batch["image"], judge.condition(batch)), judge(fake, judge.condition(batch))
    [pairing] = torch.autograd.grad(nn.functional.softplus(generated - real).sum(), weight)
    alone = nn.functional.softplus(generated - real).sum()
    torch.testing.assert_close(found.total, alone + penalty)
    torch.testing.assert_close(grad, pairing + by_hand)


def test_gamma_cools_in_the_first_half():
    family = made(replace(CONV, objective="r3gan", gamma=2.0, gamma_final=0.1))
    assert [family.gamma(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([2.0, 1.1, 0.2, 0.2])
    assert made(replace(CONV, objective="minimax")).gamma(0.0) == 0, "as first described it has no penalty"


def test_without_gradients_a_loss_can_still_be_read():
    family = made(TINY).eval()
    batch = contract.drawn(family, family.example(2))
    with torch.no_grad():
        for player in family.players:
            assert family.loss(batch, player, 0.5).total.isfinite()


def test_augmentations_of_strength_nothing_do_nothing():
    image = torch.rand(2, 3, 8, 8)
    assert Augment()(image, torch.rand(2, DRAWS)) is image
    torch.testing.assert_close(coloured(image, torch.full((2, 3), 0.5), 1.0), image)
    assert torch.equal(moved(image, torch.full((2, 2), 0.5), 0.25), image)


def test_augmentations_do_what_they_say_and_pass_gradients():
    image = torch.rand(2, 3, 8, 8)
    there = moved(image, torch.tensor([[0.0, 0.5], [0.999, 0.5]]), 0.25)
    assert torch.equal(there[0, :, 2:], image[0, :, :-2]) and torch.equal(there[0, :, 0], image[0, :, 0])
    assert torch.equal(there[1, :, :-2], image[1, :, 2:])
    holes = cut(torch.ones(2, 3, 8, 8), torch.tensor([[0.5, 0.5], [0.0, 0.0]]), 0.5)
    assert (holes == 0).sum((1, 2, 3)).tolist() == [3 * 16, 3 * 4]
    bright = coloured(image, torch.tensor([[1.0, 0.5, 0.5], [0.5, 0.0, 0.5]]), 1.0)
    torch.testing.assert_close(bright[0], image[0] + 0.5)
    torch.testing.assert_close(bright[1], image[1].mean(0).expand(3, -1, -1))
    image.requires_grad_()
    Augment(translation=0.25, colour=0.5)(image, torch.rand(2, DRAWS)).sum().backward()
    assert image.grad.abs().sum((1, 2, 3)).gt(0).all()


def test_pictures_are_each_their_own():
    family = contract.moved(made(CASES["conv, captions"]))
    words = {"caption": torch.tensor([[1, 2, 3]] * 4), "caption_mask": torch.ones(4, 3, dtype=torch.bool)}
    some = family.generate(words, Drawing(seed=3), torch.Generator())["image"]
    assert some.shape == (4, 3, 8, 8) and some.abs().max() < 1 and not torch.equal(some[0], some[1])
    last = {name: value[2:] for name, value in words.items()} | {"first": 2}
    torch.testing.assert_close(family.generate(last, Drawing(seed=3), torch.Generator())["image"], some[2:])
    noise = torch.zeros(4, *family.noise_shape)
    given = family.generate({**words, "noise": noise}, Drawing(seed=3), torch.Generator())["image"]
    torch.testing.assert_close(given[0], given[3])
    silent = family.generate({"rows": 4, "noise": noise}, Drawing(), torch.Generator())["image"]
    assert not torch.allclose(silent[0], given[0]), "what is asked for changes the picture"
    assert family.reads == {"caption"}


def test_a_class_may_be_left_open():
    family = contract.moved(made(TINY))
    noise = torch.zeros(20, *family.noise_shape)
    free = family.generate({"rows": 20, "label": torch.full((20,), -1), "noise": noise}, Drawing(), torch.Generator())
    each = family.generate({"label": torch.arange(3), "noise": noise[:3]}, Drawing(), torch.Generator())["image"]
    apart = (free["image"][:, None] - each).flatten(2).norm(dim=2)
    assert apart.min(1).values.max() < 1e-5 and len(apart.argmin(1).unique()) == 3, "one of the classes, not always one"


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ({"rows": 2}, {"guidance": 3.0}, "guidance"),
        ({"rows": 2, "init": torch.zeros(2, 3, 8, 8)}, {}, "init"),
        ({"label": torch.tensor([3])}, {}, "class 3"),
        ({"noise": torch.zeros(2, 5)}, {}, "noise"),
    ],
)
def test_what_cannot_be_drawn_is_said(prompts, options, words):
    with pytest.raises(ConfigError, match=words):
        made(TINY).generate(prompts, Drawing(**options), torch.Generator())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "r3gn"}, "r3gan"),
        ({"size": 12, "generator": Conv((8, 8, 8))}, "halved 3 times"),
        ({"patch": 3}, "patches of 3"),
        ({"latent": 0}, "at least 1"),
        ({"gamma": -1.0}, "steep"),
        ({"gamma_final": 2.0}, "share"),
        ({"classes": 1}, "say nothing"),
        ({"vocab_size": 9}, "caption_length"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    "wrong", [lambda: Augment(cutout=1.5), lambda: Conv(()), lambda: Conv((8, 0)), lambda: Conv((8,), -1)]
)
def test_parts_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image": torch.zeros(2, 3, 28, 28)}, "3 x 28 x 28"),
        ({"image": torch.zeros(2, 1, 8, 8)}, "1 x 8 x 8"),
        ({"image": torch.zeros(2, 3, 8, 8)}, "no labels"),
        ({"image": torch.zeros(2, 3, 8, 8), "label": torch.tensor([0, 3])}, "class 3"),
    ],
)
def test_data_that_does_not_fit_is_named(batch, words):
    with pytest.raises(ConfigError, match=words):
        made(TINY).draw(batch, torch.Generator())


def test_the_config_survives_text():
    config = CASES["transformers, captions"]
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert override(config, ["generator.depth=2", "augment.cutout=0.1"]).generator.depth == 2


@dataclass(frozen=True)
class Patterns:
    """Eight pictures of 4 x 4: a bright row or column on black, with a little noise; `label` says which."""

    def rows(self, index, seed=0):
        generator = torch.Generator().manual_seed(seed)
        clean = patterns()
        label = torch.as_tensor(index) % 8
        image = clean[label] + 0.05 * torch.randn(len(label), 1, 4, 4, generator=generator)
        return {"image": image, "label": label, "index": torch.as_tensor(index)}

    def stream(self, family, batch_size, seed, start=0, rank=0, world=1):
        step = start
        while True:
            yield self.rows(torch.arange(step * batch_size + rank, (step + 1) * batch_size, world), step)
            step += 1


def patterns():
    clean = torch.full((8, 1, 4, 4), -0.9)
    for line in range(4):
        clean[line, 0, line] = 0.9
        clean[4 + line, 0, :, line] = 0.9
    return clean


PAIR = Conv((32, 32))
TOY = GAN(size=4, channels=1, latent=8, generator=PAIR, discriminator=PAIR, gamma=1.0, cond_width=16)


def played(config, steps, batch=64):
    """A game on `Patterns`, with the optimizer that the recipes use."""
    family, stream = made(config), Patterns().stream(None, batch, 0)
    optimizers = {
        player: torch.optim.Adam([weight for _, weight in family.parameters_of(player)], lr=2e-3, betas=(0.0, 0.99))
        for player in family.players
    }
    for step in range(steps):
        rows = next(stream)
        for number, (player, optimizer) in enumerate(optimizers.items()):
            drawn = contract.drawn(family, rows, 2 * step + number)
            optimizer.zero_grad()
            contract.mean_loss(family, drawn, player).backward()
            optimizer.step()
    return family


def nearest(image):
    """Which pattern each picture is nearest to, and how far it is, as root mean square."""
    apart = (image[:, None] - patterns()).square().mean((2, 3, 4)).sqrt()
    return apart.min(1)


def test_r3gan_covers_all_patterns():
    family = played(TOY, 300)
    apart, which = nearest(family.generate({"rows": 256}, Drawing(seed=1), torch.Generator())["image"])
    shares = torch.bincount(which, minlength=8) / 256
    assert shares.min() > 0.05, shares
    assert apart.median() < 0.3


def test_it_draws_the_class_that_is_asked_for():
    family = played(replace(TOY, classes=8), 200)
    asked = torch.arange(256) % 8
    apart, which = nearest(family.generate({"label": asked}, Drawing(seed=1), torch.Generator())["image"])
    assert (which == asked).float().mean() > 0.8
    assert apart.median() < 0.3


def test_the_loop_trains_both_players(tmp_path):
    recipe = Recipe(
        about="patterns",
        family=replace(TOY, generator=Conv((8,)), discriminator=SMALL, patch=2),
        data=Patterns(),
        budget="3steps",
        batch_size=4,
        optimizer=Optimizer("adamw", betas=(0.0, 0.99), weight_decay=0.0),
        precision="fp32",
        ema=0.9,
    )
    run = Run.create(tmp_path, "patterns", recipe)
    family = train(recipe, run)
    events = run.metrics("step")
    assert [event["player"] for event in events[:2]] == ["discriminator", "generator"]
    assert events[0]["training_loss"] == pytest.approx(math.log(2)) and events[0]["slope"] == 0
    assert not run.metrics("warning")
    asked = {"rows": 2}, Drawing(), torch.Generator()
    assert torch.equal(load(run.path).generate(*asked)["image"], family.generate(*asked)["image"])
