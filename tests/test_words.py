"""Captions as words, and the tower that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from nomoat.core.errors import DataError
from nomoat.data.tokenizer import load
from nomoat.data.words import WordTokenizer, padded, split
from nomoat.nn.caption import Caption, dropped

CAPTIONS = ["A red square left of 2 blue circles.", "the man's Ärger, a red hat!"]


def test_words_there_and_back_and_in_tokenizers(tmp_path: Path) -> None:
    made = WordTokenizer.of(CAPTIONS)
    for caption in CAPTIONS:
        ids = made.encode(caption)
        assert made.decode(ids) == " ".join(split(caption)) and made.eot not in ids
    made.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    assert isinstance(again, WordTokenizer) and again.hash == made.hash
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert all(other.encode(caption).ids == made.encode(caption).tolist() for caption in CAPTIONS)


def test_all_unknown_words_are_named_with_what_is_near() -> None:
    made = WordTokenizer.of(CAPTIONS)
    with pytest.raises(DataError) as told:
        made.encode("a read squares zebra, zebra")
    assert "read, squares, zebra" in str(told.value) and "`red`" in str(told.value) and "`square`" in str(told.value)
    assert made.decode(made.known("a read squares zebra red")) == "a red"
    assert WordTokenizer.of(["a a a b b c"], most=2).words == ["a", "b"]
    assert WordTokenizer.of(["a a a b b c"], fewest=2).words == ["a", "b"]


def test_padded_keeps_the_beginning() -> None:
    ids, there = padded([np.array([1, 2, 3]), np.array([], int), np.array([4])], 2, 9)
    assert ids.tolist() == [[1, 2], [9, 9], [4, 9]]
    assert there.tolist() == [[True, True], [False, False], [True, False]]


def test_padding_changes_nothing_and_nothing_is_learned() -> None:
    torch.manual_seed(0)
    tower = Caption(7, 5, 16, 1, 2)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    caption = torch.tensor([[1, 2, 6, 6, 6], [3, 4, 5, 1, 2], [6, 6, 6, 6, 6]])
    mask = caption != 6
    context, valid, pooled = tower({"caption": caption, "caption_mask": mask})
    short, _, pooled_short = tower({"caption": caption[:1, :2], "caption_mask": mask[:1, :2]})
    torch.testing.assert_close(context[:1, :2], short, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled[:1], pooled_short, rtol=1e-4, atol=1e-5)
    assert valid[2].tolist() == [True, False, False, False, False]
    pooled[2].sum().backward()
    assert tower.nothing.grad is not None and tower.nothing.grad.abs().sum() > 0


def test_captions_are_dropped_by_row() -> None:
    batch = {"caption": torch.ones(1000, 3).long(), "caption_mask": torch.ones(1000, 3, dtype=torch.bool)}
    left = dropped(batch, 0.3, torch.Generator().manual_seed(0))["caption_mask"]
    assert torch.equal(left.any(1), left.all(1)) and 0.25 < 1 - left.any(1).float().mean() < 0.35
    assert dropped(batch, 0.0, torch.Generator()) is batch
