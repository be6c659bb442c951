"""The guides, followed in a shrunken form: every command of them, with a tiny model and a scripted teacher."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from conversations import CHATML
from drawings import icons, shrink
from folders import notes
from oracle import chatty, completion, oracle
from PIL import Image

from nomoat import comparing, improving, selfplaying
from nomoat.cli import main
from nomoat.core.run import Run
from nomoat.evaluate import tuned
from nomoat.nn import native
from nomoat.serve import start

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BASE = "smollm2-135m-instruct"


def commands(guide: str) -> list[list[str]]:
    text = (GUIDES / guide).read_text(encoding="utf-8")
    found = re.findall(r"^```bash (?:network|pictures|games) guide[^\n]*\n(.*?)^```$", text, re.M | re.S)
    return [shlex.split(line) for block in found for line in block.splitlines()]


def lessons(body: dict) -> dict:
    """Questions on a passage where a list is asked for, else an answer."""
    asked = body["messages"][-1]["content"]
    words = re.findall(r"[a-z]{4,}", asked)
    if "List three questions" in asked:
        return completion("\n".join(f"{n}. What about {' '.join(words[-5 * n :][:5])}?" for n in (1, 2, 3)))
    return completion(f"It is about {' and '.join(words[-6:])}.")


def test_a_folder_of_notes_becomes_an_assistant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(tuned, "other_prompts", lambda: ["Hello?"])
    monkeypatch.setattr(tuned, "general_text", lambda: ["A river under the moon."])
    monkeypatch.setattr(comparing, "QUESTIONS", 2)
    monkeypatch.setattr(native, "quickest", lambda model, *rest: model)
    served: list[Run] = []
    monkeypatch.setattr(start, "serve", lambda runs, *rest: served.extend(runs.values()))
    notes(tmp_path / "notes", 60, lines=2)
    base = chatty(None, BASE)
    base.write_json("chat.json", {"template": CHATML, "bos": None, "eos": "<|endoftext|>"})
    base.write_json(
        "ledger.json", {"licence": "Apache-2.0", "source": BASE, "files": {}, "evidence": "", "format": "GGUF"}
    )
    said = {}
    with oracle(lessons) as server:
        for words in commands("an-assistant-of-your-own.md"):
            if words[0] != "nomoat":
                Path("asked.txt").write_text("What is a garden for?\nWhy?\n", encoding="utf-8")
                continue
            shrunk = [re.sub(r"^count=\d+$", "count=30", word) for word in words[1:]]
            shrunk = ["4steps" if word in ("6m",) else word for word in shrunk]
            shrunk = ["8" if word == "64" else word for word in shrunk]
            if words[1] == "pull":
                continue  # tests/test_pull.py pulls it
            if words[1] == "synth":
                shrunk = [f"teacher={server.where}" if w.startswith("teacher=") else w for w in shrunk]
                shrunk += ["licence=MIT", "terms=none"]
            code = main([*shrunk, "--json"])
            out = capfd.readouterr()
            assert code == 0, (words, out.out[-500:], out.err[-500:])
            said[words[1], words[2]] = json.loads((out.out.splitlines() or ["{}"])[-1])
    tuned_run = Run.open("last")
    assert tuned_run.recipe.adapt is not None and said["tune", BASE]["run"] == str(tuned_run.path.resolve())
    # The notes say nothing of a licence; the base (Apache-2.0) and the teacher (MIT) do, and are named beside them.
    assert said["licence", "last"]["verdict"] == "unknown"
    assert {"MIT", "Apache-2.0"} <= {stream["licence"] for stream in said["licence", "last"]["streams"]}
    assert Path("assistant.gguf").stat().st_size > 1000
    assert [run.name for run in served] == [tuned_run.name]


def test_a_folder_of_emoji_becomes_a_model_that_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    shrink(monkeypatch, judged=16)
    icons(tmp_path / "emoji", 40)
    for words in commands("a-model-that-draws.md"):
        shrunk = [{"25m": "2steps", "12m": "2steps", "16": "2", "8": "2"}.get(word, word) for word in words[1:]]
        shrunk += ["--steps", "2"] if words[1] == "draw" else []
        if "--control" in shrunk:
            Image.new("L", (64, 64), 255).save("shape.png")
        code = main(shrunk)
        told = capfd.readouterr()
        assert code == 0, (words, told.out[-500:], told.err[-500:])
    assert len(list(Path("hearts").glob("*.png"))) == len(list(Path("shaped").glob("*.png"))) == 2
    assert Run.open("last").read_json("report.json")["hint"] == "mask"


def test_from_nothing_to_a_player_and_a_model_that_thinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(selfplaying, "PLAYOUTS", (5,))
    monkeypatch.setattr(selfplaying, "GAMES", 4)
    monkeypatch.setattr(improving, "EXAM", 8)
    (tmp_path / "nim.py").write_text(own_game())
    assert own_game().count("\n") <= 60
    small = {
        "selfplay": ["data.manner.simulations=4", "data.games=8", "data.workers=0", "family.trunk.width=8"],
        "train": ["family.backbone.heads=2", "family.backbone.width=32", "family.backbone.depth=1", "batch_size=8"],
    }
    said = {}
    for words in commands("a-player-from-nothing.md"):
        short = {"1m": "8steps", "20s": "8steps", "30m": "4s", "budget=30m": "budget=6steps", "100": "6"}
        words = [short.get(word, word) for word in words[1:]]
        assert main([*words, *small.get(words[0], [])]) == 0, words
        said[" ".join(words[:2])] = capfd.readouterr().out
    assert "Elo above a random player" in said["selfplay tic-tac-toe"]
    assert "Elo" in said["play last"]
    assert "not verified" in said["think last"]
    assert "blind" in said["curve last"]
    assert "pass@1" in said["improve last"]


def own_game() -> str:
    """The guide's own game."""
    text = (GUIDES / "a-player-from-nothing.md").read_text(encoding="utf-8")
    return re.search(r"^```python games nim.py\n(.*?)^```$", text, re.M | re.S)[1]
