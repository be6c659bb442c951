"""OpenAI's Responses API without memory: items in, items out, and its named events in their official order.

    ResponsesRequest -> as_chat -> ChatRequest -> ... -> Piece -> ResponseEvents -> `event: response.output_text.delta`

Nothing is stored: `previous_response_id` and `conversation` are refused, `store` is ignored and answered with false.
Source: the OpenAPI document of the OpenAI API, as read by its Python client 3.54.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from nomoat.serve.chunks import chat_logprobs
from nomoat.serve.models import Served
from nomoat.serve.openai import ApiError, ChatRequest, Drawing, ResponsesRequest, to_bytes
from nomoat.serve.streams import Mark, Piece
from nomoat.serve.tools import Call


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """The same request as chat.

    Raises:
        ApiError: an item that is neither a message nor a call of a function nor its output.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
        elif kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind != "reasoning":
            raise ApiError(400, f"an item of type {kind!r} cannot be read", param="input")
    form = (body.text or {}).get("format")
    choice = body.tool_choice
    chat: dict[str, Any] = {
        **{name: getattr(body, name) for name in Drawing.model_fields},
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "tools": [{"type": tool.get("type"), "function": tool} for tool in body.tools or ()],
        "tool_choice": {"type": "function", "function": choice} if isinstance(choice, dict) else choice,
        "logprobs": bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ()),
        "top_logprobs": body.top_logprobs,
        "response_format": {**form, "json_schema": form} if isinstance(form, dict) else form,
    }
    return ChatRequest.model_validate(chat)


class ResponseEvents:
    """The answer of `/v1/responses`, as events or, when all is written, as one object.

    Args:
        served: the model.
        body: what was asked.
    """

    def __init__(self, served: Served, body: ResponsesRequest) -> None:
        self.served, self.body = served, body
        self.id, self.created, self.number = "resp_" + secrets.token_hex(16), int(time.time()), 0
        self.output: list[dict[str, Any]] = []
        self._message: dict[str, Any] | None = None
        self._finish = "stop"

    def object(self, status: str, usage: dict[str, int] | None = None, error: ApiError | None = None) -> dict[str, Any]:
        """The response as it stands."""
        counted: Any = usage and {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        asked = self.body.model_dump(
            include={"instructions", "max_output_tokens", "temperature", "top_p", "tool_choice", "tools", "text"},
            by_alias=True,
        )
        return {
            **{"id": self.id, "object": "response", "created_at": self.created, "model": self.served.name},
            **asked,
            "tools": asked["tools"] or [],
            "tool_choice": asked["tool_choice"] or "auto",
            "status": status,
            "error": error and {"code": "server_error", "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            **{"output": self.output, "usage": counted, "parallel_tool_calls": True},
            **{"metadata": {}, "store": False, "previous_response_id": None},
        }

    def whole(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """The answer as one object."""
        self.piece(pieces[0])
        return self.object(self._status(), usage)

    def begin(self) -> bytes:
        """The response is there."""
        return b"".join(
            self._event(f"response.{kind}", response=self.object("in_progress")) for kind in ("created", "in_progress")
        )

    def piece(self, piece: Piece) -> bytes:
        """The events of one piece."""
        events = []
        if piece.text or piece.marks:
            events += self._said(piece.text, piece.marks)
        for call in piece.calls:
            events += [*self._close(), *self._called(call)]
        if piece.finish:
            self._finish = piece.finish
            if not self.output:
                events += self._open()
            events += self._close()
        return b"".join(events)

    def end(self, usage: dict[str, int]) -> bytes:
        """The response is complete, or as long as it may be."""
        status = self._status()
        return self._event(f"response.{status}", response=self.object(status, usage))

    def error(self, error: ApiError) -> bytes:
        """What went wrong."""
        return self._event("response.failed", response=self.object("failed", error=error))

    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return f"event: {kind}\ndata: ".encode() + to_bytes(event) + b"\n\n"

    def _item(self, kind: str, item: dict[str, Any]) -> bytes:
        return self._event(f"response.output_item.{kind}", output_index=len(self.output) - 1, item=item)

    def _open(self) -> list[bytes]:
        self._message = {"id": "msg_" + secrets.token_hex(16), "type": "message", "role": "assistant"}
        self._message |= {"status": "in_progress", "content": []}
        self.output.append(self._message)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        added = self._item("added", self._message)
        self._message["content"].append(part)
        return [added, self._event("response.content_part.added", **self._place(), part=part)]

    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {"item_id": self._message["id"], "output_index": len(self.output) - 1, "content_index": 0}

    def _said(self, text: str, marks: Sequence[Mark]) -> list[bytes]:
        events = self._open() if self._message is None else []
        assert self._message is not None
        part = self._message["content"][0]
        logprobs = chat_logprobs(self.served, marks)["content"]
        part["text"] += text
        part["logprobs"] += logprobs
        delta = self._event("response.output_text.delta", **self._place(), delta=text, logprobs=logprobs)
        return [*events, delta]

    def _close(self) -> list[bytes]:
        if self._message is None:
            return []
        part, place = self._message["content"][0], self._place()
        self._message["status"] = "incomplete" if self._finish == "length" else "completed"
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        events = [
            self._event("response.output_text.done", **place, **done),
            self._event("response.content_part.done", **place, part=part),
            self._item("done", self._message),
        ]
        self._message = None
        return events

    def _called(self, call: Call) -> list[bytes]:
        item = {"id": "fc_" + secrets.token_hex(16), "type": "function_call", "call_id": call.id, "name": call.name}
        item |= {"arguments": "", "status": "in_progress"}
        self.output.append(item)
        added = self._item("added", item)
        place = {"item_id": item["id"], "output_index": len(self.output) - 1}
        item |= {"arguments": call.arguments, "status": "completed"}
        kind = "response.function_call_arguments"
        return [
            added,
            self._event(f"{kind}.delta", **place, delta=call.arguments),
            self._event(f"{kind}.done", **place, name=call.name, arguments=call.arguments),
            self._item("done", item),
        ]
