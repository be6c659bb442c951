"""Self-play as data: what it gives, resuming, workers; and a player that cannot be beaten."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from nomoat.core.budget import Budget
from nomoat.core.domain import Guess
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe, find
from nomoat.core.run import Run
from nomoat.families.alphazero import AlphaZero, Tower
from nomoat.games.connect_four import ConnectFour
from nomoat.games.tic_tac_toe import TicTacToe
from nomoat.search.cache import Cached
from nomoat.search.planning import plan, uniform
from nomoat.search.proof import prove
from nomoat.search.replay import Replay, load
from nomoat.search.selection import Gumbel
from nomoat.search.selfplay import SelfPlay, health, playing
from nomoat.search.table import Manner, Table
from nomoat.search.tree import Trees
from nomoat.train.loop import train

GAME = TicTacToe()


def recipe(steps: int, **changes) -> Recipe:
    manner = Manner(simulations=8, cheap=2, openings=2)
    data = SelfPlay(GAME, manner, games=12, every=3, window=150, precision="fp32")  # measured, two runs could differ
    small = AlphaZero(GAME, Tower(8, 1), head=2, hidden=8)
    plain = find("tic-tac-toe")
    return replace(
        plain, family=small, data=replace(data, **changes), budget=Budget.parse(f"{steps}steps"), batch_size=8, ema=None
    )


@cache
def minimax(row: bytes) -> float:
    """The first player's result of tic-tac-toe under perfect play."""
    state = np.frombuffer(row, GAME.start(1).dtype)
    over, value = GAME.outcome(state)
    if over[0]:
        return float(value[0])
    after = [minimax(GAME.step(state, np.array([a])).tobytes()) for a in np.flatnonzero(GAME.legal(state)[0])]
    return min(after) if GAME.mover(state)[0] else max(after)


def test_positions_are_those_of_games_with_their_results() -> None:
    table = Table(GAME, 16, Manner(simulations=8, cheap=2, full=0.5, mix=0.0), np.random.default_rng(0))
    positions = table.play(uniform(9), 9, np.random.default_rng(1))
    count = len(positions["state"])
    assert count > 50
    assert not GAME.outcome(positions["state"]).over_B.any()
    legal = GAME.legal(positions["state"])
    assert not positions["policy"][~legal].any()
    np.testing.assert_allclose(positions["policy"].sum(1), 1, rtol=1e-5)
    assert set(np.unique(positions["value"])) <= {-1.0, 0.0, 1.0}
    assert 0.25 < positions["policy_mask"].mean() < 0.6
    told = table.health.told()
    assert told["games"] >= 16
    assert 4 < told["plies"] <= 9
    assert told["proved"] > 0.1


def test_noise_ends_with_the_moves_that_have_it() -> None:
    """Without noise two games from one position go the same way; with it they do not."""
    seen = []
    for noisy in (0, 1, None):
        manner = Manner(simulations=8, cheap=8, full=1.0, openings=0, noisy=noisy)
        table = Table(GAME, 64, manner, np.random.default_rng(0))
        table.play(uniform(9), 2, np.random.default_rng(1))
        seen.append(len(np.unique(GAME.key(table.state))))
    assert seen[0] == 1 < seen[1] <= 9 < seen[2]


def test_what_a_search_proved_is_the_value_that_is_learned() -> None:
    table = Table(GAME, 32, Manner(simulations=300, full=1.0, mix=1.0), np.random.default_rng(0))
    positions = table.play(uniform(9), 9, np.random.default_rng(1))
    late = np.flatnonzero(GAME.legal(positions["state"]).sum(1) <= 5)
    truth = [minimax(positions["state"][row].tobytes()) for row in late]
    agree = positions["value"][late] == np.array(truth, np.float32)
    assert agree.mean() > 0.8  # the rest was not proved, and is what the search thought
    lost = np.array(truth) * (1 - 2 * GAME.mover(positions["state"][late])) == -1
    assert lost.any()
    assert not positions["policy_mask"][late][lost & agree].any()


