"""A ladder from pairwise verdicts: the strengths that explain them best, with intervals.

    scores [prompts, X, X] -> wins -> games/ladder.py's ratings -> points; prompts drawn again -> intervals

Bradley and Terry 1952, half a win and half a loss added to each pair; points are 0 on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nomoat.games.ladder import ADDED, POINTS, Rung, ratings, rungs

Numbers = NDArray[np.float64]

RESAMPLES = 300


def ladder(names: Sequence[str], score_NXX: Numbers, seed: int = 0) -> list[Rung]:
    """The contestants, the strongest first.

    Args:
        names: X of them.
        score_NXX: for each of N prompts what the row got against the column: 1, 0.5 or 0, NaN where nobody judged.
        seed: of the intervals.
    """
    known_NXX = np.nan_to_num(score_NXX)
    count = len(known_NXX)
    drawn_RN = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weight_RN = np.concatenate([np.ones((1, count)), drawn_RN])
    added_XX = ADDED * (1 - np.eye(len(names)))  # to all pairs, so that nobody is without games
    wins_RXX = np.einsum("rn,nxy->rxy", weight_RN, known_NXX) + added_XX
    point_RX = POINTS * ratings(wins_RXX, 0, added=0)
    point_RX -= point_RX.mean(1, keepdims=True)
    low_X, high_X = np.percentile(point_RX, [2.5, 97.5], axis=0)
    games_X = (~np.isnan(score_NXX)).sum((0, 2))
    won_X = known_NXX.sum((0, 2)) / np.maximum(1, games_X)
    return rungs(names, (point_RX[0], low_X, high_X), games_X, won_X)
