"""Filling blanks: what guesses all open places at once fills them in steps, the surest of them first, or any.

    tokens, open -> guess -> logits [N, V] of open places -> (allow) -> a token drawn at each -> the surest are kept
                 -> fewer are open -> guess -> ... -> all tokens

Each row has chance of its own (seed, row), so that it does not depend on the rows beside it.

Chang et al. 2022, arXiv:2202.04200 (MaskGIT: the surest first); Kim et al. 2025, arXiv:2502.06768 (the margin between
the two likeliest); Sahoo et al. 2024, arXiv:2406.07524 (any); Nie et al. 2025, arXiv:2502.09992 (blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import ConfigError, nearest
from nomoat.sampling.tokens import SamplingOptions, draw, probabilities

ORDERS = ("confidence", "margin", "random")

Guess = Callable[[Tensor, Tensor], Tensor]
"""(tokens [B, L], open [B, L]) -> the logits [N, V] of the open places, row by row."""
Allow = Callable[[Tensor, Tensor], Any]
"""(tokens [B, L], open [B, L]), on the CPU -> which tokens may stand at each place, bool [B, L, V]."""


@dataclass(frozen=True)
class Filling:
    """How blanks are filled.

    Args:
        steps: calls of the model; each fills an equal share of what is open. 0: one place a step.
        order: which places come first: those whose drawn token is the likeliest (`confidence`), whose two likeliest
            tokens are furthest apart (`margin`), or `random` ones.
        block: open places that are all filled before those to the right of them; 1: from left to right, 0: no blocks.
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together reach this probability; 1: all of them.
        seed: same seed, same tokens.
    """

    steps: int = 0
    order: str = "confidence"
    block: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"there is no order `{self.order}`", ", ".join(ORDERS), nearest(self.order, ORDERS))
        if min(self.steps, self.block) < 0:
            raise ConfigError(f"steps {self.steps} and block {self.block} cannot be", fix="use 1 or more, or 0")
        self.sampling  # noqa: B018 - says what is wrong with temperature and top_p

    @property
    def sampling(self) -> SamplingOptions:
        """How one token is drawn."""
        return SamplingOptions(self.temperature, top_p=self.top_p)


def fill(
    guess: Guess,
    tokens_BL: Tensor,
    open_BL: Tensor,
    options: Filling = Filling(),
    allow: Allow | None = None,
    first: int = 0,
) -> Tensor:
    """The tokens [B, L] with all open places filled.

    Args:
        guess: the model; what stands at an open place is nothing to it.
        tokens_BL: ids.
        open_BL: True where a place is to be filled.
        options: how.
        allow: asked before each step; tokens that it does not allow are not drawn.
        first: number of the first row, for its chance.

    Raises:
        NomoatError: logits that are not numbers, or a place where nothing is allowed.
    """
    tokens_BL, open_BL = tokens_BL.clone(), open_BL.clone()
    block_BL = (open_BL.cumsum(1) - 1) // (options.block or tokens_BL.shape[1])
    chance = [generator(options.seed, "fill", first + row) for row in range(len(tokens_BL))]
    for left in range(options.steps or int(open_BL.sum(1).max()), 0, -1):
        uniform_2BL = torch.stack([torch.rand(2, tokens_BL.shape[1], generator=own) for own in chance], 1)
        at_token_N, at_place_N = uniform_2BL.to(tokens_BL.device)[:, open_BL]
        logits_NV = guess(tokens_BL, open_BL).float()
        if allow is not None:
            allowed_BLV = torch.as_tensor(allow(tokens_BL.cpu(), open_BL.cpu()), device=tokens_BL.device)
            logits_NV = logits_NV.masked_fill(~allowed_BLV[open_BL], -torch.inf)
        token_N = draw(probabilities(logits_NV, options.sampling), at_token_N)
        sure_BL = torch.full(open_BL.shape, -torch.inf, device=tokens_BL.device)
        sure_N = at_place_N if options.order == "random" else _sureness(options.order, logits_NV, token_N)
        sure_BL[open_BL] = sure_N - 2.0 * block_BL[open_BL]  # no two differ by more than 1
        due_B1 = -(-open_BL.sum(1, keepdim=True) // left)
        kept_BL = open_BL & (sure_BL.sort(dim=1, descending=True, stable=True).indices.argsort(1) < due_B1)
        tokens_BL[kept_BL] = token_N[kept_BL[open_BL]]
        open_BL &= ~kept_BL
        if not open_BL.any():
            break
    return tokens_BL


def _sureness(order: str, logits_NV: Tensor, token_N: Tensor) -> Tensor:
    """How sure the model is of each open place, in [0, 1] [N], whatever the temperature."""
    p_NV = logits_NV.softmax(1)
    if order == "margin":
        best_N2 = p_NV.topk(2, dim=1).values
        return best_N2[:, 0] - best_N2[:, 1]
    return p_NV.gather(1, token_N[:, None])[:, 0]
