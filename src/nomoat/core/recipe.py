"""A recipe: the frozen, importable value that says what is trained, on what, for how much, and what to expect.

    name or file -> find -> Recipe(family, data, budget, optimizer, ...) -> build -> Family

Warmup-stable-decay: Hu et al. 2024 (MiniCPM), arXiv:2404.06395; Muon: Jordan et al. 2024.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, RunError, nearest

if TYPE_CHECKING:
    from nomoat.core.family import Family

PRECISIONS = ("auto", "fp32", "bf16")
OPTIMIZERS = ("muon", "adamw")
PACKAGE = "nomoat.recipes"


@dataclass(frozen=True)
class Ref:
    """Names a run (path, name or `last`) whose model is used elsewhere: a part, a start, a teacher.

    Args:
        run: path of the run directory, or its name below the runs root.
        sha256: of the weights file, once known; `load` refuses any other.
    """

    run: str
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read `run` or `run@sha256`."""
        run, _, digest = text.partition("@")
        return cls(run, digest or None)

    def pinned(self) -> Ref:
        """The same run by its full name (by its path, where it lies elsewhere than the runs do), with its SHA-256.

        Raises:
            RunError, CheckpointError: there is no such run, or nothing in it.
        """
        from nomoat.core import checkpoint
        from nomoat.core.run import Run
        from nomoat.core.runs import runs_root

        run = Run.open(self)
        found, path = checkpoint.newest(run.checkpoints).path, run.path.resolve()
        name = run.name if path.parent == runs_root().resolve() else str(path)
        return Ref(name, self.sha256 or checkpoint.digest(found, checkpoint.model_group(found)))

    def __str__(self) -> str:
        return f"{self.run}@{self.sha256}" if self.sha256 else self.run


@dataclass(frozen=True)
class Optimizer:
    """How weights are moved. Shares are of all steps.

    Args:
        kind: `muon` (hidden matrices by Muon, the rest by AdamW) or `adamw` (all by AdamW).
        learning_rate: of matrices under Muon.
        adam_learning_rate: of everything else; of all under `adamw`.
        betas: of AdamW.
        weight_decay: decoupled, times the learning rate.
        momentum: of Muon.
        clip: largest norm of the gradient; 0 leaves it alone.
        warmup: share of the steps in which the rate rises from zero.
        warmdown: share of the steps in which it falls to `final`.
        final: the rate at the end, as a share of the full one.
        cautious: decay a weight only where the update moves it the same way.
    """

    kind: str = "muon"
    learning_rate: float = 0.02
    adam_learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    momentum: float = 0.95
    clip: float = 1.0
    warmup: float = 0.02
    warmdown: float = 0.5
    final: float = 0.0
    cautious: bool = True

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise ConfigError(
                f"there is no optimizer `{self.kind}`",
                f"there is {' and '.join(OPTIMIZERS)}",
                nearest(self.kind, OPTIMIZERS),
            )
        for name in ("learning_rate", "adam_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above zero", f"it is {getattr(self, name)}")
        if min(self.warmup, self.warmdown) < 0 or self.warmup + self.warmdown > 1:
            raise ConfigError(
                f"warmup {self.warmup} and warmdown {self.warmdown} do not fit in one run",
                "they are shares of its steps",
            )
        if not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas) and 0 <= self.momentum < 1):
            raise ConfigError(f"betas {self.betas} and momentum {self.momentum} must lie in [0, 1)")


