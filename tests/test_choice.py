"""Multiple choice: a model that knows the answers is right, one that does not is at chance; task files are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from markov import Limits

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.tokenizer import ByteTokenizer, train_bpe
from nomoat.evaluate.choice import Question, Task, evaluate_choice, read_task

SHARED = Path(__file__).parents[2] / "shared" / "data"


class Knows:
    """Every byte costs one nat, those after the n-th from the end of a known sentence almost none."""

    def __init__(self, sentences, context_length=64):
        self.sentences = [sentence.encode() for sentence in sentences]
        self.config = Limits(context_length, 257)
        self.seen = []

    def score(self, batch):
        logp_BL = -batch["mask"][:, 1:].float()
        for row, tokens in enumerate(batch["tokens"].tolist()):
            text = bytes(token for token in tokens if token < 256)
            self.seen.append(text)
            if any(sentence in text for sentence in self.sentences):
                logp_BL[row] *= 0.01
        return logp_BL


def questions(count, options=4):
    return tuple(
        Question(
            f"What is number {number}?", tuple(f"{number * 10 + place}" for place in range(options)), number % options
        )
        for number in range(count)
    )


def task(count=40, examples=None, options=4):
    asked = questions(count, options)
    return Task("numbers", asked, asked if examples is None else questions(examples, options))


def right(one):
    return f"{one.text}\nAnswer: {one.options[one.answer]}"


def test_a_model_that_knows_the_answers_is_right():
    asked = task()
    found = evaluate_choice(Knows([right(one) for one in asked.questions]), ByteTokenizer(), asked)
    assert found.accuracy == found.accuracy_per_byte == 1
    assert found.interval == (1, 1)
    assert "better than guessing, 25.0%" in found.as_text()
    assert json.loads(json.dumps(found.as_json()))["accuracy"] == 1


def test_one_that_knows_nothing_is_at_chance():
    chance = np.random.default_rng(0)
    asked = Task("t", tuple(Question("q", tuple("ab"), int(chance.integers(2))) for _ in range(300)), ())
    found = evaluate_choice(Knows([]), ByteTokenizer(), asked)
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert found.chance == 0.5
    assert "not told apart from guessing" in found.as_text()


def test_sum_favours_the_short_option_and_bytes_do_not():
    asked = Task("t", (Question("q", ("a", "long but known"), 1),) * 4, ())

    class Half(Knows):
        def score(self, batch):
            logp_BL = -batch["mask"][:, 1:].float()
            known = torch.tensor([b"long" in bytes(t for t in row if t < 256) for row in batch["tokens"].tolist()])
            return torch.where(known[:, None], logp_BL * 0.5, logp_BL * 2)

    found = evaluate_choice(Half([]), ByteTokenizer(), asked)
    assert (found.accuracy, found.accuracy_per_byte) == (0, 1)


@pytest.mark.parametrize("shots", [0, 1, 5])
def test_examples_stand_before_the_question_with_their_answers(shots):
    asked = task(20)
    model = Knows([], context_length=1000)
    evaluate_choice(model, ByteTokenizer(), asked, shots)
    for text in model.seen:
        assert text.count(b"Question:") == shots + 1
        blocks = text.decode().split("\n\n")
        for block in blocks[:-1]:
            assert block in {f"Question: {right(one)}" for one in asked.questions}
            assert block.split("\n")[0] != blocks[-1].split("\n")[0]
    again = Knows([], context_length=1000)
    evaluate_choice(again, ByteTokenizer(), asked, shots)
    assert again.seen == model.seen


def test_the_end_of_a_long_prompt_is_read_and_a_long_option_is_read_whole():
    asked = Task("t", (Question("x" * 500, ("no", "y" * 50 + "known"), 1), Question("z", ("a", "b"), 0)), ())
    model = Knows(["known"], context_length=40)
    found = evaluate_choice(model, ByteTokenizer(), asked)
    assert max(map(len, model.seen)) <= 41
    assert any(text.endswith(b" no") and len(text) == 41 for text in model.seen)
    assert found.questions == 2


def test_more_examples_than_there_are():
    with pytest.raises(ConfigError, match="2 examples"):
        evaluate_choice(Knows([]), ByteTokenizer(), task(2), shots=2)
    assert evaluate_choice(Knows([]), ByteTokenizer(), task(2), shots=1).shots == 1
    assert evaluate_choice(Knows([]), ByteTokenizer(), task(9), limit=4).questions == 4


ROWS = [
    {"question": "q1", "options": ["a", "b"], "answer": 1},
    {"goal": "q2", "choices": ["a", "b", "c"], "answer": "C"},
    {"prompt": "q3", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "b"},
    {"Question": "q4", "A": "x", "B": "y", "C": "z", "Answer": "B"},
    {"question": "q5", "options": ["3", "1", "0"], "label": "2"},
]


def test_rows_of_many_makes(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    read = read_task(file)
    assert [one.answer for one in read.questions] == [1, 2, 1, 1, 2]
    assert [len(one.options) for one in read.questions] == [2, 3, 2, 3, 3]
    assert read.examples is read.questions


def test_csv_with_and_without_a_header(tmp_path):
    (tmp_path / "test.csv").write_text('"Two, and\nlines?",x,y,z,w,D\nq2,1,2,3,4,A\n', encoding="utf-8")
    (tmp_path / "dev.csv").write_text("question,A,B,answer\nq3,x,y,1\n", encoding="utf-8")
    read = read_task(tmp_path)
    assert read.questions[0] == Question("Two, and\nlines?", ("x", "y", "z", "w"), 3)
    assert read.questions[1].answer == 0
    assert read.examples == (Question("q3", ("x", "y"), 1),)
    assert evaluate_choice(Knows([], 200), ByteTokenizer(), read, shots=1).questions == 2


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"question": "q"}',
        '{"question": "q", "options": ["a"], "answer": 0}',
        '{"question": "q", "options": ["a", "b"], "answer": 2}',
        '{"options": ["a", "b"], "answer": 1}',
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, line):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_task(file)


def test_no_task_there(tmp_path):
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(DataError):
            read_task(path)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b"x")[:5])
    with pytest.raises(DataError, match="cannot be read"):
        read_task(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(("name", "count", "options"), [("mmlu", 2380, 4), ("piqa", 902, 2)])
def test_the_shared_tasks(name, count, options):
    read = read_task(SHARED / name)
    assert len(read.questions) == count
    assert {len(one.options) for one in read.questions} == {options}
    tokenizer = train_bpe([one.text for one in read.questions[:200]], 400)
    found = evaluate_choice(Knows([], 512), tokenizer, read, shots=1, limit=5)
    assert found.questions == 5 and found.chance == 1 / options
