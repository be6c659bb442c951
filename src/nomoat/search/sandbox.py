"""The sandbox: runs programs in limited processes of their own, and answers by a deadline with nothing left behind.

    source, stdin -Sandbox.run-> an idle jail (a process: `jail.py`), or a new one -> Ended(exit, output, killed_for)
                                 no answer by the deadline and a grace: the jail is killed too

What holds: a deadline; limits of processor time, memory, processes, files, disk and output; an empty folder that
vanishes; an empty environment; Python's own library, without installed packages. On Linux, where the kernel allows it,
also: no network, no other processes to be seen, nothing else to be written. `Sandbox.missing` says what is not there.

This is not a security boundary. Programs share the kernel, and can read what this user can read (as root: what nobody
could). Memory is limited for each process, so that all of a program may take `memory` times `processes`.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from nomoat.core.errors import ConfigError, NomoatError

JAIL = Path(__file__).with_name("jail.py")
GRACE = 10.0
"""Seconds after a deadline in which a jail must have killed its program and said so."""
START = 60.0
"""Seconds in which a jail must have begun."""


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Args:
        seconds: from its start until it is killed with all that it has started.
        cpu: seconds of processor time of each of its processes; None: as many as it has seconds.
        memory: bytes of address space of each of its processes; Python itself takes some 30 MB.
        processes: threads and processes at once, about.
        disk: bytes that all of its files may take (where there are no namespaces: each).
        files: open at once.
        output: bytes that it may write to stdout, and as many to stderr; it is killed when it writes more.
    """

    seconds: float = 5.0
    cpu: int | None = None
    memory: int = 512 << 20
    processes: int = 16
    disk: int = 16 << 20
    files: int = 64
    output: int = 64 << 10

    def __post_init__(self) -> None:
        wrong = [name for name, value in asdict(self).items() if value is not None and not 0 < value < math.inf]
        if wrong:
            raise ConfigError(
                f"a program cannot run with {wrong[0]} = {getattr(self, wrong[0])}", fix="use more than 0"
            )


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Args:
        exit: its exit code; -9 and the like: the signal that ended it; None: it was killed by its limits, or never ran.
        output: what it wrote to stdout, from the beginning.
        errors: and to stderr.
        seconds: until all of it was gone.
        killed_for: `time`, `output`, `cpu`, `memory`, or nothing.
    """

    exit: int | None
    output: str = ""
    errors: str = ""
    seconds: float = 0.0
    killed_for: str = ""

    @property
    def timed_out(self) -> bool:
        """It took too long, by the clock or of the processor."""
        return self.killed_for in ("time", "cpu")

    def __str__(self) -> str:
        """In a few words: how it ended, and the last line of its errors."""
        if self.killed_for:
            return f"killed: too much {self.killed_for}"
        last = self.errors.strip().rpartition("\n")[2][:200]
        how = "it could not be run" if self.exit is None else f"exit code {self.exit}"
        return f"{last or 'no words'} ({how})" if self.exit != 0 else "ended well"


class Sandbox:
    """Runs programs, as many at once as threads call `run`; each has a jail to itself while it runs.

    Jails are kept for the next program. They end with `close`, with the sandbox or with this process, however it ends.

    Args:
        limits: of programs that bring none of their own.
        without: for tests: do without `namespaces`, or without another `user` as root, as other machines must.
    """

    def __init__(self, limits: Limits = Limits(), without: Iterable[str] = ()) -> None:
        if sys.platform == "win32":
            raise ConfigError("programs cannot be run on Windows", "it has no such limits", "use Linux, or WSL")
        self.limits, self._without = limits, tuple(without)
        self._idle: list[_Jail] = []
        weakref.finalize(self, _kill_all, self._idle)

    @property
    def missing(self) -> tuple[str, ...]:
        """What does not hold on this machine, in words; empty: all holds."""
        jail = self._jail()
        self._idle.append(jail)
        return jail.missing

    def run(self, source: str, stdin: str = "", limits: Limits | None = None, ours: bool = False) -> Ended:
        """Run a Python program.

        Args:
            source: of the program.
            stdin: what it reads there; it is not in memory of the program before it is read.
            limits: its own.
            ours: nobody else wrote it, and it is run often: it is compiled once.

        Raises:
            NomoatError: no process can be started.
        """
        allowed = limits or self.limits
        jail, ended, begun = self._jail(), None, time.monotonic()
        try:
            ended = jail.answer({"source": source, "ours": ours} | asdict(allowed), stdin)
        finally:
            if ended is None:
                jail.kill()
            else:
                self._idle.append(jail)
        seconds = time.monotonic() - begun
        return ended or Ended(None, "", "the jail has ended", seconds, "time" if seconds > allowed.seconds else "")

    def _jail(self) -> _Jail:
        while self._idle:
            with suppress(IndexError):  # another thread has taken it
                if (jail := self._idle.pop()).alive():
                    return jail
                jail.kill()
        return _Jail(self._without)

    def close(self) -> None:
        """End all jails that are idle."""
        _kill_all(self._idle)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _kill_all(jails: list[_Jail]) -> None:
    while jails:
        jails.pop().kill()


class _Jail:
    """A process that runs one program after another."""

    def __init__(self, without: tuple[str, ...]) -> None:
        self._place = tempfile.mkdtemp(prefix="nomoat-")
        Path(self._place).chmod(0o711)
        command = [sys.executable, "-I", "-S", "-B", str(JAIL), self._place, ",".join(without)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, start_new_session=True
        )
        hello = self._line(time.monotonic() + START)
        if hello is None:
            self.kill()
            raise NomoatError("no program can be run", f"{' '.join(command)} does not answer", "run it by hand")
        self.missing: tuple[str, ...] = tuple(hello["missing"])

    def alive(self) -> bool:
        return self._process.poll() is None

    def answer(self, job: dict[str, Any], stdin: str) -> Ended | None:
        """How a program ended; None: nobody says so in time."""
        given = _written(stdin) if stdin else None
        job |= {"stdin": str(given or ""), "cpu": job["cpu"] or math.ceil(job["seconds"])}
        try:
            self._pipe(self._process.stdin).write(json.dumps(job).encode() + b"\n")
            self._pipe(self._process.stdin).flush()
            said = self._line(time.monotonic() + job["seconds"] + GRACE)
        except OSError:  # it has ended
            said = None
        if given:
            given.unlink(missing_ok=True)
        return None if said is None else Ended(**said)

    def kill(self) -> None:
        """End it, with whatever runs in it."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            self._pipe(self._process.stdin).close()
        self._pipe(self._process.stdout).close()
        shutil.rmtree(self._place, ignore_errors=True)

    def _line(self, deadline: float) -> dict[str, Any] | None:
        pipe, poll, held = self._pipe(self._process.stdout).fileno(), select.poll(), b""
        poll.register(pipe, select.POLLIN)
        while not held.endswith(b"\n"):
            ready = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
            piece = os.read(pipe, 1 << 16) if ready else b""
            if not piece:
                return None
            held += piece
        found: dict[str, Any] = json.loads(held)
        return found

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


def _written(stdin: str) -> Path:
    """A file that a jail opens and removes: what is in it is not in the memory that programs inherit."""
    handle, path = tempfile.mkstemp(prefix="nomoat-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(stdin)
    return Path(path)
