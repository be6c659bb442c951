"""The masked diffusion model and the filling of blanks: what is hidden, what it weighs, what is kept first."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.data.countdown import CountdownProblems
from nomoat.families.lm import LM
from nomoat.families.masked import Masked
from nomoat.games.countdown import Countdown
from nomoat.games.countdown_problems import problems
from nomoat.games.countdown_text import Notation
from nomoat.nn.backbone import Backbone
from nomoat.sampling.fill import Filling, fill
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write

TINY = Masked.tiny()


def masked(seed=0, move=0.3, **changes):
    torch.manual_seed(seed)
    family = replace(TINY, **changes).build({})
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(move * torch.randn(parameter.shape))
    return family


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompted(family, rows=6):
    """The first 4 tokens are a prompt; of the last row only one token is learned, of the one before none."""
    batch = family.example(rows)
    batch["mask"][:, :4] = False
    batch["mask"][-1, 5:] = False
    batch["mask"][-2] = False
    return batch


# the family


def test_prompts_are_never_hidden_and_every_share_is_as_likely():
    family = masked()
    batch = prompted(family, 200)
    counts = torch.zeros(6)
    for seed in range(5):
        drawn = family.draw(batch, seeded(seed))
        assert not (drawn["hidden"] & ~batch["mask"]).any()
        hidden_B = drawn["hidden"].sum(1)
        torch.testing.assert_close(drawn["time"], hidden_B / batch["mask"].sum(1).clamp(min=1))
        counts += torch.bincount(hidden_B[:198], minlength=6)
        assert hidden_B[-1] == 1 and hidden_B[-2] == 0
    assert counts[0] == 0 and (counts[1:] - 198).abs().max() <= 10, "spread evenly over a batch"
    place_L = torch.stack([family.draw(batch, seeded(seed))["hidden"][:198].float() for seed in range(20)]).mean((0, 1))
    torch.testing.assert_close(place_L[4:], torch.full((5,), 0.6), atol=0.05, rtol=0)


def test_the_first_token_of_a_row_is_never_learned():
    family = masked()
    drawn = family.draw(family.example(50), seeded())
    assert not drawn["hidden"][:, 0].any()
    assert family.loss(drawn).count == 50 * 8 and family.score(drawn).shape == (50, 8)


def nats_of(family, batch, hidden_BL):
    """Plainly: all logits, all nats."""
    documents = batch.get("document")
    x_BLD = family._read({**batch, "document": documents}, hidden_BL)
    return -family.output(x_BLD).log_softmax(-1).gather(2, batch["tokens"][..., None])[..., 0]


def test_the_loss_is_the_weighted_cross_entropy_of_what_is_hidden():
    family = masked()
    drawn = family.draw(prompted(family), seeded(3))
    nats_BL = nats_of(family, drawn, drawn["hidden"])
    weighted_BL = torch.where(drawn["hidden"], nats_BL / drawn["time"][:, None].clamp(min=0.01), 0.0)
    loss = family.loss(drawn)
    torch.testing.assert_close(loss.total, weighted_BL.sum())
    assert loss.count == drawn["mask"].sum() and torch.equal(loss.parts["nats"], loss.total.detach())
    torch.testing.assert_close(family.score(drawn), -weighted_BL[:, 1:])
    sharp = masked(focus=2.0).loss(drawn)
    torch.testing.assert_close(sharp.total, (weighted_BL * (1 - (-nats_BL).exp()) ** 2).sum())
    torch.testing.assert_close(sharp.parts["nats"], loss.total.detach())


def test_score_is_on_average_the_bound_over_all_that_can_be_hidden():
    """E over k of n and which: sum over k of (1 / k) times the mean over the sets of k of their summed nats."""
    family = masked()
    batch = family.example(1)
    batch["mask"][:, 1:5] = False
    learned = range(5, 9)
    bound = 0.0
    with torch.no_grad():
        for k in range(1, 5):
            chosen = list(combinations(learned, k))
            hidden_BL = torch.zeros(len(chosen), 9, dtype=torch.bool)
            for row, places in enumerate(chosen):
                hidden_BL[row, list(places)] = True
            nats_BL = nats_of(family, {"tokens": batch["tokens"].expand(len(chosen), -1)}, hidden_BL)
            bound += float((nats_BL * hidden_BL).sum(1).mean()) / k
        many = {name: value.expand(4000, -1) for name, value in batch.items()}
        sums_B, again_B = family.score(many).sum(1), family.score(many).sum(1)
    assert -bound == pytest.approx(sums_B.mean().item(), abs=4 * sums_B.std().item() / 4000**0.5)
    assert bound > 1 and torch.equal(again_B, sums_B), "the same chance every time"


def test_a_model_that_knows_nothing_has_the_nats_of_a_uniform_guess_in_every_draw():
    family = Masked.tiny().build({})
    drawn = family.draw(prompted(family), seeded())
    loss = family.loss(drawn)
    assert (loss.total / loss.count).item() == pytest.approx(math.log(17), rel=1e-5)
    assert family.first_loss(drawn) == pytest.approx(math.log(17), rel=1e-5)
    focused = replace(TINY, focus=1.0).build({})
    loss = focused.loss(drawn)
    assert (loss.total / loss.count).item() == pytest.approx(focused.first_loss(drawn), rel=1e-5)
    assert focused.first_loss(drawn) == pytest.approx(math.log(17) * 16 / 17, rel=1e-5)


def test_what_is_hidden_is_not_seen_and_prompts_are():
    family = masked()
    drawn = family.draw(prompted(family), seeded(1))
    before = nats_of(family, drawn, drawn["hidden"])
    other = {**drawn, "tokens": torch.where(drawn["hidden"], (drawn["tokens"] + 1) % 17, drawn["tokens"])}
    x_before, x_after = (family._read(each, drawn["hidden"]) for each in (drawn, other))
    assert torch.equal(x_before, x_after)
    other = {**drawn, "tokens": drawn["tokens"].clone()}
    other["tokens"][:, 2] = (other["tokens"][:, 2] + 1) % 17
    assert (nats_of(family, other, drawn["hidden"]) - before).abs()[:, 3:].min() > 1e-6


def test_documents_do_not_see_each_other_and_long_rows_are_refused():
    family = masked()
    drawn = family.draw({**family.example(2), "document": torch.tensor([[0] * 5 + [1] * 4, [0] * 9])}, seeded())
    other = {**drawn, "tokens": drawn["tokens"].clone()}
    other["tokens"][0, 5:] = (other["tokens"][0, 5:] + 1) % 17
    x_before, x_after = (family._read(each, torch.zeros_like(drawn["hidden"])) for each in (drawn, other))
    torch.testing.assert_close(x_before[0, :5], x_after[0, :5])
    assert not torch.allclose(x_before[0, 5:], x_after[0, 5:])
    with pytest.raises(ConfigError, match=r"family\.context_length=9"):
        family._read({"tokens": torch.zeros(1, 10, dtype=torch.long)}, torch.zeros(1, 10, dtype=torch.bool))


def test_what_cannot_be_is_refused():
    for wrong in ({"vocab_size": 1}, {"context_length": 0}, {"focus": -1.0}, {"backbone": Backbone()}):
        with pytest.raises(ConfigError):
            replace(TINY, **wrong)


def test_a_row_is_filled_the_same_whatever_stands_beside_it():
    family = masked()
    batch = prompted(family)
    for options in (Filling(), Filling(order="random", steps=2), Filling(temperature=0.0, order="margin")):
        whole = family.generate(batch, options)["tokens"]
        assert torch.equal(whole[~batch["mask"]], batch["tokens"][~batch["mask"]])
        assert (whole < 17).all()
        alone = family.generate({**{name: each[2:3] for name, each in batch.items()}, "first": 2}, options)["tokens"]
        assert torch.equal(alone, whole[2:3])
    drawn = [family.generate(batch, Filling(seed=seed))["tokens"] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# filling


def peaked(logits_LV):
    """A guess that is the same whatever is filled."""
    calls = []

    def guess(tokens_BL, open_BL):
        calls.append(open_BL.clone())
        return logits_LV.expand(len(tokens_BL), -1, -1)[open_BL]

    return guess, calls


SURE = torch.tensor([[9.0, 8.0, 0.0], [3.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 4.0, 0.0]])


@pytest.mark.parametrize(
    ("order", "block", "filled"),
    [
        ("confidence", 0, [2, 3, 1, 0]),
        ("margin", 0, [2, 3, 1, 0]),
        ("random", 1, [0, 1, 2, 3]),
        ("margin", 2, [1, 0, 2, 3]),
    ],
)
def test_places_are_kept_in_order(order, block, filled):
    guess, calls = peaked(SURE)
    open_BL = torch.ones(2, 4, dtype=torch.bool)
    open_BL[1, 2] = False
    tokens_BL = fill(guess, torch.full((2, 4), 2), open_BL, Filling(order=order, block=block, temperature=0.0))
    assert tokens_BL.tolist() == [[0, 0, 0, 1], [0, 0, 2, 1]]
    assert len(calls) == 4
    for step, opened in enumerate(calls):
        assert opened[0].nonzero()[:, 0].tolist() == sorted(filled[step:])


def test_confidence_is_of_the_token_drawn_and_margin_of_the_two_likeliest():
    logits = torch.tensor([[0.0, 0.0, -9.0, -9.0], [1.0, -1.0, -1.0, -1.0]])  # 0.50, 0.50 and 0.71, 0.10, 0.10, 0.10
    for order, first in (("confidence", {0, 1}), ("margin", {1})):
        seen = set()
        for seed in range(30):
            guess, calls = peaked(logits)
            fill(
                guess,
                torch.zeros(1, 2, dtype=torch.long),
                torch.ones(1, 2, dtype=torch.bool),
                Filling(order=order, seed=seed),
            )
            seen |= set(torch.nonzero(~calls[1][0])[:, 0].tolist())
        assert seen == first


@pytest.mark.parametrize(("steps", "shares"), [(1, [4]), (2, [2, 2]), (3, [2, 1, 1]), (0, [1] * 4), (9, [1] * 4)])
def test_each_step_fills_an_equal_share(steps, shares):
    guess, calls = peaked(SURE)
    open_BL = torch.ones(3, 4, dtype=torch.bool)
    fill(guess, torch.zeros(3, 4, dtype=torch.long), open_BL, Filling(steps=steps, order="random"))
    left = [*[int(opened[0].sum()) for opened in calls], 0]
    assert [before - after for before, after in pairwise(left)] == shares
    assert open_BL.all(), "what is given is left alone"
    assert torch.equal(fill(guess, torch.zeros(3, 4, dtype=torch.long), ~open_BL), torch.zeros(3, 4, dtype=torch.long))


def test_random_places_are_random_and_tokens_as_likely_as_guessed():
    rows = 3000
    guess, calls = peaked(torch.tensor([[math.log(0.7), math.log(0.3)]] * 2))
    zeros = torch.zeros(rows, 2, dtype=torch.long)
    tokens_BL = fill(guess, zeros, torch.ones(rows, 2, dtype=torch.bool), Filling(order="random"))
    assert calls[1].float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)
    assert tokens_BL.float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.04)
    cut = fill(guess, zeros[:200], torch.ones(200, 2, dtype=torch.bool), Filling(top_p=0.5))
    assert not cut.any()


def test_what_is_not_allowed_is_not_drawn():
    guess, _ = peaked(SURE)
    asked = []

    def allow(tokens_BL, open_BL):
        asked.append(tokens_BL.tolist())
        allowed_BLV = np.ones((1, 4, 3), dtype=bool)
        allowed_BLV[:, :, :2] = False
        return allowed_BLV

    open_BL = torch.ones(1, 4, dtype=torch.bool)
    given = torch.zeros(1, 4, dtype=torch.long)
    assert fill(guess, given, open_BL, Filling(block=1), allow).tolist() == [[2, 2, 2, 2]]
    assert asked == [[[2] * step + [0] * (4 - step)] for step in range(4)]
    with pytest.raises(NomoatError, match="forbidden"):
        fill(guess, given, open_BL, Filling(), lambda *_: np.zeros((1, 4, 3), dtype=bool))
    for wrong in ({"order": "rnd"}, {"steps": -1}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ConfigError):
            Filling(**wrong)


# countdown


@pytest.mark.parametrize("block", [1, 4])
def test_only_legal_lines_are_written_where_only_those_are_allowed(block):
    """Line by line, in whatever order within a line."""
    notation = Notation(Countdown(4))
    ids, opened = map(torch.from_numpy, notation.blank(problems(notation.game, "train", 0, np.arange(12)).state_B))

    def guess(tokens_BL, open_BL):
        return torch.zeros(int(open_BL.sum()), notation.vocab_size)

    options = Filling(order="random", block=block)
    assert notation.read(fill(guess, ids, opened, options).numpy()).fault_B.all()
    legal = notation.read(fill(guess, ids, opened, options, notation.allowed).numpy())
    assert not legal.fault_B.any() and (legal.state_B["count"] == 1).all()


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_tiny_models_learn_a_few_solutions(kind):
    """What each kind of model reads of a batch, and how each writes, fit together."""
    data = CountdownProblems(sizes=(3,), limit=100)
    notation = data.notations()[0]
    sizes = {"vocab_size": data.vocab_size, "context_length": data.context_length}
    backbone = Backbone(width=64, depth=2, heads=4, causal=kind == "causal")
    torch.manual_seed(0)
    family = {"causal": LM, "masked": Masked}[kind](**sizes, backbone=backbone).build({})
    batch = next(data.stream(family, 6, seed=0))
    optimizer = torch.optim.Adam(family.parameters(), lr=5e-3)
    copies, steps = (8, 120) if kind == "masked" else (1, 60)
    many = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in batch.items()}
    for step in range(steps):
        loss = family.loss(family.draw(many, seeded(step)))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    ids_BL = batch["tokens"].clone()
    ids_BL[:, notation.prompt_length :] = notation.eot
    if kind == "masked":
        ids_BL = family.generate({"tokens": ids_BL, "mask": batch["mask"]}, Filling(temperature=0.0))["tokens"]
    else:
        prompts = ids_BL[:, : notation.prompt_length].tolist()
        for written in write(family, prompts, SamplingOptions(temperature=0.0, max_tokens=12), context_length=19):
            prompts[written.row].append(written.token)
        ids_BL = torch.tensor(prompts)
    assert notation.read(ids_BL.numpy()).solved.mean() >= 5 / 6
