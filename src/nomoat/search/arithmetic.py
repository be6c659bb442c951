"""Exact arithmetic over what a model wrote: the value of an expression, and verifiers for targets and final numbers.

    "... answer: (10 - 4) × 4 = 24" -claimed-> "(10 - 4) × 4 = 24" -evaluate-> 24, numbers 10 4 4 -Arithmetic-> Verdict
    "... #### 1,234.50"             -final_number-> 2469/2 = the reference's? -FinalNumber-> Verdict

Nothing is run: a shunting yard (Dijkstra 1961) over tokens, values are fractions, and every size is bounded before it
is computed, so that `9**9**9**9`, 100,000 parentheses or a number of a megabyte are answered at once, with the bound.
Cobbe et al. 2021, arXiv:2110.14168 (`####`); Yao et al. 2023, arXiv:2305.10601 (Game of 24).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Any, NamedTuple

from nomoat.core.domain import Verdict
from nomoat.core.errors import ConfigError, DataError
from nomoat.search.verdicts import told, verdicts

CHARACTERS, WAITING, DIGITS, BITS = 2_000, 200, 300, 4_096
"""Most characters of an expression, operators and parentheses that wait for their end, digits of a number, bits of a
numerator or denominator."""
READ = 20_000
"""Characters from the end of a candidate in which its answer is looked for."""
SPELLINGS = {
    **{"×": "*", "·": "*", "⋅": "*", "∗": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "∕": "/", "\\div": "/"},
    **{"−": "-", "–": "-", "^": "**", "[": "(", "]": ")", "{": "(", "}": ")"},
}
SPELLED = re.compile("|".join(map(re.escape, SPELLINGS)))
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\*\*|[-+*/()]))", re.ASCII)
RANK = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negative": 3, "**": 4}
EXACT: dict[str, Callable[[Fraction, Fraction], Fraction]] = {"+": add, "-": sub, "*": mul, "/": truediv}
MARKED = re.compile(r"(?:\banswer\b[\s*_]*(?:is\b|[:=])|####)[\s*_:=]*(?P<claim>[^\n]*)", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{(?P<claim>(?:[^{}]|\{[^{}]{0,100}\}){0,200})\}")
FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", re.ASCII)
NUMBER = re.compile(
    r"(?<![\w.])-?[$€£¥]?-?(?:(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+|\.\d++)"
    r"(?:e[-+]?\d{1,3}(?!\d)|(?!e[-+]?\d))(?:/\d++)?",
    re.ASCII | re.IGNORECASE,
)


class Worked(NamedTuple):
    """What an expression comes to.

    Args:
        value: exact.
        numbers: that are written in it, in their order.
        operators: that are used in it: of `+ - * / **`.
    """

    value: Fraction
    numbers: tuple[Fraction, ...]
    operators: frozenset[str]


def evaluate(text: str) -> Worked:
    """The exact value of an expression of decimal numbers, `+ - * /`, parentheses, signs and integer powers.

    `× ÷ − ·` are read as well, `^` as a power; a power binds tighter than a sign before it and from the right.

    >>> evaluate("-2 ** 2 + 9 ÷ (4 − 1.5)").value
    Fraction(-2, 5)

    Raises:
        ValueError: it is none, divides by zero, or passes a bound, which is named.
    """
    if len(text) > CHARACTERS:
        raise ValueError(f"more than {CHARACTERS:,} characters")
    yard, numbers, used = _Yard(), [], set()
    whole = False  # what stands on the left is a value
    for number, sign in _tokens(text):
        if whole and (number or sign == "("):
            raise ValueError("an operator is missing")
        if not whole and sign and sign not in "(+-":
            raise ValueError("a number is missing")
        if number:
            numbers.append(_literal(number))
            yard.values.append(numbers[-1])
        elif sign == ")":
            yard.close()
        elif whole:
            yard.settle(RANK[sign] + (sign == "**"))  # powers are worked from the right
            yard.wait(sign)
            used.add(sign)
        elif sign != "+":
            yard.wait("negative" if sign == "-" else sign)
        whole = bool(number) or sign == ")"
    if not whole:
        raise ValueError("a number is missing")
    yard.settle(1)
    if yard.waiting:
        raise ValueError("a parenthesis is not closed")
    return Worked(yard.values[0], tuple(numbers), frozenset(used))


class _Yard:
    """Values, and the operators and parentheses that wait for their right side."""

    def __init__(self) -> None:
        self.values: list[Fraction] = []
        self.waiting: list[str] = []

    def wait(self, sign: str) -> None:
        if len(self.waiting) >= WAITING:
            raise ValueError(f"nested too deep: more than {WAITING} operators and parentheses wait for their end")
        self.waiting.append(sign)

    def settle(self, rank: int) -> None:
        """Work what waits since the last open parenthesis and binds at least so tightly."""
        while self.waiting and RANK[self.waiting[-1]] >= rank:
            self._work(self.waiting.pop())

    def close(self) -> None:
        self.settle(1)
        if not self.waiting:
            raise ValueError("a parenthesis too many")
        self.waiting.pop()

    def _work(self, sign: str) -> None:
        right = self.values.pop()
        if sign == "negative":
            self.values.append(-right)
            return
        left = self.values.pop()
        if sign == "/" and not right:
            raise ValueError("it divides by zero")
        value = _power(left, right) if sign == "**" else EXACT[sign](left, right)
        if _bits(value) > BITS:
            raise ValueError(f"a value of more than {BITS:,} bits")
        self.values.append(value)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Numbers and signs; of each pair one is empty."""
    plain, place = SPELLED.sub(lambda found: SPELLINGS[found[0]], text).rstrip(), 0
    while place < len(plain):
        if not (found := TOKEN.match(plain, place)):
            raise ValueError(f"{plain[place : place + 20].strip()!a} is not arithmetic")
        place = found.end()
        yield found[1] or "", found[2] or ""


