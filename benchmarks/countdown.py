"""Countdown from scratch: a language model and a masked diffusion model, what tries, legality, search and learning buy.

    python benchmarks/countdown.py train ar --minutes 30 --work FOLDER          or: masked
    python benchmarks/countdown.py improve star --minutes 30 --work FOLDER      over the model of `train ar`; or: grpo
    python benchmarks/countdown.py tree --minutes 10 --work FOLDER              a process reward, then trees
    (to try it: --minutes 1 --problems 50 --results /tmp/countdown.json)

One model of 4 and 5 numbers. `train` and `improve` end with the exam: on held-out sets of numbers pass@k of 16 tries of
4 numbers and 64 of 5, with legality (only legal lines can be written) and without, on held-out targets, and on the Game
of 24 ($NOMOAT_SHARED/data/game24), each beside tries by chance with the same verifier. `tree`: 5 numbers, best-of-64
against a tree of as many expansions (256), with the model's priors alone, and with a process reward; FLOPs beside it,
the process reward's included. Results are merged into benchmarks/results/countdown.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import ROOT, SHARED, record

from nomoat import improving, making
from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.recipe import find
from nomoat.core.run import Run, load
from nomoat.evaluate.figure import wilson
from nomoat.games.countdown_text import LINE_TOKENS
from nomoat.search.planning import plan
from nomoat.search.selection import PUCT, Gumbel
from nomoat.search.tasks import CountdownTask
from nomoat.search.tree import Trees
from nomoat.search.worded import Lines, Worded, pass_at

RECIPES = {"ar": "countdown-small", "masked": "countdown-masked-small"}
TRIES = {4: 16, 5: 64}
EXPANSIONS = 256


def share(solved_BT: Any, k: int) -> list[float]:
    """pass@k with the 95 % interval of its questions."""
    each = pass_at(solved_BT, k)
    return list(wilson(round(float(each.sum())), len(each)))


def examined(run: Run, count: int) -> dict[str, Any]:
    """All that tries come to."""
    model: Any = load(run)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    puzzles = SHARED / "data" / "game24" / "game24.jsonl.gz"
    tasks = {
        **{f"{n} numbers": CountdownTask(n) for n in TRIES},
        **{f"{n} numbers, legality off": CountdownTask(n, legal=False) for n in TRIES},
        **{f"{n} numbers, unseen targets": CountdownTask(n, split="targets") for n in TRIES},
        **({"game of 24": CountdownTask(4, puzzles=str(puzzles))} if puzzles.exists() else {}),
    }
    for name, task in tasks.items():
        tries, asked = TRIES[task.numbers], task.exam(count)
        with run.autocast(torch.device("cpu")):
            began = time.perf_counter()
            right = task.attempts(model, None, asked, tries, 5).right.reshape(-1, tries) >= 1
        blind = task.blind(asked, tries, 6)
        ks = [k for k in (1, 4, 16, 64) if k <= tries]
        found[name] = {
            "questions": len(right),
            "seconds": time.perf_counter() - began,
            "pass": {k: share(right, k) for k in ks},
            "blind": {k: share(blind, k) for k in ks},
        }
        print(name, {k: f"{v[0]:.1%}" for k, v in found[name]["pass"].items()},
              "blind", {k: f"{v[0]:.1%}" for k, v in found[name]["blind"].items()}, flush=True)  # fmt: skip
    return found


def tree(run: Run, prm: Run, count: int) -> dict[str, Any]:
    """5 numbers: tries against trees of as many expansions."""
    model, reward = load(run), load(prm)
    task = CountdownTask(5)
    problems, worded = task.exam(count), Worded(task.game)
    tries = EXPANSIONS // (task.numbers - 1)
    weights = {name: sum(p.numel() for p in each.parameters()) for name, each in (("model", model), ("prm", reward))}
    with run.autocast(torch.device("cpu")):
        right = task.attempts(model, None, problems, tries, 5).right.reshape(-1, tries) >= 1
        written = task.notation.length * tries
        found: dict[str, Any] = {
            f"best of {tries}": {"solved": share(right, tries), "flops": 2.0 * weights["model"] * written}
        }

        def judge(ids_BL: Any) -> Any:
            return reward.judge(torch.from_numpy(np.ascontiguousarray(ids_BL))).float().numpy()  # type: ignore[operator]

        for name, rule, by in (
            ("gumbel, priors alone", Gumbel(scale=0.1), None),
            ("puct, priors alone", PUCT(), None),
            ("gumbel, process reward", Gumbel(scale=0.1), judge),
            ("puct, process reward", PUCT(), judge),
        ):
            solved, states = 0, 0
            for first in range(0, len(problems), 50):
                some = worded.start(problems[first : first + 50])
                trees = Trees(worded, some, Lines(model, task.notation, by), EXPANSIONS + 1)
                known = plan(trees, rule, EXPANSIONS).known_B
                solved, states = solved + int((known == 1).sum()), states + trees.evaluations
            mean = states / len(problems)
            prefix = task.notation.prompt_length + LINE_TOKENS * (task.numbers - 1) / 2
            flops = 2.0 * mean * (weights["model"] * (prefix + 30) + (weights["prm"] * prefix if by is not None else 0))
            found[name] = {"solved": list(wilson(solved, len(problems))), "evaluations": mean, "flops": flops}
            print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "improve", "tree"))
    parser.add_argument("settings", nargs="*", help="ar or masked, star or grpo; then settings of the recipe")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "countdown.json")
    asked = parser.parse_intermixed_args()
    runs = asked.work / "runs"
    held = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
    key = ", ".join([asked.what, *asked.settings, f"{asked.minutes:g} minutes"])
    if asked.what == "train":
        kind, *settings = asked.settings
        recipe = find(RECIPES[kind])
        data = replace(recipe.data, sizes=(4, 5))
        family = replace(recipe.family, context_length=data.context_length)
        recipe = replace(recipe, data=data, family=family, budget=Budget.parse(f"{60 * asked.minutes - 5:.0f}s"))
        run = making.started(
            f"countdown-{kind}", override(replace(recipe, seed=asked.seed), settings), runs, None, None
        )
        making.trained(run, "auto", None)
        (asked.work / f"{kind}.txt").write_text(str(run.path))
        last = run.metrics("step")[-1]
        held[key] = {"steps": last["step"], "loss": last["training_loss"], **examined(run, asked.problems)}
    elif asked.what == "improve":
        base = Run.open((asked.work / "ar.txt").read_text())
        run = improving.improve(base, "countdown:4", asked.settings[0], f"{60 * asked.minutes:.0f}s", seed=asked.seed)
        (asked.work / f"{asked.settings[0]}.txt").write_text(str(run.path))
        held[key] = {"report": run.read_json("report.json"), **examined(run, asked.problems)}
    else:
        base = Run.open((asked.work / "ar.txt").read_text())
        prm = improving.improve(base, "countdown:5", "prm", f"{60 * asked.minutes:.0f}s", seed=asked.seed)
        held[key] = tree(base, prm, min(300, asked.problems))
    record("countdown", held, asked.results)


if __name__ == "__main__":
    main()
