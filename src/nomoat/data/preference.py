"""A row of preferences: a prompt with a chosen and a rejected answer, or one answer that is called good or bad.

    row -> form, by its keys -> prompt as checked messages, answers as texts -> Preference

Forms: prompt (a text or messages), instruction with input, or conversations, each with chosen and rejected (texts, a
message, or messages that begin with the prompt); AlpacaEval's baseline, candidate and preference; and prompt,
completion and label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nomoat.data.conversations import ROLES, checked, form_of
from nomoat.data.streams import UnreadableError

CONVERSATION = "a conversation without a second side"
ANSWERS = ("completion", "response", "answer", "output")
LABELS = {
    **dict.fromkeys(("good", "true", "1", "desirable"), True),
    **dict.fromkeys(("bad", "false", "0", "undesirable"), False),
}

Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Preference:
    """One row.

    Args:
        prompt: the messages before the answer.
        chosen: the better answer; or the one answer that is called good or bad.
        rejected: the worse one; None where there is but one.
        good: what that one is called.
    """

    prompt: Messages
    chosen: str
    rejected: str | None = None
    good: bool = True


def preference(row: Mapping[str, Any]) -> Preference:
    """Read a row of any of the forms.

    Raises:
        UnreadableError: with the reason.
    """
    if "baseline" in row and "candidate" in row and "preference" in row:
        liked = row["preference"]
        if not isinstance(liked, int | float) or liked == 1.5:
            raise UnreadableError("no side is preferred")
        better, worse = ("candidate", "baseline") if liked > 1.5 else ("baseline", "candidate")
        row = {**row, "chosen": row[better], "rejected": row[worse]}
    if "chosen" in row or "rejected" in row:
        before, chosen = _side(row.get("chosen"))
        _, rejected = _side(row.get("rejected"))
        if not chosen or not rejected:
            raise UnreadableError("a missing side", "chosen" if not chosen else "rejected")
        return Preference(_prompt(row, before), chosen, rejected)
    answer = next((name for name in ANSWERS if row.get(name)), None)
    if answer is None or "label" not in row:
        reason = CONVERSATION if form_of(row) else "no pair in it"
        raise UnreadableError(reason, f"its columns are {', '.join(map(str, row))[:200]}")
    good = LABELS.get(str(row["label"]).strip().lower())
    if good is None:
        raise UnreadableError("a label that is neither good nor bad", repr(row["label"])[:40])
    return Preference(_prompt(row, ()), _side(row[answer])[1], good=good)


def _side(value: Any) -> tuple[Messages, str]:
    """The messages before an answer, where the side is a whole conversation, and the answer."""
    if isinstance(value, str):
        return (), value.strip()
    turns = [_message(turn) for turn in (value if isinstance(value, list) else [value])]
    if not turns or turns[-1].get("role") != "assistant" or not isinstance(turns[-1].get("content"), str):
        return (), ""
    return tuple(turns[:-1]), turns[-1]["content"].strip()


def _message(turn: Any) -> dict[str, Any]:
    held = turn if isinstance(turn, dict) else {}
    role = str(held.get("role", held.get("from"))).lower()
    return {"role": ROLES.get(role, role), "content": held.get("content", held.get("value"))}


def _prompt(row: Mapping[str, Any], before: Messages) -> Messages:
    """The messages before the answer, checked as a conversation is."""
    asked: Any = next(
        (row[name] for name in ("prompt", "conversations", "messages", "question") if row.get(name)), before
    )
    if row.get("instruction"):
        given = str(row.get("input") or "").strip()
        asked = f"{row['instruction']}\n\n{given}" if given else str(row["instruction"])
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else [_message(turn) for turn in asked]
    if row.get("system") and turns[:1] and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": row["system"]}, *turns]
    return tuple(checked([*turns, {"role": "assistant", "content": "."}]))[:-1]