def schedule(progress: float, optimizer: Optimizer) -> float:
    """Return what the learning rates are multiplied by: rise, stay, fall.

    Args:
        progress: share of the steps done, in [0, 1]; at 0 with a warmup the multiplier is 0, so a loop that must not
            waste its first step asks for the middle of the step, (step + 1/2) / steps.
        optimizer: gives warmup, warmdown and final.
    """
    if progress < optimizer.warmup:
        return progress / optimizer.warmup
    left = max(0.0, 1.0 - progress)
    if optimizer.warmdown and left < optimizer.warmdown:
        return optimizer.final + (1.0 - optimizer.final) * left / optimizer.warmdown
    return 1.0


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, for how much.

    Args:
        about: one line for lists.
        family: a family's config; has `build(parts)`.
        data: what the loop reads; has `stream(family, batch_size, seed, start, ...)`.
        budget: what may be spent; a text such as `30m` is read.
        batch_size: sequences a step, over all processes and micro-batches.
        micro_batch: sequences at a time; None: the whole batch. The gradient is the same either way.
        optimizer: how weights are moved.
        seed: of the weights' start, of the order of the data, and of all chance in the loss.
        precision: `auto` (measured at the start), `fp32` or `bf16`.
        ema: decay of the slow copy of the weights a step; None: no copy.
        compile: use torch.compile.
        processes: how many processes share the batch.
        keep_every_seconds: at most this much work is lost when the machine dies.
        evaluate_every: steps between evaluations; 0: about twenty in a run.
        expect: the numbers that this recipe should reach, by name.
        parts: name -> Ref of a model that `family.build` needs.
        start: the run whose weights it begins with.
        adapt: what is trained instead of the weights themselves; has `apply(family) -> family`.
    """

    about: str
    family: Any
    data: Any
    budget: Budget
    batch_size: int
    micro_batch: int | None = None
    optimizer: Optimizer = Optimizer()
    seed: int = 0
    precision: str = "auto"
    ema: float | None = None
    compile: bool = False
    processes: int = 1
    keep_every_seconds: float = 20.0
    evaluate_every: int = 0
    expect: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Ref] = field(default_factory=dict)
    start: Ref | None = None
    adapt: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.budget, str):
            object.__setattr__(self, "budget", Budget.parse(self.budget))
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"there is no precision `{self.precision}`",
                f"there is {', '.join(PRECISIONS)}",
                nearest(self.precision, PRECISIONS),
            )
        for name in ("batch_size", "processes", "micro_batch"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1", f"it is {number}")
        if self.batch_size % self.processes:
            raise ConfigError(
                f"a batch of {self.batch_size} cannot be split among {self.processes} processes",
                "each reads the same number of sequences",
                f"use {max(1, self.batch_size // self.processes) * self.processes}",
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(
                "ema must lie between 0 and 1", f"it is {self.ema}", "0.999 is usual; none switches it off"
            )

    def __hash__(self) -> int:
        return hash((self.about, self.budget, self.batch_size, self.seed))

    @property
    def product(self) -> Any:
        """The config of the family that is kept: a wrapping config names it, any other is it."""
        return getattr(self.family, "product", self.family)

    @property
    def of_pictures(self) -> bool:
        """Whether its model sees or draws pictures; the size of one that leads another is known to the other alone."""
        return hasattr(self.product, "size") or bool(getattr(self.data, "hint", ""))

    def found(self, parts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return all parts, name -> family: those given, the others loaded from their runs.

        Raises:
            RunError, CheckpointError: a part is no run, or has no weights.
        """
        from nomoat.core.run import load

        given = dict(parts or {})
        return {**{name: _part(name, ref, load) for name, ref in self.parts.items() if name not in given}, **given}

    def pinned(self) -> Recipe:
        """The same, its parts by their full names and with their SHA-256.

        Raises:
            RunError, CheckpointError: a part is no run, or has no weights.
        """
        return replace(self, parts={name: _part(name, ref, Ref.pinned) for name, ref in self.parts.items()})

    def build(self, parts: Mapping[str, Any] | None = None) -> Family:
        """Return the untrained family: built from its parts, then started from another run, then adapted.

        Args:
            parts: name -> family; what is missing here is loaded from `self.parts`.

        Raises:
            RunError: a part or the start is no run.
            CheckpointError: its weights are damaged, or are not the ones that the Ref names.
        """
        from nomoat.core.family import Frozen
        from nomoat.core.run import load

        family = self.family.build({name: Frozen(part) for name, part in self.found(parts).items()})
        if self.start is not None:
            begun = load(self.start, merged=self.adapt is None)
            if begun.shared:
                raise ConfigError(
                    f"{self.start.run} is an adapted model: there cannot be another adapter on top of it",
                    "each would have to know of the other",
                    f"merge it first: `nomoat export {self.start.run}`, then `nomoat import` what that wrote",
                )
            try:
                family.starts.load_state_dict(begun.state_dict())
            except RuntimeError as error:
                why = " ".join(str(error).split())[:300]
                raise ConfigError(f"the weights of {self.start.run} are not of this recipe's family", why) from error
        return family if self.adapt is None else self.adapt.apply(family)


