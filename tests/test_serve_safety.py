"""Who gets in, how much they may bring, what stops when they leave, how the server ends, what its log holds."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from serving import ScriptedEngine, hello, running, until  # noqa: E402

from nomoat.core.errors import ConfigError, RunError  # noqa: E402
from nomoat.serve import guard  # noqa: E402
from nomoat.serve.guard import BODY_BYTES, JSON_DEPTH, PUBLIC, is_loopback, is_shallow  # noqa: E402
from nomoat.serve.models import Settings  # noqa: E402
from nomoat.serve.start import read_keys, serve  # noqa: E402

KEYS = ("first-key-of-many-letters", "second-key-of-many-letters")
HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def locked():
    with running(settings=Settings(keys=KEYS, origins=("https://page.example",))) as server:
        yield server


@pytest.fixture(scope="module")
def open_one():
    with running() as server:
        yield server


@pytest.fixture
def connect():
    """A client of OpenAI's, closed at the end."""
    with ExitStack() as stack:

        def made(base, key="none"):
            return stack.enter_context(openai.OpenAI(base_url=base + "/v1", api_key=key, max_retries=0))

        yield made


@pytest.fixture
def web():
    with httpx.Client() as client:
        yield client


def endless(ask, row):
    return [120] * 1900


def test_every_route_but_two_needs_a_key(locked, web):
    routes = [(route.path, route.methods) for route in locked.server.app.routes]
    assert {"/openapi.json", "/metrics", "/v1/models", "/v1/chat/completions"} <= {path for path, _ in routes}
    for path, methods in [
        *routes,
        ("/nowhere", {"GET"}),
        ("/v1", {"POST"}),
        ("/health/", {"GET"}),
        ("//health", {"GET"}),
    ]:
        for method in methods | {"OPTIONS", "PUT"}:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEYS[0]}"}):
                answer = web.request(method, locked.base + path.replace("{name:path}", "tiny"), headers=headers)
                if path in PUBLIC:
                    assert answer.status_code in (200, 405)
                else:
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"


def test_any_of_the_keys_opens(locked, connect):
    for key in KEYS:
        client = connect(locked.base, key)
        assert client.chat.completions.create(**HI).choices[0].message.content == "Hello, wörld!"
    with pytest.raises(openai.AuthenticationError):
        connect(locked.base, KEYS[0] + "x").models.list()


def test_there_are_no_pages_that_load_from_elsewhere(open_one):
    assert [httpx.get(f"{open_one.base}/{page}").status_code for page in ("docs", "redoc")] == [404, 404]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "["]
)
def test_another_host_is_refused_on_loopback(open_one, host):
    for path in ("/v1/models", "/health"):
        answer = httpx.get(open_one.base + path, headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "127.1.2.3", "[::1]:8000"])
def test_the_own_host_is_not(open_one, host):
    assert httpx.get(open_one.base + "/v1/models", headers={"host": host}).status_code == 200


def test_pages_of_other_origins_are_refused_unless_named(open_one, locked):
    for origin in (
        "https://evil.example",
        "null",
        open_one.base.replace("127.0.0.1", "localhost"),
        "http://127.0.0.1:1",
    ):
        answer = httpx.post(open_one.base + "/v1/chat/completions", json=HI, headers={"origin": origin})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin")
        assert "access-control-allow-origin" not in answer.headers
    own = httpx.get(open_one.base + "/v1/models", headers={"origin": open_one.base})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    named = {"origin": "https://page.example"}
    asked = {**named, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = httpx.options(locked.base + "/v1/chat/completions", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    refused = httpx.post(locked.base + "/v1/chat/completions", json=HI, headers=named)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    key = {"authorization": f"Bearer {KEYS[1]}"}
    assert httpx.get(locked.base + "/v1/models", headers=named | key).status_code == 200


def test_what_is_loopback():
    for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "Localhost."):
        assert is_loopback(host)
    for host in ("", "0.0.0.0", "::", "192.168.1.1", "example.org", "localhost.evil.example", "127.0.0.1 "):
        assert not is_loopback(host)


def test_another_address_needs_a_key(monkeypatch):
    monkeypatch.delenv("NOMOAT_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.1", "my.machine"):
        with pytest.raises(ConfigError, match="no key is set"):
            serve({}, Settings(host=host), print)


def test_a_port_that_is_taken_is_said():
    from serving import Named

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} of 127.0.0.1 cannot be listened on"):
            serve({"tiny": Named("tiny")}, Settings(port=port), print)


