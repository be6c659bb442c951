"""Quality at equal seconds, without captions: ours beside diffusers' DDPM example, on nouns and CIFAR-10 at 32 pixels.

    python benchmarks/pictures_quality.py nouns|cifar10 --minutes 5 --work FOLDER [--size 2]
    (to try it: --minutes 0.2 --drawn 64 --results /tmp/quality.json)

Needs diffusers, in an environment of its own, and the extra `judge`. The peer is `UNet2DModel` trained as in diffusers'
unconditional example (predicts the noise of 1,000 linear steps, AdamW, cosine rate with a warmup), given bf16, an EMA,
and the best of three sizes and three learning rates, each trained for the same time: the best by the very distance that
is reported, of the three that are best by an eighth of the pictures. The sizes are ours with half of its channels,
ours, and ours with two blocks a level as the example has them (its own 128 channels make a dozen steps in the time).
Ours is what `nomoat make` would train in the time, once. Both draw by 50 evaluations (theirs by DDIM, ours by its usual
solver); kernel distance x 1000 and recall by the fixed judge, beside other real pictures. Same threads, precision and
allocator. What was measured is kept in FOLDER: a second call goes on.
Results are merged into benchmarks/results/pictures_quality.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nouns import Parts, drawn_lots
from peers import ROOT, SHARED, record
from torch import Tensor

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.run import load
from nomoat.data.pictures import PictureFiles
from nomoat.evaluate.contact import sheet
from nomoat.evaluate.distances import compare
from nomoat.evaluate.features import judge
from nomoat.evaluate.seen import as_seen
from nomoat.picture_plan import sized
from nomoat.sampling.drawing import Drawing

SIZES, RATES, STEPS, BATCH, WARMUP = ((16, 1), (32, 1), (32, 2)), (3e-4, 1e-3, 3e-3), 50, 32, 100
NOUNS, FINALISTS = 20_000, 3


def files(what: str, work: Path) -> Path:
    """What is read: an archive of pictures as it is, or rendered characters as an array."""
    if what == "cifar10":
        return SHARED / "data" / "cifar10" / "cifar10.zip"
    path = work / "nouns.npz"
    if not path.exists():
        parts = Parts.read(SHARED / "data" / "nouns")
        asked = drawn_lots(parts, NOUNS, 0, seen=True)
        ground = np.random.default_rng(1).integers(0, 2, NOUNS)
        made = [parts.render(asked[n : n + 1000], ground[n : n + 1000]) for n in range(0, NOUNS, 1000)]
        np.savez(path, x=(np.concatenate(made) * 255).round().astype(np.uint8).reshape(-1, 32, 32, 3))
    return path


def ours(data: Any, asked: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """What `make` trains of these pictures without a word, for so long."""
    recipe = sized(data, asked.size, Budget.parse(f"{60 * asked.minutes - 4:.0f}s"), 0)
    family = replace(recipe.family, vocab_size=0, caption_length=recipe.family.caption_length, classes=0)
    run = making.started(f"quality-{asked.what}", replace(recipe, family=family), asked.work / "runs", None, None)
    began = time.perf_counter()
    making.trained(run, "auto", None)
    took, model = time.perf_counter() - began, load(run)
    made: list[Tensor] = []
    while sum(map(len, made)) < asked.drawn:
        with torch.no_grad(), run.autocast(torch.device("cpu")):
            prompts = {"rows": 64, "first": 64 * len(made)}
            made.append(model.generate(prompts, Drawing(steps=STEPS), torch.Generator())["image"].float())  # type: ignore[operator]
    told = {"seconds": took, "steps": run.metrics("step")[-1]["step"], "parameters": count(model)}
    return torch.cat(made)[: asked.drawn].clamp(-1, 1), told


def count(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def network(width: int, blocks: int) -> Any:
    """The peer's."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32, block_out_channels=(width, 2 * width, 4 * width), layers_per_block=blocks,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
    )  # fmt: skip


def kept_as(size: Any, rate: float, asked: argparse.Namespace) -> Path:
    """Where a peer's weights lie."""
    return Path(asked.work) / "{}-{}x{}-{:g}.pt".format(asked.what, *size, rate)


