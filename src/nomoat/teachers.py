"""Teachers: whoever answers conversations, opened by one word: a run, or any OpenAI-compatible address.

    run, name, `last` -> load -> quickest -> Engine (requests of all threads are batched)   \\
                                                                                             > Answers.answer(messages)
    http://host/v1#model -> POST /chat/completions (again, later and later)                 /

Whose licence and contract bind what a teacher writes is part of it. Of a run its ledger says so; of an address nobody
can know but who typed it, so there they are required.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.core.ledger import UNKNOWN
from nomoat.core.run import Run, load, of_text
from nomoat.core.teacher import Answer, Answers

if TYPE_CHECKING:
    from nomoat.serve.ask import Event

SECONDS = 120.0
"""An answer that takes longer is given up."""
KEY = "NOMOAT_KEY"
"""The environment variable that holds the key of an address, unless another one or a file is named."""
SLOTS = 8
WANTED = "licence=Apache-2.0 terms=none, or what its owner says; unknown is an answer too"


class TeacherError(NomoatError):
    """A teacher that does not answer, or whose answer cannot be read.

    Attributes:
        lasting: every other request will fare the same (a wrong key, a wrong address, nobody there).
    """

    def __init__(self, what: str, why: str = "", fix: str = "", lasting: bool = False) -> None:
        super().__init__(what, why, fix)
        self.lasting = lasting


class Teacher(Answers, Protocol):
    """Answers, and can be closed.

    Attributes:
        where: what it was opened by, without any key.
        sent_again: how many requests were sent again because nobody, or half an answer, came.
    """

    where: str
    sent_again: int

    def close(self) -> None:
        """Free what it holds; requests under way end with an error."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


def open_teacher(
    where: Run | Path | str,
    licence: str | None = None,
    terms: str | None = None,
    device: str = "auto",
    key: str = KEY,
    seconds: float = SECONDS,
    slots: int = SLOTS,
    bits: int | None = None,
) -> Teacher:
    """Open whoever answers; use it in a `with`, or close it.

    Args:
        where: a run (path, name or `last`), or `http(s)://host[:port]/v1#model`.
        licence: SPDX id of its weights and outputs, or `unknown`; required for an address; None: the run's own.
        terms: the contract with whoever runs it (`openai`, `anthropic`, `google`, ...), `none` where there is none;
            required for an address.
        device: where a run computes.
        key: of an address: the name of an environment variable that holds it, or of a file; never shown.
        seconds: after which an answer is given up.
        slots: texts that a run writes at once.
        bits: of a run's matrices while it writes, where they are floats on the CPU.

    Raises:
        ConfigError: an address without model, licence or terms, or a run that writes no text.
        RunError: there is no such run.
        CheckpointError: no checkpoint is good.
    """
    text = str(where)
    if isinstance(where, str) and "://" in text:
        return Address(text, licence, terms, key, seconds)
    return Local(of_text(Run.open(where)), licence, terms, device, seconds, slots, bits)


