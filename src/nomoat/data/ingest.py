"""Files to a dataset: read, deduplicate, split, train the tokenizer, encode, write shards.

    files -> blocks -> equal texts dropped, near-duplicates grouped -> held-out part -> tokenizer -> ids -> shards

Everything is made in `TARGET.partial` and renamed in one step at the end. Killed at any moment, the same call goes on
where it was: blocks that are read, the tokenizer and blocks that are encoded are found there and not made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.data import corpus, encoding
from nomoat.data.blocks import FORMAT, Facts, Reading, gather, read_blocks
from nomoat.data.document import PIECE_BYTES, Dropped, place
from nomoat.data.held_out import DROP, Plan, plan
from nomoat.data.licence import LicenceFinder
from nomoat.data.manifest import DROPPED, NAME, Manifest, changed, digest, listed
from nomoat.data.readers import Found
from nomoat.data.spdx import expression, licence_id
from nomoat.data.tokenizer import Tokenizer, load

Watch = Callable[[dict[str, Any]], None]
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
MOST_THREADS = 8  # each holds blocks and known words of its own
TOKENIZER = "tokenizer.json"
# The parts of the work and how long each takes, in hundredths, for the time left that is shown.
STAGES = {"read": 25, "compare": 5, "tokenizer": 15, "encode": 45, "write": 10}


def ingest(  # noqa: PLR0913 - the settings of one dataset; each is asked for by name
    source: Path | str | None,
    target: Path | str,
    tokenizer: str | Path | Tokenizer = "bpe",
    vocab_size: int | None = None,
    licence: str | None = None,
    watch: Watch | None = None,
    held_out_share: float = 0.1,
    held_out_bytes: int = 2_000_000,
    text_column: str | None = None,
) -> Manifest:
    """Make a dataset of a file or folder, or find it made.

    Args:
        source: a file or a folder; None: the modules of Python's standard library.
        target: the dataset's folder, made by this call; a killed call leaves `TARGET.partial` for the next one.
        tokenizer: "bpe", "byte", "char", a tokenizer.json, or a tokenizer.
        vocab_size: tokens of "bpe"; None: chosen by the amount of text.
        licence: SPDX expression for everything, in place of what the files say.
        watch: told the progress: {kind: "ingest", stage, done, total, documents, dropped}, `done` and `total` in bytes.
        held_out_share: of the text, to hold out.
        held_out_bytes: of text, to hold out at most.
        text_column: columns of tables to take as text, with commas between; None: chosen by name, else by length.

    Raises:
        ConfigError: a source that does not exist, an unknown tokenizer, no name of a licence.
        DataError: nothing to read, a full disk, or a target that holds another dataset.
        RunError: another process is making the same dataset.
    """
    settings = {
        "tokenizer": tokenizer.hash if isinstance(tokenizer, Tokenizer) else str(tokenizer),
        "vocab_size": vocab_size,
        "licence": licence,
        "held_out_share": held_out_share,
        "held_out_bytes": held_out_bytes,
        "text_column": text_column,
    }
    root = corpus.library() if source is None else Path(source).absolute()
    check(root, source, held_out_share, licence)
    encoding.check_tokenizer(tokenizer, vocab_size)
    work = Work(root, source is None, Path(target).absolute(), settings, watch)
    ready = work.made_already()
    if ready:
        return ready
    with told_in_words(root, work.partial), work.locked():
        return work.run(tokenizer)


def check(root: Path, source: Path | str | None, share: float, licence: str | None) -> None:
    """Refuse at the door what cannot be read."""
    if not root.exists():
        raise ConfigError(f"there is no file or folder {source}", "", "check the path")
    if not 0 < share < 1:
        raise ConfigError(f"held_out_share={share} is no share", "it lies between 0 and 1", "leave it at 0.1")
    if licence is not None and not (licence_id(licence) or expression(licence)):
        raise ConfigError(
            f"`{licence}` names no licence",
            "it is written into the ledger as an SPDX expression, https://spdx.org/licenses",
            "write one such as MIT or CC-BY-4.0, or LicenseRef-NAME for one of your own",
        )


def signature(source: Path | str | None) -> str:
    """A short name for the files as they are now: their names, sizes and times; it changes when one of them does."""
    root = corpus.library() if source is None else Path(source).absolute()
    found = [item for item in listed(root, source is None) if isinstance(item, Found)]
    return hashlib.sha256(repr([(item.shown, item.size, item.mtime_ns) for item in found]).encode()).hexdigest()[:16]


@contextmanager
def told_in_words(root: Path, partial: Path) -> Iterator[None]:
    """Say what a full or closed disk means: nothing is lost, and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno in CLOSED:  # what cannot be read is left out and named; this is about writing
            raise DataError(
                f"nothing can be written to {partial.parent}", error.strerror or "", "name a folder of yours"
            ) from error
        if error.errno not in FULL:
            raise
        there = next(folder for folder in (partial, *partial.parents) if folder.exists())
        raise DataError(
            f"the disk is full: {shutil.disk_usage(there).free / 1e6:,.0f} MB are left where {partial} lies",
            f"the text of {root} and its tokens need about twice the size of the text",
            "free some space and give the same command again: what is done is kept, and it goes on from there",
        ) from error


