"""A crew: threads that wait inside native code for the next step, so that handing it to them takes a microsecond.

    perform(tables) -> counter up -> every thread walks -> last barrier -> done

Python starts each thread once; it then waits in native code, without the interpreter's lock, for up to a hundredth of
a second, and sleeps in Python after that. The caller is thread 0 and walks along.
"""

from __future__ import annotations

import threading
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

from nomoat.nn.steps import work
from nomoat.nn.vectors import add_to, give_way, seen_at

GO, DONE, TABLES = 0, 8, 16
"""Places in the shared page, in int64, each in a cache line of its own: jobs handed out, ends reported, the job."""
PATIENCE = 200_000
"""Looks at the counter before a thread goes to sleep: some hundredths of a second."""


def _stamp() -> int:
    """A number that changes with the code below: Numba's cache looks at one file's date, not at what that calls."""
    files = (Path(__file__).with_name(f"{name}.py") for name in ("vectors", "steps", "crew"))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


def _translated(stamp: int) -> tuple[Any, Any, Any]:
    """The ways in, from the cache where the stamp is the same: of a thread that waits, and two of the caller."""

    @kept
    def wait_and_work(thread, threads, page, turn):
        """Do every job from number `turn` on; returns the number of the one that did not come."""
        looks = stamp - stamp
        while True:
            if seen_at(page + 8 * GO) > turn:
                work(thread, threads, seen_at(page + 8 * TABLES))
                add_to(page + 8 * DONE, 1)
                turn += 1
                looks = 0
            looks += 1
            if looks % 2048 == 0:
                give_way(0)
            if looks > PATIENCE:
                return turn

    @kept
    def lead(threads, page, turn):
        """Thread 0's share; no memory of the job is touched by another thread once this returns."""
        looks = stamp - stamp
        work(0, threads, seen_at(page + 8 * TABLES))
        while seen_at(page + 8 * DONE) < turn * (threads - 1):
            looks += 1
            if looks % 4096 == 0:
                give_way(0)

    @kept
    def post(page):
        """Hand out a job; what was written before this is seen by whoever sees it."""
        return add_to(page + 8 * GO, 1 + stamp - stamp) + 1

    return wait_and_work, lead, post


kept: Any = njit(nogil=True, cache=True)
wait_and_work, lead, post = _translated(_stamp())


class Crew:
    """So many threads, the caller among them.

    Args:
        threads: at least 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = threading.Lock()
        self.page = np.zeros(32, dtype=np.int64)
        self._wake = [threading.Event() for _ in range(threads)]
        self._asleep = [False] * threads
        self._address = self.page.ctypes.data
        for number in range(1, threads):
            threading.Thread(target=self._serve, args=(number,), name=f"crew-{number}", daemon=True).start()

    def perform(self, tables: int) -> None:
        """Let all threads do the job at these tables, and wait for the end; one step at a time."""
        with self.lock:
            self.page[TABLES] = tables
            turn = post(self._address)  # before the look at who sleeps: a thread looks the other way round
            for number in range(1, self.threads):
                if self._asleep[number]:
                    self._wake[number].set()
            lead(self.threads, self._address, turn)

    def _serve(self, number: int) -> None:
        turn: Any = 0
        while True:
            turn = wait_and_work(number, self.threads, self._address, turn)
            self._asleep[number] = True
            if self.page[GO] <= turn:
                self._wake[number].wait()
            self._wake[number].clear()
            self._asleep[number] = False


def crew(threads: int | None = None) -> Crew:
    """The crew of this process with so many threads; None: as many as torch uses."""
    return _crew(threads or torch.get_num_threads())


_crew = cache(Crew)
