"""From a folder and a budget to a model with its card: read, plan, train, answer "what have I got?", write the card.

    files -> shards -> Forecast (in the run before the first step) -> the loop -> Report -> card.md, card.json

The budget is for the whole way: what reading took, and what the report will take, is left out of what training gets.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core.budget import Budget
from nomoat.core.errors import DataError, NomoatError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.runs import runs_root
from nomoat.licensing import refuse

if TYPE_CHECKING:
    from nomoat.data.text import Text
    from nomoat.train.plan import Forecast

Watch = Callable[[Mapping[str, Any]], None]

CONTEXT_LENGTH = 256
PLAN = "plan.json"


class StoppedError(NomoatError):
    """Ctrl-C, or a polite kill: what was done is kept."""

    exit_code = 130

    def __init__(self, run: Run) -> None:
        steps = max((event["step"] for event in run.metrics("keep")), default=0)
        super().__init__("stopped", f"the checkpoint of step {steps:,} is good", f"nomoat resume {run.name}")
        self.run = run


@dataclass(frozen=True)
class Spending:
    """What may be spent, and since when.

    Args:
        budget: as the user gave it.
        began: by the performance counter.
        price_per_hour, watts: what the user stated for the card, also where the budget is in something else.
    """

    budget: Budget
    began: float
    price_per_hour: float | None = None
    watts: float | None = None

    @classmethod
    def of(cls, budget: str, price_per_hour: float | None = None, watts: float | None = None) -> Spending:
        """From now on.

        Raises:
            ConfigError: a budget of nothing, or one that cannot be read.
        """
        return cls(Budget.parse(budget, price_per_hour, watts), time.perf_counter(), price_per_hour, watts)

    def left(self, report_seconds: float) -> float | None:
        """Seconds left for planning and training; None for budgets that no clock bounds."""
        whole = None if self.budget.unit == "watt_hours" and not self.budget.watts else self.budget.seconds()
        if whole is None:
            return None
        return max(0.3 * whole, whole - (time.perf_counter() - self.began) - report_seconds)

    def state(self, run: Run) -> None:
        """Write to a run what the user said of prices and power."""
        rates = {"price_per_hour": self.price_per_hour, "currency": self.budget.currency, "watts": self.watts}
        for name, value in rates.items():
            if stated := value or getattr(self.budget, name):
                run.decide(name, stated, 0, "stated by the user")


def prepared(recipe: Recipe, root: Path | str | None, watch: Watch | None) -> Recipe:
    """The recipe with its files read into shards, where it names files, and with its start's model to be wrapped."""
    if recipe.start is not None and getattr(recipe.family, "policy", recipe) is None:
        recipe = replace(recipe, family=replace(recipe.family, policy=Run.open(recipe.start).recipe.product))
    if not hasattr(recipe.data, "prepare"):
        return recipe
    return replace(recipe, data=recipe.data.prepare(data_root(root), watch))


def started(name: str, recipe: Recipe, root: Path | str | None, watch: Watch | None, allow: str | None) -> Run:
    """A new run of a recipe whose files are read and whose licences can be kept, or `allow` says why not."""
    ready = prepared(recipe, root, watch)
    decisions = refuse(ready, allow, watch)
    run = Run.create(root, name, ready)
    for decision, value, why in decisions:
        run.decide(decision, value, 0, why)
    return run


def data_root(root: Path | str | None = None) -> Path:
    """Where the shards of files lie: beside the runs made from them."""
    return (Path(root) if root is not None else runs_root()) / "data"


def foreseen(
    path: Path | str | None,
    spending: Spending,
    licence: str | None,
    device: str,
    watch: Watch | None,
    allow: str | None = None,
) -> Forecast:
    """Read the files, then plan for what is left of the budget.

    Raises:
        RunError: their licences cannot be kept together, and `allow` gives no reason.
        DataError: nothing to read, or too little.
        ConfigError: a budget that cannot be used.
    """
    from nomoat.data.files import Files
    from nomoat.data.shards import ShardReader
    from nomoat.data.tokenizer import load
    from nomoat.evaluate.baselines import learning_curve
    from nomoat.recipes.own_text import sized
    from nomoat.train.law import curve_of
    from nomoat.train.plan import Corpus, forecast

    files = Files(None if path is None else str(path), context_length=CONTEXT_LENGTH, licence=licence)
    text: Text = files.prepare(data_root(), watch)
    folder = text.paths[0]
    tokenizer, size = load(Path(folder) / "tokenizer.json"), sizes(folder)
    vocab_size, training = tokenizer.vocab_size, ShardReader(folder, "train")
    if training.tokens <= CONTEXT_LENGTH:
        raise DataError(
            f"the text has {training.tokens:,} tokens, too few to make a model of",
            f"one look of the model takes {CONTEXT_LENGTH}",
            "add text of the same kind: it begins to learn something from about 100 kB",
        )

    def choose(width: int, batch_size: int, budget: Budget) -> Recipe:
        return sized(width, batch_size, text, vocab_size, budget)

    refuse(choose(64, 1, spending.budget), allow, watch)
    curve = curve_of(learning_curve(training, ShardReader(folder, "heldout"), tokenizer))
    corpus = Corpus(training.tokens, size["train"]["bytes"], vocab_size, curve)
    return forecast(corpus, choose, spending.budget, device, spending.left(report_seconds(size)), watch)


