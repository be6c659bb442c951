"""What a teacher says next at every token of the lessons, computed once and stored beside them.

    lessons -> conversations in the teacher's own spelling -> logits / T -> k likeliest -> the student's tokens
            -> {split}-teacher.ids [learned, K], {split}-teacher.logp [learned, K] (half precision), gathered by `place`

The teacher reads each conversation as it was taught to, under its own template and tokenizer. What it says where one of
the student's tokens begins is that token's lesson, wherever both have a boundary there; elsewhere nothing is stored
(-inf), and the text itself is learned. A teacher's token that the student lacks counts as the first of the tokens that
spell it. Between unrelated vocabularies the probabilities alone are stored, for ULD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Batch
from nomoat.data.chat import Chat
from nomoat.data.cut import first_tokens
from nomoat.data.lessons import SPLITS, LessonRows, Lessons, lesson_of
from nomoat.data.tokenizer import Tokenizer, load

MOST = 1 << 30  # tokens of a conversation: whatever it has
ROWS = 16  # conversations that the teacher reads at once
FEW = 0.5
"""Share of the tokens with a lesson below which that is a warning: the others are learned from the text alone."""

Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Taught(Lessons):
    """Recipe data: lessons with what a teacher says of each learned token.

    Args:
        path: the folder.
        context_length: as of any lessons.
        ids: as of any lessons.
        k: the teacher's likeliest tokens that are stored.
    """

    k: int = 32

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """As of any lessons, without `bytes`: a divergence is no cross-entropy that bits per byte could be made of."""
        for batch in super().held_out(family, batch_size, tokens):
            yield {name: value for name, value in batch.items() if name != "bytes"}

    def open(self, split: str = "train") -> TaughtRows:
        """One part.

        Raises:
            DataError: the teacher's logits are not there.
        """
        return TaughtRows(Path(self.path), split, self.context_length, self.k)


class TaughtRows(LessonRows):
    """One part of the lessons with the teacher's logits."""

    def __init__(self, folder: Path, split: str, length: int, k: int) -> None:
        super().__init__(folder, split, length)
        rows = int(self.learn.sum())
        paths = [folder / f"{split}-teacher.{name}" for name in ("ids", "logp")]
        types: tuple[Any, Any] = np.dtype(np.uint32), np.dtype(np.float16)
        for path, kind in zip(paths, types, strict=True):
            if not path.is_file() or path.stat().st_size != rows * k * kind.itemsize:
                why = f"{rows:,} x {k} numbers belong there"
                raise DataError(f"{path} is not there, or not whole", why, "distil again")
        self.row_of = np.cumsum(self.learn) - 1
        shape = (rows, k)
        self.ids, self.logp = (
            np.memmap(path, kind, "r", shape=shape) if rows else np.zeros(shape, kind)
            for path, kind in zip(paths, types, strict=True)
        )

    def batch(self, rows: Any, index: Any) -> Batch:
        """As of any lessons, with `teacher_ids` and `teacher_logp` [B, L + 1, K]."""
        made = super().batch(rows, index)
        mask_BL, place_BL = made["mask"].numpy(), made["place"].numpy()
        shape = *mask_BL.shape, self.ids.shape[1]
        ids_BLK, logp_BLK = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
        row_N = self.row_of[place_BL[mask_BL]]
        ids_BLK[mask_BL], logp_BLK[mask_BL] = self.ids[row_N], self.logp[row_N]
        return {**made, "teacher_ids": torch.from_numpy(ids_BLK), "teacher_logp": torch.from_numpy(logp_BLK)}


@dataclass(frozen=True)
class Speaker:
    """Who reads a conversation in which words."""

    tokenizer: Tokenizer
    chat: Chat


