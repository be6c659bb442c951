"""config.json, both ways: the `model_type`s of transformers that are dialects of ours.

    config.json -> read_config -> LM          LM -> write_config -> config.json

Llama, Mistral (a window), Qwen2 (biases on query, key and value), Qwen3 (norms on queries and keys), GPT-2, Mamba-2.
What the fields mean and what stands where one is missing: transformers 5, `configuration_*.py`; the older
`rope_theta` and `rope_scaling` are read too. The other formats are brought into this form first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

from nomoat.core.errors import ConfigError
from nomoat.families.lm import LM
from nomoat.hub.fields import Fields
from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import Dialect, MambaConfig, RopeScaling

CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel", "mamba2": "Mamba2ForCausalLM",
}  # fmt: skip
ACTIVATIONS: dict[str, Any] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu", "quick_gelu": "quick_gelu",
}  # fmt: skip
NEUTRAL = (
    r"_.*|architectures|auto_map|.*_token_id|transformers.*|(torch_)?dtype|initializer_range|use_cache|.*dropout|"
    r".*_pdrop|pretraining_tp|summary_.*|task_specific_params|n_ctx|reorder_and_upcast_attn|is_llama_config|"
    r"residual_in_fp32|rescale_prenorm_residual|time_step_(rank|min|max|floor)|chunk_size|max_window_layers|"
    r"return_dict|output_.*|problem_type|id2label|label2id|num_labels|unsloth_.*"
)
"""Fields about training, tokens, other heads and speed."""

LONG = 1 << 30
MAMBA_CONTEXT = 2048
"""A state has no longest context; the published Mamba-2 models were trained on this many tokens."""

_GPT2 = replace(dialects.GPT2, epsilon=1e-6, activation="silu")
_MAMBA2 = Dialect(positions="none", mlp="none")
SHAPES = (
    ("llama", Dialect()), ("llama", Dialect(bias="all")), ("qwen2", Dialect(bias="qkv")),
    ("qwen3", Dialect(qk_norm="head")), ("gpt2", _GPT2), ("gpt2", replace(_GPT2, attention_scale="one")),
    ("mamba2", _MAMBA2), ("mamba2", replace(_MAMBA2, bias="all")),
)  # fmt: skip
"""What each architecture computes, but for what its config.json may choose."""


def read_config(data: Mapping[str, Any], source: str) -> LM:
    """The language model that a config.json describes.

    Raises:
        DataError: an architecture or a field that cannot be honoured, by name.
    """
    windowed = data.get("model_type") in ("mistral", "qwen2", "qwen3")
    fields = Fields({"sliding_window": 4096, **data} if windowed else data, source, NEUTRAL)
    kind = fields.word("model_type", {name: name for name in CLASSES})
    read = {"gpt2": _read_gpt2, "mamba2": _read_mamba2}.get(kind, _read_llama)
    length, backbone = read(fields, kind)
    family = LM(fields.whole("vocab_size"), length, backbone)
    fields.close()
    return family


def _read_llama(fields: Fields, kind: str) -> tuple[int, Backbone]:
    heads, width, depth = (fields.whole(name) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    length = fields.whole("max_position_embeddings", most=LONG)
    biased = fields.flag("attention_bias")
    if biased and (kind != "llama" or not fields.values.get("mlp_bias")):
        raise fields.refused("attention_bias", True, "no dialect here has that bias alone")
    fields.only("mlp_bias", biased)
    base, scaling = _rope(fields, length)
    dialect = Dialect(
        epsilon=fields.number("rms_norm_eps"),
        activation=fields.word("hidden_act", ACTIVATIONS, "silu"),
        bias="qkv" if kind == "qwen2" else "all" if biased else "none",
        qk_norm="head" if kind == "qwen3" else "none",
        rope_base=base,
        rope_scaling=scaling,
        output=fields.word("tie_word_embeddings", {True: "tied", False: "untied"}, False),
    )
    head_width = fields.whole("head_dim", 128 if kind == "qwen3" else None, most=1 << 16)
    return length, Backbone(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", {"llama": heads, "mistral": 8}.get(kind, 32)),
        head_width=None if head_width is not None and head_width * heads == width else head_width,
        mlp_width=fields.whole("intermediate_size"),
        dialect=dialect,
        window=_window(fields, kind, depth),
    )


def _window(fields: Fields, kind: str, depth: int) -> int | None:
    """How far attention looks back in every layer; layers that differ in it are refused."""
    window: int | None = fields.whole("sliding_window", None, most=LONG) if kind != "llama" else None
    if kind in ("llama", "mistral"):
        return window
    whole, part = "full_attention", "sliding_attention"
    first = fields.take("max_window_layers", 28)
    there = fields.flag("use_sliding_window") and window is not None
    if type(first) is not int:
        raise fields.refused("max_window_layers", first, "it must be a whole number")
    usual = [part if there and layer >= first else whole for layer in range(min(depth, 1000))]
    types = fields.take("layer_types", usual)
    if not isinstance(types, list) or types not in ([part] * len(types), [whole] * len(types)):
        raise fields.refused("layer_types", types, "all layers look back equally far here")
    return window if there and part in types else None


def _rope(outer: Fields, length: int) -> tuple[float, RopeScaling | None]:
    """Base and stretch of the rotary positions."""
    older, given = outer.take("rope_scaling", {}), outer.take("rope_parameters", {})
    outer.only("partial_rotary_factor", 1)
    outer.only("rope_interleaved", False)
    if not isinstance(given or older, dict):
        raise outer.refused("rope_scaling", given or older, "it must be an object")
    fields = Fields(given or older, f"{outer.source}, rope_scaling")
    base = fields.number("rope_theta", outer.number("rope_theta", 10_000.0))
    fields.only("partial_rotary_factor", 1)
    older = fields.take("type", "default")
    kind = fields.word("rope_type", {name: name for name in ("default", "linear", "llama3", "yarn")}, older)
    if kind == "default":
        fields.close()
        return base, None
    ends: dict[str, Any] = {}
    if kind == "llama3":
        ends = {"low": fields.number("low_freq_factor"), "high": fields.number("high_freq_factor")}
    elif kind == "yarn":
        ends = {"low": fields.number("beta_slow", 1.0), "high": fields.number("beta_fast", 32.0)}
        ends["temperature"] = fields.number("attention_factor", None)
        fields.only("truncate", True)
    if kind != "linear":
        ends["original_length"] = fields.whole("original_max_position_embeddings", length, most=LONG)
    scaling = RopeScaling(kind, fields.number("factor"), **ends)  # type: ignore[arg-type]
    fields.close()
    return base, scaling


def _read_gpt2(fields: Fields, kind: str) -> tuple[int, Backbone]:
    width, length = fields.whole("n_embd"), fields.whole("n_positions")
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    dialect = replace(
        dialects.GPT2,
        epsilon=fields.number("layer_norm_epsilon", 1e-5),
        activation=fields.word("activation_function", ACTIVATIONS, "gelu_new"),
        attention_scale="sqrt" if fields.flag("scale_attn_weights", True) else "one",
        output="tied" if fields.flag("tie_word_embeddings", True) else "untied",
    )
    return length, Backbone(
        width=width,
        depth=fields.whole("n_layer"),
        heads=fields.whole("n_head"),
        mlp_width=fields.whole("n_inner", 4 * width),
        dialect=dialect,
        positions_length=length,
    )


def _read_mamba2(fields: Fields, kind: str) -> tuple[int, Backbone]:
    width, expand = fields.whole("hidden_size"), fields.whole("expand", 2)
    heads, head_width = fields.whole("num_heads", 128), fields.whole("head_dim", 64)
    if heads * head_width != expand * width:
        raise fields.refused("num_heads", heads, f"{heads} heads of {head_width} are not {expand} x {width}")
    fields.only("use_conv_bias", True)
    fields.only("hidden_act", "silu", "swish")
    fields.only("time_step_limit", [0.0, float("inf")], [0.0, {"__float__": "Infinity"}])
    dialect = replace(
        dialects.MAMBA2,
        epsilon=fields.number("layer_norm_epsilon", 1e-5),
        bias="all" if fields.flag("use_bias") else "none",
        output="tied" if fields.flag("tie_word_embeddings") else "untied",
    )
    state_width, taps = fields.whole("state_size", 128), fields.whole("conv_kernel", 4)
    sizes = MambaConfig(state_width, head_width, expand, taps, fields.whole("n_groups", 8))
    depth, length = fields.whole("num_hidden_layers"), fields.whole("max_position_embeddings", MAMBA_CONTEXT, LONG)
    return length, Backbone(width=width, depth=depth, heads=1, mixers="mamba", dialect=dialect, mamba=sizes)


def model_type(family: LM) -> str:
    """The architecture of transformers that computes the same.

    Raises:
        ConfigError: none does; what stands in the way is named.
    """
    backbone, own = family.backbone, family.backbone.dialect
    free: dict[str, Any] = {"epsilon": 1e-6, "output": "tied", "zero_init": False, "activation": "silu"}
    plain = replace(own, **free, rope_base=10_000.0, rope_scaling=None)
    mixer = "mamba" if set(backbone.pattern) == {"mamba"} else "attention"

    def apart(shape: Dialect) -> list[str]:
        return [each.name for each in fields_of(Dialect) if getattr(plain, each.name) != getattr(shape, each.name)]

    shapes = [(kind, shape) for kind, shape in SHAPES if (kind == "mamba2") == (mixer == "mamba")]
    kind, shape = min(shapes, key=lambda each: len(apart(each[1])))
    faults = [f"{name.replace('_', ' ')} {getattr(own, name)}" for name in apart(shape)]
    square = backbone.groups == backbone.heads and backbone.head_size * backbone.heads == backbone.width
    windowed = backbone.window is not None
    faults += [
        words
        for words, there in {
            "layers of attention and layers of Mamba": len(set(backbone.pattern)) > 1,
            "a stack that reads in both directions": not backbone.causal,
            "a condition or a context": bool(backbone.cond_width or backbone.context_width),
            "positions with several axes": backbone.position_axes != 1,
            "learned positions with a window, shared keys or wider heads": kind == "gpt2" and (windowed or not square),
            "more positions than its context": kind == "gpt2" and backbone.positions_length != family.context_length,
            "biases and a window": kind == "llama" and windowed and own.bias == "all",
            f"{backbone.heads} heads in a width of {backbone.width}": kind == "llama"
            and backbone.width % backbone.heads > 0,
            f"{own.activation} in a gate of Mamba's": kind == "mamba2" and own.activation != "silu",
        }.items()
        if there
    ]
    if faults:
        raise ConfigError(
            f"no other program that we know can open this model: it has {', '.join(faults)}",
            f"nearest is {CLASSES[kind]}, which would read its weights as something else",
            "train with dialect OURS, LLAMA, QWEN2, QWEN3, GPT2 or MAMBA2 to export",
        )
    return "mistral" if kind == "llama" and windowed else kind


def write_config(family: LM) -> dict[str, Any]:
    """The config.json of a language model.

    Raises:
        ConfigError: no architecture of transformers computes the same.
    """
    kind, backbone, own = model_type(family), family.backbone, family.backbone.dialect
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == own.activation)
    shared = {
        "architectures": [CLASSES[kind]], "model_type": kind, "vocab_size": family.vocab_size,
        "tie_word_embeddings": own.output == "tied",
    }  # fmt: skip
    if kind == "gpt2":
        return shared | {
            "n_positions": family.context_length, "n_embd": backbone.width, "n_layer": backbone.depth,
            "n_head": backbone.heads, "n_inner": backbone.inner, "activation_function": activation,
            "layer_norm_epsilon": own.epsilon, "scale_attn_weights": own.attention_scale == "sqrt",
        }  # fmt: skip
    shared |= {
        "max_position_embeddings": family.context_length, "hidden_size": backbone.width, "hidden_act": activation,
        "num_hidden_layers": backbone.depth,
    }  # fmt: skip
    if kind == "mamba2":
        sizes = backbone.mamba
        return shared | {
            "num_heads": sizes.expand * backbone.width // sizes.head_width, "head_dim": sizes.head_width,
            "state_size": sizes.state_width, "expand": sizes.expand, "conv_kernel": sizes.conv_width,
            "n_groups": sizes.groups, "layer_norm_epsilon": own.epsilon, "use_bias": own.bias == "all",
        }  # fmt: skip
    shared |= {
        "num_attention_heads": backbone.heads, "num_key_value_heads": backbone.groups, "head_dim": backbone.head_size,
        "intermediate_size": backbone.inner, "rms_norm_eps": own.epsilon, "rope_theta": own.rope_base,
        "rope_parameters": {"rope_theta": own.rope_base, **_rope_words(own.rope_scaling)},
    }  # fmt: skip
    if own.rope_scaling is not None:
        shared["rope_scaling"] = _rope_words(own.rope_scaling)  # transformers 4 reads this
    if kind == "llama":
        return shared | dict.fromkeys(("attention_bias", "mlp_bias"), own.bias == "all")
    if kind == "mistral" or backbone.window is None:
        return shared | {"sliding_window": backbone.window}
    types = ["sliding_attention"] * backbone.depth
    return shared | {
        "use_sliding_window": True, "sliding_window": backbone.window, "max_window_layers": 0, "layer_types": types
    }  # fmt: skip


def _rope_words(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    words: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        low, high = ("low_freq_factor", "high_freq_factor") if scaling.kind == "llama3" else ("beta_slow", "beta_fast")
        words |= {low: scaling.low, high: scaling.high, "original_max_position_embeddings": scaling.original_length}
    return words if scaling.temperature is None else words | {"attention_factor": scaling.temperature}
