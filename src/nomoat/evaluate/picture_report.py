"""What have I got? The report card of whatever draws pictures: how real, how varied, how obedient, how much its own.

    prompts -> draw -> pictures -> features -> distances from held-out real pictures, beside floor and ceilings
                                            -> nearest training pictures           -> who copies
                                -> classifier accuracy, condition accuracy         -> a verdict in plain words

One number is no evaluation: the kernel distance hardly sees missing modes and not at all whether the prompt was
followed, a classifier does not see copies. So all stand together, each with its interval and with what real pictures,
noise and the mean picture come to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Batch
from nomoat.evaluate.bits import Watch, interval
from nomoat.evaluate.cas import AccuracyScore, Labelled, accuracy_score
from nomoat.evaluate.classifier import STEPS, affordable
from nomoat.evaluate.condition import Attributes, Condition, Reader, condition
from nomoat.evaluate.distances import FEWEST, FRECHET_PICTURES, Distances, compare
from nomoat.evaluate.features import Features, judge, own_domain
from nomoat.evaluate.figure import Figure
from nomoat.evaluate.inception import inception
from nomoat.evaluate.memorised import memorised
from nomoat.evaluate.picture_page import DRAWN, FLOOR, MEAN, NOISE, PictureReport
from nomoat.evaluate.seen import as_seen

Draw = Callable[[Batch], Tensor]

NOISE_LEVELS = 25
OWN_PICTURES = 4000
MOST_BY_JUDGE = 20_000
"""Training pictures that the judge is shown one by one in search of copies; beyond, the own net looks, 10 x as fast."""
LEARNING, SEARCHING, LEAST_STEPS = 0.5, 0.2, 40
"""Of the seconds that a report may take: what its small classifiers learn in, at least so many steps each; and what the
judge may look for copies in: where it needs more, the own net looks."""


@dataclass(frozen=True)
class Prompts:
    """A group of prompts.

    Args:
        name: of the group, such as `combinations never seen`.
        batch: what is drawn from; whatever in it has one entry a prompt is cut into batches.
        count: prompts in it.
        asked: of each prompt, its attributes by name, where a reader can check them.
        label_N: of each prompt, its class, where there are classes.
        real_NCYX: real pictures of the same prompts, in the same order, where there are any.
    """

    name: str
    batch: Batch
    count: int
    asked: Sequence[Attributes] = ()
    label_N: Tensor | None = None
    real_NCYX: Tensor | None = None


@dataclass(frozen=True)
class Truth:
    """Real pictures.

    Args:
        held_out_NCYX: never trained on.
        training: (picture [C, Y, X], its ledger line), by number; only read where needed.
        held_out_label_N, training_label_N: their classes, where there are any.
        classes: names of the classes.
    """

    held_out_NCYX: Tensor
    training: Sequence[tuple[Tensor, object]]
    held_out_label_N: Tensor | None = None
    training_label_N: Tensor | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judging:
    """How a report is made.

    Args:
        features: what to judge with besides the own-domain net; None: the fixed judge where it is installed.
        inception: Inception weights on disk, for FID.
        rows: prompts drawn together.
        steps: of each small classifier.
        seconds: that all but drawing should take; None: as long as it takes.
        pairs: nearest pairs to tell of.
        seed: of all chance.
        device: where networks that judge compute; None: the CPU.
    """

    features: Features | None = None
    inception: Path | None = None
    rows: int = 64
    steps: int = STEPS
    seconds: float | None = None
    pairs: int = 10
    seed: int = 0
    device: torch.device | None = None


def picture_report(
    draw: Draw,
    groups: Sequence[Prompts],
    truth: Truth,
    reader: Reader | None = None,
    judging: Judging | None = None,
    watch: Watch | None = None,
) -> PictureReport:
    """Draw, measure, and say what it comes to.

    Args:
        draw: prompts (with `first`, the number of the first) -> pictures [B, C, Y, X].
        groups: prompts; the first group is what distances are measured on: prompts like the held-out pictures' own.
        truth: real pictures.
        reader: a picture -> its attributes.
        judging: how.
        watch: told {"kind": "phase", "phase": "reporting", "detail": ...} and of progress.

    Raises:
        ConfigError: no prompts, or no prompt in a group.
        DataError: too few real pictures, or something that are no pictures.
    """
    judging, tell = _within(judging or Judging(), truth), watch or (lambda event: None)
    if not groups or any(group.count < 1 for group in groups):
        raise ConfigError("there is no prompt to draw from", "a report is made of pictures", "give at least one group")
    held_out_NCYX = as_seen(truth.held_out_NCYX, "held-out pictures")
    if min(len(held_out_NCYX), len(truth.training)) < 2 * FEWEST:
        what = f"{len(held_out_NCYX):,} held-out and {len(truth.training):,} training pictures"
        raise DataError(f"{what} are too few for a report", f"it needs {2 * FEWEST} of each", "hold out more")
    drawn, speed = [], None
    for group in groups:
        _say(tell, f"drawing {group.count:,} pictures ({group.name})")
        image_NCYX, took = _drawn(draw, group, judging.rows, tuple(held_out_NCYX.shape[1:]), tell)
        drawn.append(image_NCYX)
        speed = speed or took
    assert speed is not None
    notes: list[str] = []
    measured = _Measured(drawn[0], held_out_NCYX, truth, judging, notes, tell)
    distances = tuple(measured.distances())
    _say(tell, f"looking for copies among {len(truth.training):,} training pictures")
    lines = (truth.training[number] for number in range(len(truth.training)))
    copied = memorised(drawn[0], held_out_NCYX, lines, measured.searching(), judging.pairs, judging.seed, tell)
    return PictureReport(
        drawn=len(drawn[0]),
        held_out=len(held_out_NCYX),
        training=len(truth.training),
        size=(held_out_NCYX.shape[3], held_out_NCYX.shape[2]),
        pictures_per_second=speed,
        distances=distances,
        memorised=copied,
        accuracy=_accuracy(drawn[0], groups[0], truth, judging, notes, tell),
        conditions=tuple(_conditions(drawn, groups, reader, judging, notes, tell)),
        notes=tuple(notes),
        drawn_NCYX=drawn[0],
    )


class _Measured:
    """The sets of pictures that are compared, and the networks that compare them."""

    def __init__(
        self, drawn_NCYX: Tensor, held_out_NCYX: Tensor, truth: Truth, judging: Judging, notes: list[str], tell: Watch
    ) -> None:
        self.held_out_NCYX, self.judging, self.tell = held_out_NCYX, judging, tell
        order_N = torch.randperm(len(truth.training), generator=generator(judging.seed, "report", "training"))
        count = min(len(drawn_NCYX), len(held_out_NCYX), len(truth.training) // 2)
        # What the own net is trained on is not what the floor is measured on: it would know those pictures too well.
        own_N = order_N[count : count + OWN_PICTURES]
        floor_NCYX, own_NCYX = (_training(truth, rows_N.tolist()) for rows_N in (order_N[:count], own_N))
        levels_NCYX = torch.randn(floor_NCYX.shape, generator=generator(judging.seed, "report", "noise")) * NOISE_LEVELS
        noise_NCYX = as_seen(floor_NCYX + levels_NCYX / 127.5, NOISE, drawn=True)
        self.mean_NCYX = as_seen(own_NCYX.mean(0, keepdim=True), MEAN)
        self.sets = {DRAWN: drawn_NCYX, FLOOR: floor_NCYX, NOISE: noise_NCYX}
        self.count, self.trained_on = count, len(truth.training)
        self.networks: list[Features] = []
        self.pace = 0.0  # seconds a picture of the first network
        if judging.features is not None:
            self.networks.append(judging.features)
        else:
            try:
                self.networks.append(judge(judging.device))
            except ConfigError as missing:
                notes.append(f"{_sentence(missing)} All figures are by the own-domain net.")
        _say(tell, f"training a small net on {len(own_NCYX):,} training pictures, to compare by")
        label_N = None if truth.training_label_N is None else truth.training_label_N[own_N]
        own = (own_NCYX, label_N, len(truth.classes), judging.steps, judging.seed, judging.device, tell)
        self.networks.append(own_domain(*own))
        if judging.inception is not None:
            self.networks.insert(1, inception(judging.inception, judging.device))
        if count < FRECHET_PICTURES:
            few = f"below {FRECHET_PICTURES:,} pictures it is mostly bias ({count:,} here)"
            notes.append(f"No Fréchet distance: {few}.")

    def distances(self) -> Iterator[Distances]:
        """One table a network."""
        for network in self.networks:
            _say(self.tell, f"comparing {self.count:,} pictures by {network.name}")
            found = {name: network.of(image_NCYX, self.tell) for name, image_NCYX in self.sets.items()}
            found[MEAN] = network.of(self.mean_NCYX).expand(self.count, -1)
            began = time.perf_counter()
            reference_ND = network.of(self.held_out_NCYX, self.tell)
            self.pace = self.pace or (time.perf_counter() - began) / len(reference_ND)
            yield compare(reference_ND, found, FLOOR, (network.name, network.about, network.hash), self.judging.seed)

    def searching(self) -> Features:
        """The network that looks for copies: the first where it is quick enough."""
        seconds = self.judging.seconds
        quick = seconds is None or self.pace * self.trained_on <= SEARCHING * seconds
        return self.networks[0] if quick and self.trained_on <= MOST_BY_JUDGE else self.networks[-1]


def _within(judging: Judging, truth: Truth) -> Judging:
    """The same with as many steps of the small classifiers as there is time for: the own net, and two of classes."""
    if judging.seconds is None:
        return judging
    trainings = 1 if truth.training_label_N is None or truth.held_out_label_N is None else 3
    room = affordable(LEARNING * judging.seconds / trainings, truth.held_out_NCYX, judging.device)
    return replace(judging, steps=max(LEAST_STEPS, min(judging.steps, room)))


def _drawn(draw: Draw, group: Prompts, rows: int, shape: tuple[int, ...], tell: Watch) -> tuple[Tensor, Figure]:
    """The pictures of one group as they are seen, and pictures a second; the first batch, which warms up, apart."""
    parts, seconds = [], []
    for first in range(0, group.count, rows):
        prompts = {name: _cut(value, first, rows, group.count) for name, value in group.batch.items()}
        began = time.perf_counter()
        image_BCYX = draw({**prompts, "first": first})
        parts.append(as_seen(image_BCYX, f"what was drawn ({group.name})", drawn=True))
        seconds.append(time.perf_counter() - began)
        if tuple(parts[-1].shape) != (min(rows, group.count - first), *shape):
            asked = [min(rows, group.count - first), *shape]
            raise DataError(
                f"{list(parts[-1].shape)} was drawn where {asked} was asked for", "held-out pictures set the size"
            )
        tell({"kind": "drawn", "done": first + len(parts[-1]), "total": group.count})
    timed = slice(1, None) if len(parts) > 2 else slice(None)
    made_G, took_G = np.array([len(part) for part in parts[timed]]), np.array(seconds[timed])
    return torch.cat(parts), Figure(float(made_G.sum() / took_G.sum()), *interval(made_G, took_G))


def _cut(value: object, first: int, rows: int, count: int) -> object:
    """The part of a batch's entry that belongs to some prompts; what is not one a prompt stays whole."""
    if isinstance(value, Tensor | np.ndarray | list | tuple) and len(value) == count:
        return value[first : first + rows]
    return value


