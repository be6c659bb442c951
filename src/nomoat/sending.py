"""Requests to teachers, many at once: each is marked before it is sent, and its answer stored before it is used.

job -> may it be sent? (nobody stops, the cap holds) -> sent -> teacher -> answered -> job.done
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from nomoat.core.errors import NomoatError, RunError
from nomoat.core.teacher import Answer, Answers
from nomoat.data.answers import Store
from nomoat.data.synth import Draft, Synth
from nomoat.teachers import TeacherError

TRIES = 3
"""Errors after which a request is passed over, and errors in a row after which the teacher is."""
LETTERS = 2.5
"""Characters a token, at least, where a teacher does not count and before it has."""
TEMPLATE = 30
"""Tokens that a chat template adds, at most."""


@dataclass
class Job:
    """A request on its way; `answer` stays None where it was not to be had."""

    draft: Draft
    who: Answers
    request: dict[str, Any]
    key: str
    answer: Answer | None = None
    error: str = ""
    queued: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Sender:
    """The threads that ask.

    Args:
        recipe: gives concurrency, cap and price.
        store: keeps what comes.

    Attributes:
        stopping: why nothing more is sent; empty while there is.
        failure: what went wrong, where something did.
        tokens: read, written, and how many answers had theirs estimated, in this session.
        before: what earlier sessions had spent.
    """

    def __init__(self, recipe: Synth, store: Store) -> None:
        self.recipe, self.store, self.limit = recipe, store, recipe.limit
        self.stopping, self.failure = "", None  # type: str, NomoatError | None
        self.tokens, self.before, self.mutex = Counter[str](), store.spent(), threading.Lock()
        self._seconds, self._kept_at = self.before.seconds, time.monotonic()
        self._under_way = self._errors = 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(recipe.concurrency)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job) -> None:
        """Send a request, once."""
        if not job.queued and job.answer is None:
            job.queued = True
            self._jobs.put(job)

    def close(self) -> None:
        """Send nothing more; what is on its way is paid for: it is waited for and kept."""
        self.stopping = self.stopping or " "
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._send(job)
            except NomoatError as error:
                self.failure, self.stopping = self.failure or error, self.stopping or "stopped"
            except Exception as error:  # a fault of ours must not leave the main thread waiting
                self.failure, self.stopping = RunError("synth failed", repr(error)), "stopped"
            job.done.set()

    def _send(self, job: Job) -> None:
        """Send until an answer is stored, the request is passed over, or all stops."""
        while self._may(job):
            self.store.sent(job.key, job.who.name, job.request)
            try:
                answer = job.who.answer(**job.request)
            except NomoatError as error:
                with self.mutex:
                    self._under_way -= 1
                if self._failed(job, error):
                    return
                continue
            self._store(job, answer)
            return

    def _store(self, job: Job, answer: Answer) -> None:
        """Keep an answer; only then it is used."""
        letters = len(job.request["messages"][0]["content"])
        counted = bool(answer.prompt_tokens or answer.completion_tokens)
        if not counted:
            read, written = (int(count / LETTERS) + 1 for count in (letters, len(answer.text)))
            answer = replace(answer, prompt_tokens=read, completion_tokens=written)
        with self.mutex:
            now, self._errors = time.monotonic(), 0
            self.store.answered(job.key, answer, now - self._kept_at)
            self._seconds, self._kept_at = self._seconds + now - self._kept_at, now
            self._under_way -= 1
            self.tokens += Counter(letters=letters, read=answer.prompt_tokens, written=answer.completion_tokens)
            self.tokens["estimated"] += not counted
        job.answer = answer

    def _may(self, job: Job) -> bool:
        """Whether one more may be sent: nobody stops us, and it cannot lead beyond the cap."""
        with self.mutex:
            if self.stopping:
                return False
            if self.limit is not None and self._used(job) > self.limit.amount:
                self.stopping = f"stopped at the cap of {self.recipe.cap}"
                return False
            self._under_way += 1
            return True

    def _used(self, job: Job) -> float:
        """Of what is capped: spent, and what the requests on their way and this one may cost at most."""
        assert self.limit is not None
        if self.limit.unit == "seconds":
            return self._seconds + time.monotonic() - self._kept_at
        letters, count = len(job.request["messages"][0]["content"]), self._under_way + 1
        share = max(1 / LETTERS, 1.2 * self.tokens["read"] / max(1, self.tokens["letters"]))
        read = self.before.prompt_tokens + self.tokens["read"] + count * (letters * share + TEMPLATE)
        written = self.before.completion_tokens + self.tokens["written"] + count * self.recipe.max_tokens
        return read + written if self.limit.unit == "tokens" else money((read, written), self.recipe.price)

    def _failed(self, job: Job, error: NomoatError) -> bool:
        """Whether the request is over. While others are answered one is passed over; else the teacher is gone."""
        times = self.store.failed(job.key)
        with self.mutex:
            self._errors += 1
            if isinstance(error, TeacherError) and (error.lasting or self._errors >= TRIES):
                fix = error.fix or "type the same again: it goes on where it stopped"
                self.failure = self.failure or TeacherError(error.what, error.why, fix)
                self.stopping = self.stopping or f"stopped: {error.what}"
                return True
        if times >= TRIES or not isinstance(error, TeacherError):
            job.error = str(error)
            return True
        return False


def money(tokens: tuple[float, float], price: tuple[float, float]) -> float:
    """What tokens read and written cost, by prices of a million."""
    return sum(count * each for count, each in zip(tokens, price, strict=True)) / 1e6
