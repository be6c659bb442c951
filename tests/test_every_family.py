"""What every family promises, checked on each file of `families/` that the folder listing finds."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nomoat.families
from nomoat.core.family import ROLES, Family
from nomoat.core.recipe import find, listing
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

FOLDER = Path(nomoat.families.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def configs(name):
    """The frozen config classes of a family's file: those with `tiny`."""
    module = import_module(f"nomoat.families.{name}")
    found = [v for v in vars(module).values() if hasattr(v, "tiny") and getattr(v, "__module__", "") == module.__name__]
    assert found, f"families/{name}.py has no config with `tiny()`"
    return found


def shrunk(config):
    """A recipe's family with its choices kept and its sizes made tiny."""
    backbone = config.backbone
    small = replace(
        backbone,
        width=32,
        depth=len(backbone.pattern) if isinstance(backbone.mixers, tuple) else 2,
        heads=2,
        mlp_width=None,
        positions_length=min(backbone.positions_length, 8),
        mamba=replace(backbone.mamba, state_width=8, head_width=16, chunk=4),
    )
    return replace(config, vocab_size=17, context_length=8, backbone=small)


def smaller(config):
    """The same of a family of pictures with a trunk."""
    if isinstance(config.trunk, Backbone):
        trunk = replace(config.trunk, width=32, depth=2, heads=2)
    else:
        trunk = replace(config.trunk, widths=(16, 32), heads=2)
    return replace(config, size=8, patch=4, trunk=trunk, vocab_size=17, caption_length=5, caption_depth=1)


TINY = [pytest.param(config.tiny(), id=f"{name}.{config.__name__}") for name in NAMES for config in configs(name)]
CHOICES = {
    (mixers, dialect): pytest.param(shrunk(recipe.family), id=listed.name)
    for listed in listing()
    if isinstance((recipe := find(listed.name)).family, LM)
    for mixers, dialect in [(recipe.family.backbone.mixers, recipe.family.backbone.dialect)]
}

PICTURES = [
    pytest.param(smaller(recipe.family), id=listed.name)
    for listed in listing()
    if hasattr((recipe := find(listed.name)).family, "caption_length") and hasattr(recipe.family, "trunk")
]


@pytest.fixture(params=[*TINY, *CHOICES.values(), *PICTURES])
def family(request) -> Family:
    torch.manual_seed(0)
    return request.param.build({})


def skip_if_claimed(family, check):
    if check in family.claims:
        pytest.skip(family.claims[check])


def mean_loss(family, batch, player):
    loss = family.loss(batch, player)
    return loss.total / loss.count


def gradients(family, batches, player):
    family.zero_grad()
    losses = [family.loss(batch, player) for batch in batches]
    (sum(loss.total for loss in losses) / sum(loss.count for loss in losses)).backward()
    return {name: p.grad.clone() for name, p in family.parameters_of(player) if p.grad is not None}


def drawn(family, batch, seed=0):
    return family.draw(batch, torch.Generator().manual_seed(seed))


def split(batch, pieces):
    size = len(next(iter(batch.values()))) // pieces
    return [{k: v[i * size : (i + 1) * size] for k, v in batch.items()} for i in range(pieces)]


