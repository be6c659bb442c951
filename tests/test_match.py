"""Matches in pairs, the interval of their Elo difference, forfeits, and ladders against what is known of them."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest
from engines import fake, ours
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError
from nomoat.games import gtp
from nomoat.games.connect_four import ConnectFour
from nomoat.games.go import Go
from nomoat.games.gtp import RESIGN, EngineError
from nomoat.games.ladder import ladder, meetings, ratings
from nomoat.games.match import EnginePlayer, MatchResult, Played, Random, elo, match
from nomoat.games.tic_tac_toe import TicTacToe

TINY = TicTacToe()


class Fixed:
    """Plays the legal action of the lowest or the highest number; writes down what it is told."""

    def __init__(self, game=TINY, name="lowest", order=1) -> None:
        self.game, self.name, self.order = game, name, order

    def begin(self, count) -> None:
        self.heard = [[] for _ in range(count)]

    def choose(self, row_B, state_B):
        assert all(len(self.heard[row]) == ply for row, ply in zip(row_B, state_B["ply"], strict=True))
        legal_BA = self.game.legal(state_B)[:, :: self.order]
        return np.arange(legal_BA.shape[1])[:: self.order][legal_BA.argmax(1)]

    def told(self, row_B, state_B, action_B) -> None:
        assert self.game.legal(state_B)[np.arange(len(row_B)), action_B].all()
        for row, action in zip(row_B, action_B, strict=True):
            self.heard[row].append(int(action))


class Failing(Fixed):
    """Answers what `said(row, ply)` gives, else the lowest."""

    def __init__(self, said) -> None:
        super().__init__(name="failing")
        self.said = said

    def choose(self, row_B, state_B):
        for row, ply, action in zip(row_B, state_B["ply"], super().choose(row_B, state_B), strict=True):
            other = self.said(int(row), int(ply))
            yield int(action) if other is None else other


def replayed(game, played: Played):
    state_B = game.start(1)
    for action in played.moves:
        assert game.legal(state_B)[0, action]
        state_B = game.step(state_B, np.array([action]))
    return state_B


@pytest.mark.parametrize("game", [TINY, ConnectFour(), Go(5, 0.5)], ids=lambda game: game.name)
def test_a_match_is_played_by_the_rules(game) -> None:
    one, other = Fixed(game), Random(game, 3)
    result = match(game, one, other, 12, seed=1, openings=2)
    assert (result.one, result.other, len(result.games), result.stopped) == ("lowest", "random", 12, "")
    by_pair: dict[int, dict[bool, Played]] = {}
    for played in result.games:
        by_pair.setdefault(played.pair, {})[played.first] = played
        outcome = game.outcome(replayed(game, played))
        assert outcome.over_B[0]
        assert played.points == 0.5 + float(np.sign(outcome.value_B[0])) * (0.5 if played.first else -0.5)
    assert sorted(by_pair) == list(range(6))
    openings = {tuple(game.moves[:2] for game in (both[True], both[False])) for both in by_pair.values()}
    assert all(first == second for first, second in openings)
    assert len({first for first, _ in openings}) == 6
    assert sorted(one.heard) == sorted(list(played.moves) for played in result.games)


def test_colours_are_swapped_and_counted() -> None:
    """Who plays the lowest cells first has the first column's diagonal... both orders are known by hand."""
    result = match(TINY, Fixed(), Fixed(name="highest", order=-1), 2)
    first = next(game for game in result.games if game.first)
    second = next(game for game in result.games if not game.first)
    assert first.moves == (0, 8, 1, 7, 2)
    assert second.moves == (8, 0, 7, 1, 6)
    assert result.counts() == (1, 0, 1)
    assert (result.counts(True), result.counts(False)) == ((1, 0, 0), (0, 0, 1))
    assert result.pairs() == [0.5]


def test_a_seed_repeats_a_match() -> None:
    def played(seed):
        return match(TINY, Random(TINY, 1), Random(TINY, 2), 20, seed, openings=1).games

    assert played(5) == played(5)
    assert played(5) != played(6)


