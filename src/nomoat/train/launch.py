"""Several processes for one training run: this one is rank 0, the others are started here and end with it.

    train -> gather -> rank 0 (writes, decides, watches the clock) <-- gloo sums over loopback --> rank 1, 2, ...

A worker reads what it is to do from its standard input (pickled by its parent, never from a file), takes no signals,
writes nothing but `worker-N.log`, and ends as soon as that input closes, that is with its parent, however it dies.
Rendezvous is a file in the run directory; sockets are bound to the loopback interface alone.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nomoat.core.errors import RunError

START_SECONDS = 120.0
SUM_SECONDS = 1800.0  # rank 0 may be evaluating, saving or writing a sample meanwhile
WORK = "from nomoat.train.launch import work; work()"


@dataclass
class Group:
    """The processes of one run, seen from one of them.

    Args:
        rank: 0 is the one that writes.
        world: how many there are; 1 needs no communication at all.
        workers: the others, where this is rank 0.
    """

    rank: int = 0
    world: int = 1
    workers: list[Worker] = field(default_factory=list)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors of one dtype over the processes, in place; every process gets the same bits.

        Raises:
            RunError: another process died.
        """
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._call(lambda: dist.all_reduce(flat))
        for tensor, piece in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))

    def share(self, value: Any = None) -> Any:
        """What rank 0 gives, on every process.

        Raises:
            RunError: another process died.
        """
        if self.world == 1:
            return value
        box = [value]
        self._call(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def _call(self, collective: Any) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise self.death(error) from error

    def death(self, error: Exception | None = None) -> RunError:
        """The error to raise when a process has died: which, and the last words in its log."""
        until = time.monotonic() + 2.0
        while self.workers and time.monotonic() < until and all(one.code is None for one in self.workers):
            time.sleep(0.02)
        dead = next((one for one in self.workers if one.code is not None), None)
        why = str(error or "") if dead is None else f"it ended with code {dead.code}: {dead.last_words()}"
        return RunError(
            f"process {dead.rank if dead else 'X'} of {self.world} has died" if dead else "another process has died",
            why,
            "the last good checkpoint is kept: `nomoat resume` goes on from there, with processes=1 if it must",
        )


@dataclass
class Worker:
    """A started process, its rank and where its output goes."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def last_words(self) -> str:
        """The last line it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else f"no word of it; see {self.log}"


@contextmanager
def gather(world: int, folder: Path, task: Any) -> Iterator[Group]:
    """Start `world - 1` workers on `task(group)` and yield rank 0's group; they end with the block.

    Args:
        world: how many processes in all.
        folder: where the rendezvous file and the workers' logs go.
        task: a picklable callable of a module that the workers can import; called there with their group.

    Raises:
        RunError: a worker did not start.
    """
    if world == 1:
        yield Group()
        return
    rendezvous = folder / f".rendezvous-{os.getpid()}"
    rendezvous.unlink(missing_ok=True)
    threads = torch.get_num_threads()
    share = max(1, threads // world)
    group, patience = Group(0, world), 0.0
    try:
        for rank in range(1, world):
            group.workers.append(_start(rank, world, folder / f"worker-{rank}.log", (rendezvous, share, task)))
        _join(group, rendezvous)
        torch.set_num_threads(share)
        yield group
        patience = 30.0
    finally:
        torch.set_num_threads(threads)
        _part(group, patience)
        rendezvous.unlink(missing_ok=True)


def _start(rank: int, world: int, log: Path, what: tuple[Path, int, Any]) -> Worker:
    rendezvous, threads, task = what
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", WORK],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches rank 0 alone, which tells the others
        )
    assert process.stdin is not None
    worker = Worker(rank, process, log)
    try:
        process.stdin.write(pickle.dumps(list(sys.path)) + pickle.dumps((rank, world, str(rendezvous), threads, task)))
        process.stdin.flush()
    except BrokenPipeError:
        raise Group(0, world, [worker]).death() from None
    return worker


def _join(group: Group, rendezvous: Path) -> None:
    """Wait until all have said that they are there, then connect; a worker that dies meanwhile is an error at once."""
    store = dist.FileStore(str(rendezvous), group.world)
    until = time.monotonic() + START_SECONDS
    while not store.check([f"here-{worker.rank}" for worker in group.workers]):
        if any(worker.code is not None for worker in group.workers):
            raise group.death()
        if time.monotonic() > until:
            raise RunError(f"the worker processes did not start within {START_SECONDS:.0f} s", "", "use processes=1")
        time.sleep(0.02)
    _connect(store, 0, group.world)


def _connect(store: dist.FileStore, rank: int, world: int) -> None:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    try:
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=SUM_SECONDS)
        )
    finally:
        if before is None:
            del os.environ["GLOO_SOCKET_IFNAME"]
        else:
            os.environ["GLOO_SOCKET_IFNAME"] = before


def _part(group: Group, patience: float) -> None:
    """Wait up to `patience` seconds for the workers, which leave by themselves when they are done; end the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
    for worker in group.workers:
        assert worker.process.stdin is not None
        try:
            worker.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        with suppress(BrokenPipeError):
            worker.process.stdin.close()
        if worker.code == 0:
            worker.log.unlink(missing_ok=True)


def work() -> None:
    """A worker's whole life: read the task, join the others, do it."""
    given = sys.stdin.buffer
    sys.path[:] = pickle.load(given)  # from our parent, through a pipe that nobody else holds
    rank, world, rendezvous, threads, task = pickle.load(given)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    store = dist.FileStore(rendezvous, world)
    store.set(f"here-{rank}", "1")
    _connect(store, rank, world)
    task(Group(rank, world))
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # taking the interpreter down in order would keep rank 0 waiting for seconds


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not through `sys.stdin`, whose lock Python wants when it ends
        pass
    os._exit(3)
