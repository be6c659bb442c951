"""Fit the planner's law: what networks of some size came to on some folders, beside a 3-gram model of the same text.

    python benchmarks/law.py FOLDER [FOLDER ...] [--budgets 1m,3m]     trains, adds rows to results/law.json, fits
    python benchmarks/law.py                                            fits the rows that are there

Every row of `planner.py` is a point of the law; so are runs of a twentieth as many tokens (weight 0.3), which tell how
it begins. Each corpus is also foreseen by a fit that has not seen it. Fitted by least squares in the logarithm, every
number held loosely to a first guess (`PRIOR`), for points so few could not hold all five.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import ROOT, record
from planner import held_out_bits

from nomoat.core.budget import Budget
from nomoat.core.run import Run
from nomoat.data.files import Files
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import load
from nomoat.evaluate.baselines import learning_curve
from nomoat.making import CONTEXT_LENGTH, Spending, data_root, foreseen
from nomoat.train.law import LAW, Curve
from nomoat.train.loop import train

STATED = 0.03  # the noise of one run's bits, as a share
PRIOR = {"floor": (math.log(0.4), 0.7), "size": (math.log(7e3), 1.5), "data": (math.log(1e5), 1.5)}
PRIOR |= {"a": (math.log(0.26), 0.23), "b": (math.log(0.35), 0.29)}


def collected(folder: str, budget: str) -> list[dict[str, Any]]:
    """Two points: the run that the planner would make of the budget, and one of a twentieth of its tokens."""
    path = None if folder == "stdlib" else folder
    at = Files(path, context_length=CONTEXT_LENGTH).prepare(data_root()).paths[0]
    training = ShardReader(at, "train")
    curve = learning_curve(training, ShardReader(at, "heldout"), load(Path(at) / "tokenizer.json"))
    forecast = foreseen(path, Spending(Budget.parse(budget), 0.0), None, "auto", None)
    recipe = forecast.recipe
    steps = round(forecast.figures["steps"].value)
    found = []
    for share, weight in ((0.05, 0.3), (1.0, 1.0)):
        wanted = replace(recipe, budget=Budget.parse(f"{max(4, round(share * steps))}steps"))
        with tempfile.TemporaryDirectory() as place:
            run = Run.create(place, "point", wanted)
            family = train(wanted, run)
            tokens = run.metrics("step")[-1]["tokens"]
            bits = held_out_bits(wanted, family, run.decided("precision"))
        point = {"folder": Path(folder).name, "budget": budget, "parameters": forecast.parameters, "tokens": tokens}
        found.append({**point, "unique": training.tokens, "curve": curve, "bits": bits, "weight": weight})
    return found


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The five numbers, by L-BFGS from the first guess."""
    names = list(PRIOR)
    guess, width = (torch.tensor([PRIOR[name][i] for name in names], dtype=torch.float64) for i in (0, 1))
    logs = guess.clone().requires_grad_()
    N, D, R, w = (torch.tensor(column, dtype=torch.float64) for column in zip(*map(_point, rows), strict=True))

    def loss() -> torch.Tensor:
        floor, size, data, a, b = logs.exp().unbind()
        off = (floor + (size / N) ** a + (data / D) ** b).log() - R.log()
        return ((w * off / STATED) ** 2).sum() + (((logs - guess) / width) ** 2).sum()

    optimizer = torch.optim.LBFGS([logs], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    optimizer.step(closure)
    return dict(zip(names, logs.detach().exp().tolist(), strict=True))


def _point(row: dict[str, Any]) -> tuple[float, float, float, float]:
    """Parameters, what the tokens are worth, bits over the 3-gram model's, weight."""
    known = Curve(tuple(map(tuple, row["curve"]))).at(min(row["tokens"], row["unique"]))
    return row["parameters"], LAW.worth(row["tokens"], row["unique"]), row["bits"] / known, row["weight"]


def off(row: dict[str, Any], numbers: dict[str, float]) -> float:
    """Expected / actual - 1."""
    N, D, R, _ = _point(row)
    return (numbers["floor"] + (numbers["size"] / N) ** numbers["a"] + (numbers["data"] / D) ** numbers["b"]) / R - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--budgets", default="1m,3m")
    chosen = parser.parse_args()
    kept = ROOT / "benchmarks" / "results" / "law.json"
    rows = json.loads(kept.read_text())["figures"]["rows"] if kept.is_file() else []
    with tempfile.TemporaryDirectory() as root:
        os.environ["NOMOAT_RUNS"] = root
        for budget in chosen.budgets.split(",") if chosen.folders else ():
            for folder in chosen.folders:
                rows += collected(folder, budget)
    whole = [row for row in rows if row["weight"] == 1.0]
    seen = fit(rows)
    unseen = {name: fit([row for row in rows if row["folder"] != name]) for name in {row["folder"] for row in rows}}
    left_out = [(row["folder"], row["budget"], round(off(row, unseen[row["folder"]]), 4)) for row in whole]
    figures = {
        "law": seen,
        "repeat": LAW.repeat,
        "median_off": median(abs(off(row, seen)) for row in whole),
        "worst_off": max(abs(off(row, seen)) for row in whole),
        "median_off_left_out": median(abs(each[2]) for each in left_out),
        "worst_off_left_out": max(abs(each[2]) for each in left_out),
        "left_out": sorted(left_out, key=lambda each: each[2]),
        "rows": rows,
    }
    record("law", figures)


if __name__ == "__main__":
    main()
