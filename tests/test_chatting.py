"""nomoat chat: through a pipe, as JSON, and at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from folders import TINY, notes

from nomoat import verbs
from nomoat.cli import main
from nomoat.core.errors import ConfigError, RunError
from nomoat.hub import pull

LONGER = ("data.context_length=128", "family.context_length=128", "budget=10steps")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs with one small model in it."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOMOAT_RUNS", str(place / "runs"))
        return verbs.train("gpt-small", (f"data.path={notes(place / 'notes')}", *TINY, *LONGER), "cpu")


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("NOMOAT_RUNS", str(trained.path.parent))
    return trained


def chat(monkeypatch, capfd, typed, *options, code=0):
    capfd.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", "last", "--device", "cpu", "--max-tokens", "8", *options]) == code
    return capfd.readouterr()


def events(monkeypatch, capfd, typed, *options, code=0):
    lines = chat(monkeypatch, capfd, typed, "--json", *options, code=code).out.splitlines()
    return [json.loads(line) for line in lines]


def test_each_line_of_a_pipe_is_a_message(here, monkeypatch, capfd):
    out, err = chat(monkeypatch, capfd, "the cat\n\nthe dog\n")
    assert out
    assert "\x1b" not in out
    assert err.count("was not taught to chat") == 1
    assert len(err.splitlines()) == 1


def test_json_tells_pieces_answers_and_the_whole_conversation(here, monkeypatch, capfd):
    told = events(monkeypatch, capfd, "the cat\nthe dog\n", "--system", "Be brief.", "--seed", "3")
    answers = [event for event in told if event["kind"] == "answer"]
    assert told[0]["kind"] == "warning"
    assert len(answers) == 2
    assert answers[0]["reused"] == 0
    assert answers[1]["reused"] > 0
    assert {"text", "reason", "read", "written", "first_seconds", "seconds", "tokens_per_second"} <= answers[0].keys()
    result = told[-1]
    assert result["kind"] == "result"
    assert [message["role"] for message in result["messages"]] == ["system", *["user", "assistant"] * 2]
    assert result["messages"][2]["content"] == answers[0]["text"]
    first = told[: told.index(answers[0])]
    assert "".join(event["text"] for event in first if event["kind"] == "text").strip() == answers[0]["text"]
    again = events(monkeypatch, capfd, "the cat\nthe dog\n", "--system", "Be brief.", "--seed", "3")
    assert again[-1]["messages"] == result["messages"]
    other = events(monkeypatch, capfd, "the cat\nthe dog\n", "--system", "Be brief.", "--seed", "4")
    assert other[-1]["messages"] != result["messages"]


def test_commands(here, monkeypatch, capfd, tmp_path):
    kept = tmp_path / "talk.json"
    typed = f"""the cat
