"""Choosing the next tokens of many texts at once, each as its own options and constraint say.

logits_BV -> log of the summed exponentials -> rows that are no numbers end
          -> constraint's mask -> pick, once for all rows of equal options -> tokens, log-probabilities, top
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import NomoatError
from nomoat.sampling.seats import Seat
from nomoat.sampling.speculate import Draft
from nomoat.sampling.tokens import pick
from nomoat.serve.ask import Ticket

NOTHING = Draft()


class Chosen(NamedTuple):
    """A token, its log-probability in nats under the model itself, and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """One choice of a request while it is written in its seat; `finish` says how it ended."""

    def __init__(self, ticket: Ticket, choice: int, seat: Seat) -> None:
        self.ticket, self.choice, self.seat, self.ask = ticket, choice, seat, ticket.ask
        self.options = options = ticket.ask.options
        # Rows of equal manner are drawn together.
        cuts = (options.temperature, options.top_k, options.top_p, options.min_p)
        self.manner = cuts if options.temperature else ()
        self.chance = generator(options.seed, "row", choice)
        self.written, self.draft = 0, NOTHING
        self.finish: str | None = None
        self.error = ""
        self.constraint = None if self.ask.constraint is None else self.ask.constraint.fork()

    def add(self, token: int, context_length: int) -> None:
        """Append a token to the text and see whether that ends it."""
        self.seat.tokens.append(token)
        self.written += 1
        if token in self.ask.stop_tokens:
            self.finish = "stop"
        elif self.written >= self.options.max_tokens or len(self.seat.tokens) > context_length:
            self.finish = "length"
        if self.constraint is not None and self.finish != "stop":
            try:
                self.constraint.advance(token)
                self.finish = "stop" if self.constraint.done else self.finish
            except Exception as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.finish, self.error = "error", said(error)


def said(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error) if isinstance(error, NomoatError) else f"{type(error).__name__}: {error}"


def choose(rows: Sequence[Row], logits_BV: Tensor) -> list[Chosen | None]:
    """The next token of each row; None where the row has failed, which it says itself."""
    logits_BV = logits_BV.float()
    whole = logits_BV.logsumexp(1).tolist()
    masked_BV = _masked(rows, logits_BV)
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if not math.isfinite(whole[index]):
            row.fail(NomoatError("the model's logits are not numbers", "its weights may have diverged in training"))
        if row.finish is None:
            groups.setdefault(row.manner, []).append(index)
    tokens = [0] * len(rows)
    for members in groups.values():
        group_BV = masked_BV if len(members) == len(rows) else masked_BV[members]
        picked_B = pick(group_BV, rows[members[0]].options, [rows[index].chance for index in members])
        for index, token in zip(members, picked_B.tolist(), strict=True):
            tokens[index] = token
    found = tell(logits_BV, tokens, max(row.ask.top_logprobs for row in rows), whole)
    return [
        None if row.finish else chosen._replace(top=chosen.top[: row.ask.top_logprobs]) if chosen.top else chosen
        for row, chosen in zip(rows, found, strict=True)
    ]


def tell(logits_LV: Tensor, tokens: Sequence[int], top: int, whole: Sequence[float] = ()) -> list[Chosen]:
    """What is told of tokens [L], one a row of logits, with the `top` most likely beside each.

    `whole` are the logarithms of the rows' summed exponentials, where they are known.
    """
    whole = whole or logits_LV.logsumexp(1).tolist()
    values = logits_LV.gather(1, torch.tensor(tokens, device=logits_LV.device)[:, None])[:, 0].tolist()
    logprobs = [value - all_ for value, all_ in zip(values, whole, strict=True)]
    if not top:
        return list(map(Chosen, tokens, logprobs))
    best = logits_LV.topk(top, dim=1)
    tops = [
        tuple((token, value - all_) for token, value in zip(ids, likely, strict=True))
        for ids, likely, all_ in zip(best.indices.tolist(), best.values.tolist(), whole, strict=True)
    ]
    return list(map(Chosen, tokens, logprobs, tops))


def _masked(rows: Sequence[Row], logits_BV: Tensor) -> Tensor:
    """The logits with -inf where a row's constraint forbids a token; a row that cannot go on fails."""
    masked_BV = logits_BV
    for index, row in enumerate(rows):
        try:
            allowed_V = None if row.constraint is None else row.constraint.allowed()
            if allowed_V is None:
                continue
            masked_BV = logits_BV.clone() if masked_BV is logits_BV else masked_BV
            known = len(allowed_V)
            masked_BV[index, :known].masked_fill_(~allowed_V.to(masked_BV.device), -math.inf)
            masked_BV[index, known:] = -math.inf  # a model's table may be longer than the vocabulary
            if not masked_BV[index].amax().isfinite():
                raise NomoatError("the constraint forbids every token")
        except Exception as error:
            row.fail(error)
    return masked_BV
