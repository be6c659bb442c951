"""Export: a run becomes a Hugging Face folder or a GGUF file that other programs open.

    run -> tensors to be read one by one -> their names, shapes and types -> .NAME.tmp -> renamed when whole

A model that no other program computes alike is refused, with the reason.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nomoat.core import checkpoint
from nomoat.core.checkpoint import Later
from nomoat.core.errors import CheckpointError, ConfigError, RunError, nearest
from nomoat.core.run import Run, load
from nomoat.families.lm import LM
from nomoat.hub import names
from nomoat.hub.adapters import write_adapter
from nomoat.hub.blocks import FORMATS, Bytes, pack
from nomoat.hub.chat_files import write_vocabulary
from nomoat.hub.config import write_config
from nomoat.hub.gguf import Made, write_gguf
from nomoat.hub.gguf_keys import divisors, metadata_of
from nomoat.hub.importing import DTYPES, Watch, told, typed
from nomoat.hub.packing import unpacked
from nomoat.hub.vocabulary import to_gguf

FORMS = ("hf", "gguf", "peft")
SHARD_BYTES = 5 * 10**9
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""llama.cpp's numbers for what most tensors of a file are."""
ALWAYS_F32 = ("position_embd.", "ssm_conv1d.", "ssm_a", "ssm_d", "_norm.", ".bias")
"""Parts of the names of tensors that llama.cpp wants in single precision."""


def export_model(
    run: Run | Path | str, to: str, path: Path | str, dtype: str = "auto", watch: Watch | None = None
) -> Path:
    """Write the model of a run for other programs, with its tokenizer, chat template and card.

    Arguments and errors as in `verbs.export`; `watch` is told {"kind": "export", "done", "total"} in bytes.
    """
    opened, target = Run.open(run), Path(path)
    kinds = ("auto", *DTYPES, "q8_0") if to == "gguf" else ("auto", *DTYPES)
    if to not in FORMS or dtype not in kinds:
        word, known = (dtype, kinds) if to in FORMS else (to, FORMS)
        raise ConfigError(f"`{word}` cannot be written", f"there is {', '.join(known)}", nearest(word, known))
    family = opened.recipe.product
    if not isinstance(family, LM):
        raise ConfigError(f"{opened.name} is no language model", "only those have a place in these formats")
    config = metadata_of(family) if to == "gguf" else write_config(family)
    if target.exists():
        raise RunError(f"there is already something at {target}", "nothing is written over", "name another place")
    fresh = target.with_name(f".{target.name}.tmp")
    _remove(fresh)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        {"gguf": _write_gguf, "hf": _write_folder, "peft": _write_peft}[to](opened, family, config, fresh, dtype, watch)
        fresh.rename(target)
    except OSError as error:
        raise RunError(f"{target} cannot be written", str(error), "free some disk space, or go elsewhere") from error
    finally:
        _remove(fresh)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def weights_of(run: Run) -> dict[str, Later]:
    """The weights that `load` would give as floats, to be read one by one; packed ones become what they stand for.

    An adapter is worked into its base's, which are then all in memory at once.

    Raises:
        CheckpointError: no checkpoint is good, or its weights are not the recipe's.
    """
    if run.recipe.adapt is not None:
        whole = load(run, merged=True).state_dict()
        made = {name: partial(whole.__getitem__, name) for name in whole}
        return {name: Later(tuple(one.shape), one.dtype, made[name]) for name, one in whole.items()}
    found = checkpoint.newest(run.checkpoints)
    ours = checkpoint.waiting(found.path, "weights")
    ours |= checkpoint.waiting(found.path, checkpoint.model_group(found.path))
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in run.recipe.product.build({}).state_dict().items()}
    if {name: tensor.shape for name, tensor in ours.items()} != wanted:
        raise CheckpointError(f"the weights of {run.name} do not fit its recipe")
    return unpacked(run.recipe.product, ours)


def _words(run: Run) -> tuple[str, dict[str, Any]] | None:
    """The run's tokenizer.json and chat.json; a model of ours begins and ends every text with its last token."""
    path = run.path / "tokenizer.json"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    chat = run.read_json("chat.json")
    if chat is None:
        last = max(json.loads(text)["added_tokens"], key=lambda token: token["id"])["content"]
        chat = {"template": None, "bos": last, "eos": last, "stops": [last], "add_bos": True}
    return text, chat


