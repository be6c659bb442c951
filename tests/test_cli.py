"""The terminal's frame: one screen of help, suggestions, errors in three lines, exit codes, a quick start."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from nomoat.cli import listing, main
from nomoat.cli.entry import root
from nomoat.cli.output import colours
from nomoat.core.errors import DataError

HEAVY = ("torch", "rich", "pyarrow", "numpy", "tokenizers", "tiktoken", "safetensors")


def test_all_verbs_fit_one_screen(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in listing.VERBS:
        assert verb.example in shown
        assert verb.line in shown
    assert len(shown.splitlines()) <= listing.SCREEN_LINES
    assert max(map(len, shown.splitlines())) <= listing.SCREEN_COLUMNS


def test_the_screen_still_fits_with_25_more_verbs():
    more = tuple(
        listing.Verb(listing.GROUPS[number % 5], f"verb{number} last".ljust(30, "x"), "y" * 41, "nowhere:nothing")
        for number in range(25)
    )
    lines = listing.screen(listing.VERBS + more).splitlines()
    assert len(lines) <= listing.SCREEN_LINES
    assert max(map(len, lines)) <= listing.SCREEN_COLUMNS


def test_verbs_are_well_formed():
    names = [verb.name for verb in listing.VERBS]
    assert len(set(names)) == len(names)
    for verb in listing.VERBS:
        assert verb.group in listing.GROUPS
        assert len(verb.example) <= 30
        assert len(verb.line) <= 41


@pytest.mark.parametrize("verb", [verb.name for verb in listing.VERBS])
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert f"nomoat {verb}" in shown


def test_every_command_takes_json_and_computing_ones_a_device():
    context = click.Context(root)
    for verb in listing.VERBS:
        options = {option for parameter in root.get_command(context, verb.name).params for option in parameter.opts}
        assert "--json" in options
        if verb.name != "runs":
            assert "--device" in options, verb.name


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["generat"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "did you mean `generate`?" in said.err


def test_unknown_option_names_the_nearest(capsys):
    assert main(["make", "--bugdet", "5m"]) == 2
    assert "`--budget`" in capsys.readouterr().err


def test_missing_argument_is_a_usage_error(capsys):
    assert main(["resume"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "nomoat resume --help" in lines[-1]


def raising(error):
    def run(*arguments, **options):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            DataError("no text in x", "it is empty", "name another folder"),
            1,
            ["error: no text in x", "why: it is", "fix: name"],
        ),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (OSError(28, "No space left on device", "x"), 1, ["the disk is full", "NOMOAT_RUNS"]),
        (RuntimeError("CUDA out of memory"), 1, ["out of memory", "smaller budget"]),
        (ZeroDivisionError("division by zero"), 1, ["ZeroDivisionError", "NOMOAT_TRACEBACK"]),
    ],
)
def test_errors_have_three_lines_and_an_exit_code(error, code, words, monkeypatch, capsys):
    monkeypatch.delenv("NOMOAT_TRACEBACK", raising=False)
    monkeypatch.setattr(root, "main", raising(error))
    assert main(["runs"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) <= 3
    for word in words:
        assert word in said.err


def test_colours_only_on_a_terminal_that_wants_them():
    class Terminal:
        def isatty(self):
            return True

    assert colours(Terminal(), {"TERM": "xterm"})
    assert not colours(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not colours(Terminal(), {"TERM": "dumb"})


def loaded_by(*words):
    code = (
        "import sys\nfrom nomoat.cli import main\n"
        f"main({list(words)!r})\n"
        f"sys.stderr.write(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("words", [["--help"], ["make", "--help"], ["surprise", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(words):
    assert loaded_by(*words) == ""


def test_import_nomoat_imports_nothing_heavy():
    code = f"import sys, nomoat\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_runs_needs_no_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path))
    assert "torch" not in loaded_by("runs")


def test_a_verb_stays_callable_when_a_part_of_its_name_is_imported():
    code = (
        "import nomoat, nomoat.train, nomoat.evaluate, nomoat.doctor, nomoat.verbs\n"
        "from nomoat.train import __doc__ as words\n"
        "for name in nomoat.__all__:\n"
        "    assert callable(getattr(nomoat, name)), name\n"
        "nomoat.verbs.doctor = lambda *arguments: arguments\n"
        "assert nomoat.doctor('cpu') == ('cpu',)\n"
        "assert words\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
