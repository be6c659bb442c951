"""Tiny Shakespeare by characters beside nanoGPT's documented CPU setting: equal tokens, equal loss, ten minutes.

    python benchmarks/shakespeare.py [--seeds 3] [--minutes 10] [--skip-minutes] [--transformers]

The peer is `peers.NanoGPT` with nanoGPT's documented CPU flags (4 layers, 4 heads, width 128, context 64, batch 12,
2,000 steps, AdamW 1e-3 to 1e-4 by cosine, 100 steps of warm-up, betas 0.9 and 0.99). Ours are recipes trained by the
ordinary loop. One function reads all of them: the whole last tenth in windows without overlap, each character once.
Seconds count from the first step to the last, evaluation not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peers import NanoGPT, cosine, nano_optimizer, record, shakespeare, spread
from torch import Tensor

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.run import Run
from nomoat.data.order import Order
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.train.loop import train

text = cache(shakespeare)


@dataclass(frozen=True)
class Characters:
    """The training part as recipe data: windows over all of it, in an order computed from the step."""

    context_length: int

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[dict[str, Tensor]]:
        ids, length = text()[0], self.context_length
        windows = len(ids) // length - 1
        order = Order([windows], None, seed)
        offset_L = torch.arange(length + 1)
        step = start
        while True:
            index = torch.arange(step * batch_size, (step + 1) * batch_size).numpy()
            _, item, epoch = order.at(index)
            place_B = torch.from_numpy(item) * length + torch.from_numpy(epoch) * 17 % length
            tokens_BL = ids[place_B[:, None] + offset_L]
            yield {"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)}
            step += 1


def read(nats_of: Callable[[Tensor, Tensor], Tensor], length: int) -> float:
    """Mean nats a character over the whole validation tenth: windows of `length` without overlap, each once."""
    ids = text()[1]
    full = (len(ids) - 1) // length * length
    pieces = [*ids[:full].view(-1, length).split(64)]
    targets = [*ids[1 : full + 1].view(-1, length).split(64)]
    if full < len(ids) - 1:
        pieces.append(ids[None, full:-1])
        targets.append(ids[None, full + 1 :])
    with torch.no_grad():
        total = sum(float(nats_of(x, y)) for x, y in zip(pieces, targets, strict=True))
    return total / (len(ids) - 1)


def nano(seed: int, steps: int = 2000) -> tuple[float, float]:
    """Loss and seconds of the peer."""
    return _nano(seed, steps)[1:]


def _nano(seed: int, steps: int) -> tuple[NanoGPT, float, float]:
    torch.manual_seed(seed)
    model = NanoGPT(65, 64, 4, 4, 128)
    return model, *_peer(model, model, nano_optimizer(model, 1e-3), text()[0], steps)


def faithful(draws: int = 200) -> dict[str, Any]:
    """The peer read as nanoGPT reads itself, 20 random batches of 12 windows, many times over; and in whole.

    Its documented 1.88 is one such draw, always of the same seed: this shows how far draws lie apart.
    """
    model, whole, _ = _nano(1337, 2000)
    ids, readings = text()[1], []
    with torch.no_grad():
        for _ in range(draws):
            place_N1 = torch.randint(len(ids) - 64, (240, 1))
            x, y = ids[place_N1 + torch.arange(64)], ids[place_N1 + torch.arange(1, 65)]
            readings.append(float(model(x, y)))
    below = sum(reading <= 1.8857 for reading in readings) / draws
    return {"whole": whole, "twenty_batches": spread(readings), "share_of_draws_at_most_1.8857": below}


def transformers(seed: int, steps: int = 2000) -> tuple[float, float]:
    """Loss and seconds of transformers' GPT-2 in the same setting."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=65, n_positions=64, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = GPT2LMHeadModel(config)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())

    return _peer(loss_of, model, nano_optimizer(model, 1e-3), text()[0], steps)


