"""--json: one object a line on standard output and nothing else there, the last one the result or the error.

Also what stands beside it: exit codes, Ctrl-C, resume, and the same words for people.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from folders import TINY, notes

from nomoat import verbs
from nomoat.cli import main
from nomoat.cli.output import json_lines, plain


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs with one small model in it, and the text that it was made from."""
    place = tmp_path_factory.mktemp("trained")
    before = os.environ.get("NOMOAT_RUNS")
    os.environ["NOMOAT_RUNS"] = str(place / "runs")
    try:
        run = verbs.train("gpt-small", (f"data.path={notes(place / 'notes')}", *TINY, "budget=60steps"), "cpu")
    finally:
        os.environ.pop("NOMOAT_RUNS")
        if before is not None:
            os.environ["NOMOAT_RUNS"] = before
    return run


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("NOMOAT_RUNS", str(trained.path.parent))
    return trained


def said(capfd, *words, code=0):
    """The objects that a command writes; everything on standard output must be one."""
    capfd.readouterr()
    assert main([*words, "--json"]) == code
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert all("kind" in line for line in lines)
    assert lines[-1]["kind"] == ("result" if code == 0 else "error")
    return lines


def test_whatever_libraries_print_is_kept_off_standard_output(capfd):
    with json_lines() as output:
        sys.stdout.write("from Python\n")
        os.write(1, b"from C\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        output.event({"kind": "step", "loss": float("nan"), "path": Path("x")})
    sys.stdout.write("after\n")
    out, err = capfd.readouterr()
    assert out == '{"kind": "step", "loss": null, "path": "x"}\nafter\n'
    assert "from Python" in err
    assert "from C" in err
    assert "from a child" in err


def test_plain_values():
    import numpy as np

    assert plain({"a": (1, np.float32(0.5), {2}), 3: float("inf")}) == {"a": [1, 0.5, [2]], "3": None}


def test_runs(here, capfd):
    *runs, result = said(capfd, "runs")
    assert [line["name"] for line in runs] == [here.name]
    assert runs[0]["status"] == "done"
    assert runs[0]["step"] == 60
    assert runs[0]["bits_per_byte"] < 4
    assert runs[0]["bytes"] > 10_000
    assert result["count"] == 1


def test_no_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "none"))
    assert said(capfd, "runs")[-1]["count"] == 0
    assert main(["runs"]) == 0
    assert "nomoat make" in capfd.readouterr().out


def test_generate_streams_and_is_seeded(here, capfd):
    options = ("--max-tokens", "12", "--seed", "3", "--device", "cpu")
    *pieces, result = said(capfd, "generate", "last", "the cat", *options)
    assert "".join(piece["text"] for piece in pieces) == result["text"]
    assert len(pieces) > 3
    assert result["run"] == str(here.path.resolve())
    assert said(capfd, "generate", "last", "the cat", *options)[-1]["text"] == result["text"]
    assert said(capfd, "generate", "last", "the cat", *options[:3], "4")[-1]["text"] != result["text"]


