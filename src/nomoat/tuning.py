"""Tuning: an open model, taught by your conversations or your texts, and what that changed.

    base run + files -> lessons (or text in the base's tokenizer) -> Recipe(start=base, adapt=LoRA) -> the loop
        -> beside its base: the loss of held-out answers, answers side by side, what was forgotten -> card

Hu et al. 2021, arXiv:2106.09685 (LoRA); Biderman et al. 2024, arXiv:2405.09673 (it learns less and forgets less).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.comparing import compared
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, NomoatError
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run, of_text
from nomoat.core.runs import listing
from nomoat.making import Spending
from nomoat.texts import at_hand, spelling, texts_of

if TYPE_CHECKING:
    from nomoat.data.conversations import Columns

Watch = Callable[[Mapping[str, Any]], None]

TUNE = "tune.json"
"""What a run that was tuned knows of it; by this file it is known for one."""
CHAT, TOKENIZER = "chat.json", "tokenizer.json"
CONTEXT = 1024
"""Most tokens of a conversation, unless asked otherwise; all of them lie on the way from one gradient to the next."""
STEP_TOKENS = 1024
"""Of a step, about: more, and a pass over a few hundred rows has too few steps to learn from."""
LORA_RATE, FULL_RATE, TRIED_WIDTH = 1e-3, 1e-5, 576
"""Learning rates of adapters and of all weights. The first was tried at this width; it falls with the root of wider."""
PASSES = 1
"""Passes over the data at most, however much time is left: a second one learns rows by heart and costs what was known.
"""
SMALL_BYTES = 20_000_000
"""Below about this much text a model of one's own does not learn a language: one that knows it is the better start."""
REHEARSAL, MOST_REHEARSAL = 0.4, 0.9
"""Share of the rows in which a base hears its own answers; the most that leaves room for anything else."""
WRITING = 0.1
"""Share of a budget of time that writing them may take."""
RESERVE = 0.2, 90.0
"""Of a budget for the whole way, what is kept for the report: a share, and seconds at most."""


@dataclass(frozen=True)
class Manner:
    """How a model is tuned.

    Args:
        lora: rank of the adapters; None: the weights themselves.
        dora: learn the length of each row by itself.
        learning_rate: None: what suits the rank.
        bits: 8 or 4, of the base; None: as it is.
        context_length: most tokens of a conversation; None: what the data needs.
        rehearsal: share of the rows in which the base hears itself answer questions of its own, so that it goes on
            answering them so; 0: none.
        seed: of order and adapters.
        allow: why it may be tuned although licences cannot be kept together; recorded.
    """

    lora: int | None = 8
    dora: bool = False
    learning_rate: float | None = None
    bits: int | None = None
    context_length: int | None = None
    rehearsal: float = REHEARSAL
    seed: int = 0
    allow: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rehearsal <= MOST_REHEARSAL:
            raise ConfigError(f"a rehearsal of {self.rehearsal:g}", "it is a share of all rows",
                              f"allowed: 0 (none) to {MOST_REHEARSAL:g}")  # fmt: skip

    def rate(self, width: int) -> float:
        """The learning rate for a base of this width."""
        if self.learning_rate is not None:
            return self.learning_rate
        return FULL_RATE if self.lora is None else LORA_RATE * min(1.0, (TRIED_WIDTH / width) ** 0.5)

    def adapt(self) -> Any:
        """What the recipe adapts."""
        if self.lora is None:
            if self.dora:
                raise ConfigError("--dora is a kind of --lora", "all weights are trained with --full", "leave one out")
            return None
        from nomoat.nn.lora import LoRA

        return LoRA(rank=self.lora, alpha=2.0 * self.lora, dora=self.dora)

    def said(self, rate: float) -> str:
        """In words."""
        kind = "all weights" if self.lora is None else f"{'DoRA' if self.dora else 'LoRA'} of rank {self.lora}"
        return f"{kind}, learning rate {rate:.2g}"


