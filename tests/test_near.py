"""Near-duplicates: planted ones are found, unrelated texts are not joined, and no text repeats another by chance."""

from __future__ import annotations

import numpy as np
import pytest

from nomoat.data.near import BLOCK, NOTHING, STRETCH, group, groups, signatures, word_hashes

WORDS = [f"w{number:x}" for number in range(3000)]


def texts(count, words, seed=0):
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, words)) for _ in range(count)]


def nine_tenths(text, seed):
    """The text with a tenth of it, in one stretch, written anew."""
    chance = np.random.default_rng(seed)
    words = text.split(" ")
    start = int(chance.integers(0, len(words) - len(words) // 10))
    return " ".join([*words[:start], *chance.choice(WORDS, len(words) // 10), *words[start + len(words) // 10 :]])


@pytest.mark.parametrize("words", [100, 1000, 20_000])
def test_planted_near_duplicates_are_found_and_unrelated_texts_are_not(words):
    originals = texts(40 if words < 20_000 else 8, words)
    copies = [nine_tenths(text, seed) for seed, text in enumerate(originals)]
    found = groups([*originals, *copies])
    count = len(originals)
    assert (found[:count] == np.arange(count)).all()
    assert (found[count:] == np.arange(count)).all()


def test_planted_near_duplicates_among_token_ids():
    chance = np.random.default_rng(1)
    originals = [chance.integers(0, 8000, 600).astype(np.uint16) for _ in range(50)]
    copies = [ids.copy() for ids in originals]
    for ids in copies:
        ids[-60:] = chance.integers(0, 8000, 60)
    found = groups([*originals, *copies])
    assert found.tolist() == [*range(50), *range(50)]


def test_half_shared_is_not_near():
    originals = texts(60, 400)
    halves = [
        " ".join(text.split(" ")[:200] + texts(1, 200, seed)[0].split(" ")) for seed, text in enumerate(originals)
    ]
    assert (groups([*originals, *halves]) == np.arange(120)).all()


def test_a_chain_is_one_group_whatever_its_length():
    base = texts(1, 2000)[0].split(" ")
    chain = [" ".join([*base[40 * step :], *texts(1, 40 * step + 1, seed=step)[0].split(" ")]) for step in range(12)]
    other = texts(5, 2000, seed=99)
    found = groups([*other, *chain])
    assert (found[:5] == np.arange(5)).all()
    assert (found[5:] == 5).all()


def test_case_spaces_and_punctuation_do_not_hide_a_copy():
    text = "The quick brown fox, it jumps over (the lazy) dog. And then, at last, it sleeps!"
    again = "the  QUICK brown\nfox it jumps\tover the lazy dog and then at last it sleeps"
    other = "the slow brown fox crawls under a lively dog and then at once it wakes up again"
    assert groups([text, again, other]).tolist() == [0, 0, 2]


def test_short_empty_and_wordless_texts():
    assert groups(["", "", "...", "one two", "One, two!", "one three", "x", "a b c d e"]).tolist() == [
        0,
        1,
        2,
        3,
        3,
        5,
        6,
        7,
    ]
    assert groups([]).tolist() == []
    assert (signatures(["", "a"])[0] == NOTHING).all()


def test_signs_of_east_asia_are_words():
    text = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9000, 500)))
    assert len(word_hashes(text)) == 500
    other = "".join(map(chr, np.random.default_rng(1).integers(0x4E00, 0x9000, 500)))
    assert groups([text, other, text[:480] + other[:20]]).tolist() == [0, 1, 0]


def test_a_word_has_one_hash_wherever_it_stands():
    near_the_cut = "x" * (STRETCH - 3) + " cat cat " + "y" * (2 * STRETCH) + " cat"
    hashes = word_hashes(near_the_cut)
    cat = word_hashes("cat")[0]
    assert [bool(one == cat) for one in hashes] == [False, True, True, False, True]
    assert len(set(word_hashes(" ".join(WORDS)).tolist())) == len(WORDS)


def test_the_signature_estimates_the_share_of_common_shingles():
    chance = np.random.default_rng(3)
    for shared in (0.2, 0.5, 0.8):
        agree = []
        for _ in range(30):
            common = chance.integers(0, 10**9, int(2000 * shared))
            left, right = (np.concatenate([common, chance.integers(0, 10**9, 2000 - len(common))]) for _ in range(2))
            one, other = signatures([left, right])
            agree.append((one == other).mean())
        jaccard = shared / (2 - shared)
        assert abs(np.mean(agree) - jaccard) < 0.03


def test_signatures_do_not_depend_on_the_neighbours_or_on_blocks():
    documents = [*texts(5, 30), "", *texts(2, 2 * BLOCK + 17, seed=4), *texts(5, 700, seed=5), "tiny"]
    together = signatures(documents)
    for document, one in zip(documents, together, strict=True):
        assert (signatures([document])[0] == one).all()
    assert (group(together) == np.arange(len(documents))).all()
    assert (signatures(documents) == together).all()
