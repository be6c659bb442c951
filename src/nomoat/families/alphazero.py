"""AlphaZero: a look at a board says which moves are promising and who will win; search makes it better, and it learns.

    state_B -game.observe-> planes_BCYX -> convolution + a bias for each cell -> residual blocks -> x_BDYX
    x_BDYX -> policy: logits_BA        x_BDYX -> value: one logit; the mover's value is 2 sigmoid - 1
    loss: cross-entropy against what the search said, and against how it ended

The trunk is a small convolutional tower (no norm: nn/conv.py) or the shared backbone, a token a cell. Silver et al.
2017, doi:10.1038/nature24270; Silver et al. 2018, doi:10.1126/science.aar6404. Games of playout-cap randomisation
(Wu 2019, arXiv:1902.10565) have positions whose policy is not learned: `policy_mask`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.domain import Guess
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss
from nomoat.games.connect_four import ConnectFour
from nomoat.games.rules import Game, random_actions
from nomoat.games.tic_tac_toe import TicTacToe
from nomoat.nn.backbone import Backbone
from nomoat.nn.conv import GAIN, SLOPE, Block
from nomoat.nn.patch import Patchify

if TYPE_CHECKING:
    from nomoat.core.domain import States

ROWS = 1024
"""Boards that are looked at in one call, at most."""


@dataclass(frozen=True)
class Tower:
    """A convolutional trunk that keeps the board's size.

    Args:
        width: channels.
        depth: residual blocks of two 3 x 3 convolutions.
    """

    width: int = 32
    depth: int = 2

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 0:
            raise ConfigError(
                f"a tower of width {self.width} and depth {self.depth} cannot be", fix="width 32, depth 2"
            )


@dataclass(frozen=True)
class AlphaZero:
    """The network of a player.

    Args:
        game: its rules.
        trunk: a `Tower`, or a `Backbone` that sees in both directions and has two position axes.
        head: planes that each head looks at, after its 1 x 1 convolution.
        hidden: width of the value's hidden layer.
        weights: of the policy's nats and of the value's.
    """

    game: Any = ConnectFour()
    trunk: Tower | Backbone = Tower()
    head: int = 4
    hidden: int = 64
    weights: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.game, Game):
            raise ConfigError(f"{self.game!r} is no game", "it lacks some of what games/rules.py names")
        if isinstance(self.trunk, Backbone) and (self.trunk.causal or self.trunk.position_axes != 2):
            raise ConfigError(
                "boards need a backbone that sees in both directions, with two position axes",
                fix="set family.trunk.causal=false and family.trunk.position_axes=2",
            )
        if min(self.head, self.hidden) < 1 or min(self.weights) < 0 or not sum(self.weights):
            raise ConfigError(f"head {self.head}, hidden {self.hidden} and weights {self.weights} cannot be")

    def build(self, parts: Parts) -> Player:
        return Player(self)

    @classmethod
    def tiny(cls) -> AlphaZero:
        return cls(TicTacToe(), Tower(8, 1), head=2, hidden=8)


class Cells(nn.Module):
    """The shared backbone over a board: each cell is a token."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.patchify, self.stack = Patchify(channels, 1, backbone.width), backbone.build()

    def forward(self, planes_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, D, Y, X]."""
        x_BLD = self.stack(*self.patchify(planes_BCYX)).x_BLD
        return x_BLD.transpose(1, 2).unflatten(2, planes_BCYX.shape[2:])


class Blocks(nn.Module):
    """The convolutional tower over a board."""

    def __init__(self, tower: Tower, planes: tuple[int, int, int]) -> None:
        super().__init__()
        channels, rows, columns = planes
        self.stem = nn.Conv2d(channels, tower.width, 3, padding=1)
        nn.init.normal_(self.stem.weight, std=GAIN / math.sqrt(9 * channels))
        self.cells = nn.Parameter(torch.zeros(tower.width, rows, columns))
        self.blocks = nn.Sequential(*(Block(tower.width) for _ in range(tower.depth)))

    def forward(self, planes_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, D, Y, X]."""
        return F.leaky_relu(self.blocks(self.stem(planes_BCYX) + self.cells), SLOPE)


