"""DALL-E: a caption and a picture as one sequence, in which each token is predicted from those before it.

    caption, codec.tokens(image) -> tokens_BL [start, words (M), codes (N)] -> embed + place -> causal stack -> x_BLD
    -> logits of words, then of codes -> cross-entropy, text : image = 1 : 7
    caption -> codes one by one, pushed away from those of no caption -> codec.from_tokens -> pictures -> ranked

What an id means is said by its place: the first 1 + M are words, the others codes, both counted from 0. Words stand at
(i, i) of the rotary axes, codes at their row and column behind them; each place has a learned vector, too.
Ramesh et al. 2021, arXiv:2102.12092; guidance: Ho and Salimans 2022, arXiv:2207.12598, on logits as Gafni et al. 2022,
arXiv:2203.13131.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.family import Family, Frozen, Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.backbone import Backbone
from nomoat.nn.caption import dropped
from nomoat.nn.cross_entropy import log_probabilities, summed_nats
from nomoat.nn.memory import Memory
from nomoat.sampling.drawing import Drawing, rows_of
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write

CODEC, RANKER = "codec", "ranker"

Rank = Callable[[Tensor, Batch], Tensor]
"""(pictures [B, C, Y, X], their captions) -> how well each fits its own [B]."""


@dataclass(frozen=True)
class DALLE:
    """One decoder over words and codes.

    Args:
        vocab_size: different words; the last one is the document end, which begins a sequence and pads captions.
        caption_length: M, most words of a caption.
        codes: different codes of the codec.
        grid: rows and columns of codes.
        size: pixels a side.
        channels: of the pictures.
        backbone: the stack: causal, with two position axes.
        weights: of a caption's nats a word, and of a picture's nats a code.
        drop: share of the captions that are left out, so that the model learns to draw without, for guidance.
        top_k: codes among which one is drawn, the likeliest; 0: all.
        candidates: pictures that are drawn for each that is asked for, where there is a ranker to choose one.
    """

    vocab_size: int
    caption_length: int = 24
    codes: int = 1000
    grid: tuple[int, int] = (8, 8)
    size: int = 32
    channels: int = 3
    backbone: Backbone = Backbone(width=256, depth=6, heads=4, position_axes=2)
    weights: tuple[float, float] = (1.0, 7.0)
    drop: float = 0.1
    top_k: int = 0
    candidates: int = 1

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or self.codes < 2 or min(self.caption_length, *self.grid, self.candidates) < 1:
            raise ConfigError(
                "vocab_size and codes are at least 2, caption_length, grid and candidates at least 1",
                f"they are {self.vocab_size}, {self.codes}, {self.caption_length}, {self.grid}, {self.candidates}",
            )
        if not self.backbone.causal or self.backbone.position_axes != 2:
            raise ConfigError(
                "DALL-E needs a causal backbone with two position axes",
                "it draws code by code, and codes stand in rows and columns",
                "set family.backbone.causal=true and family.backbone.position_axes=2",
            )
        if not (min(self.weights) >= 0 and sum(self.weights) > 0 and 0 <= self.drop < 1 and self.top_k >= 0):
            raise ConfigError(
                f"weights {self.weights}, drop {self.drop} and top_k {self.top_k} cannot be",
                "weights are not negative and one is above 0, drop lies in [0, 1), top_k is 0 or more",
            )

    @property
    def places(self) -> int:
        """N: codes of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def context_length(self) -> int:
        """The start, the words and the codes."""
        return 1 + self.caption_length + self.places

    def build(self, parts: Parts) -> TextToImage:
        return TextToImage(self, parts)

    @classmethod
    def tiny(cls) -> DALLE:
        backbone = Backbone(width=32, depth=2, heads=2, position_axes=2)
        return cls(17, caption_length=4, codes=17, grid=(2, 2), size=8, backbone=backbone)


