"""Names: which tensors of somebody else's file a parameter of ours is, for each architecture, as data.

    parameter of ours -> Part, ... (their name, their shape, what changes) -> read: theirs to ours, write: back

Ours joins what reads the same input: query, key and value rows in `qkv`, gate and up rows in `up`. What else differs:
GPT-2's matrices stand transposed in transformers; GGUF (and llama2.c) store the rows of Llama's queries and keys in
another order, because their rotary positions turn neighbours (2i, 2i + 1) where transformers turns (i, i + K/2);
GGUF holds Mamba-2's decay itself, not its logarithm, and has an axis more or less in three places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from nomoat.core.device import hollow
from nomoat.core.errors import DataError
from nomoat.core.tensors import Later
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

LAYER = re.compile(r"stack\.layers\.(\d+)\.")
MOST_LAYERS = 1000

Change = Callable[[Tensor, Backbone], Tensor]


def _halves(rows: Tensor, backbone: Backbone) -> Tensor:
    """Rows of each head from neighbours (0, 1), (2, 3), ... to halves."""
    return rows.unflatten(0, (-1, backbone.head_size // 2, 2)).transpose(1, 2).reshape(rows.shape)


def _neighbours(rows: Tensor, backbone: Backbone) -> Tensor:
    """Rows of each head from halves to neighbours."""
    return rows.unflatten(0, (-1, 2, backbone.head_size // 2)).transpose(1, 2).reshape(rows.shape)


CHANGES: dict[str, tuple[Change, Change]] = {
    "": (lambda tensor, _: tensor, lambda tensor, _: tensor),
    "transposed": (lambda tensor, _: tensor.t(), lambda tensor, _: tensor.t()),  # leaves vectors as they are
    "turned": (_halves, _neighbours),
    "decay": (lambda tensor, _: tensor[:, 0].neg().log(), lambda tensor, _: tensor.exp().neg()[:, None]),
    "column": (lambda tensor, _: tensor[:, 0], lambda tensor, _: tensor[:, None]),
    "taps": (lambda tensor, _: tensor[:, None], lambda tensor, _: tensor[:, 0]),
    "groups": (lambda tensor, _: tensor.flatten(), lambda tensor, own: tensor.unflatten(0, (own.mamba.groups, -1))),
}
"""Name -> (theirs to ours, ours to theirs). `turned` moves whole rows, so it can be done to rows of blocks too."""


@dataclass(frozen=True)
class Names:
    """One architecture in one format.

    Args:
        top: module or parameter of ours -> theirs, outside the layers.
        prefix: of a layer's names, `#` for its number.
        layer: module or parameter of ours within a layer -> theirs; several, where ours joins them.
        changes: their module or parameter, without the prefix -> one of `CHANGES`.
        ignored: a pattern of their tensors that hold no weights.
    """

    top: Mapping[str, str]
    prefix: str
    layer: Mapping[str, str]
    changes: Mapping[str, str] = field(default_factory=dict)
    ignored: str = r"(?!)"

    def theirs(self, parameter: str) -> list[tuple[str, str]]:
        """Their names for a parameter of ours, each with its change.

        Raises:
            DataError: this architecture has no such parameter.
        """
        within = LAYER.match(parameter)
        table, prefix = (self.layer, self.prefix.replace("#", within[1])) if within else (self.top, "")
        own = parameter[within.end() :] if within else parameter
        module, _, leaf = own.rpartition(".")
        if own not in table and module not in table:
            raise DataError(f"there is no place for `{parameter}`", "this architecture has no such weights there")
        ending = "" if own in table else f".{leaf}"
        words = table.get(own) or table[module]
        return [(prefix + word + ending, self.changes.get(word, "")) for word in words.split()]


_LLAMA = Names(
    {"embed": "model.embed_tokens", "stack.norm": "model.norm", "output": "lm_head"},
    "model.layers.#.",
    {
        "mixer.norm": "input_layernorm", "mlp.norm": "post_attention_layernorm",
        "mixer.body.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "mixer.body.out": "self_attn.o_proj",
        "mixer.body.query_norm": "self_attn.q_norm", "mixer.body.key_norm": "self_attn.k_norm",
        "mlp.body.up": "mlp.gate_proj mlp.up_proj", "mlp.body.down": "mlp.down_proj",
    },
    ignored=r".*\.rotary_emb\.inv_freq",
)  # fmt: skip
_GPT2 = Names(
    {
        "embed": "transformer.wte", "stack.positions": "transformer.wpe", "stack.norm": "transformer.ln_f",
        "output": "lm_head",
    },
    "transformer.h.#.",
    {
        "mixer.norm": "ln_1", "mixer.body.qkv": "attn.c_attn", "mixer.body.out": "attn.c_proj", "mlp.norm": "ln_2",
        "mlp.body.up": "mlp.c_fc", "mlp.body.down": "mlp.c_proj",
    },
    dict.fromkeys(("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), "transposed"),
    ignored=r".*\.attn\.(masked_)?bias",
)  # fmt: skip
_MAMBA2 = Names(
    {"embed": "backbone.embeddings", "stack.norm": "backbone.norm_f", "output": "lm_head"},
    "backbone.layers.#.",
    {
        "mixer.norm": "norm", "mixer.body.in_proj": "mixer.in_proj", "mixer.body.norm": "mixer.norm",
        "mixer.body.conv_weight": "mixer.conv1d.weight", "mixer.body.conv_bias": "mixer.conv1d.bias",
        "mixer.body.dt_bias": "mixer.dt_bias", "mixer.body.a_log": "mixer.A_log", "mixer.body.skip": "mixer.D",
        "mixer.body.out": "mixer.out_proj",
    },
)  # fmt: skip
HF = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2, "mamba2": _MAMBA2}
"""By `model_type` of config.json."""

_TOP = {"embed": "token_embd", "stack.positions": "position_embd", "stack.norm": "output_norm", "output": "output"}
_BLOCK = {
    "mixer.norm": "attn_norm", "mixer.body.qkv": "attn_q attn_k attn_v", "mixer.body.out": "attn_output",
    "mixer.body.query_norm": "attn_q_norm", "mixer.body.key_norm": "attn_k_norm", "mlp.norm": "ffn_norm",
    "mlp.body.up": "ffn_gate ffn_up", "mlp.body.down": "ffn_down",
}  # fmt: skip
_STATE = {
    "mixer.norm": "attn_norm", "mixer.body.in_proj": "ssm_in", "mixer.body.conv_weight": "ssm_conv1d.weight",
    "mixer.body.conv_bias": "ssm_conv1d.bias", "mixer.body.dt_bias": "ssm_dt.bias", "mixer.body.a_log": "ssm_a",
    "mixer.body.skip": "ssm_d", "mixer.body.norm": "ssm_norm", "mixer.body.out": "ssm_out",
}  # fmt: skip
_STATE_CHANGES = {"ssm_conv1d.weight": "taps", "ssm_a": "decay", "ssm_d": "column", "ssm_norm": "groups"}
_TURNED = Names(_TOP, "blk.#.", _BLOCK, {"attn_q": "turned", "attn_k": "turned"}, ignored=r"rope_freqs\.weight")
_PLAIN = Names(_TOP, "blk.#.", _BLOCK)
GGUF = {
    "llama": _TURNED,
    "mistral": _TURNED,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "gpt2": Names(_TOP, "blk.#.", {**_BLOCK, "mixer.body.qkv": "attn_qkv", "mlp.body.up": "ffn_up"}),
    "mamba2": Names(_TOP, "blk.#.", _STATE, _STATE_CHANGES),
}
"""By the same; llama2.c is read with the names of `llama`."""


class Part(NamedTuple):
    """A tensor of theirs within a parameter of ours.

    Args:
        name: theirs.
        shape: theirs.
        change: one of `CHANGES`.
        first_row, rows: where its rows stand in ours.
    """

    name: str
    shape: tuple[int, ...]
    change: str
    first_row: int
    rows: int


class Whole(NamedTuple):
    """A parameter of ours.

    Args:
        shape: ours.
        parts: what it is made of in their file, in the order of its rows.
    """

    shape: tuple[int, ...]
    parts: list[Part]


def wholes(config: LM, names: Names) -> dict[str, Whole]:
    """Each parameter of ours, by name; of a packed model those of the float one that it stands for.

    Raises:
        DataError: the architecture has no place for one of them.
    """
    with hollow():
        own = replace(config, bits=16).build({}).state_dict()
    backbone = config.backbone
    qkv = [size * backbone.head_size for size in (backbone.heads, backbone.groups, backbone.groups)]
    found: dict[str, Whole] = {}
    for parameter, tensor in own.items():
        theirs, first, parts = names.theirs(parameter), 0, []
        rows = {2: [backbone.inner] * 2, 3: qkv}.get(len(theirs), [len(tensor)])
        for (name, change), piece in zip(theirs, tensor.split(rows), strict=True):
            shape = tuple(CHANGES[change][1](piece, backbone).shape)
            parts.append(Part(name, shape, change, first, len(piece)))
            first += len(piece)
        found[parameter] = Whole(tuple(tensor.shape), parts)
    return found


def read(config: LM, names: Names, theirs: Mapping[str, Later], source: str) -> dict[str, Later]:
    """Their tensors as ours, each made when it is needed; nothing of theirs may be missing, left over or misshapen.

    Args:
        config: what the file says the model is.
        names: of its architecture in its format.
        theirs: the tensors of the file.
        source: the file's name, for errors.

    Raises:
        DataError: tensors and config do not fit together.
    """
    depth, [(table, _)] = config.backbone.depth, names.theirs("embed.weight")
    if depth > min(MOST_LAYERS, len(theirs)):
        raise DataError(f"{source} says that it has {depth:,} layers", f"and has {len(theirs)} tensors")
    # Held against the file before a network of such sizes is thought out.
    _check({table: (config.vocab_size, config.backbone.width)}, theirs, source)
    own = wholes(config, names)
    wanted = {part.name: part.shape for whole in own.values() for part in whole.parts}
    _check(wanted, theirs, source)
    left = [name for name in theirs if name not in wanted and not re.fullmatch(names.ignored, name)]
    if left:
        raise DataError(
            f"{source} has {len(left)} tensors that this architecture does not: `{left[0][:80]}`",
            "to leave them out could change what the model says",
        )

    def joining(each: list[Part], dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
        def pieces() -> Iterator[Tensor]:
            for part in each:
                tensor = theirs[part.name]
                # A change may need the whole; what stays as it is can be read by rows.
                for piece in iter((tensor.make(),)) if part.change else tensor.rows():
                    yield CHANGES[part.change][0](piece.to(_dtype(part, dtype)), config.backbone).to(dtype).contiguous()

        return pieces

    ours = {}
    for parameter, whole in own.items():
        dtypes = [_dtype(part, theirs[part.name].dtype) for part in whole.parts]
        dtype = reduce(torch.promote_types, dtypes)  # the type that holds them all exactly
        ours[parameter] = Later.by_rows(whole.shape, dtype, joining(whole.parts, dtype))
    return ours


def _check(wanted: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Later], source: str) -> None:
    """Refuse a file that lacks a tensor, or has it in other sizes or with other numbers."""
    for name, shape in wanted.items():
        if name not in theirs:
            raise DataError(f"{source} lacks the tensor `{name}`", "the file is not whole, or not what it says it is")
        if not theirs[name].dtype.is_floating_point:
            raise DataError(f"`{name}` of {source} is {theirs[name].dtype}", "its numbers mean something else here")
        if theirs[name].shape != shape:
            raise DataError(f"`{name}` of {source} is {theirs[name].shape}", f"what it says of itself asks for {shape}")


def write(config: LM, names: Names, ours: Mapping[str, Later]) -> dict[str, Later]:
    """Our tensors as theirs, each made when it is needed.

    Raises:
        DataError: the architecture has no place for one of them.
    """

    def taking(parameter: str, part: Part) -> Callable[[], Tensor]:
        def make() -> Tensor:
            piece = ours[parameter].make()[part.first_row : part.first_row + part.rows]
            return CHANGES[part.change][1](piece.to(_dtype(part, piece.dtype)), config.backbone).contiguous()

        return make

    return {
        part.name: Later(part.shape, _dtype(part, ours[parameter].dtype), taking(parameter, part))
        for parameter, whole in wholes(config, names).items()
        for part in whole.parts
    }


def _dtype(part: Part, dtype: torch.dtype) -> torch.dtype:
    """An exponential or a logarithm is rounded: it is kept in single precision."""
    return torch.float32 if part.change == "decay" else dtype
