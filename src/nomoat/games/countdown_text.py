"""Countdown as text: a problem and its solution as tokens, one step a line, and back, with every fault named.

    state, actions -spell-> ids [<end>, n numbers, >, target, |, a o b = c ; ... <end>]  -show-> 96 25 > 71 | 96-25=71
    ids -read-> actions up to the first fault -> solved or not    ids, open places -allowed-> bool [B, L, V]
    problem, text -verify-> Verdict, by the text alone

A token is a whole number, an operation or a sign, so that each choice is one token: a line is 6 of them, a row 7 n - 2
(26, 33 and 40 for 4, 5 and 6 numbers), and what may follow is known token by token. Numbers end at the game's limit:
of thousands more each would be seen too seldom to be learned. The first number of a line is the greater one, and lines
stand in the order of countdown_problems.py.

Ids are those of a `WordTokenizer` of the same words: sorted, the document end last; it begins, ends and pads a row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nomoat.core.domain import Verdict
from nomoat.core.errors import DataError
from nomoat.games.countdown import OPERATIONS, Countdown, Parts

if TYPE_CHECKING:
    from nomoat.core.domain import States

Array = np.ndarray[Any, Any]

SIGNS = ";=>|"
LINE_TOKENS = 6
FILLED = np.array([0, 1, 2, 4])
"""Where a line's a, operation, b and c stand; the other two are `=` and its end."""
ANY = -2
LINE = re.compile(r"\s*(\d{1,9})\s*([-+*/])\s*(\d{1,9})\s*=\s*(\d{1,9})\s*", re.ASCII)
PROBLEM = re.compile(r"\s*(\d{1,9}(?:\s+\d{1,9})*)\s*>\s*(\d{1,9})\s*(?:\|.*)?", re.ASCII | re.DOTALL)
LONGEST = 1000
"""Characters that a candidate has at most."""


class Reading(NamedTuple):
    """What rows of tokens say.

    Args:
        problem_B: the states at the beginning.
        action_BS: int16, the actions of the lines up to the first fault, then -1.
        state_B: the states after them.
        fault_B: the number of the first line that is not legal, counted from 1; 0: there is none.
    """

    problem_B: States
    action_BS: Array
    state_B: States
    fault_B: Array

    @property
    def solved(self) -> Array:
        """Whether each is a whole solution, bool [B]."""
        met_B = self.state_B["numbers"][:, 0] == self.state_B["target"]
        return (self.fault_B == 0) & (self.state_B["count"] == 1) & met_B


