"""Everything together: a tiny model in a run, the real engine, template and constraints, behind the command itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")
openai = pytest.importorskip("openai")
if not all(find_spec(f"nomoat.{name}") for name in ("serve.engine", "data.chat", "sampling.constrain")):
    pytest.skip("the parts are not there yet", allow_module_level=True)

from nomoat.core import checkpoint  # noqa: E402
from nomoat.core.budget import Budget  # noqa: E402
from nomoat.core.recipe import Recipe  # noqa: E402
from nomoat.core.run import Run, load  # noqa: E402
from nomoat.data.chat import Chat  # noqa: E402
from nomoat.data.text import Text  # noqa: E402
from nomoat.data.tokenizer import ByteTokenizer  # noqa: E402
from nomoat.families.lm import LM  # noqa: E402
from nomoat.nn.backbone import Backbone  # noqa: E402
from nomoat.sampling.tokens import SamplingOptions  # noqa: E402
from nomoat.sampling.write import continue_text  # noqa: E402

HI = [{"role": "user", "content": "hi"}]
GREEDY = {"temperature": 0, "max_tokens": 12}
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "n": {"enum": [1, 2]}},
    "required": ["yes", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of an untrained model over bytes, attention and Mamba-2."""
    root = tmp_path_factory.mktemp("runs")
    for name, mixers in (("tiny", "attention"), ("state", "mamba")):
        backbone = Backbone(width=32, depth=2, heads=2, mixers=mixers)
        recipe = Recipe("tiny", LM(257, 512, backbone), Text("none"), Budget.parse("1steps"), batch_size=1)
        run = Run.create(root, name, recipe)
        torch.manual_seed(0)
        family = recipe.build()
        for weight in family.parameters():
            weight.data += 0.2 * torch.randn(weight.shape)
        checkpoint.save(run.checkpoints, 1, {"weights": family.state_dict()}, {})
        ByteTokenizer().save(run.path / "tokenizer.json")
        run.mark("done")
    return root


def run_of(runs, name):
    """The folder of the run that was named in short."""
    (found,) = runs.glob(f"*-{name}-*")
    return found


@pytest.fixture(scope="module")
def server(runs):
    """`nomoat serve tiny state --port 0`, as a process."""
    command = [
        sys.executable,
        "-m",
        "nomoat.cli",
        "serve",
        "tiny",
        "state",
        "--port",
        "0",
        "--json",
        "--drain",
        "1",
        "--bits",
        "32",
    ]
    environment = {**os.environ, "NOMOAT_RUNS": str(runs)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    listening = json.loads(process.stdout.readline() or process.stderr.read())
    with openai.OpenAI(base_url=listening["base"] + "/v1", api_key="none", max_retries=0) as client:
        assert listening["names"] == ["tiny", "state"]
        assert [model.id for model in client.models.list()] == [run_of(runs, name).name for name in listening["names"]]
        client.process = process.pid
        yield client, listening["names"]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["kind"] == "result"
    assert err == ""


def test_greedy_text_is_what_the_model_writes_alone(server, runs):
    client, names = server
    for name in names:
        model = load(run_of(runs, name))
        alone = "".join(continue_text(model, ByteTokenizer(), "To be", SamplingOptions(temperature=0, max_tokens=12)))
        stream = client.completions.create(model=name, prompt="To be", stream=True, **GREEDY)
        assert "".join(chunk.choices[0].text for chunk in stream) == alone
        rendered, _ = Chat.of(run_of(runs, name)).tokens(HI, ByteTokenizer())
        (asked,) = client.completions.create(model=name, prompt=rendered, **GREEDY).choices
        assert (
            client.chat.completions.create(model=name, messages=HI, **GREEDY).choices[0].message.content == asked.text
        )
        assert (
            client.responses.create(model=name, input="hi", temperature=0, max_output_tokens=12).output_text
            == asked.text
        )


def test_log_probabilities_of_a_prompt_are_the_models(server, runs):
    client, (name, _) = server
    found = client.completions.create(model=name, prompt="To be", echo=True, logprobs=1, max_tokens=0).choices[0]
    tokens = torch.tensor([[256, *b"To be"]])
    scored = load(run_of(runs, name)).score({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)})
    assert found.text == "To be"
    assert found.logprobs.token_logprobs[1:] == pytest.approx(scored[0].tolist(), abs=1e-4)


def test_what_is_held_to_a_form_keeps_to_it(server):
    client, (name, _) = server
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    for seed in range(5):
        answer = client.chat.completions.create(
            model=name, messages=HI, response_format=form, seed=seed, temperature=1.5
        )
        assert answer.choices[0].finish_reason == "stop"
        assert set(json.loads(answer.choices[0].message.content)) == {"yes", "n"}
    body = {"structured_outputs": {"regex": "[a-c]{3}-[0-9]{2}"}}
    answer = client.completions.create(model=name, prompt="x", extra_body=body, n=4, temperature=1.0)
    assert all(re.fullmatch("[a-c]{3}-[0-9]{2}", choice.text) for choice in answer.choices)
    tools = [{"type": "function", "function": {"name": "vote", "parameters": SCHEMA}}]
    answer = client.chat.completions.create(model=name, messages=HI, tools=tools, tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "vote"
    assert set(json.loads(call.function.arguments)) == {"yes", "n"}
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=name, prompt="x", extra_body={"structured_outputs": {"regex": "(("}})