def peer(stream: Iterator[Any], size: Any, rate: float, asked: argparse.Namespace) -> dict[str, Any]:
    """diffusers' example, for so long; its weights are kept in the folder."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    model, schedule = network(*size), DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    began, seconds, step = time.perf_counter(), 60 * asked.minutes, 0
    while (spent := time.perf_counter() - began) < seconds:
        image = next(stream)["image"]
        noise, place = torch.randn_like(image), torch.randint(1000, (len(image),))
        warm = min(1.0, (step + 1) / WARMUP)
        optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + np.cos(np.pi * spent / seconds))
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(schedule.add_noise(image, noise, place), place).sample
        F.mse_loss(guess.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(model.parameters())
        step += 1
    ema.copy_to(model.parameters())
    torch.save(model.state_dict(), kept_as(size, rate, asked))
    return {"seconds": spent, "steps": step, "parameters": count(model), "size": size, "rate": rate}


def drawn(size: Any, rate: float, pictures: int, asked: argparse.Namespace) -> Tensor:
    """What the peer that was kept draws."""
    from diffusers import DDIMScheduler

    drawer, made = network(*size).eval(), list[Tensor]()
    drawer.load_state_dict(torch.load(kept_as(size, rate, asked)))
    solver = DDIMScheduler(num_train_timesteps=1000)
    solver.set_timesteps(STEPS)
    for first in range(0, pictures, 64):
        x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(first))
        for t in solver.timesteps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                guess = drawer(x, t).sample.float()
            x = solver.step(guess, t, x).prev_sample
        made.append(x)
    return torch.cat(made)[:pictures].clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("nouns", "cifar10"))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--drawn", type=int, default=1024)
    parser.add_argument("--size", type=int, default=2, help="of picture_plan.SIZES")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "pictures_quality.json")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    data: Any = PictureFiles(str(files(asked.what, asked.work)), 32).prepare(making.data_root(asked.work), None)
    held, learned = data.open("heldout"), data.open("train")
    rows = np.linspace(0, held.size - 1, min(asked.drawn, held.size)).astype(np.int64)
    chance = np.random.default_rng(0).permutation(learned.size)[: len(rows)]
    asked.drawn = len(rows)
    real, other = (opened.batch(part, part)["image"] for opened, part in ((held, rows), (learned, chance)))
    net = judge()
    true_ND, floor_ND = (net.of(as_seen(each, "real pictures")) for each in (real, other))
    kept = asked.work / f"quality-{asked.what}.json"
    found: dict[str, Any] = {"minutes": asked.minutes, "pictures": asked.drawn, "threads": torch.get_num_threads()}
    found |= json.loads(kept.read_text()) if kept.exists() else {"peers": []}

    def measured(image: Tensor, told: dict[str, Any], name: str) -> dict[str, Any]:
        sheet(image[:36]).save(asked.work / f"{name}.png")
        sets = {"drawn": net.of(as_seen(image, "drawn", drawn=True)), "other real": floor_ND}
        table = compare(true_ND, sets, "other real", (net.name, net.about, net.hash))
        row, floor = table.row("drawn"), table.row("other real")
        made = {**told, "pictures": len(image), "kernel": [*row.kernel], "recall": [*row.recall]}
        print(json.dumps(made), flush=True)
        return {**made, "floor": [*floor.kernel]}

    if "ours" not in found:
        found["ours"] = measured(*ours(data, asked), f"{asked.what}-ours")
        kept.write_text(json.dumps(found))
    few = max(64, asked.drawn // 8)
    for size, rate in list(product(SIZES, RATES))[len(found["peers"]) :]:
        told = peer(data.stream(None, BATCH, 0), size, rate, asked)
        found["peers"].append(measured(drawn(size, rate, few, asked), told, kept_as(size, rate, asked).stem))
        kept.write_text(json.dumps(found))
    found["peers"].sort(key=lambda each: each["kernel"][0])
    finals = []
    for each in found["peers"][:FINALISTS]:
        size, rate = each["size"], each["rate"]
        finals.append(measured(drawn(size, rate, asked.drawn, asked), each, kept_as(size, rate, asked).stem))
    found["best peer"] = min(finals, key=lambda each: each["kernel"][0])
    held_before = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
    record("pictures_quality", {**held_before, asked.what: found}, asked.results)


if __name__ == "__main__":
    main()
