"""OpenAI's shapes: what a request may hold, what an answer holds, and errors as its clients read them.

    body -> pydantic (unknown fields ignored, wrong ones 400) -> ChatRequest, CompletionRequest, EmbeddingRequest
    anything wrong -> ApiError -> {"error": {"message", "type", "param", "code"}}

Answers are plain dicts; `shapes.py` says what they hold. Source: the OpenAPI document of the OpenAI API, as read by
its Python client 3.54.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_TEXTS = 8
MOST_STOPS = 4
STOP_LETTERS = 500
MOST_LOGPROBS = 20
MOST_PROMPTS = 64
MOST_TOOLS = 128
MOST_EMBEDDED = 2048
MOST_SEARCHED = 1024


class ApiError(Exception):
    """Something that the client is told, with the status it comes under.

    Args:
        status: HTTP status.
        message: what is wrong, for people.
        param: the field at fault.
        code: a word for programs.
        retry_after: seconds, for 429 and 503.
        headers: sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: float = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after:
            self.headers["retry-after"] = str(max(1, round(retry_after)))

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def to_bytes(value: Any) -> bytes:
    """`value` as JSON in ASCII: also what is no Unicode text (a lone surrogate in a name) can be sent back."""
    return json.dumps(value, separators=(",", ":")).encode()


def absent(what: str) -> AfterValidator:
    """A field that OpenAI has and this server has not: refused where it is set to anything."""

    def check(value: Any) -> Any:
        if value:
            raise ValueError(f"{what} is not implemented here: leave it out")
        return value

    return AfterValidator(check)


class Body(BaseModel):
    """A request: fields that are not known are ignored, for clients send many; a wrong type is refused."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Function(Body):
    name: str = Field(pattern=r"^[\w.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class Drawing(Body):
    """How text is drawn: the fields that chat, completions and responses share."""

    model: str = ""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None


Stop = Annotated[str, Field(min_length=1, max_length=STOP_LETTERS)]


class Search(Body):
    """An answer by search: `budget` answers (best-of-n, vote) or steps are written, `verifier` says what is right."""

    strategy: Literal["best-of-n", "vote", "beam", "dvts", "tot", "mcts", "particles"] = "best-of-n"
    budget: int = Field(8, ge=1, le=MOST_SEARCHED)
    verifier: str | None = Field(None, max_length=STOP_LETTERS)
    answer: str | None = Field(None, max_length=STOP_LETTERS)


class Texts(Drawing):
    """What chat and completions share. `structured_outputs` is vLLM's: a `choice`, `regex` or `grammar` to hold to;
    `search` is ours."""

    n: int | None = Field(None, ge=1, le=MOST_TEXTS)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream_options: dict[str, Any] | None = None
    presence_penalty: Annotated[float | None, absent("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, absent("frequency_penalty")] = None
    logit_bias: Annotated[dict[str, float] | None, absent("logit_bias")] = None
    search: Search | None = None
    structured_outputs: dict[Literal["choice", "regex", "grammar"], str | list[str]] | None = None


class ChatRequest(Texts):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None


Tokens = Annotated[list[int], Field(min_length=1)]
Prompts = str | Tokens | Annotated[list[str] | list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
Embedded = str | Tokens | Annotated[list[str] | list[Tokens], Field(min_length=1, max_length=MOST_EMBEDDED)]


class CompletionRequest(Texts):
    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None
    suffix: Annotated[str | None, absent("suffix")] = None


class EmbeddingRequest(Body):
    input: Embedded
    model: str = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


class ResponsesRequest(Drawing):
    """The items of `input`, the tools and the form of the text are checked as those of the chat that they make."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    previous_response_id: Annotated[str | None, absent("previous_response_id")] = None
    conversation: Annotated[str | dict[str, Any] | None, absent("conversation")] = None
    background: Annotated[bool | None, absent("background")] = None