def test_openings_repeat_only_when_there_are_no_more() -> None:
    result = match(TINY, Fixed(), Random(TINY), 40, openings=1)
    firsts = [game.moves[0] for game in result.games if game.first]
    assert sorted(set(firsts)) == list(range(9))
    assert max(map(firsts.count, firsts)) == 3


def test_matches_that_cannot_be() -> None:
    for games in (0, 3, -2):
        with pytest.raises(ConfigError, match="cannot be"):
            match(TINY, Fixed(), Fixed(), games)
    with pytest.raises(ConfigError, match="no game of tic-tac-toe goes on after 9 random plies"):
        match(TINY, Fixed(), Fixed(), 2, openings=9)
    with pytest.raises(ConfigError, match="in 0 processes"):
        EnginePlayer("gnugo", TINY, 0)


def test_giving_up_is_losing() -> None:
    result = match(TINY, Failing(lambda row, ply: RESIGN if ply > 1 else None), Fixed(), 4)
    assert result.counts() == (0, 0, 4)
    assert {(game.end, len(game.moves)) for game in result.games} == {("resigned", 2), ("resigned", 3)}
    assert result.forfeits() == (0, 0)


@pytest.mark.parametrize("wrong", [EngineError("it died"), 0, 9, -7])
def test_what_goes_wrong_costs_the_game_and_no_other(wrong) -> None:
    """Of eight games the row-th fails; action 0 is taken by then, 9 and -7 are none."""
    result = match(TINY, Fixed(), Failing(lambda row, ply: wrong if row in (2, 5) and ply > 1 else None), 8)
    lost = [game for game in result.games if game.end == "forfeited"]
    assert [(game.pair, game.first, game.points) for game in lost] in (
        [(2, False, 1), (1, True, 1)],
        [(1, True, 1), (2, False, 1)],
    )
    why = "it died" if isinstance(wrong, EngineError) else f"failing plays action {wrong}, which is not legal"
    assert {game.why for game in lost} == {why}
    assert (result.forfeits(), len(result.games), result.stopped) == ((0, 2), 8, "")


def test_three_in_a_row_end_the_match_with_what_there_is() -> None:
    error = EngineError("it hangs")
    result = match(TINY, Failing(lambda row, ply: error if ply == 2 else None), Fixed(), 20)
    assert result.stopped == "failing failed 3 times in a row, the last time so: it hangs"
    assert result.forfeits() == (3, 0)
    assert [game.pair for game in result.games] == [0, 1, 2]
    assert result.pairs() == [0, 0, 0]
    spared = match(TINY, Failing(lambda row, ply: error if ply == 2 and row % 3 else None), Fixed(), 20)
    assert (spared.stopped, len(spared.games), spared.forfeits()) == ("", 20, (6, 0))


def test_a_match_that_is_broken_off_keeps_its_games_where_asked() -> None:
    def said(row: int, ply: int) -> int | None:
        if ply == 4:
            raise KeyboardInterrupt
        return RESIGN if row in (0, 3) and ply > 1 else None

    result = match(TINY, Failing(said), Fixed(), 8, keep=True)
    assert result.counts() == (0, 0, 2)
    assert result.stopped.startswith("broken off, 6 games had not ended")
    with pytest.raises(KeyboardInterrupt):
        match(TINY, Failing(said), Fixed(), 8)
    with pytest.raises(KeyboardInterrupt):  # nothing to keep
        match(TINY, Failing(lambda row, ply: said(1, ply)), Fixed(), 8, keep=True)


OURS = "lambda state_B: int(random_actions(game, state_B, np.random.default_rng(int(game.key(state_B)[0] >> 1)))[0])"


