"""Other people's tokenizers: the ids that `tokenizers` gives, the bytes behind them, what begins and ends a text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nomoat.core.errors import DataError
from nomoat.data.foreign_tokenizer import ForeignTokenizer
from nomoat.data.ingest import ingest
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import EOT, BpeTokenizer, ByteTokenizer, CharTokenizer, load, train_bpe
from nomoat.evaluate.bits import measure_begun
from nomoat.evaluate.choice import Question, Task, _costs
from nomoat.evaluate.surprise import surprise
from nomoat.families.lm import LM
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import continue_text

TEXTS = ["the cat sat on the mat, the cat's 12 dogs ran 345 times\n\n\tdef f(x):  return x**2\n"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level():
    """As SmolLM2's: digits one by one, then GPT-2's pattern; the special tokens first."""
    made = tokenizers.Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = [EOT, "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=marks)
    )
    return json.loads(made.to_str())


def marks(fallback=True, template=True):
    """As Llama 2's: a space before the text, spaces as a mark, bytes for what no piece holds."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    stripped = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(stripped)
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))] if fallback else SPECIAL
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=len(pieces) + 60, special_tokens=pieces))
    document = json.loads(made.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in SPECIAL]
    if template:
        made = tokenizers.Tokenizer.from_str(json.dumps(document))
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        document = json.loads(made.to_str())
    return document


BYTES, MARKS, LOSSY = byte_level(), marks(), marks(fallback=False)
CHAT = {"template": None, "bos": "<|im_start|>", "eos": "<|im_end|>", "stops": ["<|im_end|>"], "add_bos": False}
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "the ca\n 1é你\U0001f469▁<s>/", max_size=60
)


@pytest.mark.parametrize("document", [BYTES, MARKS], ids=["bytes", "marks"])
@given(text=any_text)
def test_ids_are_those_of_the_library_and_their_bytes_are_the_texts(document, text):
    tokenizer, theirs = ForeignTokenizer(document), tokenizers.Tokenizer.from_str(json.dumps(document))
    theirs.encode_special_tokens = True
    ids = tokenizer.encode(text)
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert not set(ids.tolist()) & set(tokenizer.special.values())
    spelled = text if document is BYTES else text.replace("▁", " ")  # sentencepiece cannot tell the mark from a space
    assert tokenizer.decode(ids) == spelled
    assert tokenizer.decode_bytes(ids) == ((b" " if tokenizer.prefixes and text else b"") + spelled.encode())
    same, bytes_N = tokenizer.aligned(text)
    assert same.tolist() == ids.tolist() and int(bytes_N.sum()) == len(text.encode()) and (bytes_N >= 0).all()
    if "▁" not in text:
        closed = np.append(ids, tokenizer.eot)
        assert int(tokenizer.lengths[closed].sum()) == len(text.encode()) - (not text and tokenizer.prefixes)
        assert theirs.decode(ids.tolist(), skip_special_tokens=False) == text


def test_what_begins_and_ends_a_text():
    bare, chatty = ForeignTokenizer(BYTES), ForeignTokenizer(BYTES, CHAT)
    assert (bare.eot, bare.begin, bare.opening, bare.stops) == (0, (), 0, (0, 2))
    assert (chatty.eot, chatty.begin, chatty.opening, chatty.stops) == (0, (), 0, (2, 0))
    assert ForeignTokenizer(BYTES, {**CHAT, "add_bos": True}).begin == (1,)
    llama = ForeignTokenizer(MARKS)
    assert (llama.eot, llama.begin, llama.opening, llama.stops) == (2, (1,), 1, (2,))
    assert llama.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert ForeignTokenizer(marks(template=False), {"bos": "<s>", "eos": "<s>", "add_bos": True}).stops == (1, 2)
    assert all(llama.token_bytes(token) == b"" for token in range(3))
    assert llama.token_bytes(3 + 10) == b"\n"
    ours = ByteTokenizer()
    assert (ours.begin, ours.stops, ours.opening, ours.special) == ((256,), (256,), 256, {EOT: 256})


def test_special_tokens_are_read_only_where_they_are_wanted():
    for tokenizer, spelled in (
        (ForeignTokenizer(BYTES), EOT),
        (ForeignTokenizer(MARKS), "</s>"),
        (ByteTokenizer(), EOT),
    ):
        text = f"a{spelled}b"
        assert tokenizer.eot not in tokenizer.encode(text)
        assert tokenizer.encode_marked(text).tolist().count(tokenizer.eot) == 1
        assert tokenizer.encode_marked("a b").tolist() == tokenizer.encode("a b").tolist()
    assert CharTokenizer("ab").encode_marked(f"ab{EOT}a").tolist() == [0, 1, 2, 0]
    # a plain token that chat.json names is special from then on
    piece = next(piece for piece in MARKS["model"]["vocab"] if len(piece) > 1 and piece.isalpha())
    named = ForeignTokenizer(MARKS, {"eos": piece})
    assert named.stops == (named.special[piece], 2) and named.special[piece] in named.encode_marked(f"x{piece}")


