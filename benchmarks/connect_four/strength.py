"""How well connect four is learned from nothing: matches against alpha-beta, mistakes by phase, what the values know.

    python benchmarks/connect_four/strength.py train --minutes 30 --seed 0 --work FOLDER [NAME=VALUE ...]
    python benchmarks/connect_four/strength.py judge RUN --work FOLDER
    python benchmarks/connect_four/strength.py ceiling --minutes 10 --work FOLDER     the same net on solver's labels

`train` is what `nomoat selfplay connect-four` does, then `judge`. Matches: 200 games, the same 100 openings of 2 to 5
random plies for both colours, no noise; 32 and 200 simulations a move. Mistakes: on the labelled positions
(positions.csv), by the raw policy and after 32 and 800 simulations; beside them the controls of `positions.py
controls`, and the raw policy's on positions of its own newest games. Correlation: of the value head with the solver's
result. `ceiling` trains the same network on positions of noisy games whose values and best moves the solver gives: what
capacity there is; with --openings on positions of 4 to 11 stones that bitbully looks up in its book (pip install
bitbully bitbully-databases). Results are merged into benchmarks/results/connect_four.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from connect_four.play import ILLEGAL, PHASES, load, positions
from peers import ROOT, record

from nomoat import making, selfplaying
from nomoat.core.budget import Budget
from nomoat.core.config import override
from nomoat.core.recipe import find
from nomoat.core.run import Run
from nomoat.core.run import load as loaded
from nomoat.evaluate.figure import wilson
from nomoat.games.connect_four import ConnectFour
from nomoat.games.match import elo, match
from nomoat.search.players import Searcher
from nomoat.search.replay import Replay
from nomoat.search.selfplay import FOLDER, health, playing

GAME = ConnectFour()
RESULTS = ROOT / "benchmarks" / "results" / "connect_four.json"


class AlphaBeta:
    """The benchmark's alpha-beta as a player of a match."""

    def __init__(self, depth: int, seed: int = 0) -> None:
        self.name, self.depth, self.seed, self.solver = f"alpha-beta {depth}", depth, seed, load(16)

    def begin(self, count: int) -> None:
        """Nothing to do."""

    def told(self, row_B: Any, state_B: Any, action_B: Any) -> None:
        """Nothing to do."""

    def choose(self, row_B: Any, state_B: Any) -> list[int]:
        """Its moves."""
        self.seed += 1
        return [int(move) for move in self.solver.alphabeta(boards(state_B), self.depth, self.seed)]


def boards(state_B: Any) -> Any:
    """States as boards of the solver: 1 the mover's stones, 2 the other's."""
    planes = GAME.observe(state_B)
    return (planes[:, 0] + 2 * planes[:, 1]).astype(np.int8)


def states(moves: list[list[int]]) -> Any:
    """Positions as states."""
    state, stones_B = GAME.start(len(moves)), np.array([len(line) for line in moves])
    for ply in range(stones_B.max()):
        on_B = stones_B > ply
        state[on_B] = GAME.step(state[on_B], np.array([line[ply] for line in moves if len(line) > ply]))
    return state


