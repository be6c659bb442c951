"""Dialects: the closed sets of choices in which published transformers differ, as one frozen value.

A dialect is resolved when the stack is built; `forward` never asks for it. The constants name published models:
OURS (Qwen3 with zero-initialised output projections), GPT2 (Radford et al. 2019), LLAMA (Touvron et al. 2023),
QWEN2 and QWEN3 (Yang et al. 2024, 2025), BERT (Devlin et al. 2018), T5 (Raffel et al. 2020), VIT (Dosovitskiy et al.
2020), CLIP_TEXT (Radford et al. 2021), SPEEDRUN (Jordan et al. 2024, modded-nanogpt), MAMBA2 (Dao and Gu 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_type_hints

from nomoat.core.errors import ConfigError, nearest


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was trained on.

    Args:
        kind: linear (positions divided by `factor`), llama3 (long waves divided, short ones kept, a ramp between), or
            yarn (Peng et al. 2023: a ramp over the dimensions, and a temperature).
        factor: how many times longer.
        original_length: context length before the stretch, in tokens (llama3, yarn).
        low, high: llama3's wave-length factors, or yarn's beta_slow and beta_fast.
        temperature: yarn's factor on cosine and sine; None: 0.1 ln(factor) + 1.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: int = 8192
    low: float = 1.0
    high: float = 4.0
    temperature: float | None = None


@dataclass(frozen=True)
class Dialect:
    """One value of closed sets; see DESIGN.md, section 3.

    Args:
        norm: layer norm, RMS norm, or RMS norm without weights.
        epsilon: added to the variance.
        place: norm before each part (with a last one after all), or after each sum (with one on the input).
        activation: of the MLP; `gelu` is exact, `gelu_tanh` the tanh form, `quick_gelu` is x sigmoid(1.702 x).
        gated: the MLP multiplies the activation by a second projection.
        bias: none, on query, key and value only, or on every linear layer and layer norm.
        qk_norm: RMS norm of each head's queries and keys, with weights.
        positions: none, learned, rope, or relative buckets shared by all layers (T5).
        rope_base, rope_share, rope_scaling: base of the frequencies, share of each head that is turned, stretch.
        relative_distance: distance in tokens from which all share the last bucket.
        attention_scale: scores are divided by sqrt(K), or by nothing.
        output: the output layer is the embedding transposed, or its own.
        output_scale: what the stack's output is multiplied by before the output layer; "rsqrt_width" is T5's.
        soft_cap: logits become cap tanh(logits / cap); None: no cap.
        layer_scale: first value of a learned factor [D] on each part's output; None: no factor.
        bounded: what a part adds, y, becomes y / sqrt(1 + mean(y^2)), so that none drowns the others. Under a condition
            that scales inputs and gates outputs, and a last norm that hides their size, they grow without end.
        mlp: after every mixer, or none.
        zero_init: output projections start at zero, so that every block starts as the identity.
        residual_scalars: before each block x becomes a x + b x0 with learned a (1 at first) and b (0 at first).
    """

    norm: Literal["rms", "layer", "rms_bare"] = "rms"
    epsilon: float = 1e-6
    place: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu"] = "silu"
    gated: bool = True
    bias: Literal["none", "qkv", "all"] = "none"
    qk_norm: Literal["none", "head"] = "none"
    positions: Literal["none", "learned", "rope", "relative"] = "rope"
    rope_base: float = 10_000.0
    rope_share: float = 1.0
    rope_scaling: RopeScaling | None = None
    relative_distance: int = 128
    attention_scale: Literal["sqrt", "one"] = "sqrt"
    output: Literal["tied", "untied"] = "tied"
    output_scale: Literal["one", "rsqrt_width"] = "one"
    soft_cap: float | None = None
    layer_scale: float | None = None
    bounded: bool = False
    mlp: Literal["every", "none"] = "every"
    zero_init: bool = False
    residual_scalars: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            known, value = get_args(hints[each.name]), getattr(self, each.name)
            if known and all(isinstance(word, str) for word in known) and value not in known:
                raise ConfigError(
                    f"dialect.{each.name} is {value!r}", f"it is one of {', '.join(known)}", nearest(str(value), known)
                )


@dataclass(frozen=True)
class MambaConfig:
    """Sizes of the Mamba-2 mixer (Dao and Gu 2024).

    Args:
        state_width: N, numbers a channel remembers.
        head_width: channels that share a decay.
        expand: inner width / width.
        conv_width: taps of the short causal convolution.
        groups: groups of heads that share B and C.
        chunk: tokens that are read as one matrix product.
    """

    state_width: int = 64
    head_width: int = 64
    expand: int = 2
    conv_width: int = 4
    groups: int = 1
    chunk: int = 64


GPT2 = Dialect(norm="layer", epsilon=1e-5, activation="gelu_tanh", gated=False, bias="all", positions="learned")
LLAMA = Dialect(epsilon=1e-5, output="untied")
QWEN2 = Dialect(bias="qkv", rope_base=1_000_000.0)
QWEN3 = Dialect(qk_norm="head", rope_base=1_000_000.0)
OURS = replace(QWEN3, rope_base=10_000.0, zero_init=True)
BERT = replace(GPT2, epsilon=1e-12, place="post", activation="gelu")
T5 = Dialect(activation="relu", gated=False, positions="relative", attention_scale="one", output_scale="rsqrt_width")
VIT = replace(GPT2, epsilon=1e-12, activation="gelu")
CLIP_TEXT = replace(GPT2, activation="quick_gelu")
SPEEDRUN = Dialect(
    norm="rms_bare",
    activation="relu2",
    gated=False,
    qk_norm="head",
    output="untied",
    soft_cap=15.0,
    zero_init=True,
    residual_scalars=True,
)
MAMBA2 = Dialect(epsilon=1e-5, positions="none", mlp="none")