class Player(Family):
    """See the module's first lines. A `Value` over its game's states: `player.guess(state_B)`."""

    counts: ClassVar[str] = "position"

    def __init__(self, config: AlphaZero) -> None:
        super().__init__()
        self.config, self.game = config, config.game
        channels, rows, columns = self.game.planes
        trunk, cells = config.trunk, rows * columns
        self.trunk = Cells(trunk, channels) if isinstance(trunk, Backbone) else Blocks(trunk, self.game.planes)
        self.look = nn.Conv2d(trunk.width, 2 * config.head, 1)
        self.policy_output = nn.Linear(config.head * cells, self.game.actions)
        self.hidden = nn.Linear(config.head * cells, config.hidden)
        self.value_output = nn.Linear(config.hidden, 1)
        for last in (self.policy_output, self.value_output):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """Both outputs are heads; a cell's bias is a vector."""
        if name.endswith("_output.weight"):
            return "head"
        return "vector" if name == "trunk.cells" else super().role_of(name, parameter)

    def forward(self, planes_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, A] of all actions, and the logit [B] of the mover's winning."""
        seen = F.leaky_relu(self.look(self.trunk(planes_BCYX)), SLOPE)
        policy_BF, value_BF = (part.flatten(1) for part in seen.chunk(2, 1))
        value_BH = F.leaky_relu(self.hidden(value_BF), SLOPE)
        return self.policy_output(policy_BF), self.value_output(value_BH)[:, 0]

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over positions: the policy's nats where they are learned, and the value's.

        Of the batch: `planes` [B, C, Y, X], `legal` and `policy` [B, A], `policy_mask` [B], `value` [B], the mover's
        in [-1, 1]. Parts: `policy_nats` (of what is learned, over all), `value_nats`.
        """
        logits_BA, value_B = self(batch["planes"])
        logp_BA = logits_BA.float().masked_fill(~batch["legal"], -torch.inf).log_softmax(1)
        policy_B = -(batch["policy"] * logp_BA.masked_fill(~batch["legal"], 0)).sum(1)
        policy = (policy_B * batch["policy_mask"]).sum()
        target_B = (1 + batch["value"]) / 2
        value = F.binary_cross_entropy_with_logits(value_B.float(), target_B, reduction="sum")
        total = self.config.weights[0] * policy + self.config.weights[1] * value
        parts = {"policy_nats": policy.detach(), "value_nats": value.detach()}
        return Loss(total, torch.tensor(len(target_B)), parts)

    def first_loss(self, batch: Batch) -> float:
        """Even among the legal moves, and nobody ahead."""
        policy_B = batch["legal"].sum(1).double().log() * batch["policy_mask"]
        return float(self.config.weights[0] * policy_B.mean() + self.config.weights[1] * math.log(2))

    @torch.inference_mode()
    def guess(self, state_B: States) -> Guess:
        """A `Value`: what the network thinks of states of its game, in the precision of the call's autocast."""
        device = self.value_output.weight.device
        logits, values = [], []
        for first in range(0, len(state_B), ROWS):
            planes = torch.from_numpy(self.game.observe(state_B[first : first + ROWS])).to(device)
            logits_BA, value_B = self(planes.contiguous(memory_format=torch.channels_last))
            logits.append(logits_BA.float().cpu().numpy())
            values.append(value_B.float().sigmoid().cpu().numpy())
        sign_B = 1 - 2 * self.game.mover(state_B).astype(np.float32)
        return Guess(np.concatenate(logits), (2 * np.concatenate(values) - 1) * sign_B)

    def example(self, samples: int = 2) -> Batch:
        chance, game = np.random.default_rng(0), self.game
        state = game.start(samples)
        for ply in range(3):  # the first rows are further on than the last
            rows = slice(0, samples - ply * samples // 3)
            state[rows] = game.step(state[rows], random_actions(game, state[rows], chance))
        chosen = random_actions(game, state, chance)
        return {
            "planes": torch.from_numpy(game.observe(state)),
            "legal": torch.from_numpy(game.legal(state)),
            "policy": F.one_hot(torch.from_numpy(chosen), game.actions).float(),
            "policy_mask": torch.ones(samples),
            "value": torch.from_numpy(chance.choice([-1.0, 1.0], samples).astype(np.float32)),
        }
