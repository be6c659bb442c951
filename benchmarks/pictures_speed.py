"""Training pictures per second beside diffusers, at equal FLOPs a picture: one process, cases taken in turn.

    python benchmarks/pictures_speed.py [--rounds 10] [--batch 64] [--size 32] [--width 192] [--depth 6]

`ours` is the UNet that diffusion-small trains, `ours_dit` the transformer of dit-small.
Needs diffusers, in an environment of its own: `pip install diffusers`. Every case trains pictures with a class (times
and noise drawn, forward, backward, clipping, fused AdamW) with the same threads, allocator and precision. What a model
costs is counted for all by torch's FlopCounterMode, forward in fp32, attention as plain products. diffusers' UNet has
no size of exactly our cost: of its widths the nearest is taken, and what is compared is pictures a second times FLOPs
a picture (its pictures a second, were it as cheap as ours).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from peers import record, spread
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.families.diffusion import Diffusion, DiffusionModel
from nomoat.nn.attention import Attention, fastest_kernel
from nomoat.nn.backbone import Stack
from nomoat.nn.unet import UNet
from nomoat.train.mover import Mover, Settings

CLASSES = 10
Step = Callable[[], None]


def flops(call: Callable[[], object]) -> float:
    """Of one forward pass, without a gradient."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return float(counter.get_total_flops())


def pictures(chosen: argparse.Namespace) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = 2 * torch.rand(chosen.batch, 3, chosen.size, chosen.size, generator=generator) - 1
    return {"image": image, "label": torch.randint(CLASSES, (chosen.batch,), generator=generator)}


def ours(chosen: argparse.Namespace, trunk: object = None) -> tuple[Step, float, int]:
    """One step of our mover on the diffusion family; FLOPs a picture and parameters."""
    config = Diffusion(size=chosen.size, classes=CLASSES)
    backbone = replace(config.trunk, width=chosen.width, depth=chosen.depth, heads=chosen.width // 32)
    config = replace(config, trunk=trunk or backbone)
    family: DiffusionModel = config.build({})
    one, t_1 = torch.zeros(1, 3, chosen.size, chosen.size), torch.ones(1)
    stacks = [module for module in family.modules() if isinstance(module, Stack)]
    for stack in stacks:
        stack.kernel = "plain"
    condition = {"label": torch.zeros(1, dtype=torch.long)}
    cost = flops(lambda: family.denoise(one, t_1, t_1, family.conditions(condition)))
    for stack in stacks:
        layer = next(module for module in stack.modules() if isinstance(module, Attention))
        stack.kernel = fastest_kernel(layer, chosen.batch, family.positions_a_sample, chosen.dtype, causal=False)[0]
        print(f"attention: {stack.kernel}")
    optimizer = Optimizer("adamw", adam_learning_rate=1e-3)
    recipe = Recipe("speed", config, None, Budget.parse("9steps"), chosen.batch, optimizer=optimizer)
    mover = Mover(family, "model", recipe, Settings(torch.device("cpu"), chosen.precision, chosen.batch))
    batch, generator = pictures(chosen), torch.Generator().manual_seed(1)
    size = sum(weight.numel() for weight in family.parameters())
    return lambda: mover.move(family.draw(batch, generator), 0.5) and None, cost, size


def peer(chosen: argparse.Namespace, model: nn.Module, call: Callable[..., Tensor]) -> tuple[Step, float, int]:
    """One step of a model of diffusers: it predicts the noise, as its example does."""
    one, zero = torch.zeros(1, 3, chosen.size, chosen.size), torch.zeros(1, dtype=torch.long)
    cost = flops(lambda: call(one, zero, zero))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch, generator = pictures(chosen), torch.Generator().manual_seed(1)
    times = torch.linspace(0.01, 1, 1000)
    model.train()

    def step() -> None:
        noise = torch.randn(batch["image"].shape, generator=generator)
        place_B = torch.randint(1000, (chosen.batch,), generator=generator)
        t = times[place_B][:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16) if chosen.precision == "bf16" else nullcontext():
            guess = call((1 - t) * batch["image"] + t * noise, place_B, batch["label"])
        F.mse_loss(guess.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, cost, sum(weight.numel() for weight in model.parameters())


def dit(chosen: argparse.Namespace) -> tuple[Step, float, int]:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=chosen.width // 32, attention_head_dim=32, in_channels=3, out_channels=3,
        num_layers=chosen.depth, sample_size=chosen.size, patch_size=4, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    return peer(chosen, model, lambda x, t, label: model(x, timestep=t, class_labels=label).sample)


def unet(chosen: argparse.Namespace, layers: int, wanted: float) -> tuple[Step, float, int]:
    """The UNet2DModel of three levels, attention at the smallest, whose cost is nearest to `wanted`."""
    from diffusers import UNet2DModel

    def model_of(width: int) -> nn.Module:
        return UNet2DModel(
            sample_size=chosen.size, block_out_channels=(width, 2 * width, 4 * width), layers_per_block=layers,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8, attention_head_dim=32, num_class_embeds=CLASSES,
        )  # fmt: skip

    def cost(width: int) -> float:
        model, one = model_of(width), torch.zeros(1, 3, chosen.size, chosen.size)
        return flops(lambda: model(one, 0, class_labels=torch.zeros(1, dtype=torch.long)))

    model = model_of(min(range(8, 81, 8), key=lambda width: abs(cost(width) - wanted)))
    return peer(chosen, model, lambda x, t, label: model(x, t, class_labels=label).sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"rounds": 10, "batch": 64, "size": 32, "width": 192, "depth": 6, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--name", default="pictures_speed", help="of the file with the results")
    chosen = parser.parse_args()
    chosen.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[chosen.precision]
    torch.set_num_threads(chosen.threads)
    cases = {"ours": ours(chosen, UNet())}
    cost = cases["ours"][1]
    cases |= {
        "ours_dit": ours(chosen),
        "diffusers_dit": dit(chosen),
        "diffusers_unet_1": unet(chosen, 1, cost),
        "diffusers_unet_2": unet(chosen, 2, cost),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for step, _, _ in cases.values():
        step()
        step()
    for _ in range(chosen.rounds):
        for name, (step, _, _) in cases.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    equal = {name: [chosen.batch / s * cases[name][1] / cost for s in values] for name, values in seconds.items()}
    peers = [name for name in cases if name.startswith("diffusers")]
    best = max(peers, key=lambda name: spread(equal[name])["median"])
    figures = {
        "settings": {key: value for key, value in vars(chosen).items() if key != "dtype"},
        "models": {
            name: {"forward_gflops_a_picture": cost / 1e9, "parameters": size}
            for name, (_, cost, size) in cases.items()
        },
        "pictures_per_second": {name: spread([chosen.batch / s for s in values]) for name, values in seconds.items()},
        "pictures_per_second_at_equal_flops": {name: spread(values) for name, values in equal.items()},
        "fastest_peer": best,
        "ratio_to_fastest_peer": spread([mine / its for mine, its in zip(equal["ours"], equal[best], strict=True)]),
    }
    record(chosen.name, figures)


if __name__ == "__main__":
    main()
