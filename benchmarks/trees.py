"""Simulations a second of the search trees, connect four, one thread: ours, and Python's trees of the peers.

    python benchmarks/trees.py --rounds 5 [--alpha-zero-general FOLDER]

FOLDER is a checkout of suragnair/alpha-zero-general (MIT). Cases take turns in one process: our trees without a network
and with one of 50,000 parameters (a cache of its guesses that begins empty at each search); OpenSpiel's Python MCTS and
alpha-zero-general's, one game at a time as they are made, with the same network, weights and precision, from the same
positions and with as many simulations a move. A simulation is one way down the tree. Results:
benchmarks/results/trees.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peers import ROOT, record, spread

from nomoat.core.device import autocast, bf16_is_faster
from nomoat.families.alphazero import AlphaZero, Tower
from nomoat.games.connect_four import ConnectFour
from nomoat.search.cache import Cached
from nomoat.search.planning import plan, uniform
from nomoat.search.selection import PUCT, Gumbel
from nomoat.search.tree import Trees

GAME, SIMULATIONS, GAMES, PEER_GAMES = ConnectFour(threats=False), 32, 512, 6  # peers see stones alone


def positions(count: int) -> tuple[Any, list[list[int]]]:
    """Positions after some random plies, and the moves that led to them."""
    chance, state, moves = np.random.default_rng(0), GAME.start(count), [[] for _ in range(count)]
    for ply in range(8):
        going = np.flatnonzero(np.arange(count) % 8 >= ply)
        legal = GAME.legal(state[going])
        action = (legal * chance.random(legal.shape)).argmax(1)
        after = GAME.step(state[going], action)
        keep = ~GAME.outcome(after).over_B
        state[going[keep]] = after[keep]
        for row, each in zip(going[keep], action[keep], strict=True):
            moves[row].append(int(each))
    return state, moves


def ours(state: Any, value: Any, rule: Any) -> float:
    """Simulations a second of one search of all positions."""
    began = time.perf_counter()
    plan(Trees(GAME, state, value, SIMULATIONS + 1), rule, SIMULATIONS)
    return len(state) * SIMULATIONS / (time.perf_counter() - began)


def open_spiel(moves: list[list[int]], player: Any) -> float:
    """OpenSpiel's MCTSBot in Python, whose evaluator asks the network about one state at a time."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    class Evaluator(mcts.Evaluator):
        def __init__(self) -> None:
            self.held: dict[str, Any] = {}

        def _asked(self, state: Any) -> Any:
            key = str(state)
            if key not in self.held:
                board = GAME.start(1)
                for action in state.history():
                    board = GAME.step(board, np.array([action]))
                self.held[key] = player.guess(board)
            return self.held[key]

        def evaluate(self, state: Any) -> Any:
            value = float(self._asked(state).value_B[0])
            return np.array([value, -value])

        def prior(self, state: Any) -> Any:
            logits = self._asked(state).logits_BA[0]
            legal = state.legal_actions()
            share = np.exp(logits[legal] - logits[legal].max())
            return list(zip(legal, share / share.sum(), strict=True))

    game = pyspiel.load_game("connect_four")
    states = []
    for line in moves:
        state = game.new_initial_state()
        for action in line:
            state.apply_action(action)
        states.append(state)
    began = time.perf_counter()
    for state in states:
        mcts.MCTSBot(
            game, 1.5, SIMULATIONS, Evaluator(), solve=True, child_selection_fn=mcts.SearchNode.puct_value
        ).mcts_search(state)
    return len(states) * SIMULATIONS / (time.perf_counter() - began)


def alpha_zero_general(moves: list[list[int]], player: Any, folder: Path) -> float:
    """alpha-zero-general's MCTS over its own rules."""
    sys.path.insert(0, str(folder))
    from connect4.Connect4Game import Connect4Game
    from MCTS import MCTS

    class Network:
        def predict(self, board: Any) -> Any:
            planes = torch.from_numpy(np.stack((board == 1, board == -1))[None].astype(np.float32))
            with torch.inference_mode():
                logits, value = player(planes)
            return logits[0].float().softmax(0).numpy(), float(2 * value.float().sigmoid()[0] - 1)

    game, boards = Connect4Game(), []
    for line in moves:
        board, mover = game.getInitBoard(), 1
        for action in line:
            board, mover = game.getNextState(board, mover, action)
        boards.append(game.getCanonicalForm(board, mover))
    began = time.perf_counter()
    for board in boards:
        MCTS(game, Network(), SimpleNamespace(numMCTSSims=SIMULATIONS, cpuct=1.5)).getActionProb(board)
    return len(boards) * SIMULATIONS / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alpha-zero-general", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "trees.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    player = AlphaZero(GAME, Tower(32, 2)).build({}).eval()
    for output in (player.policy_output, player.value_output):
        torch.nn.init.normal_(output.weight, std=0.1)
    device = torch.device("cpu")
    precision = "bf16" if bf16_is_faster(device, 4096, 288).yes else "fp32"
    state, moves = positions(GAMES)
    few = moves[: PEER_GAMES * 8 : 8] + moves[7 : PEER_GAMES * 8 : 8]
    cases: dict[str, Any] = {
        "ours, gumbel, no network": lambda: ours(state, uniform(7), Gumbel()),
        "ours, puct, no network": lambda: ours(state, uniform(7), PUCT()),
        "ours, gumbel, network": lambda: ours(state, Cached(GAME, player.guess), Gumbel()),
        "ours, puct, network": lambda: ours(state, Cached(GAME, player.guess), PUCT()),
        "ours, puct, network, one game": lambda: ours(state[:1], Cached(GAME, player.guess), PUCT()),
        "OpenSpiel, Python": lambda: open_spiel(few, player),
    }
    if asked.alpha_zero_general is not None:
        cases["alpha-zero-general"] = lambda: alpha_zero_general(few, player, asked.alpha_zero_general)
    rates: dict[str, list[float]] = {name: [] for name in cases}
    with autocast(device, precision):
        for _ in range(asked.rounds + 1):
            for name, case in cases.items():
                rates[name].append(case())
    figures: dict[str, Any] = {"precision": precision, "parameters": sum(p.numel() for p in player.parameters())}
    figures["rates"] = {name: spread(each[1:]) for name, each in rates.items()}  # the first round warms up
    best = rates["ours, puct, network"][1:]
    for peer in ("OpenSpiel, Python", "alpha-zero-general"):
        if peer in rates:
            ratios = [a / b for a, b in zip(best, rates[peer][1:], strict=True)]
            figures[f"ours / {peer}"] = spread(ratios)
    record("trees", figures, asked.results)
    for name, each in figures.items():
        print(name, each)


if __name__ == "__main__":
    main()
