"""A small classifier of pictures, always the same one: it gives own-domain features and measures what pictures teach.

    image_BCYX -> at most 32 px -> four times (3x3 convolution, batch norm, ReLU), halved between -> mean -> logits_BV
                                                                 means of the last three of these -> features_BD

Same pictures, same seed, same steps: the same weights (on the same machine), and their hash says so. Where there are
no labels, it tells which way up a picture stands (Gidaris et al. 2018, arXiv:1803.07728).
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.device import generator
from nomoat.core.errors import DataError
from nomoat.evaluate.bits import Watch

WIDTHS = (32, 64, 128, 256)
LONGEST_SIDE = 32
STEPS, ROWS, RATE, WARM_UP = 400, 64, 4e-3, 0.15
READ_ROWS = 256
TURNS = 4


class Net(nn.Module):
    """See the module's first lines.

    Args:
        channels: of the pictures.
        classes: V.
        seed: of the first weights.
    """

    def __init__(self, channels: int, classes: int, seed: int) -> None:
        super().__init__()
        wide = (channels, *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(wide)
        )
        self.output = nn.Linear(WIDTHS[-1], classes)
        chance = generator(seed, "classifier")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=chance)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def means(self, image_BCYX: Tensor) -> list[Tensor]:
        """Mean over the places [B, D] after each stage."""
        x_BCYX, found = image_BCYX.contiguous(memory_format=torch.channels_last), []
        for number, stage in enumerate(self.stages):
            if number:
                x_BCYX = F.max_pool2d(x_BCYX, 2, ceil_mode=True)
            x_BCYX = stage(x_BCYX)
            found.append(x_BCYX.mean((2, 3)))
        return found

    def forward(self, image_BCYX: Tensor) -> Tensor:
        return self.output(self.means(image_BCYX)[-1])


@dataclass(frozen=True)
class Classifier:
    """A trained `Net`, in eval mode, with the SHA-256 of its weights."""

    net: Net
    hash: str

    @torch.inference_mode()
    def labels(self, image_NCYX: Tensor) -> Tensor:
        """The likeliest class [N]."""
        return torch.cat([self.net(part).argmax(1).cpu() for part in self._parts(image_NCYX)])

    @torch.inference_mode()
    def features(self, image_NCYX: Tensor) -> Tensor:
        """Means of the last three stages [N, D]."""
        return torch.cat([torch.cat(self.net.means(part)[-3:], 1).cpu() for part in self._parts(image_NCYX)])

    def _parts(self, image_NCYX: Tensor) -> list[Tensor]:
        device = self.net.output.weight.device
        return [small(part).to(device) for part in image_NCYX.split(READ_ROWS)]


def train(
    image_NCYX: Tensor,
    label_N: Tensor | None,
    classes: int = TURNS,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | None = None,
    watch: Watch | None = None,
) -> Classifier:
    """Train the classifier from nothing.

    Args:
        image_NCYX: pictures in [-1, 1].
        label_N: the class of each, from 0; None: it learns which way up they stand.
        classes: how many there are.
        steps: of 64 pictures.
        seed: of the first weights and of the order.
        device: where; None: where the pictures are.
        watch: told {"kind": "classifier", "done", "total"}.

    Raises:
        DataError: no pictures, or labels that are not theirs.
    """
    if not len(image_NCYX) or (label_N is not None and len(label_N) != len(image_NCYX)):
        many = "no" if label_N is None else f"{len(label_N):,}"
        raise DataError(
            f"{many} labels for {len(image_NCYX):,} pictures", "a classifier needs pictures, one label each"
        )
    if label_N is not None and (int(label_N.min()) < 0 or int(label_N.max()) >= classes):
        found = f"labels from {int(label_N.min())} to {int(label_N.max())}"
        raise DataError(f"{found}, where there are {classes} classes", fix="number the classes from 0")
    device = device or image_NCYX.device
    image_NCYX = small(image_NCYX)
    net = Net(image_NCYX.shape[1], classes if label_N is not None else TURNS, seed)
    net = net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    order_M = _order(len(image_NCYX), steps * ROWS, seed)
    for step in range(steps):
        rate = min((step + 1) / (WARM_UP * steps), (steps - step) / ((1 - WARM_UP) * steps), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * rate
        rows_B = order_M[step * ROWS : (step + 1) * ROWS]
        loss = F.cross_entropy(
            *_batch(net, image_NCYX[rows_B].to(device), None if label_N is None else label_N[rows_B])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch and step % 20 == 0:
            watch({"kind": "classifier", "done": step, "total": steps})
    whole = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        whole.update(name.encode() + tensor.cpu().numpy().tobytes())
    return Classifier(net.eval(), whole.hexdigest())


def affordable(seconds: float, image_NCYX: Tensor, device: torch.device | None = None) -> int:
    """How many steps a training on such pictures can take in so many seconds, by the quickest of three."""
    device = device or image_NCYX.device
    image_BCYX, took = small(image_NCYX[:1]).expand(ROWS, -1, -1, -1).to(device), []
    net = Net(image_BCYX.shape[1], TURNS, 0).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(3):
        began = time.perf_counter()
        net(image_BCYX).sum().backward()
        took.append(time.perf_counter() - began)
    return int(seconds / min(took))


def small(image_NCYX: Tensor) -> Tensor:
    """Pictures as square ones of at most 32 px a side, shrunk by the mean over what falls together."""
    side = min(LONGEST_SIDE, max(image_NCYX.shape[-2:]))
    if image_NCYX.shape[-2:] == (side, side):
        return image_NCYX
    return F.interpolate(image_NCYX, size=(side, side), mode="area")


def _batch(net: Net, image_BCYX: Tensor, label_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and what they should say; without labels each quarter of the batch is turned its own way."""
    if label_B is not None:
        return net(image_BCYX), label_B.to(image_BCYX.device)
    parts = [torch.rot90(part, turn, (2, 3)) for turn, part in enumerate(image_BCYX.chunk(TURNS))]
    turns = [torch.full((len(part),), turn, device=image_BCYX.device) for turn, part in enumerate(parts)]
    return net(torch.cat(parts)), torch.cat(turns)


def _order(count: int, needed: int, seed: int) -> Tensor:
    """Which picture comes when [needed]: all of them in an order of chance, again and again."""
    chance = generator(seed, "classifier", "order")
    return torch.cat([torch.randperm(count, generator=chance) for _ in range(-(-needed // count))])[:needed]
