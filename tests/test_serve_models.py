"""The models of a server: by name, when they are asked for, freed when idle; what Prometheus reads; the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from serving import Named, reader, running, until  # noqa: E402

from nomoat.cli import main  # noqa: E402
from nomoat.cli.serving import LISTENING  # noqa: E402
from nomoat.core.errors import CheckpointError  # noqa: E402
from nomoat.core.run import Run  # noqa: E402
from nomoat.serve.measures import Histogram  # noqa: E402
from nomoat.serve.models import Models, Settings  # noqa: E402
from nomoat.serve.start import serve  # noqa: E402


def say(server, model, words=b"x"):
    return httpx.post(server.base + "/v1/completions", json={"model": model, "prompt": words.decode()})


def loaded(server):
    return {model["id"]: model["loaded"] for model in httpx.get(server.base + "/v1/models").json()["data"]}


def test_the_first_is_loaded_at_once_and_the_others_when_asked_for():
    with running(names=("one", "two", "three")) as server:
        assert loaded(server) == {"one": True, "two": False, "three": False}
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(say(server, "two"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.json()["model"] for answer in answers] == ["two"] * 4
        assert [served.name for served in server.made] == ["one", "two"]
        assert say(server, "").json()["model"] == "one"
        assert say(server, "four").status_code == 404


def test_idle_models_are_freed_and_come_back():
    with running(lambda ask, row: [120] * 80, settings=Settings(idle_minutes=0.3 / 60), pause=0.01) as server:
        body = {"prompt": "x", "max_tokens": 80}
        assert httpx.post(server.base + "/v1/completions", json=body).status_code == 200  # longer than it may idle
        assert len(server.made) == 1
        until(lambda: not loaded(server)["tiny"])
        assert server.made[0].engine.closed
        assert httpx.get(server.base + "/ready").status_code == 200
        assert say(server, "tiny").status_code == 200
        assert len(server.made) == 2


def test_a_run_has_two_names(tmp_path):
    models = Models({"last": Named("2026-01-01-notes"), "b": Named("b")}, Settings(), reader())
    assert models.described("last") == models.described("2026-01-01-notes")
    assert models.described("last")["id"] == "2026-01-01-notes"
    assert list(models.runs) == ["2026-01-01-notes", "b"]


def test_while_the_first_is_loading_the_server_is_alive_but_not_ready():
    gate, base = threading.Event(), []

    def slowly(run, settings):
        gate.wait(10)
        return reader()(run, settings)

    from nomoat.serve.app import Server
    from nomoat.serve.start import Listening

    listening = Listening(Server(Models({"tiny": Named("tiny")}, Settings(port=0), slowly)), base.append)
    thread = threading.Thread(target=listening.run)
    thread.start()
    until(lambda: base)
    assert httpx.get(base[0] + "/health").status_code == 200
    assert httpx.get(base[0] + "/ready").status_code == 503
    assert httpx.get(base[0] + "/ready").headers["retry-after"] == "1"
    gate.set()
    until(lambda: httpx.get(base[0] + "/ready").status_code == 200)
    listening.should_exit = True
    thread.join(10)


def test_a_first_model_that_cannot_be_loaded_ends_the_server():
    def broken(run, settings):
        raise CheckpointError("no checkpoint of tiny is good")

    with pytest.raises(CheckpointError, match="no checkpoint of tiny"):
        serve({"tiny": Named("tiny")}, Settings(port=0), lambda base: None, reader=broken)


def test_another_that_cannot_be_loaded_is_an_error_of_its_own(caplog):
    good = reader()

    def read(run, settings):
        if run.name == "two":
            raise CheckpointError("no checkpoint of two is good")
        return good(run, settings)

    read.made = good.made
    with running(names=("one", "two"), read=read) as server:
        answer = say(server, "two")
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert say(server, "one").status_code == 200
    assert "no checkpoint of two is good" in caplog.text


def test_prometheus_reads_the_metrics():
    parser = pytest.importorskip("prometheus_client.parser")
    with running(pause=0.002, names=('a "quoted" \\ name', "two")) as server:
        body = {"prompt": "hi", "max_tokens": 10}
        for _ in range(3):
            httpx.post(server.base + "/v1/completions", json=body)
        say(server, "none")
        page = httpx.get(server.base + "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in parser.text_string_to_metric_families(page.text)}
    assert {family.type for family in found.values()} == {"counter", "gauge", "histogram"}
    values = {
        (sample.name, sample.labels.get("le"), sample.labels.get("status")): sample.value
        for family in found.values()
        for sample in family.samples
    }
    assert values["nomoat_prompt_tokens_total", None, None] == 9
    assert values["nomoat_generated_tokens_total", None, None] == 30
    assert values["nomoat_http_responses_total", None, "404"] == 1
    assert values["nomoat_time_to_first_token_seconds_count", None, None] == 3
    assert values["nomoat_inter_token_seconds_count", None, None] == 27
    assert 27 * 0.001 < values["nomoat_inter_token_seconds_sum", None, None] < 27 * 0.2
    assert values["nomoat_inter_token_seconds_bucket", "+Inf", None] == 27
    for name in ("requests_queued", "requests_active", "slots_free", "prefix_tokens_reused", "requests_cancelled"):
        assert f"nomoat_{name}" in found
    assert found["nomoat_slots_free"].samples[0].labels == {"model": 'a "quoted" \\ name'}


def test_the_buckets_of_a_histogram_add_up():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    assert histogram.lines("x", 'a="b"') == [
        'x_bucket{a="b",le="0.1"} 2',
        'x_bucket{a="b",le="1.0"} 3',
        'x_bucket{a="b",le="+Inf"} 4',
        f'x_sum{{a="b"}} {0.05 + 0.1 + 0.5 + 7.0!r}',
        'x_count{a="b"} 4',
    ]


def test_the_command_hands_its_options_on_and_says_how_to_use_it(monkeypatch, capsys):
    given = {}

    def start(runs, settings, told):
        given.update(runs=runs, settings=settings)
        told("http://127.0.0.1:4711")

    monkeypatch.setattr("nomoat.serve.start.serve", start)
    monkeypatch.setattr(Run, "open", classmethod(lambda cls, where: Named(f"run-of-{where}")))
    monkeypatch.setenv("NOMOAT_KEY", "a-key-of-some-letters")
    words = "serve a b --port 0 --slots 3 --idle 5 --bits 8 --origin https://x.example --drain 0 --device cpu"
    assert main(words.split()) == 0
    assert {typed: run.name for typed, run in given["runs"].items()} == {"a": "run-of-a", "b": "run-of-b"}
    assert given["settings"] == Settings(
        port=0,
        keys=("a-key-of-some-letters",),
        origins=("https://x.example",),
        slots=3,
        idle_minutes=5.0,
        drain_seconds=0.0,
        bits=8,
        device="cpu",
    )
    said = capsys.readouterr().out
    assert "http://127.0.0.1:4711/v1" in said
    assert "curl " in said
    assert "openai" in said
    assert "a-key-of-some-letters" not in said


def test_the_lines_that_are_shown_work():
    with running(settings=Settings(keys=("a-key-of-some-letters",))) as server:
        fields = {"base": server.base, "name": "tiny", "names": "tiny"}
        shown = LISTENING.format(**fields, header=" -H 'authorization: Bearer KEY'", key="KEY")
        _, *commands = shown.replace("KEY", "a-key-of-some-letters").split("\n\n")
        assert [command.split()[0] for command in commands] == ["curl", "python"]
        for command in commands:
            if shutil.which(command.split()[0]):
                command = command.replace("python ", f"{sys.executable} ", 1)
                done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
                assert "Hello, w" in done.stdout


def test_without_a_key_no_other_address_is_listened_on(monkeypatch, capsys):
    monkeypatch.delenv("NOMOAT_KEY", raising=False)
    monkeypatch.setattr(Run, "open", classmethod(lambda cls, where: Named("tiny")))
    assert main(["serve", "tiny", "--host", "0.0.0.0"]) == 2
    assert "no key is set" in capsys.readouterr().err


def test_what_serves_is_imported_by_its_verb_alone():
    code = "import sys, nomoat, nomoat.verbs, nomoat.cli.serving; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"fastapi", "uvicorn", "pydantic", "jinja2", "llguidance", "torch"} & set(loaded)


def test_events_of_the_engine_reach_the_loop_in_batches():
    """Many tokens from a fast engine cost few wake-ups; none is lost, and each is a chunk of its own."""
    with running(lambda ask, row: list(b"x" * 1500)) as server:
        start = time.perf_counter()
        body = {"prompt": ["a"] * 8, "max_tokens": 1500, "stream": True}
        with httpx.stream("POST", server.base + "/v1/completions", json=body) as answer:
            count = sum('"text":"x"' in line for line in answer.iter_lines())
        assert count == 8 * 1500
        assert time.perf_counter() - start < 10
