"""Tool calls in a text, wherever its pieces end; and the schema of one."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError
from nomoat.serve.tools import ToolReader, schema_of

WEATHER, CLOCK = '{"name": "weather", "arguments": {"city": "Ulm"}}', '{"name": "clock", "parameters": {}}'
TAGGED = f"<tool_call>\n{WEATHER}\n</tool_call>"

CASES = [
    ("Hello.", "Hello.", []),
    ("Hello. \n", "Hello. \n", []),
    ("", "", []),
    (TAGGED, "", ["weather"]),
    (f"Well,\n\n{TAGGED}\n", "Well,", ["weather"]),
    (f"{TAGGED}\n<tool_call>{CLOCK}</tool_call>", "", ["weather", "clock"]),
    (f"<tool_call>{WEATHER}", "", ["weather"]),  # ended before its mark
    (WEATHER, "", ["weather"]),
    (f"\n {CLOCK} ", "", ["clock"]),
    (f"[{WEATHER}, {CLOCK}]", "", ["weather", "clock"]),
    ('{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    (
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
    ("<tool_call>weather</tool_call> is how", "<tool_call>weather</tool_call> is how", []),
    ("a <tool_ call> b < c <tool", "a <tool_ call> b < c <tool", []),
    ("[1] says so", "[1] says so", []),
    (f"So: {WEATHER}", f"So: {WEATHER}", []),  # quoted, not called
    ("{" * 100_000, "{" * 100_000, []),
    ("[" * 100_000 + "]" * 100_000, "[" * 100_000 + "]" * 100_000, []),
]


def read(pieces):
    reader, said, calls = ToolReader(("weather", "clock")), "", []
    for piece in pieces:
        text, found = reader.push(piece)
        said, calls = said + text, calls + found
    text, found = reader.finish()
    return said + text, calls + found


@pytest.mark.parametrize(("text", "said", "names"), CASES)
def test_what_is_said_and_what_is_called(text, said, names):
    found, calls = read([text])
    assert found == said
    assert [call.name for call in calls] == names
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
    assert len({call.id for call in calls}) == len(calls)


@given(st.sampled_from([case for case in CASES if len(case[0]) < 1000]), st.lists(st.integers(0, 120)))
def test_it_does_not_matter_where_the_pieces_end(case, cuts):
    text, said, names = case
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    found, calls = read([text[start:end] for start, end in pairwise(places)])
    assert found == said
    assert [call.name for call in calls] == names


def test_text_is_not_held_back_longer_than_it_must_be():
    reader = ToolReader(("weather",))
    assert reader.push("one two <")[0] == "one two"
    assert reader.push("b> three")[0] == " <b> three"
    assert reader.push("<tool_cal")[0] == ""
    assert reader.push("x")[0] == "<tool_calx"


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_the_schema_of_a_call():
    city = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "$defs": {"City": {"type": "string"}}}
    one = schema_of([tool("weather", city), tool("clock", None)], "weather")
    assert one["properties"]["name"] == {"const": "weather"}
    assert one["properties"]["arguments"] == {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}}
    assert one["$defs"] == {"City": {"type": "string"}}
    either = schema_of([tool("weather", city), tool("clock", None)])
    assert [option["properties"]["name"]["const"] for option in either["anyOf"]] == ["weather", "clock"]
    assert either["anyOf"][1]["properties"]["arguments"] == {"type": "object"}
    assert "$defs" in city
    with pytest.raises(ConfigError, match="two tools define `City`"):
        schema_of([tool("a", city), tool("b", {**city, "$defs": {"City": {"type": "integer"}}})])
