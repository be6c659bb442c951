"""make from end to end at its smallest, and the card that it leaves: every fact of it, and how it is known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from folders import notes

from nomoat import card, verbs
from nomoat.core.budget import Budget
from nomoat.core.run import Run
from nomoat.families.lm import LM
from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone
from nomoat.train import plan as planner


def foreseen(corpus, sized, budget, device="auto", seconds=None, watch=None):
    """A plan without measuring anything: the real one takes its time."""
    recipe = replace(sized(64, 4, Budget.parse("40steps")), precision="fp32", keep_every_seconds=0.1)
    figures = {
        "steps": planner.Estimate.within(40, 0.1),
        "held_out_bits_per_byte": planner.Estimate.within(3.0, 0.1),
        "tokens_per_second": planner.Estimate.within(1000, 0.1),
    }
    return planner.Forecast(recipe, 123, figures, ("it is a test",), planner.too_small(25.0), 0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that `make` made, and the events that it told."""
    place = tmp_path_factory.mktemp("made")
    folder = notes(place / "notes", files=40, lines=60)
    (folder / "LICENSE").write_text("SPDX-License-Identifier: CC-BY-4.0\n", encoding="utf-8")
    (folder / "broken.txt").write_bytes(bytes(range(256)) * 40)
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOMOAT_RUNS", str(place / "runs"))
        patch.setattr(planner, "forecast", foreseen)
        run = verbs.make(folder, "10m", device="cpu", price_per_hour=3.6, watts=36.0, watch=events.append)
    return run, events


def test_the_run_is_whole(made):
    run, _ = made
    assert run.status == "done"
    for name in ("card.md", "card.json", "report.txt", "report.json", "ledger.json", "tokenizer.json", "plan.json"):
        assert (run.path / name).stat().st_size > 50, name


def test_what_is_told_on_the_way(made):
    _, events = made
    kinds = [event["kind"] for event in events]
    for kind in ("ingest", "plan", "step", "evaluate", "keep", "sample"):
        assert kind in kinds, kind
    assert kinds.index("plan") < kinds.index("step")
    small = [event["text"] for event in events if event["kind"] == "warning" and "25 times" in event["text"]]
    assert len(small) == 1
    phases = [event["phase"] for event in events if event["kind"] == "phase"]
    assert phases.index("training") < phases.index("reporting")


def test_the_plan_is_in_the_run_before_the_first_step(made):
    run, _ = made
    assert (run.path / "plan.json").stat().st_mtime <= run.metrics("step")[0]["time"]
    assert json.loads((run.path / "plan.json").read_text())["steps"]["value"] == 40


def test_costs_say_how_they_are_known(made):
    run, _ = made
    found = card.costs(run)
    assert found["training_time"].how == "measured"
    assert found["whole_time"].value >= found["training_time"].value > 0
    assert found["money"].how == "assumed"
    assert found["money"].value == pytest.approx(found["whole_time"].value * 3.6 / 3600)
    assert found["memory"].how == "measured"
    if "watt_hours" not in run.metrics("keep")[-1]:
        assert found["energy"].how == "assumed"
        assert found["energy"].value == pytest.approx(36 * found["whole_time"].value / 3600)


def test_measured_energy_is_preferred(made, monkeypatch):
    run, _ = made
    kept = [{**event, "watt_hours": 0.25} for event in run.metrics("keep")]
    real = run.metrics
    monkeypatch.setattr(run, "metrics", lambda kind=None: kept if kind == "keep" else real(kind))
    energy = card.costs(run)["energy"]
    assert (energy.value, energy.how) == (0.25, "measured")


def test_expected_stands_beside_actual(made):
    run, _ = made
    rows = {row["name"]: row for row in json.loads((run.path / "card.json").read_text())["expected"]}
    assert rows["steps"]["actual"] == 40
    assert rows["steps"]["off"] == 0
    report = json.loads((run.path / "report.json").read_text())
    assert rows["held_out_bits_per_byte"]["actual"] == report["bits_per_byte"]
    assert rows["tokens_per_second"]["actual"] > 0


def test_what_a_recipe_expects_stands_beside_what_came(made, tmp_path):
    run, _ = made
    path = shutil.copytree(run.path, tmp_path / "same")
    (path / "plan.json").unlink()
    recipe = json.loads((path / "recipe.json").read_text())
    (path / "recipe.json").write_text(json.dumps({**recipe, "expect": {"held_out_loss": 2.0, "unheard_of": 1.0}}))
    [row] = card._expected(Run.open(path), None)
    loss = run.metrics("evaluate")[-1]["loss"]
    assert row == {"name": "held_out_loss", "expected": 2.0, "actual": loss, "off": loss / 2 - 1}


def test_the_card_has_every_part(made):
    run, _ = made
    text = (run.path / "card.md").read_text(encoding="utf-8")
    for part in (
        *("# " + run.name, "M parameters", "SHA-256", "What have I got?", "gzip", "xz", "5-gram", "oddest lines"),
        *("## Data and licences", "CC-BY-4.0", "held out, and never read for training", "Left out: "),
        *("## Expected and actual", "## Cost", "| training time |", "assumed", "measured"),
        *("nomoat.load(", "Qwen3", "## Limits", "no assistant"),
    ):
        assert part in text, part


def test_the_numbers_of_the_card_are_the_run_s(made):
    run, _ = made
    facts = json.loads((run.path / "card.json").read_text())
    model = verbs.load(run)
    assert facts["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["status"] == "done"
    ledger = json.loads((run.path / "ledger.json").read_text())
    assert ledger["dataset"] == facts["data"]["id"]
    assert {share["licence"] for share in ledger["shares"]} == {"CC-BY-4.0"}


def test_resuming_a_finished_run_changes_nothing(made):
    run, _ = made
    before = [event for event in run.metrics() if event["kind"] == "step"]
    again = verbs.resume(run.path, "cpu")
    assert [event for event in again.metrics() if event["kind"] == "step"] == before
    assert card.costs(again)["whole_time"].value > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "transformers and llama.cpp (as Qwen3ForCausalLM)"),
        ({"dialect": dialects.GPT2, "positions_length": 64}, "transformers and llama.cpp (as GPT2LMHeadModel)"),
        ({"dialect": dialects.LLAMA}, "transformers and llama.cpp (as LlamaForCausalLM)"),
        ({"mixers": "mamba", "dialect": dialects.MAMBA2}, "transformers and llama.cpp (as Mamba2ForCausalLM)"),
        ({"window": 32}, "transformers (as Qwen3ForCausalLM)"),
        ({"mixers": ("mamba", "attention")}, "nomoat alone: no other program that we know can open this model: it has"),
        ({"dialect": dialects.SPEEDRUN}, "soft cap 15.0"),
    ],
)
def test_programs_that_can_open_a_model(changes, said):
    assert said in card.opens(LM(50, 64, Backbone(width=64, depth=2, heads=1, **changes)))
