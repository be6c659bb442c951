"""The same weights give the same outputs as in transformers: GPT-2, Llama, Qwen3, BERT and both stacks of T5.

Each model is made in memory from a config, with random weights. The names are mapped here; the tables for published
weights belong to the hub.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from nomoat.core.types import Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import BERT, GPT2, LLAMA, QWEN3, T5

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(2 * 11).view(2, 11) * 7 % 50
VALID = torch.tensor([[True] * 11, [True] * 6 + [False] * 5])


def random_weights(model):
    """Weights large enough that every part of the model shows in its output."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2 + ("norm" in name or "ln_" in name)
    return model.eval().requires_grad_(False)


def filled(backbone, weights):
    """Our stack with these weights, all names matched."""
    stack = backbone.build().eval().requires_grad_(False)
    stack.load_state_dict(weights)
    return stack


def assert_same(ours, theirs):
    assert theirs.abs().mean() > 0.1
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def decoded(stack, x, **more):
    """The same output, read in a chunk of four and then token by token."""
    memory = stack.memory(len(x), x.shape[1])
    return torch.cat(
        [stack(piece, memory=memory, **more).x_BLD for piece in x.split((4, *(1,) * (x.shape[1] - 4)), 1)], 1
    )


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
def test_gpt2(kernel):
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=3, n_head=4)
    theirs = random_weights(transformers.GPT2Model(config))
    old = theirs.state_dict()
    weights = {"positions.weight": old["wpe.weight"], "norm.weight": old["ln_f.weight"], "norm.bias": old["ln_f.bias"]}
    parts = {"mixer.norm": "ln_1", "mixer.body.qkv": "attn.c_attn", "mixer.body.out": "attn.c_proj",
             "mlp.norm": "ln_2", "mlp.body.up": "mlp.c_fc", "mlp.body.down": "mlp.c_proj"}  # fmt: skip
    for layer in range(3):
        for ours, name in parts.items():
            weight = old[f"h.{layer}.{name}.weight"]
            weights[f"layers.{layer}.{ours}.weight"] = weight.t()  # matrices are stored as [in, out]
            weights[f"layers.{layer}.{ours}.bias"] = old[f"h.{layer}.{name}.bias"]
    stack = filled(Backbone(width=32, depth=3, heads=4, dialect=GPT2, positions_length=16), weights)
    x, expected = theirs.wte(TOKENS), theirs(TOKENS).last_hidden_state
    assert_same(stack(x, kernel=kernel).x_BLD, expected)
    assert_same(decoded(stack, x, kernel=kernel), expected)
    padded = theirs(TOKENS, attention_mask=VALID.long()).last_hidden_state
    assert_same(stack(x, ports=Ports(valid_BL=VALID), kernel=kernel).x_BLD[VALID], padded[VALID])


