"""Preference tuning of SmolLM2-135M-Instruct: which of two held-out answers it prefers, before and after.

    python benchmarks/preferring.py raschka|alpaca [--by dpo] [--lora N] [--budget 220steps] [--set a.b=c]... [--write]

raschka: the 978 pairs of instructions-raschka; alpaca: the 300 pairs of alpaca-gpt4-1k, which are long. The model is
fetched if no run of it is there (`nomoat pull smollm2-135m-instruct`); runs and log-probabilities lie below
$NOMOAT_RUNS and are found again. `--write` puts the figures into results/preferring_DATA[_BY].json.
"""

from __future__ import annotations

import argparse
import time

from peers import SHARED, record

import nomoat
from nomoat.card import costs

DATA = {
    "raschka": ("instructions-raschka/preferences.jsonl.gz", ()),
    "alpaca": ("alpaca-gpt4-1k/dpo.jsonl.gz", ("data.context_length=1024", "batch_size=4")),
}
MODEL = "smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--by", default="dpo")
    parser.add_argument("--lora", type=int)
    parser.add_argument("--budget")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    file, settings = DATA[asked.data]
    base = nomoat.pull(MODEL)
    began = time.perf_counter()
    run = nomoat.prefer(
        base, SHARED / "data" / file, asked.by, asked.lora, asked.budget, (*settings, *asked.changes), watch=told
    )
    report = run.read_json("report.json")
    print((run.path / "report.txt").read_text())
    figures = {
        "report": report,
        "seconds": round(time.perf_counter() - began, 1),
        "cost": {name: (cost.value, cost.unit, cost.how) for name, cost in costs(run).items()},
        "steps": run.recipe.budget.text,
        "settings": [*settings, *asked.changes],
        "decisions": {line["name"]: line["value"] for line in run.decisions()},
    }
    if asked.write:
        record(f"preferring_{asked.data}" + ("" if asked.by == "dpo" else f"_{asked.by}"), figures)


def told(event: dict) -> None:
    """A line now and then."""
    if event["kind"] in ("step", "evaluate", "warning", "phase"):
        shown = ("step", "training_loss", "margin", "accuracy", "chosen_gain", "loss", "text", "phase", "seconds")
        print({name: event[name] for name in shown if name in event}, flush=True)


if __name__ == "__main__":
    main()
