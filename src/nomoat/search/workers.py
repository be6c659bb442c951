"""Processes that play beside the training: each with the newest weights, each with parts of its own.

    training -show-> weights.safetensors -> worker: Table -play-> part-ROUND-WORKER.npz -> the training's Replay

A worker ends with its training, however that ends; Ctrl-C is the training's business. Games in progress are lost then,
games that had ended are not.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from nomoat.core import durable
from nomoat.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from nomoat.search.selfplay import SelfPlay

WEIGHTS = "weights.safetensors"
POLL = 0.02
ROUND = 8
"""Moves of each game in a round."""


class Workers:
    """The processes, from `with` to its end.

    Args:
        data: how is played; its folder is where.
        family: whose weights are shown.
        seed: of the run; each worker's games differ.

    Raises:
        ConfigError: there is no run to keep games in.
    """

    def __init__(self, data: SelfPlay, family: Any, seed: int) -> None:
        if not data.folder:
            raise ConfigError("workers need a run, in which their games lie", fix="set workers=0, or train in a run")
        self.folder = Path(data.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.show(family)
        context = multiprocessing.get_context("spawn")
        self.all = [
            context.Process(target=_work, args=(data, family.product.config, seed, worker, os.getpid()), daemon=True)
            for worker in range(1, data.workers + 1)
        ]

    def __enter__(self) -> Workers:
        for process in self.all:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.all:
            process.terminate()
            process.join(5)
            if process.is_alive():
                process.kill()

    def show(self, family: Any) -> None:
        """Let the workers have the weights as they are."""
        from safetensors.torch import save

        durable.replace(
            self.folder / WEIGHTS, save({k: v.detach().contiguous() for k, v in family.product.kept().items()})
        )

    def wait(self) -> None:
        """A moment.

        Raises:
            RunError: a worker has died.
        """
        time.sleep(POLL)
        dead = [process.exitcode for process in self.all if process.exitcode is not None]
        if dead:
            raise RunError(
                f"{len(dead)} of {len(self.all)} workers died",
                f"exit codes {', '.join(map(str, dead))}; what they said stands above",
                "`nomoat resume` goes on from the last checkpoint; no game that had ended is lost",
            )


def _work(data: SelfPlay, config: Any, seed: int, worker: int, parent: int) -> None:
    """What a worker does until its training is gone."""
    import torch
    from safetensors.torch import load

    from nomoat.search.cache import Cached
    from nomoat.search.replay import number, store
    from nomoat.search.selfplay import HEALTH, playing
    from nomoat.search.table import Health, Table

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    folder, family = Path(data.folder), config.build({})
    table = Table(data.game, data.games, data.manner, np.random.default_rng((seed, worker)))
    done = [number(path) for path in folder.glob(f"part-*-{worker}.npz")]
    step, shown, cached = max(done, default=-1) + 1, b"", None
    while os.getppid() == parent:
        weights = (folder / WEIGHTS).read_bytes()
        if weights != shown or cached is None:
            family.take(load(weights))
            shown, cached = weights, None
        table.health = Health()
        with playing(family, data.precision) as guess:
            cached = cached or Cached(data.game, guess)
            positions = table.play(cached, ROUND, np.random.default_rng((seed, worker, step)))
        if len(positions["state"]):
            store(folder / f"part-{step:08}-{worker}.npz", positions, data.game)
            durable.append(folder / HEALTH, {"step": step, "worker": worker, **table.health.told()})
            step += 1
