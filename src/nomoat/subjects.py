"""A subject of one's own: a model that draws learns from a handful of pictures what one of its words is to mean.

    pictures + "a wug" ------------------------+-> Preserved -> adapters (DreamBooth) -> a run beside its base -> sheet
    "a circle" -> drawn by the model itself ---+             -> or one word's vector (textual inversion)
    what the model was taught, if it is there -+

The class is preserved by what the model draws of it before: else all circles come to look like this one. All else is
preserved by what it was taught, shown again.

Ruiz et al. 2022, arXiv:2208.12242 (DreamBooth); Gal et al. 2022, arXiv:2208.01618 (textual inversion); Hu et al. 2021,
arXiv:2106.09685 (LoRA).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run
from nomoat.texts import at_hand, spelling

Watch = Callable[[Mapping[str, Any]], None]

BATCH, SHOWN = 8, 16
BUDGET = "400steps"
RATES = {"lora": 1e-3, "word": 5e-2}
SHEET = "sheet.png"


@dataclass(frozen=True)
class Subject:
    """What is taught.

    Args:
        caption: what the pictures are called, such as `a wug`; all words are the model's, one best hardly used.
        of: what it is one of, such as `a circle`: drawn by the model first, and preserved; empty: nothing is.
        word: the word whose vector alone is learned, and nothing else (textual inversion); None: adapters are.
        begins: a word that it is like, from whose vector it begins.
        rank: of the adapters.
        preserved: pictures that are drawn of `of`.
        share: of the rows that are such, and of the model's own data where it is there: as many as of the subject's.
        learning_rate: None: what suits.
        seed: of chance.
        allow: why it may be trained although licences cannot be kept together; recorded.
    """

    caption: str
    of: str = ""
    word: str | None = None
    begins: str | None = None
    rank: int = 8
    preserved: int = 64
    share: float = 0.5
    learning_rate: float | None = None
    seed: int = 0
    allow: str | None = None


def teach(
    model: Run | Path | str,
    pictures: Path | str,
    subject: Subject,
    budget: str = BUDGET,
    licence: str | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Run:
    """Teach a model that draws a subject; returns the new run, with a sheet of what it draws of it.

    Args:
        model: a run that draws by captions.
        pictures: a folder of the subject; four are enough.
        subject: what they are called, and how it is learned.
        budget: as everywhere.
        licence: SPDX id of the pictures; None: what stands beside them.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told what happens.

    Raises:
        RunError: no such run, or licences that cannot be kept together.
        ConfigError: a model that reads no captions, a word that is not in the caption.
        DataError: words that the model does not know, no pictures.
        StoppedError: Ctrl-C; `resume` goes on.
    """
    from nomoat.data.called import Called
    from nomoat.data.pictures import PictureFiles
    from nomoat.data.rehearsal import Preserved
    from nomoat.data.words import split

    base = _drawer(at_hand(model))
    product, words = base.recipe.product, spelling(base)
    for text in filter(None, (subject.caption, subject.of, subject.begins)):
        words.encode(text)
    if subject.word is not None and subject.word not in split(subject.caption):
        raise ConfigError(f"`{subject.word}` is not in `{subject.caption}`", "nothing would teach it", "use it there")
    adapt, kind = _adapt(words, subject)
    read = PictureFiles(str(pictures), product.size, licence).prepare(making.data_root(), watch)
    spelled = str((base.path / "tokenizer.json").resolve())
    form = spelled, product.caption_length, product.channels
    data: Any = Called(read, subject.caption, *form)
    if subject.of:
        drawn = PictureFiles(str(_drawn(base, subject, device, watch)), product.size).prepare(making.data_root(), None)
        priors = [Called(drawn, subject.of, *form), *_taught(base)]
        data = Preserved(data, tuple(priors), subject.share)
    rate = subject.learning_rate or RATES[kind]
    name = Path(pictures).resolve().name
    recipe = Recipe(
        about=f"{base.label}, taught `{subject.caption}` by the pictures in {name}"
        + (f", `{subject.of}` preserved." if subject.of else "."),
        family=product,
        data=data,
        budget=Budget.parse(budget),
        batch_size=BATCH,
        optimizer=Optimizer("adamw", rate, rate, weight_decay=0.0, warmup=0.05, warmdown=0.5),
        seed=subject.seed,
        start=Ref(str(base.path)).pinned(),
        parts=base.recipe.parts,
        adapt=adapt,
    )
    run = making.started(f"{base.label}-{name}", recipe, None, watch, subject.allow)
    for each in ("tokenizer.json", "classes.json"):
        if (base.path / each).is_file():
            shutil.copyfile(base.path / each, run.path / each)
    making.trained(run, device, watch)
    return _shown(run, subject, device)


def _drawer(base: Run) -> Run:
    """The run itself, if it draws by captions."""
    from nomoat.drawing import drawer

    product: Any = base.recipe.product
    if not getattr(product, "vocab_size", 0) or not hasattr(product, "size"):
        raise ConfigError(f"{base.name} does not draw by captions", "a subject is taught by a caption", "name one")
    drawer(base, "cpu")
    return base


def _adapt(words: Any, subject: Subject) -> tuple[Any, str]:
    """What is trained, and which of `RATES` suits it."""
    if subject.word is not None:
        from nomoat.nn.inversion import Inversion

        return Inversion.of(words, subject.word, subject.begins), "word"
    from nomoat.nn.lora import LoRA

    return LoRA(rank=subject.rank, alpha=2.0 * subject.rank), "lora"


def _taught(base: Run) -> list[Any]:
    """The data by which the model was taught, where it is at hand and unchanged."""
    data: Any = base.recipe.data
    there = hasattr(data, "sampler") and all(Path(each).exists() for each in data.paths)
    return [data] if there and not data.changed() else []


def _drawn(base: Run, subject: Subject, device: str, watch: Watch | None) -> Path:
    """The folder of pictures of the class, drawn once for the same question."""
    from nomoat.drawing import draw

    key = repr((Ref(str(base.path)).pinned().sha256, subject.of, subject.preserved))
    folder = making.data_root() / f"prior-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if len(list(folder.glob("*.png"))) < subject.preserved:
        shutil.rmtree(folder, ignore_errors=True)
        if watch is not None:
            watch({"kind": "phase", "phase": "drawing", "detail": f"{subject.preserved} of `{subject.of}`"})
        draw(base, subject.of, subject.preserved, out=folder, device=device)
    return folder


def _shown(run: Run, subject: Subject, device: str) -> Run:
    """The run, with a sheet of what it draws by the caption."""
    import numpy as np
    import torch

    from nomoat.drawing import draw
    from nomoat.evaluate.contact import sheet

    try:
        drawn = draw(run, subject.caption, SHOWN, device=device)
    except (ConfigError, DataError):  # it needs a control picture or a small one as well
        return run
    image_NYXC = torch.from_numpy(np.stack([one.image_YXC for one in drawn]))
    sheet(image_NYXC.permute(0, 3, 1, 2).float() / 127.5 - 1).save(run.path / SHEET)
    return run
