"""ControlNet: it begins as what it leads, learns to keep to a hint, and is measured by silhouettes and edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.family import Frozen
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.core.types import Ports
from nomoat.evaluate.control import agreement, border, edge_score, filled, followed, overlap, silhouette
from nomoat.families.control import Control, Hinted
from nomoat.nn.unet import UNet
from nomoat.sampling.drawing import Drawing

TINY = Control.tiny()
WITH_UNET = replace(TINY, base=replace(TINY.base, trunk=UNet(widths=(16, 32))))
NEVER = torch.Generator()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[TINY, WITH_UNET], ids=["transformer", "UNet"])
def model(request):
    return request.param.build({})


def drawn(model, rows=4):
    return model.draw(model.example(rows), torch.Generator().manual_seed(0))


def test_at_the_start_it_is_what_it_leads_to_the_bit(model):
    batch = drawn(model)
    x, t = torch.randn(4, 3, 8, 8), torch.tensor([1.0, 0.7, 0.4, 0.1])
    led = model.denoise(x, t, t, model.conditions(batch))
    assert torch.equal(led, model.base.denoise(x, t, t, model.base.conditions(batch)))
    assert led.abs().max() > 0.01, "what is led says something"
    assert torch.equal(model.loss(batch).total, model.base.loss(batch).total)


def test_it_begins_as_a_copy_of_the_first_half_and_leaves_the_rest(model):
    own, base = model.follower.copy.state_dict(), model.base.trunk
    held = dict((base.stack if model.config.base == TINY.base else base).named_parameters())
    assert len(own) > 10 and all(torch.equal(own[name], held[name]) for name in own)
    assert not any(name.startswith(("norm", "up", "last", "layers.2")) for name in own)
    assert not any(name.startswith("base") for name in model.state_dict())
    assert len(TINY.build({}).follower.outputs) == 2 and len(replace(TINY, layers=1).build({}).follower.outputs) == 1


def test_a_gradient_reaches_all_that_learns_after_one_step_and_nothing_else(model):
    before = [p.clone() for p in model.base.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        model.loss(drawn(model)).total.backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if step == 0:
            assert got == {name for name, _ in model.named_parameters() if name.startswith("follower.outputs")}
        optimizer.step()
    assert got == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(before, model.base.parameters(), strict=True))


def test_it_learns_to_follow_the_hint(model):
    """Pictures that are what the hint says: with it the loss falls below what it is with another's hint."""
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)

    def batch(rows, seed):
        chance = torch.Generator().manual_seed(seed)
        side = torch.randint(2, (rows,), generator=chance)
        hint = torch.zeros(rows, 1, 8, 8)
        for row, where in enumerate(side):
            hint[row, 0, :, 4 * where : 4 * where + 4] = 1
        given = {**model.example(rows), "hint": hint, "image": (1 - 2 * hint).expand(-1, 3, -1, -1)}
        return model.draw(given, generator)

    for step in range(60):
        optimizer.zero_grad()
        loss = model.loss(batch(8, step))
        (loss.total / loss.count).backward()
        optimizer.step()
    test = batch(16, 1000)
    test["t"] = test["r"] = torch.full((16,), 0.9)
    with torch.no_grad():
        right = model.loss(test).total.item()
        wrong = model.loss({**test, "hint": 1 - test["hint"]}).total.item()
        base = model.base.loss(test).total.item()
    assert right < 0.8 * wrong and right < 0.8 * base


def test_it_draws_under_guidance_with_a_hint_for_each_row(model):
    with torch.no_grad():
        for output in model.follower.outputs:
            output.weight.normal_(std=0.1)
    prompts = {**model.example(3)}
    prompts = {name: prompts[name] for name in ("caption", "caption_mask", "hint")}
    for guidance in (1.0, 3.0):
        image = model.generate(prompts, Drawing(steps=2, guidance=guidance), NEVER)["image"]
        assert image.shape == (3, 3, 8, 8)
        other = model.generate({**prompts, "hint": 1 - prompts["hint"]}, Drawing(steps=2, guidance=guidance), NEVER)
        assert not torch.allclose(image, other["image"])
    told, untold = (model.conditions({**prompts, "given": torch.full((3,), given)}) for given in (True, False))
    assert torch.equal(told.hint, untold.hint), "the hint is kept where the prompt is hidden"
    assert not torch.equal(told.base.ports.cond_BD, untold.base.ports.cond_BD)


