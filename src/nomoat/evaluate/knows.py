"""What a model of pictures knows that draws none: a CLIP is asked to find, a codec to give back what it was shown.

    held-out pictures and captions -> retrieval, zero-shot classification          -> Knows -> as_text, as_json
    held-out pictures -> latents or codes -> pictures -> PSNR; how many codes were used -> Knows

Each figure stands beside what knows nothing: guessing, or the mean of the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Codec, Encodes, Scores, Tokenizes
from nomoat.data.words import WordTokenizer
from nomoat.evaluate.figure import Figure, mean, plain
from nomoat.evaluate.retrieval import Share, retrieval, zero_shot

ROWS = 64
MOST_DECIBELS = 100.0


class Line(NamedTuple):
    """One figure.

    Args:
        name: what was asked.
        value: how it was answered.
        control: who knows nothing, and what he comes to.
        answers: how many.
        unit: `%` or `dB`.
    """

    name: str
    value: Figure
    control: tuple[str, float]
    answers: int
    unit: str

    def __str__(self) -> str:
        scale = 100 if self.unit == "%" else 1
        name, beside = self.control
        shown = self.value.times(scale).shown(".1f")
        return f"{self.name}: {shown} {self.unit}, {name} {beside * scale:.1f}, of {self.answers:,}"


@dataclass(frozen=True)
class Knows:
    """Figures, in groups of pictures.

    Args:
        groups: name of the group -> its lines.
        notes: what could not be asked, and why.
    """

    groups: Mapping[str, Sequence[Line]]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        made = {name: [each._asdict() for each in lines] for name, lines in self.groups.items()}
        return {"groups": plain(made), "notes": [*self.notes]}

    def as_text(self) -> str:
        """For the terminal."""
        parts = [line for name, lines in self.groups.items() for line in (f"{name}:", *(f"  {each}" for each in lines))]
        return "\n".join([*parts, *self.notes])


def knows(model: Any, groups: Mapping[str, Mapping[str, Tensor]], classes: Sequence[str], words: Any) -> Knows:
    """Ask what a model that draws nothing can be asked.

    Args:
        model: in eval mode.
        groups: name -> `image`, and `caption` and `caption_mask`, `label`, where there are any.
        classes: names of the labels.
        words: that spell captions; None: there are none.

    Raises:
        ConfigError: it neither finds nor gives back.
        DataError: too few pictures.
    """
    if isinstance(model, Codec):
        return Knows({name: _given_back(model, batch["image"]) for name, batch in groups.items()})
    if not (isinstance(model, Encodes) and isinstance(model, Scores)):
        why = "it draws no pictures, finds none and gives none back"
        raise ConfigError("there is no report card for this model", why, "its card has the loss on held-out data")
    found, notes = dict[str, Sequence[Line]](), dict[str, None]()
    for name, batch in groups.items():
        shares = []
        for ask in (_retrieval, _zero_shot):
            try:
                shares += ask(model, batch, classes, words)
            except DataError as missing:
                notes[f"{missing.what}: {missing.why}".removesuffix(": ")] = None
        found[name] = [
            Line(each.name, Figure(each.value, each.low, each.high), ("guessing", each.chance), each.count, "%")
            for each in shares
        ]
    return Knows(found, tuple(notes))


def _retrieval(model: Encodes, batch: Mapping[str, Tensor], classes: Sequence[str], words: Any) -> list[Share]:
    if "caption" not in batch:
        raise DataError("nothing was retrieved", "these pictures have no captions")
    return retrieval(model, list(_cut(batch, ("image", "caption", "caption_mask"))))


def _zero_shot(model: Encodes, batch: Mapping[str, Tensor], classes: Sequence[str], words: Any) -> list[Share]:
    if "label" not in batch or len(classes) < 2 or not isinstance(words, WordTokenizer):
        raise DataError("nothing was classified", "these pictures have no classes with names")
    return [zero_shot(model, _cut(batch, ("image", "label")), classes, words)]


def _cut(batch: Mapping[str, Tensor], names: Sequence[str]) -> Any:
    """Batches of `ROWS` of what is named."""
    for first in range(0, len(batch["image"]), ROWS):
        yield {name: batch[name][first : first + ROWS] for name in names}


def _given_back(model: Codec, image_NCYX: Tensor) -> list[Line]:
    """Peak signal-to-noise ratio of what comes back, beside the mean picture's; and the share of codes in use."""
    count = len(image_NCYX)
    with torch.inference_mode():
        made = [model.decode_latent(model.encode(each))["image"] for each in _cut({"image": image_NCYX}, ("image",))]
        value = mean(_decibels(torch.cat(made), image_NCYX))
        blank = float(_decibels(image_NCYX.mean(0, keepdim=True), image_NCYX).mean())
        lines = [Line("peak signal to noise", value, ("the mean picture", blank), count, "dB")]
        if isinstance(model, Tokenizes) and model.codes:
            pictures = _cut({"image": image_NCYX}, ("image",))
            used = len(torch.cat([model.tokens(each).flatten() for each in pictures]).unique()) / model.codes
            name, share = f"codes in use of {model.codes:,}", Figure(used, math.nan, math.nan)
            lines.append(Line(name, share, ("a constant", 1 / model.codes), count, "%"))
    return lines


def _decibels(made_NCYX: Tensor, image_NCYX: Tensor) -> Any:
    square_N = (made_NCYX.float() - image_NCYX.float()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / square_N.clamp(min=1e-12))).clamp(max=MOST_DECIBELS).numpy()
