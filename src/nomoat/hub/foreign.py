"""Open a model in another program's format: its header read and checked, its weights not touched yet.

    GGUF file | Hugging Face folder | llama2.c file | TAESD's two files -> open_foreign
        -> Foreign(config, tensors under our names, ...)

Weights in pickles (`pytorch_model.bin`) are refused unread.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nomoat.core.errors import DataError, NomoatError
from nomoat.core.recipe import Ref
from nomoat.core.tensors import ROW_NUMBERS, Later, read_later
from nomoat.data.licence import LicenceFinder
from nomoat.data.spdx import licence_id
from nomoat.families.lm import LM
from nomoat.hub import names, taesd
from nomoat.hub import vocabulary as vocabularies
from nomoat.hub.blocks import PLAIN, unpack
from nomoat.hub.chat_files import read_vocabulary
from nomoat.hub.config import read_config
from nomoat.hub.fields import MOST, read_json
from nomoat.hub.gguf import MAGIC, Header, read_header
from nomoat.hub.gguf_keys import config_of
from nomoat.hub.names import Names

Vocabulary = tuple[str, dict[str, Any]]
"""The text of a tokenizer.json, and what chat.json holds."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Foreign:
    """A model in another program's format.

    Args:
        format: `GGUF`, `Hugging Face`, `llama2.c`, `PEFT` or `TAESD`.
        path: what was opened.
        files: the files with weights.
        config: the model.
        tensors: its weights under our names, each read when it is needed.
        vocabulary: reads its tokenizer and chat template; None where it has none.
        licence: SPDX identifier or what it says, and where that is written; None: it says nothing.
        start, adapt: of an adapter, the base and its `LoRA`; the tensors are the adapter's alone.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    config: Any
    tensors: Mapping[str, Later]
    vocabulary: Callable[[], Vocabulary | None]
    licence: tuple[str | None, str]
    start: Ref | None = None
    adapt: Any = None


def open_foreign(path: Path | str) -> Foreign:
    """Open a GGUF file, a Hugging Face folder (or the weights in it), a llama2.c file or the two files of a TAESD.

    Raises:
        DataError, CheckpointError: there is none, it is damaged, or something in it cannot be honoured.
    """
    path = Path(path)
    if (pair := taesd.pair(path)) is not None:
        return _taesd(path, pair)
    if path.suffix == ".safetensors" or path.name == "config.json":
        path = path.parent
    try:
        if path.is_dir():
            inside = sorted(path.glob("*.gguf"))
            return _gguf(inside[0]) if len(inside) == 1 and not (path / "config.json").exists() else _folder(path)
        if not path.is_file():
            raise DataError(f"there is no file or folder {path}", "", "name a folder with config.json, or a .gguf file")
        with path.open("rb") as file:
            return _gguf(path) if file.read(4) == MAGIC else _llama2c(path)
    except NomoatError:
        raise
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path.name} contradicts itself", f"{type(error).__name__}: {error}"[:300]) from error


def later(header: Header, name: str) -> Later:
    """A tensor of a GGUF: in its own type where it has no blocks, else in float32."""
    place = header.tensors[name]

    def made(first: int, count: int, shape: tuple[int, ...]) -> Tensor:
        rows_RS = header.read(name, first, count)
        if place.kind in PLAIN:
            return torch.from_numpy(rows_RS).view(DTYPES[place.kind]).view(shape)
        return torch.from_numpy(unpack(place.kind, rows_RS)).view(shape)

    def pieces() -> Iterator[Tensor]:
        step = max(1, ROW_NUMBERS // place.shape[1])
        for first in range(0, place.rows, step):
            count = min(step, place.rows - first)
            yield made(first, count, (count, place.shape[1]))

    dtype = DTYPES.get(place.kind, torch.float32)
    whole = partial(made, 0, place.rows, place.shape)
    return Later(place.shape, dtype, whole, pieces if len(place.shape) == 2 else None)


def open_gguf(path: Path) -> tuple[Header, LM, Names]:
    """The header of a GGUF, the model that it describes, and the names of its tensors.

    Raises:
        DataError: it is damaged, or something in it cannot be honoured.
    """
    header = read_header(path)
    data = config_of(header)
    return header, read_config(data, path.name), names.GGUF[data["model_type"]]


def _gguf(path: Path) -> Foreign:
    header, config, table = open_gguf(path)
    theirs = {name: later(header, name) for name in header.tensors}
    tensors = names.read(config, table, theirs, path.name)
    said = header.metadata.get("general.license")
    licence = (licence_id(said) or said, "general.license of the file") if isinstance(said, str) and said else None

    def vocabulary() -> Vocabulary | None:
        if "tokenizer.ggml.model" not in header.metadata:
            return None
        return vocabularies.from_gguf(header.metadata)

    return Foreign("GGUF", path, (path,), config, tensors, vocabulary, licence or _around(path.parent))


def _around(folder: Path) -> tuple[str | None, str]:
    """What a licence file or a README beside the weights says."""
    return LicenceFinder(folder).in_folder(folder) or (None, "")


def _folder(folder: Path) -> Foreign:
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json", "it is no model in the form of Hugging Face")
    data = read_json(folder / "config.json")
    config = read_config(data, f"{folder.name}/config.json")
    files, theirs = _weights(folder)
    table = names.HF[data["model_type"]]
    embed = table.top["embed"] + ".weight"
    prefix = embed.partition(".")[0] + "."
    if embed not in theirs and embed.removeprefix(prefix) in theirs:  # saved without its output layer
        theirs = {name if name == "lm_head.weight" else prefix + name: tensor for name, tensor in theirs.items()}
    if config.backbone.dialect.output == "tied" and "lm_head.weight" in theirs and embed in theirs:
        if not torch.equal(theirs["lm_head.weight"].make(), theirs[embed].make()):
            raise DataError(f"{folder.name} has two different tables", "its config.json says that they are one")
        del theirs["lm_head.weight"]
    tensors = names.read(config, table, theirs, folder.name)
    return Foreign("Hugging Face", folder, files, config, tensors, lambda: read_vocabulary(folder), _around(folder))


def _weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, Later]]:
    """The files with weights and their tensors, in one file or in several."""
    files, index = [folder / "model.safetensors"], folder / "model.safetensors.index.json"
    if index.is_file():
        told = read_json(index).get("weight_map")
        parts = sorted({str(name) for name in told.values()}) if isinstance(told, dict) else []
        if not parts or any(Path(name).name != name for name in parts):
            raise DataError(f"{index.name} names no files of this folder", "it is damaged, or made to mislead")
        files = [folder / name for name in parts]
    elif not files[0].is_file():
        raise DataError(
            f"{folder.name} holds no model.safetensors",
            "weights are read from safetensors alone: a .bin, .pt or .pth file can run whatever its maker wants",
            "fetch the safetensors files of this model",
        )
    found: dict[str, Later] = {}
    for file in files:
        for name, tensor in read_later(file)[0].items():
            if name in found:
                raise DataError(f"`{name[:80]}` is in two files of {folder.name}", "which one counts is not said")
            found[name] = tensor
    return tuple(files), found


def _llama2c(path: Path) -> Foreign:
    """Seven numbers, then float32 tensors in a fixed order (karpathy/llama2.c, export.py, version 0)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(28)
    numbers = struct.unpack("<7i", head) if len(head) == 28 else (0,) * 7
    width, inner, depth, heads, kv_heads, vocab_size, length = numbers
    vocab_size = abs(vocab_size)
    bad = min(width, inner, depth, heads, kv_heads, vocab_size, length) < 1 or max(map(abs, numbers)) > MOST
    if bad or width % heads or depth > names.MOST_LAYERS:
        raise DataError(f"{path.name} is no model that can be read", "neither a GGUF nor a llama2.c file begins so")
    keys = kv_heads * (width // heads)
    order: list[tuple[str, tuple[int, ...], bool]] = [
        ("token_embd", (vocab_size, width), False), ("attn_norm", (width,), True), ("attn_q", (width, width), True),
        ("attn_k", (keys, width), True), ("attn_v", (keys, width), True), ("attn_output", (width, width), True),
        ("ffn_norm", (width,), True), ("ffn_gate", (inner, width), True), ("ffn_down", (width, inner), True),
        ("ffn_up", (inner, width), True), ("output_norm", (width,), False),
        ("rope_freqs", (length, width // heads), False), ("output", (vocab_size, width), False),
    ]  # fmt: skip
    theirs, at = {}, 28
    for name, shape, each in order[: -1 if numbers[5] > 0 else None]:
        for layer in range(depth if each else 1):
            theirs[f"blk.{layer}.{name}.weight" if each else f"{name}.weight"] = _floats(path, at, shape)
            at += 4 * math.prod(shape)
    if at != size:
        raise DataError(f"{path.name} has {size:,} bytes", f"a llama2.c file that begins like it has {at:,}")
    data = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": depth,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab_size,
        "max_position_embeddings": length, "rms_norm_eps": 1e-5, "tie_word_embeddings": numbers[5] > 0,
    }  # fmt: skip
    config = read_config(data, path.name)
    tensors = names.read(config, names.GGUF["llama"], theirs, path.name)

    def vocabulary() -> Vocabulary | None:
        candidates = [path.with_name(name) for name in (f"tok{vocab_size}.bin", "tokenizer.bin")]
        candidates += [each.with_suffix(".model") for each in candidates]
        beside = next((each for each in candidates if each.is_file()), None)
        return None if beside is None else vocabularies.from_llama2c(beside)

    return Foreign("llama2.c", path, (path,), config, tensors, vocabulary, _around(path.parent))


def _taesd(path: Path, pair: tuple[Path, Path]) -> Foreign:
    config, tensors = taesd.opened(*pair)
    return Foreign("TAESD", path, pair, config, tensors, lambda: None, _around(pair[0].parent))


def _floats(path: Path, offset: int, shape: tuple[int, ...]) -> Later:
    def make() -> Tensor:
        return torch.from_numpy(np.fromfile(path, "<f4", math.prod(shape), offset=offset)).view(shape)

    return Later(shape, torch.float32, make)
