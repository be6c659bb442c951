"""A ladder from matches: the ratings that explain them best, in Elo points above a player who is named, with intervals.

    MatchResult, ... -meetings-> {(a, b): points of a in each pair of games} -> wins -Newton-> ratings -> Rung, ...
                                                pairs drawn again, with two more in each meeting -> low, high

Bradley and Terry 1952: P(a beats b) = 1 / (1 + exp(b - a)), draws being half a win; 400 / ln 10 points to a unit. Half
a won and half a lost game are added to each meeting (Haldane 1956; Anscombe 1956), which takes most of the bias out of
the logarithm of the odds and keeps the rating of one who never lost finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nomoat.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from nomoat.games.match import MatchResult
    from nomoat.games.rules import Array

POINTS = 400 / math.log(10)
ADDED = 0.5
ROUNDS, CLOSE = 200, 1e-9
RESAMPLES = 1000

Meetings = Mapping[tuple[str, str], Sequence[float]]
"""(a, b) -> the share of its points that a has of each pair of games, in [0, 1]."""


@dataclass(frozen=True)
class Rung:
    """A player's place.

    Args:
        name: the player's.
        points: above the anchor.
        low, high: 95 % interval; infinite where no loss, or no win, bounds it.
        games: that count, two for each pair.
        won: the share of points that it has of them.
    """

    name: str
    points: float
    low: float
    high: float
    games: int
    won: float


def meetings(results: Iterable[MatchResult]) -> dict[tuple[str, str], list[float]]:
    """What a ladder asks of matches."""
    found: dict[tuple[str, str], list[float]] = {}
    for result in results:
        found.setdefault((result.one, result.other), []).extend(result.pairs())
    return found


def ladder(table: Meetings, anchor: str, seed: int = 0, added: float = ADDED) -> list[Rung]:
    """The players, the strongest first.

    The intervals are percentiles over tables whose pairs of games are drawn again, after one more pair won and one more
    lost have been put into each meeting, as in `match.elo`: what was always won would else look certain.

    Args:
        table: who met whom; (a, b) and (b, a) may both be there.
        anchor: whose rating is 0.
        seed: of the intervals.
        added: games won, and as many lost, in each meeting; 0 is maximum likelihood and nothing else.

    Raises:
        ConfigError: the anchor is not among the players, somebody is joined to it by no games, or, with nothing added,
            somebody has won or lost all that would bound the rating.
    """
    names = sorted({name for pair in table for name in pair})
    if anchor not in names:
        raise ConfigError(f"`{anchor}` has played no game", f"there are {', '.join(names)}", nearest(anchor, names))
    place, rng = {name: number for number, name in enumerate(names)}, np.random.default_rng(seed)
    wins_RXX = np.zeros((1 + RESAMPLES, len(names), len(names)))
    for (one, other), points in table.items():
        a, b, share_P = place[one], place[other], np.asarray(points, dtype=float)
        if not len(share_P):
            continue
        more_P = np.append(share_P, (0, 1))
        drawn_R = rng.choice(more_P, (RESAMPLES, len(more_P))).sum(1)
        for row, column, sums in ((a, b, drawn_R), (b, a, len(more_P) - drawn_R)):
            wins_RXX[1:, row, column] += 2 * sums
        wins_RXX[0, a, b] += 2 * share_P.sum()
        wins_RXX[0, b, a] += 2 * (1 - share_P).sum()
    won_XX, zero = wins_RXX[0], place[anchor]
    apart_X = ~_reach(won_XX + won_XX.T)[zero]
    if apart_X.any():
        lone = ", ".join(name for name in names if apart_X[place[name]])
        raise ConfigError(f"no games join {lone} to {anchor}", fix="let them play somebody who is joined to it")
    point_X = POINTS * ratings(won_XX[None], zero, added)[0]
    low_X, high_X = np.percentile(POINTS * ratings(wins_RXX[1:], zero, ADDED), (2.5, 97.5), axis=0)
    reach_XX = _reach(won_XX)
    low_X[~reach_XX[:, zero]], high_X[~reach_XX[zero]] = -math.inf, math.inf
    games_X = won_XX.sum(0) + won_XX.sum(1)
    return rungs(names, (point_X, low_X, high_X), games_X, won_XX.sum(1) / games_X)


def rungs(names: Sequence[str], points: tuple[Array, Array, Array], games_X: Array, won_X: Array) -> list[Rung]:
    """The players, the strongest first, from their points, low and high [X], games and shares of points won [X]."""
    rows = zip(names, *points, games_X, won_X, strict=True)
    found = [
        Rung(name, float(point), float(low), float(high), round(float(games)), float(won))
        for name, point, low, high, games, won in rows
    ]
    return sorted(found, key=lambda rung: -rung.points)


def ratings(wins_RXX: Array, anchor: int, added: float = ADDED) -> Array:
    """The maximum of the likelihood, by Newton's method, [R, X]: natural units, 0 for the anchor.

    Args:
        wins_RXX: R tables of games won by the row against the column, draws half in both.
        anchor: its number.
        added: games won, and as many lost, in each meeting.

    Raises:
        ConfigError: there is no finite maximum.
    """
    met_RXX = wins_RXX + wins_RXX.swapaxes(1, 2) > 0
    wins_RXX = wins_RXX + added * met_RXX
    games_RXX = wins_RXX + wins_RXX.swapaxes(1, 2)
    others = np.arange(wins_RXX.shape[1]) != anchor
    rating_RX = np.zeros(wins_RXX.shape[:2])
    for _ in range(ROUNDS):
        chance_RXX = 1 / (1 + np.exp(rating_RX[:, None, :] - rating_RX[:, :, None]))
        missed_RXX = wins_RXX * chance_RXX.swapaxes(1, 2)  # not 1 - chance, which is rounded to 0
        slope_RX = (missed_RXX - missed_RXX.swapaxes(1, 2)).sum(2)
        weight_RXX = games_RXX * chance_RXX * chance_RXX.swapaxes(1, 2)
        curve_RXX = weight_RXX.sum(2)[:, :, None] * np.eye(len(others)) - weight_RXX
        step_RY1 = np.linalg.solve(curve_RXX[:, others][:, :, others], slope_RX[:, others, None])
        longest_R = np.abs(step_RY1).max((1, 2), initial=0)
        rating_RX[:, others] += step_RY1[:, :, 0] / np.maximum(1, longest_R)[:, None]  # a far step would overshoot
        if longest_R.max() < CLOSE:
            return rating_RX
    why = "somebody has won, or lost, all games that join it to the others"
    raise ConfigError("no finite ratings explain these games best", why, f"add games: added={ADDED}")


def _reach(step_XX: Array) -> Array:
    """Who comes to whom in any number of steps, bool [X, X]; everybody comes to themself."""
    reach_XX = (step_XX > 0) | np.eye(len(step_XX), dtype=bool)
    for _ in range(len(step_XX)):
        reach_XX = reach_XX @ reach_XX
    return reach_XX
