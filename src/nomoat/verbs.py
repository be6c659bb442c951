"""The verbs, as functions: what `import nomoat` offers and what the commands call.

    path, budget -> make -> Run            recipe -> train -> Run -> resume -> Run
    run -> generate, evaluate, surprise    runs, doctor, load

`watch` is told what happens on the way, as dicts with a `kind`: `ingest`, `phase`, `step`, `evaluate`, `sample`, `keep`,
`warning`, `text`, `score`. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core import run as _run
from nomoat.core.config import override
from nomoat.core.errors import ConfigError, DataError, NomoatError, nearest
from nomoat.core.recipe import Recipe, find
from nomoat.core.run import Run, runs_root

if TYPE_CHECKING:
    from nomoat.core.family import Family
    from nomoat.core.run import RunSummary
    from nomoat.data.tokenizer import Tokenizer
    from nomoat.doctor import Finding
    from nomoat.evaluate.surprise import Surprise

Watch = Callable[[Mapping[str, Any]], None]

WRITING = {"temperature": 0.8, "top_p": 0.95}
"""How text is drawn unless said otherwise: a small model's own distribution has too long a tail to read well."""


class Stopped(NomoatError):
    """Ctrl-C, or a polite kill: what was done is kept."""

    exit_code = 130

    def __init__(self, run: Run) -> None:
        steps = max((event["step"] for event in run.metrics("keep")), default=0)
        super().__init__("stopped", f"the checkpoint of step {steps:,} is good", f"nomoat resume {run.name}")
        self.run = run


