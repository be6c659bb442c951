"""How a teacher is brought to write what was not there before: six methods, each two pure functions.

    begin(seeds, accepted, number, chance) -> Draft | None (there is no more)      read(draft, answer) -> drafts

Self-instruct: Wang et al. 2022, arXiv:2212.10560. Evol-instruct, depth and breadth: Xu et al. 2023, arXiv:2304.12244.
Personas: Ge et al. 2024, arXiv:2406.20094. Instruction back-translation: Li et al. 2023, arXiv:2308.06259. Rejection
sampling: Yuan et al. 2023, arXiv:2308.01825.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from nomoat.data.synth import Draft, Seed

EXAMPLES = (6, 2)
"""Of seeds and of what was made already, in a prompt of self-instruct."""
DEEPEST = 4
"""Generations that evol-instruct builds upon each other."""

LIST = """Here are some tasks that people gave to an assistant:

{examples}

List five new tasks, numbered, one a line. Each must differ from all others in subject and in what is to be done, and \
must be possible with text alone. Write the tasks only, not their answers."""
EVOLVE = """Rewrite the task below. {how} Keep it possible for an assistant that reads and writes text alone, keep it \
clear, and add no more than twenty words. Answer with the new task only.

Task:
{task}"""
DEPTH = (
    "Add one condition or requirement that the answer must meet.",
    "Ask for more depth: have it treat one of its points more thoroughly.",
    "Replace what is general in it by something particular.",
    "Have it need several steps of thought where one is enough now.",
    "Add a short input that the answer must work with, such as a list, a table or a few lines of text.",
)
BREADTH = "Make a new task of the same field and length that is rarer, about something else."
PERSONA = """Read the text below. Who would write it, read it or need it? Describe one such person in a sentence: \
work, interests, what they know. Answer with that sentence only.

Text:
{text}"""
TASK = """Here is somebody: {persona}

Write one task that exactly this person would give to an assistant that reads and writes text. Write it in their own \
words, with all that is needed to do it. Answer with the task only."""
BACK = """Below is a text that answers somebody's instruction. Write the instruction: clear, complete, and such that \
this text is the best answer to it. Answer with the instruction only.

Text:
{text}"""
QUESTIONS = """Read the passage below. List three questions, numbered, one a line, which it answers by itself. Ask \
about different things, and name what you ask about instead of saying "the passage".

Passage:
{text}"""
PASSAGE, BRIEFLY = "{text}\n\n{question}", "\n\nAnswer in one to three sentences."
STEPS = "{question}\n\nThink step by step, and end with the answer alone on the last line."

QUESTION = re.compile(r"^\W*(?:q(?:uestion)?\W*\d*\W*[:.)]\s*)?(.+\?)\W*$", re.IGNORECASE)
ITEM = re.compile(r"^\s*(?:\d+[.):]|[-*])\s+(.+?)\s*$")
SHORTEST = 3
"""Words of an instruction."""
ROUNDS = 4
"""How often a passage is asked about, while rows are missing: a small teacher's first questions may come to nothing."""
ASIDE = 256
"""Most tokens of what is asked on the way to an answer: lists, tasks, people. A small teacher goes on listing."""

Begin = Callable[[Sequence[Seed], Sequence[Seed], int, Random], Draft | None]


class Method(NamedTuple):
    """See the module's first lines; `read` of each stage but `answer`, which all methods share."""

    begin: Begin
    read: dict[str, Callable[[Draft, str], list[Draft]]]
    rounds: int = 1
    """How often it goes through the seeds."""


def read(method: str, draft: Draft, text: str) -> list[Draft]:
    """What an answer gives: drafts that are asked next, or rows."""
    if draft.stage == "answer":
        return [replace(draft, stage="row", answer=text.strip())]
    return METHODS[method].read[draft.stage](draft, text)


def items(text: str) -> list[str]:
    """The items of a numbered or dotted list."""
    return [found[1] for line in text.splitlines() if (found := ITEM.match(line))]


def _task(draft: Draft, text: str, topic: str = "") -> Draft:
    text = text.strip()
    return replace(draft, stage="answer", ask=text, instruction=text, topic=topic or text)


def _list(draft: Draft, text: str) -> list[Draft]:
    return [_task(draft, item) for item in items(text)[:5]]


def _self_instruct(seeds: Sequence[Seed], made: Sequence[Seed], number: int, chance: Random) -> Draft | None:
    shown = [*chance.sample(seeds, min(EXAMPLES[0], len(seeds))), *chance.sample(made, min(EXAMPLES[1], len(made)))]
    chance.shuffle(shown)
    examples = "\n".join(f"- {' '.join(seed.text.split())}" for seed in shown)
    return Draft("list", LIST.format(examples=examples), parents=tuple(shown))