def test_keys_are_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("NOMOAT_KEY", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("NOMOAT_KEY", " , ".join(KEYS))
    assert read_keys(None) == KEYS
    file = tmp_path / "keys"
    file.write_text(f"# of Ada\n{KEYS[1]}\n\n")
    assert read_keys(file) == KEYS[1:]
    for text, words in (("# none\n", "no key"), ("short\n", "fewer than 16"), (KEYS[0] + "ö", "fewer than 16")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_a_long_body_is_refused_with_and_without_its_length(open_one):
    path, headers = "/v1/completions", {"content-type": "application/json"}
    told = {**headers, "content-length": str(BODY_BYTES + 1)}
    with socket.create_connection(("127.0.0.1", int(open_one.base.rpartition(":")[2]))) as plug:
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        plug.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n".encode())
        assert plug.recv(100).startswith(b"HTTP/1.1 413")
    sent = 0

    def pieces():
        nonlocal sent
        while sent < 40 * BODY_BYTES:
            sent += 1_000_000
            yield b"x" * 1_000_000

    try:
        answer = httpx.post(open_one.base + path, content=pieces(), headers=headers)
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # the server hung up before we had sent it all
    assert sent <= BODY_BYTES + 20_000_000
    assert open_one.server.guard.responses[413] == 2


def test_a_body_that_never_comes_is_not_waited_for(open_one, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", int(open_one.base.rpartition(":")[2]))) as plug:
        plug.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert plug.recv(100).startswith(b"HTTP/1.1 408")


def test_deep_json_is_refused(open_one):
    def nested(depth):
        return b'{"model": "tiny", "prompt": "hi", "metadata": ' + b"[" * depth + b"]" * depth + b"}"

    for depth, status in ((JSON_DEPTH - 1, 200), (JSON_DEPTH, 400), (4_000_000, 400)):
        answer = httpx.post(
            open_one.base + "/v1/completions", content=nested(depth), headers={"content-type": "application/json"}
        )
        assert answer.status_code == status


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab[]{}"\\\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='k[]{}"\\'), inner, max_size=4),
    max_leaves=20,
)


@given(values)
@example(["]", '"[', "\\", {"}\\": []}])
def test_what_python_reads_is_measured_rightly(value):
    def depth(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    around = JSON_DEPTH - depth(value)
    text = json.dumps(value).encode()
    assert is_shallow(b"[" * around + text + b"]" * around)
    assert is_shallow(b"[]" * 100 + b'["[", "[\\"[[["]')
    assert not is_shallow(b"[" * (around + 1) + text + b"]" * (around + 1))


@pytest.mark.parametrize(
    "text", [b'"\\' * 2_000_000, b'"' * 5_000_001, b"[]" * 4_000_000, b"[{" * 4_000_000, b'"\\"' * 3_000_000]
)
def test_hostile_bodies_are_measured_quickly(text):
    start = time.perf_counter()
    is_shallow(text)
    assert time.perf_counter() - start < 60


def test_other_encodings_cannot_hide_brackets(open_one):
    text = ('{"prompt": "\\"", "metadata": ' + "[" * 200 + "]" * 200 + "}").encode("utf-16-le")
    answer = httpx.post(open_one.base + "/v1/completions", content=text, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_deep")


def test_a_full_queue_is_429_with_the_time_to_come_back(connect):
    with running(endless, pause=0.01, room=1) as server:
        client = connect(server.base)
        with client.chat.completions.create(**HI, stream=True) as stream:
            next(iter(stream))
            for stream_too in (False, True):
                with pytest.raises(openai.RateLimitError) as refused:
                    client.chat.completions.create(**HI, stream=stream_too)
                assert refused.value.response.headers["retry-after"] == "2"
                assert refused.value.code == "queue_full"
            with pytest.raises(openai.RateLimitError):
                client.completions.create(model="tiny", prompt=["a", "b"])
        until(lambda: not server.made[0].engine.jobs)
        with pytest.raises(openai.RateLimitError):  # the first of the two fits, and is given up with the second
            client.completions.create(model="tiny", prompt=["a", "b"])
        until(lambda: not server.made[0].engine.jobs)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_stops_when_the_client_leaves(path, stream):
    body = {**HI, "prompt": "hi", "input": "hi", "stream": stream}
    with running(endless, pause=0.005) as server:
        port = int(server.base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as plug:
            text = json.dumps(body)
            head = f"POST /v1/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            plug.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
            until(lambda: server.made and server.made[0].engine.counted.tokens_out > 5)
        (ticket,) = server.made[0].engine.tickets
        until(lambda: ticket.cancelled, 10)  # some milliseconds on a quiet machine
        until(lambda: not server.made[0].engine.jobs, 2)
        assert server.made[0].engine.counted.tokens_out < 200
        assert not server.server.mailbox.answers


def test_a_request_ends_at_its_deadline(connect):
    with running(endless, pause=0.02, settings=Settings(deadline_seconds=0.3)) as server:
        client = connect(server.base)
        with pytest.raises(openai.InternalServerError) as late:
            client.chat.completions.create(**HI)
        assert (late.value.status_code, late.value.code) == (504, "deadline")
        with pytest.raises(openai.APIError, match="longer than it may"):
            for _ in client.chat.completions.create(**HI, stream=True):
                pass
        kinds = [event.type for event in client.responses.create(model="tiny", input="hi", stream=True)]
        assert kinds[-1] == "response.failed"


def test_who_does_not_read_is_not_waited_for(monkeypatch):
    from nomoat.serve import chunks

    monkeypatch.setattr(chunks, "SLOW_SECONDS", 0.0)

    def wide(ask, row):
        return list(b"x" * 1900)

    body = json.dumps({"prompt": ["hi"] * 16, "n": 8, "max_tokens": 1900, "stream": True, "logprobs": 20})
    with running(wide, settings=Settings(deadline_seconds=2.0)) as server:
        port = int(server.base.rpartition(":")[2])
        with socket.socket() as plug:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plug.connect(("127.0.0.1", port))
            head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            plug.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            until(lambda: server.server.mailbox.answers)
            until(lambda: not server.server.mailbox.answers, 8)
        assert httpx.get(server.base + "/v1/models").status_code == 200


def test_a_fault_of_the_engine_is_500_and_the_server_goes_on(connect):
    def failing(ask, row):
        return [104, ZeroDivisionError("no such luck")] if len(ask.tokens) % 2 else hello(ask, row)

    with running(failing) as server:
        client = connect(server.base)
        with pytest.raises(openai.InternalServerError) as fault:
            client.completions.create(model="tiny", prompt="even")
        assert fault.value.status_code == 500
        with pytest.raises(openai.APIError, match="no such luck"):
            for _ in client.completions.create(model="tiny", prompt="even", stream=True):
                pass
        assert client.completions.create(model="tiny", prompt="odd").choices[0].text == "Hello, wörld!"


class Process:
    """The server as a process of its own."""

    def __init__(self, pause=0.02, drain=0.5, **environment):
        command = [sys.executable, str(Path(__file__).with_name("serving.py")), str(pause), str(drain)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.base = self.process.stdout.readline().strip()
        assert self.base, self.process.stderr.read()
        until(lambda: httpx.get(self.base + "/ready").status_code == 200)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, kind=signal.SIGTERM):
        self.process.send_signal(kind)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out + err


def test_sigterm_lets_streams_end_in_time_and_tells_the_others():
    server, found = Process(pause=0.01, drain=1.5), {}

    def talk(name, path, body):
        with httpx.stream("POST", f"{server.base}/v1/{path}", json={"stream": True, **body}, timeout=30) as answer:
            found[name] = [line for line in answer.iter_lines() if line]

    quick = threading.Thread(target=talk, args=("quick", "chat/completions", {**HI, "max_tokens": 70}))
    slow = [
        threading.Thread(target=talk, args=(path, path, {**HI, "prompt": "hi", "input": "hi", "max_tokens": 300}))
        for path in ("chat/completions", "completions", "responses")
    ]
    whole = []
    body = {**HI, "stream": False}
    other = threading.Thread(
        target=lambda: whole.append(httpx.post(server.base + "/v1/chat/completions", json=body, timeout=30))
    )
    for thread in [quick, *slow, other]:
        thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    code, said = server.end()
    assert time.monotonic() - start < 60
    for thread in [quick, *slow, other]:
        thread.join(10)
    assert code == 0, said
    assert '"finish_reason":"length"' in found["quick"][-2]
    for path in ("chat/completions", "completions"):
        assert found[path][-1] == "data: [DONE]"
        assert json.loads(found[path][-2].removeprefix("data: "))["error"]["code"] == "stopping"
    assert '"type":"response.failed"' in found["responses"][-1]
    assert whole[0].status_code == 503
    assert whole[0].headers["retry-after"]


def test_while_it_stops_it_takes_no_requests_and_is_not_ready():
    with running() as server:
        server.server.stopping = True
        answer = httpx.post(server.base + "/v1/chat/completions", json=HI)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
        assert httpx.get(server.base + "/ready").status_code == 503
        assert httpx.get(server.base + "/health").status_code == 200


def test_no_prompt_and_no_key_is_in_the_log():
    secret, key = "Xanadu-is-what-I-asked", "a-key-that-nobody-may-read"
    server = Process(pause=0.0, NOMOAT_KEY=key)
    json_type = {"content-type": "application/json"}
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {secret}"}, {}):
        with httpx.Client(base_url=server.base + "/v1", headers=headers) as client:
            for stream in (False, True):
                message = {"role": "user", "content": secret}
                client.post("/chat/completions", json={"model": "tiny", "messages": [message], "stream": stream})
                client.post("/completions", json={"prompt": secret + " error", "stream": stream})
                client.post("/responses", json={"input": secret, "instructions": secret, "stream": stream})
            client.post("/completions", json={"prompt": secret, "temperature": secret})
            client.post("/completions", content=f'{{"prompt": "{secret}', headers=json_type)
            client.post("/completions", json={"model": secret, "prompt": "x"})
            client.post("/embeddings", json={"input": [secret]})
            client.get(f"/models/{secret}?{secret}", headers={"origin": secret})
            client.get(f"/{secret}")
            client.post("/crash", json={"prompt": secret})
    code, said = server.end()
    assert code == 0
    assert secret not in said
    assert key not in said


def test_a_fault_of_ours_is_logged_by_place_alone(caplog):
    with running() as server:

        async def crash():
            raise RuntimeError("the secret prompt")

        server.server.app.add_api_route("/crash", crash)
        answer = httpx.get(server.base + "/crash")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "RuntimeError" in caplog.text
    assert re.search(r'test_serve_safety\.py", line \d+, in crash', caplog.text)
    assert "secret prompt" not in re.sub(r"raise RuntimeError.*", "", caplog.text)


def test_nothing_is_left_over_after_many_requests_with_every_tenth_leaving(web):
    with running(endless, pause=0.001) as server:
        port = int(server.base.rpartition(":")[2])

        def one(number):
            body = {**HI, "max_tokens": 5, "stream": number % 2 == 0}
            if number % 10:
                return web.post(f"{server.base}/v1/chat/completions", json=body).status_code
            text = json.dumps({**body, "max_tokens": 1000})
            with socket.create_connection(("127.0.0.1", port)) as plug:
                head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                plug.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
            return 200

        assert {one(number) for number in range(100)} == {200}
        engine: ScriptedEngine = server.made[0].engine
        until(lambda: not engine.jobs)
        until(lambda: not server.server.mailbox.answers)


def test_a_chat_that_cannot_fit_is_not_even_rendered(open_one, monkeypatch):
    monkeypatch.setattr(open_one.made[0].chat, "tokens", None)
    body = {"messages": [{"role": "user", "content": "x" * 4_000_000}]}
    answer = httpx.post(open_one.base + "/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_embeddings_end_at_the_deadline_too(open_one):
    with running(settings=Settings(deadline_seconds=0.0)) as server:
        answer = httpx.post(server.base + "/v1/embeddings", json={"input": ["x"] * 1000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
