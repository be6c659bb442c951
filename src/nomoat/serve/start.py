"""From settings to a server that listens, and from a signal to one that has ended properly.

Settings -> check -> Server -> uvicorn        SIGTERM, Ctrl-C -> no new requests -> drain -> errors -> exit 0
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from nomoat.core.errors import ConfigError, RunError
from nomoat.core.run import Run
from nomoat.serve.app import Server
from nomoat.serve.guard import is_loopback
from nomoat.serve.models import Models, Settings

KEY_LETTERS = 16
CONNECTIONS = 1000
LATE_SECONDS = 3
"""How long after the drain an answer may take to tell its client that it has ended."""


def read_keys(file: Path | str | None) -> tuple[str, ...]:
    """The keys of a file, one a line (`#` begins a remark), or else of $NOMOAT_KEY, separated by commas.

    Raises:
        ConfigError: there is no such file, no key in it, or one that can be guessed.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines() if file else []
    except OSError as error:
        raise ConfigError(f"the keys in {file} cannot be read", str(error.strerror)) from error
    words = lines if file else os.environ.get("NOMOAT_KEY", "").split(",")
    keys = tuple(word.strip() for word in words if word.strip() and not word.strip().startswith("#"))
    fix = """python -c "import secrets; print(secrets.token_urlsafe(32))" makes one"""
    if file and not keys:
        raise ConfigError(f"there is no key in {file}", "", fix)
    if any(len(key) < KEY_LETTERS or not key.isascii() for key in keys):
        raise ConfigError(f"a key has fewer than {KEY_LETTERS} letters", "it could be guessed", fix)
    return keys


class Listening(uvicorn.Server):
    """uvicorn, whose end begins with the app's: a signal is an order to stop, not a fault.

    Args:
        server: what answers.
        told: called with the address, once, when it does.
    """

    def __init__(self, server: Server, told: Callable[[str], None]) -> None:
        settings = server.settings
        config = uvicorn.Config(
            server.guard,
            host=settings.host.strip("[]"),
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(settings.drain_seconds) + LATE_SECONDS,
        )
        super().__init__(config)
        self.server, self.told = server, told
        self.fault: Exception | None = None
        self.loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, then load.

        Raises:
            RunError: the port is taken.
        """
        settings = self.server.settings
        try:
            await super().startup(sockets)
        except SystemExit as error:
            what = f"port {settings.port} of {settings.host} cannot be listened on"
            raise RunError(what, str(error.__context__ or ""), "--port 0 takes a free one") from None
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        self.told(f"http://{host}:{self.servers[0].sockets[0].getsockname()[1]}")
        self.loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self.server.models.get("")
        except Exception as error:
            self.fault, self.should_exit = error, True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops gently, a second Ctrl-C at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Let running answers end, then close."""
        self.server.stop()
        await super().shutdown(sockets)


def serve(runs: Mapping[str, Run], settings: Settings, told: Callable[[str], None], **reading: Any) -> None:
    """Serve until a signal comes.

    Args:
        runs: what was typed to name a run, and the run.
        settings: how.
        told: called with the address, once, when it answers.
        reading: for `Models`.

    Raises:
        ConfigError: an address that others can reach, without a key.
        RunError: the port is taken.
        NomoatError: the first model cannot be loaded.
    """
    if not is_loopback(settings.host) and not settings.keys:
        raise ConfigError(
            f"{settings.host} can be reached by others, and no key is set",
            "whoever reaches the server could use it",
            "--key-file FILE or $NOMOAT_KEY; or leave --host out, for this machine alone",
        )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what it would say of a fault could hold a request
    listening = Listening(Server(Models(runs, settings, **reading)), told)
    listening.run()
    if listening.fault is not None:
        raise listening.fault
