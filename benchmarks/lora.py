"""One training step of an adapter beside transformers + peft: tokens per second at SmolLM2-135M's shape, in turns.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install -e . 'transformers>=5,<6' peft
    /tmp/peers/bin/python benchmarks/lora.py [--rounds 10] [--batch 4] [--length 256] [--counted 1] [--dora]

Every case trains the same tokens with the same rank, layers, threads and allocator: forward, backward, clipping, AdamW
on the adapters. The peer runs twice: with its base in fp32 under autocast, and in bf16 as its guides load it; the
ratio is to the faster of the two. Weights are drawn: what they are costs nothing. `--counted` is the share of each row
that is learned, on both sides: in a conversation the answers alone are (dolly-short: 0.58 of all tokens).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from peers import record, spread

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import LLAMA
from nomoat.nn.lora import LoRA
from nomoat.train.mover import Mover, Settings

WIDTH, DEPTH, HEADS, GROUPS, INNER, VOCAB = 576, 30, 9, 3, 1536, 49152
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tokens_of(chosen: argparse.Namespace) -> torch.Tensor:
    """The batch [B, L + 1] of every case."""
    return torch.randint(VOCAB, (chosen.batch, chosen.length + 1), generator=torch.Generator().manual_seed(0))


def counted_of(chosen: argparse.Namespace) -> torch.Tensor:
    """Which tokens [B, L + 1] are learned: the last ones of each row."""
    first = round((1 - chosen.counted) * chosen.length)
    return (torch.arange(chosen.length + 1) >= first).repeat(chosen.batch, 1)


def ours(chosen: argparse.Namespace, bits: int = 16) -> Callable[[], object]:
    """One step of our mover."""
    from dataclasses import replace

    dialect = replace(LLAMA, output="tied")
    config = LM(VOCAB, chosen.length, Backbone(WIDTH, DEPTH, HEADS, GROUPS, mlp_width=INNER, dialect=dialect), bits)
    family = LoRA(chosen.rank, 2.0 * chosen.rank, dora=chosen.dora).apply(config.build({}))
    family.stack.kernel = chosen.kernel
    optimizer = Optimizer("adamw", adam_learning_rate=1e-4, weight_decay=0.0)
    recipe = Recipe("speed", config, None, Budget.parse("9steps"), chosen.batch, optimizer=optimizer)
    mover = Mover(family, "model", recipe, Settings(torch.device("cpu"), "bf16", chosen.batch))
    tokens_BL = tokens_of(chosen)
    batch = {"tokens": tokens_BL, "mask": counted_of(chosen)}
    return lambda: mover.move(batch, 0.5)


def peft(chosen: argparse.Namespace, low: bool) -> Callable[[], object]:
    """One step of transformers' Llama with an adapter of peft's; `low`: the base in bf16."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    wanted = LoraConfig(
        r=chosen.rank, lora_alpha=2 * chosen.rank, target_modules=MODULES, use_dora=chosen.dora, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.bfloat16() if low else base, wanted).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    tokens_BL = tokens_of(chosen)[:, :-1]
    labels_BL = tokens_BL.masked_fill(~counted_of(chosen)[:, :-1], -100)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens_BL, labels=labels_BL).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--counted", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--kernel", default="tiled", choices=["tiled", "fused", "plain"])
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--cases", help="only these, separated by commas")
    parser.add_argument("--profile", action="store_true", help="where our step's time goes, instead")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "ours": lambda: ours(chosen),
        "ours_8_bits": lambda: ours(chosen, 8),
        "peft_fp32_base": lambda: peft(chosen, False),
        "peft_bf16_base": lambda: peft(chosen, True),
    }
    cases = {name: makers[name]() for name in (chosen.cases.split(",") if chosen.cases else makers)}
    if chosen.profile:
        step = cases["ours"]
        step()
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
        return
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for step in cases.values():
        step()
    for _ in range(chosen.rounds):
        for name, step in cases.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    tokens = chosen.batch * chosen.length
    rates = {name: spread([tokens / each for each in values]) for name, values in seconds.items()}
    figures: dict[str, object] = {
        "tokens_per_second": rates,
        "rank": chosen.rank,
        "tokens": tokens,
        "counted": chosen.counted,
    }
    peers = [name for name in cases if name.startswith("peft")]
    if peers and "ours" in cases:
        rival = max(peers, key=lambda name: rates[name]["median"])
        pairs = zip(seconds["ours"], seconds[rival], strict=True)
        figures |= {"faster_peer": rival, "ratio_to_faster_peer": spread([theirs / mine for mine, theirs in pairs])}
    record(f"lora{'_dora' if chosen.dora else ''}{'_answers' if chosen.counted < 1 else ''}", figures)


if __name__ == "__main__":
    main()
