"""The novelty filter against ROUGE-L by its definition, and verifiers that run nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError
from nomoat.data.novelty import Novelty
from nomoat.data.verify import arithmetic, number, same_number, true_equations, verifier


def rouge_l(left, right):
    """By the table, as Lin 2004 has it."""
    one, other = left.split(), right.split()
    row = [0] * (len(other) + 1)
    for word in one:
        above = row[:]
        for place, each in enumerate(other):
            row[place + 1] = above[place] + 1 if word == each else max(above[place + 1], row[place])
    return 2 * row[-1] / (len(one) + len(other))


texts = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=12).map(" ".join)


@given(st.lists(texts, min_size=1, max_size=12), texts, st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_what_is_too_near_is_found_and_nothing_else(seen, text, limit):
    novelty = Novelty(limit)
    for each in seen:
        novelty.add(each)
    scores = [rouge_l(text, each) for each in seen]
    found = novelty.nearest(text)
    if max(scores) > limit:
        assert found == (scores.index(max(scores)), pytest.approx(max(scores)))
    else:
        assert found is None


def test_case_and_punctuation_do_not_make_a_text_new():
    novelty = Novelty(1.0)
    novelty.add("Write a poem!")
    assert novelty.nearest("write a, poem") == (0, 1.0)
    assert novelty.nearest("write a poem now") is None
    assert novelty.nearest("") is None
    assert len(novelty) == 1


def test_more_texts_than_were_foreseen():
    novelty = Novelty()
    for count in range(3000):
        novelty.add(f"number {count} and again {count}")
    assert novelty.nearest("number 2999 and again 2999") == (2999, 1.0)


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(-99, 99), st.sampled_from("+-*/"))
def test_arithmetic_is_exact(one, two, three, sign):
    value = {"+": Fraction(one + three), "-": Fraction(one - three), "*": Fraction(one * three)}.get(sign)
    if sign == "/":
        three = three or 1
        value = Fraction(one, three)
    assert arithmetic(f"({one}{sign}({three}))/{two}") == value / two


@pytest.mark.parametrize("text", ["", "1+", "(1", "1)", "__import__('os')", "1/0", "a+1", "1" * 300, "()", "."])
def test_what_is_no_sum_is_refused(text):
    with pytest.raises(ValueError):
        arithmetic(text)


def test_answers_are_checked_by_their_numbers():
    assert number("that is $1,250.50 in all.") == Fraction(2501, 2)
    assert number("no idea") is None
    assert same_number("So it is 18.", "9 * 2 = 18\n#### 18") == ""
    assert same_number("So it is 17.", "#### 18")
    assert true_equations("9 * 2 = 18, and 18 - 8 = 10. 10", "#### 10") == ""
    assert "does not hold" in true_equations("9 * 2 = 19, less 9 is 10", "#### 10")
    assert true_equations("3 + 4 = 7", "") == ""
    assert verifier("regex:^yes")("yes, sir", "") == ""
    assert verifier("regex:^yes")("no", "")
    assert verifier("") is None
    for wrong, said in (("numbr", "number"), ("regex:(", "no pattern")):
        with pytest.raises(ConfigError, match=said):
            verifier(wrong)
