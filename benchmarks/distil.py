"""Distillation in half an hour: SmolLM2-135M-Instruct teaches a student of 15 M to write three-sentence stories.

    python benchmarks/distil.py --case text|logits|human|equal-steps --minutes 30 --work FOLDER [--teacher RUN]
    (to try it: --minutes 4 --held-out 60)

`text` and `logits`: the teacher writes for a third of the time, then (logits) scores what it wrote, and the student
learns in what is left. `human`: the same student, in the same tokens, learns for the same time from people's texts in
the same form: dolly-short, and passages of gutenberg-stories of three sentences, each asked for by words that are in
it. Held out: 200 prompts, written for by the same teacher at the same temperature; outside the time. What `text` has
written `logits` reads again, at the price that it had. `equal-steps`: logits for as many steps as
`text` took, however long. Results are merged into benchmarks/results/distil.json.

Share = (U - S) / (U - T), of the cross-entropies of the teacher's held-out answers: U `human`, S the student, T the
teacher. All in nats a token of the teacher's.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers import SHARED

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "distil.json"
WORDS = """dog cat bird fish horse mouse bear fox king queen girl boy farmer baker house garden tree river hill moon
boat bridge apple bread cake hat shoe box ball book door bell lamp stone flower snow rain wind fire star""".split()  # noqa: SIM905
ASKED = "Tell a short story for children in three sentences about a {}, a {} and a {}."
THREE = re.compile(r"((?:.*?[.!?][\"'\u201d]?(?=\s|$)){3})", re.DOTALL)
HEAT, MAX_TOKENS, HELD_OUT, VOCABULARY, STUDENT = 0.3, 96, 200, 8192, "15M"
WRITING = 0.4
"""Share of the time for the teacher's writing."""
SLOTS = 32


def prompts(count: int, seed: int) -> list[list[dict[str, str]]]:
    """So many different lists of words; even seeds and odd ones share none."""
    chance, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        words = chance.sample(WORDS, 3)
        if sum(map(ord, "".join(sorted(words)))) % 8 == 0 if seed % 2 else sum(map(ord, "".join(sorted(words)))) % 8:
            found[ASKED.format(*words)] = None
    return [[{"role": "user", "content": text}] for text in found]


def written(teacher: Any, work: Path, seconds: float, count: int) -> tuple[Path, Path, float]:
    """Folders of the answers to learn from and of the held-out ones, and the seconds that the first took."""
    from nomoat.data.asked import Asking, write_answers
    from nomoat.teachers import open_teacher

    learn, held = work / f"answers-{seconds:.0f}", work / "held-out"
    took = learn / "seconds.json"
    if not took.exists() or not (held / "asked.jsonl").exists():
        began = time.perf_counter()
        with open_teacher(teacher, slots=SLOTS, bits=8) as opened:
            one = ThreeSentences(opened)
            loaded = time.perf_counter() - began
            if not (held / "asked.jsonl").exists():
                write_answers(one, prompts(count, 1), held, Asking(HEAT, MAX_TOKENS, 1, None, 2 * SLOTS))
            began = time.perf_counter()
            write_answers(one, prompts(6000, 0), learn, Asking(HEAT, MAX_TOKENS, 0, seconds, 2 * SLOTS), watch=told)
        took.write_text(json.dumps(time.perf_counter() - began + loaded))
    return learn, held, json.loads(took.read_text())


