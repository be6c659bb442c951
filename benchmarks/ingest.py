"""Files to shards: 100 MB of mixed text made from real files, read, deduplicated, split and encoded.

    python benchmarks/ingest.py [--megabytes 100] [--rounds 3] [--threads N] [PATH ...]

The text is that of PATH ... (default: the standard library, this environment's packages, /usr/share/doc and the shared
data, a share of each), written anew as files of ten kinds: code, text and markdown as they are, jsonl, jsonl.gz, csv,
parquet, text inside a zip, text.zst and html. Each round runs in a process of its own, from files to the last byte of
the shards. "per core" divides by the seconds of processor time of all threads, the tokenizer's training counted; it is
also shown apart, and so is the whole without it. `MB` are a million bytes of text as it came out of the files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import html
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from peers import record, spread

SHARED = Path(__file__).parents[2] / "shared" / "data"
SUFFIXES = (".py", ".md", ".txt", ".rst", ".html", ".gz")
KINDS = ("plain", "plain", "plain", "plain", "jsonl", "jsonl.gz", "csv", "parquet", "zip", "html")

ROUND = """
import json, os, resource, sys, time
from pathlib import Path
from nomoat.data import encoding
from nomoat.data.ingest import ingest
threads = int(sys.argv[3])
if threads:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
marks, training = [], [0.0, 0.0]
real = encoding.train_bpe
def train_bpe(*rest):
    began = time.perf_counter(), time.process_time()
    made = real(*rest)
    training[0], training[1] = time.perf_counter() - began[0], time.process_time() - began[1]
    return made
encoding.train_bpe = train_bpe
began = time.perf_counter(), time.process_time()
made = ingest(Path(sys.argv[1]), Path(sys.argv[2]), licence="MIT")
wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
print(json.dumps({
    "wall": wall, "cpu": cpu, "training_wall": training[0], "training_cpu": training[1], "stages": made.seconds,
    "bytes": sum(split["bytes"] for split in made.splits.values()), "vocab_size": made.settings["vocab_size"],
    "splits": made.splits, "dropped": made.dropped, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def sources(paths: list[Path]) -> list[Path]:
    """The files to take text from, of each path in turn, so that a share of each is taken."""
    lists = [
        sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink())
        for root in paths
    ]
    mixed = [(number / max(1, len(files)), path) for files in lists for number, path in enumerate(files)]
    return [path for _, path in sorted(mixed)]


def documents(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    """The texts of the files, as our own readers give them."""
    from nomoat.data.readers import Document, read

    for path in sources(paths):
        for item in read(path):
            if isinstance(item, Document) and len(item.text) > 200:
                yield path, item.text


def build(folder: Path, paths: list[Path], size: int) -> int:
    """Write `size` bytes of text below `folder`, in all kinds; returns the bytes written as files."""
    made, seen, number = 0, set(), 0
    held: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for path, text in documents(paths):
        if text in seen or made >= size:
            continue
        seen.add(text)
        made += len(text.encode())
        number += 1
        kind = KINDS[number % len(KINDS)]
        if kind == "plain":
            suffix = path.suffix if path.suffix in (".py", ".md", ".rst") else ".txt"
            (folder / f"{number % 97:02d}").mkdir(exist_ok=True)
            (folder / f"{number % 97:02d}" / f"{number}{suffix}").write_text(text)
            continue
        held[kind].append(text)
        if sum(map(len, held[kind])) > 2_000_000:
            write(folder / f"{number}", kind, held.pop(kind))
            held[kind] = []
    for kind, texts in held.items():
        if texts:
            write(folder / f"last-{kind}", kind, texts)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rows(texts: list[str]) -> Iterator[str]:
    """Pieces of about two kilobytes, as the rows of tables often are."""
    for text in texts:
        lines, size = [], 0
        for line in text.splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size > 2000:
                yield "".join(lines)
                lines, size = [], 0
        if size > 200:
            yield "".join(lines)


def write(stem: Path, kind: str, texts: list[str]) -> None:
    """One file of a kind that holds several texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(f"{stem}.{kind}")
    if kind.startswith("jsonl"):
        data = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(rows(texts))).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind == "csv":
        sink = io.StringIO()
        csv.writer(sink).writerows([["id", "text"], *([n, text] for n, text in enumerate(rows(texts)))])
        path.write_text(sink.getvalue())
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, compression="zstd")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, text in enumerate(texts):
                archive.writestr(f"{number}.txt", text)
    else:
        paragraphs = (html.escape(part) for text in texts for part in text.split("\n\n"))
        path.write_text("<html><body>" + "".join(f"<p>{part}</p>\n" for part in paragraphs) + "</body></html>")


def default_paths() -> list[Path]:
    """Where this machine has real text."""
    named = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share/doc", SHARED]
    return [Path(path) for path in named if Path(path).is_dir()]


def main() -> None:
    """Build the files once, ingest them in each round, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="cores to run on; 0: all of them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder, target = Path(name) / "files", Path(name) / "dataset"
        folder.mkdir()
        on_disk = build(folder, options.paths or default_paths(), options.megabytes * 1_000_000)
        print(f"{on_disk / 1e6:.1f} MB of files")
        results = []
        for number in range(options.rounds):
            shutil.rmtree(target, ignore_errors=True)
            command = [sys.executable, "-c", ROUND, folder, target, str(options.threads)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            results.append(result)
            print(f"round {number + 1}: {figures(result)}  stages {result['stages']}", flush=True)
    report(results, options)


def figures(result: dict[str, float]) -> dict[str, float]:
    """MB/s of one round."""
    size = result["bytes"] / 1e6
    return {
        "per_core": round(size / result["cpu"], 2),
        "per_core_without_training": round(size / (result["cpu"] - result["training_cpu"]), 2),
        "wall": round(size / result["wall"], 2),
        "training_cpu_seconds": round(result["training_cpu"], 2),
    }


def report(results: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Median and range of every figure, printed and kept."""
    table = {key: [figures(result)[key] for result in results] for key in figures(results[0])}
    first = results[0]
    print(f"\n{first['bytes'] / 1e6:.1f} MB of text, vocabulary {first['vocab_size']:,}, {first['splits']}")
    print(f"left out: {first['dropped']}; memory at most {max(each['memory'] for each in results) / 1e6:.0f} MB")
    for key, values in table.items():
        print(f"{key:28} {spread(values)}")
    record("ingest", {"figures": table, "rounds": results, "megabytes": options.megabytes, "threads": options.threads})


if __name__ == "__main__":
    main()
