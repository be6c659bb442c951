"""Verifiers of answers: numbers, sums, choices, patterns, schemas, texts, judges, and the guard around all of them."""

from __future__ import annotations

import gzip
import json
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.domain import Verdict, Verifier
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.teacher import Answer
from nomoat.search.answers import Choice, Pattern, Schema, Text, claims, fenced
from nomoat.search.arithmetic import Arithmetic, FinalNumber, claimed, evaluate, final_number
from nomoat.search.finding import find
from nomoat.search.judged import Judged, score_in
from nomoat.search.sandbox import Sandbox
from nomoat.search.verdicts import Guarded, LateError, Own, suspicious, within


def one(verifier: Verifier, problem: object, candidate: str) -> Verdict:
    (verdict,) = verifier(problem, [candidate])
    return verdict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("10 - 4 - 3", 3), ("8 / 4 / 2", 1), ("1/3 + 1/6", Fraction(1, 2))],
        *[("-2 ** 2", -4), ("2 ** 3 ** 2", 512), ("2 ^ -1 * 3", Fraction(3, 2)), ("2 * -3 ** 2", -18), ("--2", 2)],
        *[("(−4 × 2) ÷ 3", Fraction(-8, 3)), ("3 · (2 – 5)", -9), ("[1 + {2}]", 3), ("\\times".join("23"), 6)],
        *[(".5 * 4.", 2), ("0.1 + 0.2", Fraction(3, 10)), ("0 ** 0", 1), ("+5", 5), ("2**4095", 2**4095)],
        *[("1 ** (9 ** 99)", 1), ("(-1) ** (9 ** 99)", -1), ("0 ** (9 ** 99)", 0), ("(1/2) ** -2", 4)],
    ],
)
def test_values_are_exact(text, value):
    assert evaluate(text).value == value


BOUNDS = {
    "9**9**9**9": "a value of more than 4,096 bits",
    "2**4096": "a value of more than 4,096 bits",
    "(1/7)**99999": "a value of more than 4,096 bits",
    "*".join(["9" * 299] * 6): "a value of more than 4,096 bits",
    "(" * 100_000: "more than 2,000 characters",
    "(" * 900 + "1" + ")" * 900: "nested too deep: more than 200",
    "-" * 900 + "1": "nested too deep: more than 200",
    "1" * 1_000_000: "more than 2,000 characters",
    "1" * 301: "a number of more than 300 digits",
    "1 / (2 - 2)": "it divides by zero",
    "0 ** -1": "it divides by zero",
    "2 ** 0.5": "a power that is not whole",
    "": "a number is missing",
    "1 +": "a number is missing",
    "()": "a number is missing",
    "2 3": "an operator is missing",
    "(1)(2)": "an operator is missing",
    "(1": "a parenthesis is not closed",
    "1)": "a parenthesis too many",
    "__import__('os')": "is not arithmetic",
    "1 // 2": "a number is missing",
    "٣ + 1": "is not arithmetic",
    "1\0": "is not arithmetic",
    "\ud800": "is not arithmetic",
    "1e5": "is not arithmetic",
}


@pytest.mark.parametrize("text", BOUNDS, ids=range(len(BOUNDS)))
def test_what_is_no_sum_or_too_large_is_answered_with_the_reason(text):
    with pytest.raises(ValueError, match=BOUNDS[text].replace("(", r"\(")):
        evaluate(text)


def sums():
    """Expressions that Python's own parser reads the same way, as (text for us, text for Python with fractions)."""
    numbers = st.integers(0, 99).map(lambda n: (str(n), f"Fraction({n})"))

    def joined(parts):
        two = st.tuples(parts, st.sampled_from("+-*/"), parts).map(
            lambda t: tuple(f"({t[0][k]} {t[1]} {t[2][k]})" for k in (0, 1))
        )
        return two | st.tuples(parts).map(lambda t: tuple(f"(-{t[0][k]})" for k in (0, 1)))

    return st.recursive(numbers, joined, max_leaves=12)


@given(sums())
def test_sums_come_to_what_python_says(both):
    ours, theirs = both
    try:
        expected = eval(theirs, {"Fraction": Fraction})  # of a text that this test has made
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            evaluate(ours)
    else:
        assert evaluate(ours).value == expected
        bare = ours.replace(" ", "")
        assert evaluate(bare).numbers == evaluate(ours).numbers


