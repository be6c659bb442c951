"""Modes of 1,000 that each GAN finds on stacked digits in equal time, read by a classifier of single digits.

    python benchmarks/gan_modes.py [--minutes 30] [--case r3gan_conv ...] [--samples 25600] [--out FOLDER]
    (to try it: --minutes 0.2 --samples 2560 --reader-steps 200 --results /tmp/modes.json)

Cases: minimax (algorithm 1 of Goodfellow et al. 2014), nonsaturating (what it advises in its place) and r3gan, each
with a convolutional pair and a pair of transformers. Minimax and nonsaturating get the optimizer of Radford et al. 2016
(Adam, 2e-4, betas 0.5 and 0.999), r3gan no momentum. Trained by the ordinary loop on nine tenths of `mnist10k`; the
slow copy draws. The reader is trained on the same digits first, outside of the time, and must be right on 98 % of those
held out. Real pictures are counted beside, as the floor of the divergence. Results are merged into
benchmarks/results/gan_modes.json; with --out the first 128 pictures of each case lie there as a sheet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers import SHARED, record
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.run import Run
from nomoat.data.stacked import StackedDigits
from nomoat.evaluate.modes import GATE, DigitReader, accuracy, modes, train_reader
from nomoat.families.gan import GAN
from nomoat.nn.augment import Augment
from nomoat.nn.backbone import Backbone
from nomoat.nn.conv import Conv
from nomoat.sampling.drawing import Drawing
from nomoat.train.loop import train

DIGITS = SHARED / "data" / "mnist10k" / "mnist10k.npz"
SIZE, BATCH, CHUNK, SHEET = 32, 64, 512, 128
PAIRS = {
    "conv": (Conv((32, 64, 128)), Conv((32, 64, 128))),
    "transformer": (Backbone(width=64, depth=3, heads=4), Backbone(width=64, depth=3, heads=4)),
}
USUAL = Optimizer("adamw", adam_learning_rate=2e-4, betas=(0.5, 0.999), weight_decay=0.0, clip=0.0, warmdown=0.3)
STILL = Optimizer("adamw", adam_learning_rate=5e-4, betas=(0.0, 0.99), weight_decay=0.0, clip=0.0, warmdown=0.3)
OPTIMIZERS = {"minimax": USUAL, "nonsaturating": USUAL, "r3gan": STILL}
LAST = ("training_loss", "real_logit", "fake_logit", "slope")
CASES = [f"{objective}_{pair}" for pair in PAIRS for objective in OPTIMIZERS]


def recipe(case: str, minutes: float, seed: int) -> Recipe:
    objective, _, pair = case.partition("_")
    generator, discriminator = PAIRS[pair]
    family = GAN(
        SIZE,
        objective=objective,
        generator=generator,
        discriminator=discriminator,
        cond_width=64,
        augment=Augment(translation=0.07) if objective == "r3gan" else Augment(),
    )
    return Recipe(
        about=f"stacked digits, {case}",
        family=family,
        data=StackedDigits(str(DIGITS), SIZE),
        budget=Budget.parse(f"{minutes * 60:g}s"),
        batch_size=BATCH,
        optimizer=OPTIMIZERS[objective],
        seed=seed,
        precision="fp32",
        ema=0.999,
        evaluate_every=10**9,
        keep_every_seconds=60,
    )


class Untracked(nullcontext[None]):
    """Everything is done by everybody."""

    parents = frozenset({"Global"})


def gflop(made: Recipe) -> float:
    """Floating-point operations of one step of both players, in 1e9."""
    family = made.family.build({})
    batch = next(iter(made.data.stream(family, made.batch_size, 0)))
    drawn = family.draw(batch, torch.Generator().manual_seed(0))
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = Untracked()  # its own follows modules, and that no penalty on slopes survives
    with counter:
        for player in family.players:
            weights = [weight for _, weight in family.parameters_of(player)]
            family.loss(drawn, player, 0.5).total.backward(inputs=weights)
    return counter.get_total_flops() / 1e9


def drawn(family: Any, count: int) -> Iterator[Tensor]:
    for first in range(0, count, CHUNK):
        prompts = {"rows": min(CHUNK, count - first), "first": first}
        yield family.generate(prompts, Drawing(seed=1), torch.Generator())["image"]


def real(count: int) -> Iterator[Tensor]:
    stream = StackedDigits(str(DIGITS), SIZE).stream(None, CHUNK, seed=1)
    for first in range(0, count, CHUNK):
        yield next(stream)["image"][: count - first]


def sheet(family: Any, path: Path) -> None:
    """Eight rows of sixteen pictures."""
    from PIL import Image

    images = next(drawn(family, SHEET))
    rows = images.add(1).mul(127.5).round().byte().unflatten(0, (8, 16)).permute(0, 3, 1, 4, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rows.reshape(8 * SIZE, 16 * SIZE, 3).numpy()).save(path)


def measured(case: str, asked: argparse.Namespace, reader: DigitReader) -> dict[str, Any]:
    made = recipe(case, asked.minutes, asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, case, made)
        family: Any = train(made, run)
        steps, kept = run.metrics("step"), run.metrics("keep")
    began = time.perf_counter()
    found = modes(reader, drawn(family, asked.samples))
    if asked.out:
        sheet(family, asked.out / f"{case}-{asked.minutes:g}m.png")
    per_player = {line["player"]: line for line in steps}
    return {
        **asdict(found),
        "minutes": asked.minutes,
        "seed": asked.seed,
        "seconds": steps[-1]["seconds"],
        "seconds_to_draw_and_read": time.perf_counter() - began,
        "steps": steps[-1]["step"],
        "gflop_a_step": gflop(made),
        "watt_hours": kept[-1].get("watt_hours") if kept else None,
        "parameters": {
            player: sum(weight.numel() for _, weight in family.parameters_of(player)) for player in family.players
        },
        "last": {player: {name: line[name] for name in LAST if name in line} for player, line in per_player.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--samples", type=int, default=25_600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader-steps", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    if not DIGITS.exists():
        parser.exit(0, f"{DIGITS} is not there: set NOMOAT_SHARED to the folder that holds data/mnist10k\n")
    data = StackedDigits(str(DIGITS), SIZE)
    reader = train_reader(*data.digits(), steps=asked.reader_steps)
    right = accuracy(reader, *data.digits("heldout"))
    print(f"the reader is right on {right:.2%} of the held-out digits", flush=True)
    if right < GATE and asked.minutes >= 1:
        parser.exit(1, f"below {GATE:.0%} it says nothing: give it more steps\n")
    path = asked.results or Path(__file__).parent / "results" / "gan_modes.json"
    figures = json.loads(path.read_text()).get("figures", {}) if path.exists() else {}
    figures |= {"reader": right, "real": asdict(modes(reader, real(asked.samples)))}
    for case in asked.case or CASES:
        figures[case] = measured(case, asked, reader)
        print(case, json.dumps(figures[case]), flush=True)
        if asked.results:
            path.write_text(json.dumps({"figures": figures}, indent=1) + "\n")
        else:
            record("gan_modes", figures)
    print(f"{'':26}modes     KL    sure   steps  seconds     Wh")
    for case in CASES:
        if row := figures.get(case):
            hours = "-" if row["watt_hours"] is None else f"{row['watt_hours']:.1f}"
            print(
                f"{case:26}{row['found']:5,} {row['kl']:6.3f}  {row['sure']:6.3f} {row['steps']:7,} "
                f"{row['seconds']:8.0f} {hours:>6}"
            )


if __name__ == "__main__":
    main()
