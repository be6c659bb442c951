"""The endpoints: thin functions between OpenAI's shapes and the models.

    request -> Guard -> route -> Models.get -> asking -> Answer -> EventStream | one JSON object

FastAPI finds the route, checks the body and writes the OpenAPI document; what is streamed does not pass through it.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nomoat.core.errors import CheckpointError, ConfigError, DataError, NomoatError, RunError
from nomoat.serve import asking, searching, shapes
from nomoat.serve.ask import Full
from nomoat.serve.chunks import ChatChunks, Chunks, EventStream, TextChunks, collected
from nomoat.serve.guard import Guard, is_loopback, log
from nomoat.serve.measures import page
from nomoat.serve.models import Models, Served
from nomoat.serve.openai import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    Drawing,
    EmbeddingRequest,
    ResponsesRequest,
    Texts,
    to_bytes,
)
from nomoat.serve.responses import ResponseEvents, as_chat
from nomoat.serve.streams import Answer, LeftError, Mailbox, Wanted

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": shapes.Error, "description": "What is wrong with the request"},
    "5XX": {"model": shapes.Error, "description": "What is wrong with the server"},
}
STOPPING = ApiError(503, "the server is stopping", code="stopping", retry_after=5)


class Server:
    """The app with what its routes share.

    Args:
        models: what is served.
    """

    def __init__(self, models: Models) -> None:
        self.models, self.settings, self.stopping = models, models.settings, False
        self.app = FastAPI(
            title="nomoat", lifespan=self._life, docs_url=None, redoc_url=None, redirect_slashes=False, responses=ERRORS
        )
        for kind in (
            ApiError,
            NomoatError,
            RequestValidationError,
            ValidationError,
            HTTPException,
            LeftError,
            Exception,
        ):
            self.app.add_exception_handler(kind, failed)
        self._routes()
        settings = self.settings
        self.guard = Guard(self.app, settings.keys, is_loopback(settings.host), settings.origins)

    def _routes(self) -> None:
        text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
        events = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
        for method, path, answer, said in (
            ("GET", "/health", self.health, {}),
            ("GET", "/ready", self.ready, {}),
            ("GET", "/metrics", self.metrics, text),
            ("GET", "/v1/models", self.list_models, {"model": shapes.Models}),
            ("GET", "/v1/models/{name:path}", self.one_model, {"model": shapes.Model}),
            ("POST", "/v1/chat/completions", self.chat, {"model": shapes.Chat, **events}),
            ("POST", "/v1/completions", self.completions, {"model": shapes.Completion, **events}),
            ("POST", "/v1/responses", self.responses, {"model": shapes.Response, **events}),
            ("POST", "/v1/embeddings", self.embeddings, {"model": shapes.Embeddings}),
        ):
            found: Any = {200: {"description": "The answer", **said}}
            self.app.add_api_route(path, answer, methods=[method], responses=found, response_model=None)

    @asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        self.mailbox = Mailbox()
        freeing = asyncio.create_task(self.models.free_idle())
        yield
        freeing.cancel()
        await asyncio.to_thread(self.models.close)

    def stop(self) -> None:
        """Take no more requests; answers that run have so many seconds to end. Called on the event loop."""
        self.stopping = True
        asyncio.get_running_loop().call_later(self.settings.drain_seconds, self.mailbox.end, STOPPING)

    async def health(self) -> Response:
        """The process is alive."""
        return answered({"status": "ok"})

    async def ready(self) -> Response:
        """The first model is in memory and the server is not stopping."""
        if self.stopping or not self.models.ready:
            raise ApiError(503, "loading" if not self.stopping else "stopping", code="not_ready", retry_after=1)
        return answered({"status": "ready"})

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        text = page(self.models.loaded, self.guard.responses)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def list_models(self) -> Response:
        """The models that are served, in memory or not."""
        return answered({"object": "list", "data": [self.models.described(name) for name in self.models.runs]})

    async def one_model(self, name: str) -> Response:
        """One model."""
        return answered(self.models.described(name))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        served = await self._served(body.model)
        wanted = await asking.chat(served, body, self.settings.deadline_seconds)
        return await self._write(served, wanted, body, request, ChatChunks(served, wanted, body))

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """What follows a text."""
        served = await self._served(body.model)
        wanted = await asking.completion(served, body, self.settings.deadline_seconds)
        return await self._write(served, wanted, body, request, TextChunks(served, wanted, body))

    async def responses(self, body: ResponsesRequest, request: Request) -> Response:
        """The next items of a conversation; nothing is stored."""
        served = await self._served(body.model)
        wanted = await asking.chat(served, as_chat(body), self.settings.deadline_seconds)
        return await self._write(served, wanted, body, request, ResponseEvents(served, body))

    async def embeddings(self, body: EmbeddingRequest) -> Response:
        """A vector of length 1 for each text: the mean over its tokens."""
        served = await self._served(body.model)
        if not hasattr(served.family, "encode"):
            raise ApiError(400, f"{served.name} has no embeddings", param="model")
        rows = await asyncio.to_thread(asking.prompts, served, body.input)
        for row in rows:
            served.fit(len(row), 0, "input")
        deadline = time.monotonic() + self.settings.deadline_seconds
        vectors = await asyncio.get_running_loop().run_in_executor(served.aside, served.embed, rows, deadline)
        if body.dimensions not in (None, len(vectors[0])):
            raise ApiError(400, f"{served.name} gives {len(vectors[0])} numbers, no fewer", param="dimensions")
        packed = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in vectors]
        shown = packed if body.encoding_format == "base64" else vectors
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(shown)]
        read = sum(map(len, rows))
        usage = {"prompt_tokens": read, "total_tokens": read}
        return answered({"object": "list", "data": data, "model": served.name, "usage": usage})

    async def _served(self, name: str) -> Served:
        if self.stopping:
            raise STOPPING
        return await self.models.get(name)

    async def _write(self, served: Served, wanted: Wanted, body: Drawing, request: Request, chunks: Chunks) -> Response:
        if isinstance(body, Texts) and body.search is not None:
            return answered(await searching.answer(served, wanted, body, chunks, request.receive))
        answer = Answer(served, wanted, self.mailbox)
        if body.stream:
            return EventStream(answer, chunks, self.settings.deadline_seconds)
        return answered(chunks.whole(await collected(answer, request.receive), answer.usage()))


def answered(value: Any) -> Response:
    """An answer as JSON."""
    return Response(to_bytes(value), media_type="application/json")


async def failed(request: Request, error: Exception) -> Response:
    """Any error as OpenAI's clients read it. What a client sent is in no message that is logged."""
    if isinstance(error, LeftError):
        return Response(status_code=499)
    if isinstance(error, RunError | CheckpointError):
        log.error("%s", error)
    told = as_api_error(error)
    return Response(to_bytes(told.body()), told.status, told.headers, "application/json")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Full):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, RequestValidationError | ValidationError):
        found = error.errors()  # of a union, one for each member: the first that is not of a wrong type says most
        first = next((one for one in found if not str(one["type"]).endswith("_type")), found[0])
        place = [str(part) for part in first["loc"] if part != "body"]
        words = f"{'.'.join(place) or 'body'}: {first['msg'].removeprefix('Value error, ')}"
        return ApiError(400, words, param=place[0] if place else None)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, ConfigError | DataError):
        return ApiError(400, str(error))
    return ApiError(500, str(error) if isinstance(error, NomoatError) else "a fault of the server; its log says where")
