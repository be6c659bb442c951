"""The novelty filter against Alpaca's: every earlier instruction by ROUGE-L, and against MinHash, on 50,000 texts.

    pip install rouge-score; python benchmarks/novelty.py SHARED [--items 50000] [--recall 3000]

Real instructions of self-instruct, alpaca-libre, dolly-short, code-alpaca-2k, instructions-raschka, alpaca-gpt4-1k and
gsm8k (its questions); where they do not reach the number, copies of real ones with a fifth of their words replaced by
words of another one, by a fixed seed. Alpaca's way (`generate_instruction.py`, one process) is timed on 40 texts spread
over the list, each against every 25th before it, and extrapolated to all. For the recall all pairs of some texts are
scored: those that our bits put above 0.5 by rouge-score too, where it is installed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from peers import record

from nomoat.data import near
from nomoat.data.novelty import Novelty, _counted, _masks, _subsequence

SETS = (
    "self-instruct/seed_tasks", "self-instruct/user_oriented", "alpaca-libre/tasks", "dolly-short/dolly",
    "code-alpaca-2k/code", "instructions-raschka/instructions", "alpaca-gpt4-1k/alpaca", "gsm8k/train", "gsm8k/test-a",
)  # fmt: skip
LIMIT = 0.7
Words = Sequence[int]


def texts(shared: Path, count: int) -> tuple[list[str], int]:
    """Real instructions and variations of them, mixed; and how many are real."""
    real: list[str] = []
    for name in SETS:
        with gzip.open(shared / "data" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        real += [row.get("instruction") or row.get("question") or "" for row in rows]
    chance = random.Random(0)
    real = [text for text in dict.fromkeys(real) if text.strip()]
    chance.shuffle(real)
    found = real[:count]
    while len(found) < count:
        words, other = chance.choice(real).split(), chance.choice(real).split()
        for place in chance.sample(range(len(words)), max(1, len(words) // 5)):
            words[place] = chance.choice(other)
        found.append(" ".join(words))
    chance.shuffle(found)
    return found, min(len(real), count)


def alpaca() -> tuple[str, Callable[[str], list[str]], Callable[[list[str], list[str]], float]]:
    """How Alpaca takes ROUGE-L: its name, a text's tokens, the score of two."""
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        return "our own table (rouge-score is not installed)", lambda text: text.lower().split(), table
    tokenize = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)._tokenizer.tokenize
    return "rouge-score", tokenize, lambda one, other: rouge_scorer._score_lcs(one, other).fmeasure


def table(one: list[str], other: list[str]) -> float:
    """ROUGE-L by the table, as Lin 2004 has it."""
    row = [0] * (len(other) + 1)
    for word in one:
        above = row[:]
        for place, each in enumerate(other):
            row[place + 1] = above[place] + 1 if word == each else max(above[place + 1], row[place])
    return 2 * row[-1] / max(1, len(one) + len(other))


def ours(found: list[str]) -> float:
    """Texts a second of the filter over all texts, one after the other, as synth uses it."""
    novelty, start, laps, old = Novelty(LIMIT), time.perf_counter(), [0.0], 0
    for number, text in enumerate(found, 1):
        old += novelty.nearest(text) is not None
        novelty.add(text)
        if number % (len(found) // 5) == 0:
            laps.append(time.perf_counter() - start)
    pace, last = len(found) / laps[-1], len(found) / 5 / (laps[-1] - laps[-2])
    print(
        f"ours: {laps[-1]:.1f} s, {pace:,.0f} items/s, {last:,.0f} in the last fifth; {old:,} are not new", flush=True
    )
    return pace


def theirs(found: list[str]) -> float:
    """Texts a second of all pairs, extrapolated."""
    name, tokenize, score = alpaca()
    listed = [tokenize(text) for text in found]
    start, pairs = time.perf_counter(), 0
    for place in (int(len(found) * (index + 0.5) / 40) for index in range(40)):
        for other in range(0, place, 25):
            score(listed[place], listed[other])
            pairs += 1
    each = (time.perf_counter() - start) / pairs
    pace = 1 / (each * len(found) / 2)
    print(f"all pairs by {name}: {each * 1e6:.1f} us a pair, on {pairs:,}; extrapolated {pace:.3f} items/s", flush=True)
    return pace


def true_pairs(some: list[str], hashed: list[Words]) -> set[tuple[int, int]]:
    """The pairs above the limit."""
    _, tokenize, score = alpaca()
    listed, masks, found = [tokenize(text) for text in some], [_masks(tuple(words)) for words in hashed], set()
    for later, words in enumerate(hashed):
        for earlier in range(later):
            both = len(words) + len(hashed[earlier])
            if min(len(words), len(hashed[earlier])) * 2 > (LIMIT - 0.2) * both:  # it cannot be longer than the shorter
                nearly = 2 * _subsequence(masks[later], len(words), tuple(hashed[earlier])) / max(1, both)
                if nearly > LIMIT - 0.2 and score(listed[later], listed[earlier]) > LIMIT:
                    found.add((earlier, later))
    return found


def minhash(hashed: list[Words]) -> set[tuple[int, int]]:
    """Pairs that meet in one of near.py's 28 bands of 4, over numbered words instead of runs of five."""
    numbered = [np.array([hash(each) & (2**63 - 1) for each in _counted(tuple(words))], np.uint64) for words in hashed]
    mixed = (near._mix(np.concatenate(numbered)) >> np.uint64(32)).astype(np.uint32)
    signature = near._smallest(mixed, np.cumsum([0, *map(len, numbered[:-1])]))
    pairs = set()
    for band in range(near.BANDS):
        buckets: dict[bytes, list[int]] = {}
        for number, row in enumerate(signature[:, band * near.BAND_ROWS : (band + 1) * near.BAND_ROWS]):
            own = buckets.setdefault(row.tobytes(), [])
            pairs.update((other, number) for other in own)
            own.append(number)
    return pairs


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--recall", type=int, default=3000)
    given = parser.parse_args()
    found, real = texts(given.shared, given.items)
    print(f"{len(found):,} instructions, {real:,} real, {len(found) - real:,} variations", flush=True)
    mine, alpaca = ours(found), theirs(found)
    some = [text for text in found[: given.recall] if near.word_hashes(text).size]
    hashed: list[Words] = [near.word_hashes(text).tolist() for text in some]
    true = true_pairs(some, hashed)
    caught = 0
    for earlier, later in true:
        pair = Novelty(LIMIT)
        pair.add(some[earlier])
        caught += pair.nearest(some[later]) is not None
    met = minhash(hashed)
    figures = {
        "items": len(found),
        "real": real,
        "items_per_second": mine,
        "all_pairs_items_per_second": alpaca,
        "ratio": mine / alpaca,
        "texts_for_recall": len(some),
        "pairs_above": len(true),
        "found_by_ours": caught / max(1, len(true)),
        "found_by_minhash": len(true & met) / max(1, len(true)),
    }
    record("novelty", figures)


if __name__ == "__main__":
    main()
