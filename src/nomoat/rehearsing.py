"""Rehearsing: what a chat model answers by itself, written before it is tuned and shown to it meanwhile.

    template -> head of a user's turn -> the model writes a question \
                              prompts of the conversations to come   -> its likeliest answer -> lessons

Half of the questions are its own: a model that was taught to chat has read the questions too, so that it can ask them,
and they are of the kinds that it was made for. The other half are those that it is about to learn other answers to:
else it would learn to tell the two kinds apart, and keep its manner for its own kind alone.

Xu et al. 2024, arXiv:2406.08464 (Magpie: questions drawn from behind the head of the user's turn); Robins 1995
(pseudo-rehearsal).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core.run import Run, load
from nomoat.core.types import Decodes
from nomoat.data.conversations import Conversation
from nomoat.data.order import permute
from nomoat.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nomoat.data.chat import Chat, Messages

Watch = Callable[[Mapping[str, Any]], None]

QUESTION, ANSWER = 64, 48
"""Most tokens of each. A longer answer is learned without its end: what tuning changes is how an answer begins."""
FEWEST, MOST = 16, 2048
"""Conversations that are written, whatever they come to in tokens."""
WAVE = 64
"""Questions drawn together."""
WAVES = 3 * MOST // WAVE
"""After so many it is given up: a weak model ends few of its questions, or asks the same."""


def rehearsal(
    base: Run,
    tokens: float,
    context_length: int,
    device: str,
    root: Path,
    own: Sequence[Messages] = (),
    seconds: float | None = None,
    watch: Watch | None = None,
) -> Path | None:
    """The folder of a base's conversations with itself, written once for the same question; None: it can write none.

    Args:
        base: the run of a model that has a chat template.
        tokens: how many are shown in a pass: so many are written, in `FEWEST` conversations at least, `MOST` at most.
        context_length: most tokens of a conversation.
        device: where it writes.
        root: where data lies.
        own: prompts of the user's, which end with the user's turn; half of what is answered are such.
        seconds: what the writing may take; what there is by then is used.
        watch: told {"kind": "phase", ...}.
    """
    from nomoat.core.device import choose
    from nomoat.data.chat import Chat
    from nomoat.data.lessons import write_lessons
    from nomoat.data.tokenizer import load as read
    from nomoat.evaluate.tuned import other_prompts
    from nomoat.nn.native import quickest

    tokenizer, chat = read(base.path / "tokenizer.json"), Chat.of(base.path)
    held = (base.path / "chat.json").read_text(encoding="utf-8")
    most = round(tokens), context_length, QUESTION, ANSWER
    key = repr((base.name, tokenizer.hash, held, *most, other_prompts(), *own))
    folder = root / f"rehearsal-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if folder.exists():
        return folder
    began, rows, wrote = time.perf_counter(), list[Conversation](), 0
    writer = quickest(load(base).to(choose(device)))
    licence = (base.read_json("ledger.json") or {}).get("licence")
    known = {_plain(text) for text in other_prompts()}
    for asked, answer, cut in conversations(writer, tokenizer, chat, own):
        if (text := _plain(asked[-1]["content"])) not in known:
            known.add(text)
            messages = (*asked, {"role": "assistant", "content": answer})
            wrote += len(chat.tokens(list(messages), tokenizer)[0])
            rows.append(Conversation(messages, base.label, len(rows) + 1, "rehearsal", licence, "of the base",
                                     base.label, generation=1, open_end=cut))  # fmt: skip
        late = seconds is not None and time.perf_counter() - began > seconds
        if watch is not None and len(rows) % FEWEST == 0:
            said = f"the base writes what it is to remember: {wrote:,} tokens of {tokens:,.0f}"
            watch({"kind": "phase", "phase": "rehearsing", "detail": said})
        if len(rows) >= FEWEST and (late or wrote >= tokens or len(rows) == MOST):
            break
    if len(rows) < FEWEST:
        return None
    write_lessons(folder, rows, base.path, context_length, settings={"rehearsal": base.name}, held_out_share=0.0)
    return folder


def conversations(
    writer: Decodes, tokenizer: Tokenizer, chat: Chat, own: Sequence[Messages] = ()
) -> Iterator[tuple[Messages, str, bool]]:
    """Prompt, likeliest answer, and whether it goes on, of one conversation after the other; ends after `WAVES`.

    Args:
        writer: the model.
        tokenizer: its words.
        chat: its template.
        own: the user's prompts, taken in an order of chance, each once, as many as the model draws.
    """
    from nomoat.evaluate.tuned import answers

    own = [own[place] for place in permute(range(len(own)), len(own), 0)] if own else []
    for wave in range(WAVES):
        drawn: list[Messages] = [
            [{"role": "user", "content": text}] for text in questions(writer, tokenizer, chat, wave)
        ]
        own, theirs = own[len(drawn) :], own[: len(drawn)]
        asked = [each for pair in zip_longest(drawn, theirs) for each in pair if each is not None]
        for prompt, (_, one) in zip(asked, answers(writer, tokenizer, chat, asked, ANSWER), strict=True):
            if answer := one.text.strip():
                yield prompt, answer, one.reason == "length"


def questions(writer: Decodes, tokenizer: Tokenizer, chat: Chat, seed: int) -> list[str]:
    """What the model asks, drawn from behind the head of the user's turn; those that it has not ended are left out."""
    from nomoat.sampling.tokens import SamplingOptions
    from nomoat.sampling.write import write

    head, end = user_turn(chat, tokenizer)
    ends, drawn = {*tokenizer.stops, end}, [list[int]() for _ in range(WAVE)]
    drawing = SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=QUESTION, seed=seed)
    for row, token, _ in write(writer, [head] * WAVE, drawing, tuple(ends)):
        drawn[row].append(token)
    return [text for row in drawn if row[-1] in ends and (text := tokenizer.decode(row[:-1]).strip())]


def user_turn(chat: Chat, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The tokens before what a user says, and the first behind it: what stays the same whatever is said."""
    one, other = (chat.tokens([{"role": "user", "content": text}], tokenizer)[0] for text in ("Why", "How come"))
    head = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
    behind = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one[len(head) :]), reversed(other), strict=False))
    return head or [tokenizer.opening], [one[-1], *(token for token, _ in behind)][-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
