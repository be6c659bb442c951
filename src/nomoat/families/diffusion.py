"""Diffusion: pictures from noise, by a network that guesses the clean picture behind a noisy one.

    image -> x = (1 - t) image + t noise -> trunk(x; t, r, conditions) -> clean guess -> weighted squared error
    captions, classes, an image embedding -> one vector and a sequence to attend to;  a small picture -> more channels
    noise -> sampling/solvers.py, guess by guess -> image

Lipman et al. 2023, arXiv:2210.02747 (flow matching); Ho et al. 2020, arXiv:2006.11239; Karras et al. 2022,
arXiv:2206.00364; what is predicted and what an error weighs: nn/objective.py. Ho and Salimans 2022, arXiv:2207.12598
(guidance); Ho et al. 2021, arXiv:2106.15282 (upsampling with noise added to the small picture); Rombach et al. 2022,
arXiv:2112.10752 (latents of a codec); Ramesh et al. 2022, arXiv:2204.06125 (an image embedding as condition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss, Ports, Trace
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import OURS
from nomoat.nn.latents import Latents
from nomoat.nn.objective import FLOW, Objective, meanflow_target, shortcut_target, step_ends
from nomoat.nn.told import Condition, Shares, Told
from nomoat.nn.trunk import Patched, Trunk
from nomoat.nn.unet import UNet, UNetTrunk
from nomoat.sampling.drawing import Drawing, noise
from nomoat.sampling.solvers import SOLVERS, After, Denoise, consistency, guided, keeping, unchanged

CODEC = "codec"
QUARTERS = 4
LEARNED = ("shortcut", "meanflow")
"""Flow maps for which a step's length is told; a plain model knows slopes, a consistency model steps to the end."""
MOST_NOISE, SMALL_NOISE = 0.5, 0.1
"""Noise share of the small picture: at most, while it is taught; and when pictures are drawn."""
READ = ("image", "latent", "caption", "label", "embedding", "small", "init", "noise", "hint", "index")


@dataclass(frozen=True)
class Diffusion:
    """A denoiser of pictures.

    Args:
        size: pixels a side.
        channels: 3, or 1 for grey.
        patch: side of a patch, in pixels (of latents, where there are some); a UNet has none.
        trunk: a Backbone (width, depth and heads matter, the rest is set here) or a UNet.
        objective: nn/objective.py: FLOW, DDPM, EDM, SHORTCUT, MEANFLOW.
        vocab_size: different words of the captions; 0: none are read.
        caption_length: most words of a caption.
        caption_depth: layers that read captions; 0: the words alone.
        classes: number of labels; 0: none are read.
        embedding_width: of an image embedding that is read (`embedding`); 0: none.
        upscale: a picture this many times smaller is read (`small`), made from `image` in training; 0: none.
        latent: channels of a codec's latents and pixels a side of each; the part `codec` makes them. None: pixels.
        drop: share of the rows whose captions, classes and embeddings are hidden, so that guidance can be asked for.
        stem: channels of a 3x3 convolution before the patches and one after them; 0: none.
    """

    size: int = 32
    channels: int = 3
    patch: int = 4
    trunk: Backbone | UNet = field(
        default_factory=lambda: Backbone(192, 6, 6, causal=False, dialect=replace(OURS, rope_base=100.0, bounded=True))
    )
    objective: Objective = FLOW
    vocab_size: int = 0
    caption_length: int = 24
    caption_depth: int = 2
    classes: int = 0
    embedding_width: int = 0
    upscale: int = 0
    latent: tuple[int, int] | None = None
    drop: float = 0.1
    stem: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """What is denoised: channels, rows and columns."""
        channels, factor = self.latent or (self.channels, 1)
        return channels, self.size // factor, self.size // factor

    @property
    def tells(self) -> bool:
        """Whether there is anything that guidance can exaggerate."""
        return bool(self.vocab_size or self.classes or self.embedding_width)

    def __post_init__(self) -> None:
        factor, side = (self.latent or (1, 1))[1], self.shape[1]
        unet = isinstance(self.trunk, UNet)
        near = max(1, round(self.size / (self.patch * factor))) * self.patch * factor if self.patch > 0 else 0
        for wrong, what, fix in (
            (min(self.size, self.channels, self.patch) < 1, "size, channels and patch are at least 1", ""),
            (self.size % factor, f"{self.size} pixels cannot be cut into latents of {factor}", "use a multiple of it"),
            (
                not unet and self.patch > 0 and side % self.patch,
                f"a side of {side} cannot be cut into patches of {self.patch}",
                f"nearest size that can: {near}",
            ),
            (unet and self.stem, "a UNet has convolutions of its own", "leave stem at 0"),
            (self.vocab_size == 1 or self.vocab_size < 0, f"vocab_size {self.vocab_size} has no words", "0: none"),
            (self.vocab_size and self.caption_length < 1, "captions need a caption_length of at least 1", ""),
            (not 0 <= self.drop < 1, f"drop {self.drop} is no share", "0.1 is usual; 0 forgoes guidance"),
            (self.upscale not in (0, 2, 4, 8), f"upscale {self.upscale} cannot be", "use 2, 4 or 8; 0: no picture"),
            (
                self.upscale and (self.size % self.upscale or self.latent is not None),
                f"a picture of {self.size} pixels cannot be {self.upscale} times smaller here",
                "use a multiple, and no latents",
            ),
        ):
            if wrong:
                raise ConfigError(what, fix=fix)

    def build(self, parts: Parts) -> DiffusionModel:
        return DiffusionModel(self, parts)

    @classmethod
    def tiny(cls) -> Diffusion:
        trunk = Backbone(32, 2, 2, causal=False)
        return cls(8, 3, 4, trunk, vocab_size=11, caption_length=5, caption_depth=1, classes=3, embedding_width=6)


