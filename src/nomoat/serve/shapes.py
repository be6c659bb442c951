"""What answers hold, for the OpenAPI document: the tests hold every answer against these.

Answers are built as plain dicts, so that nothing is checked while a model writes.
"""

from __future__ import annotations

from types import GenericAlias
from typing import Any, Literal

from pydantic import create_model


def _shape(name: str, **fields: Any) -> Any:
    """A class with these fields, all of them required."""
    defined: Any = {field: (kind, ...) for field, kind in fields.items()}
    return create_model(name, **defined)


def _many(kind: Any) -> Any:
    return GenericAlias(list, kind)


FINISH = Literal["stop", "length", "tool_calls"]
Usage = _shape("Usage", prompt_tokens=int, completion_tokens=int, total_tokens=int)
HEAD = {"id": str, "created": int, "model": str, "usage": Usage}

Likely = _shape("Likely", token=str, logprob=float, bytes=list[int])
Marked = _shape("Marked", token=str, logprob=float, bytes=list[int], top_logprobs=_many(Likely))
ChatLogprobs = _shape("ChatLogprobs", content=_many(Marked))
Reply = _shape("Reply", role=Literal["assistant"], content=str | None)
ChatChoice = _shape("ChatChoice", index=int, message=Reply, logprobs=ChatLogprobs | None, finish_reason=FINISH)
Chat = _shape("Chat", object=Literal["chat.completion"], choices=_many(ChatChoice), **HEAD)

TextLogprobs = _shape(
    "TextLogprobs",
    tokens=list[str],
    token_logprobs=list[float | None],
    top_logprobs=list[dict[str, float] | None],
    text_offset=list[int],
)
TextChoice = _shape("TextChoice", index=int, text=str, logprobs=TextLogprobs | None, finish_reason=FINISH)
Completion = _shape("Completion", object=Literal["text_completion"], choices=_many(TextChoice), **HEAD)

Output = list[dict[str, Any]]
Spent = _shape("Spent", input_tokens=int, output_tokens=int, total_tokens=int)
ENDED = Literal["completed", "incomplete"]
Response = _shape(
    "Response", id=str, object=Literal["response"], created_at=int, status=ENDED, output=Output, usage=Spent
)

Embedding = _shape("Embedding", object=Literal["embedding"], index=int, embedding=list[float] | str)
Read = _shape("Read", prompt_tokens=int, total_tokens=int)
Embeddings = _shape("Embeddings", object=Literal["list"], data=_many(Embedding), model=str, usage=Read)

Model = _shape("Model", id=str, object=Literal["model"], created=int, owned_by=str, loaded=bool)
Models = _shape("Models", object=Literal["list"], data=_many(Model))

Fault = _shape("Fault", message=str, type=str, param=str | None, code=str | None)
Error = _shape("Error", error=Fault)
