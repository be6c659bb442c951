"""Teachers: a run answers like a server, many threads at once; an address fails in words, and never shows its key."""

from __future__ import annotations

import json
import threading
import time

import pytest
from oracle import chatty, completion, oracle

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.core.teacher import Answers
from nomoat.hub import fetch as fetching
from nomoat.teachers import TeacherError, open_teacher

HELLO = [{"role": "user", "content": "Hello?"}]
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NOMOAT_KEY"):
        monkeypatch.delenv(name, raising=False)


def opened(server, **given):
    return open_teacher(server.where, "Apache-2.0", "none", **given)


def test_an_address_answers_with_what_was_asked():
    with oracle(lambda body: completion("Hello!", prompt_tokens=7, completion_tokens=3)) as server:
        with opened(server) as teacher:
            assert isinstance(teacher, Answers)
            said = teacher.answer(HELLO, max_tokens=9, temperature=0.5, top_p=0.9, seed=4)
        assert (said.text, said.prompt_tokens, said.completion_tokens, said.finish) == ("Hello!", 7, 3, "stop")
        assert (teacher.name, teacher.licence, teacher.terms) == ("tiny", "Apache-2.0", "")
        wanted = {"model": "tiny", "messages": HELLO, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 4}
        assert server.asked == [wanted]
        assert "Authorization" not in server.heads[0]


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        (completion("", "stop"), "refused"),
        (completion("", "length"), "length"),
        (completion("Half a", "length"), "length"),
        (completion("", "content_filter"), "refused"),
        ({"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}, "refused"),
        ({"choices": [{"message": {"content": "Yes."}}], "usage": None}, "stop"),
    ],
)
def test_how_an_answer_ended(reply, finish):
    with oracle(lambda body: reply) as server, opened(server) as teacher:
        assert teacher.answer(HELLO).finish == finish


@pytest.mark.parametrize("reply", [[], {}, {"choices": []}, {"choices": [{"message": {"content": 3}}]}, "text", None])
def test_json_of_another_form_is_no_answer(reply):
    with oracle(lambda body: (200, json.dumps(reply))) as server, opened(server) as teacher:
        with pytest.raises(TeacherError, match="not OpenAI's") as caught:
            teacher.answer(HELLO)
        assert not caught.value.lasting


def in_turn(*replies):
    left = [*replies]
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    "bad",
    [
        (200, json.dumps(completion("Hello!"))[:40]),
        (200, json.dumps(completion("Hello!")), (), 40),
        (500, "{}"),
        (503, "busy"),
        (429, "", (("Retry-After", "0"),)),
    ],
    ids=["half a JSON", "cut off", "500", "503", "429"],
)
def test_what_may_pass_is_tried_again_and_counted(bad):
    with oracle(in_turn(bad, bad, completion("Hello!"))) as server, opened(server) as teacher:
        assert teacher.answer(HELLO).text == "Hello!"
        assert (len(server.asked), teacher.sent_again) == (3, 2)
    with oracle(lambda body: bad) as server, opened(server) as teacher:
        with pytest.raises(TeacherError):
            teacher.answer(HELLO)
        assert len(server.asked) == fetching.TRIES


def test_a_server_is_asked_again_when_it_says(monkeypatch):
    slept = []
    monkeypatch.setattr(fetching.time, "sleep", slept.append)
    replies = ((429, "", (("Retry-After", "7"),)), (503, "", (("Retry-After", "soon"),)), completion("Hi"))
    with oracle(in_turn(*replies)) as server, opened(server) as teacher:
        assert teacher.answer(HELLO).text == "Hi"
    assert [seconds for seconds in slept if seconds > 0] == [7.0]


