"""How an answer is spelled: chunks of a stream in the order clients rely on, or one JSON object.

    Piece -> ChatChunks | TextChunks -> `data: {...}`        Pieces -> collected -> one a choice -> object

A stream of chat is: a chunk with the role a choice, chunks with content (`finish_reason` null), one with
`finish_reason` a choice, one with `usage` and no choices where asked for, `[DONE]`. Whatever goes wrong after the first
byte is an event `{"error": ...}`, then `[DONE]`. A chunk is put together from prepared bytes: no object is validated
for a token.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nomoat.serve.openai import ApiError, Texts, to_bytes
from nomoat.serve.streams import Answer, LeftError, Mark, Piece, Wanted

if TYPE_CHECKING:
    from nomoat.serve.models import Served

DONE = b"data: [DONE]\n\n"
SLOW_SECONDS = 5.0
"""How much longer than the engine's deadline a client may take to read what was written."""


class Chunks(Protocol):
    """How an endpoint spells an answer: as a stream, or whole."""

    def begin(self) -> bytes: ...
    def piece(self, piece: Piece) -> bytes: ...
    def end(self, usage: dict[str, int]) -> bytes: ...
    def error(self, error: ApiError) -> bytes: ...
    def whole(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]: ...


class EventStream(Response):
    """An answer sent as it is written (server-sent events)."""

    def __init__(self, answer: Answer, chunks: Chunks, seconds: float) -> None:
        self.answer, self.chunks, self.seconds = answer, chunks, seconds + SLOW_SECONDS
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        try:
            async with asyncio.timeout(self.seconds), self.answer.watched(receive):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": self.chunks.begin(), "more_body": True})
                try:
                    async for pieces in self.answer:
                        if body := b"".join(map(self.chunks.piece, pieces)):
                            await send({"type": "http.response.body", "body": body, "more_body": True})
                    last = self.chunks.end(self.answer.usage())
                except ApiError as error:
                    last = self.chunks.error(error)
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except (LeftError, TimeoutError):
            return  # nobody reads


async def collected(answer: Answer, receive: Receive) -> list[Piece]:
    """All that is written, in one piece a choice, when all of them have ended.

    Raises:
        ApiError, LeftError: see `Answer`.
    """
    found: list[list[Piece]] = [[] for _ in answer.texts]
    async with answer.watched(receive):
        async for pieces in answer:
            for piece in pieces:
                found[piece.choice].append(piece)
    return [
        Piece(
            choice,
            "".join(piece.text for piece in own),
            [mark for piece in own for mark in piece.marks],
            [call for piece in own for call in piece.calls],
            own[-1].finish,
        )
        for choice, own in enumerate(found)
    ]


