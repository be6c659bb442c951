"""The sandbox: what a program may take, what is left of it (nothing), and what it cannot reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import alive

from nomoat.core.errors import ConfigError
from nomoat.search.sandbox import Ended, Limits, Sandbox

PATIENT = Limits(seconds=60)
"""For programs that end by themselves, on a machine that has other things to do."""
WAYS = [(), ("namespaces",), ("namespaces", "user")]


@pytest.fixture(scope="module", params=WAYS[:2], ids=["all", "no-namespaces"])
def box(request):
    before = alive()
    with Sandbox(PATIENT, without=request.param) as sandbox:
        yield sandbox
    assert alive() == before


@pytest.fixture(scope="module")
def apart():
    with Sandbox(PATIENT) as sandbox:
        if any("network" in each or "files" in each for each in sandbox.missing):
            pytest.skip(f"the kernel does not allow it: {'; '.join(sandbox.missing)}")
        yield sandbox


@pytest.mark.parametrize(
    ("source", "exit_code", "output", "errors"),
    [
        ("print('one'); import sys; print('two', file=sys.stderr)", 0, "one\n", "two\n"),
        ("import sys; sys.exit(3)", 3, "", ""),
        ("import sys; sys.exit('no')", 1, "", "no\n"),
        ("import os; os._exit(7)", 7, "", ""),
        ("import os; os.kill(os.getpid(), 9)", -9, "", ""),
        ("import os; os.abort()", -6, "", ""),
        ("def f(: pass", 1, "", "SyntaxError"),
        ("x = 1\0", 1, "", "null bytes"),
        ("print('\ud800')", 1, "", "surrogates not allowed"),
        ("import ctypes; ctypes.string_at(0)", -11, "", ""),
        ("1 / 0", 1, "", "ZeroDivisionError: division by zero\n"),
        ("print(open(0).read())", 0, "\n", ""),
        ("import os; print(os.listdir('.'), dict(os.environ), os.get_inheritable(0))", 0, "[] {} True\n", ""),
        ("import encodings.idna, json.tool, unittest.mock, ctypes.util, decimal; print(1)", 0, "1\n", ""),
        ("import sys; print(__name__, sys.flags.isolated, sys.argv[0].endswith('.py'))", 0, "__main__ 1 True\n", ""),
    ],
)
def test_a_program_ends_as_it_would_elsewhere(box, source, exit_code, output, errors):
    ended = box.run(source)
    assert (ended.exit, ended.killed_for, ended.output) == (exit_code, "", output)
    assert errors in ended.errors
    assert bool(errors) == bool(ended.errors)


def test_what_is_given_is_read_and_what_one_program_does_the_next_does_not_see(box):
    assert box.run("print(open(0).read().upper())", "größer\n").output == "GRÖSSER\n\n"
    box.run("open('left', 'w').write('x'); import sys, math; sys.path.append('here'); math.pi = 3")
    assert box.run("import os, sys, math; print(os.listdir('.'), 'here' in sys.path, math.pi)").output.startswith(
        "[] False 3.14"
    )


def test_what_is_not_read_is_not_in_memory(box):
    source = """
import gc, sys
frame, seen = sys._getframe(), [str(each) for each in gc.get_objects()[:50_000]]
while frame:
    seen += [str(frame.f_locals), str(frame.f_globals)]
    frame = frame.f_back