def _training(truth: Truth, rows: Sequence[int]) -> Tensor:
    return as_seen(torch.stack([truth.training[row][0] for row in rows]), "training pictures")


def _accuracy(
    drawn_NCYX: Tensor, group: Prompts, truth: Truth, judging: Judging, notes: list[str], tell: Watch
) -> AccuracyScore | None:
    """Classifier accuracy, where prompts and real pictures have classes."""
    if group.label_N is None or truth.training_label_N is None or truth.held_out_label_N is None:
        notes.append("No classifier accuracy: these pictures have no classes.")
        return None
    _say(tell, "training a classifier on what was drawn, and one on real pictures")
    order_N = torch.randperm(len(truth.training), generator=generator(judging.seed, "report", "accuracy"))
    rows_N = order_N[: len(drawn_NCYX)]
    training = Labelled(_training(truth, rows_N.tolist()), truth.training_label_N[rows_N])
    sides = Labelled(drawn_NCYX, group.label_N), training, Labelled(truth.held_out_NCYX, truth.held_out_label_N)
    return accuracy_score(*sides, len(truth.classes), judging.steps, judging.seed, judging.device, tell)


def _conditions(
    drawn: Sequence[Tensor],
    groups: Sequence[Prompts],
    reader: Reader | None,
    judging: Judging,
    notes: list[str],
    tell: Watch,
) -> Iterator[Condition]:
    """Condition accuracy of every group that says what it asked for."""
    if reader is None or not any(group.asked for group in groups):
        notes.append("No condition accuracy: nobody can read from these pictures what was asked for.")
        return
    for image_NCYX, group in zip(drawn, groups, strict=True):
        if group.asked:
            _say(tell, f"reading {group.count:,} pictures ({group.name})")
            yield condition(group.name, image_NCYX, group.asked, reader, group.real_NCYX, judging.seed)


def _say(tell: Watch, detail: str) -> None:
    tell({"kind": "phase", "phase": "reporting", "detail": detail})


def _sentence(error: ConfigError) -> str:
    return f"{error.what[0].upper()}{error.what[1:]}: {error.fix}."


__all__ = ["Draw", "Judging", "PictureReport", "Prompts", "Truth", "picture_report"]
