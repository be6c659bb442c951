r"""chat: a conversation with a model, in the terminal or through a pipe.

line -> message -> Talk.say -> pieces as they come -> how fast, dimly
     \-> /command
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
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
    "system": "TEXT: what the model is told beforehand; nothing without TEXT",
    "seed": "N: other chance from now on",
    "temperature": "X: 0 takes the likeliest token every time",
    "undo": "take your last message and its answer back",
    "retry": "another answer to your last message",
    "save": "FILE: write what was said, as JSON",
    "load": "FILE: go on with what was saved",
    "stats": "how much was read and written, and how fast",
    "exit": "leave (or Ctrl-D)",
}
ALIASES = {"new": "clear", "quit": "exit", "?": "help"}
BLOCK = '"""'


@click.command()
@click.argument("run")
@click.option("--system", metavar="TEXT", help="What the model is told beforehand.")
@options.sampling
@options.seed
@options.device
@options.as_json
@click.pass_obj
def chat(output: Output, run: str, system: str | None, device: str, **sampling: Any) -> None:
    '''Talk with the model of RUN.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands. A line that ends with a backslash goes on in the
    next; lines from """ to """ are one message. Where nobody types, every line of standard input is a message.
    '''
    from nomoat import verbs

    talk = verbs.chat(run, system, device, output.event, **options.given(sampling))
    session = Session(output, talk)
    session.note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands")
    session.run()
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
        self.dim = ("\x1b[2m", "\x1b[0m") if colours(sys.stdout) else ("", "")

    def run(self) -> None:
        """Answer until there is nothing more to read. What goes wrong ends a turn where somebody types, else all."""
        with suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its history)
        while True:
            try:
                if not self._turn(self._line()):
                    return
            except EOFError:
                self.output.stream("\n" if self.typed else "")
                return
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                self.output.stream("\n")
            except (NomoatError, OSError) as error:
                if not self.typed:
                    raise
                parts = (error.what, error.why, error.fix) if isinstance(error, NomoatError) else (str(error), "", "")
                self.output.error(*parts)

    def note(self, text: str) -> None:
        """A word that is not the model's; a person sees it dimly."""
        if self.output.json:
            self.output.event({"kind": "note", "text": text})
        elif self.typed:
            self.output.say(self.dim[0] + text + self.dim[1])

    def _line(self) -> str:
        """What was typed: a message, a command or nothing."""
        if not self.typed:
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line.strip()
        text = input("> ")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + input("| ")
        while text.startswith(BLOCK) and not (text.endswith(BLOCK) and len(text) >= 2 * len(BLOCK)):
            text += "\n" + input("| ")
        return text.removeprefix(BLOCK).removesuffix(BLOCK).strip() if text.startswith(BLOCK) else text.strip()

    def _turn(self, text: str) -> bool:
        """Answer a message or follow a command; False: leave."""
        if not text.startswith("/"):
            if text:
                self._say(text)
            return True
        name, _, rest = text[1:].partition(" ")
        name, rest = ALIASES.get(name, name), rest.strip()
        if name not in COMMANDS:
            raise ConfigError(f"there is no command /{name}", "", nearest(name, COMMANDS) or "/help lists them")
        if name != "exit":
            getattr(self, f"_{name}")(rest)
        return name != "exit"

    def _say(self, text: str, attempt: int = 0) -> None:
        self.attempt = attempt
        with self._stoppable():
            for piece in self.talk.say(text, attempt):
                self.output.stream(piece)
        answer = self.talk.answers[-1]
        if answer.dropped:
            text = f"the context is full: the oldest {answer.dropped} messages are forgotten"
            self.output.event({"kind": "warning", "text": text})
        if self.output.json:
            self.output.event({"kind": "answer", **asdict(answer), "tokens_per_second": answer.tokens_per_second})
        else:
            self.output.stream("\n")
            self.note(_told(answer))

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

    def _help(self, _: str) -> None:
        self.note("\n".join(f"/{name:<12}{line}" for name, line in COMMANDS.items()))

    def _clear(self, _: str) -> None:
        self.talk.messages = [message for message in self.talk.messages if message["role"] == "system"]

    def _system(self, text: str) -> None:
        self.talk.tell(text)

    def _seed(self, text: str) -> None:
        self._set("seed", int, text)

    def _temperature(self, text: str) -> None:
        self._set("temperature", float, text)

    def _set(self, name: str, kind: type, text: str) -> None:
        try:
            self.talk.options = replace(self.talk.options, **{name: kind(text)})
        except ValueError:
            raise ConfigError(f"{name} is a number, not `{text}`", "", f"/{name} 1") from None

    def _undo(self, _: str) -> str:
        text = self.talk.undo()
        if text is None:
            raise ConfigError("there is nothing to take back", "nothing was said yet", "type a message")
        self.note(f"taken back: {text}")
        return text

    def _retry(self, _: str) -> None:
        before = [*self.talk.messages]
        try:
            self._say(self._undo(""), self.attempt + 1)
        except BaseException:
            self.talk.messages = before
            raise

    def _save(self, name: str) -> None:
        Path(name).write_text(json.dumps({"messages": self.talk.messages}, ensure_ascii=False, indent=1) + "\n")

    def _load(self, name: str) -> None:
        try:
            messages = json.loads(Path(name).read_text(encoding="utf-8"))["messages"]
            self.talk.chat.render(messages)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{name} holds no conversation", str(error), "name a file that /save wrote") from error
        self.talk.messages = messages

    def _stats(self, _: str) -> None:
        answers = self.talk.answers
        read, reused, written = (sum(getattr(each, name) for each in answers) for name in ("read", "reused", "written"))
        seconds = sum(each.seconds for each in answers)
        speed = f", {(written - len(answers)) / seconds:.1f} a second" if seconds else ""
        self.note(f"{len(answers)} answers · {read:,} tokens read, {reused:,} remembered · {written:,} written{speed}")


def _told(answer: Answer) -> str:
    """What an answer came to, on one line."""
    speed = answer.tokens_per_second
    facts = [
        f"{answer.written} tokens",
        f"{speed:.1f} tokens/s" if speed else "",
        f"first after {answer.first_seconds:.2f} s",
    ]
    facts += [f"{answer.read} read, {answer.reused} remembered"]
    facts += {"length": ["cut: --max-tokens or the context"], "cancelled": ["stopped"]}.get(answer.reason, [])
    return " · ".join(fact for fact in facts if fact)
