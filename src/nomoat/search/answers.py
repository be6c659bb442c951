"""Verifiers of short answers: a choice among several, a pattern, a JSON schema, a text.

    candidate -claims-> {"C"} = the reference's? -> Verdict          candidate -fenced-> JSON -> valid? -> Verdict
    candidates, pattern -> [sandbox: re, with a deadline for each] -> Verdict

A pattern of Python's may take a time that is exponential in the text, and cannot be interrupted in one's own process;
so it is matched in the sandbox. Schemas are checked by the library jsonschema-rs, whose patterns give up in bounded
time, and which knows all of the standard; it is told to fetch nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from nomoat.core.domain import Verdict
from nomoat.core.errors import ConfigError, DataError
from nomoat.search.sandbox import Limits, Sandbox
from nomoat.search.verdicts import told, verdicts

READ = 20_000
"""Characters from the end of a candidate in which its choice is looked for."""
LONGEST = 1_000_000
"""Characters of JSON."""
LETTERS = "ABCDEFGHIJ"
FRAME = re.compile(r"\\(?:boxed|text|textbf|mathrm)\{([^{}]{0,200})\}|[*_`$]")
CLAIM = re.compile(
    r"\b(?i:answer|choice|option)\b\s*+(?i:is\b|[:=])[\s:=]*+(?:(?i:option|choice)\s++)?+[(\[]?"
    r"(?:([A-HJ])(?![\w'’])|([Ia-j])(?=[)\].,;:!?]|\s*(?:\n|$)))",
)
ANOTHER = re.compile(r"[)\]]?\s*(?:or|and|,|/|&)\s*[(\[]?([A-J])(?![\w'’])")
ALONE = re.compile(r"[(\[]?([A-Ja-j])(?:[)\].:]+(?:\s|$)|\s*$)")
MATCHER = """
import json, re, signal, sys
job = json.load(sys.stdin)
pattern = re.compile(job["pattern"], re.DOTALL)
def late(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, late)
for text in job["texts"]:
    try:
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        found = pattern.search(text) is not None
    except TimeoutError:
        found = None
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(found), flush=True)
"""
"""What runs in the sandbox: `re` looks for signals now and then, so that an alarm ends a search."""


def fenced(text: str, *languages: str) -> list[str]:
    """Blocks between lines of three backticks that name one of the languages or none; the last may lack its end."""
    blocks: list[str] = []
    lines: list[str] | None = None
    wanted = False
    for line in [*text.replace("\r\n", "\n").split("\n"), "```"]:
        if not line.lstrip().startswith("```"):
            if lines is not None:
                lines.append(line)
        elif lines is None:
            lines, wanted = [], line.strip(" `\t").lower() in ("", *languages)
        else:
            blocks += ["\n".join(lines)] if wanted else []
            lines = None
    return blocks


def claims(text: str, options: Sequence[str] = ()) -> set[str]:
    """The letters that a text claims as its answer.

    Those behind "answer is", "answer:" and the like; without any, one that begins its first or last line as in "(B)",
    "B." or "b) ..."; without that, the letter of the option of which its last line has the words.

    >>> claims("The answer is **C**."), claims("(B) Paris"), claims("Answer: A or B") == {"A", "B"}
    ({'C'}, {'B'}, True)
    """
    text = text[-READ:]
    for _ in range(2):  # \\boxed{\\text{C}}
        text = FRAME.sub(lambda found: f" {found[1]} " if found[1] else "", text)
    letters = set()
    for found in CLAIM.finditer(text):
        letters.add((found[1] or found[2]).upper())
        if another := ANOTHER.match(text, found.end()):
            letters.add(another[1])
    lines = [line.strip() for line in text.strip().splitlines()] or [""]
    if not letters:
        letters = {begun[1].upper() for line in (lines[0], lines[-1]) if (begun := ALONE.match(line))}
    said = normal(lines[-1])
    return letters or {letter for letter, option in zip(LETTERS, options, strict=False) if normal(option) == said}


def normal(text: str) -> str:
    """A text without what does not matter: case, widths of characters, spaces, and punctuation around it.

    >>> normal("  The  Eiffel\\nTower. ")
    'the eiffel tower'
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(".,;:!?\"'`“”‘’ ")


