"""What would be trained of pictures: which family, which resolution, how large a network the time affords.

    files -> Pictures | Shapes -> a few timed steps of the middle size -> the largest network that gets enough steps

The families are recipes of the library; of each the size, the channels and what it is told come from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.recipe import Recipe, find
from nomoat.making import Spending

if TYPE_CHECKING:
    from nomoat.nn.backbone import Backbone

Watch = Callable[[Mapping[str, Any]], None]

SIZES = ((96, 3, 3), (128, 4, 4), (192, 6, 6), (256, 8, 8), (384, 10, 6))
"""Width, depth and heads of the transformers that are chosen from."""
WIDTHS = ((16, 32, 64), (24, 48, 96), (32, 64, 128), (48, 96, 192), (64, 128, 256))
"""Channels of the convolutional nets that are chosen from."""
SMALLEST, LARGEST = 8, 64
"""Pixels a side that may be asked for."""
BATCH = 32
TIMED = 1  # of the sizes: the others are reckoned from it by their operations
RESERVE, LEAST_RESERVE, MOST_RESERVE = 0.25, 45.0, 240.0
"""Of a budget, what is kept for the report: a share of it, between so many seconds and so many, half of it at most."""


class Kind(NamedTuple):
    """A family that `make` may choose.

    Args:
        recipe: from which its settings are.
        about: in a few words.
        wanted: steps that it needs before its pictures are any good: the largest network that gets them is taken.
        steps: evaluations in which it draws for the report.
        batch: pictures a step; None: `BATCH`.
    """

    recipe: str
    about: str
    wanted: int
    steps: int
    batch: int | None = None


KINDS = {
    "diffusion": Kind("diffusion-small", "flow matching, a UNet", 3000, 20),
    "dit": Kind("dit-small", "flow matching, a transformer", 3000, 20),
    "shortcut": Kind("shortcut-small", "a shortcut model, a UNet that draws in four steps", 3000, 4),
    "r3gan": Kind("r3gan-small", "R3GAN, two convolutional nets that draw in one step", 6000, 1, 64),
}


class Wanted(NamedTuple):
    """What may be asked of a model that draws.

    Args:
        kind: one of `KINDS`; None: the one that suits.
        size: pixels a side; None: 32, or what smaller pictures have.
    """

    kind: str | None = None
    size: int | None = None


ANY = Wanted()


@dataclass(frozen=True)
class PictureForecast:
    """What would be trained of pictures. How good it becomes nobody foretells: there is no law of it yet.

    Args:
        recipe: to train.
        kind: of `KINDS`.
        parameters: of the network.
        pictures: to learn from; None: no end of them.
        pace: seconds a step, the least of three.
        seconds: what training gets of the budget; None: it is no budget of time.
        kept: seconds that are kept for the report.
    """

    recipe: Recipe
    kind: str
    parameters: int
    pictures: int | None
    pace: float
    seconds: float | None
    kept: float

    @property
    def steps(self) -> int | None:
        """That the time has room for, about; None: the budget says."""
        return None if self.seconds is None else int(self.seconds / self.pace)

    @property
    def expected(self) -> dict[str, Any]:
        """As plain numbers, for JSON and the run."""
        own = {"family": self.kind, "parameters": self.parameters, "pictures": self.pictures}
        times = {"seconds_a_step": self.pace, "steps": self.steps, "training_seconds": self.seconds}
        return {**own, **times, "report_seconds": self.kept}

    def as_text(self) -> str:
        """For the terminal."""
        family, batch, kind = self.recipe.family, self.recipe.batch_size, KINDS[self.kind]
        told = f"captions of {family.vocab_size:,} words" if family.vocab_size else "no captions"
        told = f"{family.classes} classes" if not family.vocab_size and family.classes else told
        many = "no end of them" if self.pictures is None else f"{self.pictures:,} to learn from"
        lines = [
            f"pictures   {many}, {family.size} x {family.size} pixels, {told}",
            f"model      {self.parameters / 1e6:.2f} M parameters: {kind.about}, {_told(nets(family))}",
            f"pace       {batch / self.pace:,.0f} pictures a second, {self.pace:.3f} s a step of {batch}",
        ]
        if self.seconds is not None and self.steps is not None:
            passes = "" if self.pictures is None else f", each picture {self.steps * batch / self.pictures:.1f} times"
            lines.append(f"training   about {self.steps:,} steps in {self.seconds:.0f} s{passes}")
            lines.append(f"report     {self.kept:.0f} s are kept for it")
            if self.steps < kind.wanted:
                lines.append(f"note       below {kind.wanted:,} steps pictures stay vague: a larger budget helps")
        return "\n".join(lines)


def foreseen(
    path: Path | str | None,
    spending: Spending,
    licence: str | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    wanted: Wanted = ANY,
    device: str = "auto",
) -> PictureForecast:
    """Read the pictures, choose the family, time a few steps and choose the network.

    Args:
        path: a folder or archive of pictures; None: the shapes world.
        spending: the budget, for the whole way.
        licence: SPDX id of all files; None: what stands beside them.
        seed: of the network.
        watch: told what happens.
        wanted: what is asked for.
        device: where it would be trained.

    Raises:
        ConfigError: there is no such kind, or the pictures are not that large.
        DataError: no pictures, or too few.
    """
    from nomoat.core.device import choose
    from nomoat.train.start import seconds_a_step

    kind = wanted.kind or next(iter(KINDS))
    if kind not in KINDS:
        raise ConfigError(f"there is no kind `{kind}`", f"there is {', '.join(KINDS)}", nearest(kind, KINDS))
    data = _data(path, licence, wanted.size, watch)
    if path is not None and (rows := data.open().size) < 2:
        raise DataError(f"there are too few pictures in {path}", f"{rows} to learn from", "add pictures")
    whole = spending.budget.seconds(spending.budget.watts)
    kept = reserve(whole or 0.0)
    if watch is not None:
        watch({"kind": "phase", "phase": "planning", "detail": "timing a few steps"})
    timed = sized(data, TIMED, spending.budget, seed, kind)
    batch = next(iter(timed.data.stream(None, timed.batch_size, 0)))
    pace, left = seconds_a_step(timed, batch, choose(device)) / work(timed.family), spending.left(kept)
    recipe = sized(data, affordable(data, kind, pace, left, spending.budget), spending.budget, seed, kind)
    seconds = None if whole is None else left
    count = None if path is None else data.open().size
    parameters = sum(weight.numel() for weight in recipe.family.build({}).parameters())
    return PictureForecast(recipe, kind, parameters, count, pace * work(recipe.family), seconds, kept)


def of(path: Path | str, recipe: Recipe, watch: Watch | None = None) -> Recipe:
    """A recipe with these pictures in place of its own, and its family told their channels, words and classes.

    Raises:
        ConfigError: its data are no pictures, or these are smaller.
        DataError: no pictures.
    """
    held, whole = recipe.data, recipe.family
    inner: Any = getattr(held, "data", held)  # of what is embedded
    family: Any = getattr(whole, "student", None) or whole  # of what is distilled
    size = getattr(inner, "size", None)
    if size is None or not hasattr(inner, "hint"):
        why = f"it learns from {type(held).__name__}"
        raise ConfigError("this recipe learns from no pictures", why, "`nomoat train --help` lists those that do")
    data = _data(path, None, size, watch)
    data, words = replace(data, hint=inner.hint), data.words()
    has, told = {field.name for field in fields(family)}, {"channels": data.channels}
    if words is None and "vocab_size" in has and "classes" not in has:
        raise ConfigError(f"nothing says what is in the pictures of {path}", "this family learns captions with them")
    if getattr(family, "vocab_size", 0) or getattr(family, "classes", 0):
        told |= {"vocab_size": words.vocab_size if words else 0, "classes": 0 if words else len(data.classes)}
        told |= {"caption_length": data.caption_length} if words else {}
    family = replace(family, **{name: value for name, value in told.items() if name in has})
    return replace(
        recipe,
        about=f"{recipe.about.split(':')[0].rstrip('.')}, on the pictures of {Path(path).name}.",
        data=data if inner is held else replace(held, data=data),
        family=replace(whole, student=family) if hasattr(whole, "student") else family,
    )


def _data(path: Path | str | None, licence: str | None, size: int | None, watch: Watch | None) -> Any:
    """The pictures, or the shapes world, at a size that suits or was asked for."""
    from nomoat.data.pictures import PictureFiles, choose_size
    from nomoat.data.shapes import Shapes

    if size is not None and not (SMALLEST <= size <= LARGEST and size % (4 if size <= 32 else 8) == 0):
        why = f"networks halve a side twice, above 32 three times; {SMALLEST} to {LARGEST} are drawn"
        raise ConfigError(f"{size} pixels a side cannot be", why, "use --size 32")
    if path is None:
        return Shapes(size or 32)
    suits = choose_size(path, size or 32)
    if size is not None and suits < size:
        why = "three quarters of them must be as large as that: none is enlarged"
        fix = f"use --size {suits}, or a recipe of that size"
        raise ConfigError(f"the pictures of {path} have too few pixels for {size}", why, fix)
    return PictureFiles(str(path), suits, licence).prepare(making.data_root(), watch)


def reserve(whole: float) -> float:
    """Seconds of a budget that the report may take."""
    return min(max(RESERVE * whole, min(LEAST_RESERVE, whole / 2)), MOST_RESERVE)


def sized(data: Any, number: int, budget: Budget, seed: int, kind: str = "diffusion") -> Recipe:
    """The recipe of a kind with a network of this size (a number of `SIZES`), for this data."""
    from nomoat.nn.unet import UNet

    plain, words = find(KINDS[kind].recipe), data.words()
    told = {
        "size": data.size,
        "channels": getattr(data, "channels", 3),
        "patch": 4 if data.size <= 32 else 8,
        "vocab_size": words.vocab_size if words else 0,
        "caption_length": data.caption_length if words else 0,
        "classes": 0 if words else len(data.classes),
    }
    family, net = plain.family, nets(plain.family)
    if hasattr(net, "widths"):
        net = replace(net, widths=WIDTHS[number] + (2 * WIDTHS[number][-1],) * (data.size > 32))
        # A GAN's are of the same size on both sides.
        told |= {"trunk": net} if isinstance(net, UNet) else {"generator": net, "discriminator": net}
    else:
        width, depth, heads = SIZES[number]
        told["trunk"] = replace(net, width=width, depth=depth, heads=heads)
    about = f"Pictures of {data.size} pixels by {KINDS[kind].about}, {_told(told.get('trunk', net))}."
    batch = KINDS[kind].batch or BATCH
    return replace(
        plain, about=about, family=replace(family, **told), data=data, budget=budget, batch_size=batch, seed=seed
    )


def nets(family: Any) -> Any:
    """The network that a family's size is: its trunk, or its generator."""
    return getattr(family, "trunk", None) or family.generator