def moved(family):
    """Zero-initialised outputs hide what lies behind them: move every parameter a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return family


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_it_is(name):
    text = import_module(f"nomoat.families.{name}").__doc__
    assert "->" in text, "the first docstring shows the tensors' way"
    assert any(str(year) in text for year in range(1985, 2030)), "the first docstring names its source"


def test_every_parameter_belongs_to_one_player_and_moves(family):
    seen = [id(p) for player in family.players for _, p in family.parameters_of(player)]
    assert sorted(seen) == sorted(id(p) for p in family.parameters())
    moved(family)
    for player in family.players:
        grads = gradients(family, [drawn(family, family.example(4))], player)
        for name, parameter in family.parameters_of(player):
            assert name in grads, f"{name} gets no gradient"
            assert torch.isfinite(grads[name]).all() and grads[name].abs().sum() > 0, name
            assert family.role_of(name, parameter) in ROLES


def test_the_first_loss_is_the_analytic_one(family):
    skip_if_claimed(family, "first_loss")
    batch = drawn(family, family.example(16))
    assert mean_loss(family, batch, family.players[0]).item() == pytest.approx(family.first_loss(batch), rel=0.05)


def test_it_overfits_one_batch(family):
    skip_if_claimed(family, "overfits")
    batch = drawn(family, family.example(2))
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-2)
    first = mean_loss(family, batch, family.players[0]).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = mean_loss(family, batch, family.players[0])
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 10


def test_the_gradient_does_not_depend_on_the_split(family):
    if not family.splittable:
        pytest.skip("couples its samples")
    moved(family)
    batch = drawn(family, family.example(8))
    if "mask" in batch:
        batch["mask"][3, 4:] = False  # uneven counts are what breaks a mean of means
    for player in family.players:
        whole = gradients(family, [batch], player)
        for pieces in (2, 4, 8):
            parts = gradients(family, split(batch, pieces), player)
            for name, grad in whole.items():
                torch.testing.assert_close(parts[name], grad, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_draw_and_loss(family):
    batch = family.example(4)
    losses = [mean_loss(family, drawn(family, copy.deepcopy(batch)), family.players[0]).item() for _ in range(2)]
    assert losses[0] == losses[1]


def test_saved_and_loaded_it_gives_the_same_output(family, tmp_path):
    moved(family)
    batch = drawn(family, family.example(2))
    save_file({k: v.clone() for k, v in family.state_dict().items()}, tmp_path / "weights.safetensors")
    other = type(family)(family.config)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(mean_loss(family, batch, family.players[0]), mean_loss(other, batch, family.players[0]))


def test_it_uses_its_input(family):
    """Text: on a chain of two symbols that mostly repeat, it must beat the entropy of single symbols (1 bit)."""
    skip_if_claimed(family, "uses_input")
    batch = family.example(32)
    if "tokens" not in batch:
        pytest.skip("reads no tokens; its own test shuffles the condition")
    generator = torch.Generator().manual_seed(0)
    flips = torch.rand(batch["tokens"].shape, generator=generator) < 0.1
    batch["tokens"] = flips.cumsum(1) % 2
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = mean_loss(family, drawn(family, batch), family.players[0])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.55, "the entropy of the chain is 0.33 nats, that of single symbols 0.69"


def test_no_token_sees_what_comes_after_it(family):
    if not hasattr(family, "decode"):
        pytest.skip("does not decode")
    moved(family)
    batch = family.example(2)
    length = batch["tokens"].shape[1] - 1
    before = family.score(batch)
    for place in range(1, length):
        other = copy.deepcopy(batch)
        other["tokens"][:, place + 1] = (other["tokens"][:, place + 1] + 1) % family.config.vocab_size
        torch.testing.assert_close(family.score(other)[:, :place], before[:, :place], rtol=0, atol=1e-6)


def test_decoding_with_memory_equals_reading_at_once(family):
    if not hasattr(family, "decode"):
        pytest.skip("does not decode")
    moved(family).eval()
    batch = family.example(2)
    tokens_BL = batch["tokens"]
    length = tokens_BL.shape[1] - 1
    with torch.no_grad():
        expected_BL = family.score(batch)
        memory = family.memory(2, length + 1)
        for slot in (0, 1):
            memory.reserve(slot, length + 1)
        family.begin(batch, memory, [0, 1])
        pieces = [family.decode(tokens_BL[:, :3], memory, [0, 1])]
        pieces += [family.decode(tokens_BL[:, i : i + 1], memory, [0, 1]) for i in range(3, length)]
        logp_BLV = torch.cat(pieces, 1).log_softmax(-1)
    actual_BL = logp_BLV.gather(2, tokens_BL[:, 1:, None])[..., 0]
    torch.testing.assert_close(actual_BL, expected_BL, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        memory = family.memory(2, length)
        family.begin(batch, memory, [0, 1])
        lone_B1V = family.decode(tokens_BL[:, :length], memory, [0, 1], last=True)
    assert lone_B1V.shape[1] == 1, "the last position alone is asked for"
    torch.testing.assert_close(lone_B1V.log_softmax(-1)[:, 0], logp_BLV[:, -1], rtol=1e-4, atol=1e-4)
