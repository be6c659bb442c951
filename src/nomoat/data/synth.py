"""A synth recipe, what it starts from, and what passes between a teacher's answers: Synth, Seed, Draft, Row.

seeds, documents -> Seed ... -> Draft (what is asked, how its answer is read) -> ... -> Draft "row" -> Row
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.ledger import UNKNOWN

METHODS = ("self-instruct", "evol", "persona", "back-translation", "questions", "rejection")
INSTRUCTIONS = ("instruction", "question", "prompt", "persona", "text")
ANSWERS = ("output", "answer", "response", "completion")
PASSAGE = 2000
"""Characters of a document that are shown to a teacher at once."""
RUBRIC = """Does the answer do what the instruction asks, correctly, completely and without padding?
5: all of it, nothing to mend. 4: all of it, small flaws. 3: most of it. 2: little of it, or wrong. 1: not at all."""


@dataclass(frozen=True)
class Synth:
    """What is written, by whom, from what, and for how much.

    Args:
        about: one line for lists.
        teacher: a run, or `http(s)://host/v1#model`.
        method: one of `METHODS`.
        seeds: a file of rows (.jsonl, .json; also .gz), or a file or folder of documents.
        count: rows wanted.
        licence, terms: of the teacher; required for an address, `unknown` and `none` are answers too.
        seeds_licence: of the seeds, where their rows and files do not say.
        key: the environment variable or the file that holds the key of an address.
        cap: what may be spent: tokens, time, or money such as `2.50EUR`; empty: no cap.
        price: of a million tokens read and of a million written, in the cap's currency.
        samples: answers to each instruction; for rejection sampling.
        verifier: `number`, `equations`, `regex:PATTERN`, or a function (answer, reference) -> what is wrong.
        judge: who scores each row by the rubric: `teacher`, or as `teacher` above; empty: nobody.
        rubric: what is asked of a row, from 1 to 5.
        threshold: lowest score that is kept.
        nearest: ROUGE-L to an earlier instruction above which one is not new.
        max_tokens, temperature, top_p: of each answer.
        concurrency: requests on their way at once.
        ahead: how many requests may be made before the first of them is answered; part of what is asked, because
            later requests learn from earlier answers.
        seconds: after which an answer is given up.
        seed: of all chance.
    """

    about: str
    teacher: str = ""
    method: str = "self-instruct"
    seeds: str = ""
    count: int = 1000
    licence: str = ""
    terms: str = ""
    seeds_licence: str = ""
    key: str = "NOMOAT_KEY"
    cap: str = ""
    price: tuple[float, float] = (0.0, 0.0)
    samples: int = 1
    verifier: str | Callable[[str, str], str] = ""
    judge: str = ""
    rubric: str = RUBRIC
    threshold: float = 4.0
    nearest: float = 0.7
    max_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.95
    concurrency: int = 8
    ahead: int = 32
    seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            known = ", ".join(METHODS)
            raise ConfigError(f"there is no method `{self.method}`", f"there is {known}", nearest(self.method, METHODS))
        for name in ("count", "samples", "max_tokens", "concurrency", "ahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", f"it is {getattr(self, name)}")
        if not 0 < self.nearest <= 1:
            raise ConfigError("nearest must lie above 0 and at most at 1", f"it is {self.nearest}", "0.7 is usual")
        if self.limit is not None and self.limit.unit == "money" and not any(self.price):
            why = f"`{self.cap}` is spent on tokens, and only you know what they cost"
            raise ConfigError("a cap in money needs the price of a million tokens", why, "price=READ,WRITTEN")

    @property
    def limit(self) -> Budget | None:
        """The cap.

        Raises:
            ConfigError: it is nothing, or cannot be read.
        """
        if not self.cap:
            return None
        limit = Budget.parse(self.cap, price_per_hour=1.0)  # money buys tokens here, not hours
        if limit.unit not in ("seconds", "tokens", "money"):
            raise ConfigError(f"a cap of `{self.cap}` cannot be held", "", "cap tokens, time or money: 2Mtokens, 30m")
        return limit


@dataclass(frozen=True)
class Seed:
    """What people wrote, or a row that was made from it.

    Args:
        text: an instruction, a question, a document, a persona; `kind` says which.
        answer: the reference, where there is one.
        licence: SPDX id, or unknown.
        generation: 0 for human work.
    """

    text: str
    answer: str = ""
    licence: str = UNKNOWN
    generation: int = 0
    kind: str = "text"

    @property
    def hash(self) -> str:
        """SHA-256 of the text, as ingest has it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Draft:
    """Something on its way to a row.

    Args:
        stage: how what comes back is read; `row`: nothing more is asked.
        ask: what the teacher is asked.
        instruction: what the row's user says.
        answer: what the row's assistant says.
        topic: what of it must be new; empty: nothing.
        parents: what it was made from.
        reference: by which it is verified.
        sample: which of several answers to the same request.
    """

    stage: str
    ask: str = ""
    instruction: str = ""
    answer: str = ""
    topic: str = ""
    parents: tuple[Seed, ...] = ()
    reference: str = ""
    sample: int = 0

    def row(self, method: str, teacher: Any) -> dict[str, Any]:
        """The row as it is written: a conversation, and all that its users must know of where it comes from."""
        said = {"user": self.instruction, "assistant": self.answer}
        licences = sorted({*(seed.licence or UNKNOWN for seed in self.parents), teacher.licence or UNKNOWN})
        return {
            "messages": [{"role": role, "content": text} for role, text in said.items()],
            "origin": {"teacher": teacher.name, "licence": teacher.licence, "terms": teacher.terms},
            "generation": 1 + max((seed.generation for seed in self.parents), default=0),
            "derived_from": list(dict.fromkeys(seed.hash for seed in self.parents)),
            "licence": UNKNOWN if UNKNOWN in licences else " AND ".join(licences),
            "method": method,
        }


