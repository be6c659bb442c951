"""Real clients against a real server on loopback: OpenAI's own, and that of another house."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from serving import EOT, hello, running  # noqa: E402

from nomoat.serve.models import Served  # noqa: E402

HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the sky does",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass
class Held:
    """A constraint that the scripted engine reads instead of keeping to it."""

    kind: str
    spec: Any

    def fork(self):
        return self


def obedient(ask, row):
    """Writes what the constraint, the tools or the stop strings of the request ask for."""
    said = bytes(token for token in ask.tokens if token < EOT).decode()
    held = ask.constraint
    if held is not None and held.kind == "choice":
        return held.spec[0].encode()
    if held is not None and "name" in (held.spec or {}).get("properties", {}):
        name = held.spec["properties"]["name"].get("const")
        return json.dumps({"name": name, "arguments": {"city": "Ulm"}} if name else {"name": "Ada", "age": 36}).encode()
    if held is not None:
        return b'{"any": "thing"}'
    if "tool:weather" in said and "tool:{" not in said and "umbrella" in said:
        return b'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    return hello(ask, row)


@pytest.fixture(scope="module")
def address():
    patch = pytest.MonkeyPatch()
    patch.setattr(Served, "constraint", lambda self, kind, spec: Held(kind, spec))
    with running(obedient) as server:
        yield server
    patch.undo()


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address.base + "/v1", api_key="none", max_retries=0) as client:
        yield client


def lines(address, path, **body):
    """The data lines of a stream, as they came."""
    with httpx.stream("POST", address.base + path, json={"model": "tiny", "stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "nomoat")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model `large`"):
        client.models.retrieve("large")


def test_a_chat(client, address):
    answer = client.chat.completions.create(model="tiny", messages=HI, seed=7, temperature=0.5, max_tokens=50)
    assert answer.choices[0].message.content == "Hello, wörld!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len("?user:hi\nassistant:")
    assert answer.usage.completion_tokens == len(b"Hello, w\xc3\xb6rld!") + 1
    asked = address.made[0].engine.asks[-1]
    assert (asked.options.seed, asked.options.temperature, asked.options.top_p) == (7, 0.5, 1.0)
    assert (asked.options.max_tokens, asked.stop_tokens, asked.n) == (50, (EOT,), 1)


def test_text_is_drawn_as_elsewhere_in_nomoat_unless_said_otherwise(client, address):
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=HI)
    first, second = (ask.options for ask in address.made[0].engine.asks[-2:])
    assert (first.temperature, first.top_p) == (0.2, 0.9)
    assert first.seed != second.seed
    client.chat.completions.create(model="tiny", messages=HI, temperature=0, extra_body={"top_k": 3, "min_p": 0.1})
    options = address.made[0].engine.asks[-1].options
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (0, 1.0, 3, 0.1)
    client.completions.create(model="tiny", prompt="hi")
    options = address.made[0].engine.asks[-1].options
    assert (options.temperature, options.top_p, options.max_tokens) == (0.8, 0.95, 16)


def test_the_chunks_of_a_chat_come_in_the_order_clients_rely_on(address):
    *chunks, done = lines(address, "/v1/chat/completions", messages=HI, n=2, stream_options={"include_usage": True})
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["id"], chunk["created"], chunk["model"]) == (chunks[0]["id"], chunks[0]["created"], "tiny")
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
    *rest, usage = chunks[2:]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + usage["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in rest)
    for index, text in enumerate(("Hello, wörld!", "Hello 1")):
        own = [chunk["choices"][0] for chunk in rest if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["delta"] == {}


def test_no_usage_unless_asked_for(address):
    chunks = [json.loads(line) for line in lines(address, "/v1/chat/completions", messages=HI)[:-1]]
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_streamed_chat(client):
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello, wörld!"


def test_many_at_once_asynchronously(address):
    async def talk():
        async with openai.AsyncOpenAI(base_url=address.base + "/v1", api_key="none") as client:

            async def streamed():
                stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            whole = client.chat.completions.create(model="tiny", messages=HI)
            texts = await asyncio.gather(*(streamed() for _ in range(20)))
            return {*texts, (await whole).choices[0].message.content}

    assert asyncio.run(talk()) == {"Hello, wörld!"}


def test_stop_strings_are_held_back_and_end_the_work(client, address):
    answer = client.chat.completions.create(model="tiny", messages=HI, stop=["nowhere", ", w"], logprobs=True)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert [entry.token for entry in answer.choices[0].logprobs.content] == list("Hello")
    stream = client.chat.completions.create(model="tiny", messages=HI, stop=", w", stream=True, logprobs=True)
    pieces = [chunk.choices[0] for chunk in stream]
    assert "".join(piece.delta.content or "" for piece in pieces) == "Hello"
    assert [entry.token for piece in pieces if piece.logprobs for entry in piece.logprobs.content] == list("Hello")
    assert address.made[0].engine.tickets[-1].cancelled


def test_several_choices(client):
    answer = client.chat.completions.create(model="tiny", messages=HI, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["Hello, wörld!", "Hello 1", "Hello 2"]


def test_logprobs_of_a_chat(client):
    answer = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "Hello, wörld!"
    assert content[0].token == "H"
    assert content[0].logprob == -0.25
    assert [top.logprob for top in content[0].top_logprobs] == [-0.25, -1.25, -2.25]
    stream = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2, stream=True)
    entries = [entry for chunk in stream if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.bytes for entry in entries] == [entry.bytes for entry in content]


def test_a_text_ends_where_max_tokens_says(client):
    answer = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hel", "length")
    assert client.completions.create(model="tiny", prompt="hi").choices[0].finish_reason == "stop"


def test_structured_output(client, address):
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    answer = client.chat.completions.parse(model="tiny", messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    held = address.made[0].engine.asks[-1].constraint
    assert (held.kind, held.spec["required"]) == ("json_schema", ["name", "age"])
    answer = client.chat.completions.create(model="tiny", messages=HI, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"any": "thing"}
    with client.chat.completions.stream(model="tiny", messages=HI, response_format=Person) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ada", age=36)
    body = {"structured_outputs": {"choice": ["yes", "no"]}}
    answer = client.chat.completions.create(model="tiny", messages=HI, extra_body=body)
    assert answer.choices[0].message.content == "yes"


def test_a_model_calls_a_tool_and_is_told_what_came_of_it(client, address):
    asked = [{"role": "user", "content": "Do I need an umbrella?"}]
    answer = client.chat.completions.create(model="tiny", messages=asked, tools=[WEATHER])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"city": "Ulm"},
    )
    told = [*asked, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    client.chat.completions.create(model="tiny", messages=told, tools=[WEATHER], tool_choice="none")
    read = bytes(token for token in address.made[0].engine.asks[-1].tokens if token < EOT).decode()
    assert "tool:rain" in read
    assert "tool:weather" not in read


def test_a_streamed_tool_call(client):
    asked = [{"role": "user", "content": "Do I need an umbrella?"}]
    chunks = [*client.chat.completions.create(model="tiny", messages=asked, tools=[WEATHER], stream=True)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    first, *more = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert (first.index, first.function.name, first.function.arguments) == (0, "weather", "")
    assert first.id.startswith("call_")
    assert json.loads("".join(call.function.arguments for call in more)) == {"city": "Ulm"}
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "tool_calls"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_can_be_asked_for(client, address, choice):
    answer = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], tool_choice=choice)
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    assert answer.choices[0].message.content is None
    held = address.made[0].engine.asks[-1].constraint
    assert held.spec["properties"]["arguments"] == WEATHER["function"]["parameters"]
    with pytest.raises(openai.BadRequestError, match="not among the tools"):
        client.chat.completions.create(
            model="tiny",
            messages=HI,
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "clock"}},
        )


def test_completions(client):
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=30, echo=True)
    assert [choice.text for choice in answer.choices] == ["aHello, wörld!", "aHello 1", "bHello, wörld!", "bHello 1"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert client.completions.create(model="tiny", prompt=[104, 105]).choices[0].text == "Hello, wörld!"
    assert client.completions.create(model="tiny", prompt=[[104], [105]], max_tokens=2).choices[1].text == "He"
    assert client.completions.create(model="tiny", prompt="x" * 50).usage.prompt_tokens == 51


def test_completions_streamed_with_echo(address):
    *chunks, done = lines(address, "/v1/completions", prompt="so: ", echo=True, stream_options={"include_usage": True})
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1]["choices"] == []
    texts = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(choice["text"] for choice in texts) == "so: Hello, wörld!"
    assert [choice["finish_reason"] for choice in texts] == [None] * (len(texts) - 1) + ["stop"]


def test_logprobs_of_completions(client):
    found = client.completions.create(model="tiny", prompt="hi", logprobs=2, max_tokens=5).choices[0].logprobs
    assert found.tokens == list("Hello")
    assert found.token_logprobs == [-0.25] * 5
    assert found.text_offset == [0, 1, 2, 3, 4]
    assert found.top_logprobs[0] == {"H": -0.25, "I": -1.25}
    stream = client.completions.create(model="tiny", prompt="hi", logprobs=1, max_tokens=5, stream=True)
    offsets = [
        offset for chunk in stream if chunk.choices[0].logprobs for offset in chunk.choices[0].logprobs.text_offset
    ]
    assert offsets == [0, 1, 2, 3, 4]


def test_logprobs_of_the_prompt(client):
    asked = {"model": "tiny", "prompt": "hi", "echo": True, "logprobs": 2}
    for max_tokens, n in ((0, 1), (2, 2)):
        for choice in client.completions.create(**asked, max_tokens=max_tokens, n=n).choices:
            found = choice.logprobs
            assert choice.text == "hi" + "He"[:max_tokens]
            assert found.tokens == ["", "h", "i", *"He"[:max_tokens]]
            assert found.token_logprobs == [None, -1, -2, *[-0.25] * max_tokens]
            assert found.text_offset == [0, 0, 1, 2, 3][: 3 + max_tokens]
            assert found.top_logprobs[0] is None
            assert len(found.top_logprobs[1]) == 2


def test_embeddings(client):
    answer = client.embeddings.create(model="tiny", input=["ab", "a", "c" * 40], encoding_format="float")
    vectors = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    for vector, letters in zip(vectors, ((97, 98, EOT), (97, EOT)), strict=False):
        assert [index for index, value in enumerate(vector) if value] == list(letters)
    for vector in vectors:
        assert sum(value * value for value in vector) == pytest.approx(1)
    assert answer.usage.prompt_tokens == 3 + 2 + 41
    packed = client.embeddings.create(model="tiny", input="ab", encoding_format="base64").data[0].embedding
    assert struct.unpack("<257f", base64.b64decode(packed)) == pytest.approx(vectors[0])
    assert client.embeddings.create(model="tiny", input=[[97, 98]]).data[0].embedding[97] == pytest.approx(0.5**0.5)
    with pytest.raises(openai.BadRequestError, match="257 numbers"):
        client.embeddings.create(model="tiny", input="ab", dimensions=100)


def test_responses(client, address):
    answer = client.responses.create(model="tiny", input="hi", instructions="Be brief.", max_output_tokens=5)
    assert answer.output_text == "Hello"
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.output_tokens, answer.store) == (5, False)
    read = bytes(token for token in address.made[0].engine.asks[-1].tokens if token < EOT).decode()
    assert read == "system:Be brief.\nuser:hi\nassistant:"
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "What of "}, {"type": "input_text", "text": "it?"}],
        },
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Ulm"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    assert client.responses.create(model="tiny", input=items).output_text == "Hello, wörld!"
    read = bytes(token for token in address.made[0].engine.asks[-1].tokens if token < EOT).decode()
    assert read == "user:What of it?\nassistant:\ntool:rain\nassistant:"


def test_the_events_of_a_response_come_in_their_official_order(client, address):
    events = [*client.responses.create(model="tiny", input="hi", stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "Hello, wörld!"
    assert events[-1].response.usage.output_tokens == 15
    with httpx.stream("POST", address.base + "/v1/responses", json={"input": "hi", "stream": True}) as answer:
        names = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert names == [event.type for event in events]


def test_responses_with_tools_and_forms(client):
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    assert client.responses.parse(model="tiny", input="hi", text_format=Person).output_parsed == Person(
        name="Ada", age=36
    )
    flat = {"type": "function", "strict": True, **WEATHER["function"]}
    answer = client.responses.create(model="tiny", input="umbrella?", tools=[flat])
    said, call = answer.output
    assert (said.type, said.content[0].text) == ("message", "Let me see.")
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Ulm"})
    with client.responses.stream(model="tiny", input="umbrella?", tools=[flat]) as stream:
        kinds = [event.type.removeprefix("response.") for event in stream]
        final = stream.get_final_response()
    assert kinds[-5:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [item.type for item in final.output] == ["message", "function_call"]
    with pytest.raises(openai.BadRequestError, match="previous_response_id is not implemented"):
        client.responses.create(model="tiny", input="hi", previous_response_id="resp_1")


def test_the_client_of_another_house(address, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_DISABLE_TELEMETRY", True)
    client = hub.InferenceClient(base_url=address.base + "/v1", api_key="none")
    answer = client.chat_completion(HI, model="tiny", max_tokens=50, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == "Hello, wörld!"
    stream = client.chat_completion(HI, model="tiny", stream=True, stream_options={"include_usage": True})
    chunks = [*stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello, wörld!"
    assert chunks[-1].usage.completion_tokens == 15
    asked = [{"role": "user", "content": "umbrella?"}]
    answer = client.chat_completion(asked, model="tiny", tools=[WEATHER], tool_choice="auto")
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("chat/completions", {"messages": []}, "messages", "at least 1"),
        ("chat/completions", {"messages": HI, "temperature": 3}, "temperature", "less than or equal to 2"),
        ("chat/completions", {"messages": HI, "temperature": "hot"}, "temperature", "number"),
        ("chat/completions", {"messages": HI, "n": 9}, "n", "less than or equal to 8"),
        ("chat/completions", {"messages": HI, "stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ("chat/completions", {"messages": HI, "stop": ""}, "stop", "at least 1 character"),
        ("chat/completions", {"messages": HI, "stop": ["x" * 501]}, "stop", "at most 500 characters"),
        ("chat/completions", {"messages": HI, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ("chat/completions", {"messages": HI, "logit_bias": {"5": 1}}, "logit_bias", "not implemented"),
        ("chat/completions", {"messages": HI, "presence_penalty": 1}, "presence_penalty", "not implemented"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, "messages", "messages.0.role"),
        ("chat/completions", {"messages": [{**HI[0], "content": [{"type": "image_url"}]}]}, "messages", "image_url"),
        ("chat/completions", {"messages": HI, "response_format": {"type": "json_schema"}}, None, "holds no schema"),
        ("chat/completions", {"messages": [{"role": "user", "content": "refuse"}]}, None, "takes no such message"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 1990}]}, "messages", "2007 tokens"),
        ("chat/completions", {"messages": HI, "model": "gpt-x"}, "model", "no model `gpt-x`"),
        ("completions", {"prompt": "hi", "suffix": "end"}, "suffix", "not implemented"),
        ("completions", {"prompt": [5, 999]}, None, "no token 999"),
        ("completions", {"prompt": "x" * 100_000}, None, "reads 2000"),
        ("embeddings", {"input": "x" * 3000}, None, "reads 2000"),
        ("embeddings", {"input": []}, "input", "at least 1"),
        ("responses", {"input": [{"type": "picture"}]}, "input", "'picture'"),
        ("responses", {"input": [{"role": "king", "content": "x"}]}, None, "role"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_as_openai_says_it(address, path, body, param, words):
    answer = httpx.post(f"{address.base}/v1/{path}", json={"model": "tiny", **body})
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert param is None or error["param"].startswith(param)


def test_what_is_not_known_is_ignored(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=HI,
        user="me",
        store=True,
        metadata={"a": "b"},
        parallel_tool_calls=False,
        presence_penalty=0,
        logit_bias={},
        service_tier="auto",
        extra_body={"nobody": {"knows": 1}},
    )
    assert answer.choices[0].message.content == "Hello, wörld!"


def test_lone_surrogates_do_no_harm(address):
    raw = b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\udfff"}], "logit_bias": {"\\ud800": 1}}'
    for path in ("chat/completions", "completions", "responses"):
        answer = httpx.post(f"{address.base}/v1/{path}", content=raw, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
