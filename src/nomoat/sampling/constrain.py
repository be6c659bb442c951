"""Constrained decoding: what may follow, so that a text keeps to a choice, a regex, a JSON schema or a grammar.

    kind, spec -> limits -> grammar -> matcher (kept by the vocabulary) -> fork
    allowed() -> [V] True where a token may follow -> pick -> advance(token) -> ... until done

The bytes of tokens are matched by llguidance (the extra `serve`): by derivatives of regexes and an Earley parser, with
no automaton built beforehand that a small regex could blow up. JSON is written on one line, as `json.dumps` does.

Willard and Louf 2023, arXiv:2307.09702 (masks over a vocabulary).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from nomoat.core.errors import ConfigError, NomoatError

Kind = Literal["choice", "regex", "json_schema", "json_object", "grammar"]
KEPT, SPELLED, DOUBTED = 64, 16, 256
"""Constraints that a vocabulary keeps compiled; tokens that are spelled ahead of a text that must follow (the first
counts); tokens of a mask that are tried one by one where a byte that must follow may be none (see `_Matched`)."""
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraint(Protocol):
    """What may follow a text. `allowed` and `advance` raise a NomoatError where nothing can, or the token may not.

    `done`: the text is whole, nothing but its end may follow. `allowed`: True [V] where a token may follow, at least
    one unless `done`; None: any may. `advance` takes in the token that was drawn; `fork` is a copy at the same place.
    """

    @property
    def done(self) -> bool: ...
    def allowed(self) -> Tensor | None: ...
    def advance(self, token: int) -> None: ...
    def fork(self) -> Constraint: ...


@dataclass(frozen=True)
class Limits:
    """What a constraint may cost.

    Args:
        characters: length of a specification; llguidance itself refuses more than 128 levels.
        compile_work, step_work: for its first states and for one token; some 50,000 and 15,000 take a millisecond.
    """

    characters: int = 100_000
    compile_work: int = 1_000_000
    step_work: int = 200_000


@dataclass(eq=False)
class Vocabulary:
    """The tokens of a model as they are matched: made once a model by `of`, kept by the caller."""

    size: int
    tokens: Any
    whole: bool  # every byte is a token
    compiled: OrderedDict[tuple[Any, ...], _Matched] = field(default_factory=OrderedDict)
    lock: Any = field(default_factory=Lock)

    @classmethod
    def of(cls, token_bytes: Sequence[bytes], stops: Sequence[int]) -> Vocabulary:
        """The vocabulary of a tokenizer.

        Args:
            token_bytes: one entry an id; b"" for what is no text.
            stops: ids that end a text, at least one.

        Raises:
            ConfigError: llguidance is not installed.
        """
        guidance = _llguidance()
        speller = guidance.TokenizerWrapper(_Speller(token_bytes, stops))
        tree = guidance.LLTokenizer(speller, eos_token=[*map(int, stops)])
        return cls(len(token_bytes), tree, len({token for token in token_bytes if len(token) == 1}) == 256)


class _Speller:
    """What llguidance asks of a tokenizer. Text that must follow is spelled in tokens as long as they come."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], stops: Sequence[int]) -> None:
        self.tokens, self.eos_token_id = [*tokens], int(stops[0])
        self.special_token_ids = [token for token, spelled in enumerate(tokens) if not spelled]
        self.ids = {spelled: token for token, spelled in reversed([*enumerate(tokens)]) if spelled}
        self.longest = max(map(len, self.ids))

    def __call__(self, text: bytes) -> list[int]:
        found: list[int] = []
        at = 0
        while at < len(text) and len(found) < SPELLED:
            size = next((size for size in range(self.longest, 0, -1) if text[at : at + size] in self.ids), 0)
            if not size:
                break  # `allowed` comes to a dead end there
            found.append(self.ids[text[at : at + size]])
            at += min(size, len(text) - at)
        return found


