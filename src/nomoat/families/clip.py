"""Pictures and captions in one space (CLIP, SigLIP): what belongs together points the same way.

    image_BCYX -> convolutions, patches -> full stack -> mean -> linear -> unit vector_BE \\
    caption_BM -> words -> full stack -> mean ---------> linear -> unit vector_BE -------> t x y^T + b -> logits_BB
    sigmoid (SigLIP): is this a pair? for every two      softmax (CLIP): which caption, which picture of the batch?

Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343; Xiao et al. 2021, arXiv:2106.14881 (stem);
Darcet et al. 2023, arXiv:2309.16588 (registers).

What counts in a batch: picture i and caption i are a pair where the caption has a word. Every other picture and caption
are none, except where the two captions, or the two pictures, are the same: those two are left out, being neither. A
caption without a word fits no picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss, Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.caption import Caption
from nomoat.nn.dialect import OURS
from nomoat.nn.distort import Augment
from nomoat.nn.linear import draw_
from nomoat.nn.patch import Patchify

OBJECTIVES = {"siglip": (10.0, -10.0), "infonce": (1 / 0.07, 0.0)}
"""Name -> first factor t and first bias b of the logits, as published."""
LARGEST_FACTOR = 100.0  # Radford et al. 2021, section 2.5
PICTURES = replace(OURS, rope_base=100.0)
"""Ours with rotary waves as long as a picture has patches a side, not as a text has words."""


def _vision() -> Backbone:
    return Backbone(width=192, depth=6, heads=6, dialect=PICTURES, causal=False, position_axes=2)


@dataclass(frozen=True)
class CLIP:
    """Two towers that end in one space.

    Args:
        vocab_size: different words of the captions, the padding among them.
        size: pixels a side of the pictures; others are resized to it.
        channels: C, 3 or 1 for grey.
        patch: side of a patch, in pixels.
        vision: the pictures' stack: full, with positions on 2 axes.
        stem: halve the picture by convolutions until a pixel stands for a patch; False: cut it into patches at once.
        registers: tokens beside the patches that stand for none of them.
        caption_length: most words of a caption.
        caption_width, caption_depth, caption_heads: of the captions' stack.
        width: E, of the shared space.
        objective: `siglip` or `infonce`.
        augment: how pictures are changed by chance in training.
    """

    vocab_size: int
    size: int = 32
    channels: int = 3
    patch: int = 4
    vision: Backbone = field(default_factory=_vision)
    stem: bool = True
    registers: int = 4
    caption_length: int = 24
    caption_width: int = 192
    caption_depth: int = 2
    caption_heads: int = 4
    width: int = 192
    objective: Literal["siglip", "infonce"] = "siglip"
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        known = ", ".join(OBJECTIVES)
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"there is no objective `{self.objective}`", f"there is {known}", nearest(self.objective, OBJECTIVES)
            )
        for wrong, what, why, fix in (
            (
                self.vocab_size < 2,
                f"vocab_size {self.vocab_size} leaves no word",
                "captions are one tower",
                "2 or more",
            ),
            (
                min(self.channels, self.patch, self.caption_length, self.caption_width, self.width) < 1,
                "channels, patch, caption_length, caption_width and width are at least 1",
                "",
                "",
            ),
            (self.registers < 0, f"there cannot be {self.registers} registers", "", "0 or more; 4 is usual"),
            (
                self.patch > 0 and (self.size % self.patch > 0 or self.size < self.patch),
                f"a picture of {self.size} pixels a side cannot be cut into patches of {self.patch}",
                "",
                f"make family.size a multiple of {self.patch}",
            ),
            (
                self.stem and self.patch & (self.patch - 1) > 0,
                f"convolutions that halve do not come to a patch of {self.patch}",
                "it is no power of two",
                "use another patch, or family.stem=false",
            ),
            (
                self.vision.causal or self.vision.position_axes != 2,
                "the pictures' stack must be full and have positions on 2 axes",
                "a patch has a row and a column, and sees all others",
                "set family.vision.causal=false and family.vision.position_axes=2",
            ),
        ):
            if wrong:
                raise ConfigError(what, why, fix)

    def build(self, parts: Parts) -> TwoTowers:
        return TwoTowers(self)

    @classmethod
    def tiny(cls) -> CLIP:
        vision = Backbone(width=32, depth=2, heads=2, dialect=PICTURES, causal=False, position_axes=2)
        return cls(17, 8, 3, 2, vision, registers=1, caption_length=6, caption_width=32, caption_depth=0, width=32)


class TwoTowers(Family):
    """See the module's first lines. Encodes and Scores."""

    splittable: ClassVar[bool] = False
    counts: ClassVar[str] = "picture"
    claims: ClassVar[Mapping[str, str]] = {
        "first_loss": "the cosines of two untrained towers are what chance makes them; towers that begin at right "
        "angles do not leave them",
    }

    def __init__(self, config: CLIP) -> None:
        super().__init__()
        self.config = config
        vision = config.vision
        self.stem = _stem(config) if config.stem else nn.Sequential()
        channels, patch = (self._stem_channels(), 1) if len(self.stem) else (config.channels, config.patch)
        self.patchify = Patchify(channels, patch, vision.width)
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, vision.width)) if config.registers else None
        self.stack = vision.build()
        words = config.vocab_size, config.caption_length, config.caption_width
        self.words = Caption(*words, config.caption_depth, config.caption_heads)
        self.picture_head = nn.Linear(vision.width, config.width, bias=False)
        self.caption_head = nn.Linear(config.caption_width, config.width, bias=False)
        for head in (self.picture_head, self.caption_head):
            draw_(head.weight, head.in_features**-0.5)
        factor, bias = OBJECTIVES[config.objective]
        self.log_factor = nn.Parameter(torch.tensor(math.log(factor)))
        self.bias = nn.Parameter(torch.tensor(bias)) if config.objective == "siglip" else None

    def _stem_channels(self) -> int:
        return next(int(layer.out_channels) for layer in reversed(self.stem) if isinstance(layer, nn.Conv2d))

    @property
    def positions_a_sample(self) -> int:
        """Tokens of the pictures' stack."""
        return (self.config.size // self.config.patch) ** 2 + self.config.registers

    def pictures(self, image_BCYX: Tensor) -> Tensor:
        """Unit vectors [B, E] of pictures in [-1, 1].

        Raises:
            ConfigError: other channels, or a picture that is not square.
        """
        x_BLD, positions_BL2 = self.patchify(self.stem(self._fitting(image_BCYX)))
        if self.registers is not None:
            registers_BRD = self.registers.expand(len(x_BLD), -1, -1).to(x_BLD.dtype)
            nowhere_BR2 = positions_BL2.new_full((*registers_BRD.shape[:2], 2), -1)
            x_BLD = torch.cat((registers_BRD, x_BLD), 1)
            positions_BL2 = torch.cat((nowhere_BR2, positions_BL2), 1)
        out_BLD = self.stack(x_BLD, positions_BL2, Ports()).x_BLD[:, self.config.registers :]
        return F.normalize(self.picture_head(out_BLD.mean(1)).float(), dim=-1)

    def captions(self, batch: Batch) -> Tensor:
        """Unit vectors [B, E] of captions. Raises ConfigError where they are longer than the tower's."""
        _, _, pooled_BD = self.words(batch)
        return F.normalize(self.caption_head(pooled_BD).float(), dim=-1)

    def _fitting(self, image_BCYX: Tensor) -> Tensor:
        channels, (rows, columns), size = image_BCYX.shape[1], image_BCYX.shape[2:], self.config.size
        if channels != self.config.channels:
            raise ConfigError(f"pictures of {channels} channels", f"this model reads {self.config.channels}")
        if rows != columns:
            raise ConfigError(
                f"a picture of {rows} x {columns} pixels", "this model reads square ones", "crop it first"
            )
        if rows == size:
            return image_BCYX
        return F.interpolate(image_BCYX, size=(size, size), mode="bilinear", antialias=True)

    @property
    def factor(self) -> Tensor:
        """t, what cosines are multiplied by."""
        return self.log_factor.exp()

    def logits(self, picture_BE: Tensor, caption_BE: Tensor) -> Tensor:
        """t x y^T + b for every picture (rows) with every caption (columns), in fp32."""
        with torch.autocast(picture_BE.device.type, enabled=False):
            cosine_BB = picture_BE.float() @ caption_BE.float().T
        logits_BB = self.factor * cosine_BB
        return logits_BB if self.bias is None else logits_BB + self.bias

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over the pairs; `picked` is the share of pictures whose own caption is the likeliest.

        SigLIP: nats of every decision, pair or none. InfoNCE: nats of the right caption of each picture and of the
        right picture of each caption, halved.
        """
        if "caption" not in batch:
            raise ConfigError("these pictures have no captions", "pictures and captions are learned as pairs")
        logits_BB = self.logits(self.pictures(batch["image"]), self.captions(batch))
        pair_BB, counted_BB = self.pairs(batch)
        said_B = pair_BB.diagonal()
        total = _sigmoid_nats if self.config.objective == "siglip" else _softmax_nats
        likeliest_B = logits_BB.detach().masked_fill(~counted_BB, -math.inf).argmax(1)
        picked = (likeliest_B == torch.arange(len(said_B), device=said_B.device))[said_B].sum()
        return Loss(total(logits_BB, pair_BB, counted_BB), said_B.sum(), {"picked": picked.float()})

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which picture and caption are a pair, and which two count at all, [B, B]: see the module's first lines."""
        said_B = batch["caption_mask"].any(1)
        pair_BB = torch.diag(said_B)
        same_BB = batch["same"] if "same" in batch else same(batch)
        return pair_BB, pair_BB | ~same_BB.to(said_B.device)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Which samples are the same, seen before the pictures are changed by chance."""
        return {**batch, "same": same(batch), "image": self.config.augment.apply(batch["image"], generator)}

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """As of any family; registers are no matrix."""
        return "vector" if name == "registers" else super().role_of(name, parameter)

    def after_step(self, progress: float) -> None:
        """Keep the factor below `LARGEST_FACTOR`."""
        with torch.no_grad():
            self.log_factor.clamp_(max=math.log(LARGEST_FACTOR))

    def chance(self, batch: Batch) -> float | None:
        """Of a guess that knows how many there are, and no picture: ln B for InfoNCE, about ln B + 1 for SigLIP."""
        pair_BB, counted_BB = self.pairs(batch)
        pairs, counted = int(pair_BB.sum()), int(counted_BB.sum())
        if not pairs:
            return None
        if self.config.objective == "infonce":
            said_B = pair_BB.diagonal()
            return float(sum(counted_BB.sum(axis)[said_B].double().log().mean() for axis in (0, 1)) / 2)
        share = pairs / counted
        others = (1 - share) * math.log(1 - share) if share < 1 else 0.0
        return -(share * math.log(share) + others) / share

    def encode(self, batch: Batch) -> Tensor:
        """Unit vectors [B, E] of the pictures; of the captions where there are no pictures."""
        return self.pictures(batch["image"]) if "image" in batch else self.captions(batch)

    def score(self, batch: Batch) -> Tensor:
        """How well each picture and its caption fit, [B, 1]: their logit."""
        logits_B = self.factor * (self.pictures(batch["image"]) * self.captions(batch)).sum(-1)
        return (logits_B if self.bias is None else logits_B + self.bias)[:, None]

    def example(self, samples: int = 2) -> Batch:
        config, generator = self.config, torch.Generator().manual_seed(0)
        shape = samples, config.channels, config.size, config.size
        colour_BC11 = torch.randn(*shape[:2], 1, 1, generator=generator)
        caption_BM = torch.randint(config.vocab_size - 1, (samples, config.caption_length), generator=generator)
        length_B = 1 + torch.randint(config.caption_length, (samples,), generator=generator)
        length_B[3::4] = 0
        mask_BM = torch.arange(config.caption_length) < length_B[:, None]
        image_BCYX = (colour_BC11 + 0.3 * torch.randn(shape, generator=generator)).clamp(-1, 1)
        return {"image": image_BCYX, "caption": caption_BM, "caption_mask": mask_BM}


def _stem(config: CLIP) -> nn.Sequential:
    """Convolutions with a step of 2, half of the stack's width at the last of them."""
    halvings, layers, inputs = config.patch.bit_length() - 1, [], config.channels
    for left in reversed(range(halvings)):
        outputs = max(4, config.vision.width >> (left + 1))
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        nn.init.kaiming_normal_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.SiLU()]
        inputs = outputs
    return nn.Sequential(*layers)


