"""What tuning has changed: a tuned model beside its base, on what it was taught and on what it was not.

    held-out conversations -> nats a token of the answers; answers written greedily -> ROUGE-L
    held-out text          -> bits per byte; passages continued
    a general text, the base's own answers to prompts of all kinds -> what was forgotten

Intervals are percentile bootstraps over conversations or documents, drawn for both models together (Efron 1979).
Luo et al. 2023, arXiv:2308.08747 (what instruction tuning forgets).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nomoat.core.types import Decodes, Scores
from nomoat.data.chat import Chat, Messages
from nomoat.data.lessons import Lessons
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import BLOCK_TOKENS, FEW_DOCUMENTS, Excerpt, interval, stream_bits, token_bits
from nomoat.evaluate.rouge import rouge_l
from nomoat.evaluate.surprise import printable
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import Continuation, continue_tokens

FORGETTING = 0.05
"""What may be lost before it is worth a warning."""
ROWS = 64  # answers written together
WINDOW = 1024  # tokens that are looked back on in a general text


class Told(NamedTuple):
    """A conversation as tokens, and which of them count."""

    ids_N: NDArray[Any]
    counted_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Beside:
    """One figure of both models.

    Args:
        name: what was measured.
        unit: of the figures.
        base, tuned: the figures.
        low, high: 95 % interval of tuned / base, or of tuned - base where `difference`.
        difference: whether the two are subtracted.
        count: conversations or documents that it rests on.
    """

    name: str
    unit: str
    base: float
    tuned: float
    low: float
    high: float
    count: int
    difference: bool = False

    @property
    def change(self) -> float:
        """tuned / base, or tuned - base."""
        return self.tuned - self.base if self.difference else self.tuned / self.base

    def row(self) -> tuple[str, str, str, str]:
        """Name, base, tuned, change with its interval."""
        form = "{:+.3f} (95 %: {:+.3f} to {:+.3f})" if self.difference else "x {:.3f} (95 %: {:.3f} to {:.3f})"
        name = f"{self.name}, {self.unit}" if self.unit else self.name
        return name, f"{self.base:.3f}", f"{self.tuned:.3f}", form.format(self.change, self.low, self.high)


@dataclass(frozen=True)
class Example:
    """One prompt, answered by both, with what stands in the data."""

    prompt: str
    base: str
    tuned: str
    reference: str


@dataclass(frozen=True)
class Comparison:
    """A tuned model beside its base.

    Args:
        about: what was tuned and how, in a sentence.
        learned: figures on what it was taught, the loss first.
        forgotten: figures on what it was not taught.
        examples: side by side.
        notes: what else there is to know, in sentences.
    """

    about: str
    learned: tuple[Beside, ...]
    forgotten: tuple[Beside, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    limits = (
        "It knows what its base knew, less what it has forgotten, and is wrong as often: it must not decide anything "
        "about people.",
        "Its base's limits are its own; they stand in the base's card.",
        "Its figures were measured once, with one seed, on conversations or texts like those it was tuned on.",
    )

    @property
    def warnings(self) -> list[str]:
        """In plain words, where more was forgotten than `FORGETTING`."""
        lost = [one for one in self.forgotten if one.change > 1 + FORGETTING]
        return [
            f"It has forgotten: {one.name} cost it {one.change - 1:.0%} more than its base. A larger "
            "--rehearsal, a lower --learning-rate, a smaller --budget (fewer passes over the data) and --lora in place "
            "of --full help."
            for one in lost
        ]

    @property
    def verdict(self) -> str:
        """Whether it has learned anything, in plain words."""
        if not self.learned:
            return "Nothing was held out, so that nobody knows whether it has learned anything."
        loss = self.learned[0]
        if loss.low <= 1 <= loss.high:
            return f"It cannot be told from its base by the {loss.name}: give it more data, or more time."
        better = "better" if loss.change < 1 else "worse"
        return (
            f"It is {better} than its base at what it was taught: the {loss.name} is {loss.change:.2f} of its base's."
        )

    def as_text(self) -> str:
        """For the terminal."""
        parts = ["What have I got?", "", self.about, self.verdict, "", *_table(self._rows()), ""]
        parts += [*self.warnings, *self.notes, ""] if self.warnings or self.notes else []
        for number, one in enumerate(self.examples, 1):
            parts += [f"{number}.", *_indented(one.prompt, "  | ")]
            for name, text in (("its base:", one.base), ("it:", one.tuned), ("the data:", one.reference)):
                parts += [f"  {name}", *_indented(text, "  > ")]
        return "\n".join(parts)

    def as_markdown(self) -> str:
        """For the card."""
        head = ["## What have I got?", "", self.about, self.verdict, ""]
        rows = [
            "| | base | tuned | change |",
            "|---|---:|---:|---|",
            *(f"| {' | '.join(row)} |" for row in self._rows()),
        ]
        parts = [*head, *rows, *(line for text in (*self.warnings, *self.notes) for line in ("", text))]
        parts += ["", "## Side by side"]
        for number, one in enumerate(self.examples, 1):
            parts += ["", f"{number}."]
            named = (("Read", one.prompt), ("Its base", one.base), ("It", one.tuned), ("The data", one.reference))
            for name, text in named:
                parts += ["", f"    {name}:", "", *_indented(text, "        ")]
        return "\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        each = [{**asdict(one), "change": one.change} for one in (*self.learned, *self.forgotten)]
        learned = len(self.learned)
        found = {"learned": each[:learned], "forgotten": each[learned:], "examples": [*map(asdict, self.examples)]}
        said = {"about": self.about, "verdict": self.verdict, "warnings": self.warnings, "notes": list(self.notes)}
        return {**said, **found}

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield from (one.row() for one in (*self.learned, *self.forgotten))


def ratio(name: str, unit: str, base_G: NDArray[Any], tuned_G: NDArray[Any], wholes_G: NDArray[Any]) -> Beside:
    """Two sums over the same groups, each divided by that of `wholes_G`, and their ratio with its interval."""
    low, high = interval(tuned_G, base_G)
    whole = wholes_G.sum()
    return Beside(name, unit, float(base_G.sum() / whole), float(tuned_G.sum() / whole), low, high, len(base_G))


def difference(name: str, unit: str, base_G: NDArray[Any], tuned_G: NDArray[Any]) -> Beside:
    """Two means over the same groups, and their difference with its interval."""
    low, high = interval(tuned_G - base_G, np.ones(len(base_G)))
    return Beside(name, unit, float(base_G.mean()), float(tuned_G.mean()), low, high, len(base_G), difference=True)


def nats(model: Scores, told: Sequence[Told]) -> NDArray[np.float64]:
    """The summed nats [conversations] of the tokens that count."""
    bits = token_bits(model, [one.ids_N for one in told], max((len(one.ids_N) for one in told), default=1), overlap=0.0)
    sums = [bits_N[one.counted_N[1:]].sum(dtype=np.float64) for bits_N, one in zip(bits, told, strict=True)]
    return np.array(sums) * math.log(2)


def answers(
    model: Decodes, tokenizer: Tokenizer, chat: Chat, asked: Sequence[Messages], most: int = 128
) -> list[tuple[list[int], Continuation]]:
    """The prompt's tokens and the likeliest answer, token by token, to each conversation."""
    writing = SamplingOptions(temperature=0.0, max_tokens=most, stop=chat.stop)
    reach: int = model.config.context_length - most  # type: ignore[attr-defined]
    prompts = [chat.tokens(messages, tokenizer)[0][-max(1, reach) :] for messages in asked]
    made: list[tuple[list[int], Continuation]] = []
    for first in range(0, len(prompts), ROWS):
        some = prompts[first : first + ROWS]
        made += zip(some, continue_tokens(model, tokenizer, some, writing), strict=True)
    return made


