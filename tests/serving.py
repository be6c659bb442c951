"""A server for tests: a scripted engine behind the real routes, on a real uvicorn on loopback.

The engine keeps the interface of `nomoat.serve.engine` and writes what `script` says, one token after another, on a
thread of its own; it notes what was asked and what was cancelled. As a program (`python serving.py RUNS`) it serves
until a signal comes.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
import types
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, NomoatError
from nomoat.core.recipe import Recipe
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.families.lm import LM

if importlib.util.find_spec("nomoat.serve.ask") is None:  # until the engine is there: its words alone

    @dataclass(frozen=True)
    class Ask:
        tokens: tuple
        options: Any
        stop_tokens: tuple = ()
        n: int = 1
        top_logprobs: int = 0
        constraint: Any = None
        deadline: float | None = None
        prompt_logprobs: bool = False

    @dataclass(frozen=True)
    class Event:
        choice: int
        token: int | None
        logprob: float = 0.0
        top: tuple = ()
        finish: str | None = None
        error: str = ""
        prompt: bool = False

    class Full(NomoatError):  # noqa: N818
        def __init__(self, waiting, retry_after):
            super().__init__("the queue is full", "", "try again later")
            self.retry_after = retry_after

    words = types.ModuleType("nomoat.serve.ask")
    words.Ask, words.Event, words.Full, words.Ticket = Ask, Event, Full, object
    sys.modules["nomoat.serve.ask"] = words

from nomoat.serve.ask import Event, Full
from nomoat.serve.models import Models, Served, Settings

EOT = 256


class Bytes(ByteTokenizer):
    """Bytes, with what an imported tokenizer has besides."""

    begin, stops, prefixes = (EOT,), (EOT,), False


class Ticket:
    def __init__(self, engine):
        self.engine, self.cancelled, self.cancelled_at = engine, False, None

    def cancel(self):
        if not self.cancelled:
            self.cancelled, self.cancelled_at = True, time.monotonic()


@dataclass
class Stats:
    queued: int = 0
    active: int = 0
    slots_free: int = 8
    tokens_in: int = 0
    tokens_out: int = 0
    prefix_tokens_reused: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    steps: int = 0
    cancelled: int = 0


class ScriptedEngine:
    """Writes `script(ask, row) -> bytes or tokens`; one token a row every `pause` seconds.

    Args:
        script: what is written after a prompt; an exception instead of a token ends the text with an error.
        pause: seconds between tokens.
        room: requests at once; one more is refused.
    """

    def __init__(self, script, pause=0.0, room=64):
        self.script, self.pause, self.room = script, pause, room
        self.asks, self.tickets, self.counted = [], [], Stats()
        self.jobs, self.lock, self.closed = [], threading.Condition(), False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, ask, sink):
        with self.lock:
            if len(self.jobs) >= self.room:
                raise Full(self.room, 2.0)
            if self.closed:
                raise ConfigError("closed")
            ticket = Ticket(self)
            texts = [list(self.script(ask, row))[: ask.options.max_tokens] for row in range(ask.n)]
            whole = [len(list(self.script(ask, row))) <= ask.options.max_tokens for row in range(ask.n)]
            self.jobs.append([ask, sink, ticket, [iter(text) for text in texts], whole])
            self.asks.append(ask)
            self.tickets.append(ticket)
            for place in range(1, len(ask.tokens) if ask.prompt_logprobs else 0):
                sink(Event(0, ask.tokens[place], -place, self._top(ask, ask.tokens[place]), prompt=True))
            self.counted.tokens_in += len(ask.tokens)
            self.lock.notify()
        return ticket

    def _run(self):
        while not self.closed:
            with self.lock:
                if not self.jobs:
                    self.lock.wait(0.1)
                jobs = list(self.jobs)
            for job in jobs:
                if not self._step(*job):
                    with self.lock:
                        self.jobs.remove(job)
            time.sleep(self.pause)

    def _step(self, ask, sink, ticket, texts, whole):
        late = ask.deadline is not None and time.monotonic() > ask.deadline
        if ticket.cancelled or late:
            self.counted.cancelled += ticket.cancelled
            for row, text in enumerate(texts):
                if text is not None:
                    sink(Event(row, None, 0.0, (), "deadline" if late else "cancelled"))
            return False
        for row, text in enumerate(texts):
            if text is None:
                continue
            token = next(text, None)
            if isinstance(token, Exception):
                sink(Event(row, None, 0.0, (), "error", str(token)))
            elif token is None and whole[row]:
                sink(Event(row, EOT, -0.5, self._top(ask, EOT), "stop"))
            elif token is None:
                sink(Event(row, None, 0.0, (), "length"))
            else:
                sink(Event(row, token, -0.25, self._top(ask, token), None))
                self.counted.tokens_out += 1
                continue
            texts[row] = None
        return any(text is not None for text in texts)

    def _top(self, ask, token):
        return tuple((token if rank == 0 else (token + rank) % 256, -0.25 - rank) for rank in range(ask.top_logprobs))

    def stats(self):
        self.counted.active = sum(text is not None for job in self.jobs for text in job[3])
        return self.counted

    def close(self, drain_seconds=0.0):
        self.closed = True
        self.thread.join()


class PlainChat:
    """A template of one line a message; tools are named before it."""

    own, stop = True, ()

    def render(self, messages, tools=None, answer=True):
        if any("refuse" in str(message["content"]) for message in messages):
            raise ConfigError("the template takes no such message")
        lines = [f"tool:{tool['function']['name']}" for tool in tools or ()]
        lines += [f"{message['role']}:{message['content']}" for message in messages]
        return "\n".join([*lines, "assistant:" if answer else ""])

    def tokens(self, messages, tokenizer, tools=None, answer=True):
        ids = [*tokenizer.begin, *map(int, tokenizer.encode(self.render(messages, tools, answer)))]
        return ids, [False] * len(ids)


class Encodes(torch.nn.Module):
    """Embeds a text as the share of each letter in it."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(vocab_size=260)
        self.weight = torch.nn.Parameter(torch.eye(257))

    def encode(self, batch):
        kept_BL1 = batch["mask"][..., None].float()
        return (self.weight[batch["tokens"]] * kept_BL1).sum(1) / kept_BL1.sum(1)