def test_a_teacher_that_times_out():
    def never(request):
        time.sleep(0.3)

    slow = oracle(lambda body: never)
    with slow as server, opened(server, seconds=0.05) as teacher, pytest.raises(TeacherError, match="timed out"):
        teacher.answer(HELLO)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_is_said_once_and_the_key_never(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    reply = (status, json.dumps({"error": {"message": f"the key {KEY} may not ask for `tiny`"}}))
    with oracle(lambda body: reply) as server, opened(server, key="MY_KEY") as teacher:
        with pytest.raises(TeacherError) as caught:
            teacher.answer(HELLO)
        assert len(server.asked) == 1
        assert server.heads[0]["Authorization"] == f"Bearer {KEY}"
    assert caught.value.lasting
    assert KEY not in str(caught.value) + repr(vars(teacher).get("name")) + str(caught.value.__cause__)
    assert {401: "key", 403: "key", 404: "`tiny`"}[status] in str(caught.value)


def test_what_the_server_says_of_a_bad_request_is_told():
    said = json.dumps({"error": {"message": "max_tokens is too large"}})
    strict = oracle(lambda body: (400, said))
    with strict as server, opened(server) as teacher, pytest.raises(TeacherError, match="max_tokens is too large"):
        teacher.answer(HELLO)


def test_a_key_from_a_file(tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    with oracle(lambda body: completion("Hi")) as server, opened(server, key=str(tmp_path / "key")) as teacher:
        teacher.answer(HELLO)
        assert server.heads[0]["Authorization"] == f"Bearer {KEY}"
    with pytest.raises(ConfigError, match="no key"):
        open_teacher("http://127.0.0.1:9/v1#m", "MIT", "none", key=str(tmp_path / "absent"))


def test_a_key_is_sent_on_to_nobody(monkeypatch):
    monkeypatch.setenv("NOMOAT_KEY", KEY)
    with oracle() as other, oracle(lambda body: (307, "", (("Location", other.where.partition("#")[0]),))) as server:
        with opened(server) as teacher, pytest.raises(TeacherError, match="leads elsewhere"):
            teacher.answer(HELLO)
        assert not other.asked


@pytest.mark.parametrize(
    ("where", "licence", "terms", "said"),
    [
        ("http://127.0.0.1:9/v1#m", None, "none", "licence"),
        ("http://127.0.0.1:9/v1#m", "MIT", None, "terms"),
        ("http://127.0.0.1:9/v1#m", " ", "", "licence and terms"),
        ("http://127.0.0.1:9/v1", "MIT", "none", "names no model"),
        ("ftp://127.0.0.1/v1#m", "MIT", "none", "no address"),
        ("http:///v1#m", "MIT", "none", "no address"),
        (f"http://me:{KEY}@127.0.0.1/v1#m", "MIT", "none", "no user"),
    ],
)
def test_what_an_address_must_say(where, licence, terms, said):
    with pytest.raises(ConfigError, match=said) as caught:
        open_teacher(where, licence, terms)
    assert KEY not in str(caught.value)


def test_nobody_is_there():
    teacher = open_teacher("http://127.0.0.1:9/v1#m", "MIT", "none", seconds=0.5)
    with pytest.raises(TeacherError, match="cannot be reached"):
        teacher.answer(HELLO)


def test_a_run_answers_many_threads_at_once_and_each_as_if_alone(runs_root):
    run = chatty(runs_root)
    with open_teacher(run) as teacher:
        assert isinstance(teacher, Answers)
        assert teacher.licence == "unknown"
        alone = [teacher.answer(HELLO, max_tokens=12, seed=number) for number in range(6)]
        together = [None] * 6

        def ask(number):
            together[number] = teacher.answer(HELLO, max_tokens=12, seed=number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert together == alone
        assert len({answer.text for answer in alone}) > 1
        assert all(answer.prompt_tokens and answer.completion_tokens for answer in alone)
        with pytest.raises(ConfigError, match="too long"):
            teacher.answer([{"role": "user", "content": "word " * 5000}])
    with pytest.raises(NomoatError):
        teacher.answer(HELLO)


def test_the_licence_of_a_run_is_that_of_its_ledger(runs_root):
    run = chatty(runs_root)
    run.write_json("ledger.json", {"licence": "Apache-2.0", "evidence": "its card"})
    with open_teacher(run) as teacher:
        assert teacher.licence == "Apache-2.0"
    shares = [{"licence": name, "bytes": 3} for name in ("MIT", "CC-BY-4.0")]
    run.write_json("ledger.json", {"shares": shares})
    with open_teacher(run, terms="none") as teacher:
        assert (teacher.licence, teacher.terms) == ("CC-BY-4.0 AND MIT", "")