class _Closes:
    """Ends with its `with`."""

    sent_again = 0

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Address(_Closes):
    """A model behind an OpenAI-compatible address; see `open_teacher`."""

    def __init__(
        self, where: str, licence: str | None, terms: str | None, key: str = KEY, seconds: float = SECONDS
    ) -> None:
        from nomoat.hub.fetch import parts_of

        try:
            parts = parts_of(where)
        except ValueError as error:
            raise ConfigError(f"{where} is no address", str(error), "write http://host:8000/v1#model") from None
        self.name, self.where = parts.fragment, where.partition("#")[0].rstrip("/")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{where} is no address of a teacher", "", "write http://host:8000/v1#model")
        if parts.username or parts.password or parts.query:
            raise ConfigError("an address of a teacher holds no user, password or query", "", f"put the key in ${KEY}")
        if not self.name:
            raise ConfigError(f"{self.where} names no model", "a server may have several", f"write {self.where}#MODEL")
        missing = [name for name, value in (("licence", licence), ("terms", terms)) if not (value or "").strip()]
        if missing:
            why = "what it writes is bound by them, and so is a model that learns from it"
            raise ConfigError(f"{self.name} at {self.where} needs its {' and '.join(missing)}", why, f"say {WANTED}")
        self.licence, self.terms = str(licence).strip(), _contract(terms)
        self._key, self._seconds = _secret(key), seconds
        self._again = threading.Lock()

    def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer the conversation.

        Raises:
            TeacherError: nobody answers in time, or what comes back cannot be read.
        """
        from nomoat.hub.fetch import UnreachableError, post_json

        body: dict[str, Any] = {"model": self.name, "messages": [*messages], "max_tokens": max_tokens}
        body |= {"temperature": temperature, "top_p": top_p} | ({} if seed is None else {"seed": seed})
        try:
            said = post_json(f"{self.where}/chat/completions", body, self._key, self._seconds, self._count)
        except UnreachableError as error:
            raise self._explained(error.what, error.why, error.status) from None
        except NomoatError as error:
            raise TeacherError(error.what, error.why, error.fix, lasting=True) from None
        return self._read(said)

    def _count(self) -> None:
        with self._again:
            self.sent_again += 1

    def _explained(self, what: str, why: str, status: int) -> TeacherError:
        """What to do about an error of HTTP."""
        fix = {
            401: f"put the right key in ${KEY}, or name the variable or file that holds it",
            403: "the key may not use this model: ask whoever runs it",
            404: f"check the address and the model: it was asked for `{self.name}`",
            429: "ask for less at once, or wait",
        }.get(status, "check the address and that the server runs" if not status else "see what the server says of it")
        why = {401: "the key is missing or wrong", 403: "it is refused to this key"}.get(status, why)
        return TeacherError(what, why.replace(self._key, "...") if self._key else why, fix, status in (401, 403, 404))

    def _read(self, said: Any) -> Answer:
        try:
            choice = said["choices"][0]
            message, usage = choice["message"], said.get("usage") or {}
            text = message.get("content") or ""
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            finish = "refused" if message.get("refusal") else str(choice.get("finish_reason") or "stop")
            if not isinstance(text, str):
                raise TypeError("content is no text")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            why = f"{type(error).__name__}: {error} in what should be a chat completion"
            fix = "is it an OpenAI-compatible server, and does the address end in /v1?"
            raise TeacherError(f"{self.where} answers in a form that is not OpenAI's", why, fix) from None
        return _answer(text, counts[0], counts[1], finish)


class Local(_Closes):
    """A model of this disk, with an engine of its own; see `open_teacher`."""

    def __init__(
        self,
        run: Run,
        licence: str | None = None,
        terms: str | None = None,
        device: str = "auto",
        seconds: float = SECONDS,
        slots: int = SLOTS,
        bits: int | None = None,
    ) -> None:
        from nomoat.core.device import choose
        from nomoat.data import tokenizer
        from nomoat.data.chat import Chat
        from nomoat.nn.native import quickest
        from nomoat.sampling.speculate import NgramDrafts
        from nomoat.serve.engine import Engine

        if not (run.path / "tokenizer.json").exists():
            raise ConfigError(f"{run.name} writes no text", "it has no tokenizer", "name a run of a language model")
        family: Any = load(run).to(choose(device))
        if not hasattr(family, "decode"):
            raise ConfigError(f"{run.name} writes no text", "it does not decode", "name a run of a language model")
        self.name, self.where = run.name, run.name
        self.licence, self.terms = licence or licence_of(run), _contract(terms)
        self.tokenizer, self.chat = tokenizer.load(run.path / "tokenizer.json"), Chat.of(run.path)
        packable = family.config.bits == 16 and all(weight.is_cpu for weight in family.parameters())
        self._length, self._seconds = family.config.context_length, seconds
        quick = quickest(family, bits if packable else None)
        self._engine = Engine(quick, slots=slots, queue=2 * slots, draft=NgramDrafts())
        self._room = threading.BoundedSemaphore(2 * slots)

    def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer the conversation.

        Raises:
            ConfigError: it does not fit the context, or the chat template refuses it.
            TeacherError: the time is over, or the engine fails.
        """
        from nomoat.sampling.tokens import SamplingOptions
        from nomoat.serve.ask import Ask

        ids, _ = self.chat.tokens(messages, self.tokenizer)
        if (room := self._length - len(ids)) < 1:
            why = f"with the template it has {len(ids):,} tokens; {self.name} reads {self._length:,} with the answer"
            raise ConfigError("the conversation is too long for its teacher", why, "give it shorter texts")
        number = secrets.randbits(62) if seed is None else seed
        options = SamplingOptions(temperature, top_p=top_p, max_tokens=min(max_tokens, room), seed=number)
        with self._room:
            heard = _Heard(self.tokenizer, self.chat.stop)
            ask = Ask(tuple(ids), options, self.tokenizer.stops, deadline=time.monotonic() + self._seconds)
            heard.cancel = self._engine.submit(ask, heard).cancel
            finish = heard.wait()
        if finish in ("cancelled", "deadline", "error"):
            why = {"deadline": f"it wrote for {self._seconds:g} seconds"}.get(finish, heard.error or "it was closed")
            raise TeacherError(f"{self.name} did not finish its answer", why, "ask for fewer tokens")
        return _answer(heard.text.strip(), len(ids), heard.tokens, finish)

    def close(self) -> None:
        """End the engine and free the model."""
        self._engine.close()


