"""Unit tests as a verifier: right programs pass, altered ones fail, and no program gives itself a mark."""

from __future__ import annotations

import gzip
import json
import random
import re

import pytest

from nomoat.core.errors import DataError
from nomoat.search.programs import Exam, UnitTests, code_of, exam_of
from nomoat.search.sandbox import Limits, Sandbox

PATIENT = Limits(seconds=60)


@pytest.fixture(scope="module")
def examined():
    with Sandbox(PATIENT) as sandbox:
        yield UnitTests(sandbox)


def rows_of(shared, *parts):
    with gzip.open(shared.joinpath("data", *parts), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return random.Random(7).sample(rows, 30)


def broken(code: str) -> str:
    """The program with nothing returned."""
    return re.sub(r"\breturn\b[^\n;]*", "return None", code)


def test_mbpp_solutions_pass_and_broken_ones_fail(examined, shared):
    for row in rows_of(shared, "mbpp", "mbpp.jsonl.gz"):
        right, wrong = examined(row, [f"```python\n{row['code']}\n```", broken(row["code"])])
        assert right.right, (row["task_id"], right.detail)
        assert wrong.score < 1, row["task_id"]
        assert not (wrong.failed or wrong.timed_out), wrong.detail


def test_humaneval_solutions_pass_whole_or_as_a_continuation(examined, shared):
    for row in rows_of(shared, "humaneval", "problems.jsonl.gz"):
        body = row["canonical_solution"]
        whole = f"Here it is:\n```python\n{row['prompt']}{body}\n```\nIt works."
        found = examined(row, [body, whole, broken(body), "    pass\n"])
        assert [verdict.right for verdict in found] == [True, True, False, False], (row["task_id"], found)


@pytest.mark.slow
def test_all_solutions_pass(shared):
    with Sandbox(PATIENT) as sandbox:
        examined = UnitTests(sandbox)
        for path, key in (
            (("mbpp", "mbpp.jsonl.gz"), "code"),
            (("humaneval", "problems.jsonl.gz"), "canonical_solution"),
        ):
            with gzip.open(shared.joinpath("data", *path), "rt", encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            failed = [row["task_id"] for row in rows if not examined(row, [row[key]])[0].right]
            assert not failed


EXAM = Exam(("assert f(1) == 7", "assert f(2) == 9"))

FORGED = {
    "exits": "import sys\nsys.exit(0)",
    "exits when asked": "import sys\ndef f(x): sys.exit(0)",
    "exits at once": "import os\ndef f(x): os._exit(0)",
    "prints": "print('1 \"\"\\n2 \"\"')\ndef f(x): print('passed'); return 0",
    "equals all": "class All:\n    def __eq__(self, other): return True\ndef f(x): return All()",
    "is a number that equals all": "class N(int):\n    def __eq__(self, other): return True\ndef f(x): return N(3)",
    "is a list that equals all": "class L(list):\n    def __eq__(self, other): return True\ndef f(x): return L()",
    "has no assertions": "import builtins\nbuiltins.AssertionError = KeyError\nAssertionError = max\ndef f(x): pass",
    "alters what it is run by": """
import builtins, json, sys
json.dumps = lambda *a, **k: '["", 7]'
builtins.print = builtins.isinstance = lambda *a, **k: True
sys.modules["__main__"].examine = lambda *a: ["", ""]
def f(x): return 3""",
    "kills its examiner": "import os\ndef f(x): os.kill(os.getppid(), 9); return 7",
    "stops its examiner's parent": "import os\ndef f(x): os.kill(1, 19); return 3",
    "writes to whatever is open": """
import os
def f(x):
    for number in range(20):
        try: os.write(number, b'["", 1]\\n["", true]\\n1 ""\\n2 ""\\n')
        except OSError: pass
    return 3""",
    "opens its examiner's output": """
import os
for name in os.listdir("/proc"):
    for number in range(12):
        try: os.write(os.open(f"/proc/{name}/fd/{number}", os.O_WRONLY), b'0 1 ""\\n0 2 ""\\n')
        except OSError: pass
def f(x): return 3""",
    "raises what tests might expect": "class StopIteration(Exception): pass\ndef f(x): raise StopIteration",
    "raises what cannot be shown": "class E(Exception):\n    def __str__(self): raise E\ndef f(x): raise E",
    "raises an end": "def f(x): raise KeyboardInterrupt",
    "names itself a program": "__name__ = '__main__'\nf = type('f', (), {'__call__': lambda *a: 7})",
    "is no program": "I cannot do this.",
    "is nothing": "",
    "has a null byte": "def f(x): return 7\0",
    "has half a character": "def f(x): return '\ud800'",
    "nests": "def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a",
    "holds itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "gives an endless thing": "import itertools\ndef f(x): return itertools.count()",
}


@pytest.mark.parametrize("how", FORGED)
def test_a_mark_cannot_be_forged(examined, how):
    (verdict,) = examined(EXAM, [FORGED[how]])
    assert (verdict.score, verdict.timed_out, verdict.failed) == (0, False, False), verdict.detail
    assert verdict.detail.startswith("0 of 2 tests passed")


def test_a_program_sees_neither_its_tests_nor_the_nonce(examined):
    looking = """
import gc, os, sys
def f(x):
    frame, seen = sys._getframe(), [str(each) for each in gc.get_objects()[:100_000]]
    while frame:
        seen += [str(frame.f_locals), str(frame.f_globals)]
        frame = frame.f_back
    for name in [*os.listdir("/proc"), *os.listdir(".")]:
        for file in ("mem", "fd/0", "environ"):
            try: seen.append(open(f"/proc/{name}/{file}").read())
            except (OSError, UnicodeDecodeError): pass
    word = "".join(reversed("a_drow_fo_stset"))
    return any(word in each for each in seen)
"""
    exam = Exam(("assert f(1) is False, 'tests_of_word_a'", "tests_of_word_a = 3"), "tests_of_word_a = 4")
    assert examined(exam, [looking])[0].right


def test_tests_use_what_the_program_defines(examined):
    code = """
import math
SIZE = 3
class Box:
    def __init__(self, held): self.held = held
    def twice(self): return Box(self.held * 2)
def mapped(values, function): return [function(each) for each in values]
def steps(n): yield from range(n)
def kind(value): return type(value)
def fails(x): raise ValueError(f"bad {x}")
def back(value): return value
def inner(): return inner
"""
    values = (
        "[None, True, -2 ** 200, 1.5, float('inf'), 'é\\ud800', b'x', (1, [2]), {3}, frozenset({4}), {(1,): {}}, 2j]"
    )
    tests = (
        "assert mapped([1, 2], lambda x: x + SIZE) == [4, 5]",
        "assert mapped([1, 2], str) == ['1', '2']",
        "box = Box([1])\nassert box.twice().held == [1, 1]\nbox.held = 4\nassert box.twice().held == 8",
        "assert list(steps(3)) == [0, 1, 2] and sum(steps(4)) == 6",
        "assert kind(3) is int and kind('') is str",
        "try:\n    fails(3)\nexcept ValueError as error:\n    assert str(error) == 'bad 3'\nelse:\n    assert False",
        f"for each in {values}:\n    given = back(each)\n    assert given == each and type(given) is type(each), each",
        "assert back(range(3)) == range(3) and inner()() is not None",
        "assert math.floor(2.5) == 2",
        "values = [3, 1]\nassert back(values) == [3, 1]",
    )
    (verdict,) = examined(Exam(tests), [code])
    assert verdict.right, verdict.detail


def test_what_fails_is_told(examined):
    half, missing = examined(EXAM, ["def f(x): return 7", "def g(x): return 7"])
    assert half.score == 0.5
    assert half.detail.startswith("1 of 2 tests passed; test 2: AssertionError")
    assert "NameError: name 'f' is not defined" in missing.detail
    assert "SyntaxError" in examined(Exam(("assert f( == 1",)), ["def f(x): return 7"])[0].detail
    assert "more than 200,000 characters" in examined(EXAM, ["#" * 200_001])[0].detail


def test_a_program_that_hangs_scores_nothing_and_those_beside_it_do():
    with Sandbox(Limits(seconds=3)) as sandbox:
        verifier = UnitTests(sandbox, workers=2, limits=Limits(seconds=3))
        right = "def f(x): return 5 + 2 * x"
        hangs = "def f(x):\n    while x > 1: pass\n    return 7"
        found = verifier(EXAM, [hangs, hangs.replace("> 1", "> 0"), hangs])
        assert [(verdict.score, verdict.timed_out) for verdict in found] == [(0, True)] * 3
        assert all("killed: too much time" in verdict.detail for verdict in found)
        assert UnitTests(sandbox, limits=PATIENT)(EXAM, [right])[0].right


def test_a_jail_that_cannot_run_anything_is_a_failure_of_the_verifier(monkeypatch):
    with Sandbox(PATIENT) as sandbox:
        verifier = UnitTests(sandbox)
        monkeypatch.setattr(verifier, "_source", "import os; os.kill(os.getpid(), 9)")
        (verdict,) = verifier(EXAM, ["def f(x): return 5 + 2 * x"])
        assert (verdict.score, verdict.failed) == (0, False)
        monkeypatch.setattr("nomoat.search.sandbox._Jail.answer", lambda *_: None)
        (verdict,) = verifier(EXAM, ["def f(x): return 5 + 2 * x"])
        assert (verdict.score, verdict.failed) == (0, True)
        assert "the jail has ended" in verdict.detail


def test_code_is_taken_out_of_an_answer():
    exam = exam_of({"entry_point": "f", "prompt": "import math\n\ndef f(x):\n", "test": "def check(f): pass"})
    assert (exam.head, exam.tests) == ("import math\n\n", ("check(f)",))
    assert code_of("    return 1\n", exam) == "import math\n\ndef f(x):\n    return 1\n"
    assert code_of("def f(x): return 1", exam) == "import math\n\ndef f(x): return 1"
    two = "```python\nf(3)\n```\nand\n```py\ndef f(x):\n    return 1\n```"
    assert code_of(two, exam) == "import math\n\ndef f(x):\n    return 1"
    assert code_of("x = 1", Exam(("pass",))) == "x = 1"
    with pytest.raises(DataError, match="has no tests"):
        exam_of({"prompt": "x"})
    with pytest.raises(DataError, match="has no tests"):
        exam_of(Exam(()))
