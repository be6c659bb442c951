"""CLIP: its two losses against formulas and figures by hand, what counts as a pair, what it is like to use."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nomoat.core.errors import ConfigError
from nomoat.families import clip
from nomoat.families.clip import CLIP, same
from nomoat.nn.backbone import Backbone
from nomoat.nn.distort import Augment
from nomoat.nn.lora import LoRA
from nomoat.train.warn import Watch

TINY = CLIP.tiny()
VISION = TINY.vision


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(model, samples=4):
    return model.draw(model.example(samples), torch.Generator().manual_seed(0))


def pairs(count):
    return torch.eye(count, dtype=torch.bool), torch.ones(count, count, dtype=torch.bool)


def test_siglip_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    expected = sum(math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5, -3.0))  # a pair wants a high logit, others a low
    assert clip._sigmoid_nats(logits, *pairs(2)).item() == pytest.approx(expected, abs=1e-6)


def test_siglip_is_the_cross_entropy_of_every_decision():
    logits = torch.randn(5, 5)
    expected = F.binary_cross_entropy_with_logits(logits, torch.eye(5), reduction="sum")
    torch.testing.assert_close(clip._sigmoid_nats(logits, *pairs(5)), expected)


def test_infonce_by_hand():
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    columns = [math.log(1 + math.exp(1)), math.log(2)]
    expected = (sum(rows) + sum(columns)) / 2
    assert clip._softmax_nats(logits, *pairs(2)).item() == pytest.approx(expected, abs=1e-6)


def test_infonce_is_the_cross_entropy_both_ways():
    logits, right = torch.randn(5, 5), torch.arange(5)
    expected = (F.cross_entropy(logits, right, reduction="sum") + F.cross_entropy(logits.T, right, reduction="sum")) / 2
    torch.testing.assert_close(clip._softmax_nats(logits, *pairs(5)), expected)


@pytest.mark.parametrize("objective", ["siglip", "infonce"])
def test_the_loss_is_made_of_the_cosines_by_the_published_first_factor_and_bias(objective):
    model = replace(TINY, objective=objective).build({})
    batch = drawn(model, 3)
    picture, caption = model.pictures(batch["image"]), model.captions(batch)
    torch.testing.assert_close(picture.norm(dim=1), torch.ones(3))
    loss, cosines = model.loss(batch), picture @ caption.T
    if objective == "siglip":
        expected = F.binary_cross_entropy_with_logits(10 * cosines - 10, torch.eye(3), reduction="sum")
    else:
        expected = sum(F.cross_entropy(c / 0.07, torch.arange(3), reduction="sum") for c in (cosines, cosines.T)) / 2
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-4)
    assert loss.count == 3


@pytest.mark.parametrize("objective", ["siglip", "infonce"])
def test_what_is_the_same_is_no_negative(objective):
    model = replace(TINY, objective=objective).build({})
    batch = model.example(6)
    batch["caption"][1], batch["caption_mask"][1] = batch["caption"][0], batch["caption_mask"][0]
    batch["image"][2] = batch["image"][4]
    pair, counted = model.pairs(batch)
    left_out = {(i, j) for i, j in (~counted).nonzero().tolist()}
    assert left_out == {(0, 1), (1, 0), (2, 4), (4, 2), (3, 3)}, "row 3 of the example has no words"
    assert pair.diagonal().tolist() == [True, True, True, False, True, True]
    logits = torch.randn(6, 6)
    other = logits.clone()
    other[0, 1] = other[4, 2] = 30.0
    nats = clip._sigmoid_nats if objective == "siglip" else clip._softmax_nats
    assert nats(logits, pair, counted) == nats(other, pair, counted)


def test_words_behind_the_end_of_a_caption_do_not_make_it_another():
    batch = TINY.build({}).example(2)
    batch["caption"][1] = batch["caption"][0]
    batch["caption_mask"][:] = torch.arange(6) < 3
    batch["caption"][1, 3:] += 1
    assert same(batch).all()


def test_augmented_pictures_are_still_known_to_be_the_same():
    model = replace(TINY, augment=Augment(crop=0.5, turn=20, colour=0.3)).build({})
    batch = model.example(3)
    batch["image"][2] = batch["image"][0]
    changed = drawn_of(model, batch)
    assert not torch.equal(changed["image"][0], changed["image"][2])
    assert not model.pairs(changed)[1][0, 2]


def drawn_of(model, batch, seed=0):
    return model.draw(batch, torch.Generator().manual_seed(seed))


def test_chance_is_what_a_guess_without_knowledge_gets():
    ln = math.log(8)
    batch = {**TINY.build({}).example(8), "caption_mask": torch.ones(8, 6, dtype=torch.bool)}
    assert replace(TINY, objective="infonce").build({}).chance(batch) == pytest.approx(ln)
    # The best constant logit is that of 1 in 8; a pair then costs ln 8, each of the seven others ln 8/7.
    assert TINY.build({}).chance(batch) == pytest.approx(ln + 7 * math.log(8 / 7))


def test_a_loss_that_stays_at_chance_is_told_in_plain_words():
    batch = TINY.build({}).example(8)
    chance = TINY.build({}).chance(batch)
    watch, found = Watch(chance, "picture"), []
    for step in range(1, 131):  # it falls from 10 to that of knowing nothing, as the bias learns how rare pairs are
        found += watch.see(step, step / 1000 + 0.05, chance + 7 * math.exp(-step / 8))
    assert len(found) == 1
    assert f"still that of guessing: {chance:.2f} nats a picture" in found[0]


def test_every_parameter_learns_with_registers_and_a_deep_caption_tower():
    model = replace(TINY, caption_depth=1, registers=2).build({})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss = model.loss(drawn(model, 4))
    loss.total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert {model.role_of(name, p) for name, p in model.named_parameters()} <= {"matrix", "vector", "embedding"}
    assert model.role_of("registers", model.registers) == "vector"


def test_it_learns_which_colour_a_word_means():
    """Pictures of one of four colours; new pictures find their word."""
    model = replace(TINY, vocab_size=5, objective="infonce").build({})
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])

    def some(rows):
        kind = torch.arange(rows) % 4
        image = colours[kind][:, :, None, None] + 0.3 * torch.randn(rows, 3, 8, 8, generator=generator)
        caption = kind[:, None].expand(-1, 6)
        return {"image": image.clamp(-1, 1), "caption": caption, "caption_mask": torch.arange(6).expand(rows, -1) < 1}

    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(some(8))
        (loss.total / loss.count).backward()
        optimizer.step()
    test = some(8)
    words = {name: test[name][:4] for name in ("caption", "caption_mask")}
    nearest = (model.encode({"image": test["image"]}) @ model.encode(words).T).argmax(1)
    assert nearest.tolist() == [0, 1, 2, 3] * 2
    score = model.score(test)
    assert score.shape == (8, 1)
    wrong = {**test, "caption": test["caption"].roll(1, 0)}
    assert (model.score(wrong) < score).all()


def test_pictures_of_another_size_are_resized():
    model = TINY.build({})
    image = model.example(2)["image"]
    large = F.interpolate(image, size=16, mode="nearest")
    assert model.encode({"image": large}).shape == (2, 32)
    torch.testing.assert_close(model.encode({"image": image}), model.pictures(image))


def test_the_factor_stays_below_a_hundred():
    model = TINY.build({})
    model.log_factor.data.fill_(9.0)
    model.after_step(0.5)
    assert model.factor.item() == pytest.approx(100, rel=1e-5)


def test_adapters_stand_in_both_towers():
    model = replace(TINY, caption_depth=1).build({})
    before = model.encode(model.example(2))
    LoRA(rank=2).apply(model)
    torch.testing.assert_close(model.encode(model.example(2)), before)
    learning = {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if p.requires_grad}
    towers = ("stack.layers.0", "stack.layers.1", "words.stack.layers.0")
    assert learning == {f"{tower}.{part}" for tower in towers for part in PARTS}
    model.loss(drawn(model)).total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


PARTS = ("mixer.body.qkv", "mixer.body.out", "mlp.body.up", "mlp.body.down")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "clip"}, "no objective `clip`"),
        ({"objective": "siglib"}, "did you mean `siglip`"),
        ({"vocab_size": 1}, "leaves no word"),
        ({"size": 9}, "make family.size a multiple of 2"),
        ({"size": 0}, "cannot be cut"),
        ({"patch": 0}, "at least 1"),
        ({"patch": 3, "size": 9}, "no power of two"),
        ({"registers": -1}, "-1 registers"),
        ({"vision": replace(VISION, causal=True)}, "causal=false"),
        ({"vision": Backbone(32, 2, 2, causal=False)}, "position_axes=2"),
    ],
)
def test_a_config_that_cannot_work_says_so(change, said):
    with pytest.raises(ConfigError, match=said):
        replace(TINY, **change)


def test_patches_without_convolutions():
    model = replace(TINY, patch=4, size=12, stem=False).build({})
    assert model.encode(model.example(2)).shape == (2, 32)


def test_what_cannot_be_read_says_so():
    model = TINY.build({})
    batch = model.example(2)
    long = {"caption": torch.zeros(2, 9, dtype=torch.long), "caption_mask": torch.ones(2, 9, dtype=torch.bool)}
    for wrong, said in (
        ({"image": batch["image"][:, :1]}, "1 channels.*reads 3"),
        ({"image": batch["image"][:, :, :4]}, "4 x 8 pixels.*square"),
        (long, "captions of 9 words.*reads 6"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.encode(wrong)
    with pytest.raises(ConfigError, match="no captions"):
        model.loss({"image": batch["image"]})


def test_a_batch_without_any_words_teaches_nothing_and_breaks_nothing():
    model = TINY.build({})
    batch = model.example(3)
    batch["caption_mask"][:] = False
    loss = model.loss(drawn_of(model, batch))
    assert loss.count == 0 and torch.isfinite(loss.total)
    assert model.chance(batch) is None


# Pictures changed by chance


def ramp(rows=2):
    return torch.linspace(-1, 1, 8).expand(rows, 3, 8, 8).clone()


def test_nothing_is_changed_unless_asked_for():
    assert torch.equal(Augment().apply(ramp(), torch.Generator()), ramp())


def test_a_flip_mirrors_some_and_leaves_the_others():
    image = ramp(64)
    changed = Augment(flip=True).apply(image, torch.Generator().manual_seed(0))
    mirrored = (changed - image.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    kept = (changed - image).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all()
    assert 16 < mirrored.sum() < 48


def test_a_crop_shows_less_of_the_picture_and_a_turn_turns_it():
    cut = Augment(crop=0.5).apply(ramp(32), torch.Generator().manual_seed(0))
    span = cut[:, 0, 0, -1] - cut[:, 0, 0, 0]
    assert (span < 2).all() and (span > 0.5).all() and span.std() > 0.05
    turned = Augment(turn=90).apply(ramp(32), torch.Generator().manual_seed(0))
    assert turned[:, 0, :, 4].std(1).max() > 0.3, "columns are no longer of one colour"


def test_colours_change_and_stay_within_their_range():
    image = ramp(16)
    changed = Augment(colour=0.4).apply(image, torch.Generator().manual_seed(0))
    assert changed.abs().max() <= 1 and (changed - image).abs().amax((1, 2, 3)).min() > 0.01
    again = Augment(colour=0.4).apply(image, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)


@pytest.mark.parametrize("change", [{"crop": 0.0}, {"crop": 1.5}, {"turn": -1.0}, {"colour": 1.0}])
def test_changes_that_cannot_be_say_so(change):
    with pytest.raises(ConfigError, match=f"augment.{next(iter(change))}"):
        Augment(**change)
