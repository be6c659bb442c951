"""The Go Text Protocol as an engine speaks it: what the specification says of each command, and of each bad one."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nomoat
from nomoat.core.errors import ConfigError
from nomoat.games.go import Go
from nomoat.games.gtp import RESIGN
from nomoat.games.gtp_engine import Chosen, fixed_places, serve
from nomoat.games.tic_tac_toe import TicTacToe

GO = Go(5, 7)


def first_legal(state_B):
    return int(GO.legal(state_B)[0].argmax())


def answers(*lines: str, game=GO, chooser=first_legal) -> list[str]:
    """Each answer, without the empty line that ends it; what was put on standard error is the last."""
    stdout, stderr = io.StringIO(), io.StringIO()
    serve(game, chooser, [line + "\n" for line in lines], stdout, stderr)
    said = stdout.getvalue().split("\n\n")
    assert said.pop() == ""
    return [*said, stderr.getvalue()]


def test_the_form_of_commands_and_answers() -> None:
    lines = ("", "  \t", "# a remark", "12 name # who", "\t7\tprotocol_version\r", "name", "na\x07me", "3 quit", "name")
    assert answers(*lines) == [
        "=12 nomoat", "=7 2", "= nomoat", "= nomoat", "=3", ""
    ]  # fmt: skip


def test_what_it_is_and_knows() -> None:
    name, version, listed, known, unknown, *_ = answers(
        "name", "version", "list_commands", "known_command genmove", "known_command loadsgf"
    )
    assert (name, version, known, unknown) == ("= nomoat", f"= {nomoat.__version__}", "= true", "= false")
    required = "protocol_version name version known_command list_commands quit boardsize clear_board komi play genmove"
    tournament = "fixed_handicap set_free_handicap time_settings time_left undo final_score showboard"
    assert set(listed[2:].split("\n")) == {*required.split(), *tournament.split()}


def test_commands_that_are_wrong() -> None:
    assert answers("5 loadsgf x", "6", "NAME", "99999999999 name") == ["?5 unknown command", "?6 unknown command"] + [
        "? unknown command"
    ] * 2 + [""]
    for line in ("known_command", "boardsize", "boardsize x", "komi", "komi nan", "komi x", "play", "play b", "genmove",
                 "play red a1", "genmove 1", "time_settings 1 2", "time_settings 1 2 x", "time_left b 3",
                 "fixed_handicap", "fixed_handicap 2.5",
                 "set_free_handicap"):  # fmt: skip
        assert answers(f"4 {line}") == ["?4 syntax error", ""], line


def test_a_session() -> None:
    """The one of GNU Go's manual, on a smaller board."""
    said = answers(
        "1 boardsize 5", "2 clear_board", "3 play black D5", "4 genmove white", "5 play black A5", "6 play black E3",
        "7 showboard", "8 quit",
    )  # fmt: skip
    assert said[:6] == ["=1", "=2", "=3", "=4 A5", "?5 illegal move", "=6"]
    assert said[6] == "=7 \n   A B C D E\n 5 O . . X .\n 4 . . . . .\n 3 . . . . X\n 2 . . . . .\n 1 . . . . ."
    assert said[7:] == ["=8", ""]


@pytest.mark.parametrize("colour", ["b", "B", "black", "Black", "w", "white", "WHITE"])
def test_colours_and_moves_in_any_spelling(colour) -> None:
    assert answers(f"play {colour} c3", f"play {colour} C3", f"play {colour} PASS") == ["=", "? illegal move", "=", ""]


@pytest.mark.parametrize("move", ["F1", "A6", "I3", "A0", "33", "resign", "Z25"])
def test_moves_off_the_board(move) -> None:
    assert answers(f"play b {move}")[0] == "? illegal move"


def test_a_colour_may_play_twice_and_undo_takes_back_its_move_alone() -> None:
    assert answers("play w A1", "play w B1", "undo", "play b B1", "showboard", "undo", "undo", "undo")[2:] == [
        "=", "=", "= \n   A B C D E\n 5 . . . . .\n 4 . . . . .\n 3 . . . . .\n 2 . . . . .\n 1 O X . . .", "=", "=",
        "? cannot undo", "",
    ]  # fmt: skip


def test_the_one_who_is_asked_moves_whoever_moved_before() -> None:
    seen = []

    def chooser(state_B):
        seen.append(int(GO.mover(state_B)[0]))
        return first_legal(state_B)

    assert answers("genmove w", "genmove w", "genmove b", "genmove b", chooser=chooser)[:4] == [
        "= A5", "= B5", "= C5", "= D5"
    ]  # fmt: skip
    assert seen == [1, 1, 0, 0]


def test_a_game_that_is_over() -> None:
    over = ["play b C3", "play w pass", "play b pass"]
    assert answers(*over, "play w A1", "genmove w", "genmove b", "final_score")[3:] == [
        "? illegal move", "= pass", "= pass", "= B+18", ""
    ]  # fmt: skip
    assert answers(*over, "genmove w", "undo", "undo", "genmove b")[3:] == ["= pass", "=", "=", "= A5", ""]
    assert answers("play b pass", "genmove b") == ["=", "= pass", ""]  # white's pass between ends it


def test_what_the_chooser_says_and_how_it_gives_up() -> None:
    said = [Chosen(12, "C3: 7 visits\nA1: 1 visit\n"), Chosen(RESIGN, "lost"), RESIGN, Chosen(12, "again"), 99, 3]
    assert answers(*["genmove b", "genmove w"] * 3, chooser=lambda _: said.pop(0)) == [
        "= C3", "= resign", "= resign", "? no legal move was chosen", "? no legal move was chosen", "= D5",
        "C3: 7 visits\nA1: 1 visit\nlost\nagain\n",
    ]  # fmt: skip


