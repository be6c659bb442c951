"""Readers: every format, also packed; messy, broken and hostile files; bounded memory."""

import contextlib
import gzip
import io
import json
import os
import random
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.data.document import Document, Dropped, place
from nomoat.data.readers import Found, read, walk
from nomoat.data.streams import Source, decoded, lines, pieces

PARAGRAPH = "It was a bright cold day in April, and the clocks were striking thirteen.\n"


def texts(path, **options):
    return [item.text for item in read(path, **options) if isinstance(item, Document)]


def documents(path, **options):
    return [item for item in read(path, **options) if isinstance(item, Document)]


def losses(path, **options):
    return [(item.member, item.reason) for item in read(path, **options) if isinstance(item, Dropped)]


def compressed_zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


PAGE = b"""<html><head><title>A page</title><style>p {color: red}</style><script>var x = "<p>no</p>";</script></head>
<body><h1>Head</h1><p>One &amp;
  two.</p><p>Three<br>four <b>bold</b></p><ul><li>a</li><li>b</li></ul><pre>x  y
  z</pre><!-- note --></body></html>"""
ROWS = [{"id": n, "text": f"Row {n}. " + PARAGRAPH} for n in range(5)]


def parquet_bytes(rows, **options):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def csv_bytes(rows, separator=","):
    return "".join([f"id{separator}text\n", *(f'{row["id"]}{separator}"{row["text"]}"\n' for row in rows)]).encode()


