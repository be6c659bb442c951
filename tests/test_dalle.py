"""DALL-E: the sequence it makes of a caption and a picture, its loss by hand, guidance, candidates, its codec."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from test_every_family import drawn, moved
from test_loop import same, stop_at

from nomoat.core.errors import CheckpointError, ConfigError, DataError, RunError
from nomoat.core.family import Frozen
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.core.types import Decodes, Generates, Scores
from nomoat.families.autoencoder import Autoencoder
from nomoat.families.dalle import DALLE, Guided
from nomoat.nn.backbone import Backbone
from nomoat.nn.pyramid import Pyramid
from nomoat.nn.quantizers import FSQ, VAE
from nomoat.sampling.drawing import Drawing
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write
from nomoat.train.loop import train

CODEC = Autoencoder(size=8, quantizer=FSQ((4, 4)), nets=Pyramid((16, 16)))
TINY = replace(DALLE.tiny(), codes=16)
END = 16


def codec():
    torch.manual_seed(1)
    family = CODEC.build({})
    with torch.no_grad():
        family.decoder.output.weight.normal_()
    return family


def dalle(seed=0, **changes):
    torch.manual_seed(seed)
    return moved(replace(TINY, **changes).build({"codec": Frozen(codec())})).eval()


def pictures(rows):
    """A batch as data gives it: the first caption has two words, the others three, and one has none."""
    chance = torch.Generator().manual_seed(0)
    caption_BM = torch.randint(END, (rows, 4), generator=chance)
    said_BM = torch.arange(4).expand(rows, -1) < torch.tensor([2, 3, 0, 3] * rows)[:rows, None]
    image_BCYX = 2 * torch.rand(rows, 3, 8, 8, generator=chance) - 1
    return {
        "image": image_BCYX, "caption": caption_BM, "caption_mask": said_BM, "index": torch.arange(rows),
    }  # fmt: skip


def test_it_has_its_capabilities():
    family = dalle()
    assert isinstance(family, Decodes) and isinstance(family, Generates) and isinstance(family, Scores)


def test_the_sequence_is_start_words_and_codes():
    family, batch = dalle(), pictures(4)
    made = drawn(family, batch)
    tokens_BL, mask_BL = made["tokens"], made["mask"]
    assert tokens_BL.shape == mask_BL.shape == (4, 1 + 4 + 4)
    assert (tokens_BL[:, 0] == END).all() and not mask_BL[:, 0].any()
    assert tokens_BL[0, 1:5].tolist() == [*batch["caption"][0, :2].tolist(), END, END]
    assert mask_BL[:, 1:5].sum(1).tolist() == [2, 3, 0, 3] and mask_BL[:, 5:].all()
    assert torch.equal(tokens_BL[:, 5:].unflatten(1, (2, 2)), family.codec.tokens(batch))


def test_codes_that_came_with_the_data_are_taken():
    batch = {**pictures(2), "image_tokens": torch.arange(8).view(2, 2, 2)}
    made = drawn(TINY.build({}), batch)
    assert made["tokens"][:, 5:].flatten().tolist() == list(range(8))


def test_captions_are_left_out_in_training_alone():
    family = dalle(drop=0.5)
    batch = {**pictures(64), "caption_mask": torch.ones(64, 4, dtype=torch.bool)}
    assert drawn(family.eval(), batch)["mask"][:, 1].all()
    made = drawn(family.train(), batch)
    silent_B = ~made["mask"][:, 1]
    assert 16 < int(silent_B.sum()) < 48
    assert (made["tokens"][silent_B, :5] == END).all() and not made["mask"][silent_B, 1:5].any()
    assert torch.equal(made["tokens"], drawn(family, batch)["tokens"]), "the same seed, the same captions"


def test_the_loss_is_one_to_seven_of_words_and_codes():
    family = dalle()
    batch = drawn(family, pictures(4))
    nats_BL = -family.score(batch)
    text_B = nats_BL[:, :4].sum(1) / torch.tensor([2.0, 3.0, 1.0, 3.0])
    image_B = nats_BL[:, 4:].mean(1)
    loss = family.loss(batch)
    assert int(loss.count) == 4
    torch.testing.assert_close(loss.total, ((text_B + 7 * image_B) / 8).sum())
    torch.testing.assert_close(loss.parts["text_nats"], text_B.sum())
    torch.testing.assert_close(loss.parts["image_nats"], image_B.sum())


def test_the_first_loss_knows_which_captions_are_said():
    torch.manual_seed(0)
    family = replace(TINY, codes=16).build({"codec": Frozen(codec())}).eval()
    batch = drawn(family, pictures(4))
    expected = (0.75 * math.log(17) + 7 * math.log(16)) / 8
    assert family.first_loss(batch) == pytest.approx(expected)
    assert float(family.loss(batch).total.detach()) / 4 == pytest.approx(expected, rel=0.02)


def test_a_place_says_what_an_id_means():
    """Logits after the words are of codes alone, before the last word of words alone."""
    family = dalle(vocab_size=20)
    memory = family.memory(2, 9)
    with torch.no_grad():
        logits_BLV = family.decode(torch.zeros(2, 8, dtype=torch.long), memory, [0, 1])
        assert logits_BLV.shape == (2, 8, 20)
        assert logits_BLV[:, :4].isfinite().all()
        assert logits_BLV[:, 4:, :16].isfinite().all() and (logits_BLV[:, 4:, 16:] == -math.inf).all()
        family.decode(torch.zeros(1, 1, dtype=torch.long), memory, [0])
        with pytest.raises(ConfigError, match="too long"):
            family.decode(torch.zeros(1, 1, dtype=torch.long), memory, [0])


def test_rows_and_columns_are_told_apart():
    """The same code above and beside is not the same: its two axes turn differently."""
    family = dalle()
    with torch.no_grad():
        family.positions.weight.zero_()
    batch = family.example(1)
    batch["tokens"][:, 5:] = torch.tensor([3, 5, 7, 1])
    other = {**batch, "tokens": batch["tokens"].clone()}
    other["tokens"][:, 5:] = torch.tensor([3, 7, 5, 1])
    assert not torch.allclose(family.score(batch)[:, -1], family.score(other)[:, -1], atol=1e-6)


def test_it_draws_what_writing_its_tokens_gives():
    family, batch = dalle(), pictures(2)
    prompts = {name: batch[name] for name in ("caption", "caption_mask")}
    made = family.generate(prompts, Drawing(seed=5))
    assert made["image"].shape == (2, 3, 8, 8) and made["tokens"].shape == (2, 2, 2)
    assert torch.equal(made["image"], family.codec.from_tokens(made["tokens"])["image"])
    sequences = drawn(family, batch)["tokens"][:, :5].tolist()
    written = [[], []]
    for row, token, _ in write(family, sequences, SamplingOptions(max_tokens=4, seed=5)):
        written[row].append(token)
    assert written == made["tokens"].flatten(1).tolist()


def test_each_picture_has_chance_of_its_own():
    family, batch = dalle(), pictures(4)
    prompts = {name: batch[name] for name in ("caption", "caption_mask")}
    four = family.generate(prompts, Drawing(seed=5))["tokens"]
    last = family.generate({**{n: v[2:] for n, v in prompts.items()}, "first": 2}, Drawing(seed=5))["tokens"]
    assert torch.equal(last, four[2:])
    assert not torch.equal(family.generate(prompts, Drawing(seed=6))["tokens"], four)
    assert family.generate({"rows": 3}, Drawing())["image"].shape[0] == 3, "without a caption: anything"


def test_it_draws_what_it_was_taught():
    """Four captions with a picture each: asked for them in another order, the likeliest codes are those pictures'."""
    torch.manual_seed(0)
    family = replace(TINY, drop=0.0).build({"codec": Frozen(codec())})
    batch = {**pictures(4), "caption": torch.arange(16).view(4, 4), "caption_mask": torch.ones(4, 4, dtype=torch.bool)}
    read = drawn(family, batch)
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        family.loss(read).total.backward()
        optimizer.step()
    order = torch.tensor([2, 0, 3, 1])
    prompts = {name: batch[name][order] for name in ("caption", "caption_mask")}
    made = family.eval().generate(prompts, Drawing(temperature=0.0))
    assert torch.equal(made["tokens"], family.codec.tokens(batch)[order])


