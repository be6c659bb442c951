"""The tokenizer and the chat template of a Hugging Face folder, both ways.

tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json <-> a run's tokenizer.json, chat.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nomoat.core.errors import DataError
from nomoat.hub.fields import MOST, read_json
from nomoat.hub.vocabulary import from_sentencepiece

JSON = dict[str, Any]


def read_vocabulary(folder: Path) -> tuple[str, JSON] | None:
    """The text of tokenizer.json and what chat.json is to hold; None where the folder has no tokenizer.

    Raises:
        DataError: one of the files cannot be read.
    """
    settings, marks, generation, config = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
    )
    if not (folder / "tokenizer.json").is_file():
        if not (folder / "tokenizer.model").is_file():
            return None
        text, chat = from_sentencepiece(folder / "tokenizer.model")
        return text, chat | {"template": _template(folder, settings)}
    text = json.dumps(read_json(folder / "tokenizer.json"), ensure_ascii=False)
    bos, eos = (_spelled(settings.get(name) or marks.get(name)) for name in ("bos_token", "eos_token"))
    ids = generation.get("eos_token_id") or config.get("eos_token_id")
    reader = _reader(text)
    ids = [one for one in (ids if isinstance(ids, list) else [ids]) if type(one) is int and 0 <= one < MOST]
    ends = [reader.id_to_token(one) for one in ids]
    stops = [word for word in dict.fromkeys((eos, *ends)) if word is not None]
    first = reader.encode("", add_special_tokens=True).tokens[:1]
    chat = {"template": _template(folder, settings), "bos": bos, "eos": eos, "stops": stops}
    return text, chat | {"add_bos": bool(settings.get("add_bos_token")) or (bos is not None and first == [bos])}


def _reader(text: str) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # what the library raises has no type of its own
        raise DataError("tokenizer.json cannot be read", str(error)[:200]) from error


def _spelled(token: Any) -> str | None:
    """Special tokens stand as texts, or as objects with the text in them."""
    word = token.get("content") if isinstance(token, dict) else token
    return word if isinstance(word, str) else None


def _template(folder: Path, settings: JSON) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8", errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def write_vocabulary(text: str, chat: JSON) -> dict[str, JSON]:
    """File name -> content of what transformers needs to read text as the run does."""
    tokenizer, reader, bos = json.loads(text), _reader(text), chat.get("bos")
    ids = {word: reader.token_to_id(word) for word in (bos, *chat.get("stops", [])) if word}
    if chat.get("add_bos") and ids.get(bos) is not None and not tokenizer.get("post_processor"):
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
        }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": chat.get("eos")}
    settings |= {"chat_template": chat.get("template"), "clean_up_tokenization_spaces": False}
    stops = [ids[word] for word in chat.get("stops", []) if ids[word] is not None]
    generation = {"bos_token_id": ids.get(bos), "eos_token_id": stops or None}
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {name: value for name, value in settings.items() if value is not None},
        "generation_config.json": {name: value for name, value in generation.items() if value is not None},
    }