def test_a_chooser_that_cannot() -> None:
    def chooser(_):
        raise ConfigError("there are no weights", "none were found")

    assert answers("1 genmove b", "2 name", chooser=chooser) == [
        "?1 there are no weights. none were found",
        "=2 nomoat",
        "",
    ]


def test_boardsize_is_the_games_and_clears_the_board() -> None:
    board = "= \n   A B C D E" + "".join(f"\n {row} . . . . ." for row in (5, 4, 3, 2, 1))
    assert answers("play b C3", "boardsize 6", "boardsize 5", "showboard", "undo") == [
        "=", "? unacceptable size", "=", board, "? cannot undo", ""
    ]  # fmt: skip


def test_komi_is_for_the_score() -> None:
    *said, aside = answers(
        "final_score", "komi 3.5", "komi 3.5", "final_score", "play b C3", "final_score", "komi 25", "final_score"
    )
    assert said == ["= W+7", "=", "=", "= W+3.5", "=", "= B+21.5", "=", "= 0"]
    assert aside.splitlines()[0] == "komi 3.5 is for the score alone: moves are still chosen for 7"
    assert len(aside.splitlines()) == 2


def test_clocks_are_read() -> None:
    assert answers("time_settings 600 30 5", "time_left b 12 0", "genmove b") == ["=", "=", "= A5", ""]


def test_handicaps() -> None:
    assert answers("set_free_handicap C3 d4 A1", "showboard", "undo", "genmove w", "undo", "undo") == [
        "=", "= \n   A B C D E\n 5 . . . . .\n 4 . . . X .\n 3 . . X . .\n 2 . . . . .\n 1 X . . . .", "? cannot undo",
        "= A5", "=", "? cannot undo", "",
    ]  # fmt: skip
    for places in ("C3", "C3 C3", "C3 pass", "C3 F9", "C3 x"):
        assert answers(f"set_free_handicap {places}", "play b A1") == ["? bad vertex list", "=", ""], places
    for command in ("set_free_handicap A1 B1", "fixed_handicap 2"):
        assert answers("play b C3", command) == ["=", "? board not empty", ""]
        assert answers("set_free_handicap C3 D4", command) == ["=", "? board not empty", ""]
        assert answers("set_free_handicap C3 D4", "clear_board", "set_free_handicap A1 B1") == ["=", "=", "=", ""]
    assert answers("fixed_handicap 2", "showboard")[0] == "? invalid number of stones"  # 5 x 5
    assert answers("fixed_handicap 4", "fixed_handicap 4", game=Go(9)) == ["= C3 G7 C7 G3", "? board not empty", ""]
    for count in ("1", "10", "-2"):
        assert answers(f"fixed_handicap {count}", game=Go(9))[0] == "? invalid number of stones", count


def test_where_fixed_handicaps_stand() -> None:
    """The table of the specification's section 4.1.1, for 19 x 19."""
    four = "D4 Q16 D16 Q4"
    assert [" ".join(fixed_places(19, count)) for count in range(2, 10)] == [
        "D4 Q16", "D4 Q16 D16", four, f"{four} K10", f"{four} D10 Q10", f"{four} D10 Q10 K10",
        f"{four} D10 Q10 K4 K16", f"{four} D10 Q10 K4 K16 K10",
    ]  # fmt: skip
    assert fixed_places(7, 2) == ["C3", "E5"]
    assert fixed_places(12, 4) == ["C3", "K10", "C10", "K3"]
    assert fixed_places(13, 2) == ["D4", "K10"]


def test_a_game_without_a_pass() -> None:
    game = TicTacToe()
    lines = ("boardsize 3", "komi 6.5", "play b A1", "play b B1", "genmove b", "final_score")
    said = answers(*lines, "fixed_handicap 2", "set_free_handicap A1 B1", game=game)
    assert said[:6] == ["=", "=", "=", "? illegal move", "? illegal move", "? cannot score"]
    assert said[6:] == ["? handicap not supported", "? handicap not supported", ""]
    moves = [f"play {'bw'[number % 2]} {move}" for number, move in enumerate(("a1", "a2", "b1", "b2", "c1"))]
    assert answers(*moves, "genmove w", "final_score", game=game)[5:] == ["? the game is over", "= B+1", ""]


WORDS = """
play genmove undo boardsize komi fixed_handicap set_free_handicap final_score showboard clear_board
b w black C3 A1 E5 pass 5 7.5 -1 # 12 name x
"""


@settings(max_examples=25)
@given(st.lists(st.lists(st.sampled_from(WORDS.split()), max_size=4).map(" ".join) | st.text(max_size=20), max_size=15))
def test_whatever_is_asked_is_answered_once(lines) -> None:
    lines = [line.replace("\n", " ") for line in lines]
    stdout = io.StringIO()
    serve(GO, first_legal, [line + "\n" for line in [*lines, "7 protocol_version"]], stdout, io.StringIO())
    said = stdout.getvalue().split("\n\n")
    asked = [line for line in lines if re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", "", line.partition("#")[0]).split()]
    assert said[len(asked) :] == ["=7 2", ""]
    assert all(re.fullmatch(r"[=?][0-9]{0,10}([ \n].*)?", one, re.DOTALL) for one in said[:-1])


def test_the_states_that_it_is_asked_about_are_those_of_the_game() -> None:
    seen = []

    def chooser(state_B):
        seen.append(state_B.copy())
        return RESIGN

    answers("play b C3", "play w D4", "play b D3", "genmove w", chooser=chooser)
    state_B = GO.start(1)
    for move in ("C3", "D4", "D3"):
        state_B = GO.step(state_B, np.array([GO.parse(move)]))
    assert GO.key(seen[0]) == GO.key(state_B)