class Choice:
    """Whether a candidate claims the right one of several options, and no other; see `claims`.

    A problem is the right letter or its place (from 0), or a mapping with `answer` and maybe `options`.
    """

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`.

        Raises:
            DataError: the problem's answer is neither a letter, a place nor an option.
        """
        options = [str(option) for option in problem.get("options", ())] if isinstance(problem, Mapping) else []
        answer = told(problem, "answer")
        right = options.index(answer) if answer in options else answer
        right = LETTERS[right] if isinstance(right, int) and 0 <= right < len(LETTERS) else right
        if not isinstance(right, str) or right.upper() not in [*LETTERS]:
            raise DataError(f"{answer!a:.60} is no choice", f"choices are {LETTERS[0]} to {LETTERS[-1]}, or 0, 1, ...")

        def wrong(candidate: str) -> str:
            found = sorted(claims(candidate, options))
            if len(found) != 1:
                return f"it claims {' and '.join(found)}" if found else "it claims no letter"
            return "" if found[0] == right.upper() else f"it claims {found[0]}, not {right.upper()}"

        return verdicts(wrong, candidates)


class Text:
    """Whether a candidate is the text that is wanted, or one of several, but for what `normal` takes away.

    A problem is the text, a list of texts, or a mapping with `answer`.
    """

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`."""
        answer = told(problem, "answer")
        wanted = {normal(str(each)) for each in (answer if isinstance(answer, list | tuple) else [answer])}
        return verdicts(lambda candidate: "" if normal(candidate) in wanted else "another text", candidates)


class Pattern:
    """Whether a regular expression of Python's is found in a candidate. Problems say nothing.

    Args:
        pattern: `.` is any character; anchor it with `^` and `$`, which are the ends of the text.
        seconds: for each candidate.
        sandbox: where it runs.

    Raises:
        ConfigError: it is no pattern.
    """

    def __init__(self, pattern: str, seconds: float = 2.0, sandbox: Sandbox | None = None) -> None:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"{pattern!a:.60} is no pattern", str(error)) from None
        self.pattern, self.seconds, self.sandbox = pattern, seconds, sandbox or Sandbox()

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`."""
        job = {"pattern": self.pattern, "texts": [*candidates], "seconds": self.seconds}
        room = (256 << 20) + 32 * sum(map(len, candidates))
        limits = Limits(self.seconds * (len(candidates) + 2), memory=room, output=16 * (len(candidates) + 1))
        ended = self.sandbox.run(MATCHER, json.dumps(job), limits, ours=True)
        found = [json.loads(line) for line in ended.output.splitlines()]
        seconds = ended.seconds / max(len(candidates), 1)
        lost = Verdict(0.0, str(ended), seconds, timed_out=ended.timed_out, failed=not ended.timed_out)
        said = {
            True: Verdict(1.0, "", seconds),
            False: Verdict(0.0, "the pattern is not found", seconds),
            None: Verdict(0.0, f"not matched within {self.seconds:g} s", seconds, timed_out=True),
        }
        return [said[each] for each in found] + [lost] * (len(candidates) - len(found))


class Schema:
    """Whether a candidate is JSON that a schema allows: all of it, or its one block of JSON. Problems say nothing.

    Args:
        schema: of any draft of JSON Schema, without references to other files.

    Raises:
        ConfigError: it is no schema, or the library is not there.
    """

    def __init__(self, schema: Any) -> None:
        try:
            from jsonschema_rs import ValidationError, validator_for
        except ImportError:
            why = "it checks JSON schemas"
            raise ConfigError("jsonschema-rs is not there", why, "pip install 'nomoat[verify]'") from None
        try:
            self._validator = validator_for(schema, offline=True)
        except ValueError as error:
            raise ConfigError("this is no JSON schema that can be used", str(error).partition("\n")[0][:300]) from None
        self._invalid = ValidationError

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`."""
        return verdicts(self._wrong, candidates)

    def _wrong(self, candidate: str) -> str:
        blocks = fenced(candidate, "json")
        if len(blocks) > 1:
            return f"it has {len(blocks)} blocks"
        text = blocks[0] if blocks else candidate
        if len(text) > LONGEST:
            return f"more than {LONGEST:,} characters"
        try:
            self._validator.validate(json.loads(text, parse_constant=_refuse))
        except RecursionError:
            return "nested too deep"
        except self._invalid as error:
            return f"{'/'.join(map(str, error.instance_path)) or 'it'}: {error.message[:200]}"
        except ValueError as error:
            return f"no JSON: {error}"[:200]
        return ""


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