def test_what_goes_on_has_the_ids_that_it_has_in_the_whole():
    for document in (BYTES, MARKS):
        tokenizer = ForeignTokenizer(document)
        whole = tokenizer.encode("the cat sat").tolist()
        assert whole == [*tokenizer.encode("the cat"), *tokenizer.encode_on(" sat")]


def test_the_file_comes_back_and_ours_stay_ours(tmp_path):
    path = tmp_path / "tokenizer.json"
    for document in (BYTES, MARKS):
        ForeignTokenizer(document).save(path)
        again = load(path)
        assert isinstance(again, ForeignTokenizer) and again.kind == "foreign"
        assert again.hash == ForeignTokenizer(document, CHAT).hash
        assert again.encode("the 12").tolist() == ForeignTokenizer(document).encode("the 12").tolist()
    assert ForeignTokenizer(BYTES).hash != ForeignTokenizer(MARKS).hash
    ForeignTokenizer(BYTES).save(path)
    (tmp_path / "chat.json").write_text(json.dumps({**CHAT, "add_bos": True}))
    assert load(path).begin == (1,)
    (tmp_path / "chat.json").write_text("[1]")
    with pytest.raises(DataError, match=r"chat\.json"):
        load(path)
    for ours in (train_bpe(TEXTS, 300), ByteTokenizer(), CharTokenizer("abc")):
        ours.save(path)
        assert type(load(path)) is type(ours)


def test_ids_with_holes_cut_texts_and_a_changed_text_are_right(tmp_path):
    document = {**BYTES, "truncation": {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}}
    document["model"] = {**BYTES["model"], "vocab": {**BYTES["model"]["vocab"], "far": 400}}
    tokenizer = ForeignTokenizer(document)
    assert tokenizer.vocab_size == 401 and tokenizer.token_bytes(399) == b""
    assert tokenizer.decode(tokenizer.encode("the cat sat on the mat")) == "the cat sat on the mat"
    composed = ForeignTokenizer({**BYTES, "normalizer": {"type": "NFC"}})
    ids, bytes_N = composed.aligned("cafe\u0301 the")  # six characters and a combining one: seven bytes become six
    assert len(composed.decode_bytes(ids)) == 9 and int(bytes_N.sum()) == 10
    lossy = ForeignTokenizer(LOSSY)
    ids, bytes_N = lossy.aligned("the 你好 cat")
    assert 0 in ids and int(bytes_N.sum()) == len("the 你好 cat".encode())
    assert int(bytes_N[ids.tolist().index(0)]) == 6
    assert lossy.encode("a\ud800").tolist() == lossy.encode("a\ufffd").tolist()


def test_what_cannot_be_read_rightly_is_refused(tmp_path, shared):
    with pytest.raises(DataError, match="WordPiece"):
        load(shared / "weights" / "potion-base-4m" / "tokenizer.json")
    torchtitan = shared / "weights" / "tokenizers" / "torchtitan-test-tokenizer.json"
    with pytest.raises(DataError, match="no token that ends"):
        load(torchtitan)
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    (tmp_path / "tokenizer.json").write_text(unigram.to_str())
    with pytest.raises(DataError, match="Unigram"):
        load(tmp_path / "tokenizer.json")
    broken = {**BYTES, "model": {**BYTES["model"], "merges": [["zz", "yy"]]}}
    with pytest.raises(DataError, match="no tokenizer file"):
        ForeignTokenizer(broken)