def _part(name: str, ref: Ref, of: Callable[[Ref], Any]) -> Any:
    """What `of` gives for a part's run; where there is no such run, the error says which command makes it."""
    try:
        return of(ref)
    except RunError as error:
        stem = ref.run.replace("-", "_")
        if not error.what.startswith("there is no run") or stem not in {listed.name for listed in listing()}:
            raise
        raise RunError(
            f"the part `{name}` is missing: {error.what}", error.why, f"`nomoat train {ref.run}` makes it"
        ) from error


class Listed(NamedTuple):
    """A recipe as its file's text shows it: name, `about`, first line of the docstring."""

    name: str
    about: str
    docstring: str


def listing(folder: Path | None = None, kind: str = "Recipe") -> list[Listed]:
    """Return the recipes in `folder` (default: ours), read from the files' text; nothing is imported.

    Args:
        folder: of .py files.
        kind: the type of value; a file has `recipe = Recipe(...)`, or `synth = Synth(...)` for `Synth`.
    """
    folder = folder or Path(__file__).parents[1] / "recipes"
    recipes = []
    for path in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        about = _about(tree, kind)
        if about is not None:
            docstring = (ast.get_docstring(tree) or "").partition("\n")[0]
            recipes.append(Listed(path.stem, about, docstring))
    return recipes


def find(name: str | Path, kind: type = Recipe) -> Any:
    """Return the recipe called `name` (dashes or underscores), or the `recipe` of a .py file.

    Args:
        name: of one of ours, or a path.
        kind: the type of value; see `listing`.

    Raises:
        ConfigError: there is none of that name (the nearest is named), or the file defines no `recipe`.
    """
    path = Path(name)
    if path.suffix == ".py":
        fix = "a recipe is a name (`nomoat train --help`) or a .py file"
        return _recipe_of(module_at(path, fix), str(path), kind)
    known = [listed.name for listed in listing(kind=kind.__name__)]
    stem = str(name).replace("-", "_")
    if stem not in known:
        near = nearest(stem, known)
        raise ConfigError(
            f"there is no recipe `{name}`", f"there is {', '.join(known) or 'none'}", near or "or give a .py file"
        )
    return _recipe_of(import_module(f"{PACKAGE}.{stem}"), stem, kind)


def module_at(path: Path, fix: str) -> Any:
    """Run a user's .py file.

    Args:
        path: of the file.
        fix: what else could be given, where there is no such file.

    Raises:
        ConfigError: there is none. What the file itself raises is not caught.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", "", fix)
    # A name of its own per file, so that what the file defines can be found again while this process lives.
    name = f"recipe_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _recipe_of(module: Any, shown: str, kind: type) -> Any:
    word = kind.__name__.lower()
    found = getattr(module, word, None)
    if not isinstance(found, kind):
        raise ConfigError(f"{shown} defines no `{word}`", "", f"give it `{word} = {kind.__name__}(about=..., ...)`")
    return found


def _about(tree: ast.Module, kind: str) -> str | None:
    """The text given as `about` where a file makes or changes its `kind`, "" where there is none; None: no recipe."""
    targets: list[ast.expr] = []
    for node in tree.body:
        targets += [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    if not any(isinstance(target, ast.Name) and target.id == kind.lower() for target in targets):
        return None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in (kind, "replace")]
    given = [word.value for call in made for word in call.keywords if word.arg == "about"]
    given += [call.args[0] for call in made if call.args]
    return next((item.value for item in given if isinstance(item, ast.Constant) and isinstance(item.value, str)), "")
