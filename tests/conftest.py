"""House rules for every test: no socket leaves the machine, shapes are what the names say, one thread for torch.

Options: `--no-shapes` switches the rank check off, for timing a test.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# Before torch is imported, here and in every process that a test starts.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("NOMOAT_ALLOCATOR", "off")

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nomoat"

settings.register_profile("house", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("house")

outgoing: list[str] = []
"""Every attempt to reach another machine, blocked; a test that makes one on purpose takes it out again."""


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook sees what C code and libraries do as well, which a patched `socket` would not."""
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        where = str(address[0]) if isinstance(address, tuple) else None  # a path: AF_UNIX
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        where = None if arguments[0] is None else str(arguments[0])
    else:
        return
    if where is not None and not _is_loopback(where):
        outgoing.append(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}")
        raise PermissionError(f"a test may not reach {where}: nomoat is offline by default")


def _is_loopback(host: str) -> bool:
    local = ("", "localhost", "::1", "0.0.0.0", "::", os.uname().nodename)
    return host.startswith("127.") or host.startswith("::ffff:127.") or host in local


sys.addaudithook(_guard)


class Ranks:
    """Notes tensors of our code whose rank is not the number of letters that their name ends in.

    A profile function called at every return: cheap where a function has no such name, which its code object tells.
    """

    named = re.compile(r"[a-z]\w*_([A-Z1]{1,6})")

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._of_code: dict[CodeType, tuple[tuple[str, int], ...]] = {}

    def __call__(self, frame: FrameType, event: str, result: object) -> None:
        if event != "return":
            return
        names = self._of_code.get(frame.f_code)
        if names is None:
            names = self._of_code[frame.f_code] = self._names(frame.f_code)
        if not names:
            return
        local = frame.f_locals
        for name, rank in names:
            found = getattr(local.get(name), "ndim", rank)
            if isinstance(found, int) and found != rank:
                place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}"
                self.wrong.append(f"{place}: {name} has {found} axes, not {rank}")

    def _names(self, code: CodeType) -> tuple[tuple[str, int], ...]:
        if not code.co_filename.startswith(str(SOURCE)):
            return ()
        matches = [(name, self.named.fullmatch(name)) for name in (*code.co_varnames, *code.co_cellvars)]
        return tuple((name, len(match[1])) for name, match in matches if match)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-shapes", action="store_true", help="do not hold the ranks of tensors against their names")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    reached, ranks = len(outgoing), Ranks()
    if not item.config.getoption("--no-shapes"):
        sys.setprofile(ranks)
    try:
        result = yield
    finally:
        sys.setprofile(None)
        if "torch" in sys.modules and (torch := sys.modules["torch"]).get_num_threads() != 1:
            torch.set_num_threads(1)
    if len(outgoing) > reached:
        pytest.fail(f"tried to reach another machine: {outgoing[reached:]}", pytrace=False)
    if ranks.wrong:
        pytest.fail("\n".join(dict.fromkeys(ranks.wrong)), pytrace=False)
    return result


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device`: the test runs once on each device that this machine has."""
    if "device" in metafunc.fixturenames:
        from nomoat.core.device import choose, present

        metafunc.parametrize("device", [choose(name) for name in present()], ids=str)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; a test that needs it is skipped where it is absent."""
    path = Path(os.environ.get("NOMOAT_SHARED") or ROOT.parent / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"needs real data in {path} ($NOMOAT_SHARED)")
    return path


@pytest.fixture
def runs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, which $NOMOAT_RUNS names."""
    root = tmp_path / "runs"
    monkeypatch.setenv("NOMOAT_RUNS", str(root))
    return root
