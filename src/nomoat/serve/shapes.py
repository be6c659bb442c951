"""What answers hold, for the OpenAPI document: the tests hold every answer against these.

Answers are built as plain dicts, so that nothing is checked while a model writes.
"""
# ruff: noqa: UP013

from typing import Any, Literal

from typing_extensions import TypedDict

Finish = Literal["stop", "length", "tool_calls"]

Usage = TypedDict("Usage", {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int})
Likely = TypedDict("Likely", {"token": str, "logprob": float, "bytes": list[int]})
Token = TypedDict("Token", {"token": str, "logprob": float, "bytes": list[int], "top_logprobs": list[Likely]})
ChatLogprobs = TypedDict("ChatLogprobs", {"content": list[Token]})
Reply = TypedDict("Reply", {"role": Literal["assistant"], "content": str | None})
ChatChoice = TypedDict(
    "ChatChoice", {"index": int, "message": Reply, "logprobs": ChatLogprobs | None, "finish_reason": Finish}
)
Chat = TypedDict(
    "Chat",
    {
        "id": str,
        "object": Literal["chat.completion"],
        "created": int,
        "model": str,
        "choices": list[ChatChoice],
        "usage": Usage,
    },
)
TextLogprobs = TypedDict(
    "TextLogprobs",
    {
        "tokens": list[str],
        "token_logprobs": list[float | None],
        "top_logprobs": list[dict[str, float] | None],
        "text_offset": list[int],
    },
)
TextChoice = TypedDict(
    "TextChoice", {"index": int, "text": str, "logprobs": TextLogprobs | None, "finish_reason": Finish}
)
Completion = TypedDict(
    "Completion",
    {
        "id": str,
        "object": Literal["text_completion"],
        "created": int,
        "model": str,
        "choices": list[TextChoice],
        "usage": Usage,
    },
)
Embedding = TypedDict("Embedding", {"object": Literal["embedding"], "index": int, "embedding": list[float] | str})
Read = TypedDict("Read", {"prompt_tokens": int, "total_tokens": int})
Embeddings = TypedDict("Embeddings", {"object": Literal["list"], "data": list[Embedding], "model": str, "usage": Read})
Model = TypedDict("Model", {"id": str, "object": Literal["model"], "created": int, "owned_by": str, "loaded": bool})
Models = TypedDict("Models", {"object": Literal["list"], "data": list[Model]})
ResponseUsage = TypedDict("ResponseUsage", {"input_tokens": int, "output_tokens": int, "total_tokens": int})
Response = TypedDict(
    "Response",
    {
        "id": str,
        "object": Literal["response"],
        "created_at": int,
        "status": Literal["completed", "incomplete"],
        "model": str,
        "output": list[dict[str, Any]],
        "usage": ResponseUsage,
    },
)
Fault = TypedDict("Fault", {"message": str, "type": str, "param": str | None, "code": str | None})
Error = TypedDict("Error", {"error": Fault})
