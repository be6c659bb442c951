"""Other people's tokenizers: whatever `tokenizers` reads whose ids spell bytes, so that texts are scored and streamed.

    text -> tokenizers (their normalizer, split and merges) -> ids [tokens] -> token_bytes -> text

Two ways of spelling are read. Byte level (GPT-2, Llama 3, Qwen, SmolLM): a letter a byte. Marks (Llama 2, Mistral,
Gemma: sentencepiece's BPE): `▁` for a space, `<0x0A>` for a byte of what no piece holds. Unigram and WordPiece are
refused: they rewrite the text first, and their ids do not say which bytes were read.

What no tokenizer.json says stands in `chat.json` beside it: which token begins a text, which ones end it.

Kudo and Richardson 2018, arXiv:1808.06226 (sentencepiece); Radford et al. 2019 (byte level).
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from nomoat.core.errors import DataError
from nomoat.data.tokenizer import UNSPELLING, Tokenizer, unicode_only

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""What ends a text or a turn in published models; the first that a tokenizer has is its document end."""
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
MARK = "\u2581"


def read(path: Path, document: dict[str, Any]) -> ForeignTokenizer:
    """The tokenizer of a parsed `tokenizer.json`, with the `chat.json` in its folder.

    Raises:
        DataError: it spells text in a way that is not read here, or has no token that ends a text.
    """
    beside = path.with_name("chat.json")
    try:
        chat = dict(json.loads(beside.read_text(encoding="utf-8"))) if beside.is_file() else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{beside} cannot be read", str(error), "Import the model again") from error
    return ForeignTokenizer(document, chat, str(path))


class ForeignTokenizer(Tokenizer):
    """A tokenizer that `tokenizers` runs, with the bytes of each id.

    The document end is the first of `ENDS` that there is, else chat's `eos`: it does not hang on chat.json where the
    name is known, so that shards and runs agree.

    Args:
        document: the parsed `tokenizer.json`.
        chat: `bos`, `eos`, `stops` (spellings) and `add_bos`, as in `chat.json`; empty: what the document itself says.
        name: for errors.
    """

    kind = "foreign"

    def __init__(self, document: dict[str, Any], chat: Mapping[str, Any] | None = None, name: str = "it") -> None:
        chat = chat or {}
        self.document = document
        spell = _spelling(document, name)
        ends = [chat.get("eos"), *(chat.get("stops") or ())]
        self.reference = _built(document, [chat.get("bos"), *ends], name)
        self.reference.encode_special_tokens = True
        added = self.reference.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        silent = {*special, document["model"].get("unk_token")}
        ids = self.reference.get_vocab(with_added_tokens=True)
        tokens = [b""] * (max(ids.values()) + 1)
        for token, number in ids.items():
            tokens[number] = b"" if token in silent else token.encode() if number in added else spell(token)
        known = [end for end in ENDS if end in special]
        stops = [special[end] for end in (*ends, *known) if end in special]
        if not stops:
            why = "it has no special token by a known name, and no chat.json names its `eos`"
            raise DataError(
                f"{name} has no token that ends a text", why, 'write {"eos": "..."} into chat.json beside it'
            )
        super().__init__(tokens, special[known[0]] if known else stops[0])
        self.special, self.stops = special, tuple(dict.fromkeys(stops))
        plain = self.reference.encode("a", add_special_tokens=False).ids
        whole = self.reference.encode("a", add_special_tokens=True).ids
        places = (place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
        self.begin = tuple(whole[: next(places, 0)])
        if "add_bos" in chat:
            self.begin = (special[chat["bos"]],) if chat["add_bos"] and chat.get("bos") in special else ()
        self.prefixes = self.decode_bytes(plain) == b" a"

    def encode(self, text: str) -> NDArray[Any]:
        ids = self.reference.encode(unicode_only(text), add_special_tokens=False).ids
        return np.array(ids, dtype=self.dtype)

    def encode_marked(self, text: str) -> NDArray[Any]:
        ids = self.marked.encode(unicode_only(text), add_special_tokens=False).ids
        return np.array(ids, dtype=self.dtype)

    @cached_property
    def marked(self) -> tokenizers.Tokenizer:
        """The same, but with an eye for special tokens."""
        made = copy.deepcopy(self.reference)
        made.encode_special_tokens = False
        return made

    def encode_on(self, text: str) -> NDArray[Any]:
        return self.encode(text.removeprefix(" ") if self.prefixes else text)

    def aligned(self, text: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        text = unicode_only(text)
        encoding = self.reference.encode(text, add_special_tokens=False)
        ids_N = np.array(encoding.ids, dtype=self.dtype)
        bytes_N, size = self.lengths[ids_N], len(text.encode())
        if self.prefixes and len(ids_N) and bytes_N[0] and bytes_N.sum() == size + 1:
            bytes_N[0] -= 1
        if len(ids_N) and bytes_N.sum() != size:  # the text was rewritten: go by which characters each id stands for
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
            ends_N = np.maximum.accumulate([end for _, end in encoding.offsets])
            ends_N[-1] = len(text)
            bytes_N = np.diff(np.concatenate([[0], sizes.cumsum()])[ends_N], prepend=0)
        return ids_N, bytes_N

    def decode(self, ids: Any) -> str:
        text = super().decode(ids)
        return text.removeprefix(" ") if self.prefixes else text

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """As in `Tokenizer`; the document end takes back the byte of the space that was put before its text."""
        lengths = np.array([len(token) for token in self.tokens], dtype=np.int64)
        lengths[self.eot] -= self.prefixes
        return lengths

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the document."""
        return hashlib.sha256(json.dumps([self.kind, self.document], sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(self.document, ensure_ascii=False, indent=1)


def _built(document: dict[str, Any], marks: list[str | None], name: str) -> tokenizers.Tokenizer:
    """What `tokenizers` makes of it, without cutting and filling, all of `marks` that it knows being special."""
    document = {**copy.copy(document), "truncation": None, "padding": None}
    added = {token["content"]: {**token} for token in document.get("added_tokens", [])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    vocabulary = document["model"]["vocab"]
    for mark in marks:
        if mark in added or mark in vocabulary:
            added[mark] = {**flags, **added.get(mark, {"id": vocabulary.get(mark), "content": mark}), "special": True}
    document["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{name} is no tokenizer file", str(error), "Import the model again") from error


def _spelling(document: dict[str, Any], name: str) -> Callable[[str], bytes]:
    """How a piece of the vocabulary spells bytes."""
    model, parts = document["model"], json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
    if model.get("type", "BPE") == "BPE" and not model.get("end_of_word_suffix"):
        if '"ByteLevel"' in parts:
            return _letters
        if '"Metaspace"' in parts or '"ByteFallback"' in parts or json.dumps(MARK) in parts:
            return _marks
    raise DataError(
        f"{name} splits text by a pattern or model that is not read here: {model.get('type', 'BPE')}",
        "only byte-pair encoding is, over bytes (GPT-2, Llama 3, Qwen) or with ▁ for a space (Llama 2, Gemma)",
        "take a model with such a tokenizer",
    )


def _letters(piece: str) -> bytes:
    try:
        return bytes([UNSPELLING[letter] for letter in piece])
    except KeyError:
        return piece.encode()


def _marks(piece: str) -> bytes:
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(MARK, " ").encode()