class Work:
    """One ingest under way: where things lie and what is told of it."""

    def __init__(
        self, root: Path, is_library: bool, target: Path, settings: dict[str, Any], watch: Watch | None
    ) -> None:
        self.root, self.is_library, self.target, self.settings, self.watch = root, is_library, target, settings, watch
        self.partial = target.with_name(target.name + ".partial")
        self.made = self.partial / "made"
        spelled = json.dumps([FORMAT, PIECE_BYTES, "" if is_library else str(root), settings])
        self.request = hashlib.sha256(spelled.encode()).hexdigest()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = min(cores, MOST_THREADS)
        self.total = self.documents = self.lost = 0
        self.seconds: dict[str, float] = {}
        self.last_told = 0.0

    def made_already(self) -> Manifest | None:
        """The dataset, where it is there, of the same files and settings.

        Raises:
            DataError: where the target holds something else.
        """
        if not (self.target / NAME).is_file():
            if self.target.exists() and any(self.target.iterdir()):
                raise DataError(f"{self.target} is not empty and no dataset", "", "name another folder")
            return None
        manifest = Manifest.load(self.target)
        differs = changed(self.target) if manifest.request == self.request else ["it was made with other settings"]
        if differs:
            raise DataError(
                f"{self.target} holds a dataset of other files than are there now",
                "; ".join(differs[:5]) + (f"; and {len(differs) - 5} more" if len(differs) > 5 else ""),
                "name another folder, or delete this one; runs that were made from it need it",
            )
        shutil.rmtree(self.partial, ignore_errors=True)
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while this one works."""
        self.partial.mkdir(parents=True, exist_ok=True)
        lock = self.partial / "lock"
        try:
            handle = durable.acquire(lock)
        except BlockingIOError as error:
            raise RunError(
                f"process {durable.holder(lock)} is reading the same files into {self.target}", "", "wait for it"
            ) from error
        try:
            yield
        finally:
            os.close(handle)

    def run(self, wanted: str | Path | Tokenizer) -> Manifest:
        """All stages in order; those that an earlier attempt finished are found done."""
        found, dropped = self.listing()
        with self.stage("read"):
            kind = corpus.LibraryLicences if self.is_library else LicenceFinder
            finder = kind(self.root if self.root.is_dir() else self.root.parent, self.settings["licence"])
            column = self.settings["text_column"]
            told = lambda done: self.tell("read", done, self.total)  # noqa: E731
            reading = read_blocks(found, self.partial / "blocks", finder, column, self.threads, told)
            reading.dropped = dropped + reading.dropped
        with self.stage("compare"):
            facts = gather(reading.blocks)
            self.documents, self.lost = len(facts.sizes), len(reading.dropped)
            if not facts.sizes.sum():
                raise self.nothing(reading.dropped)
            share, most = self.settings["held_out_share"], self.settings["held_out_bytes"]
            chosen = plan(facts.hashes, facts.sizes, facts.signatures, facts.one_text, share, most)
            if len(facts.sizes) == 1 and facts.sizes[0] < 2:
                raise DataError(f"{self.root} holds one letter of text", "a part is held out to measure on", "add text")
        with self.stage("tokenizer"):
            tokenizer = self.tokenizer(wanted, reading, facts, chosen)
        with self.stage("encode"):
            folder = self.partial / f"ids-{chosen.key[:8]}-{tokenizer.hash[:8]}"
            work = (self.threads, lambda done: self.tell("encode", done, len(reading.blocks)))
            parts = encoding.encode_all(reading.blocks, facts.starts, chosen, tokenizer, folder, work)
        return self.finish(reading, facts, chosen, tokenizer, parts)

    def listing(self) -> tuple[list[Found], list[Dropped]]:
        """The files to read, and what is left out for its name."""
        items = listed(self.root, self.is_library)
        found = [item for item in items if isinstance(item, Found)]
        self.total = sum(item.size for item in found)
        return found, [item for item in items if isinstance(item, Dropped)]

    def nothing(self, dropped: list[Dropped]) -> DataError:
        """The error for a source without any text."""
        counted = Counter(item.reason for item in dropped)
        why = ", ".join(f"{count} x {reason}" for reason, count in counted.most_common(5)) or "the folder is empty"
        detail = next((item.detail for item in dropped if item.reason == "no such column"), "")
        return DataError(
            f"there is no text in {self.root}",
            why + (f" ({detail})" if detail else ""),
            "txt, md, code, html, csv, jsonl and parquet are read, also as .gz, .zst and inside a .zip",
        )

    def tokenizer(self, wanted: str | Path | Tokenizer, reading: Reading, facts: Facts, chosen: Plan) -> Tokenizer:
        """The tokenizer, from an earlier attempt where there is one for the same training text."""
        size = self.settings["vocab_size"]
        if wanted == "bpe" and size is None:
            size = encoding.vocabulary_for(int((facts.sizes * (1 - chosen.tail))[chosen.fate != DROP].sum()))
        spelled = json.dumps([self.settings["tokenizer"], size, chosen.key, encoding.SAMPLE_BYTES])
        texts = hashlib.sha256(facts.hashes.tobytes() + spelled.encode()).hexdigest()
        path = self.partial / f"tokenizer-{texts[:16]}.json"
        if not path.exists():
            made = encoding.make_tokenizer(wanted, size, reading.blocks, facts.starts, chosen)
            durable.replace(path, made.to_json().encode())
        return load(path)

    def finish(self, reading: Reading, facts: Facts, chosen: Plan, tokenizer: Tokenizer, parts: list[Path]) -> Manifest:
        """Write shards, tokenizer, manifest and what was dropped into a fresh folder, and give it its name."""
        shutil.rmtree(self.made, ignore_errors=True)
        self.made.mkdir()
        with self.stage("write"):
            told = lambda done: self.tell("write", done, len(parts))  # noqa: E731
            written = encoding.write_shards(parts, self.made, tokenizer, told)
            durable.replace(self.made / TOKENIZER, tokenizer.to_json().encode())
            dropped = self.write_dropped(reading, facts, chosen)
        extra = [self.made / TOKENIZER, self.made / DROPPED]
        manifest = Manifest(
            id=written.id,
            source="" if self.is_library else str(self.root),
            title=corpus.title() if self.is_library else self.root.name,
            request=self.request,
            settings={**self.settings, "vocab_size": tokenizer.vocab_size},
            files=reading.files,
            tokenizer=tokenizer.hash,
            splits=written.splits,
            shards=written.shards
            + [{"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)} for path in extra],
            dropped=dropped,
            near_duplicates=chosen.near,
            encodings=facts.encodings,
            columns=facts.columns,
            ledger=written.ledger,
            held_out=written.held_out,
            seconds=self.seconds,
        )
        durable.replace(self.made / NAME, manifest.to_json())
        if self.target.exists():
            self.target.rmdir()
        self.made.rename(self.target)
        durable.sync_folder(self.target.parent)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.tell("done", 1, 1)
        return Manifest.load(self.target)

    def write_dropped(self, reading: Reading, facts: Facts, chosen: Plan) -> dict[str, int]:
        """Name everything that was left out, one a line; returns how often for each reason."""
        counted = Counter(item.reason for item in reading.dropped)
        equal = np.flatnonzero(chosen.fate == DROP)
        if len(equal):
            counted["duplicate"] = len(equal)
        with (self.made / DROPPED).open("w", encoding="utf-8") as file:
            for item in reading.dropped:
                line = {"source": item.source, "member": item.member, "reason": item.reason, "detail": item.detail}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            for line in duplicates(reading, facts, chosen, equal):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return dict(counted.most_common())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and say that it begins."""
        self.last_told = 0.0
        self.tell(name, 0, 1)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)

    def tell(self, stage: str, done: float, total: float) -> None:
        """Tell the watcher, at most ten times a second."""
        now = time.monotonic()
        if self.watch is None or (now - self.last_told < 0.1 and done < total):
            return
        self.last_told = now
        names = list(STAGES)
        before = sum(STAGES[name] for name in names[: names.index(stage)]) if stage in STAGES else 100
        share = (before + STAGES.get(stage, 0) * done / max(total, 1)) / 100
        self.watch(
            {
                "kind": "ingest",
                "stage": stage,
                "done": int(share * self.total),
                "total": self.total,
                "documents": self.documents,
                "dropped": self.lost,
            }
        )


def duplicates(reading: Reading, facts: Facts, chosen: Plan, equal: np.ndarray) -> Iterator[dict[str, str]]:
    """A line for each document that was dropped because an earlier one has the same text."""
    import pyarrow.parquet as pq

    names: dict[int, tuple[str, str]] = {}
    wanted = np.union1d(equal, chosen.first[equal])
    for block, path in enumerate(reading.blocks):
        first, end = facts.starts[block], facts.starts[block + 1]
        here = wanted[(wanted >= first) & (wanted < end)]
        if len(here):
            rows = pq.read_table(path, columns=["source", "member"]).take(here - first).to_pylist()
            names.update(zip(here.tolist(), ((row["source"], row["member"]) for row in rows), strict=True))
    for number in equal.tolist():
        source, member = names[number]
        same = place(*names[int(chosen.first[number])])
        yield {"source": source, "member": member, "reason": "duplicate", "detail": f"the same text as {same}"}
