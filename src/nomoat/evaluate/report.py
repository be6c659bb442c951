"""What have I got? The answer at the end of `make`, on text that the model has never been trained on.

    held-out documents -> bits per byte, beside gzip, xz and a 5-gram model of the same training text -> a verdict
                       -> five passages continued, the true continuation beside, the longest verbatim run of each
                       -> the ten oddest lines

The compressors and the n-gram model are measured on one core while the model reads on the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from nomoat.core.errors import DataError
from nomoat.core.types import Decodes, Scores
from nomoat.data.document import place
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.baselines import Baseline, baselines
from nomoat.evaluate.bits import BitsPerByte, Excerpt, Watch, stream_bits, summarise
from nomoat.evaluate.oddest import oddest_lines
from nomoat.evaluate.passages import Passage, continue_passages
from nomoat.evaluate.surprise import Line, printable
from nomoat.sampling.tokens import SamplingOptions

HELD_OUT_TOKENS = 500_000
WRITING = SamplingOptions(temperature=0.8, top_p=0.95)


class Reads(Decodes, Scores, Protocol):
    """A model of text: it scores and it writes."""


@dataclass(frozen=True)
class Report:
    """What have I got?

    Args:
        model: bits per byte on held-out text.
        baselines: gzip, xz and the 5-gram model on the same text, given the same training text.
        passages: held-out passages continued.
        oddest: the oddest lines of the held-out text.
        writing: how the passages were drawn.
    """

    model: BitsPerByte
    baselines: tuple[Baseline, ...]
    passages: tuple[Passage, ...]
    oddest: tuple[Line, ...]
    writing: SamplingOptions

    @property
    def verdict(self) -> str:
        """Which is better, in plain words."""
        low, high = self.model.low, self.model.high
        worse = [_named(one) for one in self.baselines if one.bits_per_byte > high]
        better = [_named(one) for one in self.baselines if one.bits_per_byte < low]
        equal = [_named(one) for one in self.baselines if low <= one.bits_per_byte <= high]
        said = [f"Your model needs {self.model.value:.2f} bits for a byte of text that it has never seen"]
        said[0] += f" (95 %: {low:.2f} to {high:.2f})."
        if worse:
            said.append(f"It is better than {_listed(worse)}.")
        if equal:
            said.append(f"It cannot be told apart from {_listed(equal)}.")
        if better:
            said.append(f"Better, given the same training text: {_listed(better)}.")
        if better and not worse and not equal:
            said.append("As a model of this text it is not worth its training yet: give it more time, or more text.")
        return " ".join(said)

    def as_text(self) -> str:
        """For the terminal."""
        parts = ["What have I got?", "", self.verdict, "", *self._table(), ""]
        parts += [f"{len(self.passages)} held-out passages, continued ({self._drawn()}):"]
        for number, passage in enumerate(self.passages, 1):
            parts += ["", f"{number}. {passage.where}", *_indented(passage.prompt, "  | ")]
            parts += ["  it wrote:", *_indented(passage.written, "  > ")]
            parts += ["  the truth:", *_indented(passage.truth, "  = ")]
            parts += [f"  {printable(passage.origin)}"]
        parts += ["", "The oddest lines of the held-out files:", *(line.as_text() for line in self.oddest)]
        return "\n".join(parts)

    def as_markdown(self) -> str:
        """For the card."""
        rows = ["| | bits per byte | without the training text | how |", "|---|---|---|---|"]
        rows += [f"| {' | '.join(row)} |" for row in self._rows()]
        parts = ["## What have I got?", "", self.verdict, "", *rows, ""]
        parts += [f"## Held-out passages, continued ({self._drawn()})"]
        for number, passage in enumerate(self.passages, 1):
            parts += ["", f"{number}. `{printable(passage.where).replace('`', '')}`"]
            for name, text in (("Read", passage.prompt), ("Wrote", passage.written), ("The truth", passage.truth)):
                parts += ["", f"    {name}:", "", *_indented(text, "        ")]
            parts += ["", f"    {escaped(passage.origin)}"]
        parts += ["", "## The oddest lines of the held-out files", ""]
        for line in self.oddest:
            parts += _indented(line.as_text(), "    ")
        return "\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "verdict": self.verdict,
            "held_out": asdict(self.model),
            "bits_per_byte": self.model.value,
            "baselines": {one.name: asdict(one) for one in self.baselines},
            "passages": [asdict(passage) for passage in self.passages],
            "oddest": [line.as_json() for line in self.oddest],
            "writing": asdict(self.writing),
        }

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Name, bits per byte, the same without training text, how; the best first."""
        model = self.model
        how = f"{model.bytes / 1e6:.2f} MB of {model.documents:,} documents; perplexity {model.perplexity:.1f} a token"
        rows = [(model.value, "your model", "", how)]
        rows += [(b.bits_per_byte, b.name, "" if b.alone is None else f"{b.alone:.3f}", b.how) for b in self.baselines]
        return [(name, f"{value:.3f}", alone, how) for value, name, alone, how in sorted(rows)]

    def _table(self) -> list[str]:
        head = ("", "bits per byte", "without training text", "")
        return [
            f"  {name:<12}{value:>13}{alone:>23}   {how}".rstrip() for name, value, alone, how in (head, *self._rows())
        ]

    def _drawn(self) -> str:
        chosen = self.writing
        return f"temperature {chosen.temperature:g}, top-p {chosen.top_p:g}, seed {chosen.seed}"


