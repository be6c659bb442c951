"""Adapters in the format of PEFT, both ways: adapter_config.json and adapter_model.safetensors.

    folder, run of the base -> settings and tensors checked -> Foreign, as any other model that is imported
    adapted run -> each layer's A and B under transformers' names -> folder

Where theirs is one matrix and ours are several (GPT-2's `c_attn`), an adapter of theirs is the same A for each of ours;
ours become one of theirs whose rank is their sum. Format: huggingface.co/docs/peft, developer guides, checkpoint.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.core import checkpoint
from nomoat.core.checkpoint import Later
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Ref
from nomoat.core.run import Run, load
from nomoat.data.licence import LicenceFinder
from nomoat.families.lm import LM
from nomoat.hub import names
from nomoat.hub.config import model_type
from nomoat.hub.fields import Fields, read_json
from nomoat.hub.foreign import Foreign
from nomoat.nn.lora import Adapted, LoRA, adapted_layers, linear_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
TENSOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)(?:\.weight)?")
NEUTRAL = (
    "auto_mapping|base_model_name_or_path|revision|peft_version|task_type|inference_mode|lora_dropout|fan_in_fan_out|"
    "target_modules|exclude_modules|layers_pattern|layers_to_transform|megatron_core|qalora_group_size"
)
"""Settings that say nothing of the model, or nothing that its tensors' names do not."""
STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""First weights that leave the base as it is (PiSSA, OLoRA and LoftQ change it)."""


def is_adapter(path: Path | str) -> bool:
    """Whether an adapter lies there."""
    return (Path(path) / CONFIG).is_file()


def open_adapter(path: Path | str, base: Run | Path | str | None) -> Foreign:
    """Open an adapter for the model of a run.

    Raises:
        ConfigError: there is no adapter there, no base is named, or that is no plain language model.
        DataError, CheckpointError: it is damaged, made for another base, or something in it cannot be honoured.
    """
    folder = Path(path)
    if base is None or not is_adapter(folder):
        what, fix = ("an adapter", "--base RUN names its run") if base is None else ("no adapter", "leave --base out")
        raise ConfigError(f"{path} is {what}", "an adapter, and nothing else, stands beside a base", fix)
    opened, source = Run.open(base), folder.resolve().name
    config = opened.recipe.family
    if not isinstance(config, LM) or opened.recipe.adapt is not None:
        what = "is adapted already" if isinstance(config, LM) else "is no language model"
        raise ConfigError(f"{opened.name} {what}", "an adapter stands beside a plain language model", "name another")
    lora, start = _settings(Fields(read_json(folder / CONFIG), f"{source}/{CONFIG}", NEUTRAL)), Ref(str(opened.path))
    start = start.pinned()
    given = _tensors(folder, (opened.name, str(start.sha256)))
    parts = _parts(config)
    lora = replace(lora, targets=_targets(given, parts, (source, opened.name)))
    family = lora.apply(load(start))
    _fill(adapted_layers(family), given, parts, (source, opened.name))
    made = {name: Later(tuple(one.shape), one.dtype, one.clone) for name, one in family.kept().items()}

    def vocabulary() -> tuple[str, Any] | None:
        words = opened.path / "tokenizer.json"
        return (words.read_text(encoding="utf-8"), opened.read_json("chat.json")) if words.exists() else None

    licence = LicenceFinder(folder).in_folder(folder) or (None, "")
    return Foreign("PEFT", folder, (folder / WEIGHTS,), config, made, vocabulary, licence, start, lora)


def _settings(fields: Fields) -> LoRA:
    """What the settings come to. Raises DataError for all that cannot be honoured, by name."""
    fields.only("peft_type", "LORA")
    fields.only("bias", "none")
    fields.only("init_lora_weights", *STARTS)
    rank, alpha, dora = fields.whole("r"), fields.number("lora_alpha"), fields.flag("use_dora")
    rooted = fields.flag("use_rslora")  # alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732
    fields.close()
    return LoRA(rank, alpha * math.sqrt(rank) if rooted else alpha, dora=dora)


def _tensors(folder: Path, base: tuple[str, str]) -> dict[str, dict[str, Later]]:
    """Their module -> kind -> tensor. Raises DataError where it was made for another base."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise DataError(f"{folder.name} holds no {WEIGHTS}", "weights are read from safetensors alone")
    theirs, texts = checkpoint.read_later(file)
    if (made_for := texts.get("base_sha256")) not in (None, base[1]):
        raise DataError(
            f"{folder.name} is an adapter for {texts.get('base')} (SHA-256 {str(made_for)[:12]}...)",
            f"{base[0]} holds other weights (SHA-256 {base[1][:12]}...)",
            "name the run that it was made for",
        )
    found: dict[str, dict[str, Later]] = {}
    for key, tensor in theirs.items():
        match = TENSOR.fullmatch(key)
        if match is None or not tensor.dtype.is_floating_point:
            raise DataError(f"`{key[:100]}` of {folder.name} cannot be honoured", "it is no part of a LoRA or DoRA")
        found.setdefault(match[1], {})[match[2]] = tensor
    return found


def _parts(config: LM) -> dict[str, list[names.Part]]:
    """Each linear layer of ours in a stack, by name, and the matrices of theirs that it holds."""
    table = names.HF[model_type(config)]
    with torch.device("meta"):
        layers = dict(linear_layers(replace(config, bits=16).build({})))
    wholes = names.wholes(config, table)
    return {name: wholes[f"{name}.weight"].parts for name in layers}


def _module(part: names.Part) -> str:
    return part.name.removesuffix(".weight")


