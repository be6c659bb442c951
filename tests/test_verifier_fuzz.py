"""Verifiers against candidates that want to hang, flood, crash or outlive them: each is answered, nothing is left.

Programs here are harmless if a sandbox should fail: at most 64 forks, 1.5 GB, 64 MB of files; none names a real file.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import alive

from nomoat.core.domain import Verdict, Verifier
from nomoat.search.answers import Choice, Pattern, Schema, Text
from nomoat.search.arithmetic import Arithmetic, FinalNumber
from nomoat.search.programs import UnitTests
from nomoat.search.sandbox import GRACE, JAIL, Limits, Sandbox
from nomoat.search.verdicts import Guarded

SECONDS = 1.0
LIMITS = Limits(seconds=SECONDS, memory=256 << 20, processes=8, disk=4 << 20)
EXAM = {"tests": ["assert f(1) == 7", "assert f(2) == 9"]}
RIGHT = "def f(x): return 5 + 2 * x"
SLEEP = "4242.125"
"""What a program that is started by a hostile one sleeps: the mark by which it would be found."""

PROGRAMS = {
    "loop": "while True: pass",
    "loop when asked": "def f(x):\n    while True: pass",
    "sleep": "import time\ntime.sleep({n})",
    "power": "x = 9 ** 9 ** 9 ** {n}",
    "pattern": "import re\nre.match('(a+)+$', 'a' * {n} + '!')",
    "factorial": "import math\nmath.factorial({n}000000)",
    "hash": "sum(hash(str(each)) for each in iter(int, 1))",
    "fork": "import os, time\nfor _ in range(6): os.fork()\ntime.sleep(60)",
    "fork and fork": "import os\nfor _ in range({n} % 64):\n    if os.fork() == 0: break\nwhile True: pass",
    "fork and die": "import os\nfor _ in range(64):\n    if os.fork(): os._exit(0)\n    os.setsid()\nwhile True: pass",
    "threads": "import threading, time\nfor _ in range({n}): threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory": "x = bytearray(1_500_000_000)\ndef f(x): return 7",
    "memory bit by bit": "x = []\nfor _ in range(1_500): x.append(bytearray(1_000_000))",
    "memory when asked": "def f(x): return ' ' * 1_500_000_000",
    "long answer": "def f(x): return list(range({n}00000))",
    "print": "while True: print('x' * {n})",
    "write": "import os\nwhile True: os.write(1, b'x' * {n}), os.write(2, b'x' * {n})",
    "file": "with open('big', 'wb') as file:\n    for _ in range(64): file.write(bytes(1_000_000))",
    "files": "for name in range(64): open(str(name), 'wb').write(bytes(1_000_000))",
    "many files": "for name in range(20_000): open(str(name), 'w').close()",
    "deep folders": "import os\nfor _ in range(2_000): os.mkdir('d'); os.chdir('d')",
    "orphan": (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork(): time.sleep(60)\n    os._exit(0)\n"
        "def f(x): return 5 + x * 2 if x > 9 else 0"
    ),
    "started": f"import subprocess as s\ns.Popen(['/bin/sleep', '{SLEEP}'], start_new_session=True)\ndef f(x): pass",
    "deaf": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass"
    ),
    "deaf and caught": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "closed": "import os, time\nos.closerange(0, 256)\ntime.sleep({n})",
    "stopped": "import os\nos.kill(os.getpid(), 19)",
    "stops its parent": "import os\nos.kill(os.getppid(), 19)\nwhile True: pass",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)\nwhile True: pass",
    "kills its group": "import os\nos.killpg(0, 9)",
    "recursion": "def g(): return g()\ng()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 8)\ndef g(): return g()\ng()",
    "stack": "import sys\nsys.setrecursionlimit(10 ** 8)\nx = lambda *a: sorted([1, 2], key=x)\nx()",
    "parser": "(" * 20_000 + ")" * 20_000,
    "literal": "x = " + "9" * 100_000,
    "null": "def f(x): return 7\0{n}",
    "surrogate": "def f(x): return '\udcff{n}'",
    "segfault": "import ctypes\nctypes.string_at({n})",
    "abort": "import os\nos.abort()",
    "exit": "import os\nos._exit(0)",
    "exits": "import sys\nsys.exit({n})",
    "exits late": "import atexit, time\natexit.register(time.sleep, 60)\ndef f(x): return 0",
    "lies": "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()",
    "endless answer": "def f(x):\n    while True: yield x",
    "endless text": "class S(str):\n    def __str__(self):\n        while True: pass\ndef f(x): return S()",
    "bad error": "class E(BaseException):\n    def __str__(self): raise E\ndef f(x): raise E",
    "input": "input()",
    "network": "import socket\nsocket.create_connection(('192.0.2.1', 80))",
    "up and away": "import os\nos.chdir('/')\nos.chroot('.')",
    "reads on": "import sys, os\nwhile True: os.read(0, 1) or os.read(3, 1)",
    "writes on": (
        "import os\nwhile True:\n    for n in range(3, 16):\n        try: os.write(n, b'[[[[' * {n})\n"
        "        except OSError: pass"
    ),
    "too long": "#" * 300_000,
}
KILL_ALL = "import os\nwhile True: os.kill(-1, 9)"
"""Only where programs have processes of their own to see."""

TEXTS: dict[str, Callable[[random.Random], str]] = {
    "power": lambda rng: "**".join("9" * rng.randint(2, 40)),
    "nested": lambda rng: "(" * rng.randint(1, 100_000) + "1",
    "closed nest": lambda rng: "(" * (n := rng.randint(50, 100_000)) + "1" + ")" * n,
    "signs": lambda rng: "-" * rng.randint(1, 100_000) + "1",
    "megabyte": lambda rng: "answer: " + rng.choice("123456789") * 1_000_000,
    "long product": lambda rng: "*".join(["9" * 290] * rng.randint(5, 6)),
    "fractions": lambda rng: "+".join(f"1/{rng.randint(10**8, 10**9)}" for _ in range(rng.randint(100, 190))),
    "null": lambda rng: "4 * 6\0" * rng.randint(1, 9),
    "surrogate": lambda rng: "answer: \ud800" + "\udfff" * rng.randint(1, 1_000),
    "markers": lambda rng: "answer is " * 100_000,
    "spaces": lambda rng: "answer" + " " * 200_000 + "answer is" + " \t" * 100_000,
    "boxes": lambda rng: "\\boxed{" * 100_000,
    "braces": lambda rng: "\\boxed{" + "{}" * 100_000 + "}" * 9,
    "stars": lambda rng: "*" * 200_000 + "_" * 1_000,
    "equals": lambda rng: "=".join(["1"] * rng.randint(2, 100_000)),
    "points": lambda rng: ".".join(["1"] * 50_000) + "." * 50_000,
    "commas": lambda rng: ",".join(["123"] * 100_000),
    "exponent": lambda rng: f"answer: 1e{'9' * rng.randint(3, 5_000)}",
    "lines": lambda rng: "\n" * 500_000,
    "fences": lambda rng: "```\n" * 100_000,
    "arrays": lambda rng: "[" * 100_000,
    "objects": lambda rng: '{"a":' * 100_000,
    "string": lambda rng: '"' + "a" * 900_000 + '!"',
    "noise": lambda rng: "".join(chr(rng.choice([*range(128), 0xD800, 0x2028, 0x661, 0x10FFFF])) for _ in range(3_000)),
    "hangs patterns": lambda rng: "a" * rng.randint(40, 60) + "!",
}


def plain(box: Sandbox) -> dict[str, tuple[Verifier, object]]:
    return {
        "arithmetic": (Arithmetic(), {"target": 24, "numbers": [4, 6]}),
        "number": (FinalNumber(), "41"),
        "choice": (Choice(), {"answer": "B", "options": ["x", "no such words", "z"]}),
        "text": (Text(), "no such text"),
        "schema": (Schema({"type": "string", "pattern": "^(?:(?=a)a|a)+$"}), None),
        "regex": (Pattern("^(a|aa)+$", SECONDS, box), None),
    }


def hostile(rng: random.Random, safe: bool) -> str:
    kinds = [*PROGRAMS.values(), *([KILL_ALL] * safe)]
    return rng.choice(kinds).replace("{n}", str(rng.randint(10, 99)))


def check(cases: int, seed: int) -> Counter[str]:
    """Put so many hostile candidates to all verifiers; what came of them, counted."""
    pytest.importorskip("jsonschema_rs")
    rng, before, found = random.Random(seed), alive(), Counter()
    with Sandbox(LIMITS) as box:
        safe = not any("processes" in each or "network" in each for each in box.missing)
        examined = Guarded(UnitTests(box), SECONDS + GRACE)
        patient = UnitTests(box, limits=Limits(seconds=60))
        others = {name: (Guarded(each, SECONDS + GRACE), problem) for name, (each, problem) in plain(box).items()}

        def judged(case: tuple[str, str]) -> tuple[str, Verdict, float]:
            name, candidate = case
            verifier, problem = (examined, EXAM) if name == "tests" else others[name]
            begun = time.monotonic()
            (verdict,) = verifier(problem, [candidate])
            return name, verdict, time.monotonic() - begun

        drawn = []
        for _ in range(cases):
            name = rng.choice(["tests", "tests", *others])
            drawn.append((name, hostile(rng, safe) if name == "tests" else TEXTS[rng.choice([*TEXTS])](rng)))
        with ThreadPoolExecutor(2) as pool:
            for (name, candidate), (_, verdict, seconds) in zip(drawn, pool.map(judged, drawn), strict=True):
                shown = f"{name}: {candidate[:80]!a}: {verdict}"
                assert verdict.score < 1, shown
                assert not verdict.failed, shown
                assert verdict.timed_out or verdict.detail, shown
                assert seconds < SECONDS + GRACE, shown
                found += Counter({name: 1, "late": verdict.timed_out, "all": 1})
        assert patient(EXAM, [RIGHT])[0].right  # and after all that
        guards = [examined, *(verifier for verifier, _ in others.values())]
        assert sum(guard.calls for guard in guards) == cases
        assert sum(guard.timeouts for guard in guards) == found["late"]
        assert sum(guard.failures for guard in guards) == 0
    assert alive() == before, f"processes of {JAIL} are left"
    assert not alive(SLEEP)
    return found


def test_hostile_candidates_are_answered_in_time_and_leave_nothing():
    found = check(60, seed=1)
    assert found["all"] == 60
    assert found["late"]


@pytest.mark.slow
def test_a_thousand_hostile_candidates():
    found = check(1_000, seed=2)
    assert found["all"] == 1_000
    assert found["late"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_hostile_program_alone(name):
    with Sandbox(LIMITS) as box:
        (verdict,) = UnitTests(box)(EXAM, [PROGRAMS[name].replace("{n}", "17")])
        assert verdict.score < 1
        ended = box.run(PROGRAMS[name].replace("{n}", "17"))
        assert ended.seconds < SECONDS + GRACE
        assert ended.exit is not None or ended.killed_for
