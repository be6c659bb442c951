"""The models of a server: loaded by name when they are first asked for, freed when nobody has asked for a while.

    run -> read -> Served (engine, tokenizer, chat, family)        name -> Models.get -> Served

A run is known by its own name and by what was typed to name it. The first is loaded at once; `/ready` says when.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nomoat.core.errors import ConfigError
from nomoat.serve.measures import Measures
from nomoat.serve.openai import ApiError
from nomoat.serve.sharing import groups

if TYPE_CHECKING:
    from nomoat.core.run import Run
    from nomoat.data.chat import Chat
    from nomoat.data.tokenizer import Tokenizer
    from nomoat.sampling.constrain import Constraint, Vocabulary
    from nomoat.serve.engine import Engine

ROWS = 8
"""Texts that are embedded in one call of the model."""


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Args:
        host: the address to listen on; any but loopback needs keys.
        port: 0: a free one.
        keys: any of them lets a client in; none: everybody on this machine may come in.
        origins: web pages that may call, as scheme://host:port.
        slots: texts written at once, a model.
        context_length: tokens of prompt and answer together; None: the model's own.
        queue: requests that may wait, a model.
        idle_minutes: a model that nobody has asked for so long is freed; 0: never.
        deadline_seconds: longest time for one request.
        drain_seconds: how long running answers may go on when the server is told to stop.
        bits: 32, 16, 8 or 4, of the weights while it runs; None: packed ones as they are, floats in 16 where fast.
        device: `auto`, `cpu`, `cuda` or `mps`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    slots: int = 8
    context_length: int | None = None
    queue: int = 64
    idle_minutes: float = 0.0
    deadline_seconds: float = 600.0
    drain_seconds: float = 30.0
    bits: int | None = None
    device: str = "auto"


@dataclass
class Served:
    """One model in memory.

    Args:
        name: by which clients know it.
        engine: writes text with it.
        tokenizer: its tokenizer.
        chat: its chat template.
        family: the model itself, for what is not written token by token.
        context_length: tokens of prompt and answer together.
        adapter: which of the engine's, where several runs share one; -1: none.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat: Chat
    family: Any
    context_length: int
    adapter: int = -1
    measures: Measures = field(default_factory=Measures)
    used: float = field(default_factory=time.monotonic)
    aside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @cached_property
    def spelled(self) -> list[bytes]:
        """The bytes of each token; none for those that the model has beyond its tokenizer's."""
        tokens = [self.tokenizer.token_bytes(token) for token in range(self.tokenizer.vocab_size)]
        return [*tokens, *[b""] * (self.family.config.vocab_size - len(tokens))]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens, as constraints match them."""
        from nomoat.sampling.constrain import Vocabulary

        return Vocabulary.of(self.spelled, self.tokenizer.stops)

    def text(self, token: int) -> str:
        """A token as text; half a character shows as U+FFFD."""
        return self.spelled[token].decode("utf-8", errors="replace")

    def encoded(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, what stands before it included; one that cannot fit is not even encoded.

        Raises:
            ApiError: it is longer than the context in any case.
        """
        self.refuse_long(len(text))
        return (*self.tokenizer.begin, *map(int, self.tokenizer.encode(text))) or (self.tokenizer.eot,)

    def refuse_long(self, characters: int, param: str | None = None) -> None:
        """Refuse a text that cannot fit, however it is spelled, before any time is spent on it (ApiError)."""
        least = characters // max(map(len, self.spelled))
        if least > self.context_length:
            raise self._too_long(f"at least {least}", param)

    def fit(self, tokens: int, wanted: int | None = None, param: str | None = None) -> int:
        """How many tokens may be written after a prompt of so many, where so many are wanted.

        Raises:
            ApiError: the prompt leaves no room.
        """
        room = self.context_length - tokens
        if room < min(1, 1 if wanted is None else wanted):
            raise self._too_long(str(tokens), param)
        return room if wanted is None else min(room, wanted)

    def _too_long(self, tokens: str, param: str | None) -> ApiError:
        message = f"the prompt has {tokens} tokens; {self.name} reads {self.context_length}, prompt and answer"
        return ApiError(400, message, param=param, code="context_length_exceeded")

    def constraint(self, kind: Any, spec: Any) -> Constraint:
        """What holds a text to a form; takes up to seconds: for a thread of its own.

        Raises:
            ConfigError: it cannot be compiled, or not within the limits.
        """
        from nomoat.sampling.constrain import compile_constraint

        return compile_constraint(kind, spec, self.vocabulary)

    def embed(self, rows: Sequence[Sequence[int]], deadline: float) -> list[list[float]]:
        """A vector of length 1 for each row of tokens: the mean over the model's outputs.

        Raises:
            ApiError: the moment `deadline` of `time.monotonic()` has passed.
        """
        import torch
        from torch.nn.functional import normalize
        from torch.nn.utils.rnn import pad_sequence

        vectors: dict[int, list[float]] = {}
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        device = next(self.family.parameters()).device
        for some in (order[start : start + ROWS] for start in range(0, len(order), ROWS)):
            if time.monotonic() > deadline:
                raise ApiError(504, "the request took longer than it may", code="deadline")
            tokens_BL = pad_sequence([torch.tensor(rows[index]) for index in some], batch_first=True, padding_value=-1)
            batch = {"tokens": tokens_BL.clamp(min=0).to(device), "mask": (tokens_BL >= 0).to(device)}
            if self.adapter >= 0:
                batch["adapter"] = torch.full((len(some),), self.adapter)
            with torch.no_grad():
                vectors |= zip(some, normalize(self.family.encode(batch).float(), dim=1).tolist(), strict=True)
        return [vectors[index] for index in range(len(rows))]

    def close(self, drain_seconds: float = 0.0) -> None:
        """Free everything."""
        self.engine.close(drain_seconds)
        self.aside.shutdown(wait=False)