class Keyed(Random):
    """The move of `OURS`: it depends on the state alone."""

    def choose(self, row_B, state_B):
        seeds = [np.random.default_rng(int(key >> np.uint64(1))) for key in self.game.key(state_B)]
        return [
            super(Keyed, self).choose(row_B, state_B[row : row + 1])[0]
            for row, self.rng in enumerate(seeds)
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("game", "games", "processes"), [("Go(5, 0.5)", 2, 2), ("TicTacToe()", 12, 1), ("TicTacToe()", 12, 3)]
)
def test_our_engine_in_processes_plays_as_it_would_here(tmp_path, game, games, processes) -> None:
    """So that each board, in whatever process and after whatever other game, was the right one."""
    rules = {"Go(5, 0.5)": Go(5, 0.5), "TicTacToe()": TINY}[game]
    with EnginePlayer(ours(tmp_path, game, OURS), rules, processes, name="piped") as piped:
        result = match(rules, piped, Random(rules, 7), games, openings=1)
        again = match(rules, piped, Random(rules, 7), games, openings=1) if rules is TINY else result
        engines = [seat.engine for seat in piped._seats]
    assert [engine._process.returncode for engine in engines] == [0] * processes
    assert result.games == match(rules, Keyed(rules), Random(rules, 7), games, openings=1).games
    assert (again, result.stopped, result.forfeits(), len(result.games)) == (result, "", (0, 0), games)


def test_an_engine_that_dies_loses_that_game_and_is_started_again(tmp_path, monkeypatch) -> None:
    """It dies at the third move of its first game, whose mark it leaves behind."""
    monkeypatch.setattr(gtp, "PATIENCE_SECONDS", 0.5)
    body = f"""
if command == "clear_board": taken.clear(); well()
elif command == "play": taken.append(words[1].lower()); well()
elif command == "genmove":
    if len(taken) == 2 and not os.path.exists({str(tmp_path / "dead")!r}):
        open({str(tmp_path / "dead")!r}, "w").close(); os.kill(os.getpid(), {signal.SIGKILL:d})
    move = next(x + y for y in "123" for x in "abc" if x + y not in taken)
    taken.append(move); say(move)
else: well()
"""
    with EnginePlayer(fake(tmp_path, body, "taken = []"), TINY, name="fake") as player:
        result = match(TINY, player, Fixed(name="highest", order=-1), 6)
    whole = match(TINY, Fixed(name="fake"), Fixed(name="highest", order=-1), 6)
    lost = [game for game in result.games if game.end == "forfeited"]
    assert [(game.pair, game.first, game.points, len(game.moves)) for game in lost] == [(0, True, 0, 2)]
    assert "died at `genmove black`" in lost[0].why
    assert result.stopped == ""
    others = {(game.pair, game.first): game for game in result.games if game not in lost}
    assert others == {(game.pair, game.first): game for game in whole.games if (game.pair, game.first) != (0, True)}


def test_an_engine_that_never_plays_well_ends_the_match(tmp_path) -> None:
    with EnginePlayer(fake(tmp_path, 'say("a1")'), TINY, name="fake") as player:
        result = match(TINY, Fixed(), player, 10)
    assert result.stopped.startswith("fake failed 3 times in a row, the last time so: `")
    assert result.forfeits()[1] == 3 == len(result.games)


def test_an_engine_that_is_not_there_is_no_match(tmp_path) -> None:
    with pytest.raises(EngineError, match="no program"), EnginePlayer("no-such-program", TINY) as player:
        match(TINY, player, Fixed(), 2)
    refusing = fake(tmp_path, 'say("unacceptable size", "?")')
    with pytest.raises(EngineError, match="board of 3 x 3"), EnginePlayer(refusing, TINY) as player:
        match(TINY, player, Fixed(), 2)
    assert player._seats[0].engine is None


def result_of(pairs, one="a", other="b") -> MatchResult:
    """A match with these shares of the pairs' points, of which a half is a game each."""
    games = []
    for number, share in enumerate(pairs):
        first = min(1.0, 2 * share)
        games += [Played(number, True, first, ()), Played(number, False, 2 * share - first, ())]
    return MatchResult(one, other, tuple(games))


def test_elo_of_known_scores() -> None:
    for shares, points in (([1, 0.5], 400 * math.log10(3)), ([0.5] * 4, 0), ([0.25, 0, 0.5], 400 * math.log10(1 / 3))):
        assert elo(result_of(shares)).difference == pytest.approx(points)
    won, lost = elo(result_of([1.0] * 20)), elo(result_of([0.0] * 20))
    assert won == (math.inf, pytest.approx(400 * math.log10(0.05**0.05 / (1 - 0.05**0.05))), math.inf)
    assert lost == (-math.inf, -math.inf, pytest.approx(-won.low))
    assert won.low == pytest.approx(316.7, abs=0.1)
    nothing = elo(MatchResult("a", "b", ()))
    assert (math.isnan(nothing.difference), nothing.low, nothing.high) == (True, -math.inf, math.inf)


