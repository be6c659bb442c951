"""The budget planner: what to train for this budget on this machine, and what to expect of it.

    corpus, budget -> pace of a few sizes (real steps) -> the size that the law expects to end lowest -> a rehearsal of
        its pace and memory -> Forecast(recipe, expected, how sure), written to the run before its first step

What a size comes to is expected by `law.py`, from how hard a 3-gram model finds the text.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from nomoat.core import device as machine
from nomoat.core import energy
from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.train.law import LAW, Curve
from nomoat.train.loop import train
from nomoat.train.start import seconds_a_step

WIDTHS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048)
TIMED_TOKENS = 2048  # of the steps that are timed
MEASURED = (128, 320)  # the widths whose steps are timed; the others' times lie on the line through them
PLANNING = 0.085  # share of the budget that planning may take; the rehearsal gets what timing steps has left of it
TRAINING = 0.95  # share of the time that goes into steps: the rest evaluates, samples and keeps checkpoints
LEAST_SECONDS, MOST_SECONDS = 1.5, 20.0  # of the rehearsal's steps
STARTING_SECONDS = 2.0  # of the rehearsal, before its first step
LEAST_LEFT = 0.25  # share of the time that training gets however long planning took
MOST_EPOCHS = 20
OF_THE_MACHINE = ("threads", "precision", "muon_dtype", "kernel")
"""Decisions that depend on machine and recipe alone: made once, in the rehearsal."""
Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Corpus:
    """What the planner must know of a dataset.

    Args:
        tokens: of the training part.
        bytes: of the training part.
        vocab_size: of the tokenizer.
        curve: what a 3-gram model makes of it; None where nothing is held out: then no loss is foreseen.
    """

    tokens: int
    bytes: int
    vocab_size: int
    curve: Curve | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure, and between what it should lie four times in five."""

    value: float
    low: float
    high: float

    @classmethod
    def within(cls, value: float, share: float) -> Estimate:
        return cls(value, value * (1 - share), value * (1 + share))


@dataclass(frozen=True)
class Forecast:
    """What would be trained and what to expect of it.

    Args:
        recipe: to train.
        parameters: of the model.
        figures: name -> Estimate: held_out_bits_per_byte, tokens_per_second, seconds, steps, tokens, epochs,
            memory_bytes, flops; with a price or watts also money and watt_hours.
        reasons: why this size, in sentences.
        warning: one sentence where the folder is too small for its budget, else empty.
        spent: seconds that planning took.
        decisions: (name, value, why) of what the rehearsal measured of this machine, for the run to take over.
    """

    recipe: Recipe
    parameters: int
    figures: Mapping[str, Estimate]
    reasons: tuple[str, ...]
    warning: str = ""
    spent: float = 0.0
    decisions: tuple[tuple[str, Any, str], ...] = ()

    @property
    def expected(self) -> dict[str, Any]:
        """As plain numbers, for JSON, the card and the run."""
        figures = {name: {"value": e.value, "low": e.low, "high": e.high} for name, e in self.figures.items()}
        return {"parameters": self.parameters, **figures, "reasons": list(self.reasons), "warning": self.warning}

    def as_text(self) -> str:
        """For the terminal."""
        backbone = self.recipe.family.backbone
        lines = [
            f"model      {self.parameters / 1e6:.2f} M parameters: width {backbone.width}, depth {backbone.depth}, "
            f"context {self.recipe.family.context_length}, vocabulary {self.recipe.family.vocab_size:,}",
            f"batch      {self.recipe.batch_size} sequences a step",
        ]
        lines += [f"{name.replace('_', ' '):<10} {_words(name, e)}" for name, e in self.figures.items()]
        lines += [f"because    {reason}" for reason in self.reasons]
        return "\n".join([*lines, *([f"note       {self.warning}"] if self.warning else [])])


