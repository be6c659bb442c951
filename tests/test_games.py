"""What holds for every game: batches, purity, keys, symmetries, and how moves are written."""

from __future__ import annotations

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
from games_played import chosen, random_play, same, some_states

from nomoat.core.errors import ConfigError
from nomoat.games.connect_four import ConnectFour
from nomoat.games.go import Go
from nomoat.games.known import KNOWN, find
from nomoat.games.open_spiel import OpenSpiel
from nomoat.games.othello import Othello
from nomoat.games.rules import Game
from nomoat.games.tic_tac_toe import TicTacToe

OWN = [
    *(TicTacToe(), ConnectFour(), ConnectFour(7, 8), ConnectFour(8, 7, 5), ConnectFour(3, 4, 3)),
    *(Othello(4), Othello(8), Go(5), Go(6, 6.0)),
]
without_open_spiel = pytest.mark.skipif(find_spec("pyspiel") is None, reason="needs open_spiel (nomoat[games])")
SPIEL = ("hex(board_size=4)", "breakthrough(rows=5,columns=4)", "mancala", "gomoku(size=6,connect=4)")
ALL = [
    *(pytest.param(lambda game=game: game, id=game.name) for game in OWN),
    *(pytest.param(lambda text=text: OpenSpiel(text), id=text, marks=without_open_spiel) for text in SPIEL),
]


@pytest.fixture(params=ALL)
def game(request) -> Game:
    return request.param()


def seen(game, state_B) -> list[bytes]:
    """All that a `Value` may look at, a row each."""
    parts = (game.observe(state_B), game.mover(state_B), game.legal(state_B))
    return [b"".join(part[row].tobytes() for part in parts) for row in range(len(state_B))]


def test_a_game_says_what_it_is(game) -> None:
    assert isinstance(game, Game)
    assert pickle.loads(pickle.dumps(game)) == game == find(game.name)
    assert game.players == 2
    for count in (0, 3):
        state_B = game.start(count)
        legal_BA, outcome = game.legal(state_B), game.outcome(state_B)
        assert (legal_BA.dtype, legal_BA.shape) == (bool, (count, game.actions))
        assert (game.mover(state_B).dtype, game.mover(state_B).tolist()) == (np.int8, [0] * count)
        assert (outcome.over_B.dtype, outcome.over_B.tolist()) == (bool, [False] * count)
        assert (outcome.value_B.dtype, outcome.value_B.tolist()) == (np.float32, [0.0] * count)
        assert (game.key(state_B).dtype, game.key(state_B).shape) == (np.uint64, (count,))
        assert (game.observe(state_B).dtype, game.observe(state_B).shape) == (np.float32, (count, *game.planes))
        assert len(game.step(state_B, legal_BA.argmax(1))) == count


def test_games_end_in_time_and_nothing_is_legal_then(game) -> None:
    longest = 0
    for ply, (state_B, action_B) in enumerate(random_play(game, 50, seed=1)):
        legal_BA = game.legal(state_B)
        assert legal_BA.any(1).all()
        assert not game.outcome(state_B).value_B.any()
        after_B = game.step(state_B, action_B)
        over_B, value_B = game.outcome(after_B)
        assert not game.legal(after_B)[over_B].any()
        assert (np.abs(value_B[over_B]) <= 1).all()
        # In lock-step a game that is over may be stepped again; that gives anything, but an answer.
        assert len(game.step(after_B[over_B], np.zeros(over_B.sum(), int))) == over_B.sum()
        longest = ply + 1
    assert longest <= game.plies


def test_a_batch_is_its_rows(game) -> None:
    state_B = some_states(game, 30, seed=2, most=60)
    action_B = chosen(game.legal(state_B), np.random.default_rng(2))
    after_B = game.step(state_B, action_B)
    ones = [game.step(state_B[row : row + 1], action_B[row : row + 1]) for row in range(len(state_B))]
    assert same(after_B, np.concatenate(ones))
    for of in (game.legal, game.key, game.observe, game.mover):
        assert np.array_equal(of(after_B), np.concatenate([of(one) for one in ones]))
    rows = [game.outcome(one) for one in ones]
    for part, whole in enumerate(game.outcome(after_B)):
        assert np.array_equal(whole, np.concatenate([row[part] for row in rows]))
    # What is picked out and put back is played on as if nothing had been.
    picked_B = state_B[::-1].copy()
    picked_B[:5] = state_B[-5:][::-1]
    assert same(game.step(picked_B, action_B[::-1]), after_B[::-1])


def test_step_changes_nothing_that_it_is_given(game) -> None:
    state_B = some_states(game, 30, seed=3, most=80)
    kept = pickle.loads(pickle.dumps(state_B))
    action_B = chosen(game.legal(state_B), np.random.default_rng(3))
    action_kept = action_B.copy()
    game.step(state_B, action_B)
    for of in (game.legal, game.key, game.observe, game.mover, game.outcome):
        of(state_B)
    game.legal(state_B)[:] = False
    game.outcome(state_B).over_B[:] = True
    assert same(state_B, kept)
    assert np.array_equal(action_B, action_kept)


