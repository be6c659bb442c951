"""Multiple choice by log-likelihood: which of the options does the model find most likely after the question?

    task file -> questions -> "Question: ...\\nAnswer:" (+ examples) + " option" -> bits of the option -> the cheapest

Two readings, as is usual: by the summed log-probability, and by that sum per byte of the option, so that long options
are not worse for being long. Brown et al. 2020, arXiv:2005.14165, section 2.4; the wording is lm-evaluation-harness's.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Scores
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import Watch, interval, token_bits

QUESTION_FIELDS = ("question", "goal", "prompt", "query", "sentence", "context", "text")
OPTION_FIELDS = ("options", "choices", "endings", "answers")
ANSWER_FIELDS = ("answer", "label", "gold", "answer_index", "correct")
LETTERS = "ABCDEFGHIJ"
TESTED = ("test", "val")
SHOWN = ("dev", "train")
BATCH_QUESTIONS = 256


@dataclass(frozen=True)
class Question:
    """A question, its options, and the place of the right one."""

    text: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """Questions to be answered, and others to show with their answers.

    Args:
        name: the file's name.
        questions: to be answered.
        examples: to be shown; the questions themselves where there are no others (a question is never its own example).
    """

    name: str
    questions: tuple[Question, ...]
    examples: tuple[Question, ...]


@dataclass(frozen=True)
class ChoiceScore:
    """How many answers were right.

    Args:
        task, questions, shots: what was asked, and after how many examples.
        chance: what guessing gives.
        accuracy, interval: by summed log-probability, with its 95 % interval over questions.
        accuracy_per_byte, interval_per_byte: by log-probability per byte of the option.
    """

    task: str
    questions: int
    shots: int
    chance: float
    accuracy: float
    interval: tuple[float, float]
    accuracy_per_byte: float
    interval_per_byte: tuple[float, float]

    def as_text(self) -> str:
        """For people, with a plain word on chance."""
        lines = [f"{self.task}: {self.questions:,} questions, {self.shots} examples before each"]
        for name, value, (low, high) in (
            ("by log-likelihood", self.accuracy, self.interval),
            ("by log-likelihood per byte", self.accuracy_per_byte, self.interval_per_byte),
        ):
            verdict = "better" if low > self.chance else "worse" if high < self.chance else "not told apart"
            lines.append(
                f"  {value:.1%} right {name} (95 %: {low:.1%} to {high:.1%}); "
                f"{verdict} {'from' if verdict == 'not told apart' else 'than'} guessing, {self.chance:.1%}"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def evaluate_choice(
    model: Scores,
    tokenizer: Tokenizer,
    task: Task,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> ChoiceScore:
    """Answer the questions of a task.

    Args:
        model: scores tokens; where examples and question do not fit its context, their end is read.
        tokenizer: the model's.
        task: see `read_task`.
        shots: examples before each question, drawn by `seed` and the question's number: usually 0, 1 or 5.
        limit: so many questions, drawn by `seed`; None: all.
        seed: same seed, same examples.
        watch: told {"kind": "choice", "done", "total"} in questions.

    Raises:
        ConfigError: more examples than there are.
    """
    spare = len(task.examples) - (task.examples is task.questions)
    if not 0 <= shots <= spare:
        raise ConfigError(f"{shots} examples before each question cannot be had", f"{task.name} has {max(0, spare)}")
    order = np.arange(len(task.questions))
    if limit is not None and limit < len(order):
        order = np.sort(np.random.default_rng(seed).permutation(order)[:limit])
    summed, per_byte = np.zeros(len(order)), np.zeros(len(order))
    for first in range(0, len(order), BATCH_QUESTIONS):
        numbers = order[first : first + BATCH_QUESTIONS]
        for place, cost in enumerate(_costs(model, tokenizer, task, shots, seed, numbers), first):
            question = task.questions[order[place]]
            sizes = [max(1, len(option.encode("utf-8", "replace"))) for option in question.options]
            summed[place] = int(np.argmin(cost)) == question.answer
            per_byte[place] = int(np.argmin(np.array(cost) / sizes)) == question.answer
        if watch:
            watch({"kind": "choice", "done": first + len(numbers), "total": len(order)})
    one = np.ones(len(order))
    return ChoiceScore(
        task=task.name,
        questions=len(order),
        shots=shots,
        chance=float(np.mean([1 / len(task.questions[number].options) for number in order])),
        accuracy=float(summed.mean()),
        interval=interval(summed, one, seed),
        accuracy_per_byte=float(per_byte.mean()),
        interval_per_byte=interval(per_byte, one, seed),
    )


def _costs(
    model: Scores, tokenizer: Tokenizer, task: Task, shots: int, seed: int, numbers: NDArray[np.int64]
) -> Iterator[list[float]]:
    """For each question the bits of each of its options."""
    reach: int = model.config.context_length  # type: ignore[attr-defined]
    sequences, sizes = [], []
    for number in numbers:
        before = [*tokenizer.begin, *tokenizer.encode(_prompt(task, int(number), shots, seed)).tolist()]
        for option in task.questions[number].options:
            ids = tokenizer.encode_on(" " + option)
            whole = np.array([*before, *ids.tolist()])
            # An option that does not fit half the context is read in several windows, hence whole.
            sequences.append(whole[-(reach + 1) :] if len(ids) <= reach // 2 else whole)
            sizes.append(len(ids))
    found = iter(
        float(bits[-size:].sum(dtype=np.float64)) if size else 0.0
        for bits, size in zip(token_bits(model, sequences), sizes, strict=True)
    )
    for number in numbers:
        yield [next(found) for _ in task.questions[number].options]


def _prompt(task: Task, number: int, shots: int, seed: int) -> str:
    """The examples with their answers, then the question."""
    shown = []
    if shots:
        order = np.random.default_rng([seed, number]).permutation(len(task.examples))
        own = task.examples is task.questions
        shown = [task.examples[place] for place in order if not (own and place == number)][:shots]
    parts = [f"Question: {one.text}\nAnswer: {one.options[one.answer]}\n\n" for one in shown]
    return "".join([*parts, f"Question: {task.questions[number].text}\nAnswer:"])


def read_task(path: Path | str, examples: Path | str | None = None) -> Task:
    """Read a task from a JSONL or CSV file (also .gz), or a folder of such files.

    A row has a question (`question`, `goal`, `prompt`, ...), options (`options`, `choices`, or columns A, B, C, D) and
    the answer as a number from 0, a letter, or the option's own text. A CSV without a header is read as MMLU's:
    question, options, letter. Of a folder, test* (else val*) is asked, and dev* (else train*) shown as examples.

    Args:
        path: file or folder.
        examples: file of the questions to show; None: the dev* or train* file beside, else the questions themselves.

    Raises:
        DataError: no such file, or a row that cannot be read, with its line.
    """
    asked = Path(path)
    folder = asked if asked.is_dir() else asked.parent
    if asked.is_dir():
        found = _first(folder, TESTED) or _first(folder, SHOWN)
        if found is None:
            raise DataError(f"{asked} holds no task", "Looked for test*, val*, dev* and train*, .jsonl or .csv")
        asked = found
    if not asked.is_file():
        raise DataError(f"There is no task file {asked}", fix="Give a .jsonl or .csv file, or a folder of them")
    shown = Path(examples) if examples else _first(folder, SHOWN)
    questions = tuple(_rows(asked))
    if not questions:
        raise DataError(f"{asked} holds no questions")
    same = shown is None or shown == asked
    return Task(f"{folder.name}/{asked.name}", questions, questions if same else tuple(_rows(shown)))  # type: ignore[arg-type]


def _first(folder: Path, beginnings: Sequence[str]) -> Path | None:
    """The folder's file whose name has the earliest of the beginnings."""
    files = sorted(file for file in folder.iterdir() if file.name.removesuffix(".gz").endswith((".jsonl", ".csv")))
    return next((file for start in beginnings for file in files if file.name.startswith(start)), None)


