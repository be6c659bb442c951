"""The gradient does not depend on how the batch is split; players are moved in turn; clipping and errors."""

import math
from dataclasses import replace

import pytest
import torch
from toys import Chain, TableConfig, recipe, seeded

from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Optimizer
from nomoat.train.launch import Group
from nomoat.train.mover import Mover, Settings, rows, rows_of, split
from nomoat.train.state import build

CPU = torch.device("cpu")


def mover_of(made, micro=8, precision="fp32", player="model", group=None, device=CPU):
    family = build(made, device)
    return Mover(family, player, made, Settings(device, precision, micro), group)


def batch_of(kind, rows_=8):
    batch = Chain().rows(0, range(rows_))
    return TableConfig(kind).build({}).draw(batch, seeded("draw"))


def gradient(mover, batch):
    """Sums of gradients and of counts, and the gradient after the one division."""
    sums, _ = mover.accumulate(batch, 0.5)
    grads = {name: p.grad / sums[1] for name, p in mover.family.parameters_of(mover.player) if p.grad is not None}
    mover.zero()
    return sums[0] / sums[1], grads


@pytest.mark.parametrize("kind", ["table", "noisy"])
def test_gradient_is_the_same_for_1x8_2x4_4x2_and_8x1(kind, device):
    made, batch = recipe(kind), batch_of(kind)
    assert len({int(count) for count in batch["mask"].sum(1)}) > 1, "counts that differ are what makes this hard"
    whole_loss, whole = gradient(mover_of(made, 8, device=device), batch)
    for micro in (4, 2, 1, 3):
        loss, parts = gradient(mover_of(made, micro, device=device), batch)
        assert loss.item() == pytest.approx(whole_loss.item(), rel=1e-6)
        for name, expected in whole.items():
            error = (parts[name] - expected).norm() / expected.norm().clamp(min=1e-12)
            assert error < 1e-6, (micro, name, error)


def test_gradient_is_that_of_the_mean_over_all_counted_tokens():
    made, batch = recipe(), batch_of("table")
    loss, found = gradient(mover_of(made, 2), batch)
    family = build(made, CPU)
    nats_BL, counted_BL = family.nats(batch), batch["mask"][:, 1:]
    mean = nats_BL[counted_BL].mean()
    mean.backward()
    assert loss.item() == pytest.approx(mean.item(), rel=1e-6)
    for name, parameter in family.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-8)


def test_a_step_is_the_same_however_the_batch_is_split():
    made = recipe(optimizer=Optimizer(clip=0.01))
    batch = batch_of("table")
    results = []
    for micro in (8, 4, 1):
        mover = mover_of(made, micro)
        moved = mover.move(batch, 0.3)
        assert moved.count == int(batch["mask"][:, 1:].sum())
        assert all(parameter.grad is None for parameter in mover.parameters)
        results.append((moved, [p.detach().clone() for p in mover.parameters]))
    for moved, weights in results[1:]:
        assert moved.loss == pytest.approx(results[0][0].loss, rel=1e-6)
        assert moved.gradient_norm == pytest.approx(results[0][0].gradient_norm, rel=1e-5)
        assert moved.parts == pytest.approx(results[0][0].parts)
        for one, other in zip(weights, results[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    batch = batch_of("table")
    seen = {}
    for clip in (0.0, 0.05):
        mover = mover_of(recipe(optimizer=Optimizer(kind="adamw", clip=clip)))
        mover.optimizer.step = lambda multiplier, scale, at=clip, of=mover: seen.update(
            {at: torch.cat([p.grad.flatten() for p in of.parameters]) * scale}
        )
        norm = mover.move(batch, 0.5).gradient_norm
    assert seen[0.0].norm() == pytest.approx(norm, rel=1e-5)
    assert norm > 0.05
    assert seen[0.05].norm() == pytest.approx(0.05, rel=1e-4)
    torch.testing.assert_close(seen[0.05] / seen[0.05].norm(), seen[0.0] / seen[0.0].norm())


def test_a_player_moves_only_its_own_parameters():
    made = recipe("pair")
    family = build(made, CPU)
    settings = Settings(CPU, "fp32", 3)
    movers = {player: Mover(family, player, made, settings) for player in family.players}
    batch = family.draw(batch_of("table"), seeded("z"))
    judge, maker = family.judge.weight.detach().clone(), family.maker.weight.detach().clone()
    movers["judge"].move(batch, 0.5)
    assert not torch.equal(family.judge.weight, judge)
    assert torch.equal(family.maker.weight, maker)
    judge = family.judge.weight.detach().clone()
    movers["maker"].move(batch, 0.5)
    assert torch.equal(family.judge.weight, judge)
    assert not torch.equal(family.maker.weight, maker)
    assert family.judge.weight.grad is None
    assert family.maker.weight.grad is None


def test_a_loss_that_couples_the_samples_is_never_split():
    made = recipe("coupled")
    mover = mover_of(made, micro=2)
    mover.move(batch_of("coupled"), 0.5)
    assert mover.family.sizes == [8]
    with pytest.raises(ConfigError, match="processes"):
        mover_of(made, group=Group(0, 2))


def test_a_loss_that_is_no_number_leaves_the_weights_alone():
    made = recipe("broken", family=TableConfig("broken", fails_at=0.5))
    mover = mover_of(made)
    mover.move(batch_of("table"), 0.1)
    before = [parameter.detach().clone() for parameter in mover.parameters]
    moved = mover.move(batch_of("table"), 0.9)
    assert not moved.finite
    assert math.isnan(moved.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, mover.parameters, strict=True))


def test_bf16_computes_in_bf16_and_learns_in_fp32():
    batch = batch_of("table")
    exact, rough = mover_of(recipe()), mover_of(recipe(), precision="bf16")
    first, second = exact.move(batch, 0.5), rough.move(batch, 0.5)
    assert first.loss != second.loss
    assert first.loss == pytest.approx(second.loss, rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in rough.parameters)


def test_an_empty_mask_moves_nothing_but_by_decay_and_divides_by_nothing():
    batch = batch_of("table")
    moved = mover_of(recipe()).move({**batch, "mask": torch.zeros_like(batch["mask"])}, 0.5)
    assert moved.finite
    assert moved.loss == 0.0


def test_rows_cut_all_that_has_a_row_each():
    batch = {
        "index": torch.arange(5),
        "tokens": torch.arange(10).view(5, 2),
        "image": [torch.zeros(number) for number in range(5)],
        "scale": torch.tensor(2.0),
        "table": torch.zeros(7, 3),
        "name": "whole",
    }
    assert rows_of(batch) == 5
    part = rows(batch, 1, 3)
    assert part["tokens"].tolist() == [[2, 3], [4, 5]]
    assert [len(image) for image in part["image"]] == [1, 2]
    assert part["scale"] == 2.0
    assert part["table"].shape == (7, 3)
    assert part["name"] == "whole"
    assert [len(piece["index"]) for piece in split(batch, 2)] == [2, 2, 1]


def test_processes_cut_the_batch_without_overlap_or_gap():
    made, batch = recipe(processes=1), batch_of("table")
    seen = []
    for rank in range(3):
        mover = mover_of(replace(made), group=Group(rank, 3))
        mover.family.loss = lambda piece, *rest, of=mover.family: (
            seen.extend(piece["index"].tolist()),
            type(of).loss(of, piece, *rest),
        )[1]
        mover._loss = mover.family.loss
        mover.accumulate(batch, 0.5)
    assert sorted(seen) == list(range(8))
