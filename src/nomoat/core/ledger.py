"""The ledger: for each document where it comes from and what licence binds it, joined into the model's card.

Entry, tokens, bytes (one a document) -> summarise -> Ledger(shares by licence) -> join -> card
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

UNKNOWN = "unknown"
HUMAN = "human"
EVIDENCE_KEPT = 5


class Origin(NamedTuple):
    """Who wrote a text: `human`, or a generator with what binds its outputs.

    Args:
        name: of the generator.
        licence: of its weights and outputs; empty: not stated.
        terms: the contract with whoever runs it (`openai`, ...); empty: none stated.
    """

    name: str = HUMAN
    licence: str = ""
    terms: str = ""

    @classmethod
    def of(cls, value: Any) -> Origin:
        """Read what a row's `origin` holds, or what `str` wrote."""
        if isinstance(value, Mapping):
            name = value.get("teacher") or value.get("name") or value.get("generator") or UNKNOWN
            return cls(str(name), str(value.get("licence") or ""), str(value.get("terms") or ""))
        name, bracket, rest = str(value).removesuffix("]").rpartition(" [")
        if not bracket or not str(value).endswith("]"):
            return cls(str(value))
        licence, _, terms = rest.partition("; ")
        return cls(name, licence, terms)

    def __str__(self) -> str:
        return f"{self.name} [{self.licence}; {self.terms}]" if self.licence or self.terms else self.name


@dataclass(frozen=True)
class Entry:
    """One document's line.

    Args:
        hash: of its content.
        source: path or address, as the user would find it again.
        licence: SPDX identifier; None: unknown, never guessed.
        evidence: where the licence was read, such as `LICENSE` or `SPDX header, line 1`.
        author: as stated in the source.
        date: as stated in the source.
        origin: `human`, or which generator, with its licence and terms as `str(Origin(...))` writes them.
        generation: 0 for human work; one more than the deepest source for what a model made.
        derived_from: hashes of the documents it was made from.
    """

    hash: str
    source: str
    licence: str | None = None
    evidence: str = ""
    author: str = ""
    date: str = ""
    origin: str = "human"
    generation: int = 0
    derived_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Share:
    """What one licence contributes.

    Args:
        licence: SPDX identifier, or `unknown`.
        documents: how many.
        tokens: how many.
        bytes: of text.
        evidence: where the licence was read, the most frequent first, with how often: ((text, documents), ...).
    """

    licence: str
    documents: int
    tokens: int
    bytes: int
    evidence: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Ledger:
    """What a model was trained on, by licence, the largest first.

    Args:
        shares: one a licence.
        origins: (origin, documents), the most frequent first.
        generation: the deepest generation among the documents; 0: all of it is human work.
    """

    shares: tuple[Share, ...] = ()
    origins: tuple[tuple[str, int], ...] = ()
    generation: int = 0

    @property
    def documents(self) -> int:
        """All documents."""
        return sum(share.documents for share in self.shares)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(share.tokens for share in self.shares)

    @property
    def bytes(self) -> int:
        """All bytes of text."""
        return sum(share.bytes for share in self.shares)

    def part(self, licence: str) -> float:
        """Return the share of the bytes under `licence`, from 0 to 1."""
        return sum(share.bytes for share in self.shares if share.licence == licence) / max(1, self.bytes)

    def duties(self) -> list[str]:
        """Return what the licences ask of whoever passes the model on, one sentence each; no legal advice."""
        said = []
        for share in self.shares:
            name, part = share.licence.upper(), f"{100 * share.bytes / max(1, self.bytes):.1f} % of the text"
            if share.licence == UNKNOWN:
                said.append(f"{part} is under no known licence: keep the model to yourself until you know.")
            elif "-NC" in name:
                said.append(f"{part} is {share.licence}: no commercial use.")
            elif "-ND" in name:
                said.append(f"{part} is {share.licence}: no derived works; whether a model is one is not settled.")
            elif "GPL" in name or "-SA" in name:
                said.append(f"{part} is {share.licence}: what is derived from it stays under that licence.")
        return said

    def table(self) -> str:
        """Return a Markdown table of the shares, for the card."""
        rows = ["| licence | documents | tokens | bytes | share | evidence |", "|---|---:|---:|---:|---:|---|"]
        for share in self.shares:
            evidence = "; ".join(f"{text} ({count})" for text, count in share.evidence).replace("|", "\\|") or "none"
            part = f"{100 * share.bytes / max(1, self.bytes):.1f} %"
            rows.append(
                f"| {share.licence} | {share.documents:,} | {share.tokens:,} | {share.bytes:,} | {part} | {evidence} |"
            )
        return "\n".join(rows)


def summarise(lines: Iterable[tuple[Entry, int, int]]) -> Ledger:
    """Return the ledger of documents given as (entry, tokens, bytes)."""
    tally = _Tally()
    for entry, tokens, size in lines:
        tally.add(entry.licence or UNKNOWN, (1, tokens, size), ((entry.evidence, 1),) if entry.evidence else ())
        tally.origins[entry.origin] += 1
        tally.generation = max(tally.generation, entry.generation)
    return tally.ledger()


def join(ledgers: Iterable[Ledger]) -> Ledger:
    """Return the ledger of all documents of several: of a mixture, or of a model and the models it was made from."""
    tally = _Tally()
    for ledger in ledgers:
        for share in ledger.shares:
            tally.add(share.licence, (share.documents, share.tokens, share.bytes), share.evidence)
        for origin, count in ledger.origins:
            tally.origins[origin] += count
        tally.generation = max(tally.generation, ledger.generation)
    return tally.ledger()


class _Tally:
    """Adds up without making a value for each of millions of documents."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[int, int, int]] = {}
        self.evidence: dict[str, Counter[str]] = {}
        self.origins: Counter[str] = Counter()
        self.generation = 0

    def add(self, licence: str, sizes: tuple[int, int, int], evidence: Iterable[tuple[str, int]]) -> None:
        documents, tokens, size = self.totals.get(licence, (0, 0, 0))
        self.totals[licence] = (documents + sizes[0], tokens + sizes[1], size + sizes[2])
        seen = self.evidence.setdefault(licence, Counter())
        for text, count in evidence:
            seen[text] += count

    def ledger(self) -> Ledger:
        shares = [
            Share(licence, documents, tokens, size, tuple(_most(self.evidence[licence])[:EVIDENCE_KEPT]))
            for licence, (documents, tokens, size) in self.totals.items()
        ]
        shares.sort(key=lambda share: (-share.bytes, share.licence))
        return Ledger(tuple(shares), tuple(_most(self.origins)), self.generation)


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