class Notation:
    """How a game is written.

    Args:
        game: the rules; notations of games with the same limit have the same ids.

    Attributes:
        words: all tokens but the document end, by their ids.
        eot: the document end's id, the last.
        prompt_length: tokens of a problem.
        length: L, tokens of a problem and its solution.
        kind_LV: which tokens can stand at each place of a row.
    """

    def __init__(self, game: Countdown) -> None:
        self.game = game
        self.words = sorted([*map(str, range(game.limit + 1)), *OPERATIONS, *SIGNS])
        ids = {word: number for number, word in enumerate(self.words)}
        self.eot, self.prompt_length = len(self.words), game.numbers + 4
        self.length = self.prompt_length + LINE_TOKENS * (game.numbers - 1)
        numbers_N = self.number_ids = np.array([ids[str(number)] for number in range(game.limit + 1)])
        operations_O = self.operation_ids = np.array([ids[sign] for sign in OPERATIONS])
        places: list[Any] = [self.eot, *[numbers_N] * game.numbers, ids[">"], numbers_N, ids["|"]]
        places += [numbers_N, operations_O, numbers_N, ids["="], numbers_N, ids[";"]] * (game.numbers - 1)
        self.kind_LV = np.zeros((self.length, self.vocab_size), dtype=bool)
        for kind_V, tokens in zip(self.kind_LV, [*places[:-1], self.eot], strict=True):
            kind_V[tokens] = True
        self._number_V = np.full(self.vocab_size, -1)
        self._number_V[numbers_N] = np.arange(len(numbers_N))
        self._operation_V = np.full(self.vocab_size, -1)
        self._operation_V[operations_O] = np.arange(len(operations_O))

    @property
    def vocab_size(self) -> int:
        """V: the words and the document end."""
        return len(self.words) + 1

    def blank(self, state_B: States) -> tuple[Array, Array]:
        """Rows [B, L] with problems and all signs, and which places are open, bool [B, L]: what a solution fills."""
        signs_L = np.where(self.kind_LV.sum(1) == 1, self.kind_LV.argmax(1), self.number_ids[0])
        ids_BL = np.tile(signs_L, (len(state_B), 1))
        ids_BL[:, 1 : 1 + self.game.numbers] = self.number_ids[state_B["numbers"]]
        ids_BL[:, self.prompt_length - 2] = self.number_ids[state_B["target"]]
        open_L = (self.kind_LV.sum(1) > 1) & (np.arange(self.length) >= self.prompt_length)
        return ids_BL, np.tile(open_L, (len(state_B), 1))

    def spell(self, state_B: States, action_BS: Array) -> Array:
        """Problems at their beginning and the legal actions [B, n - 1] that follow, as rows of ids [B, L]."""
        ids_BL, _ = self.blank(state_B)
        rows = np.arange(len(state_B))
        for line, action_B in enumerate(np.asarray(action_BS).T):
            a_B, b_B, c_B = (each_BA[rows, action_B] for each_BA in self.game.parts(state_B))
            ids = self.number_ids[a_B], self.operation_ids[action_B % 4], self.number_ids[b_B], self.number_ids[c_B]
            ids_BL[:, self._filled(line)] = np.stack(ids, axis=1)
            state_B = self.game.step(state_B, action_B)
        return ids_BL

    def read(self, ids_BL: Any) -> Reading:
        """What rows say, each line asked of the domain; a row may end before its solution does, at the end of a line.

        Lines may also have the numbers of a sum or a product turned round.

        Raises:
            DataError: a row does not begin with a problem.
        """
        ids_BL = np.asarray(ids_BL)[:, : self.length]
        problem_B = self._problems(ids_BL)
        state_B, fault_B = problem_B.copy(), np.zeros(len(ids_BL), np.int8)
        action_BS = np.full((len(ids_BL), self.game.numbers - 1), -1, np.int16)
        for line in range((ids_BL.shape[1] - self.prompt_length) // LINE_TOKENS):
            here = slice(first := self.prompt_length + LINE_TOKENS * line, first + LINE_TOKENS)
            spelled_B = self.kind_LV[np.arange(here.start, here.stop), ids_BL[:, here]].all(1)
            line_B4, parts = self._line(ids_BL, line), self.game.parts(state_B)
            turns_B1 = np.isin(line_B4[:, 1:2], (0, 2))
            fits_BA = _fits(parts, line_B4) | _fits(parts, line_B4[:, [2, 1, 0, 3]]) & turns_B1
            right_B = spelled_B & fits_BA.any(1) & (fault_B == 0)
            action_B = fits_BA.argmax(1)
            action_BS[right_B, line] = action_B[right_B]
            state_B[right_B] = self.game.step(state_B[right_B], action_B[right_B])
            fault_B[(fault_B == 0) & ~right_B] = line + 1
        return Reading(problem_B, action_BS, state_B, fault_B)

    def fault(self, ids_L: Any) -> str:
        """What is wrong with one row, in words; empty where it is a solution."""
        reading = self.read(np.asarray(ids_L)[None])
        if reading.solved[0]:
            return ""
        problem, _, solution = self.show(ids_L).partition("|")
        why = verify(problem, [solution])[0].detail
        return why or f"line {reading.fault_B[0]} is not legal: no number may be above {self.game.limit}"

    def allowed(self, ids_BL: Any, open_BL: Any = None) -> Array:
        """Which tokens may stand at each place, bool [B, L, V], so that a row's lines are legal.

        At the open places of a row's first line that has some: what its legal lines have there that agree with what is
        filled. At all other places, and where no legal line agrees: whatever is of the right kind.

        Args:
            ids_BL: rows, or what there is of them yet.
            open_BL: places that are not filled; None: those behind what there is, and no others.
        """
        there = np.asarray(ids_BL)
        ids_BL = np.pad(there, ((0, 0), (0, self.length - there.shape[1])))
        if open_BL is None:
            open_BL = np.tile(np.arange(self.length) >= there.shape[1], (len(ids_BL), 1))
        allowed_BLV = np.tile(self.kind_LV, (len(ids_BL), 1, 1))
        state_B, going_B = self._problems(ids_BL), np.ones(len(ids_BL), dtype=bool)
        for line in range(self.game.numbers - 1):
            open_B4, parts = np.asarray(open_BL)[:, self._filled(line)], self.game.parts(state_B)
            fits_BA = _fits(parts, np.where(open_B4, ANY, self._line(ids_BL, line))) & going_B[:, None]
            whole_B = np.asarray(fits_BA.any(1) & ~open_B4.any(1))
            rows, action_N = np.nonzero(fits_BA & ~whole_B[:, None])
            a_N, b_N, c_N = (self.number_ids[each_BA[rows, action_N]] for each_BA in parts)
            tokens = a_N, self.operation_ids[action_N % 4], b_N, c_N
            for place, tokens_N in zip(self._filled(line), tokens, strict=True):
                allowed_BLV[rows, place] = False
                allowed_BLV[rows, place, tokens_N] = True
            state_B[whole_B] = self.game.step(state_B[whole_B], fits_BA.argmax(1)[whole_B])
            going_B = whole_B
        return allowed_BLV

    def show(self, ids_L: Any) -> str:
        """One row as people read it."""
        text = " ".join(self.words[number] for number in np.asarray(ids_L).tolist() if number != self.eot)
        return re.sub(r" ([-+*/=]) ", r"\1", text)

    def parse(self, text: str) -> States:
        """The problem, a state [1], of a text such as `4 7 25 96 > 54 |`.

        Raises:
            DataError: it is none of this game.
        """
        numbers, target = _read(text)
        if len(numbers) != self.game.numbers or max(*numbers, target) > self.game.limit:
            raise DataError(
                f"`{text.strip()[:60]}` is no problem of {self.game.numbers} numbers up to {self.game.limit:,}"
            )
        return self.game.start([numbers], [target])

    def _filled(self, line: int) -> Array:
        return self.prompt_length + LINE_TOKENS * line + FILLED

    def _line(self, ids_BL: Array, line: int) -> Array:
        """A line's a, operation, b and c, [B, 4]; -1 for what is of another kind."""
        a_B, o_B, b_B, c_B = ids_BL[:, self._filled(line)].T
        numbers = self._number_V
        return np.stack((numbers[a_B], self._operation_V[o_B], numbers[b_B], numbers[c_B]), axis=1)

    def _problems(self, ids_BL: Array) -> States:
        given = ids_BL[:, : self.prompt_length]
        kinds_L = np.arange(given.shape[1])
        if given.shape[1] < self.prompt_length or not self.kind_LV[kinds_L, given].all():
            raise DataError(
                f"a row does not begin with a problem of {self.game.numbers} numbers",
                fix="it is <end>, the numbers, >, the target, |",
            )
        numbers_BN = self._number_V[given[:, 1 : 1 + self.game.numbers]]
        return self.game.start(numbers_BN, self._number_V[given[:, -2]])


def verify(problem: str, candidates: Sequence[str]) -> list[Verdict]:
    """Judge solutions by their text alone, exactly: a `Verifier`. No limit holds here, and no order of the numbers.

    Args:
        problem: as `96 25 7 4 > 54 |`.
        candidates: lines such as `96-25=71`, parted by `;` or on lines of their own; what stands before `|` is left
            out.

    Raises:
        DataError: the problem is none.
    """
    numbers, target = _read(problem)
    faults = [_fault(numbers, target, candidate.rpartition("|")[2]) for candidate in candidates]
    return [Verdict(float(not fault), fault) for fault in faults]


def _fault(numbers: Sequence[int], target: int, text: str) -> str:
    """The first thing wrong with a solution; empty where it is right."""
    if len(text) > LONGEST:
        return f"it has more than {LONGEST:,} characters"
    left = Counter(numbers)
    for number, line in enumerate(re.split(r"[;\n]", text.strip(" ;\n")), 1):
        found = LINE.fullmatch(line)
        if found is None:
            return f"line {number} is no step: `{line.strip()[:40]}`"
        a, b, c = (int(found[place]) for place in (1, 3, 4))
        for each in (a, b):
            if left[each] < 1:
                return f"line {number}: there is no {each} left"
            left[each] -= 1
        if found[2] == "/" and (b == 0 or a % b):
            return f"line {number}: {a} cannot be divided by {b}"
        true = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[found[2]]
        if true != c:
            return f"line {number}: {a}{found[2]}{b} is {true}, not {c}"
        left[c] += 1
    over = sorted(left.elements())
    if len(over) > 1:
        return f"{len(over)} numbers are left: {', '.join(map(str, over))}"
    return "" if over == [target] else f"it ends at {over[0]}, not at {target}"


def _read(problem: str) -> tuple[list[int], int]:
    """The numbers and the target of a problem as text."""
    found = PROBLEM.fullmatch(problem)
    if found is None:
        raise DataError(f"`{problem.strip()[:60]}` is no problem", fix="write it as `96 25 7 4 > 54 |`")
    return [int(word) for word in found[1].split()], int(found[2])


def _fits(parts: Parts, line_B4: Array) -> Array:
    """Which legal actions [B, A] are the line, whose a, operation, b or c may also be `ANY`."""
    operation_BA = np.broadcast_to(np.arange(parts.c_BA.shape[1]) % 4, parts.c_BA.shape)
    fits_BA = parts.c_BA >= 0
    for place, each_BA in enumerate((parts.a_BA, operation_BA, parts.b_BA, parts.c_BA)):
        wanted_B1 = line_B4[:, place : place + 1]
        fits_BA = fits_BA & ((each_BA == wanted_B1) | (wanted_B1 == ANY))
    return fits_BA
