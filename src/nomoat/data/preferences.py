"""Files of prompts, of answers to them, and of pairs of answers of which one is preferred.

.txt (a prompt a line), .jsonl, .jsonl.gz -> prompts | answers | (prompt, preferred, other)
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nomoat.core.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "query", "request")
ANSWERS = ("answer", "output", "response", "completion", "text")
SIDES = (("baseline", "candidate"), ("a", "b"), ("output_1", "output_2"), ("answer_a", "answer_b"))
FORMS = "give a .txt with a prompt a line, or a .jsonl with the field prompt, instruction or question"


def prompts_of(path: Path | str) -> list[str]:
    """The prompts in a file: a line each, or rows with one; an Alpaca `input` follows its instruction.

    Raises:
        DataError: no such file, no prompts, or another form.
    """
    if Path(path).suffix == ".txt":
        found = [line.strip() for line in _text(path).splitlines() if line.strip()]
    else:
        found = [_prompt(row) or _missing(path, number, "prompt", PROMPTS) for number, row in _rows(path)]
    if not found:
        raise DataError(f"{path} holds no prompts", "", FORMS)
    return found


def answers_of(path: Path | str) -> list[str]:
    """The answers in a .jsonl, one a row.

    Raises:
        DataError: it cannot be read, or a row has no answer.
    """
    read = ((number, _first(row, ANSWERS)) for number, row in _rows(path))
    return [_missing(path, number, "answer", ANSWERS) if text is None else text for number, text in read]


def preferred(path: Path | str) -> list[tuple[str, str, str]]:
    """Prompt, preferred answer and other one of each row that has all three; rows without a preference are left out.

    Args:
        path: a .jsonl with a prompt, and `chosen` and `rejected`, or two answers (such as `a` and `b`) and a
            `preference` for the first ("a", or 1 to 1.5) or the second ("b", or 1.5 to 2).

    Raises:
        DataError: it cannot be read, or no row has all three.
    """
    found = [pair for _, row in _rows(path) if (pair := _preferred(row)) is not None]
    if not found:
        looked = "looked for a prompt with chosen and rejected, or with a, b and a preference"
        raise DataError(f"{path} holds no preferences", looked, "give pairs of answers with the better one named")
    return found


def _preferred(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    prompt, said = _prompt(row), row.get("preference")
    names = next((each for each in (("chosen", "rejected"), *SIDES) if all(row.get(name) for name in each)), None)
    if not prompt or names is None:
        return None
    side = {"a": 1.0, "b": 2.0}.get(said.lower().strip()) if isinstance(said, str) else said
    side = 1.0 if names[0] == "chosen" else side
    if isinstance(side, bool) or not isinstance(side, int | float) or not 1 <= side <= 2 or side == 1.5:
        return None
    first, second = (str(row[name]) for name in (names if side < 1.5 else reversed(names)))
    return prompt, first, second


def _rows(path: Path | str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and fields of each row; a bare text is a row of one field."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                why = f"line {number} is no JSON: {error}"
                raise DataError(f"{path} cannot be read as .jsonl", why, "give a JSON object a line") from error
            yield number, row if isinstance(row, dict) else {"prompt": row, "answer": row}


def _text(path: Path | str) -> str:
    try:
        raw = Path(path).read_bytes()
        return (gzip.decompress(raw) if str(path).endswith(".gz") else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read", str(error), FORMS) from error


def _prompt(row: Mapping[str, Any]) -> str:
    prompt, more = _first(row, PROMPTS), row.get("input")
    parts = [prompt, more] if prompt else []
    return "\n\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)


def _missing(path: Path | str, number: int, what: str, names: Sequence[str]) -> str:
    raise DataError(f"{path}, line {number} has no {what}", f"looked for {', '.join(names)}")
