"""unCLIP (DALL-E 2): a caption becomes the embedding of a picture, and the embedding becomes the picture.

    prior:   x = (1 - t) z + t noise;  [words' states, caption's embedding, t, x, query] -> full stack -> query -> z_BE
    decoder: z_BE -> Diffusion with `embedding_width` -> image -> upsamplers (Diffusion with `upscale`) -> image
    variation: picture -> CLIP -> z    interpolation: slerp(z, z')    text difference: slerp(z, norm(words' - words))

z is CLIP's unit vector of the picture times sqrt(E), so that its numbers have mean square 1, as the noise has.

Ramesh et al. 2022, arXiv:2204.06125 (section 2.2: the prior predicts the clean embedding, two are drawn and the one
nearest to the caption is kept; section 3: what can be done with embeddings); Lipman et al. 2023, arXiv:2210.02747.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Frozen, Parts
from nomoat.core.types import Batch, Loss, Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.caption import Caption, dropped
from nomoat.nn.told import Shares
from nomoat.sampling.drawing import Drawing, noise
from nomoat.sampling.solvers import SOLVERS, UNIFORM, guided, slerp, unchanged

PARTS = ("clip", "prior", "decoder")
UPSAMPLER = "upsampler"
BESIDE = 4
"""Tokens beside the caption's: its embedding, the time, the noisy embedding, the query."""


@dataclass(frozen=True)
class Prior:
    """From a caption to the embedding of a picture that it could stand beneath.

    Args:
        embedding_width: E, of the shared space of the part `clip`.
        vocab_size: different words of the captions, the padding among them: those of the part `clip`.
        caption_length: most words of a caption.
        caption_depth: layers that read captions before the stack does.
        stack: full.
        drop: share of the captions that are hidden in training, so that guidance can be asked for.
        candidates: embeddings that are drawn for a caption; the one nearest to the caption's own is kept.
    """

    embedding_width: int
    vocab_size: int
    caption_length: int = 24
    caption_depth: int = 1
    stack: Backbone = field(default_factory=lambda: Backbone(width=192, depth=4, heads=6, causal=False))
    drop: float = 0.1
    candidates: int = 2

    def __post_init__(self) -> None:
        for wrong, what, fix in (
            (self.embedding_width < 1, "embedding_width is at least 1", "the `width` of the part `clip`"),
            (self.vocab_size < 2, f"vocab_size {self.vocab_size} leaves no word", "that of the part `clip`"),
            (self.caption_length < 1, "caption_length is at least 1", ""),
            (not 0 <= self.drop < 1, f"drop {self.drop} is no share", "0.1 is usual; 0 forgoes guidance"),
            (self.candidates < 1, f"{self.candidates} candidates leave nothing to keep", "1 or more; 2 is usual"),
            (self.stack.causal, "the prior's stack sees all tokens", "set family.stack.causal=false"),
        ):
            if wrong:
                raise ConfigError(what, fix=fix)

    def build(self, parts: Parts) -> PriorModel:
        return PriorModel(self, parts)

    @classmethod
    def tiny(cls) -> Prior:
        stack = Backbone(width=32, depth=2, heads=2, causal=False)
        return cls(embedding_width=8, vocab_size=17, caption_length=6, caption_depth=0, stack=stack)


