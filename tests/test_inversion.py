"""What is trained beside a picture model's weights: one word's vector, adapters, and the prior that is preserved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.config import from_json, to_json
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.data.rehearsal import Preserved
from nomoat.data.words import WordTokenizer
from nomoat.families.clip import CLIP
from nomoat.families.diffusion import Diffusion
from nomoat.families.lm import LM
from nomoat.nn.inversion import Inversion
from nomoat.nn.lora import LoRA

WORDS = WordTokenizer(["a", "circle", "red", "wug"])
TINY = replace(Diffusion.tiny(), vocab_size=WORDS.vocab_size, classes=0, embedding_width=0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(config=TINY):
    model = config.build({})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(model, text, rows=4):
    ids = torch.from_numpy(WORDS.encode(text).astype(np.int64)).expand(rows, -1)
    given = {**model.example(rows), "caption": ids, "caption_mask": torch.ones(ids.shape, dtype=torch.bool)}
    given = model.draw(given, torch.Generator().manual_seed(0))
    return {**given, "given": torch.ones(rows, dtype=torch.bool)} if "given" in given else given


def test_one_word_learns_and_all_else_stays():
    model = trained()
    others = batch(model, "a red circle")
    before = model.loss(others).total
    inverted = Inversion.of(WORDS, "wug", "circle").apply(model)
    assert inverted is model
    assert torch.equal(model.loss(others).total, before)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == ["told.caption.embed.learned"]
    assert model.role_of(learning[0], model.told.caption.embed.learned) == "embedding"
    as_circle = model.loss(batch(model, "a red wug")).total
    torch.testing.assert_close(as_circle, before, msg="it begins as the word that it is like")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(batch(model, "a red wug")).total
        loss.backward()
        optimizer.step()
    assert loss < as_circle
    assert torch.equal(model.loss(others).total, before), "the other words mean what they meant"
    assert set(model.kept()) == {"told.caption.embed.learned"}
    after = model.loss(batch(model, "a wug")).total
    merged = Inversion.merged(model)
    torch.testing.assert_close(merged.loss(batch(merged, "a wug")).total, after)
    assert not merged.shared and isinstance(merged.told.caption.embed, torch.nn.Embedding)
    fresh = TINY.build({})
    fresh.load_state_dict(merged.state_dict())


@pytest.mark.parametrize("adapt", [Inversion.of(WORDS, "wug"), LoRA(rank=2)])
def test_it_is_a_run_beside_its_base(adapt, tmp_path):
    base = Run.create(tmp_path, "base", Recipe("B.", TINY, None, Budget.parse("1steps"), 1))
    checkpoint.save(base.checkpoints, 1, {"weights": trained().kept()}, {"step": 1})
    recipe = Recipe("A.", TINY, None, Budget.parse("1steps"), 1, start=Ref(str(base.path)), adapt=adapt)
    assert from_json(to_json(recipe)) == recipe
    model = recipe.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    run = Run.create(tmp_path, "adapted", recipe)
    checkpoint.save(run.checkpoints, 1, {"weights": model.kept()}, {"step": 1})
    told = batch(model, "a wug")
    expected = model.loss(told).total
    assert not torch.equal(expected, load(base).loss(told).total)
    torch.testing.assert_close(load(run).loss(told).total, expected)
    torch.testing.assert_close(load(run, merged=True).loss(told).total, expected, rtol=1e-4, atol=1e-5)


def test_adapters_stand_in_a_denoiser_and_in_what_reads_its_captions():
    model = trained()
    before = model.loss(batch(model, "a red circle")).total
    LoRA(rank=2).apply(model)
    torch.testing.assert_close(model.loss(batch(model, "a red circle")).total, before)
    named = {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if p.requires_grad}
    layer = "trunk.stack.layers.1"
    parts = ("mixer.body.qkv", "mixer.body.out", "cross.body.out", "mlp.body.up", "mlp.body.down")
    assert {f"{layer}.{part}" for part in parts} <= named
    assert "told.caption.stack.layers.0.mixer.body.qkv" in named
    assert f"{layer}.cross.body.query" not in named, "only where it is asked for by name"
    other = trained()
    LoRA(rank=2, targets=("query", "kv", "linear")).apply(other)
    named = {name.rsplit(".", 1)[0] for name, p in other.named_parameters() if p.requires_grad}
    assert {f"{layer}.cross.body.query", f"{layer}.cross.body.kv", f"{layer}.mixer.cond.linear"} <= named


def test_a_word_that_cannot_be_learned_says_so():
    with pytest.raises(DataError, match="unknown words: dog"):
        Inversion.of(WORDS, "dog")
    with pytest.raises(ConfigError, match=r"no row 99.*5 words"):
        Inversion("far", 99).apply(trained())
    with pytest.raises(ConfigError, match="reads no captions"):
        Inversion("wug", 3).apply(LM.tiny().build({}))
    model = Inversion("wug", 3).apply(trained())
    with pytest.raises(ConfigError, match="adapted already"):
        Inversion("wug", 3).apply(model)


def test_clip_learns_a_word_too():
    model = replace(CLIP.tiny(), vocab_size=WORDS.vocab_size).build({})
    Inversion.of(WORDS, "wug").apply(model)
    told = model.example(2)
    told["caption"][:], told["caption_mask"][:] = WORDS.ids["wug"], True
    model.loss(told).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["words.embed.learned"]


# Prior preservation


class Numbered:
    """Recipe data whose sample i is the number i."""

    paths, size, caption_length, classes = ("here",), 8, 4, ("a",)

    def __init__(self, sign=1, length=4):
        self.sign, self.length = sign, length

    def sampler(self, seed):
        def read(index):
            number = torch.as_tensor(np.asarray(index)) * self.sign
            caption = torch.zeros(len(number), self.length, dtype=torch.long)
            own = {"only": number} if self.sign > 0 else {}
            return {"image": number, "caption": caption, "index": number, **own}

        return read

    def held_out(self, family, batch_size, tokens):
        yield {"image": torch.zeros(1)}

    def changed(self):
        return []

    def words(self):
        return WORDS


def test_a_share_of_the_rows_is_the_prior_and_all_of_both_is_seen():
    data = Preserved(Numbered(), (Numbered(-1),), share=0.5)
    stream = data.stream(None, 8, 0)
    first, second = next(stream), next(stream)
    assert first["index"].tolist() == list(range(8)) and second["index"].tolist() == list(range(8, 16))
    seen = torch.cat((first["image"], second["image"]))
    assert sorted(seen.abs().tolist()) == sorted([*range(8), *range(8)])
    assert "only" not in first, "what not all rows have is left out"
    later = next(data.stream(None, 8, 0, start=1))
    assert torch.equal(later["image"], second["image"])
    parts = [next(data.stream(None, 8, 0, rank=rank, world=2)) for rank in (0, 1)]
    assert torch.equal(torch.stack([p["image"] for p in parts], 1).flatten(), first["image"])
    assert (data.paths, data.size, data.caption_length, data.words()) == (("here",), 8, 4, WORDS)
    assert data.classes == () and data.changed() == []
    assert len(list(data.held_out(None, 4, 100))) == 1


def test_two_kinds_of_rows_say_so():
    with pytest.raises(DataError, match=r"`caption`.*4 and 6"):
        next(Preserved(Numbered(), (Numbered(-1, 6),), share=0.5).stream(None, 8, 0))
    with pytest.raises(ConfigError, match="share 0"):
        Preserved(Numbered(), (Numbered(),), share=0.0)
