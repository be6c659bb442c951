"""The rules of each game: against OpenSpiel and slow ones of our own, move by move, and against numbers in print."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from games_played import SlowGo, SlowOthello, chosen, random_play

from nomoat.games.connect_four import ConnectFour
from nomoat.games.go import Go
from nomoat.games.othello import Othello
from nomoat.games.tic_tac_toe import TicTacToe

without_open_spiel = pytest.mark.skipif(find_spec("pyspiel") is None, reason="needs open_spiel (nomoat[games])")


@without_open_spiel
@pytest.mark.parametrize(
    ("game", "theirs", "count"),
    [
        (TicTacToe(), "tic_tac_toe", 400),
        (ConnectFour(), "connect_four", 300),
        (ConnectFour(7, 8), "connect_four(rows=7,columns=8)", 150),
        (ConnectFour(8, 7, 5), "connect_four(rows=8,columns=7,x_in_row=5)", 150),
        (ConnectFour(4, 5, 3), "connect_four(rows=4,columns=5,x_in_row=3)", 200),
        (Othello(), "othello", 200),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_move_is_as_in_open_spiel(game, theirs: str, count: int) -> None:
    import pyspiel

    other = pyspiel.load_game(theirs)
    assert game.actions == other.num_distinct_actions()
    rng = np.random.default_rng(6)
    state_B, spiels = game.start(count), [other.new_initial_state() for _ in range(count)]
    ended = 0
    while spiels:
        legal_BA = game.legal(state_B)
        assert [np.flatnonzero(row).tolist() for row in legal_BA] == [spiel.legal_actions() for spiel in spiels]
        assert game.mover(state_B).tolist() == [spiel.current_player() for spiel in spiels]
        action_B = chosen(legal_BA, rng)
        state_B = game.step(state_B, action_B)
        for spiel, action in zip(spiels, action_B.tolist(), strict=True):
            spiel.apply_action(action)
        over_B, value_B = game.outcome(state_B)
        assert over_B.tolist() == [spiel.is_terminal() for spiel in spiels]
        assert value_B.tolist() == [spiel.returns()[0] if spiel.is_terminal() else 0.0 for spiel in spiels]
        ended += int(over_B.sum())
        state_B, spiels = state_B[~over_B], [spiel for spiel in spiels if not spiel.is_terminal()]
    assert ended == count


@pytest.mark.parametrize("game", [ConnectFour(), ConnectFour(7, 8), ConnectFour(8, 7, 5), ConnectFour(3, 4, 2)])
def test_the_threats_of_connect_four_are_the_cells_that_would_win(game: ConnectFour) -> None:
    rng, state_B, seen = np.random.default_rng(3), game.start(60), 0
    while len(state_B):
        own_BYX, other_BYX, wins_BYX, loses_BYX, lands_BYX = (
            plane > 0 for plane in game.observe(state_B).swapaxes(0, 1)
        )
        free_BYX = ~own_BYX & ~other_BYX
        below_BYX = np.concatenate((~free_BYX[:, 1:], np.ones_like(free_BYX[:, :1])), 1)
        assert np.array_equal(lands_BYX, free_BYX & below_BYX)
        for stones_BYX, threats_BYX in ((own_BYX, wins_BYX), (other_BYX, loses_BYX)):
            for stones, threats, free in zip(stones_BYX, threats_BYX, free_BYX, strict=True):
                assert {*zip(*np.nonzero(threats), strict=True)} == _wins(stones, free, game.in_a_row)
                seen += int(threats.sum())
        state_B = game.step(state_B, chosen(game.legal(state_B), rng))
        state_B = state_B[~game.outcome(state_B).over_B]
    assert seen > 100


def _wins(stones_YX: np.ndarray, free_YX: np.ndarray, in_a_row: int) -> set[tuple[int, int]]:
    """Free cells that complete a row, one after the other."""
    rows, columns = stones_YX.shape
    found = set()
    for y, x in zip(*np.nonzero(free_YX), strict=True):
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            length = 1
            for sign in (1, -1):
                step = 1
                while 0 <= (j := y + sign * step * down) < rows and 0 <= (i := x + sign * step * right) < columns:
                    if not stones_YX[j, i]:
                        break
                    step += 1
                length += step - 1
            if length >= in_a_row:
                found.add((y, x))
    return found


@without_open_spiel
@pytest.mark.parametrize(("size", "count"), [(5, 120), (7, 30), (9, 20), (19, 2)])
def test_each_move_of_go_is_as_in_open_spiel_but_for_superko(size: int, count: int) -> None:
    """OpenSpiel forbids to take back a ko at once, and calls a game a draw when any other position comes again."""
    import pyspiel

    game = Go(size, 5.5)
    other = pyspiel.load_game(f"go(board_size={size},komi=5.5,max_game_length={game.plies})")
    rng = np.random.default_rng(7)
    state_B, spiels = game.start(count), [other.new_initial_state() for _ in range(count)]
    # Their points go from below upwards.
    theirs_A = np.append(np.arange(size**2).reshape(size, size)[::-1].ravel(), size**2)
    forbidden = ended = 0
    while spiels:
        legal_BA = game.legal(state_B)
        for row, spiel in enumerate(spiels):
            their_legal = spiel.legal_actions()
            ours = set(theirs_A[np.flatnonzero(legal_BA[row])].tolist())
            assert ours <= set(their_legal)
            for action in set(their_legal) - ours:
                again = spiel.child(action)
                assert again.is_terminal()
                assert again.returns() == [0.0, 0.0]
                forbidden += 1
        assert game.mover(state_B).tolist() == [spiel.current_player() for spiel in spiels]
        action_B = chosen(legal_BA, rng)
        state_B = game.step(state_B, action_B)
        for spiel, action in zip(spiels, theirs_A[action_B].tolist(), strict=True):
            spiel.apply_action(action)
        over_B, value_B = game.outcome(state_B)
        assert over_B.tolist() == [spiel.is_terminal() for spiel in spiels]
        assert value_B.tolist() == [spiel.returns()[0] if spiel.is_terminal() else 0.0 for spiel in spiels]
        ended += int(over_B.sum())
        state_B, spiels = state_B[~over_B], [spiel for spiel in spiels if not spiel.is_terminal()]
    assert ended == count
    assert forbidden or size > 5


@pytest.mark.parametrize(
    ("size", "komi", "count", "passing"), [(5, 0.0, 20, 1e-6), (5, 7.5, 20, 1.0), (7, 6.0, 2, 1e-6)]
)
def test_go_is_as_by_a_set_of_whole_boards(size: int, komi: float, count: int, passing: float) -> None:
    """Who can take stones takes them, and nobody likes to pass: then positions would often come back."""
    game, rng = Go(size, komi), np.random.default_rng(8)
    state_B, slow = game.start(count), [SlowGo(size, komi) for _ in range(count)]
    forbidden, values = [], set()
    while slow:
        legal_BA = game.legal(state_B)
        liking_BA = np.append(np.ones(size**2), passing)[None].repeat(len(slow), axis=0)
        for row, one in enumerate(slow):
            legal, taking, again = one.legal()
            assert np.flatnonzero(legal_BA[row]).tolist() == legal
            liking_BA[row, taking] = 1000
            forbidden += again
        assert game.mover(state_B).tolist() == [one.mover for one in slow]
        action_B = chosen(legal_BA, rng, liking_BA)
        state_B = game.step(state_B, action_B)
        for one, action in zip(slow, action_B.tolist(), strict=True):
            one.play(action)
        over_B, value_B = game.outcome(state_B)
        assert over_B.tolist() == [one.over for one in slow]
        assert value_B.tolist() == [one.value() if one.over else 0.0 for one in slow]
        values |= set(value_B[over_B].tolist())
        state_B, slow = state_B[~over_B], [one for one in slow if not one.over]
    assert len(forbidden) >= count
    assert max(forbidden) > 1 or size > 5  # more than a ko that is taken back at once
    assert values == {1.0, -1.0, 0.0} or (count, komi) != (20, 0.0)


@pytest.mark.parametrize(("size", "count"), [(4, 100), (6, 30), (10, 4), (16, 1)])
def test_othello_of_any_size_is_as_by_walking_its_lines(size: int, count: int) -> None:
    game, rng = Othello(size), np.random.default_rng(9)
    state_B, slow = game.start(count), [SlowOthello(size) for _ in range(count)]
    passed = 0
    while slow:
        legal_BA = game.legal(state_B)
        assert [np.flatnonzero(row).tolist() for row in legal_BA] == [one.legal() for one in slow]
        assert game.mover(state_B).tolist() == [one.mover for one in slow]
        action_B = chosen(legal_BA, rng)
        passed += int((action_B == size**2).sum())
        state_B = game.step(state_B, action_B)
        for one, action in zip(slow, action_B.tolist(), strict=True):
            one.play(action)
        over_B, value_B = game.outcome(state_B)
        assert over_B.tolist() == [one.over for one in slow]
        assert value_B.tolist() == [one.value() if one.over else 0.0 for one in slow]
        state_B, slow = state_B[~over_B], [one for one in slow if not one.over]
    assert passed or count < 10


def expanded(game, state_B):
    """The states after every legal action of each."""
    row_K, action_K = np.nonzero(game.legal(state_B))
    return game.step(state_B[row_K], action_K)


def test_tic_tac_toe_has_as_many_games_and_positions_as_is_known() -> None:
    game = TicTacToe()
    state_B, keys, results = game.start(1), {0}, {1.0: 0, -1.0: 0, 0.0: 0}
    while len(state_B):
        state_B = expanded(game, state_B)
        keys |= set(game.key(state_B).tolist())
        over_B, value_B = game.outcome(state_B)
        for value in results:
            results[value] += int((over_B & (value_B == value)).sum())
        state_B = state_B[~over_B]
    assert results == {1.0: 131_184, -1.0: 77_904, 0.0: 46_080}
    assert len(keys) == 5_478


def test_connect_four_has_as_many_positions_as_is_known() -> None:
    """After each ply, games that are over counted where they end: https://oeis.org/A212693."""
    game, state_B, counts = ConnectFour(), ConnectFour().start(1), []
    for _ in range(8):
        state_B = expanded(game, state_B)
        _, first_K = np.unique(game.key(state_B), return_index=True)
        state_B = state_B[first_K]
        counts.append(len(state_B))
    assert counts == [7, 49, 238, 1_120, 4_263, 16_422, 54_859, 184_275]