/stats
/save {kept}
/retry
/undo
/system Be brief.
the dog
/seed 7
/temperature 0
/new
the rain
/help
/load {kept}
the sun
/exit
never read
"""
    told = events(monkeypatch, capfd, typed)
    saved = json.loads(kept.read_text())["messages"]
    texts = [message["content"] for message in told[-1]["messages"]]
    assert texts[:2] == [message["content"] for message in saved]
    assert texts[0] == "the cat"
    assert texts[2] == "the sun"
    assert len(texts) == 4
    notes_said = [event["text"] for event in told if event["kind"] == "note"]
    assert any("tokens read" in note for note in notes_said)
    assert any("/temperature" in note for note in notes_said)
    assert any(note.startswith("taken back: the cat") for note in notes_said)
    assert told[-1]["answers"] == 5
    answers = [event["text"] for event in told if event["kind"] == "answer"]
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/sytem x", "/system"),
        ("/seed x", "a number"),
        ("/temperature -1", "temperature"),
        ("/undo", "nothing to take back"),
        ("/retry", "nothing to take back"),
        ("/load nowhere.json", "nowhere.json"),
        ("word " * 300, "too long"),
    ],
)
def test_what_goes_wrong_ends_a_pipe_with_an_error(here, monkeypatch, capfd, line, part):
    told = events(monkeypatch, capfd, line + "\n", code=1 if "load" in line else 2)
    assert told[-1]["kind"] == "error"
    assert part.strip("/") in " ".join(str(value) for value in told[-1].values())


def test_a_file_that_holds_no_conversation(here, monkeypatch, capfd, tmp_path):
    for number, text in enumerate(("{", "[]", '{"messages": 3}', '{"messages": [{"role": 3}]}')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        assert events(monkeypatch, capfd, f"/load {path}\n", code=2 if number > 1 else 1)[-1]["kind"] == "error"


def test_the_library_s_verb(here):
    told = []
    talk = verbs.chat("last", "Be brief.", "cpu", told.append, max_tokens=5, seed=2)
    assert "".join(talk.say("the cat")).strip() == talk.answers[0].text
    assert talk.messages[0]["role"] == "system"
    assert [event["kind"] for event in told] == ["warning"]
    with pytest.raises(ConfigError, match="temperature"):
        verbs.chat("last", temprature=1)


def test_a_run_with_a_template_of_its_own_says_nothing(here, tmp_path, monkeypatch):
    import shutil

    run = shutil.copytree(here.path, tmp_path / "taught")
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
    )
    (run / "chat.json").write_text(json.dumps({"template": source, "bos": None, "eos": "<|endoftext|>", "stops": []}))
    told = []
    talk = verbs.chat(run, device="cpu", watch=told.append, max_tokens=3)
    assert [*talk.say("the cat")]
    assert told == []
    (run / "chat.json").write_text(json.dumps({"template": "{% for %}"}))
    assert main(["chat", str(run)]) == 1


def test_a_model_that_could_be_pulled_is_not_just_missing(runs_root, monkeypatch, capsys):
    with pytest.raises(RunError) as error:
        verbs.chat("hf:owner/name")
    assert error.value.fix == "nomoat pull hf:owner/name"
    monkeypatch.setitem(pull.KNOWN["names"], "small-one", {})
    assert main(["chat", "small-one"]) == 1
    assert "nomoat pull small-one" in capsys.readouterr().err
    with pytest.raises(RunError) as error:
        verbs.chat("no-such")
    assert "pull" not in error.value.fix


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("from nomoat.cli import main; main(['chat', '--help'])", ("torch", "jinja2", "llguidance", "numpy")),
        ("import nomoat.data.chat", ("torch", "llguidance")),
        ("import nomoat.sampling.constrain", ("llguidance", "jinja2")),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, never):
    code += f"; import sys; print('found:', *[name for name in {never!r} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "found:"


COMMAND = ["chat", "last", "--device", "cpu", "--seed", "1", "--max-tokens", "9", "--temperature", "0"]


class Terminal:
    """A process at a terminal, and what it has shown."""

    def __init__(self, *arguments):
        self.here, there = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "nomoat.cli", *arguments]
        self.process = subprocess.Popen(
            command, stdin=there, stdout=there, stderr=there, env=environment, start_new_session=True
        )
        os.close(there)
        self.shown = ""

    def until(self, text, seconds=60):
        """Read until `text` is shown; returns what was shown since the last time."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} is not in {self.shown!r}"
            self.read(0.1)
        before, found, self.shown = self.shown.partition(text)
        assert found, f"{text!r} is not in {before!r}"
        return before + found

    def read(self, seconds):
        if select.select([self.here], [], [], seconds)[0]:
            self.shown += os.read(self.here, 4096).decode(errors="replace")

    def type(self, text):
        os.write(self.here, text.encode())


def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(here):
    terminal = Terminal(*COMMAND)
    try:
        assert "/help lists the commands" in terminal.until("> ")
        terminal.type("/nothing\n")
        assert "there is no command /nothing" in terminal.until("fix: ")
        terminal.until("> ")
        terminal.type("the cat \\\nsat on\n")
        terminal.until("| ")
        assert "\x1b[2m" in terminal.until("tokens/s")
        terminal.until("> ")
        terminal.type("/undo\n")
        assert "the cat \r\nsat on" in terminal.until("> ").partition("taken back: ")[2]
        terminal.type("one two\n")
        terminal.until("remembered")
        terminal.until("> ")
        for _ in range(20):  # one that comes between the prompt and the wait for a key is only seen with the next key
            time.sleep(1)
            terminal.process.send_signal(signal.SIGINT)
            with suppress(AssertionError):
                terminal.until("> ", 2)
                break
        terminal.type("/stats\n")
        terminal.until("2 answers")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.here)


def test_ctrl_c_in_an_answer_ends_it_and_keeps_what_was_said(here, monkeypatch, capfd):
    """As at a terminal, with the model as slow as it takes."""
    from nomoat.cli.chatting import Session
    from nomoat.cli.output import Lines

    talk = verbs.chat("last", device="cpu", max_tokens=100, temperature=0)
    inner = talk.model.decode
    count = 0

    def decode(*given, **more):
        nonlocal count
        count += 1
        if count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*given, **more)

    monkeypatch.setattr(talk.model, "decode", decode)
    session = Session(Lines(), talk)
    session.typed = True
    before = signal.getsignal(signal.SIGINT)
    lines = iter(["the cat", "the dog"])

    def line():
        text = next(lines, None)
        if text is None:
            raise EOFError
        return text

    session._line = line
    session.run()
    assert [answer.reason for answer in talk.answers] == ["cancelled", talk.answers[1].reason]
    assert talk.answers[0].written == 3
    assert talk.answers[1].reason != "cancelled"
    assert len(talk.messages) == 4
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped" in capfd.readouterr().out