@given(st.text(st.sampled_from("0123456789+-*/()^. ="), max_size=40))
def test_any_text_is_a_value_or_a_reason(text):
    try:
        assert isinstance(evaluate(text).value, Fraction)
    except ValueError as error:
        assert str(error)
    (verdict,) = Arithmetic()(24, [text])
    assert verdict.score in (0, 1)
    assert verdict.right or verdict.detail


FOUR = {"target": 24, "numbers": [10, 4, 4, 10]}


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        *[("(10*10-4)/4", ""), ("I try.\nAnswer: (10 × 10 − 4) ÷ 4 = 24", ""), ("$(10*10-4)/4 = 24$.", "")],
        ("24 = (10*10-4)/4", ""),
        ("so \\boxed{(10 * 10 - 4) / 4} it is\n\nDone.", ""),
        *[("(10*10-4)/4 = 25", "its sides differ: 24 and 25"), ("10+10+4", "it does not use 4")],
        *[("10+4+10", "it does not use 4"), ("24", "it uses 24 more often than it is given")],
        *[("10*10-4*4", "it is 84, not 24"), ("4*(10-4)*10/10", "it uses 10 more often than it is given")],
        *[("10**4-10*4", "it uses **"), ("", "a number is missing"), ("no idea", "'no idea' is not arithmetic")],
        ("(10*10-4)/4\nAnswer: 24", "it uses 24 more often than it is given"),
    ],
)
def test_game_of_24(candidate, why):
    verdict = one(Arithmetic(), FOUR, candidate)
    assert (verdict.detail, verdict.right) == (why, not why)


def test_countdown_may_leave_numbers_out():
    problem = {"target": 54, "numbers": (4, 7, 25, 96)}
    assert one(Arithmetic("some"), problem, "96 - 25 - (7 + 4 + 6)").detail.startswith("it uses 6")
    assert one(Arithmetic("some"), problem, "96 - 25 - 7 - 4 - 6 + 0").detail.startswith("it uses 0")
    assert one(Arithmetic("some"), {"target": "71", "numbers": [4, 7, 25, 96]}, "96 - 25").right
    assert not one(Arithmetic(), {"target": 71, "numbers": [4, 7, 25, 96]}, "96 - 25").right
    assert one(Arithmetic(), "1/3", "2 / 6").right
    assert one(Arithmetic("all", ("**", "*")), 16, "2 ^ 4").right
    with pytest.raises(ConfigError, match="use=none"):
        Arithmetic("none")
    with pytest.raises(DataError, match="has no number"):
        Arithmetic()("abc", ["1"])
    with pytest.raises(DataError, match="has no `target`"):
        Arithmetic()({"numbers": [1]}, ["1"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("#### 1,234.50", Fraction(2469, 2)), ("The answer is -$5.", -5), ("it is 5/2.", Fraction(5, 2))],
        *[("50%", 50), ("\\boxed{\\frac{14}{3}}", Fraction(14, 3)), ("Answer: 6*7 = 42 apples", 42), ("1e3", 1000)],
        *[("ANSWER:\n\n**18**", 18), ("10-4", 4), ("5kg", 5), ("−7", -7), ("€1,000,000", 1_000_000), ("x = .5", 0.5)],
        *[("the answer is 3. It is not 4.", 3), ("answer: 1\nanswer: 2", 2), ("#### 3 of 4", 3)],
        *[("The answer depends on 3 things: 4", 4), ("so $1{,}000", 0), ("1,2345", 2345), ("1.5.", Fraction(3, 2))],
        *[("", None), ("none", None), ("12/0", None), ("12e9999", None), ("9" * 1000, None), ("x5", None)],
    ],
)
def test_final_numbers(text, value):
    assert final_number(text) == value


def test_final_numbers_are_compared_exactly():
    rows = {"answer": "He has 2 * 21 = <<2*21=42>>42.\n#### 42"}
    assert one(FinalNumber(), rows, "That makes 42.0 dollars").right
    assert one(FinalNumber(), rows, "That makes 42.01").detail == "it says 4201/100, not 42"
    assert one(FinalNumber(), Fraction(1, 3), "1/3").right
    assert not one(FinalNumber(), Fraction(1, 3), "0.3333333333333333").right
    assert one(FinalNumber(), 0.1, "0.1").right
    assert one(FinalNumber(), 7, "no").detail == "it gives no number"
    with pytest.raises(DataError, match="no number"):
        FinalNumber()({"answer": "none"}, ["1"])


