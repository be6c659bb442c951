"""From a check to verdicts, and a guard around every verifier: one that breaks, hangs or says yes to all is found out.

problem, candidates -Guarded-> verifier(problem, one) in a thread, until its deadline -> Verdict, and it is counted
                               raises: failed          late: timed_out
problems, wrong answers -suspicious-> how many are accepted -> a warning, or nothing
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from nomoat.core.domain import Verdict, Verifier
from nomoat.core.errors import ConfigError, DataError

SECONDS = 60.0
WRONG = ("", " ", "I do not know.", "?!", "qzx vkw", "\n" * 50)
"""Answers that are right nowhere, for `suspicious`."""
ACCEPTED = 0.1


def told(problem: Any, key: str) -> Any:
    """What a problem says: of a mapping the value at `key`; anything else is taken to be that value itself.

    Raises:
        DataError: a mapping without the key.
    """
    if not isinstance(problem, Mapping):
        return problem
    if key not in problem:
        raise DataError(f"a problem has no `{key}`", f"it has {', '.join(map(str, problem)) or 'nothing'}")
    return problem[key]


def verdicts(check: Callable[[str], str], candidates: Iterable[str]) -> list[Verdict]:
    """Verdicts of a check that says what is wrong, and nothing where nothing is."""
    found = []
    for candidate in candidates:
        begun = time.perf_counter()
        wrong = check(candidate)
        found.append(Verdict(float(not wrong), wrong, time.perf_counter() - begun))
    return found


class LateError(Exception):
    """A call that did not return by its deadline."""


def within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a thread of its own, and wait for it only so long.

    A thread cannot be killed. One that is late is told to end, which Python code does at its next step; code of a
    library that hangs is left behind, and ends with the process.

    Raises:
        LateError: it has not returned by then.
        BaseException: whatever it raises.
    """
    answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answer.put((function(*arguments), None))
        except BaseException as error:
            answer.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        value, error = answer.get(timeout=seconds)
    except Empty:
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        raise LateError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


class Own:
    """A function of one's own as a verifier.

    Args:
        function: (problem, candidate) -> whether it is right, its score in [0, 1], or a `Verdict`.
    """

    def __init__(self, function: Callable[[Any, str], bool | float | Verdict]) -> None:
        self.function = function

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`; raises what the function raises, and TypeError where it gives no score."""
        found = []
        for candidate in candidates:
            begun = time.perf_counter()
            said = self.function(problem, candidate)
            if not isinstance(said, Verdict):
                said = Verdict(_score(said), seconds=time.perf_counter() - begun)
            found.append(said)
        return found


def _score(said: object) -> float:
    if isinstance(said, int | float) and 0 <= said <= 1:
        return float(said)
    raise TypeError(f"a verifier gives True, False, a score from 0 to 1 or a Verdict, not {said!r:.100}")


class Guarded:
    """A verifier that never raises, is never waited for beyond its deadline, and keeps count.

    Args:
        verifier: any.
        seconds: for each candidate.
        together: it is given all candidates of a call at once and has the sum of their seconds, so that one that hangs
            costs the verdicts of all; else they are given one by one.

    Attributes:
        calls, timeouts, failures: candidates that were judged, late and broken so far.
    """

    def __init__(self, verifier: Verifier, seconds: float = SECONDS, together: bool = False) -> None:
        if not seconds > 0:
            raise ConfigError(f"a deadline of {seconds} s cannot be kept", fix="give it more than 0 seconds")
        self.verifier, self.seconds, self.together = verifier, seconds, together
        self.calls = self.timeouts = self.failures = 0
        self._counting = threading.Lock()

    def __call__(self, problem: Any, candidates: Sequence[str]) -> list[Verdict]:
        """See `Verifier`. Verdicts come in the order of the candidates."""
        groups = [candidates] if self.together and candidates else [[candidate] for candidate in candidates]
        found = [verdict for group in groups for verdict in self._asked(problem, group)]
        with self._counting:
            self.calls += len(found)
            self.timeouts += sum(verdict.timed_out for verdict in found)
            self.failures += sum(verdict.failed for verdict in found)
        return found

    def _asked(self, problem: Any, group: Sequence[str]) -> list[Verdict]:
        begun, count = time.perf_counter(), len(group)
        try:
            found = list(within(self.seconds * count, self.verifier, problem, group))
            if len(found) == count and all(isinstance(each, Verdict) and 0 <= each.score <= 1 for each in found):
                return found
            failed, words = True, f"the verifier gave {found!r:.200} for {count} candidates"
        except LateError as late:
            failed, words = False, str(late)
        except Exception as error:
            failed, words = True, f"{type(error).__name__}: {error}"
        seconds = (time.perf_counter() - begun) / count
        return [Verdict(0.0, words, seconds, timed_out=not failed, failed=failed)] * count


def suspicious(
    verifier: Verifier, problems: Iterable[Any], wrong: Sequence[str] = WRONG, accepted: float = ACCEPTED
) -> str:
    """Try a verifier on answers that are wrong: one that accepts them would teach a model to write them.

    Args:
        verifier: asked about each wrong answer to each problem.
        problems: a few real ones.
        wrong: answers that are right for none of them; the default is empty and meaningless text.
        accepted: the share of them that may pass.

    Returns:
        A warning in words; empty where no more than that share passed.
    """
    found = [
        (answer, each) for problem in problems for answer, each in zip(wrong, verifier(problem, wrong), strict=True)
    ]
    passed = [answer for answer, verdict in found if verdict.right]
    if len(passed) <= accepted * len(found):
        return ""
    shown = f"{len(passed):,} of {len(found):,} wrong answers, such as {passed[0]!a:.60}"
    return f"the verifier accepts {shown}: do not learn from it"
