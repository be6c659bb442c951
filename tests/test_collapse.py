"""Diversity on small cases worked out by hand, and the collapse guard on shards."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from folders import TINY
from folders import WORDS as PLAIN
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nomoat import train
from nomoat.core.errors import DataError
from nomoat.data.pictures import PictureFiles
from nomoat.data.shards import ShardWriter
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.evaluate import collapse
from nomoat.evaluate.collapse import CollapseError, Mixture, drifted, guard, mixture
from nomoat.evaluate.diversity import compare, cut, diversity


def documents(*texts: str):
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def test_distinct_ngrams_are_counted_within_documents() -> None:
    found = diversity(documents("abab", "ab"), documents("abab", "ab"))
    assert (found.tokens, found.distinct_1) == (6, 2 / 6)
    assert found.distinct_2 == 2 / 4  # ab, ba, ab | ab: none reaches across the border
    assert found.distinct_3 == 1.0  # aba, bab
    assert found.hapax == 1 / 2  # ba
    assert found.entropy == pytest.approx(1.0)


def test_self_similarity_is_what_another_document_has_too() -> None:
    assert diversity(documents("abcde", "abcdx"), documents("a")).shared == 2 / 4
    assert diversity(documents("abcdabcd"), documents("a")).shared == 0.0
    assert diversity(documents("abcdefgh", "abcdefgh"), documents("a")).shared == 1.0


def test_the_tail_is_rare_in_the_real_text_or_not_in_it() -> None:
    real = documents("a" * 80 + "b" * 12 + "c" * 5 + "d" * 3)
    assert diversity(real, real).tail == pytest.approx(0.08)  # c and d are the last tenth
    assert diversity(documents("aaab"), real).tail == 0.0
    assert diversity(documents("cdez"), real).tail == 1.0


def test_lengths_are_held_against_the_real_ones() -> None:
    real = documents("a", "aa", "aaa", "aaaa")
    assert diversity(real, real).length_distance == 0.0
    assert diversity(documents("aaaaa", "aaaaaa"), real).length_distance == 1.0
    assert diversity(documents("aa", "aa"), real).length_distance == 0.5


def test_type_token_ratio_is_taken_in_blocks_of_equal_length() -> None:
    block = np.arange(256, dtype=np.int64)
    assert diversity([block, block % 64], [block]).type_token == pytest.approx((1 + 64 / 256) / 2)
    assert diversity([block[:4]], [block]).type_token == 1.0


def test_repetition_compresses() -> None:
    chance = np.random.default_rng(0)
    loop, noise = np.tile([5, 6, 7], 400), chance.integers(0, 60_000, 1200)
    assert diversity([loop], [loop]).compressed < 0.05 < diversity([noise], [noise]).compressed


@given(st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=30), min_size=1, max_size=5))
def test_distinct_is_what_sets_say(lists) -> None:
    found = diversity([np.array(each) for each in lists], [np.array([1])])
    for length, name in ((1, "distinct_1"), (2, "distinct_2"), (3, "distinct_3")):
        grams = [tuple(each[i : i + length]) for each in lists for i in range(len(each) - length + 1)]
        assert getattr(found, name) == pytest.approx(len({*grams}) / max(1, len(grams)))


def test_both_texts_are_cut_to_one_size() -> None:
    assert [*map(len, cut(documents("abc", "", "def"), 5))] == [3, 2]
    ours, real = compare(documents("abcabc"), documents("abcd"))
    assert (ours.tokens, real.tokens) == (4, 4)
    ratio = ours.against(real)
    assert ratio["distinct_1"] == pytest.approx(3 / 4)
    with pytest.raises(DataError, match="no text to compare"):
        compare([], documents("a"))


# The guard

CHANCE = np.random.default_rng(7)
WORDS = [bytes(CHANCE.integers(97, 123, CHANCE.integers(2, 9)).tolist()) for _ in range(1500)]
SHARE = 1 / np.arange(1, 1501)


def text(count: int, seed: int, words: int = 1500):
    """Documents of words with Zipf's shares."""
    chance = np.random.default_rng(seed)
    share = SHARE[:words] / SHARE[:words].sum()
    drawn = [b" ".join(WORDS[place] for place in chance.choice(words, 40, p=share)) for _ in range(count)]
    return [np.frombuffer(each, dtype=np.uint8) for each in drawn]


def dataset(folder, parts, held_out=()):
    tokenizer = ByteTokenizer()
    for split, chosen in (("train", parts), ("heldout", held_out)):
        writer = ShardWriter(folder, split, tokenizer)
        for generation, each in chosen:
            for document in each:
                writer.add(document, {"generation": generation, "origin": "model" if generation else "human"})
        writer.finish()
    return folder


def test_tokens_are_counted_by_generation(tmp_path) -> None:
    folder = dataset(tmp_path / "a", [(0, documents("abc")), (2, documents("de", "f"))])
    found = mixture([folder, dataset(tmp_path / "b", [(1, documents("g"))])])
    assert dict(found.tokens) == {0: 4, 1: 2, 2: 5}
    assert (found.real, found.generation, found.real_share) == (4, 2, 4 / 11)


def test_real_text_beside_synthetic_text_is_fine(tmp_path) -> None:
    found = guard([dataset(tmp_path / "a", [(0, text(60, 0)), (1, text(50, 1))])])
    assert found.warnings == ()
    assert [*found.drift] == [1]
    assert drifted(found.drift[1]) == []


