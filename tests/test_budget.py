"""Budgets: what can be written, what it buys, and that a budget of nothing is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.budget import UNITS, Budget
from nomoat.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("30m", "seconds", 1800),
        ("2h", "seconds", 7200),
        ("90s", "seconds", 90),
        ("1h30m", "seconds", 5400),
        ("1h 30m", "seconds", 5400),
        ("1.5h", "seconds", 5400),
        (" 10 minutes ", "seconds", 600),
        ("1 hour", "seconds", 3600),
        ("2d", "seconds", 172_800),
        ("5000steps", "steps", 5000),
        ("1 step", "steps", 1),
        ("5k steps", "steps", 5000),
        ("20Mtokens", "tokens", 20e6),
        ("1.5 Btokens", "tokens", 1.5e9),
        ("5_000tokens", "tokens", 5000),
        ("30Wh", "watt_hours", 30),
        ("1.2kWh", "watt_hours", 1200),
    ],
)
def test_what_can_be_written(text: str, unit: str, amount: float) -> None:
    budget = Budget.parse(text)
    assert (budget.unit, budget.amount, budget.text) == (unit, pytest.approx(amount), text.strip())
    assert budget.unit in UNITS


@pytest.mark.parametrize(
    ("text", "currency", "seconds"),
    [
        ("0.50EUR@0.12", "EUR", 15_000),
        ("$5@2.50", "USD", 7200),
        ("€0.5@0.5", "EUR", 3600),
        ("1 EUR @ 2 EUR/h", "EUR", 1800),
    ],
)
def test_money_buys_time_at_its_price(text: str, currency: str, seconds: float) -> None:
    budget = Budget.parse(text)
    assert (budget.unit, budget.currency, budget.seconds()) == ("money", currency, pytest.approx(seconds))


def test_the_price_and_the_watts_may_be_given_apart() -> None:
    assert Budget.parse("1EUR", price_per_hour=0.5).seconds() == 7200
    assert Budget.parse("30Wh", watts=60).seconds() == 1800
    assert Budget.parse("30m", price_per_hour=0.5, watts=60) == Budget.parse("30m")


def test_measured_power_is_preferred_to_what_was_stated() -> None:
    assert Budget.parse("30Wh@45").seconds() == 2400
    assert Budget.parse("30Wh@45").seconds(power_watts=90) == 1200


def test_steps_and_tokens_have_no_seconds() -> None:
    assert Budget.parse("5steps").seconds() is None
    assert Budget.parse("5tokens").seconds(100.0) is None


def test_money_without_a_price_and_energy_without_watts_say_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"price of an hour.*0\.50EUR@0\.12"):
        Budget.parse("0.50EUR")
    with pytest.raises(ConfigError, match=r"30Wh@45"):
        Budget.parse("30Wh").seconds()


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0m", "0steps", "-5m", "-3steps", "0.5steps", "0EUR@1", "1EUR@0", "30Wh@0", "30M", "30", "abc"),
        *("5 parsecs", "nan", "inf", "nan tokens", "1e99h", "m", "h30", "30m@4", "5steps@3", "1,5h", "1h30", "1EUR@x"),
        *("20mtokens", "9" * 400 + "h"),
    ],
)
def test_a_budget_of_nothing_or_no_meaning_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="30m") as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_a_clear_error(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except ConfigError:
        return
    assert budget.amount > 0


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_hours_minutes_and_seconds_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert Budget.parse(f"{hours}h{minutes}m{seconds}s").amount == hours * 3600 + minutes * 60 + seconds
