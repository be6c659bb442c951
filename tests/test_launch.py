"""Two processes do what one does: the same samples, the same loss within 1e-5; only one writes; a death is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toys import Chain, TableConfig, recipe

from nomoat.core import checkpoint
from nomoat.core.errors import ConfigError, RunError
from nomoat.core.run import Run
from nomoat.train.launch import Group, gather
from nomoat.train.loop import train


def begun(tmp_path, made):
    return Run.create(tmp_path, "toy", made)


def losses(run):
    return torch.tensor([event["training_loss"] for event in run.metrics("step")], dtype=torch.float64)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same recipe by one process and by two."""
    root = tmp_path_factory.mktemp("runs")
    runs = []
    for processes in (1, 2):
        run = begun(root, recipe("noisy", budget="30steps", ema=0.9, processes=processes, micro_batch=3))
        train(run.recipe, run)
        runs.append(run)
    return runs


def test_two_processes_have_the_same_loss_as_one(both):
    one, two = both
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=0)
    assert [e["tokens"] for e in one.metrics("step")] == [e["tokens"] for e in two.metrics("step")]
    for first, second in zip(one.metrics("evaluate"), two.metrics("evaluate"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)


def test_only_one_process_writes(both):
    _, two = both
    assert two.status == "done"
    assert [event["step"] for event in two.metrics("step")] == list(range(1, 31))
    assert len(two.decisions("steps")) == 1
    assert not list(two.path.glob("worker-*.log"))
    assert not list(two.path.glob(".rendezvous*"))


def test_two_processes_resume(both, tmp_path):
    _, two = both
    run = begun(tmp_path, two.recipe)

    def watch(event):
        if event["kind"] == "step" and event["step"] == 9:
            signal.raise_signal(signal.SIGINT)

    run.watch = watch
    train(run.recipe, run)
    assert run.status == "stopped"
    run.watch = None
    train(run.recipe, run)
    assert run.status == "done"
    torch.testing.assert_close(losses(run), losses(two), rtol=0, atol=0)
    for group in ("weights", "optimizer", "ema"):
        first = checkpoint.read(checkpoint.latest(run.checkpoints).path, group)
        second = checkpoint.read(checkpoint.latest(two.checkpoints).path, group)
        assert all(torch.equal(first[name], second[name]) for name in first)


def children():
    """Ids of this process's children."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_a_dead_worker_ends_the_run_with_a_clear_error(tmp_path):
    run = begun(tmp_path, recipe(budget="100000steps", processes=2, keep_every_seconds=0.0))
    before = children()

    def watch(event):
        if event["kind"] == "step" and event["step"] == 6:
            (worker,) = children() - before
            os.kill(worker, signal.SIGKILL)

    run.watch = watch
    with pytest.raises(RunError, match=r"process 1 of 2 has died.*code -9.*nomoat resume"):
        train(run.recipe, run)
    assert run.status == "failed"
    assert checkpoint.latest(run.checkpoints).step >= 5
    assert children() == before


def test_an_error_in_a_worker_is_told_with_its_last_words(tmp_path):
    with (
        pytest.raises(RunError, match=r"process 1 of 2 has died.*ValueError: no such thing"),
        gather(2, tmp_path, fails) as group,
    ):
        group.share("a")


def fails(group):
    raise ValueError("no such thing")


def test_an_error_here_ends_the_workers(tmp_path):
    before = children()
    with pytest.raises(KeyError), gather(2, tmp_path, waits):
        assert children() != before
        raise KeyError
    assert children() == before


def waits(group):
    time.sleep(600)


def test_workers_end_with_their_parent(tmp_path):
    """A parent that is killed takes its workers with it."""
    pid_file = tmp_path / "pid"
    code = (
        "import sys, time, pathlib; sys.path[:0] = [sys.argv[1]]; import test_launch\n"
        "with test_launch.gather(2, pathlib.Path(sys.argv[2]), test_launch.waits) as group:\n"
        "    pathlib.Path(sys.argv[2], 'pid').write_text(f'{group.workers[0].process.pid}.')\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)])
    until = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text().endswith(".")):
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.05)
    worker = int(pid_file.read_text().rstrip("."))
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the worker outlived its parent"
        time.sleep(0.05)


def sums(group):
    """What each process adds."""
    tensors = [torch.full((3,), float(group.rank + 1)), torch.arange(4.0).view(2, 2) * (group.rank + 1)]
    group.sum_(tensors)
    return tensors


def test_sums_are_over_all_processes(tmp_path):
    with gather(3, tmp_path, sums) as group:
        first, second = sums(group)
    assert first.tolist() == [6.0, 6.0, 6.0]
    assert second.tolist() == [[0.0, 6.0], [12.0, 18.0]]


def test_one_process_needs_no_communication(tmp_path):
    with gather(1, tmp_path, fails) as group:
        assert group == Group()
        assert group.share("value") == "value"
        tensor = torch.ones(2)
        group.sum_([tensor])
        assert tensor.tolist() == [1.0, 1.0]
    assert not list(tmp_path.iterdir())


def test_a_loss_that_couples_the_samples_is_refused_before_the_first_step(tmp_path):
    run = begun(tmp_path, recipe("coupled", processes=2))
    with pytest.raises(ConfigError, match="cannot be trained by 2 processes"):
        train(run.recipe, run)


@pytest.mark.slow
def test_a_budget_in_time_is_agreed_upon(tmp_path):
    made = recipe(budget="20s", processes=2, family=TableConfig(), data=Chain())
    run = begun(tmp_path, made)
    train(made, run)
    assert run.status == "done"
    assert run.metrics("step")[-1]["seconds"] == pytest.approx(20, rel=0.1)
    assert len(run.decisions("steps")) >= 2
    assert len(run.metrics("step")) == run.decided("steps")