def test_guidance_of_one_changes_nothing_and_of_none_forgets_the_caption():
    family = dalle()
    tokens_BL = torch.tensor([[END, 1, 2, 3, END], [END, 4, 5, END, END]])
    silent_BL = torch.full_like(tokens_BL, END)
    with torch.no_grad():
        plain, without = (family.decode(t, family.memory(2, 9), [0, 1]) for t in (tokens_BL, silent_BL))

        def guided(strength):
            model = Guided(family, strength)
            return model.decode(tokens_BL, model.memory(2, 9), [0, 1])

        torch.testing.assert_close(guided(1.0), plain)
        torch.testing.assert_close(guided(0.0)[:, -1], without[:, -1])
        pushed = without[:, -1, :16] + 3 * (plain - without)[:, -1, :16]
        torch.testing.assert_close(guided(3.0)[:, -1, :16], pushed)
        assert (guided(3.0)[:, -1, 16:] == -math.inf).all(), "what cannot stand there still cannot"


def test_guidance_one_draws_the_same_with_and_without_the_second_row():
    family, batch = dalle(), pictures(2)
    prompts = {name: batch[name] for name in ("caption", "caption_mask")}
    sequences, options = drawn(family, batch)["tokens"][:, :5].tolist(), SamplingOptions(max_tokens=4, seed=5)
    one, other = (list(write(m, sequences, options, (), 9)) for m in (family, Guided(family, 1.0)))
    assert [w[:2] for w in one] == [w[:2] for w in other]
    more = family.generate(prompts, Drawing(seed=5, guidance=8.0))["tokens"]
    assert more.shape == (2, 2, 2)


