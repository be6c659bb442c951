"""Verifiers: is an answer right, as far as that can be told by rules? Nothing that a model wrote is ever run.

    answer, reference -> last number of each, as fractions -> equal?      "3 * 4 = 12" -> both sides by own arithmetic

Cobbe et al. 2021, arXiv:2110.14168 (final numbers); Yuan et al. 2023, arXiv:2308.01825 (rejection sampling).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from nomoat.core.errors import ConfigError, nearest
from nomoat.search.arithmetic import evaluate

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
EQUATION = re.compile(r"([-+*/x×÷().,\d\s$]*\d[\d,.\s)]*)=\s*\$?(-?[\d,]+(?:\.\d+)?)")
LONGEST = 200
"""Characters of a sum that is worked out."""

Verifier = Callable[[str, str], str]
"""(answer, reference) -> what is wrong with the answer; empty: nothing."""


def number(text: str) -> Fraction | None:
    """The last number in a text.

    >>> number("so he pays $1,250.50."), number("none")
    (Fraction(2501, 2), None)
    """
    found = NUMBER.findall(text)
    try:
        return Fraction(found[-1].replace(",", "")) if found else None
    except (ValueError, ZeroDivisionError):
        return None


def arithmetic(text: str) -> Fraction:
    """The value of a sum of numbers, + - * / and parentheses, exactly.

    >>> arithmetic("2 * (3 + 1.5) / 3")
    Fraction(3, 1)

    Raises:
        ValueError: it is none, too long, or divides by zero.
    """
    plain = re.sub(r"[\s,$]", "", text).replace("x", "*")
    if len(plain) > LONGEST:
        raise ValueError("not a sum")
    return evaluate(plain).value


def same_number(answer: str, reference: str) -> str:
    """The last number must be the reference's."""
    wanted, got = number(reference), number(answer)
    return "" if got is not None and got == wanted else "not the reference's number"


def true_equations(answer: str, reference: str) -> str:
    """Every `sum = number` in the answer must hold, and its last number be the reference's, where there is one."""
    for left, right in EQUATION.findall(answer):
        try:
            if arithmetic(left.strip(" .,")) != Fraction(right.replace(",", "")):
                return "an equation that does not hold"
        except ValueError:
            continue  # words and numbers that are no sum
    return same_number(answer, reference) if reference else ""


NAMED: dict[str, Verifier] = {"number": same_number, "equations": true_equations}


def verifier(named: str | Verifier) -> Verifier | None:
    """A verifier by name (`number`, `equations`, `regex:PATTERN`), or a function of one's own; empty: none.

    Raises:
        ConfigError: there is none of that name, or the pattern is none.
    """
    if not isinstance(named, str) or not named:
        return named or None
    if named.startswith("regex:"):
        try:
            pattern = re.compile(named.removeprefix("regex:"), re.DOTALL)
        except re.error as error:
            raise ConfigError(f"`{named}` is no pattern", str(error)) from None
        return lambda answer, reference: "" if pattern.search(answer) else "not of the wanted form"
    if named not in NAMED:
        known = [*NAMED, "regex:PATTERN"]
        raise ConfigError(f"there is no verifier `{named}`", f"there is {', '.join(known)}", nearest(named, known))
    return NAMED[named]
