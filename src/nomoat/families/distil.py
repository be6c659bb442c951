"""Distillation: a student learns what a teacher says next, not only what it wrote.

    tokens_BL -> student.trunk -> x_ND of the tokens to learn -> logits_NV / T -> divergence from the teacher's, x T^2
    teacher: teacher_logp [B, L + 1, K] with teacher_ids, stored beside the text; or a frozen part that reads along

Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2024, arXiv:2306.13649 (GKD: forward, reverse, Jensen-Shannon, on
the student's own text); Boizard et al. 2024, arXiv:2402.12030 (ULD, for unrelated tokenizers); Romero et al. 2015,
arXiv:1412.6550 (features). A student of the teacher's text alone (Kim and Rush 2016, arXiv:1606.07947) needs none of
this: it is a language model on conversations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.family import WRAPPING, Family, Frozen, Parts
from nomoat.core.types import Batch, Loss, Ports
from nomoat.nn.answers import tiny_policy
from nomoat.nn.divergence import classes, divergence, sorted_distance

LOSSES = ("forward", "reverse", "jsd", "sorted")
PIECE_NUMBERS = 1 << 24
"""Logits that are held at a time; those of the pass back are computed again."""
TEACHER = "teacher"


@dataclass(frozen=True)
class Distil:
    """Logit distillation of a language model.

    Args:
        student: the config of the model that is taught and kept.
        loss: `forward` KL, `reverse` KL, `jsd`, or `sorted` (ULD: between unrelated vocabularies).
        beta: of `jsd`: 0 is near forward, 1 near reverse.
        temperature: T, of both; stored logits must have been stored at the same one (times `heat`).
        heat: divides the logits of a teacher that reads along once more: the temperature at which it writes, so that
            its probabilities are those that its text was drawn by.
        text: weight of the nats of the text itself beside (1 - text) of the divergence; a token for which the teacher
            says nothing (its tokens end elsewhere) is learned from the text alone.
        teacher_ids: student's token -> the teacher's, for a teacher that reads along; empty: the same.
    """

    student: Any = None
    loss: Literal["forward", "reverse", "jsd", "sorted"] = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    heat: float = 1.0
    text: float = 0.0
    teacher_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(
                f"there is no loss `{self.loss}`", f"there is {', '.join(LOSSES)}", nearest(self.loss, LOSSES)
            )
        if not 0 < self.beta < 1:
            raise ConfigError(f"beta {self.beta} is no mixture", "0 is `forward`, 1 is `reverse`", "use 0.5")
        if not min(self.temperature, self.heat) > 0 or not 0 <= self.text <= 1:
            raise ConfigError(
                f"temperature {self.temperature}, heat {self.heat} and text {self.text} cannot be",
                "temperature and heat are above 0, text from 0 to 1",
            )

    @property
    def product(self) -> Any:
        return self.student

    @property
    def context_length(self) -> int:
        """Of the student."""
        return int(self.student.context_length)

    @property
    def mixture(self) -> float:
        """Beta of `nn.divergence`."""
        return {"forward": 0.0, "reverse": 1.0}.get(self.loss, self.beta)

    def build(self, parts: Parts) -> Distillation:
        return Distillation(self, parts)

    @classmethod
    def tiny(cls) -> Distil:
        return cls(tiny_policy(), text=0.5)


class Distillation(Family):
    """See the module's first lines. What is kept is the student: whatever has `trunk` and `table`."""

    claims: ClassVar[Mapping[str, str]] = {
        "overfits": "the teacher's own entropy is added to a divergence of zero by the text's share of the loss",
        "uses_input": "what it is to say is the teacher's choice, which the example draws by chance",
    }

    def __init__(self, config: Distil, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        others = {name: part for name, part in (parts or {}).items() if name != TEACHER}
        self.student: Any = config.student.build(others)
        self.teacher: Frozen | None = (parts or {}).get(TEACHER)

    @property
    def product(self) -> Family:
        return self.student

    def kept(self) -> dict[str, Tensor]:
        return self.student.kept()

    def take(self, tensors: Any) -> None:
        self.student.take(tensors)

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over the tokens under `mask` [B, L + 1]; parts: `text_nats`, `divergence`."""
        counted_BL = batch["mask"][:, 1:]
        x_ND, targets_N = self.student.trunk(batch)[counted_BL], batch["tokens"][:, 1:][counted_BL]
        ids_NK, logp_NK = self._teacher(batch, counted_BL)
        pieces = max(1, math.ceil(targets_N.numel() * self.student.config.vocab_size / PIECE_NUMBERS))
        sums = [
            checkpoint(self._sums, *piece, use_reentrant=False)
            for piece in zip(*(t.chunk(pieces) for t in (x_ND, targets_N, ids_NK, logp_NK)), strict=True)
        ]
        total, text, apart = (sum(each) for each in zip(*sums, strict=True))
        return Loss(total, counted_BL.sum(), {"text_nats": text.detach(), "divergence": apart.detach()})

    def _sums(self, x_ND: Tensor, targets_N: Tensor, ids_NK: Tensor, logp_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the nats of the text and the divergence, summed over some tokens."""
        logits_NV = F.linear(x_ND, self.student.table).float()
        if (cap := self.student.soft_cap) is not None:
            logits_NV = cap * torch.tanh(logits_NV / cap)
        text_N, heat = F.cross_entropy(logits_NV, targets_N, reduction="none"), self.config.temperature
        student_NV = F.log_softmax(logits_NV / heat, -1)
        if self.config.loss == "sorted":
            apart_N = sorted_distance(student_NV, logp_NK)
        else:
            apart_N = divergence(*self._classes(student_NV, ids_NK, logp_NK), self.config.mixture)
        apart_N = apart_N * heat**2
        share_N = torch.where((logp_NK > -math.inf).any(1), self.config.text, 1.0)
        apart_N = torch.where(share_N < 1, apart_N, 0.0)
        return (share_N * text_N + (1 - share_N) * apart_N).sum(), text_N.sum(), apart_N.sum()

    def _classes(self, student_NV: Tensor, ids_NK: Tensor, logp_NK: Tensor) -> tuple[Tensor, Tensor]:
        if ids_NK.shape[1] == student_NV.shape[1]:  # every token of the vocabulary, in order: nothing is left over
            return student_NV, logp_NK
        return classes(student_NV, ids_NK, logp_NK)

    def _teacher(self, batch: Batch, counted_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's tokens and log-probabilities [N, K], -inf where it says nothing."""
        if "teacher_logp" in batch:
            return tuple(batch[name][:, 1:][counted_BL] for name in ("teacher_ids", "teacher_logp"))
        if self.teacher is None:
            raise ConfigError(
                "there is no teacher", "the batch has no logits of one", "store them (`nomoat distil`), or name parts"
            )
        tokens_BL, map_V = batch["tokens"], torch.tensor(self.config.teacher_ids, device=batch["tokens"].device)
        read = {**batch, "tokens": map_V[tokens_BL] if len(map_V) else tokens_BL}
        with torch.no_grad():
            self.teacher.to(tokens_BL.device)
            logits_NV = F.linear(self.teacher.trunk(read)[counted_BL], self.teacher.table).float()
        if len(map_V):
            logits_NV = logits_NV[:, map_V]  # tokens that the student lacks are left out, the others renormalised
        logp_NV = F.log_softmax(logits_NV / (self.config.temperature * self.config.heat), -1)
        return torch.arange(logp_NV.shape[1], device=logp_NV.device).expand_as(logp_NV), logp_NV

    def first_loss(self, batch: Batch) -> float | None:
        """None with a teacher that reads along; else both parts of a uniform guess.

        They are ln V nats of the text, and ln V less the entropy of the example's teacher.
        """
        if "teacher_logp" not in batch:
            return None
        vocab_size = self.student.config.vocab_size
        logp_NK = batch["teacher_logp"][:, 1:][batch["mask"][:, 1:]]
        uniform_NV = torch.full((len(logp_NK), vocab_size), -math.log(vocab_size))
        ids_NK = batch["teacher_ids"][:, 1:][batch["mask"][:, 1:]]
        apart = divergence(*self._classes(uniform_NV, ids_NK, logp_NK), self.config.mixture).mean()
        return float(self.config.text * math.log(vocab_size) + (1 - self.config.text) * apart)

    def example(self, samples: int = 2) -> Batch:
        batch = self.student.example(samples)
        generator = torch.Generator().manual_seed(1)
        shape = *batch["tokens"].shape, self.student.config.vocab_size
        found = torch.randn(shape, generator=generator).mul(3).log_softmax(-1).topk(4)
        return {**batch, "teacher_logp": found.values, "teacher_ids": found.indices}


@dataclass(frozen=True)
class FeatureDistil:
    """Feature distillation: chosen layers of a stack are drawn towards a teacher's.

    Args:
        student: the config of the model that is taught and kept; has `trunk`, or a `stack` over `embed`.
        layers: pairs of (student's layer, teacher's layer).
        teacher_width: D of the teacher; a linear map, which is thrown away, leads from the student's to it.
        kind: `mse` or `cosine`.
        task: weight of the student's own loss beside it.
    """

    student: Any = None
    layers: tuple[tuple[int, int], ...] = ((-1, -1),)
    teacher_width: int = 256
    kind: Literal["mse", "cosine"] = "mse"
    task: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("mse", "cosine") or not self.layers:
            raise ConfigError(f"features by `{self.kind}` of {self.layers} cannot be", fix="mse or cosine, of layers")

    @property
    def product(self) -> Any:
        return self.student

    @property
    def context_length(self) -> int:
        """Of the student."""
        return int(self.student.context_length)

    def build(self, parts: Parts) -> FeatureDistillation:
        return FeatureDistillation(self, parts)

    @classmethod
    def tiny(cls) -> FeatureDistil:
        return cls(tiny_policy(), layers=((0, 0), (1, 1)), teacher_width=24, task=0.5)


class FeatureDistillation(Family):
    """See `FeatureDistil`. The teacher's layers come with the batch, `features` [B, L + 1, pairs, D], or of a part."""

    claims: ClassVar[Mapping[str, str]] = {
        "uses_input": "what it is to make is the teacher's choice, which the example draws by chance",
    }

    def __init__(self, config: FeatureDistil, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        others = {name: part for name, part in (parts or {}).items() if name != TEACHER}
        self.student: Any = config.student.build(others)
        self.teacher: Frozen | None = (parts or {}).get(TEACHER)
        width = config.student.backbone.width
        self.maps = nn.ModuleList(nn.Linear(width, config.teacher_width, bias=False) for _ in config.layers)
        for weight in self.maps.parameters():
            nn.init.zeros_(weight)

    @property
    def product(self) -> Family:
        return self.student

    def kept(self) -> dict[str, Tensor]:
        maps = {f"{WRAPPING}{name}": tensor for name, tensor in self.maps.state_dict().items()}
        return {**self.student.kept(), **maps}

    def take(self, tensors: Any) -> None:
        self.maps.load_state_dict({n[len(WRAPPING) :]: t for n, t in tensors.items() if n.startswith(WRAPPING)})
        self.student.take({name: tensor for name, tensor in tensors.items() if not name.startswith(WRAPPING)})

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over the positions under `mask`, averaged over the pairs of layers and their width."""
        counted_BL = batch["mask"][:, 1:]
        own = _layers(self.student, batch, [pair[0] for pair in self.config.layers])
        if "features" in batch:
            aims = batch["features"][:, 1:].unbind(2)
        elif self.teacher is not None:
            with torch.no_grad():
                self.teacher.to(counted_BL.device)
                aims = _layers(self.teacher, batch, [pair[1] for pair in self.config.layers])
        else:
            raise ConfigError("there is no teacher", "the batch has no features of one", "name parts.teacher")
        total = torch.zeros((), device=counted_BL.device)
        for leads, x_BLD, aim_BLD in zip(self.maps, own, aims, strict=True):
            made_ND, aim_ND = leads(x_BLD[counted_BL]).float(), aim_BLD[counted_BL].float()
            total = total + _apart(made_ND, aim_ND, self.config.kind).sum() / len(self.maps)
        if self.config.task:
            total = total + self.config.task * self.student.loss(batch, player, progress).total
        return Loss(total, counted_BL.sum())

    def first_loss(self, batch: Batch) -> float | None:
        """None with a teacher that reads along.

        The maps start at zero: the mean square of what they are to make, or 1 (a cosine of zero).
        """
        if "features" not in batch:
            return None
        aim_NPD = batch["features"][:, 1:][batch["mask"][:, 1:]]
        task = self.student.first_loss(batch) if self.config.task else 0.0
        return float(1.0 if self.config.kind == "cosine" else aim_NPD.square().mean()) + self.config.task * task

    def example(self, samples: int = 2) -> Batch:
        batch = self.student.example(samples)
        shape = *batch["tokens"].shape, len(self.config.layers), self.config.teacher_width
        return {**batch, "features": torch.randn(shape, generator=torch.Generator().manual_seed(1))}


def _apart(made_ND: Tensor, aim_ND: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - F.cosine_similarity(made_ND, aim_ND, dim=-1)
    return (made_ND - aim_ND).square().mean(-1)


def _layers(model: Any, batch: Batch, wanted: list[int]) -> list[Tensor]:
    """The outputs [B, L, D] of layers of a model for all tokens but the last; -1 is the last layer."""
    depth = len(model.stack.layers)
    numbers = [number % depth for number in wanted]
    documents_BL, positions = (None if name not in batch else batch[name][:, :-1] for name in ("document", "positions"))
    ports = Ports(documents_BL=documents_BL, want=tuple(sorted(set(numbers))))
    trace = model.stack(model.embed(batch["tokens"][:, :-1]), positions, ports)
    return [trace.layers[number] for number in numbers]