def _targets(given: Mapping[str, Any], parts: Mapping[str, list[names.Part]], who: tuple[str, str]) -> tuple[str, ...]:
    """The names of our layers that the adapter changes."""
    places = {_module(part): name for name, each in parts.items() for part in each}
    if not given or (strange := [module for module in given if module not in places]):
        what = f"`{strange[0][:100]}`" if given else "no layer at all"
        raise DataError(f"{who[0]} adapts {what}", f"{who[1]} has no such layer", "name the run that it was made for")
    return tuple(sorted({places[module].rsplit(".", 1)[-1] for module in given}))


def _covered(blocks: Sequence[int], part: names.Part) -> Iterator[tuple[int, slice, slice]]:
    """The matrices of ours within one of theirs: the place, its rows in ours and in theirs."""
    first = 0
    for place, rows in enumerate(blocks):
        within = first - part.first_row
        if 0 <= within < part.rows:
            yield place, slice(first, first + rows), slice(within, within + rows)
        first += rows


@torch.no_grad()
def _fill(
    layers: Mapping[str, Adapted],
    given: Mapping[str, Mapping[str, Later]],
    parts: Mapping[str, list[names.Part]],
    who: tuple[str, str],
) -> None:
    """Put their tensors in ours; what they leave out changes nothing."""

    def taken(module: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        tensor = given[module].get(kind)
        if tensor is None:
            raise DataError(f"{who[0]} lacks `{module}.{kind}`", "the file is not whole")
        if tensor.shape != shape:
            raise DataError(
                f"`{module}.{kind}` of {who[0]} is {tensor.shape}", f"{who[1]} asks for {shape}", "it has another base"
            )
        made = tensor.make().float()
        if not made.isfinite().all():
            raise DataError(f"`{module}.{kind}` of {who[0]} holds what is no number", "the file is damaged")
        return made

    for name, layer in layers.items():
        rank, inputs = layer.b.shape[1], layer.a.shape[1]
        layer.a.zero_()
        for part in parts[name]:
            module = _module(part)
            if module not in given:
                continue
            if MAGNITUDE in given[module] and layer.magnitude is None:
                raise DataError(f"{who[0]} holds `{module}.{MAGNITUDE}`", "its settings say that it is no DoRA")
            a, b = taken(module, A, (rank, inputs)), taken(module, B, (part.rows, rank))
            for place, ours, theirs in _covered(layer.blocks, part):
                layer.a[place * rank : (place + 1) * rank], layer.b[ours] = a, b[theirs]
                if layer.magnitude is not None:
                    layer.magnitude[ours] = taken(module, MAGNITUDE, (part.rows,))[theirs]


def write_adapter(run: Run, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapter of an adapted run into a new folder.

    Raises:
        ConfigError: it is no adapted run, or transformers has no such model.
    """
    lora, base = run.recipe.adapt, run.recipe.start
    if not isinstance(lora, LoRA) or base is None:
        raise ConfigError(f"{run.name} is no adapted model", "there is no adapter to write", "use --to hf or --to gguf")
    parts, layers = _parts(run.recipe.family), adapted_layers(load(run))
    thin: dict[str, tuple[Tensor, Tensor]] = {}
    lengths: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for part in parts[name]:
            thin[_module(part)] = _joined(layer, part)
            if layer.magnitude is not None:
                rows = slice(part.first_row, part.first_row + part.rows)
                lengths[f"{PREFIX}{_module(part)}.{MAGNITUDE}"] = layer.magnitude[rows].contiguous()
    if refused := [module for module in thin if module.endswith("mixer.out_proj")]:
        fix = "adapt it with targets=('qkv',), or --to hf"
        raise ConfigError(f"PEFT puts no adapter at `{refused[0]}`", "it refuses a Mamba layer's last one", fix)
    rank = max(len(a) for a, _ in thin.values())  # one for all: zeros fill the smaller ones up
    tensors = {}
    for module, (a, b) in thin.items():
        missing = rank - len(a)
        tensors[f"{PREFIX}{module}.{A}"] = F.pad(a, (0, 0, 0, missing)).to(dtype)
        tensors[f"{PREFIX}{module}.{B}"] = F.pad(b, (0, missing)).to(dtype)
    transposed = any(part.change == "transposed" for name in layers for part in parts[name])
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.run, "r": rank,
        "lora_alpha": lora.alpha * rank / lora.rank, "lora_dropout": 0.0, "bias": "none", "use_dora": lora.dora,
        "fan_in_fan_out": transposed, "inference_mode": True,
        "target_modules": sorted({".".join(module.split(".")[-2:]) for module in thin}),
    }  # fmt: skip
    folder.mkdir()
    texts = {"format": "pt", "base": base.run, "base_sha256": str(base.sha256)}
    checkpoint.write_tensors(folder / WEIGHTS, tensors | lengths, texts)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if (run.path / "card.md").exists():
        shutil.copyfile(run.path / "card.md", folder / "README.md")


def _joined(layer: Adapted, part: names.Part) -> tuple[Tensor, Tensor]:
    """A [rank, inputs] and B [rows, rank] for a matrix of theirs: ours side by side, or as one where all As agree."""
    rank = layer.b.shape[1]
    covered = list(_covered(layer.blocks, part))
    each = [layer.a[place * rank : (place + 1) * rank] for place, _, _ in covered]
    rows = [layer.b[ours] for _, ours, _ in covered]
    if all(torch.equal(a, each[0]) for a in each):
        return each[0], torch.cat(rows)
    return torch.cat(each), torch.block_diag(*rows)
