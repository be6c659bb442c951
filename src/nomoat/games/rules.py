"""What a game is beside a `Domain`: what a network sees of it, its symmetries, and how people write its moves.

state_B -observe-> [B, C, Y, X] from the mover's side      "d4" <-spell / parse-> action      state -show-> text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from nomoat.core.domain import Domain

if TYPE_CHECKING:
    from nomoat.core.domain import States

Array = np.ndarray[Any, Any]


@runtime_checkable
class Game(Domain, Protocol):
    """A game for one or two, whose rules are a frozen value (a dataclass: the board's size is a field).

    `name` as on the command line; `planes` C, Y, X of `observe`; `plies` most moves of a game; `symmetries` how many
    there are, the first (0) being none.
    """

    @property
    def name(self) -> str: ...
    @property
    def planes(self) -> tuple[int, int, int]: ...
    @property
    def plies(self) -> int: ...
    @property
    def symmetries(self) -> int: ...
    def start(self, count: int) -> States:
        """That many games at their beginning."""

    def observe(self, state_B: States) -> Array:
        """Float32 [B, C, Y, X], seen by the one who moves: its own stones first."""

    def turned(self, planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
        """Each row's planes and policy under its symmetry, a number below `symmetries`."""

    def spell(self, action: int) -> str:
        """An action as people write it."""

    def parse(self, text: str) -> int:
        """The action that is meant.

        Raises:
            ConfigError: it cannot be read; says how moves are written.
        """

    def show(self, state: Any) -> str:
        """The board in a few lines of plain text, with the names of rows and columns; `state` is one, without batch."""


def random_actions(domain: Domain, state_B: States, chance: np.random.Generator) -> Array:
    """A legal action for each state that is not over, all as likely, int [B]."""
    legal_BA = domain.legal(state_B)
    action_B: Array = (legal_BA * (1 - chance.random(legal_BA.shape))).argmax(1)
    return action_B
