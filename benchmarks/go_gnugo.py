"""Go on a small board against GNU Go: how often a player that learned from nothing wins, by colour, in Elo.

    python benchmarks/go_gnugo.py RUN --level 10 --games 100 --simulations 400

GNU Go (Debian: gnugo) plays by area scoring with superko, to the end (games/gtp.py: GNU_GO says how). Both colours,
the same openings (none by default: then our moves are drawn with noise, so that games differ). Results are merged into
benchmarks/results/go_gnugo.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from peers import ROOT, record

from nomoat import playing
from nomoat.evaluate.figure import wilson
from nomoat.games.gtp import GNU_GO
from nomoat.games.match import EnginePlayer, elo, match


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--level", type=int, default=10)
    parser.add_argument("--games", type=int, default=100)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--openings", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "go_gnugo.json")
    asked = parser.parse_args()
    program = shutil.which("gnugo") or "/usr/games/gnugo"
    command = GNU_GO.replace("gnugo", program, 1) + f" --level {asked.level} --seed {asked.seed}"
    with (
        playing.seated(asked.run, asked.simulations) as seat,
        EnginePlayer(command, seat.game, 2, name="GNU Go") as gnu,
    ):
        if not asked.openings:
            seat.player.noise = np.random.default_rng(asked.seed)
        result = match(seat.game, seat.player, gnu, asked.games, asked.seed, asked.openings)
        name = f"{seat.game.name}, level {asked.level}, {asked.simulations} simulations"
    figures = {"elo": list(elo(result)), "forfeits": result.forfeits(), "stopped": result.stopped}
    for colour, first in (("black", True), ("white", False)):
        won, drawn, lost = result.counts(first)
        figures[colour] = {"won": won, "drawn": drawn, "lost": lost, "share": list(wilson(won, won + drawn + lost))}
    held = json.loads(asked.results.read_text())["figures"] if asked.results.exists() else {}
    held[name] = figures
    record("go_gnugo", held, asked.results)
    print(json.dumps({name: figures}, indent=1))


if __name__ == "__main__":
    main()
