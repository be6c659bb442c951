"""Countdown's controls: how often blind play solves the test problems, and what an exhaustive search has to visit.

    python benchmarks/countdown_controls.py
    (to try it: --problems 50 --tries 256 --searched 20,5,1 --random 100,20 --results /tmp/controls.json)

A searching model proves something only above both at as many tries or nodes. Test problems of the split `numbers` with
4, 5 and 6 numbers: pass@k of legal actions drawn alike, by the unbiased estimate from all tries (Chen et al. 2021,
arXiv:2107.03374), with 95 % intervals over problems (bootstrap); distinct states of an exhaustive search, first
problems only where there are many; and how many random problems of 4 and 5 numbers can be solved at all, here and
nearly without a limit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import ROOT, record

from nomoat.games.countdown import MOST_LIMIT, Countdown, mixed, random_play, solutions
from nomoat.games.countdown_problems import digest, exam, one_way

SIZES, AT, RESAMPLED = (4, 5, 6), (1, 4, 16, 64, 256), 2000


def passed(right_B: np.ndarray, tries: int, k: int) -> np.ndarray:
    """The chance [B] that of k of the tries, drawn without putting back, one at least is right."""
    wrong_B = tries - right_B
    left = np.array([np.prod(1 - k / np.arange(wrong + 1, tries + 1)) if k <= wrong else 0.0 for wrong in wrong_B])
    return 1 - left


def interval(values_B: np.ndarray, generator: np.random.Generator) -> list[float]:
    """Mean, and the middle 95 % of the means of resampled problems."""
    means = values_B[generator.integers(len(values_B), size=(RESAMPLED, len(values_B)))].mean(1)
    return [float(values_B.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def control(size: int, problems: int, tries: int, searched: int) -> dict[str, Any]:
    """All figures of one size."""
    game, generator = Countdown(size), np.random.default_rng(size)
    test_B = exam(game, "numbers")
    state_B, began = test_B[:problems], time.process_time()
    right_B = random_play(game, state_B, tries, generator).sum(1)
    played = time.process_time()
    found = [solutions(game, state_B[row : row + 1]) for row in range(searched)]
    ended = time.process_time()
    return {
        "sha256": digest(test_B),
        "problems": len(state_B),
        "tries": tries,
        **{f"pass@{k}": interval(passed(right_B, tries, k), generator) for k in AT if k <= tries},
        "searched": searched,
        "distinct states": interval(np.array([each.states for each in found]), generator),
        "states by numbers left": [float(np.mean([len(each.levels[step]) for each in found])) for step in range(size)],
        "ways to the target, tenths 1, 5, 9": np.quantile(
            [each.ways[0][0] for each in found], [0.1, 0.5, 0.9]
        ).tolist(),
        "microseconds a try": 1e6 * (played - began) / (len(state_B) * tries),
        "milliseconds a search": 1e3 * (ended - played) / searched,
    }


def at_random(size: int, problems: int) -> dict[str, Any]:
    """The share of random numbers and targets that can be solved, with the usual limit and nearly without one."""
    generator = np.random.default_rng(size)
    numbers_BN, target_B = generator.integers(1, 100, (problems, size)), generator.integers(10, 101, problems)
    games = Countdown(size), Countdown(size, MOST_LIMIT)
    shares = [one_way(game, game.start(numbers_BN, target_B), mixed(target_B))[0].mean() for game in games]
    return {"problems": problems, **{str(game.limit): float(share) for game, share in zip(games, shares, strict=True)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--tries", type=int, default=512)
    parser.add_argument("--searched", default="1000,200,30")
    parser.add_argument("--random", default="4000,400")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "countdown_controls.json")
    asked = parser.parse_args()
    figures: dict[str, Any] = {}
    for size, searched in zip(SIZES, map(int, asked.searched.split(",")), strict=True):
        figures[str(size)] = control(size, asked.problems, asked.tries, searched)
    for size, count in zip(SIZES, map(int, asked.random.split(",")), strict=False):
        figures[f"{size}, solvable at random"] = at_random(size, count)
    record("countdown_controls", figures, asked.results)


if __name__ == "__main__":
    main()