def test_othello_has_as_many_lines_of_play_as_is_known() -> None:
    """Perft from the beginning: https://www.aartbik.com/strategy.php."""
    game, state_B, counts = Othello(), Othello().start(1), []
    for _ in range(7):
        state_B = expanded(game, state_B)
        counts.append(len(state_B))
    assert counts == [4, 12, 56, 244, 1_396, 8_200, 55_092]


def played(game, *texts: str):
    state_B = game.start(1)
    for text in texts:
        action = game.parse(text)
        assert game.legal(state_B)[0, action], text
        state_B = game.step(state_B, np.array([action]))
    return state_B


def may(game, state_B, text: str) -> bool:
    return bool(game.legal(state_B)[0, game.parse(text)])


def test_a_ko_is_not_taken_back_at_once() -> None:
    game = Go(5, 0.5)
    state_B = played(game, "B3", "C3", "C4", "D4", "C2", "D2", "A1", "E3", "D3")
    assert game.show(state_B[0]).splitlines()[3] == " 3 . X . X O"
    assert not may(game, state_B, "C3")
    assert game.observe(state_B)[0, 2, 2, 2] == 0
    # The same stones, but nothing was taken: what is legal differs, and so does the key.
    fresh_B = played(game, "B3", "D4", "C4", "D2", "C2", "E3", "A1", "pass", "D3")
    assert game.show(fresh_B[0]) == game.show(state_B[0])
    assert may(game, fresh_B, "C3")
    assert game.key(fresh_B) != game.key(state_B)
    for threat, answer in (("A5", "A2"), ("pass", "A2")):  # after a change elsewhere it may be
        later_B = state_B
        for text in (threat, answer):
            later_B = game.step(later_B, np.array([game.parse(text)]))
        assert may(game, later_B, "C3")


