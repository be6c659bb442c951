"""Expected against actual: tokens per second and held-out bits per byte, said before the first step and measured after.

    python benchmarks/planner.py FOLDER [FOLDER ...] [--budgets 1m,2m,3m]

Each folder is read as `nomoat make` reads it, the forecast is written to the run, then the run is trained; the loss is
read on the same number of held-out tokens as the rehearsal's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from peers import record

from nomoat.core.budget import Budget
from nomoat.core.run import Run
from nomoat.making import Spending, foreseen
from nomoat.train.loop import train
from nomoat.train.plan import MOST_HELD_OUT, held_out_bits


def one(folder: str, budget: str) -> dict[str, float | str]:
    """Forecast and run of one folder and one budget."""
    spending = Spending(Budget.parse(budget), time.perf_counter())
    forecast = foreseen(folder, spending, None, "auto", None)
    recipe = forecast.recipe
    run = Run.create(None, Path(folder).name, recipe)
    run.write_json("plan.json", forecast.expected)
    family = train(recipe, run)
    steps = run.metrics("step")
    rate = (steps[-1]["tokens"] - steps[0]["tokens"]) / (steps[-1]["seconds"] - steps[0]["seconds"])
    bits = held_out_bits(recipe, family, run.decided("precision"), MOST_HELD_OUT)
    expected = {name: figure["value"] for name, figure in forecast.expected.items() if isinstance(figure, dict)}
    return {
        "folder": Path(folder).name,
        "budget": budget,
        "parameters": forecast.parameters,
        "epochs": round(expected["epochs"], 2),
        "threads": run.decided("threads"),
        "expected_bits": round(expected["held_out_bits_per_byte"], 4),
        "bits": round(bits, 4),
        "bits_off": round(expected["held_out_bits_per_byte"] / bits - 1, 4),
        "expected_tokens_per_second": round(expected["tokens_per_second"]),
        "tokens_per_second": round(rate),
        "rate_off": round(expected["tokens_per_second"] / rate - 1, 4),
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
                        "rows": rows,
                    },
                )


if __name__ == "__main__":
    main()
