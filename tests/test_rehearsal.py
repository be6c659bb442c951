"""Rehearsal: what a base says to itself is written once, keeps its end open where it was cut, and has its share."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lessons import talks
from test_tuning import base, data  # noqa: F401 - fixtures

from nomoat import rehearsing, tuning
from nomoat.core.errors import ConfigError
from nomoat.core.run import Run, load
from nomoat.data.chat import Chat
from nomoat.data.lessons import Lessons, lesson_of, write_lessons
from nomoat.data.manifest import Manifest
from nomoat.data.rehearsal import Rehearsed
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.making import Spending
from nomoat.tuning import Manner, tune

LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture
def written(base: Run, tmp_path: Path) -> tuple[Path, Path]:  # noqa: F811
    """Lessons of a user and of a base."""
    folders = tmp_path / "own", tmp_path / "bases"
    for folder, count in zip(folders, (60, 12), strict=True):
        write_lessons(folder, talks(count), base.path, 128, held_out_share=0.1 if count == 60 else 0.0)
    return folders


def texts(batch: Any) -> list[str]:
    tokenizer = ByteTokenizer()
    return [tokenizer.decode(row.tolist()) for row in batch["tokens"]]


def test_a_share_of_the_rows_is_rehearsed_and_none_of_the_data_is_lost(written: tuple[Path, Path]) -> None:
    own, bases = (Lessons(str(folder), 128) for folder in written)
    mixed = Rehearsed(own, bases.path, 0.25)
    rows = [text for batch in islice(mixed.stream(None, 4, 7), 100) for text in texts(batch)]
    ours = {texts(own.open().batch([n], [n]))[0] for n in range(own.open().size)}
    theirs = {texts(bases.open().batch([n], [n]))[0] for n in range(bases.open().size)} - ours
    assert sum(row in theirs for row in rows) <= 100 and {*rows} >= ours
    pure = [text for batch in islice(own.stream(None, 4, 7), 75) for text in texts(batch)]
    kept = [row for row in rows if row not in theirs]
    assert [row for row in kept if row in ours][: len(pure)] and {*kept} == {*pure} | ({*kept} - ours)
    assert next(iter(mixed.held_out(None, 2, 100)))["tokens"].shape[1] == 129
    assert mixed.paths == own.paths and not mixed.changed()


@pytest.mark.parametrize("start", [0, 3])
def test_any_step_and_any_number_of_workers_read_the_same(written: tuple[Path, Path], start: int) -> None:
    mixed = Rehearsed(Lessons(str(written[0]), 128), str(written[1]), 0.3)
    whole = [*islice(mixed.stream(None, 6, 1), start + 2)][start:]
    parts = [islice(mixed.stream(None, 6, 1, start, rank, 2), 2) for rank in range(2)]
    for step, (one, other) in zip(whole, zip(*parts, strict=True), strict=True):
        assert step["index"].tolist() == sorted(one["index"].tolist() + other["index"].tolist())
        for name in ("tokens", "mask", "positions"):
            assert torch.equal(step[name][0::2], one[name]) and torch.equal(step[name][1::2], other[name])


def test_an_answer_that_goes_on_is_not_ended(base: Run) -> None:  # noqa: F811
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"}]
    tokenizer, chat = ByteTokenizer(), Chat.of(base.path)
    whole, cut = (lesson_of(said, chat, tokenizer, 200, open_end=end) for end in (False, True))
    assert whole is not None and cut is not None and cut.ids == whole.ids[: len(cut.ids)]
    assert tokenizer.decode(cut.ids).endswith("Because") and cut.learn[-1] and len(cut.ids) < len(whole.ids)


@pytest.mark.parametrize("template", ["", LLAMA_2, None])
def test_the_users_turn_is_found_in_any_template(base: Run, template: str | None) -> None:  # noqa: F811
    tokenizer = ByteTokenizer()
    chat = Chat.of(base.path) if template == "" else Chat(template)
    head, end = rehearsing.user_turn(chat, tokenizer)
    ids, _ = chat.tokens([{"role": "user", "content": "What is it?"}], tokenizer)
    said = tokenizer.encode("What is it?").tolist()
    assert ids[: len(head) + len(said) + 1] == [*head, *said, end]


def test_what_a_base_says_to_itself_is_written_once_and_known_for_its(base: Run, tmp_path: Path) -> None:  # noqa: F811
    told: list[Any] = []
    folder = rehearsing.rehearsal(base, 6000, 200, "cpu", tmp_path, watch=told.append)
    assert folder is not None and told
    manifest = Manifest.load(folder)
    assert manifest.splits["train"]["documents"] >= rehearsing.FEWEST and manifest.splits["heldout"]["documents"] == 0
    assert manifest.splits["train"]["tokens"] < 6000 + 200
    assert manifest.licences.generation == 1 and manifest.licences.origins[0][0] == base.label
    assert manifest.settings["teachers"][0]["licence"] == "Apache-2.0"
    stamp = (folder / "train-learn.bin").stat().st_mtime_ns
    assert rehearsing.rehearsal(base, 6000, 200, "cpu", tmp_path) == folder
    assert (folder / "train-learn.bin").stat().st_mtime_ns == stamp
    asked = [messages[0]["content"] for messages in Lessons(str(folder), 200).open().messages()]
    assert len({*asked}) == len(asked)
    # the answers are the base's likeliest: it is sure of them
    from nomoat.evaluate import tuned as compare

    rows = Lessons(str(folder), 200).open()
    span = rows.starts[0] + np.arange(rows.lengths[0])
    one = compare.Told(rows.reader.gather(span), rows.learn[span])
    other = compare.Told(np.where(one.counted_N, (one.ids_N + 1) % 256, one.ids_N), one.counted_N)
    assert compare.nats(load(base), [one])[0] < compare.nats(load(base), [other])[0]


def test_half_of_what_is_rehearsed_is_what_will_be_answered_otherwise(base: Run, tmp_path: Path) -> None:  # noqa: F811
    own = [[{"role": "user", "content": f"{number} red?"}] for number in range(40)]
    folder = rehearsing.rehearsal(base, 3000, 200, "cpu", tmp_path, own)
    assert folder is not None and folder != rehearsing.rehearsal(base, 3000, 200, "cpu", tmp_path)
    said = [messages[0]["content"] for messages in Lessons(str(folder), 200).open().messages()]
    share = sum(text.endswith(" red?") for text in said) / len(said)
    assert 0.3 < share < 0.7
    answers = {messages[1]["content"] for messages in Lessons(str(folder), 200).open().messages()}
    assert len(answers) > 1


def test_a_base_that_ends_no_question_is_tuned_without(base: Run, data: Path, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setattr(rehearsing, "QUESTION", 1)
    monkeypatch.setattr(rehearsing, "WAVES", 2)
    run = tune(base, data, "1steps")
    assert isinstance(run.recipe.data, Lessons) and "the base's own answers" not in run.recipe.about


def test_tune_rehearses_by_itself_and_can_be_told_not_to(base: Run, data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tune(base, data, "1epochs")
    assert isinstance(run.recipe.data, Rehearsed) and "40% of the rows are the base's own answers" in run.recipe.about
    plain = tune(base, data, "1epochs", Manner(rehearsal=0))
    assert isinstance(plain.recipe.data, Lessons)
    assert run.recipe.budget.amount == pytest.approx(plain.recipe.budget.amount / 0.6, abs=1)
    assert [one["name"] for one in run.read_json("report.json")["learned"]] == [
        one["name"] for one in plain.read_json("report.json")["learned"]
    ]
    notes = tmp_path / "notes"
    notes.mkdir()
    for number, row in enumerate(talks(40)):
        (notes / f"{number}.md").write_text(row.text * 8)
    made = tuning.make_from(base, notes, Spending.of("2steps"))
    assert isinstance(made.recipe.data, Rehearsed) and made.read_json("report.json")["learned"]


@pytest.mark.parametrize("share", [-0.1, 0.95, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="rehearsal"):
        Manner(rehearsal=share)