def _licence(run: Run) -> str | None:
    """The one licence of what the run was made from; None where there are several or it is not known."""
    ledger = run.read_json("ledger.json") or {}
    named = {share["licence"] for share in ledger.get("shares", [])} or {ledger.get("licence")}
    return named.pop() if len(named) == 1 and "unknown" not in named else None


def _write_folder(run: Run, family: LM, config: dict[str, Any], folder: Path, dtype: str, watch: Watch | None) -> None:
    """config.json, safetensors (several files beyond 5 GB), the tokenizer's files and the card."""
    folder.mkdir()
    theirs = names.write(family, names.HF[config["model_type"]], weights_of(run))
    theirs = told(typed(theirs, dtype), "export", watch)
    shards: list[dict[str, Later]] = [{}]
    for name, tensor in theirs.items():
        if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        checkpoint.write_tensors(folder / file, shard, {"format": "pt"})
    words = _words(run)
    written = {} if words is None else write_vocabulary(*words)
    if len(shards) > 1:
        table = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in theirs.values())
        written["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": table}
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in theirs.values()}
    written["config.json"] = config | {"dtype": types.pop() if len(types) == 1 else "float32"}
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (run.path / "card.md").exists():
        licence = _licence(run)
        head = f"---\nlicense: {licence.lower()}\n---\n" if licence else ""
        text = (run.path / "card.md").read_text(encoding="utf-8")
        (folder / "README.md").write_text(head + text, encoding="utf-8")


def _write_peft(run: Run, family: LM, config: dict[str, Any], folder: Path, dtype: str, watch: Watch | None) -> None:
    """The adapter alone, for whoever has its base."""
    write_adapter(run, folder, DTYPES.get(dtype, torch.float32))


def _write_gguf(run: Run, family: LM, config: dict[str, Any], file: Path, dtype: str, watch: Watch | None) -> None:
    """One file with all that llama.cpp needs."""
    kind = config["general.architecture"]
    theirs = told(names.write(family, names.GGUF[kind], weights_of(run)), "export", watch)
    made = {name: _made(name, tensor, dtype) for name, tensor in theirs.items()}
    own = family.backbone.dialect
    if own.rope_scaling is not None and own.rope_scaling.kind == "llama3":
        factors_1K = divisors(own.rope_scaling, own.rope_base, family.backbone.head_size)[None]
        made["rope_freqs.weight"] = Made(factors_1K.shape[1:], "F32", lambda: pack("F32", factors_1K))
    kinds = [each.kind for each in made.values() if len(each.shape) > 1]
    usual = max(FILE_TYPES, key=kinds.count)
    metadata = config | {"general.name": run.name, "general.file_type": FILE_TYPES[usual]}
    metadata |= {"general.quantization_version": 2, "general.type": "model"}
    if licence := _licence(run):
        metadata["general.license"] = licence.lower()
    if words := _words(run):
        metadata |= to_gguf(json.loads(words[0]), words[1])
        _pad(metadata, family.vocab_size)
    write_gguf(file, metadata, made)


def _pad(metadata: dict[str, Any], size: int) -> None:
    """As many tokens as the table has rows: llama.cpp holds one against the other."""
    tokens = metadata["tokenizer.ggml.tokens"]
    missing = range(len(tokens), size)
    tokens += [f"[PAD{number}]" for number in missing]
    metadata.get("tokenizer.ggml.token_type", []).extend([5] * len(missing))  # 5: unused
    metadata.get("tokenizer.ggml.scores", []).extend([0.0] * len(missing))


def _made(name: str, tensor: Later, dtype: str) -> Made:
    """How a tensor is written: vectors and what has no whole number of blocks in a plain type."""
    held = next(word for word, each in DTYPES.items() if each == tensor.dtype)
    kind = (held if dtype == "auto" else dtype).upper()
    if len(tensor.shape) < 2 or any(part in name for part in ALWAYS_F32):
        kind = "F32"
    elif tensor.shape[-1] % FORMATS[kind].count:
        kind = "F16"

    def make() -> Bytes:
        return pack(kind, tensor.make().float().reshape(-1, tensor.shape[-1]).numpy())

    return Made(tensor.shape, kind, make)
