"""The second half of ingest: blocks of documents to shards of tokens.

    blocks + Plan -> training texts -> tokenizer -> ids of each block (arrow files) -> train-*, heldout-* shards

Each block's ids are kept until the end, so that a killed ingest does not encode anything twice.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nomoat.core import durable, ledger
from nomoat.core.errors import ConfigError, nearest
from nomoat.data.blocks import workers
from nomoat.data.held_out import CUT, DROP, HOLD, KEEP, Plan
from nomoat.data.shards import LEDGER, ShardWriter
from nomoat.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer, load, train_bpe
from nomoat.data.wordwise import Wordwise

Encode = Callable[[Sequence[str]], list[NDArray[Any]]]
KINDS = ("bpe", "byte", "char")
SAMPLE_BYTES = 8_000_000  # of training text that the merges are learned from
SPLITS = ("train", "heldout")
IDS = ("ids", pa.large_binary())


def vocabulary_for(size: int) -> int:
    """A vocabulary for so many bytes of text: the power of two near 1.2 sqrt(size), from 512 to 32,768.

    >>> vocabulary_for(1_000_000), vocabulary_for(12_000_000), vocabulary_for(10**9)
    (1024, 4096, 32768)
    """
    return 2 ** min(15, max(9, round(math.log2(1.2 * math.sqrt(max(1, size))))))


def check_tokenizer(wanted: str | Path | Tokenizer, vocab_size: int | None) -> None:
    """Refuse at the door what cannot be made.

    Raises:
        ConfigError: an unknown kind, or a vocabulary that is too small.
    """
    if isinstance(wanted, str) and wanted not in KINDS and not wanted.endswith(".json"):
        raise ConfigError(
            f"there is no tokenizer `{wanted}`", nearest(wanted, KINDS), "use bpe, byte, char or a tokenizer.json"
        )
    if vocab_size is not None and vocab_size < 257:
        raise ConfigError(f"a vocabulary of {vocab_size} is too small", "256 bytes and the document end come first")


def make_tokenizer(
    wanted: str | Path | Tokenizer,
    vocab_size: int | None,
    blocks: Sequence[Path],
    starts: NDArray[np.int64],
    plan: Plan,
) -> Tokenizer:
    """The tokenizer that was asked for, trained on the training part alone.

    The characters of "char" are those of the held-out part too: an alphabet, not a statistic.
    """
    if isinstance(wanted, Tokenizer):
        return wanted
    if wanted == "byte":
        return ByteTokenizer()
    if wanted == "char":
        symbols: set[str] = set()
        for part in (KEEP, HOLD):
            for text in texts(blocks, starts, plan, part):
                symbols.update(text)
        return CharTokenizer(symbols)
    if wanted == "bpe":
        training = texts(blocks, starts, plan, KEEP)
        return train_bpe(training, vocab_size or 257, SAMPLE_BYTES)
    return load(Path(wanted))


def texts(blocks: Sequence[Path], starts: NDArray[np.int64], plan: Plan, part: int) -> Iterator[str]:
    """The texts of the training part (KEEP) or of the held-out part (HOLD), cut ones cut."""
    for path, first, end in zip(blocks, starts[:-1], starts[1:], strict=True):
        fate = plan.fate[first:end]
        if not np.isin(fate, (part, CUT)).any():
            continue
        column = pq.read_table(path, columns=["text"])["text"]
        for row in np.flatnonzero(np.isin(fate, (part, CUT))):
            data = column[int(row)].as_py()
            head = cut_at(data, plan.tail[first + row]) if fate[row] == CUT else 0
            yield (data if not head else data[:head] if part == KEEP else data[head:]).decode()


def cut_at(data: bytes, tail: float) -> int:
    """How many bytes stay when the share `tail` is held out: whole characters, one on each side where there are two."""
    at = min(max(1, int(len(data) * (1 - tail))), len(data) - 1)
    ahead = next((n for n in range(at, len(data)) if data[n] & 0xC0 != 0x80), 0)
    return ahead or next((n for n in range(at, 0, -1) if data[n] & 0xC0 != 0x80), len(data))


def encode_block(path: Path, target: Path, plan: Plan, first: int, encode: Encode) -> None:
    """Encode the documents of one block that are kept, and write them with their ledger lines."""
    table = pq.read_table(path)
    fate = plan.fate[first : first + len(table)]
    rows = np.flatnonzero(fate != DROP)
    lines, words = [], []
    for row, line in zip(rows, table.take(rows).drop_columns(["signature"]).to_pylist(), strict=True):
        for part in parts(line, int(fate[row]), plan.tail[first + row]):
            words.append(part.pop("text"))
            lines.append(part)
    ids = encode(words)
    schema = pa.schema([("held", pa.bool_()), ("tokens", pa.int64()), IDS, *LEDGER])
    for line, one in zip(lines, ids, strict=True):
        line["ids"], line["tokens"] = one.tobytes(), len(one)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(lines, schema=schema))
    durable.replace(target, sink.getvalue().to_pybytes())


def parts(line: dict[str, Any], fate: int, tail: float) -> Iterator[dict[str, Any]]:
    """The ledger line of a document, or of its two parts where it is cut."""
    data = line["text"]
    told: dict[str, Any] = {name: line.get(name) for name in LEDGER.names}
    told["offset"] = line["offset_bytes"]
    if fate != CUT:
        yield {**told, "text": data.decode(), "held": fate == HOLD, "id": line["hash"].hex()}
        return
    head = cut_at(data, tail)
    for held, part in ((False, data[:head]), (True, data[head:])):
        yield {
            **told,
            "text": part.decode(),
            "held": held,
            "id": hashlib.sha256(part).hexdigest(),
            "bytes": len(part),
            "offset": told["offset"] + (head if held else 0),
            "member": moved(told["member"], data.count(b"\n", 0, head), bool(line["column"]))
            if held
            else told["member"],
        }


def moved(member: str, lines: int, row: bool) -> str:
    """Where the second part of a cut document begins."""
    head, comma, last = member.rpartition(", ")
    if row or last.startswith("part "):
        return f"{member}, rest" if member else "rest"
    start = int(last[5:]) if last.startswith("line ") else 1
    inside = (head + comma if last.startswith("line ") else f"{member}, ") if member else ""
    return f"{inside}line {start + lines}"


@dataclass
class Written:
    """What the shards hold: the manifest's part of it."""

    splits: dict[str, dict[str, int]]
    shards: list[dict[str, Any]]
    ledger: dict[str, Any]
    held_out: list[dict[str, Any]]
    id: str