def test_two_that_are_sent_do_not_bring_one_back() -> None:
    """Simple ko would allow it: two stones were taken, and then one."""
    game = Go(5, 0.5)
    # Black takes A1 and B1; white's stone at A1 would take one back to the position before its second stone.
    state_B = played(game, "A2", "B1", "B2", "C2", "E5", "D1", "E4", "A1", "C1")
    assert game.show(state_B[0]).splitlines()[-2:] == [" 2 X X O . .", " 1 . . X O ."]
    assert not may(game, state_B, "B1")
    assert may(game, state_B, "A1")


def test_suicide_is_illegal_and_taking_is_none() -> None:
    game = Go(5, 0.5)
    state_B = played(game, "A2", "E5", "B1", "E4")
    assert may(game, state_B, "A1")
    state_B = played(game, "A2", "E5", "B1")
    assert not may(game, state_B, "A1")
    state_B = played(game, "A2", "A3", "B1", "B2", "E5", "C1")
    taken_B = game.step(state_B, np.array([game.parse("E4")]))
    assert may(game, taken_B, "A1")
    taken_B = game.step(taken_B, np.array([game.parse("A1")]))
    assert game.show(taken_B[0]).splitlines()[-1].startswith(" 1 O . O")


def test_go_counts_area_and_komi() -> None:
    for komi, value in ((24.5, 1.0), (25.0, 0.0), (25.5, -1.0)):
        game = Go(5, komi)
        state_B = played(game, "C3", "pass", "pass")
        assert game.outcome(state_B).over_B.all()
        assert game.outcome(state_B).value_B.tolist() == [value]
    game = Go(5, 0.5)
    assert game.outcome(played(game, "pass", "pass")).value_B.tolist() == [-1.0]
    assert game.outcome(played(game, "C3", "C2", "pass", "pass")).value_B.tolist() == [-1.0]  # all is between them


def test_a_pass_is_seen() -> None:
    game = Go(5)
    moved_B, passed_B = played(game, "C3", "A1", "pass"), played(game, "pass", "A1", "C3")
    assert game.observe(passed_B)[0, 3].max() == 0
    assert game.observe(moved_B)[0, 3].min() == 1
    assert game.observe(moved_B)[0, 4:, 0, 0].tolist() == [0, 1]
    assert game.key(moved_B) != game.key(passed_B)


def test_a_long_game_of_go_is_scored_as_it_stands() -> None:
    game = Go(5, 0.0)
    unwilling_A = np.append(np.ones(25), 1e-6)
    *_, (last_B, action_B) = random_play(game, 40, 10, unwilling_A)
    over_B, value_B = game.outcome(game.step(last_B, action_B))
    assert (over_B & (action_B < 25)).any()
    assert (last_B["ply"] == game.plies - 1).all()
    assert value_B.any()