word = "".join(reversed("terces-ym"))
print(any(word in each for each in seen))
print(word in open(0).read())
"""
    assert box.run(source, "my-secret").output == "False\nTrue\n"


LIMITED = {
    "time": ("while True: pass", Limits(seconds=0.5)),
    "memory": ("x = bytearray(1 << 30)", Limits(seconds=60, memory=256 << 20)),
    "output": ("while True: print('x' * 1000)", Limits(seconds=60, output=5_000)),
}


@pytest.mark.parametrize("what", LIMITED)
def test_a_program_that_takes_too_much_is_killed_for_it(box, what):
    source, limits = LIMITED[what]
    ended = box.run(source, limits=limits)
    assert ended.killed_for == what
    assert str(ended) == f"killed: too much {what}"
    assert ended.timed_out == (what == "time")
    assert len(ended.output) == (5_000 if what == "output" else 0)
    assert box.run("print(1)").output == "1\n"


def test_errors_are_capped_as_output_is(box):
    ended = box.run("import os\nwhile True: os.write(2, b'x' * 1000)", limits=Limits(seconds=60, output=3_000))
    assert (ended.killed_for, len(ended.errors), ended.output) == ("output", 3_000, "")


IGNORING = """
import signal
for each in range(1, 32):
    if each not in (9, 19):
        signal.signal(each, signal.SIG_IGN)
while True:
    pass
"""


def test_a_signal_that_is_ignored_does_not_help(box):
    assert box.run(IGNORING, limits=Limits(seconds=0.5)).killed_for == "time"


@pytest.mark.parametrize("source", ["while True: pass", pytest.param(IGNORING, marks=pytest.mark.slow)])
def test_processor_time_is_limited(source):
    with Sandbox(Limits(seconds=120, cpu=1)) as box:
        ended = box.run(source)
        assert (ended.killed_for, ended.timed_out) == ("cpu", True)


def test_files_are_limited(box):
    written = box.run("open('big', 'wb').write(bytes(2_000_000))", limits=Limits(seconds=60, disk=1_000_000))
    assert "File too large" in written.errors
    opened = box.run("held = [open('/dev/null') for _ in range(100)]", limits=Limits(seconds=60, files=20))
    assert "Too many open files" in opened.errors


def test_all_files_together_are_limited(apart):
    source = "for name in range(9): open(str(name), 'wb').write(bytes(900_000))"
    assert "No space left" in apart.run(source, limits=Limits(seconds=60, disk=1_000_000)).errors
    assert "No space left" in apart.run("for name in range(20_000): open(str(name), 'w')").errors


FORKS = """
import os, sys, time
made = 0
for _ in range(60):
    try:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""


def test_processes_are_counted_and_none_is_left(box):
    if any("not counted" in each for each in box.missing):
        pytest.skip("; ".join(box.missing))
    made = int(box.run(FORKS, limits=Limits(seconds=60, processes=10)).output)
    assert 1 <= made < 20
    threads = "import threading, time\nfor _ in range(60): threading.Thread(target=time.sleep, args=(9,)).start()"
    assert "can't start new thread" in box.run(threads, limits=Limits(seconds=60, processes=10)).errors


LEAVING = """
import os, signal, time
if not os.fork():
    os.setsid()
    if not os.fork():
        for each in (1, 2, 15):
            signal.signal(each, signal.SIG_IGN)
        {then}
    os._exit(0)
os.wait()
print('gone')
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "os.execv('/bin/sleep', ['sleep', '4242.25'])"])
def test_what_a_program_leaves_running_is_gone_before_it_is_answered_for(box, then):
    idle = alive()
    assert box.run(LEAVING.format(then=then)).output == "gone\n"
    assert alive() == idle
    assert not alive("4242.25")


def test_a_chain_that_forks_as_it_dies_is_caught(box):
    source = "import os\nfor _ in range(3000):\n    if os.fork(): os._exit(0)\n    os.setsid()"
    idle = alive()
    box.run(source, limits=Limits(seconds=0.5))
    assert alive() == idle


def test_there_is_no_network(apart):
    source = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 5)\nexcept OSError as e: print(e.errno)"
    assert apart.run(source).output == "101\n"  # unreachable


def test_only_its_own_folder_can_be_written(apart, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("sings")
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o777)
    canary.chmod(0o666)
    for what in (f"open({str(canary)!r}, 'w')", f"import os; os.unlink({str(canary)!r})", "open('/dev/shm/x', 'w')"):
        assert apart.run(what).exit == 1
    assert canary.read_text() == "sings"
    assert apart.run("open('mine', 'w').write('x'); print(open('mine').read())").output == "x\n"


def test_others_are_neither_seen_nor_killed(apart):
    seen = apart.run("import os; print(sorted(int(each) for each in os.listdir('/proc') if each.isdigit()))").output
    assert seen in ("[1, 2]\n", "") or len(seen) > 100  # a /proc of its own, or (in a container) the host's
    source = "import os\nfor who in (-1, 1, os.getppid()):\n  try: os.kill(who, 9)\n  except OSError: pass\nprint('on')"
    assert apart.run(source).output == "on\n"
    assert apart.run(f"import os; os.kill({os.getpid()}, 0)").errors.endswith("No such process\n")


def test_it_has_no_rights_to_get_out(apart):
    source = """
