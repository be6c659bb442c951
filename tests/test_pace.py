"""Budgets of steps, tokens, time, money and energy: exact, in time, bent without a jump, replayed on resume."""

import functools
import threading
import time
from itertools import pairwise

import pytest
from test_loop import begun, stop_at
from toys import recipe

from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import schedule
from nomoat.train.budget import Pace, Plan, affordable, corrected_steps, counted_steps, timed_steps
from nomoat.train.loop import train
from nomoat.train.mover import Mover


def where_time_is_kept(test):
    """A budget of seconds is held against a clock: where the machine itself stood still, that shows nothing."""

    @functools.wraps(test)
    def watched(*arguments, **named):
        stood, over = [0.0], threading.Event()

        def look():
            while not over.is_set():
                began = time.perf_counter()
                time.sleep(0.005)
                stood[0] += max(0.0, time.perf_counter() - began - 0.01)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            test(*arguments, **named)
        except AssertionError:
            if stood[0] > 0.1:
                pytest.skip(f"the machine stood still for {stood[0]:.2f} seconds in all while this was timed")
            raise
        finally:
            over.set()
            watcher.join()

    return watched


def test_budgets_in_steps_and_tokens_are_exact(tmp_path):
    for text, steps in [("7steps", 7), ("640tokens", 10), ("700tokens", 10), ("3tokens", 1)]:
        made = recipe(budget=text)
        run = begun(tmp_path, made)
        train(made, run)
        assert len(run.metrics("step")) == steps
        assert run.metrics("step")[-1]["tokens"] <= 640


def slow_down(monkeypatch, seconds):
    """Every move takes at least `seconds()`."""
    real = Mover.move

    def move(self, *arguments):
        time.sleep(seconds())
        return real(self, *arguments)

    monkeypatch.setattr(Mover, "move", move)


@where_time_is_kept
def test_a_budget_in_time_ends_in_time(tmp_path, monkeypatch):
    slow_down(monkeypatch, lambda: 0.004)
    made = recipe(budget="2s")
    run = begun(tmp_path, made)
    began = time.perf_counter()
    train(made, run)
    taken = time.perf_counter() - began
    assert run.status == "done"
    assert 0.9 * 2 < taken < 1.1 * 2, taken
    first = run.decisions("steps")[0]
    assert first["step"] == 0
    assert "s a step (median of" in first["why"]
    assert run.metrics("step")[-1]["learning_rate"] < 0.1 * made.optimizer.learning_rate
    assert run.metrics("step")[-1]["seconds"] == pytest.approx(taken, abs=0.4)


@where_time_is_kept
def test_a_machine_that_slows_down_bends_the_plan_without_a_jump(tmp_path, monkeypatch):
    began = time.perf_counter()
    slow_down(monkeypatch, lambda: 0.003 if time.perf_counter() - began < 0.8 else 0.009)
    made = recipe(budget="3s")
    run = begun(tmp_path, made)
    began = time.perf_counter()
    train(made, run)
    taken = time.perf_counter() - began
    assert 0.85 * 3 < taken < 1.15 * 3, taken
    plans = run.decisions("steps")
    assert len(plans) > 2
    assert plans[-1]["value"] < 0.9 * plans[0]["value"]
    rates = [event["learning_rate"] for event in run.metrics("step")]
    jumps = [abs(a - b) for a, b in pairwise(rates[20:])]
    assert max(jumps) < 0.05 * made.optimizer.learning_rate
    plan = Plan.of(plans)
    assert plan.done(len(rates))


@where_time_is_kept
def test_resume_replays_the_bends_of_a_plan(tmp_path, monkeypatch):
    made = recipe(budget="100s")
    run = begun(tmp_path, made)
    for name, value, step in [("seconds", 100.0, 0), ("steps", 40, 0), ("steps", 20, 10), ("evaluate_every", 4, 0)]:
        run.decide(name, value, step, "decided before")
    monkeypatch.setattr("nomoat.train.training.corrected_steps", lambda plan, done, left, pace: (plan.steps, "stays"))
    stop_at(run, 7)
    train(made, run)
    run.watch = None
    train(made, run)
    events = run.metrics("step")
    assert len(events) == 20
    plan = Plan(((0, 40), (10, 20)))
    expected = [0.02 * schedule(plan.progress(step), made.optimizer) for step in range(20)]
    assert [event["learning_rate"] for event in events] == pytest.approx(expected)


