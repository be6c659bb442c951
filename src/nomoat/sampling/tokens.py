"""Choosing the next token: temperature, top-k, top-p and min-p, then one draw a row.

    logits_BV -> / temperature -> top-k -> softmax -> top-p -> min-p -> renormalise -> probabilities_BV -> token_B

The order is that of transformers' generate: each cut sees what the one before it left. Tokens that are tied at a cut
are all kept, so the result does not depend on how the vocabulary is numbered.

Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et al. 2024,
arXiv:2407.01082 (min-p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nomoat.core.errors import ConfigError, NomoatError

HEAD = 512
"""Most likely tokens among which top-p looks first: sorting a whole vocabulary takes longer than many a model."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a sequence is written.

    Args:
        temperature: the logits are divided by it; 0 takes the most likely token every time.
        top_k: only the k most likely tokens can be drawn; 0: all of them.
        top_p: only the most likely tokens that together reach this probability; 1: all of them.
        min_p: only tokens with at least this share of the most likely token's probability; 0: all of them.
        stop: strings that end the text; none of their characters are given out.
        max_tokens: most tokens written a row.
        seed: same seed, same text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise ConfigError("stop is a list of strings", f"`{self.stop}` is one string", f"stop=({self.stop!r},)")
        object.__setattr__(self, "stop", tuple(self.stop))
        for name, holds, allowed in (
            ("temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (all tokens)"),
            ("min_p", 0 <= self.min_p <= 1, "0 (all tokens) to 1"),
            ("max_tokens", self.max_tokens >= 0, "0 or more"),
            ("stop", all(self.stop), "strings that are not empty"),
        ):
            if not holds:
                raise ConfigError(f"{name} {getattr(self, name)!r} cannot be used", fix=f"allowed: {allowed}")


def probabilities(logits_BV: Tensor, options: SamplingOptions) -> Tensor:
    """The probability [B, V] in fp32 of drawing each token; rows sum to one, what was cut off has exactly zero."""
    logits_BV = logits_BV.float()
    if options.temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(1, keepdim=True), 1.0)
    logits_BV = (logits_BV - logits_BV.amax(1, keepdim=True)) / options.temperature
    if 0 < options.top_k < logits_BV.shape[1]:
        weakest_B1 = _falling(logits_BV, options.top_k)[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < weakest_B1, -math.inf)
    p_BV = logits_BV.softmax(1)
    if options.top_p < 1:
        for count in (min(HEAD, p_BV.shape[1]), p_BV.shape[1]):
            falling_BV = _falling(p_BV, count)
            needed_BV = falling_BV.cumsum(1) - falling_BV < options.top_p  # mass before it does not reach top_p yet
            if not needed_BV[:, -1].any():
                break
        weakest_B1 = falling_BV.masked_fill(~needed_BV, math.inf).amin(1, keepdim=True)
        p_BV = p_BV.masked_fill(p_BV < weakest_B1, 0.0)
    if options.min_p > 0:
        p_BV = p_BV.masked_fill(p_BV < options.min_p * p_BV.amax(1, keepdim=True), 0.0)
    return p_BV / p_BV.sum(1, keepdim=True)


def pick(logits_BV: Tensor, options: SamplingOptions, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Draw one token [B] a row, int64, on the logits' device.

    Args:
        logits_BV: -inf forbids a token.
        options: how the logits become probabilities.
        generator: on the CPU; one for all rows, or one a row: then a row's draw depends on no other row.

    Raises:
        NomoatError: a row holds NaN or forbids every token.
    """
    if options.temperature == 0:
        token_B = _best(logits_BV)
        _check(bool(logits_BV.gather(1, token_B[:, None]).isfinite().all()))
        return token_B
    p_BV = probabilities(logits_BV, options)
    if isinstance(generator, torch.Generator):
        return draw(p_BV, torch.rand(len(p_BV), generator=generator))
    return draw(p_BV, torch.stack([torch.rand((), generator=own) for own in generator]))


def draw(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token [B] of each row at which the summed probabilities pass `uniform_B` (0 to 1) of their whole.

    Raises:
        NomoatError: a row holds NaN.
    """
    reach_BV = p_BV.cumsum(1)
    _check(bool(reach_BV[:, -1].isfinite().all()))
    whole_B1 = reach_BV[:, -1:].contiguous()
    token_B1 = torch.searchsorted(reach_BV, uniform_B.to(p_BV.device)[:, None] * whole_B1, right=True)
    last_B1 = torch.searchsorted(reach_BV, whole_B1)  # rounding must not reach beyond the last possible token
    return torch.minimum(token_B1, last_B1)[:, 0]


def _best(logits_BV: Tensor) -> Tensor:
    """The first of each row's greatest; NumPy's search takes a tenth of the time of torch's on a CPU."""
    if logits_BV.is_cpu and logits_BV.dtype == torch.float32:
        return torch.from_numpy(logits_BV.detach().numpy().argmax(1))
    return logits_BV.argmax(1)


def _falling(x_BV: Tensor, count: int) -> Tensor:
    """The greatest `count` of each row, falling; NumPy takes a seventh of the time of torch's topk, and of its sort."""
    if not x_BV.is_cpu:
        return x_BV.topk(count, dim=1).values
    rest, values = x_BV.shape[1] - count, x_BV.detach().numpy()
    values = np.partition(values, rest, axis=1)[:, rest:] if rest > 0 else values
    return torch.from_numpy(np.sort(values, axis=1)[:, ::-1].copy())


def _check(finite: bool) -> None:
    if not finite:
        raise NomoatError(
            "the model's logits are not numbers, or every token is forbidden",
            "its weights may have diverged in training",
            "look at the loss with `nomoat runs`, and train with a lower learning_rate",
        )
