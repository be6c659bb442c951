"""Tiny models of transformers with random weights, one an architecture, and how they and ours are asked the same."""

from __future__ import annotations

from typing import Any

import torch

from nomoat.core.run import load
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write

IDS = torch.arange(2 * 11).view(2, 11) * 7 % 50
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
STRETCH = {"rope_theta": 5000.0, "original_max_position_embeddings": 8192}
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SIZES, "rope_parameters": ROPE}),
    "llama-tied": ("Llama", {**SIZES, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama3": ("Llama", {**SIZES, "rope_parameters": {
        **STRETCH, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 6}),
    "mistral-whole": ("Mistral", {**SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}),
    "qwen2-yarn": ("Qwen2", {**SIZES, "rope_parameters": {
        **STRETCH, "original_max_position_embeddings": 16, "rope_type": "yarn", "factor": 4.0}}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-linear": ("Qwen3", {**SIZES, "head_dim": 16, "rope_parameters": {
        "rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}}),
    "gpt2": ("GPT2", {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                      "bos_token_id": None, "eos_token_id": None}),
    "mamba2": ("Mamba2", {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16,
                          "state_size": 8, "n_groups": 2, "chunk_size": 8, "eos_token_id": None}),
    "mamba2-tied": ("Mamba2", {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4,
                               "head_dim": 16, "state_size": 8, "n_groups": 1, "use_bias": True,
                               "tie_word_embeddings": True, "eos_token_id": None}),
}  # fmt: skip


def theirs(name: str, seed: int = 0) -> Any:
    """The model of that name with weights large enough that every part of it shows in its output."""
    import transformers

    stem, fields = MODELS[name]
    kind = "GPT2LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"
    model = getattr(transformers, kind)(getattr(transformers, f"{stem}Config")(**fields))
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        offset = float("norm" in key or "ln_" in key)
        if not key.endswith(("A_log", "dt_bias")):
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2 + offset
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model.eval().requires_grad_(False)


def logits_of(run: Any) -> torch.Tensor:
    """What the model of a run says to `IDS`, read with a memory as when it writes."""
    model: Any = load(run)
    with torch.no_grad():
        return torch.cat([model.decode(IDS[:, :4], memory := model.memory(2, 11), [0, 1]),
                          model.decode(IDS[:, 4:], memory, [0, 1])], 1)  # fmt: skip


def greedy(run: Any, prompt: list[int], tokens: int = 20) -> list[int]:
    """The tokens that the model of a run puts after the prompt, always the likeliest."""
    written = write(load(run), [prompt], SamplingOptions(temperature=0.0, max_tokens=tokens))  # type: ignore[arg-type]
    return [one.token for one in written]


def their_greedy(model: Any, prompt: list[int], tokens: int = 20) -> list[int]:
    """The same of a model of transformers, whole prefixes at a time."""
    ids = torch.tensor([prompt])
    for _ in range(tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()
