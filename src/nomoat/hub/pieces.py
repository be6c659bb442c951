"""Sentencepiece vocabularies: read from its own files or llama2.c's, and written as a tokenizer.json.

    .model | tok512.bin -> Pieces -> ranked pairs, a mark for a space, bytes for what no piece holds -> tokenizer.json

Sentencepiece merges the neighbours whose piece has the highest score, the leftmost first. A tokenizer.json has ranked
pairs for that: every way to put a piece together from two others, in the order of the scores.

Kudo and Richardson 2018, arXiv:1808.06226; Karpathy 2023, github.com/karpathy/llama2.c (tok512.bin).
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nomoat.core.errors import ConfigError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""What a piece is: the numbers of sentencepiece, which GGUF has taken over."""
MARK = "\u2581"
HEX = re.compile(r"<0x[0-9A-F]{2}>")
BPE = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}


class Pieces(NamedTuple):
    """A sentencepiece vocabulary: what each id spells, its score and its type.

    Args:
        tokens, scores, types: one an id.
        unknown: the id of what no piece holds.
        prefix: a space is put before a text.
        single: spaces at the ends go, and of several in a row one stays.
        charsmap: sentencepiece's compiled rewriting of characters; empty: none.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unknown: int = 0
    prefix: bool = True
    single: bool = False
    charsmap: bytes = b""


def marked(pieces: Pieces) -> dict[str, Any]:
    """A sentencepiece vocabulary as a tokenizer.json."""
    tokens, types = pieces.tokens, pieces.types
    if not len(tokens) == len(types) == len(pieces.scores):
        raise ValueError(f"{len(tokens)} pieces, {len(pieces.scores)} scores, {len(types)} types")
    model: dict[str, Any] = {**BPE, "unk_token": tokens[pieces.unknown], "fuse_unk": True, "ignore_merges": False}
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model |= {"byte_fallback": BYTE in types, "vocab": vocabulary, "merges": _merges(pieces)}
    steps: list[dict[str, Any]] = []
    if pieces.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(pieces.charsmap).decode()})
    if pieces.single:
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    if pieces.prefix:
        steps.append({"type": "Prepend", "prepend": MARK})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": MARK})
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if pieces.prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {"type": "Sequence", "normalizers": steps}
    return assembled(model, added_tokens(tokens, types), normalizer, None, {"type": "Sequence", "decoders": decoders})


def _merges(pieces: Pieces) -> list[list[str]]:
    """Every way to put a piece together from two, the highest score first; of one piece the longer left part first."""
    plain = {
        token: score
        for token, score, kind in zip(pieces.tokens, pieces.scores, pieces.types, strict=True)
        if kind in (NORMAL, USER)
    }
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(plain, key=lambda piece: -plain[piece])
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in plain and piece[cut:] in plain
    ]


def scores_of(tokens: Sequence[str], types: Sequence[int], merges: Sequence[Sequence[str]]) -> list[float]:
    """Scores that give the merges again: minus the rank of the first pair that makes a piece; single letters follow."""
    rank: dict[str, float] = {}
    for left, right in merges:
        rank.setdefault(left + right, -len(rank))
    last = -len(rank)
    return [
        rank.get(token, last - number) if kind in (NORMAL, USER) else 0.0
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]


def assembled(
    model: dict[str, Any],
    added: list[dict[str, Any]],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer}
    return {**head, "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model}


def added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """What is looked for before a text is split: control tokens, and pieces that the makers want kept whole."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, **flags, "special": kind != USER}
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL) or (kind == USER and MARK not in token)
    ]


def read_bin(data: bytes) -> Pieces:
    """llama2.c's vocabulary: the longest piece's size, then score, size and bytes of each; a space is a space there."""
    tokens, scores, place = [], [], 4
    while place < len(data):
        score, size = struct.unpack_from("<fi", data, place)
        place += 8 + size
        if size < 0 or place > len(data):
            raise ValueError(f"a piece of {size} bytes")
        tokens.append(data[place - size : place].decode().replace(" ", MARK))
        scores.append(score)
    if [token.strip() for token in tokens[:3]] != ["<unk>", "<s>", "</s>"]:
        raise ValueError(f"it begins with {tokens[:3]}")
    types = [UNKNOWN, CONTROL, CONTROL, *(BYTE if HEX.fullmatch(token) else NORMAL for token in tokens[3:])]
    return Pieces(["<unk>", "<s>", "</s>", *tokens[3:]], scores, types)


def read_model(data: bytes) -> Pieces:
    """A .model file: sentencepiece's ModelProto (sentencepiece_model.proto) with its pieces, trainer and normalizer."""
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            tokens.append(piece[1].decode())
            scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
            types.append(piece.get(3, NORMAL))
        elif field in (2, 3):
            (trainer if field == 2 else normalizer).update(_fields(value))
    if not tokens:
        raise ValueError("no pieces")
    if trainer.get(3, 1) != 2:
        kind = {1: "unigram", 3: "word", 4: "char"}.get(trainer.get(3, 1), "unknown")
        raise ConfigError(f"a sentencepiece vocabulary of kind {kind} is not read here", "bpe is", "take another model")
    single, prefix = bool(normalizer.get(4, 1)), bool(normalizer.get(3, 1))
    return Pieces(tokens, scores, types, trainer.get(40, 0), prefix, single, normalizer.get(2, b""))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: number and value, an int, or bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or (varint() if kind == 2 else -1)
        if size < 0 or place + size > len(data):
            raise ValueError(f"field {key >> 3} is cut off")
        yield key >> 3, data[place : place + size]
        place += size