def train(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    device: str = "auto",
    root: Path | str | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train a recipe from the start, in a new run.

    Args:
        recipe: a Recipe, the name of one, or a .py file with one.
        overrides: changes such as `family.backbone.depth=4`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        root: the folder of runs; None: $NOMOAT_RUNS or ./runs.
        watch: told what happens.

    Raises:
        ConfigError: an unknown recipe or field, or a value that cannot work.
        DataError: nothing to read.
        RunError, CheckpointError: see `train.loop.train`.
        Stopped: Ctrl-C.
    """
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    wanted = override(find(recipe) if isinstance(recipe, str | Path) else recipe, overrides)
    _checked(device)
    return _trained(Run.create(root, name, prepared(wanted, root, watch)), device, watch)


def resume(run: Run | Path | str, device: str = "auto", watch: Watch | None = None) -> Run:
    """Go on with a run from its last good checkpoint; one that is done stays as it is.

    Raises:
        RunError: no such run, it is locked, or its data has changed.
        CheckpointError: no checkpoint is good.
        Stopped: Ctrl-C.
    """
    return _trained(Run.open(run), device, watch)


def runs(root: Path | str | None = None) -> list[RunSummary]:
    """The runs below `root` (default: $NOMOAT_RUNS or ./runs), oldest first."""
    return _run.listing(root)


def load(run: Run | Path | str, device: str = "cpu", watch: Watch | None = None) -> Family:
    """The model of a run: a torch module in eval mode, without gradients.

    Raises:
        RunError: no such run.
        CheckpointError: no checkpoint is good.
    """
    place = _checked(device)
    return _run.load(run, watch=watch).to(place)


def generate(
    run: Run | Path | str, prompt: str = "", device: str = "auto", watch: Watch | None = None, **sampling: Any
) -> str:
    """What the model of a run writes after `prompt`, without the prompt.

    Args:
        run: a run of a text model.
        prompt: the beginning of a text.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told {"kind": "text", "text": piece} as it is written.
        sampling: fields of `SamplingOptions`: temperature, top_k, top_p, min_p, stop, max_tokens, seed.

    Raises:
        ConfigError: a sampling option that is not known or cannot be used.
        RunError, CheckpointError: see `load`.
    """
    from nomoat.sampling.tokens import SamplingOptions
    from nomoat.sampling.write import continue_text

    known = SamplingOptions.__dataclass_fields__
    if unknown := [name for name in sampling if name not in known]:
        fix = nearest(unknown[0], known) or f"there is {', '.join(known)}"
        raise ConfigError(f"there is no sampling option `{unknown[0]}`", "", fix)
    options = SamplingOptions(**{**WRITING, **sampling})
    opened = Run.open(run)
    model = load(opened, device, watch)
    pieces = []
    for piece in continue_text(model, spelling(opened), prompt, options):  # type: ignore[arg-type]
        pieces.append(piece)
        if watch is not None:
            watch({"kind": "text", "text": piece})
    return "".join(pieces)


def surprise(
    run: Run | Path | str, files: Iterable[Path | str], device: str = "auto", watch: Watch | None = None
) -> Surprise:
    """How many bits each character of some files costs the model of a run, and which lines are odd.

    Args:
        run: a run of a text model.
        files: files, or folders of them.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told the progress.

    Raises:
        DataError: no text in the files.
        RunError, CheckpointError: see `load`.
    """
    from nomoat.evaluate.surprise import surprise as measure

    opened = Run.open(run)
    texts = texts_of(files)
    return measure(load(opened, device, watch), spelling(opened), texts, watch=watch)  # type: ignore[arg-type]


def doctor(device: str = "auto") -> list[Finding]:
    """What this machine has, what ails it, and what mends it.

    Raises:
        ConfigError: there is no such device.
    """
    from nomoat.doctor import examine

    return examine(device)


def prepared(recipe: Recipe, root: Path | str | None, watch: Watch | None) -> Recipe:
    """The recipe with its files read into shards, where it names files."""
    if not hasattr(recipe.data, "prepare"):
        return recipe
    return replace(recipe, data=recipe.data.prepare(data_root(root), watch))


def data_root(root: Path | str | None = None) -> Path:
    """Where the shards of files lie: beside the runs made from them."""
    return (Path(root) if root is not None else runs_root()) / "data"


def spelling(run: Run) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        ConfigError: the run is not of a text model.
    """
    from nomoat.data.tokenizer import load as read

    path = run.path / "tokenizer.json"
    if not path.exists():
        raise ConfigError(f"{run.name} has no tokenizer", "it is not a model of text", "name a run of a text model")
    return read(path)


def texts_of(files: Iterable[Path | str]) -> dict[str, str]:
    """Name -> text of all documents in some files and folders, in order.

    Raises:
        DataError: there is no text.
    """
    from nomoat.data.document import Document
    from nomoat.data.readers import Found, read, walk

    texts: dict[str, str] = {}
    for path in map(Path, files):
        for found in walk(path):
            for item in read(found.path) if isinstance(found, Found) else ():
                if isinstance(item, Document):
                    name = str(found.path) + (f", {item.member}" if item.member else "")
                    texts[name] = texts.get(name, "") + item.text
    if not any(texts.values()):
        raise DataError(f"there is no text in {', '.join(map(str, files))}", "", "name files of text, code or tables")
    return texts


def _checked(device: str) -> Any:
    """The device, found to be there before anything is read."""
    from nomoat.core.device import choose

    return choose(device)


def _trained(run: Run, device: str, watch: Watch | None) -> Run:
    """Train a run to its end, with its tokenizer beside it and its card written whatever happens."""
    from nomoat.glimpse import glimpsing
    from nomoat.train.loop import train as loop

    _with_tokenizer(run)
    run.watch = glimpsing(run, watch)
    try:
        loop(run.recipe, run, device)
    finally:
        run.watch = None
    if run.status == "stopped":
        raise Stopped(run)
    return run


def _with_tokenizer(run: Run) -> None:
    """Copy the data's tokenizer into the run: a run is whole without the folder it was made from."""
    source = getattr(run.recipe.data, "path", None)
    first = source if isinstance(source, str) else (source or [None])[0]
    target = run.path / "tokenizer.json"
    if first is not None and not target.exists() and (Path(first) / "tokenizer.json").is_file():
        shutil.copyfile(Path(first) / "tokenizer.json", target)