def _evol(seeds: Sequence[Seed], made: Sequence[Seed], number: int, chance: Random) -> Draft | None:
    parent = chance.choice([*seeds, *(seed for seed in made if seed.generation < DEEPEST)])
    how = chance.choice([*DEPTH, BREADTH])
    return Draft("evolve", EVOLVE.format(how=how, task=parent.text), parents=(parent,))


def _evolved(draft: Draft, text: str) -> list[Draft]:
    """One new task; what only repeats its parent or the prompt's own words is none."""
    new = re.sub(r"^\s*(?:new |rewritten )?task:\s*", "", text, flags=re.IGNORECASE).strip()
    copied = new == draft.parents[0].text or re.search(r"given task|task below|rewritten task", new, re.IGNORECASE)
    return [] if copied else [_task(draft, new)]


def _persona(seeds: Sequence[Seed], made: Sequence[Seed], number: int, chance: Random) -> Draft | None:
    if number >= len(seeds):
        return None
    seed = seeds[number]
    if seed.kind == "persona":
        return Draft("task", TASK.format(persona=seed.text), parents=(seed,))
    return Draft("persona", PERSONA.format(text=seed.text), parents=(seed,))


def _person(draft: Draft, text: str) -> list[Draft]:
    return [replace(draft, stage="task", ask=TASK.format(persona=" ".join(text.split())))]


def _back(seeds: Sequence[Seed], made: Sequence[Seed], number: int, chance: Random) -> Draft | None:
    if number >= len(seeds):
        return None
    seed = seeds[number]
    return Draft("instruct", BACK.format(text=seed.text), answer=seed.text, parents=(seed,))


def _instructed(draft: Draft, text: str) -> list[Draft]:
    return [replace(draft, stage="row", instruction=text.strip(), topic=text.strip())]


def _questions(seeds: Sequence[Seed], made: Sequence[Seed], number: int, chance: Random) -> Draft | None:
    if number >= ROUNDS * len(seeds):
        return None
    seed = seeds[number % len(seeds)]
    return Draft("questions", QUESTIONS.format(text=seed.text), parents=(seed,))


def _asked(draft: Draft, text: str) -> list[Draft]:
    """Three questions at most: items of a list, or lines, that end as questions do."""
    passage = draft.parents[0].text
    lines = items(text) or text.splitlines()
    found = list(dict.fromkeys(match[1].strip() for line in lines if (match := QUESTION.match(line.strip()))))
    drafts = [_task(draft, PASSAGE.format(text=passage, question=question), question) for question in found[:3]]
    return [replace(each, ask=each.ask + BRIEFLY) for each in drafts]


def _rejection(seeds: Sequence[Seed], made: Sequence[Seed], number: int, chance: Random) -> Draft | None:
    if number >= len(seeds):
        return None
    seed = seeds[number]
    ask = STEPS.format(question=seed.text)
    return Draft("answer", ask, instruction=seed.text, parents=(seed,), reference=seed.answer)


METHODS = {
    "self-instruct": Method(_self_instruct, {"list": _list}),
    "evol": Method(_evol, {"evolve": _evolved}),
    "persona": Method(_persona, {"persona": _person, "task": lambda draft, text: [_task(draft, text)]}),
    "back-translation": Method(_back, {"instruct": _instructed}),
    "questions": Method(_questions, {"questions": _asked}, ROUNDS),
    "rejection": Method(_rejection, {}),
}

REFUSAL = re.compile(
    r"^\W*(?:i'?m (?:very )?sorry|sorry,|i (?:cannot|can't|can not|am unable|am not able)|as an? (?:ai|language model)"
    r"|unfortunately,? i (?:cannot|can't|am))",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether a text begins as refusals do."""
    return bool(REFUSAL.match(text.replace("’", "'")))


def judged(row: Draft, rubric: str) -> str:
    """What a judge is asked about a row."""
    return (
        f"Judge an assistant's answer.\n\n{rubric}\n\nInstruction:\n{row.instruction}\n\nAnswer:\n{row.answer}\n\n"
        "Say in one sentence what is good or wrong in it. Then write on a last line `Score: N`, N from 1 to 5."
    )


def score(text: str) -> float | None:
    """The score in a judge's answer, the last one; None: there is none."""
    found = re.findall(r"score\W{0,4}\s*([1-5](?:\.\d)?)(?![\d.]*\d)", text, re.IGNORECASE)
    return float(found[-1]) if found else None
