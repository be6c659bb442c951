"""The ledger: nothing is lost when documents are added up, and what licences ask is said."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.config import from_json, to_json
from nomoat.core.ledger import EVIDENCE_KEPT, UNKNOWN, Entry, Ledger, join, summarise

entries = st.builds(
    Entry,
    hash=st.just("00"),
    source=st.just("a.txt"),
    licence=st.none() | st.sampled_from(["MIT", "GPL-3.0-only", "CC-BY-NC-4.0"]),
    evidence=st.sampled_from(["", "LICENSE", "SPDX header, line 1"]),
    origin=st.sampled_from(["human", "gpt"]),
    generation=st.integers(0, 3),
)
lines = st.lists(st.tuples(entries, st.integers(0, 100), st.integers(0, 100)), max_size=20)


@given(lines, lines)
def test_nothing_is_lost_and_joining_is_the_same_as_summarising_at_once(one: list, other: list) -> None:
    whole = summarise(one + other)
    assert join([summarise(one), summarise(other)]) == whole
    assert whole.documents == len(one + other)
    assert whole.tokens == sum(tokens for _, tokens, _ in one + other)
    assert whole.bytes == sum(size for _, _, size in one + other)
    assert sum(count for _, count in whole.origins) == whole.documents
    assert whole.generation == max((entry.generation for entry, _, _ in one + other), default=0)


@given(lines)
def test_a_ledger_comes_back_from_the_card(documents: list) -> None:
    ledger = summarise(documents)
    assert from_json(json.loads(json.dumps(to_json(ledger)))) == ledger


def test_shares_are_the_largest_first_with_their_evidence() -> None:
    ledger = summarise(
        [
            (Entry("1", "a", "MIT", "LICENSE"), 10, 40),
            (Entry("2", "b", "MIT", "SPDX header"), 5, 20),
            (Entry("3", "c", "MIT", "LICENSE"), 5, 20),
            (Entry("4", "d", None), 30, 120),
        ]
    )
    assert [(share.licence, share.documents, share.tokens, share.bytes) for share in ledger.shares] == [
        (UNKNOWN, 1, 30, 120),
        ("MIT", 3, 20, 80),
    ]
    assert ledger.shares[1].evidence == (("LICENSE", 2), ("SPDX header", 1))
    assert ledger.part("MIT") == 0.4
    assert "| MIT | 3 | 20 | 80 | 40.0 % | LICENSE (2); SPDX header (1) |" in ledger.table()


def test_evidence_of_a_thousand_files_does_not_fill_the_card() -> None:
    ledger = summarise((Entry(str(number), "a", "MIT", f"header of {number}"), 1, 1) for number in range(1000))
    assert len(ledger.shares[0].evidence) == EVIDENCE_KEPT


def test_what_licences_ask_is_said() -> None:
    licences = ("MIT", None, "CC-BY-NC-ND-4.0", "CC-BY-ND-4.0", "GPL-3.0-only", "CC-BY-SA-4.0", "Apache-2.0")
    duties = summarise((Entry("1", "a", licence), 1, 1) for licence in licences).duties()
    for said in ("no known licence", "no commercial use", "no derived works", "stays under that licence"):
        assert any(said in duty for duty in duties)
    assert not any("MIT" in duty or "Apache" in duty for duty in duties)
    assert Ledger().duties() == []
