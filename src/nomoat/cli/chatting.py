r"""chat: a conversation with a model, in the terminal or through a pipe.

line -> message -> Talk.say -> pieces as they come -> how fast, dimly
     \-> /command
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nomoat.cli import options
from nomoat.cli.output import Output, colours
from nomoat.core.errors import ConfigError, DataError, NomoatError, nearest

if TYPE_CHECKING:
    from nomoat.talk import Answer, Talk

COMMANDS = {
    "help": "these lines",
    "clear": "forget what was said (or /new)",
    "system": "TEXT: what the model is told beforehand; without TEXT, nothing",
    "seed": "N: other chance from now on",
    "temperature": "X: 0 takes the likeliest token every time",
    "undo": "take your last message and its answer back",
    "retry": "another answer to your last message",
    "save": "FILE: write what was said, as JSON",
    "load": "FILE: go on with what was saved",
    "stats": "how much was read and written, and how fast",
    "exit": "leave (or Ctrl-D)",
}
ALIASES = {"new": "clear", "quit": "exit"}


@click.command()
@click.argument("run")
@click.option("--system", metavar="TEXT", help="What the model is told beforehand.")
@options.sampling
@options.seed
@options.bits
@options.device
@options.as_json
@click.pass_obj
def chat(output: Output, run: str, system: str | None, device: str, bits: int | None, **sampling: Any) -> None:
    """Talk with the model of RUN.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands. A line that ends with a backslash goes on in the
    next. Where nobody types, every line of standard input is a message.
    """
    from nomoat import verbs

    talk = verbs.chat(run, system, device, output.event, bits, **options.given(sampling))
    Session(output, talk).run()
    output.result({"run": run, "messages": talk.messages, "answers": len(talk.answers)})


class Session:
    """One who talks with a model: a person at a terminal, or a program at the other end of a pipe.

    Args:
        output: where answers go.
        talk: the conversation.
    """

    def __init__(self, output: Output, talk: Talk) -> None:
        self.output, self.talk, self.attempt = output, talk, 0
        self.typed = sys.stdin.isatty() and not output.json
        self.dim = "\x1b[2m{}\x1b[0m" if colours(sys.stdout) else "{}"

    def run(self) -> None:
        """Answer until there is nothing more to read. An error ends a turn where somebody types, else all."""
        with suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its history)
        if self.typed:
            self._note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands")
        with suppress(EOFError):
            while True:
                try:
                    self._turn(self._line())
                except KeyboardInterrupt:
                    if not self.typed:
                        raise
                    self.output.stream("\n")
                except NomoatError as error:
                    if not self.typed:
                        raise
                    self.output.error(error.what, error.why, error.fix)
        self.output.stream("\n" if self.typed else "")

    def _line(self) -> str:
        """What was typed: a message, a command or nothing."""
        if not self.typed:
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line.strip()
        text = input("> ")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + input("| ")
        return text.strip()

    def _turn(self, text: str) -> None:
        name, _, rest = text[1:].partition(" ")
        if text.startswith("/"):
            self._command(ALIASES.get(name, name), rest.strip())
        elif text:
            self._say(text, 0)

    def _say(self, text: str | None, attempt: int) -> None:
        self.attempt = attempt
        with self._stoppable():
            for piece in self.talk.say(text, attempt):
                self.output.stream(piece)
        answer = self.talk.answers[-1]
        if answer.dropped:
            full = f"the context is full: the oldest {answer.dropped} messages are forgotten"
            self.output.event({"kind": "warning", "text": full})
        if self.output.json:
            self.output.event({"kind": "answer", **asdict(answer), "tokens_per_second": answer.tokens_per_second})
        else:
            self.output.stream("\n")
            self._note(_told(answer))

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Where somebody types, Ctrl-C ends the answer and keeps what was said; a second one does not wait."""

        def stop(*_: object) -> None:
            self.talk.stop()
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.getsignal(signal.SIGINT)
        try:
            if self.typed:
                signal.signal(signal.SIGINT, stop)
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _command(self, name: str, rest: str) -> None:
        talk = self.talk
        match name:
            case "help":
                self._note("\n".join(f"/{name:<12}{line}" for name, line in COMMANDS.items()))
            case "clear":
                talk.messages = [message for message in talk.messages if message["role"] == "system"]
            case "system":
                talk.tell(rest)
            case "seed" | "temperature":
                talk.options = replace(talk.options, **{name: _number(name, rest)})
            case "undo":
                self._note(f"taken back: {talk.undo()}")
            case "retry":
                self._say(None, self.attempt + 1)
            case "save" | "load":
                _file(name, Path(rest), talk)
            case "stats":
                self._note(_totals(talk.answers))
            case "exit":
                raise EOFError
            case _:
                raise ConfigError(f"there is no command /{name}", "", nearest(name, COMMANDS) or "/help lists them")

    def _note(self, text: str) -> None:
        """A word that is not the model's; a person sees it dimly."""
        if self.output.json:
            self.output.event({"kind": "note", "text": text})
        elif self.typed:
            self.output.say(self.dim.format(text))


def _number(name: str, text: str) -> Any:
    try:
        return int(text) if name == "seed" else float(text)
    except ValueError:
        raise ConfigError(f"{name} is a number, not `{text}`", "", f"/{name} 1") from None


def _file(name: str, path: Path, talk: Talk) -> None:
    try:
        if name == "save":
            path.write_text(json.dumps({"messages": talk.messages}, ensure_ascii=False, indent=1) + "\n", "utf-8")
        else:
            messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
            talk.chat.render(messages)
            talk.messages = messages
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"/{name} {path} failed", f"{type(error).__name__}: {error}", "name a file") from error


def _told(answer: Answer) -> str:
    """What an answer came to, on one line."""
    facts = [f"{answer.written} tokens", f"first after {answer.first_seconds:.2f} s"]
    facts += [f"{answer.tokens_per_second:.1f} tokens/s"] if answer.tokens_per_second else []
    facts += [f"{answer.read} read, {answer.reused} remembered"]
    facts += {"length": ["cut: --max-tokens or the context"], "cancelled": ["stopped"]}.get(answer.reason, [])
    return " · ".join(facts)


def _totals(answers: Sequence[Answer]) -> str:
    read, reused, written = (sum(getattr(each, name) for each in answers) for name in ("read", "reused", "written"))
    seconds = sum(each.seconds for each in answers)
    speed = f", {(written - len(answers)) / seconds:.1f} a second" if seconds else ""
    return f"{len(answers)} answers · {read:,} tokens read, {reused:,} remembered · {written:,} written{speed}"
