"""Tuning a tiny base on conversations and on texts: what is reported, what is served, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conversations import CHATML
from test_lessons import talks

from nomoat import comparing, tuning, verbs
from nomoat.cli import entry
from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run, load
from nomoat.data.chat import Chat
from nomoat.data.imported import Imported
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.evaluate import tuned as compare
from nomoat.evaluate.rouge import rouge_l
from nomoat.families.lm import LM, LanguageModel
from nomoat.making import Spending
from nomoat.nn import native
from nomoat.nn.backbone import Backbone
from nomoat.tuning import Manner, tune


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(compare, "other_prompts", lambda: ["Hello?", "Why?"])
    monkeypatch.setattr(compare, "general_text", lambda: ["A river under the moon.", "Stones and salt."])
    monkeypatch.setattr(comparing, "QUESTIONS", 3)
    monkeypatch.setattr(native, "quickest", lambda model: model)  # compiling takes longer than such a model does
    config = LM(257, 256, Backbone(width=32, depth=2, heads=2, causal=True))
    run = Run.create(None, "tiny", Recipe("A tiny base", config, Imported("x", "0", "GGUF"), "1steps", 1))  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = LanguageModel(config)
    for parameter in model.parameters():  # ours begin with matrices of zeros, which no trained model has
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    checkpoint.save(run.checkpoints, 0, {"weights": model.state_dict()}, {"step": 0})
    ByteTokenizer().save(run.path / "tokenizer.json")
    run.write_json("chat.json", {"template": CHATML, "bos": None, "eos": "<|endoftext|>"})
    run.write_json(
        "ledger.json", {"licence": "Apache-2.0", "format": "GGUF", "source": "x", "files": {}, "evidence": ""}
    )
    run.mark("done")
    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": list(row.messages)}) + "\n" for row in talks(60)))
    return path


MESSAGES = [{"role": "user", "content": "7 red?"}, {"role": "assistant", "content": "blue"}]


@pytest.mark.parametrize(
    "manner",
    [Manner(None, learning_rate=3e-3), Manner(4, learning_rate=1e-2), Manner(2, dora=True, learning_rate=1e-2)],
)
def test_a_tuned_model_beside_its_base(base: Run, data: Path, manner: Manner) -> None:
    run = tune(base, data, "8steps", manner)
    assert run.status == "done"
    report = run.read_json("report.json")
    loss, rouge = report["learned"]
    assert loss["tuned"] < loss["base"] and loss["low"] <= loss["change"] <= loss["high"] < 1
    assert 0 <= rouge["base"] <= 1 and rouge["low"] <= rouge["change"] <= rouge["high"]
    assert [one["name"] for one in report["forgotten"]] == ["general text", "the base's own answers"]
    assert len(report["examples"]) == 3 and report["examples"][0]["prompt"].startswith("user: ")
    text, card = (run.path / "report.txt").read_text(), (run.path / "card.md").read_text()
    for word in ("loss of held-out answers", "Apache-2.0", "general text", "the data:"):
        assert word in text
    assert "Side by side" in card and run.read_json("card.json")["held_out"]["verdict"] == report["verdict"]
    sizes = {name: t.shape for name, t in load(run).state_dict().items()}
    assert (sizes == {n: t.shape for n, t in load(base).state_dict().items()}) is (manner.lora is None)
    assert verbs.resume(run).name == run.name  # it is done: nothing happens
    chats = [Chat.of(one.path) for one in (base, run)]
    assert chats[0].tokens(MESSAGES, ByteTokenizer()) == chats[1].tokens(MESSAGES, ByteTokenizer())


def test_the_loss_of_answers_is_the_models(base: Run, data: Path) -> None:
    run = tune(base, data, "2steps", Manner(None))
    held = list(compare.held_out(run.recipe.data))
    model: Any = load(run)
    told = [told for _, told in held]
    each = [
        float(
            model.loss(
                {"tokens": torch.tensor(np.array([one.ids_N])).long(), "mask": torch.tensor(one.counted_N[None])}
            ).total
        )
        for one in told
    ]
    assert compare.nats(model, told) == pytest.approx(each, rel=1e-4)
    count = sum(int(one.counted_N[1:].sum()) for one in told)
    assert run.read_json("report.json")["learned"][0]["tuned"] == pytest.approx(sum(each) / count, rel=2e-2)


@pytest.mark.parametrize("chat", [None, {"bos": None, "eos": "<|endoftext|>", "add_bos": False}])
def test_a_base_without_a_template_is_taught_ours_and_keeps_it(base: Run, data: Path, chat: Any) -> None:
    (base.path / "chat.json").unlink()
    if chat:
        base.write_json("chat.json", chat)
    told: list[Any] = []
    run = tune(base, data, "1steps", watch=told.append)
    assert any("no chat template" in str(event.get("text")) for event in told)
    before, after = Chat.of(base.path), Chat.of(run.path)
    assert before.own and not after.own
    assert before.render(MESSAGES) == after.render(MESSAGES)
    assert before.tokens(MESSAGES, ByteTokenizer()) == after.tokens(MESSAGES, ByteTokenizer())


def test_a_folder_of_texts_is_continued_training(base: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number, row in enumerate(talks(40)):
        (notes / f"{number}.md").write_text(row.text * 8)
    run = tuning.make_from(base, notes, Spending.of("6steps", price_per_hour=0.5))
    assert run.decided("price_per_hour") == 0.5
    report = run.read_json("report.json")
    assert report["learned"][0]["name"] == "held-out text" and 1 <= len(report["examples"]) <= 5
    assert run.read_json("card.json")["data"]["splits"]["heldout"]["documents"] > 0
    with pytest.raises(ConfigError, match="needs files"):
        tuning.make_from(base, None, Spending.of("6steps"))


def test_stopped_and_resumed_is_the_same(base: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tune(base, data, "6steps", Manner(4))
    from nomoat.making import StoppedError
    from nomoat.train.training import Training

    looked = Training.look

    def stop(self: Training) -> None:
        looked(self)
        if self.state.step == 3:
            raise KeyboardInterrupt

    def keeping(self: Training) -> None:
        self.keep()
        stop(self)

    monkeypatch.setattr(Training, "look", keeping)
    with pytest.raises((KeyboardInterrupt, StoppedError)):
        tune(base, data, "6steps", Manner(4))
    monkeypatch.setattr(Training, "look", looked)
    again = verbs.resume("last")
    assert again.name != whole.name and again.recipe == whole.recipe
    losses = [[event["training_loss"] for event in run.metrics("step")] for run in (whole, again)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # each has measured for itself which kernel is faster
    tuned = [run.read_json("report.json")["learned"][0]["tuned"] for run in (whole, again)]
    assert tuned[1] == pytest.approx(tuned[0], rel=1e-3)


def test_budgets_in_passes_and_in_time(base: Run, data: Path) -> None:
    asked = lambda text: tuning._Asked(text, Manner(), None, None, None, "cpu")  # noqa: E731
    for text, steps in (("1epochs", 10), ("2 epochs", 20), ("0.5passes", 5), ("7steps", 7)):
        assert tuning._budget(asked(text), 10) == Budget(text, steps, "steps")
    run = tune(base, data, "2s", Manner(2))
    assert run.recipe.budget.unit == "seconds" and run.recipe.budget.most_steps
    assert run.decided("steps") <= run.recipe.budget.most_steps
    assert Budget("1h", 3600, "seconds", most_steps=5).bounded(9, "why")[0] == 5
    assert Budget("1h", 3600, "seconds").bounded(9, "why") == (9, "why")


def test_what_is_refused_and_how_it_is_said(base: Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nomoat pull smollm2-135m-instruct"):
        tune("smollm2-135m-instruct", data)
    with pytest.raises(ConfigError, match="no file or folder"):
        tune(base, tmp_path / "gone.jsonl")
    for name, text, why in (
        ("empty.jsonl", "", "no conversation"),
        ("numbers.csv", "x,y\n1,2\n3,4\n", "its columns are x, y"),
        ("empty.txt", "", "no text"),
        ("long.jsonl", json.dumps({"prompt": "x" * 999, "completion": "y"}), "no answer within the context"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=why):
            tune(base, tmp_path / name)
    with pytest.raises(ConfigError, match="--dora is a kind"):
        tune(base, data, manner=Manner(None, dora=True))
    (base.path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        tune(base, data)


def test_make_proposes_a_base_that_is_at_hand(base: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A few words.")
    said = tuning.proposal(tmp_path / "a.txt")
    assert f"--from {base.name}" in said and tuning.proposal(None) == ""
    base.mark("done")
    (base.path / "tokenizer.json").unlink()
    assert tuning.proposal(tmp_path / "a.txt") == ""


def test_the_command(base: Run, data: Path) -> None:
    words = ["tune", base.name, str(data), "--budget", "1steps", "--lora", "2", "--json"]
    result = CliRunner().invoke(entry.root, words[:-1], obj=entry.Lines())
    assert result.exit_code == 0, result.output
    assert "loss of held-out answers" in result.output and "Your model:" in result.output
    for more in (["--full", "--lora", "2"], ["--prompt", "a"], ["--lora", "0"]):
        assert CliRunner().invoke(entry.root, ["tune", base.name, str(data), *more], obj=entry.Lines()).exit_code


CASES = (
    # answer, references, score: common words in order / lengths, by hand
    ("the cat sat on the mat", ["the cat sat on the mat"], 1.0),
    ("the cat", ["the cat sat on the mat"], 2 * 2 / (2 + 6)),
    ("mat the on sat", ["the cat sat on the mat"], 2 * 2 / (4 + 6)),
    ("A B, c!", ["a-b; d", "c"], 2 * 2 / 6),
    ("", ["a"], 0.0),
    ("...", ["..."], 0.0),
    ("police killed the gunman", ["police kill the gunman"], 0.75),  # Lin 2004, section 3
    ("the gunman kill police", ["police kill the gunman"], 0.5),
)


@pytest.mark.parametrize(("answer", "references", "score"), CASES)
def test_rouge_l_by_hand(answer: str, references: list[str], score: float) -> None:
    assert rouge_l(answer, references) == pytest.approx(score)


def test_rouge_l_is_the_packages() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the package rouge-score")
    theirs = scorer.RougeScorer(["rougeL"])
    texts = [row.text for row in talks(60)]
    for one, two in zip(texts, reversed(texts), strict=True):
        assert rouge_l(one, [two]) == pytest.approx(theirs.score(two, one)["rougeL"].fmeasure)


def test_forgetting_is_said_in_plain_words() -> None:
    lost = compare.Beside("general text", "bits per byte", 1.0, 1.1, 1.05, 1.15, 9)
    kept = compare.Beside("the base's own answers", "nats a token", 1.0, 1.04, 1.0, 1.1, 9)
    [warning] = compare.Comparison("", (), (lost, kept), ()).warnings
    assert "general text cost it 10% more" in warning and "--learning-rate" in warning and "--lora" in warning
    assert 15 < len(compare.pieces(compare.general_text())) < 40 and len(set(compare.other_prompts())) == 100


def test_packed_weights_are_not_trained_whole_and_nothing_is_packed_to_say_so(base: Run, data: Path) -> None:
    before = len(list(base.path.parent.iterdir()))
    with pytest.raises(ConfigError, match="no gradient"):
        tune(base, data, "1steps", Manner(None, bits=8))
    assert len(list(base.path.parent.iterdir())) == before
