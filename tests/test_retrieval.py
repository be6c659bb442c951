"""Retrieval and zero-shot classification, on vectors whose answers are known."""

from __future__ import annotations

import pytest
import torch

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.words import WordTokenizer
from nomoat.evaluate.retrieval import nearer, retrieval, zero_shot


class Known:
    """Encodes a picture by the number in its first pixel, a caption by its first word: unit vectors of a table."""

    def __init__(self, pictures, captions):
        self.tables = pictures, captions

    def encode(self, batch):
        if "image" in batch:
            return self.tables[0][batch["image"][:, 0, 0, 0].long()]
        return self.tables[1][batch["caption"][:, 0]]


def batches(words, size=2):
    count = len(words)
    image = torch.arange(count).float()[:, None, None, None].expand(count, 1, 2, 2)
    caption = torch.tensor(words)[:, None]
    whole = {"image": image, "caption": caption, "caption_mask": torch.ones_like(caption, dtype=torch.bool)}
    return [{name: each[first : first + size] for name, each in whole.items()} for first in range(0, count, size)]


def by_name(found):
    return {each.name: each for each in found}


def test_a_perfect_model_finds_everything():
    unit = torch.eye(6)
    found = by_name(retrieval(Known(unit, unit), batches([0, 1, 2, 3, 4, 5]), (1, 3)))
    assert len(found) == 6
    assert all(each.value == each.low == each.high == 1 for each in found.values())
    assert found["mean of both, recall@3"].chance == pytest.approx(3 / 6)
    assert found["mean of both, recall@1"].times_chance == pytest.approx(6)


def test_ranks_and_directions_are_told_apart():
    # Picture i is at its own caption's place; the captions are moved by one, so that the right one is second.
    pictures = torch.eye(4)
    captions = torch.eye(4).roll(1, 0) * 0.9 + torch.eye(4) * 0.3
    found = by_name(retrieval(Known(pictures, captions), batches([0, 1, 2, 3]), (1, 2)))
    assert found["picture to caption, recall@1"].value == found["caption to picture, recall@1"].value == 0
    assert found["picture to caption, recall@2"].value == 1
    lopsided = torch.eye(4)
    lopsided[1:] = lopsided[0] + 0.1 * lopsided[1:]  # all captions are nearest to picture 0
    found = by_name(retrieval(Known(torch.eye(4), lopsided), batches([0, 1, 2, 3]), (1,)))
    assert found["caption to picture, recall@1"].value == pytest.approx(1 / 4)
    assert found["picture to caption, recall@1"].value == pytest.approx(3 / 4)
    assert found["mean of both, recall@1"].value == pytest.approx(1 / 2)


def test_a_model_for_which_all_is_alike_finds_nothing():
    same = torch.ones(4, 4)
    found = by_name(retrieval(Known(same, same), batches([0, 1, 2, 3]), (1,)))
    assert found["mean of both, recall@1"].value == 0


def test_captions_that_are_the_same_do_not_count_against_each_other():
    pictures, captions = torch.eye(4), torch.eye(4)
    pictures[3] = pictures[0]
    captions[3] = captions[0]
    found = by_name(retrieval(Known(pictures, captions), batches([0, 1, 2, 0]), (1,)))
    assert found["picture to caption, recall@1"].value == 1
    assert found["picture to caption, recall@1"].chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 4 + 1 / 4) / 4)


def test_pictures_without_a_caption_are_left_out():
    given = batches([0, 1, 2, 3], size=4)
    given[0]["caption_mask"][2] = False
    found = retrieval(Known(torch.eye(4), torch.eye(4)), given, (1,))
    assert found[0].count == 3
    given[0]["caption_mask"][1:] = False
    with pytest.raises(DataError, match="1 pictures with captions are no gallery"):
        retrieval(Known(torch.eye(4), torch.eye(4)), given)
    with pytest.raises(ConfigError, match="recall@0"):
        retrieval(Known(torch.eye(4), torch.eye(4)), batches([0, 1]), (0,))


def test_nearer_counts_ties():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert nearer(query, torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist() == [1, 1]


def test_zero_shot_takes_the_nearest_name():
    tokenizer = WordTokenizer(["cat", "dog", "a"])  # ids: a 0, cat 1, dog 2
    captions = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0, 0], [0, 1.0, 0]])
    pictures = torch.tensor([[1.0, 0.1, 0], [0, 1.0, 0], [1.0, 0, 0], [0.1, 1.0, 0]])
    given = [{**batch, "label": label} for batch, label in zip(batches([0, 0, 0, 0]), LABELS, strict=True)]
    found = zero_shot(Known(pictures, captions), given, ["cat", "dog"], tokenizer)
    assert (found.value, found.chance, found.count) == (0.75, 0.5, 4)
    both = zero_shot(Known(pictures, captions), given, ["cat", "dog"], tokenizer, ("{}", "{} a"))
    assert both.value == 0.75
    with pytest.raises(DataError, match="unknown words: bird"):
        zero_shot(Known(pictures, captions), given, ["cat", "bird"], tokenizer)
    with pytest.raises(ConfigError, match="leave nothing to decide"):
        zero_shot(Known(pictures, captions), given, ["cat"], tokenizer)
    with pytest.raises(ConfigError, match="no name goes into"):
        zero_shot(Known(pictures, captions), given, ["cat", "dog"], tokenizer, ("a cat",))


LABELS = (torch.tensor([0, 1]), torch.tensor([0, 0]))
