"""A vocabulary cut: another model's tokenizer with only the tokens that a kind of text uses most.

    tokenizer.json, texts -> counts of tokens -> the most used, with the parts they are merged from -> tokenizer.json

All bytes stay, so every text can still be spelled. A token stays only with both parts of the merge that makes it, and
merges keep their order: then a text whose tokens all stay is cut exactly as before (no merge on its way is missing, and
none is new), any other is spelled by smaller tokens. Sennrich et al. 2016, arXiv:1508.07909 (byte-pair encoding).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError
from nomoat.data.foreign_tokenizer import ForeignTokenizer
from nomoat.data.tokenizer import UNSPELLING, Tokenizer


def cut(tokenizer: ForeignTokenizer, texts: Iterable[str], size: int) -> dict[str, Any]:
    """The `tokenizer.json` of the `size` most used tokens, special ones among them; fewer where fewer are used.

    Raises:
        ConfigError: `size` has no room for the bytes, or the tokenizer is no byte-level BPE.
    """
    document = copy.deepcopy(tokenizer.document)
    model = document["model"]
    if model.get("type", "BPE") != "BPE" or "ByteLevel" not in str(document.get("pre_tokenizer")):
        raise ConfigError("this vocabulary cannot be cut", "only byte-level BPE can (GPT-2, Llama 3, Qwen, SmolLM)")
    added = [token for token in document.get("added_tokens", []) if token["content"] in tokenizer.special]
    kept = dict.fromkeys(piece for piece in model["vocab"] if piece in UNSPELLING)
    room = size - len({token["content"] for token in added})
    if room < len(kept):
        least = len(kept) + len(added)
        raise ConfigError(
            f"a vocabulary of {size:,} has no room for its {len(kept)} bytes", fix=f"ask for {least:,} up"
        )
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    made_of: dict[str, tuple[str, str]] = {}
    for left, right in merges:
        made_of.setdefault(left + right, (left, right))
    for piece in _by_use(tokenizer, texts):
        whole = _with_parts(piece, made_of, kept)
        if len(kept) + len(whole) <= room:
            kept.update(whole)
    rank = {piece: number for number, piece in enumerate(sorted(kept, key=model["vocab"].__getitem__))}
    model["vocab"] = rank
    model["merges"] = [f"{left} {right}" for left, right in merges if {left, right, left + right} <= rank.keys()]
    document["added_tokens"] = [{**token, "id": len(rank) + number} for number, token in enumerate(added)]
    return document


def _by_use(tokenizer: ForeignTokenizer, texts: Iterable[str]) -> Iterable[str]:
    counts = Counter[int]()
    for text in texts:
        counts.update(tokenizer.encode(text).tolist())
    spelled = {number: piece for piece, number in tokenizer.document["model"]["vocab"].items()}
    return (spelled[number] for number, _ in counts.most_common() if number in spelled)


def _with_parts(piece: str, made_of: Mapping[str, tuple[str, str]], kept: Mapping[str, None]) -> dict[str, None]:
    """The token and all it is merged from that is not there yet."""
    found, open_ = dict[str, None](), [piece]
    while open_:
        if (one := open_.pop()) not in kept and one not in found:
            found[one] = None
            open_ += made_of.get(one, ())
    return found


def first_tokens(teacher: Tokenizer, student: Tokenizer) -> NDArray[np.int64] | None:
    """For each of the teacher's tokens [V] the student's token that its spelling begins with; -1 for what has none.

    None: the student has tokens that the teacher lacks, so that its vocabulary is no cut of the teacher's.
    """
    ends = set(teacher.stops)
    theirs = {spelled: number for number, spelled in enumerate(student.tokens) if spelled}
    if not theirs.keys() <= {spelled for spelled in teacher.tokens if spelled}:
        return None
    longest = max(map(len, theirs))
    first_V = np.full(teacher.vocab_size, -1, dtype=np.int64)
    for number, spelled in enumerate(teacher.tokens):
        if number in ends:
            first_V[number] = student.stops[0]
        elif spelled in theirs:
            first_V[number] = theirs[spelled]
        elif spelled:
            try:
                first_V[number] = student.encode(spelled.decode())[0]
            except UnicodeDecodeError:
                starts = (spelled[:count] for count in range(min(longest, len(spelled)), 0, -1))
                first_V[number] = next((theirs[start] for start in starts if start in theirs), -1)
    return first_V
