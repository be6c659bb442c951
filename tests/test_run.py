"""The run directory: two processes, kills, torn lines, names, and the one place that loads a model."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomoat.core import checkpoint, durable
from nomoat.core.budget import Budget
from nomoat.core.errors import CheckpointError, ConfigError, RunError
from nomoat.core.family import Family
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.core.runs import listing

HOLD = """
import sys, time
from pathlib import Path
from nomoat.core.run import Run
with Run(Path(sys.argv[1]), None).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@dataclass(frozen=True)
class Line:
    """A family of one number, with one part that it may be given."""

    value: float = 1.0

    def build(self, parts: Any) -> LineModel:
        return LineModel(self, parts)


class LineModel(Family):
    def __init__(self, config: Line, parts: Any) -> None:
        super().__init__()
        self.config = config
        self.slope = torch.nn.Parameter(torch.tensor([config.value]))
        self.register_buffer("seen", torch.zeros(1))
        self.parts_seen = {name: part.slope.item() for name, part in parts.items()}


def recipe(about: str = "a test", **changes: Any) -> Recipe:
    settings = {"family": Line(), "data": None, "budget": Budget.parse("5steps"), "batch_size": 2, **changes}
    return Recipe(about=about, **settings)


def save(run: Run, step: int, slope: float, ema: float | None = None) -> Path:
    groups = {"weights": {"slope": torch.tensor([slope]), "seen": torch.tensor([float(step)])}}
    if ema is not None:
        groups["ema"] = {"slope": torch.tensor([ema])}
    return checkpoint.save(run.checkpoints, step, groups, {"step": step})


@pytest.fixture
def run(runs_root: Path) -> Run:
    return Run.create(None, "a run", recipe())


@pytest.fixture
def holder(run: Run) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_run_is_opened_as_it_was_made(runs_root: Path, run: Run) -> None:
    assert run.path.parent == runs_root
    assert run.name.endswith(tuple("0123456789abcdef"))
    for where in (run.path, str(run.path), run.name, run.name[:14], "a-run", "last", Ref("last"), run):
        again = Run.open(where)
        assert (again.path, again.recipe) == (run.path, run.recipe)
    environment = run.read_json("environment.json")
    assert environment["nomoat"]
    assert run.read_json("nothing.json") is None


def test_two_runs_of_the_same_name_have_folders_of_their_own(runs_root: Path, run: Run) -> None:
    second, third = Run.create(None, "a run", recipe()), Run.create(None, "a run", recipe())
    assert [second.name, third.name] == [f"{run.name}-2", f"{run.name}-3"]
    second.note("step", step=1)
    assert run.metrics() == []
    assert Run.open(run.name).path == run.path
    assert Run.open("last").path == third.path
    with pytest.raises(RunError, match="names 3 runs"):
        Run.open("a-run")


def test_a_run_is_found_by_its_label_though_longer_names_hold_it(runs_root: Path, run: Run) -> None:
    longer = Run.create(None, "a run tuned", recipe())
    assert (run.label, longer.label) == ("a-run", "a-run-tuned")
    assert Run.open("a-run").path == run.path and Run.open("a-run-tuned").path == longer.path
    with pytest.raises(RunError, match="names 2 runs"):
        Run.open("run")


@pytest.mark.parametrize("name", ["", "../../etc", "ä/ö", ".hidden", "a" * 300, "con:1\n"])
def test_any_name_makes_a_folder_below_the_root(runs_root: Path, name: str) -> None:
    made = Run.create(None, name, recipe())
    assert made.path.parent == runs_root
    assert not made.name.startswith(".")
    assert [summary.name for summary in listing()] == [made.name]


def test_what_is_no_run_is_said_with_the_nearest(runs_root: Path, run: Run) -> None:
    near = run.name.replace("a-run", "a-rnu")
    with pytest.raises(RunError, match=f"there is no run.*did you mean `{run.name}`"):
        Run.open(near)
    with pytest.raises(RunError, match="there is no run"):
        Run.open("")
    (run.path / "recipe.json").write_text("{")
    with pytest.raises(RunError, match="not a run"):
        Run.open(run.path)
    (run.path / "recipe.json").unlink()
    with pytest.raises(RunError, match="there is no run `last`"):
        Run.open("last")


def test_a_folder_that_cannot_be_written_says_so_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, content: Any) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match=r"cannot be written.*No space left.*NOMOAT_RUNS"):
        Run.create(tmp_path, "x", recipe())
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_hold_one_run(run: Run, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RunError, match=f"in use by process {holder.pid}"), run.lock():
        pass
    assert run.status == "running"


