"""Lessons: what is taught is what is served, every conversation once an epoch, and the same from any step on."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversations import CHATML
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.chat import Chat
from nomoat.data.conversations import Conversation
from nomoat.data.document import Dropped
from nomoat.data.lessons import Lessons, lesson_of, write_lessons
from nomoat.data.manifest import Manifest
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer
from nomoat.families.lm import LM, LanguageModel
from nomoat.nn.backbone import Backbone


def talk(*turns: str, **ledger: Any) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        tuple({"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)), "a.jsonl", **ledger
    )


def talks(count: int, seed: int = 0) -> list[Conversation]:
    chance = random.Random(seed)
    words = ("red", "blue", "seven", "river", "stone", "lamp", "under", "quick", "paper", "north", "salt", "moon")
    said = lambda most: " ".join(chance.choice(words) for _ in range(chance.randint(1, most)))  # noqa: E731
    return [talk(f"{number} {said(6)}?", said(8), line=number) for number in range(1, count + 1)]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    folder = tmp_path / "words"
    folder.mkdir()
    ByteTokenizer().save(folder / "tokenizer.json")
    (folder / "chat.json").write_text(json.dumps({"template": CHATML, "bos": None, "eos": "<|endoftext|>"}))
    return folder


def taught(folder: Path, batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[bool]]]:
    """Ids and learn masks of all conversations in a batch, by its documents and positions."""
    found = []
    for tokens, mask, document, positions in zip(
        *(batch[n].tolist() for n in ("tokens", "mask", "document", "positions")), strict=True
    ):
        for number in dict.fromkeys(d for d in document if d >= 0):
            here = [slot for slot, d in enumerate(document) if d == number]
            assert [positions[slot] for slot in here] == list(range(len(here)))
            found.append(([tokens[slot] for slot in here], [mask[slot] for slot in here]))
    return found


def test_what_is_taught_is_what_is_served(tmp_path: Path, words: Path) -> None:
    rows, tokenizer = talks(40), ByteTokenizer()
    made = write_lessons(tmp_path / "d", rows, words, 200)
    lessons = Lessons(str(tmp_path / "d"), 500, (made.id,))
    chat = Chat.of(tmp_path / "d")
    expected = {tuple(chat.tokens(row.messages, tokenizer, answer=False)[0]): row for row in rows}
    opened = lessons.open()
    every = [one for batch in islice(lessons.stream(None, 1, 0), opened.size) for one in taught(tmp_path, batch)]
    assert len(every) == made.splits["train"]["documents"] == 36
    for ids, mask in every:
        row = expected.pop(tuple(ids))
        prompt, _ = chat.tokens(row.messages[:-1], tokenizer)
        assert ids[: len(prompt)] == prompt  # as the server begins
        assert not any(mask[: len(prompt)]) and mask == chat.tokens(row.messages, tokenizer, answer=False)[1]
    held = [tuple(ids) for batch in lessons.held_out(None, 2, 9999) for ids, _ in taught(tmp_path, batch)]
    assert sorted(held) == sorted(expected)
    assert opened.epoch_samples < 36  # packed


def test_any_step_any_world_and_what_lies_beside(tmp_path: Path, words: Path) -> None:
    write_lessons(tmp_path / "d", talks(60), words, 200)
    lessons = Lessons(str(tmp_path / "d"), 200)
    whole = list(islice(lessons.stream(None, 4, 7), 9))
    for step, batch in zip(range(5, 9), lessons.stream(None, 4, 7, start=5), strict=False):
        assert all(torch.equal(batch[name], whole[step][name]) for name in batch)
    for rank in (0, 1):
        batch = next(lessons.stream(None, 4, 7, start=3, rank=rank, world=2))
        assert torch.equal(batch["tokens"], whole[3]["tokens"][rank::2])
    reader = lessons.open().reader
    beside, place = np.arange(reader.tokens) * 2.0, whole[0]["place"].numpy()
    assert (np.where(place >= 0, beside[place], -1)[whole[0]["mask"].numpy()] >= 0).all()
    assert (reader.gather(place[place >= 0]) == whole[0]["tokens"].numpy()[place >= 0]).all()


def test_packed_together_is_the_same_as_apart(tmp_path: Path, words: Path) -> None:
    write_lessons(tmp_path / "d", talks(20), words, 200)
    torch.manual_seed(0)
    model = LanguageModel(LM(257, 300, Backbone(width=32, depth=2, heads=2, causal=True)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    [batch] = islice(Lessons(str(tmp_path / "d"), 300).stream(model, 3, 0), 1)
    together = model.loss(batch)
    apart = [
        model.loss({"tokens": torch.tensor([ids]), "mask": torch.tensor([mask])})
        for ids, mask in taught(tmp_path, batch)
    ]
    assert int(together.count) == sum(int(one.count) for one in apart)
    assert together.total.item() == pytest.approx(sum(one.total.item() for one in apart), rel=1e-5)


@settings(max_examples=8)
@given(st.permutations(range(50)))
def test_the_held_out_part_hangs_on_the_contents_alone(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    root = tmp_path_factory.mktemp("held")
    ByteTokenizer().save(root / "tokenizer.json")
    rows = talks(50)
    made = [
        write_lessons(root / name, some, root, 200) for name, some in (("a", rows), ("b", [rows[n] for n in order]))
    ]
    first, second = ({line["hash"] for line in one.held_out} for one in made)
    assert first == second and 1 <= len(first) <= 5


def test_near_duplicates_stay_on_one_side_and_equal_ones_are_said(tmp_path: Path, words: Path) -> None:
    long = "the lamp stands under the quick north river and nobody has seen the moon over the salt stones since"
    rows = [
        *talks(30),
        *(talk("Say it.", f"{long} {word}") for word in ("one", "two", "three")),
        talk("Say it.", f"{long} one"),
    ]
    made = write_lessons(tmp_path / "d", [*rows, Dropped("a.jsonl", "line 9", "broken JSON")], words, 300)
    assert made.dropped == {"duplicate": 1, "broken JSON": 1} and made.near_duplicates >= 3
    sides = [
        any(long in m["content"] for m in one) for one in Lessons(str(tmp_path / "d"), 300).open("heldout").messages()
    ]
    assert sum(sides) in (0, 3)


def test_too_long_ones_lose_their_oldest_turns_then_the_end_and_are_counted(tmp_path: Path, words: Path) -> None:
    chat, tokenizer = Chat.of(words), ByteTokenizer()
    system = {"role": "system", "content": "Be brief."}
    turns = talk("first question", "first answer", "second question", "second answer").messages
    size = len(chat.tokens([system, *turns], tokenizer, answer=False)[0])
    assert not lesson_of([system, *turns], chat, tokenizer, size).shortened  # type: ignore[union-attr]
    shorter = lesson_of([system, *turns], chat, tokenizer, size - 1)
    assert shorter is not None and shorter.shortened
    assert shorter.ids == chat.tokens([system, *turns[2:]], tokenizer, answer=False)[0]
    cut = lesson_of([system, *turns], chat, tokenizer, len(shorter.ids) - 20)
    assert cut is not None and cut.ids == shorter.ids[:-20] and any(cut.learn) and tokenizer.eot not in cut.ids
    assert lesson_of(talk("x" * 500, "short").messages, chat, tokenizer, 200) is None
    rows = [*talks(20), talk("why?", "because " * 50), talk("x" * 500, "short", line=77)]
    made = write_lessons(tmp_path / "d", rows, words, 200)
    assert made.settings["shortened"] == 1 and made.settings["longest"] == 200
    assert made.dropped == {"no answer within the context": 1}
    with pytest.raises(ConfigError, match="cannot hold the longest"):
        Lessons(str(tmp_path / "d"), 150).open()
    with pytest.raises(DataError, match="no answer within the context"):
        write_lessons(tmp_path / "e", rows[-1:], words, 200)


def test_what_the_tokenizer_cannot_spell_and_the_template_refuses(tmp_path: Path, words: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    (words / "chat.json").write_text(json.dumps({"template": strict, "eos": "<|endoftext|>"}))
    system = Conversation(({"role": "system", "content": "Be brief."}, *talk("a", "b").messages), "a.jsonl", 4)
    made = write_lessons(tmp_path / "d", [*talks(20), system], words, 300)
    assert made.dropped == {"refused by the template": 1}
    [line] = (tmp_path / "d" / "dropped.jsonl").read_text().splitlines()
    assert "no system here" in line
    CharTokenizer("abcdefghijklmnopqrstuvwxyz <|_>\nABCDEFGHIJKLMNOPQRSTUVWXYZ.?").save(words / "tokenizer.json")
    (words / "chat.json").write_text(json.dumps({"template": CHATML, "eos": "<|endoftext|>"}))
    made = write_lessons(
        tmp_path / "e", [talk("who?", "me."), talk("what?", "it."), talk("cost?", "5 EUR.")], words, 300
    )
    assert made.dropped == {"cannot be spelled for this model": 1}


def test_changed_files_damage_and_a_folder_that_is_there(tmp_path: Path, words: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("{}\n")
    made = write_lessons(tmp_path / "d", talks(20), words, 200, source)
    lessons = Lessons(str(tmp_path / "d"), 200, (made.id,))
    assert lessons.changed() == [] and Manifest.load(tmp_path / "d").source == str(source)
    source.write_text("{ }\n")
    assert lessons.changed() != []
    with pytest.raises(DataError, match="exists already"):
        write_lessons(tmp_path / "d", talks(20), words, 200)
    (tmp_path / "d" / "train-learn.bin").write_bytes(b"\1")
    with pytest.raises(DataError, match="does not fit the shards"):
        lessons.open()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_teachers_and_licences_reach_the_manifest(tmp_path: Path, words: Path) -> None:
    taught = [talk(f"{n}?", f"{n}!", licence="MIT", origin="big-1", terms="openai", generation=1) for n in range(10)]
    made = write_lessons(tmp_path / "d", [*talks(10), *taught], words, 200)
    assert made.settings["teachers"] == [{"teacher": "big-1", "terms": "openai", "licence": "MIT", "rows": 10}]
    assert made.licences.generation == 1 and {share.licence for share in made.licences.shares} == {"MIT", "unknown"}
