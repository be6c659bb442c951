"""Verifiers by the words of the command line.

"number"  "regex:^\\d+$"  "schema:reply.json"  "tests"  "judge:RUN"  "mine.py:check" -find-> a guarded Verifier
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

from nomoat.core.domain import Verifier
from nomoat.core.errors import ConfigError, nearest
from nomoat.core.teacher import Answers
from nomoat.search.answers import Choice, Pattern, Schema, Text
from nomoat.search.arithmetic import Arithmetic, FinalNumber
from nomoat.search.judged import Judged
from nomoat.search.programs import UnitTests
from nomoat.search.sandbox import Sandbox
from nomoat.search.verdicts import SECONDS, Guarded, Own

PLAIN: dict[str, Callable[[], Verifier]] = {
    "arithmetic": Arithmetic,
    "countdown": lambda: Arithmetic("some"),
    "number": FinalNumber,
    "choice": Choice,
    "text": Text,
}
KNOWN = (*PLAIN, "tests", "regex:PATTERN", "schema:FILE", "judge:RUN", "FILE.py:FUNCTION")


def find(
    text: str,
    sandbox: Sandbox | None = None,
    opened: Callable[[str], Answers] | None = None,
    workers: int = 2,
    seconds: float = SECONDS,
) -> Guarded:
    """The verifier that is meant, guarded.

    Args:
        text: `arithmetic` (all numbers are used), `countdown` (some are), `number`, `choice`, `text`, `tests`,
            `regex:PATTERN`, `schema:FILE`, `judge:RUN` or `FILE.py:FUNCTION`, a function of (problem, candidate).
        sandbox: where `tests` and `regex` run; None: a new one.
        opened: opens a judge by its name or address.
        workers: programs, or questions to a judge, at once.
        seconds: for a candidate, by the guard; programs have the sandbox's own.

    Raises:
        ConfigError: there is no such verifier, file or function, or what stands behind the colon cannot be used.
    """
    name, colon, rest = text.partition(":")
    file, _, function = text.rpartition(":")
    if text in PLAIN:
        return Guarded(PLAIN[text](), seconds, together=True)
    if text == "tests":
        return Guarded(UnitTests(sandbox, workers), seconds, together=True)
    if file.endswith(".py"):
        return Guarded(Own(_function(Path(file), function)), seconds)
    if colon and not rest and name in ("regex", "schema", "judge"):
        raise ConfigError(f"`{text}` names nothing", "", next(each for each in KNOWN if each.startswith(f"{name}:")))
    if colon and name == "regex":
        return Guarded(Pattern(rest, sandbox=sandbox), seconds, together=True)
    if colon and name == "schema":
        return Guarded(Schema(_json(Path(rest))), seconds, together=True)
    if colon and name == "judge":
        if opened is None:
            raise ConfigError(f"`{text}` cannot be opened here", "nobody has said how judges are opened")
        return Guarded(Judged(opened(rest), seconds, workers), seconds * 2, together=True)
    raise ConfigError(f"there is no verifier `{text}`", f"there is {', '.join(KNOWN)}", nearest(text, KNOWN))


def _function(path: Path, name: str) -> Callable[..., Any]:
    """A function of a file of one's own, which is run."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", "", "a verifier of your own is FILE.py:FUNCTION")
    # A name of its own for each file, so that what the file defines can be found while this process lives.
    known_as = f"verifier_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = util.spec_from_file_location(known_as, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[known_as] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[known_as]
        raise ConfigError(f"{path} cannot be run", f"{type(error).__name__}: {error}", "mend the file") from error
    found: Any = getattr(module, name, None)
    if not callable(found):
        near = nearest(name, [each for each in vars(module) if not each.startswith("_")])
        raise ConfigError(f"{path} has no function `{name}`", "", near or f"write def {name}(problem, candidate)")
    checked: Callable[..., Any] = found
    return checked


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON", str(error), "name a file with a JSON schema") from error