def test_gsm8k_answers_are_found_and_altered_ones_refused(shared):
    with gzip.open(shared / "data" / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:300]
    for row in rows:
        number = row["answer"].rpartition("####")[2].strip()
        said = f"Let me see: 17 and 4.\nThe answer is ${number}."
        assert one(FinalNumber(), row, said).right
        assert one(FinalNumber(), row, row["answer"]).right
        assert not one(FinalNumber(), row, said.replace(f"${number}", f"${number}1")).right


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        *[("(B)", "B"), ("B.", "B"), ("answer: b", "B"), ("The answer is **C**", "C"), ("B", "B"), (" d) ", "D")],
        *[("Answer: (C) because A is wrong", "C"), ("The answer is\n\nD", "D"), ("\\boxed{\\text{C}}", "C")],
        *[("The answer is \\boxed{C}.", "C"), ("Option A looks good.\nThe correct choice is A.", "A"), ("", "")],
        *[("Answer: A or B", "AB"), ("answer is A. No, the answer is D.", "AD"), ("A. one\nB. two\nC. three", "AC")],
        *[("The answer is a good question", ""), ("answer is I think so", ""), ("The answer is a.", "A")],
        *[("Because of that,\nB", "B"), ("B. Paris", "B"), ("Best is C", ""), ("Answer: Berlin", ""), ("**E**", "E")],
        *[("the answer is B, C", "BC"), ("Answer=C", "C"), ("I like it", ""), ("A man walks", "")],
    ],
)
def test_the_letter_that_is_claimed(text, letters):
    assert claims(text) == {*letters}


def test_choices():
    row = {"options": ["Rome", "Paris", "Bonn", "Oslo"], "answer": 1}
    for right in ("B", "answer: b", "(B) Paris", "Paris.", "I think so.\nparis"):
        assert one(Choice(), row, right).right, right
    assert one(Choice(), row, "A or so").detail == "it claims no letter"
    assert one(Choice(), row, "The answer is A and B").detail == "it claims A and B"
    assert one(Choice(), row, "C").detail == "it claims C, not B"
    assert one(Choice(), row | {"answer": "Paris"}, "B").right
    assert one(Choice(), "b", "B.").right
    with pytest.raises(DataError, match="no choice"):
        Choice()({"answer": "Z"}, ["A"])


def test_mmlu_options_are_told_apart(shared):
    with gzip.open(shared / "data" / "mmlu" / "val.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:200]
    for row in rows:
        letter, other = "ABCD"[row["answer"]], "ABCD"[(row["answer"] + 1) % 4]
        found = Choice()(row, [f"The answer is {letter}.", f"({letter}) {row['options'][row['answer']]}", f"{other})"])
        assert [verdict.right for verdict in found] == [True, True, False]


def test_texts_are_compared_without_what_does_not_matter():
    assert one(Text(), "The Eiffel Tower", " the  eiffel\ntower. ").right
    assert one(Text(), {"answer": ["color", "colour"]}, "Colour").right
    assert one(Text(), "ﬁve", "FIVE").right
    assert not one(Text(), "five", "fives").right


def test_blocks_are_found():
    text = "Sure:\n```python\ndef f():\n    pass\n```\nand\n```json\n{}\n```\n```\nplain\n```\n```python\ncut off"
    assert fenced(text, "python") == ["def f():\n    pass", "plain", "cut off"]
    assert fenced(text, "json") == ["{}", "plain"]
    assert fenced("no block", "json") == []


@pytest.fixture(scope="module")
def box():
    with Sandbox() as sandbox:
        yield sandbox


def test_patterns(box):
    verifier = Pattern(r"^\d+$", seconds=30, sandbox=box)
    said = verifier({}, ["12", "x12", "1\n2", "", "7" * 100_000, "\ud800", "1\0"])
    assert [verdict.right for verdict in said] == [True, False, False, False, True, False, False]
    assert said[1].detail == "the pattern is not found"
    assert Pattern("a.b", 30, box)({}, ["a\nb"])[0].right
    assert verifier({}, []) == []
    with pytest.raises(ConfigError, match="is no pattern"):
        Pattern("(")


def test_a_pattern_that_takes_forever_costs_its_own_candidate_only(box):
    verifier = Pattern(r"^(a+)+$", seconds=0.5, sandbox=box)
    said = verifier({}, ["aaa", "a" * 50 + "!", "aa", "b"])
    assert [verdict.timed_out for verdict in said] == [False, True, False, False]
    assert [verdict.right for verdict in said] == [True, False, True, False]
    assert said[1].detail == "not matched within 0.5 s"


SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        *[('{"name": "aa", "age": 3}', ""), ('Here:\n```json\n{"name": "a"}\n```', ""), ("{}", "required property")],
        *[('{"name": "b"}', "name: "), ('{"name": "a", "age": -1}', "age: -1"), ('{"name": "a", "x": 1}', "'x'")],
        *[('{"name": "a"', "no JSON"), ("```json\n{}\n```\n```json\n{}\n```", "2 blocks"), ("[" * 100_000, "deep")],
        *[('{"age": NaN}', "NaN is no JSON"), ("1" * 5_000, "no JSON"), ('{"name": "\\ud800"}', "no JSON")],
        *[('{"name": "' + "a" * 50_000 + '!"}', "name: "), ("x" * 1_000_001, "1,000,000 characters"), ("", "no JSON")],
    ],
)
def test_schemas(candidate, why):
    pytest.importorskip("jsonschema_rs")
    verdict = one(Schema(SCHEMA), None, candidate)
    assert verdict.right == (not why)
    assert why in verdict.detail