def read(run: Run, settings: Settings) -> Served:
    """Load the model of a run and start an engine for it.

    Raises:
        ConfigError: it is no model of text, or its weights cannot be had in so many bits.
        CheckpointError: no checkpoint is good.
    """
    from nomoat.core.run import load

    return _served(load(run), {run: -1}, settings)[run.name]


def read_shared(runs: Sequence[Run], settings: Settings) -> dict[str, Served]:
    """Load runs of one base, for which one engine writes; errors as in `read`."""
    from nomoat.serve.sharing import read_group

    family, adapters = read_group(runs)
    return _served(family, {run: adapters[run.name] for run in runs}, settings)


def _served(family: Any, runs: Mapping[Run, int], settings: Settings) -> dict[str, Served]:
    """An engine for a model, and what is served of each run; whose adapter it is, or -1.

    Raises:
        ConfigError: it is no model of text, or its weights cannot be had in so many bits.
        CheckpointError: no checkpoint is good.
    """
    from nomoat.core.device import choose
    from nomoat.data import tokenizer
    from nomoat.data.chat import Chat
    from nomoat.nn.native import quickest
    from nomoat.sampling.speculate import NgramDrafts
    from nomoat.serve.engine import Engine

    for run in runs:
        if not hasattr(family, "decode") or not (run.path / "tokenizer.json").exists():
            raise ConfigError(f"{run.name} does not write text", "only models of text are served", "name another run")
    family = family.to(choose(settings.device))
    reader = quickest(family, settings.bits)
    length = min(settings.context_length or family.config.context_length, family.config.context_length)
    engine = Engine(reader, slots=settings.slots, context_length=length, queue=settings.queue, draft=NgramDrafts())
    found = {}
    for run, adapter in runs.items():
        spelling, chat = tokenizer.load(run.path / "tokenizer.json"), Chat.of(run.path)
        found[run.name] = Served(run.name, engine, spelling, chat, family, length, adapter)
    return found


class Models:
    """The models of a server, by name.

    Args:
        runs: what was typed to name a run, and the run; the first is loaded at once.
        settings: how they are served.
        reader: loads one.

    Attributes:
        ready: a model has been loaded; it may have been freed since.
    """

    def __init__(
        self, runs: Mapping[str, Run], settings: Settings, reader: Callable[[Run, Settings], Served] = read
    ) -> None:
        self.runs = {run.name: run for run in runs.values()}
        self.names = {**{typed: run.name for typed, run in runs.items()}, **{name: name for name in self.runs}}
        self.first, self.settings, self.created = next(iter(self.runs)), settings, int(time.time())
        self._reader = reader
        self._loaded: dict[str, Served] = {}
        self.ready = False
        self._groups = groups(self.runs) if reader is read else {}
        locks = {self._group(name): asyncio.Lock() for name in self.runs}
        self._locks = {name: locks[self._group(name)] for name in self.runs}

    @property
    def loaded(self) -> Iterable[Served]:
        """The models in memory."""
        return tuple(self._loaded.values())

    def _group(self, name: str) -> tuple[str, ...]:
        """The runs that are loaded and freed together with one: those of the same base."""
        return self._groups.get(name, (name,))

    def _known(self, name: str) -> str:
        if name and name not in self.names:
            raise ApiError(404, f"there is no model `{name}` here", param="model", code="model_not_found")
        return self.names[name] if name else self.first

    async def get(self, name: str) -> Served:
        """The model of that name (none: the first), loaded if it is not.

        Raises:
            ApiError: there is none.
            NomoatError: it cannot be loaded.
        """
        name = self._known(name)
        async with self._locks[name]:
            if name not in self._loaded:
                if name in self._groups:
                    runs = [self.runs[one] for one in self._group(name)]
                    self._loaded |= await asyncio.to_thread(read_shared, runs, self.settings)
                else:
                    self._loaded[name] = await asyncio.to_thread(self._reader, self.runs[name], self.settings)
            self.ready = True
            served = self._loaded[name]
            served.used = time.monotonic()
            return served

    async def free_idle(self) -> None:
        """Free what nobody has asked for, again and again; ends with the server."""
        seconds = self.settings.idle_minutes * 60
        while seconds:
            await asyncio.sleep(seconds / 10)
            for group in {self._group(name): None for name in self._loaded}:
                some = [self._loaded[name] for name in group]
                stats = some[0].engine.stats()
                if stats.active or stats.queued:
                    some[0].used = time.monotonic()
                elif time.monotonic() - max(served.used for served in some) > seconds:
                    for name in group:
                        await asyncio.to_thread(self._loaded.pop(name).close)

    def described(self, name: str) -> dict[str, Any]:
        """A model as `/v1/models` shows it."""
        name = self._known(name)
        served = self._loaded.get(name)
        length = served.context_length if served else None
        shown = {"id": name, "object": "model", "created": self.created, "owned_by": "nomoat"}
        return {**shown, "loaded": served is not None, "context_length": length}

    def close(self) -> None:
        """Free all of them."""
        for served in self.loaded:
            served.close()
        self._loaded.clear()