def sizes(folder: Path | str) -> dict[str, dict[str, int]]:
    """Documents, tokens and bytes of each split."""
    from nomoat.data.manifest import Manifest

    return Manifest.load(folder).splits


def report_seconds(size: Mapping[str, Mapping[str, int]]) -> float:
    """About how long the report takes: xz and the n-gram model on the training text, and reading it for copies."""
    return 12.0 + 1.6e-6 * min(size["train"]["bytes"], 16_000_000) + 4e-6 * size["heldout"]["bytes"]


def trained(run: Run, device: str, watch: Watch | None) -> Run:
    """Train a run to its end, with its tokenizer beside it.

    Raises:
        StoppedError: Ctrl-C; the checkpoint and the card are there.
    """
    from nomoat import card
    from nomoat.core.device import choose, peak_memory
    from nomoat.glimpse import glimpsing
    from nomoat.train.loop import train as loop

    _guard(run, watch)
    _with_tokenizer(run)
    before = run.watch
    run.watch = glimpsing(run, watch)
    try:
        loop(run.recipe, run, device)
    finally:
        run.watch = before
    run.note("memory", peak_bytes=peak_memory(choose(device)))
    card.write(run)
    if run.status == "stopped":
        raise StoppedError(run)
    return run


def made(run: Run, device: str, watch: Watch | None, began: float | None = None) -> Run:
    """Train a run, then answer "what have I got?" in its card, report.txt and report.json.

    Args:
        run: trained to its end, or where it was stopped.
        device: where.
        watch: told what happens.
        began: when its making began, by the performance counter; None: it is resumed, so that nobody knows.
    """
    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.evaluate.report import report
    from nomoat.texts import data_folder, spelling

    trained(run, device, watch)
    place = choose(device)
    model: Any = load(run).to(place)
    with run.autocast(place):
        found = report(model, spelling(run), data_folder(run), watch=watch)
    return reported(run, found, began)


def reported(run: Run, found: Any, began: float | None = None) -> Run:
    """Write what a run has come to into report.txt, report.json and its card; returns the run.

    Args:
        run: at its end.
        found: has `as_text`, `as_json` and `as_markdown`.
        began: when its making began, by the performance counter; None: nobody knows.
    """
    from nomoat import card

    run.write_text("report.txt", found.as_text() + "\n")
    run.write_json("report.json", found.as_json())
    if began is not None:
        run.note("made", seconds=time.perf_counter() - began)
    card.write(run, found)
    return run


def make(
    path: Path | str | None,
    spending: Spending,
    licence: str | None,
    device: str,
    seed: int,
    watch: Watch | None,
    allow: str | None = None,
) -> Run:
    """The whole way; see `verbs.make`."""
    forecast = foreseen(path, spending, licence, device, watch, allow)
    if watch is not None:
        watch({"kind": "plan", "text": forecast.as_text(), **forecast.expected})
        if forecast.warning:
            watch({"kind": "warning", "text": forecast.warning})
    run = begun(forecast, replace(forecast.recipe, seed=seed), path)
    for name, value, why in refuse(forecast.recipe, allow):
        run.decide(name, value, 0, why)
    spending.state(run)
    return made(run, device, watch, spending.began)


def begun(forecast: Forecast, recipe: Recipe, path: Path | str | None) -> Run:
    """A new run that knows what is expected of it, and what planning has measured of the machine."""
    run = Run.create(None, "python-library" if path is None else Path(path).resolve().name, recipe)
    run.write_json(PLAN, {**forecast.expected, "planning_seconds": forecast.spent})
    for name, value, why in forecast.decisions:
        run.decide(name, value, 0, f"{why} (measured while planning)")
    return run


def is_made(run: Run) -> bool:
    """Whether `make` began this run, so that its end is a report."""
    return (run.path / PLAN).exists()


def _guard(run: Run, watch: Watch | None) -> None:
    """Let the collapse guard look at mixed data before the first step; what it finds is a decision of the run.

    Raises:
        CollapseError: it refuses, and $NOMOAT_SYNTHETIC gives no reason to train all the same.
    """
    from nomoat.data.manifest import NAME, Manifest

    folders = [path for path in getattr(run.recipe.data, "paths", ()) if (Path(path) / NAME).is_file()]
    if run.decided("real_share") is not None or not any(Manifest.load(each).licences.generation for each in folders):
        return
    from nomoat.evaluate.collapse import guard

    taught = run.recipe.start is not None or bool(run.recipe.parts) or run.decided("taught", False)
    found = guard(folders, override=os.environ.get("NOMOAT_SYNTHETIC", ""), taught=taught)
    run.decide("real_share", found.mixture.real_share, 0, "; ".join([found.mixture.as_text(), *found.warnings]))
    run.note("diversity", generation=found.mixture.generation, drift=found.drift)
    for text in found.warnings:
        if watch is not None:
            watch({"kind": "warning", "text": text})


def _with_tokenizer(run: Run) -> None:
    """Copy the data's tokenizer into the run, and the names of its classes: a run is whole without its data."""
    first = next(iter(getattr(run.recipe.data, "paths", ())), None)
    target = run.path / "tokenizer.json"
    if first is not None and not target.exists() and (Path(first) / "tokenizer.json").is_file():
        shutil.copyfile(Path(first) / "tokenizer.json", target)
    if not target.exists() and (words := getattr(run.recipe.data, "words", None)) and (tokenizer := words()):
        tokenizer.save(target)
    if classes := getattr(run.recipe.data, "classes", ()):
        run.write_json("classes.json", list(classes))
