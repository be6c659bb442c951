"""Conversations with GNU Go, the reference implementation of GTP 2, by both sides of ours."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest
from engines import ours

from nomoat.games.go import Go
from nomoat.games.gtp import COLOURS, GNU_GO, Engine, EngineError, RefusedError
from nomoat.games.gtp_engine import fixed_places, serve
from nomoat.games.match import EnginePlayer, Random, match
from nomoat.games.rules import random_actions

PROGRAM = shutil.which("gnugo", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/games")))
COMMAND = f"{PROGRAM} {GNU_GO.removeprefix('gnugo ')} --level 1 --seed 1 --never-resign"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="GNU Go is not installed: apt-get install gnugo")


@pytest.fixture(scope="module")
def gnugo():
    with Engine(COMMAND) as engine:
        assert engine.name() == "GNU Go 3.8"
        yield engine


@pytest.mark.parametrize("size", [5, 7, 9])
def test_it_holds_the_same_moves_legal_all_through_a_game(gnugo, size) -> None:
    """Random moves: many stones are taken, and positions come again, which superko forbids."""
    game, rng = Go(size, 7), np.random.default_rng(size)
    gnugo.set_up(game, needs=["play", "genmove", "undo"])
    state_B = game.start(1)
    while not game.outcome(state_B).over_B[0]:
        colour, legal_A = COLOURS[int(game.mover(state_B)[0])], game.legal(state_B)[0]
        held = {game.parse(point) for point in gnugo.ask(f"all_legal {colour}").split()} | {game.parse("pass")}
        assert held == set(np.flatnonzero(legal_A).tolist()), game.show(state_B[0])
        action_B = random_actions(game, state_B, rng)
        gnugo.play(colour, game.spell(int(action_B[0])))
        state_B = game.step(state_B, action_B)


@pytest.mark.parametrize("size", [5, 7, pytest.param(9, marks=pytest.mark.slow)])
def test_it_plays_a_whole_game_and_counts_as_we_do(gnugo, size) -> None:
    game = Go(size, 7)
    gnugo.set_up(game)
    state_B = game.start(1)
    while not game.outcome(state_B).over_B[0]:
        state_B = game.step(state_B, np.array([gnugo.move(game, state_B)]))
    assert state_B["ply"][0] > size
    assert gnugo.final_score() == game.score(state_B)[0]


def test_it_plays_matches_against_random_and_against_our_engine(tmp_path) -> None:
    game = Go(5, 7)
    with EnginePlayer(COMMAND, game, processes=2, name="gnugo") as gnugo:
        result = match(game, gnugo, Random(game), 2, seed=2, openings=2)
        assert (result.stopped, result.forfeits(), len(result.games)) == ("", (0, 0), 2)
        assert result.pairs() == [1]
        chooser = "lambda state_B: int(random_actions(game, state_B, rng)[0])"
        with EnginePlayer(ours(tmp_path, "Go(5, 7)", chooser), game, name="ours") as piped:
            result = match(game, piped, gnugo, 2, openings=2)
    assert (result.stopped, result.forfeits(), len(result.games)) == ("", (0, 0), 2)


def test_errors_in_its_words(gnugo) -> None:
    gnugo.set_up(Go(5, 7))
    gnugo.play("black", "C3")
    with pytest.raises(EngineError, match=r"does not take white's move C3. it says: illegal move"):
        gnugo.play("white", "C3")
    with pytest.raises(RefusedError, match=r"refuses `boardsize 26`. it says: unacceptable size"):
        gnugo.ask("boardsize 26")


def test_fixed_handicaps_stand_where_it_puts_them(gnugo) -> None:
    """But for 12 x 12, where it departs from the specification: the fourth line begins at 13."""
    for size in (7, 8, 9, 10, 11, 13, 14, 19):
        for count in range(2, 10 if size % 2 and size > 7 else 5):
            gnugo.set_up(Go(size, 0))
            assert set(fixed_places(size, count)) == set(gnugo.ask(f"fixed_handicap {count}").split()), (size, count)
    gnugo.set_up(Go(12, 0))
    assert gnugo.ask("fixed_handicap 2").split() != fixed_places(12, 2)


SAME = """
protocol_version; boardsize 5; boardsize 30; boardsize x; komi 6.5; komi x; clear_board; play b C3; play white c3;
play w D4 # two; play w C4; play B pass; play b F1; play red A1; play b; undo; undo; undo; undo; undo; undo; xyz; NAME;
known_command genmove; known_command xyz; set_free_handicap A1 C3; set_free_handicap B1 C2; undo;
clear_board; set_free_handicap A1 A1; set_free_handicap A1 pass; fixed_handicap 2; time_settings 60 10 1;
time_left b 60 0; final_score; quit
"""


def test_both_answer_and_refuse_the_same() -> None:
    """Only whether: what is said of a refusal is not in the specification."""
    lines = [f"{number} {line.strip()}" for number, line in enumerate(SAME.split(";"))]
    stdout = io.StringIO()
    serve(Go(5, 6.5), lambda _: 0, [line + "\n" for line in lines], stdout, io.StringIO())
    said = [answer.split() for answer in stdout.getvalue().split("\n\n")[:-1]]
    with Engine(COMMAND) as gnugo:
        for line, answer in zip(lines, said, strict=True):
            number, _, command = line.partition(" ")
            try:
                text, mark = gnugo.ask(command.partition("#")[0].strip()), "="
            except RefusedError as error:
                text, mark = error.why, "?"
            assert answer[0] == mark + number, (line, text)
            if command.partition("_")[0] in ("known", "protocol"):
                assert answer[1:] == text.split() or mark == "?", line
