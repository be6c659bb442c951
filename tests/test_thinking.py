"""Curves of what more tries buy, and what their controls expose; questions that cannot be asked; the chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conversations import CHATML
from oracle import chatty

import nomoat
from nomoat import thinking
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import find
from nomoat.core.run import Run, load
from nomoat.data.chat import Chat, talking
from nomoat.data.countdown import CountdownProblems
from nomoat.evaluate.plot import Line, plot
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.search import writers
from nomoat.search.tasks import Asked
from nomoat.texts import spelling
from nomoat.thinking import Curve, Point


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small model of countdown with three numbers, after a few steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NOMOAT_RUNS", str(tmp_path_factory.mktemp("runs")))
        data = CountdownProblems(sizes=(3,))
        family = LM(data.vocab_size, data.context_length, Backbone(width=32, depth=1, heads=2))
        recipe = replace(find("countdown-small"), family=family, data=data, batch_size=16)
        yield nomoat.train(replace(recipe, budget=Budget.parse("8steps")))


def test_a_curve_has_its_controls_its_costs_and_its_files(run: Run) -> None:
    made = nomoat.curve(run, "countdown:3", tries=8, questions=40)
    assert [point.tries for point in made.points] == [1, 2, 4, 8]
    right = [point.right for point in made.points]
    assert right == sorted(right)
    assert all(p.low <= p.right <= p.high and p.blind is not None and 0 < p.blind[0] < 1 for p in made.points)
    assert made.points[3].tokens == pytest.approx(8 * 12)  # two lines of six tokens, eight times
    assert made.points[3].flops == pytest.approx(8 * made.points[0].flops)
    assert made.everything is not None
    assert made.everything[1] == 1.0
    held = json.loads((run.path / "curve.json").read_text())
    assert held["task"] == "countdown:3"
    assert len((run.path / "curve.csv").read_text().splitlines()) == 5
    chart = ET.fromstring((run.path / "curve.svg").read_text())
    assert {each.text for each in chart.iter() if each.text} >= {"blind, same verifier", "100 %"}
    assert "blind" in made.as_text()


def test_more_tries_than_states_prove_nothing_and_it_is_said(run: Run) -> None:
    """An untrained model with 32 tries at three numbers: chance does as well."""
    made = nomoat.curve(run, "countdown:3", tries=32, questions=20)
    assert "uninformed policy" in made.warning or "exhaustive search" in made.warning
    assert made.warning in made.as_text()


def test_a_verifier_that_says_yes_is_exposed() -> None:
    one = Point(8, 1.0, 1.0, 1.0, (1.0, 1.0, 1.0), 10.0, 1e9, 0.1)
    assert "yes to everything" in Curve("run", "yes", 10, (one,), None).warning
    honest = replace(one, blind=(0.2, 0.1, 0.3))
    assert Curve("run", "number", 10, (honest,), (5000.0, 1.0)).warning == ""
    late = Curve("run", "tests", 10, (honest,), None, (3, 1))
    assert "late: 3, that broke: 1" in late.as_text()


def test_puzzles_without_a_solution_are_not_solved(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "puzzles.jsonl"
    file.write_text('{"puzzle": "1 1 1 1"}\n{"puzzle": "1 1 1 2"}\n')
    made = nomoat.curve(run, f"game24:{file}", tries=2)
    assert made.points[-1].right == 0
    assert made.everything[1] == 0
    from nomoat.search.tasks import find as named

    task = named(f"game24:{file}")
    states, solvable = task.exhaustive(task.exam(10))
    assert len(states) == 2
    assert not solvable.any()
    assert not task.blind(task.exam(10), 50, 0).any()


@pytest.mark.parametrize("strategy", ["best-of-n", "vote", "beam", "dvts", "tot", "mcts", "particles"])
def test_each_strategy_answers_or_says_why_not(run: Run, strategy: str) -> None:
    how = {"max_tokens": 14, "mark": ";", "temperature": 1.0}
    found = nomoat.think(run, "20 5 4 > 29 |", strategy, "countdown", 12, answer="29", **how)
    assert 3 <= found.usage.nodes <= 24
    assert found.usage.nodes <= found.usage.tokens <= 24 * 14
    if strategy in ("best-of-n", "vote"):
        assert len(found.done) == 12
        assert found.usage.evaluations == 12
    assert all(thought.right in (0.0, 1.0) for thought in found.done)
    assert (found.best is None) == (not found.done)


def test_a_model_that_talks_is_asked_as_in_a_conversation(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path))
    talks = chatty(None, "talks")
    talks.write_json("chat.json", {"template": CHATML, "bos": None, "eos": "<|endoftext|>"})
    read: list[list[int]] = []
    plain = writers.continue_tokens

    def noted(model, tokenizer, rows, *rest):
        read.extend(rows)
        return plain(model, tokenizer, rows, *rest)

    monkeypatch.setattr(writers, "continue_tokens", noted)
    nomoat.think(talks, "Hi?", budget=2, max_tokens=3)
    rendered, _ = Chat.of(talks.path).tokens([{"role": "user", "content": "Hi?"}], spelling(talks), answer=True)
    assert [list(row) for row in read] == [list(rendered)] * 2


def test_questions_of_a_file_are_put_to_a_model_that_talks_as_in_a_conversation(
    run: Run, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path))
    talks = chatty(None, "talks")
    talks.write_json("chat.json", {"template": CHATML, "bos": None, "eos": "<|endoftext|>"})
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "2 + 2?", "answer": "4"}))
    model, said = load(talks), talking(talks.path)
    whole = Asked(str(file), max_tokens=3).attempts(model, said, [{"question": "2 + 2?", "answer": "4"}], 2, 0)
    rendered, _ = Chat.of(talks.path).tokens([{"role": "user", "content": "2 + 2?"}], said, answer=True)
    assert whole.tokens[:, : len(rendered)].tolist() == [rendered] * 2
    assert not whole.mask[:, : len(rendered)].any()
    assert whole.mask[:, len(rendered)].all()
    talks.write_json("chat.json", {"bos": None, "eos": "<|endoftext|>"})  # no template: nobody taught it to talk
    assert not hasattr(talking(talks.path), "asked")


def test_what_cannot_be_thought(run: Run) -> None:
    for asked, said in (
        ({"strategy": "magic"}, "no strategy"),
        ({"budget": 0}, "buys no thought"),
        ({"verifier": "nobody"}, "no verifier"),
        ({"prm": str(run.path)}, "judges no beginnings"),
        ({"min_think": 9, "max_think": 3}, "cannot be"),
    ):
        with pytest.raises(ConfigError, match=said):
            thinking.think(run, "20 5 4 > 29 |", **asked)
    for tries, questions in ((0, 5), (4, 0)):
        with pytest.raises(ConfigError, match="no curve"):
            nomoat.curve(run, "countdown:3", tries, questions)


def test_a_chart_keeps_its_labels_apart_and_escapes_them() -> None:
    lines = [Line(f"<line {n}>", [1, 2, 4], [0.1, 0.2, 0.5 + n / 1000], [(0, 0.2)] * 3) for n in range(5)]
    text = plot(lines, "a & b", "k", "share")
    chart = ET.fromstring(text)
    labels = [each for each in chart.iter() if each.text and each.text.startswith("<line")]
    heights = sorted(float(each.get("y")) for each in labels)
    assert len(heights) == 5
    assert min(b - a for a, b in pairwise(heights)) >= 15
    assert plot([Line("one", [1], [1.0])], "t", "x", "y").count("polyline") == 1