class TextChunks:
    """`/v1/completions`.

    Args:
        served: the model.
        wanted: what is written.
        body: what was asked; its `stream_options` say whether a chunk with the usage ends the stream.
    """

    name, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, served: Served, wanted: Wanted, body: Texts) -> None:
        self.served, self.wanted = served, wanted
        self.usage = bool((body.stream_options or {}).get("include_usage"))
        self.texts = sum(ask.n for ask in wanted.asks)
        self._object = {"id": f"{self.name}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
        self._head = b"data: " + to_bytes({**self._object, "object": self.chunk_kind})[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if self.usage else b"]}\n\n"
        self._counts: Counter[int] = Counter()  # characters given out, or calls

    def begin(self) -> bytes:
        """What comes before the first token."""
        return b""

    def piece(self, piece: Piece) -> bytes:
        """The chunks of one piece."""
        chunks = []
        if piece.text or piece.marks:
            logprobs = text_logprobs(self.served, piece.marks, self._counts[piece.choice]) if piece.marks else None
            self._counts[piece.choice] += len(piece.text)
            chunks.append(self._chunk(piece.choice, f'"text":{json.dumps(piece.text)}', logprobs))
        if piece.finish:
            chunks.append(self._chunk(piece.choice, '"text":""', finish=piece.finish))
        return b"".join(chunks)

    def _chunk(self, choice: int, content: str, logprobs: Any = None, finish: str | None = None) -> bytes:
        marks, ended = json.dumps(logprobs) if logprobs else "null", f'"{finish}"' if finish else "null"
        body = f'{{"index":{choice},{content},"logprobs":{marks},"finish_reason":{ended}}}'
        return self._head + body.encode() + self._tail

    def end(self, usage: dict[str, int]) -> bytes:
        """The usage where it was asked for, and the end."""
        return (self._head + b'],"usage":' + to_bytes(usage) + b"}\n\n" if self.usage else b"") + DONE

    def error(self, error: ApiError) -> bytes:
        """What went wrong, and the end."""
        return b"data: " + to_bytes(error.body()) + b"\n\n" + DONE

    def whole(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """The answer as one object."""
        choices = [{"index": one.choice, **self._choice(one), "finish_reason": one.finish} for one in pieces]
        return {**self._object, "object": self.kind, "choices": choices, "usage": usage}

    def _choice(self, one: Piece) -> dict[str, Any]:
        marks = text_logprobs(self.served, one.marks, 0) if self.wanted.marked else None
        return {"text": one.text, "logprobs": marks}


class ChatChunks(TextChunks):
    """`/v1/chat/completions`."""

    name, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def begin(self) -> bytes:
        said = '"delta":{"role":"assistant","content":""}'
        return b"".join(self._chunk(index, said) for index in range(self.texts))

    def piece(self, piece: Piece) -> bytes:
        chunks = []
        if piece.text or piece.marks:
            logprobs = chat_logprobs(self.served, piece.marks) if piece.marks else None
            chunks.append(self._chunk(piece.choice, f'"delta":{{"content":{json.dumps(piece.text)}}}', logprobs))
        for call in piece.calls:
            place = {"index": self._counts[piece.choice]}
            self._counts[piece.choice] += 1
            opened = {**call.as_json(), "function": {"name": call.name, "arguments": ""}}
            chunks += [
                self._chunk(piece.choice, f'"delta":{json.dumps({"tool_calls": [place | delta]})}')
                for delta in (opened, {"function": {"arguments": call.arguments}})
            ]
        if piece.finish:
            chunks.append(self._chunk(piece.choice, '"delta":{}', finish=piece.finish))
        return b"".join(chunks)

    def _choice(self, one: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": (one.text or None) if one.calls else one.text}
        if one.calls:
            message["tool_calls"] = [call.as_json() for call in one.calls]
        return {"message": message, "logprobs": chat_logprobs(self.served, one.marks) if self.wanted.marked else None}


def chat_logprobs(served: Served, marks: Sequence[Mark]) -> dict[str, Any]:
    """Log-probabilities as chat gives them."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": served.text(token), "logprob": _finite(logprob), "bytes": list(served.spelled[token])}

    content = [
        {**entry(mark.token, mark.logprob), "top_logprobs": [entry(*pair) for pair in mark.top]} for mark in marks
    ]
    return {"content": content}


def text_logprobs(served: Served, marks: Sequence[Mark], offset: int) -> dict[str, Any]:
    """Log-probabilities as completions give them; `offset` characters of the text come before the first token."""
    tokens = [served.text(mark.token) for mark in marks]
    likely = [{served.text(token): _finite(value) for token, value in mark.top} for mark in marks]
    return {
        "tokens": tokens,
        "token_logprobs": [None if mark.logprob is None else _finite(mark.logprob) for mark in marks],
        "top_logprobs": [None if mark.logprob is None else top for mark, top in zip(marks, likely, strict=True)],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)),
    }


def _finite(logprob: float | None) -> float:
    """JSON has no infinity; -9999 is what OpenAI gives for next to impossible."""
    return max(logprob, -9999.0) if logprob is not None else -9999.0
