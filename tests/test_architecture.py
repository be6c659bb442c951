"""The rules of the house, held by machine: who imports whom, sizes, names, what may not be there at all."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import conftest
import numpy as np
import pytest

ROOT, SOURCE = conftest.ROOT, conftest.SOURCE
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

FILE_LINES, FUNCTION_LINES, ARGUMENTS, CODE_LINES = 450, 70, 9, 41_500
BRANCHES_PER_LINE = 0.1
NO_FOLDERS_OR_FILES = {"utils", "util", "helpers", "helper", "common", "misc", "v2", "new", "legacy"}
NO_CLASSES = re.compile(r"Manager|Handler|Wrapper|^Base(?=[A-Z])|Impl$|Mixin$|Utils?$|Helpers?$")
NO_IMPORTS = {"socket", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "ssl", "webbrowser"}
FETCHING = ("urllib.error", "urllib.parse", "urllib.request", "http.client", "ssl")
ALLOWED = {
    "train/launch.py imports socket",  # asks the system what the loopback interface is called
    # `nomoat pull NAME` fetches what is named, and only then: the one file that may, with the standard library's HTTP.
    *(f"hub/fetch.py imports {name}" for name in FETCHING),
}
HEAVY = ("torch", "numpy", "pyarrow", "tokenizers", "tiktoken", "safetensors", "transformers")
WITHOUT_TORCH = [
    *("nomoat", "nomoat.cli"),
    *(f"nomoat.core.{name}" for name in ("types", "errors", "config", "budget", "recipe", "run", "runs", "ledger")),
    *(f"nomoat.core.{name}" for name in ("allocator", "durable", "energy")),
    *("nomoat.core.domain", "nomoat.games.known"),
    *(f"nomoat.search.{name}" for name in ("finding", "sandbox", "verdicts")),
    *(f"nomoat.data.{name}" for name in ("readers", "licence", "ingest", "shards", "order", "tokenizer", "pictures")),
]


def shown(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{shown(path)}:{node.lineno} {node.name}", node


def test_imports_point_downwards() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    said = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    kept = re.search(r"Contracts: (\d+) kept, (\d+) broken", said.stdout)
    assert kept is not None
    assert (int(kept[1]) >= 4, kept[2]) == (True, "0")


def test_the_tree_is_one_folder_deep() -> None:
    assert not [shown(path) for path in FILES if len(path.relative_to(SOURCE).parts) > 2]


def test_files_and_all_of_them_stay_readable() -> None:
    lines = {shown(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert not {name: count for name, count in lines.items() if count > FILE_LINES}
    assert sum(map(lines_of_code, FILES)) <= CODE_LINES  # docs/decisions/0009, 0012, 0021, 0022, 0023, 0024


def lines_of_code(path: Path) -> int:
    """Lines with a token that is neither a comment nor a docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    told = {
        line
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    with path.open(encoding="utf-8") as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in silent]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - told)


def test_functions_stay_short_and_take_few_arguments() -> None:
    long, wide = {}, {}
    for name, node in functions():
        assert node.end_lineno is not None
        count = node.end_lineno - node.lineno + 1
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
        long |= {name: count} if count > FUNCTION_LINES else {}
        wide |= {name: len(arguments)} if len(arguments) > ARGUMENTS else {}
    assert not long
    assert not wide


