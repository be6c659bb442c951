"""Answers that were paid for: each is on disk before it is used, and what is on disk is never asked for again.

    request -> key -> known? -> answer;   else -> sent (committed) -> the teacher -> answered (committed) -> answer

The key is a hash of the payload, the model, its address and the number of the sample. SQLite with a write-ahead log,
synced at every commit. After a kill the requests that were sent and not answered are those in flight: counted, and the
only ones that can be sent twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nomoat.core import durable
from nomoat.core.errors import RunError
from nomoat.core.teacher import Answer

NAME, LOCK = "answers.sqlite", "lock"
ROOM = 16 << 20
"""Bytes that must be free before anything is sent: an answer on its way must find room."""
TABLES = """
CREATE TABLE IF NOT EXISTS answers(key TEXT PRIMARY KEY, model TEXT, request TEXT, sent INTEGER NOT NULL,
    in_flight INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, text TEXT, prompt_tokens INTEGER,
    completion_tokens INTEGER, finish TEXT);
CREATE TABLE IF NOT EXISTS clock(only INTEGER PRIMARY KEY, seconds REAL);
INSERT OR IGNORE INTO clock VALUES(0, 0);
"""


class Spent(NamedTuple):
    """What the answers so far came to, those of earlier times counted.

    Args:
        answers: that have come.
        prompt_tokens, completion_tokens: of them.
        seconds: in which they were waited for.
        again: requests that were sent once more; those in flight at a kill and those that failed.
        in_flight: requests on their way when a process was killed.
        failed: sendings that ended with an error.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    again: int
    in_flight: int
    failed: int


def key_of(request: Mapping[str, Any], model: str, where: str, sample: int = 0) -> str:
    """The key of a request: SHA-256 over all that its answer depends on."""
    text = json.dumps([request, model, where, sample], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The answers in a folder; one process at a time, any of its threads.

    Args:
        folder: made where it is missing.

    Raises:
        RunError: another process has it, the disk is full, or what is there is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._mutex = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._handle = durable.acquire(folder / LOCK)
        except BlockingIOError:
            holder = durable.holder(folder / LOCK) or "unknown"
            why = f"process {holder} writes there, and two would pay for the same answers"
            raise RunError(f"{folder} is in use", why, "wait for it, or name another folder: --output PATH") from None
        try:
            with self._disk():
                self._base = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(TABLES)
                self._base.execute(
                    "UPDATE answers SET in_flight = in_flight + 1 WHERE text IS NULL AND sent > in_flight + failed"
                )
        except BaseException:
            os.close(self._handle)
            raise

    def close(self) -> None:
        """Let others in."""
        with self._mutex:
            self._base.close()
            os.close(self._handle)

    def find(self, key: str) -> Answer | None:
        """The answer that has come for a key."""
        with self._disk():
            row = self._base.execute(
                "SELECT text, prompt_tokens, completion_tokens, finish FROM answers WHERE key = ? AND text IS NOT NULL",
                (key,),
            ).fetchone()
        return Answer(*row) if row else None

    def sent(self, key: str, model: str, request: Mapping[str, Any]) -> None:
        """Note that a request is about to be sent."""
        free = shutil.disk_usage(self.path.parent).free
        if free < ROOM:
            raise _full(self.path, f"{free:,} bytes are free, and an answer must find room")
        with self._disk():
            self._base.execute(
                "INSERT INTO answers(key, model, request, sent) VALUES(?, ?, ?, 1) "
                "ON CONFLICT(key) DO UPDATE SET sent = sent + 1",
                (key, model, json.dumps(request, ensure_ascii=False)),
            )

    def answered(self, key: str, answer: Answer, seconds: float) -> None:
        """Keep an answer, and the seconds that went by since the last one was kept."""
        with self._disk():
            self._base.execute("BEGIN")
            self._base.execute(
                "UPDATE answers SET text=?, prompt_tokens=?, completion_tokens=?, finish=? WHERE key=?",
                (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.finish, key),
            )
            self._base.execute("UPDATE clock SET seconds = seconds + ?", (seconds,))
            self._base.execute("COMMIT")

    def failed(self, key: str) -> int:
        """Note that a sending ended with an error; returns how many have for this key."""
        with self._disk():
            self._base.execute("UPDATE answers SET failed = failed + 1 WHERE key = ?", (key,))
            return int(self._base.execute("SELECT failed FROM answers WHERE key = ?", (key,)).fetchone()[0])

    def spent(self) -> Spent:
        """What it all came to."""
        with self._disk():
            row = self._base.execute(
                "SELECT count(text), total(prompt_tokens), total(completion_tokens), "
                "total(max(sent - 1, 0)), total(in_flight), total(failed) FROM answers"
            ).fetchone()
            seconds = self._base.execute("SELECT seconds FROM clock").fetchone()[0]
        answers, read, written, again, in_flight, failed = map(int, row)
        return Spent(answers, read, written, float(seconds), again, in_flight, failed)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """One thread at a time; what SQLite says of the disk, in our words."""
        with self._mutex:
            try:
                yield
            except sqlite3.Error as error:
                if self._base_open() and self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                if "full" in str(error):
                    raise _full(self.path, str(error)) from error
                fix = "check the disk and the folder's rights; a damaged file can be moved away, its answers are lost"
                raise RunError(f"{self.path} cannot be used", str(error), fix) from error

    def _base_open(self) -> bool:
        return hasattr(self, "_base")


def _full(path: Path, why: str) -> RunError:
    fix = "free some space, then type the same again: every answer that has come is kept"
    return RunError("the disk is full", f"{path}: {why}", fix)