def boundaries(ids: Sequence[int], learn: Sequence[bool], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(turn, byte in it) at which each learned token begins; byte 0 is the first that is no space.

    Templates differ in the space that they put before an answer, and so do the first bytes that are learned.
    """
    found, turns, before = list[tuple[int, int]](), list[list[int]](), False
    for token, learned in zip(ids, learn, strict=True):
        if learned and not before:
            turns.append([])
        if learned:
            turns[-1].append(int(token))
        before = learned
    for turn, tokens in enumerate(turns):
        spelled = b"".join(tokenizer.tokens[token] for token in tokens)
        ends_N = np.cumsum(tokenizer.lengths[tokens]) - (len(spelled) - len(spelled.lstrip()))
        found += [(turn, int(at)) for at in (ends_N - tokenizer.lengths[tokens]).tolist()]
    return found


def write_logits(
    lessons: Lessons, model: Any, teacher: Speaker, k: int = 32, temperature: float = 1.0, watch: Watch | None = None
) -> Taught:
    """Let a teacher read the lessons; what a killed call has written is kept.

    Args:
        lessons: written before.
        model: the teacher: whatever has `trunk` and `table`, on its device.
        teacher: its words.
        k: likeliest tokens that are stored.
        temperature: T; the student is held against it at the same.
        watch: told {"kind": "phase", ...}.

    Raises:
        ConfigError: next to none of the student's tokens begins where one of the teacher's does.
    """
    folder = Path(lessons.path)
    student = Speaker(load(folder / "tokenizer.json"), Chat.of(folder))
    first_V = first_tokens(teacher.tokenizer, student.tokenizer)
    k = min(k, teacher.tokenizer.vocab_size, student.tokenizer.vocab_size)
    asked = aligned = 0
    for split in SPLITS:
        with (folder / f"{split}-teacher.ids").open("ab") as ids, (folder / f"{split}-teacher.logp").open("ab") as logp:
            for said, rows in _read(lessons.open(split), student, teacher):
                width = k * 2
                if logp.tell() >= (said + len(rows.places)) * width and ids.tell() >= (said + len(rows.places)) * k * 4:
                    continue
                ids.truncate(said * k * 4)
                logp.truncate(said * width)  # of a batch that a kill cut short
                found = _likeliest(model, rows, first_V, k, temperature)
                for file, numbers in ((ids, found[0].astype(np.uint32)), (logp, found[1].astype(np.float16))):
                    file.seek(0, 2)
                    file.write(numbers.tobytes())
                asked, aligned = asked + len(rows.places), aligned + sum(place >= 0 for place in rows.places)
                if watch is not None:
                    watch({"kind": "phase", "phase": "scoring", "detail": f"{said + len(rows.places):,} tokens"})
    if asked and aligned < asked / 10:
        why = f"{aligned:,} of {asked:,} tokens begin where one of the teacher's does"
        raise ConfigError("these tokenizers cannot be aligned", why, "use --by text")
    if asked and watch is not None:
        share = f"{aligned / asked:.0%} of the tokens are learned from the teacher's probabilities"
        few = aligned < FEW * asked
        watch({"kind": "warning" if few else "phase", "phase": "scoring", "detail": share, "text": share})
    return Taught(lessons.path, lessons.context_length, lessons.ids, k)


@dataclass(frozen=True)
class _Rows:
    """Conversations for the teacher to read, and for each of the student's learned tokens which of the learned tokens
    of all these it is held against; -1 for none."""

    told: list[tuple[list[int], list[bool]]]
    places: list[int]


def _read(opened: LessonRows, student: Speaker, teacher: Speaker) -> Iterator[tuple[int, _Rows]]:
    """Batches of conversations, each with how many of the student's learned tokens lie before it."""
    said, told, places, learned = 0, list[Any](), list[int](), 0
    for number, messages in enumerate(opened.messages()):
        span = opened.starts[number] + np.arange(opened.lengths[number])
        own = boundaries(opened.reader.gather(span).tolist(), opened.learn[span].tolist(), student.tokenizer)
        lesson = lesson_of(messages, teacher.chat, teacher.tokenizer, MOST)
        ids, learn = (lesson.ids, lesson.learn) if lesson else ([teacher.tokenizer.eot], [False])
        keys = boundaries(ids, learn, teacher.tokenizer)
        theirs = {key: learned + place for place, key in enumerate(keys)}
        places += [theirs.get(key, -1) for key in own]
        told.append((ids, learn))
        learned += sum(learn)
        if len(told) == ROWS:
            yield said, _Rows(told, places)
            said, told, places, learned = said + len(places), [], [], 0
    if told:
        yield said, _Rows(told, places)


@torch.no_grad()
def _likeliest(
    model: Any, rows: _Rows, first_V: NDArray[np.int64] | None, k: int, temperature: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The k likeliest [N, K] next tokens, as the student's, and their log-probabilities."""
    place = next(iter(model.parameters())).device
    longest = max(len(ids) for ids, _ in rows.told)
    tokens_BL = torch.zeros(len(rows.told), longest, dtype=torch.int64)
    learn_BL = torch.zeros(len(rows.told), longest, dtype=torch.bool)
    for row, (ids, learn) in enumerate(rows.told):
        tokens_BL[row, : len(ids)], learn_BL[row, : len(ids)] = torch.tensor(ids), torch.tensor(learn)
    learn_BL[:, 0] = False  # nothing stands before it
    x_ND = model.trunk({"tokens": tokens_BL.to(place)})[learn_BL[:, 1:].to(place)]
    parts = [F.linear(x_PD, model.table).float().div_(temperature).log_softmax(-1).topk(k) for x_PD in x_ND.split(256)]
    values_NK, ids_NK = torch.cat([p.values.cpu() for p in parts]), torch.cat([p.indices.cpu() for p in parts])
    if first_V is not None:
        ids_NK, values_NK = _merged(torch.from_numpy(first_V)[ids_NK], values_NK)
    chosen = torch.tensor(rows.places)
    there_N1 = (chosen >= 0)[:, None]
    ids_NK = torch.where(there_N1, ids_NK[chosen.clamp(min=0)], 0)
    return ids_NK.numpy(), values_NK[chosen.clamp(min=0)].masked_fill(~there_N1, -torch.inf).numpy()


def _merged(ids_NK: torch.Tensor, logp_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Equal tokens of a row as one, with their probabilities added; those that the student has no spelling for go."""
    first_NK = (ids_NK[:, :, None] == ids_NK[:, None, :]).int().argmax(2)
    prob_NK = torch.zeros_like(logp_NK).scatter_add_(1, first_NK, logp_NK.exp())
    logp_NK = prob_NK.log().masked_fill(ids_NK < 0, -torch.inf)
    return ids_NK.clamp(min=0), logp_NK