@where_time_is_kept
def test_time_goes_on_from_the_checkpoint(tmp_path, monkeypatch):
    slow_down(monkeypatch, lambda: 0.002)
    made = recipe(budget="100000steps", keep_every_seconds=0.1)
    run = begun(tmp_path, made)
    stop_at(run, 100)
    train(made, run)
    seconds = checkpoint.state(checkpoint.latest(run.checkpoints).path)["seconds"]
    assert seconds > 0.2
    stop_at(run, 101)
    train(made, run)
    assert run.metrics("step")[-1]["seconds"] > seconds


def test_energy_without_meter_or_watts_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("nomoat.core.energy.meter", lambda: None)
    made = recipe(budget="30Wh")
    run = begun(tmp_path, made)
    with pytest.raises(ConfigError, match="what this machine draws"):
        train(made, run)
    assert run.status == "failed"


@where_time_is_kept
def test_money_and_stated_watts_buy_time(tmp_path, monkeypatch):
    slow_down(monkeypatch, lambda: 0.002)
    for text in ("0.0005EUR@3.6", "0.005Wh@36"):  # half a second each
        made = recipe(budget=text)
        run = begun(tmp_path, made)
        began = time.perf_counter()
        train(made, run)
        assert run.decided("seconds") == pytest.approx(0.5)
        assert time.perf_counter() - began == pytest.approx(0.5, abs=0.25)


class Meter:
    """Draws 50 W."""

    def watts(self):
        return 50.0

    def watt_hours(self):
        return 0.25


@where_time_is_kept
def test_measured_watts_are_preferred_to_stated_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("nomoat.core.energy.meter", Meter)
    monkeypatch.setattr("nomoat.train.start.METER_SECONDS", 0.1)
    slow_down(monkeypatch, lambda: 0.002)
    made = recipe(budget="0.00694444Wh@1000")
    run = begun(tmp_path, made)
    train(made, run)
    assert run.decided("seconds") == pytest.approx(0.5, rel=1e-3)
    assert run.metrics("keep")[-1]["watt_hours"] == 0.25
    assert checkpoint.state(checkpoint.latest(run.checkpoints).path)["watt_hours"] == 0.25
    assert "50.0 W as measured" in run.decisions("seconds")[0]["why"]


def test_plan_counts_progress_in_the_middle_of_a_step_and_bends_without_a_jump():
    plan = Plan(((0, 100),))
    assert plan.progress(0) == pytest.approx(0.005)
    assert plan.progress(99) == pytest.approx(0.995)
    assert plan.reached(100) == pytest.approx(1.0)
    bent = plan.bend(50, 75)
    assert bent.progress(49) == plan.progress(49)
    assert bent.reached(50) == pytest.approx(0.5)
    assert bent.progress(50) == pytest.approx(0.51)
    assert bent.progress(74) == pytest.approx(0.99)
    assert bent.done(75)
    assert not bent.done(74)
    twice = bent.bend(60, 120)
    assert twice.reached(60) == pytest.approx(bent.reached(60))
    assert twice.reached(120) == pytest.approx(1.0)
    assert plan.bend(50, 10).done(50)
    assert [step for step in range(1, 101) if plan.mark(step)] == [3, 10, 20, 35, 50, 65, 80, 90, 96]


def test_evaluations_take_a_twentieth_of_the_run():
    assert affordable(1000.0, 0.01, 32) == (20, 32)
    assert affordable(1000.0, 0.25, 32) == (20, 10)
    assert affordable(1000.0, 0.8, 32) == (5, 12)
    assert affordable(10.0, 5.0, 32) == (5, 1)


def test_steps_for_a_budget():
    assert counted_steps(Budget.parse("5000steps"), 10)[0] == 5000
    assert counted_steps(Budget.parse("20Mtokens"), 4096)[0] == 20_000_000 // 4096
    assert counted_steps(Budget.parse("30m"), 4096) is None
    pace = Pace(0.1, 0.09, 0.2, 20, evaluation=1.0, saving=0.5)
    steps, why = timed_steps(100.0, 5.0, pace, saves=5, evaluations=10)
    assert steps == int((100 - 5 - 2 - 10 - 6 * 0.5) / 0.1)
    assert "median of 20" in why
    assert timed_steps(1.0, 5.0, pace, 0, 0)[0] == 1
    assert corrected_steps(Plan(((0, 100),)), 50, 10.0, 0.4)[0] == 75
    assert corrected_steps(Plan(((0, 100),)), 50, -10.0, 0.4)[0] == 50