class _Heard:
    """Puts an answer together on the engine's thread; a stop string ends it."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        from nomoat.sampling.write import Outlet

        self.text, self.error, self.tokens = "", "", 0
        self.cancel: Callable[[], None] = lambda: None
        self._tokenizer, self._outlet, self._finish = tokenizer, Outlet(stop), ""
        self._over = threading.Event()

    def __call__(self, event: Event) -> None:
        if event.token is not None:
            self.tokens += 1
            if event.token not in self._tokenizer.stops:
                self.text += self._outlet.push(self._tokenizer.token_bytes(event.token))
        if self._outlet.stopped or event.finish:
            self._finish = self._finish or ("stop" if self._outlet.stopped else event.finish or "")
            self.text, self.error = self.text + self._outlet.finish(), event.error
            self.cancel()
            self._over.set()

    def wait(self) -> str:
        self._over.wait()
        return self._finish


def licence_of(run: Run) -> str:
    """The licence of a run's weights as its ledger has it: one, all of several joined by AND, or unknown."""
    ledger = run.read_json("ledger.json") or {}
    if "shares" not in ledger:
        return ledger.get("licence") or UNKNOWN
    found = Counter({share["licence"]: share["bytes"] for share in ledger["shares"]})
    return UNKNOWN if not found or UNKNOWN in found else " AND ".join(sorted(found))


def _answer(text: str, prompt_tokens: int, completion_tokens: int, finish: str) -> Answer:
    """Nothing at all, where there was room for more, is a refusal: nobody can use it."""
    finish = finish if finish in ("stop", "length") else "refused" if finish == "content_filter" else finish
    if finish not in ("length", "refused"):
        finish = "stop" if text.strip() else "refused"
    return Answer(text, prompt_tokens, completion_tokens, finish)


def _contract(terms: str | None) -> str:
    text = (terms or "").strip()
    return "" if text.lower() in ("none", "no", "-") else text


def _secret(key: str) -> str:
    """The key in the environment variable or the file of that name; none is no fault: a server may want none."""
    if key in os.environ:
        return os.environ[key].strip()
    path = Path(key).expanduser()
    try:
        held = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"the key in {path} cannot be read", type(error).__name__) from None
    if not held and key != KEY:
        raise ConfigError("there is no key where it should be", f"neither a variable nor a file is called {key}")
    return held
