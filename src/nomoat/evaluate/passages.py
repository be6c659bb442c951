"""Held-out passages continued by a model, with what really follows and what stands in the training text.

held-out documents -> beginnings of lines -> prompt | truth -> model writes on -> longest verbatim run of each
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nomoat.core.types import Decodes
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import Excerpt, Watch
from nomoat.evaluate.verbatim import Copy, longest_copies
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import continue_tokens

PROMPT_BYTES, CONTINUED_BYTES = 300, 250
QUOTED = 60

Place = Callable[[int, int], str]
"""(number of a document in its split, line ends before) -> where that is."""


@dataclass(frozen=True)
class Passage:
    """A held-out passage, what the model made of it, and what really follows.

    Args:
        where: file and line of the passage's beginning.
        prompt: what the model read.
        written: what it wrote.
        truth: what follows in the file.
        copied: the longest run of `written` that stands in the training text.
        truth_copied: the same of `truth`: what a text that never saw the training text shares with it.
    """

    where: str
    prompt: str
    written: str
    truth: str
    copied: Copy | None
    truth_copied: Copy | None

    @property
    def origin(self) -> str:
        """A sentence on the longest verbatim run."""
        if self.copied is None:
            return "Nothing of what it wrote (16 bytes or more in a row) stands in the training text."
        shared = 0 if self.truth_copied is None else self.truth_copied.characters
        run = self.copied.text if len(self.copied.text) <= QUOTED else self.copied.text[: QUOTED - 3] + "..."
        return (
            f"Longest run that stands in the training text: {self.copied.characters} characters, "
            f"{self.copied.share:.0%} of what it wrote, at {self.copied.where}: {run!r} "
            f"(of the truth: {f'{shared} characters' if shared else 'nothing'})."
        )


class _Cut(NamedTuple):
    """Tokens of a document: prompt from `first` to `middle`, truth from there to `last`."""

    document: int
    first: int
    middle: int
    last: int


def continue_passages(
    model: Decodes,
    tokenizer: Tokenizer,
    excerpt: Excerpt,
    training: ShardReader,
    place: Place,
    count: int = 5,
    writing: SamplingOptions = SamplingOptions(),
    watch: Watch | None = None,
) -> list[Passage]:
    """Continue up to `count` passages, drawn by the seed of `writing`, of different documents where there are enough.

    Args:
        model: writes tokens.
        tokenizer: the model's.
        excerpt: held-out documents.
        training: the shards in which verbatim runs are looked for.
        place: says where a line stands.
        count: passages wanted.
        writing: how they are drawn; `max_tokens` is set to the length of the truth.
        watch: told the progress.
    """
    reach: int = model.config.context_length  # type: ignore[attr-defined]
    cuts = _cuts(tokenizer, excerpt, count, reach, writing.seed)
    if not cuts:
        return []
    documents = [excerpt.document(cut.document) for cut in cuts]
    prompts = [
        ids[cut.first : cut.middle].tolist() if cut.first else [tokenizer.eot, *ids[: cut.middle].tolist()]
        for cut, ids in zip(cuts, documents, strict=True)
    ]
    longest = max(cut.last - cut.middle for cut in cuts)
    written = [one.text for one in continue_tokens(model, tokenizer, prompts, replace(writing, max_tokens=longest))]
    truths = [tokenizer.decode(ids[cut.middle : cut.last]) for cut, ids in zip(cuts, documents, strict=True)]
    copies = longest_copies([*written, *truths], training, tokenizer, watch)
    return [
        Passage(
            where=place(int(excerpt.numbers_D[cut.document]), tokenizer.decode_bytes(ids[: cut.first]).count(b"\n")),
            prompt=tokenizer.decode(ids[cut.first : cut.middle]),
            written=written[number],
            truth=truths[number],
            copied=copies[number],
            truth_copied=copies[len(cuts) + number],
        )
        for number, (cut, ids) in enumerate(zip(cuts, documents, strict=True))
    ]


def _cuts(tokenizer: Tokenizer, excerpt: Excerpt, count: int, reach: int, seed: int) -> list[_Cut]:
    """Where the passages lie: begun at a line's beginning, with room for prompt and truth in their document."""
    bytes_a_token = max(1.0, float(tokenizer.lengths[excerpt.tokens_N].mean()))
    read = max(1, min(int(PROMPT_BYTES / bytes_a_token), reach * 3 // 4))
    follow = max(1, int(CONTINUED_BYTES / bytes_a_token))
    sizes_D = np.diff(excerpt.ends_D, prepend=0) - 1
    if not (sizes_D >= read + follow).any():  # all are short: read half of one
        read = follow = max(1, int(sizes_D.max()) // 2)
    chance = np.random.default_rng(seed)
    able = np.flatnonzero(sizes_D >= read + follow)
    chosen = chance.permutation(able)[:count] if len(able) else able
    if 0 < len(chosen) < count:
        chosen = chance.choice(able, count)
    ends_line_V = np.array([token.endswith(b"\n") for token in tokenizer.tokens])
    cuts = set()
    for document in sorted(chosen.tolist()):
        ids_N = excerpt.document(document)
        last = int(sizes_D[document]) - read - follow
        begins = np.concatenate([[0], np.flatnonzero(ends_line_V[ids_N[:last]]) + 1])
        first = int(chance.choice(begins))
        cuts.add(_Cut(document, first, first + read, first + read + follow))
    return sorted(cuts)
