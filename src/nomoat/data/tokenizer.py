"""Tokenizers: byte-pair encoding over bytes, plain bytes, and characters; all saved as one `tokenizer.json`.

Those of other people's models are read by `load` too: see foreign_tokenizer.py.

    text -> pieces (GPT-2's published split pattern) -> bytes -> merges in order of rank -> ids [tokens]

`tokenizers` trains and reads the file; `tiktoken`, built from the same merges, encodes (about ten times as fast), and
only where it gives the same ids on a sample of hard cases. Ids: 256 bytes, then the merges, last `<|endoftext|>`.

Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019 (byte level, split pattern).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tiktoken
import tokenizers
from numpy.typing import ArrayLike, NDArray

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.sample import bounded_sample

EOT = "<|endoftext|>"
# openai/gpt-2, encoder.py; `tokenizers` has the same pattern inside its ByteLevel pre-tokenizer.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
HARD_CASES = (
    "it's we'LL they're I'd 'tis  two  spaces\n\n\ttab \r\n end ",
    "aaaaaaaaaaaaaaaa ======== -------- 1234567890 x=1;y<<=2",
    "na\u00efve \u00c5ngstr\u00f6m \u4f60\u597d\u4e16\u754c \ud55c\uad6d\uc5b4 \U0001f469\u200d\U0001f4bb",
    "\u0001\u0000 \u0085\u00a0 \u2028\u3000 \ufeff",
    "<|endoftext|> \u0661\u0662 \u00bd\u2163 \U0001e900 \U00010d4a \U0001ccf0",  # letters and digits of Unicode 9 to 16
)


class Tokenizer:
    """Text to ids and back. `encode` never gives `eot`, even where the text spells it; `decode` shows it as nothing.

    Args:
        tokens: the bytes of each id, without the document end.

    Attributes:
        eot: id of the document end; here the last one.
        vocab_size: number of ids, the document end among them.
        dtype: uint16 where every id fits, else uint32.
        begin: what stands before a text; may be nothing where the tokenizer is another's.
        stops: any of them ends a text.
        special: spelling -> id of what is no text.
        prefixes: whether `encode` puts a space before a text, which `decode` takes away.
    """

    kind: ClassVar[str]
    prefixes = False

    def __init__(self, tokens: Sequence[bytes], eot: int | None = None) -> None:
        self.tokens = [*tokens, b""] if eot is None else [*tokens]
        self.eot = len(tokens) if eot is None else eot
        self.vocab_size = len(self.tokens)
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        self.begin: tuple[int, ...] = (self.eot,)
        self.stops: tuple[int, ...] = (self.eot,)
        self.special: dict[str, int] = {EOT: self.eot}

    @property
    def opening(self) -> int:
        """The one token that a text's first is predicted from: the last of `begin`, else the document end."""
        return (self.begin or (self.eot,))[-1]

    def encode(self, text: str) -> NDArray[Any]:
        """The ids [tokens] of `text`; lone surrogates, which no UTF-8 has, become U+FFFD."""
        raise NotImplementedError

    def encode_marked(self, text: str) -> NDArray[Any]:
        """As `encode`, but special tokens that the text spells become their ids: for rendered chat templates only."""
        parts = re.split(f"({'|'.join(map(re.escape, sorted(self.special, key=len, reverse=True)))})", text)
        marks = ([self.special[part]] if part in self.special else self.encode(part) for part in parts)
        return np.concatenate([np.asarray(ids, self.dtype) for ids in marks])

    def encode_on(self, text: str) -> NDArray[Any]:
        """The ids [tokens] of a text that begins with a space and goes on from another text."""
        return self.encode(text)

    def aligned(self, text: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids [tokens] of `text`, and how many of its bytes each stands for: together all of them."""
        ids = self.encode(text)
        return ids, self.lengths[ids]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[Any]]:
        """The ids of each text, by so many threads (the encoder releases the interpreter's lock)."""
        if threads <= 1:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes that the ids [tokens] stand for."""
        return b"".join([self.tokens[i] for i in np.asarray(ids).tolist()])

    def decode(self, ids: ArrayLike) -> str:
        """The text of the ids [tokens]; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id; none for the document end."""
        return self.tokens[token]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each id [vocab_size]; `lengths[ids].sum()` is what bits per byte divide by."""
        return np.array([len(token) for token in self.tokens], dtype=np.int64)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the kind, the tokens and the merges: equal tokenizers have equal hashes."""
        spelled = json.dumps([self.kind, [token.hex() for token in self.tokens], self._model()["merges"]])
        return hashlib.sha256(spelled.encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the `tokenizer.json` that `tokenizers` and transformers read."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The text of the `tokenizer.json`."""
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": self.eot, "content": EOT, **special}],
            **{"normalizer": None, **self._pipeline()},
            "model": self._model(),
        }
        return json.dumps(document, ensure_ascii=False, indent=1)

    def _pipeline(self) -> dict[str, Any]:
        return {"pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL}

    def _model(self) -> dict[str, Any]:
        return _bpe_model([_spell(token) for token in self.tokens[:-1]], ())


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding over bytes with GPT-2's split pattern.

    Args:
        vocabulary: the tokens in order of their ids, in GPT-2's spelling of bytes as letters, without the document end.
        merges: pairs of tokens, first learned first.
    """

    kind = "bpe"

    def __init__(self, vocabulary: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        super().__init__([_unspell(token) for token in vocabulary])
        self.merges = tuple(merges)
        self.reference = tokenizers.Tokenizer.from_str(self.to_json())
        self.reference.encode_special_tokens = True
        ranks = {token: rank for rank, token in enumerate(self.tokens[:-1])}
        self.encoding = tiktoken.Encoding("nomoat", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
        self.fast = self._agrees()

    def encode(self, text: str) -> NDArray[Any]:
        text = unicode_only(text)
        if self.fast:
            ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        else:
            ids = np.array(self.reference.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        return ids.astype(self.dtype)

    def _agrees(self) -> bool:
        """Whether both encoders give the same ids; merges that are not in order of their ids would break tiktoken."""
        some = self.tokens[256 :: max(1, self.vocab_size // 512)]
        cases = [*HARD_CASES, b" ".join(some).decode("utf-8", "replace"), b"".join(some).decode("utf-8", "replace")]
        slow = self.reference.encode_batch(cases, add_special_tokens=False)
        return all(self.encoding.encode_ordinary(case) == one.ids for case, one in zip(cases, slow, strict=True))

    def _model(self) -> dict[str, Any]:
        return _bpe_model([_spell(token) for token in self.tokens[:-1]], self.merges)


class ByteTokenizer(Tokenizer):
    """One id a byte: 256 bytes and the document end."""

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([byte]) for byte in range(256)])

    def encode(self, text: str) -> NDArray[Any]:
        text = unicode_only(text)
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(self.dtype)

    def _pipeline(self) -> dict[str, Any]:
        whole = {**BYTE_LEVEL, "use_regex": False}
        return {"pre_tokenizer": whole, "post_processor": None, "decoder": whole}


class CharTokenizer(Tokenizer):
    """One id a character, for texts of few symbols; a symbol it does not know is a DataError.

    Args:
        symbols: every character that may occur; kept sorted and without repeats.
    """

    kind = "char"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = sorted(set(symbols))
        if not self.symbols:
            raise ConfigError("A character tokenizer needs at least one symbol", fix="Give it the text's characters")
        super().__init__([symbol.encode() for symbol in self.symbols])
        self.points = np.array([ord(symbol) for symbol in self.symbols], dtype=np.uint32)

    def encode(self, text: str) -> NDArray[Any]:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = np.minimum(np.searchsorted(self.points, points), len(self.points) - 1)
        unknown = self.points[ids] != points
        if unknown.any():
            symbol = text[int(unknown.argmax())]
            raise DataError(
                f"The character {symbol!r} is not among the tokenizer's {len(self.symbols)} symbols",
                "A character tokenizer knows only the symbols it was made with",
                "Use the byte or the bpe tokenizer, which read any text",
            )
        return ids.astype(self.dtype)

    def _pipeline(self) -> dict[str, Any]:
        return {"pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}}

    def _model(self) -> dict[str, Any]:
        return _bpe_model(self.symbols, ())


def train_bpe(texts: Iterable[str], vocab_size: int, sample_bytes: int = 16_000_000) -> BpeTokenizer:
    """Learn the merges from a sample of `texts`, chosen by content: the same texts give the same tokenizer.

    Args:
        texts: read once, in any order, never held at once.
        vocab_size: ids wanted, the document end among them; fewer where the texts hold fewer pairs. At least 257.
        sample_bytes: about how much text to learn from at most.
    """
    if vocab_size < 257:
        raise ConfigError(
            f"A vocabulary of {vocab_size} is too small", "256 bytes and the document end come first", "Ask for 257 up"
        )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(SPELLING.values()),
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(bounded_sample(texts, sample_bytes), trainer)
    model = json.loads(learner.to_str())["model"]
    return BpeTokenizer(sorted(model["vocab"], key=model["vocab"].get), _pairs(model["merges"]))


def gpt2(encoder: Path | str, merges: Path | str) -> BpeTokenizer:
    """GPT-2's published tokenizer from its two files, `encoder.json` and `vocab.bpe`."""
    vocabulary = json.loads(Path(encoder).read_text(encoding="utf-8"))
    lines = Path(merges).read_text(encoding="utf-8").splitlines()
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    if ordered[-1] != EOT or vocabulary[EOT] != len(ordered) - 1:
        raise DataError(f"{encoder}: {EOT} is not the last id, or ids are missing", fix="Use a GPT-2 style vocabulary")
    return BpeTokenizer(ordered[:-1], _pairs([line for line in lines if line and not line.startswith("#version")]))


def load(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`: ours, GPT-2's, or another's, then with the `chat.json` beside it where there is one.

    Raises:
        DataError: no tokenizer file, or one that splits or spells text in a way that is not read here.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        model, split, added = document["model"], document["pre_tokenizer"], document.get("added_tokens", [])
        vocabulary, merges = model["vocab"], model.get("merges", [])
        ids = dict(vocabulary) | {token["content"]: token["id"] for token in added}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no tokenizer file", str(error), "Ingest the data again") from error
    if model.get("type") == "WordLevel" and document.get("decoder") is None and ids.get(EOT) == len(ids) - 1:
        from nomoat.data.words import WordTokenizer

        return WordTokenizer(word for word in ids if word != EOT)
    if not _is_ours(document, ids):
        from nomoat.data.foreign_tokenizer import read

        return read(Path(path), document)
    if split is None:
        return CharTokenizer(symbol for symbol in ids if symbol != EOT)
    if not split.get("use_regex", True):
        return ByteTokenizer()
    return BpeTokenizer(sorted(ids, key=ids.__getitem__)[:-1], _pairs(merges))


def _is_ours(document: dict[str, Any], ids: dict[str, int]) -> bool:
    """Whether one of our classes reads it: byte level with GPT-2's pattern or by characters, the document end last."""
    model, split = document["model"], document["pre_tokenizer"]
    plain = not (document.get("normalizer") or model.get("byte_fallback") or model.get("ignore_merges"))
    plain = plain and model.get("type", "BPE") == "BPE" and len(document.get("added_tokens", [])) <= 1
    if split is None:
        known = not model.get("merges") and document.get("decoder") == {"type": "Fuse"}
    else:
        known = split.get("type") == "ByteLevel" and not split.get("add_prefix_space")
    return plain and known and ids.get(EOT) == len(ids) - 1 and sorted(ids.values()) == list(range(len(ids)))


def _pairs(merges: Sequence[Any]) -> list[tuple[str, str]]:
    """The merges as pairs; files hold them as `"a b"` or, since tokenizers 0.20, as `["a", "b"]`."""
    split = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in split]


def _bpe_model(vocabulary: Sequence[str], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: rank for rank, token in enumerate(vocabulary)},
        "merges": [" ".join(pair) for pair in merges],
    }


def _spelling() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others for U+0100 upward."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


SPELLING = _spelling()
UNSPELLING = {letter: byte for byte, letter in SPELLING.items()}


def _spell(token: bytes) -> str:
    return "".join([SPELLING[byte] for byte in token])


def _unspell(token: str) -> bytes:
    return bytes([UNSPELLING[letter] for letter in token])


def unicode_only(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 has, as U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
