"""Runs strangers' programs, one after another, each in a tree of processes that is dead before it is answered for.

    line on stdin -> fork: new PID, IPC and mount namespaces -> fork: PID 1 -> fork: limits, no rights, the program
         stdout, stderr of the program, read up to a cap <------------------------+
    line on stdout <- exit, output, what it was killed for <- all of the tree killed and waited for

It is started by `sandbox.py` as `python -I -S jail.py`, and imports nothing of ours. When PID 1 of a namespace dies,
the kernel kills whatever is left in it, and lets it be waited for only when all are dead (man 7 pid_namespaces). Where
there are no namespaces, orphans come to this process (man 2 PR_SET_CHILD_SUBREAPER), which kills them.

A limit on accidents and on what small models learn to try, not a security boundary: the kernel is shared, and whatever
this user can read the program can read.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import heapq
import itertools
import json
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import string
import struct
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

COMMON = (collections, functools, heapq, itertools, math, random, re, string)
"""Imported here, once, so that no program has to wait for them."""
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
PDEATHSIG, DUMPABLE, SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
MOUNT_SETATTR, HERE, RECURSIVE = 442, -100, 0x8000
CAPABILITIES = 0x20080522
NOBODY = 1_900_000_000
"""User ids from here on are taken to be nobody's; each jail has its own, so that its processes are counted alone."""
INSIDE = 1000
"""The user inside a user namespace: not root, so that starting a program gives no rights back."""
NODES, CHUNK = 10_000, 1 << 16
LIBRARY = str(Path(os.__file__).parent)
Program = str | types.CodeType


class Walls(NamedTuple):
    """What the kernel gave.

    Args:
        place: a folder with the folders `room`, where programs run, and `library`.
        spaces: each program has PID, IPC and mount namespaces.
        sealed: it can write nothing but a small disk in memory.
        user: whose it counts as; None: of this process.
        wholly: it also has no more rights than that user.
        bound: Python's library is in `library`, because nobody else can read it where it is (in root's home).
        counted: processes that are counted with its own.
        missing: in words, what is not there.
    """

    place: str
    spaces: bool
    sealed: bool
    user: int | None
    wholly: bool
    bound: bool
    counted: int
    missing: tuple[str, ...]


def call(name: str, *arguments: Any) -> None:
    """A function of the C library, integers as longs. Raises OSError where it fails or is not there."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(f"there is no {name} here")
    if function(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def prctl(option: int, value: int) -> None:
    """Set a property of this process; nothing where there is no such call."""
    with contextlib.suppress(OSError):
        call("prctl", option, value, 0, 0, 0)


def works(*attempts: Callable[[], object]) -> bool:
    """Whether some things can be done, one after the other: they are tried in a process of its own."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            for attempt in attempts:
                attempt()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def enter(place: str, without: tuple[str, ...]) -> Walls:
    """Leave the network, and see what can be done for each program.

    Args:
        place: an empty folder.
        without: `namespaces`, `user`: what is not to be used, for tests.
    """
    root, missing, inner = os.geteuid() == 0, [], 0
    for name in ("room", "library"):
        Path(place, name).mkdir(0o711)
    ways = (NEWNET, NEWNET | NEWUSER)[0 if root else 1 :] if "namespaces" not in without else ()
    if left := [flags for flags in ways if works(partial(leave, flags))]:
        leave(inner := left[0])
    else:
        missing.append("programs can reach the network")
    nobody = partial(become, NOBODY + os.getpid(), True)
    other = root and not inner & NEWUSER and "user" not in without and works(nobody)
    spaces = bool(inner) and works(divide, os.fork)
    sealed = spaces and works(divide, partial(seal, place, CHUNK, False))
    readable = other and works(nobody, partial(os.stat, os.__file__))
    rebound = partial(os.stat, f"{place}/library/os.py")
    bound = sealed and other and not readable and works(divide, partial(seal, place, CHUNK, True), nobody, rebound)
    wholly = readable or bound
    if not spaces and not wholly:
        missing.append("they can end this user's other processes, and may leave some of their own running")
    if not sealed:
        missing.append(f"they can write files wherever {'anybody' if wholly else 'this user'} can")
    if root and not inner & NEWUSER and not wholly:
        missing.append("they run as root, though without its privileges")
    if root and not other:
        missing.append("their processes are not counted")
    recent = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 14)
    counted = 3 if other or (inner & NEWUSER and recent) else tasks()  # older kernels count all of a user's
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, programs are killed first
    prctl(SUBREAPER, 1)
    prctl(DUMPABLE, 0)  # programs of the same user cannot read its memory nor its open files
    user = NOBODY + os.getpid() if other else None
    return Walls(place, spaces, sealed, user, wholly, bound, counted, tuple(missing))


