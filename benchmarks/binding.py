"""Which word goes with which: how far a model of two things tells "a red circle above a blue square" from its swap.

    python benchmarks/binding.py --minutes 4 --work FOLDER family.trunk.depth=3 batch_size=32

Trains `diffusion-small` (or `--recipe dit-small`) on scenes of up to two things, with further settings of the recipe.
Then, on 256 scenes of a split that name two colours: in what share of them the clean picture is guessed better by the
true caption than with its two colours exchanged, and by how much the error rises, at three shares of noise. And 128
pictures a split, 12 steps, guidance 3, read by rule. A look of minutes; the figure itself is compose.py's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compose import drawn, read_all

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.recipe import find
from nomoat.core.run import load
from nomoat.data.shapes import Shapes
from nomoat.data.shapes_captions import words
from nomoat.data.shapes_scene import COLOURS

SCENES, PICTURES = 256, 128


def preferred(family: Any, split: str) -> str:
    """The share and the rise at each noise share."""
    shown, colours = (
        Shapes(objects=2, split=split).asked(np.arange(3 * SCENES)),
        {words().encode(c)[0] for c in COLOURS},
    )
    rows, exchanged = list[int](), list[Any]()
    for row, caption_M in enumerate(shown.batch["caption"].tolist()):
        at = [place for place, word in enumerate(caption_M) if word in colours]
        if len(at) == 2 and caption_M[at[0]] != caption_M[at[1]] and len(rows) < SCENES:
            caption_M[at[0]], caption_M[at[1]] = caption_M[at[1]], caption_M[at[0]]
            rows.append(row)
            exchanged.append(caption_M)
    image, mask, true = (shown.batch[name][rows] for name in ("image", "caption_mask", "caption"))
    noise, said = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)), []
    for share in (0.95, 0.8, 0.6):
        x, t_B, errors = (1 - share) * image + share * noise, torch.full((len(rows),), share), []
        for caption in (true, torch.tensor(exchanged)):
            with torch.no_grad():
                guess = family.denoise(x, t_B, t_B, family.conditions({"caption": caption, "caption_mask": mask}))
            errors.append((guess.float() - image).square().flatten(1).mean(1))
        better, rise = (errors[0] < errors[1]).float().mean(), errors[1].mean() / errors[0].mean() - 1
        said.append(f"t = {share}: {better:.1%}, by {rise:.1%}")
    return f"{len(rows)} scenes; " + "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="of the recipe")
    parser.add_argument("--recipe", default="diffusion-small")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_intermixed_args()
    recipe = override(find(asked.recipe), asked.settings)
    budget, data = Budget.parse(f"{60 * asked.minutes:.0f}s"), replace(recipe.data, objects=2)  # type: ignore[type-var]
    run = making.started(
        "binding", replace(recipe, data=data, budget=budget, seed=asked.seed), asked.work / "runs", None, None
    )
    making.trained(run, "auto", None)
    family: Any = load(run).eval()
    print({name: run.metrics(kind)[-1][name] for kind, name in (("step", "step"), ("evaluate", "loss"))}, flush=True)
    for split in ("seen", "pair", "paraphrase"):
        print(split, preferred(family, split), flush=True)
    for split in ("seen", "pair"):
        shown = Shapes(objects=2, split=split).asked(np.arange(PICTURES))
        marked = read_all(drawn(family, shown, 3.0, asked.seed, 12), shown)
        names = ("count", "shape", "colour", "bound", "relation", "joint")
        print(
            split, {name: round(float(np.mean([each[name] for each in marked if name in each])), 3) for name in names}
        )


if __name__ == "__main__":
    main()
