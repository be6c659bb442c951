"""Constrained decoding: whatever is drawn within a constraint is what the constraint says; and what it may cost."""

from __future__ import annotations

import json
import re
import time
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.sampling import constrain
from nomoat.sampling.constrain import Limits, Vocabulary, compile_constraint
from nomoat.sampling.tokens import SamplingOptions, pick

pytest.importorskip("llguidance")

PIECES = [
    b'{"',
    b'": ',
    b'", "',
    b'"}',
    b"true",
    b"fal",
    b"null",
    b", ",
    b"[]",
    b"ab",
    b"abc",
    "é".encode(),
    b"12",
    b"\xe4\xbd",
]
STOP, OTHER_STOP, SILENT = 256 + len(PIECES), 257 + len(PIECES), 258 + len(PIECES)
TOKENS = [*(bytes([byte]) for byte in range(256)), *PIECES, b"", b"", b""]


@cache
def vocabulary():
    return Vocabulary.of(TOKENS, [STOP, OTHER_STOP])


def written(constraint, seed, temperature=1.0, most=2000):
    """The bytes drawn by random logits under a constraint, to its end."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    while not constraint.done and len(drawn) < most:
        allowed_V = constraint.allowed()
        assert allowed_V.dtype == torch.bool
        assert allowed_V.shape == (len(TOKENS),)
        assert allowed_V.any()
        assert not allowed_V[SILENT]
        logits_1V = 3 * torch.randn(1, len(TOKENS), generator=generator)
        logits_1V = logits_1V.masked_fill(~allowed_V, -torch.inf)
        token = int(pick(logits_1V, SamplingOptions(temperature=temperature), generator)[0])
        constraint.advance(token)
        drawn.append(token)
        if token in (STOP, OTHER_STOP):
            assert constraint.done
    assert constraint.done
    return b"".join(TOKENS[token] for token in drawn)


NAMES = st.text(alphabet='abé"\\ {', min_size=1, max_size=4)
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-500, 500),
        st.integers(0, 900),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6)),
    st.lists(st.one_of(NAMES, st.integers(-9, 9), st.none(), st.booleans()), min_size=1, max_size=3).map(
        lambda options: {"enum": options}
    ),
)


def _object(properties, required):
    return {
        "type": "object",
        "properties": properties,
        "required": [name for number, name in enumerate(properties) if required & 1 << number],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 7)),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)


def fits(value, schema):
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == option and type(value) is type(option) for option in schema["enum"])
    match schema["type"]:
        case "object":
            known = schema["properties"]
            return (
                isinstance(value, dict)
                and value.keys() <= known.keys()
                and {*schema["required"]} <= value.keys()
                and all(fits(item, known[name]) for name, item in value.items())
            )
        case "array":
            return (
                isinstance(value, list)
                and len(value) <= schema["maxItems"]
                and all(fits(item, schema["items"]) for item in value)
            )
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "boolean":
            return isinstance(value, bool)
    return value is None


@settings(max_examples=100)
@given(SCHEMAS, st.integers(0, 10**6))
def test_everything_drawn_under_a_schema_is_valid(schema, seed):
    constraint = compile_constraint("json_schema", schema, vocabulary())
    for temperature in (0.0, 1.0):
        text = written(constraint.fork(), seed, temperature).decode()
        value = json.loads(text)
        assert fits(value, schema), (schema, text)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.integers(0, 10**6))
def test_everything_drawn_under_a_choice_is_one_of_it(options, seed):
    options = [option for option in options if not re.search("[\ud800-\udfff]", option)] or ["x"]
    assert written(compile_constraint("choice", options, vocabulary()), seed).decode() in options


@pytest.mark.parametrize(
    "regex",
    [
        r"[a-c]{2,5}",
        r"(ab|abc)+d",
        r"\d{4}-\d\d-\d\d",
        r"x?y?",
        r"(?i)yes|no",
        r"[a-zü]{1,3}é",
        r"\w\s?/\\",
        "a\nb#\t/\\/",
        r"(a{1,50}){1,3}",
        r"\"\\\n",
    ],
)
def test_everything_drawn_under_a_regex_matches_it(regex):
    for seed in range(20):
        text = written(compile_constraint("regex", regex, vocabulary()), seed).decode()
        assert re.fullmatch(regex.replace(r"\d", "[0-9]"), text), text


@pytest.mark.parametrize(
    "grammar",
    [
        'start: sum\nsum: part ("+" part){0,3}\npart: NUMBER | "(" NUMBER "-" NUMBER ")"\nNUMBER: /[1-9][0-9]{0,2}/',
        'root ::= part | part "+" part\npart ::= number | "(" number "-" number ")"\nnumber ::= [1-9] [0-9]?',
    ],
)
def test_everything_drawn_under_a_grammar_parses(grammar):
    for seed in range(20):
        text = written(compile_constraint("grammar", grammar, vocabulary()), seed).decode()
        assert re.fullmatch(r"[-+()0-9]+", text)
        assert isinstance(eval(text), int)


def test_a_json_object_is_an_object_on_one_line():
    constraint = compile_constraint("json_object", None, vocabulary())
    for token in b'{"a": [1, {"b": null}], "c": "d"}':
        assert constraint.allowed()[token]
        constraint.advance(token)
    assert constraint.done
    for wrong in (b"[", b"1", b"{\n", b'{"a":1', b"{ "):
        constraint = compile_constraint("json_object", None, vocabulary())
        with pytest.raises(NomoatError, match="may not follow"):
            for token in wrong:
                constraint.advance(token)


def test_a_long_text_that_must_follow_is_followed_at_once():
    text = "the quick brown é fox " * 500
    constraint = compile_constraint("choice", [text], vocabulary())
    start = time.perf_counter()
    assert written(constraint, 0, most=20_000).decode() == text
    assert time.perf_counter() - start < 60


def test_both_ends_are_allowed_where_the_text_may_end():
    constraint = compile_constraint("regex", "ab?", vocabulary())
    assert not constraint.allowed()[[STOP, OTHER_STOP]].any()
    constraint.advance(ord("a"))
    assert torch.nonzero(constraint.allowed())[:, 0].tolist() == [ord("b"), STOP, OTHER_STOP]
    assert not constraint.done
    constraint.advance(OTHER_STOP)
    assert constraint.done


def test_a_fork_goes_its_own_way():
    one = compile_constraint("regex", "am|cd", vocabulary())
    other = one.fork()
    one.advance(ord("a"))
    assert torch.nonzero(one.allowed())[:, 0].tolist() == [ord("m")]
    assert torch.nonzero(other.allowed())[:, 0].tolist() == [ord("a"), ord("c")]
    other.advance(ord("c"))
    other.advance(ord("d"))
    assert other.done
    assert not one.done


def test_the_vocabulary_keeps_what_was_compiled(monkeypatch):
    monkeypatch.setattr(constrain, "KEPT", 3)
    own = Vocabulary.of(TOKENS, [STOP])
    calls = []
    inner = constrain._matcher
    monkeypatch.setattr(constrain, "_matcher", lambda *given: calls.append(given) or inner(*given))
    for regex in ("a", "b", "a", "c", "a", "d", "a", "b"):
        compile_constraint("regex", regex, own).advance(ord(regex))
    assert [given[1] for given in calls] == ["a", "b", "c", "d", "b"]
    assert len(own.compiled) == 3


REFUSED = [
    ("regex", "[", "unclosed"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", "(" * 9000 + ")" * 9000, "nest"),
    ("regex", "a" * 200_000, "200,002 characters"),
    ("regex", "[^\\s\\S]", ""),
    ("regex", 3, "none"),
    ("choice", [], "list of texts"),
    ("choice", "ab", "list of texts"),
    ("choice", [1], "list of texts"),
    ("json_schema", {"type": "nonsense"}, "nonsense"),
    ("json_schema", "{", ""),
    ("json_schema", 3, ""),
    ("json_schema", False, ""),
    ("json_schema", {"enum": []}, "Unsatisfiable"),
    ("json_schema", {"not": {"type": "string"}}, "not"),
    ("json_schema", {"$ref": "http://nomoat.invalid/x.json"}, "x.json"),
    ("json_schema", {"$ref": "file:///etc/passwd"}, ""),
    ("json_schema", {"$ref": "#"}, ""),
    ("json_schema", {"type": "string", "pattern": "["}, "regex"),
    ("json_schema", {"x": object()}, "serializable"),
    ("grammar", "start: nope", "nope"),
    ("grammar", "start: start", ""),
    ("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, ""),
    ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
    ("poem", "x", "none"),
]


@pytest.mark.parametrize(("kind", "spec", "why"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_compiled_is_refused_in_words_and_at_once(kind, spec, why):
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="cannot constrain") as error:
        compile_constraint(kind, spec, vocabulary())
    assert time.perf_counter() - start < 60
    assert why in error.value.why
    assert len(str(error.value)) < 600
    assert "<state>" not in str(error.value)


def test_a_schema_that_nests_too_deep_is_refused():
    schema = {"type": "integer"}
    for _ in range(20):
        schema = {"type": "array", "items": schema}
    assert compile_constraint("json_schema", schema, vocabulary()) is not None
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ConfigError, match="recursion limit"):
        compile_constraint("json_schema", schema, vocabulary())
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ConfigError):
        compile_constraint("json_schema", schema, vocabulary())
    with pytest.raises(ConfigError):
        compile_constraint("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, vocabulary())


@pytest.mark.parametrize(
    "regex",
    [
        "(((a{1,1000}){1,1000}){1,1000}){1,1000}",
        r"(.*a.{20})",
        r"(x+x+)+y",
        r"([a-z]*[a-m][a-z]{18}|[a-z]*b[a-z]{17})*",
        r"(.*a.{8}|.*b.{9}|.*c.{11}|.*d.{7})&(.*a.{12})",
        r"\p{L}{1,50000}",
        r"(\w|\s|[a-z]|[^b]){0,5000}",
    ],
)
def test_no_regex_explodes(regex):
    """It compiles, and a step takes milliseconds, or it is refused: never minutes."""
    start = time.perf_counter()
    try:
        constraint = compile_constraint("regex", regex, vocabulary())
        for token in b"abcdx" * 40:
            if constraint.allowed()[token]:
                constraint.advance(token)
    except NomoatError as error:
        assert error.why
    assert time.perf_counter() - start < 60


def test_too_little_work_allowed_is_an_error_in_words():
    with pytest.raises(NomoatError) as error:
        constraint = compile_constraint(
            "regex", r"(\w+ ?){100,200}é{100}", vocabulary(), Limits(compile_work=10, step_work=1)
        )
        for _ in range(100):
            constraint.allowed()
            constraint.advance(ord("a"))
    assert error.value.why


def test_a_vocabulary_that_cannot_spell_it_says_so():
    letters = [letter.encode() for letter in 'abcdefgh"{}:, 0123456789'] + [b""]
    small = Vocabulary.of(letters, [len(letters) - 1])
    constraint = compile_constraint(
        "json_schema", {"type": "object", "properties": {"xyz": {}}, "required": ["xyz"]}, small
    )
    constraint.advance(letters.index(b"{"))
    with pytest.raises(NomoatError, match="no token spells"):
        while True:
            constraint.advance(int(constraint.allowed().nonzero()[0, 0]))
    with pytest.raises(ConfigError, match="cannot constrain"):
        compile_constraint("choice", ["xyz"], small)
    fitting = compile_constraint("choice", ["abc", "xyz"], small)
    assert fitting.allowed().nonzero()[:, 0].tolist() == [0]


def test_without_llguidance_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"nomoat\[serve\]"):
        Vocabulary.of(TOKENS, [STOP])


def test_the_mask_of_a_large_vocabulary_takes_little_time(shared):
    from nomoat.data.tokenizer import gpt2

    folder = shared / "weights" / "tokenizers"
    if not folder.is_dir():
        pytest.skip("needs GPT-2's vocabulary")
    tokenizer = gpt2(folder / "gpt2-encoder.json", folder / "gpt2-vocab.bpe")
    large = Vocabulary.of(tokenizer.tokens, [tokenizer.eot])
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
        "additionalProperties": False,
    }
    constraint = compile_constraint("json_schema", schema, large)
    times = []
    for token in tokenizer.encode('{"name": "Bob the builder builds"}').tolist():
        start = time.perf_counter()
        allowed_V = constraint.allowed()
        times.append(time.perf_counter() - start)
        assert allowed_V[token] or not constraint.done
        constraint.advance(token)
    assert constraint.done
    assert sorted(times)[len(times) // 2] < 0.5e-3
