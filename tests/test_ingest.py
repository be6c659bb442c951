"""Ingest: the split, duplicates, the manifest, kills at any moment, full disks, what changed."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.data import blocks, corpus, encoding, held_out, ingest, manifest
from nomoat.data.files import Files
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import load

WORDS = (
    "the",
    "of",
    "and",
    "river",
    "stone",
    "light",
    "under",
    "carried",
    "slowly",
    "a",
    "house",
    "where",
    "children",
    "tell",
    "long",
    "stories",
    "about",
    "winter",
)


def prose(seed, sentences=40):
    chance = random.Random(seed)
    lines = (" ".join(chance.choices(WORDS, k=12)) + f" {chance.random():.4f}." for _ in range(sentences))
    return "\n".join(lines) + "\n"


def folder_of(root, count=30, **more):
    root.mkdir(exist_ok=True)
    for number in range(count):
        (root / f"{number:03d}.txt").write_text(prose(number))
    for name, text in more.items():
        (root / name.replace("_", ".")).write_text(text)
    return root


def make(source, target, **options):
    return ingest.ingest(source, target, **{"vocab_size": 300, **options})


def texts_of(folder, split):
    reader, tokenizer = ShardReader(folder, split), load(folder / "tokenizer.json")
    spans = [reader.span(number) for number in range(reader.documents)]
    return [tokenizer.decode(reader.window(first, end - first)) for first, end in spans]


def dropped_of(folder):
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


def test_a_folder_becomes_a_dataset(tmp_path):
    source = folder_of(tmp_path / "in", LICENSE="no licence that we know", a_bin="\0\1\2" * 99)
    events = []
    made = make(source, tmp_path / "out", watch=events.append)
    train, held = texts_of(tmp_path / "out", "train"), texts_of(tmp_path / "out", "heldout")
    assert sorted(train + held) == sorted(prose(number) for number in range(30))
    assert made.splits["train"]["documents"] == len(train) and made.splits["heldout"]["documents"] == len(held) >= 2
    total = sum(split["bytes"] for split in made.splits.values())
    assert total == sum(len(prose(number)) for number in range(30))
    assert 0.05 < made.splits["heldout"]["bytes"] / total <= 0.1
    assert made.dropped == {"binary file": 1, "licence file, read as evidence": 1}
    assert {line["source"] for line in dropped_of(tmp_path / "out")} == {"a.bin", "LICENSE"}
    assert {one["source"] for one in made.held_out} == {
        ShardReader(tmp_path / "out", "heldout").line(n)["source"] for n in range(len(held))
    }
    assert made.source == str(source) and made.files[0]["size"] == len(prose(0))
    assert manifest.verify(tmp_path / "out") == [] and manifest.changed(tmp_path / "out") == []
    assert not (tmp_path / "out.partial").exists()
    stages = list(dict.fromkeys(event["stage"] for event in events))
    assert stages == ["read", "compare", "tokenizer", "encode", "write", "done"]
    done = [event["done"] for event in events]
    assert done == sorted(done) and done[-1] == events[-1]["total"] > 0


def test_what_was_left_out_is_told_with_its_place(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text(prose(1, 200))
    (folder / "rows.jsonl").write_text(json.dumps({"text": prose(2)}) + '\n{"text": "bro\n')
    (folder / "pic.txt").write_bytes(bytes(range(256)) * 20)
    told = []
    Files(str(folder)).prepare(tmp_path / "data", told.append)
    (text,) = [event["text"] for event in told if event["kind"] == "warning"]
    assert "1 x broken JSON (rows.jsonl, line 2)" in text and "1 x binary file (pic.txt)" in text
    assert Path(text.split("; ")[1].removesuffix(" names each.")).is_file()
    (folder / "pic.txt").unlink()
    (folder / "rows.jsonl").unlink()
    told.clear()
    Files(str(folder)).prepare(tmp_path / "data", told.append)
    assert not [event for event in told if event["kind"] == "warning"]


def test_the_ledger_of_each_document(tmp_path):
    source = folder_of(tmp_path / "in", 10, b_py="# SPDX-License-Identifier: MIT\n" + prose(99))
    rows = [{"text": prose(n + 200), "license": "CC0-1.0", "author": "Ann"} for n in range(10)]
    (source / "t.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    made = make(source, tmp_path / "out")
    lines = ShardReader(tmp_path / "out", "train").ledger().to_pylist()
    lines += ShardReader(tmp_path / "out", "heldout").ledger().to_pylist()
    by_source = {(line["source"], line["member"]): line for line in lines}
    assert by_source["b.py", ""]["licence"] == "MIT"
    row = by_source["t.jsonl.gz", "line 4"]
    assert (row["licence"], row["evidence"], row["author"]) == ("CC0-1.0", "column license", "Ann")
    assert (row["origin"], row["generation"], row["bytes"]) == ("human", 0, len(prose(203)))
    ledger = made.licences
    assert {share.licence for share in ledger.shares} == {"CC0-1.0", "MIT", "unknown"}
    assert ledger.documents == made.splits["train"]["documents"]
    assert ledger.tokens == made.splits["train"]["tokens"] and ledger.bytes == made.splits["train"]["bytes"]
    assert made.columns == {"text (by name)": ["t.jsonl.gz"]}


def test_equal_texts_are_dropped_and_near_ones_stay_together(tmp_path):
    source = folder_of(tmp_path / "in", 20)
    for number in range(20):
        (source / f"copy-{number:03d}.md").write_text(prose(number))
        (source / f"near-{number:03d}.txt").write_text(prose(number) + "One more line at the end of it.\n")
    made = make(source, tmp_path / "out")
    assert made.dropped == {"duplicate": 20}
    assert made.near_duplicates == 40
    for line in dropped_of(tmp_path / "out"):  # 000.txt comes before copy-000.md
        number = line["source"].removeprefix("copy-").removesuffix(".md")
        assert line == {
            "source": f"copy-{number}.md",
            "member": "",
            "reason": "duplicate",
            "detail": f"the same text as {number}.txt, line 1",
        }
    sides = {}
    for split in ("train", "heldout"):
        for line in ShardReader(tmp_path / "out", split).ledger().to_pylist():
            sides.setdefault(line["source"].split(".")[0].split("-")[-1], set()).add(split)
    assert all(len(side) == 1 for side in sides.values()) and {"heldout"} in sides.values()


def test_a_single_file_is_split_by_position(tmp_path):
    text = "".join(prose(number) for number in range(60))
    (tmp_path / "book.txt").write_text(text)
    made = make(tmp_path / "book.txt", tmp_path / "out")
    border = int(0.9 * len(text))
    assert texts_of(tmp_path / "out", "train") == [text[:border]]
    assert texts_of(tmp_path / "out", "heldout") == [text[border:]]
    held = made.held_out[0]
    assert held["member"] == f"line {text[:border].count(chr(10)) + 1}" and held["bytes"] == len(text) - border


def test_a_long_single_file_holds_out_the_last_two_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("nomoat.data.readers.PIECE_BYTES", 20_000)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 50_000)
    monkeypatch.setattr("nomoat.data.readers.read_file.__defaults__", (None, 20_000))
    text = "".join(prose(number) for number in range(200))
    (tmp_path / "book.txt").write_text(text)
    made = make(tmp_path / "book.txt", tmp_path / "out", held_out_bytes=45_000)
    assert "".join(texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "heldout")) == text
    assert made.splits["heldout"]["documents"] == 3 and 44_000 < made.splits["heldout"]["bytes"] <= 45_000


@pytest.mark.parametrize("count", [2, 3, 5, 9, 11, 40])
def test_the_held_out_part_is_never_empty_and_about_a_tenth(tmp_path, count):
    folder_of(tmp_path / "in", count)
    made = make(tmp_path / "in", tmp_path / "out")
    total = sum(split["bytes"] for split in made.splits.values())
    assert 0.03 < made.splits["heldout"]["bytes"] / total < 0.16
    assert made.splits["train"]["documents"] and made.splits["heldout"]["documents"]


def test_tiny_inputs(tmp_path):
    for number, text in enumerate(("ab", "one line only", "a\nb\n")):
        (tmp_path / "x.txt").write_text(text)
        made = make(tmp_path / "x.txt", tmp_path / f"out-{number}", tokenizer="byte")
        assert made.splits["heldout"]["bytes"] >= 1
        parts = texts_of(tmp_path / f"out-{number}", "train") + texts_of(tmp_path / f"out-{number}", "heldout")
        assert "".join(parts) == text
    (tmp_path / "two").mkdir()
    (tmp_path / "two/a.txt").write_text("a")
    (tmp_path / "two/b.txt").write_text("b")
    made = make(tmp_path / "two", tmp_path / "out-two", tokenizer="byte")
    assert [made.splits[split]["bytes"] for split in ("train", "heldout")] == [1, 1]


def test_the_cap_holds_to_the_byte(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(40):  # one large group, with characters of two and three bytes at the end
        (tmp_path / f"in/{number:02d}.txt").write_text(prose(1, 200) + f"version {number} " + "é你" * 900 + "\n")
    made = make(tmp_path / "in", tmp_path / "out", held_out_bytes=9_999)
    assert made.near_duplicates == 40
    assert 9_000 < made.splits["heldout"]["bytes"] <= 9_999
    (tmp_path / "one.txt").write_text("é你" * 5_000)
    made = make(tmp_path / "one.txt", tmp_path / "out-one", held_out_bytes=1_000)
    assert 990 < made.splits["heldout"]["bytes"] <= 1_000
    assert "".join(texts_of(tmp_path / "out-one", "train") + texts_of(tmp_path / "out-one", "heldout")) == "é你" * 5_000


def test_versions_of_one_text_are_cut_at_the_same_place(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / f"in/{number}.txt").write_text(prose(1, 400) + f"version {number}\n")
    made = make(tmp_path / "in", tmp_path / "out")
    assert made.near_duplicates == 5
    assert made.splits["train"]["documents"] == made.splits["heldout"]["documents"] == 5


def test_order_of_the_hashes_decides_not_the_order_of_the_files(tmp_path):
    folder_of(tmp_path / "a", 30)
    folder_of(tmp_path / "b", 30)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name("x" + str(999 - int(path.stem)) + ".md"))
    one, two = make(tmp_path / "a", tmp_path / "out-a"), make(tmp_path / "b", tmp_path / "out-b")
    assert {line["hash"] for line in one.held_out} == {line["hash"] for line in two.held_out}


def test_the_tokenizer_never_sees_the_held_out_part(tmp_path, monkeypatch):
    seen = []
    real = encoding.train_bpe
    monkeypatch.setattr(
        encoding, "train_bpe", lambda texts, *rest: seen.extend(kept := list(texts)) or real(kept, *rest)
    )
    make(folder_of(tmp_path / "in"), tmp_path / "out")
    assert sorted(seen) == sorted(texts_of(tmp_path / "out", "train"))


def test_tokenizers(tmp_path):
    source = folder_of(tmp_path / "in", 5)
    assert make(source, tmp_path / "byte", tokenizer="byte").settings["vocab_size"] == 257
    symbols = set("".join(prose(number) for number in range(5)))
    assert make(source, tmp_path / "char", tokenizer="char").settings["vocab_size"] == len(symbols) + 1
    given = load(tmp_path / "byte/tokenizer.json")
    assert make(source, tmp_path / "given", tokenizer=given).id == make(source, tmp_path / "byte", tokenizer="byte").id
    path = tmp_path / "byte/tokenizer.json"
    assert make(source, tmp_path / "file", tokenizer=path).tokenizer == given.hash
    assert make(source, tmp_path / "own", vocab_size=None).settings["vocab_size"] <= 512


def test_the_id_is_that_of_the_contents(tmp_path):
    one = make(folder_of(tmp_path / "a"), tmp_path / "out-a")
    time.sleep(0.02)
    two = make(folder_of(tmp_path / "elsewhere"), tmp_path / "out-b")
    assert one.id == two.id
    (tmp_path / "a/000.txt").write_text(prose(1234))
    assert make(tmp_path / "a", tmp_path / "out-c").id != one.id


def test_the_same_call_again_finds_it_made(tmp_path):
    source = folder_of(tmp_path / "in")
    make(source, tmp_path / "out")
    events = []
    make(source, tmp_path / "out", watch=events.append)
    assert events == []
    (source / "new.txt").write_text(prose(77))
    (source / "001.txt").unlink()
    (source / "002.txt").write_text(prose(2)[:-1] + "!\n")
    os.utime(source / "003.txt")
    said = manifest.changed(tmp_path / "out")
    assert said[0] == "001.txt is missing" and said[1].startswith("002.txt has changed") and said[2] == "new.txt is new"
    assert len(said) == 3
    with pytest.raises(DataError, match=r"001\.txt is missing"):
        make(source, tmp_path / "out")
    with pytest.raises(DataError, match="other settings"):
        make(source, tmp_path / "out", licence="MIT")


def test_changes_of_equal_size_and_new_dates_are_told_apart(tmp_path):
    source = folder_of(tmp_path / "in", 3)
    before = ingest.signature(source)
    make(source, tmp_path / "out")
    (source / "000.txt").write_text(prose(0).replace("the", "eht"))
    assert manifest.changed(tmp_path / "out") == ["000.txt has changed"]
    assert ingest.signature(source) != before


def test_damage_to_the_dataset_is_found(tmp_path):
    make(folder_of(tmp_path / "in"), tmp_path / "out")
    whole = (tmp_path / "out/train-00000.bin").read_bytes()
    (tmp_path / "out/train-00000.bin").write_bytes(whole[:-2] + b"\1\1")
    (tmp_path / "out/heldout-00000.idx").unlink()
    assert manifest.verify(tmp_path / "out") == [
        "train-00000.bin has other contents than were written",
        "heldout-00000.idx is missing",
    ]
    (tmp_path / "out/dataset.json").write_text('{"id": 1')
    with pytest.raises(DataError, match="damaged"):
        manifest.Manifest.load(tmp_path / "out")


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        make(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty/a.bin").write_bytes(b"\0" * 99)
    with pytest.raises(DataError, match="1 x binary file"):
        make(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="no file or folder"):
        make(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConfigError, match="names no licence"):
        make(tmp_path / "empty", tmp_path / "out", licence="as they like")
    with pytest.raises(ConfigError, match="did you mean `byte`"):
        make(tmp_path / "empty", tmp_path / "out", tokenizer="bytes")
    (tmp_path / "empty/t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no such column"):
        make(tmp_path / "empty", tmp_path / "out", text_column="c")


def test_files_that_vanish_or_change_while_they_are_read(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "in", 6)
    real = blocks.read_file

    def meanwhile(file, path, name, *rest):
        if name == "001.txt":
            (source / "004.txt").unlink(missing_ok=True)
        if name == "002.txt":
            path.write_text(prose(2) * 2)
        return real(file, path, name, *rest)

    monkeypatch.setattr(blocks, "read_file", meanwhile)
    made = make(source, tmp_path / "out")
    assert made.dropped == {"changed while it was read": 1, "vanished": 1}
    assert [file["path"] for file in made.files] == ["000.txt", "001.txt", "002.txt", "003.txt", "005.txt"]


@pytest.mark.parametrize("after", [0, 2, 5, 7, 9])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, after):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    source = folder_of(tmp_path / "in")
    expected = make(source, tmp_path / "whole").id
    real, count = durable.write, [0]

    def full(path, pieces):
        count[0] += 1
        if count[0] > after:
            Path(path).write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, pieces)

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(DataError, match="the disk is full") as caught:
        make(source, tmp_path / "out")
    assert "goes on from there" in caught.value.fix
    assert not (tmp_path / "out").exists()
    count[0] = -(10**6)
    written = list((tmp_path / "out.partial").rglob("*.parquet"))
    assert len(written) >= min(after, 1)
    assert make(source, tmp_path / "out").id == expected


def test_a_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="nothing can be written"):
        make(folder_of(tmp_path / "in", 2), tmp_path / "file/out")


def test_a_second_process_is_kept_out(tmp_path):
    source = folder_of(tmp_path / "in", 3)
    (tmp_path / "out.partial").mkdir()
    handle = durable.acquire(tmp_path / "out.partial/lock")
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        make(source, tmp_path / "out")
    os.close(handle)
    make(source, tmp_path / "out")


def test_finished_blocks_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    source = folder_of(tmp_path / "in")
    monkeypatch.setattr(encoding, "write_shards", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(source, tmp_path / "out")
    monkeypatch.undo()
    for module, name in ((blocks, "write_block"), (encoding, "encode_block"), (encoding, "train_bpe")):
        monkeypatch.setattr(module, name, lambda *rest: pytest.fail("made again"))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20_000)
    make(source, tmp_path / "out")


KILLED = """
import sys, time
from pathlib import Path
from nomoat.core import durable
from nomoat.data import blocks, ingest
blocks.BLOCK_BYTES = 20_000
slow = durable.sync_folder
def sync(path):
    time.sleep(0.004)
    slow(path)