def tune(  # noqa: PLR0913 - the settings of one tuning; each is asked for by name
    model: Run | Path | str,
    data: Path | str,
    budget: str = "1epochs",
    manner: Manner = Manner(),
    columns: Columns | None = None,
    licence: str | None = None,
    general: Path | str | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Run:
    """Tune a model on conversations, or go on training it on texts; returns the new run, with its report and card.

    Args:
        model: a run of a language model, usually one that was pulled or imported.
        data: chat jsonl, Alpaca, ShareGPT, tables of prompts and answers; else texts of any kind that `make` reads.
        budget: as everywhere, or passes over the data: `2epochs`. Of time, `PASSES` passes at most.
        manner: adapters or all weights, how fast, on a base of how many bits.
        columns: where prompt and answer stand in tables of other people's names.
        licence: SPDX id of the data; None: what rows and files say.
        general: a file or folder of text, to see what is forgotten; None: Python's own documentation.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told what happens.

    Raises:
        RunError: no such base (what fetches it is said), or licences that cannot be kept together.
        ConfigError: a base without tokenizer, or of packed weights with --full; a setting that cannot work.
        DataError: nothing to learn from, with the reasons.
        StoppedError: Ctrl-C; `resume` goes on.
    """
    return _tuned_from(model, data, _Asked(budget, manner, columns, licence, general, device), watch)


def make_from(
    base: Run | Path | str,
    path: Path | str | None,
    spending: Spending,
    licence: str | None = None,
    device: str = "auto",
    seed: int = 0,
    watch: Watch | None = None,
    allow: str | None = None,
) -> Run:
    """`make` on top of an open model: the budget is for the whole way, from reading to the report.

    Raises:
        ConfigError: no path.
    """
    if path is None:
        raise ConfigError("--from needs files of yours", "the base has read other people's", "name a file or folder")
    manner = Manner(seed=seed, allow=allow)
    return _tuned_from(base, path, _Asked(spending.budget.text, manner, None, licence, None, device, spending), watch)


@dataclass(frozen=True)
class _Asked:
    """What the user asked for; `spending` where the budget is for the whole way."""

    budget: str
    manner: Manner
    columns: Columns | None
    licence: str | None
    general: Path | str | None
    device: str
    spending: Spending | None = None


def _tuned_from(model: Run | Path | str, data: Path | str, asked: _Asked, watch: Watch | None) -> Run:
    from nomoat.core import checkpoint
    from nomoat.core.device import choose
    from nomoat.families.lm import LM

    choose(asked.device)
    adapt, base = asked.manner.adapt(), of_text(at_hand(model))
    spelling(base)
    if not isinstance(base.recipe.product, LM):
        raise ConfigError(f"{base.name} is no language model", "only those are tuned so far")
    if asked.general is not None:
        texts_of([asked.general])
    if min(asked.manner.bits or 16, base.recipe.product.bits) < 16 and adapt is None:
        raise ConfigError("packed weights have no gradient", f"{base.name} would have few bits", "use --lora 8")
    if asked.manner.bits and asked.manner.bits != base.recipe.product.bits:
        from nomoat.quantising import quantize

        base = quantize(base, asked.manner.bits, watch=watch)
    lessons = _data(Path(data), base, asked, watch)
    found = checkpoint.latest(base.checkpoints)
    if found is None:
        raise ConfigError(f"{base.name} has no checkpoint yet", fix=f"train it: `nomoat resume {base.name}`")
    group = checkpoint.model_group(found.path)
    rows = lessons.open().epoch_samples
    batch_size = max(1, min(rows, round(STEP_TOKENS / lessons.context_length)))
    rate = asked.manner.rate(base.recipe.product.backbone.width)
    taught = _rehearsed(lessons, base, asked, watch)
    learned = 1 - getattr(taught, "share", 0.0)
    said = "" if learned == 1 else f"; {1 - learned:.0%} of the rows are the base's own answers"
    recipe = Recipe(
        about=f"{base.label}, tuned on {Path(data).resolve().name}: {asked.manner.said(rate)}{said}.",
        family=base.recipe.product,
        data=taught,
        budget=_budget(asked, math.ceil(rows / batch_size / learned)),
        batch_size=batch_size,
        optimizer=Optimizer("adamw", rate, rate, weight_decay=0.0, warmup=0.05, warmdown=0.95, final=0.1),
        seed=asked.manner.seed,
        start=Ref(str(base.path.resolve()), checkpoint.digest(found.path, group)),
        adapt=adapt,
    )
    run = making.started(f"{base.label}-{Path(data).resolve().stem}", recipe, None, watch, asked.manner.allow)
    if asked.spending:
        asked.spending.state(run)
    for name in (TOKENIZER, CHAT):
        for folder in (base.path, Path(lessons.paths[0])):  # the lessons' template, where the base had none
            if (folder / name).is_file():
                shutil.copyfile(folder / name, run.path / name)
    run.write_json(TUNE, {"base": base.name, "general": str(asked.general) if asked.general else None})
    return tuned(run, asked.device, watch, asked.spending.began if asked.spending else None)


def _rehearsed(data: Any, base: Run, asked: _Asked, watch: Watch | None) -> Any:
    """The data with what the base is to remember between it; without, where it was taught no chat, or asks nothing."""
    from nomoat.data.lessons import Lessons
    from nomoat.data.manifest import Manifest
    from nomoat.data.rehearsal import Rehearsed
    from nomoat.rehearsing import rehearsal

    share, seconds = asked.manner.rehearsal, None
    if not share or not (base.read_json(CHAT) or {}).get("template"):
        return data
    if asked.spending or not _passes(asked.budget):
        read = asked.spending.budget if asked.spending else Budget.parse(asked.budget)
        whole = read.seconds(read.watts)
        seconds = None if whole is None else WRITING * whole
    tokens = share / (1 - share) * sum(Manifest.load(path).splits["train"]["tokens"] for path in data.paths)
    own = [messages[:-1] for messages in data.open().messages()] if isinstance(data, Lessons) else []
    folder = rehearsal(base, tokens, data.context_length, asked.device, making.data_root(), own, seconds, watch)
    return data if folder is None else Rehearsed(data, str(folder), share)


def _passes(budget: str) -> re.Match[str] | None:
    return re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:epoch|pass)(?:e?s)?", budget.strip())


