"""A player from nothing, and games against it: the commands, a person who types, GTP, matches, what goes wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_guides import own_game

from nomoat import playing, selfplaying
from nomoat.cli.output import Lines
from nomoat.cli.playing import play
from nomoat.core.errors import ConfigError
from nomoat.core.run import Run, load
from nomoat.families.alphazero import AlphaZero, Tower
from nomoat.games.connect_four import ConnectFour
from nomoat.games.match import match
from nomoat.games.tic_tac_toe import TicTacToe
from nomoat.nn.backbone import Backbone
from nomoat.search import replay
from nomoat.search.players import Searcher, playouts, thought
from nomoat.train.loop import train

SMALL = ("data.manner.simulations=6", "data.games=8", "data.every=4", "family.trunk.width=8", "family.trunk.depth=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A player of tic-tac-toe after a few steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NOMOAT_RUNS", str(tmp_path_factory.mktemp("runs")))
        patched.setattr(selfplaying, "PLAYOUTS", (10,))
        patched.setattr(selfplaying, "GAMES", 8)
        yield selfplaying.selfplay("tic-tac-toe", "6steps", changes=SMALL)


def test_a_player_has_a_ladder_a_health_panel_and_a_card(run: Run) -> None:
    report = json.loads((run.path / "report.json").read_text())
    assert {rung["name"] for rung in report["ladder"]} >= {"random", "raw policy", "searched 64", "10 playouts"}
    assert set(report["lost"]) == {"raw policy", "searched 64"}
    assert report["health"][0]["games"] > 0
    card = (run.path / "card.md").read_text()
    assert "How strong" in card
    assert "Elo above a random player" in card


def test_a_game_of_ones_own_is_played_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "nim.py"
    file.write_text(own_game())
    changes = ("data.manner.simulations=8", "data.games=16", "family.trunk.width=8", "data.manner.openings=0")
    made = selfplaying.selfplay(str(file), "40steps", changes=(*changes, "data.workers=0"))
    family = load(made)
    state = family.game.step(family.game.start(1), np.array([0]))
    assert Searcher(family.game, family.guess, 100).choose(None, state) == [1]  # of six matches two: four are lost


def test_a_game_of_open_spiel_is_learned_and_its_states_are_kept(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pyspiel", reason="the extra `games` is not installed")
    changes = ("data.manner.simulations=4", "data.games=6", "family.trunk.width=8", "data.every=3", "data.workers=0")
    made = selfplaying.selfplay("open-spiel:hex(board_size=3)", "8steps", changes=changes)
    family = load(made)
    parts = sorted((made.path / "games").glob("part-*"))
    held = replay.load(parts[0], family.game)
    assert len(parts) == 3
    assert held["state"].dtype == object
    assert family.game.legal(held["state"]).any(1).all()
    tables = replay.load(max((made.path / "games").glob("table-*"), key=replay.number), family.game)
    assert len(tables["state"]) == 6


def typed(run: Run, text: str, *options: str) -> str:
    result = CliRunner().invoke(play, [str(run.path), "--simulations", "20", *options], input=text, obj=Lines())
    assert result.exception is None, result.output
    return result.output


def test_a_person_types_moves_and_what_is_wrong_is_said(run: Run) -> None:
    said = typed(run, "a1\na1\nz9\n\nhint\nundo\nquit\n")
    assert "a1 is not legal here" in said
    assert "'z9' is no move" in said
    assert "I would play" in said
    assert "to win" in said or "whatever the other does" in said
    assert "X . ." in said
    assert typed(run, "quit\n", "--second").count("your move") == 1
    assert "your move" in typed(run, "")  # the end of the input ends the game


def test_a_game_is_played_to_its_end(run: Run) -> None:
    board = playing.Board
    with playing.seated(run, 30) as seat:
        table = board(seat)
        while not table.over:
            legal = np.flatnonzero(seat.game.legal(table.state)[0])
            mine = int(seat.game.mover(table.state)[0]) == 0
            table.play(int(legal[0]) if mine else table.think().action)
        assert table.result(0) == -table.result(1)
        with pytest.raises(ConfigError, match="not legal"):
            table.play(0)
        table.undo(100)
        assert len(table.states) == 1


def test_gtp_is_spoken_at_the_command_line(run: Run) -> None:
    asked = "1 name\ngenmove black\nplay white zz\nshowboard\nquit\n"
    out, aside = io.StringIO(), io.StringIO()
    with playing.seated(run, 10) as seat:
        playing.speak_gtp(seat, io.StringIO(asked), out, aside)
    answers = out.getvalue().split("\n\n")
    assert answers[0].startswith("=1 nomoat")
    assert answers[1].startswith("= ")
    assert answers[2].startswith("? illegal move")
    assert "X" in answers[3]
    assert "to win" in aside.getvalue() or "whatever" in aside.getvalue()


def test_matches_against_random_playouts_a_run_and_a_program_that_is_not_there(run: Run) -> None:
    with playing.seated(run, 60) as seat:
        won, _, lost = playing.against(seat, "random", 20).counts()
        assert won > lost
        assert sum(playing.against(seat, "playouts:5", 4, openings=1).counts()) == 4
        assert sum(playing.against(seat, run.name, 4, openings=2).counts()) == 4
        with pytest.raises(Exception, match="no program"):
            playing.against(seat, "no-such-engine --gtp", 2)
        with pytest.raises(ConfigError, match="match of 3"):
            playing.against(seat, "random", 3)
    said = typed(run, "", "--opponent", "random", "--games", "4", "--openings", "1")
    assert "Elo" in said
    assert "moving first" in said


def test_more_playouts_play_better() -> None:
    game = ConnectFour(4, 5, 3)
    won, _, lost = match(game, playouts(game, 200), playouts(game, 5), 20, openings=2).counts()
    assert won > lost + 5


def test_what_a_search_thinks_is_told_from_the_movers_side() -> None:
    game = TicTacToe()
    state = game.start(1)
    for action in (0, 3, 1, 4):
        state = game.step(state, np.array([action]))
    planned = Searcher(game, lambda s: playouts(game, 1).value(s), 30).planned(state)
    found = thought(game, planned, state)
    assert (found.action, found.known, found.won) == (2, 1.0, 1.0)
    assert found.said(game).startswith("c1: won")


@pytest.mark.parametrize("trunk", [Tower(8, 1), Backbone(width=32, depth=1, heads=2, causal=False, position_axes=2)])
def test_both_trunks_learn_what_they_are_shown(trunk) -> None:
    import torch

    torch.manual_seed(0)
    game, chance = ConnectFour(), np.random.default_rng(0)
    family, state = AlphaZero(game, trunk).build({}), game.start(128)
    for _ in range(7):
        state = game.step(state, chance.integers(7, size=128))
    planes = torch.from_numpy(game.observe(state))
    fullest = planes.sum((1, 2)).argmax(1)
    batch = {
        "planes": planes,
        "legal": torch.ones(128, 7, dtype=torch.bool),
        "policy": torch.nn.functional.one_hot(fullest, 7).float(),
        "policy_mask": torch.ones(128),
        "value": (fullest > 3).float() * 2 - 1,
    }
    optimizer = torch.optim.Adam(family.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = family.loss(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
    assert float(loss.total.detach() / loss.count) < 0.5 * family.first_loss(batch)


def test_what_cannot_be_played(run: Run, tmp_path: Path) -> None:
    for game, said in (("chess2", "no game"), ("go:3", "3"), ("connect-four:9x9", "bits"), ("", "no game")):
        with pytest.raises(ConfigError, match=said):
            selfplaying.selfplay(game, "1steps")
    for budget in ("0s", "nothing"):
        with pytest.raises(ConfigError, match="budget"):
            selfplaying.selfplay("tic-tac-toe", budget)
    with pytest.raises(ConfigError, match="simulations"), playing.seated(run, -1):
        pass
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="no game"):
        selfplaying.selfplay(str(tmp_path / "empty.py"), "1steps")


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_leaves_a_good_checkpoint_and_a_card(tmp_path: Path, workers: int) -> None:
    command = [sys.executable, "-m", "nomoat.cli", "selfplay", "tic-tac-toe", "--budget", "100000steps"]
    command += [*SMALL, "--workers", str(workers)]
    environment = {**os.environ, "NOMOAT_RUNS": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.glob("*/metrics.jsonl"))) or '"kind":"step"' not in found[0].read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    run = Run.open(found[0].parent)
    assert run.status == "stopped"
    assert (run.path / "card.md").exists()
    games = len(list((run.path / "games").glob("part-*")))
    assert games > 0
    family = load(run)
    assert hasattr(family, "guess")
    steps = max(event["step"] for event in run.metrics("keep"))

    def stop(event) -> None:
        if event["kind"] == "step" and event["step"] >= steps + 5:
            raise KeyboardInterrupt

    run.watch = stop
    with pytest.raises(KeyboardInterrupt):  # it went on from there
        train(run.recipe, run)
    assert len(list((run.path / "games").glob("part-*"))) >= games - 1
