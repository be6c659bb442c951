"""The Go Text Protocol as the controller speaks it: what an engine can do wrong, each in words of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from engines import fake, ours

from nomoat.core.errors import ConfigError
from nomoat.games import gtp
from nomoat.games.go import Go
from nomoat.games.gtp import Engine, EngineError, RefusedError

GAME = Go(5, 7)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch) -> None:
    monkeypatch.setattr(gtp, "PATIENCE_SECONDS", 0.5)


def gone(number: int) -> bool:
    """No process has it, or only its parent's memory of it."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def soon(check) -> bool:
    until = time.monotonic() + 5
    while not check() and time.monotonic() < until:
        time.sleep(0.02)
    return check()


def test_a_conversation(tmp_path) -> None:
    body = """
if command == "genmove": say(" d4 ")
elif command == "final_score": say("W+3.5")
elif command == "list_commands": say("a\\nb\\nc")
elif command == "undo": say("cannot undo", "?")
elif command == "log": say("; ".join(log))
else: log.append(" ".join([command, *words])) or well()
"""
    with Engine(fake(tmp_path, body, "log = []")) as engine:
        assert engine.name() == "fake 1"
        engine.set_up(GAME, needs=["genmove", "play"])
        engine.play("black", "C3")
        state_B = GAME.step(GAME.start(1), np.array([GAME.parse("C3")]))
        assert GAME.spell(engine.move(GAME, state_B)) == "D4"
        assert engine.genmove("black") == "d4"
        assert engine.ask("list_commands") == "a\nb\nc"
        assert engine.final_score() == -3.5
        with pytest.raises(RefusedError, match=r"refuses `undo`. it says: cannot undo"):
            engine.ask("undo")
        assert engine.ask("log") == (
            "name; version; known_command genmove; known_command play; boardsize 5; clear_board; komi 7; play black C3"
        )
        assert engine.answers == 14
        process = engine._process
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("said", "score"),
    [("B+10", 10.0), ("b+.5", 0.5), ("W+2", -2.0), ("0", 0.0), ("0.0", 0.0), ("B+R", None), ("", None)],
)
def test_scores(tmp_path, said, score) -> None:
    with Engine(fake(tmp_path, f"say({said!r})")) as engine:
        if score is None:
            with pytest.raises(EngineError, match="gives no score"):
                engine.final_score()
        else:
            assert engine.final_score() == score


def test_carriage_returns_empty_lines_and_much_on_standard_error_do_no_harm(tmp_path) -> None:
    body = 'sys.stderr.write("x" * 300_000)\nsay("a\\r\\nb", end="\\r\\n\\r\\n\\r\\n\\n")'
    with Engine(fake(tmp_path, body)) as engine:
        assert [engine.ask("anything") for _ in range(3)] == ["a\nb"] * 3


def wrong(command, ask="genmove black", seconds=20.0) -> EngineError:
    """What is said of an engine when it is asked."""
    with pytest.raises(EngineError) as raised, Engine(command, seconds) as engine:
        engine.name()
        engine.ask(ask)
    assert raised.value.exit_code == 1
    return raised.value


def test_a_program_that_is_not_there() -> None:
    error = wrong("no-such-program --mode gtp")
    assert error.what == "there is no program `no-such-program`"
    assert "install it" in error.fix


def test_a_program_that_may_not_run(tmp_path) -> None:
    (tmp_path / "engine").write_text("")
    assert "does not start" in wrong(str(tmp_path / "engine")).what


@pytest.mark.parametrize("command", ["", "gnugo 'x", []])
def test_a_command_that_is_none(command) -> None:
    with pytest.raises(ConfigError):
        Engine(command)


def test_one_that_ends_at_once(tmp_path) -> None:
    error = wrong(fake(tmp_path, "pass", 'sys.exit("loading\\nno weights at x.bin")'))
    assert "ends before it answers" in error.what
    assert error.why == "exit code 1; on standard error: loading | no weights at x.bin"


def test_one_that_dies_in_mid_game(tmp_path) -> None:
    body = 'os.kill(os.getpid(), 9) if command == "genmove" else well()'
    error = wrong(fake(tmp_path, body))
    assert "died at `genmove black`, after 2 answers" in error.what
    assert error.why == "it was ended by signal 9 (Killed)"


def test_one_that_closes_its_output_and_lives_on(tmp_path) -> None:
    error = wrong(fake(tmp_path, "os.close(1); time.sleep(60)"))
    assert error.why == "it closed its output"


def test_one_that_hangs_is_ended_with_all_it_has_started(tmp_path) -> None:
    body = """
if command == "genmove": time.sleep(60)
else: say(str(child.pid))
"""
    first = """
print("thinking", file=sys.stderr, flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
"""
    engine = Engine(fake(tmp_path, body, first))
    with (
        pytest.raises(
            EngineError, match=r"did not answer `genmove black` in 0.2 s. it said nothing; on standard error: th"
        ) as raised,
        engine,
    ):
        child = int(engine.ask("name"))
        assert not gone(child)
        engine.ask("genmove black", seconds=0.2)
    assert "more seconds" in raised.value.fix
    assert engine._process.returncode == -9
    assert soon(lambda: gone(child))


