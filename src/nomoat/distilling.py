"""Distil: a small model that writes like a large one, on prompts like yours.

    prompts -> teacher answers (stored as they come) -> lessons in the student's tokens [-> the teacher's logits]
            -> the loop -> the teacher's held-out answers under both -> report, card

The budget is for the whole way. A third of it is for the teacher's writing, and what its answers took says how many
that will be. Whose words the lessons are stands in every row, and so in the card.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.core import durable
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.core.run import Run, load
from nomoat.core.runs import LABEL
from nomoat.texts import at_hand, spelling

if TYPE_CHECKING:
    from nomoat.evaluate.distilled import Distilled, Reader
    from nomoat.students import Student

Watch = Callable[[Mapping[str, Any]], None]

DISTIL = "distil.json"
"""What a run that was distilled knows of it; by this file it is known for one."""
WAYS = ("text", "logits", "features")
WRITING, REPORT = 0.33, 0.08
"""Shares of a budget of time for the teacher's writing and for the report; its scoring is taken from training."""
SLOTS = 16
"""Answers that a teacher of this disk writes at once."""
HELD_OUT = 200
"""Conversations that the report reads."""
MOST = 2048
"""Tokens of a conversation."""
STEP_TOKENS = 4096
LEAST_HEAT = 0.1
"""A teacher that writes its likeliest token always is taken for one that writes at this temperature."""


@dataclass(frozen=True)
class Manner:
    """How a student is taught.

    Args:
        by: `text`, `logits` or `features`.
        loss, beta, temperature, text: see `families.distil.Distil`.
        on_policy: share of the steps whose text the student writes itself.
        heat: temperature at which the teacher writes; held-out answers are drawn, and its logits taken, the same way.
        max_tokens: of an answer.
        vocabulary: tokens that a student of a size reads, the teacher's most used.
        k: the teacher's likeliest tokens that are stored.
        seed: of everything.
        beside: another student for the report, a run.
        allow: why it may be taught although licences cannot be kept together; recorded.
    """

    by: str = "text"
    loss: str = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    text: float = 0.0
    on_policy: float = 0.0
    heat: float = 0.7
    max_tokens: int = 256
    vocabulary: int = 8192
    k: int = 32
    seed: int = 0
    beside: Run | Path | str | None = None
    allow: str | None = None

    @property
    def warmth(self) -> float:
        """What the teacher's logits are divided by beside T, so that they say what its text was drawn by."""
        return max(self.heat, LEAST_HEAT)

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ConfigError(f"there is no way `{self.by}`", f"there is {', '.join(WAYS)}", nearest(self.by, WAYS))