def _told(net: Backbone | Any) -> str:
    """How large it is, in words."""
    if hasattr(net, "widths"):
        return f"of {', '.join(map(str, net.widths))} channels"
    return f"of width {net.width}, depth {net.depth}"


def work(family: Any) -> float:
    """What a picture costs, in a unit of the kind's own: only sizes of one kind may be compared.

    Of convolutional nets as measured over `WIDTHS` (docs/experiments.md): passes over the memory, linear in the
    channels, are a third to a half of a UNet's steps, and nearly all of a GAN's.
    """
    net = nets(family)
    if hasattr(net, "widths"):
        return float(net.widths[0] * (net.widths[0] + 24) if hasattr(family, "trunk") else net.widths[0] + 11)
    places = (family.size // family.patch) ** 2
    return places * float(net.flops_per_token(places))


def affordable(data: Any, kind: str, pace: float, left: float | None, budget: Budget) -> int:
    """The largest size that takes the steps it wants in the time; of a budget in steps or tokens the middle one.

    Args:
        data: to train on.
        kind: of `KINDS`.
        pace: seconds a step and unit of `work`.
        left: seconds of training; None: it is no budget of time.
        budget: of the recipe.
    """
    if left is None:
        return 2
    paces = [pace * work(sized(data, number, budget, 0, kind).family) for number in range(len(SIZES))]
    return max([0, *(number for number, each in enumerate(paces) if KINDS[kind].wanted * each <= left)])
