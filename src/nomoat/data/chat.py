r"""A conversation as the tokens that a model was taught to read: one function for training and for serving.

    messages -> covered -> template -> text -> cut at special tokens -> ids, learn
                   |                     \-> what the assistant says: all that follows the prompt of its turn
                   a mark over each character with which a user could begin a special token

Special tokens come from the template alone. A conversation's tokens begin with the prompt of each of its turns, by
construction: where a token would reach across the end of a prompt, it is cut there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.template import Template
from nomoat.data.tokenizer import EOT

OWN = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}"
    "{{ eos_token if message.role == 'assistant' }}{{ '\\n\\n' }}{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt }}"
)
"""For a model that came without a template: who speaks, and what, as plays are printed."""
DEEPEST = 100

Messages = Sequence[Mapping[str, Any]]


class Marked(Protocol):
    """What a conversation needs of a tokenizer; see data/tokenizer.py."""

    @property
    def special(self) -> Mapping[str, int]: ...
    @property
    def stops(self) -> Sequence[int]: ...
    def encode(self, text: str) -> Any: ...
    def encode_marked(self, text: str) -> Any: ...
    def token_bytes(self, token: int) -> bytes: ...


class Chat:
    """The chat template of a model.

    Args:
        template: Jinja, as checkpoints carry it; None: `OWN`.
        bos: spelling of the token that begins a text.
        eos: spelling of the token that ends one.

    Attributes:
        own: whether the template is ours, so that nobody taught the model to chat in it.
        stop: strings that end an answer, beside the tokens that do.
    """

    def __init__(self, template: str | None = None, bos: str | None = EOT, eos: str | None = EOT) -> None:
        self.own = not template
        self.stop = ("\nUser:",) if self.own else ()
        self._template = Template(template or OWN)
        self._names = {name: word for name, word in (("bos_token", bos), ("eos_token", eos)) if word is not None}

    @classmethod
    def of(cls, folder: Path | str) -> Chat:
        """The chat of a run, by its chat.json.

        Raises:
            DataError: the file or its template cannot be read.
        """
        path = Path(folder) / "chat.json"
        if not path.exists():
            return cls()
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            template, bos, eos = (held.get(name) for name in ("template", "bos", "eos"))
            return cls(template, bos if template or held.get("add_bos") else None, eos)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{path} cannot be read", str(error), "import the model again") from error

    def render(self, messages: Messages, tools: Messages | None = None, answer: bool = True) -> str:
        """The conversation as text.

        Args:
            messages: dicts of `role`, `content` and whatever else the template knows, as OpenAI has them.
            tools: JSON descriptions of functions.
            answer: whether the assistant is to speak next.

        Raises:
            ConfigError: the template cannot render this conversation.
            DataError: it does what a template may not.
        """
        return self._render(*_plain(messages, tools), answer)

    def tokens(
        self, messages: Messages, tokenizer: Marked, tools: Messages | None = None, answer: bool = True
    ) -> tuple[list[int], list[bool]]:
        """The conversation as ids, and which of them the assistant says: its end too, not the head before it.

        Raises:
            ConfigError, DataError: see `render`.
        """
        turns, known = _plain(messages, tools)
        cover = _Cover(tuple(tokenizer.special), json.dumps([turns, known], ensure_ascii=False))
        turns, known = cover(turns), cover(known)
        covered = self._render(turns, known, answer)
        text, specials, spelled = cover.lift(covered)
        stops = [end for start, end in specials if tokenizer.special[text[start:end]] in tokenizer.stops]
        said = [*self._said(turns, known, covered, stops)]
        cuts = {start for start, _ in specials} | spelled | {place + 1 for place in spelled}
        ids: list[int] = []
        learn: list[bool] = []
        for place, section in _sections(text, cuts, {place for span in said for place in span}, spelled, tokenizer):
            ids += section
            learn += [any(start <= place < end for start, end in said)] * len(section)
        return ids, learn

    def _render(self, turns: list[Any], tools: Any, answer: bool) -> str:
        given = {"messages": turns, "tools": tools, "documents": None, "add_generation_prompt": answer}
        return self._template.render({**given, **self._names})

    def _said(self, turns: list[Any], tools: Any, covered: str, stops: list[int]) -> Iterator[tuple[int, int]]:
        """Start and end in the text of what the assistant says, turn by turn.

        A turn is left out where later ones change what stands before it (thoughts that are dropped): nobody said it so.
        """

        def length(count: int, answer: bool) -> int:
            try:
                part = self._render(turns[:count], tools, answer)
            except ConfigError:  # some templates know no conversation that begins or ends like this
                return 0
            return len(part) if covered.startswith(part) else 0

        told = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
        starts = [(number, start) for number in told if (start := length(number, True))]
        for (number, start), (_, following) in pairwise([*starts, (0, len(covered))]):
            stop = next((stop for stop in stops if start < stop <= following), 0)
            yield start, stop or length(number + 1, False) or following


class Talking:
    """A tokenizer that also knows how a model that was taught to talk is asked; it spells as that tokenizer does.

    Args:
        tokenizer: the model's.
        chat: its template.
    """

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self._tokenizer, self._chat, self.stop = tokenizer, chat, chat.stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def asked(self, question: str) -> list[int]:
        """A user's first turn, up to where the answer begins."""
        return self._chat.tokens([{"role": "user", "content": question}], self._tokenizer, answer=True)[0]