def distil(  # noqa: PLR0913 - the settings of one distillation; each is asked for by name
    teacher: Run | Path | str,
    student: Run | Path | str,
    data: Path | str | None = None,
    budget: str = "30m",
    manner: Manner = Manner(),
    licence: str | None = None,
    terms: str | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Run:
    """Teach a student what a teacher writes; returns the student's run, with its report and card.

    Args:
        teacher: a run of a language model, or `http(s)://host/v1#model` (text only).
        student: a run, a recipe's name, or a size in parameters read a token, such as `15M`.
        data: prompts: a .txt with one a line, jsonl with `prompt`, or conversations, whose answers are not used; None:
            a hundred prompts of all kinds.
        budget: of time, for the whole way; of steps or tokens: for training, each prompt being answered once.
        manner: by what, and how.
        licence: of an address: SPDX id, or `unknown`.
        terms: of an address; see `teachers.open_teacher`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told what happens.

    Raises:
        RunError: there is no such run, or licences that cannot be kept together.
        ConfigError: a teacher that writes no text, an address that is to give logits, tokenizers that do not go
            together, a budget in which not one answer fits.
        DataError: no prompts, or no answers that anybody could learn from.
        StoppedError: Ctrl-C; `resume` goes on.
    """
    from nomoat.data.asked import Asking, write_answers
    from nomoat.teachers import open_teacher

    began, asked = time.perf_counter(), Budget.parse(budget)
    seconds = asked.seconds(asked.watts)
    _checked(teacher, manner)
    prompts = read_prompts(data)
    held = None if "://" in str(teacher) else at_hand(teacher)
    known = None if manner.beside is None else str(at_hand(manner.beside).path.resolve())
    with open_teacher(held or str(teacher), licence, terms, device, slots=SLOTS, bits=8) as opened:
        folder = making.data_root() / f"answers-{_key(opened.where, prompts, manner)}"
        spent = None if seconds is None else WRITING * seconds
        counts = write_answers(
            opened, prompts, folder, Asking(manner.heat, manner.max_tokens, manner.seed, spent, 2 * SLOTS), watch
        )
    made = _begin(held, student, folder, manner, device, watch)
    left = seconds if seconds is None else seconds * (1 - REPORT) - (time.perf_counter() - began)
    run = _run(made, opened.name, asked, left, manner, watch)
    facts = {"counts": counts, "licence": opened.licence, "terms": opened.terms, "most": made.most}
    where = opened.where if held is None else str(held.path.resolve())
    run.write_json(DISTIL, {"teacher": where, "beside": known, "by": manner.by, **facts})
    return ended(run, device, watch, began)


def _checked(teacher: Any, manner: Manner) -> None:
    """What cannot be had of an address, before anything is written."""
    if "://" in str(teacher) and (manner.by != "text" or manner.on_policy):
        why = "an address gives its words, and not what it thinks of every other word"
        raise ConfigError(f"--by {manner.by} needs the teacher's weights", why, "use --by text, or pull the model")
    if manner.on_policy and manner.by != "logits":
        raise ConfigError(
            "--on-policy needs --by logits", "only a teacher's logits judge what the student wrote itself"
        )


def read_prompts(data: Path | str | None) -> list[list[dict[str, Any]]]:
    """Conversations that end with a user's turn, each once.

    Raises:
        ConfigError: no such file.
        DataError: there is no prompt in it.
    """
    from nomoat.data.conversations import Conversation, read_conversations
    from nomoat.evaluate.tuned import other_prompts

    if data is None:
        return [[{"role": "user", "content": text}] for text in other_prompts()]
    path = Path(data)
    if not path.exists():
        raise ConfigError(f"there is no file {path}", "", "check the path")
    if path.suffix == ".txt":
        found = [[{"role": "user", "content": line.strip()}] for line in path.read_text("utf-8").splitlines()]
    else:
        read = (row for row in read_conversations([path]) if isinstance(row, Conversation))
        found = [[dict(turn) for turn in row.messages[:-1]] for row in read]
        if not found and path.is_file():
            rows = [line for line in durable.lines(path) if isinstance(line.get("prompt"), str)]
            found = [[{"role": "user", "content": row["prompt"].strip()}] for row in rows]
    unique = {json.dumps(one, sort_keys=True): one for one in found if one[-1]["content"]}
    if not unique:
        raise DataError(f"there is no prompt in {path}", "", "a .txt has one a line; jsonl has `prompt` or `messages`")
    return list(unique.values())


def _key(where: str, prompts: Sequence[Any], manner: Manner) -> str:
    asked = repr((where, prompts, manner.heat, manner.max_tokens, manner.seed))
    return hashlib.sha256(asked.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class _Made:
    """All that training needs."""

    student: Student
    family: Any
    data: Any
    parts: Mapping[str, Ref]
    most: int


def _begin(
    teacher: Run | None, name: Run | Path | str, folder: Path, manner: Manner, device: str, watch: Watch | None
) -> _Made:
    """The student, the lessons in its tokens and, where asked for, the teacher's logits beside them."""
    from nomoat.data.conversations import read_conversations
    from nomoat.data.lessons import Lessons, write_lessons
    from nomoat.students import student_of

    texts = ["\n\n".join(t["content"] for t in row["messages"]) for row in durable.lines(folder / "answers.jsonl")]
    own_words = manner.by != "features" and not manner.on_policy  # else the teacher reads along, as it was taught to
    student = student_of(name, teacher, texts, folder, manner.vocabulary, own_words)
    most = min(MOST, getattr(student.config, "context_length", MOST))
    at = folder / f"lessons-{hashlib.sha256(f'{student}{time.time_ns()}'.encode()).hexdigest()[:8]}"
    made = write_lessons(at, read_conversations([folder / "answers.jsonl"]), student.words, most, watch=watch)
    length = min(most, 64 * math.ceil(made.settings["longest"] / 64))
    data: Any = Lessons(str(at), length, (made.id,))
    config = student.configured(length)
    parts: dict[str, Ref] = {}
    if teacher is not None:
        _compared_sizes(config, teacher, watch)
        config, data, parts = _taught(config, data, teacher, manner, device, watch)
    return _Made(student, config, data, parts, most)


def _taught(
    config: Any, data: Any, teacher: Run, manner: Manner, device: str, watch: Watch | None
) -> tuple[Any, Any, dict[str, Ref]]:
    """Family, data and parts for the way that was asked for."""
    from nomoat.data.cut import first_tokens
    from nomoat.data.on_policy import OnPolicy
    from nomoat.data.tokenizer import load as read
    from nomoat.families.distil import Distil, FeatureDistil

    own, parts = read(Path(data.path) / "tokenizer.json"), {"teacher": Ref(str(teacher.path.resolve())).pinned()}
    if manner.by == "text":
        return config, data, {}
    if (manner.by == "features" or manner.on_policy) and own.hash != spelling(teacher).hash:
        what, why = "needs a student with its teacher's tokenizer", "the teacher reads along, token by token"
        raise ConfigError(f"{manner.by} {what}", why, "name a size or a recipe")
    if manner.by == "features":
        theirs = teacher.recipe.product.backbone
        middle = ((config.backbone.depth - 1) // 2, (theirs.depth - 1) // 2)
        return FeatureDistil(config, (middle, (-1, -1)), theirs.width, task=1.0), data, parts
    named: Any = manner.loss
    family = Distil(config, named, manner.beta, manner.temperature, manner.warmth, manner.text)
    if manner.on_policy:
        held = data.path, data.context_length, data.ids
        return family, OnPolicy(*held, manner.on_policy, manner.max_tokens), parts
    if first_tokens(spelling(teacher), own) is None and manner.loss != "sorted":
        why = "the student has tokens that its teacher lacks, so that no probability belongs to them"
        raise ConfigError("these two tokenizers do not go together", why, "use --by text, or --loss sorted (ULD)")
    return family, _scored(data, teacher, manner, device, watch), {}


def _compared_sizes(config: Any, teacher: Run, watch: Watch | None) -> None:
    both = config, teacher.recipe.product
    own, theirs = (each.backbone.parameters() + each.vocab_size * each.backbone.width for each in both)
    if own > theirs and watch is not None:
        text = f"the student reads {own:,} parameters a token, its teacher {theirs:,}: it learns no more than that says"
        watch({"kind": "warning", "text": text})


def _scored(data: Any, teacher: Run, manner: Manner, device: str, watch: Watch | None) -> Any:
    """The lessons with the teacher's logits."""
    from nomoat.core.device import autocast, bf16_is_faster, choose
    from nomoat.data.chat import Chat
    from nomoat.data.taught import Speaker, write_logits

    place, speaker = choose(device), Speaker(spelling(teacher), Chat.of(teacher.path))
    fast = bf16_is_faster(place, 1024, teacher.recipe.product.backbone.width, seconds=0.2).yes
    model = load(teacher, merged=True).to(place)
    with autocast(place, "bf16" if fast else "fp32"):
        return write_logits(data, model, speaker, manner.k, manner.temperature * manner.warmth, watch)


def _run(made: _Made, teacher: str, asked: Budget, left: float | None, manner: Manner, watch: Watch | None) -> Run:
    rows = made.data.open().epoch_samples
    batch_size = max(1, min(rows // 16, round(STEP_TOKENS / made.data.context_length)))
    if left is not None:
        if left <= 1:
            raise ConfigError(f"a budget of {asked.text} is spent before training begins", "", "give more")
        asked = replace(asked, amount=asked.amount * left / (asked.seconds(asked.watts) or left))
    slow = Optimizer("adamw", 2e-4, 2e-4, weight_decay=0.0, warmup=0.05, warmdown=0.95)
    label = LABEL.sub("", teacher)
    recipe = Recipe(
        about=f"A student of {label}, by {manner.by}.",
        family=made.family,
        data=made.data,
        budget=asked,
        batch_size=batch_size,
        optimizer=Optimizer(warmdown=0.6) if made.student.start is None else slow,
        seed=manner.seed,
        start=made.student.start,
        parts=made.parts,
    )
    run = making.started(f"{label}-student", recipe, None, watch, manner.allow)
    run.decide("taught", True, 0, f"its text is {label}'s, and meant to be")
    for each in ("tokenizer.json", "chat.json"):
        if (made.student.words / each).is_file():
            shutil.copyfile(made.student.words / each, run.path / each)
    return run


def is_distilled(run: Run) -> bool:
    """Whether `distil` began this run, so that its end is a comparison with its teacher."""
    return (run.path / DISTIL).exists()


def ended(run: Run, device: str, watch: Watch | None, began: float | None = None) -> Run:
    """Train a run to its end, then set it beside its teacher in report.txt, report.json and the card."""
    making.trained(run, device, watch)
    if watch is not None:
        watch({"kind": "phase", "phase": "reporting", "detail": "reading the teacher's held-out answers"})
    found = measured(run, device)
    return making.reported(run, found, began)


def measured(run: Run, device: str) -> Distilled:
    """The teacher's held-out answers under teacher, student and whoever else was named."""
    from nomoat.core.device import choose
    from nomoat.evaluate.distilled import compare

    held, place = run.read_json(DISTIL), choose(device)
    rows: Any = run.recipe.data.open("heldout")
    messages = list(islice(rows.messages(), HELD_OUT))
    teacher = None if "://" in held["teacher"] else _reader(Run.open(held["teacher"]), place)
    others = {"the other student": _reader(Run.open(held["beside"]), place)} if held["beside"] else {}
    counts = ", ".join(f"{count:,} {name}" for name, count in held["counts"].items())
    contract = f", under the terms of {held['terms']}" if held["terms"] else ""
    notes = (f"The teacher wrote: {counts}. Its licence: {held['licence']}{contract}.",)
    with run.autocast(place):
        return compare(run.recipe.about, teacher, _reader(run, place), others, messages, held["most"], notes)


def _reader(run: Run, place: Any) -> Reader:
    from nomoat.data.chat import Chat
    from nomoat.evaluate.distilled import Reader

    model: Any = load(run).to(place)
    return Reader(model, spelling(run), Chat.of(run.path))
