"""A ladder from pairwise verdicts: the strengths that explain them best, with intervals.

    scores [prompts, X, X] -> wins -> minorise-maximise -> strengths -> points; prompts drawn again -> intervals

Bradley and Terry 1952: P(a beats b) = s_a / (s_a + s_b). Hunter 2004, Annals of Statistics 32:384, gives the iteration

    s_a <- W_a / sum over b of N_ab / (s_a + s_b)

with W_a the wins of a, ties half, and N_ab the games between a and b. Each also has half a win and half a loss against
a contestant of strength 1 that is not there, which keeps the strength of one who never lost finite. Points are 400 for
every factor of ten, as chess counts them, and 0 on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nomoat.games.ladder import Rung

Numbers = NDArray[np.float64]

ROUNDS = 10_000
CLOSE = 1e-10
RESAMPLES = 300


def strengths(wins_RXX: Numbers) -> Numbers:
    """The logarithm of each contestant's strength [R, X], from R tables of wins of the row over the column."""
    games_RXX = wins_RXX + wins_RXX.swapaxes(1, 2)
    won_RX = wins_RXX.sum(2) + 0.5
    strength_RX = np.ones(won_RX.shape)
    for _ in range(ROUNDS):
        both_RXX = strength_RX[:, :, None] + strength_RX[:, None, :]
        before_RX = strength_RX
        strength_RX = won_RX / ((games_RXX / both_RXX).sum(2) + 1 / (strength_RX + 1))
        if np.abs(np.log(strength_RX / before_RX)).max() < CLOSE:
            break
    return np.log(strength_RX)


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
    point_RX = strengths(np.einsum("rn,nxy->rxy", weight_RN, known_NXX)) * 400 / np.log(10)
    point_RX -= point_RX.mean(1, keepdims=True)
    low_X, high_X = np.percentile(point_RX, [2.5, 97.5], axis=0)
    games_X = (~np.isnan(score_NXX)).sum((0, 2))
    won_X = known_NXX.sum((0, 2)) / np.maximum(1, games_X)
    rungs = [
        Rung(name, float(point_RX[0, x]), float(low_X[x]), float(high_X[x]), int(games_X[x]), float(won_X[x]))
        for x, name in enumerate(names)
    ]
    return sorted(rungs, key=lambda rung: -rung.points)