def talking(folder: Path | str) -> Any:
    """How the model of a run is spelled: None without a tokenizer, `Talking` where it was taught a chat template.

    Raises:
        DataError: a file cannot be read.
    """
    from nomoat.data.tokenizer import load

    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return None
    tokenizer, chat = load(path), Chat.of(folder)
    return tokenizer if chat.own else Talking(tokenizer, chat)


def _plain(messages: Messages, tools: Messages | None) -> tuple[list[Any], Any]:
    """Copies that hold nothing but JSON; a call's arguments, which OpenAI sends as text, as what they say.

    Raises:
        ConfigError: there are no messages, one has no role, or they hold something else.
    """
    try:
        turns, known = json.loads(json.dumps([list(messages), tools]))
        for turn in turns:
            if not re.fullmatch(r"[a-z_]{1,40}", turn["role"]):
                raise ValueError(f"a role is a word in small letters, not {turn['role']!r}")
            for call in turn.get("tool_calls") or ():
                function = call.get("function", call)
                if isinstance(arguments := function.get("arguments"), str):
                    function["arguments"] = json.loads(arguments)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError("these messages cannot be read", why, 'one is {"role": "user", "content": "..."}') from None
    if not turns:
        raise ConfigError("a conversation without messages", fix="give at least one")
    return turns, known


def _sections(
    text: str, cuts: set[int], ends: set[int], spelled: set[int], tokenizer: Marked
) -> Iterator[tuple[int, list[int]]]:
    """Where each section of the text begins, and its tokens: the same whatever follows the section.

    No token reaches across `cuts`; `ends` end a section too, and a token that would reach across is cut.
    """
    origin = place = 0
    given: list[int] = []  # tokens of text[origin:place]
    for end in sorted({*cuts, *ends, len(text)} - {0}):
        origin, given = (place, []) if place in cuts else (origin, given)
        whole = _read(text, origin, end, spelled, tokenizer)
        if whole[: len(given)] != given:
            origin, given = place, []
            whole = _read(text, origin, end, spelled, tokenizer)
        yield place, whole[len(given) :]
        given, place = whole, end


def _read(text: str, start: int, end: int, spelled: set[int], tokenizer: Marked) -> list[int]:
    encode = tokenizer.encode if start in spelled else tokenizer.encode_marked
    return np.asarray(encode(text[start:end])).tolist()


class _Cover:
    """Puts a mark over each character with which a user's text begins a special token, and lifts it.

    The template sees the marks, characters that nobody uses: what it then spells itself is a special token. A text that
    ends within one is marked too, for the next could go on with it.

    Args:
        special: the spellings.
        taken: text whose characters are no marks.
    """

    def __init__(self, special: tuple[str, ...], taken: str) -> None:
        self.spelled, self.begun = _patterns(special)
        self.marks: dict[str, str] = {}
        self.free = (letter for letter in map(chr, range(0xF0000, 0xFFFFE)) if letter not in taken)

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise ConfigError("these messages cannot be read", f"they nest deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            return {name if name.isidentifier() else self(name): self(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list):
            return [self(item, depth + 1) for item in value]
        return self.begun.sub(self._mark, value) if isinstance(value, str) else value

    def _mark(self, found: re.Match[str]) -> str:
        if found[0] not in self.marks:
            self.marks[found[0]] = next(self.free)
        return self.marks[found[0]]

    def lift(self, covered: str) -> tuple[str, list[tuple[int, int]], set[int]]:
        """The text, where the template's special tokens start and end, and where a user's text spells one."""
        text = covered.translate({ord(mark): letter for letter, mark in self.marks.items()})
        specials, spelled, at = [], set(), 0
        while found := self.spelled.search(text, at):
            start, end = found.span()
            if covered[start:end] == found[0]:
                specials.append((start, end))
                at = end
            else:
                spelled.add(start)
                at = start + 1
        return text, specials, spelled


@lru_cache(maxsize=16)
def _patterns(special: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A special token; and the first character of one that is whole or, but for white space, reaches the text's end."""
    words = [[*map(re.escape, word)] for word in sorted(special, key=len, reverse=True)] or [["(?!)"]]
    begun = [reduce(lambda rest, letter: rf"{letter}(?:\s*\Z|{rest})", reversed(word[:-1]), word[-1]) for word in words]
    first = "|".join({word[0] for word in words})  # looked for first: it is rare, and there may be hundreds of words
    one = "|".join(map("".join, words))
    return re.compile(one), re.compile(rf"(?={first})(?={'|'.join(begun)}).", re.DOTALL)
