"""Generative adversarial nets: one player makes pictures of noise, the other tells them from real ones.

    noise_BN (+ class, caption) -> generator -> image_BCYX -> augmented -> discriminator -> logit_B
    discriminator: real and generated logits -> loss + gamma / 2 (|slope at the real|^2 + |slope at the generated|^2)
    generator: the logits of what it made -> loss

The game of three steps (draw noise and pictures, move the discriminator up, move the generator down): Goodfellow et al.
2014, arXiv:1406.2661. "r3gan", where each generated picture is compared with a real one and the slopes at both are kept
small: Huang et al. 2025, arXiv:2501.05441; its penalties: Mescheder et al. 2018, arXiv:1801.04406. "hinge": Lim and Ye
2017, arXiv:1705.02894. Generator and discriminator as transformers: Jiang et al. 2021, arXiv:2102.07074; conditions by
projection: Miyato and Koyama 2018, arXiv:1802.05637.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.augment import DRAWS, Augment
from nomoat.nn.backbone import Backbone
from nomoat.nn.caption import Caption, dropped
from nomoat.nn.conv import Conv, Grow, Shrink
from nomoat.nn.pictures import Painter, Viewer
from nomoat.sampling.drawing import Drawing, noise

SILENT = 0.1
"""Share of the captions that are left out in training, so that a picture may be asked for without one."""
COOLING = 0.5
"""Share of the training in which gamma falls to its last value."""


class Objective(NamedTuple):
    """What the two players lower, from the logits [B] of real and of generated pictures.

    Args:
        discriminator, generator: each picture's loss [B] from real_B and fake_B.
        first: of the discriminator, where all logits are 0.
        paired: whether the generator's loss needs the real ones.
        gamma: usual weight of the penalties.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    first: float
    paired: bool = False
    gamma: float = 0.0