def test_generate_for_people_begins_with_the_prompt(here, capfd):
    assert main(["generate", "last", "the cat", "--max-tokens", "5", "--temperature", "0"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("the cat")
    assert err == ""


def test_generate_stops_before_a_stop_string(here, capfd):
    text = said(capfd, "generate", "last", "the", "--max-tokens", "40", "--stop", "\n", "--stop", ".")[-1]["text"]
    assert "." not in text
    assert "\n" not in text


def test_evaluate_on_held_out_text_and_on_a_path(here, capfd):
    own = said(capfd, "evaluate", "last")[-1]
    noted = here.metrics("evaluate")[-1]["bits_per_byte"]
    assert own["bits_per_byte"] == pytest.approx(noted, rel=0.05)
    assert own["low"] <= own["bits_per_byte"] <= own["high"]
    other = here.path.parents[1] / "other.txt"
    other.write_text("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n" * 5, encoding="utf-8")
    assert said(capfd, "evaluate", "last", str(other))[-1]["bits_per_byte"] > 2 * own["bits_per_byte"]


def test_evaluate_on_a_task(here, capfd, tmp_path):
    task = tmp_path / "task.jsonl"
    rows = [{"question": f"the cat {n}", "choices": ["sat on the mat.", "qzx%$"], "answer": 0} for n in range(6)]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = said(capfd, "evaluate", "last", str(task), "--shots", "1")[-1]
    assert result["questions"] == 6
    assert result["shots"] == 1
    assert 0 <= result["accuracy"] <= 1


def test_surprise_finds_the_line_that_does_not_belong(here, capfd, tmp_path):
    text = (here.path.parents[1] / "notes" / "03.txt").read_text(encoding="utf-8").splitlines()
    odd = tmp_path / "odd.txt"
    odd.write_text("\n".join([*text[:12], "SELECT * FROM users WHERE id = 0x7f;", *text[12:]]), encoding="utf-8")
    page = tmp_path / "heat.html"
    result = said(capfd, "surprise", "last", str(odd), "--top", "3", "--html", str(page))[-1]
    assert result["top"][0]["line"] == 13
    assert "SELECT" in result["top"][0]["text"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["surprise", "last", str(odd), "--top", "1"]) == 0
    assert "line 13" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["runs", "--wrong"], 2, "--wrong"),
        (["nonsense"], 2, "nonsense"),
        (["generate", "nowhere", "x"], 1, "nowhere"),
        (["evaluate", "last", "not-there.txt"], 1, "not-there.txt"),
        (["generate", "last", "x", "--top-p", "0"], 2, "top_p"),
        (["train", "gpt-smal"], 2, "gpt_small"),
        (["train", "gpt-small", "family.backbone.dept=3"], 2, "family.backbone.depth"),
        (["train", "gpt-small", "budget=0s"], 2, "nothing"),
        (["train", "gpt-small", "family.backbone.width=100", "family.backbone.heads=12"], 2, "96"),
        (["make", "--budget", "soon"], 2, "30m"),
        (["make", "--device", "cpuu", "--budget", "1m"], 2, "cpu"),
        (["plan", "--budget", "3EUR"], 2, "price"),
    ],
)
def test_errors(here, capfd, words, code, part):
    error = said(capfd, *words, code=code)[-1]
    assert error["what"]
    assert part in " ".join([error["what"], error["why"], error["fix"]])
    assert main(words) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert 1 <= len(err.splitlines()) <= 3


def test_an_empty_folder_is_an_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "empty").mkdir()
    assert said(capfd, "make", str(tmp_path / "empty"), code=1)[-1]["what"].startswith("there is no text")


def test_ctrl_c_leaves_a_checkpoint_and_resume_ends_as_if_nothing_had_been(tmp_path, capfd, monkeypatch):
    """Interrupted and resumed, the weights are those of the run that went through."""
    changes = (f"data.path={notes(tmp_path / 'notes')}", *TINY, "budget=400steps")
    environment = {**os.environ, "NOMOAT_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "nomoat.cli", "train", "gpt-small", *changes, "--device", "cpu", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["kind"] == "step" and lines[-1]["step"] == 20:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert lines[-1]["kind"] == "error"
    assert lines[-1]["what"] == "stopped"
    assert lines[-1]["fix"].startswith("nomoat resume ")
    stopped = Path(lines[-1]["run"])
    assert (stopped / "card.md").exists()
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    assert said(capfd, "runs")[0]["status"] == "stopped"
    result = said(capfd, "resume", stopped.name)[-1]
    assert result["run"] == str(stopped)
    assert result["status"] == "done"
    whole = verbs.train("gpt-small", changes, "cpu")
    assert whole.path != stopped
    weights = [verbs.load(each).state_dict() for each in (stopped, whole)]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])


def test_a_recipe_on_paper_has_the_published_size_and_a_price(capfd):
    paper = said(capfd, "plan", "--recipe", "gpt2-124m", "--price-per-hour", "2")[-1]["plan"]
    assert paper["parameters"] == 124_439_808
    assert paper["flops"] == pytest.approx(paper["flops_per_token"] * 10e9)
    assert 6 * 124_439_808 < paper["flops_per_token"] < 8 * 124_439_808
    assert paper["money"] == pytest.approx(2 * paper["h100_hours"])
    assert "budget=20Mtokens" in said(capfd, "plan", "--recipe", "gpt-small", code=2)[-1]["fix"]
    small = said(capfd, "plan", "--recipe", "gpt-small", "--recipe", "budget=20Mtokens")[-1]["plan"]
    assert small["tokens"] == 20e6


def test_train_s_help_lists_the_recipes(capfd):
    assert main(["train", "--help"]) == 0
    shown = capfd.readouterr().out
    for name in ("gpt-small", "mamba2-small", "gpt2-124m"):
        assert name in shown