def test_the_interval_of_a_long_match_is_the_pairs_own() -> None:
    pairs = [1, 0.5, 0.5, 0] * 500
    spread = 1.959964 * np.std(pairs) / math.sqrt(2000)
    assert elo(result_of(pairs)).high == pytest.approx(400 * math.log10((0.5 + spread) / (0.5 - spread)), rel=2e-3)
    equal = elo(result_of([0.5] * 10))  # no pair differs: sure, but not without a doubt
    assert (equal.difference, equal.high) == (0, pytest.approx(-equal.low))
    assert 50 < equal.high < 100


@given(st.lists(st.sampled_from([0, 0.25, 0.5, 0.75, 1]), min_size=1, max_size=60))
def test_the_difference_lies_within_its_interval_and_turns_round(pairs) -> None:
    found, turned = elo(result_of(pairs)), elo(result_of([1 - share for share in pairs]))
    assert found.low <= found.difference <= found.high
    assert (turned.difference, turned.low, turned.high) == pytest.approx((-found.difference, -found.high, -found.low))


@pytest.mark.parametrize(
    ("share", "draws", "luck"), [(0.5, 0, 0), (0.5, 0.6, 0), (0.6, 0, 0.35), (0.85, 0.1, 0), (0.97, 0, 0)]
)
@pytest.mark.parametrize("pairs", [6, 40])
def test_intervals_hold_what_they_promise(share, draws, luck, pairs) -> None:
    """Of 300 matches with the truth known, 95 % of the intervals have it, within four standard errors."""
    rng, truth, held = np.random.default_rng(pairs), 400 * math.log10(share / (1 - share)), 0
    for _ in range(300):
        wins = share - draws / 2 + np.array([[luck], [-luck]])
        chance = rng.random((2, pairs))
        points = np.where(chance < wins, 1.0, np.where(chance < wins + draws, 0.5, 0.0))
        found = elo(result_of(points.mean(0).tolist()))
        held += found.low <= truth <= found.high
    assert held >= 270


def test_a_ladder_of_two_is_the_logarithm_of_the_odds() -> None:
    pairs = [1.0] * 12 + [0.5] * 3 + [0.25]
    one, zero = ladder({("a", "b"): pairs}, "b", added=0)
    assert (one.name, one.points) == ("a", pytest.approx(400 * math.log10(27.5 / 4.5)))
    assert (zero.name, zero.points, zero.low, zero.high) == ("b", 0, 0, 0)
    assert (one.games, one.won, zero.won) == (32, pytest.approx(27.5 / 32), pytest.approx(4.5 / 32))
    assert ladder({("a", "b"): pairs}, "b")[0].points == pytest.approx(400 * math.log10(28 / 5))
    turned = ladder({("b", "a"): [1 - share for share in pairs]}, "b")
    assert turned[0].points == pytest.approx(400 * math.log10(28 / 5))
    assert ladder({("a", "b"): pairs}, "a")[1].points == pytest.approx(-400 * math.log10(28 / 5))


def test_its_interval_is_that_of_the_match() -> None:
    for pairs in ([1.0] * 9 + [0.5] * 8 + [0.0] * 4, [0.5] * 10, [0.75] * 5 + [0.25] * 20):
        rung = next(rung for rung in ladder({("a", "b"): pairs}, "b") if rung.name == "a")
        whole = elo(result_of(pairs))
        width = whole.high - whole.low
        assert rung.low == pytest.approx(whole.low, abs=0.2 * width)
        assert rung.high == pytest.approx(whole.high, abs=0.2 * width)


def test_along_a_chain_points_add_up() -> None:
    table = {("b", "a"): [1, 1, 0.5], ("c", "b"): [1, 0.5, 0.5, 0.75], ("c", "d"): [0.25, 0.5]}
    points = {rung.name: rung.points for rung in ladder(table, "a", added=0)}
    step = {pair: 400 * math.log10(sum(shares) / (len(shares) - sum(shares))) for pair, shares in table.items()}
    assert points["b"] == pytest.approx(step["b", "a"])
    assert points["c"] == pytest.approx(step["b", "a"] + step["c", "b"])
    assert points["d"] == pytest.approx(step["b", "a"] + step["c", "b"] - step["c", "d"])


