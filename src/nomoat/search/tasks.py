"""Tasks: questions, what answers them, what says whether they are right, and what answers them without a model.

name -> Task -> questions(train | exam) -> attempts(model) -> token rows, right?
             -> blind: an uninformed policy with the same verifier      -> exhaustive: everything that could be tried

Blind and exhaustive search are the controls that every curve of thinking longer is held against: with an exact
verifier and enough tries even chance solves small puzzles.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.games.countdown import Countdown, random_play, solutions
from nomoat.games.countdown_problems import TESTS, exam, problems
from nomoat.games.countdown_text import LINE_TOKENS, Notation

if TYPE_CHECKING:
    from nomoat.core.domain import States, Verifier
    from nomoat.sampling.write import Spells

    Array = np.ndarray[Any, Any]


class Attempts(NamedTuple):
    """What a model wrote, a row an answer.

    Args:
        tokens: [N, L] ids, padded behind.
        mask: bool [N, L]: written by the model.
        ends: bool [N, L]: the last token of a step, or of the prompt.
        right: float32 [N], the verifier's scores.
        texts: what was written.
    """

    tokens: Array
    mask: Array
    ends: Array
    right: Array
    texts: list[str]


class Task(Protocol):
    """What can be improved on and measured. Frozen values, saved in recipes."""

    @property
    def name(self) -> str: ...
    def train(self, seed: int, index_B: Array) -> Any:
        """Questions to learn from, each by its number alone."""

    def exam(self, count: int) -> Any:
        """The same held-out questions every time."""

    def attempts(self, model: Any, spelling: Spells | None, questions: Any, tries: int, seed: int) -> Attempts:
        """`tries` answers to each question, question after question."""

    def blind(self, questions: Any, tries: int, seed: int) -> Array | None:
        """Whether each try of an uninformed policy is right, bool [B, tries]; None where there is no such policy."""

    def exhaustive(self, questions: Any) -> tuple[Array, Array] | None:
        """Of each question how many distinct states there are in all, and whether any is right; None: not countable."""


@dataclass(frozen=True)
class CountdownTask:
    """Countdown with so many numbers.

    Args:
        numbers: that are given.
        limit: the largest number that a step may give.
        legal: only legal lines can be written; with False the model alone is judged.
        temperature: of its tokens.
        split: of the test.
        puzzles: a file of the Game of 24 in place of the test: rows with `puzzle`, four numbers.
    """

    numbers: int = 4
    limit: int = 999
    legal: bool = True
    temperature: float = 1.0
    split: str = "numbers"
    puzzles: str = ""

    def __post_init__(self) -> None:
        if self.split not in TESTS:
            raise ConfigError(
                f"there is no test `{self.split}`", f"there is {', '.join(TESTS)}", nearest(self.split, TESTS)
            )

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"game24:{self.puzzles}" if self.puzzles else f"countdown:{self.numbers}"

    @cached_property
    def game(self) -> Countdown:
        """The rules."""
        return Countdown(self.numbers, self.limit)

    @cached_property
    def notation(self) -> Notation:
        """How problems are written."""
        return Notation(self.game)

    def train(self, seed: int, index_B: Array) -> States:
        """Problems of the training split."""
        return problems(self.game, "train", seed, index_B).state_B

    def exam(self, count: int) -> States:
        """The first of the test, or of the puzzles."""
        if self.puzzles:
            numbers = [[int(word) for word in str(row["puzzle"]).split()] for row in rows_of(Path(self.puzzles))]
            return self.game.start(numbers[:count], [24] * len(numbers[:count]))
        return exam(self.game, self.split)[:count]

    def attempts(self, model: Any, spelling: Spells | None, questions: States, tries: int, seed: int) -> Attempts:
        """Answers, token by token or mask by mask."""
        from nomoat.search.worded import solve

        notation = self.notation
        written = solve(model, notation, questions, tries, seed, self.legal, self.temperature)
        ids = np.concatenate([ids for _, ids in written])
        place = np.arange(notation.length)
        mask = np.broadcast_to(place >= notation.prompt_length, ids.shape)
        ends = (place >= notation.prompt_length - 1) & ((place - notation.prompt_length + 1) % LINE_TOKENS == 0)
        right = notation.read(ids).solved.astype(np.float32)
        texts = [notation.show(row).partition("|")[2].strip() for row in ids]
        return Attempts(ids, mask, np.broadcast_to(ends, ids.shape), right, texts)

    def blind(self, questions: States, tries: int, seed: int) -> Array:
        """Legal lines by chance, all equally likely."""
        return random_play(self.game, questions, tries, np.random.default_rng(seed))

    def exhaustive(self, questions: States) -> tuple[Array, Array]:
        """Every distinct state."""
        found = [solutions(self.game, questions[row : row + 1]) for row in range(len(questions))]
        return np.array([each.states for each in found]), np.array([each.ways[0][0] > 0 for each in found])


@dataclass(frozen=True)
class Asked:
    """Questions of a file, answered in text and judged by a verifier.

    Args:
        path: jsonl (also .gz): rows with `question` (or `prompt`, `problem`, `text`), and what the verifier needs.
        verifier: as on the command line: `number`, `choice`, `tests`, `regex:PATTERN`, `mine.py:check`, ...
        max_tokens: of an answer.
        temperature: of its tokens.
        held: share of the questions that are the exam.
        prompt: into which a question is put, where the model was not taught to talk.
    """

    path: str
    verifier: str = "number"
    max_tokens: int = 256
    temperature: float = 0.8
    held: float = 0.2
    prompt: str = "Question: {question}\nAnswer:"

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.verifier}:{self.path}"

    @cached_property
    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """To learn from, and held out: by the hash of the question, so that copies stay on one side."""
        from hashlib import sha256

        found = rows_of(Path(self.path))
        if not found:
            raise DataError(f"{self.path} holds no questions", fix="give it rows with `question` and `answer`")
        share = [int.from_bytes(sha256(asked(row).encode()).digest()[:4], "big") / 2**32 for row in found]
        held = [row for row, each in zip(found, share, strict=True) if each < self.held]
        return [row for row, each in zip(found, share, strict=True) if each >= self.held], held or found

    @cached_property
    def verify(self) -> Verifier:
        """Guarded; it counts what was late and what broke."""
        from nomoat.search.finding import find

        return find(self.verifier)

    def train(self, seed: int, index_B: Array) -> list[dict[str, Any]]:
        """Questions in an order of the seed, over and over."""
        rows = self.rows[0]
        if not rows:
            raise DataError(f"{self.path} has no questions left to learn from", "all are held out", "add questions")
        turn, place = np.divmod(np.asarray(index_B), len(rows))
        orders = {number: np.random.default_rng((seed, number)).permutation(len(rows)) for number in np.unique(turn)}
        return [rows[orders[number][at]] for number, at in zip(turn, place, strict=True)]

    def exam(self, count: int) -> list[dict[str, Any]]:
        """Held-out questions."""
        return self.rows[1][:count]

    def attempts(
        self, model: Any, spelling: Spells | None, questions: Sequence[dict[str, Any]], tries: int, seed: int
    ) -> Attempts:
        """Answers in text."""
        from nomoat.sampling.tokens import SamplingOptions
        from nomoat.sampling.write import continue_tokens

        assert spelling is not None
        options = SamplingOptions(
            self.temperature, max_tokens=self.max_tokens, seed=seed, stop=getattr(spelling, "stop", ())
        )
        prompts = [ids for row in questions for ids in [self._prompt(spelling, asked(row))] * tries]
        written = continue_tokens(model, spelling, prompts, options)
        length = max(len(p) + len(w.tokens) for p, w in zip(prompts, written, strict=True))
        tokens = np.full((len(prompts), length), spelling.eot, np.int64)
        mask, ends = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
        for row, (prompt, piece) in enumerate(zip(prompts, written, strict=True)):
            whole = [*prompt, *piece.tokens]
            tokens[row, : len(whole)], mask[row, len(prompt) : len(whole)] = whole, True
            breaks = [
                len(prompt) - 1,
                *(k for k in range(len(prompt), len(whole)) if b"\n" in spelling.token_bytes(whole[k])),
            ]
            ends[row, [*breaks, len(whole) - 1]] = True
        texts = [piece.text for piece in written]
        right = [
            verdict.score
            for number, row in enumerate(questions)
            for verdict in self.verify(row, texts[number * tries : (number + 1) * tries])
        ]
        return Attempts(tokens, mask, ends, np.array(right, np.float32), texts)

    def _prompt(self, spelling: Any, question: str) -> list[int]:
        """A question's ids: as in a conversation where the model was taught to talk (data/chat.py)."""
        if hasattr(spelling, "asked"):
            return list(spelling.asked(question))
        return [*spelling.begin, *map(int, spelling.encode(self.prompt.format(question=question)))]

    def blind(self, questions: Sequence[dict[str, Any]], tries: int, seed: int) -> Array | None:
        """Answers to other questions, drawn by chance: what knowing only the kind of answer gives."""
        others = [answer for row in self.rows[0] if (answer := str(row.get("answer", "")))]
        if not others or self.verifier == "tests":
            return None
        chance = np.random.default_rng(seed)
        found = [
            [
                verdict.right
                for verdict in self.verify(row, [others[k] for k in chance.integers(len(others), size=tries)])
            ]
            for row in questions
        ]
        return np.array(found)

    def exhaustive(self, questions: Any) -> None:
        """Texts cannot be counted."""
        return