def llama_weights(old, depth, qk_norm):
    """Llama's and Qwen3's names in ours: query, key and value in one matrix, gate and up in another."""
    weights = {"norm.weight": old["norm.weight"]}
    for layer in range(depth):
        ours, theirs = f"layers.{layer}.", f"layers.{layer}."
        stacked = {
            "mixer.body.qkv": [f"self_attn.{name}_proj" for name in "qkv"],
            "mixer.body.out": ["self_attn.o_proj"],
            "mlp.body.up": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.body.down": ["mlp.down_proj"],
            "mixer.norm": ["input_layernorm"],
            "mlp.norm": ["post_attention_layernorm"],
        }
        if qk_norm:
            stacked |= {"mixer.body.query_norm": ["self_attn.q_norm"], "mixer.body.key_norm": ["self_attn.k_norm"]}
        for name, sources in stacked.items():
            weights[f"{ours}{name}.weight"] = torch.cat([old[f"{theirs}{source}.weight"] for source in sources])
    return weights


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
def test_llama(kernel):
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    theirs = random_weights(transformers.LlamaModel(config))
    dialect = replace(LLAMA, rope_base=5000.0)
    backbone = Backbone(width=32, depth=3, heads=4, kv_heads=2, mlp_width=48, dialect=dialect)
    stack = filled(backbone, llama_weights(theirs.state_dict(), 3, qk_norm=False))
    x, expected = theirs.embed_tokens(TOKENS), theirs(TOKENS).last_hidden_state
    assert_same(stack(x, kernel=kernel).x_BLD, expected)
    assert_same(decoded(stack, x, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
def test_qwen3_whose_heads_are_wider_than_width_by_heads(kernel):
    config = transformers.Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )  # fmt: skip
    theirs = random_weights(transformers.Qwen3Model(config))
    backbone = Backbone(width=32, depth=3, heads=4, kv_heads=2, head_width=16, mlp_width=48, dialect=QWEN3)
    stack = filled(backbone, llama_weights(theirs.state_dict(), 3, qk_norm=True))
    x, expected = theirs.embed_tokens(TOKENS), theirs(TOKENS).last_hidden_state
    assert_same(stack(x, kernel=kernel).x_BLD, expected)
    assert_same(decoded(stack, x, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
def test_bert(kernel):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=16,
    )  # fmt: skip
    theirs = random_weights(transformers.BertModel(config, add_pooling_layer=False))
    old = theirs.state_dict()
    weights = {
        "positions.weight": old["embeddings.position_embeddings.weight"],
        "input_norm.weight": old["embeddings.LayerNorm.weight"],
        "input_norm.bias": old["embeddings.LayerNorm.bias"],
    }
    stacked = {
        "mixer.body.qkv": [f"attention.self.{name}" for name in ("query", "key", "value")],
        "mixer.body.out": ["attention.output.dense"],
        "mixer.norm": ["attention.output.LayerNorm"],
        "mlp.body.up": ["intermediate.dense"],
        "mlp.body.down": ["output.dense"],
        "mlp.norm": ["output.LayerNorm"],
    }
    for layer in range(3):
        for ours, sources in stacked.items():
            for kind in ("weight", "bias"):
                found = [old[f"encoder.layer.{layer}.{source}.{kind}"] for source in sources]
                weights[f"layers.{layer}.{ours}.{kind}"] = torch.cat(found)
    stack = filled(
        Backbone(width=32, depth=3, heads=4, mlp_width=64, dialect=BERT, causal=False, positions_length=16), weights
    )
    x = theirs.embeddings.word_embeddings(TOKENS) + theirs.embeddings.token_type_embeddings.weight[0]
    assert_same(stack(x, kernel=kernel).x_BLD, theirs(TOKENS).last_hidden_state)
    padded = theirs(TOKENS, attention_mask=VALID.long()).last_hidden_state
    assert_same(stack(x, ports=Ports(valid_BL=VALID), kernel=kernel).x_BLD[VALID], padded[VALID])


def t5_weights(old, depth, decoder):
    """One stack of T5: self-attention, in the decoder cross-attention, MLP; one table of relative positions."""
    table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weights = {"norm.weight": old["final_layer_norm.weight"], "relative_positions.weight": old[table]}
    last = 2 if decoder else 1
    for layer in range(depth):
        block, ours = f"block.{layer}.layer.", f"layers.{layer}."
        stacked = {
            "mixer.body.qkv": [f"0.SelfAttention.{name}" for name in "qkv"],
            "mixer.body.out": ["0.SelfAttention.o"],
            "mixer.norm": ["0.layer_norm"],
            "mlp.body.up": [f"{last}.DenseReluDense.wi"],
            "mlp.body.down": [f"{last}.DenseReluDense.wo"],
            "mlp.norm": [f"{last}.layer_norm"],
        }
        if decoder:
            stacked |= {
                "cross.body.query": ["1.EncDecAttention.q"],
                "cross.body.kv": [f"1.EncDecAttention.{name}" for name in "kv"],
                "cross.body.out": ["1.EncDecAttention.o"],
                "cross.norm": ["1.layer_norm"],
            }
        for name, sources in stacked.items():
            weights[f"{ours}{name}.weight"] = torch.cat([old[f"{block}{source}.weight"] for source in sources])
    return weights


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
def test_t5_both_stacks(kernel):
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=12, d_ff=64, num_layers=3, num_heads=4, relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    )  # fmt: skip
    theirs = random_weights(transformers.T5Model(config))
    sizes = {"width": 32, "depth": 3, "heads": 4, "head_width": 12, "mlp_width": 64, "positions_length": 8}
    dialect = replace(T5, relative_distance=20)
    encoder = filled(
        Backbone(**sizes, dialect=dialect, causal=False), t5_weights(theirs.encoder.state_dict(), 3, decoder=False)
    )
    decoder = filled(
        Backbone(**sizes, dialect=dialect, context_width=32), t5_weights(theirs.decoder.state_dict(), 3, decoder=True)
    )
    source = torch.cat([TOKENS, TOKENS.flip(1), TOKENS], 1)
    valid = torch.cat([torch.ones_like(VALID), VALID, torch.zeros_like(VALID)], 1)
    target = TOKENS.flip(0).repeat(1, 2)
    expected = theirs(input_ids=source, attention_mask=valid.long(), decoder_input_ids=target)
    context = encoder(theirs.shared(source), ports=Ports(valid_BL=valid), kernel=kernel).x_BLD
    assert_same(context[valid], expected.encoder_last_hidden_state[valid])
    x = theirs.shared(target)
    ports = Ports(context_BMD=context, context_valid_BM=valid)
    assert_same(decoder(x, ports=ports, kernel=kernel).x_BLD, expected.last_hidden_state)
    memory = decoder.memory(2, 22)
    decoder.remember(context, valid, memory)
    pieces = [decoder(piece, memory=memory, kernel=kernel).x_BLD for piece in x.split((5, *(1,) * 17), 1)]
    assert_same(torch.cat(pieces, 1), expected.last_hidden_state)


@pytest.mark.parametrize("gated", [False, True])
def test_t5_first_scores_are_those_of_divided_queries(gated):
    """Without 1/sqrt(K) the fresh queries are smaller by it, so that the first scores have the same size."""
    torch.manual_seed(0)
    fresh = [Backbone(width=64, depth=1, heads=4, dialect=replace(T5, gated=gated, attention_scale=scale),
                      positions_length=8).build().layers[0].mixer.body for scale in ("sqrt", "one")]  # fmt: skip
    spread = [body.qkv.weight[:64].std() * body.scale for body in fresh]
    assert_close(spread[0], spread[1], rtol=0.05, atol=0)
