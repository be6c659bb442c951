"""Prefer: tune a model towards the better of two answers, and say on held-out ones how far that went.

model, pairs -> data.prepare (tokens, log-probabilities before) -> recipe of the way -> the loop -> Preferred -> card
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.errors import ConfigError, nearest
from nomoat.core.recipe import Ref, find
from nomoat.core.run import Run, load, of_text
from nomoat.data.manifest import Manifest
from nomoat.licensing import refuse
from nomoat.texts import at_hand

if TYPE_CHECKING:
    from nomoat.evaluate.preferred import Preferred

Watch = Callable[[Mapping[str, Any]], None]

WAYS = ("dpo", "orpo", "kto", "reward")
EPOCHS = 1
"""How often each pair is read, unless a budget is named."""
MOST_COUPLES = 2000


def prefer(  # noqa: PLR0913 - the settings of one verb; each is asked for by name
    model: Run | Path | str,
    pairs: Path | str,
    by: str = "dpo",
    lora: int | None = None,
    budget: str | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    watch: Watch | None = None,
    allow: str | None = None,
) -> Run:
    """Tune a model on preferences; a new run, whose model is of the old one's kind (`reward`: a model that judges).

    Args:
        model: a run of a model that scores; the old one stays.
        pairs: a file or folder; see `data.preference` for its forms.
        by: `dpo`, `orpo`, `kto` (also on single answers called good or bad) or `reward`; the settings are those of
            the recipe of that name.
        lora: rank of an adapter that is trained in place of the weights; None: all weights.
        budget: as in `make`; None: each row is read once.
        changes: of that recipe, such as `family.beta=0.2` or `data.context_length=1024`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told what happens.
        allow: the reason to go on where the licences of model and pairs forbid it.

    Raises:
        ConfigError: no such way or setting, or a model that cannot score or be trained.
        DataError: nothing to learn from, with the reasons.
        RunError, CheckpointError, StoppedError: see `licensing.refuse` and `train.loop.train`.
    """
    if by not in WAYS:
        raise ConfigError(f"there is no way `{by}`", f"there is {', '.join(WAYS)}", nearest(by, WAYS))
    base = of_text(at_hand(model))
    recipe, config, start = find(f"{by}-small"), base.recipe.product, Ref(str(base.path.resolve()))
    if getattr(config, "bits", 16) < 16 and lora is None:
        why, fix = "they have no gradient", "train an adapter beside them: --lora 8"
        raise ConfigError(f"weights of {config.bits} bits cannot be trained", why, fix)
    length = min(recipe.data.context_length, getattr(config, "context_length", 1))
    about = f"{by.upper()} of {base.name} on {Path(pairs).name}."
    data = replace(recipe.data, source=str(pairs), model=start, context_length=length)
    family = replace(recipe.family, policy=config)
    recipe = replace(recipe, about=about, family=family, data=data, start=start, adapt=_adapter(lora))
    recipe = override(recipe, changes)
    read = replace(recipe.data, scored=False).prepare(making.data_root())
    decisions = refuse(replace(recipe, data=read), allow, watch)  # before any work is done for it
    recipe = replace(recipe, data=recipe.data.prepare(making.data_root(), watch))
    rows = Manifest.load(recipe.data.folder).splits["train"]["documents"]
    steps = budget or f"{math.ceil(EPOCHS * rows / recipe.batch_size)}steps"
    recipe = replace(recipe, budget=Budget.parse(steps))
    run = Run.create(None, f"{base.label}-{by}", recipe)
    for name, value, why in decisions:
        run.decide(name, value, 0, why)
    if (base.path / "chat.json").exists():
        shutil.copyfile(base.path / "chat.json", run.path / "chat.json")
    return ended(run, device, watch)


def ended(run: Run, device: str, watch: Watch | None) -> Run:
    """Train a run of `prefer` to its end, then measure it on the held-out answers: report.txt, report.json, card.

    Raises:
        StoppedError: Ctrl-C; `resume` goes on.
    """
    making.trained(run, device, watch)
    found = measured(run, load(run), device, watch)
    for text in found.warnings:
        run.note("warning", step=0, text=text)
    return making.reported(run, found)


def measured(run: Run, model: Any, device: str = "auto", watch: Watch | None = None) -> Preferred:
    """What a model makes of the held-out answers of a run of `prefer`, beside the model that it began with.

    Raises:
        DataError: the pairs are gone.
    """
    import numpy as np

    from nomoat.core.device import choose
    from nomoat.data.pairs import Scored
    from nomoat.data.tokenizer import load as read
    from nomoat.evaluate.preferred import bag_of_words, preferred

    opened, tokenizer = Scored(run.recipe.data), read(Path(run.recipe.data.folder) / "tokenizer.json")
    asked, learned = opened.couples(held=True), opened.couples(held=False)[:MOST_COUPLES]
    items, place = np.flatnonzero(opened.held), choose(device)
    after = np.zeros((len(opened.held), 2), dtype=np.float32)
    with run.autocast(place):
        after[items] = opened.scores(model.to(place), items, watch)
    numbers = np.unique(np.concatenate([asked, learned])).tolist()
    rows = {number: opened.row(*divmod(number, 2)) for number in numbers}
    words = bag_of_words(
        {number: tokenizer.decode(ids[start:]) for number, (ids, start) in rows.items()}, learned, asked
    )
    before = None if opened.reference is None else opened.reference.reshape(-1)
    return preferred(Path(run.recipe.data.source).name, asked, before, after.reshape(-1), words)


def _adapter(rank: int | None) -> Any:
    if rank is None:
        return None
    from nomoat.nn.lora import LoRA

    return LoRA(rank=rank, alpha=2.0 * rank)