FILES = {
    "a.txt": PARAGRAPH.encode(),
    "a.md": b"# Title\n\nBody.\n",
    "a.py": b"def f():\n    return 1\n",
    "a.html": PAGE,
    "a.csv": csv_bytes(ROWS),
    "a.tsv": csv_bytes(ROWS, "\t"),
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "a.parquet": parquet_bytes(ROWS),
}
EXPECTED = {
    "a.txt": [PARAGRAPH],
    "a.md": ["# Title\n\nBody.\n"],
    "a.py": ["def f():\n    return 1\n"],
    "a.html": ["A page\n\nHead\n\nOne & two.\n\nThree\nfour bold\n\na\nb\n\nx  y\n  z"],
    **{name: [row["text"] for row in ROWS] for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet")},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packing", ["plain", "gz", "zst", "zip"])
def test_every_format_reads_the_same_however_it_is_packed(tmp_path, name, packing):
    data, path = FILES[name], tmp_path / name
    if packing == "gz":
        path, data = path.with_name(name + ".gz"), gzip.compress(data)
    elif packing == "zst":
        path, data = path.with_name(name + ".zst"), compressed_zstd(data)
    if packing == "zip":
        path = tmp_path / "all.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"deep/{name}", data)
    else:
        path.write_bytes(data)
    found = documents(path)
    assert [item.text for item in found] == EXPECTED[name]
    assert losses(path) == []
    assert {item.source for item in found} == {path.name}
    if packing == "zip":
        assert all(item.member.startswith(f"deep/{name}") for item in found)


def test_packed_files_inside_a_zip_and_several_parts_of_a_gz(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("x.jsonl.gz", gzip.compress(FILES["a.jsonl"]))
        archive.writestr("y.parquet.zst", compressed_zstd(FILES["a.parquet"]))
    assert texts(tmp_path / "b.zip") == EXPECTED["a.jsonl"] * 2
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert texts(tmp_path / "two.txt.gz") == ["one\ntwo\n"]


def test_members_and_offsets_lead_back_to_the_line(tmp_path):
    body = "".join(f"line number {n} " + "x" * 60 + "\n" + "\n" * (n % 7 == 0) for n in range(1, 400))
    (tmp_path / "long.txt").write_text(body)
    found = documents(tmp_path / "long.txt", limit=3000)
    assert len(found) > 8 and "".join(item.text for item in found) == body
    for item in found:
        assert body.encode()[item.offset_bytes :].startswith(item.text.encode()[:50])
        number = body[: item.offset_bytes].count("\n") + 1
        assert place(item.source, item.member, 2) == f"long.txt, line {number + 2}"
    (tmp_path / "r.jsonl").write_bytes(FILES["a.jsonl"])
    third = documents(tmp_path / "r.jsonl")[2]
    assert third.member == "line 3" and FILES["a.jsonl"][third.offset_bytes :].startswith(b'{"id": 2')
    assert place("b.zip", "c/d.txt, line 7", 1) == "b.zip, c/d.txt, line 8"
    assert place("r.jsonl.gz", "line 3", 4) == "r.jsonl.gz, line 3, text line 5"
    assert place("p.html") == "p.html, text line 1"


def test_broken_jsonl_lines_are_counted_with_their_numbers(tmp_path):
    good = json.dumps({"text": PARAGRAPH})
    rows = [good, "{broken", "", good, "[1, 2]", '{"text": 5}', '"a bare string"', "\ufffd\x00", good]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert len(texts(tmp_path / "a.jsonl")) == 4
    assert losses(tmp_path / "a.jsonl") == [
        ("line 2", "broken JSON"),
        ("line 5", "not a JSON object"),
        ("line 6", "no text in its column"),
        ("line 8", "binary data among text"),
    ]


def test_lone_surrogates_in_json_do_no_harm(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d pair"}\n')
    assert texts(tmp_path / "a.jsonl")[0].encode() == "half \ufffd pair".encode()


def test_csv_with_quotes_separators_and_bad_rows(tmp_path):
    (tmp_path / "a.csv").write_text(
        'id;review;stars\n1;"two\nlines; and more words to read";5\n2;too;many;fields\n'
        '3;"said ""so"" at great length"\n'
    )
    found = documents(tmp_path / "a.csv")
    assert [item.text for item in found] == ["two\nlines; and more words to read", 'said "so" at great length']
    assert [item.member for item in found] == ["line 2", "line 5"]
    assert losses(tmp_path / "a.csv") == [("line 4", "broken csv row")]
    assert found[0].column == "review (by name)"


def test_columns_by_name_by_length_as_asked_or_row_by_row(tmp_path):
    rows = [{"k": "ab", "long": PARAGRAPH, "other": "x" * 30, "n": 1} for _ in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert documents(tmp_path / "a.jsonl")[0].column == "long (the longest text)"
    assert texts(tmp_path / "a.jsonl", text_column="k,other")[0] == "ab\n\n" + "x" * 30
    missing = list(read(tmp_path / "a.jsonl", text_column="lng"))
    assert [(item.reason, "did you mean `long`" in item.detail) for item in missing] == [("no such column", True)]
    (tmp_path / "b.csv").write_text("name,size\noak,12\nelm,9\n")
    assert texts(tmp_path / "b.csv") == ["name: oak\nsize: 12", "name: elm\nsize: 9"]
    (tmp_path / "c.csv").write_text(f'3,"{PARAGRAPH.strip()}"\n4,"{PARAGRAPH.strip()}"\n')
    assert texts(tmp_path / "c.csv") == [PARAGRAPH.strip()] * 2


def test_ledger_columns(tmp_path):
    row = {"text": PARAGRAPH, "license": "cc-by-4.0", "author": "Ann", "year": 1999, "origin": "gpt", "generation": 2}
    rows = [row, {**row, "license": "other"}, {**row, "derived_from": ["a", "b"]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second, third = documents(tmp_path / "a.jsonl")
    assert (first.licence, first.evidence) == ("CC-BY-4.0", "column license")
    assert (first.author, first.date, first.origin, first.generation) == ("Ann", "1999", "gpt", 2)
    assert second.licence is None and "'other'" in second.evidence
    assert third.derived_from == ("a", "b")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": PARAGRAPH, "origin": "Paris"}))
    assert documents(tmp_path / "b.jsonl")[0].origin == "human"


def test_damaged_parquet(tmp_path):
    whole = parquet_bytes([{"text": f"{n} {random.Random(n).random()} " * 9} for n in range(400)], row_group_size=100)
    (tmp_path / "cut.parquet").write_bytes(whole[:-40])
    assert losses(tmp_path / "cut.parquet") == [("", "broken parquet")]
    offset = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0).data_page_offset
    (tmp_path / "torn.parquet").write_bytes(whole[:offset] + b"\xff" * 400 + whole[offset + 400 :])
    assert losses(tmp_path / "torn.parquet") == [("row 101", "broken parquet")]
    assert len(texts(tmp_path / "torn.parquet")) == 300


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16-le"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32-le"),
        ("cp1252", "cp1252"),
    ],
)
def test_encodings(tmp_path, encoding, expected):
    text = "Crème brûlée – “naïve” café\r\nsecond line\r\n" * 40
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    found = documents(tmp_path / "a.txt")
    assert "".join(item.text for item in found) == text.replace("\r\n", "\n")
    assert {item.encoding for item in found} == {expected}


def test_encodings_that_are_no_guess_of_ours(tmp_path):
    (tmp_path / "sjis.txt").write_bytes("吾輩は猫である。名前はまだ無い。".encode("shift_jis") * 50)
    assert losses(tmp_path / "sjis.txt") == [("", "unknown encoding")]
    (tmp_path / "sjis.html").write_bytes(
        '<html><head><meta charset="shift_jis"></head><p>吾輩は猫である。'.encode("shift_jis")
    )
    assert texts(tmp_path / "sjis.html") == ["吾輩は猫である。"]
    mixed = ("naïve café " * 30).encode() + b"\xe9" + ("naïve café\n" * 30).encode()
    assert decoded(mixed) == (mixed.decode("utf-8", "replace"), "utf-8 with errors")


def test_binary_among_text(tmp_path):
    samples = {
        "a.txt": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "b.txt": os.urandom(5000) + b"\0",
        "c.doc": b"%PDF-1.4\n%binary",
        "d.dat": bytes(range(1, 32)) * 20,
        "e.jsonl": b"\x28\xb5\x2f\xfd....",
    }
    for name, data in samples.items():
        (tmp_path / name).write_bytes(data)
        assert losses(tmp_path / name) == [("", "binary file")], name
        assert texts(tmp_path / name) == []
    (tmp_path / "late.txt").write_bytes(
        PARAGRAPH.encode() * 2000 + b"\0\1\2" * 50 + b"\n\n" + PARAGRAPH.encode() * 2000
    )
    found = list(read(tmp_path / "late.txt", limit=20_000))
    assert sum(isinstance(item, Dropped) for item in found) == 1
    assert sum(len(item.text) for item in found if isinstance(item, Document)) > 200_000


def test_empty_files_and_damaged_archives(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n\n ")
    (tmp_path / "page.html").write_bytes(b"<html><script>x</script></html>")
    for name in ("empty.txt", "blank.txt", "page.html"):
        assert losses(tmp_path / name) == [("", "empty")]
    whole = gzip.compress((PARAGRAPH * 60_000).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) * 3 // 4])
    assert losses(tmp_path / "cut.txt.gz") == [("", "damaged archive")]
    assert len(texts(tmp_path / "cut.txt.gz")) > 0  # what came before the cut is kept
    for name in ("a.txt.gz", "a.zip", "a.txt.zst"):
        (tmp_path / name).write_bytes(b"not an archive at all")
        assert losses(tmp_path / name) == [("", "damaged archive")], name


def test_bombs_stop_early(tmp_path):
    spaces = b"word " * 14_000_000
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(spaces, 9))
    assert ("", "expands without end") in losses(tmp_path / "bomb.txt.gz")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", spaces)
    assert losses(tmp_path / "bomb.zip") == [("", "expands without end")]


def test_tricks_in_zips(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in ("../../evil.txt", "/etc/evil.txt", "C:\\evil.txt", "ok.txt", ".hidden/a.txt", "inner.zip"):
            archive.writestr(name, PARAGRAPH)
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        locked = zipfile.ZipInfo("locked.txt")
        archive.writestr(locked, PARAGRAPH)
        archive.infolist()[-1].flag_bits |= 1
    before = sorted(tmp_path.rglob("*"))
    assert texts(tmp_path / "t.zip") == [PARAGRAPH]
    reasons = {reason for _, reason in losses(tmp_path / "t.zip")}
    assert reasons == {
        "path that leads out of the archive",
        "hidden",
        "archive inside an archive",
        "link inside an archive",
        "locked with a password",
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_walk_is_ordered_and_leaves_out_what_is_no_data(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/c.txt", ".hidden.txt", ".git/x", "node_modules/x.js", "__pycache__/x.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(PARAGRAPH)
    (tmp_path / "LICENSE").write_text("MIT License")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    (tmp_path / "old").mkdir()
    for name in ("dataset.json", "train-00000.idx"):
        (tmp_path / "old" / name).write_text("")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s"))
        found = list(walk(tmp_path))
    assert [item.shown for item in found if isinstance(item, Found)] == ["b.txt", "link.txt", "a/c.txt", "a/z.txt"]
    reasons = {item.source: item.reason for item in found if isinstance(item, Dropped)}
    assert reasons == {
        ".hidden.txt": "hidden",
        ".git": "hidden",
        "node_modules": "other people's packages",
        "__pycache__": "compiled files",
        "LICENSE": "licence file, read as evidence",
        "venv": "other people's packages",
        "old": "a run or dataset of nomoat",
        "a/loop": "folder read already",
        "gone.txt": "broken link",
        "pipe": "not a file",
        "s": "not a file",
    }


def test_files_without_permission_and_files_that_vanish(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(PARAGRAPH)
    real = Path.open

    def refuse(self, *rest, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real(self, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert losses(path) == [("", "no permission")]
    monkeypatch.undo()
    path.unlink()
    assert losses(path) == [("", "vanished")]


def test_names_that_are_no_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(raw, "wb") as file:  # noqa: PTH123
        file.write(PARAGRAPH.encode())
    found = [item for item in walk(tmp_path) if isinstance(item, Found)]
    assert found[0].shown == "caf\\xe9.txt"
    assert texts(found[0].path, shown=found[0].shown) == [PARAGRAPH]


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(20, 200))
def test_pieces_and_lines_lose_nothing(parts, limit):
    data = b"\n".join(parts)
    cut = list(pieces(Source(io.BytesIO(data)), limit))
    assert b"".join(piece.data for piece in cut) == data
    assert all(0 < len(piece.data) <= limit for piece in cut)
    assert all(data[piece.offset :].startswith(piece.data) for piece in cut)
    row = list(lines(Source(io.BytesIO(data))))
    assert b"\n".join(piece.data for piece in row) == data.removesuffix(b"\n")
    assert all(data[piece.offset :].startswith(piece.data) for piece in row)


def test_lines_that_are_too_long_are_passed_over():
    data = b"short\n" + b"x" * 5_000_000 + b"\nafter\n"
    row = list(lines(Source(io.BytesIO(data)), limit=2_000_000))
    assert [(piece.data, piece.line) for piece in row] == [(b"short", 1), (b"", -2), (b"after", 3)]


MEASURE = """
import sys
from pathlib import Path
from nomoat.core.device import peak_memory
from nomoat.data.readers import read
import pyarrow.parquet
count = size = 0
start = peak_memory()
for item in read(Path(sys.argv[1])):
    count += 1
    size += len(getattr(item, "text", ""))
print(count, size, (peak_memory() - start) // 2**20)
"""


def measured(path):
    result = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    return [int(word) for word in result.stdout.split()]


KINDS = ("txt", "txt.gz", "jsonl", "csv", "html", "one-line.txt")


@pytest.mark.parametrize(
    ("kind", "megabytes"),
    [("txt", 150), ("jsonl", 60), *[pytest.param(kind, 2000, marks=pytest.mark.slow) for kind in KINDS]],
)
def test_memory_is_bounded(tmp_path, kind, megabytes):
    path = tmp_path / f"big.{kind}"
    block = {
        "jsonl": (json.dumps({"text": PARAGRAPH * 9}) + "\n") * 1500,
        "csv": f'"a","{PARAGRAPH * 9}"\n' * 1500,
        "one-line.txt": "word " * 200_000,
        "txt.gz": "",
    }.get(kind, ("<p>" if kind == "html" else "") + PARAGRAPH * 13_500)
    with contextlib.closing(gzip.GzipFile(path, "wb", 1) if kind.endswith("gz") else path.open("wb")) as file:
        for number in range(megabytes):
            first = os.urandom(40_000).hex() if kind.endswith("gz") else number  # random, so that the file is no bomb
            file.write(f"{first}{',' if kind == 'csv' else ''}\n{block}".encode())
    count, size, grown = measured(path)
    path.unlink()
    assert size > megabytes * (80_000 if kind.endswith("gz") else 900_000)
    assert count > 20
    assert grown < 70, f"{grown} MB of memory for {megabytes} MB of {kind}"
