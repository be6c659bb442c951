"""The labelled connect-four positions: how they were drawn, and what simple players get wrong on them.

    python benchmarks/connect_four/positions.py make        # 17 CPU minutes; keeps the strata that are there
    python benchmarks/connect_four/positions.py controls    # seconds -> results/connect_four_controls.json
    python benchmarks/connect_four/positions.py check       # 4 CPU minutes, 3 of them for the empty board

`check` asks bitbully, which is AGPL and so no dependency: pip install bitbully bitbully-databases.

noisy games -> a position at the stratum's stones -> no win at once? new? -solver-> a mistake possible? -> positions.csv

400 positions a phase: opening 4 to 13 stones, middle 14 to 25, end 26 to 38. Each number of stones is one stratum of
equal size (the first ones of a phase take one more where it does not divide), drawn from its own seed. Each position is
from its own game. In a game both players look 4 plies ahead, but with a chance of `NOISE`, drawn once a game, they play
any legal move instead. A position counts if the game is not over, the mover has no win at once, and its legal moves
do not all lead to the same value. No two are equal or mirror images.

positions.csv has the phase, the moves from the empty board (columns 1 to 7), and for each column what a stone there
leads to for the one who moves: W win, D draw, L loss if nobody errs, "." if the column is full.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from connect_four.play import COLUMNS, HERE, ILLEGAL, PHASES, VALUES, Array, Solver, board_after, load, positions
from peers import record

FILE = HERE / "positions.csv"
A_PHASE = 400
LOOK_AHEAD = 4
NOISE = (0.1, 0.2, 0.4, 0.7)
SEED = 2026
LETTERS = {value: letter for letter, value in VALUES.items()}


def noisy_game(solver: Solver, stones: int, rng: np.random.Generator) -> list[int] | None:
    """The moves of a game up to so many stones, or None if it ended earlier or the next stone could win."""
    noise, moves = rng.choice(NOISE), list[int]()
    while True:
        board_1YX = board_after(moves)[None]
        wins_A = solver.wins(board_1YX)[0]
        if len(moves) == stones:
            return None if wins_A.any() else moves
        if rng.random() < noise:
            x = int(rng.choice(np.flatnonzero(board_1YX[0, 0] == 0)))
        else:
            x = int(solver.alphabeta(board_1YX, LOOK_AHEAD, int(rng.integers(2**32)))[0])
        if wins_A[x]:
            return None
        moves.append(x)


def stratum(solver: Solver, stones: int, wanted: int) -> tuple[list[str], dict[str, float]]:
    """Lines of the file for so many positions with so many stones, and what they took."""
    rng, lines, seen = np.random.default_rng([SEED, stones]), list[str](), set[bytes]()
    phase = next(name for name, range_ in PHASES.items() if stones in range_)
    spent = {"stones": stones, "labelled": 0, "seconds": 0.0, "searched": -solver.searched}
    while len(lines) < wanted:
        moves = noisy_game(solver, stones, rng)
        if moves is None or (board_YX := board_after(moves)).tobytes() in seen:
            continue
        seen |= {board_YX.tobytes(), board_YX[:, ::-1].tobytes()}
        began = time.process_time()
        values_A = solver.values(board_YX[None])[0]
        spent["seconds"] += time.process_time() - began
        spent["labelled"] += 1
        if len({*values_A.tolist()} - {ILLEGAL}) > 1:
            played, letters = "".join(str(x + 1) for x in moves), "".join(LETTERS[value] for value in values_A.tolist())
            lines.append(f"{phase},{played},{letters}")
    spent |= {"seconds": round(spent["seconds"], 3), "searched": spent["searched"] + solver.searched}
    return lines, spent


def make(table_bits: int) -> None:
    """Writes positions.csv, from the most stones to the fewest; if it began from nothing, records what each took."""
    solver, strata = load(table_bits), []
    lines = FILE.read_text(encoding="ascii").split()[1:] if FILE.exists() else []
    there = {len(line.split(",")[1]) for line in lines}
    for range_ in reversed(PHASES.values()):
        for number, stones in reversed([*enumerate(range_)]):
            if stones in there:
                continue
            fresh, spent = stratum(solver, stones, (A_PHASE + len(range_) - 1 - number) // len(range_))
            strata.append(spent)
            print(spent, flush=True)
            lines = fresh + lines
            FILE.write_text("\n".join(["phase,moves,values", *lines]) + "\n", encoding="ascii")
    if not there:
        record("connect_four_positions", {"table_bits": table_bits, "noise": NOISE, "seed": SEED, "strata": strata})


def rate(wrong_B: Array) -> dict[str, float]:
    """Percent, and its standard error over the positions."""
    error = wrong_B.std(ddof=1) / len(wrong_B) ** 0.5
    return {"percent": round(100 * float(wrong_B.mean()), 1), "standard_error": round(100 * float(error), 1)}


def controls(seeds: int) -> None:
    """How often players err that know nothing: a uniform one (its expectation), alpha-beta (mean over seeds)."""
    solver, labelled = load(), positions()
    legal_BA = labelled.values_BA != ILLEGAL
    worse_BA = legal_BA & (labelled.values_BA < labelled.values_BA.max(1, keepdims=True))
    wrong = {"uniform": worse_BA.sum(1) / legal_BA.sum(1)}
    for depth in (3, 5, 7):
        tries = [labelled.mistakes(solver.alphabeta(labelled.boards_BYX, depth, seed)) for seed in range(seeds)]
        wrong[f"alpha-beta {depth}"] = np.mean(tries, axis=0)
    figures = {
        name: {phase: rate(wrong_B[labelled.phase_B == phase]) for phase in PHASES} for name, wrong_B in wrong.items()
    }
    record("connect_four_controls", {"positions_a_phase": A_PHASE, "seeds": seeds, "mistakes": figures})


def check(count: int) -> None:
    """Compares labels with a solver that is not ours, and shows ours on the empty board."""
    from bitbully import BitBully, Board

    other, labelled, wrong = BitBully(), positions(), 0
    chosen = np.linspace(0, len(labelled.moves) - 1, count).astype(int).tolist()
    for number in chosen:
        scores = other.score_all_moves(Board(labelled.moves[number]))
        theirs = [int(np.sign(scores[x])) if x in scores else ILLEGAL for x in range(COLUMNS)]
        wrong += theirs != labelled.values_BA[number].tolist()
    print(f"{wrong} of {count} positions have another label")
    began, solver = time.process_time(), load(27)
    print("empty board:", solver.values(board_after([])[None])[0].tolist(), f"in {time.process_time() - began:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "controls", "check"))
    parser.add_argument("--table-bits", type=int, default=27, help="make: the table takes 2^(bits + 3) bytes")
    parser.add_argument("--seeds", type=int, default=16, help="controls: how often each player draws its lots")
    parser.add_argument("--count", type=int, default=200, help="check: how many positions")
    chosen = parser.parse_args()
    if chosen.what == "make":
        make(chosen.table_bits)
    elif chosen.what == "controls":
        controls(chosen.seeds)
    else:
        check(chosen.count)


if __name__ == "__main__":
    main()