def answers_learned(models: tuple[Scores, Scores], told: Sequence[Told]) -> Beside:
    """The loss of the answers in held-out conversations."""
    base_G, tuned_G = (nats(model, told) for model in models)
    count_G = np.array([one.counted_N[1:].sum() for one in told])
    return ratio("loss of held-out answers", "nats a token", base_G, tuned_G, count_G)


def answers_beside(chosen: Sequence[Messages], wrote: Sequence[Sequence[str]]) -> tuple[Beside, tuple[Example, ...]]:
    """ROUGE-L of what base and tuned model answered to the last question of each conversation, and five of them."""
    references = [messages[-1]["content"] for messages in chosen]
    base_G, tuned_G = (np.array([*map(rouge_l, each, ([one] for one in references))]) for each in wrote)
    shown = [
        Example(_said(messages[:-1]), base, tuned, reference)
        for messages, base, tuned, reference in zip(chosen, *wrote, references, strict=True)
    ]
    return difference("ROUGE-L of answers", "", base_G, tuned_G), tuple(shown[:: max(1, len(shown) // 5)][:5])


def held_out(data: Lessons) -> Iterator[tuple[Messages, Told]]:
    """Every held-out conversation, as messages and as the tokens that stand in the shards."""
    rows = data.open("heldout")
    for number, messages in enumerate(rows.messages()):
        first, size = int(rows.starts[number]), int(rows.lengths[number])
        yield messages, Told(rows.reader.window(first, size), rows.learn[first : first + size])


def text_learned(models: tuple[Scores, Scores], tokenizer: Tokenizer, excerpt: Excerpt, context_length: int) -> Beside:
    """Bits per byte of held-out text."""
    lengths_V = tokenizer.lengths
    bits = [stream_bits(model, excerpt, lengths_V, tokenizer.eot, context_length) for model in models]
    few = len(excerpt.ends_D) < FEW_DOCUMENTS
    group_N = np.arange(len(bits[0])) // BLOCK_TOKENS if few else excerpt.places()
    base_G, tuned_G, bytes_G = (np.bincount(group_N, each) for each in (*bits, lengths_V[excerpt.tokens_N]))
    return ratio("held-out text", "bits per byte", base_G, tuned_G, bytes_G)


def own_answers(
    writer: Decodes, tokenizer: Tokenizer, chat: Chat, prompts: Sequence[str], most: int = 48
) -> list[Told]:
    """What a model itself answers to other prompts, as conversations whose answers count."""
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [
        Told(np.array([*prompt, *one.tokens]), np.arange(len(prompt) + len(one.tokens)) >= len(prompt))
        for prompt, one in answers(writer, tokenizer, chat, asked, most)
        if one.tokens
    ]


def forgotten(
    models: tuple[Scores, Scores], tokenizer: Tokenizer, general: Iterable[str], own: Sequence[Told]
) -> tuple[Beside, ...]:
    """Bits per byte of a general text, and the loss of the base's own answers to prompts of all kinds."""
    aligned = [tokenizer.aligned(text) for text in general]
    told = [np.concatenate([[tokenizer.opening], ids_N]) for ids_N, _ in aligned]
    reach: int = min(models[0].config.context_length, WINDOW)  # type: ignore[attr-defined]
    bits = [token_bits(model, told, reach, overlap=0.0) for model in models]
    base_G, tuned_G = (np.array([one.sum(dtype=np.float64) for one in each]) for each in bits)
    size = np.array([bytes_N.sum() for _, bytes_N in aligned])
    text = ratio("general text", "bits per byte", base_G, tuned_G, size)
    base_G, tuned_G = (nats(model, own) for model in models)
    count_G = np.array([one.counted_N.sum() for one in own])
    return text, ratio("the base's own answers", "nats a token", base_G, tuned_G, count_G)


def other_prompts() -> list[str]:
    """A hundred prompts of all kinds, none of them from a data set."""
    return list(json.loads((files("nomoat.evaluate") / "prompts.json").read_text(encoding="utf-8")))


def general_text() -> list[str]:
    """Prose that every Python has: the chapters of its language reference (PSF-2.0)."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]


def pieces(texts: Iterable[str], size: int = 1500, most: int = 32_000) -> list[str]:
    """Pieces of `size` characters, evenly chosen from all texts, of about `most` together."""
    found = [piece for text in texts for at in range(0, len(text), size) if (piece := text[at : at + size]).strip()]
    return found[:: max(1, len(found) * size // most)]


def _said(messages: Messages) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    whole = [("", "base", "tuned", "change"), *rows]
    width = max(len(row[0]) for row in whole)
    return [f"  {name:<{width}}{base:>9}{tuned:>9}   {change}".rstrip() for name, base, tuned, change in whole]


def _indented(text: str, before: str) -> list[str]:
    """Lines that neither a terminal nor Markdown reads as anything but text."""
    return [(before + printable(line)).rstrip() for line in text.split("\n")]