def _literal(text: str) -> Fraction:
    if len(text) > DIGITS:
        raise ValueError(f"a number of more than {DIGITS} digits")
    return Fraction(text)


def _power(base: Fraction, power: Fraction) -> Fraction:
    if power.denominator != 1:
        raise ValueError("a power that is not whole")
    if not base and power < 0:
        raise ValueError("it divides by zero")
    if abs(base) in (0, 1):
        power = min(abs(power), 2 + power % 2)  # has the same sign and value
    if _bits(base) * abs(power) > 2 * BITS:  # a number of k bits has more than (k - 1) n of them to the power of n
        raise ValueError(f"a value of more than {BITS:,} bits")
    return Fraction(base ** int(power))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def claimed(text: str) -> str:
    """The expression or number that a text gives as its answer.

    The rest of the line behind the last `answer:`, `answer is` or `####`, or what stands in the last `\\boxed{}`,
    whichever comes later; without any of them the last line that is not empty.

    >>> claimed("Let me see.\\nAnswer: (1 + 2) * 8 = 24.")
    '(1 + 2) * 8 = 24'
    """
    text = text[-READ:]
    marked = [*MARKED.finditer(text), *BOXED.finditer(text)]
    claim = max(marked, key=lambda found: found.start())["claim"] if marked else text.strip().rpartition("\n")[2]
    return claim.strip(" \t\r`$*:.;,")


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer; None: there is none.

    Where there is a marker (see `claimed`), the first number behind it, or behind the last `=` there; else the last
    number of the text. Commas separate thousands, a point decimals; `7/2` and `\\frac{7}{2}` are fractions, `1e3` is
    1000. Signs of currencies and of percent are left out, so that 25 % is 25.

    >>> final_number("so 5 + 5 = 10.\\n#### $1,234.50"), final_number("no idea")
    (Fraction(2469, 2), None)
    """
    text = FRACTION.sub(r"\1/\2", text[-READ:].replace("−", "-"))
    marked = MARKED.search(text) or BOXED.search(text)
    found = NUMBER.findall(claimed(text).rpartition("=")[2] if marked else text)
    shown = re.sub(r"[$€£¥,]", "", found[0 if marked else -1]) if found else ""
    try:
        return Fraction(shown) if 0 < len(shown) <= DIGITS else None
    except (ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Arithmetic:
    """Whether a candidate's expression comes to the target, with the numbers that are given.

    A problem is the target, or a mapping with `target` and maybe `numbers`. What is read of a candidate: see `claimed`;
    of an equation the side with the most numbers is the expression, and the others must be equal to it.

    Args:
        use: `all` numbers exactly once (Game of 24), or `some`, each at most once (Countdown).
        operators: that may be used.
    """

    use: str = "all"
    operators: tuple[str, ...] = ("+", "-", "*", "/")

    def __post_init__(self) -> None:
        if self.use not in ("all", "some") or not {*self.operators} <= {*EXACT, "**"}:
            why = f"use is `all` or `some`, operators are of {', '.join(EXACT)}, **"
            raise ConfigError(f"arithmetic with use={self.use}, operators={' '.join(self.operators)} cannot be", why)

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`.

        Raises:
            DataError: the problem's target or one of its numbers is none.
        """
        target = _number(told(problem, "target"))
        given = problem.get("numbers") if isinstance(problem, Mapping) else None
        numbers = None if given is None else Counter(map(_number, given))
        return verdicts(lambda candidate: self._wrong(candidate, target, numbers), candidates)

    def _wrong(self, candidate: str, target: Fraction, given: Counter[Fraction] | None) -> str:
        try:
            sides = [evaluate(side) for side in claimed(candidate).split("=", 2)]
        except ValueError as error:
            return str(error)
        worked = max(sides, key=lambda side: len(side.numbers))
        if differs := [side for side in sides if side.value != worked.value]:
            return f"its sides differ: {_shown(worked.value)} and {_shown(differs[0].value)}"
        if strange := worked.operators - {*self.operators}:
            return f"it uses {' '.join(sorted(strange))}"
        used = Counter(worked.numbers)
        if given is not None and (extra := used - given):
            return f"it uses {_shown(min(extra))} more often than it is given"
        if given is not None and self.use == "all" and (left := given - used):
            return f"it does not use {_shown(min(left))}"
        return "" if worked.value == target else f"it is {_shown(worked.value)}, not {_shown(target)}"


@dataclass(frozen=True)
class FinalNumber:
    """Whether a candidate's final number is the reference's, exactly: see `final_number`.

    A problem is the reference (a number, or a text that ends in one), or a mapping with `answer`.
    """

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`.

        Raises:
            DataError: the reference has no number.
        """
        wanted = _number(told(problem, "answer"))

        def wrong(candidate: str) -> str:
            found = final_number(candidate)
            if found is None:
                return "it gives no number"
            return "" if found == wanted else f"it says {_shown(found)}, not {_shown(wanted)}"

        return verdicts(wrong, candidates)


def _number(given: Any) -> Fraction:
    """A number of a problem."""
    found = final_number(str(given)) if not isinstance(given, Fraction) else given
    if found is None:
        raise DataError(f"{str(given)!a:.60} has no number", "a verifier compares numbers", "mend the problem")
    return found


def _shown(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"a number of {len(text):,} digits"