def _rows(path: Path) -> Iterator[Question]:
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read", str(error)) from error
    lines = _csv(text) if path.name.removesuffix(".gz").endswith(".csv") else _jsonl(path, text)
    for number, row in lines:
        try:
            yield _question(row)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise DataError(f"{path}, line {number}: no question with options and an answer", str(error)) from error


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is no JSON", str(error)) from error
            yield number, row if isinstance(row, dict) else {}


def _csv(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text))
    header: list[str] | None = None
    for row in reader:
        if not row:
            continue
        if header is None:
            header = [name.strip() for name in row]
            if any(name.lower() in QUESTION_FIELDS for name in header):
                continue
            header = ["question", *LETTERS[: len(row) - 2], "answer"]
        yield reader.line_num, dict(zip(header, row, strict=False))


def _question(row: Mapping[str, Any]) -> Question:
    row = {name.lower(): value for name, value in row.items()}
    text, answer = _field(row, QUESTION_FIELDS), _field(row, ANSWER_FIELDS)
    given = next((row[name] for name in OPTION_FIELDS if row.get(name)), None)
    if isinstance(given, str):
        given = json.loads(given)
    if isinstance(given, dict):  # Hugging Face's {"text": [...], "label": [...]}
        given = given["text"]
    options = tuple(str(option) for option in given or (row[letter.lower()] for letter in _letters(row)))
    if len(options) < 2:
        raise ValueError("fewer than two options")
    return Question(str(text), options, _place(answer, options))


def _field(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise ValueError(f"none of the fields {', '.join(names)}")
    return row[found]


def _letters(row: Mapping[str, Any]) -> Iterator[str]:
    for letter in LETTERS:
        if row.get(letter.lower()) is None:
            return
        yield letter


def _place(answer: Any, options: tuple[str, ...]) -> int:
    """The place of the right option: from its text, its letter or its number."""
    if isinstance(answer, str) and answer in options and not answer.strip().isdigit():
        return options.index(answer)
    word = str(answer).strip()
    place = LETTERS.index(word.upper()) if len(word) == 1 and word.upper() in LETTERS else int(word)
    if not 0 <= place < len(options):
        raise ValueError(f"answer {answer!r} among {len(options)} options")
    return place
