"""Choosing the next token: cuts compose as in transformers, frequencies are the probabilities, chance is by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.sampling.tokens import HEAD, SamplingOptions, pick, probabilities

rows = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=7, max_size=7), min_size=1, max_size=4)
options = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def chi_squared(counts_V, p_V):
    """Pearson's statistic over the tokens that can occur, and its degrees of freedom."""
    assert counts_V[p_V == 0].sum() == 0
    possible = p_V > 0
    expected_V = p_V[possible] * counts_V.sum()
    return float(((counts_V[possible] - expected_V) ** 2 / expected_V).sum()), int(possible.sum()) - 1


@settings(max_examples=200, deadline=None)
@given(rows, options)
def test_rows_sum_to_one_and_the_most_likely_token_stays(logits, options):
    logits_BV = torch.tensor(logits)
    p_BV = probabilities(logits_BV, options)
    assert torch.allclose(p_BV.sum(1), torch.ones(len(logits)), atol=1e-5)
    assert (p_BV.gather(1, logits_BV.argmax(1, keepdim=True)) > 0).all()
    assert (p_BV >= 0).all()


@settings(max_examples=200, deadline=None)
@given(rows, options, st.permutations(range(7)))
def test_renumbering_the_vocabulary_changes_nothing(logits, options, order):
    logits_BV = torch.tensor(logits)
    if options.temperature == 0:  # a tie has no other rule than the lowest number
        logits_BV = logits_BV + torch.arange(7) * 1e-3
    renumbered = probabilities(logits_BV[:, order], options)
    assert torch.allclose(renumbered, probabilities(logits_BV, options)[:, order], atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(rows, options)
def test_what_a_cut_keeps_outweighs_what_it_drops(logits, options):
    logits_BV = torch.tensor(logits)
    for logit_V, p_V in zip(logits_BV, probabilities(logits_BV, options), strict=True):
        kept = p_V > 0
        if kept.any() and (~kept).any() and options.temperature > 0:
            assert logit_V[kept].min() >= logit_V[~kept].max()


def test_each_cut_by_hand():
    p_V = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    logits = p_V.log()
    assert probabilities(logits, SamplingOptions(top_k=2))[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, SamplingOptions(top_p=0.75))[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, SamplingOptions(top_p=0.76))[0].tolist() == pytest.approx([5 / 9, 5 / 18, 1 / 6, 0])
    assert probabilities(logits, SamplingOptions(min_p=0.3))[0].tolist() == pytest.approx([5 / 9, 5 / 18, 1 / 6, 0])
    assert probabilities(logits, SamplingOptions(temperature=0))[0].tolist() == [1, 0, 0, 0]
    squared = (p_V**2 / (p_V**2).sum())[0].tolist()
    assert probabilities(logits, SamplingOptions(temperature=0.5))[0].tolist() == pytest.approx(squared)
    # top-p counts within what top-k left: 0.5 of 0.75 is 0.667, which does not reach 0.7
    assert (probabilities(logits, SamplingOptions(top_k=2, top_p=0.7))[0] > 0).sum() == 2
    assert (probabilities(logits, SamplingOptions(top_k=2, top_p=0.6))[0] > 0).sum() == 1


def test_the_same_as_transformers():
    transformers = pytest.importorskip("transformers")
    logits_BV = torch.randn(6, 50, generator=seeded(0)) * 3
    for temperature, top_k, top_p, min_p in ((0.7, 20, 0.9, 0.02), (1.5, 5, 0.5, 0.1), (1.0, 49, 0.97, 0.001)):
        theirs = logits_BV
        for warper in (
            transformers.TemperatureLogitsWarper(temperature),
            transformers.TopKLogitsWarper(top_k),
            transformers.TopPLogitsWarper(top_p),
            transformers.MinPLogitsWarper(min_p),
        ):
            theirs = warper(None, theirs)
        ours = probabilities(logits_BV, SamplingOptions(temperature, top_k, top_p, min_p))
        assert torch.allclose(ours, theirs.softmax(1), atol=1e-6)


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(0.7, 5, 0.9, 0.05), SamplingOptions(2.0)])
def test_frequencies_are_the_probabilities(options):
    logits_1V = torch.randn(1, 12, generator=seeded(1)) * 2
    draws = pick(logits_1V.expand(40_000, -1), options, seeded(2))
    statistic, freedom = chi_squared(
        draws.bincount(minlength=12).double(), probabilities(logits_1V, options)[0].double()
    )
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_a_row_depends_on_its_own_chance_only():
    logits_BV = torch.randn(3, 30, generator=seeded(3))
    together = [pick(logits_BV, SamplingOptions(), [seeded(10 + row) for row in range(3)]) for _ in range(2)]
    assert torch.equal(*together)
    for row in range(3):
        alone = pick(logits_BV[row : row + 1], SamplingOptions(), [seeded(10 + row)])
        assert alone.item() == together[0][row].item()


def test_a_forbidden_token_is_never_drawn():
    logits_BV = torch.zeros(20_000, 4)
    logits_BV[:, 0] = logits_BV[:, 3] = -math.inf
    assert set(pick(logits_BV, SamplingOptions(), seeded(4)).tolist()) == {1, 2}
    assert set(pick(logits_BV, SamplingOptions(temperature=0), seeded(4)).tolist()) == {1}


def test_broken_logits_are_said_to_be_broken():
    for temperature in (0.0, 1.0):
        for logits in (torch.full((1, 3), math.nan), torch.full((1, 3), -math.inf)):
            with pytest.raises(NomoatError, match="diverged"):
                pick(logits, SamplingOptions(temperature), seeded(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": 2},
        {"top_k": -1},
        {"stop": "one string"},
        {"stop": ("",)},
        {"max_tokens": -1},
    ],
)
def test_impossible_options_are_refused_at_the_door(wrong):
    with pytest.raises(ConfigError):
        SamplingOptions(**wrong)


@pytest.mark.parametrize("width", [0.3, 3.0])
def test_a_long_vocabulary_is_cut_where_the_definition_cuts_it(width):
    logits_BV = width * torch.randn(3, 3 * HEAD, generator=torch.Generator().manual_seed(0))
    p_BV = (logits_BV / 0.8).softmax(1)
    falling_BV = p_BV.sort(1, descending=True).values
    kept_B = (falling_BV.cumsum(1) - falling_BV < 0.9).sum(1)
    assert torch.equal((probabilities(logits_BV, SamplingOptions(0.8, top_p=0.9)) > 0).sum(1), kept_B)
    assert (int(kept_B.max()) > HEAD) == (width < 1)
    assert (probabilities(logits_BV, SamplingOptions(0.8, top_k=700)) > 0).sum(1).tolist() == [700] * 3