class DiffusionModel(Family):
    """See the module's first lines. Denoises and Generates.

    A wrapper (a control network) hands itself to `loss_by` and `generate_by`: whatever has `conditions(batch)` and
    `denoise(x, t_B, r_B, condition)`. For its copy of the trunk there are `trunk.tokens(enter(...))` and `ports`.
    """

    counts: ClassVar[str] = "picture"

    def __init__(self, config: Diffusion, parts: Parts | None = None) -> None:
        super().__init__()
        self.config, self.objective, self.noise_shape = config, config.objective, config.shape
        own, width = config.shape[0], config.trunk.width
        channels = own + (config.channels if config.upscale else 0), own
        context = bool(config.vocab_size or config.embedding_width)
        self.trunk: Trunk
        if isinstance(config.trunk, UNet):
            self.trunk = UNetTrunk(config.trunk, channels, context)
        else:
            self.trunk = Patched(config.trunk, config.patch, channels, context, config.stem)
        self.times = Shares(2, width)
        captions = config.vocab_size, config.caption_length, config.caption_depth, config.trunk.heads
        self.told = Told(width, captions, config.classes, config.embedding_width, config.size, config.upscale)
        self.latents = Latents(config.shape, config.latent[1] if config.latent else 0, (parts or {}).get(CODEC))

    @property
    def positions_a_sample(self) -> int:
        """Of a picture in the stack: the machine is measured at this length."""
        side = self.config.shape[1]
        if isinstance(self.config.trunk, UNet):
            return max(1, side >> (len(self.config.trunk.widths) - 1)) ** 2
        return (side // self.config.patch) ** 2

    @property
    def reads(self) -> frozenset[str]:
        """The prompts that it can be given, by their keys."""
        config = self.config
        told = {"caption": config.vocab_size, "label": config.classes, "embedding": config.embedding_width}
        return frozenset(
            name for name, there in {**told, "small": config.upscale, "init": 1, "mask": 1}.items() if there
        )

    # What is learned

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Noise, noise shares, ends of steps, and whose conditions are hidden.

        The times are stratified over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1). The first call of
        an untrained latent model also measures its latents.
        """
        self.latents.measure(batch)
        rows, config = _rows(batch), self.config
        chance_B = (torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)) / rows
        t_B = self.objective.times_at(chance_B.clamp(1e-6, 1 - 1e-6))
        r_B = t_B
        if self.objective.flow_map in LEARNED:
            begin_B, end_B = step_ends(self.objective, t_B, generator)
            turn = torch.rand(1, generator=generator)
            marked_B = ((torch.arange(rows + 1) + turn) * self.objective.share).floor().diff() > 0
            t_B, r_B = torch.where(marked_B, begin_B, t_B), torch.where(marked_B, end_B, t_B)
        drawn = {
            "t": t_B,
            "r": r_B,
            "noise": torch.randn(rows, *config.shape, generator=generator),
            "given": torch.rand(rows, generator=generator) >= config.drop,
        }
        if config.upscale:
            side = config.size // config.upscale
            drawn["small_noise"] = torch.randn(rows, config.channels, side, side, generator=generator)
            drawn["small_share"] = MOST_NOISE * torch.rand(rows, generator=generator)
        return {**batch, **drawn}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over pictures. Parts: `noise_1` ... `noise_4`, the mean loss of the quarter of the noise shares that
        is cleanest ... noisiest (equal parts of their distribution); `flow_map`, that of the steps of a few-step model.
        All five are exact where the batch divides into them, and the same however it is split."""
        return self.loss_by(self, batch)

    def loss_by(self, denoiser: Any, batch: Batch) -> Loss:
        """The loss of a denoiser that shares this model's objective and draws."""
        clean, x, t_B, r_B = self.noisy(batch)
        condition = denoiser.conditions(batch)
        guess = denoiser.denoise(x, t_B, r_B, condition)
        aim = clean if self.objective.flow_map == "none" else self._aim(denoiser, batch, condition)
        error_B = (guess.float() - aim).square().flatten(1).mean(1)
        each_B = self.objective.weight_at(t_B) * error_B
        return Loss(each_B.sum(), torch.tensor(len(t_B)), self._parts(each_B.detach(), t_B, r_B < t_B))

    def _aim(self, denoiser: Any, batch: Batch, condition: Condition) -> Tensor:
        """The clean picture; for the rows that learn a step, the one that the objective computes with the denoiser."""
        if self.objective.flow_map not in LEARNED:
            raise ConfigError(
                "a consistency model is not trained by itself",
                "what it is to say is a teacher's step",
                "train a plain model, then `nomoat train consistency-small`",
            )
        clean, x, t_B, r_B = self.noisy(batch)
        rows_N = (r_B < t_B).nonzero()[:, 0]
        if not len(rows_N):
            return clean
        with torch.no_grad():
            own = condition.of(rows_N)

            def denoise(x: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
                return denoiser.denoise(x, t_B, r_B, own)

            step = x[rows_N], t_B[rows_N], r_B[rows_N]
            if self.objective.flow_map == "shortcut":
                found = shortcut_target(denoise, *step)
            else:
                found = meanflow_target(denoise, step[0], (batch["noise"] - clean)[rows_N], *step[1:])
            return clean.index_copy(0, rows_N, found)

    def _parts(self, each_B: Tensor, t_B: Tensor, marked_B: Tensor) -> dict[str, Tensor]:
        maps, share = self.objective.flow_map in LEARNED, self.objective.share
        edges = self.objective.times_at(torch.arange(1, QUARTERS, device=t_B.device) / QUARTERS)
        quarter_B = torch.bucketize(t_B, edges)
        plain_B = torch.where(marked_B, 0, each_B) * (QUARTERS / (1 - share if maps else 1))
        parts = {f"noise_{q + 1}": torch.where(quarter_B == q, plain_B, 0).sum() for q in range(QUARTERS)}
        return {**parts, "flow_map": torch.where(marked_B, each_B, 0).sum() / share} if maps else parts

    def first_loss(self, batch: Batch) -> float:
        """That of a network whose output is zero, on a drawn batch."""
        loss = self.loss_by(Silent(self.objective), batch)
        return float(loss.total / loss.count)

    def noisy(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The clean picture, the noisy one, and where its step begins and ends."""
        clean, t_B = self.latents.clean(batch), batch["t"]
        t_B111 = t_B[:, None, None, None]
        return clean, (1 - t_B111) * clean + t_B111 * batch["noise"], t_B, batch["r"]

    # What is told, and what is guessed

    def conditions(self, batch: Batch) -> Condition:
        """What the rows of a batch are told: nn/told.py."""
        return self.told(batch, _rows(batch), self.times.last.weight.device)

    def denoise(self, x: Tensor, t_B: Tensor, r_B: Tensor, condition: Condition | Ports | None = None) -> Tensor:
        """The guess of the clean picture.

        Args:
            x: noisy pictures [B, C, Y, X] (or latents).
            t_B: their noise shares.
            r_B: where the step ends; a model that has not learned steps takes it for t.
            condition: from `conditions`; None: nothing is told.
        """
        condition = Condition(condition) if isinstance(condition, Ports) else condition or Condition()
        output = self.trunk(self.enter(x, t_B, condition), self.ports(t_B, r_B, condition))
        return self.objective.clean(output.float(), x, t_B[:, None, None, None])

    def enter(self, x: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """What the trunk reads."""
        x = self.objective.enter(x, t_B[:, None, None, None])
        return x if condition.beside is None else torch.cat((x, condition.beside), 1)

    def ports(self, t_B: Tensor, r_B: Tensor, condition: Condition) -> Ports:
        """The condition's ports, with the times in their vector."""
        told_BD = condition.ports.cond_BD
        length_B = t_B - r_B if self.objective.flow_map in LEARNED else torch.zeros_like(t_B)
        times_BD = self.times((t_B, length_B))
        return replace(condition.ports, cond_BD=times_BD if told_BD is None else times_BD + told_BD)

    def features(self, batch: Batch, want: tuple[int, ...] = ()) -> Trace:
        """What the stack makes of a drawn batch: its output, and the layers that are wanted."""
        if not isinstance(self.trunk, Patched):
            raise ConfigError("a UNet has no features by position", fix="use a Backbone as the trunk")
        _, x, t_B, r_B = self.noisy(batch)
        condition = self.conditions(batch)
        ports = replace(self.ports(t_B, r_B, condition), want=want)
        return self.trunk.trace(self.enter(x, t_B, condition), ports)

    # How pictures are drawn

    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        """Pictures [B, C, Y, X] in [-1, 1].

        Args:
            prompts: whatever of `caption`, `caption_mask`, `label`, `embedding` the model reads; `small` [B, C, y, x]
                to be enlarged; `init` [B, C, Y, X] to begin with; with it `mask` [B, 1, Y, X], True where it is drawn
                anew (from noise, whatever the strength: the rest stays to the bit); `noise` to begin with, else it
                is drawn; `first`, the number of the first row. A model that reads nothing is told `rows`, or `index`.
            options: steps, guidance, solver, strength, seed.
            generator: unused; every picture has chance of its own by the seed.

        Raises:
            ConfigError: guidance of a model that was taught without; pictures of another size.
        """
        return self.generate_by(self, prompts, options)

    @torch.no_grad()
    def generate_by(self, denoiser: Any, prompts: Batch, options: Drawing) -> Batch:
        """The same by a denoiser that shares this model's objective."""
        self._check(prompts, options)
        rows, device = _rows(prompts), self.times.last.weight.device
        prompts = {name: each.to(device) if isinstance(each, Tensor) else each for name, each in prompts.items()}
        init: Any = prompts.get("init")
        mask, first = prompts.get("mask"), int(prompts.get("first", 0))

        def chance(name: str, shape: Sequence[int]) -> Tensor:
            return noise(rows, shape, options.seed, first, name).to(device)

        begin = prompts["noise"] if "noise" in prompts else chance("noise", self.config.shape)
        changed = init is not None and mask is None
        times = self.objective.grid.times(options.steps, options.strength if changed else 1.0)
        x, after = times[0] * begin, cast("After", unchanged)
        if changed:
            x = x + (1 - times[0]) * self.latents.clean({"image": init})
        elif mask is not None:
            after = keeping(self.latents.anew(mask), self.latents.clean({"image": init}), begin)
        if self.config.upscale:
            share_B = torch.full((rows,), SMALL_NOISE, device=device)
            prompts |= {"small_noise": chance("small", prompts["small"].shape[1:]), "small_share": share_B}
        denoise = self._told(denoiser, prompts, options.guidance)
        if self.objective.flow_map == "consistency":
            x = consistency(denoise, x, times, after, lambda step: chance(f"step {step}", self.config.shape))
        else:
            x = SOLVERS[options.solver or self.objective.solver](denoise, x, times, after)
        image = self.latents.pixels(x).clamp(-1, 1)
        return {"image": image if mask is None else torch.where(mask.bool(), image, init)}

    def _told(self, denoiser: Any, prompts: Batch, guidance: float) -> Denoise:
        """The denoiser with what it is told, computed once for all steps; guided, in one batch with the untold rows."""
        rows = _rows(prompts)
        if guidance != 1:
            twice = {name: torch.cat((each, each)) if _has(each, rows) else each for name, each in prompts.items()}
            prompts = {**twice, "given": torch.arange(2 * rows) < rows}
        condition = denoiser.conditions(prompts)

        def denoise(x: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
            return denoiser.denoise(x, t_B, r_B, condition)

        return denoise if guidance == 1 else guided(denoise, guidance)

    def _check(self, prompts: Batch, options: Drawing) -> None:
        """Refuse what cannot be drawn."""
        config, rows = self.config, _rows(prompts)
        large = rows, config.channels, config.size, config.size
        side = config.size // max(1, config.upscale)
        for name, shape in (
            ("init", large),
            ("mask", (rows, 1, config.size, config.size)),
            ("small", (rows, config.channels, side, side)),
            ("noise", (rows, *config.shape)),
        ):
            if name in prompts and tuple(prompts[name].shape) != shape:
                raise ConfigError(
                    f"`{name}` is {_shown(prompts[name].shape)}, and this model draws with {_shown(shape)}",
                    "rows, channels, height, width",
                    f"resize it to {shape[2]} x {shape[3]} pixels",
                )
        for wrong, what, why, fix in (
            (
                options.guidance != 1 and not config.tells,
                f"guidance {options.guidance} of a model that reads no prompt",
                "there is nothing to exaggerate",
                "leave guidance at 1",
            ),
            (
                options.guidance != 1 and not config.drop,
                f"guidance {options.guidance} of a model that was trained without",
                "it never saw a picture without its prompt (drop=0), so it cannot tell what the prompt adds",
                "leave guidance at 1, or train with family.drop=0.1",
            ),
            ("mask" in prompts and "init" not in prompts, "a mask without a picture", "", "give `init` too"),
            (bool(config.upscale) and "small" not in prompts, "there is no picture to enlarge", "", "give `small`"),
            ("small" in prompts and not config.upscale, "this model enlarges nothing", "", "train upsampler-small"),
            (
                self.objective.flow_map == "consistency" and options.solver is not None,
                f"a consistency model does not draw by `{options.solver}`",
                "it knows the way to the end alone",
                "leave the solver out",
            ),
        ):
            if wrong:
                raise ConfigError(what, why, fix)

    def example(self, samples: int = 2) -> Batch:
        config, generator = self.config, torch.Generator().manual_seed(0)
        batch: Batch = {"index": torch.arange(samples)}
        batch["image"] = 2 * torch.rand(samples, config.channels, config.size, config.size, generator=generator) - 1
        told_B = torch.arange(samples) % 4 < 3  # one row in four is told nothing
        if config.latent is not None:
            batch["latent"] = torch.randn(samples, *config.shape, generator=generator)
        if config.vocab_size:
            shape = samples, config.caption_length
            batch["caption"] = torch.randint(config.vocab_size, shape, generator=generator)
            batch["caption_mask"] = (torch.rand(shape, generator=generator) < 0.7) & told_B[:, None]
        if config.classes:
            label_B = torch.randint(config.classes, (samples,), generator=generator)
            batch["label"] = torch.where(told_B, label_B, -1)
        if config.embedding_width:
            batch["embedding"] = torch.randn(samples, config.embedding_width, generator=generator) * told_B[:, None]
        return batch


@dataclass(frozen=True)
class Silent:
    """A denoiser whose network says zero: what an untrained model is."""

    objective: Objective

    def conditions(self, batch: Batch) -> Condition:
        """Nothing."""
        return Condition()

    def denoise(self, x: Tensor, t_B: Tensor, r_B: Tensor, condition: Condition) -> Tensor:
        """The clean picture that zero means."""
        return self.objective.clean(torch.zeros_like(x), x, t_B[:, None, None, None])


def _rows(batch: Batch) -> int:
    """Rows of a batch, or of prompts: the length of the first thing that a model reads, or what `rows` says."""
    return next((len(batch[name]) for name in READ if name in batch), int(batch.get("rows", 1)))


def _has(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