def write_shards(parts_: Sequence[Path], folder: Path, tokenizer: Tokenizer, told: Callable[[int], None]) -> Written:
    """Put the encoded blocks together, in order; the whole is hashed on the way."""
    writers = [ShardWriter(folder, split, tokenizer) for split in SPLITS]
    sizes = [0, 0]
    tally: Counter[tuple[Any, ...]] = Counter()
    held_out: list[dict[str, Any]] = []
    contents = hashlib.sha256(tokenizer.hash.encode())
    for number, path in enumerate(parts_):
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            ids = table["ids"].combine_chunks()
            for row, line in enumerate(table.drop_columns(["ids"]).to_pylist()):
                held, count = line.pop("held"), line.pop("tokens")
                writers[held].add(np.frombuffer(ids[row].as_buffer(), tokenizer.dtype), line)
                sizes[held] += line["bytes"]
                what = (line["licence"], line["evidence"], line["origin"], line["generation"])
                contents.update(repr((held, line["id"], *what)).encode())
                if held:
                    held_out.append({"hash": line["id"], **{key: line[key] for key in ("source", "member", "bytes")}})
                else:
                    tally.update(
                        {(*what, "documents"): 1, (*what, "tokens"): count + 1, (*what, "bytes"): line["bytes"]}
                    )
        told(number + 1)
    files = [file for writer in writers for file in writer.finish()]
    return Written(
        {
            split: {"documents": writer.documents, "tokens": writer.tokens, "bytes": size}
            for split, writer, size in zip(SPLITS, writers, sizes, strict=True)
        },
        [asdict(file) for file in files],
        asdict(joined(tally)),
        held_out,
        contents.hexdigest(),
    )


def joined(tally: Counter[tuple[Any, ...]]) -> ledger.Ledger:
    """The ledger from counts by (licence, evidence, origin, generation, what is counted)."""
    kinds = {key[:4] for key in tally}
    single = []
    for licence, evidence, origin, generation in sorted(kinds, key=repr):
        key = (licence, evidence, origin, generation)
        documents = tally[(*key, "documents")]
        share = ledger.Share(
            licence or ledger.UNKNOWN,
            documents,
            tally[(*key, "tokens")],
            tally[(*key, "bytes")],
            ((evidence, documents),) if evidence else (),
        )
        single.append(ledger.Ledger((share,), ((origin, documents),), generation))
    return ledger.join(single)


def encode_all(
    blocks: Sequence[Path],
    starts: NDArray[np.int64],
    plan: Plan,
    tokenizer: Tokenizer,
    folder: Path,
    work: tuple[int, Callable[[int], None]],
) -> list[Path]:
    """Encode every block that has something to keep, several at once; those done earlier are taken as they are."""
    threads, told = work
    folder.mkdir(parents=True, exist_ok=True)
    targets = []
    encode = Wordwise(tokenizer).encode_batch if isinstance(tokenizer, BpeTokenizer) else tokenizer.encode_batch
    with workers(threads) as pool:
        futures = []
        for path, first, end in zip(blocks, starts[:-1], starts[1:], strict=True):
            if (plan.fate[first:end] == DROP).all():
                continue
            target = folder / f"{path.stem}.arrow"
            targets.append(target)
            if not target.exists():
                futures.append(pool.submit(encode_block, path, target, plan, int(first), encode))
        done = len(targets) - len(futures)
        for future in futures:
            future.result()
            done += 1
            told(done)
    return targets