class ThreeSentences:
    """A teacher whose answers end with their third sentence; one with fewer is as good as none."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        self.name, self.licence, self.terms = teacher.name, teacher.licence, teacher.terms

    def answer(self, *asked: Any) -> Any:
        """As the teacher."""
        whole = self._teacher.answer(*asked)
        found = THREE.match(whole.text)
        return replace(whole, text=found[1].strip(), finish="stop") if found else replace(whole, text="")

    def close(self) -> None:
        """As the teacher."""
        self._teacher.close()


def told(event: Any) -> None:
    """Now and then a line."""
    if event.get("kind") == "warning" or (event.get("detail") and random.random() < 0.1):
        print(event.get("detail") or event.get("text"), flush=True)


def human() -> list[dict[str, Any]]:
    """People's texts in the same form."""
    from nomoat.data.conversations import Conversation, read_conversations

    read = read_conversations([SHARED / "data/dolly-short/dolly.jsonl.gz"])
    said = [(row.messages[0]["content"], row.messages[1]["content"]) for row in read if isinstance(row, Conversation)]
    chance = random.Random(0)
    for path in sorted((SHARED / "data/gutenberg-stories").glob("*.txt")):
        text = " ".join(path.read_text(encoding="utf-8", errors="replace").split())
        sentences = re.split(r"(?<=[.!?][\"'\u201d]) |(?<=[.!?]) ", text)
        for place in range(0, len(sentences) - 2, 3):
            passage = " ".join(sentences[place : place + 3])
            words = sorted(set(re.findall(r"[a-z]{4,}", passage)))
            if len(words) >= 3 and len(passage) < 800:
                said.append((ASKED.format(*chance.sample(words, 3)), passage))
    return [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in said if a and b
    ]


def student_of(teacher: Any, learn: Path) -> Any:
    """Its words and size, the same for every case: the tokens that the teacher and the people use most."""
    from nomoat.core import durable
    from nomoat.students import student_of as made

    texts = ["\n".join(turn["content"] for turn in row["messages"]) for row in durable.lines(learn / "answers.jsonl")]
    texts += ["\n".join(turn["content"] for turn in row["messages"]) for row in human()]
    return made(STUDENT, teacher, texts, learn.parent / "student", VOCABULARY)


def trained(case: str, teacher: Any, learn: Path, left: Any, steps: int | None) -> tuple[Any, dict[str, float]]:
    """The student's run after what is left of the time (or after so many steps), and what was spent before."""
    from nomoat import making
    from nomoat.core import durable
    from nomoat.core.budget import Budget
    from nomoat.core.recipe import Optimizer, Recipe
    from nomoat.core.run import Run
    from nomoat.data.conversations import read_conversations
    from nomoat.data.lessons import Lessons, write_lessons
    from nomoat.distilling import Manner, _scored
    from nomoat.families.distil import Distil

    began, student = time.perf_counter(), student_of(teacher, learn)
    source = learn / "answers.jsonl"
    if case == "human":
        source = learn.parent / "human.jsonl"
        durable.replace(source, "".join(json.dumps(row) + "\n" for row in human()).encode())
    folder = learn.parent / f"lessons-{case}-{learn.name}"
    if not folder.exists():
        write_lessons(folder, read_conversations([source]), student.words, 256, held_out_share=0.02)
    data: Any = Lessons(str(folder), 256)
    config, spent = student.configured(256), {"lessons": time.perf_counter() - began}
    family: Any = config
    if case == "logits":
        data = _scored(data, teacher, Manner(by="logits", k=32, heat=HEAT), "auto", told)
        family = Distil(config, text=0.1)
        spent["scoring"] = time.perf_counter() - began - spent["lessons"]
    budget = Budget.parse(f"{steps}steps" if steps else f"{left() - 8:.0f}s")
    recipe = Recipe(f"{case}, benchmark", family, data, budget, batch_size=8, optimizer=Optimizer(warmdown=0.7))
    run = Run.create(learn.parent / "runs", f"{case}{'-steps' if steps else ''}", recipe)
    begun = time.perf_counter()
    run.decide("taught", case != "human", 0, "by what a teacher wrote, on purpose")
    making.trained(run, "auto", None)
    return run, {**spent, "training": time.perf_counter() - begun}