def report(
    model: Reads,
    tokenizer: Tokenizer,
    folder: Path | str,
    passages: int = 5,
    lines: int = 10,
    writing: SamplingOptions = WRITING,
    most_tokens: int | None = HELD_OUT_TOKENS,
    watch: Watch | None = None,
) -> Report:
    """Measure a model of text on the held-out part of the dataset it was trained on.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        folder: the dataset.
        passages: held-out passages to continue.
        lines: odd lines to list.
        writing: how the passages are drawn; `max_tokens` is set by their length.
        most_tokens: held-out tokens to measure at most: whole documents, drawn by a fixed seed.
        watch: told {"kind": "phase", "phase": "reporting", "detail": ...} and the progress.

    Raises:
        DataError: the dataset has no held-out part, or another tokenizer.
    """
    tell: Watch = watch or (lambda event: None)
    training, held_out = ShardReader(folder, "train"), ShardReader(folder, "heldout")
    if held_out.tokenizer_hash != tokenizer.hash:
        raise DataError(f"{folder} was made with another tokenizer than the model's", fix="Name the model's own data")
    excerpt = Excerpt.of(held_out, most_tokens)
    ledger = {name: held_out.ledger()[name].to_pylist() for name in ("source", "member")}

    def where(document: int, lines_before: int) -> str:
        return place(ledger["source"][document] or "", ledger["member"][document] or "", lines_before)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(baselines, training, excerpt, tokenizer)

        def reading(event: Mapping[str, Any]) -> None:
            # Threads that wait for one another lose more to a core in use than that core could give.
            torch.set_num_threads(threads if beside.done() else max(1, threads - 1))
            tell(event)

        try:
            reading({"kind": "phase", "phase": "reporting", "detail": "reading the held-out text"})
            bits_N = stream_bits(model, excerpt, tokenizer.lengths, tokenizer.eot, watch=reading)
            reading({"kind": "phase", "phase": "reporting", "detail": "reading its oddest lines again"})
            oddest = oddest_lines(model, tokenizer, excerpt, bits_N, where, lines, reading)
            reading({"kind": "phase", "phase": "reporting", "detail": "continuing held-out passages"})
            continued = continue_passages(model, tokenizer, excerpt, training, where, passages, writing, reading)
        finally:
            torch.set_num_threads(threads)
        tell({"kind": "phase", "phase": "reporting", "detail": "weighing gzip, xz and a 5-gram model"})
        weighed = beside.result()
    figure = summarise(bits_N, excerpt, tokenizer.lengths)
    return Report(figure, weighed, tuple(continued), tuple(oddest), writing)


def _named(one: Baseline) -> str:
    name = f"the {one.name} model" if "gram" in one.name else one.name
    return f"{name} ({one.bits_per_byte:.2f})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _indented(text: str, before: str) -> list[str]:
    """Lines that neither a terminal nor Markdown reads as anything but text."""
    return [(before + printable(line)).rstrip() for line in text.split("\n")]


def escaped(text: str) -> str:
    """Text as Markdown shows it unchanged."""
    return "".join(f"\\{symbol}" if symbol in "\\`*_[]<>#|" else symbol for symbol in printable(text))