import ctypes, os
library = ctypes.CDLL(None, use_errno=True)
print([library.unshare(0x20000), library.mount(None, b"/", None, 32 | 4096, None), library.umount2(b"/proc", 2)])
for name in ("/proc/1/mem", "/proc/1/fd/1"):
    try:
        os.open(name, os.O_RDWR)
        print("open")
    except OSError:
        pass
try:
    os.setuid(0)
    os.chroot("/")
except OSError as error:
    print(error.errno)
"""
    assert apart.run(source).output in ("[-1, -1, -1]\n1\n", "[-1, -1, -1]\n22\n")  # not allowed, or no such user


def test_many_at_once_do_not_get_in_each_others_way(box):
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda n: box.run(f"print({n})", str(n)).output, range(12))]
    assert found == [f"{n}\n" for n in range(12)]


def test_a_jail_that_has_died_is_replaced():
    with Sandbox(PATIENT) as box:
        assert box.run("print(1)").output == "1\n"
        for jail in box._idle:
            os.kill(jail._process.pid, signal.SIGKILL)
        ended = [box.run("print(2)") for _ in range(2)]
        assert ended[-1].output == "2\n"
        assert ended[0].output == "2\n" or str(ended[0]) == "the jail has ended (it could not be run)"


def test_a_jail_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr("nomoat.search.sandbox.GRACE", 0.5)
    before = alive()
    with Sandbox(PATIENT) as box:
        box.run("pass")
        os.kill(box._idle[0]._process.pid, signal.SIGSTOP)
        ended = box.run("print(1)", limits=Limits(seconds=0.1))
        assert (ended.exit, ended.killed_for, ended.output) == (None, "time", "")
        assert alive() == before
        assert box.run("print(1)").output == "1\n"


@pytest.mark.parametrize("without", WAYS)
def test_programs_end_with_the_process_that_runs_them(without, tmp_path):
    before = alive()
    own = f"""
import tempfile
from nomoat.search.sandbox import Limits, Sandbox
tempfile.tempdir = {str(tmp_path)!r}
box = Sandbox(Limits(seconds=600), without={without!r})
box.run("pass")
print("begun", flush=True)
box.run("import os, time; os.fork(); time.sleep(600)")
"""
    process = subprocess.Popen([sys.executable, "-c", own], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    patience = time.monotonic() + 60
    while len(alive() - before) < 4 and time.monotonic() < patience:  # the jail, its fork, PID 1 and the program
        time.sleep(0.05)
    assert len(alive() - before) >= 4
    process.kill()
    process.wait()
    process.stdout.close()
    while (alive() - before or [*tmp_path.iterdir()]) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not alive() - before
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="seconds = 0"):
        Limits(seconds=0)
    with pytest.raises(ConfigError, match="memory"):
        Limits(memory=-1)
    assert str(Ended(0)) == "ended well"
    with Sandbox(without=("namespaces",)) as box:
        assert any("network" in each for each in box.missing)


def test_windows_is_refused(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(ConfigError, match="Windows"):
        Sandbox()
