"""What a GGUF's metadata says of a model, brought into the form of config.json, and back.

    metadata, tensors' shapes -> config_of -> config.json -> LM          LM -> config.json -> metadata_of -> metadata

Keys: ggml-org/ggml, docs/gguf.md; what stands where one is missing: llama.cpp's loader. Llama 3's stretched positions
are no metadata there but a tensor, `rope_freqs.weight`: what each frequency is divided by.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError, DataError
from nomoat.families.lm import LM
from nomoat.hub.blocks import unpack
from nomoat.hub.config import LONG, write_config
from nomoat.hub.fields import Fields
from nomoat.hub.gguf import Header
from nomoat.nn.dialect import Dialect, RopeScaling
from nomoat.nn.rotary import Rotary

_LLAMA = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
}  # fmt: skip
KEYS = {
    "llama": {**_LLAMA, "attention.sliding_window": "sliding_window"},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": {
        "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
        "feed_forward_length": "n_inner", "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    "mamba2": {
        "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers", "ssm.conv_kernel": "conv_kernel", "ssm.state_size": "state_size",
        "ssm.group_count": "n_groups", "ssm.time_step_rank": "num_heads",
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    },
}  # fmt: skip
"""Key of the metadata, behind the architecture's name -> field of config.json."""

NO_CONTEXT = 1 << 20
"""What llama.cpp writes as context of a model that has none."""

LLAMA3 = RopeScaling("llama3", 8.0)
"""The published stretch: only its factor differs between the models."""


