"""Modes: how many of the 1,000 kinds of stacked digits a generator makes, read by a classifier of single digits.

    single digits [n, 1, Y, X] -> a small convolutional net, trained -> DigitReader, right on held-out digits
    pictures [N, 3, Y, X] -> each colour read alone -> a number 0..999 -> Modes(found, KL to uniform)

Metz et al. 2016, arXiv:1611.02163. A reader takes anything for some digit, so modes say that a generator varies, not
that its digits are good: look at them, and see how sure the reader is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.device import generator
from nomoat.core.errors import DataError
from nomoat.nn.augment import DRAWS, Augment

KINDS = 1000
GATE = 0.98
"""A reader that is right less often on held-out digits says nothing about modes."""
BATCH = 128
LEARNING_RATE = 3e-3
SHIFTS = Augment(translation=0.08)


class DigitReader(nn.Module):
    """A classifier of single digits: two convolutions and a linear layer.

    Args:
        size: pixels a side; a multiple of 4.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, 10),
        )

    def forward(self, image_B1YX: Tensor) -> Tensor:
        """Logits [B, 10] of pictures in [-1, 1]."""
        return self.net(image_B1YX)


@dataclass(frozen=True)
class Modes:
    """What was found among some pictures.

    Args:
        found: different numbers among them, of 1,000.
        kl: divergence in nats of how often each occurs from all equally often; also of real pictures it is about
            999 / (2 x pictures), and more where the digits themselves are not equally frequent.
        sure: mean probability that the reader gives to the digit that it reads; of real ones it is near 1.
        pictures: how many there were.
    """

    found: int
    kl: float
    sure: float
    pictures: int


def train_reader(image_N1YX: Tensor, digit_N: Tensor, steps: int = 1000, seed: int = 0) -> DigitReader:
    """A reader of these digits, in eval mode.

    Args:
        image_N1YX: single digits in [-1, 1].
        digit_N: what each shows.
        steps: of `BATCH` digits each, every one moved by up to 8 % of its side.
        seed: of first weights, order and chance.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = DigitReader(image_N1YX.shape[-1])
    optimizer = torch.optim.Adam(reader.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        chance = generator(seed, "reader", step)
        chosen_B = torch.randint(len(digit_N), (BATCH,), generator=chance)
        seen = SHIFTS(image_N1YX[chosen_B], torch.rand(BATCH, DRAWS, generator=chance))
        loss = F.cross_entropy(reader(seen), digit_N[chosen_B])
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader.eval()


@torch.no_grad()
def accuracy(reader: DigitReader, image_N1YX: Tensor, digit_N: Tensor) -> float:
    """The share of the digits that are read right."""
    right = sum(
        int((reader(image).argmax(1) == digit).sum())
        for image, digit in zip(image_N1YX.split(1000), digit_N.split(1000), strict=True)
    )
    return right / len(digit_N)


@torch.no_grad()
def modes(reader: DigitReader, pictures: Iterable[Tensor]) -> Modes:
    """Count the modes.

    Args:
        reader: gated by `accuracy` of at least `GATE`.
        pictures: batches [B, 3, Y, X] in [-1, 1].

    Raises:
        DataError: there are no pictures, they have not three colours, or some numbers in them are not finite.
    """
    counts, sure = torch.zeros(KINDS, dtype=torch.long), 0.0
    for image_BCYX in pictures:
        if image_BCYX.shape[1] != 3 or not image_BCYX.isfinite().all():
            why = f"these are {tuple(image_BCYX.shape)}, lowest {float(image_BCYX.min())}"
            raise DataError("stacked digits have three colours of finite numbers", why)
        share_NV = reader(image_BCYX.flatten(0, 1)[:, None]).softmax(1)
        most_N, digit_N = share_NV.max(1)
        sure += float(most_N.sum())
        hundreds, tens, ones = digit_N.view(-1, 3).T
        counts += torch.bincount(100 * hundreds + 10 * tens + ones, minlength=KINDS)
    total = int(counts.sum())
    if not total:
        raise DataError("there are no pictures to count modes in")
    share = counts[counts > 0].double() / total
    kl = float((share * (share * KINDS).log()).sum())
    return Modes(int((counts > 0).sum()), kl, sure / (3 * total), total)