def leave(flags: int) -> None:
    """Into an empty network, and maybe a user namespace of its own."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", flags)
    if flags & NEWUSER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{INSIDE} {user} 1"),
            ("gid_map", f"{INSIDE} {group} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text)


def become(user: int, wholly: bool) -> None:
    """Nobody else; or, not wholly, one whose files are root's and whose processes are counted apart."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, *((user, user) if wholly else (0, 0)))


def divide() -> None:
    """The next process that is started is PID 1 of a namespace."""
    call("unshare", NEWPID | NEWIPC | NEWNS)


def seal(place: str, disk: int, bound: bool) -> None:
    """Only a disk in memory, the `room`, can be written, and of processes only one's own are seen."""
    call("mount", None, b"/", None, REC | PRIVATE, None)
    call("syscall", MOUNT_SETATTR, HERE, b"/", RECURSIVE, struct.pack("4Q", RDONLY, 0, 0, 0), 32)
    if bound:
        call("mount", LIBRARY.encode(), f"{place}/library".encode(), None, BIND, None)
    options = f"size={disk},nr_inodes={NODES},mode=0777".encode()
    call("mount", b"tmpfs", f"{place}/room".encode(), b"tmpfs", NOSUID | NODEV, options)
    with contextlib.suppress(OSError):  # not where parts of /proc are hidden, as in containers
        call("mount", b"proc", b"/proc", b"proc", RDONLY | NOSUID | NODEV | NOEXEC, None)


def tasks() -> int:
    """Threads of this user, in all processes that can be seen."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.geteuid():
                found += len([*(folder / "task").iterdir()])
    return found


def attend(job: dict[str, Any], walls: Walls) -> dict[str, Any] | None:
    """Run one program. None: whoever asked for it has gone, and it was ended.

    Args:
        job: `source`, whether it is `ours`, `stdin` (a file, which is removed; or nothing), and the fields of
            `sandbox.Limits`.
        walls: as `enter` found them.
    """
    program = compiled(job["source"]) if job["ours"] else job["source"]
    room = f"{walls.place}/room"
    if not walls.sealed:
        room = tempfile.mkdtemp(dir=room)
    if walls.wholly and walls.user is not None and not walls.sealed:
        os.chown(room, walls.user, -1)
    begun = time.monotonic()
    first, pipes = launch(program, job, walls, room)
    held = {pipe: bytearray() for pipe in pipes}
    killed_for = watch(held, pipes[2], begun + job["seconds"], job["output"])
    sweep(first, walls)
    seconds = time.monotonic() - begun
    rest = watch(held, None, 0.0, job["output"])  # what it had written before it ended
    killed_for = killed_for or rest
    output, errors, status = (bytes(held[pipe]) for pipe in pipes)
    for pipe in pipes:
        os.close(pipe)
    if not walls.sealed:
        with contextlib.suppress(RecursionError):
            shutil.rmtree(room, ignore_errors=True)
    if killed_for == "gone":
        return None
    code = os.waitstatus_to_exitcode(int(status)) if status and not killed_for else None
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and seconds >= job["cpu"]):
        killed_for = "cpu"
    if code and errors.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError"):
        killed_for = "memory"
    shown = {"output": output.decode(errors="replace"), "errors": errors.decode(errors="replace")}
    return {"exit": code, "seconds": seconds, "killed_for": killed_for, **shown}


@functools.lru_cache(8)
def compiled(source: str) -> types.CodeType:
    """Once for all that is run of it; only of programs that are nomoat's own is it done here, outside of all limits."""
    return compile(source, "program.py", "exec")


def launch(program: Program, job: dict[str, Any], walls: Walls, room: str) -> tuple[int, list[int]]:
    """Start it; the process to be killed, and pipes with its output, its errors and how it ended."""
    given = os.open(job["stdin"] or os.devnull, os.O_RDONLY)
    if job["stdin"]:
        Path(job["stdin"]).unlink()
    pipes = [os.pipe() for _ in range(3)]
    inherited = [given, *(writer for _, writer in pipes)]
    if not (first := os.fork()):
        try:
            oversee(program, job, walls, room, inherited)
        except BaseException as error:
            os.write(inherited[2], repr(error).encode(errors="replace"))
        finally:
            os._exit(1)
    for each in inherited:
        os.close(each)
    return first, [reader for reader, _ in pipes]