def test_the_ranker_chooses_among_candidates():
    """The brightest of eight is at least as bright as the one alone, and is one of the eight."""
    family, batch = dalle(candidates=8), pictures(2)
    prompts = {name: batch[name] for name in ("caption", "caption_mask")}
    seen = []

    def rank(images, captions):
        seen.append((images, captions))
        return images.mean((1, 2, 3))[:, None]

    made = family.generate(prompts, Drawing(seed=5), rank=rank)
    [(all_BCYX, captions)] = seen
    assert all_BCYX.shape[0] == 16 and torch.equal(captions["caption"][8:], batch["caption"][1:].expand(8, -1))
    brightest = all_BCYX.mean((1, 2, 3)).view(2, 8).argmax(1) + torch.tensor([0, 8])
    assert torch.equal(made["image"], all_BCYX[brightest])
    assert len(family.generate(prompts, Drawing(seed=5))["image"]) == 2, "nobody to choose: one each"

    class Ranker:
        def to(self, device):
            return self

        def score(self, read):
            return rank(read["image"], {name: read[name] for name in ("caption", "caption_mask")})

    with pytest.raises(ConfigError, match="nothing to choose among candidates by"):
        family.generate(prompts, Drawing(candidates=2))
    family.ranker = Ranker()
    assert torch.equal(family.generate(prompts, Drawing(seed=5))["image"], made["image"])
    family.generate(prompts, Drawing(seed=5, candidates=3))
    assert len(seen[-1][0]) == 6, "as many as are asked for"