def nats(teacher: Any, run: Any, held: Path, words: Path | None = None) -> tuple[list[float], list[int]]:
    """Nats of each held-out answer, and its tokens."""
    from nomoat.core import durable
    from nomoat.core.run import load
    from nomoat.data.chat import Chat
    from nomoat.evaluate.distilled import Reader, answer_nats
    from nomoat.texts import spelling

    which = run or teacher
    reader = Reader(load(which), spelling(which), Chat.of(words or which.path))  # type: ignore[arg-type]
    found, count = answer_nats(
        reader, [row["messages"] for row in durable.lines(held / "answers.jsonl")][:HELD_OUT], 512
    )
    return found.tolist(), count.tolist()


def case_of(case: str, teacher: Any, asked: Any, steps: int | None = None) -> dict[str, Any]:
    """One student: what it took, and its nats."""
    from nomoat.core.run import Run, load

    work, minutes = asked.work, asked.minutes
    learn, held, wrote = written(teacher, work, WRITING * 60 * minutes, asked.held_out)
    charged, began = (0.0 if case == "human" else wrote), time.perf_counter()
    run, spent = trained(case, teacher, learn, lambda: 60 * minutes - charged - (time.perf_counter() - began), steps)
    whole = charged + time.perf_counter() - began
    import shutil

    shutil.copyfile(work / "student" / f"words-{VOCABULARY}" / "chat.json", run.path / "chat.json")
    events = run.metrics("step")
    found, _ = nats(teacher, Run.open(run.path), held)
    rows = sum(1 for _ in (learn / "answers.jsonl").open())
    return {
        "minutes": whole / 60, "seconds": {"writing": charged, **spent}, "steps": events[-1]["step"],
        "answers": 0 if case == "human" else rows, "nats": found,
        "parameters_read": sum(each.numel() for name, each in load(run).named_parameters()),
    }  # fmt: skip


def summed(held: dict[str, Any]) -> dict[str, Any]:
    """Shares and differences with their intervals, of whatever has been measured."""
    import numpy as np

    from nomoat.evaluate.bits import interval
    from nomoat.evaluate.distilled import share

    t, count = np.array(held["teacher"]["nats"]), sum(held["teacher"]["tokens"])
    rows = {name: np.array(held[name]["nats"]) for name in held if name not in ("teacher", "settings", "summary")}
    found: dict[str, Any] = {"teacher": t.sum() / count, **{name: each.sum() / count for name, each in rows.items()}}
    if "human" in rows:
        found |= {f"share of {n}": share(rows["human"], each, t) for n, each in rows.items() if n != "human"}
    for one, other in (("logits", "text"), ("logits at equal steps", "text")):
        if one in rows and other in rows:
            low, high = interval(rows[one], rows[other])
            found[f"{one} / {other}"] = [float(rows[one].sum() / rows[other].sum()), low, high]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["text", "logits", "human", "equal-steps"], required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", default="smollm2-135m-instruct")
    parser.add_argument("--held-out", type=int, default=240, help="prompts; the first 200 stories are read")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    from nomoat.texts import at_hand

    asked.work.mkdir(parents=True, exist_ok=True)
    teacher = at_hand(asked.teacher)
    held = json.loads(asked.results.read_text()) if asked.results.exists() else {}
    if asked.case == "equal-steps":
        made = {"logits at equal steps": case_of("logits", teacher, asked, held["text"]["steps"])}
    else:
        made = {asked.case: case_of(asked.case, teacher, asked)}
    if "teacher" not in held:
        found, count = nats(teacher, None, asked.work / "held-out")
        held["teacher"] = {"nats": found, "tokens": count}
    held |= made
    held["settings"] = {"minutes": asked.minutes, "heat": HEAT, "max_tokens": MAX_TOKENS, "writing": WRITING}
    held["summary"] = summed(held)
    asked.results.parent.mkdir(exist_ok=True)
    asked.results.write_text(json.dumps(held, indent=1) + "\n")
    shown = {name: {key: value for key, value in one.items() if key != "nats"} for name, one in made.items()}
    print(json.dumps({**shown, "summary": held["summary"]}, indent=1))


if __name__ == "__main__":
    main()