class PriorModel(Family):
    """See the module's first lines. Denoises and Generates, embeddings [B, E]."""

    counts: ClassVar[str] = "picture"

    def __init__(self, config: Prior, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        self.clip: Frozen | None = (parts or {}).get("clip")
        _same_space(self.clip, config)
        width, embedding_width = config.stack.width, config.embedding_width
        length, heads = config.caption_length, config.stack.heads
        self.words = Caption(config.vocab_size, length, width, config.caption_depth, heads)
        self.said, self.noisy = nn.Linear(embedding_width, width), nn.Linear(embedding_width, width)
        self.nothing, self.query = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))
        self.times = Shares(1, width)
        self.stack = config.stack.build()
        self.output = nn.Linear(width, embedding_width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @property
    def positions_a_sample(self) -> int:
        """Tokens of the stack."""
        return self.config.caption_length + BESIDE

    # What is learned

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Noise, noise shares (spread evenly over the batch), and whose captions are hidden."""
        rows = len(batch["caption"])
        t_B = (torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)) / rows
        chance_BE = torch.randn(rows, self.config.embedding_width, generator=generator)
        return {**dropped(batch, self.config.drop, generator), "t": t_B.clamp(1e-3, 1), "noise": chance_BE}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Mean square error of the clean embedding's numbers, summed over pictures. `cosine` is that of the guess."""
        clean_BE, t_B = self.pictures(batch), batch["t"]
        x_BE = torch.lerp(clean_BE, batch["noise"], t_B[:, None])
        guess_BE = self.denoise(x_BE, t_B, t_B, self.conditions(batch)).float()
        near = F.cosine_similarity(guess_BE.detach(), clean_BE, dim=1).sum()
        error_B = (guess_BE - clean_BE).square().mean(1)
        return Loss(error_B.sum(), torch.tensor(len(t_B)), {"cosine": near})

    def first_loss(self, batch: Batch) -> float:
        """Of a guess of zeros: the mean square of an embedding's numbers."""
        return 1.0

    def chance(self, batch: Batch) -> float:
        """Of the mean embedding, which is what one guesses who reads no caption and sees noise alone."""
        clean_BE = self.pictures(batch)
        return float((clean_BE - clean_BE.mean(0)).square().mean())

    def pictures(self, batch: Batch) -> Tensor:
        """The embeddings [B, E] of the batch's pictures, mean square 1: `embedding`, or what the part `clip` makes."""
        return scaled(batch["embedding"] if "embedding" in batch else self._encoded("image", batch, ("image",)))

    def _captions(self, batch: Batch) -> Tensor:
        """The embeddings [B, E] of the captions, mean square 1."""
        if "caption_embedding" in batch:
            return scaled(batch["caption_embedding"])
        return scaled(self._encoded("caption", batch, ("caption", "caption_mask")))

    def _encoded(self, name: str, batch: Batch, read: tuple[str, ...]) -> Tensor:
        if self.clip is None:
            raise ConfigError(
                "the prior needs a CLIP to embed pictures and captions",
                f"there is no part `clip`, and the batch has no embedding of its {name}",
                "train one (`nomoat train clip-small`) and name it: parts.clip=RUN",
            )
        with torch.no_grad():
            self.clip.to(batch[read[0]].device)
            return self.clip.encode({each: batch[each] for each in read})

    # What is told, and what is guessed

    def conditions(self, batch: Batch) -> Ports:
        """The words' states as a context, and one token for the caption's embedding as a condition.

        A caption without a word, or one that is hidden (`given` [B] False), is nothing.
        """
        said_BM = batch["caption_mask"]
        if "given" in batch:
            said_BM = said_BM & batch["given"][:, None]
        context_BMD, valid_BM, _ = self.words({**batch, "caption_mask": said_BM})
        token_BD = self.said(self._captions(batch))
        token_BD = torch.where(said_BM.any(1)[:, None], token_BD, self.nothing.to(token_BD.dtype))
        return Ports(cond_BD=token_BD, context_BMD=context_BMD, context_valid_BM=valid_BM)

    def denoise(self, x: Tensor, t_B: Tensor, r_B: Tensor, ports: Ports) -> Tensor:
        """The guess of the clean embedding [B, E].

        Args:
            x: noisy embeddings [B, E].
            t_B: their noise shares.
            r_B: where the step ends; it is not read.
            ports: from `conditions`.
        """
        assert ports.cond_BD is not None and ports.context_BMD is not None and ports.context_valid_BM is not None
        query_BD = self.query.expand(len(x), -1).to(ports.cond_BD.dtype)
        beside = torch.stack((ports.cond_BD, self.times((t_B,)), self.noisy(x), query_BD), 1)
        words = ports.context_BMD.shape[1]
        positions_BL = torch.full((len(x), words + BESIDE), -1, device=x.device)
        positions_BL[:, :words] = torch.arange(words, device=x.device)
        valid_BL = F.pad(ports.context_valid_BM, (0, BESIDE), value=True)
        tokens_BLD = torch.cat((ports.context_BMD, beside), 1)
        out_BLD = self.stack(tokens_BLD, positions_BL, Ports(valid_BL=valid_BL)).x_BLD
        return self.output(out_BLD[:, -1])

    # How embeddings are drawn

    @torch.no_grad()
    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        """`embedding` [B, E], mean square 1.

        Args:
            prompts: `caption` and `caption_mask`; `first`, the number of the first row.
            options: steps, guidance, solver, candidates, seed.
            generator: unused; every picture has chance of its own by the seed.

        Raises:
            ConfigError: no captions; guidance of a model that was trained without.
        """
        if "caption" not in prompts:
            raise ConfigError("the prior was given no caption", "it makes embeddings of captions")
        if options.guidance != 1 and not self.config.drop:
            raise ConfigError(
                f"guidance {options.guidance} of a prior that was trained without",
                "it never saw a picture without its caption (drop=0)",
                "leave guidance at 1, or train with family.drop=0.1",
            )
        rows, first = len(prompts["caption"]), int(prompts.get("first", 0))
        many = options.candidates or self.config.candidates
        told = {"caption", "caption_mask", "caption_embedding"} & prompts.keys()
        batch = {name: torch.cat([prompts[name]] * many) for name in told}
        x = torch.cat([self._noise(rows, options.seed, first, number) for number in range(many)])
        x = x.to(batch["caption"].device)
        denoise = self._told(batch, options.guidance)
        found_BE = scaled(SOLVERS[options.solver or "dpm"](denoise, x, UNIFORM.times(options.steps), unchanged))
        if many > 1:
            fit_NB = (found_BE * self._captions(batch)).sum(1).view(many, rows)
            best_B = fit_NB.argmax(0)
            found_BE = found_BE.view(many, rows, -1)[best_B, torch.arange(rows, device=best_B.device)]
        return {"embedding": found_BE}

    def _noise(self, rows: int, seed: int, first: int, number: int) -> Tensor:
        return noise(rows, (self.config.embedding_width,), seed, first, f"embedding {number}")

    def _told(self, batch: Batch, guidance: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        rows = len(batch["caption"])
        if guidance != 1:
            batch = {name: torch.cat((each, each)) for name, each in batch.items()}
            batch["given"] = torch.arange(2 * rows, device=batch["caption"].device) < rows
        ports = self.conditions(batch)

        def denoise(x: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
            return self.denoise(x, t_B, r_B, ports).float()

        return denoise if guidance == 1 else guided(denoise, guidance)

    def example(self, samples: int = 2) -> Batch:
        config, generator = self.config, torch.Generator().manual_seed(0)
        shape = samples, config.caption_length
        told_B = torch.arange(samples) % 4 < 3
        vectors = torch.randn(2, samples, config.embedding_width, generator=generator)
        return {
            "caption": torch.randint(config.vocab_size, shape, generator=generator),
            "caption_mask": (torch.rand(shape, generator=generator) < 0.7) & told_B[:, None],
            "embedding": vectors[0],
            "caption_embedding": vectors[1],
        }


@dataclass(frozen=True)
class UnCLIP:
    """The whole chain, of parts that are trained already: `clip`, `prior`, `decoder`, and any `upsampler...`.

    It has nothing of its own to learn. Upsamplers follow each other in the order of their names. `nomoat.composing`
    makes a run of it, and fills in the fields.

    Args:
        size: pixels a side of what comes out.
        vocab_size, caption_length: of the prior's captions.
        drop: share of the captions that were hidden from the prior; 0: there is no guidance.
    """

    size: int
    vocab_size: int
    caption_length: int
    drop: float = 0.1

    @classmethod
    def of(cls, prior: Any, last: Any) -> UnCLIP:
        """The chain of a prior's config and of that of the model that draws last."""
        return cls(last.size, prior.vocab_size, prior.caption_length, prior.drop)

    def build(self, parts: Parts) -> Chain:
        return Chain(self, parts)


class Chain(Family):
    """See the module's first lines. Generates pictures, and Encodes them."""

    counts: ClassVar[str] = "picture"
    takes: ClassVar[frozenset[str]] = frozenset({"candidates"})
    """What it minds of a `Drawing` that most do not."""

    def __init__(self, config: UnCLIP, parts: Parts) -> None:
        super().__init__()
        if missing := [name for name in PARTS if name not in parts]:
            raise ConfigError(
                f"the chain has no {' and no '.join(missing)}",
                "it draws by parts that are trained already",
                "train clip-small, unclip-small and decoder-small, then `nomoat compose unclip-small decoder-small`",
            )
        self.clip, self.prior, self.decoder = (parts[name] for name in PARTS)
        self.upsamplers = [parts[name] for name in sorted(parts) if name.startswith(UPSAMPLER)]
        _same_space(self.clip, self.prior.config)
        reads, makes = self.decoder.config.embedding_width, self.prior.config.embedding_width
        if reads != makes:
            raise ConfigError(
                f"the decoder reads embeddings of {reads} numbers, the prior makes {makes}",
                "both must be of one CLIP",
                "train the decoder with `Embedded` data of the same CLIP",
            )
        self.config = config
        if config != (found := UnCLIP.of(self.prior.config, self._last.config)):
            raise ConfigError(f"the chain is said to be {config}", f"its parts make it {found}", "compose it anew")
        # The one number of its own says where it is: what it draws by is no parameter of it.
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)

    @property
    def _last(self) -> Frozen:
        return self.upsamplers[-1] if self.upsamplers else self.decoder

    @property
    def reads(self) -> frozenset[str]:
        """What prompts may hold."""
        return frozenset({"caption", "like", "embedding", "init", "mask"})

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Of the noise that the decoder begins with."""
        return tuple(self.decoder.noise_shape)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Chain:
        """The parts move with the chain, wherever it is sent."""
        for part in (self.clip, self.prior, self.decoder, *self.upsamplers):
            part._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    @torch.no_grad()
    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        """Pictures [B, C, Y, X] in [-1, 1], and the `embedding` [B, E] that each was made from.

        Args:
            prompts: what `embedding` reads, and what the decoder does (`caption`, `init`, `mask`, `noise`, `first`).
            options: of prior, decoder and upsamplers alike; guidance is for whichever was taught to do without.
            generator: unused.

        Raises:
            ConfigError: nothing to make an embedding of.
        """
        embedding_BE = self.embedding(prompts, options, generator)
        told: Batch = {**prompts, "embedding": embedding_BE}
        if "blend" in prompts and "noise" not in prompts:  # what lies between two pictures shares its noise
            chance = noise(1, self.noise_shape, options.seed).to(embedding_BE.device)
            told["noise"] = chance.expand(len(embedding_BE), *self.noise_shape)
        drawn = self.decoder.generate(told, _suited(self.decoder, options), generator)
        for upsampler in self.upsamplers:
            told = {name: prompts[name] for name in ("caption", "caption_mask", "first") if name in prompts}
            told |= {"embedding": embedding_BE, "small": drawn["image"]}
            drawn = upsampler.generate(told, _suited(upsampler, options), generator)
        return {**drawn, "embedding": embedding_BE}

    @torch.no_grad()
    def embedding(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Tensor:
        """The embedding [B, E] that the prompts ask for, mean square 1.

        Args:
            prompts: the first of these that there is. `embedding`: itself. `like` [B, C, Y, X]: that of a picture
                (variations); with `towards`, another picture, and `blend` [B]: on the arc between both; with
                `instead` and `instead_mask`, a caption of the picture as it is, and `caption`, one as it is to be:
                turned by `blend` in the direction of their difference. Else `caption`, by the prior.
            options: for the prior.
            generator: for the prior.
        """
        if "embedding" in prompts:
            return scaled(prompts["embedding"])
        if "like" not in prompts:
            return self.prior.generate(prompts, options, generator)["embedding"]
        begin_BE = scaled(self.clip.encode({"image": prompts["like"]}))
        if "towards" in prompts:
            return between(begin_BE, scaled(self.clip.encode({"image": prompts["towards"]})), prompts["blend"])
        if "instead" in prompts:
            told = {name: prompts[name] for name in ("caption", "caption_mask")}
            before = {"caption": prompts["instead"], "caption_mask": prompts["instead_mask"]}
            return between(begin_BE, scaled(self.clip.encode(told) - self.clip.encode(before)), prompts["blend"])
        return begin_BE

    def encode(self, batch: Batch) -> Tensor:
        """As of CLIP."""
        return self.clip.encode(batch)


def scaled(vector_BE: Tensor) -> Tensor:
    """Unit length times sqrt(E): mean square 1."""
    return F.normalize(vector_BE.float(), dim=1) * math.sqrt(vector_BE.shape[1])


def between(first_BE: Tensor, last_BE: Tensor, share_B: Tensor) -> Tensor:
    """On the arc from the first to the last, each row at a share of its own."""
    return scaled(slerp(first_BE, last_BE, share_B))


def _suited(model: Frozen, options: Drawing) -> Drawing:
    """Without guidance for a model that was never taught to do without what it is told."""
    return options if model.config.tells and model.config.drop else replace(options, guidance=1.0)


def _same_space(clip: Frozen | None, config: Any) -> None:
    """Refuse a CLIP whose space or words are not those of the prior."""
    if clip is None:
        return
    wanted: Mapping[str, str] = {"width": "embedding_width", "vocab_size": "vocab_size"}
    for theirs, ours in wanted.items():
        has, needs = getattr(clip.config, theirs), getattr(config, ours)
        if has != needs:
            raise ConfigError(
                f"the part `clip` has {theirs}={has}, the prior {ours}={needs}", fix=f"set family.{ours}={has}"
            )