def test_schemas_that_cannot_be_used_are_refused(monkeypatch):
    pytest.importorskip("jsonschema_rs")
    for wrong in ({"type": "nothing"}, {"$ref": "http://192.0.2.1/schema.json"}, 3):
        with pytest.raises(ConfigError, match="no JSON schema"):
            Schema(wrong)
    monkeypatch.setitem(__import__("sys").modules, "jsonschema_rs", None)
    with pytest.raises(ConfigError, match="nomoat\\[verify\\]"):
        Schema({})


class Judge:
    """Says what it is told to, or what a function of the question gives."""

    name, licence, terms = "judge", "unknown", ""

    def __init__(self, said):
        self.said = said
        self.asked = []

    def answer(self, messages, max_tokens=512, temperature=0.7, top_p=1.0, seed=None):
        self.asked.append(messages[-1]["content"])
        return Answer(self.said(messages[-1]["content"]) if callable(self.said) else self.said)


def test_judges_give_scores():
    judge = Judge(lambda text: "Score: 10" if "Answer:\nParis" in text else "Weak.\nScore: 2/10")
    right, wrong = Judged(judge)({"question": "Capital of {candidate}?"}, ["Paris", "Rome"])
    assert (right.score, right.right, wrong.score, wrong.right) == (1.0, True, 0.2, False)
    assert "Request:\nCapital of {candidate}?\n" in judge.asked[0]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        *[("Score: 7", 0.7), ("7", 0.7), ("**Score:** 8.5/10", 0.85), ("Score: 3\nScore: 4", 0.4), ("10/10", 1.0)],
        *[("", None), ("great", None), ("Score: 11", None), ("I give 3 of them", None), ("Score: -1", 0.1), ("0", 0.0)],
    ],
)
def test_scores_are_read(said, score):
    assert score_in(said) == score
    verdict = one(Judged(Judge(said)), "q", "a")
    assert verdict.failed == (score is None)
    assert verdict.score == (score or 0)


def test_a_judge_that_breaks_or_hangs_gives_no_score():
    def breaks(text):
        raise ConnectionError("nobody there")

    broken = one(Judged(Judge(breaks)), "q", "a")
    assert (broken.failed, broken.score, broken.detail) == (True, 0, "judge: ConnectionError: nobody there")
    ended = threading.Event()

    def hangs(text):
        ended.wait(60)
        return "Score: 10"

    late = one(Judged(Judge(hangs), seconds=0.1), "q", "a")
    ended.set()
    assert (late.timed_out, late.failed, late.score) == (True, False, 0)