class Segment(nn.Module):
    """The table and the output layer of one kind of tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embed, self.output = nn.Embedding(tokens, width), nn.Linear(width, tokens, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.output.weight)

    def __len__(self) -> int:
        return len(self.embed.weight)


class TextToImage(Family):
    """See the module's first lines. Decodes, Scores and Generates."""

    counts: ClassVar[str] = "picture"
    reads: ClassVar[frozenset[str]] = frozenset({"caption"})
    takes: ClassVar[frozenset[str]] = frozenset({"top_k", "candidates"})
    """What it minds of a `Drawing` that most do not."""

    def __init__(self, config: DALLE, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        self.codec, self.ranker = (parts or {}).get(CODEC), (parts or {}).get(RANKER)
        if self.codec is not None:
            _check(config, self.codec)
        words = config.vocab_size if self.ranker is None else getattr(self.ranker.config, "vocab_size", 0)
        if words != config.vocab_size:
            raise ConfigError(
                f"the ranker knows {words} words, the model {config.vocab_size}",
                "captions are read by both, so their words must be the same",
                "train both on the same data",
            )
        width = config.backbone.width
        self.text, self.image = Segment(config.vocab_size, width), Segment(config.codes, width)
        self.positions = nn.Embedding(config.context_length, width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.stack = config.backbone.build()

    @property
    def positions_a_sample(self) -> int:
        """Tokens of a sequence."""
        return self.config.context_length - 1

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """`tokens` [B, 1 + M + N] and `mask`, True where one is to be learned: codes, and the words of those captions
        that are not left out. `image_tokens` [B, rows, columns] are taken where the batch has them.

        Codes are computed here, by the frozen codec: its encoder costs little beside a step of the stack, and pictures
        that are made while they are read never come twice.

        Raises:
            ConfigError: there is no codec, or it does not fit.
            DataError: words beyond the vocabulary, or longer captions.
        """
        if "tokens" in batch:
            return batch
        codes_BN = self._codes(batch).flatten(1)
        spoken = dropped(batch, self.config.drop if self.training else 0.0, generator)
        prompt_BP, said_BM = self._prompts(spoken, len(codes_BN), codes_BN.device)
        start_B1 = torch.zeros_like(said_BM[:, :1])
        return {
            **batch,
            "tokens": torch.cat((prompt_BP, codes_BN), 1),
            "mask": torch.cat((start_B1, said_BM, torch.ones_like(codes_BN, dtype=torch.bool)), 1),
        }

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over pictures: the mean nats of a caption's words and of a picture's codes, by their weights.

        Parts: both means, `text_nats` (0 for a caption that is left out) and `image_nats`; e^nats is the perplexity.
        """
        tokens_BL, length = batch["tokens"], self.config.caption_length
        weight_BL = batch["mask"][:, 1:].float()
        x_BLD = self._trunk(tokens_BL)
        sums = []
        for segment, piece in ((self.text, slice(0, length)), (self.image, slice(length, None))):
            each_BL = weight_BL[:, piece]
            each_BL = each_BL / each_BL.sum(1, keepdim=True).clamp(min=1)
            sums.append(summed_nats(x_BLD[:, piece], segment.output.weight, tokens_BL[:, 1:][:, piece], each_BL))
        total = sum(weight * nats for weight, nats in zip(self.config.weights, sums, strict=True))
        parts = {"text_nats": sums[0].detach(), "image_nats": sums[1].detach()}
        return Loss(total / sum(self.config.weights), torch.tensor(len(tokens_BL)), parts)

    def first_loss(self, batch: Batch) -> float:
        """Nats of a uniform guess, over the words and over the codes."""
        config, mask_BL = self.config, batch["mask"][:, 1:]
        spoken = float(mask_BL[:, : config.caption_length].any(1).float().mean())
        nats = torch.tensor([config.vocab_size, config.codes], dtype=torch.float64).log()
        weight = torch.tensor([spoken * config.weights[0], config.weights[1]], dtype=torch.float64)
        return float((nats * weight).sum() / sum(config.weights))

    def score(self, batch: Batch) -> Tensor:
        """Log-probability [B, L] in nats of tokens[:, 1:]; 0 where the mask is False."""
        tokens_BL, length = batch["tokens"], self.config.caption_length
        x_BLD, targets_BL = self._trunk(tokens_BL), tokens_BL[:, 1:]
        logp_BL = torch.cat(
            (
                log_probabilities(x_BLD[:, :length], self.text.output.weight, targets_BL[:, :length]),
                log_probabilities(x_BLD[:, length:], self.image.output.weight, targets_BL[:, length:]),
            ),
            1,
        )
        return logp_BL * batch["mask"][:, 1:]

    def memory(self, slots: int, length: int) -> Memory:
        """Room for `slots` sequences of up to `length` tokens."""
        return self.stack.memory(slots, length)

    def begin(self, batch: Batch, memory: Memory, slots: Sequence[int]) -> None:
        """Words are tokens: there is nothing to read before the first."""

    def decode(self, tokens_BL: Tensor, memory: Memory, slots: Sequence[int], last: bool = False) -> Tensor:
        """Append tokens [B, L] and return the logits [B, L, V] after each; `last`: [B, 1, V].

        V is the larger of both vocabularies; an id that cannot stand at a place has the logit -inf there.

        Raises:
            ConfigError: more tokens than a caption and a picture have.
        """
        held_B = torch.tensor([memory.lengths[slot] for slot in slots], device=tokens_BL.device)
        place_BL = held_B[:, None] + torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        if int(place_BL.max()) >= self.config.context_length:
            raise ConfigError(
                f"a sequence of {int(place_BL.max()) + 1} tokens is too long",
                f"a caption and a picture have {self.config.context_length}",
            )
        x_BLD = self._read(tokens_BL, place_BL, memory, slots)
        place_BL, x_BLD = (place_BL[:, -1:], x_BLD[:, -1:]) if last else (place_BL, x_BLD)
        wide = max(len(self.text), len(self.image))
        logits_BLV = x_BLD.new_full((*place_BL.shape, wide), -torch.inf, dtype=torch.float32)
        is_text_BL = place_BL < self.config.caption_length
        for segment, here_BL in ((self.text, is_text_BL), (self.image, ~is_text_BL)):
            if here_BL.any():
                rows, columns = here_BL.nonzero(as_tuple=True)
                logits_BLV[rows, columns, : len(segment)] = segment.output(x_BLD[rows, columns]).float()
        return logits_BLV

    @torch.no_grad()
    def generate(
        self, prompts: Batch, options: Drawing, generator: torch.Generator | None = None, rank: Rank | None = None
    ) -> Batch:
        """`image` [B, C, Y, X], and `tokens` [B, rows, columns], one for each row of the prompts.

        Args:
            prompts: `caption` and `caption_mask`; without them `rows` pictures of anything. `first`: the first's
                number.
            options: `seed`, `temperature`, and `guidance` g: logits l with a caption and n without give n + g (l - n).
            generator: not used: each row has chance of its own.
            rank: chooses among `candidates`; None: the part `ranker`, whose `score` says how well a picture fits.

        Raises:
            ConfigError: no codec; guidance of a model that was taught no pictures without captions.
            DataError: words beyond the vocabulary, or longer captions.
        """
        config, count = self.config, rows_of(prompts)
        codec = self._codec()
        if options.guidance != 1 and not config.drop:
            raise ConfigError(
                f"guidance {options.guidance} cannot be",
                "the model was never taught to draw without a caption",
                "use guidance 1, or train with family.drop=0.1",
            )
        rank = rank or self._rank()
        if (options.candidates or 1) > 1 and rank is None:
            raise ConfigError(
                "there is nothing to choose among candidates by",
                f"the part `{RANKER}` is missing",
                "train one with it: parts={'ranker': Ref('clip-small')}",
            )
        each = (options.candidates or config.candidates) if rank is not None else 1
        prompt_BP, _ = self._prompts(prompts, count, next(self.parameters()).device)
        top_k = config.top_k if options.top_k is None else options.top_k
        sampling = SamplingOptions(options.temperature, top_k, max_tokens=config.places, seed=options.seed)
        model: Any = self if options.guidance == 1 else Guided(self, options.guidance)
        drawn = torch.zeros(count * each, config.places, dtype=torch.long)
        filled = [0] * len(drawn)
        lists = prompt_BP.repeat_interleave(each, 0).tolist()
        first = int(prompts.get("first", 0)) * each
        for row, token, _ in write(model, lists, sampling, (), config.context_length, first=first):
            drawn[row, filled[row]], filled[row] = token, filled[row] + 1
        drawn_BYX = drawn.to(prompt_BP.device).unflatten(1, config.grid)
        image_BCYX = codec.from_tokens(drawn_BYX)["image"]
        if each > 1 and rank is not None:
            repeated = {name: value.repeat_interleave(each, 0) for name, value in _captions(prompts).items()}
            best_B = rank(image_BCYX, repeated).reshape(count, each).argmax(1)
            chosen_B = best_B + each * torch.arange(count, device=best_B.device)
            drawn_BYX, image_BCYX = drawn_BYX[chosen_B], image_BCYX[chosen_B]
        return {"image": image_BCYX, "tokens": drawn_BYX}

    def example(self, samples: int = 2) -> Batch:
        generator, config = torch.Generator().manual_seed(0), self.config
        words_BP = torch.randint(config.vocab_size, (samples, 1 + config.caption_length), generator=generator)
        codes_BN = torch.randint(config.codes, (samples, config.places), generator=generator)
        tokens_BL = torch.cat((words_BP, codes_BN), 1)
        return {"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)}

    def _trunk(self, tokens_BL: Tensor) -> Tensor:
        """What the stack makes of all tokens but the last."""
        place_BL = torch.arange(tokens_BL.shape[1] - 1, device=tokens_BL.device).expand(len(tokens_BL), -1)
        return self._read(tokens_BL[:, :-1], place_BL)

    def _read(
        self, tokens_BL: Tensor, place_BL: Tensor, memory: Memory | None = None, slots: Sequence[int] | None = None
    ) -> Tensor:
        is_text_BL = place_BL <= self.config.caption_length
        word_BL, code_BL = (tokens_BL.clamp(max=len(one) - 1) for one in (self.text, self.image))
        x_BLD = torch.where(is_text_BL[..., None], self.text.embed(word_BL), self.image.embed(code_BL))
        first = 1 + self.config.caption_length
        number_BL = (place_BL - first).clamp(min=0)
        columns = self.config.grid[1]
        row_BL = torch.where(is_text_BL, place_BL, first + number_BL // columns)
        column_BL = torch.where(is_text_BL, place_BL, first + number_BL % columns)
        positions = torch.stack((row_BL, column_BL), 2)
        return self.stack(x_BLD + self.positions(place_BL), positions, memory=memory, slots=slots).x_BLD

    def _prompts(self, batch: Batch, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The start and the words [B, 1 + M], padded with the document end, and which are said [B, M]."""
        config, spoken = self.config, _captions(batch)
        end = config.vocab_size - 1
        if not spoken:
            silent_BM = torch.zeros(count, config.caption_length, dtype=torch.bool, device=device)
            return torch.full((count, 1 + config.caption_length), end, device=device), silent_BM
        said_BM, words_BM = spoken["caption_mask"], spoken["caption"]
        words_BM = torch.where(said_BM, words_BM, end)
        if int(words_BM.max()) > end or int(words_BM.min()) < 0:
            raise DataError(
                f"captions hold word {int(words_BM.max())}",
                f"the model knows {config.vocab_size:,}, counted from 0",
                "set family.vocab_size to that of the data's words",
            )
        more = config.caption_length - words_BM.shape[1]
        if more < 0 and bool(said_BM[:, config.caption_length :].any()):
            raise DataError(
                f"captions of {words_BM.shape[1]} words do not fit",
                f"the model reads {config.caption_length}",
                f"set family.caption_length={words_BM.shape[1]}",
            )
        words_BM, said_BM = F.pad(words_BM, (0, more), value=end), F.pad(said_BM, (0, more), value=False)
        return F.pad(words_BM, (1, 0), value=end), said_BM

    def _codes(self, batch: Batch) -> Tensor:
        if "image_tokens" in batch:
            return batch["image_tokens"]
        with torch.no_grad():
            placed = batch["image"].to(next(self.parameters()).device)
            return self._codec().tokens({"image": placed}).to(batch["image"].device)

    def _codec(self) -> Any:
        if self.codec is None:
            raise ConfigError(
                "there is no codec, which makes codes of pictures and pictures of codes",
                f"the part `{CODEC}` is missing",
                "`nomoat train codec-small` makes one; name its run: parts={'codec': Ref('codec-small')}",
            )
        return self.codec.to(next(self.parameters()).device)

    def _rank(self) -> Rank | None:
        ranker = self.ranker
        if ranker is None:
            return None
        device = next(self.parameters()).device
        return lambda images, captions: ranker.to(device).score({"image": images, **captions})


class Guided(nn.Module):
    """Decodes as its model does, beside a second row of each that has no caption, and pushes away from that."""

    def __init__(self, model: TextToImage, guidance: float) -> None:
        super().__init__()
        self.model, self.guidance = model, guidance

    def memory(self, slots: int, length: int) -> Memory:
        """Twice as many rows."""
        return self.model.memory(2 * slots, length)

    def begin(self, batch: Batch, memory: Memory, slots: Sequence[int]) -> None:
        """There is nothing to read before the first token."""

    def decode(self, tokens_BL: Tensor, memory: Memory, slots: Sequence[int], last: bool = False) -> Tensor:
        """n + g (l - n) of both rows' logits."""
        half = len(memory.lengths) // 2
        held_B = torch.tensor([memory.lengths[slot] for slot in slots], device=tokens_BL.device)
        place_BL = held_B[:, None] + torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        end, length = self.model.config.vocab_size - 1, self.model.config.caption_length
        silent_BL = torch.where(place_BL <= length, end, tokens_BL)
        both = [*slots, *(slot + half for slot in slots)]
        with_BLV, without_BLV = self.model.decode(torch.cat((tokens_BL, silent_BL)), memory, both, last).chunk(2)
        pushed_BLV = without_BLV + self.guidance * (with_BLV - without_BLV)
        return torch.where(with_BLV.isfinite(), pushed_BLV, with_BLV)


def _captions(batch: Batch) -> Batch:
    """The captions alone, where there are any."""
    names = ("caption", "caption_mask")
    return {name: batch[name] for name in names} if names[0] in batch else {}


def _check(config: DALLE, codec: Frozen) -> None:
    """Refuse a codec whose codes or pictures are others than the config's."""
    has = (getattr(codec, "codes", 0), getattr(codec, "grid", None), codec.config.size, codec.config.channels)
    if not has[0]:
        raise ConfigError(
            "this codec has no codes",
            "its latents are numbers, and DALL-E draws codes",
            "`nomoat train codec-small` makes one with codes",
        )
    for name, theirs in zip(("codes", "grid", "size", "channels"), has, strict=True):
        ours = getattr(config, name)
        if theirs != ours:
            shown = ",".join(map(str, theirs)) if isinstance(theirs, tuple) else theirs
            raise ConfigError(
                f"the codec has {name}={theirs}, the model {name}={ours}",
                "the model draws what its codec can decode",
                f"set family.{name}={shown}, or name another codec",
            )