def test_keys_are_equal_where_a_value_sees_no_difference(game) -> None:
    states = np.concatenate([state_B for state_B, _ in random_play(game, 120, seed=4)])
    pairs = list(zip(seen(game, states), game.key(states).tolist(), strict=True))
    assert len({sight for sight, _ in pairs}) == len({key for _, key in pairs}) == len(set(pairs))
    assert len(set(pairs)) < len(pairs)  # games begin alike


def turned_start(game, number_B):
    """Othello's beginning, turned by a quarter, is the one with the colours changed; all others' are as they were."""
    state_B = game.start(len(number_B))
    planes, legal_BA = game.turned(game.observe(state_B), game.legal(state_B), number_B)
    other_B = (planes != game.observe(state_B)).any((1, 2, 3))
    assert not other_B.any() or isinstance(game, Othello)
    if isinstance(game, Othello):
        state_B["own"][other_B], state_B["other"][other_B] = state_B["other"][other_B], state_B["own"][other_B]
        state_B["legal"] = legal_BA
    return state_B


def test_symmetries_commute_with_the_rules(game) -> None:
    rng = np.random.default_rng(5)
    count = 6 * game.symmetries
    number_B = np.arange(count) % game.symmetries
    state_B, turned_B = game.start(count), turned_start(game, number_B)
    for _ in range(min(game.plies, 60)):
        legal_BA = game.legal(state_B)
        planes, legal_turned_BA = game.turned(game.observe(state_B), legal_BA, number_B)
        assert np.array_equal(legal_turned_BA, game.legal(turned_B))
        assert np.array_equal(planes, game.observe(turned_B))
        for part, other in zip(game.outcome(state_B), game.outcome(turned_B), strict=True):
            assert np.array_equal(part, other)
        live_B = ~game.outcome(state_B).over_B
        if not live_B.any():
            break
        state_B, turned_B, number_B, planes = (each[live_B] for each in (state_B, turned_B, number_B, planes))
        action_B = chosen(legal_BA[live_B], rng)
        one_hot_BA = np.eye(game.actions, dtype=np.float32)[action_B]
        _, moved_BA = game.turned(planes, one_hot_BA, number_B)
        state_B, turned_B = game.step(state_B, action_B), game.step(turned_B, moved_BA.argmax(1))


def test_each_symmetry_is_another(game) -> None:
    number_B = np.arange(game.symmetries)
    cells = np.arange(np.prod(game.planes), dtype=np.float32).reshape(1, *game.planes).repeat(game.symmetries, axis=0)
    policy_BA = np.arange(game.actions, dtype=np.float32)[None].repeat(game.symmetries, axis=0)
    planes, turned_BA = game.turned(cells, policy_BA, number_B)
    assert np.array_equal(planes[0], cells[0])
    assert np.array_equal(turned_BA[0], policy_BA[0])
    assert len({plane.tobytes() for plane in planes}) == game.symmetries
    assert all(sorted(row) == list(range(game.actions)) for row in turned_BA.tolist())


def test_moves_are_read_as_they_are_written(game) -> None:
    texts = [game.spell(action) for action in range(game.actions)]
    assert len(set(texts)) == game.actions
    assert [game.parse(text) for text in texts] == list(range(game.actions))
    assert game.spell(np.int64(1)) == texts[1]


@pytest.mark.parametrize(
    "text", ["", " ", " 1", "a 1", "1.0", "a1.0", "z9", "9999", "a0", "00", "-1", "a-1", "a01", "01", "١", "a١"]
)
def test_what_is_no_move_is_refused_in_words(game, text: str) -> None:
    with pytest.raises(ConfigError, match="is no move of") as said:
        game.parse(text)
    assert said.value.fix


def test_connect_four_counts_its_columns_from_one() -> None:
    game = ConnectFour()
    assert (game.parse("1"), game.parse("7"), game.spell(0)) == (0, 6, "1")
    for text in ("0", "8", "a", "d"):
        with pytest.raises(ConfigError, match="write 1 to 7"):
            game.parse(text)


def test_go_has_no_column_i_and_reads_no_letter_that_only_looks_like_one() -> None:
    game = Go(19)
    assert (game.spell(8), game.parse("J19"), game.parse("t1"), game.parse("PASS")) == ("J19", 8, 360, 361)
    for text in ("I5", "i5", "\u212a5", "D\uff14", "U1", "A20", "pass "):
        with pytest.raises(ConfigError, match="without I"):
            game.parse(text)
    assert Othello().parse("H8") == 63


