"""Self-play as data: the family that is trained plays itself, and learns what search and the results say of it.

    live family -guess-> Table -play a round-> Replay (parts in the run) -draw(seed, step)-> turned -> batch

In one process a round is played every so many steps, with the weights as they are then; with the games in progress
kept beside the parts, a resumed run is bit-equal. With workers, games are played beside the training, each worker with
the newest weights that it finds; no game that ended is lost, but no two runs are alike. Silver et al. 2018.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from nomoat.core import durable
from nomoat.core.device import autocast, has_bf16
from nomoat.core.domain import Value
from nomoat.core.errors import ConfigError, nearest
from nomoat.core.types import Batch
from nomoat.games.connect_four import ConnectFour
from nomoat.games.rules import random_actions
from nomoat.search.cache import Cached
from nomoat.search.replay import Positions, Replay, load, number, store
from nomoat.search.table import Health, Manner, Table
from nomoat.search.workers import Workers

FOLDER, HEALTH, PRECISION = "games", "health.jsonl", "precision.jsonl"
"""In the run: where parts lie, what was noted of each round, and in which precision is played."""
PRECISIONS = ("auto", "fp32", "bf16")
BOARDS, TURNS = 256, 7
"""Looked at, so many times, to see which precision is faster."""


@dataclass(frozen=True)
class SelfPlay:
    """Recipe data: `planes`, `legal`, `policy`, `policy_mask` and `value` (the mover's) of positions that were played.

    Args:
        game: the rules.
        manner: how games are played.
        games: that are played at once (by each worker).
        every: steps between rounds, in one process.
        reuse: how often a position is drawn, in the mean: so many games are played for it.
        window: newest positions that are drawn from.
        workers: processes that play beside the training; 0: none, the training's own process plays.
        precision: in which the network plays; `auto`: what is faster here, measured once and kept in the run.
    """

    game: Any = ConnectFour()
    manner: Manner = Manner()
    games: int = 256
    every: int = 32
    reuse: float = 4.0
    window: int = 300_000
    workers: int = 0
    precision: str = "auto"
    folder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if min(self.games, self.every, self.window) < 1 or self.reuse <= 0 or self.workers < 0:
            raise ConfigError(
                "games, every and window are at least 1, reuse is above 0, workers at least 0",
                f"they are {self.games}, {self.every}, {self.window}, {self.reuse}, {self.workers}",
            )
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ConfigError(f"there is no precision `{self.precision}`", known, nearest(self.precision, PRECISIONS))

    def at(self, run: Path) -> SelfPlay:
        """The same, with its games kept in a run."""
        return replace(self, folder=str(run / FOLDER))

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """The batch of every step from `start` on, without end; what the loop calls.

        Raises:
            ConfigError: more than one process trains; use workers.
            DataError: what was played cannot be read.
        """
        if world > 1:
            raise ConfigError(
                "self-play feeds one training process", f"there are {world}", "set processes=1 and workers"
            )
        folder = Path(self.folder) if self.folder else None
        replay = Replay(folder, self.window, self.game)
        decided = replace(self, precision=self._decided(family))
        play = decided._beside if self.workers else decided._between
        for step in play(family, replay, batch_size, seed, start):
            chance = np.random.default_rng((seed, 1, step))
            yield self.batch(replay.draw(batch_size, chance), chance)

    def _decided(self, family: Any) -> str:
        """The precision to play in: what was said, or kept, or else is measured and kept."""
        if self.precision != "auto":
            return self.precision
        kept = Path(self.folder) / PRECISION if self.folder else None
        for line in durable.lines(kept) if kept is not None else ():
            return str(line["precision"])
        precision, ratio = faster(family, self.game)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            durable.append(kept, {"precision": precision, "bf16_over_fp32": ratio})
        return precision

    def batch(self, positions: Positions, chance: np.random.Generator) -> Batch:
        """Positions as a family reads them, each under a symmetry of the game by chance."""
        game, state = self.game, positions["state"]
        planes, policy, legal = game.observe(state), positions["policy"], game.legal(state)
        which = chance.integers(game.symmetries, size=len(state))
        turned, policy = game.turned(planes, policy, which)
        _, legal = game.turned(planes, legal, which)
        sign = 1 - 2 * game.mover(state).astype(np.float32)
        arrays = {
            "planes": turned.astype(np.float32),
            "legal": np.ascontiguousarray(legal),
            "policy": policy.astype(np.float32),
            "policy_mask": positions["policy_mask"],
            "value": positions["value"] * sign,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _between(self, family: Any, replay: Replay, batch_size: int, seed: int, start: int) -> Iterator[int]:
        """Steps, with a round of play before each that is due."""
        if start < self._oldest():  # a look at what batches are like, before a run goes on from a checkpoint
            replay.read()
            while replay.count:
                yield start
                start += 1
        table = Table(self.game, self.games, self.manner, np.random.default_rng((seed, 0)))
        at = self._resume(table, start)
        replay.read(at)  # a part whose games in progress were not kept any more is played again
        step = start
        while True:
            if step % self.every == 0 and step > at:
                wanted = self.every * batch_size / self.reuse
                # The first round is one of whole games: nothing ends before.
                moves = self.game.plies if not replay.count else max(1, round(wanted / self.games))
                table.health = Health()
                with playing(family, self.precision) as guess:
                    positions = table.play(Cached(self.game, guess), moves, np.random.default_rng((seed, 0, step)))
                replay.write(step, positions)
                self._keep(table, step)
                at = step
            yield step
            step += 1

    def _beside(self, family: Any, replay: Replay, batch_size: int, seed: int, start: int) -> Iterator[int]:
        """Steps, while workers play; a step waits until there are games enough."""
        replay.read()
        with Workers(self, family, seed) as workers:
            step = start
            while True:
                if step % self.every == 0:
                    workers.show(family)
                    replay.read()
                while not replay.count or (step + 1) * batch_size > self.reuse * replay.total:
                    workers.wait()
                    replay.read()
                yield step
                step += 1

    def _oldest(self) -> int:
        """The step of the run's oldest checkpoint; 0 where there is none."""
        found = (Path(self.folder).parent / "checkpoints").glob("step-*") if self.folder else ()
        return min(map(number, found), default=0)

    def _resume(self, table: Table, start: int) -> int:
        """Take up the games in progress at a step; the step of the round that they are of, -1 where there are none."""
        if not self.folder:
            return -1
        paths = [path for path in Path(self.folder).glob("table-*.npz") if number(path) <= start]
        if not paths:
            return -1
        newest = max(paths, key=number)
        table.take(load(newest, self.game))
        return number(newest)

    def _keep(self, table: Table, step: int) -> None:
        """Keep the games in progress, and note how the round went."""
        if not self.folder:
            return
        folder = Path(self.folder)
        paths = sorted(folder.glob("table-*.npz"), key=number)
        gone = [path for path in paths if number(path) <= self._oldest()][:-1]  # no checkpoint begins before the last
        for path in [*gone, *(path for path in paths if number(path) >= step)]:
            path.unlink()
        store(folder / f"table-{step:08}.npz", table.kept(), self.game)
        durable.append(folder / HEALTH, {"step": step, **table.health.told()})


def faster(family: Any, game: Any) -> tuple[str, float]:
    """`bf16` where the network looks at boards a tenth faster in it, else `fp32`; and how many times as fast it was."""
    if not has_bf16(next(family.product.parameters()).device):
        return "fp32", 0.0
    chance, state, taken = np.random.default_rng(0), game.start(BOARDS), {"fp32": list[float](), "bf16": list[float]()}
    for _ in range(min(4, game.plies - 1)):
        after = game.step(state, random_actions(game, state, chance))
        on = ~game.outcome(after).over_B
        state[on] = after[on]
    for _ in range(TURNS):
        for precision, seconds in taken.items():
            with playing(family, precision) as guess:
                began = time.perf_counter()
                guess(state)
                seconds.append(time.perf_counter() - began)
    ratio = median(taken["fp32"]) / median(taken["bf16"])
    return ("bf16" if ratio > 1.1 else "fp32"), ratio


@contextmanager
def playing(family: Any, precision: str) -> Iterator[Value]:
    """The family as the one who plays: its guesses, in eval mode."""
    product = family.product
    was = product.training
    product.eval()
    try:
        with autocast(next(product.parameters()).device, precision):
            yield product.guess
    finally:
        product.train(was)


def health(run: Path) -> list[dict[str, Any]]:
    """What was noted of each round of a run; a step that was played twice counts as it was last."""
    path = run / FOLDER / HEALTH
    found = {line["step"]: line for line in durable.lines(path)} if path.exists() else {}
    return [found[step] for step in sorted(found)]


def panel(health: Mapping[str, Any]) -> str:
    """A round's health in one line, with what is amiss."""
    told = (
        f"{health['plies']:.0f} plies a game, the first wins {health['first_wins']:.0%}, draws {health['draws']:.0%}, "
        f"policy entropy {health['policy_entropy']:.2f} nats, {health['openings']:.0%} of the openings differ, "
        f"{health['proved']:.0%} of the searches proved, in {health['mistakes']:.0%} of them the policy was mistaken, "
        f"values off by {health['calibration']:.2f}"
    )
    amiss = []
    if health["openings"] < 0.1:
        amiss.append("it plays the same openings over and over: raise data.manner.openings")
    if health["policy_entropy"] < 0.05:
        amiss.append("its searches hardly look at more than one move: lower data.manner.rule.scale")
    return "; ".join([told, *amiss])
