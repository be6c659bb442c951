"""Examines a program of somebody's: tests run here, the program in a process of its own, plain values pass between.

    stdin: nonce, code, setup, tests -> the tests run: assert f([1]) == 2 -> ["call", f, [1]] -[pipe]-> the program
                                        2 == 2 -> stdout: nonce, number, "" <- 2 <-[pipe]- f([1]) <----+

It is itself run in the sandbox. The program has neither the tests nor the nonce nor this process's stdout, so exiting,
printing, objects that equal everything and changes to built-in functions gain it nothing. What is left to it is to know
the answer to arguments that it is asked about. Arguments are copies: what it does to them no test can see; and things
that are no plain values (see `Line`) can be called, asked for attributes and looped over, but equal nothing else.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any, NoReturn

PLAIN = (bool, int, float, str)
KINDS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}
ITEMS = 100_000
"""Of a thing that is looped over."""


class Remote:
    """Something of the program's that is no plain value."""

    def __init__(self, line: Line, number: int) -> None:
        object.__setattr__(self, "_at", (line, number))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._at[0].ask("call", self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return self._at[0].ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._at[0].ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._at[0].ask("items", self))


class Line:
    """Plain values in lines of JSON: numbers, texts, None, bytes, range, built-in types; lists, tuples, sets, dicts.

    Of classes of one's own that are such values only these pass. Of anything else a number passes, and the other end
    has a `Remote`; of a module its name.

    Args:
        reader: a pipe's end.
        writer: another's.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")
        self._kept: list[Any] = []

    def send(self, *values: Any) -> None:
        """Send values."""
        self._writer.write(json.dumps([self._packed(each) for each in values]).encode() + b"\n")
        self._writer.flush()

    def receive(self) -> list[Any]:
        """The values that come next. Raises EOFError where none can come."""
        if not (line := self._reader.readline()):
            raise EOFError("the program has ended")
        return [self._unpacked(each) for each in json.loads(line)]

    def ask(self, *question: Any) -> Any:
        """What the other end answers; raises what it has raised, or RuntimeError where that is of its own making."""
        self.send(*question)
        while len(said := self.receive()) == 4:  # it calls a function that a test has handed over
            self.answer(lambda _, function, arguments, named: function(*arguments, **named), said)
        raised, value = said
        if not raised:
            return value
        kind = getattr(builtins, str(raised), None)
        known = isinstance(kind, type) and issubclass(kind, Exception)
        raise kind(value) if known else RuntimeError(f"{raised}: {value}")  # type: ignore[misc]

    def answer(self, how: Callable[..., Any], question: list[Any]) -> None:
        """Send what comes of a question, or what is raised."""
        try:
            self.send("", how(*question))
        except BaseException as error:
            self.send(type(error).__name__, str(error))

    def _packed(self, value: Any) -> Any:
        if value is None or type(value) in PLAIN:
            return value
        for kind in PLAIN:
            if isinstance(value, kind):
                return kind(value)
        if isinstance(value, dict):
            return ["dict", *(self._packed(pair) for pair in value.items())]
        for name, kind in KINDS.items():
            if isinstance(value, kind):
                return [name, *map(self._packed, value)]
        return self._rare(value)

    def _rare(self, value: Any) -> list[Any]:
        if isinstance(value, bytes | bytearray):
            return ["bytes", value.hex()]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, range):
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type) and vars(builtins).get(value.__name__) == value:
            return ["type", value.__name__]
        if isinstance(value, Remote):
            return ["yours", value._at[1]]
        self._kept.append(value)
        return ["mine", len(self._kept) - 1]

    def _unpacked(self, packed: Any) -> Any:
        if not isinstance(packed, list):
            return packed
        name, *rest = packed
        if name in KINDS:
            return KINDS[name](map(self._unpacked, rest))
        if name == "bytes":
            return bytes.fromhex(rest[0])
        if name in ("complex", "range"):
            return complex(*rest) if name == "complex" else range(*rest)
        if name == "module":
            return importlib.import_module(rest[0]) if rest[0] in sys.stdlib_module_names else None
        if name == "type":
            return getattr(builtins, rest[0])
        return self._kept[rest[0]] if name == "yours" else Remote(self, rest[0])


def serve(line: Line) -> NoReturn:
    """Be the program: run its code, then answer until nobody asks."""
    module = sys.modules["program"] = ModuleType("program")

    def answer(what: str, *rest: Any) -> Any:
        if what == "run":
            return exec(compile(rest[0], "program.py", "exec"), module.__dict__)
        if what == "name":
            return module.__dict__[rest[0]]
        if what == "call":
            return rest[0](*rest[1], **rest[2])
        if what == "items":
            return list(itertools.islice(rest[0], ITEMS))
        return getattr(*rest) if what == "get" else setattr(*rest)

    while True:
        try:
            question = line.receive()
        except EOFError:
            os._exit(0)
        line.answer(answer, question)


def start() -> Line:
    """Start the program's process; the line to it."""
    down, up = os.pipe(), os.pipe()
    if not os.fork():
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(down[1])
        os.close(up[0])
        serve(Line(down[0], up[1]))
    os.close(down[0])
    os.close(up[1])
    return Line(up[0], down[1])


def names(code: CodeType) -> set[str]:
    """That it uses, at any depth."""
    return {*code.co_names}.union(*(names(each) for each in code.co_consts if isinstance(each, CodeType)))


def examine(line: Line, job: dict[str, Any]) -> Iterator[str]:
    """Run each test; what is wrong, empty where it passes.

    What tests use and neither they nor the setup define is the program's; a module only under its own name, so that
    `math` is Python's.
    """
    space: dict[str, Any] = {"__name__": "tests"}
    line.ask("run", job["code"])
    setup, *tests = (compile(text, "tests.py", "exec") for text in (job["setup"], *job["tests"]))
    for name in set().union(*map(names, (setup, *tests))) - {*dir(builtins)}:
        try:
            value = line.ask("name", name)
        except KeyError:
            continue
        if not isinstance(value, ModuleType) or value.__name__ == name:
            space[name] = value
    exec(setup, space)
    for test in tests:
        try:
            exec(test, space)
            yield ""
        except Exception as error:
            yield f"{type(error).__name__}: {error}".removesuffix(": ")


def main() -> None:
    """Start the program, and only then read what it is not to know."""
    sys.set_int_max_str_digits(0)
    line = start()
    job = json.load(sys.stdin)
    number = 0
    try:
        for number, wrong in enumerate(examine(line, job), 1):
            print(job["nonce"], number, json.dumps(wrong[:500]), flush=True)  # noqa: T201
    except Exception as error:
        for left in range(number + 1, len(job["tests"]) + 1):
            print(job["nonce"], left, json.dumps(f"{type(error).__name__}: {error}"[:500]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
