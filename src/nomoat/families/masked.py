"""Masked diffusion language model: some tokens are hidden, all of them are guessed from those that are seen.

    tokens_BL -> hide k of a row's n -> embed + place -> stack that sees both ways -> logits_NV of what is hidden
              -> cross-entropy x n / k: on average a bound on the row's nats
    prompt, all else hidden -> guess -> keep a few -> guess -> ... -> tokens (sampling/fill.py)

Tokens that are not under `mask` (a prompt) are never hidden. k is 1, 2, ... n, all equally likely: the same bound as
hiding each token with a chance t that is uniform in [0, 1] and weighing by 1 / t (the linear schedule), with less
chance in it. No time is told to the stack: how much is hidden can be seen. Hidden tokens are all alike, so each place
has a learned vector beside the rotary positions.

Sahoo et al. 2024, arXiv:2406.07524 (MDLM); Shi et al. 2024, arXiv:2406.04329 (MD4); Ou et al. 2024, arXiv:2406.03736
(k of n, no time); Nie et al. 2025, arXiv:2502.09992 (LLaDA: prompts); Ye et al. 2024, arXiv:2410.14157 (hard tokens
weigh more).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nomoat.core import device
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss, Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.cross_entropy import log_probabilities
from nomoat.sampling.fill import Allow, Filling, fill


@dataclass(frozen=True)
class Masked:
    """A stack that sees both ways between a token table and an output layer.

    Args:
        vocab_size: number of different tokens, without the mask.
        context_length: longest sequence it is trained on, in tokens after the first.
        backbone: the stack; must not be causal.
        focus: a token's nats u are weighed by (1 - e^-u)^focus, so that easy tokens count less; 0: not at all, which
            is the bound itself. 1 and 2 are usual for puzzles.
    """

    vocab_size: int
    context_length: int = 256
    backbone: Backbone = field(default_factory=lambda: Backbone(causal=False))
    focus: float = 0.0

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or self.context_length < 1:
            raise ConfigError(
                f"vocab_size {self.vocab_size} and context_length {self.context_length} cannot be",
                fix="use at least 2 and 1",
            )
        if self.focus < 0:
            raise ConfigError(f"focus is {self.focus}", fix="it is 0 or more")
        if self.backbone.causal:
            raise ConfigError(
                "a masked language model needs a backbone that sees both ways",
                "what is hidden is guessed from what stands before and after it",
                "set family.backbone.causal=false",
            )

    def build(self, parts: Parts) -> MaskedLanguageModel:
        return MaskedLanguageModel(self)

    @classmethod
    def tiny(cls) -> Masked:
        return cls(vocab_size=17, context_length=8, backbone=Backbone(width=32, depth=2, heads=2, causal=False))


class MaskedLanguageModel(Family):
    """See the module's first lines. Scores and Generates. As in any data a row's first token is never learned."""

    def __init__(self, config: Masked) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.embed = nn.Embedding(config.vocab_size + 1, width)  # the last one is the mask
        self.positions = nn.Embedding(config.context_length + 1, width)
        for table in (self.embed, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.stack = config.backbone.build()
        self.output = nn.Linear(width, config.vocab_size, bias=False)
        nn.init.zeros_(self.output.weight)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """`hidden` bool [B, L + 1], and `time` [B], the share of the row's tokens under the mask that is hidden.

        The shares are spread evenly over the batch (Kingma et al. 2021, arXiv:2107.00630).
        """
        counted_BL = _learned(batch)
        rows, count_B = len(counted_BL), counted_BL.sum(1)
        share_B = (torch.arange(rows) / rows + torch.rand((), generator=generator)) % 1
        hidden_B = (1 + (share_B.to(count_B.device) * count_B).long()).minimum(count_B)
        chance_BL = torch.rand(counted_BL.shape, generator=generator).to(counted_BL.device)
        rank_BL = chance_BL.masked_fill(~counted_BL, 2.0).argsort(1).argsort(1)
        return {**batch, "hidden": rank_BL < hidden_B[:, None], "time": hidden_B / count_B.clamp(min=1)}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over the tokens under `mask` [B, L + 1]; part `nats`: the bound, whatever `focus` is."""
        nats_N, weight_N = self._nats(batch)
        bound = (nats_N * weight_N).sum()
        total = bound
        if self.config.focus:
            total = (nats_N * weight_N * (-torch.expm1(-nats_N)) ** self.config.focus).sum()
        return Loss(total, _learned(batch).sum(), {"nats": bound.detach()})

    def first_loss(self, batch: Batch) -> float:
        """A uniform guess over the vocabulary, at the places that are hidden."""
        hidden_BL, vocab_size = batch["hidden"] & _learned(batch), self.config.vocab_size
        weight = (hidden_BL / batch["time"][:, None].clamp(min=1e-9)).sum() / _learned(batch).sum()
        return float(weight) * math.log(vocab_size) * (1 - 1 / vocab_size) ** self.config.focus

    def score(self, batch: Batch) -> Tensor:
        """For each of tokens[:, 1:], [B, L]: its share of a bound on the row's log-probability, in nats.

        A row's sum is the bound on average over what is hidden: by `draw`, once, where the batch does not say. Tokens
        that are not hidden have 0.
        """
        batch = batch if "hidden" in batch else self.draw(batch, device.generator(0, "score"))
        nats_N, weight_N = self._nats(batch)
        hidden_BL = batch["hidden"] & _learned(batch)
        return nats_N.new_zeros(hidden_BL.shape).masked_scatter(hidden_BL, -nats_N * weight_N)[:, 1:]

    @torch.no_grad()
    def generate(
        self,
        prompts: Batch,
        options: Filling,
        generator: torch.Generator | None = None,
        allow: Allow | None = None,
    ) -> Batch:
        """`tokens` [B, L + 1] with every place under the prompts' `mask` filled.

        Args:
            prompts: `tokens`, `mask`, where rows are padded `document`; `first`: the first row's number.
            options: steps, order, temperature, seed.
            generator: not used: each row has chance of its own.
            allow: which tokens may stand at each place, asked before every step.
        """

        def guess(tokens_BL: Tensor, open_BL: Tensor) -> Tensor:
            return self.output(self._read({**prompts, "tokens": tokens_BL}, open_BL)[open_BL])

        first = int(prompts.get("first", 0))
        return {"tokens": fill(guess, prompts["tokens"], prompts["mask"], options, allow, first)}

    def example(self, samples: int = 2) -> Batch:
        generator = torch.Generator().manual_seed(0)
        shape = samples, self.config.context_length + 1
        tokens_BL = torch.randint(self.config.vocab_size, shape, generator=generator)
        return {"tokens": tokens_BL, "mask": torch.ones(shape, dtype=torch.bool)}

    def _nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each hidden token, row by row, its nats and what they weigh, each [N]."""
        hidden_BL = batch["hidden"] & _learned(batch)
        x_ND, targets_N = self._read(batch, batch["hidden"])[hidden_BL], batch["tokens"][hidden_BL]
        weight_BL = 1 / batch["time"][:, None].clamp(min=1e-9).expand(hidden_BL.shape)
        return -log_probabilities(x_ND[None], self.output.weight, targets_N[None])[0], weight_BL[hidden_BL]

    def _read(self, batch: Batch, hidden_BL: Tensor) -> Tensor:
        """What the stack makes of the tokens that are seen, [B, L + 1, D]."""
        documents_BL, positions_BL = batch.get("document"), batch.get("positions")
        if documents_BL is not None and torch.equal(documents_BL, documents_BL[:, :1].expand_as(documents_BL)):
            documents_BL = positions_BL = None  # one document a row: no mask, and only distances matter
        tokens_BL = batch["tokens"].masked_fill(hidden_BL, self.config.vocab_size)
        if tokens_BL.shape[1] > len(self.positions.weight):
            raise ConfigError(
                f"rows of {tokens_BL.shape[1]} tokens are too long for a context of {self.config.context_length}",
                "each place has a learned vector",
                f"set family.context_length={tokens_BL.shape[1] - 1}",
            )
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        x_BLD = self.embed(tokens_BL) + self.positions(place_L if positions_BL is None else positions_BL.clamp(min=0))
        return self.stack(x_BLD, positions_BL, Ports(documents_BL=documents_BL)).x_BLD


def _learned(batch: Batch) -> Tensor:
    """Which tokens are learned [B, L + 1]: those under the mask, but no row's first."""
    learned_BL = batch["mask"].clone()
    learned_BL[:, 0] = False
    return learned_BL