def asked(row: dict[str, Any]) -> str:
    """The question of a row."""
    for name in ("question", "prompt", "problem", "text", "instruction"):
        if row.get(name):
            return str(row[name])
    raise DataError(f"a row has no question: {str(row)[:80]}", fix="give it `question`")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file, also packed.

    Raises:
        DataError: there is no such file, or a line is no JSON object.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{path} cannot be read", str(error), "name a jsonl file with one question a line") from error
    return list(_objects(path, text))


def _objects(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError as error:
                raise DataError(f"line {number} of {path} is no JSON", str(error), "one object a line") from error
            if not isinstance(found, dict):
                raise DataError(f"line {number} of {path} is no JSON object", line[:60], "one object a line")
            yield found


def find(text: str) -> Task:
    """A task by its name: `countdown:5`, `game24:FILE`, or `VERIFIER:FILE` for questions of one's own.

    Raises:
        ConfigError: there is none of that name.
    """
    kind, _, rest = text.partition(":")
    if kind == "countdown" and (rest.isdigit() or not rest):
        return CountdownTask(int(rest or 4))
    if kind == "game24" and rest:
        return CountdownTask(4, puzzles=rest)
    verifier, _, file = text.rpartition(":")
    if verifier and file.endswith((".jsonl", ".jsonl.gz")):
        return Asked(file, verifier)
    raise ConfigError(
        f"there is no task `{text}`",
        "there is countdown:4, game24:FILE, and VERIFIER:FILE.jsonl with questions of your own",
        nearest(kind, ("countdown", "game24")) or "write for example `number:questions.jsonl`",
    )
