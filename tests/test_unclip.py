"""unCLIP: the prior learns which embeddings a caption may have; the chain draws, varies and blends; it is a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nomoat.composing import compose
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.family import Frozen
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.data.embedded import Embedded
from nomoat.families.clip import CLIP
from nomoat.families.diffusion import Diffusion
from nomoat.families.unclip import Chain, Prior, UnCLIP, between, scaled
from nomoat.sampling.drawing import Drawing

TINY = Prior.tiny()
SEE = replace(CLIP.tiny(), width=8)
DRAW = Diffusion(8, 3, 4, Diffusion.tiny().trunk, embedding_width=8)
LARGER = Diffusion(16, 3, 8, Diffusion.tiny().trunk, upscale=2)
FEW = Drawing(steps=2)
NEVER = torch.Generator()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def part(config, parts=None):
    """A part with weights away from zero."""
    model = config.build(parts or {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Frozen(model)


@pytest.fixture
def parts():
    clip = part(SEE)
    return {"clip": clip, "prior": part(TINY, {"clip": clip}), "decoder": part(DRAW)}


def said(rows=3):
    return {"caption": torch.arange(rows * 6).view(rows, 6) % 16, "caption_mask": torch.ones(rows, 6).bool()}


def chain(parts):
    last = max((name for name in parts if name.startswith("upsampler")), default="decoder")
    return UnCLIP.of(parts["prior"].config, parts[last].config).build(parts)


# The prior


def test_it_learns_what_belongs_to_a_word_and_that_there_are_two_of_it():
    """Word 0: one of two embeddings at right angles; word 1: always a third one. All three are seen again."""
    places = scaled(torch.eye(8)[:3])
    model = replace(TINY, candidates=1, drop=0.0).build({})
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    rows = 32
    word = torch.arange(rows) % 2
    place = torch.where(word == 0, torch.arange(rows) // 2 % 2, 2)
    batch = {"caption": word[:, None].expand(-1, 6), "caption_mask": (torch.arange(6) < 1).expand(rows, -1)}
    batch |= {"embedding": places[place], "caption_embedding": torch.eye(8)[word]}
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(model.draw(batch, generator))
        (loss.total / loss.count).backward()
        optimizer.step()
    prompts = {name: batch[name] for name in ("caption", "caption_mask", "caption_embedding")}
    found = model.generate(prompts, Drawing(steps=12), NEVER)["embedding"]
    cosine = found @ places.T / 8
    nearest = cosine.argmax(1)
    assert cosine.amax(1).mean() > 0.9, "it draws one of them, not their mean"
    assert (nearest[word == 1] == 2).float().mean() > 0.9
    first = nearest[word == 0]
    assert (first != 2).float().mean() > 0.9 and 2 < (first == 0).sum() < 14


def test_an_embedding_has_mean_square_one_and_chance_of_its_own(parts):
    prior = parts["prior"]
    found = prior.generate(said(), FEW, NEVER)["embedding"]
    torch.testing.assert_close(found.square().mean(1), torch.ones(3))
    assert torch.equal(found, prior.generate(said(), FEW, NEVER)["embedding"])
    assert not torch.equal(found, prior.generate(said(), Drawing(steps=2, seed=1), NEVER)["embedding"])
    alone = {name: each[2:] for name, each in said().items()}
    last = prior.generate({**alone, "first": 2}, FEW, NEVER)["embedding"]
    torch.testing.assert_close(last, found[2:], rtol=1e-4, atol=1e-4)


def test_of_the_candidates_the_one_nearest_to_the_caption_is_kept(parts):
    prior, many = parts["prior"], replace(TINY, candidates=5)
    patient = many.build({"clip": parts["clip"]})
    patient.load_state_dict(prior.state_dict())
    told = scaled(parts["clip"].encode(said()))
    fit = [(model.generate(said(), FEW, NEVER)["embedding"] * told).sum(1) for model in (prior, patient)]
    assert (fit[1] >= fit[0] - 1e-5).all() and (fit[1] > fit[0] + 1e-3).any()
    asked = prior.generate(said(), replace(FEW, candidates=5), NEVER)["embedding"]
    torch.testing.assert_close((asked * told).sum(1), fit[1])


def test_guidance_leads_away_from_what_is_drawn_without_a_caption(parts):
    prior = parts["prior"]
    plain, none, strong = (
        prior.generate(said(), Drawing(steps=2, guidance=scale), NEVER)["embedding"] for scale in (1.0, 0.0, 3.0)
    )
    assert not torch.allclose(plain, strong, atol=1e-3)
    other = {**said(), "caption": said()["caption"].roll(1, 0)}
    ignored = prior.generate({**other, "caption_embedding": torch.randn(3, 8)}, Drawing(steps=2, guidance=0.0), NEVER)
    assert ignored["embedding"].shape == none.shape
    with pytest.raises(ConfigError, match="trained without"):
        replace(TINY, drop=0.0).build({}).generate(said(), Drawing(guidance=2), NEVER)


def test_a_hidden_caption_is_as_none(parts):
    prior, batch = parts["prior"], {**said(), "embedding": torch.randn(3, 8)}
    hidden = prior.conditions({**batch, "given": torch.zeros(3, dtype=torch.bool)})
    silent = prior.conditions({**batch, "caption_mask": torch.zeros(3, 6, dtype=torch.bool)})
    torch.testing.assert_close(hidden.cond_BD, silent.cond_BD)
    assert torch.equal(hidden.context_valid_BM, silent.context_valid_BM)


def test_pictures_and_captions_are_embedded_by_the_part(parts):
    prior, clip = parts["prior"], parts["clip"]
    batch = {**said(), "image": torch.randn(3, 3, 8, 8).clamp(-1, 1)}
    torch.testing.assert_close(prior.pictures(batch), math.sqrt(8) * clip.encode({"image": batch["image"]}))
    drawn = prior.draw(batch, torch.Generator().manual_seed(0))
    loss = prior.loss(drawn)
    assert loss.count == 3 and set(loss.parts) == {"cosine"}
    names = {name for name, _ in prior.named_parameters()}
    assert not any("clip" in name for name in names) and not any(p.requires_grad for p in clip.parameters())
    assert 0 < prior.chance(batch) < 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embedding_width": 0}, "embedding_width"),
        ({"vocab_size": 1}, "leaves no word"),
        ({"caption_length": 0}, "caption_length"),
        ({"drop": 1.0}, "no share"),
        ({"candidates": 0}, "candidates"),
        ({"stack": replace(TINY.stack, causal=True)}, "causal=false"),
    ],
)
def test_a_config_that_cannot_work_says_so(change, said):
    with pytest.raises(ConfigError, match=said):
        replace(TINY, **change)


def test_what_does_not_fit_says_so(parts):
    with pytest.raises(ConfigError, match=r"width=8.*embedding_width=9.*set family.embedding_width=8"):
        replace(TINY, embedding_width=9).build({"clip": parts["clip"]})
    with pytest.raises(ConfigError, match=r"set family.vocab_size=17"):
        replace(TINY, vocab_size=40).build({"clip": parts["clip"]})
    lonely = TINY.build({})
    with pytest.raises(ConfigError, match=r"no part `clip`.*train clip-small"):
        lonely.loss(lonely.draw({**said(), "image": torch.zeros(3, 3, 8, 8)}, NEVER))
    with pytest.raises(ConfigError, match="no caption"):
        lonely.generate({}, FEW, NEVER)


# The chain


def test_the_chain_draws_and_says_what_from(parts):
    whole = chain(parts)
    drawn = whole.generate(said(), FEW, NEVER)
    assert drawn["image"].shape == (3, 3, 8, 8) and drawn["embedding"].shape == (3, 8)
    expected = parts["prior"].generate(said(), FEW, NEVER)["embedding"]
    torch.testing.assert_close(drawn["embedding"], expected)
    again = whole.generate({"embedding": drawn["embedding"]}, FEW, NEVER)
    torch.testing.assert_close(again["image"], drawn["image"])
    assert list(whole.state_dict()) == ["place"] and not any(p.requires_grad for p in whole.parameters())


def test_guidance_is_for_whoever_was_taught_to_do_without(parts):
    strict = part(replace(DRAW, drop=0.0))
    strict.load_state_dict(parts["decoder"].state_dict())
    guided = Drawing(steps=2, guidance=3.0)
    drawn = chain({**parts, "decoder": strict}).generate(said(), guided, NEVER)
    expected = strict.generate({"embedding": drawn["embedding"]}, FEW, NEVER)
    torch.testing.assert_close(drawn["image"], expected["image"])


def test_upsamplers_follow(parts):
    whole = chain({**parts, "upsampler": part(LARGER)})
    assert whole.config.size == 16
    assert whole.generate(said(2), FEW, NEVER)["image"].shape == (2, 3, 16, 16)


def test_a_variation_is_drawn_from_the_embedding_of_a_picture(parts):
    whole, like = chain(parts), torch.randn(2, 3, 8, 8).clamp(-1, 1)
    found = whole.embedding({"like": like}, FEW, NEVER)
    torch.testing.assert_close(found, scaled(parts["clip"].encode({"image": like})))
    assert whole.generate({"like": like}, FEW, NEVER)["image"].shape == (2, 3, 8, 8)


def test_between_two_pictures_lie_others_with_the_same_noise(parts):
    whole = chain(parts)
    one, other = torch.randn(2, 3, 8, 8).clamp(-1, 1).split(1)
    prompts = {"like": one.expand(3, -1, -1, -1), "towards": other.expand(3, -1, -1, -1)}
    prompts["blend"] = torch.tensor([0.0, 0.5, 1.0])
    found = whole.embedding(prompts, FEW, NEVER)
    ends = scaled(parts["clip"].encode({"image": torch.cat((one, other))}))
    torch.testing.assert_close(found[[0, 2]], ends, rtol=1e-4, atol=1e-4)
    near = (found[1] @ ends.T) / 8
    assert near[0].item() == pytest.approx(near[1].item(), abs=1e-4)
    same = {**prompts, "blend": torch.zeros(3)}
    image = whole.generate(same, FEW, NEVER)["image"]
    torch.testing.assert_close(image[0], image[2], msg="rows differ by what is asked alone")


def test_a_text_difference_turns_an_embedding(parts):
    whole, clip, like = chain(parts), parts["clip"], torch.randn(2, 3, 8, 8).clamp(-1, 1)
    prompts = {"like": like, **said(2), "instead": said(2)["caption"].flip(0), "instead_mask": torch.ones(2, 6).bool()}
    still, some = (whole.embedding({**prompts, "blend": torch.full((2,), s)}, FEW, NEVER) for s in (0.0, 0.4))
    torch.testing.assert_close(still, scaled(clip.encode({"image": like})), rtol=1e-4, atol=1e-4)
    before = {"caption": prompts["instead"], "caption_mask": prompts["instead_mask"]}
    direction = clip.encode(said(2)) - clip.encode(before)
    assert ((some * direction).sum(1) > (still * direction).sum(1)).all()


def test_the_arc_keeps_its_length_and_ends_where_it_should():
    one, other = scaled(torch.randn(4, 8)), scaled(torch.randn(4, 8))
    for share in (0.0, 0.3, 1.0):
        on_it = between(one, other, torch.full((4,), share))
        torch.testing.assert_close(on_it.norm(dim=1), torch.full((4,), math.sqrt(8)))
    torch.testing.assert_close(between(one, other, torch.tensor([0.0, 1, 0, 1]))[1], other[1])
    torch.testing.assert_close(between(one, one, torch.full((4,), 0.5)), one)


def test_a_chain_of_parts_that_do_not_fit_says_so(parts):
    without = {name: each for name, each in parts.items() if name != "decoder"}
    with pytest.raises(ConfigError, match=r"no decoder.*nomoat compose"):
        UnCLIP(8, 17, 6).build(without)
    wide = part(replace(DRAW, embedding_width=4))
    with pytest.raises(ConfigError, match="reads embeddings of 4 numbers, the prior makes 8"):
        chain({**parts, "decoder": wide})
    with pytest.raises(ConfigError, match="its parts make it"):
        UnCLIP(64, 17, 6).build(parts)


# Runs


def run_of(root, name, family, parts=None, model=None, data=None):
    recipe = Recipe("A part.", family, data, Budget.parse("1steps"), 1, parts=parts or {})
    run = Run.create(root, name, recipe)
    model = model or family.build({})
    checkpoint.save(run.checkpoints, 1, {"weights": model.kept()}, {"step": 1})
    run.mark("done")
    return run


def test_the_chain_is_a_run_that_loads_with_all_its_parts(parts, tmp_path):
    clip = run_of(tmp_path, "see", SEE, model=parts["clip"]._part)
    ref = {"clip": Ref(str(clip.path))}
    prior = run_of(tmp_path, "prior", TINY, ref, parts["prior"]._part)
    prior.write_text("tokenizer.json", "{}")
    decoder = run_of(tmp_path, "draw", DRAW, model=parts["decoder"]._part)
    made = compose(prior, decoder, root=tmp_path)
    assert (made.path / "tokenizer.json").exists() and made.status == "done"
    assert all(each.sha256 for each in made.recipe.parts.values())
    loaded = load(made)
    assert isinstance(loaded, Chain)
    expected = chain(parts).generate(said(), FEW, NEVER)
    found = loaded.generate(said(), FEW, NEVER)
    torch.testing.assert_close(found["image"], expected["image"])
    assert loaded.to("cpu") is loaded
    with pytest.raises(ConfigError, match="is no prior"):
        compose(decoder, decoder, root=tmp_path)
    other = run_of(tmp_path, "other", SEE)
    foreign = run_of(tmp_path, "foreign", DRAW, data=Embedded("pictures", Ref(str(other.path))))
    with pytest.raises(ConfigError, match="space of its own"):
        compose(prior, foreign, root=tmp_path)
    own = run_of(tmp_path, "own", DRAW, data=Embedded("pictures", ref["clip"]))
    assert compose(prior, own, root=tmp_path).status == "done"


def test_a_prior_loads_with_its_part(parts, tmp_path):
    """Parts are whole though the model around them is first built hollow."""
    clip = run_of(tmp_path, "see", SEE, model=parts["clip"]._part)
    prior = run_of(tmp_path, "prior", TINY, {"clip": Ref(str(clip.path))}, parts["prior"]._part)
    loaded = load(prior)
    assert not any(p.is_meta for p in (*loaded.parameters(), *loaded.clip.parameters()))
    batch = {**said(), "image": torch.randn(3, 3, 8, 8).clamp(-1, 1)}
    torch.testing.assert_close(loaded.pictures(batch), parts["prior"].pictures(batch))


def test_data_comes_with_the_embedding_of_each_picture(parts, tmp_path):
    clip = run_of(tmp_path, "see", SEE, model=parts["clip"]._part)

    class Two:
        size, paths, classes, caption_length = 8, (), ("a",), 6

        def stream(self, *which):
            while True:
                yield {"image": torch.ones(2, 3, 8, 8)}

        held_out = stream

        def words(self):
            return "words"

        def changed(self):
            return ["it"]

    data = Embedded(Two(), Ref(str(clip.path)))
    for stream in (data.stream(None, 2, 0), data.held_out(None, 2, 100)):
        batch = next(stream)
        torch.testing.assert_close(batch["embedding"], parts["clip"].encode({"image": batch["image"]}))
        assert torch.is_grad_enabled() and not batch["embedding"].requires_grad
    assert (data.size, data.paths, data.classes, data.words(), data.changed()) == (8, (), ("a",), "words", ["it"])