def test_the_condition_of_some_rows_is_theirs(model):
    condition = model.conditions(model.example(4))
    some = condition.of(torch.tensor([2, 0]))
    assert isinstance(some, Hinted) and torch.equal(some.hint, condition.hint[[2, 0]])
    assert torch.equal(some.base.ports.cond_BD, condition.base.ports.cond_BD[[2, 0]])


def test_without_a_hint_the_frozen_model_answers(model):
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 0.5])
    assert torch.equal(model.denoise(x, t, t, Ports()), model.base.denoise(x, t, t, Ports()))


def test_a_part_is_led_whatever_the_config_says_of_it(model):
    base = Frozen(TINY.base.build({}))
    led = Control(hint_channels=2).build({"base": base})
    assert led.base is base and led.config.base == TINY.base
    assert (led.config.size, led.config.vocab_size, led.config.caption_length) == (8, 11, 5)
    assert led.example(2)["hint"].shape == (2, 2, 8, 8)


def test_it_is_a_run_that_loads_with_what_it_leads(tmp_path):
    with torch.no_grad():
        base = TINY.base.build({})
        for parameter in base.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    led = Control().build({"base": Frozen(base)})
    for output in led.follower.outputs:
        torch.nn.init.normal_(output.weight, std=0.1)
    runs = []
    for name, model, parts in (("base", base, {}), ("led", led, {"base": Ref(str(tmp_path / "base"))})):
        config = TINY.base if name == "base" else Control()
        recipe = Recipe("A run.", config, None, Budget.parse("1steps"), 1, parts=parts)
        runs.append(Run.create(tmp_path, name, recipe))
        checkpoint.save(runs[-1].checkpoints, 1, {"weights": model.kept()}, {"step": 1})
        (tmp_path / name).symlink_to(runs[-1].path)
    loaded, prompts = load(runs[1]), led.example(2)
    assert loaded.config.size == 8
    expected = led.generate(prompts, Drawing(steps=2), NEVER)["image"]
    assert torch.equal(loaded.generate(prompts, Drawing(steps=2), NEVER)["image"], expected)
    assert loaded.reads >= {"hint", "caption", "init"} and loaded.noise_shape == (3, 8, 8)


