"""The terminal's frame: one screen of help, suggestions, errors in three lines, exit codes, a quick start."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys

import click
import pytest
from rich.console import Console

from nomoat.cli import listing, main, restart
from nomoat.cli.display import Steady, live, panel
from nomoat.cli.entry import root
from nomoat.cli.output import colours
from nomoat.cli.standing import Standing, clock, size, spark
from nomoat.core import allocator
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


def test_the_screen_still_fits_with_34_verbs():
    more = tuple(
        listing.Verb(listing.GROUPS[number % 5], f"verb{number} last".ljust(30, "x"), "y" * 41, "nowhere:nothing")
        for number in range(34 - len(listing.VERBS))
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
        alone = {"runs", "pull", "import", "export", "quantize", "licence", "compose"}
        if verb.name not in alone:  # which compute nothing, or on the CPU alone
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
    assert not {"torch", "numpy", "pyarrow"} & set(loaded_by("runs").split(","))


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


STEPS = [
    {"kind": "phase", "phase": "training", "step": 0, "steps": 40},
    *(
        {"kind": "step", "step": n, "steps": 40, "training_loss": 6.0 - n / 10, "tokens_per_second": 1234.5}
        for n in range(1, 31)
    ),
    {"kind": "evaluate", "step": 20, "bits_per_byte": 2.345, "loss": 4.0},
    {"kind": "sample", "step": 20, "prompt": "", "text": "def read[bold]():\n    pass"},
    {"kind": "warning", "step": 21, "text": "something [red]odd[/red]"},
]


def test_a_standing_is_folded_from_events():
    standing = Standing("x")
    standing.fold({"kind": "ingest", "stage": "encode", "done": 50, "total": 200})
    assert (standing.phase, standing.share, standing.detail) == ("reading", 0.25, "turning text into tokens")
    for event in STEPS:
        standing.fold(event)
    assert (standing.phase, standing.share) == ("training", 0.75)
    assert (standing.bits_per_byte, standing.measured_at) == (2.345, 20)
    assert standing.losses[-1] == 3.0
    assert standing.seconds_left is not None
    standing.fold({"kind": "step", "step": 31, "steps": 40, "seconds_left": 9.0})
    assert standing.seconds_left == 9.0


def test_the_live_display_shows_everything_at_any_width():
    standing = Standing("nomoat make")
    for event in STEPS:
        standing.fold(event)
    for width in (60, 100):
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(panel(standing))
        shown = console.file.getvalue()
        for part in ("75%", "left", "2.345", "1,23", "3.000", "def read[bold]():", "█"):
            assert part in shown, (width, part)


def test_plain_lines_tell_the_same(capsys):
    steady = Steady(Standing("nomoat make"))
    for event in STEPS:
        steady.watch(event)
    shown = capsys.readouterr().out
    assert "held out 2.345 bits per byte at step 20" in shown
    assert "def read[bold](): pass" in shown
    assert "note: something [red]odd[/red]" in shown
    assert "training · step 0 of 40" in shown
    assert len(shown.splitlines()) < 8  # not one a step


def test_on_a_terminal_the_display_is_live(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with live(console, Standing("nomoat make")) as watch:
        for event in STEPS:
            watch(event)
    shown = screen.getvalue()
    assert "\x1b[" in shown
    assert "something [red]odd[/red]" in shown
    assert "2.345" in shown


@pytest.mark.parametrize(
    ("values", "shown"), [([], ""), ([1.0], "▁"), ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"), ([8, 8, 1, 1], "██▁▁")]
)
def test_the_course_of_a_loss(values, shown):
    assert spark(values) == shown
    assert len(spark(values * 100, 10)) <= 10


def test_durations_and_sizes():
    assert [clock(seconds) for seconds in (None, 0, 42.4, 727, 3753)] == ["", "0:00", "0:42", "12:07", "1:02:33"]
    assert [size(count) for count in (0, 812, 12_345, 812_000, 3.7e9)] == [
        "0 B",
        "812 B",
        "12.3 kB",
        "812 kB",
        "3.7 GB",
    ]


def test_the_allocator_is_tuned_once_and_only_where_it_can_be(monkeypatch):
    wanted = {"GLIBC_TUNABLES": "a=1"}
    monkeypatch.setattr(allocator, "tune_allocator", lambda: wanted)
    monkeypatch.setattr(restart.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(restart.sys, "platform", "linux")
    environment = restart.tuned({"HOME": "/"})
    assert environment == {"HOME": "/", "GLIBC_TUNABLES": "a=1", "NOMOAT_ALLOCATOR": "tuned"}
    assert restart.tuned(environment) is None
    assert restart.tuned({"NOMOAT_ALLOCATOR": "off"}) is None
    assert restart.tuned(wanted) is None
    monkeypatch.setattr(restart.platform, "libc_ver", lambda: ("", ""))
    assert restart.tuned({}) is None


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        (["/usr/bin/python", "/usr/bin/nomoat", "make"], True),
        (["python", "-m", "nomoat.cli", "make"], True),
        (["python", "-X", "dev", "-m", "nomoat.cli"], True),
        (["python", "-m", "pytest", "nomoat"], False),
        (["python", "train.py", "nomoat"], False),
        (["python", "-c", "import nomoat"], False),
        (["python"], False),
    ],
)
def test_only_our_own_process_starts_itself_again(command, ours):
    assert restart.is_ours(command) is ours


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_a_training_command_runs_under_the_tuned_allocator(tmp_path):
    """The process of `nomoat plan` on an empty folder starts itself again before it fails, with the same id."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nsys.stderr.write(f\"{os.getpid()} {os.environ.get('GLIBC_TUNABLES', '-')}\\n\")\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NOMOAT_ALLOCATOR", "GLIBC_TUNABLES")
    }
    environment |= {"PYTHONPATH": str(tmp_path), "NOMOAT_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, "-m", "nomoat.cli", "plan", str(tmp_path / "empty"), "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    starts = [line.split() for line in done.stderr.splitlines() if "error" not in line and line[0].isdigit()]
    assert [start[1] == "-" for start in starts] == [True, False]
    assert starts[0][0] == starts[1][0]
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["kind"] == "error"