def compile_constraint(kind: Kind, spec: Any, vocabulary: Vocabulary, limits: Limits = Limits()) -> Constraint:
    """A constraint at its beginning.

    Args:
        kind: which of `Kind`.
        spec: a list of texts; a regex for the whole text (Rust's; `\\d` is 0 to 9); a schema, as a dict or as text;
            nothing; a grammar in Lark's form or llama.cpp's.
        vocabulary: the model's.
        limits: what it may cost.

    Raises:
        ConfigError: it cannot be compiled, passes a limit, or this vocabulary cannot begin it.
    """
    try:
        text = json.dumps({"type": "object"} if kind == "json_object" else spec, ensure_ascii=False)
        if len(text) > limits.characters:
            raise ValueError(f"it has {len(text):,} characters; {limits.characters:,} may be")
        with vocabulary.lock:
            made = vocabulary.compiled.get((kind, text, limits))
        if made is None:
            made = _Matched(_matcher(kind, json.loads(text), vocabulary, limits), vocabulary)
            made.allowed()  # the dearest of its masks; it also shows what cannot even begin
    except (ValueError, TypeError, RecursionError, NomoatError) as error:
        if isinstance(error, ConfigError):
            raise
        fix = "make it smaller or simpler" if kind in get_args(Kind) else f"there is {', '.join(get_args(Kind))}"
        raise ConfigError(f"this {kind} cannot constrain a text", getattr(error, "why", str(error)), fix) from None
    with vocabulary.lock:
        vocabulary.compiled[kind, text, limits] = made
        vocabulary.compiled.move_to_end((kind, text, limits))
        if len(vocabulary.compiled) > KEPT:
            vocabulary.compiled.popitem(last=False)
        return made.fork()


def _matcher(kind: Kind, spec: Any, vocabulary: Vocabulary, limits: Limits) -> Any:
    guidance = _llguidance()
    if kind in ("json_schema", "json_object"):
        schema = json.loads(spec) if isinstance(spec, str) else spec
        grammar = guidance.LLMatcher.grammar_from_json_schema({} if schema is True else schema, overrides=ONE_LINE)
    elif kind == "choice":
        if not (isinstance(spec, list) and spec and all(isinstance(each, str) for each in spec)):
            raise ValueError("a choice is a list of texts")
        options = " | ".join(json.dumps(each, ensure_ascii=False) for each in spec)
        options = "".join(c if c.isprintable() or c > "\uffff" else f"\\u{ord(c):04x}" for c in options)
        grammar = guidance.LLMatcher.grammar_from_lark(f"start: {options}")
    elif kind == "regex" and isinstance(spec, str):
        grammar = guidance.LLMatcher.grammar_from_lark(f"start: /{guidance.regex_to_lark(spec, 'd')}/")
    elif kind == "grammar" and isinstance(spec, str):
        grammar = guidance.grammar_from(kind, spec)
    else:
        raise ValueError("it is none")
    work = {"initial_lexer_fuel": limits.compile_work, "step_lexer_fuel": limits.step_work, "verbose_errors": False}
    made = guidance.LLMatcher(vocabulary.tokens, grammar, log_level=0, limits=guidance.LLParserLimits(**work))
    if made.is_error():
        raise ValueError(_said(made))
    return made


class _Matched:
    """A constraint that llguidance matches. Where no token is the byte that must follow, its masks hold wrong ones."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self.matcher, self.vocabulary = matcher, vocabulary

    @property
    def done(self) -> bool:
        return bool(self.matcher.is_stopped())

    def allowed(self) -> Tensor:
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed_V = np.unpackbits(bits, count=self.vocabulary.size, bitorder="little").view(np.bool_)
        if not self.vocabulary.whole and np.count_nonzero(allowed_V) <= DOUBTED:
            for token in np.flatnonzero(allowed_V).tolist():
                allowed_V[token] = self.matcher.validate_tokens([token]) == 1
        if self.matcher.is_error() or not (allowed_V.any() or self.done):
            said = _said(self.matcher).partition("NoExtension")[0]
            raise NomoatError("nothing may follow here", said or "no token spells what would have to")
        return torch.from_numpy(allowed_V)

    def advance(self, token: int) -> None:
        if not self.matcher.consume_token(token):
            raise NomoatError(f"token {token} may not follow here", _said(self.matcher))

    def fork(self) -> _Matched:
        return _Matched(self.matcher.deep_copy(), self.vocabulary)


def _said(matcher: Any) -> str:
    """What llguidance has to complain of, without the state of its parser."""
    words = matcher.get_error().partition("<state>")[0].split()
    return " ".join(word if len(word) <= 60 else f"{word[:20]}..." for word in words)[:400]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        why, fix = "llguidance, which it needs, is not installed", "pip install 'nomoat[serve]'"
        raise ConfigError("constrained decoding is not there", why, fix) from None
    return llguidance