def same(batch: Batch) -> Tensor:
    """Which samples [B, B] have the same caption, word by word, or the same picture, bit by bit."""
    caption_BM = batch["caption"].masked_fill(~batch["caption_mask"], -1)
    found = torch.zeros(len(caption_BM), len(caption_BM), dtype=torch.bool)
    for rows in (caption_BM, batch["image"]):
        numbers: dict[bytes, int] = {}
        kind_B = torch.tensor([numbers.setdefault(row.numpy().tobytes(), len(numbers)) for row in rows.cpu()])
        found |= kind_B[:, None] == kind_B
    return found


def _sigmoid_nats(logits_BB: Tensor, pair_BB: Tensor, counted_BB: Tensor) -> Tensor:
    nats_BB = F.softplus(torch.where(pair_BB, -logits_BB, logits_BB))
    return nats_BB[counted_BB].sum()


def _softmax_nats(logits_BB: Tensor, pair_BB: Tensor, counted_BB: Tensor) -> Tensor:
    logits_BB, said_B = logits_BB.masked_fill(~counted_BB, -math.inf), pair_BB.diagonal()
    right_N = torch.arange(len(said_B), device=said_B.device)[said_B]
    both = [F.cross_entropy(each[said_B], right_N, reduction="sum") for each in (logits_BB, logits_BB.T)]
    return (both[0] + both[1]) / 2
