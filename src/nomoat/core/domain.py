"""What is searched, what guesses and what judges: all that System 2 asks of a game, a puzzle, a text or a picture.

    state_B -legal-> [B, A] -choose-> action_B -step-> state_B -outcome-> over, value
            -Value-> Guess(logits [B, A], value [B])            finished candidates -Verifier-> Verdict

States are arrays whose first axis is the batch: `state_B[rows]` picks some, `state_B[rows] = others` puts some, and
`numpy.concatenate` joins them. A structured array (`numpy.dtype` with named fields) is one array with many parts.
A value is always the first player's: 1 if player 0 wins, -1 if player 1 does, in [-1, 1]; with one player, its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    States = np.ndarray[Any, Any]


class Outcome(NamedTuple):
    """How far states are from their end.

    Args:
        over_B: True where nothing more can be done.
        value_B: float32, the first player's result where it is over, else 0.
    """

    over_B: np.ndarray[Any, Any]
    value_B: np.ndarray[Any, Any]


class Guess(NamedTuple):
    """What is thought of states that are not over.

    Args:
        logits_BA: float32, how promising each action is to the one who moves; what is not legal is ignored.
        value_B: float32, the first player's expected result in [-1, 1].
    """

    logits_BA: np.ndarray[Any, Any]
    value_B: np.ndarray[Any, Any]


class Verdict(NamedTuple):
    """What a verifier says of one candidate.

    Args:
        score: in [0, 1]; 1 is right.
        detail: why, for people.
        seconds: that it took.
        timed_out: it did not answer by its deadline, and the score is 0.
        failed: the verifier itself broke, and the score is 0.
    """

    score: float
    detail: str = ""
    seconds: float = 0.0
    timed_out: bool = False
    failed: bool = False

    @property
    def right(self) -> bool:
        """Fully so."""
        return self.score >= 1.0


@runtime_checkable
class Domain(Protocol):
    """What can be searched. All is batched and pure: `step` changes no state that it is given.

    `players` is 1 or 2, `actions` A the number of actions, of which few may be legal in a state.
    """

    @property
    def players(self) -> int: ...
    @property
    def actions(self) -> int: ...
    def mover(self, state_B: States) -> np.ndarray[Any, Any]:
        """Who moves, int8 [B]: 0 or 1. One side may move several times in a row."""

    def legal(self, state_B: States) -> np.ndarray[Any, Any]:
        """Bool [B, A]. Of a state that is over: nothing is legal."""

    def step(self, state_B: States, action_B: np.ndarray[Any, Any]) -> States:
        """The states after legal actions, int [B]. An action that is not legal may give anything."""

    def outcome(self, state_B: States) -> Outcome:
        """Whether they are over, and who has won."""

    def key(self, state_B: States) -> np.ndarray[Any, Any]:
        """Uint64 [B]: equal for states that a `Value` cannot tell apart, else different but for 2^-64."""


class Value(Protocol):
    """Guesses for states that are not over: a network's heads, a rollout, a process reward."""

    def __call__(self, state_B: States, /) -> Guess: ...


class Verifier(Protocol):
    """Judges finished candidates. Never raises for what a candidate says: that is a verdict."""

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]: ...