def forecast(
    corpus: Corpus,
    sized: Callable[[int, int, Budget], Recipe],
    budget: Budget,
    device: str = "auto",
    seconds: float | None = None,
    watch: Watch | None = None,
) -> Forecast:
    """Choose the size for a budget, rehearse it and say what to expect.

    Args:
        corpus: the data's facts.
        sized: (width, batch_size, budget) -> recipe.
        budget: what may be spent on training, planning included.
        device: where to train.
        seconds: what is left of a budget of time once the files are read; None: the whole budget.
        watch: told {"kind": "phase", ...}.

    Raises:
        ConfigError: the text is shorter than one context, or the watts of a budget in energy are not known.
    """
    began = time.perf_counter()
    meter = energy.meter() if budget.unit == "watt_hours" else None
    paces = Paces(sized, machine.choose(device))
    whole = budget.seconds(meter.watts() if meter else None) if seconds is None else seconds
    width, tokens = _best(corpus, paces, sized, budget, whole)
    recipe = sized(width, batch_size(tokens, sized(width, 1, budget).family.context_length), budget)
    likely = tokens * paces.seconds_per_token(width) if whole is None else whole
    room = PLANNING * likely - (time.perf_counter() - began) - STARTING_SECONDS
    rehearsed = _rehearse(recipe, device, min(MOST_SECONDS, max(LEAST_SECONDS, room)), paces, watch)
    pace = rehearsed.pace / TRAINING  # with all that goes on beside the steps
    spent = time.perf_counter() - began
    if whole is not None:
        left = max(LEAST_LEFT * whole, whole - spent)  # on a machine that is busy with other things planning may drag
        recipe = replace(recipe, budget=replace(budget, amount=budget.amount * left / (budget.seconds() or whole)))
        tokens = left / pace
    elif budget.unit == "steps":
        tokens = budget.amount * recipe.batch_size * recipe.family.context_length
    parameters = _parameters(recipe)
    figures = _figures(recipe, parameters, tokens, pace, spent, corpus)
    return Forecast(
        recipe=recipe,
        parameters=parameters,
        figures=figures,
        reasons=(
            *_why_this_loss(corpus, parameters, tokens),
            f"of the widths tried on paper ({', '.join(map(str, paces.tried))}) {width} is expected to end lowest",
        ),
        warning=too_small(tokens / corpus.tokens),
        spent=spent,
        decisions=rehearsed.decisions,
    )


def _why_this_loss(corpus: Corpus, parameters: float, tokens: float) -> Iterator[str]:
    if corpus.curve is not None:
        fresh = min(tokens, corpus.tokens)
        yield (
            f"a 3-gram model of {fresh:,.0f} different tokens of this text needs {corpus.curve.at(fresh):.3f} bits a "
            f"byte; a network of this size that reads {tokens:,.0f} is expected to need "
            f"{LAW.ratio(parameters, tokens, corpus.tokens):.3f} times that"
        )