def test_what_cannot_be_led_says_so(model):
    with pytest.raises(ConfigError, match=r"name it: parts.base=RUN"):
        Control().build({})
    with pytest.raises(ConfigError, match=r"Control has no trunk to copy.*diffusion"):
        replace(TINY, base=TINY).build({})
    with pytest.raises(ConfigError, match="1 layers cannot be copied of a UNet"):
        replace(WITH_UNET, layers=1).build({})
    with pytest.raises(ConfigError, match="4 layers cannot be copied of 3"):
        replace(TINY, layers=4).build({})
    with pytest.raises(ConfigError, match="hint of 0 channels"):
        Control(hint_channels=0)
    for hint, said in (
        (torch.zeros(2, 1, 16, 16), "1 x 16 x 16, this model needs 1 x 8 x 8.*resize it to 8 x 8"),
        (torch.zeros(2, 3, 8, 8), "3 x 8 x 8, this model needs 1 x 8 x 8"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.generate({**model.example(2), "hint": hint}, Drawing(steps=1), NEVER)
    without = {name: each for name, each in model.example(2).items() if name != "hint"}
    with pytest.raises(ConfigError, match="no control picture"):
        model.generate(without, Drawing(steps=1), NEVER)


# How far pictures follow


def squares(places, size=16, side=6):
    mask = torch.zeros(len(places), size, size, dtype=torch.bool)
    for row, (y, x) in enumerate(places):
        mask[row, y : y + side, x : x + side] = True
    return mask


def painted(mask):
    """A dark square on a light ground, with some unevenness."""
    image = torch.where(mask[:, None], -0.6, 0.8).expand(-1, 3, -1, -1)
    return (image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def test_a_silhouette_is_what_is_not_background():
    mask = squares([(2, 3), (9, 9)])
    assert torch.equal(silhouette(painted(mask)), mask)
    assert not silhouette(torch.zeros(1, 3, 8, 8)).any()


def test_what_an_outline_encloses_is_inside_and_what_it_lets_in_is_not():
    ring, open_ring = squares([(4, 4)]), squares([(4, 4)])
    ring[:, 6:8, 6:8] = False  # white within
    assert torch.equal(silhouette(painted(ring)), squares([(4, 4)]))
    open_ring[:, 6, 6:] = False
    assert torch.equal(filled(open_ring), open_ring)
    assert agreement(painted(ring), squares([(4, 4)])[:, None].float(), "mask").item() == 1
    assert agreement(painted(ring), border(squares([(4, 4)]))[:, None].float(), "edges").item() == 1
    diagonal = torch.eye(8, dtype=torch.bool)[None] | torch.eye(8, dtype=torch.bool).flip(1)[None]
    assert torch.equal(filled(diagonal), diagonal), "the picture's edge lets in"


def test_overlap_by_hand():
    one, other = squares([(2, 2), (2, 2), (0, 0)]), squares([(2, 2), (2, 5), (10, 10)])
    # Moved by 3 of 6 columns: 18 pixels are common, 54 are covered by either.
    assert overlap(one, other).tolist() == pytest.approx([1, 18 / 54, 0])
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert overlap(empty, empty).item() == 1


def test_a_border_is_one_pixel_wide():
    mask = squares([(4, 4)])
    assert border(mask).sum() == 4 * 6 - 4
    whole = torch.ones(1, 4, 4, dtype=torch.bool)
    assert not border(whole).any(), "the picture's own edge is none"


def test_edges_may_lie_a_pixel_apart_and_no_more():
    true = border(squares([(4, 4)]))
    assert edge_score(true, true).item() == 1
    assert edge_score(border(squares([(4, 5)])), true).item() == 1
    apart = edge_score(border(squares([(4, 7)])), true).item()
    assert 0 < apart < 0.9
    assert edge_score(border(squares([(10, 10)], side=2)), true).item() < 0.5
    # A line of 4 of which 2 are right, and of the true line of 4 half is found.
    one, other = torch.zeros(1, 12, 12, dtype=torch.bool), torch.zeros(1, 12, 12, dtype=torch.bool)
    one[0, 2, 0:4] = True
    other[0, 2, 3:7] = True
    assert edge_score(one, other).item() == pytest.approx(0.5)
    none = torch.zeros_like(one)
    assert edge_score(none, none).item() == 1 and edge_score(none, one).item() == 0


@pytest.mark.parametrize("kind", ["mask", "edges"])
def test_who_follows_is_told_from_who_does_not(kind):
    mask = squares([(1, 1), (9, 9), (1, 9), (9, 1)])
    hint = (mask if kind == "mask" else border(mask))[:, None].float()

    class Follows:
        def generate(self, prompts, options, generator):
            return {"image": painted(silhouette(painted(prompts["hint"][:, 0] > 0.5)) if kind == "mask" else mask)}

    assert followed(Follows(), [{"hint": hint}], Drawing(), kind).true is None
    found = followed(Follows(), [{"hint": hint, "image": painted(mask)}], Drawing(), kind)
    assert found.true == 1 and "true pictures 1.000" in str(found)
    assert found.value == 1 and found.low == 1 and found.shuffled < 0.3 and found.count == 4
    assert "against the control pictures of others" in str(found)


def test_figures_that_cannot_be_say_so():
    with pytest.raises(ConfigError, match=r"no figure for `masks`.*did you mean `mask`"):
        followed(None, [], Drawing(), "masks")
    with pytest.raises(DataError, match="two samples"):
        followed(None, [{"hint": torch.zeros(1, 1, 8, 8)}], Drawing())
    with pytest.raises(DataError, match="no control picture"):
        followed(None, [], Drawing())


def test_a_soft_hint_counts_from_a_half_on():
    mask = squares([(4, 4)])
    soft = F.avg_pool2d(mask[:, None].float(), 1) * 0.7
    assert agreement(painted(mask), soft, "mask").item() == 1