def test_embeddings_are_the_encoders(server, runs):
    client, (name, _) = server
    texts = ["one", "a longer text than that", "x" * 100]
    data = client.embeddings.create(model=name, input=texts).data
    for text, entry in zip(texts, data, strict=True):
        tokens = torch.tensor([[256, *text.encode()]])
        mean = load(run_of(runs, name)).encode({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)})[0]
        assert entry.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)


def test_many_clients_get_what_each_would_get_alone(server):
    client, (name, _) = server
    alone = [client.completions.create(model=name, prompt="a" * n, **GREEDY).choices[0].text for n in range(1, 9)]
    found = {}

    def ask(n):
        found[n] = client.completions.create(model=name, prompt="a" * n, **GREEDY).choices[0].text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(1, 9)] == alone


def test_an_answer_by_search_says_what_it_took(server):
    client, _ = server
    how = {"model": "tiny", "messages": HI, "max_tokens": 12, "seed": 3}
    for strategy in ("best-of-n", "vote", "beam", "mcts"):
        search = {"strategy": strategy, "budget": 20, "verifier": "regex:[a-z]"}
        answer = client.chat.completions.create(**how, extra_body={"search": search})
        told = answer.usage.model_extra["search"]
        assert told["strategy"] == strategy
        assert told["pieces"] >= 4
        assert told["evaluations"] >= told["finished"] > 0
        assert told["right"] in (0.0, 1.0)
        assert bool(re.search("[a-z]", answer.choices[0].message.content)) == (told["right"] == 1.0)
        assert answer.usage.completion_tokens >= told["pieces"]
    many = {"strategy": "best-of-n", "budget": 40}
    one = client.completions.create(model="tiny", prompt="ab", max_tokens=8, seed=3, extra_body={"search": many})
    assert one.usage.model_extra["search"]["finished"] == 40
    again = client.completions.create(model="tiny", prompt="ab", max_tokens=8, seed=3, extra_body={"search": many})
    assert one.choices[0].text == again.choices[0].text


@pytest.mark.parametrize(
    ("search", "more", "said"),
    [
        ({"budget": 0}, {}, "greater than or equal to 1"),
        ({"strategy": "magic"}, {}, "best-of-n"),
        ({"verifier": "tests"}, {}, "there is no verifier"),
        ({"verifier": "/etc/x.py:f"}, {}, "there is no verifier"),
        ({"verifier": "regex:("}, {}, "regex|pattern"),
        ({}, {"stream": True}, "streamed"),
        ({}, {"n": 2}, "one text"),
        ({}, {"logprobs": True}, "log-prob"),
        ({}, {"response_format": {"type": "json_object"}}, "form"),
    ],
)
def test_a_search_that_cannot_be_had_is_refused(server, search, more, said):
    client, _ = server
    with pytest.raises(openai.BadRequestError, match=f"(?i){said}"):
        client.chat.completions.create(model="tiny", messages=HI, max_tokens=4, extra_body={"search": search}, **more)


def test_a_client_that_leaves_frees_its_slot(server):
    import httpx

    client, (name, _) = server
    base = str(client.base_url).removesuffix("/v1/")
    for _ in range(20):
        stream = client.completions.create(model=name, prompt="a", max_tokens=400, stream=True, n=4)
        next(iter(stream))
        stream.close()

    def value(metric):
        return int(
            re.search(
                rf'^nomoat_{metric}{{model="[^"]*-{name}-[^"]*"}} (\d+)', httpx.get(base + "/metrics").text, re.M
            )[1]
        )

    from serving import until

    until(lambda: value("requests_active") == 0 and value("requests_queued") == 0, 5)
    assert value("slots_free") == 8
    assert value("requests_cancelled_total") > 0


@pytest.mark.slow
def test_a_thousand_requests_with_every_tenth_leaving_leave_nothing_behind(server):
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import httpx

    client, (name, _) = server
    status = Path(f"/proc/{client.process}/status")
    if not status.exists():
        pytest.skip("the memory of a process is read from /proc")

    def ask(number):
        stream = client.completions.create(
            model=name, prompt=f"{number} " * (1 + number % 50), max_tokens=8, stream=True, n=1 + number % 2
        )
        for chunk in stream:
            if number % 10 == 0 and chunk.choices:
                stream.close()
                return

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(200)))
        before = resident()
        list(pool.map(ask, range(1000)))
    text = httpx.get(str(client.base_url).replace("/v1/", "/metrics")).text
    assert re.search(rf'^nomoat_slots_free{{model="[^"]*-{name}-[^"]*"}} 8$', text, re.M)
    assert resident() < 1.05 * before