def read_seeds(where: str, licence: str = "") -> list[Seed]:
    """The seeds of a recipe: rows of a .jsonl or .json, or passages of documents.

    Args:
        where: a file or folder.
        licence: of what does not say itself.

    Raises:
        DataError: it is not there, it is empty, or its rows hold no instruction.
    """
    path = Path(where).expanduser()
    if not where or not path.exists():
        raise DataError(f"there are no seeds at `{where}`", "", "name a file or folder: seeds=PATH")
    if re.search(r"\.jsonl?(\.gz)?$", path.name):
        seeds = [_seed(row, place, licence) for place, row in _rows(path)]
    else:
        seeds = [*_passages(path, licence)]
    if not seeds:
        raise DataError(f"{path} holds no seeds", "it is empty", "a row or a document at least is needed")
    return seeds


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            text = file.read()
        if text.lstrip().startswith("["):
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(json.loads(text), 1))
            return
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{path}, line {number}", json.loads(line)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"the seeds in {path} cannot be read", str(error), "one JSON object a line") from None


def _seed(row: Any, place: str, licence: str) -> Seed:
    """A row of Alpaca's, self-instruct's, gsm8k's or the conversations' form."""
    if isinstance(row, Mapping):
        turns = row.get("messages") or []
        said = {turn.get("role"): turn.get("content") for turn in turns if isinstance(turn, Mapping)}
        inner = (row.get("instances") or [{}])[0]
        fields: dict[str, Any] = {**row, **(inner if isinstance(inner, Mapping) else {}), "prompt_of": said.get("user")}
        kind = next((name for name in (*INSTRUCTIONS, "prompt_of") if _text(fields.get(name))), "")
        if kind:
            text = "\n\n".join(filter(None, (_text(fields[kind]), _text(fields.get("input")))))
            answer = next(
                (found for name in ANSWERS if (found := _text(fields.get(name)))), _text(said.get("assistant"))
            )
            depth = row.get("generation")
            own = _text(row.get("licence")) or licence or UNKNOWN
            return Seed(text, answer, own, depth if isinstance(depth, int) else 0, kind)
    why = f"no {', '.join(INSTRUCTIONS)} or messages in it"
    raise DataError(f"{place} is no seed", why, 'write {"instruction": "...", "output": "..."}')


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _passages(path: Path, licence: str) -> Iterator[Seed]:
    """Documents, cut at blank lines into what a teacher reads at once."""
    from nomoat.data.document import Document
    from nomoat.data.readers import Found, read, walk

    for found in walk(path):
        for item in read(found.path) if isinstance(found, Found) else ():
            if not isinstance(item, Document):
                continue
            own, held = item.licence or licence or UNKNOWN, ""
            for part in [*re.split(r"\n\s*\n", item.text), ""]:
                if held and (not part or len(held) + len(part) > PASSAGE):
                    yield Seed(held, "", own, item.generation)
                    held = ""
                held = f"{held}\n\n{part.strip()[:PASSAGE]}".strip()
            if held:
                yield Seed(held, "", own, item.generation)