def test_the_likeliest_codes_alone_are_drawn():
    asked = Drawing(seed=3, top_k=1), Drawing(seed=4, top_k=1)
    assert torch.equal(*(dalle().generate({"rows": 2}, each)["tokens"] for each in asked))
    family = dalle(top_k=1)
    one, other = (family.generate({"rows": 2}, Drawing(seed=seed))["tokens"] for seed in (1, 2))
    cold = family.generate({"rows": 2}, Drawing(temperature=0.0))["tokens"]
    assert torch.equal(one, other) and torch.equal(one, cold)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: DALLE(1), "at least 2"),
        (lambda: DALLE(9, codes=1), "at least 2"),
        (lambda: DALLE(9, caption_length=0), "at least 1"),
        (lambda: DALLE(9, backbone=Backbone(width=32, heads=2)), "position_axes=2"),
        (lambda: DALLE(9, backbone=Backbone(width=32, heads=2, position_axes=2, causal=False)), "causal"),
        (lambda: DALLE(9, weights=(0.0, 0.0)), "weights"),
        (lambda: DALLE(9, drop=1.0), "drop"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        wrong()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(CODEC, quantizer=FSQ((4, 5))), "codes=20"),
        (replace(CODEC, size=16), "grid=4,4"),
        (replace(CODEC, nets=Pyramid((16,))), "grid=4,4"),
        (replace(CODEC, channels=1), "channels=1"),
        (replace(CODEC, quantizer=VAE()), "has no codes"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(other, words):
    with pytest.raises(ConfigError, match=words):
        TINY.build({"codec": Frozen(other.build({}))})


def test_a_ranker_of_other_words_is_refused():
    with pytest.raises(ConfigError, match="knows 18 words"):
        TINY.build({"ranker": Frozen(replace(TINY, vocab_size=18).build({}))})


def test_without_a_codec_the_error_names_the_command_that_makes_one():
    family = TINY.build({})
    for call in (lambda: drawn(family, pictures(2)), lambda: family.generate({"rows": 1}, Drawing())):
        with pytest.raises(ConfigError, match="nomoat train codec-small"):
            call()


def test_captions_and_guidance_that_cannot_be_are_refused():
    family, batch = dalle(drop=0.0), pictures(2)
    with pytest.raises(ConfigError, match=r"family\.drop=0\.1"):
        family.generate({"rows": 1}, Drawing(guidance=2.0))
    strange = {**batch, "caption": torch.full((2, 4), 17)}
    with pytest.raises(DataError, match="the model knows 17"):
        family.generate({name: strange[name] for name in ("caption", "caption_mask")}, Drawing())
    longer = {**batch, "caption": torch.zeros(2, 6).long(), "caption_mask": torch.ones(2, 6, dtype=torch.bool)}
    with pytest.raises(DataError, match="caption_length=6"):
        drawn(family, longer)
    padded = {**longer, "caption_mask": torch.arange(6).expand(2, -1) < 3}
    assert drawn(family, padded)["tokens"].shape == (2, 9), "longer padding is no matter"


@dataclass(frozen=True)
class Captioned:
    """Recipe data: the pictures above, forever."""

    def stream(self, family, batch_size, seed, start=0, rank=0, world=1):
        while True:
            yield pictures(batch_size)

    def held_out(self, family, batch_size, tokens):
        yield pictures(2)


def test_it_trains_over_the_run_of_a_codec_is_loaded_with_it_and_goes_on(runs_root):
    """The checkpoint holds no codec, only its name and hash; without it the run cannot be loaded."""
    first = Recipe("a codec", CODEC, Captioned(), "2steps", 4, precision="fp32")
    coded = Run.create(runs_root, "tiny-codec", first)
    train(first, coded)
    recipe = Recipe("a model", TINY, Captioned(), "6steps", 4, precision="fp32", parts={"codec": Ref("tiny-codec")})
    whole, halved = (Run.create(runs_root, name, recipe) for name in ("whole", "halved"))
    family = train(recipe, whole)
    assert not any("codec" in name for name in family.state_dict())
    assert whole.recipe.parts["codec"].run == coded.name and whole.recipe.parts["codec"].sha256
    stop_at(halved, 3)
    train(recipe, halved)
    halved.watch = None
    train(recipe, halved)
    same(whole, halved)
    loaded, held = load(whole.path), load(coded)
    assert all(torch.equal(t, held.state_dict()[n]) for n, t in loaded.codec.state_dict().items())
    prompts = {name: pictures(2)[name] for name in ("caption", "caption_mask")}
    drawing = Drawing(seed=1, guidance=2.0)
    assert torch.equal(loaded.generate(prompts, drawing)["image"], family.eval().generate(prompts, drawing)["image"])
    assert {"text_nats", "image_nats"} <= whole.metrics("evaluate")[-1].keys()
    pinned = replace(recipe, parts={"codec": Ref("tiny-codec", "0" * 64)})
    with pytest.raises(CheckpointError, match="no longer holds"):
        pinned.build()


@pytest.mark.parametrize(("name", "words"), [("codec-small", "`nomoat train codec-small` makes it"), ("x", "no run")])
def test_a_part_that_is_no_run_is_named_with_the_command_that_makes_it(name, words, runs_root):
    recipe = Recipe("a model", TINY, Captioned(), "6steps", 4, parts={"codec": Ref(name)})
    with pytest.raises(RunError, match=words):
        recipe.build()
    with pytest.raises(RunError, match=words):
        Run.create(runs_root, "never", recipe)