def _budget(asked: _Asked, steps_a_pass: int) -> Budget:
    """In passes: as steps. In time: with a bound on the passes; of the whole way, without what the report takes."""
    if passes := _passes(asked.budget):
        steps = math.ceil(float(passes[1]) * steps_a_pass)
        return Budget(asked.budget, steps, "steps")
    read = asked.spending.budget if asked.spending else Budget.parse(asked.budget)
    if read.unit in ("steps", "tokens"):
        return read
    read = replace(read, most_steps=PASSES * steps_a_pass)
    if asked.spending is None or (whole := read.seconds(read.watts)) is None:
        return read
    left = asked.spending.left(min(RESERVE[0] * whole, RESERVE[1]))
    return read if left is None else replace(read, amount=read.amount * left / whole)


def _data(path: Path, base: Run, asked: _Asked, watch: Watch | None) -> Any:
    """The data as the recipe has it: lessons where there are conversations, else texts.

    Raises:
        ConfigError, DataError: there is neither.
    """
    from nomoat.data.conversations import SUFFIXES, Conversation, read_conversations
    from nomoat.data.streams import inner_name

    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}", "", "check the path")
    reach = base.recipe.product.context_length
    talks = asked.columns is not None or any(
        isinstance(row, Conversation) for row in read_conversations([path], None, asked.licence)
    )
    is_table = path.is_file() and PurePosixPath(inner_name(path.name)[0]).suffix.lower() in SUFFIXES
    if talks or is_table:
        return _lessons(path, base, asked, min(asked.manner.context_length or CONTEXT, reach), watch)
    from nomoat.data.ingest import ingest
    from nomoat.data.text import Text

    tokenizer = spelling(base)
    key = hashlib.sha256(repr((str(path.resolve()), tokenizer.hash, asked.licence)).encode()).hexdigest()[:8]
    folder = _fresh(f"{path.resolve().name}-{key}")
    made = ingest(path, folder, tokenizer=tokenizer, licence=asked.licence, watch=watch)
    _tell_left_out(made, folder, watch)
    held, tokens = asked.manner.context_length or 512, made.splits["train"]["tokens"]
    if tokens < 3:
        raise DataError(f"there is next to no text in {path}", f"{tokens:,} tokens", "add text")
    return Text(str(folder), min(held, reach, tokens - 1), ids=(made.id,))


