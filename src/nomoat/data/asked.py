"""A teacher's answers to prompts: asked for many at once, and each stored as it comes, with whose it is.

    prompts -> teacher.answer, many at once -> answers.jsonl (with origin, generation 1), asked.jsonl (keys)

What a killed call has stored is not asked for again. Answers that are empty, refused or go round in circles are left
out and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.teacher import Answer, Answers

STALE = 0.25
"""An answer with a smaller share of different 3-grams goes round in circles."""

Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Asking:
    """How a teacher is asked.

    Args:
        heat: temperature.
        max_tokens: of an answer.
        seed: of the first answer to the first prompt.
        seconds: for all; every prompt is asked again and again, each time with another seed, while there is time.
            None: each once.
        at_once: requests that are under way together.
    """

    heat: float = 0.7
    max_tokens: int = 256
    seed: int = 0
    seconds: float | None = None
    at_once: int = 32


def write_answers(
    teacher: Answers, prompts: Sequence[Any], folder: Path, asking: Asking = Asking(), watch: Watch | None = None
) -> dict[str, int]:
    """Let the teacher answer every prompt; each answer is stored as it comes.

    Args:
        teacher: closed at the end, if it can be, where answers are still under way.
        prompts: conversations that end with a user's turn.
        folder: where they lie, and what an earlier call has stored.
        asking: how.
        watch: told {"kind": "phase", ...}.

    Returns:
        Counts: `answers`, and what was left out, by reason.

    Raises:
        ConfigError: not one answer came in time.
        DataError: nothing that could be learned from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds, path, began = asking.seconds, folder / "answers.jsonl", time.perf_counter()
    held = {row["key"]: row["left_out"] for row in durable.lines(folder / "asked.jsonl")}
    jobs = ((number, turn) for turn in range(1 if seconds is None else 1 << 20) for number in range(len(prompts)))
    todo = (job for job in jobs if f"{job[0]}-{job[1]}" not in held)
    with ThreadPoolExecutor(asking.at_once) as pool:
        open_: dict[Future[Answer], tuple[int, int]] = {}
        while True:
            late = seconds is not None and time.perf_counter() - began > seconds
            while not late and len(open_) < asking.at_once and (job := next(todo, None)) is not None:
                seed = asking.seed + 1_000_003 * job[1] + job[0]
                open_[pool.submit(teacher.answer, prompts[job[0]], asking.max_tokens, asking.heat, 1.0, seed)] = job
            if not open_ or (late and held):  # those under way are not waited for, once there are some
                break
            for done in wait(open_, timeout=1.0, return_when=FIRST_COMPLETED).done:
                number, turn = open_.pop(done)
                held[f"{number}-{turn}"] = why = _stored(path, prompts[number], done.result(), teacher)
                durable.append(folder / "asked.jsonl", {"key": f"{number}-{turn}", "left_out": why})
                if watch is not None and len(held) % 10 == 0:
                    _tell(watch, len(held), time.perf_counter() - began, seconds)
        for future in open_:
            future.cancel()
        if open_ and hasattr(teacher, "close"):
            teacher.close()  # ends what is under way
    return _counted(held, folder, seconds)


def _tell(watch: Watch, count: int, spent: float, seconds: float | None) -> None:
    foreseen = "" if seconds is None else f"; about {count / max(spent, 1e-9) * seconds:,.0f} expected"
    watch({"kind": "phase", "phase": "the teacher writes", "detail": f"{count:,} answers{foreseen}"})


def _counted(held: Mapping[str, str], folder: Path, seconds: float | None) -> dict[str, int]:
    counts: dict[str, int] = {"answers": 0}
    for why in held.values():
        counts[why or "answers"] = counts.get(why or "answers", 0) + 1
    if not held:
        raise ConfigError("not one answer came in time", f"{seconds or 0:.0f} seconds are the teacher's", "give more")
    texts = {row["messages"][-1]["content"] for row in durable.lines(folder / "answers.jsonl")}
    if len(texts) < 2 and len(held) > 1:
        why = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        raise DataError("the teacher's answers cannot be learned from", f"{len(texts)} different one; {why}",
                        "take a teacher that can answer these prompts, or a higher --heat")  # fmt: skip
    return counts


def _stored(path: Path, prompt: Sequence[Any], answer: Answer, teacher: Answers) -> str:
    """Why an answer is left out; "" for one that is stored."""
    words = answer.text.split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    if answer.finish == "refused" or not words:
        return "refused or empty"
    if len(grams) > 20 and len(set(grams)) < STALE * len(grams):
        return "repeats itself"
    durable.append(path, {
        "messages": [*prompt, {"role": "assistant", "content": answer.text}], "generation": 1,
        "origin": {"teacher": teacher.name, "licence": teacher.licence, "terms": teacher.terms},
    })  # fmt: skip
    return ""