def test_a_call_that_is_late_is_given_up_and_told_to_end():
    told = threading.Event()

    def endless():
        try:
            while True:
                time.sleep(0.001)
        finally:
            told.set()

    with pytest.raises(LateError, match=r"0\.05 s"):
        within(0.05, endless)
    assert told.wait(60)
    assert within(60, lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(KeyError):
        within(60, {}.__getitem__, "x")


def test_the_guard_counts_and_never_raises():
    def check(problem, candidate):
        if candidate == "hang":
            time.sleep(60)
        if candidate == "raise":
            raise OSError("disk gone")
        return {"half": 0.5, "bad": 7, "none": None, "verdict": Verdict(1.0, "fine")}.get(candidate, candidate == "yes")

    guarded = Guarded(Own(check), seconds=0.5)
    said = guarded("p", ["yes", "no", "half", "raise", "hang", "bad", "none", "verdict"])
    assert [verdict.score for verdict in said] == [1, 0, 0.5, 0, 0, 0, 0, 1]
    assert [verdict.failed for verdict in said] == [False, False, False, True, False, True, True, False]
    assert [verdict.timed_out for verdict in said] == [False] * 4 + [True] + [False] * 3
    assert said[3].detail == "OSError: disk gone"
    assert "not 7" in said[5].detail
    assert (guarded.calls, guarded.timeouts, guarded.failures) == (8, 1, 3)
    assert guarded("p", []) == []
    with pytest.raises(ConfigError, match="deadline"):
        Guarded(Own(check), seconds=0)


def test_a_verifier_that_gives_too_few_or_impossible_verdicts_has_failed():
    for broken in (lambda p, c: [], lambda p, c: [Verdict(2.0)] * len(c), lambda p, c: 3, lambda p, c: [1.0] * len(c)):
        for together in (True, False):
            assert all(each.failed for each in Guarded(broken, together=together)("p", ["a", "b"]))
    assert Guarded(FinalNumber(), together=True)({"answer": "none"}, ["1"])[0].failed


def test_one_that_says_yes_to_all_is_found_out():
    assert suspicious(Own(lambda p, c: True), [1, 2]).startswith("the verifier accepts 12 of 12 wrong answers")
    assert suspicious(Own(lambda p, c: "?" in c), [1], accepted=0.2) == ""
    assert "1 of 6 wrong answers, such as '?!'" in suspicious(Own(lambda p, c: "?" in c), [1])
    for sound, problem in ((FinalNumber(), 7), (Arithmetic(), 24), (Choice(), "A"), (Text(), "x")):
        assert suspicious(sound, [problem]) == ""
    assert "accepts" in suspicious(FinalNumber(), [7], wrong=["7"])


def test_verifiers_are_found_by_their_words(tmp_path, box):
    own = tmp_path / "mine.py"
    own.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef same(p, c): return p == c\n"
    )
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "integer"}')
    cases = {
        "arithmetic": (24, "4 * 6", "4"),
        "countdown": ({"target": 3, "numbers": [1, 2, 3]}, "1 + 2", "1 + 1"),
        "number": (4, "#### 4", "5"),
        "choice": ("C", "C", "B"),
        "text": ("yes", "Yes.", "no"),
        r"regex:^a:\d+$": (None, "a:1", "b"),
        f"schema:{schema}": (None, "3", "x"),
        f"{own}:same": ("a", "a", "b"),
        "judge:someone": ("q", "good", "bad"),
        "tests": ({"tests": ["assert f() == 1"]}, "def f(): return 1", "def f(): return 2"),
    }
    for text, (problem, right, wrong) in cases.items():
        opened = {"someone": Judge(lambda said: "10" if "Answer:\ngood" in said else "3")}.__getitem__
        verifier = find(text, sandbox=box, opened=opened)
        assert isinstance(verifier, Guarded)
        assert [verdict.right for verdict in verifier(problem, [right, wrong])] == [True, False], text
        assert (verifier.calls, verifier.timeouts, verifier.failures) == (2, 0, 0), text


def test_verifiers_that_are_not_there_are_refused(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def check(p, c): return True\n")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for text, words in {
        "arithmetics": "did you mean `arithmetic`",
        "regex": "did you mean `regex:PATTERN`",
        "regex:": "names nothing",
        "regex:(": "is no pattern",
        "schema:nowhere.json": "cannot be read",
        "judge:x": "cannot be opened here",
        f"{own}:chek": "did you mean `check`",
        f"{tmp_path}/no.py:f": "there is no file",
        f"{broken}:f": "ZeroDivisionError",
        "": "there is no verifier",
    }.items():
        with pytest.raises(ConfigError, match=words):
            find(text)


def test_claims_are_the_last_that_is_marked():
    assert claimed("Answer: 1\n#### 2\nthat is all") == "2"
    assert claimed("first\n\n last line.\n\n") == "last line"
    assert claimed("") == ""
