"""Tool calls: found in what a model writes, and asked of it by a JSON schema.

    pieces of text -> ToolReader -> text for the user, and calls (name, arguments as JSON)

Two ways of writing a call are read: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen), and a
whole answer that is one such object or a list of them, with `arguments` or `parameters` (Llama 3, and what a
constraint makes of a model that has learned neither). What names no tool that was offered stays text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from nomoat.core.errors import ConfigError

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Call(NamedTuple):
    """A call of a tool: `arguments` is JSON, as OpenAI gives it."""

    id: str
    name: str
    arguments: str

    def as_json(self) -> dict[str, Any]:
        """The call as a chat message holds it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolReader:
    """Reads a text piece by piece and parts what is said from what is called.

    Args:
        names: the tools that were offered.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.called = False
        self._held = ""
        self._said = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """The text that is certain to be none of a call, and the calls that are complete."""
        self._held += text
        said, calls = "", []
        while not (bare := not self._said and self._held.lstrip()[:1] in ("{", "[")):
            before, opened, rest = self._held.partition(OPEN)
            inside, closed, after = rest.partition(CLOSE)
            if not closed:
                break
            if found := self._parse(inside):
                calls += found
                said += before.rstrip() if not self._said else before
            else:
                said += before + opened + inside + closed
            self._said = self._said or bool(said.strip())
            self._held = after
        if not bare and OPEN not in self._held:
            said += self._certain()
        self.called = self.called or bool(calls)
        self._said = self._said or bool(said.strip())
        return ("" if self.called and not said.strip() else said), calls

    def finish(self) -> tuple[str, list[Call]]:
        """The rest: no more text will come."""
        text, self._held = self._held, ""
        before, opened, inside = text.partition(OPEN)
        calls = self._parse(inside if opened else text) if opened or not self._said else []
        self.called = self.called or bool(calls)
        said = (before if opened else "") if calls else text
        return ("" if self.called and not said.strip() else said), calls

    def _certain(self) -> str:
        """What cannot be the beginning of a call; white space before one is not given out."""
        kept = len(self._held.rstrip())
        for size in range(min(len(OPEN) - 1, kept), 0, -1):
            if OPEN.startswith(self._held[kept - size : kept]):
                kept = len(self._held[: kept - size].rstrip())
                break
        said, self._held = self._held[:kept], self._held[kept:]
        return said

    def _parse(self, text: str) -> list[Call]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return []
        calls = []
        for one in found if isinstance(found, list) else [found]:
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(name, str) or name not in self.names:
                return []
            given = one.get("arguments", one.get("parameters", {}))
            arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
            calls.append(Call("call_" + secrets.token_hex(12), name, arguments))
        return calls


def schema_of(tools: Sequence[Mapping[str, Any]], name: str | None = None) -> dict[str, Any]:
    """The JSON schema of one call of any of `tools` (OpenAI's form), or of the one called `name`.

    Raises:
        ConfigError: two tools define something else by the same name.
    """
    options: list[dict[str, Any]] = []
    shared: dict[str, dict[str, Any]] = {}
    for function in (tool["function"] for tool in tools if name in (None, tool["function"]["name"])):
        parameters = dict(function.get("parameters") or {"type": "object"})
        for place in ("$defs", "definitions"):  # `#/$defs/X` is read from the root, which is ours now
            for key, value in parameters.pop(place, {}).items():
                if shared.setdefault(place, {}).setdefault(key, value) != value:
                    raise ConfigError(f"two tools define `{key}`, each in its own way", fix="give one another name")
        options.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {**(options[0] if len(options) == 1 else {"anyOf": options}), **shared}