def small(tokenizer):
    import torch

    torch.manual_seed(0)
    model = LM(tokenizer.vocab_size, 12).build({}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def bits_alone(model, ids, reach):
    """The definition: bits of each id but the first, from at most a window before it, windows back to back."""
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, reach):
            tokens_BL = torch.tensor([ids[start : start + reach + 1]])
            logp_BL = model.score({"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)})
            found += (-logp_BL[0] / np.log(2)).tolist()
    return found


@pytest.mark.parametrize("document", [BYTES, MARKS, LOSSY], ids=["bytes", "marks", "lossy"])
def test_bits_per_byte_surprise_and_choice_of_a_foreign_model(document):
    tokenizer = ForeignTokenizer(document)
    model = small(tokenizer)
    texts = ["the cat sat on the mat\nthe dogs ran 12 times", "é the 你好 cat"]
    ids = [[tokenizer.opening, *tokenizer.encode(text).tolist()] for text in texts]
    figure = measure_begun(model, tokenizer, texts)
    bits = sum(sum(bits_alone(model, one, 12)) for one in ids)
    assert figure.bytes == sum(len(text.encode()) for text in texts) and figure.documents == 2
    assert figure.value == pytest.approx(bits / figure.bytes, rel=1e-4)
    found = surprise(model, tokenizer, {str(number): text for number, text in enumerate(texts)}, context_length=1000)
    for number, text in enumerate(texts):
        assert len(found.bits[str(number)]) == len(text)
        assert found.bits[str(number)].sum() == pytest.approx(sum(bits_alone(model, ids[number], 1000)), rel=1e-4)
    assert surprise(model, tokenizer, {"a": ""}).bits["a"].shape == (0,)
    wide = LM(tokenizer.vocab_size, 500).build({})
    wide.load_state_dict(model.state_dict())
    task = Task("t", (Question("the?", ("cat", "dogs ran"), 0),), ())
    (costs,) = _costs(wide, tokenizer, task, 0, 0, np.array([0]))
    for cost, option in zip(costs, ("cat", "dogs ran"), strict=True):
        whole = [*tokenizer.begin, *tokenizer.encode(f"Question: the?\nAnswer: {option}").tolist()]
        assert cost == pytest.approx(
            sum(bits_alone(wide, whole, 500)[-len(tokenizer.encode_on(f" {option}")) :]), rel=1e-4
        )


def test_writing_begins_and_ends_as_the_tokenizer_says():
    from markov import Markov

    for document, chat, prompt, read in (
        (BYTES, CHAT, "", [0]),
        (BYTES, {**CHAT, "add_bos": True}, "", [1]),
        (MARKS, {}, "", [1]),
        (BYTES, CHAT, "the", None),
    ):
        tokenizer = ForeignTokenizer(document, chat)
        script = [int(one) for one in tokenizer.encode("the cat")]
        model = Scripted(Markov, [*script, tokenizer.stops[0], *script], tokenizer.vocab_size)
        text = "".join(continue_text(model, tokenizer, prompt, SamplingOptions(temperature=0, max_tokens=50)))
        assert text == "the cat"
        assert model.prompt == (read or tokenizer.encode("the").tolist())


class Scripted:
    """Writes one sequence by heart after whatever prompt, which it keeps."""

    def __init__(self, markov, script, vocab_size):
        self.script, self.inner, self.prompt = script, markov.random(1, 1000), []
        self.config = type(self.inner.config)(1000, vocab_size)

    def memory(self, slots, length):
        return self.inner.memory(slots, length)

    def decode(self, tokens_BL, memory, slots, last=False):
        import torch

        self.prompt = self.prompt or tokens_BL[0].tolist()
        memory.rows[slots[0]] += tokens_BL[0].tolist()
        logits_BLV = torch.zeros(*tokens_BL.shape, self.config.vocab_size)
        logits_BLV[0, -1, self.script[len(memory.rows[slots[0]]) - len(self.prompt)]] = 1
        return logits_BLV[:, -1:] if last else logits_BLV


@pytest.mark.parametrize("document", [BYTES, MARKS], ids=["bytes", "marks"])
def test_texts_are_ingested_with_it_to_the_byte(document, tmp_path):
    texts = [f"the cat {number} sat on the mat é 你 {number * 7}\nnext line {number}" * 5 for number in range(40)]
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    ForeignTokenizer(document, CHAT).save(tmp_path / "tokenizer.json")
    ingest(tmp_path / "texts", tmp_path / "data", tokenizer=tmp_path / "tokenizer.json")
    tokenizer = load(tmp_path / "data" / "tokenizer.json")
    readers = [ShardReader(tmp_path / "data", split) for split in ("train", "heldout")]
    ids_N = np.concatenate([reader.window(0, reader.tokens) for reader in readers])
    assert int(tokenizer.lengths[ids_N].sum()) == sum(len(text.encode()) for text in texts)
    assert {reader.eot for reader in readers} == {tokenizer.eot}


def test_gpt2_from_its_json_is_ours_and_one_more_token_makes_it_foreign(tmp_path):
    path = tmp_path / "tokenizer.json"
    gpt = train_bpe(TEXTS, 300)
    document = json.loads(gpt.to_json())
    document["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    path.write_text(json.dumps(document))
    assert isinstance(load(path), BpeTokenizer)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    theirs.save(str(path))
    foreign = load(path)
    assert isinstance(foreign, ForeignTokenizer)
    assert (foreign.eot, foreign.stops) == (gpt.eot, (gpt.eot, gpt.eot + 1))
    assert foreign.encode("the cat  sat\n").tolist() == gpt.encode("the cat  sat\n").tolist()
