"""From a request to what the engine is asked: prompts as tokens, how to draw, what holds the text to a form.

    ChatRequest -> messages -> Chat.tokens -> Ask        CompletionRequest, EmbeddingRequest -> prompts -> tokens
    tools, response_format, structured_outputs -> Constraint

Rendering, encoding and compiling take as long as a client makes them take: they run in threads.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from typing import Any

from nomoat.sampling.tokens import SamplingOptions
from nomoat.serve.ask import Ask
from nomoat.serve.models import Served
from nomoat.serve.openai import ApiError, ChatRequest, CompletionRequest, Drawing, Message, Prompts, Texts
from nomoat.serve.streams import Wanted
from nomoat.serve.tools import schema_of

COMPLETION_TOKENS = 16
"""What OpenAI's completions write unless told otherwise; chat writes until the context is full."""

WRITING, ANSWERING = {"temperature": 0.8, "top_p": 0.95}, {"temperature": 0.6, "top_p": 0.95}
"""How text is drawn where a request names neither: as the commands do, for small models have too long a tail."""


def drawing(body: Drawing, max_tokens: int, unless: dict[str, Any]) -> SamplingOptions:
    """How the text is drawn; another seed every time where none is given."""
    named: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
    }
    given = {name: value for name, value in named.items() if value is not None}
    chosen = given if {"temperature", "top_p"} & set(given) else {**unless, **given}
    seed = body.seed if body.seed is not None else secrets.randbits(62)
    return SamplingOptions(**chosen, max_tokens=max_tokens, seed=seed)


def stops(body: Texts) -> tuple[str, ...]:
    """The stop strings of a request."""
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


async def chat(served: Served, body: ChatRequest, deadline_seconds: float) -> Wanted:
    """What a chat request wants.

    Raises:
        ApiError, ConfigError: it cannot be had.
    """
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    choice = body.tool_choice or "auto"
    named = choice if isinstance(choice, str) else str((choice.get("function") or {}).get("name"))
    names = tuple(tool["function"]["name"] for tool in tools)
    if named not in ("auto", "none", "required", *names) or (named == "required" and not tools):
        raise ApiError(400, f"tool_choice asks for `{named}`, which is not among the tools", param="tool_choice")
    offered = tools if named != "none" else []
    messages = [plain(message) for message in body.messages]
    served.refuse_long(sum(len(message["content"]) for message in messages), "messages")
    render = served.chat.tokens
    tokens, _ = await asyncio.to_thread(render, messages, served.tokenizer, tools=offered or None, answer=True)
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if offered and named != "auto":
        form: tuple[Any, Any] | None = "json_schema", schema_of(offered, None if named == "required" else named)
    else:
        form = _form(body)
    ask = Ask(
        tokens=tuple(tokens),
        options=drawing(body, served.fit(len(tokens), wanted, "messages"), ANSWERING),
        stop_tokens=tuple(served.tokenizer.stops),
        n=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
        constraint=await asyncio.to_thread(served.constraint, *form) if form else None,
        deadline=time.monotonic() + deadline_seconds,
        adapter=served.adapter,
    )
    return Wanted(
        asks=(ask,),
        stop=(*stops(body), *served.chat.stop),
        tools=names if offered else (),
        marked=bool(body.logprobs),
        fresh=served.tokenizer.prefixes,
    )


async def completion(served: Served, body: CompletionRequest, deadline_seconds: float) -> Wanted:
    """What a completion request wants.

    Raises:
        ApiError, ConfigError: it cannot be had.
    """
    rows = await asyncio.to_thread(prompts, served, body.prompt)
    form = _form(body)
    max_tokens = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    ask = Ask(
        tokens=(),
        options=drawing(body, max_tokens, WRITING),
        stop_tokens=tuple(served.tokenizer.stops),
        n=body.n or 1,
        top_logprobs=body.logprobs or 0,
        constraint=await asyncio.to_thread(served.constraint, *form) if form else None,
        deadline=time.monotonic() + deadline_seconds,
        adapter=served.adapter,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    asks = []
    for row in rows:
        options = replace(ask.options, max_tokens=served.fit(len(row), max_tokens, "prompt"))
        asks.append(replace(ask, tokens=row, options=options))
    echo = [served.tokenizer.decode(row) for row in rows] if body.echo else ()
    return Wanted(asks, stops(body), marked=body.logprobs is not None, echo=echo)


def prompts(served: Served, given: Prompts) -> list[tuple[int, ...]]:
    """The prompts of a request as tokens.

    Raises:
        ApiError: tokens that the model does not have, or more than it can read.
    """
    several: Any = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    rows = []
    for one in several:
        row = served.encoded(one) if isinstance(one, str) else tuple(one)
        size = served.tokenizer.vocab_size
        if wrong := [token for token in row if not 0 <= token < size]:
            raise ApiError(400, f"there is no token {wrong[0]}: {served.name} has {size}")
        if not row:
            raise ApiError(400, "there is nothing to read: the text is empty")
        rows.append(row)
    return rows


def plain(message: Message) -> dict[str, Any]:
    """A message as chat templates read it: text alone.

    Raises:
        ApiError: it holds a picture or a sound.
    """
    content = message.content or ""
    if isinstance(content, list):
        if other := [part.get("type") for part in content if not isinstance(part.get("text"), str)]:
            raise ApiError(400, f"a part of type {other[0]!r} cannot be read: text alone can", param="messages")
        content = "".join(part["text"] for part in content)
    role = "system" if message.role == "developer" else message.role
    return {**message.model_dump(exclude_none=True), "role": role, "content": content}


def _form(body: Texts) -> tuple[Any, Any] | None:
    """Kind and specification of what holds the text to a form, where anything does."""
    given: list[tuple[Any, Any]] = list((body.structured_outputs or {}).items())
    asked = getattr(body, "response_format", None)
    if asked is not None and asked.type != "text":
        schema = (asked.json_schema or {}).get("schema")
        if asked.type == "json_schema" and not isinstance(schema, dict):
            raise ApiError(400, "response_format of type json_schema holds no schema", param="response_format")
        given.append((asked.type, schema))
    if len(given) > 1:
        raise ApiError(400, "a text can be held to one form only", param="response_format")
    return given[0] if given else None
