"""Next-token language model (GPT-2, LLaMA, Mamba-2): read a prefix, predict what follows.

    tokens_BL -> embed -> causal stack -> logits_BLV -> cross-entropy against the tokens one place to the left

Radford et al. 2019; Touvron et al. 2023, arXiv:2302.13971; Dao and Gu 2024, arXiv:2405.21060.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.device import hollow
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss, Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.cross_entropy import log_probabilities, summed_nats
from nomoat.nn.linear import Cast
from nomoat.nn.memory import Memory
from nomoat.nn.norms import RMSNorm
from nomoat.nn.packed import pack_
from nomoat.nn.scene import working_dtype


@dataclass(frozen=True)
class LM:
    """A language model: any causal backbone between a token table and an output layer.

    Args:
        vocab_size: number of different tokens.
        context_length: longest sequence it is trained on, in tokens.
        backbone: the stack; must be causal.
        bits: of the matrices: 16 stands for floats of any kind; packed in 8 or 4 they can be read, not trained.
    """

    vocab_size: int
    context_length: int = 256
    backbone: Backbone = field(default_factory=Backbone)
    bits: int = 16

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ConfigError(f"vocab_size {self.vocab_size} leaves nothing to predict", fix="use at least 2")
        if self.context_length < 1:
            raise ConfigError(f"context_length {self.context_length} is not a length", fix="use at least 1")
        if self.bits not in (16, 8, 4):
            raise ConfigError(f"weights of {self.bits} bits are not known", fix="use 16, 8 or 4")
        if not self.backbone.causal:
            raise ConfigError(
                "a language model needs a causal backbone",
                "with a full one it would read the token that it is to predict",
                "set family.backbone.causal=true",
            )

    def build(self, parts: Parts) -> LanguageModel:
        if self.bits == 16:
            return LanguageModel(self)
        with hollow():  # the float weights are never there, not even for a moment
            model = LanguageModel(self)
        return pack_(model, self.bits)

    @classmethod
    def tiny(cls) -> LM:
        return cls(vocab_size=17, context_length=8, backbone=Backbone(width=32, depth=2, heads=2))


class LanguageModel(Family):
    """See the module's first lines. Decodes, Scores and Encodes."""

    def __init__(self, config: LM) -> None:
        super().__init__()
        self.config = config
        dialect, width = config.backbone.dialect, config.backbone.width
        self.embed = nn.Embedding(config.vocab_size, width)
        self.stack = config.backbone.build()
        self.soft_cap, self._cast = dialect.soft_cap, Cast()
        self.output_scale = {"one": 1.0, "rsqrt_width": width**-0.5}[dialect.output_scale]
        nn.init.normal_(self.embed.weight, std=0.02)
        self.output = None if dialect.output == "tied" else nn.Linear(width, config.vocab_size, bias=False)
        if self.output is not None:
            nn.init.zeros_(self.output.weight)
        elif dialect.zero_init and isinstance(self.stack.norm, RMSNorm):
            # A stack that starts as the identity would predict each token to repeat, with logit 0.02 x width.
            nn.init.constant_(self.stack.norm.weight, min(1.0, 50 / width))

    @property
    def table(self) -> Tensor:
        """The output layer's weights; the token table itself where the dialect ties them."""
        layer = self.embed if self.output is None else self.output
        packed = getattr(layer, "matrix", None)
        return layer.weight if packed is None else packed.weight()

    def trunk(self, batch: Batch) -> Tensor:
        """What the stack makes of all tokens but the last: [B, L, D], scaled for the output layer."""
        tokens_BL, documents_BL, positions_BL = (
            None if (whole := batch.get(name)) is None else whole[:, :-1]
            for name in ("tokens", "document", "positions")
        )
        if documents_BL is not None and torch.equal(documents_BL, documents_BL[:, :1].expand_as(documents_BL)):
            documents_BL = positions_BL = None  # one document a row: no mask, and only distances matter
        ports = Ports(documents_BL=documents_BL, adapter_B=batch.get("adapter"))
        return self.stack(self.embed(tokens_BL), positions_BL, ports).x_BLD * self.output_scale

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed nats over the tokens under `mask` [B, L + 1], each predicted from those before it."""
        if self.config.bits < 16 and not self.shared:
            raise ConfigError(
                f"weights of {self.config.bits} bits cannot be trained",
                "they have no gradient",
                "train the float model, or an adapter beside these: adapt=LoRA()",
            )
        counted_BL, x_BLD, table_VD = batch["mask"][:, 1:], self.trunk(batch), self.table
        if not table_VD.requires_grad:
            table_VD = self._cast.of(table_VD, working_dtype(x_BLD))
        nats = summed_nats(x_BLD, table_VD, batch["tokens"][:, 1:], counted_BL, self.soft_cap)
        return Loss(nats, counted_BL.sum())

    def first_loss(self, batch: Batch) -> float:
        """Nats of a uniform guess over the vocabulary."""
        return math.log(self.config.vocab_size)

    def score(self, batch: Batch) -> Tensor:
        """Log-probability [B, L] in nats of tokens[:, 1:]; 0 where the mask is False."""
        counted_BL, x_BLD = batch["mask"][:, 1:], self.trunk(batch)
        targets_N = batch["tokens"][:, 1:][counted_BL]  # an answer is often a small part of its row
        logp_1N = log_probabilities(x_BLD[counted_BL][None], self.table, targets_N[None], self.soft_cap)
        return logp_1N.new_zeros(counted_BL.shape).masked_scatter(counted_BL, logp_1N)

    def encode(self, batch: Batch) -> Tensor:
        """The mean [B, D] of the stack's output over the tokens under `mask` [B, L]."""
        mask_BL = batch["mask"]
        ports = Ports(valid_BL=mask_BL, adapter_B=batch.get("adapter"))
        x_BLD = self.stack(self.embed(batch["tokens"]), None, ports).x_BLD
        weight_BL1 = mask_BL[..., None].to(x_BLD.dtype)
        return (x_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)

    def memory(self, slots: int, length: int) -> Memory:
        """Room for `slots` sequences of up to `length` tokens."""
        return self.stack.memory(slots, length)

    def begin(self, batch: Batch, memory: Memory, slots: Sequence[int]) -> None:
        """A language model has nothing to read before its first token."""

    def decode(self, tokens_BL: Tensor, memory: Memory, slots: Sequence[int], last: bool = False) -> Tensor:
        """Append tokens [B, L] to the slots and return the logits [B, L, V] after each; `last`: [B, 1, V]."""
        x_BLD = self.stack(self.embed(tokens_BL), None, Ports(), memory, slots).x_BLD * self.output_scale
        x_BLD = x_BLD[:, -1:].contiguous() if last else x_BLD  # else PyTorch copies the table for every row
        layer = self.embed if self.output is None else self.output
        packed = None if self.shared else getattr(layer, "matrix", None)  # adapters learn beside exact weights
        logits_BLV = F.linear(x_BLD, self.table).float() if packed is None else packed.multiply(x_BLD)
        return logits_BLV if self.soft_cap is None else self.soft_cap * torch.tanh(logits_BLV / self.soft_cap)

    def example(self, samples: int = 2) -> Batch:
        generator = torch.Generator().manual_seed(0)
        shape = samples, self.config.context_length + 1
        tokens_BL = torch.randint(self.config.vocab_size, shape, generator=generator)
        return {"tokens": tokens_BL, "mask": torch.ones(shape, dtype=torch.bool)}
