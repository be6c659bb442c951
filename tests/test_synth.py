"""nomoat synth: what has come is kept and never asked again, the cap holds, the forecast comes, and bad input is said.

A few kills here; NOMOAT_KILLS=50 for the long proof.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from oracle import completion, inventive, oracle

from nomoat.cli import main
from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.ledger import summarise
from nomoat.core.recipe import find, listing
from nomoat.core.teacher import Answer
from nomoat.data import synth_methods
from nomoat.data.answers import Store, key_of
from nomoat.data.synth import METHODS, Draft, Seed, Synth, read_seeds
from nomoat.hub import fetch as fetching
from nomoat.synthesising import synth
from nomoat.teachers import TeacherError

KILLS = int(os.environ.get("NOMOAT_KILLS", "3"))
TASKS = ("Write a poem about rain.", "Sort these numbers: 3, 1, 2.", "Explain how a lock works.")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NOMOAT_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps({"instruction": task, "output": "Here."}) + "\n" for task in TASKS))
    return str(path)


class Scripted:
    """Answers in this process."""

    name, licence, terms = "scripted", "Apache-2.0", ""

    def __init__(self, script=inventive):
        self.script, self.asked, self.lock = script, [], threading.Lock()

    def answer(self, messages, **options):
        with self.lock:
            self.asked.append((messages[-1]["content"], options["seed"]))
        said = self.script({"messages": list(messages), **options})
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Answer):
            return said
        usage = said["usage"]
        choice = said["choices"][0]
        counts = usage["prompt_tokens"], usage["completion_tokens"]
        return Answer(choice["message"]["content"], *counts, choice["finish_reason"])


def recipe(seeds, **changes):
    plain = {"teacher": "nobody", "seeds": seeds, "seeds_licence": "CC0-1.0", "count": 12, "concurrency": 4, "ahead": 8}
    return Synth("A test.", **{**plain, **changes})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_say_where_they_come_from(seeds, tmp_path):
    events = []
    made = synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted(), watch=events.append)
    rows = lines(made.path / "rows.jsonl")
    assert len(rows) == made.report["rows"] == 12
    known = {Seed(task).hash for task in TASKS} | {Seed(row["messages"][0]["content"]).hash for row in rows}
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["origin"] == {"teacher": "scripted", "licence": "Apache-2.0", "terms": ""}
        assert row["licence"] == "Apache-2.0 AND CC0-1.0"
        assert row["method"] == "self-instruct"
        assert row["generation"] >= 1
        assert set(row["derived_from"]) <= known
    ledger = json.loads((made.path / "ledger.json").read_text())
    assert ledger["shares"][0]["documents"] == 12
    assert ledger["generation"] == max(row["generation"] for row in rows)
    assert "12 of 12 rows" in (made.path / "card.md").read_text()
    forecast = next(event for event in events if event["kind"] == "forecast")
    assert forecast["rows"] == 12
    assert 0.5 < forecast["tokens"] / sum(made.report["cost"][k] for k in ("prompt_tokens", "completion_tokens")) < 2


def test_the_same_command_asks_for_nothing_again_and_more_rows_only_for_more(seeds, tmp_path):
    teacher = Scripted()
    first = synth(recipe(seeds), output=tmp_path / "out", teacher=teacher)
    rows, asked = (first.path / "rows.jsonl").read_bytes(), len(teacher.asked)
    again = synth(recipe(seeds), output=tmp_path / "out", teacher=teacher)
    assert len(teacher.asked) == asked
    assert (again.path / "rows.jsonl").read_bytes() == rows
    assert again.report["cost"]["answers"] == asked
    more = synth(recipe(seeds), ("count=20", "concurrency=2"), output=tmp_path / "out", teacher=teacher)
    assert len(set(teacher.asked)) == len(teacher.asked)
    assert (more.path / "rows.jsonl").read_bytes().startswith(rows)
    assert more.report["rows"] == 20


def test_every_answer_is_on_disk_before_it_is_used(seeds, tmp_path, monkeypatch):
    stored, used = set(), []
    keep, use = Store.answered, synth_methods.read
    monkeypatch.setattr(Store, "answered", lambda s, key, answer, x: (keep(s, key, answer, x), stored.add(answer.text)))
    monkeypatch.setattr(synth_methods, "read", lambda m, d, text: used.append(text in stored) or use(m, d, text))
    synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted())
    assert used
    assert all(used)


@pytest.mark.parametrize("cap", ["1500tokens", "0.002EUR"])
def test_the_cap_is_never_passed_and_can_be_raised(seeds, tmp_path, cap):
    teacher, events = Scripted(), []
    tight = recipe(seeds, cap=cap, price=(1.0, 2.0), max_tokens=40, count=400)
    made = synth(tight, output=tmp_path / "out", teacher=teacher, watch=events.append)
    cost = made.report["cost"]
    spent = cost["money"] / 0.002 if "EUR" in cap else (cost["prompt_tokens"] + cost["completion_tokens"]) / 1500
    assert 0.5 < spent <= 1
    assert made.report["status"] == f"stopped at the cap of {cap}"
    before = len(teacher.asked)
    synth(tight, output=tmp_path / "out", teacher=teacher)
    assert len(teacher.asked) <= before + 4  # alone, one may fit that did not fit beside others
    wider = synth(tight, ("cap=", "count=30"), output=tmp_path / "out", teacher=teacher)
    assert wider.report["status"] == "done"
    assert len(set(teacher.asked)) == len(teacher.asked)


def test_a_cap_in_time_stops(seeds, tmp_path):
    def slow(body):
        time.sleep(0.02)
        return inventive(body)

    made = synth(recipe(seeds, cap="0.2s", count=5000), output=tmp_path / "out", teacher=Scripted(slow))
    assert made.report["status"] == "stopped at the cap of 0.2s"
    assert made.report["rows"] < 5000


def said(text, **kind):
    return lambda body: completion(text, **kind)


def test_a_teacher_that_repeats_itself_is_stopped(seeds, tmp_path):
    events, teacher = [], Scripted(said("1. Write the same thing again.\n2. Write the same thing again."))
    made = synth(recipe(seeds), output=tmp_path / "out", teacher=teacher, watch=events.append)
    assert "repeats itself" in made.report["status"]
    assert any("repeats itself" in event.get("text", "") for event in events)
    assert len(teacher.asked) < 60


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help with that.", "As an AI language model, I do not", ""])
def test_refusals_are_left_out_and_end_it(seeds, tmp_path, text):
    answer = Answer(text, 9, 9, "refused" if not text else "stop")
    made = synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted(lambda body: answer))
    assert made.report["rows"] == 0
    assert set(made.report["dropped"]) == {"refused"}
    assert made.report["status"].startswith("stopped")


def test_a_teacher_that_counts_nothing_is_estimated(seeds, tmp_path):
    def silent(body):
        return Answer(inventive(body)["choices"][0]["message"]["content"])

    cost = synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted(silent)).report["cost"]
    assert cost["estimated_here"] == cost["answers"]
    assert cost["prompt_tokens"] > 0


def test_one_request_that_always_fails_is_passed_over(seeds, tmp_path):
    bad = []

    def script(body):
        text = body["messages"][-1]["content"]
        if not bad and "List" not in text:
            bad.append(text)
        return TeacherError("timed out") if text in bad else inventive(body)

    made = _passed_over(seeds, tmp_path, script)
    assert made.report["rows"] == 12
    assert made.report["dropped"]["no answer"] == 1


def _passed_over(seeds, tmp_path, script):
    for _ in range(3):  # alone, a request that fails three times looks like a teacher that has gone
        try:
            return synth(recipe(seeds, concurrency=1), output=tmp_path / "out", teacher=Scripted(script))
        except TeacherError:
            continue
    raise AssertionError


def test_a_teacher_that_has_gone_stops_it_and_the_same_command_goes_on(seeds, tmp_path):
    had = []

    def script(body):
        if len(had) == 20:
            return TeacherError("timed out")
        had.append((body["messages"][-1]["content"], body["seed"]))
        return inventive(body)

    with pytest.raises(TeacherError, match="goes on where it stopped"):
        synth(recipe(seeds, count=30, concurrency=1), output=tmp_path / "out", teacher=Scripted(script))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["cost"]["answers"] == 20
    assert report["status"].startswith("stopped")
    teacher = Scripted()
    whole = synth(recipe(seeds, count=30), output=tmp_path / "out", teacher=teacher)
    fresh = synth(recipe(seeds, count=30), output=tmp_path / "other", teacher=Scripted())
    assert (whole.path / "rows.jsonl").read_bytes() == (fresh.path / "rows.jsonl").read_bytes()
    assert not {*teacher.asked} & {*had}


def test_ctrl_c_keeps_all_that_is_on_its_way(seeds, tmp_path, monkeypatch):
    count = []
    use = synth_methods.read

    def interrupted(method, draft, text):
        count.append(text)
        if len(count) == 6:
            raise KeyboardInterrupt
        return use(method, draft, text)

    monkeypatch.setattr(synth_methods, "read", interrupted)
    teacher = Scripted()
    with pytest.raises(KeyboardInterrupt):
        synth(recipe(seeds), output=tmp_path / "out", teacher=teacher)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["cost"]["answers"] == len(teacher.asked)
    assert report["status"] == "stopped"


def test_a_key_that_is_wrong(seeds, tmp_path):
    with oracle(lambda body: (401, "{}")) as server:
        with pytest.raises(TeacherError, match="key is missing or wrong"):
            synth(recipe(seeds, teacher=server.where, licence="MIT", terms="none"), output=tmp_path / "out")
        assert len(server.asked) <= 4


def test_two_processes_in_one_folder(seeds, tmp_path):
    (tmp_path / "out").mkdir()
    handle = durable.acquire(tmp_path / "out" / "lock")
    with pytest.raises(RunError, match="in use"):
        synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted())
    os.close(handle)
    assert synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted()).report["rows"] == 12


def test_a_disk_that_is_nearly_full_stops_it_before_anything_is_sent(seeds, tmp_path, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    teacher = Scripted()
    with pytest.raises(RunError, match="disk is full"):
        synth(recipe(seeds), output=tmp_path / "out", teacher=teacher)
    assert not teacher.asked


def test_a_disk_that_fills_up_loses_nothing_that_was_kept(seeds, tmp_path):
    store = Store(tmp_path / "out")
    store._base.execute("PRAGMA max_page_count=12")
    kept = 0
    with pytest.raises(RunError, match="disk is full"):
        for kept in range(1000):
            store.sent(key := key_of({"n": kept}, "m", ""), "m", {"n": kept})
            store.answered(key, Answer("word " * 200, 1, 1), 0.0)
    store.close()
    again = Store(tmp_path / "out")
    assert again.spent().answers == kept
    assert all(again.find(key_of({"n": number}, "m", "")) for number in range(kept))
    again.close()


def test_a_store_that_is_no_database(seeds, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 30)
    for _ in range(2):  # and the lock is let go
        with pytest.raises(RunError, match="cannot be used"):
            synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "evl"}, "did you mean `evol`"),
        ({"cap": "0EUR"}, "nothing"),
        ({"cap": "0tokens"}, "nothing"),
        ({"cap": "5steps"}, "cannot be held"),
        ({"cap": "much"}, "not a budget"),
        ({"cap": "2EUR"}, "price of a million"),
        ({"count": 0}, "count must be"),
        ({"nearest": 0.0}, "nearest must"),
        ({"verifier": "numbr"}, "did you mean"),
    ],
)
def test_recipes_that_cannot_work(seeds, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        synth(recipe(seeds, **changes), output=tmp_path / "out", teacher=Scripted())


def test_a_teacher_without_a_licence_is_refused(seeds, tmp_path):
    for given, said in (({}, "licence and terms"), ({"licence": "MIT"}, "terms")):
        with pytest.raises(ConfigError, match=said):
            synth(recipe(seeds, teacher="http://127.0.0.1:9/v1#m", **given), output=tmp_path / "out")
    with pytest.raises(ConfigError, match="names no teacher"):
        synth(recipe(seeds, teacher=""), output=tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "", "empty"),
        ("a.jsonl", "\n\n", "empty"),
        ("a.jsonl", "not json\n", "cannot be read"),
        ("a.jsonl", '{"colour": "red"}\n', "line 1 is no seed"),
        ("a.jsonl", '{"instruction": "Do."}\n["x"]\n', "line 2 is no seed"),
        ("a.json", "[]", "empty"),
        ("a.json", '[{"instruction": 3}]', "row 1 is no seed"),
        ("a.jsonl.gz", "no gzip", "cannot be read"),
        ("a.txt", "", "no seeds"),
    ],
)
def test_seeds_that_are_none(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_seeds(str(tmp_path / name))


def test_seeds_that_are_not_there():
    for where in ("", "/nowhere/at/all"):
        with pytest.raises(DataError, match="no seeds at"):
            read_seeds(where)


def test_seeds_in_the_forms_that_people_have(tmp_path):
    rows = (
        {"instruction": "Add.", "input": "1 2", "output": "3", "licence": "MIT"},
        {"question": "Add?", "answer": "3"},
        {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]},
        {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}], "generation": 2},
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_seeds(str(tmp_path / "a.jsonl"), "CC0-1.0")
    assert [seed.text for seed in found] == ["Add.\n\n1 2", "Add?", "Add.\n\n1 2", "Add."]
    assert [seed.answer for seed in found] == ["3"] * 4
    assert [seed.licence for seed in found] == ["MIT", *["CC0-1.0"] * 3]
    assert [seed.generation for seed in found] == [0, 0, 0, 2]
    (tmp_path / "doc.md").write_text("\n\n".join(f"Paragraph {number}. " + "word " * 100 for number in range(12)))
    passages = read_seeds(str(tmp_path / "doc.md"))
    assert len(passages) > 1
    assert all(0 < len(seed.text) <= 2000 for seed in passages)


def test_methods_write_rows_each_in_its_way(seeds, tmp_path):
    assert {*METHODS} == {*synth_methods.METHODS}
    (tmp_path / "doc.txt").write_text("The river froze in March, and the mill stood still until the thaw.\n")
    for method in METHODS:
        where = seeds if method in ("self-instruct", "evol", "rejection") else str(tmp_path / "doc.txt")
        changes = {"method": method, "seeds": where, "count": 4}
        made = synth(recipe(**{"seeds": where, **changes}), output=tmp_path / method, teacher=Scripted())
        assert made.report["rows"], (method, made.report)
        row = lines(made.path / "rows.jsonl")[0]
        assert row["method"] == method
        if method == "back-translation":
            assert row["messages"][1]["content"].startswith("The river froze")
        if method == "questions":
            assert row["messages"][0]["content"].startswith("The river froze")


def test_evolved_tasks_grow_from_each_other_and_copies_are_left_out():
    parent = Seed("Write a poem about rain.")
    draft = Draft("evolve", parents=(parent,))
    assert synth_methods.read("evol", draft, "Task: " + parent.text) == []
    assert synth_methods.read("evol", draft, "Here is the rewritten task.") == []
    (grown,) = synth_methods.read("evol", draft, "Write a poem about rain in four lines.")
    assert grown.instruction.endswith("four lines.")
    assert grown.row("evol", Scripted())["generation"] == 1


def test_questions_are_read_in_the_forms_that_small_teachers_write_and_nothing_else_is():
    draft = Draft("questions", parents=(Seed("The river froze."),))

    def asked(text):
        found = synth_methods.read("questions", draft, text)
        assert all(each.instruction.startswith("The river froze.") for each in found)
        assert all(each.ask == each.instruction + synth_methods.BRIEFLY for each in found)
        return [each.topic for each in found]

    assert asked("1. What froze?\n2) When did it?\n- Why?\n4. Who saw it?") == ["What froze?", "When did it?", "Why?"]
    assert asked("Question: How is it cut?\n\nPick: 3") == ["How is it cut?"]
    assert asked("Question 1: What froze?\n\nQ2. Who saw it?\nQ: What froze?") == ["What froze?", "Who saw it?"]
    assert asked('Sentence A: "The server is new."\nThe answer is a question.') == []


def test_passages_are_asked_again_while_rows_are_missing(tmp_path):
    (tmp_path / "doc.txt").write_text("The river froze in March, and the mill stood still until the thaw.\n")
    replies = iter(["Nothing.", "1. What froze in March?", "The river.", "1. When did the mill stand still?", "Then."])

    def script(body):
        return completion(next(replies, "Nothing."))

    changes = {"method": "questions", "count": 2, "concurrency": 1}
    made = synth(recipe(str(tmp_path / "doc.txt"), **changes), output=tmp_path / "out", teacher=Scripted(script))
    assert made.report["rows"] == 2


def test_rejection_keeps_right_answers_only(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"question": "What is 2 + 3?", "answer": "#### 5"}) + "\n")
    replies = iter(["2 + 3 = 5\n5", "It is 6.", "2 + 3 = 6, so 5", "Five: 5"])
    lock = threading.Lock()

    def script(body):
        with lock:
            return completion(next(replies))

    changes = {"method": "rejection", "samples": 4, "verifier": "equations", "concurrency": 1}
    made = synth(recipe(str(path), **changes), output=tmp_path / "out", teacher=Scripted(script))
    assert made.report["rows"] == 2
    assert made.report["dropped"] == {"not the reference's number": 1, "an equation that does not hold": 1}
    assert {row["reason"] for row in lines(made.path / "dropped.jsonl")} == {*made.report["dropped"]}


def test_a_judge_keeps_what_is_good_and_says_why(seeds, tmp_path):
    def script(body):
        text = body["messages"][-1]["content"]
        if "Score: N" not in text:
            return inventive(body)
        return completion(("Score: 5", "Flawed. Score: 2", "No idea")[len(text) % 3])

    made = synth(recipe(seeds, judge="teacher", count=6), output=tmp_path / "out", teacher=Scripted(script))
    assert all(row["score"] == 5 for row in lines(made.path / "rows.jsonl"))
    assert {"below the threshold", "no score"} & {*made.report["dropped"]}
    assert synth_methods.score("Score: 4/5") == 4
    assert synth_methods.score("**Score:** 3.5") == 3.5
    assert synth_methods.score("score 12") is None


def test_a_function_may_keep(seeds, tmp_path):
    def keep(row):
        return 5.0 if "river" in row["messages"][0]["content"] else 1.0

    made = synth(recipe(seeds, count=3), output=tmp_path / "out", teacher=Scripted(), keep=keep)
    assert all("river" in row["messages"][0]["content"] for row in lines(made.path / "rows.jsonl"))


def test_the_command(seeds, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "written.py"
    file.write_text(f"from nomoat.data.synth import Synth\n\nsynth = Synth('Mine.', seeds={seeds!r}, count=5)\n")
    with oracle() as server:
        given = [f"teacher={server.where}", "licence=MIT", "terms=none"]
        assert main(["synth", str(file), *given, "--json"]) == 0
        told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert (told[-1]["kind"], told[-1]["rows"]) == ("result", 5)
        assert told[-1]["path"] == str(tmp_path / "synth" / "written")
        assert main(["synth", str(file), *given]) == 0
        out = capfd.readouterr().out
        assert "5 rows of 5: done" in out
    assert main(["synth", "self-instrct"]) == 2
    assert "did you mean `self_instruct`" in capfd.readouterr().err
    assert main(["synth", str(file), "cuont=3"]) == 2
    assert "did you mean `count`" in capfd.readouterr().err
    (tmp_path / "none.py").write_text("x = 1\n")
    assert main(["synth", str(tmp_path / "none.py")]) == 2
    assert "synth = Synth(" in capfd.readouterr().err


def test_recipes_are_listed_and_found():
    names = [listed.name for listed in listing(kind="Synth")]
    assert names == ["document_questions", "self_instruct", "sums_by_rejection"]
    assert all(listed.about for listed in listing(kind="Synth"))
    assert not {*names} & {listed.name for listed in listing()}
    assert all(isinstance(find(name, Synth), Synth) for name in names)


def test_what_was_written_is_read_as_data_with_its_ledger(seeds, tmp_path):
    from nomoat.core.ledger import Entry
    from nomoat.data.readers import read

    made = synth(recipe(seeds), output=tmp_path / "out", teacher=Scripted())
    (first, *_) = read(made.path / "rows.jsonl")
    assert (first.licence, first.generation) == ("Apache-2.0 AND CC0-1.0", 1)
    entry = Entry("", first.source, first.licence, first.evidence, "", "", first.origin, first.generation)
    assert summarise([(entry, 1, 1)]).generation == 1


CHILD = """
import sys
from nomoat.data.synth import Synth
from nomoat.synthesising import synth
where, seeds, out, count = sys.argv[1:]
synth(Synth("Killed.", where, seeds=seeds, licence="MIT", terms="none", count=int(count), max_tokens=64), output=out)
"""


def test_kills_lose_no_answer_and_only_what_was_in_flight_is_sent_twice(seeds, tmp_path):
    chance, log, out = random.Random(7), tmp_path / "log", tmp_path / "out"
    count, kills, concurrency = 40 * KILLS, 0, 8
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("oracle.py")), str(log), "0.02"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    where = server.stdout.readline().strip()
    command = [sys.executable, "-c", CHILD, where, seeds, str(out), str(count)]
    had = set()
    try:
        while True:
            child = subprocess.Popen(command)
            try:
                # From the first request on, so that every kill falls into the work.
                before = log.stat().st_size if log.exists() else 0
                while kills < KILLS and child.poll() is None and (log.stat().st_size if log.exists() else 0) == before:
                    time.sleep(0.005)
                if kills < KILLS:
                    time.sleep(chance.uniform(0.0, 0.15))
                    child.send_signal(signal.SIGKILL)
                    kills += 1
                code = child.wait(120)
            finally:
                child.kill() if child.poll() is None else None
            arrived = answers_in(out)
            assert had <= arrived, "an answer that had arrived is lost"
            had = arrived
            if code == 0:
                break
            assert code == -signal.SIGKILL
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
    report = json.loads((out / "report.json").read_text())
    cost = report["cost"]
    assert kills == KILLS
    assert report["rows"] == count
    asked = Counter(key for what, key in map(json.loads, log.read_text().splitlines()) if what == "asked")
    twice = sum(asked.values()) - len(asked)
    # A request that was marked and killed before it left was never seen by the server.
    assert twice <= cost["again"] == cost["in_flight"] <= kills * concurrency
    assert max(asked.values()) <= kills + 1
    assert cost["failed"] == 0
    if os.environ.get("NOMOAT_KILLS"):
        sys.stderr.write(f"\n{kills} kills, {len(had)} answers, 0 lost, {twice} seen twice, {cost['again']} counted\n")


def answers_in(folder):
    """(key, text) of every answer on disk."""
    if not (folder / "answers.sqlite").exists():
        return set()
    base = sqlite3.connect(folder / "answers.sqlite")
    try:
        return set(base.execute("SELECT key, text FROM answers WHERE text IS NOT NULL"))
    except sqlite3.OperationalError:  # killed before the table was made
        return set()
    finally:
        base.close()


def test_a_store_counts_what_was_in_flight(tmp_path):
    store = Store(tmp_path)
    for number in range(3):
        store.sent(str(number), "m", {})
    store.answered("0", Answer("a", 2, 3), 1.5)
    store.failed("1")
    store.close()
    again = Store(tmp_path)
    assert again.spent() == (1, 2, 3, 1.5, 0, 1, 1)
    again.sent("2", "m", {})
    again.answered("2", Answer("b", 1, 1), 0.5)
    assert again.spent() == (2, 3, 4, 2.0, 1, 1, 1)
    assert again.find("2") == Answer("b", 1, 1)
    assert again.find("1") is None
    again.close()
