"""Stacked digits and the reader that counts their modes."""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from nomoat.core.config import from_json, to_json
from nomoat.core.errors import ConfigError, DataError
from nomoat.data.stacked import StackedDigits
from nomoat.evaluate.modes import accuracy, modes, train_reader


def digits(count=200):
    """Digit k is a bright block at a place of its own; one more pixel tells which of them it is."""
    y = (np.arange(count) % 10).astype(np.uint8)
    x = np.zeros((count, 28, 28), np.uint8)
    for number, digit in enumerate(y):
        x[number, 4 + 10 * (digit // 5) :, 2 + 5 * (digit % 5) :][:8, :4] = 250
        x[number, number // 28, number % 28] = 99
    return x, y


@pytest.fixture
def data(tmp_path):
    x, y = digits()
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    return StackedDigits(str(tmp_path / "digits.npz"))


class Exact(torch.nn.Module):
    """Reads the blocks by where they are."""

    def forward(self, image_B1YX):
        image = image_B1YX[:, 0]
        places = [(8 + 10 * (digit // 5), 3 + 5 * (digit % 5)) for digit in range(10)]
        return torch.stack([image[:, row, column] for row, column in places], 1) * 20


def test_the_label_is_what_the_colours_show(data):
    batch = next(data.stream(None, 64, seed=3))
    assert batch["image"].shape == (64, 3, 28, 28) and batch["image"].dtype == torch.float32
    assert batch["image"].min() == -1 and batch["image"].max() == pytest.approx(250 / 127.5 - 1)
    read = Exact()(batch["image"].flatten(0, 1)[:, None]).argmax(1).view(-1, 3)
    assert torch.equal(read @ torch.tensor([100, 10, 1]), batch["label"])
    assert data.classes[7] == "007" and len(data.classes) == 1000 and data.words() is None


def test_a_sample_is_the_same_however_it_is_come_by(data):
    whole = next(data.stream(None, 8, seed=1, start=5))
    assert whole["index"].tolist() == list(range(40, 48))
    half = next(data.stream(None, 8, seed=1, start=5, rank=1, world=2))
    assert torch.equal(half["image"], whole["image"][1::2]) and torch.equal(half["label"], whole["label"][1::2])
    other = next(data.stream(None, 8, seed=2, start=5))
    assert not torch.equal(other["image"], whole["image"])
    red, green, blue = next(data.stream(None, 180, seed=0))["image"].unbind(1)
    assert not torch.equal(red, green) and not torch.equal(green, blue)
    assert len(red.flatten(1).unique(dim=0)) == 180, "in each colour every digit comes once in an epoch"


def test_held_out_digits_are_never_shown(data):
    shown = {image.numpy().tobytes() for image in data.digits()[0]}
    held = {image.numpy().tobytes() for image in data.digits("heldout")[0]}
    assert len(held) == 20 and not shown & held and len(shown | held) == 200
    batches = list(data.held_out(None, 16, 28 * 28 * 40))
    assert [len(batch["image"]) for batch in batches] == [16, 16, 8]
    assert {colour.numpy().tobytes() for batch in batches for colour in batch["image"].flatten(0, 1)[:, None]} <= held


def test_a_greater_size_has_a_black_edge(data):
    wide = next(replace(data, size=32).stream(None, 4, seed=1))
    image = wide["image"]
    assert image.shape[2:] == (32, 32) and (image[..., :2] == -1).all() and (image[..., -2:, :] == -1).all()
    assert torch.equal(image[..., 2:30, 2:30], next(data.stream(None, 4, seed=1))["image"])
    with pytest.raises(ConfigError, match="28"):
        replace(data, size=16)


def test_it_says_when_the_file_is_another(data, tmp_path):
    import hashlib

    file = tmp_path / "digits.npz"
    known = replace(data, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert known.changed() == data.changed() == [] and known.paths == (str(file),)
    np.savez(file, x=digits()[0][::-1], y=digits()[1][::-1])
    assert known.changed() and not data.changed()
    file.unlink()
    assert data.changed()
    assert from_json(to_json(known)) == known


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (None, "no file"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        ({"x": digits()[0]}, "cannot be read"),
        ({"x": digits()[0][:, :20], "y": digits()[1]}, "holds no digits"),
        ({"x": digits()[0].astype(float), "y": digits()[1]}, "holds no digits"),
        ({"x": digits()[0], "y": digits()[1][:-1]}, "holds no digits"),
        ({"x": digits()[0], "y": digits()[1] % 9}, "all ten"),
        ({"x": digits()[0], "y": digits()[1] + 1}, "all ten"),
        ({"x": digits()[0], "y": digits()[1].astype(float)}, "all ten"),
        ({"x": np.array([{}], dtype=object), "y": digits()[1]}, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_digits_is_named(tmp_path, held, words):
    file = tmp_path / "other.npz"
    if isinstance(held, bytes):
        file.write_bytes(held)
    elif held is not None:
        np.savez(file, **held)
    with pytest.raises(DataError, match=words):
        StackedDigits(str(file)).digits()


def test_a_file_that_would_fill_the_memory_is_not_opened(tmp_path, monkeypatch):
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(5000))
    monkeypatch.setattr("nomoat.data.stacked.MOST_BYTES", 4000)
    with pytest.raises(DataError, match="unpack"):
        StackedDigits(str(file)).digits()


def test_modes_are_counted():
    x = torch.full((10, 28, 28), -1.0)
    for digit in range(10):
        x[digit, 4 + 10 * (digit // 5) :, 2 + 5 * (digit % 5) :][:8, :4] = 1.0
    numbers = torch.cartesian_prod(*[torch.arange(10)] * 3)
    every = x[numbers]
    found = modes(Exact(), every.split(300))
    assert (
        (found.found, found.pictures) == (1000, 1000) and found.kl == pytest.approx(0, abs=1e-9) and found.sure > 0.99
    )
    one = modes(Exact(), [every[:1].expand(50, -1, -1, -1)])
    assert one.found == 1 and one.kl == pytest.approx(math.log(1000))
    half = modes(Exact(), [every[:500]])
    assert half.found == 500 and half.kl == pytest.approx(math.log(2))


@pytest.mark.parametrize("wrong", [[], [torch.zeros(2, 1, 28, 28)], [torch.full((2, 3, 28, 28), math.nan)]])
def test_what_cannot_be_counted_is_said(wrong):
    with pytest.raises(DataError):
        modes(Exact(), wrong)


def test_a_reader_learns_digits(data):
    reader = train_reader(*data.digits(), steps=30)
    assert accuracy(reader, *data.digits("heldout")) == 1.0
    one, same = (train_reader(*data.digits(), steps=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_a_reader_learns_real_digits(shared):
    file = shared / "data" / "mnist10k" / "mnist10k.npz"
    if not file.exists():
        pytest.skip(f"needs {file}")
    data = StackedDigits(str(file))
    reader = train_reader(*data.digits(), steps=60)
    assert accuracy(reader, *data.digits("heldout")) > 0.9
