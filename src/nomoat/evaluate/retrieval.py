"""Retrieval and zero-shot classification: what a model that puts pictures and captions in one space knows of them.

    pictures, captions -> encode -> unit vectors [N, E] -> cosines [N, N] -> rank of the right one -> recall@k
    pictures, class names in sentences -> encode, mean of the sentences -> nearest class -> accuracy

A gallery is all that is given. Whatever is as near as the right one counts as nearer, so that a model for which all is
alike finds nothing. Captions that are the same word for word, and their pictures, are all right: none of them counts
against another. Beside each share stand what guessing gets and the 95 % interval (percentile bootstrap over pairs,
Efron 1979).

Radford et al. 2021, arXiv:2103.00020, section 3.1 (prompts; the mean of several).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Batch, Encodes
from nomoat.data.words import WordTokenizer, padded
from nomoat.evaluate.bits import interval

TEMPLATES = ("{}",)
CAPTION = ("caption", "caption_mask")


@dataclass(frozen=True)
class Share:
    """How often something was right.

    Args:
        name: what was asked.
        value: share of right answers.
        low, high: its 95 % interval.
        chance: share that guessing gets.
        count: answers that it rests on.
    """

    name: str
    value: float
    low: float
    high: float
    chance: float
    count: int

    @property
    def times_chance(self) -> float:
        """value / chance."""
        return self.value / self.chance

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.value:.1%} (95 %: {self.low:.1%} to {self.high:.1%}), {self.times_chance:.1f} times "
            f"chance ({self.chance:.1%}), of {self.count:,}"
        )


def retrieval(model: Encodes, batches: Iterable[Batch], at: Sequence[int] = (1, 5)) -> list[Share]:
    """Recall@k both ways and their mean, for each k, in the gallery of all samples that have a caption.

    Args:
        model: encodes pictures, and captions where there is no picture.
        batches: `image`, `caption` and `caption_mask`; each sample once.
        at: the k's.

    Raises:
        DataError: fewer than two samples have a caption.
        ConfigError: a k that is none.
    """
    picture_NE, caption_NE, said_N = _encoded(model, batches)
    same_NN = _equal(said_N)
    ways = {
        "picture to caption": nearer(picture_NE, caption_NE, same_NN),
        "caption to picture": nearer(caption_NE, picture_NE, same_NN),
    }
    others_N = (~same_NN).sum(1) + 1
    shares = []
    for k in at:
        if k < 1:
            raise ConfigError(f"there is no recall@{k}", fix="k is at least 1")
        chance = float((k / others_N).clamp(max=1).mean())
        hits = {way: (nearer_N < k).numpy().astype(np.float64) for way, nearer_N in ways.items()}
        hits["mean of both"] = np.mean([*hits.values()], axis=0)
        shares += [share(f"{way}, recall@{k}", hits_N, chance) for way, hits_N in hits.items()]
    return shares


def zero_shot(
    model: Encodes,
    batches: Iterable[Batch],
    names: Sequence[str],
    tokenizer: WordTokenizer,
    templates: Sequence[str] = TEMPLATES,
) -> Share:
    """How often the nearest class name is the right one, with no example of any class.

    Args:
        model: encodes pictures, and captions where there is no picture.
        batches: `image` and `label`, the number of a name.
        names: of the classes.
        tokenizer: spells captions; a word that it does not know is a DataError.
        templates: sentences with `{}` where the name goes; the mean of their vectors stands for the class.
    """
    if len(names) < 2:
        raise ConfigError(f"{len(names)} class names leave nothing to decide", fix="give two or more")
    if broken := [template for template in templates if "{}" not in template]:
        raise ConfigError(f"no name goes into `{broken[0]}`", fix="write {} where it stands")
    class_CE = torch.stack([_class(model, name, tokenizer, templates) for name in names])
    hits = []
    with torch.inference_mode():
        for batch in batches:
            cosine_BC = model.encode({"image": batch["image"]}).float() @ class_CE.T
            right_B1 = cosine_BC.gather(1, batch["label"][:, None])
            hits.append((cosine_BC >= right_B1).sum(1) == 1)
    if not hits:
        raise DataError("there is no picture to classify")
    return share("zero-shot accuracy", torch.cat(hits).numpy().astype(np.float64), 1 / len(names))


def nearer(query_NE: Tensor, gallery_NE: Tensor, same_NN: Tensor | None = None) -> Tensor:
    """How many of the gallery are as near to query i as item i, or nearer, [N]; those of `same_NN` do not count."""
    cosine_NN = query_NE @ gallery_NE.T
    as_near_NN = cosine_NN >= cosine_NN.diagonal()[:, None]
    if same_NN is None:
        same_NN = torch.eye(len(query_NE), dtype=torch.bool, device=query_NE.device)
    return (as_near_NN & ~same_NN).sum(1)


def share(name: str, hits_N: np.ndarray, chance: float) -> Share:
    """The share of hits (0, 1, or between) with its interval."""
    low, high = interval(hits_N, np.ones_like(hits_N))
    return Share(name, float(hits_N.mean()), low, high, chance, len(hits_N))


def _encoded(model: Encodes, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, list[bytes]]:
    """Vectors of the pictures and of the captions [N, E], and each caption's words."""
    pictures, captions, said = [], [], []
    with torch.inference_mode():
        for batch in batches:
            kept_B = batch["caption_mask"].any(1)
            words: Mapping[str, Tensor] = {name: batch[name][kept_B] for name in CAPTION}
            pictures.append(model.encode({"image": batch["image"][kept_B]}).float())
            captions.append(model.encode(dict(words)).float())
            rows = words["caption"].masked_fill(~words["caption_mask"], -1).cpu().tolist()
            said += [repr([word for word in row if word >= 0]).encode() for row in rows]
    if len(said) < 2:
        raise DataError(
            f"{len(said)} pictures with captions are no gallery", "there is nothing to be taken for another"
        )
    return torch.cat(pictures), torch.cat(captions), said


def _equal(said_N: Sequence[bytes]) -> Tensor:
    numbers: dict[bytes, int] = {}
    kind_N = torch.tensor([numbers.setdefault(each, len(numbers)) for each in said_N])
    return kind_N[:, None] == kind_N


def _class(model: Encodes, name: str, tokenizer: WordTokenizer, templates: Sequence[str]) -> Tensor:
    """The unit vector [E] of a class: the mean of its sentences."""
    ids = [tokenizer.encode(template.format(name)) for template in templates]
    caption_BM, mask_BM = padded(ids, max(map(len, ids)), tokenizer.eot)
    with torch.inference_mode():
        said_BE = model.encode(dict(zip(CAPTION, map(torch.from_numpy, (caption_BM, mask_BM)), strict=True)))
    return F.normalize(said_BE.float().mean(0), dim=0)