def _lessons(path: Path, base: Run, asked: _Asked, most: int, watch: Watch | None) -> Any:
    """The conversations at `path` as lessons, found where they were written for the same question before."""
    from nomoat.data.conversations import read_conversations
    from nomoat.data.lessons import Lessons, write_lessons
    from nomoat.data.manifest import Manifest

    tokenizer = spelling(base)
    with _words(base, watch) as words:
        chat = (words / CHAT).read_text(encoding="utf-8")
        key = repr((str(path.resolve()), tokenizer.hash, chat, most, asked.columns, asked.licence))
        folder = _fresh(f"{path.resolve().name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}")
        if folder.exists():
            made = Manifest.load(folder)
        else:
            rows = read_conversations([path], asked.columns, asked.licence)
            made = write_lessons(folder, rows, words, most, path, watch=watch)
    _tell_left_out(made, folder, watch)
    if watch is not None and (shortened := made.settings["shortened"]):
        text = f"{shortened:,} conversations had more than {most:,} tokens: they lost their oldest turns, then the end"
        watch({"kind": "warning", "text": text})
    length = max(min(256, most), 64 * math.ceil(made.settings["longest"] / 64))
    return Lessons(str(folder), min(length, most), (made.id,))


def _fresh(name: str) -> Path:
    """The folder of that name among the data, or one beside it where its files have changed since it was made."""
    from nomoat.data.manifest import NAME, changed

    root = making.data_root()
    folders = (root / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(each for each in folders if not (each / NAME).is_file() or not changed(each))


def _tell_left_out(made: Any, folder: Path, watch: Watch | None) -> None:
    if watch is not None and made.dropped:
        watch({"kind": "warning", "text": made.left_out(folder)})


@contextmanager
def _words(base: Run, watch: Watch | None) -> Iterator[Path]:
    """A folder with tokenizer.json and a chat.json that has a template: the base's, or ours where it has none."""
    from nomoat.data.chat import OWN
    from nomoat.data.tokenizer import EOT

    held = base.read_json(CHAT)
    if held and held.get("template"):
        yield base.path
        return
    if watch is not None:
        watch({"kind": "warning", "text": f"{base.name} has no chat template: it is taught in nomoat's own"})
    known = held or {"bos": EOT, "eos": EOT, "add_bos": True}
    taught = {**known, "template": OWN, "bos": known.get("bos") if known.get("add_bos") else None}
    with tempfile.TemporaryDirectory(prefix="nomoat-words-") as folder:
        shutil.copyfile(base.path / TOKENIZER, Path(folder) / TOKENIZER)
        (Path(folder) / CHAT).write_text(json.dumps(taught), encoding="utf-8")
        yield Path(folder)


def is_tuned(run: Run) -> bool:
    """Whether `tune` began this run, so that its end is a comparison."""
    return (run.path / TUNE).exists()


def tuned(run: Run, device: str, watch: Watch | None, began: float | None = None) -> Run:
    """Train a run to its end, then set it beside its base in report.txt, report.json and the card."""
    making.trained(run, device, watch)
    if watch is not None:
        watch({"kind": "phase", "phase": "reporting", "detail": "answering beside its base"})
    found = compared(run, device, run.read_json(TUNE)["general"])
    return making.reported(run, found, began)


def proposal(path: Path | str | None) -> str:
    """What to say before a model of one's own is made from few texts while one that knows a language is at hand."""
    from nomoat.data.imported import Imported
    from nomoat.data.readers import Found, walk

    if path is None:
        return ""
    size = sum(found.size for found in walk(Path(path)) if isinstance(found, Found))
    if size > SMALL_BYTES:
        return ""
    for summary in reversed(listing()):
        try:
            run = Run.open(summary.path)
        except NomoatError:
            continue
        if isinstance(run.recipe.data, Imported) and (run.path / TOKENIZER).exists():
            return (
                f"{size / 1e6:.1f} MB are too little to learn a language from, and {run.name} knows one already: "
                f"`nomoat make {path} --from {run.name}` begins with it"
            )
    return ""