def judged(run: Run, games: int = 200) -> dict[str, Any]:
    """All that is measured of a player."""
    family: Any = loaded(run)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in family.parameters()), "matches": {}, "mistakes": {}}
    labelled = positions()
    state = states(labelled.moves)
    result = labelled.values_BA.max(1)
    with playing(family, run.decided("precision", "fp32")) as guess:
        value = guess(state).value_B * (1 - 2 * GAME.mover(state))
        for simulations in (0, 32, 800):
            player, moves = Searcher(GAME, guess, simulations), []
            for first in range(0, len(state), 400):
                moves += player.choose(None, state[first : first + 400])
            wrong = labelled.mistakes(np.array(moves))
            found["mistakes"][player.name] = {
                phase: list(wilson(int(wrong[labelled.phase_B == phase].sum()), int((labelled.phase_B == phase).sum())))
                for phase in PHASES
            }
        found["correlation"] = {
            phase: float(np.corrcoef(value[labelled.phase_B == phase], result[labelled.phase_B == phase])[0, 1])
            for phase in PHASES
        }
        found["correlation"]["all"] = float(np.corrcoef(value, result)[0, 1])
        found["correlation"]["any positions"] = _anywhere(guess)
        found["its own games"] = _own(run, guess)
        for simulations, depth in ((0, 5), (32, 5), (200, 5), (200, 7)) if games else ():
            one, points = Searcher(GAME, guess, simulations), []
            for openings in (2, 3, 4, 5):
                played = match(GAME, one, AlphaBeta(depth), games // 4, seed=100 + openings, openings=openings)
                points.append(played)
            won, drawn, lost = (sum(each) for each in zip(*(each.counts() for each in points), strict=True))
            name = f"{one.name} against alpha-beta {depth}"
            found["matches"][name] = {
                "won": won,
                "drawn": drawn,
                "lost": lost,
                "share": list(wilson(won, won + drawn + lost)),
            }
            print(name, found["matches"][name], list(elo(points[0])), flush=True)
    rounds = health(run.path)
    found["health"] = [rounds[len(rounds) * k // 8] for k in range(8)] + rounds[-1:] if rounds else []
    return found


def _anywhere(guess: Any, count: int = 600) -> float:
    """The same over positions of noisy games that were not chosen: 14 to 38 stones, won, drawn and lost ones.

    In the labelled set the mover has never lost, for there a mistake is possible: half of what a value tells is not
    asked for.
    """
    from connect_four.positions import noisy_game

    solver, chance, rows = load(24), np.random.default_rng(11), list[Any]()
    while len(rows) < count:
        if (moves := noisy_game(solver, int(chance.integers(14, 39)), chance)) is not None:
            rows.append(moves)
    state = states(rows)
    result = solver.values(boards(state)).max(1)
    return float(np.corrcoef(guess(state).value_B * (1 - 2 * GAME.mover(state)), result)[0, 1])


def _own(run: Run, guess: Any, count: int = 400) -> dict[str, Any]:
    """Mistakes on the newest positions that it learned from, chosen as the labelled ones: raw, and of what it learned.

    And the correlation of its values, and of what they learned, with the solver's result.
    """
    replay, solver, found = Replay(run.path / FOLDER, 300_000, GAME), load(24), dict[str, Any]()
    replay.read()
    kept = replay.draw(20 * count, np.random.default_rng(5))
    board = boards(kept["state"])
    stones = (board != 0).sum((1, 2))
    for phase in list(PHASES)[1:]:
        rows = np.flatnonzero(np.isin(stones, PHASES[phase]) & ~solver.wins(board).any(1) & (kept["policy_mask"] > 0))
        values_BA = solver.values(board[rows[: 2 * count]])
        legal_BA, best_B = values_BA != ILLEGAL, values_BA.max(1)
        rows = rows[: 2 * count][matters := (legal_BA & (values_BA < best_B[:, None])).any(1)]
        values_BA, best_B, told = values_BA[matters], best_B[matters], guess(kept["state"][rows])
        raw = np.where(GAME.legal(kept["state"][rows]), told.logits_BA, -np.inf).argmax(1)
        sign = 1 - 2 * GAME.mover(kept["state"][rows])
        at = np.arange(len(rows))
        found[phase] = {
            "positions": len(rows),
            "raw": float((values_BA[at, raw] < best_B).mean()),
            "learned": float((values_BA[at, kept["policy"][rows].argmax(1)] < best_B).mean()),
            "correlation": float(np.corrcoef(told.value_B * sign, best_B)[0, 1]),
            "correlation of what was learned": float(np.corrcoef(kept["value"][rows] * sign, best_B)[0, 1]),
        }
    return found


def trained(asked: argparse.Namespace) -> Run:
    """Self-play for so long, and no report: `judge` is one."""
    recipe = override(find("connect-four"), asked.settings)
    recipe = replace(recipe, budget=Budget.parse(f"{60 * asked.minutes:.0f}s"), seed=asked.seed)
    run = making.started(f"connect-four-{asked.seed}", recipe, asked.work / "runs", None, None)
    run.write_json(selfplaying.PLAYER, {"game": GAME.name})
    return making.trained(run, "auto", None)


def solved(task: tuple[int, float]) -> tuple[Any, Any]:
    """Positions of noisy games with 12 stones or more as states, and their moves' values; by a seed, for so long."""
    from connect_four.positions import noisy_game

    seed, seconds = task
    solver, chance, rows, values = load(26), np.random.default_rng((7, seed)), list[Any](), list[Any]()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if (moves := noisy_game(solver, int(chance.integers(14, 39)), chance)) is not None:
            lines = [moves[:stones] for stones in range(12, len(moves) + 1)]
            rows.append(states(lines))
            values.append(solver.values(boards(rows[-1])))
    return np.concatenate(rows), np.concatenate(values)


def looked_up(task: tuple[int, float]) -> tuple[Any, Any]:
    """The same for positions with 4 to 11 stones, by bitbully's book."""
    from bitbully import BitBully, Board
    from connect_four.positions import noisy_game

    seed, seconds = task
    solver, other, chance = load(16), BitBully(), np.random.default_rng((8, seed))
    known = dict[tuple[int, ...], list[int]]()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        moves = noisy_game(solver, 11, chance) or []
        for line in (tuple(moves[:stones]) for stones in range(4, len(moves) + 1)):
            if line not in known:
                scores = other.score_all_moves(Board(list(line)))
                known[line] = [int(np.sign(scores[x])) if x in scores else ILLEGAL for x in range(GAME.actions)]
    return states([list(line) for line in known]), np.array(list(known.values()), np.int8)


def ceiling(asked: argparse.Namespace) -> dict[str, Any]:
    """The recipe's network on solved positions, for half of the time: the best that so small a net can do.

    The other half of the time, on both cores, goes into the positions, which are kept in the folder.
    """
    import torch

    make, kind = (looked_up, "looked-up") if asked.openings else (solved, "solved")
    kept, seconds = asked.work / f"{kind}-{asked.minutes:g}.npz", 30 * asked.minutes
    if not kept.exists():
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            made = pool.map(make, [(seed, seconds) for seed in range(2)])
        np.savez(kept, state=np.concatenate([each[0] for each in made]), values=np.concatenate([e[1] for e in made]))
    state, values = (np.load(kept)[name] for name in ("state", "values"))
    recipe, chance = override(find("connect-four"), asked.settings), np.random.default_rng(asked.seed)
    torch.manual_seed(asked.seed)
    family = recipe.family.build({})
    best = values == values.max(1, keepdims=True)
    sign = values.max(1).astype(np.float32) * (1 - 2 * GAME.mover(state))
    policy = (best / best.sum(1, keepdims=True)).astype(np.float32)
    held = {"state": state, "policy": policy, "policy_mask": np.ones(len(state), np.float32), "value": sign}
    optimizer, steps = torch.optim.AdamW(family.parameters(), lr=2e-3, weight_decay=1e-4), 0
    began = time.perf_counter()
    while (spent := (time.perf_counter() - began) / seconds) < 1:
        some = chance.integers(len(state), size=256)
        batch = recipe.data.batch({name: array[some] for name, array in held.items()}, chance)
        loss = family.loss(batch)
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        steps += 1
    labelled = positions()
    state = states(labelled.moves)
    guess = family.eval().guess(state)
    wrong = labelled.mistakes(np.where(GAME.legal(state), guess.logits_BA, -np.inf).argmax(1))
    value, result = guess.value_B * (1 - 2 * GAME.mover(state)), labelled.values_BA.max(1)
    return {
        "positions": len(values),
        "parameters": sum(p.numel() for p in family.parameters()),
        "steps": steps,
        "mistakes": {phase: float(wrong[labelled.phase_B == phase].mean()) for phase in PHASES},
        "correlation": {
            phase: float(np.corrcoef(value[labelled.phase_B == phase], result[labelled.phase_B == phase])[0, 1])
            for phase in PHASES
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "judge", "ceiling"))
    parser.add_argument("settings", nargs="*", help="of the recipe; of `judge` the run")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--games", type=int, default=200, help="a match; 0: none")
    parser.add_argument("--openings", action="store_true", help="`ceiling`: positions of 4 to 11 stones")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_intermixed_args()
    held = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
    what = f"{asked.what} of openings" if asked.openings else asked.what
    key = ", ".join([what, f"{asked.minutes:g} minutes", f"seed {asked.seed}", *asked.settings])
    if asked.what == "ceiling":
        held[key] = ceiling(asked)
    else:
        run = Run.open(asked.settings[0]) if asked.what == "judge" else trained(asked)
        last = run.metrics("step")[-1]
        told = {"steps": last["step"], "seconds": last["seconds"], "games": sum(h["games"] for h in health(run.path))}
        held[key] = {**told, **judged(run, asked.games)}
    record("connect_four", held, asked.results)
    print(json.dumps({name: value for name, value in held[key].items() if name != "health"}, indent=1))


if __name__ == "__main__":
    main()
