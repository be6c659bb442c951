"""Countdown as a language model plays it: its lines are moves, its probabilities priors, its samples answers.

    problems -Notation-> ids -decode, token by token, what is legal-> rows -read-> solved [B, tries]
    state_B (the problem, the lines so far) -decode a, then a o, then a o b-> logits of all legal lines [B, A]

The probability of a line is that of its first number, of the operation after it, and of the second number after both;
what they give follows. The prefixes of all lines of a state are copies of one memory. With legality off a model may
write what it likes, and what it has written is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nomoat.core.domain import Guess, Outcome
from nomoat.core.types import Decodes
from nomoat.games.countdown import Countdown, mixed
from nomoat.games.countdown_text import LINE_TOKENS, Notation

if TYPE_CHECKING:
    from nomoat.core.domain import States

    Array = np.ndarray[Any, Any]

ROWS = 512
"""Rows that are written together."""
STATES = 48
"""States whose lines are looked at together: each has some thirty prefixes."""
Judge = Callable[["Array"], "Array"]
"""Rows of ids [B, L], at the end of a line -> the chance [B] that it goes on to the target."""


class Worded:
    """Countdown with its history: a `Domain` whose states know by which lines they came about.

    Args:
        game: the rules.
    """

    players = 1

    def __init__(self, game: Countdown) -> None:
        self.game, self.actions = game, game.actions
        lines = (game.numbers - 1,)
        self.dtype = np.dtype(
            [("begin", game.dtype), ("now", game.dtype), ("action", np.int16, lines), ("made", np.int8)]
        )

    def start(self, problem_B: States) -> States:
        """Problems at their beginning."""
        state_B = np.zeros(len(problem_B), self.dtype)
        state_B["begin"] = state_B["now"] = problem_B
        state_B["action"] = -1
        return state_B

    def mover(self, state_B: States) -> Array:
        """The one player."""
        return np.zeros(len(state_B), np.int8)

    def legal(self, state_B: States) -> Array:
        """As in the game."""
        return self.game.legal(state_B["now"])

    def step(self, state_B: States, action_B: Array) -> States:
        """The states after a line."""
        after_B = state_B.copy()
        after_B["now"] = self.game.step(state_B["now"], action_B)
        after_B["action"][np.arange(len(state_B)), state_B["made"]] = action_B
        after_B["made"] += 1
        return after_B

    def outcome(self, state_B: States) -> Outcome:
        """As in the game."""
        return self.game.outcome(state_B["now"])

    def key(self, state_B: States) -> Array:
        """Of the problem and the lines: what is left may have come about in several ways."""
        return mixed(self.game.key(state_B["begin"]), *state_B["action"].T)


class Lines:
    """A language model's `Value` of worded states.

    Args:
        model: reads token by token.
        notation: how lines are written.
        judge: how promising what has been written is; None: all alike.
    """

    def __init__(self, model: Decodes, notation: Notation, judge: Judge | None = None) -> None:
        self.model, self.notation, self.judge = model, notation, judge

    def __call__(self, state_B: States) -> Guess:
        """Log-probabilities [B, A] of the legal lines, and values."""
        logits = np.zeros((len(state_B), self.notation.game.actions), np.float32)
        value = np.zeros(len(state_B), np.float32)
        for made in np.unique(state_B["made"]):
            rows = np.flatnonzero(state_B["made"] == made)
            for some in np.array_split(rows, -(-len(rows) // STATES)):
                ids_BL = self.written(state_B[some], int(made))
                logits[some] = self._lines(state_B["now"][some], ids_BL)
                if self.judge is not None:
                    value[some] = 2 * self.judge(ids_BL) - 1
        return Guess(logits, value)

    def written(self, state_B: States, made: int) -> Array:
        """The rows of ids so far, of states with so many lines."""
        ids_BL = self.notation.spell(state_B["begin"], state_B["action"][:, :made])
        return ids_BL[:, : self.notation.prompt_length + LINE_TOKENS * made]

    @torch.inference_mode()
    def _lines(self, now_B: States, ids_BL: Array) -> Array:
        notation, game = self.notation, self.notation.game
        parts, count = game.parts(now_B), len(ids_BL)
        width = parts.c_BA.shape[1]
        row_N, action_N = np.nonzero(parts.c_BA >= 0)
        a_N, b_N = (notation.number_ids[each[row_N, action_N]] for each in (parts.a_BA, parts.b_BA))
        o_N = notation.operation_ids[action_N % 4]
        memory = self.model.memory(count, ids_BL.shape[1] + 3)
        first_BV = self._read(memory, ids_BL)
        # Distinct beginnings: (state, a), then (state, a, o).
        begins, at_a = np.unique(np.stack((row_N, a_N)), axis=1, return_inverse=True)
        after_a = memory.spread(begins[0].tolist())  # type: ignore[attr-defined]
        second_NV = self._read(after_a, begins[1][:, None])
        more, at_o = np.unique(np.stack((at_a.ravel(), o_N)), axis=1, return_inverse=True)
        third_NV = self._read(after_a.spread(more[0].tolist()), more[1][:, None])
        logp_N = first_BV[row_N, a_N] + second_NV[at_a.ravel(), o_N] + third_NV[at_o.ravel(), b_N]
        logits_BA = np.full((count, game.actions), -1e9, np.float32)
        logits_BA[:, :width][row_N, action_N] = logp_N
        return logits_BA

    def _read(self, memory: Any, ids_BL: Array) -> Array:
        """Log-probabilities [B, V] after the last of some tokens."""
        device = next(self.model.parameters()).device  # type: ignore[attr-defined]
        tokens = torch.from_numpy(np.ascontiguousarray(ids_BL)).to(device)
        logits: Tensor = self.model.decode(tokens, memory, range(len(ids_BL)), True)[:, -1]
        return logits.float().log_softmax(1).cpu().numpy()


@torch.inference_mode()
def solve(
    model: Any,
    notation: Notation,
    problem_B: States,
    tries: int,
    seed: int,
    legal: bool = True,
    temperature: float = 1.0,
) -> Iterator[tuple[Array, Array]]:
    """Answers to problems, as they are written: (numbers of the problems [R], rows of ids [R, L]).

    Args:
        model: reads token by token, or fills masks.
        notation: how problems are written.
        problem_B: at their beginning.
        tries: answers to each.
        seed: of all chance.
        legal: only tokens of legal lines may be written.
        temperature: of each token; 0: the likeliest.
    """
    problems = np.repeat(np.arange(len(problem_B)), tries)
    for first in range(0, len(problems), ROWS):
        some = problems[first : first + ROWS]
        chance = np.random.default_rng((seed, first))
        write = _decoded if hasattr(model, "decode") else _filled
        yield some, write(model, notation, problem_B[some], chance, legal, temperature)


def _decoded(
    model: Any, notation: Notation, problem_B: States, chance: np.random.Generator, legal: bool, temperature: float
) -> Array:
    """Rows written token by token. What all rows can only go on with is not asked of the model."""
    device = next(model.parameters()).device
    ids_BL, _ = notation.blank(problem_B)
    ids_BL = ids_BL[:, : notation.prompt_length]
    memory, unread_BL = model.memory(len(ids_BL), notation.length), ids_BL
    for place in range(notation.prompt_length, notation.length):
        allowed_BV = notation.allowed(ids_BL)[:, place] if legal else None
        if allowed_BV is not None and (allowed_BV.sum(1) == 1).all():
            new_BL = allowed_BV.argmax(1)[:, None]
            unread_BL = np.concatenate((unread_BL, new_BL), 1)
        else:
            tokens = torch.from_numpy(np.ascontiguousarray(unread_BL)).to(device)
            logits_BV = model.decode(tokens, memory, range(len(ids_BL)), True)[:, -1].float().cpu().numpy()
            if allowed_BV is not None:
                logits_BV = np.where(allowed_BV, logits_BV, -np.inf)
            noise_BV = chance.gumbel(size=logits_BV.shape) * temperature
            unread_BL = new_BL = (logits_BV + noise_BV).argmax(1)[:, None]
        ids_BL = np.concatenate((ids_BL, new_BL), 1)
    return ids_BL


def _filled(
    model: Any, notation: Notation, problem_B: States, chance: np.random.Generator, legal: bool, temperature: float
) -> Array:
    """Rows whose blanks were filled, the surest first."""
    from nomoat.sampling.fill import Filling

    ids_BL, open_BL = notation.blank(problem_B)
    device = next(model.parameters()).device
    prompts = {"tokens": torch.from_numpy(ids_BL).to(device), "mask": torch.from_numpy(open_BL).to(device)}
    how = Filling(temperature=temperature, seed=int(chance.integers(1 << 31)))
    # Where lines must be legal, they are filled one after the other: what is legal depends on those before.
    how = Filling(temperature=temperature, seed=how.seed, block=4) if legal else how
    allow = (lambda tokens, opened: notation.allowed(tokens.numpy(), opened.numpy())) if legal else None
    filled: Array = model.generate(prompts, how, allow=allow)["tokens"].cpu().numpy()
    return filled


def solved(model: Any, notation: Notation, problem_B: States, tries: int, seed: int, **how: Any) -> Array:
    """Whether each try solves each problem, bool [B, tries]; see `solve`."""
    found = [notation.read(ids_BL).solved for _, ids_BL in solve(model, notation, problem_B, tries, seed, **how)]
    return np.concatenate(found).reshape(len(problem_B), tries)


def pass_at(solved_BT: Array, k: int) -> Array:
    """The chance [B] that one of k tries solves a problem, without bias from all tries (Chen et al. 2021).

    Args:
        solved_BT: bool.
        k: at most as many as there are tries.
    """
    tries, right_B = solved_BT.shape[1], solved_BT.sum(1)
    missed = np.ones(len(solved_BT))
    for number in range(k):
        missed *= np.maximum(tries - right_B - number, 0) / (tries - number)
    return 1 - missed