def test_games_fork_off_from_those_before_them() -> None:
    table = Table(GAME, 300, Manner(simulations=8, cheap=2, openings=0, forks=0.5), np.random.default_rng(0))
    assert (GAME.legal(table.state).sum(1) == 9).all()  # the first games have none before them
    before = GAME.start(300)
    for ply, action in enumerate((4, 0, 1)):
        table.states[:, ply], before = before, GAME.step(before, np.full(300, action))
    table.length[:] = 3
    table._open(np.arange(300), np.random.default_rng(1))
    stones = 9 - GAME.legal(table.state).sum(1)
    forked = table.left > 0
    assert 0.4 < forked.mean() < 0.6
    assert not stones[~forked].any()
    assert set(stones[forked]) == {0, 1, 2} and set(table.left[forked]) == {1, 2}
    assert (table.astray[forked] == 1).all()
    begun = stones + table.left
    table.play(uniform(9), 2, np.random.default_rng(2))
    assert (table.begun == begun).all() and (table.length == stones + 2).all()
    assert len(np.unique(GAME.key(table.state[forked]))) > 50
    rows = np.flatnonzero(stones == 2)  # the moves at random are in the line, but are not learned
    for ply in range(4):
        assert (9 - GAME.legal(table.states[rows, ply]).sum(1) == ply).all()
    learned = table._ended(np.arange(300), GAME.outcome(table.state)[1], np.random.default_rng(2))
    assert len(learned["value"]) == (stones + 2 - begun).sum()


def test_an_opening_goes_astray_as_often_as_its_game_was_told() -> None:
    """What is not at random is the policy's first choice; an opening ends before the move that ends the game."""

    def likes_the_first(state: np.ndarray) -> Guess:
        return Guess(np.tile(-np.arange(9, dtype=np.float32), (len(state), 1)), np.zeros(len(state), np.float32))

    manner = Manner(simulations=2, cheap=1, openings=9, astray=0.0)
    table = Table(GAME, 2000, manner, np.random.default_rng(0))
    assert abs((table.left > 0).mean() - 0.5) < 0.05 and table.left.max() == 9
    assert abs(table.astray.mean() - 0.5) < 0.05 and table.astray.min() < 0.1
    table.left[:], table.astray[:] = 3, np.linspace(0, 1, 2000)
    table.play(likes_the_first, 3, np.random.default_rng(1))
    liked = (GAME.legal(table.state)[:, :3] == 0).all(1)  # the first three cells are taken
    assert liked[:100].mean() > 0.8 > 0.3 > liked[-100:].mean()
    table.left[:], table.astray[:] = 9, 1.0
    assert not len(table.play(uniform(9), 1, np.random.default_rng(2))["value"])
    for ply in range(5):
        table.play(uniform(9), 1, np.random.default_rng((3, ply)))
        assert not GAME.outcome(table.state).over_B.any()
        assert ((table.left == 0) | (table.begun == table.length)).all()


@pytest.mark.parametrize("wrong", [{"astray": 1.5}, {"forks": -0.1}, {"mix": 2.0}, {"cheap": 0}, {"openings": -1}])
def test_how_games_cannot_be_played_is_said(wrong: dict[str, float]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=rf"{name}.* {value}"):
        Manner(**wrong)


def test_games_that_fork_off_from_forks_do_not_begin_later_and_later() -> None:
    table = Table(GAME, 200, Manner(simulations=2, cheap=1, openings=0, forks=1.0), np.random.default_rng(0))
    chance, begun = np.random.default_rng(3), list[float]()
    for _ in range(60):
        table.play(uniform(9), 1, chance)
        begun.append(float(table.begun.mean()))
    assert np.mean(begun[-20:]) < 5
    assert table.health.plies / table.health.games > 6  # whole games are counted