def test_the_child_of_one_that_ends_well_is_ended_too(tmp_path) -> None:
    first = 'child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)'
    with Engine(fake(tmp_path, "say(str(child.pid))", first)) as engine:
        child = int(engine.ask("name"))
    assert engine._process.returncode == 0
    assert soon(lambda: gone(child))


def test_nothing_but_its_own_group_is_ended(tmp_path) -> None:
    with Engine(fake(tmp_path, "say(str(os.getpgrp()))")) as engine:
        group = int(engine.ask("name"))
        assert group == engine._process.pid != os.getpgrp()


def test_one_that_never_ends_its_line(tmp_path) -> None:
    error = wrong(fake(tmp_path, 'say("x" * 10_000, end="")\nwhile True: print("x" * 10_000, end="")'))
    assert "never ends its answer to `name`" in error.what
    assert error.why.endswith("they begin with `=1 " + "x" * 197 + " ...`")


def test_one_that_never_ends_its_answer(tmp_path) -> None:
    error = wrong(fake(tmp_path, 'while True: say("x", end="\\n")'))
    assert "never ends its answer to `name`" in error.what


def test_an_answer_without_its_empty_line(tmp_path) -> None:
    error = wrong(fake(tmp_path, 'say("D4", end="\\n")'), seconds=1)
    assert error.why == "it said `=1 D4` without an empty line after it"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('print("Welcome to fake 1", flush=True)', "Welcome to fake 1"),
        ('print("= fake\\n", flush=True)', "= fake"),
        ('print("=7 fake\\n", flush=True)', "=7 fake"),
        ('print("!1 fake\\n", flush=True)', "!1 fake"),
        ("sys.stdout.buffer.write(bytes([200, 10])); sys.stdout.flush()", "\ufffd"),
    ],
)
def test_nonsense(tmp_path, body, said) -> None:
    error = wrong(fake(tmp_path, body))
    assert "does not answer `name` by the Go Text Protocol" in error.what
    assert error.why == f"its answer should begin with `=1` or `?1`, and is `{said}`"


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(tmp_path) -> None:
    with Engine(fake(tmp_path, "time.sleep(0.4)\nsay(command)")) as engine:
        with pytest.raises(EngineError, match="did not answer"):
            engine.ask("slow", 0.1)
        with pytest.raises(EngineError, match="should begin with `=2` or `\\?2`, and is `=1 slow`"):
            engine.ask("next")


@pytest.mark.parametrize(
    ("move", "what"),
    [("T19", "what is no move: `T19`"), ("", "what is no move: ``"), ("i think\nD4", "what is no move: `i think D4`")],
)
def test_a_move_that_cannot_be_read(tmp_path, move, what) -> None:
    with Engine(fake(tmp_path, f"say({move!r})")) as engine, pytest.raises(EngineError, match=f"plays {what}"):
        engine.move(GAME, GAME.start(1))


def test_a_move_that_is_not_legal_and_one_that_gives_up(tmp_path) -> None:
    state_B = GAME.step(GAME.start(1), np.array([GAME.parse("C3")]))
    with Engine(fake(tmp_path, 'say("C3" if words == ["white"] else "Resign")')) as engine:
        with pytest.raises(EngineError, match="plays C3 for white, which is not legal") as raised:
            engine.move(GAME, state_B)
        assert raised.value.why == GAME.show(state_B[0])
        assert engine.move(GAME, GAME.start(1)) == gtp.RESIGN


def test_boards_moves_and_commands_that_are_refused(tmp_path) -> None:
    body = """
if command == "known_command": say("false" if words == ["undo"] else "true")
else: say({"boardsize": "unacceptable size", "play": "illegal move"}.get(command, ""), "?")
"""
    with Engine(fake(tmp_path, body)) as engine:
        with pytest.raises(EngineError, match=r"does not play on a board of 5 x 5. it says: unacceptable size"):
            engine.set_up(GAME)
        with pytest.raises(EngineError, match="does not know undo"):
            engine.set_up(GAME, needs=["play", "undo"])
        with pytest.raises(EngineError, match=r"does not take white's move pass. it says: illegal move"):
            engine.play("white", "pass")


@pytest.mark.parametrize("command", ["", "  ", "play b D4\nquit", "name # not", "tab\there"])
def test_commands_that_are_none(tmp_path, command) -> None:
    with Engine(fake(tmp_path, "well()")) as engine:
        with pytest.raises(ConfigError, match="is no command"):
            engine.ask(command)
        assert engine.ask("name") == "fake"


def test_our_own_engine_over_pipes(tmp_path) -> None:
    chooser = 'lambda state_B: Chosen(game.parse("C3"), "visits 7") if state_B["ply"][0] == 0 else -1'
    with Engine(ours(tmp_path, "Go(5, 7)", chooser)) as engine:
        engine.set_up(GAME, needs=["play", "genmove", "undo", "showboard"])
        assert engine.name().startswith("nomoat 0.")
        assert GAME.spell(engine.move(GAME, GAME.start(1))) == "C3"
        assert engine.genmove("white") == "resign"
        with pytest.raises(EngineError, match="does not take white's move C3"):
            engine.play("white", "C3")
        assert soon(lambda: engine._errors == b"visits 7\n")