class Paces:
    """Seconds a token of each width: measured at two, between and beyond them by the FLOPs of a token."""

    def __init__(self, sized: Callable[[int, int, Budget], Recipe], device: torch.device) -> None:
        self.sized, self.device = sized, device
        self.tried: tuple[int, ...] = ()
        before = torch.get_num_threads()
        number, ratio = machine.worthwhile_threads(device, TIMED_TOKENS, 256, seconds=0.4)
        self.threads = number, 0, f"all of torch's threads together run {ratio:.2f}x as fast as one"
        torch.set_num_threads(number)
        self.points = sorted(self._measured(width) for width in MEASURED)
        torch.set_num_threads(before)

    def _measured(self, width: int) -> tuple[float, float]:
        """FLOPs and seconds of a token, by the middle one of three real steps."""
        recipe = self.sized(width, max(1, TIMED_TOKENS // self.sized(width, 1, _ONE).family.context_length), _ONE)
        length = recipe.family.context_length
        tokens_BL = torch.randint(recipe.family.vocab_size, (recipe.batch_size, length + 1))
        batch = {"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)}
        seconds = seconds_a_step(recipe, batch, self.device)
        return flops_per_token(recipe), seconds / (recipe.batch_size * length)

    def seconds_per_token(self, width: int) -> float:
        """By a power of the FLOPs of a token, through the two points."""
        (flops_1, seconds_1), (flops_2, seconds_2) = self.points
        power = min(1.0, max(0.3, math.log(seconds_2 / seconds_1) / math.log(flops_2 / flops_1)))
        return seconds_2 * (flops_per_token(self.sized(width, 1, _ONE)) / flops_2) ** power


_ONE = Budget.parse("1steps")


def batch_size(tokens: float, context_length: int) -> int:
    """Sequences a step: about a thousand steps in a short run, more and larger ones in a long one."""
    wanted = min(65_536.0, max(2048.0, 2048 * (tokens / 2e6) ** 0.5))
    return max(1, 2 ** round(math.log2(wanted / context_length)))


def flops_per_token(recipe: Recipe) -> float:
    """Forward and backward: 6 a weight that is multiplied by, and the mixers' own products."""
    config = recipe.family
    table = config.vocab_size * config.backbone.width
    return 6.0 * table + config.backbone.flops_per_token(config.context_length)


def too_small(epochs: float) -> str:
    """One sentence where a text would be read too often, else nothing."""
    if epochs <= MOST_EPOCHS:
        return ""
    return (
        f"This folder is small for its budget: it would be read {epochs:.0f} times, and a model learns little new "
        f"after about {MOST_EPOCHS}; more text of the same kind would help, or a budget "
        f"{epochs / MOST_EPOCHS:.0f} times smaller."
    )


def _best(
    corpus: Corpus, paces: Paces, sized: Callable[[int, int, Budget], Recipe], budget: Budget, seconds: float | None
) -> tuple[int, float]:
    """The width whose expected loss is lowest, and the tokens it would read."""
    found = []
    for width in WIDTHS:
        recipe = sized(width, 1, budget)
        tokens = _tokens(recipe, budget, seconds, paces.seconds_per_token(width))
        height = corpus.curve.at(min(tokens, corpus.tokens)) if corpus.curve else 1.0
        found.append((height * LAW.ratio(_parameters(recipe), tokens, corpus.tokens), width, tokens))
    _, width, tokens = min(found)
    place = WIDTHS.index(width)
    paces.tried = WIDTHS[max(0, place - 1) : place + 2]
    return width, tokens


def _tokens(recipe: Recipe, budget: Budget, seconds: float | None, pace: float) -> float:
    if budget.unit == "tokens":
        return budget.amount
    if budget.unit == "steps":
        return budget.amount * 4096
    assert seconds is not None, "every other budget buys time"
    return max(1.0, (1 - PLANNING) * TRAINING * seconds / pace)


@dataclass(frozen=True)
class _Rehearsed:
    """What a rehearsal found: seconds a token, and the decisions that it made on the way."""

    pace: float
    decisions: tuple[tuple[str, Any, str], ...]


def _rehearse(recipe: Recipe, device: str, seconds: float, paces: Paces, watch: Watch | None) -> _Rehearsed:
    """Train the recipe for `seconds`, in a run that is thrown away; all but its first fifth gives the pace."""
    tokens_a_step = recipe.batch_size * recipe.family.context_length
    steps = max(5, round(seconds / (paces.seconds_per_token(recipe.family.backbone.width) * tokens_a_step)))
    if watch is not None:
        watch({"kind": "phase", "phase": "planning", "steps": steps})
    short = replace(recipe, budget=Budget.parse(f"{steps}steps"), keep_every_seconds=1e9, evaluate_every=10**9)
    with tempfile.TemporaryDirectory(prefix="nomoat-plan-") as folder:
        run = Run.create(folder, "rehearsal", short)
        run.decide("threads", *paces.threads)
        train(short, run, device)
        noted = run.metrics("step")
        decisions = tuple((d["name"], d["value"], d["why"]) for d in run.decisions() if d["name"] in OF_THE_MACHINE)
    first, last = noted[len(noted) // 5], noted[-1]
    taken = last["seconds"] - first["seconds"]
    return _Rehearsed(taken / max(1, (last["step"] - first["step"]) * tokens_a_step), decisions)


def _figures(
    recipe: Recipe, parameters: int, tokens: float, pace: float, spent: float, corpus: Corpus
) -> dict[str, Estimate]:
    seconds, peak = tokens * pace, float(machine.peak_memory())
    figures = {
        "tokens_per_second": Estimate.within(1 / pace, 0.15),
        "seconds": Estimate(seconds + spent, 0.95 * seconds + spent, 1.05 * seconds + spent),
        "steps": Estimate.within(tokens / (recipe.batch_size * recipe.family.context_length), 0.15),
        "tokens": Estimate.within(tokens, 0.15),
        "epochs": Estimate.within(tokens / corpus.tokens, 0.15),
        "memory_bytes": Estimate(peak, 0.9 * peak, 1.5 * peak),  # the rehearsal's: the same model and batch
        "flops": Estimate.within(tokens * flops_per_token(recipe), 0.15),
    }
    if corpus.curve is not None:
        bits = corpus.curve.at(min(tokens, corpus.tokens)) * LAW.ratio(parameters, tokens, corpus.tokens)
        figures = {"held_out_bits_per_byte": Estimate.within(bits, LAW.within(parameters, tokens)), **figures}
    if recipe.budget.price_per_hour:
        figures["money"] = Estimate.within(recipe.budget.price_per_hour * (seconds + spent) / 3600, 0.05)
    if recipe.budget.watts:
        figures["watt_hours"] = Estimate.within(recipe.budget.watts * (seconds + spent) / 3600, 0.3)
    return figures


def _parameters(recipe: Recipe) -> int:
    config = recipe.family
    tables = 1 if config.backbone.dialect.output == "tied" else 2
    return config.backbone.parameters() + tables * config.vocab_size * config.backbone.width


def _words(name: str, estimate: Estimate) -> str:
    scale, form = {
        "memory_bytes": (1e-9, "{:.2f} GB"),
        "flops": (1e-12, "{:,.0f} TFLOP"),
        "held_out_bits_per_byte": (1.0, "{:.3f}"),
        "money": (1.0, "{:.4f}"),
        "watt_hours": (1.0, "{:.2f}"),
        "epochs": (1.0, "{:.1f}"),
    }.get(name, (1.0, "{:,.0f}"))
    value, low, high = (form.format(scale * number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} (between {low} and {high})"


def compare(expected: Mapping[str, Any], actual: Mapping[str, float]) -> Iterable[tuple[str, float, float, float]]:
    """Name, expected, actual and actual / expected - 1 of each figure that both have; for the card."""
    for name, value in actual.items():
        if isinstance(found := expected.get(name), Mapping) and found["value"]:
            yield name, found["value"], value, value / found["value"] - 1
