"""Who may come in, and how much they may bring: before any route is looked at, for every route there is.

    request -> Host -> Origin -> key -> body (size, time, depth of its JSON) -> the app -> answer

Whatever is not public needs a key where keys are set: a route that is added later is closed without anybody thinking of
it. On loopback the Host must be loopback's too, or a foreign page could reach the server by a name of its own that
resolves here (DNS rebinding); a page of another origin is refused unless it was named. Nothing here or below writes a
request, a key or the message of a foreign error to a log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import traceback
from collections import Counter
from collections.abc import Iterable

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nomoat.serve.openai import ApiError, to_bytes

PUBLIC = ("/health", "/ready")
BODY_BYTES = 10_000_000
BODY_SECONDS = 30.0
JSON_DEPTH = 64
STEPS = np.zeros(256, dtype=np.int8)
STEPS[[ord(letter) for letter in "[{"]], STEPS[[ord(letter) for letter in "]}"]] = 1, -1

log = logging.getLogger("nomoat.serve")


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without a port) is this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


class Guard:
    """The outermost layer of the server.

    Args:
        app: what is guarded.
        keys: any of them opens every route; none: no key is asked for.
        local: whether the server listens on loopback, so that Host must name it.
        origins: pages of these origins may call (scheme://host:port).
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str] = (), local: bool = True, origins: Iterable[str] = ()) -> None:
        self.app, self.local, self.origins = app, local, frozenset(origins)
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.responses: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        more: list[tuple[bytes, bytes]] = []
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.responses[message["status"]] += 1
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            self._check_host(headers)
            if self._foreign(headers, scope):
                more += [(b"access-control-allow-origin", headers[b"origin"].encode("latin-1")), (b"vary", b"Origin")]
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    return await self._preflight(headers, answer)
            self._check_key(headers, scope["path"])
            body = await self._body(headers, receive)
            await self.app(scope, _again(body, receive), answer)
        except Exception as error:
            if not isinstance(error, ApiError):
                log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
                error = ApiError(500, "a fault of the server; its log says where")
            if not started:
                await respond(error, answer)

    def _check_host(self, headers: dict[bytes, str]) -> None:
        host = re.sub(r":\d*$", "", headers.get(b"host", ""))
        if self.local and not is_loopback(host):
            raise ApiError(403, "this server answers under the name of its own machine only", code="host")

    def _foreign(self, headers: dict[bytes, str], scope: Scope) -> bool:
        """Whether the request comes from another page that was allowed; others are refused."""
        origin = headers.get(b"origin")
        if origin is None or origin == f"{scope['scheme']}://{headers.get(b'host', '')}":
            return False
        if origin not in self.origins:
            raise ApiError(403, "pages of this origin may not call; --origin names those that may", code="origin")
        return True

    def _check_key(self, headers: dict[bytes, str], path: str) -> None:
        if not self.digests or path in PUBLIC:
            return
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()
        fits = [hmac.compare_digest(given, digest) for digest in self.digests]  # all of them, every time
        if scheme.lower() != "bearer" or not any(fits):
            raise ApiError(
                401,
                "a key is needed: `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _preflight(self, headers: dict[bytes, str], send: Send) -> None:
        asked = headers.get(b"access-control-request-headers", "").encode("latin-1")
        allowed = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-allow-headers", asked)]
        await send({"type": "http.response.start", "status": 204, "headers": allowed})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, headers: dict[bytes, str], receive: Receive) -> bytes:
        """The whole body, where it is neither too long nor too slow nor too deep."""
        told = headers.get(b"content-length", "0")
        parts, size = [], int(told) if told.isdigit() else 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more, size = size <= BODY_BYTES, 0 if size <= BODY_BYTES else size
                while more:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False) and size <= BODY_BYTES
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {BODY_SECONDS:.0f} seconds", code="timeout") from None
        if size > BODY_BYTES:
            raise ApiError(413, f"the body is longer than {BODY_BYTES:,} bytes", code="too_large")
        body = b"".join(parts)
        if b"\0" in body or not is_shallow(body):  # UTF-16, which could hide its quotes, holds zeros
            raise ApiError(400, f"the body is JSON of more than {JSON_DEPTH} levels, or not in UTF-8", code="too_deep")
        return body


def is_shallow(text: bytes) -> bool:
    """Whether some JSON is nested no deeper than `JSON_DEPTH`; in time linear in its length, whatever it holds."""
    code_L = np.frombuffer(text.replace(rb"\\", b"").replace(rb"\"", b""), dtype=np.uint8)
    outside_L = np.cumsum(code_L == ord('"'), dtype=np.int32) % 2 == 0
    return int(np.cumsum(STEPS[code_L] * outside_L, dtype=np.int32).max(initial=0)) <= JSON_DEPTH


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then whatever the server says: that the client has gone."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def respond(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    more = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    # What is left of a body that was refused is not read: the connection ends.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *more]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": to_bytes(error.body()), "more_body": False})
