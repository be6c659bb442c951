"""Unit tests as a verifier: programs are examined in the sandbox, several at once, and cannot forge their marks.

    problem (MBPP, HumanEval, tests of one's own) -exam_of-> Exam(setup, tests, prompt, entry)
    candidate -code_of-> code -> [sandbox: examiner.py -pipe- the program] -> lines with a nonce, one a test -> Verdict

Austin et al. 2021, arXiv:2108.07732 (MBPP); Chen et al. 2021, arXiv:2107.03374 (HumanEval). What programs cannot do
and what they still can: see `examiner.py` and `sandbox.py`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nomoat.core.domain import Verdict
from nomoat.core.errors import DataError
from nomoat.search.answers import fenced
from nomoat.search.sandbox import Limits, Sandbox

EXAMINER = Path(__file__).with_name("examiner.py")
CHARACTERS = 200_000
"""Of a candidate's code."""


@dataclass(frozen=True)
class Exam:
    """What a program is asked.

    Args:
        tests: statements; each that raises nothing is passed.
        setup: statements before the first test; those of a data set, never the candidate's.
        prompt: what a candidate continues, where it does not define `entry` itself.
        entry: the function that is asked for; empty: whichever names the tests use.
    """

    tests: tuple[str, ...]
    setup: str = ""
    prompt: str = ""
    entry: str = ""

    @property
    def head(self) -> str:
        """The prompt before the function: imports, and functions that are given."""
        return self.prompt[: self.prompt.rfind(f"def {self.entry}(")] if self.entry else self.prompt


def exam_of(problem: Any) -> Exam:
    """The exam of a row of MBPP (`test_list`), of HumanEval (`test`, `entry_point`), or one with `tests` and `setup`.

    Raises:
        DataError: it has no tests.
    """
    row = problem if isinstance(problem, Mapping) else {}
    if isinstance(problem, Exam):
        exam = problem
    elif "entry_point" in row:
        given = Exam((f"check({row['entry_point']})",), "", row["prompt"], row["entry_point"])
        exam = Exam(given.tests, given.head + "\n" + row["test"], given.prompt, given.entry)
    else:
        tests = row.get("test_list") or row.get("tests") or ()
        exam = Exam(tuple(tests), row.get("test_setup_code") or row.get("setup") or "")
    if not exam.tests:
        raise DataError("a problem has no tests", "it has neither `tests`, `test_list` nor `test` with `entry_point`")
    return exam


def code_of(candidate: str, exam: Exam) -> str:
    """The program that a candidate gives: its longest block of Python, or all of it; behind what the exam gives.

    >>> code_of("Sure:\\n```python\\ndef f():\\n    return 1\\n```\\nDone.", Exam(("f()",)))
    'def f():\\n    return 1'
    """
    code = max(fenced(candidate, "python", "py"), key=len, default=candidate)
    whole = not exam.entry or re.search(rf"^(?:async )?def {re.escape(exam.entry)}\b", code, re.MULTILINE)
    return (exam.head if whole else exam.prompt) + code


class UnitTests:
    """Whether a program passes its tests; the score is the share of them that it passes.

    A problem is an `Exam` or a row with tests: see `exam_of`. A program that is stopped at its deadline scores 0.

    Args:
        sandbox: where programs run; its limits hold for all tests of a program together.
        workers: programs at once.
        limits: others than the sandbox's.
    """

    def __init__(self, sandbox: Sandbox | None = None, workers: int = 2, limits: Limits | None = None) -> None:
        self.sandbox, self.workers, self.limits = sandbox or Sandbox(), workers, limits
        self._source = EXAMINER.read_text(encoding="utf-8")

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`.

        Raises:
            DataError: the problem has no tests.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(partial(self._examined, exam_of(problem)), candidates))

    def _examined(self, exam: Exam, candidate: str) -> Verdict:
        code, nonce = code_of(candidate, exam), secrets.token_hex(16)
        if len(code) > CHARACTERS:
            return Verdict(0.0, f"a program of more than {CHARACTERS:,} characters")
        job = {"nonce": nonce, "code": code, "setup": exam.setup, "tests": exam.tests}
        ended = self.sandbox.run(self._source, json.dumps(job), self.limits, ours=True)
        marks = [line.split(" ", 2)[2] for line in ended.output.splitlines() if line.startswith(f"{nonce} ")]
        wrong = [f"test {number}: {json.loads(mark)}" for number, mark in enumerate(marks, 1) if mark != '""']
        passed, count = len(marks) - len(wrong), len(exam.tests)
        if passed == count:
            return Verdict(1.0, "", ended.seconds)
        stopped = len(marks) < count or ended.timed_out  # also while it answers to the last test
        words = [f"{passed} of {count} tests passed", *wrong[:1], *([str(ended)] if stopped else [])]
        words += [f"sandbox: {each}" for each in self.sandbox.missing]
        broken = ended.exit is None and not ended.killed_for
        score = 0.0 if stopped else passed / count
        return Verdict(score, "; ".join(words), ended.seconds, timed_out=ended.timed_out, failed=broken)
