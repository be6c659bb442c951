"""Picture files: what is read, how it is made a square, what is said of it, and what is refused with the reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import drawing, drawings, encoded, folder_of, shape
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nomoat.core.errors import ConfigError
from nomoat.data.captions import captions_of
from nomoat.data.lookalikes import lookalikes
from nomoat.data.picture_files import is_coloured, square_of
from nomoat.data.picture_listing import choose_size, contents, is_pictures, listing
from nomoat.data.streams import UnreadableError


def refused(content: Any, size: int = 32) -> tuple[str, str]:
    with pytest.raises(UnreadableError) as caught:
        square_of(content, size)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_six_formats_whole_cut_and_under_a_wrong_name(kind: str) -> None:
    image = drawing(3)
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    made = square_of(data, 48)
    exact = kind in ("PNG", "WEBP", "BMP", "TIFF")
    away = np.abs(made.pixels.astype(int) - np.asarray(image)).mean()
    assert away == 0 if exact else away < 12
    assert made.hash == square_of(encoded(image), 48).hash or not exact
    assert refused(data[: len(data) // 2])[0] == "damaged picture"


def test_what_is_no_picture_is_refused_with_the_reason() -> None:
    assert refused(b"") == ("empty", "")
    assert refused(b"%!PS-Adobe-3.0 EPSF-3.0\n") == ("not a picture", "png, jpg, webp, gif, bmp and tiff are read")
    assert refused(b"\x89PNG\r\n\x1a\n" + b"x" * 99)[0] == "damaged picture"
    assert refused(encoded(Image.new("1", (10_000, 9_000))))[0] == "too many pixels"  # 90 MP in 11 kB
    assert refused(encoded(Image.new("1", (20_000, 9_000))))[0] == "too many pixels"  # beyond what Pillow opens
    assert refused(encoded(drawing(0, 15)), 32) == ("smaller than half of the size asked for", "15 x 15 pixels")
    assert refused(encoded(Image.fromarray(np.linspace(-3, 1, 4096, dtype=np.float32).reshape(64, 64)), "TIFF")) == (
        "pixels of unknown range",
        "-3 to 1: which value is white is not said",
    )


pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@settings(max_examples=80)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]), st.randoms(use_true_random=False))
def test_damaged_bytes_give_a_square_or_a_reason(kind: str, chance: Any) -> None:
    data = bytearray(encoded(drawing(1, 24), kind))
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        assert square_of(bytes(data[: chance.randint(1, len(data))]), 16).pixels.shape == (16, 16, 3)
    except UnreadableError as error:
        assert error.reason


def test_sixteen_bits_are_scaled_by_their_range_and_not_clipped() -> None:
    grey = np.full((32, 32), 0x8000, dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        made = square_of(encoded(Image.fromarray(grey), kind), 32)
        assert set(made.pixels.flat) == {128} and made.noted == ("over 8 bits",)
    dark = square_of(encoded(Image.fromarray(grey // 16)), 32)  # stays dark
    assert set(dark.pixels.flat) == {8}
    assert set(square_of(np.full((32, 32, 3), 0.5), 32).pixels.flat) == {128}


def test_other_kinds_of_colour() -> None:
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    cmyk = square_of(encoded(red.convert("CMYK"), "JPEG", quality=95), 32)
    assert cmyk.noted == ("CMYK",) and np.abs(cmyk.pixels.astype(int) - [255, 0, 0]).max() < 8
    assert (square_of(encoded(red.convert("P")), 32).pixels == [255, 0, 0]).all()
    assert (square_of(encoded(red.convert("1")), 40).pixels % 255 == 0).all()
    grey, coloured = (square_of(encoded(image), 32).pixels for image in (red.convert("L"), red))
    assert is_coloured(coloured) and not is_coloured(grey)
    moving = encoded(red, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40), (0, 0, 255))])
    first = square_of(moving, 32)
    assert first.noted == ("animated",) and (first.pixels == [255, 0, 0]).all()


def test_transparency_is_laid_on_the_ground_and_kept_as_alpha() -> None:
    made = square_of(encoded(shape("square", "red")), 48)
    assert made.alpha is not None and set(made.alpha.flat) == {0, 255}
    assert (made.pixels[made.alpha == 0] == 255).all() and (made.pixels[made.alpha == 255] == [220, 30, 30]).all()
    assert (square_of(encoded(shape("square", "red")), 48, "#102030").pixels[0, 0] == [16, 32, 48]).all()
    palette = Image.new("P", (40, 40))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    hidden = square_of(encoded(palette, "GIF", transparency=0), 32)
    assert hidden.alpha is not None and not hidden.alpha.any() and (hidden.pixels == 255).all()
    assert square_of(encoded(drawing(0, mode="RGBA")), 48).alpha is None  # opaque


def test_exif_turns_and_names_the_author() -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste((0, 0, 0), (0, 0, 60, 12))
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Ann Example"
    made = square_of(encoded(image, "JPEG", exif=exif, quality=95), 40)
    assert (made.width, made.height, made.noted, made.author) == (40, 60, ("turned",), "Ann Example")
    assert made.pixels[:, -8:].mean() < 40 and made.pixels[:, :20].mean() > 220  # the top went to the right


def test_marks_of_generators() -> None:
    info = PngInfo()
    info.add_text("parameters", "a cat, steps: 20")
    assert square_of(encoded(drawing(0), pnginfo=info), 32).origin == "stable-diffusion-webui"


def test_the_centre_square_without_halos() -> None:
    wide = Image.new("RGB", (300, 100), (255, 255, 255))
    wide.paste((0, 0, 200), (100, 0, 200, 100))
    assert (square_of(encoded(wide), 32).pixels == [0, 0, 200]).all()
    edge = Image.new("RGB", (96, 96), (180, 180, 180))
    edge.paste((60, 60, 60), (0, 0, 48, 96))
    row = square_of(encoded(edge), 32).pixels[16, :, 0]
    assert row.min() == 60 and row.max() == 180  # Lanczos would go beyond both
    art = drawing(5, 16).quantize(8).convert("RGB")
    doubled = square_of(encoded(art), 32)
    assert doubled.noted == ("enlarged",)
    assert (doubled.pixels == np.asarray(art).repeat(2, 0).repeat(2, 1)).all()


def test_large_photographs_are_decoded_at_a_fraction_and_look_the_same() -> None:
    image = drawing(7, 64).resize((1024, 1024), Image.Resampling.BICUBIC)
    photo = square_of(encoded(image, "JPEG", quality=95), 32)
    assert np.abs(photo.pixels.astype(int) - square_of(encoded(image), 32).pixels).mean() < 2
    assert (photo.width, photo.height) == (1024, 1024)


def test_copies_look_alike_and_colours_do_not() -> None:
    def thumbnail(image: Image.Image, kind: str = "PNG", **options: Any) -> Any:
        return square_of(encoded(image, kind, **options), 48).thumbnail

    whole = [drawing(number) for number in range(40)]
    copies = [thumbnail(image, "JPEG", quality=60, subsampling=0) for image in whole[:10]]
    smaller = [thumbnail(image.resize((32, 32), Image.Resampling.LANCZOS)) for image in whole[10:20]]
    group = lookalikes(np.stack([*map(thumbnail, whole), *copies, *smaller]))
    assert group[40:].tolist() == group[:20].tolist() == list(range(20))
    assert len({*group.tolist()}) == 40
    hearts = np.stack([thumbnail(shape("circle", colour)) for colour in ("red", "blue", "green")])
    assert lookalikes(hearts).tolist() == [0, 1, 2]
    assert lookalikes(np.full((3000, 192), 200, np.uint8)).max() == 0
    assert lookalikes(hearts[:0]).tolist() == [] and lookalikes(hearts[:1]).tolist() == [0]


def said_of(root: Path, **options: Any) -> tuple[dict[str, list[str]], Any]:
    made = captions_of(listing(root), **options)
    return {name: said.captions for name, said in made.of.items()}, made


def test_texts_beside_pictures_and_their_absence(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.txt": "a red one\n\nred paint\n", "b.png.txt": "\ufeffb\n", "c.caption": "", "z.txt": "?"})
    folder_of(tmp_path, {f"{name}.png": drawing(number) for number, name in enumerate("abcd")})
    captions, made = said_of(tmp_path)
    assert captions == {"a.png": ["a red one", "red paint"], "b.png": ["b"], "c.png": []}
    assert made.how == "texts" and [(d.source, d.reason) for d in made.dropped] == [
        ("z.txt", "text without a picture of its name")
    ]


def table(rows: list[list[str]], separator: str = ",") -> str:
    held = io.StringIO()
    csv.writer(held, delimiter=separator).writerows(rows)
    return held.getvalue()


@pytest.mark.parametrize("spelling", ["img/{}.png", "{}.png", "{}", "./img/{}.PNG"])
def test_tables_are_found_by_their_values(tmp_path: Path, spelling: str) -> None:
    root = drawings(tmp_path / "img", 6).parent
    rows = [["what", "where", "words"]] + [["x", spelling.format(f"{n:03d}"), f"number {n}, drawn"] for n in range(5)]
    folder_of(root, {"list.tsv": table([*rows, ["x", "none.png", "gone"]], "\t")})
    captions, made = said_of(root)
    assert captions == {f"img/{n:03d}.png": [f"number {n}, drawn"] for n in range(5)}
    assert made.columns == {"names: where, captions: words": ["list.tsv"]}
    assert [(d.reason, d.detail) for d in made.dropped] == [("table with rows that name no picture here", "1 rows")]
    assert said_of(root, column="what")[0]["img/000.png"] == ["x"]
    with pytest.raises(ConfigError, match="did you mean `words`"):
        captions_of(listing(root), column="word")


def test_names_tags_licences_and_several_rows_of_one_picture(tmp_path: Path) -> None:
    drawings(tmp_path, 4)
    rows = [{"hexcode": f"{n:03d}", "name": f"face {n}", "tags": ["grin", "smile", "grin"]} for n in range(3)]
    rows += [{"hexcode": "001", "name": "another", "license": "CC0-1.0", "author": "Bo"}]
    packed = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("in/9.png", encoded(drawing(9)))
        archive.writestr("in/meta.csv", table([["file", "title"], ["9.png", "nine"]]))
    (tmp_path / "names.jsonl.gz").write_bytes(packed)
    captions, made = said_of(tmp_path)
    assert captions["000.png"] == ["face 0"] and captions["001.png"] == ["face 1", "another"]
    assert captions["more/in/9.png"] == ["nine"] and "003.png" not in captions
    assert made.of["001.png"].ledger.licence == "CC0-1.0" and made.of["001.png"].ledger.author == "Bo"
    assert said_of(tmp_path, tags=True)[0]["000.png"] == ["face 0", "grin, smile"]


def test_labels_of_tables_are_classes(tmp_path: Path) -> None:
    drawings(tmp_path, 6)
    rows = [["id", "label"]] + [[f"{n:03d}", str(n % 2)] for n in range(5)]
    folder_of(tmp_path, {"labels.csv": table(rows)})
    captions, made = said_of(tmp_path)
    assert made.classes == ("0", "1", "other") and made.of["005.png"].label == "other"
    assert captions["003.png"] == ["1"]


def test_a_table_of_something_else_is_left_alone(tmp_path: Path) -> None:
    drawings(tmp_path, 30)
    folder_of(tmp_path, {"prices.csv": table([["id", "price"]] + [[str(n * 7 + 1000), "3"] for n in range(40)])})
    captions, made = said_of(tmp_path)
    assert not captions and made.dropped[0].reason == "table that names none of the pictures"


def test_folders_are_classes_without_the_splits(tmp_path: Path) -> None:
    names = [
        f"set/{split}/{kind}/{n}.png" for split in ("train", "test") for kind in ("cat", "big_dog") for n in (1, 2)
    ]
    folder_of(tmp_path, {name: drawing(number) for number, name in enumerate(names)})
    captions, made = said_of(tmp_path)
    assert made.classes == ("big_dog", "cat") and made.how == "folder names"
    assert captions["set/test/big_dog/1.png"] == ["big dog"] and made.of["set/train/cat/2.png"].label == "cat"
    one = folder_of(tmp_path / "one", {f"cat/{n}.png": drawing(n) for n in range(4)})
    captions, made = said_of(one)
    assert (captions, made.classes, made.how) == ({}, (), "none")
    mixed = folder_of(one, {"loose.png": drawing(9), "dog/1.png": drawing(10)})
    captions, made = said_of(mixed)
    assert made.classes == ("cat", "dog", "other") and captions["loose.png"] == []


def test_hints_lie_beside_their_pictures(tmp_path: Path) -> None:
    both = {f"depth/{n}.jpg": encoded(drawing(n), "JPEG") for n in range(3)}
    folder_of(tmp_path / "a", {**both, **{f"depth/{n}.png": drawing(n, mode="L") for n in range(3)}})
    found = listing(tmp_path / "a")
    assert {name: item.name for name, item in found.hints.items()} == {
        f"depth/{n}.jpg": f"depth/{n}.png" for n in range(3)
    }
    apart = {f"{kind}/{n}.png": drawing(n) for kind in ("train", "trainannot", "val", "valannot") for n in range(3)}
    found = listing(folder_of(tmp_path / "b", apart))
    assert len(found.pictures) == 6 and found.hints["val/2.png"].name == "valannot/2.png"
    found = listing(
        folder_of(tmp_path / "c", {f"{kind}/{n}.png": drawing(n) for kind in ("masks", "cats") for n in (1, 2)})
    )
    assert {*found.hints} == {"cats/1.png", "cats/2.png"}
    kinds = listing(
        folder_of(tmp_path / "d", {f"{kind}/{n}{kind}.png": drawing(n) for kind in ("masks", "cats") for n in (1, 2)})
    )
    assert not kinds.hints and len(kinds.pictures) == 4


def test_arrays_with_and_without_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 3, 20, 24), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x_train=pixels, y_train=np.arange(6) % 2, other=np.zeros((2, 2)))
    found = listing(tmp_path)
    assert [item.name for item in found.pictures][:2] == ["a/0/x_train-1", "a/1/x_train-2"]
    [(_, first), *_] = contents(found.pictures)
    assert (first == np.moveaxis(pixels[0], 0, -1)).all()
    assert captions_of(found).classes == ("0", "1")
    np.savez(tmp_path / "b.npz", names=np.array(["a", "b"]), numbers=np.zeros(9))
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 no more")
    dropped = {(item.source, item.reason) for item in listing(tmp_path).dropped}
    assert dropped == {("b.npz", "no pictures among its arrays"), ("c.npz", "damaged archive")}


def test_archives_that_cannot_be_trusted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../out.png", encoded(drawing(0)))
        archive.writestr("in.png", encoded(drawing(1)))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(70_000_000))
    found = listing(tmp_path)
    assert [item.name for item in found.pictures] == ["a/in.png"]
    assert {item.reason for item in found.dropped} == {"path that leads out of the archive", "expands without end"}


def test_what_is_taken_for_pictures(tmp_path: Path) -> None:
    drawings(tmp_path / "a", 8)
    folder_of(
        tmp_path / "a", {"000.txt": "a caption", "names.csv": "file,name\n", "README.md": "# x", "LICENSE": "MIT"}
    )
    assert is_pictures(tmp_path / "a") and is_pictures(tmp_path / "a" / "000.png")
    folder_of(tmp_path / "a", {"one.md": "text", "two.py": "x = 1"})
    assert is_pictures(tmp_path / "a")
    folder_of(tmp_path / "a", {"three.md": "text"})
    assert not is_pictures(tmp_path / "a")
    assert not is_pictures(folder_of(tmp_path / "b", {"a.txt": "text"})) and not is_pictures(tmp_path / "none")


@pytest.mark.parametrize(
    ("side", "most", "size"), [(80, 32, 32), (80, 64, 64), (50, 64, 32), (50, 48, 48), (28, 32, 28), (19, 64, 16)]
)
def test_a_size_is_chosen(tmp_path: Path, side: int, most: int, size: int) -> None:
    drawings(tmp_path, 4, side)
    folder_of(tmp_path, {"a.png": b"", "b.png": b"\x89PNG\r\n"})
    assert choose_size(tmp_path, most) == size
