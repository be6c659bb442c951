"""Vocabularies of other programs to `tokenizer.json` and `chat.json`, and back to GGUF.

    GGUF metadata | llama2.c tok512.bin | sentencepiece .model -> pieces, scores, types -> tokenizer.json, chat.json

Two kinds: byte level with ranked merges (`gpt2`; `pre` names the split pattern), and sentencepiece's (`llama`).

The key names are GGUF's (ggml-org/ggml, docs/gguf.md), the split patterns those that each model has published.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.tokenizer import BYTE_LEVEL, EOT
from nomoat.hub import pieces as sp

KEY = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"

# Each as its publisher's tokenizer.json has it: Llama 3 (Meta), Qwen2 (Alibaba); llama.cpp's for files that name none.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UNNAMED = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


def _patterns(*patterns: str) -> dict[str, Any]:
    splits = [{"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False} for one in patterns]
    return {"type": "Sequence", "pretokenizers": [*splits, {**BYTE_LEVEL, "use_regex": False}]}


class Split(NamedTuple):
    """How byte-level text of one `pre` is split; `whole`: a word that is itself a piece is not merged from parts."""

    pre_tokenizer: dict[str, Any]
    whole: bool = False
    normalizer: dict[str, Any] | None = None
    add_bos: bool = False


SPLITS = {
    "gpt-2": Split(BYTE_LEVEL),
    "smollm": Split({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}),
    "llama-bpe": Split(_patterns(LLAMA3), whole=True, add_bos=True),
    "smaug-bpe": Split(_patterns(LLAMA3)),
    "qwen2": Split(_patterns(QWEN2), normalizer={"type": "NFC"}),
    "default": Split(_patterns(*UNNAMED)),
}
SAME = {
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2"), "qwen2"),
}

Vocabulary = tuple[str, dict[str, Any]]


def _told(read: Callable[[Any], Vocabulary]) -> Callable[[Any], Vocabulary]:
    """A file that is not what it claims to be may fail anywhere; say so in one way."""

    @wraps(read)
    def reading(source: Any) -> Vocabulary:
        try:
            return read(source)
        except (LookupError, TypeError, ValueError, AttributeError, OSError, struct.error) as error:
            name = source if isinstance(source, Path | str) else "the file"
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"{name} holds no vocabulary that can be read", why, "fetch the file again") from error

    return reading


@_told
def from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """The text of a tokenizer.json and the contents of a chat.json, from the `tokenizer.*` keys of a GGUF file.

    Raises:
        DataError: keys are missing or do not fit together.
        ConfigError: a kind of tokenizer, or a split pattern, that is not read here.
    """
    model, tokens = metadata[KEY + "model"], [*metadata[KEY + "tokens"]]
    types = [int(one) for one in metadata.get(KEY + "token_type", [sp.NORMAL] * len(tokens))]
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(types)} types")
    if model == "llama":
        scores = [float(score) for score in metadata[KEY + "scores"]]
        unknown, prefix = metadata.get(KEY + "unknown_token_id", 0), metadata.get(KEY + "add_space_prefix", True)
        single = metadata.get(KEY + "remove_extra_whitespaces", False)
        document, usual = sp.marked(sp.Pieces(tokens, scores, types, unknown, prefix, single)), True
    elif model == "gpt2":
        pre = metadata.get(KEY + "pre", "default")
        if (split := SPLITS.get(SAME.get(pre, pre))) is None:
            known = ", ".join([*SPLITS, *SAME])
            raise ConfigError(f"the split pattern `{pre}` is not read here", f"{known} are", "take another model")
        document, usual = _byte_level(tokens, types, metadata[KEY + "merges"], split), split.add_bos
    else:
        known = "gpt2 (byte level) and llama (sentencepiece) are"
        raise ConfigError(f"the tokenizer `{model}` is not read here", known, "take another model")
    ids = {name: metadata.get(f"{KEY}{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    named = {name: tokens[one] if one is not None and 0 <= one < len(tokens) else None for name, one in ids.items()}
    stops = [named[name] for name in ("eos", "eot", "eom") if named[name]]
    chat = {"template": metadata.get(TEMPLATE), "bos": named["bos"], "eos": named["eos"]}
    chat |= {"stops": [*dict.fromkeys(stops)], "add_bos": bool(metadata.get(KEY + "add_bos_token", usual))}
    return _begun(document, chat)


@_told
def from_llama2c(path: Path | str) -> Vocabulary:
    """As `from_gguf`, of a llama2.c vocabulary: its own .bin, or the sentencepiece .model that it was made from.

    llama2.c trains with `<s>` before each text and nothing behind it: to its models `<s>` is what ends a text.

    Raises:
        DataError: no such file.
    """
    data = Path(path).read_bytes()
    pieces = sp.read_model(data) if Path(path).suffix == ".model" else sp.read_bin(data)
    chat = {"template": None, "bos": "<s>", "eos": "<s>", "stops": ["<s>", "</s>"], "add_bos": True}
    return _begun(sp.marked(pieces), chat)


@_told
def from_sentencepiece(path: Path | str) -> Vocabulary:
    """As `from_gguf`, of a sentencepiece .model with a BPE vocabulary.

    Raises:
        DataError: no such file.
        ConfigError: another kind of vocabulary (unigram, words).
    """
    pieces = sp.read_model(Path(path).read_bytes())
    controls = [token for token, kind in zip(pieces.tokens, pieces.types, strict=True) if kind == sp.CONTROL]
    bos, eos = (next((token for token in controls if token == name), None) for name in ("<s>", "</s>"))
    chat = {"template": None, "bos": bos, "eos": eos, "stops": [eos] if eos else [], "add_bos": bos is not None}
    return _begun(sp.marked(pieces), chat)


def to_gguf(tokenizer_json: Mapping[str, Any], chat: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file for a parsed tokenizer.json and a chat.json (empty: one of our own models).

    Raises:
        ConfigError: GGUF has no words for this tokenizer.
    """
    model, added = tokenizer_json["model"], {one["content"]: one for one in tokenizer_json.get("added_tokens") or []}
    ids = {**model["vocab"], **{token: one["id"] for token, one in added.items()}}
    tokens = [f"[PAD{number}]" for number in range(max(ids.values()) + 1)]
    types = [sp.UNUSED] * len(tokens)
    for token, number in ids.items():
        tokens[number], types[number] = token, sp.NORMAL
        if token in added:
            types[number] = sp.CONTROL if added[token]["special"] else sp.USER
        elif model.get("byte_fallback") and sp.HEX.fullmatch(token):
            types[number] = sp.BYTE
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    parts = json.dumps(tokenizer_json.get("normalizer"))
    keys: dict[str, Any] = {"tokens": tokens, "token_type": types}
    if pre := _named_split(tokenizer_json):
        keys |= {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}
    elif json.dumps(sp.MARK) in parts + json.dumps(tokenizer_json["pre_tokenizer"]) and '"Precompiled"' not in parts:
        unknown = ids.get(model.get("unk_token"), 0)
        types[unknown] = sp.UNKNOWN
        keys |= {"model": "llama", "pre": "default", "scores": sp.scores_of(tokens, types, merges)}
        keys |= {"unknown_token_id": unknown, "add_space_prefix": _prefixed(tokenizer_json)}
        keys |= {"remove_extra_whitespaces": '" {2,}"' in parts}
    else:
        raise ConfigError(
            "GGUF has no words for how this tokenizer splits text",
            f"it has them for {', '.join(SPLITS)} and sentencepiece",
            "export to Hugging Face's format instead, or train a model with the bpe tokenizer",
        )
    chat = chat or {"bos": EOT, "eos": EOT, "add_bos": True}
    stops = [stop for stop in chat.get("stops") or () if stop != chat.get("eos")]
    for name, token in (("bos", chat.get("bos")), ("eos", chat.get("eos")), ("eot", stops[0] if stops else None)):
        if token in ids:
            keys[f"{name}_token_id"] = ids[token]
    keys["add_bos_token"] = bool(chat.get("add_bos"))
    template = {TEMPLATE: chat["template"]} if chat.get("template") else {}
    return {KEY + name: value for name, value in keys.items()} | template


