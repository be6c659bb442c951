"""What a student has of its teacher: the cross-entropy of the teacher's held-out answers under both, side by side.

    held-out prompts, teacher's answers -> nats under teacher, student, others -> share = (U - S) / (U - T)

Every model reads the conversations in its own tokens, so nats are divided by the teacher's tokens for all of them: then
they compare. U is another student that is given beside it. Intervals are bootstraps over conversations (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nomoat.data.chat import Chat, Messages
from nomoat.data.lessons import lesson_of
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.report import Reads
from nomoat.evaluate.surprise import printable
from nomoat.evaluate.tuned import Told, answers, nats

DRAWS = 2000
SHOWN = 5


class Reader(NamedTuple):
    """A model and the words that it reads in."""

    model: Reads
    tokenizer: Tokenizer
    chat: Chat


def answer_nats(reader: Reader, held: Sequence[Messages], most: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The summed nats [conversations] of the answers, and how many tokens each has here."""
    told = []
    for messages in held:
        lesson = lesson_of(messages, reader.chat, reader.tokenizer, most)
        ids, learn = (lesson.ids, lesson.learn) if lesson else ([reader.tokenizer.eot] * 2, [False] * 2)
        told.append(Told(np.asarray(ids), np.asarray(learn)))
    return nats(reader.model, told), np.array([one.counted_N[1:].sum() for one in told])


def share(other_G: NDArray[Any], student_G: NDArray[Any], teacher_G: NDArray[Any]) -> tuple[float, float, float]:
    """(U - S) / (U - T) of sums over the same conversations, and its 95 % interval."""
    pick = np.random.default_rng(0).integers(len(other_G), size=(DRAWS, len(other_G)))
    u, s, t = (each_G[pick].sum(1) for each_G in (other_G, student_G, teacher_G))
    low, high = np.quantile((u - s) / (u - t), (0.025, 0.975))
    u, s, t = other_G.sum(), student_G.sum(), teacher_G.sum()
    return float((u - s) / (u - t)), float(low), float(high)


@dataclass(frozen=True)
class Distilled:
    """A student beside its teacher.

    Args:
        about: who taught whom and how.
        rows: name -> nats a teacher's token of the teacher's held-out answers; the teacher's is None where only its
            text is to be had.
        count: conversations.
        examples: prompt, teacher's answer, student's.
        shares: name of another student -> (share, low, high).
        notes: sentences: whose text it is, what was left out, what was expected.
    """

    about: str
    rows: Mapping[str, float | None]
    count: int
    examples: tuple[tuple[str, str, str], ...] = ()
    shares: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    limits = (
        "It writes like its teacher on prompts like those that it was taught by, and knows less; on others it is lost.",
        "What its teacher gets wrong it gets wrong too. It must not decide anything about people.",
        "Its figures were measured once, with one seed, on the teacher's held-out answers.",
    )

    def as_text(self) -> str:
        """For the terminal."""
        parts = ["What have I got?", "", self.about, f"Cross-entropy of {self.count:,} held-out answers, nats a token:"]
        parts += [f"  {name:<24} {'not to be had' if n is None else f'{n:.3f}'}" for name, n in self.rows.items()]
        for name, (part, low, high) in self.shares.items():
            parts.append(f"  share against {name}: {part:.1%} (95 %: {low:.1%} to {high:.1%})")
        parts += ["", *self.notes]
        for number, (prompt, teacher, student) in enumerate(self.examples, 1):
            for name, text in ((f"{number}.", prompt), ("  its teacher:", teacher), ("  it:", student)):
                parts += [name, *(f"  | {line}" for line in printable(text).splitlines()[:12])]
        return "\n".join(parts)

    def as_markdown(self) -> str:
        """For the card."""
        return "## What have I got?\n\n" + "\n".join(f"    {line}" for line in self.as_text().splitlines()[2:]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def compare(
    about: str, teacher: Reader | None, student: Reader, others: Mapping[str, Reader], held: Sequence[Messages],
    most: int, notes: tuple[str, ...] = (),
) -> Distilled:  # fmt: skip
    """Measure all of them; `held` are conversations that end with the teacher's answer, `most` tokens of each count."""
    own_G, count_G = answer_nats(student, held, most)
    rows: dict[str, float | None] = {"teacher": None}
    shares: dict[str, tuple[float, float, float]] = {}
    teacher_G = None
    if teacher is not None:
        teacher_G, count_G = answer_nats(teacher, held, most)
        rows["teacher"] = float(teacher_G.sum() / count_G.sum())
    rows["student"] = float(own_G.sum() / count_G.sum())
    for name, other in others.items():
        other_G, _ = answer_nats(other, held, most)
        rows[name] = float(other_G.sum() / count_G.sum())
        if teacher_G is not None:
            shares[name] = share(other_G, own_G, teacher_G)
    some = held[:SHOWN]
    wrote = answers(student.model, student.tokenizer, student.chat, [one[:-1] for one in some]) if some else []
    pairs = zip(some, wrote, strict=True)
    shown = [(one[-2]["content"], one[-1]["content"], said.text.strip()) for one, (_, said) in pairs]
    return Distilled(about, rows, len(held), tuple(shown), shares, notes)
