"""Lessons: conversations as training data, whole in rows of one length, of which the answers alone are learned.

    Conversation -> Chat.tokens -> ids, learn -> shards + learn masks on disk
    step -> Order -> row -> conversations back to back -> tokens, mask, document, positions, place [B, L+1]

A conversation stands in its row exactly as serving renders it: its first token is its own, at position 0, with nothing
before it. `place` is where each token lies in the shards, -1 in padding: what else there is of every token (a teacher's
logits) can lie in a file beside them, in the same order, and be gathered by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Batch
from nomoat.data.chat import Chat
from nomoat.data.conversations import Conversation
from nomoat.data.document import Dropped
from nomoat.data.encoding import joined
from nomoat.data.held_out import DROP, HOLD, KEEP, by_hash, first_equal
from nomoat.data.manifest import DROPPED, NAME, Manifest, changed, digest, listed
from nomoat.data.near import group, signatures
from nomoat.data.order import Order
from nomoat.data.packing import best_fit
from nomoat.data.readers import Found
from nomoat.data.rows import Rows, batches
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.tokenizer import Tokenizer, load

SPLITS = ("train", "heldout")
WORDS = ("tokenizer.json", "chat.json")
MOST_HELD = 2000  # conversations
TOLD = 500  # conversations between two words of progress

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Lessons:
    """Recipe data: conversations that `write_lessons` wrote.

    Args:
        path: the folder.
        context_length: tokens that a model sees at once, L; a row has L + 1, and every conversation fits in one.
        ids: the manifest's id as it was when the recipe was resolved; empty: not checked.
    """

    path: str
    context_length: int = 512
    ids: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The folder, as of any data."""
        return (self.path,)

    def changed(self) -> list[str]:
        """Say in words how the data differs from what the recipe was resolved with; [] where it does not."""
        manifest = Manifest.load(self.path)
        found = [f"the lessons in {self.path} were made anew"] if self.ids and manifest.id != self.ids[0] else []
        return found + (changed(self.path) if manifest.files else [])

    def open(self, split: str = "train") -> LessonRows:
        """One part, packed.

        Raises:
            DataError: no lessons there, or files that do not fit together.
            ConfigError: a conversation is longer than a row.
        """
        return LessonRows(Path(self.path), split, self.context_length)

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls."""
        return batches(self.sampler(seed), batch_size, start, rank, world)

    def sampler(self, seed: int) -> Callable[[ArrayLike], Batch]:
        """What gives the samples of any global indices [B]."""
        opened = self.open()
        order = Order([opened.size], None, seed)
        return lambda index_B: opened.batch(order.at(index_B)[1], index_B)

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Batches of about `tokens` held-out tokens, evenly chosen; `bytes` [B] is what is learned of each row."""
        opened = self.open("heldout")
        lengths_V = load(Path(self.path) / "tokenizer.json").lengths
        count = min(opened.size, max(1, tokens // self.context_length))
        chosen = np.linspace(0, opened.size - 1, count).round().astype(np.int64) if count else np.zeros(0, np.int64)
        for first in range(0, count, batch_size):
            batch = opened.batch(chosen[first : first + batch_size], chosen[first : first + batch_size])
            spelled_BL = lengths_V[batch["tokens"].numpy()] * batch["mask"].numpy()
            yield {**batch, "bytes": spelled_BL.sum(1).tolist()}


class LessonRows:
    """One part of the lessons: any row in constant time.

    Args:
        folder: where they lie.
        split: `train` or `heldout`.
        length: L; a row has L + 1 slots.

    Attributes:
        reader: the shards; a document is a conversation and the document end, which no row shows.
        learn: whether each of the reader's tokens is learned [tokens].
        size: rows in an epoch.
    """

    def __init__(self, folder: Path, split: str, length: int) -> None:
        self.reader, self.slots = ShardReader(folder, split), length + 1
        self.learn = np.fromfile(folder / f"{split}-learn.bin", dtype=bool)
        if len(self.learn) != self.reader.tokens:
            raise DataError(f"{folder / split}-learn.bin is damaged", "it does not fit the shards", "tune again")
        self.starts = self.reader.ends - np.diff(self.reader.ends, prepend=0)
        self.lengths = self.reader.ends - self.starts - 1
        longest = int(self.lengths.max(initial=0))
        if longest > self.slots:
            raise ConfigError(
                f"a context of {length:,} tokens cannot hold the longest conversation, which has {longest:,}",
                fix=f"use {longest:,}",
            )
        row_D, _ = best_fit(self.lengths, np.zeros_like(self.lengths), self.slots)
        self.documents = np.argsort(row_D, kind="stable")
        self.size = int(row_D.max(initial=-1)) + 1
        self.firsts = np.searchsorted(row_D[self.documents], np.arange(self.size + 1))

    @property
    def epoch_samples(self) -> int:
        """The same by the name that text has for it."""
        return self.size

    def messages(self) -> Iterator[list[dict[str, Any]]]:
        """What was said in each conversation, whole, in the order of the reader's documents."""
        with (self.reader.folder / f"{self.reader.split}.jsonl").open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def batch(self, rows: ArrayLike, index: ArrayLike) -> Batch:
        """The rows of these numbers [B], with the global index [B] of each."""
        import torch

        row_B = np.atleast_1d(np.asarray(rows, dtype=np.int64))
        place_BL = np.full((len(row_B), self.slots), -1, dtype=np.int64)
        document_BL, positions_BL = np.full_like(place_BL, -1), np.zeros_like(place_BL)
        for number, row in enumerate(row_B.tolist()):
            slot = 0
            for document in self.documents[self.firsts[row] : self.firsts[row + 1]].tolist():
                here = slice(slot, slot := slot + int(self.lengths[document]))
                positions_BL[number, here] = np.arange(here.stop - here.start)
                place_BL[number, here] = self.starts[document] + positions_BL[number, here]
                document_BL[number, here] = document
        there_BL = place_BL >= 0
        read_BL = self.reader.gather(place_BL.reshape(-1)).reshape(place_BL.shape)
        tokens_BL = np.where(there_BL, read_BL, self.reader.eot)
        mask_BL = there_BL & self.learn[place_BL] & (positions_BL > 0)
        made = Rows(tokens_BL.astype(np.int64), mask_BL, document_BL, positions_BL).batch(index)
        return {**made, "place": torch.from_numpy(place_BL)}


@dataclass(frozen=True)
class Lesson:
    """A conversation as tokens.

    Args:
        ids, learn: as `Chat.tokens` gives them.
        shortened: whether something had to be left out.
    """

    ids: list[int]
    learn: list[bool]
    shortened: bool = False


def lesson_of(
    messages: Sequence[Mapping[str, Any]], chat: Chat, tokenizer: Tokenizer, most: int, open_end: bool = False
) -> Lesson | None:
    """A conversation in at most `most` tokens; None where nothing that could be learned is left.

    One that is too long loses its oldest turns first, a question with its answer, never the system message; then its
    last answer is cut at the end, and with it the tokens that would have ended it. Those go too where `open_end`
    says that the last answer goes on.

    Raises:
        ConfigError, DataError: the template refuses it.
    """
    kept = [*messages]
    ids, learn = chat.tokens(kept, tokenizer, answer=False)
    shortened = len(ids) > most
    while len(ids) > most:
        users = [number for number, message in enumerate(kept) if message["role"] == "user"]
        if len(users) < 2:
            break
        del kept[users[0] : users[1]]
        ids, learn = chat.tokens(kept, tokenizer, answer=False)
    if open_end:
        end = _end(kept, ids, chat, tokenizer)
        ids, learn = ids[: len(ids) - end], learn[: len(ids) - end]
    return Lesson(ids[:most], learn[:most], shortened) if any(learn[1:most]) else None


def _end(messages: Sequence[Mapping[str, Any]], ids: Sequence[int], chat: Chat, tokenizer: Tokenizer) -> int:
    """Tokens with which the template ends a conversation: those that stay where the last answer is another."""
    other = "1" if messages[-1]["content"].endswith("0") else "0"
    beside, _ = chat.tokens([*messages[:-1], {**messages[-1], "content": other}], tokenizer, answer=False)
    return next((place for place, (a, b) in enumerate(zip(reversed(ids), reversed(beside), strict=False)) if a != b), 0)


def write_lessons(
    folder: Path | str,
    rows: Iterable[Conversation | Dropped],
    words: Path | str,
    context_length: int,
    source: Path | str | None = None,
    settings: Mapping[str, Any] = {},
    held_out_share: float = 0.1,
    watch: Watch | None = None,
) -> Manifest:
    """Write conversations as lessons, whole or not at all.

    Args:
        folder: made by this call.
        rows: conversations, and what was left out while they were read.
        words: a folder with the tokenizer.json and chat.json that they are spelled with: a run's, usually. Both are
            copied, so that what is served is what was taught.
        context_length: most tokens of a conversation; see `lesson_of` for longer ones.
        source: the file or folder that they were read from; None: they come from nowhere else.
        settings: noted in the manifest, beside `shortened`, `forms`, `teachers` and `longest`.
        held_out_share: of the conversations, at most, chosen by their contents; near-duplicates stay together.
        watch: told {"kind": "ingest", "stage": "lessons", ...}.

    Raises:
        DataError: no conversation is left, with the reasons; or the folder exists.
    """
    target = Path(folder)
    if target.exists():
        raise DataError(f"{target} exists already", "", "name another folder")
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _Writing(partial, Path(words), context_length, watch).run(rows, source, dict(settings), held_out_share)
        partial.rename(target)
        durable.sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Manifest.load(target)


class _Writing:
    """Lessons while they are written."""

    def __init__(self, folder: Path, words: Path, context_length: int, watch: Watch | None) -> None:
        self.folder, self.words, self.most, self.watch = folder, words, context_length, watch
        self.tokenizer, self.chat = load(words / "tokenizer.json"), Chat.of(words)
        self.kept: list[tuple[Conversation, Lesson, str]] = []
        self.dropped: list[Dropped] = []

    def run(
        self, rows: Iterable[Conversation | Dropped], source: Path | str | None, settings: dict[str, Any], share: float
    ) -> None:
        for number, row in enumerate(rows, 1):
            self._take(row)
            if self.watch is not None and number % TOLD == 0:
                done = {"done": number, "total": 0, "documents": len(self.kept), "dropped": len(self.dropped)}
                self.watch({"kind": "ingest", "stage": "lessons", **done})
        if not self.kept:
            raise self._nothing(source)
        fate_N, near = self._fates(share)
        for name in WORDS:
            if (self.words / name).is_file():
                shutil.copyfile(self.words / name, self.folder / name)
        parts = {**self._shards(fate_N), "near_duplicates": near}
        used = [(row, lesson) for (row, lesson, _), fate in zip(self.kept, fate_N, strict=True) if fate != DROP]
        made = Counter((row.origin, row.terms, row.teacher_licence or row.licence) for row, _ in used if row.generation)
        settings |= {
            "shortened": sum(lesson.shortened for _, lesson in used),
            "longest": max(len(lesson.ids) for _, lesson in used),
            "forms": dict(Counter(row.form for row, _ in used)),
            "teachers": [
                {"teacher": teacher, "terms": terms, "licence": licence, "rows": count}
                for (teacher, terms, licence), count in made.items()
            ],
        }
        self._manifest(parts, source, settings)

    def _take(self, row: Conversation | Dropped) -> None:
        if isinstance(row, Dropped):
            self.dropped.append(row)
            return
        where = row.source, f"line {row.line}" if row.line else ""
        try:
            read = self.tokenizer.decode(self.tokenizer.encode(row.text))
            if unspelled := {*row.text} - {*read} - {*" \n\t"}:
                raise DataError("signs that the model's tokenizer does not know", " ".join(sorted(unspelled)[:10]))
            lesson = lesson_of(row.messages, self.chat, self.tokenizer, self.most, row.open_end)
        except (ConfigError, DataError) as error:
            reason = "cannot be spelled for this model" if isinstance(error, DataError) else "refused by the template"
            self.dropped.append(Dropped(*where, reason, f"{error.what}: {error.why}"))
            return
        if lesson is None:
            self.dropped.append(Dropped(*where, "no answer within the context", f"{self.most:,} tokens"))
            return
        self.kept.append((row, lesson, hashlib.sha256(row.canonical.encode()).hexdigest()))

    def _nothing(self, source: Path | str | None) -> DataError:
        counted = Counter(item.reason for item in self.dropped).most_common(5)
        first = next((item for item in self.dropped if item.detail), None)
        why = ", ".join(f"{count:,} x {reason}" for reason, count in counted) or "there are no rows"
        return DataError(
            f"there is no conversation in {source or 'the data'}",
            why + (f"; the first: {first.source} {first.member}, {first.detail}" if first else ""),
            "chat jsonl, Alpaca, ShareGPT, and tables of prompts and answers are read; name other columns with "
            "--prompt and --answer",
        )

    def _fates(self, share: float) -> tuple[NDArray[np.int8], int]:
        """KEEP, HOLD or DROP [N], and how many conversations have a near-duplicate."""
        hashes = np.frombuffer(bytes.fromhex("".join(key for _, _, key in self.kept)), np.uint8).reshape(-1, 32)
        first = first_equal(hashes)
        fate = np.where(first == np.arange(len(first)), KEEP, DROP).astype(np.int8)
        kept = np.flatnonzero(fate == KEEP)
        member = group(signatures(self.kept[place][0].text for place in kept))
        if len(kept) > 1:
            ones = np.ones(len(hashes), dtype=np.int64)
            by_hash(fate, np.zeros(len(fate)), kept, member, (hashes, ones, share * len(kept), MOST_HELD))
            fate[~np.isin(fate, (HOLD, DROP))] = KEEP  # a conversation is not cut in two
        self.dropped += [
            Dropped(self.kept[place][0].source, f"line {self.kept[place][0].line}", "duplicate")
            for place in np.flatnonzero(fate == DROP)
        ]
        return fate, int((np.bincount(member)[member] > 1).sum())

    def _shards(self, fate_N: NDArray[np.int8]) -> dict[str, Any]:
        """Shards and masks of both parts; what the manifest says of them."""
        splits: dict[str, Any] = {}
        files, held, tally = list[Any](), list[Any](), Counter[tuple[Any, ...]]()
        for split, fate in zip(SPLITS, (KEEP, HOLD), strict=True):
            writer, learn, size = ShardWriter(self.folder, split, self.tokenizer), bytearray(), 0
            for place in np.flatnonzero(fate_N == fate):
                row, lesson, key = self.kept[place]
                size_here, where = len(row.text.encode()), f"line {row.line}"
                line: dict[str, Any] = {"id": key, "source": row.source, "member": where, "bytes": size_here}
                named = ("licence", "evidence", "origin", "generation", "derived_from")
                writer.add(lesson.ids, {**line, **{name: getattr(row, name) for name in named}})
                learn += bytes([*lesson.learn, False])
                size += line["bytes"]
                kind = row.licence, row.evidence, row.origin, row.generation
                if fate == HOLD:
                    held.append({"hash": key, **{name: line[name] for name in ("source", "member", "bytes")}})
                    continue
                counts = {"documents": 1, "tokens": len(lesson.ids) + 1, "bytes": line["bytes"]}
                tally.update({(*kind, name): count for name, count in counts.items()})
            files += [asdict(file) for file in writer.finish()]
            durable.replace(self.folder / f"{split}-learn.bin", bytes(learn))
            said = "".join(self.kept[place][0].canonical + "\n" for place in np.flatnonzero(fate_N == fate))
            durable.replace(self.folder / f"{split}.jsonl", said.encode())
            splits[split] = {"documents": writer.documents, "tokens": writer.tokens, "bytes": size}
        return {"splits": splits, "shards": files, "ledger": asdict(joined(tally)), "held_out": held}

    def _manifest(self, parts: dict[str, Any], source: Path | str | None, settings: dict[str, Any]) -> None:
        lost = [{"source": d.source, "member": d.member, "reason": d.reason, "detail": d.detail} for d in self.dropped]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lost)
        durable.replace(self.folder / DROPPED, text.encode())
        ours = (f"{split}{end}" for split in SPLITS for end in ("-learn.bin", ".jsonl"))
        paths = [path for name in (DROPPED, *WORDS, *ours) if (path := self.folder / name).is_file()]
        parts["shards"] += [{"name": p.name, "bytes": p.stat().st_size, "sha256": digest(p)} for p in paths]
        read = [item for item in listed(Path(source), False) if isinstance(item, Found)] if source else []
        manifest = Manifest(
            id=hashlib.sha256(json.dumps(parts["shards"], sort_keys=True).encode()).hexdigest(),
            source=str(Path(source).absolute()) if source else "",
            title=Path(source).name if source else "conversations",
            request="",
            settings=settings,
            files=[{"path": f.shown, "size": f.size, "mtime_ns": f.mtime_ns, "sha256": digest(f.path)} for f in read],
            tokenizer=self.tokenizer.hash,
            dropped=dict(Counter(item.reason for item in self.dropped)),
            encodings={},
            columns={},
            **parts,
        )
        durable.replace(self.folder / NAME, manifest.to_json())