def watch(held: dict[int, bytearray], end: int | None, deadline: float, most: int) -> str:
    """Read from pipes until `end` is closed; None: until there is nothing more. What a program is to be killed for."""
    waiting = {*held}
    while end is None or end in waiting:
        left = 0.0 if end is None else deadline - time.monotonic()
        ready = select.select([*waiting] if end is None else [0, *waiting], [], [], max(left, 0))[0]
        if 0 in ready:
            return "gone"
        if not ready or (end is not None and left <= 0):
            return "" if end is None else "time"
        for pipe in ready:
            piece = os.read(pipe, CHUNK)
            room = most - len(held[pipe])
            held[pipe] += piece[:room]
            if len(piece) > room:
                return "output"
            if not piece:
                waiting.discard(pipe)
    return ""


def sweep(first: int, walls: Walls) -> None:
    """Kill what a program has left, and wait until nothing is left of it."""
    while True:
        if walls.user is not None and not walls.spaces:  # all of that user's, at once
            works(partial(become, walls.user, True), partial(os.kill, -1, signal.SIGKILL))
        for child in children() or [first]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def children() -> list[int]:
    """Of this process, orphans that have come to it among them; empty where the kernel does not say."""
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


def oversee(program: Program, job: dict[str, Any], walls: Walls, room: str, inherited: list[int]) -> NoReturn:
    """Start PID 1 and wait for it; PID 1 starts the program, waits for it and tells how it ended."""
    prctl(PDEATHSIG, signal.SIGKILL)
    if walls.spaces:
        divide()
    if first := os.fork():
        os.waitpid(first, 0)
        os._exit(0)
    prctl(PDEATHSIG, signal.SIGKILL)
    if walls.sealed:
        seal(walls.place, job["disk"], walls.bound)
    if not (second := os.fork()):
        start(job, walls, room, inherited)
        run(program)
    while True:
        child, status = os.wait()
        if child == second:
            os.write(inherited[-1], b"%d" % status)
            os._exit(0)


def start(job: dict[str, Any], walls: Walls, room: str, inherited: list[int]) -> None:
    """Become the program: in its folder, with its pipes and nothing else open, within its limits, without rights."""
    os.setsid()
    for number, each in enumerate(inherited[:3]):
        os.dup2(each, number)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.chdir(room)
    os.umask(0o077)
    os.environ.clear()
    if walls.bound:
        packages = [each.__path__ for each in [*sys.modules.values()] if isinstance(getattr(each, "__path__", 0), list)]
        for paths in (sys.path, *packages):
            paths[:] = [each.replace(LIBRARY, f"{walls.place}/library") for each in paths]
    if walls.user is not None:
        become(walls.user, walls.wholly)
    with contextlib.suppress(OSError):
        call("capset", struct.pack("Ii", CAPABILITIES, 0), bytes(24))
    prctl(NO_NEW_PRIVS, 1)
    prctl(PDEATHSIG, signal.SIGKILL)
    limit("CORE", 0)
    limit("NOFILE", job["files"])
    limit("FSIZE", job["disk"])
    limit("NPROC", job["processes"] + walls.counted)
    limit("CPU", job["cpu"], 1)
    limit("AS", job["memory"])


def limit(name: str, most: int, grace: int = 0) -> None:
    """Set a limit, or leave a lower one that is there. Nothing where the system has none of that name."""
    which = getattr(resource, f"RLIMIT_{name}", None)
    if which is not None:
        hard = resource.getrlimit(which)[1]
        bound = most + grace if hard == resource.RLIM_INFINITY else min(most + grace, hard)
        resource.setrlimit(which, (min(most, bound), bound))


def run(program: Program) -> NoReturn:
    """Run a program, and end with its exit code; what it leaves running ends with it."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code: object = 1
    try:
        exec(compile(program, "program.py", "exec") if isinstance(program, str) else program, main.__dict__)
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)  # noqa: T201
    except BaseException as error:
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next), limit=-20)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 255 if isinstance(code, int) else 1)


def lines() -> Iterator[bytes]:
    """Lines of stdin, read without a buffer that programs would inherit."""
    held = b""
    while piece := os.read(0, CHUNK):
        *whole, held = (held + piece).split(b"\n")
        yield from whole


def say(answer: dict[str, Any]) -> None:
    """Write an answer as one line."""
    left = json.dumps(answer).encode() + b"\n"
    while left:
        left = left[os.write(1, left) :]


def main(place: str, without: str = "") -> None:
    """Say what is missing, then answer job after job until there is nobody to ask."""
    walls = enter(place, tuple(without.split(",")))
    say({"missing": walls.missing})
    for line in lines():
        if (answer := attend(json.loads(line), walls)) is None:
            break
        say(answer)
    shutil.rmtree(place, ignore_errors=True)  # whoever made it may be gone


if __name__ == "__main__":
    main(*sys.argv[1:])
