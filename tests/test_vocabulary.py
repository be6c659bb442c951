"""Vocabularies of other programs: the ids that their own programs give, and GGUF's keys there and back."""

from __future__ import annotations

import json
import struct
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.foreign_tokenizer import ForeignTokenizer
from nomoat.data.tokenizer import EOT, BpeTokenizer, ByteTokenizer, CharTokenizer, load, train_bpe
from nomoat.hub.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, USER
from nomoat.hub.vocabulary import LLAMA3, SPLITS, from_gguf, from_llama2c, from_sentencepiece, to_gguf

KEY = "tokenizer.ggml."
TEXTS = ["the cat sat on the mat 12 345, it's the cat's mat\n\n  x = y**2 "] * 5
HARD = [
    *(
        "",
        " ",
        "  ",
        "a",
        " a",
        "a ",
        "  two  spaces\n\n\ttab \r\n end ",
        "it's we'LL they're I'd 'tis",
        "1234567890 x=1;y<<=2",
    ),
    *("na\u00efve \u00c5ngstr\u00f6m \u4f60\u597d \ud55c\uad6d\uc5b4 \U0001f469\u200d\U0001f4bb", "caf\u0065\u0301"),
    *(
        "\u0661\u0662 \u00bd\u2163 x\u00b2",
        "<|im_start|>user\nhi<|im_end|>",
        "</s> <s> <0x0A>",
        "x" * 300,
        " " * 50 + "y",
    ),
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.lists(st.sampled_from(HARD)).map("".join)


def tokenizer_of(made):
    text, chat = made
    return ForeignTokenizer(json.loads(text), chat)


def gpt2_keys(pre="smollm", **more):
    made = train_bpe(TEXTS, 300)
    keys = to_gguf(json.loads(made.to_json()), {})
    return {**keys, KEY + "pre": pre, **{KEY + name: value for name, value in more.items()}}


# --- byte level -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", [*SPLITS, "starcoder", "llama3", "deepseek-r1-qwen"])
def test_a_split_pattern_gives_a_lossless_tokenizer_and_comes_back(pre):
    metadata = gpt2_keys(pre)
    text, chat = from_gguf(metadata)
    document = json.loads(text)
    tokenizer = ForeignTokenizer(document, chat)
    for hard in HARD[:-1]:
        if hard != "caf\u0065\u0301":  # composed by Qwen's own tokenizer.json
            assert tokenizer.decode(tokenizer.encode(hard)) == hard
    again = to_gguf(document, chat)
    assert from_gguf(again) == (text, chat)
    assert SPLITS.get(again[KEY + "pre"]) is not None
    assert again == {**metadata, KEY + "pre": again[KEY + "pre"], KEY + "add_bos_token": again[KEY + "add_bos_token"]}


def test_patterns_split_as_published():
    def words(pre, text):
        made = tokenizers.Tokenizer.from_str(from_gguf(gpt2_keys(pre))[0])
        return [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(text)]

    assert words("gpt-2", "a 1234's") == ["a", "\u01201234", "'s"]
    assert words("smollm", "a 1234's") == ["a", "\u0120", "1", "2", "3", "4", "'s"]
    assert words("llama-bpe", "a 1234'S\n\nb") == ["a", "\u0120", "123", "4", "'S", "\u010a\u010a", "b"]
    assert words("qwen2", "a 12'S") == ["a", "\u0120", "1", "2", "'S"]
    assert words("default", "a=b 1234") == ["a", "=", "b", "\u0120", "123", "4"]
    assert "{1,3}" in LLAMA3


def test_what_chat_json_says():
    metadata = gpt2_keys(tokens=None)
    metadata[KEY + "tokens"] = [*gpt2_keys()[KEY + "tokens"], "<|im_start|>", "<|im_end|>", "<|eom|>"]
    metadata[KEY + "token_type"] = [*gpt2_keys()[KEY + "token_type"], CONTROL, CONTROL, USER]
    first = len(metadata[KEY + "tokens"]) - 3
    metadata |= {KEY + "bos_token_id": first, KEY + "eos_token_id": first + 1, KEY + "eom_token_id": first + 2}
    metadata |= {KEY + "add_bos_token": False, "tokenizer.chat_template": "{{ messages }}"}
    text, chat = from_gguf(metadata)
    assert chat == {
        "template": "{{ messages }}",
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "stops": ["<|im_end|>", "<|eom|>"],
        "add_bos": False,
    }
    tokenizer = tokenizer_of((text, chat))
    assert (tokenizer.begin, tokenizer.stops) == ((), (first + 1, first + 2, first - 1))
    again = to_gguf(json.loads(text), chat)
    assert again[KEY + "eot_token_id"] == first + 2 and again["tokenizer.chat_template"] == "{{ messages }}"
    assert from_gguf(again) == (text, chat)
    del metadata[KEY + "add_bos_token"]
    assert not from_gguf(metadata)[1]["add_bos"]
    begun = from_gguf({**metadata, KEY + "pre": "llama-bpe"})
    assert begun[1]["add_bos"] and tokenizer_of(begun).begin == (first,)
    bare = ForeignTokenizer(json.loads(begun[0]))  # without chat.json the tokenizer.json says so too
    assert bare.begin == (first,)
    assert from_gguf({**metadata, KEY + "bos_token_id": 99_999})[1]["bos"] is None


def test_our_own_tokenizers_come_back_as_ours(tmp_path):
    for ours, kind in ((train_bpe(TEXTS, 300), BpeTokenizer), (ByteTokenizer(), BpeTokenizer)):
        metadata = to_gguf(json.loads(ours.to_json()), {})
        assert metadata[KEY + "model"] == "gpt2" and metadata[KEY + "pre"] == "gpt-2"
        assert metadata[KEY + "token_type"][-1] == CONTROL
        text, chat = from_gguf(metadata)
        assert (chat["bos"], chat["eos"], chat["add_bos"]) == (EOT, EOT, True)
        (tmp_path / "tokenizer.json").write_text(text)
        (tmp_path / "chat.json").write_text(json.dumps(chat))
        again = load(tmp_path / "tokenizer.json")
        assert type(again) is kind and again.eot == ours.eot
        assert again.hash == ours.hash or isinstance(ours, ByteTokenizer)
        for hard in HARD:
            assert again.encode(hard).tolist() == ours.encode(hard).tolist()
    with pytest.raises(ConfigError, match="no words"):
        to_gguf(json.loads(CharTokenizer("abc").to_json()), {})


# --- sentencepiece ----------------------------------------------------------------------------------------------------


def greedy(tokens, scores, text):
    """llama2.c's encode (run.c, Karpathy 2023): letters, bytes of unknown ones, then the best pair, leftmost first."""
    lookup = {token: number for number, token in enumerate(tokens)}
    ids = [lookup["\u2581"]] if text else []
    for letter in text.replace(" ", "\u2581"):
        ids += [lookup[letter]] if letter in lookup else [byte + 3 for byte in letter.encode()]
    while True:
        best = max(
            (
                (scores[lookup[tokens[a] + tokens[b]]], -place)
                for place, (a, b) in enumerate(pairwise(ids))
                if tokens[a] + tokens[b] in lookup
            ),
            default=None,
        )
        if best is None:
            return ids
        place = -best[1]
        ids[place : place + 2] = [lookup[tokens[ids[place]] + tokens[ids[place + 1]]]]


@pytest.fixture(scope="module")
def tok512(shared):
    return from_llama2c(shared / "weights" / "tinystories-260k" / "tok512.bin")


def test_llama2c_ids_are_those_of_its_published_algorithm(shared, tok512):
    document, tokenizer = json.loads(tok512[0]), tokenizer_of(tok512)
    tokens = [*document["model"]["vocab"]]
    data, place, scores = (shared / "weights" / "tinystories-260k" / "tok512.bin").read_bytes(), 4, []
    while place < len(data):
        score, size = struct.unpack_from("<fi", data, place)
        scores.append(score)
        place += 8 + size
    assert len(tokens) == len(scores) == tokenizer.vocab_size == 512
    story = (shared / "weights" / "tinystories-260k" / "README.md").read_text()

    @given(any_text.filter(lambda text: "\u2581" not in text) | st.text("aehnotsTw .,'\n", max_size=200))
    @settings(max_examples=300)
    def same(text):
        ids = tokenizer.encode(text)
        assert ids.tolist() == greedy(tokens, scores, text)
        assert tokenizer.decode(ids) == text

    same()
    assert tokenizer.encode(story[:1000]).tolist() == greedy(tokens, scores, story[:1000])
    assert (tokenizer.begin, tokenizer.stops, tokenizer.prefixes) == ((1,), (1, 2), True)
    assert [tokenizer.token_bytes(number) for number in (0, 1, 13, 259)] == [b"", b"", b"\n", b" t"]


def test_a_sentencepiece_model_gives_sentencepieces_ids(shared):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shared / "weights" / "tinystories-char105" / "tok105.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizer_of(from_sentencepiece(path))
    assert tokenizer.vocab_size == theirs.vocab_size() == 105
    assert (tokenizer.begin, tokenizer.stops) == ((theirs.bos_id(),), (theirs.eos_id(),))
    assert tokenizer_of(from_llama2c(path)).stops == (1, 2)

    @given(any_text.filter(lambda text: "\u2581" not in text) | st.text("aehnotsTw .,'", max_size=100))
    @settings(max_examples=300)
    def same(text):
        ids = tokenizer.encode(text).tolist()
        assert ids == theirs.encode(text)
        if 0 not in ids:
            assert tokenizer.decode(ids) == theirs.decode(ids)

    same()
    text = "Once  upon a time, there  was a b\u00f6x. "
    assert int(tokenizer.aligned(text)[1].sum()) == len(text.encode())


def trained_sentencepiece(tmp_path, **settings):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text(
        "\n".join(TEXTS[0].replace("\n", " ") + f" {n} {chr(97 + n % 26) * 3}" for n in range(300))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "m"),
        minloglevel=2,
        hard_vocab_limit=False,
        **settings,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model")), tmp_path / "m.model"


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_models_with_byte_fallback_and_with_rewriting(tmp_path, rule):
    whole = rule == "identity"
    theirs, path = trained_sentencepiece(
        tmp_path,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name=rule,
        remove_extra_whitespaces=not whole,
        add_dummy_prefix=whole,
    )
    tokenizer = tokenizer_of(from_sentencepiece(path))
    assert tokenizer.prefixes == whole
    for text in [*HARD, "the cat's mat", "the\u2167 \uff21\uff22 caf\u0065\u0301"]:
        ids = tokenizer.encode(text).tolist()
        assert ids == theirs.encode(text)
        assert tokenizer.decode(ids) == theirs.decode(ids)
        assert int(tokenizer.aligned(text)[1].sum()) == (len(text.encode()) if ids else 0)


def test_other_kinds_of_sentencepiece_are_refused(tmp_path):
    _, path = trained_sentencepiece(tmp_path, model_type="unigram", vocab_size=60)
    with pytest.raises(ConfigError, match="unigram"):
        from_sentencepiece(path)


def test_sentencepiece_goes_to_gguf_and_comes_back(shared, tok512):
    path = shared / "weights" / "tinystories-char105" / "tok105.model"
    for text, chat in (tok512, from_sentencepiece(path)):
        metadata = to_gguf(json.loads(text), chat)
        assert metadata[KEY + "model"] == "llama" and metadata[KEY + "add_bos_token"] is True
        again, same = from_gguf(metadata)
        assert json.loads(again) == json.loads(text)
        assert {**same, "stops": sorted(same["stops"])} == {**chat, "stops": sorted(chat["stops"])}
    metadata = to_gguf(json.loads(tok512[0]), tok512[1])
    assert metadata[KEY + "token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert metadata[KEY + "token_type"][259] == NORMAL
    bare = from_gguf({**metadata, KEY + "add_space_prefix": False})
    assert tokenizer_of(bare).decode(tokenizer_of(bare).encode(" a")) == " a"
    metaspace = json.loads(tok512[0])
    metaspace["normalizer"] = None
    metaspace["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    }
    assert to_gguf(metaspace, tok512[1]) == metadata  # as newer Llama checkpoints say the same


# --- hostile and broken files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": None},
        {"tokens": 7},
        {"tokens": [b"a", b"b"]},
        {"token_type": [1]},
        {"token_type": ["x"] * 300},
        {"merges": None},
        {"merges": ["a"]},
        {"merges": [1, 2]},
        {"merges": ["a b c"]},
        {"eos_token_id": "x"},
        {"model": "llama"},
        {"model": "llama", "scores": [1.0]},
        {"model": "llama", "scores": ["x"] * 300},
    ],
)
def test_keys_that_do_not_fit_are_told(change):
    metadata = gpt2_keys(**change)
    with pytest.raises(DataError, match="vocabulary"):
        from_gguf(metadata)


def test_other_kinds_and_patterns_are_refused():
    with pytest.raises(ConfigError, match="bert"):
        from_gguf(gpt2_keys(model="bert"))
    with pytest.raises(ConfigError, match="tekken"):
        from_gguf(gpt2_keys("tekken"))
    with pytest.raises(DataError, match="vocabulary"):
        from_gguf({})


@given(st.binary(max_size=200), st.integers(0, 500), st.integers(0, 255))
@settings(max_examples=300)
def test_broken_files_give_errors_only(tmp_path_factory, data, place, byte):
    folder = tmp_path_factory.mktemp("broken")
    piece = b"\x0a\x0a\x0a\x01a\x15\x00\x00\x80\xbf\x18\x01"
    for content in (data, piece * 20 + b"\x12\x02\x18\x02" + data, bytes([*(piece * 30)[:place], byte, *piece])):
        for name, read in (("m.bin", from_llama2c), ("m.model", from_llama2c), ("m.model", from_sentencepiece)):
            (folder / name).write_bytes(content)
            try:
                text, chat = read(folder / name)
                ForeignTokenizer(json.loads(text), {**chat, "eos": "a"})
            except (DataError, ConfigError):
                pass
    with pytest.raises(DataError):
        from_sentencepiece(folder / "absent")


# --- a published model ------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_smollm2_from_its_gguf_has_its_published_ids(smollm2):
    gguf = pytest.importorskip("gguf")
    metadata = {name: field.contents() for name, field in gguf.GGUFReader(smollm2).fields.items()}
    text, chat = from_gguf(metadata)
    tokenizer = ForeignTokenizer(json.loads(text), chat)
    tokens, pairs = metadata[KEY + "tokens"], [tuple(merge.split(" ")) for merge in metadata[KEY + "merges"]]
    theirs = tokenizers.Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()

    @given(any_text)
    @settings(max_examples=200)
    def same(written):
        ids = tokenizer.encode(written)
        assert ids.tolist() == theirs.encode(written).ids
        assert tokenizer.decode(ids) == theirs.decode(ids.tolist())  # its vocabulary lacks a few bytes: not lossless
        assert int(tokenizer.aligned(written)[1].sum()) == len(written.encode()) * bool(len(ids))

    same()
    assert tokenizer.encode("Hello world").tolist() == [19556, 905]
    assert [tokenizer.token_bytes(number) for number in tokenizer.encode(" 24")] == [b" ", b"2", b"4"]
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.eot, tokenizer.begin, tokenizer.stops) == (0, (), (2, 0))
    assert tokenizer.encode_marked("<|im_start|>user\nHi<|im_end|>").tolist()[0::5] == [1]
    assert chat["template"].startswith("{% for message in messages %}")
    assert {**chat, "template": ""} == {
        "template": "",
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "stops": ["<|im_end|>"],
        "add_bos": False,
    }
    again = to_gguf(json.loads(text), chat)
    assert from_gguf(again) == (text, chat)
    for name in ("tokens", "token_type", "merges", "pre", "bos_token_id", "eos_token_id", "add_bos_token", "model"):
        assert again[KEY + name] == metadata[KEY + name]