def test_every_file_says_what_it_is() -> None:
    assert not [shown(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]


def test_names_say_something() -> None:
    assert not [shown(path) for path in FILES if NO_FOLDERS_OR_FILES & {*path.relative_to(SOURCE).parts, path.stem}]
    assert not [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and NO_CLASSES.search(node.name)
    ]


@pytest.mark.parametrize("name", ["nn/backbone.py", "nn/attention.py"])
def test_the_backbone_grows_no_flags(name: str) -> None:
    tree, text = TREES[SOURCE / name], (SOURCE / name).read_text(encoding="utf-8")
    branching = (ast.If, ast.IfExp, ast.While, ast.match_case, ast.ExceptHandler)
    branches = [node.lineno for node in ast.walk(tree) if isinstance(node, branching) and hasattr(node, "lineno")]
    branches += [node.pattern.lineno for node in ast.walk(tree) if isinstance(node, ast.match_case)]
    lines = len([line for line in text.splitlines() if line.strip()])
    assert len(branches) <= BRANCHES_PER_LINE * lines, f"{len(branches)} branches in {lines} lines: {sorted(branches)}"


def test_no_forward_looks_at_the_dialect() -> None:
    guilty = [
        name
        for name, node in functions()
        if node.name == "forward"
        and any("dialect" in (getattr(part, "id", ""), getattr(part, "attr", "")) for part in ast.walk(node))
    ]
    assert not guilty


def test_one_file_names_a_device() -> None:
    guilty = []
    for path, tree in TREES.items():
        if path == SOURCE / "core" / "device.py":
            continue
        for node in ast.walk(tree):
            text = isinstance(node, ast.Constant) and node.value in ("cuda", "mps", "xpu")
            part = isinstance(node, ast.Attribute) and node.attr in ("cuda", "mps", "xpu")
            if text or part:
                guilty.append(f"{shown(path)}:{node.lineno}")
    assert not guilty


def test_nothing_of_ours_opens_a_connection_or_runs_what_it_reads() -> None:
    guilty = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            guilty += [f"{shown(path)} imports {name}" for name in names if name.partition(".")[0] in NO_IMPORTS]
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            # config evaluates the annotations of our own source text; the other two run in the sandbox's processes only
            allowed = {
                SOURCE / "core" / "config.py",
                *(SOURCE / "search" / name for name in ("jail.py", "examiner.py")),
            }
            if called in ("eval", "exec", "compile") and path not in allowed:
                guilty.append(f"{shown(path)}:{node.lineno} calls {called}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                guilty += [] if safe else [f"{shown(path)}:{node.lineno} loads a pickle"]
    assert not {*guilty} - ALLOWED


def modules_after(code: str) -> set[str]:
    whole = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    said = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return set(said.stdout.rsplit("\n", 2)[-2].split())


def test_the_light_modules_import_no_torch() -> None:
    code = "from importlib import import_module\nfound = None\n" + "".join(
        f"import_module('{name}'); found = found or ('torch' in sys.modules and '{name}')\n"
        for name in WITHOUT_TORCH
        if (SOURCE.parent / Path(*name.split("."))).with_suffix(".py").exists()
        or (SOURCE.parent / Path(*name.split("."))).is_dir()
    )
    modules = modules_after(code + "assert not found, found")
    assert "nomoat.core.run" in modules
    assert "torch" not in modules


def test_importing_nomoat_imports_next_to_nothing() -> None:
    modules = modules_after("import nomoat; dir(nomoat)")
    assert not modules & set(HEAVY)
    assert len({name for name in modules if name.startswith("nomoat")}) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["make", "--help"], ["runs", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    if not (SOURCE / "cli" / "__main__.py").exists():
        pytest.skip("there is no command yet")
    modules = modules_after(
        f"import runpy\nsys.argv[:] = ['nomoat', *{arguments!r}]\n"
        "try: runpy.run_module('nomoat.cli', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
    )
    assert "nomoat.cli" in modules
    assert not modules & {*HEAVY, "rich"}


def test_the_tests_themselves_reach_no_other_machine() -> None:
    before = len(conftest.outgoing)
    with pytest.raises(PermissionError, match="offline"), socket.socket() as plug:
        plug.settimeout(0.1)
        plug.connect(("192.0.2.1", 80))  # reserved for documentation (RFC 5737)
    with pytest.raises(PermissionError, match="offline"):
        socket.getaddrinfo("nomoat.invalid", 80)
    assert len(conftest.outgoing) == before + 2
    del conftest.outgoing[before:]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        pass
    left, right = socket.socketpair()
    left.close(), right.close()
    assert len(conftest.outgoing) == before


CHECKED = '''
def right(x_BD, y_1=None):
    """Says nothing."""
    z_D = x_BD[0]
    return z_D


def wrong(x_BD):
    total = 0
    for q_BLD in (x_BD,):
        total += q_BLD.sum()
    return total


def inner(x_BD):
    def take(y_B):
        return y_B

    return take(x_BD[:, 0]) + take(x_BD)[:, 0]


def early(x_BD):
    if x_BD.ndim:
        return 1
    late_B = 0
    return late_B
'''


def test_a_tensor_whose_rank_is_not_its_name_is_found() -> None:
    if "--no-shapes" in sys.argv:
        pytest.skip("the rank check is off")
    tree = conftest.RankChecks(str(SOURCE / "nn" / "x.py")).visit(ast.parse(CHECKED))
    space: dict = {}
    exec(compile(ast.fix_missing_locations(tree), "x.py", "exec"), space)
    x, before = np.ones((2, 3)), len(conftest.wrong_ranks)

    def found(name: str) -> list[str]:
        space[name](x)
        said = conftest.wrong_ranks[before:]
        del conftest.wrong_ranks[before:]
        return said

    assert found("right") == []
    assert space["right"].__doc__ == "Says nothing."
    assert found("wrong") == ["nn/x.py:8 wrong: q_BLD has 2 axes, not 3"]
    assert found("inner") == ["nn/x.py:16 take: y_B has 2 axes, not 1"]
    assert found("early") == []