def test_what_a_value_learns_of_what_came_after() -> None:
    table = Table(GAME, 2, Manner(mix=0.25), np.random.default_rng(0))
    table.length[:], table.begun[:] = (3, 2), 0
    table.values[:, :3], table.known[:] = [[0.4, 0.0, -0.4], [0.8, 0.0, 9.0]], np.nan
    table.known[0, 1] = 1.0
    learned = table._ended(np.array([0, 1]), np.array([0.0, -1.0]), np.random.default_rng(0))["value"]
    np.testing.assert_allclose(learned, [0.1, 1.0, -0.1, -0.75 + 0.2, -0.75], rtol=1e-6)


def test_a_batch_shows_positions_under_symmetries_with_what_belongs_to_them() -> None:
    data, game = SelfPlay(ConnectFour()), ConnectFour()
    state = game.step(game.step(game.start(64), np.full(64, 1)), np.full(64, 0))
    policy = np.zeros((64, 7), np.float32)
    policy[:, 2] = 1
    positions = {
        "state": state,
        "policy": policy,
        "policy_mask": np.ones(64, np.float32),
        "value": np.ones(64, np.float32),
    }
    batch = data.batch(positions, np.random.default_rng(0))
    at = batch["policy"].argmax(1)
    assert set(at.tolist()) == {2, 4}
    plain = torch.from_numpy(game.observe(state[:1]))[0]
    for planes, which in zip(batch["planes"], at, strict=True):
        assert torch.equal(planes, plain if which == 2 else plain.flip(2))
    assert torch.equal(batch["value"], torch.ones(64))  # the first player is to move
    third = data.batch({**positions, "state": game.step(state, np.full(64, 3))}, np.random.default_rng(0))
    assert torch.equal(third["value"], -torch.ones(64))


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(tmp_path: Path) -> None:
    whole = train(recipe(14), Run.create(tmp_path, "whole", recipe(14)))
    run = Run.create(tmp_path, "parts", recipe(14))

    def stop(event) -> None:
        if event["kind"] == "step" and event["step"] == 7:
            raise KeyboardInterrupt

    run.watch = stop
    cut = replace(recipe(14), keep_every_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(cut, run)
    again = train(cut, Run.open(run.path))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert [line["step"] for line in health(run.path)] == [0, 3, 6, 9, 12]


def test_workers_play_beside_and_no_finished_game_is_lost(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "beside", recipe(6, workers=2, reuse=0.5))
    train(recipe(6, workers=2, reuse=0.5), run)
    parts = sorted((run.path / "games").glob("part-*.npz"))
    assert {path.stem.split("-")[2] for path in parts} <= {"1", "2"}
    assert len(parts) > 1
    assert run.decided("threads") == max(1, torch.get_num_threads() - 2)
    held = sum(len(load(path)["state"]) for path in parts)
    replay = Replay(run.path / "games", 10_000)
    assert replay.read() == held
    assert {line["worker"] for line in health(run.path)} <= {1, 2}


def test_parts_beyond_a_step_are_forgotten_once_another_is_written(tmp_path: Path) -> None:
    some = {"state": np.zeros(3), "value": np.arange(3.0)}
    for step in (0, 4, 8):
        Replay(tmp_path, 100).write(step, some)
    replay = Replay(tmp_path, 100)
    assert replay.read(until=4) == 6
    assert len(list(tmp_path.glob("part-*"))) == 3
    replay.write(6, some)
    assert [path.stem for path in sorted(tmp_path.glob("part-*"))] == [f"part-0000000{n}-0" for n in (0, 4, 6)]
    assert (replay.total, replay.count) == (9, 9)
    small = Replay(tmp_path, 4)
    small.read()
    assert (small.total, small.count) == (9, 4)
    assert set(small.draw(50, np.random.default_rng(0))["value"]) == {0.0, 1.0, 2.0}
    (tmp_path / "part-00000004-0.npz").write_bytes(b"PK torn")
    with pytest.raises(DataError, match="part-00000004-0"):
        Replay(tmp_path, 9).read()


def test_what_is_remembered_is_what_was_guessed() -> None:
    torch.manual_seed(0)
    player, game = AlphaZero(ConnectFour(), Tower(8, 1)).build({}), ConnectFour()
    torch.nn.init.normal_(player.policy_output.weight)
    cached = Cached(game, player.eval().guess, bits=6)  # few places: many are overwritten
    chance = np.random.default_rng(0)
    state = game.start(40)
    for _ in range(6):
        state = game.step(state, chance.integers(7, size=40))
        both = np.concatenate((state, state[:10]))
        plain, again = player.guess(both), cached(both)
        np.testing.assert_allclose(again.logits_BA, plain.logits_BA, atol=1e-5)
        np.testing.assert_allclose(again.value_B, plain.value_B, atol=1e-6)
    asked, missed = cached.asked, cached.missed
    assert missed < asked
    cached(both[-1:])
    cached(both[-1:])
    assert cached.missed <= missed + 1


def test_who_takes_the_first_free_cell_loses_and_who_plays_perfectly_does_not() -> None:
    first = prove(GAME, lambda state: GAME.legal(state).argmax(1))
    assert first.lost > 0
    assert GAME.outcome(first.example[None]).over_B[0]

    def perfect(state: np.ndarray) -> np.ndarray:
        sign = 1 - 2 * GAME.mover(state)
        after = [GAME.step(state, np.full(len(state), action)) for action in range(9)]
        values = np.array([[minimax(row.tobytes()) for row in each] for each in after]).T * sign[:, None]
        return np.where(GAME.legal(state), values, -2).argmax(1)

    best = prove(GAME, perfect)
    assert best.lost == 0
    assert best.positions > 200


def test_the_precision_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nomoat.search import selfplay

    family, data = recipe(1).build(), replace(recipe(1).data, precision="auto").at(tmp_path)
    monkeypatch.setattr(selfplay, "has_bf16", lambda device: False)
    assert selfplay.faster(family, GAME) == ("fp32", 0.0)
    monkeypatch.setattr(selfplay, "has_bf16", lambda device: True)
    assert selfplay.faster(family, GAME)[1] > 0
    monkeypatch.setattr(selfplay, "faster", lambda family, game: ("bf16", 2.0))
    assert replace(data, precision="fp32")._decided(family) == "fp32"
    assert data._decided(family) == "bf16"
    monkeypatch.setattr(selfplay, "faster", lambda family, game: ("fp32", 0.5))
    assert data._decided(family) == "bf16"


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SelfPlay(GAME, games=0)
    with pytest.raises(ConfigError, match="one training process"):
        next(iter(SelfPlay(GAME).stream(None, 4, 0, world=2)))
    with pytest.raises(ConfigError, match="need a run"):
        next(iter(SelfPlay(GAME, workers=1).stream(AlphaZero.tiny().build({}), 4, 0)))
    with pytest.raises(ConfigError, match="no precision `fp8`"):
        SelfPlay(GAME, precision="fp8")
    with pytest.raises(ConfigError, match="is no game"):
        AlphaZero(game="go")


@pytest.mark.slow
def test_a_minute_of_tic_tac_toe_makes_a_player_that_never_loses(tmp_path: Path) -> None:
    plain = find("tic-tac-toe")
    family = train(plain, Run.create(tmp_path, "never", plain))

    def raw(state: np.ndarray) -> np.ndarray:
        guess = family.guess(state)
        return np.where(GAME.legal(state), guess.logits_BA, -np.inf).argmax(1)

    def searched(state: np.ndarray) -> np.ndarray:
        return plan(Trees(GAME, state, family.guess), Gumbel(), 32).action_B

    with playing(family, "fp32"):
        assert prove(GAME, raw).lost == 0
        assert prove(GAME, searched).lost == 0