def test_a_consistent_table_gives_back_its_strengths() -> None:
    strength_X = np.array([1.0, 2.5, 0.3, 8.0])
    wins_XX = 50 * strength_X[:, None] / (strength_X[:, None] + strength_X) * (1 - np.eye(4))
    assert np.exp(ratings(wins_XX[None], 0, 0)[0]) == pytest.approx(strength_X)
    assert np.exp(ratings(wins_XX[None], 3, 0)[0]) == pytest.approx(strength_X / 8)


@given(st.lists(st.lists(st.sampled_from([0, 0.25, 0.5, 0.75, 1]), min_size=1, max_size=9), min_size=6, max_size=6))
def test_ratings_expect_the_points_that_were_made(shares) -> None:
    """What a maximum of the likelihood is: each player's expected points are those it has."""
    wins_XX = np.zeros((4, 4))
    for (a, b), pairs in zip(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), shares, strict=True):
        wins_XX[a, b], wins_XX[b, a] = 2 * sum(pairs), 2 * (len(pairs) - sum(pairs))
    rating_X = ratings(wins_XX[None], 2)[0]
    both_XX = wins_XX + 0.5 * (1 - np.eye(4))
    games_XX = both_XX + both_XX.T
    expected_XX = games_XX / (1 + np.exp(rating_X - rating_X[:, None]))
    assert rating_X[2] == 0
    assert expected_XX.sum(1) == pytest.approx(both_XX.sum(1))


def test_who_was_never_beaten_has_no_upper_bound() -> None:
    table = {("a", "z"): [1.0] * 20, ("b", "a"): [0.5, 0.75, 0.25, 0.5], ("y", "z"): [0.0] * 5}
    rungs = {rung.name: rung for rung in ladder(table, "z")}
    assert (rungs["a"].high, rungs["b"].high, rungs["y"].low) == (math.inf, math.inf, -math.inf)
    assert all(math.isfinite(rung.points) for rung in rungs.values())
    assert 250 < rungs["a"].low < 400  # the match alone: 317, one-sided
    assert rungs["b"].low < rungs["a"].low
    assert rungs["y"].high < 0
    with pytest.raises(ConfigError, match="no finite ratings"):
        ladder({("a", "z"): [1.0] * 20}, "z", added=0)


def test_ladders_that_cannot_be() -> None:
    table = {("ann", "bob"): [0.5], ("cat", "dan"): [0.5], ("eve", "ann"): []}
    with pytest.raises(ConfigError, match=r"`boo` has played no game.*did you mean `bob`"):
        ladder(table, "boo")
    with pytest.raises(ConfigError, match="no games join cat, dan, eve to ann"):
        ladder(table, "ann")


def test_a_ladder_of_matches() -> None:
    """Random, and two of which the better looks whether it can win: in order, with sane intervals."""

    class Winning(Random):
        """Wins where it can in one move, else random."""

        def choose(self, row_B, state_B):
            action_B = np.array(super().choose(row_B, state_B))
            for row, legal_A in enumerate(self.game.legal(state_B)):
                for action in np.flatnonzero(legal_A):
                    outcome = self.game.outcome(self.game.step(state_B[row : row + 1], np.array([action])))
                    if outcome.over_B[0] and outcome.value_B[0]:
                        action_B[row] = action
            return action_B

    winning, low, rnd = Winning(TINY, 1), Fixed(), Random(TINY, 2)
    winning.name = "winning"
    results = [match(TINY, one, other, 60, openings=1) for one, other in ((winning, rnd), (low, rnd), (winning, low))]
    assert meetings([results[0], results[0]])["winning", "random"] == results[0].pairs() * 2
    rungs = ladder(meetings(results), "random")
    assert rungs[0].name == "winning"
    assert {rung.name: rung.games for rung in rungs} == {"winning": 120, "lowest": 120, "random": 120}
    assert all(rung.low <= rung.points <= rung.high for rung in rungs)
    assert rungs[0].low > 0
