"""make for pictures: from a folder, or from nothing, to a model that draws, a sheet and a report card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drawings import drawings, shrink
from PIL import Image

from nomoat import drawing, picture_plan, picturing, verbs
from nomoat.cli import main
from nomoat.making import Spending


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    shrink(monkeypatch)


def seen(run: Any) -> dict[str, Any]:
    report = run.read_json("report.json")
    for name in ("report.txt", "card.md", "sheet.png", "draw.json"):
        assert (run.path / name).exists(), name
    with Image.open(run.path / picturing.SHEET) as sheet:
        assert sheet.size[0] > 100
    return report


@pytest.mark.slow
def test_the_shapes_world_needs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["make", "--pictures", "--budget", "3steps", "--json"]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    run = verbs.Run.open(last["run"])
    report = seen(run)
    assert [group["name"] for group in report["conditions"]] == [
        "combinations like those seen",
        "combinations never seen",
    ]
    assert run.read_json("classes.json")[0] and list((run.path / "samples").glob("*.png"))
    assert main(["draw", run.name, "a red circle", "--steps", "2", "--out", str(run.path / "drawn")]) == 0
    capfd.readouterr()
    assert main(["draw", run.name, "a red hippo", "--out", str(run.path / "drawn")]) == 1
    assert "hippo" in capfd.readouterr().err
    assert main(["evaluate", run.name, "--limit", "64"]) == 0
    assert verbs.resume(run).status == "done"


@pytest.mark.slow
def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = drawings(tmp_path / "pictures", 400)
    run = verbs.make(folder, "3steps")
    seen(run)
    assert "Data and licences" in (run.path / "card.md").read_text()


def test_a_plan_of_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(drawings(tmp_path / "pictures", 40)), "--budget", "20s"]) == 0
    told = capfd.readouterr().out
    for word in ("to learn from", "flow matching", "pictures a second", "about", "report", "pictures stay vague"):
        assert word in told, word
    assert main(["plan", "--pictures", "--budget", "3steps", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out.splitlines()[-1])["plan"]
    assert plan["pictures"] is None and plan["steps"] is None and plan["seconds_a_step"] > 0


@pytest.mark.slow
def test_few_pictures_make_a_model_without_a_report(tmp_path: Path) -> None:
    told: list[Any] = []
    run = verbs.make(drawings(tmp_path / "pictures", 12), "2steps", watch=told.append)
    assert run.status == "done" and (run.path / "card.md").exists() and not (run.path / "report.txt").exists()
    assert any("too few for a report" in str(event.get("text")) for event in told)


def test_the_shapes_world_binds_nobody() -> None:
    from nomoat.core.budget import Budget
    from nomoat.data.rules import Rules
    from nomoat.data.shapes import Shapes
    from nomoat.data.sources import of_recipe

    recipe = picture_plan.sized(Shapes(), 0, Budget.parse("1steps"), 0)
    [stream] = of_recipe(recipe, Rules())
    assert (stream.licence, stream.role, stream.name) == ("CC0-1.0", "data", "the shapes world")


@pytest.mark.parametrize("kind", picture_plan.KINDS)
def test_the_network_is_the_largest_that_gets_its_steps(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from nomoat.data.shapes import Shapes

    monkeypatch.setattr(picture_plan, "SIZES", ((32, 1, 2), (64, 2, 2), (128, 4, 2)))
    monkeypatch.setattr(picture_plan, "WIDTHS", ((8,), (16, 32), (32, 64)))
    budget, data = Spending.of("1h").budget, Shapes()
    middle = picture_plan.work(picture_plan.sized(data, 1, budget, 0, kind).family)
    wanted = picture_plan.KINDS[kind].wanted
    for left, size in ((1e9, 2), (1.01 * wanted, 1), (0.5 * wanted, 0), (1e-9, 0), (None, 2)):
        assert picture_plan.affordable(data, kind, 1 / middle, left, budget) == size


@pytest.mark.parametrize("kind", picture_plan.KINDS)
def test_every_kind_can_be_asked_for(kind: str, tmp_path: Path) -> None:
    run = picturing.make_pictures(
        drawings(tmp_path / "pictures", 12), Spending.of("2steps"), wanted=picture_plan.Wanted(kind)
    )
    assert run.status == "done" and picture_plan.KINDS[kind].about in run.recipe.about
    assert drawing.draw(run, "", 2)[1].image_YXC.shape[2] == 3


def test_a_size_can_be_asked_for_and_one_that_cannot_be_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = drawings(tmp_path / "pictures", 12)  # of 48 pixels
    run = picturing.make_pictures(folder, Spending.of("1steps"), wanted=picture_plan.Wanted(size=40))
    assert run.recipe.data.size == run.recipe.family.size == 40
    for size, said in (("64", "use --size 32"), ("2O", "not a valid integer"), ("30", "halve"), ("128", "halve")):
        assert main(["make", str(folder), "--size", size, "--budget", "1steps"]) == 2
        assert said in " ".join(capfd.readouterr().err.split())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no picture")
    assert main(["make", str(tmp_path / "notes"), "--size", "64", "--budget", "1steps"]) != 0
    assert "too few pixels" not in capfd.readouterr().err
    assert main(["plan", "--size", "16", "--budget", "3steps"]) == 0
    assert "16 x 16 pixels" in capfd.readouterr().out


def test_a_kind_that_is_none_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["make", "--family", "shortcat", "--budget", "2steps"]) == 2
    assert "shortcut" in capfd.readouterr().err
    assert main(["make", "--family", "dit", "--from", "last", "--budget", "2steps"]) == 2
    assert "--from" in capfd.readouterr().err
