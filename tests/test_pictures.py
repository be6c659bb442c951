"""Pictures as a dataset and as recipe data: ledger, held-out part, the same samples from any step and on any world."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from drawings import COLOURS, SHAPES, drawing, drawings, encoded, folder_of, shape
from PIL import Image

from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.ledger import UNKNOWN
from nomoat.data.manifest import Manifest, changed, verify
from nomoat.data.pictures import PictureFiles, Pictures, write_pictures
from nomoat.data.rules import Rules
from nomoat.data.sources import of_dataset


def captioned(root: Path, count: int = 40, silent: int = 3) -> Path:
    """Pictures with a table of captions, the first few without one."""
    drawings(root, count)
    with (root / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        rows.writerows([f"{number:03d}.png", f"drawing number {number}"] for number in range(silent, count))
    return root


def of(path: Path, **options: Any) -> Pictures:
    return Pictures(str(path), **{"size": 16, **options})


def dropped_of(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    return {line["member"] or line["source"]: line["reason"] for line in lines}


def test_bad_pictures_among_good_ones(tmp_path: Path) -> None:
    root = captioned(tmp_path / "in", 30)
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    whole = encoded(drawing(100))
    bad = {
        "cut.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "bomb.png": encoded(Image.new("1", (10_000, 9_000))),
        "small.png": encoded(drawing(101, 7)),
        "text.jpg": "no picture at all",
        "notes.doc": "words",
        ".hidden.png": whole,
    }
    good = {
        "deep.png": Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40),
        "cmyk.jpg": encoded(drawing(102, mode="CMYK"), "JPEG"),
        "moving.gif": encoded(red, "GIF", save_all=True, append_images=[drawing(103, 40)]),
        "half.png": drawing(104, 8),
        "no_suffix": encoded(drawing(105)),
        "copy.bmp": encoded(drawing(5), "BMP"),
        "LICENSE": "CC0-1.0",
    }
    folder_of(root, {**bad, **good})
    events: list[dict[str, Any]] = []
    made = write_pictures(tmp_path / "out", root, 16, watch=events.append)
    assert dropped_of(tmp_path / "out") == {
        "cut.png": "damaged picture",
        "empty.png": "empty",
        "bomb.png": "too many pixels",
        "small.png": "smaller than half of the size asked for",
        "text.jpg": "not a picture",
        "notes.doc": "no picture",
        ".hidden.png": "hidden",
        "copy.bmp": "duplicate",
        "LICENSE": "licence file, read as evidence",
    }
    assert made.settings["noted"] == {"over 8 bits": 1, "CMYK": 1, "animated": 1, "enlarged": 1}
    assert made.settings["without_caption"] == 3 + 5 and made.splits["train"]["documents"] == 35 - 3
    assert events[-1]["done"] == events[-1]["total"] > 0 and events[-1]["documents"] == 36
    assert verify(tmp_path / "out") == [] == changed(tmp_path / "out")
    assert made.columns == {"names: file_name, captions: text": ["captions.csv"]}
    assert "9 x " not in made.left_out(tmp_path / "out") and "1 x empty (empty.png)" in made.left_out(tmp_path / "out")
    assert made.licences.shares[0].licence == "CC0-1.0" and made.licences.documents == 32


def test_each_picture_has_its_ledger_line(tmp_path: Path) -> None:
    root = drawings(tmp_path / "in", 12)
    exif = Image.Exif()
    exif[0x013B] = "Ann"
    rows = [{"file": "000.png", "license": "MIT", "author": "Bo", "caption": "zero"}]
    rows += [{"file": "001.png", "origin": "painter", "generation": 2, "caption": "one"}]
    folder_of(root, {"rows.jsonl": "\n".join(map(json.dumps, rows)), "002.png.license": "Unlicense"})
    folder_of(root, {"sub/README.md": "License: CC-BY-4.0", "sub/a.jpg": encoded(drawing(50), "JPEG", exif=exif)})
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.writestr("LICENSE", "Zlib")
        archive.writestr("b/c.png", encoded(drawing(51)))
    write_pictures(tmp_path / "out", root, 16)
    opened = of(tmp_path / "out")
    lines = [line for split in ("train", "heldout") for line in opened.open(split).ledger().to_pylist()]
    by_name = {line["name"]: line for line in lines}
    assert len(by_name) == 14 and len({line["id"] for line in lines}) == 14
    keys = ("source", "member", "licence", "evidence", "author", "origin", "generation")
    told = {name: tuple(by_name[name][key] for key in keys) for name in by_name}
    assert told["000.png"] == ("000.png", "", "MIT", "column license", "Bo", "human", 0)
    assert told["001.png"] == ("001.png", "", None, "", "", "painter", 2)
    assert told["002.png"][2] == "Unlicense"
    assert told["sub/a.jpg"][:5] == ("sub/a.jpg", "", "CC-BY-4.0", told["sub/a.jpg"][3], "Ann")
    assert told["more/b/c.png"][:3] == ("more.zip", "b/c.png", "Zlib")
    assert by_name["sub/a.jpg"]["bytes"] == (root / "sub" / "a.jpg").stat().st_size
    streams = of_dataset(tmp_path / "out", Rules())
    assert {"MIT", "CC-BY-4.0", "Zlib", "unknown"} <= {stream.licence for stream in streams}
    assert [stream.name for stream in streams if stream.role == "teacher"] == ["in: written by painter"]
    stated = write_pictures(tmp_path / "stated", root, 16, {"licence": "MIT"})
    assert [share.licence for share in stated.licences.shares] == ["MIT"]
    assert UNKNOWN in {share.licence for share in Manifest.load(tmp_path / "out").licences.shares}


def test_equal_pictures_are_dropped_and_copies_stay_on_one_side(tmp_path: Path) -> None:
    root = folder_of(
        tmp_path / "in",
        {
            **{f"{n:02d}.png": drawing(n) for n in range(30)},
            **{f"{n:02d}-again.jpg": encoded(drawing(n), "JPEG", quality=90, subsampling=0) for n in range(30)},
            **{f"{n:02d}-small.webp": encoded(drawing(n).resize((40, 40)), "WEBP", lossless=True) for n in range(30)},
            **{f"{n:02d}-same.tiff": encoded(drawing(n), "TIFF") for n in range(30)},
            "03.txt": "first",
            "03-same.txt": "second",
        },
    )
    made = write_pictures(tmp_path / "out", root, 16)
    assert made.dropped == {"duplicate": 30} and made.near_duplicates == 90
    sides = {split: of(tmp_path / "out").open(split).ledger().to_pylist() for split in ("train", "heldout")}
    drawn = {split: {line["source"][:2] for line in lines} for split, lines in sides.items()}
    assert not drawn["train"] & drawn["heldout"] and len(drawn["heldout"]) == 3 and len(sides["heldout"]) == 9
    both = [line["captions"] for lines in sides.values() for line in lines if line["source"] == "03-same.tiff"]
    assert both == [["second", "first"]]  # a duplicate leaves what was said of it
    again = write_pictures(tmp_path / "again", root, 32)
    assert {one["hash"] for one in again.held_out} == {one["hash"] for one in made.held_out}  # whatever the size
    assert write_pictures(tmp_path / "third", root, 16).id == made.id != again.id


def test_a_flood_of_one_picture_is_not_held_out(tmp_path: Path) -> None:
    flood = {f"a{n}.jpg": encoded(drawing(0), "JPEG", quality=70 + n) for n in range(25)}
    root = folder_of(drawings(tmp_path / "in", 15, first=1), flood)
    made = write_pictures(tmp_path / "out", root, 16)
    held = {one["source"] for one in made.held_out}
    assert 1 <= len(held) <= 6 and not held & {*flood}
    few = write_pictures(tmp_path / "few", drawings(tmp_path / "four", 4), 16)
    assert few.splits["heldout"]["documents"] == 0 and list(of(tmp_path / "few").held_out(None, 4, 9999)) == []


def test_any_step_any_world_and_every_picture_once_an_epoch(tmp_path: Path) -> None:
    write_pictures(tmp_path / "out", captioned(tmp_path / "in"), 16)
    data = of(tmp_path / "out", flip=True)
    whole = list(islice(data.stream(None, 4, 7), 20))
    for step, batch in zip(range(9, 14), data.stream(None, 4, 7, start=9), strict=False):
        assert all(torch.equal(batch[name], whole[step][name]) for name in batch)
    for rank in (0, 1):
        batch = next(data.stream(None, 4, 7, start=3, rank=rank, world=2))
        assert all(torch.equal(batch[name], whole[3][name][rank::2]) for name in batch)
    samples = data.sampler(7)(np.arange(72))
    assert torch.equal(samples["image"], torch.cat([batch["image"] for batch in whole])[:72])
    pixels = data.open().pixels[:36].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    plain = torch.from_numpy(np.ascontiguousarray(pixels))
    mirrored = 0
    for epoch in (samples["image"][:36], samples["image"][36:]):
        found = set()
        for image in epoch:
            same, turned = ((plain - other).abs().amax((1, 2, 3)) < 1e-5 for other in (image, image.flip(-1)))
            mirrored += bool(turned.any() and not same.any())
            found.add(int((same | turned).nonzero()[0]))
        assert found == set(range(36))
    assert 15 < mirrored < 57 and not torch.equal(samples["image"][:36], samples["image"][36:])
    assert not torch.equal(next(data.stream(None, 4, 8))["image"], whole[0]["image"])


def test_batches_hold_what_the_families_expect(tmp_path: Path) -> None:
    made = write_pictures(tmp_path / "out", captioned(tmp_path / "in"), 16)
    data = of(tmp_path / "out", caption_length=5, ids=(made.id,))
    words = data.words()
    assert words is not None and {"drawing", "number"} <= {*words.words} and made.tokenizer == words.hash
    batch = data.sampler(0)(np.arange(36))
    assert batch["image"].dtype == torch.float32 and batch["image"].shape == (36, 3, 16, 16)
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["caption"].shape == batch["caption_mask"].shape == (36, 5)
    assert batch["caption_mask"].dtype == torch.bool and batch["index"].tolist() == list(range(36))
    silent = ~batch["caption_mask"].any(1)
    assert (batch["caption"][~batch["caption_mask"]] == words.eot).all()
    held = list(data.held_out(None, 3, 65_536))
    assert [len(one["index"]) for one in held] == [3, 1] and len(list(data.held_out(None, 1, 32))) == 2
    quiet = int(silent.sum()) + sum(int((~one["caption_mask"].any(1)).sum()) for one in held)
    assert quiet == 3 and not {"label", "hint"} & {*batch}
    ledger = data.open().ledger().to_pylist()
    said = {
        words.decode(ids[mask])
        for ids, mask in zip(batch["caption"].numpy(), batch["caption_mask"].numpy(), strict=True)
    }
    assert said - {""} == {line["captions"][0] for line in ledger if line["captions"]}
    short = of(tmp_path / "out", caption_length=2).sampler(0)(np.arange(4))
    assert torch.equal(short["caption"], batch["caption"][:4, :2])


def test_several_captions_take_turns(tmp_path: Path) -> None:
    root = folder_of(drawings(tmp_path / "in", 6), {f"{n:03d}.txt": f"a {n}\nb {n}\nc {n}" for n in range(5)})
    write_pictures(tmp_path / "out", root, 16)
    data = of(tmp_path / "out")
    words, rows = data.words(), data.open()
    assert words is not None
    heard: dict[int, list[str]] = {}
    for epoch in range(6):
        batch = rows.batch(np.arange(6), np.arange(6), np.full(6, epoch), seed=1)
        for item, (ids, mask) in enumerate(zip(batch["caption"].numpy(), batch["caption_mask"].numpy(), strict=True)):
            heard.setdefault(item, []).append(words.decode(ids[mask]))
    number = {line["source"][2]: item for item, line in enumerate(rows.ledger().to_pylist())}
    for name in "01234":
        three = heard[number[name]]
        assert sorted(three[:3]) == [f"{letter} {name}" for letter in "abc"] and three[:3] == three[3:]
    assert heard[number["5"]] == [""] * 6
    assert len({heard[number[name]][0][0] for name in "01234"}) > 1  # not all begin with the first


def test_classes_masks_and_pairs(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{kind}/{c}.png": shape(kind, c) for kind in SHAPES for c in COLOURS}
    files |= {f"{kind}/{c}2.png": shape(kind, c, 60) for kind in SHAPES for c in COLOURS}
    files |= {f"square/{number}.png": drawing(number) for number in range(4)}
    write_pictures(tmp_path / "out", folder_of(tmp_path / "in", files), 32, {"ground": "black"})
    data = of(tmp_path / "out", size=32, hint="mask", flip=True)
    assert (
        data.classes == ("circle", "square", "triangle")
        and data.open().size < of(tmp_path / "out", size=32).open().size
    )
    batch = data.sampler(0)(np.arange(data.open().size))
    assert batch["hint"].shape == (data.open().size, 1, 32, 32) and 0 <= batch["hint"].min() < batch["hint"].max() == 1
    assert torch.equal(batch["image"].amax(1, keepdim=True) > -1, batch["hint"] > 0)  # on black, mirrored together
    names = [line["name"].split("/")[0] for line in data.open().ledger().to_pylist()]
    labels = [data.classes[label] for label in data.open().batch(np.arange(len(names)), np.arange(len(names)))["label"]]
    assert labels == names
    with pytest.raises(ConfigError, match="have no `pair`"):
        of(tmp_path / "out", size=32, hint="pair").open()
    pairs = {f"{n}.jpg": encoded(drawing(n), "JPEG") for n in range(6)}
    pairs |= {f"{n}.png": encoded(drawing(n, mode="L")) for n in range(5)}
    pairs |= {"5.png": encoded(drawing(5).crop((0, 0, 40, 20)))}
    made = write_pictures(tmp_path / "pairs", folder_of(tmp_path / "in2", pairs), 48)
    data = of(tmp_path / "pairs", size=48, hint="pair")
    batch = data.sampler(0)(np.arange(5))
    assert batch["hint"].shape == (5, 1, 48, 48)
    assert (
        batch["hint"]
        - (batch["image"] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True) / 2
        - 0.5
    ).abs().mean() < 0.05
    assert made.dropped == {"control picture that is left out: of another shape": 1}


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 12, 12), dtype=np.uint8).repeat(2, 1).repeat(2, 2)
    (tmp_path / "in").mkdir()
    np.savez_compressed(tmp_path / "in" / "a.npz", x=pixels, y=np.arange(20) % 4)
    write_pictures(tmp_path / "out", tmp_path / "in" / "a.npz", 24)
    data = of(tmp_path / "out", size=24)
    assert data.channels == 1 and data.classes == ("0", "1", "2", "3")
    rows = data.open()
    batch = rows.batch(np.arange(rows.size), np.arange(rows.size))
    numbers = [int(line["member"].split()[-1]) - 1 for line in rows.ledger().to_pylist()]
    assert torch.equal(
        (batch["image"] * 127.5 + 127.5).round().to(torch.uint8)[:, 0], torch.from_numpy(pixels[numbers])
    )
    assert batch["label"].tolist() == [number % 4 for number in numbers]
    assert changed(tmp_path / "out") == []


def test_what_does_not_fit_is_said_before_the_first_step(tmp_path: Path) -> None:
    write_pictures(tmp_path / "out", captioned(tmp_path / "in"), 16)
    data = of(tmp_path / "out")
    words = data.words()
    assert words is not None

    def family(**config: Any) -> Any:
        return SimpleNamespace(config=SimpleNamespace(**config))

    fine = {"size": 16, "channels": 3, "vocab_size": words.vocab_size, "caption_length": 16, "classes": 0}
    data.suits(family(**fine))
    data.suits(family(**{**fine, "vocab_size": 0, "caption_length": 4}))  # it does not read captions
    data.suits(family(**{**fine, "vocab_size": 9999, "caption_length": 64}))
    for name, wrong, fix in [
        ("size", 32, "set family.size=16"),
        ("channels", 1, "set family.channels=3"),
        ("vocab_size", 5, f"set family.vocab_size={words.vocab_size}"),
        ("caption_length", 8, "set family.caption_length=16"),
        ("classes", 10, "set family.classes=0"),
    ]:
        with pytest.raises(ConfigError) as caught:
            next(data.stream(family(**{**fine, name: wrong}), 4, 0))
        assert caught.value.fix == fix
    for options, message in [
        ({"size": 32}, "16 pixels a side, not 32"),
        ({"hint": "lines"}, "no hint"),
        ({"caption_length": 0}, "at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            of(tmp_path / "out", **options).open()
    with pytest.raises(ConfigError, match="have no `mask`"):
        of(tmp_path / "out", hint="mask").open()
    (tmp_path / "out" / "pictures.npy").write_bytes((tmp_path / "out" / "pictures.npy").read_bytes()[:-9])
    assert verify(tmp_path / "out") == [verify(tmp_path / "out")[0]]
    with pytest.raises(DataError, match="damaged"):
        data.open()


def test_what_cannot_be_made_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = folder_of(tmp_path / "empty", {"a.png": b"", "b.jpg": "text", "c.gif": b""})
    with pytest.raises(DataError) as caught:
        write_pictures(tmp_path / "out", empty)
    assert caught.value.why.startswith("2 x empty, 1 x not a picture; the first: b.jpg")
    root = drawings(tmp_path / "in", 12)
    for options, message in [
        ({"size": 4}, "4 pixels a side"),
        ({"settings": {"ground": "whitish"}}, "`whitish` is no colour"),
        ({"settings": {"licence": "???"}}, "names no licence"),
        ({"settings": {"caption_column": "x"}}, "no table beside the pictures"),
        ({"source": tmp_path / "none"}, "there is no file or folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            write_pictures(tmp_path / "out", **{"source": root, "size": 16, **options})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        with pytest.raises(DataError, match="the disk is full"):
            write_pictures(tmp_path / "out", root, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in"]
    write_pictures(tmp_path / "out", root, 16)
    with pytest.raises(DataError, match="exists already"):
        write_pictures(tmp_path / "out", root, 16)

    def faster(_: Any) -> None:  # another process makes the same folder meanwhile
        if not (tmp_path / "two").exists():
            shutil.copytree(tmp_path / "out", tmp_path / "two")

    assert write_pictures(tmp_path / "two", root, 16, watch=faster) == Manifest.load(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in", "out", "two"]


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    root = captioned(tmp_path / "in", 30)
    folder_of(root, {"half.png": drawing(99, 10), "bad.png": b""})
    files = PictureFiles(str(root), 16, licence="MIT", caption_length=2)
    told: list[dict[str, Any]] = []
    data = files.prepare(tmp_path / "data", told.append)
    warnings = " ".join(event["text"] for event in told if event["kind"] == "warning")
    assert "1 x empty (bad.png)" in warnings and "learned without one: 4 of 31 pictures" in warnings
    assert "Smaller than 16 pixels, and enlarged: 1 of 31" in warnings and "up to 3 words; the first 2" in warnings
    told.clear()
    assert files.prepare(tmp_path / "data", told.append) == data and data.changed() == []
    assert not [event for event in told if event["kind"] == "ingest"]
    os.utime(root / "000.png", ns=(1, 1))
    assert data.changed() == []  # another date, the same contents
    folder_of(root, {"000.png": drawing(77), "new.png": drawing(78)})
    assert len(data.changed()) == 2 and any("new.png is new" in text for text in data.changed())
    fresh = files.prepare(tmp_path / "data")
    assert fresh.path != data.path and fresh.changed() == [] and Manifest.load(data.path).id == data.ids[0]
    assert replace(data, ids=("other",)).changed()[0].endswith("were made anew from other files")
    assert (
        replace(files, size=24).folder(tmp_path) != files.folder(tmp_path) != replace(files, tags=True).folder(tmp_path)
    )


def test_our_own_datasets_are_not_read_as_pictures(tmp_path: Path) -> None:
    root = drawings(tmp_path / "in", 12)
    write_pictures(root / "data", root, 16)
    assert changed(root / "data") == []


def test_no_captions_and_no_classes_is_fine_and_said(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    data = PictureFiles(str(drawings(tmp_path / "in" / "only", 4)), 16).prepare(tmp_path / "data", told.append)
    batch = next(data.stream(None, 2, 0))
    assert {*batch} == {"image", "index"} and data.words() is None and data.classes == ()
    said = [event["text"] for event in told if event["kind"] == "warning"]
    assert said[0] == "There are no captions and no classes." and said[1].startswith("Too few pictures")


SHARED = [
    ("openmoji", 32, 2204, {"duplicate": 27}, "tables", 0, "CC-BY-SA-4.0"),
    ("condition-pairs", 32, 55, {}, "folder names", 2, "LicenseRef-research-only"),
    ("tiny-coco-256", 32, 80, {}, "tables", 0, "CC-BY-NC-ND-2.0"),
    pytest.param("mnist10k", 28, 9017, {}, "folder names", 10, "CC-BY-SA-3.0", marks=pytest.mark.slow),
    pytest.param("cifar10", 32, 22_000, {}, "folder names", 10, "unknown", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("name", "size", "pictures", "lost", "how", "classes", "licence"),
    SHARED,
)
def test_the_shared_sets_are_read_as_they_are(
    shared: Path,
    tmp_path: Path,
    name: str,
    size: int,
    pictures: int,
    lost: dict[str, int],
    how: str,
    classes: int,
    licence: str,
) -> None:
    made = write_pictures(tmp_path / "out", shared / "data" / name, size)
    assert sum(split["documents"] for split in made.splits.values()) == pictures - sum(lost.values())
    assert made.dropped == lost and made.settings["captions"] == how and len(made.settings["classes"]) == classes
    assert licence in {share.licence for share in made.licences.shares} and made.settings["without_caption"] == 0
    assert changed(tmp_path / "out") == []
