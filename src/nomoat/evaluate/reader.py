"""The trained reader of the shapes world: a small convolutional net that says what the one thing in a picture is.

    image [B, 3, Y, X] -> three stages of two convolutions, each half as wide -> largest and mean over places
           -> four heads: shape, colour, size, texture

It learns from the renderer, on all combinations, those among them that generators never see: a second opinion beside
the analytic reader (shapes.py), which shares no line with it. It judges only where both are right on true pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.device import generator
from nomoat.core.errors import CheckpointError, ConfigError
from nomoat.core.tensors import read_later, write_tensors
from nomoat.data.shapes import Shapes
from nomoat.data.shapes_scene import ATTRIBUTES, VALUES, Scene, Scenes

WIDTHS = (24, 48, 96)
NOISE = 20 / 127.5
"""Most noise in a training picture: the standard deviation, where black and white differ by 2."""
BLURRED = 0.3
"""Share of the training pictures that are blurred over 3 pixels."""


class Reader(nn.Module):
    """Reads pictures of one thing.

    Args:
        size: pixels a side of the pictures that it is for.
    """

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        before = 3
        for stage, width in enumerate(WIDTHS):
            for number in range(2):
                step = 2 if stage and not number else 1
                layers += [nn.Conv2d(before, width, 3, step, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
        self.layers = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(2 * before, len(names)) for names in VALUES)

    def forward(self, image_BCYX: Tensor) -> list[Tensor]:
        """Logits [B, values] of each of `ATTRIBUTES`. Raises ConfigError for pictures of another size."""
        if image_BCYX.shape[1:] != (3, self.size, self.size):
            raise ConfigError(
                f"this reader is for colour pictures of {self.size} pixels a side, not {tuple(image_BCYX.shape[1:])}"
            )
        x_BCYX = self.layers(image_BCYX)
        x_BD = torch.cat([x_BCYX.amax((2, 3)), x_BCYX.mean((2, 3))], dim=1)
        return [head(x_BD) for head in self.heads]

    @torch.no_grad()
    def read(self, image_BCYX: Tensor) -> Tensor:
        """Number of shape, colour, size and texture of each picture [B, 4]; the module must be in eval mode."""
        return torch.stack([logits.argmax(1) for logits in self(image_BCYX)], dim=1)

    def save(self, path: Path | str) -> None:
        """Write the weights as safetensors."""
        write_tensors(Path(path), self.state_dict(), {"reader": "shapes", "size": str(self.size)})

    @classmethod
    def load(cls, path: Path | str) -> Reader:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it is no such file.
        """
        tensors, texts = read_later(Path(path))
        if texts.get("reader") != "shapes":
            raise CheckpointError(
                f"{path} is no reader of the shapes world", "", "make one: python benchmarks/reader.py"
            )
        made = cls(int(texts["size"]))
        try:
            made.load_state_dict({name: tensor.make() for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{path} is a reader of another make", " ".join(str(error).split())[:200]) from error
        return made.eval()


def train_reader(
    size: int = 32,
    steps: int = 4000,
    batch_size: int = 64,
    seed: int = 0,
    learning_rate: float = 2e-3,
    watch: Callable[[int, float], None] | None = None,
) -> Reader:
    """Train a reader on all combinations, with light noise and blur; AdamW, its rate a half cosine.

    Args:
        size: pixels a side.
        steps: of the optimizer.
        batch_size: pictures a step.
        seed: of weights and pictures.
        learning_rate: at the start.
        watch: told step and loss in nats, the four heads' sum.
    """
    world = Shapes(size=size, split="all")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(size)
    optimizer = torch.optim.AdamW(reader.parameters(), learning_rate, weight_decay=0.01)
    for step in range(steps):
        shown = world.shown(step * batch_size + np.arange(batch_size), seed)
        logits = reader(worsened(shown.batch["image"], generator(seed, "reader", step)))
        kind_BD = kinds(shown.scenes)
        loss = torch.stack([F.cross_entropy(each, kind_BD[:, d]) for d, each in enumerate(logits)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        if watch is not None:
            watch(step, float(loss.detach()))
    return reader.eval()


def worsened(image_BCYX: Tensor, chance: torch.Generator) -> Tensor:
    """Pictures as a model might draw them: some blurred, all with noise, of each picture its own strength."""
    blurred_BCYX = F.avg_pool2d(F.pad(image_BCYX, (1, 1, 1, 1), mode="replicate"), 3, 1)
    soft_B = torch.rand(len(image_BCYX), generator=chance) < BLURRED
    image_BCYX = torch.where(soft_B[:, None, None, None], blurred_BCYX, image_BCYX)
    strength_B = NOISE * torch.rand(len(image_BCYX), generator=chance)
    noise_BCYX = torch.randn(image_BCYX.shape, generator=chance) * strength_B[:, None, None, None]
    return (image_BCYX + noise_BCYX).clamp(-1, 1)


def kinds(scenes: list[Scene]) -> Tensor:
    """Number of shape, colour, size and texture of each scene's first thing [B, 4]."""
    return torch.from_numpy(Scenes.of(scenes).kind_BND[:, 0])


def right(reader: Reader, image_BCYX: Tensor, kind_BD: Tensor) -> dict[str, float]:
    """The share of pictures in which each attribute is read as it is, and all of them together (`joint`)."""
    same_BD = reader.read(image_BCYX) == kind_BD
    shares = {name: float(same_BD[:, d].float().mean()) for d, name in enumerate(ATTRIBUTES)}
    return {**shares, "joint": float(same_BD.all(1).float().mean())}