def _peer(
    loss_of: Callable, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, steps: int = 2000
) -> tuple[float, float]:
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, 1e-3, 1e-4, 100)
        place = torch.randint(len(ids) - 64, (12,))
        x = torch.stack([ids[i : i + 64] for i in place])
        y = torch.stack([ids[i + 1 : i + 65] for i in place])
        loss = loss_of(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    model.eval()
    return read(lambda x, y: loss_of(x, y) * y.numel(), 64), seconds


def ours(recipe: Recipe) -> dict[str, float]:
    """Loss, seconds, tokens and parameters of a recipe trained by the ordinary loop."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, "shakespeare", recipe)
        family = train(recipe, run)
        steps = run.metrics("step")

    def nats_of(x: Tensor, y: Tensor) -> Tensor:
        tokens_BL = torch.cat([x, y[:, -1:]], 1)
        return family.loss({"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)}).total

    taken = steps[-1]["seconds"] - steps[0]["seconds"]
    return {
        "loss": read(nats_of, recipe.family.context_length),
        "seconds": taken * len(steps) / max(1, len(steps) - 1),
        "tokens": steps[-1]["tokens"],
        "parameters": sum(p.numel() for p in family.parameters()),
    }


def equal(seed: int) -> Recipe:
    """No more parameters and tokens than the peer: 0.788 M, 1.536 M, context 64."""
    return _recipe(Backbone(128, 4, 4, mlp_width=336), 64, 12, "2000steps", seed, Optimizer(warmdown=0.6))


def soon(seed: int) -> Recipe:
    """As short as reaches the peer's last loss."""
    return _recipe(Backbone(128, 4, 4, mlp_width=336), 64, 12, "450steps", seed, Optimizer(warmdown=0.6))


def minutes(seed: int, count: float) -> Recipe:
    """What so many minutes buy."""
    backbone = Backbone(256, 4, 4)
    return _recipe(backbone, 256, 16, f"{count}m", seed, Optimizer(warmdown=0.6))


def _recipe(backbone: Backbone, length: int, rows: int, budget: str, seed: int, optimizer: Optimizer) -> Recipe:
    return Recipe(
        about="tiny Shakespeare by characters",
        family=LM(65, length, backbone),
        data=Characters(length),
        budget=Budget.parse(budget),
        batch_size=rows,
        optimizer=optimizer,
        seed=seed,
        evaluate_every=10**9,
        keep_every_seconds=1e9,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--skip-minutes", action="store_true")
    parser.add_argument("--transformers", action="store_true", help="also time transformers' GPT-2, 200 steps a seed")
    parser.add_argument("--faithful", action="store_true", help="only show that the rebuilt peer is the peer")
    chosen = parser.parse_args()
    if chosen.faithful:
        record("shakespeare_faithful", faithful())
        return
    rows: dict[str, list] = {"nano": [], "equal": [], "soon": [], "transformers": []}
    for seed in range(chosen.seeds):
        rows["nano"].append(nano(seed))
        rows["soon"].append(ours(soon(seed)))
        rows["equal"].append(ours(equal(seed)))
        if chosen.transformers:
            rows["transformers"].append(transformers(seed, 200)[1] / nano(seed, 200)[1])
        print(seed, {name: found[-1] for name, found in rows.items() if found}, flush=True)
    if not chosen.seeds:
        record("shakespeare_minutes", {"minutes": chosen.minutes, **ours(minutes(0, chosen.minutes))})
        return
    peer_last = spread([loss for loss, _ in rows["nano"]])
    summary = {
        name: {key: spread([row[key] for row in rows[name]]) for key in rows[name][0]} for name in ("equal", "soon")
    }
    figures = {
        "nano": {"loss": peer_last, "seconds": spread([seconds for _, seconds in rows["nano"]])},
        **summary,
        "soon_below_the_peer": [row["loss"] < loss for row, (loss, _) in zip(rows["soon"], rows["nano"], strict=True)],
        "seconds_soon_to_nano": spread(
            [row["seconds"] / seconds for row, (_, seconds) in zip(rows["soon"], rows["nano"], strict=True)]
        ),
    }
    if rows["transformers"]:
        figures["nano_speed_to_transformers"] = spread(rows["transformers"])
    record("shakespeare", figures)
    if not chosen.skip_minutes:
        record("shakespeare_minutes", {"minutes": chosen.minutes, **ours(minutes(0, chosen.minutes))})


if __name__ == "__main__":
    main()