def config_of(header: Header) -> dict[str, Any]:
    """The config.json of the model in a GGUF; what is not known stays in it under its own name, to be refused.

    Raises:
        DataError: an architecture that is not read here, or metadata that does not fit together.
    """
    name, metadata = header.path.name, header.metadata
    kind = Fields(metadata, name).word("general.architecture", {kind: kind for kind in KEYS})
    table = header.tensors.get("token_embd.weight")
    if table is None:
        raise DataError(f"{name} lacks the tensor `token_embd.weight`", "it holds no language model")
    fields = Fields({key: value for key, value in metadata.items() if key.startswith(f"{kind}.")}, name)
    found = {ours: fields.values.pop(f"{kind}.{key}", None) for key, ours in KEYS[kind].items()}
    found |= {"model_type": kind, "vocab_size": table.shape[0]}
    found["tie_word_embeddings"] = "output.weight" not in header.tensors
    fields.only(f"{kind}.vocab_size", table.shape[0])
    if kind == "mamba2":
        known = Fields(found, name)
        inner, width, heads = (
            fields.whole("mamba2.ssm.inner_size"),
            known.whole("hidden_size"),
            known.whole("num_heads"),
        )
        found |= {"head_dim": inner // heads, "expand": inner // width}
        if found["max_position_embeddings"] == NO_CONTEXT:
            del found["max_position_embeddings"]
    elif kind != "gpt2":
        known = Fields(found, name)
        heads = known.whole("num_attention_heads")
        width = known.whole("head_dim", None) or known.whole("hidden_size") // heads
        found |= {"head_dim": width, "num_key_value_heads": known.whole("num_key_value_heads", heads)}
        for key in ("attention.value_length", "rope.dimension_count"):
            fields.only(f"{kind}.{key}", width)
        found["rope_parameters"] = _stretch(fields, kind, header, width, known.number("rope_theta", 10_000.0))
        if found.get("sliding_window"):
            found["model_type"] = "mistral"
        found |= dict.fromkeys(("attention_bias", "mlp_bias"), "blk.0.attn_output.bias" in header.tensors)
    return found | fields.values


def _stretch(fields: Fields, kind: str, header: Header, head_width: int, base: float) -> dict[str, Any]:
    """The rotary positions as config.json has them."""
    found: dict[str, Any] = {"rope_theta": base}
    scaling = fields.word(f"{kind}.rope.scaling.type", {"none": "default", "linear": "linear", "yarn": "yarn"}, "none")
    fields.take(f"{kind}.rope.scaling.finetuned", None)
    if scaling != "default":
        found["factor"] = fields.number(f"{kind}.rope.scaling.factor")
    if scaling == "yarn":
        longest = fields.whole(f"{kind}.rope.scaling.original_context_length", None, LONG)
        found |= {f"beta_{end}": fields.take(f"{kind}.rope.scaling.yarn_beta_{end}", None) for end in ("fast", "slow")}
        found["original_max_position_embeddings"] = longest
    place = header.tensors.get("rope_freqs.weight")
    if place is not None and kind == "llama":
        factor = 0.0
        if place.shape == (head_width // 2,) and scaling == "default":
            factors_K = unpack(place.kind, header.read("rope_freqs.weight")).ravel()
            # Of Llama 3's numbers only the factor differs; the longest wave, which is stretched most, tells it.
            turns = LLAMA3.original_length * base ** (2 / head_width - 1) / (2 * math.pi)
            keep = min(1.0, max(0.0, (turns - LLAMA3.low) / (LLAMA3.high - LLAMA3.low)))
            factor = float(f"{(1 - keep) / (1 / float(factors_K[-1]) - keep):.4g}")
        if factor <= 0 or not np.allclose(factors_K, divisors(replace(LLAMA3, factor=factor), base, head_width), 1e-3):
            raise fields.refused("rope_freqs.weight", place.shape, "it stretches positions in another way than Llama 3")
        found |= {"factor": factor, "low_freq_factor": LLAMA3.low, "high_freq_factor": LLAMA3.high}
        found["original_max_position_embeddings"] = LLAMA3.original_length
        scaling = "llama3"
    return found | {"rope_type": scaling}


def divisors(scaling: RopeScaling, base: float, head_width: int) -> NDArray[np.float32]:
    """What a stretch divides each rotary frequency by [K / 2]."""
    plain = Rotary.of(Dialect(rope_base=base), head_width, 1).frequencies
    stretched = Rotary.of(Dialect(rope_base=base, rope_scaling=scaling), head_width, 1).frequencies
    return np.divide(plain, stretched).astype(np.float32)


def metadata_of(family: LM) -> dict[str, Any]:
    """The metadata of a model's architecture, and nothing of its name or tokenizer.

    Raises:
        ConfigError: llama.cpp has no architecture that computes the same.
    """
    config, backbone, own = write_config(family), family.backbone, family.backbone.dialect
    kind = "llama" if config["model_type"] == "mistral" else config["model_type"]
    scaling = own.rope_scaling
    faults = {
        f"a window of {backbone.window}": backbone.window is not None and backbone.window < family.context_length,
        f"the activation {own.activation}": own.activation != ("gelu_tanh" if kind == "gpt2" else "silu"),
        "scores that are not divided": own.attention_scale == "one",
        "biases": kind == "mamba2" and own.bias != "none",
        "a temperature of its own": scaling is not None and scaling.temperature is not None,
        "Llama 3's positions": scaling is not None and scaling.kind == "llama3" and kind != "llama",
    }
    if wrong := [words for words, there in faults.items() if there]:
        why = f"its {kind} architecture computes without"
        raise ConfigError(f"llama.cpp cannot run this model: it has {', '.join(wrong)}", why, "export it with --to hf")
    found = {"general.architecture": kind}
    found |= {f"{kind}.{key}": config[name] for key, name in KEYS[kind].items() if config.get(name) is not None}
    found |= {f"{kind}.vocab_size": family.vocab_size}
    found.pop(f"{kind}.attention.sliding_window", None)
    if kind == "mamba2":
        found |= {f"{kind}.feed_forward_length": 0, f"{kind}.attention.head_count": 0}
        found[f"{kind}.ssm.inner_size"] = backbone.mamba.expand * backbone.width
    elif kind != "gpt2":
        found |= {
            f"{kind}.attention.value_length": backbone.head_size,
            f"{kind}.rope.dimension_count": backbone.head_size,
        }
    if scaling is not None and scaling.kind != "llama3":
        found |= {f"{kind}.rope.scaling.type": scaling.kind, f"{kind}.rope.scaling.factor": float(scaling.factor)}
        if scaling.kind == "yarn":
            found[f"{kind}.rope.scaling.original_context_length"] = scaling.original_length
            found[f"{kind}.rope.scaling.yarn_beta_fast"] = float(scaling.high)
            found[f"{kind}.rope.scaling.yarn_beta_slow"] = float(scaling.low)
    return found