def hello(ask, row):
    """What the model says unless told otherwise."""
    return b"Hello, w\xc3\xb6rld!" if row == 0 else f"Hello {row}".encode()


@dataclass
class Named:
    """As much of a run as the server needs."""

    name: str
    path: Path = Path("/nowhere")
    recipe: Recipe = field(default_factory=lambda: Recipe("Text.", LM.tiny(), None, Budget.parse("1steps"), 1))


def reader(script=hello, context_length=2000, **engine):
    """A reader for `Models` that keeps what it made."""
    made = []

    def read(run, settings):
        served = Served(run.name, ScriptedEngine(script, **engine), Bytes(), PlainChat(), Encodes(), context_length)
        made.append(served)
        return served

    read.made = made
    return read


@contextmanager
def running(script=hello, names=("tiny",), settings=None, read=None, **engine):
    """A server on a free port: its address as `base`, the models made so far as `made`."""
    from nomoat.serve.app import Server
    from nomoat.serve.start import Listening

    read, told = read or reader(script, **engine), []
    settings = replace(settings or Settings(drain_seconds=1.0, bits=32), port=0)
    server = Server(Models({name: Named(name) for name in names}, settings, read))
    listening = Listening(server, told.append)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    until(lambda: told and (server.models.ready or listening.fault))
    try:
        yield types.SimpleNamespace(base=told[0], server=server, made=read.made, listening=listening)
    finally:
        listening.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def until(true, seconds=10.0):
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def main(pause, drain):
    """Serve slowly until a signal comes."""
    from nomoat.serve.start import serve

    def slow(ask, row):
        return (
            b"x" * 300
            if b"error" not in bytes(token for token in ask.tokens if token < 256)
            else [ZeroDivisionError("x")]
        )

    settings = Settings(port=0, drain_seconds=float(drain))

    def told(base):
        sys.stdout.write(base + "\n")
        sys.stdout.flush()

    serve({"tiny": Named("tiny")}, settings, told, reader=reader(slow, pause=float(pause)))


if __name__ == "__main__":
    main(*sys.argv[1:])
