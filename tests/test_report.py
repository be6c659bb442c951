"""What have I got? Every part is there, the sentence is true, text stays text, and it works for every tokenizer."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from markov import Limits, Slots

from nomoat.core.errors import DataError
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer, train_bpe
from nomoat.evaluate.bits import Excerpt, stream_bits
from nomoat.evaluate.oddest import oddest_lines
from nomoat.evaluate.passages import continue_passages
from nomoat.evaluate.report import report
from nomoat.evaluate.surprise import surprise
from nomoat.sampling.tokens import SamplingOptions

ODD = "zq9 @@ kx;; 0#7 vj!! wq$$ xx9 zz%%"


def words(seed, lines, odd=None):
    """Lines of words from a small language; one odd line in between."""
    chance = random.Random(0)
    known = ["".join(chance.choices("etaoinsh", k=chance.randint(2, 7))) for _ in range(60)]
    chance = random.Random(seed)
    made = [" ".join(chance.choices(known, k=6)) for _ in range(lines)]
    if odd is not None:
        made[odd] = ODD
    return "\n".join(made) + "\n"


TRAINING = [words(seed, 40) for seed in range(30)]
HELD_OUT = [words(100 + seed, 40, odd=17 if seed == 3 else None) for seed in range(12)]
TOKENIZERS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer("".join(TRAINING) + ODD),
    "bpe": train_bpe(TRAINING, 320),
}


class Pairs:
    """Counts of pairs in a text, as a model: it scores and it writes."""

    def __init__(self, tokenizer, texts, context_length=32):
        size = tokenizer.vocab_size
        self.config = Limits(context_length, size)
        counts_VV = np.full((size, size), 0.01)
        for text in texts:
            ids = np.concatenate([[tokenizer.eot], tokenizer.encode(text), [tokenizer.eot]]).astype(int)
            np.add.at(counts_VV, (ids[:-1], ids[1:]), 1)
        self.logp_VV = torch.tensor(np.log(counts_VV / counts_VV.sum(1, keepdims=True))).float()

    def score(self, batch):
        return self.logp_VV[batch["tokens"][:, :-1], batch["tokens"][:, 1:]] * batch["mask"][:, 1:]

    def memory(self, slots, length):
        return Slots(slots, length)

    def begin(self, batch, memory, slots):
        pass

    def decode(self, tokens_BL, memory, slots, last=False):
        for tokens, slot in zip(tokens_BL.tolist(), slots, strict=True):
            memory.rows[slot] += tokens
            assert len(memory.rows[slot]) <= memory.length
        return self.logp_VV[tokens_BL[:, -1:] if last else tokens_BL]


def dataset(folder, tokenizer, training=TRAINING, held_out=HELD_OUT):
    for split, texts in (("train", training), ("heldout", held_out)):
        writer = ShardWriter(folder, split, tokenizer)
        for number, text in enumerate(texts):
            writer.add(tokenizer.encode(text), {"source": f"{split}/{number}.txt", "member": "", "offset": 0})
        writer.finish()
    return folder


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_part_is_there(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]
    events = []
    found = report(Pairs(tokenizer, TRAINING), tokenizer, dataset(tmp_path, tokenizer), watch=events.append)
    assert [one.name for one in found.baselines] == ["gzip", "xz", "5-gram"]
    assert found.model.documents == 12
    assert found.model.bytes == sum(len(text.encode()) for text in HELD_OUT)
    assert len(found.passages) == 5
    for passage in found.passages:
        document = HELD_OUT[int(passage.where.split("/")[1].split(".")[0])]
        line = int(passage.where.split("line ")[1])
        assert document.split("\n", line - 1)[-1].startswith(passage.prompt + passage.truth)
        assert passage.written and passage.prompt and passage.truth
        for copy, text in ((passage.copied, passage.written), (passage.truth_copied, passage.truth)):
            if copy is not None:
                assert copy.text in text and copy.text in TRAINING[copy.document]
                assert copy.where.startswith(f"train/{copy.document}.txt, line")
            assert ("Nothing of what it wrote" in passage.origin) == (passage.copied is None)
    assert any(passage.truth_copied for passage in found.passages)
    assert found.oddest[0].where == "heldout/3.txt, line 18"
    assert found.oddest[0].text == ODD
    assert 1 <= len(found.oddest) <= 10
    assert {event["detail"] for event in events if event["kind"] == "phase"} != set()
    for text in (found.as_text(), found.as_markdown()):
        for part in ("What have I got?", found.verdict, "xz", "5-gram", "gzip", "heldout/3.txt, line 18"):
            assert part in text
    data = json.loads(json.dumps(found.as_json()))
    assert data["bits_per_byte"] == found.model.value
    assert set(data["baselines"]) == {"gzip", "xz", "5-gram"}
    assert len(data["passages"]) == 5 and len(data["oddest"]) == len(found.oddest)


def test_the_same_seed_gives_the_same_report(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    folder = dataset(tmp_path, tokenizer)
    first, second = (report(Pairs(tokenizer, TRAINING), tokenizer, folder).as_text() for _ in range(2))
    assert first == second


def test_the_sentence_says_which_is_better(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    found = report(Pairs(tokenizer, TRAINING), tokenizer, dataset(tmp_path, tokenizer))

    def verdict(*bits):
        changed = tuple(replace(one, bits_per_byte=figure) for one, figure in zip(found.baselines, bits, strict=True))
        return replace(found, model=replace(found.model, value=2.0, low=1.9, high=2.1), baselines=changed).verdict

    assert verdict(3.0, 2.5, 2.2).endswith("It is better than gzip (3.00), xz (2.50) and the 5-gram model (2.20).")
    mixed = verdict(3.0, 1.5, 2.05)
    assert "It is better than gzip (3.00)." in mixed
    assert "cannot be told apart from the 5-gram model (2.05)." in mixed
    assert "Better, given the same training text: xz (1.50)" in mixed
    beaten = verdict(1.8, 1.5, 1.0)
    assert "text: gzip (1.80), xz (1.50) and the 5-gram model (1.00)." in beaten and "not worth" in beaten
    assert verdict(3, 3, 3).startswith(
        "Your model needs 2.00 bits for a byte of text that it has never seen (95 %: 1.90"
    )


def test_the_table_begins_with_the_best(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    text = report(Pairs(tokenizer, TRAINING), tokenizer, dataset(tmp_path, tokenizer)).as_text()
    table = [line.split() for line in text.split("\n")[4:9]]
    figures = [float(row[2 if row[0] == "your" else 1]) for row in table[1:]]
    assert figures == sorted(figures) and len(figures) == 4


def test_odd_lines_cost_what_they_cost_with_full_context(tmp_path):
    """A line read again on its own costs exactly what reading its whole file with half overlap gives."""
    tokenizer = TOKENIZERS["bpe"]
    folder = dataset(tmp_path, tokenizer)
    model = Pairs(tokenizer, TRAINING)
    excerpt = Excerpt.of(ShardReader(folder, "heldout"))
    bits_N = stream_bits(model, excerpt, tokenizer.lengths, tokenizer.eot)
    lines = oddest_lines(model, tokenizer, excerpt, bits_N, lambda document, before: f"{document} {before}", 4)
    for line in lines:
        document, before = map(int, line.where.split())
        whole = surprise(model, tokenizer, {"x": HELD_OUT[document]})
        same = whole.lines[before]
        assert (same.text, same.number) == (line.text, line.number)
        assert line.bits == pytest.approx(same.bits, rel=1e-4)
        assert line.bits_C == pytest.approx(same.bits_C, rel=1e-3)


def test_text_of_the_files_stays_text(tmp_path):
    evil = "\x1b[31m```\n# <script>alert(1)</script> | [x](http://x)\n"
    tokenizer = ByteTokenizer()
    texts = [evil * 20 + words(seed, 20) for seed in range(4)]
    folder = dataset(tmp_path, tokenizer, texts, texts)
    found = report(Pairs(tokenizer, texts), tokenizer, folder)
    assert "\x1b" not in found.as_text() + found.as_markdown()
    for line in found.as_markdown().split("\n"):
        if "<script" in line or "```" in line:
            assert line.startswith("    ")  # a code block: shown, not read
    assert found.model.resampled == "blocks"


@pytest.mark.parametrize("held_out", [["tiny\n"], ["a"], ["", "one line without end"], [words(1, 400)]])
def test_small_and_strange_held_out_parts(tmp_path, held_out):
    tokenizer = ByteTokenizer()
    found = report(Pairs(tokenizer, TRAINING), tokenizer, dataset(tmp_path, tokenizer, held_out=held_out))
    assert math.isfinite(found.model.value)
    assert len(found.passages) <= 5
    assert found.as_text() and found.as_markdown()
    if held_out == [words(1, 400)]:
        assert len(found.passages) == 5


def test_a_sample_of_a_large_held_out_part(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    found = report(Pairs(tokenizer, TRAINING), tokenizer, dataset(tmp_path, tokenizer), most_tokens=1500)
    assert found.model.documents < 12
    assert all(one.where.startswith("heldout/") for one in found.passages)


def test_another_tokenizer_or_no_held_out_part_is_an_error(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    with pytest.raises(DataError, match="another tokenizer"):
        report(Pairs(ByteTokenizer(), []), ByteTokenizer(), dataset(tmp_path / "a", tokenizer))
    with pytest.raises(DataError, match="empty"):
        report(Pairs(tokenizer, []), tokenizer, dataset(tmp_path / "b", tokenizer, held_out=[]))


def test_passages_come_from_different_documents_where_there_are_enough(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    folder = dataset(tmp_path, tokenizer)
    excerpt, training = Excerpt.of(ShardReader(folder, "heldout")), ShardReader(folder, "train")
    model = Pairs(tokenizer, TRAINING)

    def passages(seed):
        writing = SamplingOptions(seed=seed)
        return continue_passages(model, tokenizer, excerpt, training, lambda d, n: f"{d}", 5, writing)

    assert len({one.where for one in passages(0)}) == 5
    assert [one.prompt for one in passages(0)] != [one.prompt for one in passages(1)]