def _cross_entropy(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), with D the sigmoid of a logit."""
    return F.softplus(-real_B) + F.softplus(fake_B)


OBJECTIVES = {
    "minimax": Objective(_cross_entropy, lambda real_B, fake_B: -F.softplus(fake_B), 2 * math.log(2)),
    "nonsaturating": Objective(_cross_entropy, lambda real_B, fake_B: F.softplus(-fake_B), 2 * math.log(2)),
    "hinge": Objective(
        lambda real_B, fake_B: F.relu(1 - real_B) + F.relu(1 + fake_B), lambda real_B, fake_B: -fake_B, 2.0
    ),
    "r3gan": Objective(
        lambda real_B, fake_B: F.softplus(fake_B - real_B),
        lambda real_B, fake_B: F.softplus(real_B - fake_B),
        math.log(2),
        paired=True,
        gamma=1.0,
    ),
}


@dataclass(frozen=True)
class GAN:
    """Two nets and their game.

    Args:
        size: pixels a side.
        channels: 3, or 1 for grey.
        latent: numbers of noise a picture.
        objective: "minimax" as in algorithm 1 of 2014: the generator lowers log(1 - D(G(z))); "nonsaturating": it
            raises log D(G(z)), which the same paper advises; "hinge"; "r3gan".
        generator, discriminator: a `Conv`, or a `Backbone` of which width, depth, heads and dialect count: it is full,
            with positions on two axes and the ports that it needs.
        patch: side of a transformer's patches, in pixels.
        gamma: weight of the penalties on the discriminator's slope; None: 1 with "r3gan", 0 (none) else. What suits
            grows with the number of pixels.
        gamma_final: gamma at half of the training and after, as a share of the first.
        augment: what the discriminator sees pictures through.
        cond_width: of the style of a transformer, of classes and captions.
        classes: that `label` counts; 0: none.
        vocab_size, caption_length: of captions; 0: none.
    """

    size: int = 32
    channels: int = 3
    latent: int = 64
    objective: Literal["minimax", "nonsaturating", "hinge", "r3gan"] = "r3gan"
    generator: Conv | Backbone = Conv()
    discriminator: Conv | Backbone = Conv()
    patch: int = 4
    gamma: float | None = None
    gamma_final: float = 0.1
    augment: Augment = Augment()
    cond_width: int = 128
    classes: int = 0
    vocab_size: int = 0
    caption_length: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"there is no objective `{self.objective}`",
                f"there is {', '.join(OBJECTIVES)}",
                nearest(self.objective, OBJECTIVES),
            )
        for wrong, what, fix in (
            (
                min(self.size, self.channels, self.latent, self.patch, self.cond_width) < 1,
                "size, channels, latent, patch and cond_width are at least 1",
                "",
            ),
            (self.weight < 0, f"gamma {self.gamma} would reward steep slopes", "use 0 for none"),
            (not 0 <= self.gamma_final <= 1, f"gamma_final {self.gamma_final} is no share", "use 0 to 1; 1: constant"),
            (self.classes < 0 or self.classes == 1, f"{self.classes} classes say nothing", "use 0 for none"),
            (
                (self.vocab_size > 0) != (self.caption_length > 0),
                f"captions of {self.caption_length} words out of {self.vocab_size} cannot be read",
                "give vocab_size and caption_length, or neither",
            ),
        ):
            if wrong:
                raise ConfigError(what, fix=fix)
        for net in (self.generator, self.discriminator):
            if isinstance(net, Conv):
                net.smallest(self.size)
            elif self.size % self.patch:
                raise ConfigError(
                    f"a picture of {self.size} pixels a side cannot be cut into patches of {self.patch}",
                    fix=f"choose a patch that divides {self.size}",
                )

    @property
    def weight(self) -> float:
        """Gamma at the start."""
        return OBJECTIVES[self.objective].gamma if self.gamma is None else self.gamma

    @property
    def asked(self) -> int:
        """Width of what a class or caption says; 0 where there are none."""
        return self.cond_width if self.classes or self.vocab_size else 0

    def build(self, parts: Parts) -> AdversarialNets:
        return AdversarialNets(self)

    @classmethod
    def tiny(cls) -> GAN:
        small = Backbone(width=16, depth=1, heads=2)
        return cls(size=8, latent=4, generator=Conv((8,)), discriminator=small, cond_width=8, classes=3)


class Condition(nn.Module):
    """What is asked for, as one vector [B, cond_width]: class and caption, added up."""

    def __init__(self, config: GAN) -> None:
        super().__init__()
        width = config.cond_width
        self.embed = nn.Embedding(config.classes, width) if config.classes else None
        self.caption = Caption(config.vocab_size, config.caption_length, width) if config.vocab_size else None

    def forward(self, batch: Batch) -> Tensor:
        """Of `label`, `caption` and `caption_mask`, where the model reads them; else [B, 0]."""
        said = [] if self.embed is None else [self.embed(batch["label"])]
        said += [] if self.caption is None else [self.caption(batch)[2]]
        return sum(said[1:], said[0]) if said else batch["noise"][:, :0]


class Generator(nn.Module):
    """Noise, and what is asked for, to pictures in (-1, 1)."""

    def __init__(self, config: GAN) -> None:
        super().__init__()
        net, inputs = config.generator, config.latent + config.asked
        self.condition = Condition(config)
        self.body: nn.Module
        if isinstance(net, Conv):
            self.body = Grow(net, config.channels, config.size, inputs)
        else:
            self.body = Painter(net, (config.channels, config.size, config.patch), inputs, config.cond_width)

    def forward(self, batch: Batch) -> Tensor:
        """[B, C, Y, X] of `noise` [B, latent] and what the model reads else."""
        return self.body(torch.cat((batch["noise"], self.condition(batch)), 1)).float().tanh()


class Discriminator(nn.Module):
    """Pictures, and what was asked for, to logits: above 0 where they look real. All are 0 at first."""

    def __init__(self, config: GAN) -> None:
        super().__init__()
        net = config.discriminator
        self.condition = Condition(config)
        self.body: Shrink | Viewer
        if isinstance(net, Conv):
            self.body = Shrink(net, config.channels, config.size)
        else:
            self.body = Viewer(net, config.channels, config.patch)
        self.output = nn.Linear(self.body.features, 1, bias=False)  # where logits are compared a bias would never move
        self.project = nn.Linear(self.body.features, config.asked, bias=False) if config.asked else None
        self.scale = max(1, config.asked) ** -0.5
        for layer in (self.output, self.project):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(self, image_BCYX: Tensor, asked_BD: Tensor) -> Tensor:
        """[B] of pictures [B, C, Y, X] and what `condition` says."""
        x_BF = self.body(image_BCYX)
        logit_B = self.output(x_BF)[:, 0].float()
        if self.project is None:
            return logit_B
        return logit_B + (self.project(x_BF) * asked_BD).sum(1).float() * self.scale


class AdversarialNets(Family):
    """See the module's first lines. Generates."""

    players: ClassVar[tuple[str, ...]] = ("discriminator", "generator")
    claims: ClassVar[Mapping[str, str]] = {
        "overfits": "adversarial: one batch is not overfitted, each player undoes what the other has learned"
    }
    counts: ClassVar[str] = "picture"

    def __init__(self, config: GAN) -> None:
        super().__init__()
        self.config, self.objective = config, OBJECTIVES[config.objective]
        self.generator, self.discriminator = Generator(config), Discriminator(config)

    def parameters_of(self, player: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the generator or of the discriminator."""
        return ((name, weight) for name, weight in self.named_parameters() if name.startswith(f"{player}."))

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """A grid and registers are tables."""
        return "embedding" if name.endswith((".grid", ".registers")) else super().role_of(name, parameter)

    def gamma(self, progress: float) -> float:
        """The weight of the penalties: a half cosine from `gamma` down to `gamma_final` of it, then constant."""
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(1.0, progress / COOLING))
        return self.config.weight * (1 - fallen * (1 - self.config.gamma_final))

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Add the noise, the augmentations of real and generated pictures, and leave out some captions.

        Raises:
            ConfigError: the pictures or labels are not those of the config.
        """
        config, image_BCYX = self.config, batch["image"]
        expected = (config.channels, config.size, config.size)
        if image_BCYX.shape[1:] != expected:
            raise ConfigError(
                f"the data has pictures of {_shown(image_BCYX.shape[1:])}, the model makes {_shown(expected)}",
                "channels x rows x columns",
                "set data.size, family.size and family.channels alike",
            )
        if config.classes:
            self._check_labels(batch.get("label"))
        rows = len(image_BCYX)
        noise_BN = torch.randn(rows, config.latent, generator=generator)
        chance_B2K = torch.rand(rows, 2, DRAWS, generator=generator)
        return {**dropped(batch, SILENT, generator), "noise": noise_BN, "chance": chance_B2K}

    def loss(self, batch: Batch, player: str = "discriminator", progress: float = 0.0) -> Loss:
        """The summed loss of one player over the pictures.

        Args:
            batch: with `image` [B, C, Y, X], what the model reads else, and what `draw` has added.
            player: who moves.
            progress: in [0, 1]; sets gamma.
        """
        if player == "discriminator":
            return self._telling_apart(batch, progress)
        real_B = fake_B = self._logits(self._seen(self.generator(batch), batch, 1), batch)
        if self.objective.paired:
            with torch.no_grad():
                real_B = self._logits(self._seen(batch["image"], batch, 0), batch)
        return Loss(self.objective.generator(real_B, fake_B).sum(), _count(fake_B), {"fake_logit": fake_B.sum()})

    def first_loss(self, batch: Batch) -> float:
        """Of the discriminator, which knows nothing: 2 ln 2, with "r3gan" ln 2, with "hinge" 2."""
        return self.objective.first

    @property
    def reads(self) -> frozenset[str]:
        """What `generate` looks at in its prompts."""
        return frozenset({"label"} if self.config.classes else ()) | ({"caption"} if self.config.vocab_size else set())

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of one picture's noise."""
        return (self.config.latent,)

    @torch.no_grad()
    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        """Pictures {"image": [B, C, Y, X]} in one step.

        Args:
            prompts: `label` (-1: any), `caption` and `caption_mask` as the model reads them; `rows` where it reads
                nothing; `noise` [B, latent] to be given, else it is drawn for rows numbered from `first` on.
            options: of these only the seed counts.
            generator: not used: each picture's chance comes from the seed and its own number.

        Raises:
            ConfigError: guidance, a picture to begin with, or a class that there is none of.
        """
        if options.guidance != 1:
            raise ConfigError(
                f"guidance {options.guidance:g} needs a model that works in steps", "a GAN draws in one", "set it to 1"
            )
        if foreign := sorted({"init", "mask", "hint", "small", "like"} & prompts.keys()):
            raise ConfigError(f"a GAN reads no `{foreign[0]}`", "it begins with noise alone", "name a diffusion model")
        given = prompts.get("noise")
        first, rows = int(prompts.get("first", 0)), int(prompts.get("rows", 1))
        rows = next((len(prompts[key]) for key in ("noise", "caption", "label") if key in prompts), rows)
        place = next(self.parameters()).device
        noise_BN = noise(rows, self.noise_shape, options.seed, first) if given is None else given
        if noise_BN.shape[1:] != self.noise_shape:
            raise ConfigError(f"noise of {_shown(noise_BN.shape[1:])} numbers", f"the model reads {self.config.latent}")
        batch: dict[str, Any] = {"noise": noise_BN.to(place, torch.float32)}
        if self.config.classes:
            any_B = torch.special.ndtr(noise(rows, (1,), options.seed, first, "label")[:, 0])
            label_B = prompts.get("label", torch.full((rows,), -1)).to(place)
            label_B = torch.where(label_B < 0, (any_B * self.config.classes).long().to(place), label_B)
            self._check_labels(label_B)
            batch["label"] = label_B
        if self.config.vocab_size:
            silent_BM = torch.zeros(rows, self.config.caption_length, dtype=torch.long)
            batch["caption"] = prompts.get("caption", silent_BM).to(place)
            batch["caption_mask"] = prompts.get("caption_mask", silent_BM.bool()).to(place)
        return {"image": self.generator(batch)}

    def example(self, samples: int = 2) -> Batch:
        config, generator = self.config, torch.Generator().manual_seed(0)
        shape = samples, config.channels, config.size, config.size
        batch: Batch = {"image": torch.rand(shape, generator=generator) * 2 - 1}
        if config.classes:
            batch["label"] = torch.randint(config.classes, (samples,), generator=generator)
        if config.vocab_size:
            words = samples, config.caption_length
            batch["caption"] = torch.randint(config.vocab_size, words, generator=generator)
            batch["caption_mask"] = torch.ones(words, dtype=torch.bool)
            batch["caption_mask"][-1] = False
        return batch

    def _telling_apart(self, batch: Batch, progress: float) -> Loss:
        """The discriminator's loss, with the penalties where there are some."""
        with torch.no_grad():
            fake_BCYX = self._seen(self.generator(batch), batch, 1)
        both_BCYX = torch.cat((self._seen(batch["image"], batch, 0), fake_BCYX))
        gamma = self.gamma(progress) if torch.is_grad_enabled() else 0.0
        both_BCYX.requires_grad_(gamma > 0)
        asked_BD = self.discriminator.condition(batch)
        logit_B = self.discriminator(both_BCYX, torch.cat((asked_BD, asked_BD)))
        real_B, fake_B = logit_B.chunk(2)
        total = self.objective.discriminator(real_B, fake_B).sum()
        parts = {"real_logit": real_B.sum(), "fake_logit": fake_B.sum()}
        if gamma:
            # No picture's logit depends on another's, so the slope of the sum is each one's own.
            [slope_BCYX] = torch.autograd.grad(logit_B.sum(), both_BCYX, create_graph=True)
            parts["slope"] = slope_BCYX.float().square().sum()
            total = total + gamma / 2 * parts["slope"]
        return Loss(total, _count(real_B), parts)

    def _seen(self, image_BCYX: Tensor, batch: Batch, place: int) -> Tensor:
        """Pictures as the discriminator is shown them: augmented by their own chance (0: real, 1: generated)."""
        return self.config.augment(image_BCYX, batch["chance"][:, place])

    def _logits(self, image_BCYX: Tensor, batch: Batch) -> Tensor:
        return self.discriminator(image_BCYX, self.discriminator.condition(batch))

    def _check_labels(self, label_B: Tensor | None) -> None:
        last = self.config.classes - 1
        if label_B is None:
            raise ConfigError(f"the data has no labels, the model reads {self.config.classes} classes", "", "classes=0")
        if len(label_B) and not 0 <= int(label_B.min()) <= int(label_B.max()) <= last:
            raise ConfigError(f"there is no class {int(label_B.max())}", f"the model knows 0 to {last}")


def _count(logit_B: Tensor) -> Tensor:
    return torch.tensor(len(logit_B), device=logit_B.device)


def _shown(shape: torch.Size | tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