def test_a_killed_process_lets_go(run: Run, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert run.status == "stopped"
    with run.lock():
        assert durable.holder(run.path / "lock") == str(os.getpid())
        assert run.status == "running"


def test_a_lock_may_be_taken_again_by_its_holder_and_not_by_another_object(run: Run) -> None:
    with run.lock():
        with run.lock(), pytest.raises(RunError), Run.open(run.path).lock():
            pass
        with pytest.raises(RunError), Run.open(run.path).lock():
            pass
    with Run.open(run.path).lock():
        pass


def test_events_come_back_as_noted(run: Run) -> None:
    seen: list[dict[str, Any]] = []
    run.watch = seen.append
    run.note("step", step=1, loss=torch.tensor(2.5), rate=np.float32(0.5), counts=np.arange(3), text="é\n\u2028x")
    run.note("step", step=2, loss=math.nan, worst=math.inf, nested={"a": [torch.ones(2)]}, path=Path("x"))
    run.note("sample", text="NaNs")
    events = run.metrics()
    assert events[0].items() >= {"step": 1, "loss": 2.5, "rate": 0.5, "counts": [0, 1, 2], "text": "é\n\u2028x"}.items()
    assert math.isnan(events[1]["loss"])
    assert events[1]["worst"] == math.inf
    assert (events[1]["nested"], events[1]["path"]) == ({"a": [[1.0, 1.0]]}, "x")
    assert [event["text"] for event in run.metrics("sample")] == ["NaNs"]
    assert [event["kind"] for event in seen] == ["step", "step", "sample"]
    for line in (run.path / "metrics.jsonl").read_text().split("\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_line_torn_at_any_byte_costs_that_line_alone(run: Run) -> None:
    file = run.path / "metrics.jsonl"
    for step in range(3):
        run.note("step", step=step, text="é")
    whole = file.read_bytes()
    second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for length in range(second, len(whole)):
        file.write_bytes(whole[:length])
        kept = 3 if length == len(whole) - 1 else 2  # torn at the newline, the line itself is whole
        assert len(run.metrics()) == kept
        Run.open(run.path).note("step", step=9)
        assert [event["step"] for event in run.metrics()] == [*range(kept), 9]


def test_a_resumed_run_counts_no_step_twice(run: Run) -> None:
    for step in range(1, 6):
        run.note("step", step=step)
    run.note("warning", text="no step")
    assert run.rewind(3) == 2
    run.note("step", step=4)
    assert [event.get("step") for event in run.metrics()] == [1, 2, 3, None, 4]
    assert run.rewind(9) == 0


def test_decisions_are_kept_in_order_with_their_reasons(run: Run) -> None:
    run.decide("steps", 100, 0, "measured 10 a second")
    run.decide("optimizer", Optimizer(), 0, "default")
    run.decide("steps", 90, 50, "slower than measured")
    with (run.path / "decisions.jsonl").open("a") as file:
        file.write('{"name":"steps","val')
    again = Run.open(run.path)
    assert [line["value"] for line in again.decisions("steps")] == [100, 90]
    assert (again.decided("steps"), again.decided("steps", step=49), again.decided("steps", step=50)) == (90, 100, 90)
    assert (again.decided("optimizer"), again.decided("threads", 2)) == (Optimizer(), 2)
    again.decide("threads", 1, 60, "one core is busy")
    assert Run.open(run.path).decisions()[-1] == {"name": "threads", "value": 1, "step": 60, "why": "one core is busy"}


def test_a_decision_is_on_the_disk_before_it_counts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    run.decide("steps", 1, 0, "")
    assert len(synced) == 1


def test_files_are_replaced_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("card.md", "old")
    run.write_json("ledger.json", {"type": "plain", "value": math.nan, "of": Optimizer(), "array": np.ones(2)})
    assert run.read_json("ledger.json")["value"] == "NaN"
    for name in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:

            def broken(*arguments: Any) -> None:
                raise OSError(5, os.strerror(5))

            patch.setattr(os, name, broken)
            with pytest.raises(RunError, match="Input/output error"):
                run.write_text("card.md", "new")
        assert (run.path / "card.md").read_text() == "old"
    assert not list(run.path.glob(".*.tmp"))


def test_the_list_of_runs_shows_the_last_figures_and_who_was_killed(runs_root: Path, run: Run) -> None:
    for step in range(2000):
        run.note("step", step=step, loss=3.0 - step / 1000)
    run.note("evaluate", step=1999, bits_per_byte=1.25)
    run.note("sample", text="x" * 70_000)
    done = Run.create(None, "b", recipe("another"))
    done.mark("done")
    (runs_root / "not a run").mkdir()
    (runs_root / ".new-1-2").mkdir()
    (runs_root / ".new-1-2" / "recipe.json").write_text("{}")
    first, second = listing()
    assert (first.name, first.status, first.about) == (run.name, "stopped", "a test")
    assert (second.name, second.status, second.step, second.loss) == (done.name, "done", None, None)
    run.note("step", step=2000, loss=1.0)
    run.note("evaluate", step=2000, bits_per_byte=1.25)
    assert listing()[0][5:] == (2000, 1.0, 1.25)
    assert listing(runs_root / "nowhere") == []


def test_a_damaged_run_is_still_listed(runs_root: Path, run: Run) -> None:
    (run.path / "recipe.json").write_text("[")
    (run.path / "STATUS").unlink()
    assert [(summary.name, summary.status) for summary in listing()] == [(run.name, "stopped")]


def test_listing_and_opening_import_no_torch(runs_root: Path, run: Run) -> None:
    code = (
        "import sys; from nomoat.core import run, runs; runs.listing(); runs.runs_root(); print('torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=dict(os.environ)
    )
    assert said.stdout == "False\n"


def test_a_model_is_loaded_with_its_weights(run: Run) -> None:
    save(run, 1, 2.0)
    save(run, 2, 3.0)
    family = load(run.name)
    assert (family.slope.item(), family.seen.item()) == (3.0, 2.0)
    assert not family.training
    assert not any(parameter.requires_grad for parameter in family.parameters())


def test_the_slow_copy_is_preferred_unless_asked_otherwise(run: Run) -> None:
    save(run, 1, 2.0, ema=1.5)
    assert load(run).slope.item() == 1.5
    assert load(run).seen.item() == 1.0
    assert load(run, weights="weights").slope.item() == 2.0
    save(run, 2, 2.0)
    with pytest.raises(CheckpointError, match="has no ema"):
        load(run, weights="ema")


def test_a_ref_with_a_hash_takes_no_other_weights(run: Run) -> None:
    digest = checkpoint.digest(save(run, 1, 2.0), "weights")
    ref = Ref(run.name, digest)
    assert Ref.parse(str(ref)) == ref
    assert load(ref).slope.item() == 2.0
    save(run, 2, 2.5)
    with pytest.raises(CheckpointError, match="no longer holds the weights"):
        load(ref)
    assert load(Ref(run.name)).slope.item() == 2.5


def test_loading_verifies_falls_back_and_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint yet.*nomoat resume {run.name}"):
        load(run)
    save(run, 1, 2.0)
    file = save(run, 2, 3.0) / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    events: list[dict[str, Any]] = []
    assert load(run, watch=events.append).slope.item() == 2.0
    assert [event["kind"] for event in events] == ["warning"]
    assert "step-2 is damaged" in events[0]["text"]
    assert load(run).slope.item() == 2.0
    assert "step-2 is damaged" in capsys.readouterr().err


def test_weights_of_another_shape_are_refused(run: Run) -> None:
    checkpoint.save(run.checkpoints, 1, {"weights": {"slope": torch.zeros(2), "seen": torch.zeros(1)}}, {})
    with pytest.raises(CheckpointError, match="do not fit its recipe"):
        load(run)


def test_parts_and_the_start_come_from_other_runs(runs_root: Path, run: Run) -> None:
    save(run, 1, 2.0)
    made = recipe(parts={"teacher": Ref(run.name)}, start=Ref(run.name)).build()
    assert made.slope.item() == 2.0
    assert made.parts_seen == {"teacher": 2.0}
    assert made.slope.requires_grad
    given = recipe(parts={"teacher": Ref("none")}).build({"teacher": made})
    assert given.parts_seen == {"teacher": 2.0}
    with pytest.raises(RunError, match="there is no run"):
        recipe(parts={"teacher": Ref("none")}).build()


def test_a_run_of_a_module_that_is_not_imported_is_refused(run: Run) -> None:
    file = run.path / "recipe.json"
    file.write_text(file.read_text().replace("test_run:Line", "antigravity:Line"))
    with pytest.raises(ConfigError, match="not part of nomoat"):
        Run.open(run.path)
    assert "antigravity" not in sys.modules
