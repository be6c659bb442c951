"""The pages: every command in them is one that nomoat takes, every block runs, every link leads somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib import util
from pathlib import Path

import click
import pytest
from folders import notes

from nomoat.cli import listing
from nomoat.cli.entry import root
from nomoat.core import recipe as recipes

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LADDER.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING_UP = "pip install"
"""Blocks with it are run by .ci/run, in an environment made from nothing."""


def blocks():
    """(page, number, language, words behind it, text) of every fenced block."""
    for page in PAGES:
        for number, found in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            yield pytest.param(*found, id=f"{page.name}-{number}")


def commands():
    """Every `nomoat ...` line of the pages and of the help."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in [
            *re.findall(r"^(?:.*&& )?nomoat (\w.*)$", text, re.MULTILINE),
            *re.findall(r"`nomoat (\w[^`]*)`", text),
        ]:
            words = shlex.split(line, comments=True)
            if words and not any(word.isupper() or "|" in word or word in ("...", "[PATH]") for word in words):
                yield pytest.param(words, id=f"{page.name}: {line[:50]}")
    for verb in listing.VERBS:
        yield pytest.param(shlex.split(verb.example), id=f"help: {verb.example}")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as the pages assume one: `notes` with a diary, a draft."""
    notes(tmp_path / "notes")
    (tmp_path / "notes" / "diary.txt").write_text("the cat sat on the mat.\n" * 30, encoding="utf-8")
    (tmp_path / "lessons").mkdir()
    for name in ("prompts.txt", "talks.jsonl", "pairs.jsonl"):
        (tmp_path / name).write_text("write of the cat\n", encoding="utf-8")
    (tmp_path / "emoji").mkdir()
    (tmp_path / "shape.png").touch()
    (tmp_path / "draft.txt").write_text("the dog ran under the rain.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.parametrize("words", [*commands()])
def test_every_command_in_the_pages_is_one(words, workplace):
    if words[0].startswith("-"):
        return
    command = root.get_command(click.Context(root), words[0])
    assert command is not None, words[0]
    command.make_context(words[0], list(words[1:]))  # raises where an option or argument is wrong
    if words[0] == "train":
        assert recipes.find(words[1])


def test_the_pages_name_enough_commands():
    assert len([*commands()]) >= 15


@pytest.mark.slow
@pytest.mark.parametrize(("language", "words", "text"), [*blocks()])
def test_blocks_run(language, words, text, workplace):
    if "pictures" in words:
        pytest.skip("wants a folder of pictures, and an hour: test_guides.py follows it in a shrunken form")
    if "network" in words:
        pytest.skip("fetches a model and talks with a server: test_pull.py, test_serve_whole.py")
    if SETTING_UP in text:
        pytest.skip("run by .ci/run")
    if language == "python":
        command = [sys.executable, "-c", text]
    elif language == "bash":
        scripts = Path(sys.executable).parent
        command = ["bash", "-euc", f"PATH={shlex.quote(str(scripts))}:$PATH\n{text}"]
    else:
        pytest.skip(f"a block of {language}")
    if "last" in text and "make" not in text and "train" not in text:
        subprocess.run([sys.executable, "-m", "nomoat.cli", "make", "notes", "--budget", "30s"], check=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_sets_up_is_run_by_the_continuous_integration():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in ("python3 -m venv", "pip install --quiet '.[dev]'", "stage pytest", "nomoat make --budget"):
        assert part in script
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install . && nomoat make\n" in readme
    assert "pip install '.[dev]' && pytest\n" in readme


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_is_up_to_date():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert module("make_map").written(text) == text, "run: python docs/make_map.py"


def test_every_dependency_is_argued():
    argued = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    assert listed is not None
    names = re.findall(r'"([a-z]+2?)', listed[1])
    assert len(names) == 10
    for name in names:
        assert re.search(rf"^\| {name}\b", argued, re.MULTILINE), name


def test_decisions_are_numbered_without_gaps_and_ask_a_question():
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "**Question.**" in text, path.name
        assert "**What would change our mind.**" in text, path.name


def test_the_picture_is_drawn_from_a_run(tmp_path):
    events = [{"kind": "step", "step": n, "steps": 10, "training_loss": 5.0 - n / 5} for n in range(1, 11)]
    events.insert(7, {"kind": "evaluate", "step": 7, "bits_per_byte": 1.875})

    class Past:
        def metrics(self):
            return json.loads(json.dumps(events))

    picture = module("make_picture").draw(Past(), 0.8, "nomoat make")
    assert picture.startswith("<svg")
    assert "1.875" in picture
    assert "80%" in picture


def module(name):
    """A script of docs/ as a module."""
    spec = util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    found = util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
