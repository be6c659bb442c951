"""Expected against actual: tokens per second and held-out bits per byte, said before the first step and measured after.

    python benchmarks/planner.py FOLDER [FOLDER ...] [--budgets 1m,2m,3m]

Each folder is read as `nomoat make` reads it, the forecast is written to the run, then the run is trained with what
planning has left of the budget. `calibration` is all that planning took, in seconds: counting the 3-gram model, timing
steps, the rehearsal. Bits are read on windows of up to 131,072 held-out tokens, spread evenly.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import record

from nomoat.core.budget import Budget
from nomoat.core.device import autocast
from nomoat.core.family import Family
from nomoat.core.recipe import Recipe
from nomoat.data.files import Files
from nomoat.making import CONTEXT_LENGTH, Spending, begun, data_root, foreseen
from nomoat.train.loop import train

HELD_OUT_TOKENS = 131_072


def held_out_bits(recipe: Recipe, family: Family, precision: str) -> float:
    """Bits per byte on windows spread evenly over the held-out text."""
    nats = size = 0.0
    with torch.no_grad(), autocast(torch.device("cpu"), precision):
        for batch in recipe.data.held_out(family, recipe.batch_size, HELD_OUT_TOKENS):
            nats += float(family.loss(batch).total)
            size += sum(batch["bytes"])
    return nats / math.log(2) / size


def one(folder: str | None, budget: str) -> dict[str, Any]:
    """Forecast and run of one folder and one budget."""
    Files(folder, context_length=CONTEXT_LENGTH).prepare(data_root())  # reading is no part of planning
    began = time.perf_counter()
    forecast = foreseen(folder, Spending(Budget.parse(budget), began), None, "auto", None)
    calibration = time.perf_counter() - began
    recipe = forecast.recipe
    run = begun(forecast, recipe, folder)
    family = train(recipe, run)
    steps = run.metrics("step")
    rate = (steps[-1]["tokens"] - steps[0]["tokens"]) / (steps[-1]["seconds"] - steps[0]["seconds"])
    bits = held_out_bits(recipe, family, run.decided("precision"))
    expected = {name: figure["value"] for name, figure in forecast.expected.items() if isinstance(figure, dict)}
    return {
        "folder": Path(folder).name if folder else "standard library",
        "budget": budget,
        "calibration": round(calibration, 2),
        "calibration_share": round(calibration / (Budget.parse(budget).seconds() or math.inf), 4),
        "parameters": forecast.parameters,
        "epochs": round(expected["epochs"], 2),
        "threads": run.decided("threads"),
        "expected_bits": round(expected["held_out_bits_per_byte"], 4),
        "bits": round(bits, 4),
        "bits_off": round(expected["held_out_bits_per_byte"] / bits - 1, 4),
        "expected_tokens_per_second": round(expected["tokens_per_second"]),
        "tokens_per_second": round(rate),
        "rate_off": round(expected["tokens_per_second"] / rate - 1, 4),
        "tokens": steps[-1]["tokens"],
        "reason": forecast.reasons[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--budgets", default="1m,2m,3m")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as root:
        os.environ["NOMOAT_RUNS"] = root
        for budget in chosen.budgets.split(","):
            for folder in chosen.folders:
                torch.manual_seed(0)
                rows.append(one(folder, budget))
                record(
                    "planner",
                    {
                        "median_bits_off": median(abs(float(row["bits_off"])) for row in rows),
                        "worst_bits_off": max(abs(float(row["bits_off"])) for row in rows),
                        "median_rate_off": median(abs(float(row["rate_off"])) for row in rows),
                        "worst_rate_off": max(abs(float(row["rate_off"])) for row in rows),
                        "most_calibration_share": max(float(row["calibration_share"]) for row in rows),
                        "rows": rows,
                    },
                )


if __name__ == "__main__":
    main()
