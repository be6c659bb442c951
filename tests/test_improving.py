"""Learning from what was found: advantages, reinforcement, rounds of right answers, process rewards, tasks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import nomoat
from nomoat import improving
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe, find
from nomoat.core.run import Run, load
from nomoat.data.countdown import CountdownProblems
from nomoat.data.rollouts import Kept, Rollouts, advantages
from nomoat.data.text import Text
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.families.grpo import GRPO
from nomoat.families.lm import LM
from nomoat.families.process_reward import ProcessReward
from nomoat.nn.backbone import Backbone
from nomoat.search.replay import store
from nomoat.search.tasks import Asked, CountdownTask
from nomoat.search.tasks import find as named

TASK = CountdownTask(3)


def tiny() -> LM:
    data = CountdownProblems(sizes=(3,))
    return LM(data.vocab_size, data.context_length, Backbone(width=32, depth=1, heads=2))


@pytest.fixture
def base(tmp_path: Path, monkeypatch) -> Run:
    """A run of a small model of countdown with three numbers."""
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(improving, "EXAM", 24)
    monkeypatch.setattr(improving, "WRITTEN", 128)
    recipe = replace(find("countdown-small"), family=tiny(), data=CountdownProblems(sizes=(3,)), batch_size=16)
    return nomoat.train(replace(recipe, budget=Budget.parse("12steps")))


def test_advantages_are_what_the_papers_say() -> None:
    reward = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
    group, idle = advantages(reward, "group")
    np.testing.assert_allclose(group[0], [1, -1, -1, 1])
    np.testing.assert_allclose(group[3], np.array([0.75, -0.25, -0.25, -0.25]) / np.sqrt(3 / 16), rtol=1e-5)
    assert idle.tolist() == [False, True, True, False]
    others, _ = advantages(reward, "others")
    for answer in range(4):  # each less the mean of the other three
        rest = np.delete(reward, answer, 1).mean(1)
        np.testing.assert_allclose(others[:, answer], reward[:, answer] - rest, atol=1e-6)


def test_reinforcement_makes_the_better_answers_likelier() -> None:
    torch.manual_seed(0)
    family = GRPO(tiny()).build({})
    batch = next(iter(Rollouts(TASK, tries=8).stream(family, 64, seed=0)))
    assert set(batch["reward"].tolist()) == {0.0, 1.0}
    good, bad = batch["advantage"] > 0, batch["advantage"] < 0
    before = family.policy.score(batch).sum(1).detach()
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        loss = family.loss(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
    gained = family.policy.score(batch).sum(1).detach() - before
    assert gained[good].mean() > gained[bad].mean() + 0.01
    assert float(loss.parts["reward"] / loss.count) == pytest.approx(float(batch["reward"].mean()))


def test_a_ratio_beyond_the_clip_moves_nothing_and_a_reference_holds() -> None:
    torch.manual_seed(0)
    family = GRPO(tiny()).build({})
    batch = next(iter(Rollouts(TASK, tries=4).stream(family, 16, seed=0)))
    logp = family.policy.score(batch).detach()
    far = {**batch, "old_logp": logp - 1.0, "advantage": torch.ones(16)}
    loss = family.loss(far)
    (loss.total / loss.count).backward()
    assert all(p.grad is None or not p.grad.any() for p in family.parameters())
    same = family.loss({**batch, "reference_logp": logp})
    assert float(same.parts["kl"]) == pytest.approx(0, abs=1e-5)
    assert float(family.loss({**batch, "reference_logp": logp - 0.5}).parts["kl"]) > 0.1
    with pytest.raises(ConfigError, match="reference"):
        GRPO(tiny(), kl=0.5).build({})


def test_what_is_written_for_a_step_depends_on_the_step_and_the_weights_alone() -> None:
    torch.manual_seed(0)
    family = GRPO(tiny()).build({})
    data = Rollouts(TASK, tries=4)
    stream = data.stream(family, 8, seed=3)
    next(stream)
    second = next(stream)
    again = next(iter(data.stream(family, 8, seed=3, start=1)))
    assert all(torch.equal(second[name], again[name]) for name in second)
    with pytest.raises(ConfigError, match="whole number of groups"):
        next(iter(data.stream(family, 10, seed=0)))
    for wrong in ({"tries": 1}, {"baseline": "mean"}):
        with pytest.raises(ConfigError):
            Rollouts(TASK, **wrong)


def test_a_process_reward_learns_from_beginnings_how_they_end() -> None:
    torch.manual_seed(0)
    family = ProcessReward(tiny()).build({})
    tokens = torch.randint(3, 60, (64, 12))
    right = (tokens[:, 4] < 30).float()  # known from the fifth token on
    ends = torch.zeros(64, 12, dtype=torch.bool)
    ends[:, [2, 6, 11]] = True
    optimizer = torch.optim.Adam(family.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = family.loss({"tokens": tokens, "ends": ends, "right": right})
        (loss.total / loss.count).backward()
        optimizer.step()
    late = (family.judge(tokens[:, :7]) > 0.5).float()
    assert (late == right).float().mean() > 0.95
    early = family.logits(tokens[:, :3])[:, -1].detach()
    assert early.abs().mean() < family.logits(tokens)[:, -1].detach().abs().mean()


@pytest.mark.parametrize("by", ["star", "grpo", "rloo", "prm"])
def test_each_way_makes_a_run_with_what_it_came_to(base: Run, by: str) -> None:
    budget = "4s" if by in ("star", "prm") else "4steps"
    run = improving.improve(base, "countdown:3", by, budget, rounds=2)
    report = json.loads((run.path / "report.json").read_text())
    assert report["by"] == by
    assert 0 < report["before"]["pass@1"] <= report["before"]["pass@4"] <= report["before"]["pass@16"] <= 1
    assert (report["after"] is None) == (by == "prm")
    assert "pass@1" in (run.path / "card.md").read_text()
    model = load(run)
    assert hasattr(model, "judge") if by == "prm" else hasattr(model, "decode")
    if by in ("grpo", "rloo"):  # what wrote the answers is what is reinforced
        assert not run.recipe.data.task.legal
    if by == "star":
        first, second = report["course"]
        count, right = re.match(r"round 1: ([\d,]+) answers, right ([\d.]+), groups without", first).groups()
        assert int(count.replace(",", "")) % improving.TRIES == 0 and 0 < float(right) < 1
        assert second.startswith("round 2")
        # the second round began with the first's weights
        assert Run.open(run.recipe.start).recipe.start.run == base.name
        assert nomoat.think(run, "20 5 4 > 29 |", budget=2, max_tokens=12).done
        kept = next(iter(Kept(run.recipe.data.path).stream(model, 32, 0)))
        assert (kept["right"] == 1).all()


def test_tries_that_have_become_alike_are_told() -> None:
    before = {"pass@1": 0.2, "pass@4": 0.5, "pass@16": 0.8, "questions": 200.0}
    for after, told in ((0.65, True), (0.75, False), (0.9, False)):
        said = improving.Improvement("star", "countdown:4", before, before | {"pass@16": after}, ()).as_text()
        assert ("have become alike" in said) == told
    assert "alike" not in improving.Improvement("prm", "countdown:4", before, None, ()).as_text()


def test_what_cannot_be_improved_is_said(base: Run, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="no way"):
        improving.improve(base, "countdown:3", "ppo")
    with pytest.raises(ConfigError, match="no task"):
        improving.improve(base, "chess")
    with pytest.raises(ConfigError, match="rounds cannot be made"):
        improving.improve(base, "countdown:3", "star", "10steps")
    with pytest.raises(ConfigError, match="one round"):
        improving.improve(base, "countdown:3", rounds=0)
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"{n}?", "answer": str(n)}) + "\n" for n in range(20)))
    yes = tmp_path / "yes.py"
    yes.write_text("def check(problem, candidate):\n    return True\n")
    with pytest.raises(DataError, match="cannot teach"):
        improving.improve(base, f"{yes}:check:{questions}")
    monkeypatch.setattr(improving, "written", lambda *_: (tmp_path / "none.npz", np.zeros((1, 8), bool)))
    with pytest.raises(DataError, match="no right answer"):
        improving.improve(base, "countdown:3", budget="2s")


def test_controls_and_questions_of_countdown() -> None:
    questions = TASK.exam(30)
    blind = TASK.blind(questions, 40, 0)
    assert blind.shape == (30, 40)
    assert 0.01 < blind.mean() < 0.4
    states, solvable = TASK.exhaustive(questions)
    assert solvable.all()
    assert (states > 10).all()
    assert not np.array_equal(TASK.train(0, np.arange(5)), TASK.train(0, np.arange(5, 10)))


def test_questions_of_a_file_are_answered_and_judged(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n}+1", "answer": str(n + 1)}) + "\n" for n in range(50)))
    task = named(f"number:{file}")
    assert isinstance(task, Asked)
    train, held = task.rows
    assert len(train) + len(held) == 50
    assert not {row["question"] for row in train} & {row["question"] for row in held}
    assert {row["question"] for row in task.train(0, np.arange(len(train)))} == {row["question"] for row in train}
    blind = task.blind(task.exam(5), 30, 0)
    assert blind.shape == (5, 30)
    for text in ("", "countdown:x", "number:", "nothing"):
        with pytest.raises(ConfigError, match="no task"):
            named(text)
    (tmp_path / "torn.jsonl").write_text('{"question": ')
    with pytest.raises(DataError, match="line 1"):
        named(f"number:{tmp_path}/torn.jsonl").exam(1)
    with pytest.raises(DataError, match="cannot be read"):
        named(f"number:{tmp_path}/none.jsonl").exam(1)


def test_kept_answers_come_once_each_before_any_comes_again(tmp_path: Path) -> None:
    rows = {"tokens": np.arange(20)[:, None], "mask": np.ones((20, 1), bool), "ends": np.ones((20, 1), bool)}
    store(tmp_path / "a.npz", {**rows, "right": (np.arange(20) % 2).astype(np.float32)})
    stream = Kept(str(tmp_path / "a.npz")).stream(None, 5, 0)
    seen = torch.cat([next(stream)["tokens"], next(stream)["tokens"]]).ravel().tolist()
    assert sorted(seen) == list(range(1, 20, 2))
    both = Kept(str(tmp_path / "a.npz"), only_right=False).stream(None, 20, 0)
    assert sorted(next(both)["tokens"].ravel().tolist()) == list(range(20))


def test_a_model_of_text_learns_from_the_answers_that_a_function_accepts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(improving, "EXAM", 6)
    monkeypatch.setattr(improving, "WRITTEN", 48)
    torch.manual_seed(0)
    backbone = Backbone(width=32, depth=1, heads=2)
    recipe = Recipe("bytes", LM(257, 128, backbone), Text("none"), Budget.parse("1steps"), batch_size=16)
    base = Run.create(tmp_path / "runs", "bytes", recipe)
    checkpoint.save(base.checkpoints, 1, {"weights": recipe.build().state_dict()}, {})
    ByteTokenizer().save(base.path / "tokenizer.json")
    base.mark("done")
    questions, mine = tmp_path / "q.jsonl", tmp_path / "mine.py"
    questions.write_text("".join(json.dumps({"question": f"say {n}"}) + "\n" for n in range(30)))
    mine.write_text(
        "def many(problem, candidate):\n    return sum(letter in 'abcdefgh' for letter in candidate) >= 2\n"
    )
    monkeypatch.setattr("nomoat.search.verdicts.WRONG", ("", "zzz"))
    task = replace(named(f"{mine}:many:{questions}"), max_tokens=12)
    monkeypatch.setattr("nomoat.search.tasks.find", lambda text: task)
    attempts = task.attempts(load(base).eval(), ByteTokenizer(), task.exam(4), 3, 0)
    assert attempts.tokens.shape[0] == len(attempts.right) == len(attempts.texts) == 12
    assert (attempts.mask.sum(1) <= 12).all()
    assert not (attempts.mask & ~(np.cumsum(attempts.ends, 1) >= 1)).any()  # what is written stands behind the prompt
    run = improving.improve(base, "mine", "star", "8s", rounds=2)
    report = json.loads((run.path / "report.json").read_text())
    assert report["after"]["pass@1"] > report["before"]["pass@1"]
    grown = improving.improve(base, "mine", "rloo", "3steps")
    assert len([event for event in grown.metrics("step") if "reward" in event]) == 3
