"""What is asked of an engine and what it tells: Ask, Event, Full, Stats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.sampling.constrain import Constraint
from nomoat.sampling.tokens import SamplingOptions


@dataclass(frozen=True)
class Ask:
    """A text to be continued.

    Args:
        tokens: the prompt, at least one.
        options: how tokens are drawn; choice i has chance of its own from (seed, i). `stop` is left to the reader.
        stop_tokens: any of them ends a choice, and is told as its last token.
        n: continuations.
        top_logprobs: most likely tokens that are told beside each token.
        constraint: limits what is written; it is not changed itself.
        deadline: moment of `time.monotonic()` at which the work ends.
        prompt_logprobs: tell the tokens of the prompt too, all but the first.
        adapter: which of the model's, where it has several; -1: none.
    """

    tokens: tuple[int, ...]
    options: SamplingOptions = SamplingOptions()
    stop_tokens: tuple[int, ...] = ()
    n: int = 1
    top_logprobs: int = 0
    constraint: Constraint | None = None
    deadline: float | None = None
    prompt_logprobs: bool = False
    adapter: int = -1

    def check(self, context_length: int, vocab_size: int, slots: int) -> None:
        """Refuse what the engine cannot do. Raises ConfigError."""
        length = len(self.tokens)
        if not length:
            raise ConfigError("an empty prompt gives nothing to continue", fix="start it with the token of a beginning")
        if length > context_length:
            raise ConfigError(
                f"a prompt of {length} tokens does not fit into the context of {context_length}",
                fix=f"shorten it by {length - context_length} tokens or more",
            )
        if min(self.tokens) < 0 or max(self.tokens) >= vocab_size:
            wrong = next(token for token in self.tokens if not 0 <= token < vocab_size)
            raise ConfigError(f"token {wrong} is not one of 0 to {vocab_size - 1}", "the model knows no others")
        if not 1 <= self.n <= slots:
            raise ConfigError(f"n is {self.n}", fix=f"1 to {slots}: so many texts are written at once")
        if not 0 <= self.top_logprobs <= vocab_size:
            raise ConfigError(f"top_logprobs is {self.top_logprobs}", fix=f"0 to {vocab_size}")


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one choice, or its end, or both.

    Args:
        choice: 0 to n - 1.
        token: None where only the end is told.
        logprob: in nats under the model itself, before temperature, cuts and constraint.
        top: the most likely tokens with theirs, falling.
        finish: "stop" (a stop token, or the constraint is done), "length", "cancelled", "deadline" or "error"; the
            last event of a choice, and only that, has one.
        error: what went wrong.
        prompt: this is a token of the prompt, told as choice 0 before anything else of the request.
    """

    choice: int
    token: int | None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None
    error: str = ""
    prompt: bool = False


Sink = Callable[[Event], None]


class Ticket:
    """A request on its way."""

    def __init__(self, ask: Ask, sink: Sink) -> None:
        self.ask, self.cancelled = ask, False
        self._sink = sink

    def cancel(self) -> None:
        """End all choices before their next token: from any thread, more than once, after the end too."""
        self.cancelled = True

    def over(self, now: float) -> str | None:
        """Why the request ends now; None: it goes on."""
        if self.cancelled:
            return "cancelled"
        return "deadline" if self.ask.deadline is not None and now >= self.ask.deadline else None

    def tell(self, event: Event) -> None:
        """Hand on an event; if that fails, whoever listened is gone, and the other requests go on."""
        try:
            self._sink(event)
        except Exception:
            self.cancelled = True


class Full(NomoatError):  # noqa: N818 (not an error of the engine, but an answer)
    """As many wait as may.

    Args:
        waiting: how many.
        retry_after: seconds until a place will be free, by the recent pace.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already", fix=f"try again in {retry_after:.0f} seconds")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Stats:
    """What an engine does and has done.

    Requests that wait, texts being written (a prompt being read is one) and slots free beside them; then counts since
    the start: tokens of prompts, written ones, of the prompts' those found in the memory, of drafts; calls of the
    model for tokens to be written; choices cancelled.
    """

    queued: int = 0
    active: int = 0
    slots_free: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    prefix_tokens_reused: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    steps: int = 0
    cancelled: int = 0