def test_little_real_text_is_said_and_hardly_any_is_refused(tmp_path) -> None:
    found = guard([dataset(tmp_path / "a", [(0, text(20, 0)), (1, text(60, 1))])])
    assert any("below half" in warning for warning in found.warnings)
    few = dataset(tmp_path / "b", [(0, text(2, 0)), (1, text(60, 1))])
    with pytest.raises(CollapseError, match="real"):
        guard([few])
    assert "overridden: a study" in guard([few], override="a study").warnings[0]
    with pytest.raises(CollapseError):
        guard([few], override="  ")


def test_real_text_may_not_be_taken_away(tmp_path) -> None:
    before = Mixture({0: 10_000_000})
    folder = dataset(tmp_path / "a", [(0, text(60, 0)), (1, text(10, 1))])
    with pytest.raises(CollapseError, match="taken away: 10,000,000"):
        guard([folder], before)
    assert guard([folder], mixture([folder])).warnings == ()


def test_depth_is_said(tmp_path) -> None:
    found = guard([dataset(tmp_path / "a", [(0, text(60, 0)), (3, text(20, 1))])])
    assert any("generation 3" in warning for warning in found.warnings)


@pytest.mark.parametrize("words", [3, 12])
def test_text_that_has_lost_its_tail_is_refused_where_next_to_nothing_is_real(tmp_path, words) -> None:
    parts = [(1, text(55, 1)), (2, text(40, 2, words))]
    with pytest.raises(CollapseError, match="generation 2 has drifted"):
        guard([dataset(tmp_path / "a", parts)], real=text(60, 0), taught=True)
    found = guard([dataset(tmp_path / "b", [(0, text(60, 0)), *parts])])
    assert [*found.drift] == [1, 2]
    assert drifted(found.drift[1]) == []
    assert any("generation 2 has drifted" in each and "real text keep it" in each for each in found.warnings)


def test_noise_is_seen_too(tmp_path) -> None:
    noise = [CHANCE.integers(0, 256, 240) for _ in range(50)]
    with pytest.raises(CollapseError, match="drifted"):
        guard([dataset(tmp_path / "a", [(1, noise)])], real=text(60, 0), taught=True)
    found = guard([dataset(tmp_path / "b", [(0, text(60, 0)), (1, noise)])])
    assert any("has drifted" in each for each in found.warnings)


def test_held_out_real_text_serves_as_the_reference(tmp_path) -> None:
    folder = dataset(tmp_path / "a", [(1, text(40, 2, 3))], [(0, text(60, 0)), (1, text(60, 1))])
    with pytest.raises(CollapseError, match=r"only 0\.0%"):
        guard([folder])
    assert len(guard([folder], override="to see it").warnings) == 2


def test_too_little_text_is_not_judged(tmp_path) -> None:
    found = guard([dataset(tmp_path / "a", [(0, text(10, 0)), (1, documents("aaaa"))])])
    assert (dict(found.drift), found.warnings) == ({}, ())
    assert collapse.LEAST_TOKENS > 4


def drawn(where: Path, real: int, made: int) -> Path:
    """A folder of noisy pictures, some of which say that nomoat drew them."""
    where.mkdir()
    chance, said = np.random.default_rng(0), PngInfo()
    said.add_text("nomoat", "{}")
    for number in range(real + made):
        picture = Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(where / f"{number}.png", pnginfo=said if number >= real else None)
    return where


def test_pictures_that_a_model_drew_are_counted_like_text(tmp_path: Path) -> None:
    [few] = PictureFiles(str(drawn(tmp_path / "few", 9, 31)), 16).prepare(tmp_path / "data").paths
    found = mixture([few])
    assert found.unit == "pictures" and {*found.tokens} == {0, 1} and 30 < sum(found.tokens.values()) <= 40
    assert "pictures are real" in guard([few]).warnings[0]
    [none] = PictureFiles(str(drawn(tmp_path / "none", 1, 40)), 16).prepare(tmp_path / "data").paths
    with pytest.raises(CollapseError, match="pictures are real"):
        guard([none])
    assert guard([none], taught=True).warnings


def test_a_folder_that_is_no_dataset(tmp_path) -> None:
    with pytest.raises(DataError, match="no complete"):
        guard([tmp_path])


def rows(folder, generations):
    """A folder with a .jsonl of documents, one for each generation given."""
    folder.mkdir()
    chance = random.Random(0)
    made = [{"text": " ".join(chance.choices(PLAIN, k=90)), "origin": "model" if g else "human", "generation": g}
            for g in generations]  # fmt: skip
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return [*TINY, f"data.path={folder}", "budget=2steps"]


def test_a_training_on_models_text_alone_does_not_begin(runs_root, tmp_path, monkeypatch) -> None:
    overrides = rows(tmp_path / "notes", [1] * 40)
    with pytest.raises(CollapseError, match=r"only 0\.0%"):
        train("gpt-small", overrides)
    monkeypatch.setenv("NOMOAT_SYNTHETIC", "to learn from a larger model")
    said = []
    run = train("gpt-small", overrides, watch=said.append)
    assert run.status == "done"
    assert run.decided("real_share") == 0.0
    assert any("to learn from a larger model" in event.get("text", "") for event in said)


def test_a_training_on_half_of_each_is_noted(runs_root, tmp_path) -> None:
    run = train("gpt-small", rows(tmp_path / "notes", [0, 1] * 30))
    assert 0.3 < run.decided("real_share") < 0.7
    assert run.metrics("diversity")[0]["generation"] == 1


def test_a_training_on_real_text_decides_nothing(runs_root, tmp_path) -> None:
    assert train("gpt-small", rows(tmp_path / "notes", [0] * 40)).decided("real_share") is None
