"""The loop from end to end on toys: what a run holds, exact resume, budgets, Ctrl-C, errors that lose nothing."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import Chain, TableConfig, recipe

from nomoat.core import checkpoint, durable
from nomoat.core.errors import CheckpointError, ConfigError, RunError
from nomoat.core.run import Run, load
from nomoat.train.loop import train

QUIET = ("time", "seconds", "tokens_per_second", "seconds_left", "seconds_to_save")


def begun(tmp_path, made, name="toy"):
    return Run.create(tmp_path, name, made)


def weights(run, group="weights"):
    return checkpoint.read(checkpoint.latest(run.checkpoints).path, group)


def same(one, other):
    """Every group of the last checkpoint equal bit for bit."""
    for group in checkpoint.groups(checkpoint.latest(one.checkpoints).path):
        first, second = weights(one, group), weights(other, group)
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), (group, name)


def told(run, kind):
    """Events without what depends on a clock."""
    return [{name: value for name, value in event.items() if name not in QUIET} for event in run.metrics(kind)]


def stop_at(run, step, number=signal.SIGINT):
    asked = []

    def watch(event):
        if event["kind"] == "step" and event["step"] == step and not asked:
            asked.append(True)
            signal.raise_signal(number)

    run.watch = watch


def test_a_run_holds_all_that_came_of_it(tmp_path):
    made = recipe(budget="40steps")
    run = begun(tmp_path, made)
    family = train(made, run)
    assert run.status == "done"
    steps = run.metrics("step")
    assert [event["step"] for event in steps] == list(range(1, 41))
    assert {event["steps"] for event in steps} == {40}
    assert steps[-1]["tokens"] == 40 * 8 * 8
    assert steps[-1]["training_loss"] < 1.0 < 2.2 < steps[0]["training_loss"]
    assert 0 < steps[-1]["learning_rate"] < steps[15]["learning_rate"] == made.optimizer.learning_rate
    assert all(event["gradient_norm"] > 0 and "loss" not in event for event in steps)
    held_out = run.metrics("evaluate")
    assert [event["step"] for event in held_out] == [8, 16, 24, 32, 40]  # all of them for a twentieth of the run
    assert held_out[-1]["loss"] < 1.0
    assert held_out[-1]["bits_per_byte"] == pytest.approx(held_out[-1]["loss"] / 0.693147, rel=1e-5)
    assert [event["step"] for event in run.metrics("keep")] == [40]
    names = {decision["name"] for decision in run.decisions()}
    assert {"threads", "precision", "muon_dtype", "micro_batch", "steps", "evaluate_every"} <= names
    assert all(decision["why"] for decision in run.decisions())
    assert not family.training
    loaded = load(run)
    batch = Chain().rows(1, range(4))
    assert torch.equal(loaded.nats(batch), family.nats(batch))
    assert loaded.seen == 40


def test_the_same_recipe_gives_the_same_bits(tmp_path):
    made = recipe("noisy", ema=0.9)
    runs = [begun(tmp_path, made) for _ in range(2)]
    for run in runs:
        train(made, run)
    same(*runs)
    assert told(runs[0], "step") == told(runs[1], "step")
    other = begun(tmp_path, replace(made, seed=1))
    train(other.recipe, other)
    assert not torch.equal(weights(other)["embed.weight"], weights(runs[0])["embed.weight"])


@pytest.mark.parametrize("kind", ["table", "noisy", "pair"])
def test_resume_is_bit_equal_at_every_point(tmp_path, kind):
    made = recipe(kind, budget="9steps", ema=0.9)
    whole = begun(tmp_path, made)
    train(made, whole)
    for point in range(1, 9):
        run = begun(tmp_path, made)
        stop_at(run, point)
        train(made, run)
        assert run.status == "stopped"
        assert checkpoint.latest(run.checkpoints).step == point
        run = Run.open(run.path)  # as another process would
        train(run.recipe, run)
        assert run.status == "done"
        same(whole, run)
        assert told(run, "step") == told(whole, "step")
        assert told(run, "evaluate") == told(whole, "evaluate")
        assert [(d["name"], d["value"]) for d in run.decisions()] == [
            (d["name"], d["value"]) for d in whole.decisions()
        ]


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    made = recipe()
    run = begun(tmp_path, made)
    first = train(made, run)
    before = (run.path / "checkpoints" / "step-12" / "manifest.json").read_bytes()
    second = train(made, run)
    assert (run.path / "checkpoints" / "step-12" / "manifest.json").read_bytes() == before
    assert len(run.metrics("step")) == 12
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_resume_falls_back_past_a_damaged_checkpoint_and_says_so(tmp_path):
    made = recipe(keep_every_seconds=0.0)
    whole = begun(tmp_path, recipe())
    train(whole.recipe, whole)
    run = begun(tmp_path, made)
    stop_at(run, 7)
    train(made, run)
    newest = run.checkpoints / "step-7" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    run = Run.open(run.path)
    train(run.recipe, run)
    assert any("step-7 is damaged" in event["text"] for event in run.metrics("warning"))
    assert [event["step"] for event in run.metrics("step")] == list(range(1, 13))
    same(whole, run)


def test_resume_never_measures_again(tmp_path, monkeypatch):
    made = recipe(precision="auto")
    run = begun(tmp_path, made)
    stop_at(run, 4)
    train(made, run)
    for name in ("_precision", "_muon_dtype", "_micro_batch", "measure"):
        monkeypatch.setattr(f"nomoat.train.start.{name}", lambda *rest: pytest.fail("measured again"))
    run.watch = None
    train(made, run)
    assert run.status == "done"


def test_changed_data_is_refused_with_what_changed(tmp_path):
    made = recipe()
    run = begun(tmp_path, made)
    stop_at(run, 3)
    train(made, run)
    changed = replace(made, data=Chain(moved=("notes.txt is gone", "a.md has grown")))
    with pytest.raises(RunError, match=r"data .* has changed.*notes\.txt is gone; a\.md has grown.*begin a new run"):
        train(changed, run)
    assert checkpoint.latest(run.checkpoints).step == 3
    train(made, run)
    assert run.status == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_leaves_a_good_checkpoint(tmp_path, number):
    made = recipe(budget="1000steps")
    run = begun(tmp_path, made)
    before = signal.getsignal(number)
    stop_at(run, 5, number)
    train(made, run)
    assert run.status == "stopped"
    assert checkpoint.latest(run.checkpoints).step == 5
    assert len(run.metrics("step")) == 5
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_ends_at_once(tmp_path):
    made = recipe(budget="1000steps")
    run = begun(tmp_path, made)

    def twice(event):
        if event["kind"] == "step" and event["step"] == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    run.watch = twice
    with pytest.raises(KeyboardInterrupt):
        train(made, run)
    assert run.status == "stopped"
    with run.lock():
        pass  # nobody holds it


def test_two_trainings_of_one_run_are_refused(tmp_path):
    made = recipe()
    run = begun(tmp_path, made)
    with run.lock(), pytest.raises(RunError, match=str(os.getpid())):
        train(made, Run.open(run.path))
    assert not run.metrics()


@pytest.mark.parametrize("nth", range(0, 12, 2))
def test_a_full_disk_while_keeping_loses_nothing(tmp_path, monkeypatch, nth):
    made = recipe(keep_every_seconds=0.0)
    whole = begun(tmp_path, made)
    train(made, whole)
    run = begun(tmp_path, made)
    real, calls = os.write, []

    def write(handle, data):
        if (checkpoint.latest(run.checkpoints) or replace_step()).step >= 4 and in_checkpoint(handle):
            calls.append(1)
            if len(calls) > nth:
                raise OSError(28, "No space left on device")
        return real(handle, data)

    def replace_step():
        return checkpoint.Found(0, run.path)

    def in_checkpoint(handle):
        return "step-" in str(Path(f"/proc/self/fd/{handle}").readlink())

    monkeypatch.setattr(durable.os, "write", write)
    with pytest.raises(CheckpointError, match="No space left"):
        train(made, run)
    monkeypatch.setattr(durable.os, "write", real)
    assert run.status == "failed"
    found = checkpoint.latest(run.checkpoints)
    assert found.step >= 4
    assert not found.damaged
    assert not list(run.checkpoints.glob("*.tmp"))
    train(made, run)
    same(whole, run)
    assert told(run, "step") == told(whole, "step")


def test_a_full_disk_while_noting_is_told_and_loses_nothing(tmp_path, monkeypatch):
    made = recipe(keep_every_seconds=0.0)
    run = begun(tmp_path, made)
    real = Run.note

    def note(self, kind, **fields):
        if fields.get("step") == 6:
            raise OSError(28, "No space left on device")
        real(self, kind, **fields)

    monkeypatch.setattr(Run, "note", note)
    with pytest.raises(RunError, match=r"nothing more can be written.*free some disk space"):
        train(made, run)
    monkeypatch.setattr(Run, "note", real)
    assert checkpoint.latest(run.checkpoints).step == 5
    train(made, run)
    assert run.status == "done"


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    family = TableConfig("broken", fails_at=0.5)
    made = recipe("broken", budget="20steps", family=family, keep_every_seconds=0.0)
    run = begun(tmp_path, made)
    with pytest.raises(RunError, match=r"no longer a finite number at step 11.*step 10 is good.*learning rate"):
        train(made, run)
    assert run.status == "failed"
    assert checkpoint.latest(run.checkpoints).step == 10
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


def test_players_are_taken_in_turn(tmp_path):
    made = recipe("pair", budget="4steps")
    run = begun(tmp_path, made)
    family = train(made, run)
    moves = family.calls[-12:] if run.metrics("evaluate") else family.calls
    events = run.metrics("step")
    assert [(event["step"], event["player"]) for event in events] == [
        (step, player) for step in range(1, 5) for player in ("judge", "maker")
    ]
    assert {player for player, _, _ in moves} == {"judge", "maker"}
    optimizer = weights(run, "optimizer")
    assert {key.split("/")[0] for key in optimizer} == {"judge", "maker"}


def test_the_slow_copy_follows_the_formula_and_is_what_load_gives(tmp_path):
    made = recipe(budget="6steps", ema=0.5)
    run = begun(tmp_path, made)
    plain = replace(made, ema=None)
    live = []
    for steps in range(1, 7):  # with a constant rate the run of n steps is the first n steps of the run
        constant = replace(plain.optimizer, warmup=0.0, warmdown=0.0)
        shorter = begun(tmp_path, recipe(budget=f"{steps}steps", optimizer=constant))
        train(shorter.recipe, shorter)
        live.append(weights(shorter)["embed.weight"])
    made = replace(made, optimizer=replace(made.optimizer, warmup=0.0, warmdown=0.0))
    run = begun(tmp_path, made)
    family = train(made, run)
    from nomoat.train.state import build

    slow = build(made, torch.device("cpu")).embed.weight.detach()
    for step, weight in enumerate(live):
        decay = min(0.5, (1 + step) / (10 + step))
        slow = decay * slow + (1 - decay) * weight
    torch.testing.assert_close(weights(run, "ema")["embed.weight"], slow)
    assert torch.equal(weights(run)["embed.weight"], live[-1])
    assert torch.equal(load(run).embed.weight, weights(run, "ema")["embed.weight"])
    assert torch.equal(family.embed.weight, weights(run, "ema")["embed.weight"])
    assert torch.equal(load(run, "weights").embed.weight, live[-1])


def test_what_is_evaluated_is_what_load_gives(tmp_path):
    made = recipe(ema=0.9)
    run = begun(tmp_path, made)
    train(made, run)
    total = count = 0.0
    assert run.decided("evaluation_batches") == 1
    for batch in list(made.data.held_out(None, 8, 0))[:1]:
        loss = load(run).loss(batch)
        total, count = total + float(loss.total), count + float(loss.count)
    assert run.metrics("evaluate")[-1]["loss"] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.slow
def test_compiled_or_not_the_losses_are_the_same(tmp_path):
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    losses = []
    for compiled in (False, True):
        run = begun(tmp_path, recipe("noisy", compile=compiled, micro_batch=4))
        train(run.recipe, run)
        losses.append([event["training_loss"] for event in run.metrics("step")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_where_compile_does_not_work_the_way_out_is_told(tmp_path, monkeypatch):
    class BrokenError(Exception):
        __module__ = "torch._inductor.exc"

    def broken(*arguments, **named):
        raise BrokenError("InvalidCxxCompiler: no working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    run = begun(tmp_path, recipe(compile=True))
    with pytest.raises(ConfigError, match=r"torch.compile does not work here.*no working C\+\+.*compile=false"):
        train(run.recipe, run)


def test_metrics_are_one_json_object_a_line(tmp_path):
    made = recipe()
    run = begun(tmp_path, made)
    train(made, run)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