def _byte_level(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], split: Split) -> dict[str, Any]:
    pairs = [merge.split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{next(pair for pair in pairs if len(pair) != 2)} is no pair")
    model: dict[str, Any] = {**sp.BPE, "unk_token": None, "fuse_unk": False, "ignore_merges": split.whole}
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model |= {"byte_fallback": False, "vocab": vocabulary, "merges": pairs}
    return sp.assembled(model, sp.added_tokens(tokens, types), split.normalizer, split.pre_tokenizer, BYTE_LEVEL)


def _begun(document: dict[str, Any], chat: dict[str, Any]) -> Vocabulary:
    """Both files, the tokenizer.json putting `bos` before a text where chat.json says so."""
    chat["add_bos"] = chat["add_bos"] and chat["bos"] is not None
    if chat["add_bos"]:
        bos, text = chat["bos"], {"Sequence": {"id": "A", "type_id": 0}}
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}, text]
        special = {bos: {"id": bos, "ids": [document["model"]["vocab"][bos]], "tokens": [bos]}}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
        document["post_processor"] = template
    return json.dumps(document, ensure_ascii=False), chat


def _named_split(document: Mapping[str, Any]) -> str | None:
    """The `pre` of a byte-level tokenizer.json; None where it is of another kind, or no name is known for it."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            ignored = ("trim_offsets",)  # says where tokens lie in the text, not which they are
            return {key: plain(value) for key, value in part.items() if key not in ignored}
        return [plain(one) for one in part] if isinstance(part, list) else part

    wanted, model, rewrites = plain(document.get("pre_tokenizer")), document["model"], document.get("normalizer")
    if wanted == plain({**BYTE_LEVEL, "use_regex": False}) and not model.get("merges"):
        return "gpt-2"  # single bytes: no pattern matters
    return next(
        (
            name
            for name, split in SPLITS.items()
            if plain(split.pre_tokenizer) == wanted
            and split.whole == bool(model.get("ignore_merges"))
            and rewrites in (None, split.normalizer)
        ),
        None,
    )


def _prefixed(document: Mapping[str, Any]) -> bool:
    parts = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")])
    if '"Metaspace"' in parts:
        return '"prepend_scheme": "never"' not in parts
    return '"Prepend"' in parts