def test_boards_are_shown_with_the_names_of_their_lines() -> None:
    game = Go(5)
    state_B = game.start(1)
    for text in ("A1", "E5", "C4"):
        state_B = game.step(state_B, np.array([game.parse(text)]))
    shown = "   A B C D E\n 5 . . . . O\n 4 . . X . .\n 3 . . . . .\n 2 . . . . .\n 1 X . . . ."
    assert game.show(state_B[0]) == shown
    assert Othello(4).show(Othello(4).start(1)[0]) == "   a b c d\n 1 . . . .\n 2 . O X .\n 3 . X O .\n 4 . . . ."
    four = ConnectFour(2, 3, 2)
    state_B = four.step(four.start(1), np.array([2]))
    assert four.show(state_B[0]) == ". . .\n. . X\n1 2 3"
    three = TicTacToe()
    state_B = three.step(three.step(three.start(1), np.array([0])), np.array([5]))
    assert three.show(state_B[0]) == "   a b c\n 1 X . .\n 2 . . O\n 3 . . ."


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda: ConnectFour(8, 8),
            lambda: ConnectFour(1, 7),
            lambda: ConnectFour(6, 7, 8),
            lambda: ConnectFour(6, 7, 1),
        ),
        *(lambda: Othello(5), lambda: Othello(18), lambda: Othello(2), lambda: Go(4), lambda: Go(20)),
        *(lambda: Go(9, float("nan")), lambda: Go(9, float("inf")), lambda: Go(5, 26.0)),
    ],
)
def test_boards_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(ConfigError) as said:
        make()
    assert said.value.fix


@pytest.mark.parametrize(
    ("name", "game"),
    [
        *(("tic-tac-toe", TicTacToe()), ("TicTacToe", TicTacToe()), ("tic_tac_toe", TicTacToe())),
        *(("connect-four", ConnectFour()), ("connect4", ConnectFour()), ("connect-four:8x7", ConnectFour(7, 8))),
        *(("connect4:5x4x3", ConnectFour(4, 5, 3)), ("go", Go(9)), ("go:5", Go(5)), ("go:9@6.5", Go(9, 6.5))),
        *(("go:7@-3", Go(7, -3.0)), ("othello", Othello()), ("othello:6", Othello(6)), ("reversi:4", Othello(4))),
    ],
)
def test_games_are_found_by_name(name: str, game) -> None:
    assert find(name) == game


def test_every_example_is_a_game_and_names_are_not_guessed() -> None:
    for known in KNOWN.values():
        if known.make is not OpenSpiel:
            assert find(find(known.example).name) == find(known.example)
    with pytest.raises(ConfigError, match=r"there is tic-tac-toe, .*did you mean `othello`"):
        find("otello")
    with pytest.raises(ConfigError, match=r"give a \.py file"):
        find("")
    for name in ("go:", "go:big", "go:9@", "go:9@٧", "go:٩", "connect-four:8", "tic-tac-toe:3", "othello:6.0", "go: 9"):
        with pytest.raises(ConfigError, match="cannot be read"):
            find(name)
    with pytest.raises(ConfigError, match="size from 5 to 19"):
        find("go:999")


MINE = "from nomoat.games.go import Go\nfrom nomoat.games.tic_tac_toe import TicTacToe\n"


def test_a_game_comes_from_a_file_of_ones_own(tmp_path) -> None:
    path = tmp_path / "my_game.py"
    path.write_text(f"{MINE}game = Go(5, 3.5)\n", encoding="utf-8")
    assert find(str(path)) == Go(5, 3.5)
    path.write_text(f"{MINE}one = Go(5)\ntwo = TicTacToe()\n", encoding="utf-8")
    assert find(f"{path}:two") == TicTacToe()
    with pytest.raises(ConfigError, match=r"defines 2 games: one, two.*my_game\.py:one"):
        find(str(path))
    with pytest.raises(ConfigError, match="defines no game `three`"):
        find(f"{path}:three")
    path.write_text(MINE, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"defines no game.*game = MyGame\(\)"):
        find(str(path))
    with pytest.raises(ConfigError, match=r"there is no file .*a game is a name like `go:9@6\.5`"):
        find(str(tmp_path / "none.py"))


@without_open_spiel
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("kuhn_poker", "has chance in it"),
        ("phantom_ttt", "hides something"),
        ("matrix_pd", "lets both move at once|hides something"),
        ("solitaire", "is for 1"),
        ("hexx", "has no game `hexx`.*did you mean `hex`"),
        ("hex(board=3)", "Unknown parameter 'board'"),
    ],
)
def test_games_that_cannot_be_searched_are_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        find(f"open-spiel:{text}")


def test_without_open_spiel_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr("nomoat.games.open_spiel.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'nomoat\[games\]'"):
        find("open-spiel:hex(board_size=6)")  # a size that no other test has loaded: games are kept


@without_open_spiel
def test_open_spiels_moves_stand_below_its_board() -> None:
    game = OpenSpiel("hex(board_size=3)")
    state_B = game.step(game.start(1), np.array([4]))
    assert "0=a1" in game.show(state_B[0])
    assert "4=b2" not in game.show(state_B[0])