durable.sync_folder = sync
print("ready", flush=True)
ingest.ingest(Path(sys.argv[1]), Path(sys.argv[2]), vocab_size=400)
"""


def test_killed_at_random_moments_it_ends_the_same(tmp_path):
    source = folder_of(tmp_path / "in", 60)
    (source / "t.jsonl").write_text("\n".join(json.dumps({"text": prose(n)}) for n in range(500, 560)))
    (source / "long.txt").write_text("".join(prose(n) for n in range(600, 660)))
    expected = ingest.ingest(source, tmp_path / "whole", vocab_size=400)
    chance, kills = random.Random(5), 0
    span = 0.1
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, source, tmp_path / "out"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(span * chance.uniform(0.3, 1) if kills < 7 else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            span *= 1.25
            process.stdout.close()
            continue
        process.stdout.close()
        assert process.returncode == 0
        break
    assert kills >= 5
    assert manifest.Manifest.load(tmp_path / "out").id == expected.id
    assert manifest.verify(tmp_path / "out") == []
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("step", range(1, 21, 3))
def test_killed_at_every_kind_of_write(tmp_path, step):
    """Die at the N-th rename or removal: between any two writes the next call goes on to the same dataset."""
    source = folder_of(tmp_path / "in", 12)
    code = KILLED.replace("print(", "import os, signal\ncount = 0\nreal = os.replace\nrename = Path.rename\n"
        "def die():\n    global count\n    count += 1\n"
        f"    if count == {step}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "def replace(*a):\n    die(); real(*a); die()\ndef renamed(*a):\n    die(); r = rename(*a); die(); return r\n"
        "os.replace = replace\nPath.rename = renamed\nprint(", 1)  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True, text=True)
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    made = ingest.ingest(source, tmp_path / "out", vocab_size=400)
    assert manifest.verify(tmp_path / "out") == []
    assert made.id == ingest.ingest(source, tmp_path / "again", vocab_size=400).id


def test_the_standard_library_is_listed_without_what_is_not_its_own():
    found = [item.shown for item in corpus.modules(corpus.library()) if isinstance(item, manifest.Found)]
    assert {"ast.py", "json/decoder.py", "asyncio/events.py"} <= set(found) and len(found) > 400
    for name in found:
        assert name.endswith(".py")
        assert not {"site-packages", "test", "tests", "idle_test", "__pycache__"} & set(name.split("/")), name
    licence, evidence = corpus.LibraryLicences(corpus.library()).around(corpus.library())
    assert licence == "PSF-2.0" and evidence


def test_plans_are_pure_and_keep_groups_whole():
    chance = np.random.default_rng(3)
    hashes = chance.integers(0, 255, (500, 32), dtype=np.uint8)
    sizes = chance.integers(100, 5000, 500)
    signatures = chance.integers(0, 2**32, (500, 112), dtype=np.uint32)
    signatures[100:200] = signatures[300:400]
    hashes[7] = hashes[3]
    plan = held_out.plan(hashes, sizes, signatures, False, 0.1, 2_000_000)
    again = held_out.plan(hashes, sizes, signatures, False, 0.1, 2_000_000)
    assert plan.key == again.key
    assert plan.fate[7] == held_out.DROP and plan.first[7] == 3
    assert (plan.fate[100:200] == plan.fate[300:400]).all() and plan.near == 200
    held = sizes[plan.fate == held_out.HOLD].sum() / sizes.sum()
    assert 0.08 < held <= 0.1
    capped = held_out.plan(hashes, sizes, signatures, False, 0.1, 30_000)
    assert 15_000 < sizes[capped.fate == held_out.HOLD].sum() <= 30_000


def test_reading_files_needs_no_torch():
    code = "import sys, nomoat.data.ingest, nomoat.data.manifest; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


MEASURED = """
import sys
from pathlib import Path
from nomoat.data.ingest import ingest
made = ingest(Path(sys.argv[1]), Path(sys.argv[2]), vocab_size=1000)
from nomoat.core.device import peak_memory
print(peak_memory() // 2**20, made.splits["heldout"]["bytes"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_two_gigabytes_in_bounded_memory(tmp_path, kind):
    source = tmp_path / f"big.{kind}"
    text = prose(1, 10_000)
    with source.open("w") as file:
        for number in range(2_000_000_000 // len(text)):
            if kind == "txt":
                file.write(f"{number}\n{text}")
            else:
                file.writelines(json.dumps({"text": prose(random.random(), 40)}) + "\n" for _ in range(10))
                file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, source, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    source.unlink()
    memory, held = map(int, result.stdout.split())
    assert memory < 900, f"{memory} MB"
    assert 1_000_000 < held <= 2_000_000
