"""The tiny autoencoders' files become a run whose model is a codec, and computes what their description says."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nomoat
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.run import load
from nomoat.core.types import Codec
from nomoat.families.autoencoder import Autoencoder
from nomoat.nn.quantizers import Plain
from nomoat.nn.taesd import TAESD


class Described(nn.Module):
    """A block, from the published description."""

    def __init__(self, width, pooled):
        super().__init__()
        three = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(three[0], nn.ReLU(), three[1], nn.ReLU(), three[2])
        if pooled:
            into, out = nn.Conv2d(width, 4 * width, 1, bias=False), nn.Conv2d(4 * width, width, 1, bias=False)
            self.pool = nn.Sequential(into, nn.GroupNorm(4, 4 * width), nn.ReLU(), out)
        self.pooled = pooled

    def forward(self, x):
        x = x + self.pool(x) if self.pooled else x
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def described(width, latent, pooled):
    """Encoder and decoder with the layers' numbers as they are in the files: three halvings, three blocks at each."""

    def conv(inputs, outputs, **how):
        return nn.Conv2d(inputs, outputs, 3, padding=1, **how)

    def blocks(count, with_pool=False):
        return [Described(width, with_pool) for _ in range(count)]

    def down():
        return conv(width, width, stride=2, bias=False)

    def up():
        return [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]

    encoder = nn.Sequential(
        conv(3, width), *blocks(1), down(), *blocks(3), down(), *blocks(3), down(), *blocks(3, pooled),
        conv(width, latent),
    )  # fmt: skip
    decoder = nn.Sequential(
        Clamp(), conv(latent, width), nn.ReLU(), *blocks(3, pooled), *up(), *blocks(3), *up(), *blocks(3), *up(),
        *blocks(1), conv(width, 3),
    )  # fmt: skip
    return encoder, decoder


def there_and_back(encoder, decoder, image_BCYX):
    """What the reference makes of pictures in [-1, 1]; its own are in [0, 1]."""
    with torch.no_grad():
        latent_BCYX = encoder((image_BCYX + 1) / 2)
        return latent_BCYX, (2 * decoder(latent_BCYX) - 1).clamp(-1, 1)


def agrees(run, encoder, decoder, side, latent):
    family = load(run)
    assert isinstance(family, Codec) and family.codes == 0
    image_BCYX = 2 * torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) - 1
    latent_BCYX, expected_BCYX = there_and_back(encoder.float(), decoder.float(), image_BCYX)
    with torch.no_grad():
        found_BCYX = family.encode({"image": image_BCYX})
        made_BCYX = family.decode_latent(found_BCYX)["image"]
    assert found_BCYX.shape == (2, latent, side // 8, side // 8)
    assert (found_BCYX - latent_BCYX).abs().max() <= 1e-4
    assert (made_BCYX - expected_BCYX).abs().max() <= 1e-4
    assert made_BCYX.std() > 0
    return family


@pytest.fixture
def made(tmp_path):
    """A small random pair of files of the same layout."""
    torch.manual_seed(0)
    nets = described(8, 5, pooled=True)
    for name, net in zip(("encoder", "decoder"), nets, strict=True):
        save_file(net.state_dict(), tmp_path / f"small_{name}.safetensors")
    (tmp_path / "README.md").write_text("# small\n\n- Licence: MIT\n")
    return tmp_path, *nets


@pytest.mark.parametrize("pooled", [True, False])
def test_a_small_one_is_read_and_computes_the_same(pooled, tmp_path, runs_root):
    torch.manual_seed(0)
    encoder, decoder = described(8, 5, pooled)
    save_file(encoder.state_dict(), tmp_path / "small_encoder.safetensors")
    save_file(decoder.half().state_dict(), tmp_path / "small_decoder.safetensors")
    family = agrees(nomoat.import_model(tmp_path), encoder, decoder, 16, 5)
    assert family.config == Autoencoder(256, 3, Plain(5), TAESD(8, (1, 3, 3, 3), (3, 3, 3, 1), pooled))


def test_the_published_one_computes_the_same(shared, runs_root):
    folder = shared / "weights" / "taef2"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    encoder, decoder = described(64, 32, pooled=True)
    encoder.load_state_dict(load_file(folder / "taef2_encoder.safetensors"))
    decoder.load_state_dict(load_file(folder / "taef2_decoder.safetensors"))
    run = nomoat.import_model(folder / "taef2_decoder.safetensors", name="taef2")
    agrees(run, encoder, decoder, 32, 32)
    assert run.read_json("ledger.json")["licence"] == "MIT"


def test_its_run_says_whose_it_is_and_warns_of_no_missing_words(made, runs_root):
    run = nomoat.import_model(made[0] / "small_encoder.safetensors", name="small")
    assert run.read_json("ledger.json")["licence"] == "MIT"
    assert set(run.read_json("ledger.json")["files"]) == {"small_encoder.safetensors", "small_decoder.safetensors"}
    assert not run.metrics("warning")
    assert run.label == "small" and run.status == "done"


def changed(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("encoder", lambda t: t.pop("1.conv.2.weight"), "`encoder.1.conv.2.weight` is missing"),
        ("decoder", lambda t: t.update({"1.weight": torch.zeros(8, 4, 3, 3)}), "decoder.1.weight"),
        ("decoder", lambda t: t.update({"30.weight": torch.zeros(8, 8, 3, 3)}), "as many sizes"),
        ("encoder", lambda t: t.update({"extra": torch.zeros(1)}), "`encoder.extra`"),
        ("encoder", lambda t: t.pop("0.weight"), "begins and ends with a convolution"),
        ("encoder", lambda t: (t.clear(), t.update({"a": torch.zeros(1)})), "begins and ends with a convolution"),
    ],
)
def test_what_the_shapes_contradict_is_refused(made, file, change, words, runs_root):
    changed(made[0] / f"small_{file}.safetensors", change)
    with pytest.raises(DataError, match=words):
        nomoat.import_model(made[0])
    assert not list(runs_root.glob("*")), "of a failure nothing is left"


def test_a_half_is_not_enough_and_two_are_too_many(made, runs_root):
    folder = made[0]
    for name in ("encoder", "decoder"):
        (folder / f"other_{name}.safetensors").write_bytes((folder / f"small_{name}.safetensors").read_bytes())
    with pytest.raises(DataError, match="holds 2 autoencoders"):
        nomoat.import_model(folder)
    assert load(nomoat.import_model(folder / "other_encoder.safetensors")).config.channels == 3
    (folder / "small_decoder.safetensors").unlink()
    with pytest.raises(DataError, match=r"there is no file .*small_decoder"):
        nomoat.import_model(folder / "small_encoder.safetensors")


def test_it_cannot_be_packed(made, runs_root):
    with pytest.raises(ConfigError, match="cannot be packed"):
        nomoat.import_model(made[0], dtype="q8")
