"""What each recipe comes to at its own budget: the number that it is expected to reach.

    python benchmarks/recipes.py clip-small codec-small ... --work FOLDER
    (to try it: --budget 5steps --results /tmp/recipes.json)

What a recipe names of others (a codec, a teacher) must be named before it, or lie in FOLDER from an earlier call. Kept
are steps, seconds, parameters and the last held-out figures; the loss is what the recipe's `expect` says, with the
machine's share in it where the budget is one of time. Results are merged into benchmarks/results/recipes.json.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers import ROOT, record

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.recipe import find
from nomoat.core.run import load


def trained(name: str, work: Path, budget: str | None) -> dict[str, Any]:
    """One recipe at its budget."""
    os.environ["NOMOAT_RUNS"] = str(runs := work.resolve() / "runs")
    recipe = find(name)
    if budget is not None:
        recipe = replace(recipe, budget=Budget.parse(budget))
    run = making.trained(making.started(name, recipe, runs, None, None), "auto", None)
    if not (runs / name).exists():  # so that others find it by its name
        (runs / name).symlink_to(run.path.name)
    last, held = run.metrics("step")[-1], run.metrics("evaluate")
    told = {"budget": recipe.budget.text, "steps": last["step"], "seconds": last["seconds"]}
    figures = {k: v for k, v in (held[-1] if held else {}).items() if k not in ("kind", "time", "step", "seconds")}
    return {**told, "parameters": sum(p.numel() for p in load(run).parameters()), "held out": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--budget")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "recipes.json")
    asked = parser.parse_args()
    for name in asked.names:
        held = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
        held[name] = trained(name, asked.work, asked.budget)
        print(name, held[name], flush=True)
        record("recipes", held, asked.results)


if __name__ == "__main__":
    main()
