"""The planner: its law, its sizes, and a forecast on a small text."""

from __future__ import annotations

import math

import pytest

from nomoat.core.budget import Budget
from nomoat.data.files import Files
from nomoat.recipes.own_text import sized
from nomoat.train.law import LAW, Curve, curve_of
from nomoat.train.plan import Corpus, Estimate, batch_size, compare, forecast, too_small


def test_more_parameters_and_more_tokens_never_make_the_law_worse():
    unique = 3e6
    for parameters in (1e5, 1e6, 1e7):
        assert LAW.ratio(2 * parameters, 1e6, unique) < LAW.ratio(parameters, 1e6, unique)
        assert LAW.ratio(parameters, 2e6, unique) < LAW.ratio(parameters, 1e6, unique)


def test_repeated_tokens_are_worth_less_than_fresh_ones_and_never_less_than_nothing():
    unique = 1e6
    assert LAW.worth(5e5, unique) == 5e5
    worth = [LAW.worth(epochs * unique, unique) for epochs in (1, 2, 4, 16, 64, 1e6)]
    assert worth == sorted(worth)
    assert worth[1] < 2 * unique and worth[-1] == pytest.approx(unique * (1 + LAW.repeat))


def test_the_learning_curve_is_straight_between_its_points_in_logarithms():
    curve = Curve(((1000, 4.0), (4000, 2.0), (16000, 1.5)))
    assert [curve.at(tokens) for tokens in (1000, 4000, 16000)] == pytest.approx([4.0, 2.0, 1.5])
    assert curve.at(2000) == pytest.approx(4 / math.sqrt(2))
    assert curve.at(500) == pytest.approx(4 * math.sqrt(2)) and curve.at(64000) == pytest.approx(1.125)
    assert Curve(((1000, 4.0),)).at(5) == 4.0
    assert curve_of([]) is None


def test_how_sure_the_law_is_shrinks_beyond_the_runs_it_was_fitted_to():
    inside, beyond = LAW.within(1e6, 3e6), LAW.within(1e8, 1e9)
    assert inside == LAW.share and inside < beyond <= 0.5


def test_a_folder_read_too_often_is_told_in_one_sentence():
    assert too_small(19.9) == ""
    sentence = too_small(80)
    assert "80 times" in sentence and "4 times smaller" in sentence and sentence.count(". ") == 0


@pytest.mark.parametrize("tokens", [1e3, 2e6, 1e9, 1e13])
def test_batches_are_powers_of_two_and_grow_with_the_tokens(tokens):
    size = batch_size(tokens, 256)
    assert math.log2(size).is_integer() and size <= 256
    assert size <= batch_size(4 * tokens, 256)


def test_expected_and_actual_are_compared_where_both_are_known():
    expected = {"tokens": {"value": 100.0, "low": 90.0, "high": 110.0}, "warning": "", "other": {"value": 1.0}}
    assert list(compare(expected, {"tokens": 110.0, "unheard_of": 3.0})) == [
        ("tokens", 100.0, 110.0, pytest.approx(0.1))
    ]


def test_an_estimate_lies_within_its_bounds():
    estimate = Estimate.within(200.0, 0.05)
    assert (estimate.low, estimate.high) == (190.0, 210.0)


@pytest.mark.parametrize("budget", ["6steps", "30000tokens"])
def test_a_forecast_names_a_recipe_that_fits_the_budget(tmp_path, monkeypatch, budget):
    monkeypatch.setattr("nomoat.train.plan.WIDTHS", (64,))
    monkeypatch.setattr("nomoat.train.plan.MEASURED", (64, 128))
    monkeypatch.setattr("nomoat.train.plan.LEAST_SECONDS", 0.2)
    text = "".join(f"{number} is followed by {number + 1}.\n" for number in range(4000))
    (tmp_path / "numbers.txt").write_text(text)
    data = Files(str(tmp_path / "numbers.txt"), tokenizer="byte", context_length=32).prepare(tmp_path / "data")
    curve = Curve(((10_000, 2.0), (20_000, 1.5)))
    corpus = Corpus(data.open().tokens, len(text), 257, curve)
    found = forecast(corpus, lambda w, b, bud: sized(w, b, data, 257, bud), Budget.parse(budget), "cpu")
    assert found.recipe.family.backbone.width == 64
    bits = found.figures["held_out_bits_per_byte"]
    assert 0 < bits.low < bits.value < bits.high < 8
    tokens = found.figures["tokens"].value
    assert tokens == (30000 if budget.endswith("tokens") else 6 * found.recipe.batch_size * 32)
    assert found.parameters == sum(p.numel() for p in found.recipe.build().parameters())
    parameters, unique = found.parameters, corpus.tokens
    assert bits.value == pytest.approx(curve.at(min(tokens, unique)) * LAW.ratio(parameters, tokens, unique))
    assert {"threads", "precision", "kernel"} <= {name for name, _, _ in found.decisions}
    assert "width 64" in found.as_text() and found.expected["parameters"] == found.parameters
