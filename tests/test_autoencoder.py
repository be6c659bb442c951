"""Codecs of every kind: what a family promises, for VQ, VAE and the tiny nets too; tokens there and back; bad input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from test_every_family import (  # collected here once more, for the codecs that `tiny` leaves out
    drawn,
    mean_loss,
    test_every_parameter_belongs_to_one_player_and_moves,  # noqa: F401
    test_saved_and_loaded_it_gives_the_same_output,  # noqa: F401
    test_the_first_loss_is_the_analytic_one,  # noqa: F401
    test_the_gradient_does_not_depend_on_the_split,  # noqa: F401
)
from test_loop import same, stop_at

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run, load
from nomoat.core.types import Codec, Tokenizes
from nomoat.families.autoencoder import Autoencoder
from nomoat.nn.backbone import Backbone
from nomoat.nn.pyramid import Pyramid
from nomoat.nn.quantizers import FSQ, VAE, VQ, Plain
from nomoat.nn.taesd import TAESD
from nomoat.sampling.drawing import Drawing
from nomoat.train.loop import train

NETS = Pyramid((16, 16))
KINDS = {
    "vq": Autoencoder(size=8, quantizer=VQ(codes=16, channels=4), nets=NETS),
    "vae": Autoencoder(size=8, channels=1, quantizer=VAE(2, kl=0.01), nets=NETS, loss="l2"),
    "trunk": Autoencoder(
        size=8, nets=replace(NETS, trunk=Backbone(width=16, depth=1, heads=2, position_axes=2, causal=False))
    ),
    "taesd": Autoencoder(size=8, quantizer=Plain(3), nets=TAESD(8, (1, 1), (1, 1), pooled=True)),
}


@pytest.fixture(params=KINDS)
def family(request):
    torch.manual_seed(0)
    return KINDS[request.param].build({})


@pytest.mark.parametrize("kind", ["vq", "vae", "taesd"])
def test_it_learns_one_batch(kind):
    """The mean absolute error to a third, or the mean square to a twentieth, in sixty steps."""
    torch.manual_seed(0)
    family = KINDS[kind].build({})
    batch = drawn(family, family.example(2))
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = mean_loss(family, batch, "model")
        loss.backward()
        optimizer.step()
        family.after_step(0.5)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / (20 if family.config.loss == "l2" else 3)


@pytest.mark.parametrize("quantizer", [FSQ((5, 4)), VQ(codes=16, channels=4)])
def test_tokens_and_latents_say_the_same(quantizer):
    torch.manual_seed(0)
    family = Autoencoder(size=8, quantizer=quantizer, nets=NETS).build({}).eval()
    assert isinstance(family, Tokenizes) and isinstance(family, Codec)
    with torch.no_grad():
        family.decoder.output.weight.normal_()
        batch = {"image": 2 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1}
        tokens_BYX, latent_BCYX = family.tokens(batch), family.encode(batch)
        assert tokens_BYX.shape == (3, *family.grid) and tokens_BYX.dtype == torch.int64
        assert latent_BCYX.shape[1:] == family.latent_shape
        assert int(tokens_BYX.max()) < family.codes == quantizer.codes
        torch.testing.assert_close(family.bottleneck.look_up(tokens_BYX), latent_BCYX, rtol=0, atol=1e-6)
        image_BCYX = family.from_tokens(tokens_BYX)["image"]
        assert torch.equal(image_BCYX, family.decode_latent(family.bottleneck.look_up(tokens_BYX))["image"])
        assert image_BCYX.abs().max() <= 1 and image_BCYX.std() > 0
        assert family.tokens({"image": image_BCYX.new_zeros(1, 3, 16, 12)}).shape == (1, 4, 3), "other sizes are coded"


def test_perplexity_and_unused_codes_are_told():
    family = Autoencoder(size=8, quantizer=FSQ((2, 2)), nets=NETS).build({})
    tokens_BYX = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [1, 1]]])
    used = family._used(replace(family.bottleneck(torch.zeros(2, 2, 2, 2)), tokens_BYX=tokens_BYX))
    assert used["perplexity"].tolist() == pytest.approx([2.0, 2.0])
    assert used["unused"].tolist() == [2.0, 2.0]
    loss = family.loss(family.example(2))
    assert {"l1", "ssim", "psnr", "perplexity", "unused"} == set(loss.parts)
    plainer = Autoencoder.tiny().build({})
    assert {"l2", "psnr", "perplexity", "unused"} == set(plainer.loss(plainer.example(2)).parts)


def test_the_divergence_starts_at_zero_and_is_added():
    torch.manual_seed(0)
    family = KINDS["vae"].build({})
    batch = drawn(family, family.example(3))
    assert float(family.loss(batch).parts["kl"]) == 0
    with torch.no_grad():
        family.encoder.output.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    loss, places = family.loss(batch), 4
    assert float(loss.parts["kl"]) == pytest.approx(3 * places * 0.5 * 2.0**2)
    distance = float(loss.parts["l2"])
    assert float(loss.total.detach()) == pytest.approx(distance + 0.01 * float(loss.parts["kl"]) / 64, rel=1e-5)


def test_decibels_are_those_of_the_mean_square():
    family = KINDS["vae"].build({})
    image_BCYX = torch.full((1, 1, 8, 8), 0.2)
    loss = family.loss({"image": image_BCYX, "noise": torch.zeros(1, 2, 2, 2)})
    assert float(loss.parts["psnr"]) == pytest.approx(10 * math.log10(2**2 / 0.2**2), rel=1e-4)


def test_a_vae_draws_from_noise_and_each_picture_has_its_own():
    torch.manual_seed(0)
    family = KINDS["vae"].build({}).eval()
    with torch.no_grad():
        family.decoder.output.weight.normal_()
        drawing, chance = Drawing(seed=3), torch.Generator()
        four_BCYX = family.generate({"rows": 4}, drawing, chance)["image"]
        assert four_BCYX.shape == (4, 1, 8, 8) and four_BCYX.abs().max() <= 1
        last_BCYX = family.generate({"index": torch.arange(2), "first": 2}, drawing, chance)["image"]
        torch.testing.assert_close(last_BCYX, four_BCYX[2:])
        cold_BCYX = family.generate({"rows": 2}, Drawing(seed=3, temperature=0.0), chance)["image"]
        assert torch.equal(cold_BCYX[0], cold_BCYX[1])
        noise_BCYX = torch.zeros(1, *family.noise_shape)
        torch.testing.assert_close(family.generate({"noise": noise_BCYX}, drawing, chance)["image"], cold_BCYX[:1])


def test_codes_cannot_draw_and_numbers_have_no_codes():
    codes, numbers = Autoencoder.tiny().build({}), KINDS["vae"].build({})
    with pytest.raises(ConfigError, match="cannot draw"):
        codes.generate({"rows": 1}, Drawing(), torch.Generator())
    for call in (lambda: numbers.tokens(numbers.example()), lambda: numbers.from_tokens(torch.zeros(1, 2, 2).long())):
        with pytest.raises(ConfigError, match="codec-small"):
            call()
    with pytest.raises(DataError, match="has 125"):
        codes.from_tokens(torch.full((1, 2, 2), 125))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Autoencoder(size=30), "size=32"),
        (lambda: Autoencoder(size=2), "size=4"),
        (lambda: Autoencoder(channels=0), "channels is 1 or more"),
        (lambda: Autoencoder(loss="gan"), "l1_ssim or l2"),
        (lambda: Pyramid((12,)), "multiples of 8"),
        (lambda: Pyramid(()), "multiples of 8"),
        (lambda: Pyramid(stem=0), "stem"),
        (lambda: Pyramid((16, 32), trunk=Backbone(width=16)), "width=32"),
        (lambda: TAESD(down=(1, 1), up=(1,)), "as many sizes"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        wrong()


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 1, 32, 32), (1, 3, 0, 32)])
def test_pictures_that_do_not_fit_are_refused(shape):
    with pytest.raises(DataError, match="cannot be coded"):
        Autoencoder().build({}).encode({"image": torch.zeros(shape)})


@dataclass(frozen=True)
class Pictures:
    """Recipe data: the example, forever."""

    def stream(self, family, batch_size, seed, start=0, rank=0, world=1):
        while True:
            yield family.example(batch_size)

    def held_out(self, family, batch_size, tokens):
        yield family.example(2)


@pytest.mark.parametrize("kind", ["vq", "vae"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(kind, tmp_path):
    """The codebook and its averages are in the checkpoint, and what is held out is told in all its parts."""
    recipe = Recipe("a codec", KINDS[kind], Pictures(), "6steps", 4, precision="fp32", ema=0.9)
    whole, halved = (Run.create(tmp_path, name, recipe) for name in ("whole", "halved"))
    train(recipe, whole)
    stop_at(halved, 3)
    train(recipe, halved)
    assert halved.status == "stopped"
    halved.watch = None
    train(recipe, halved)
    same(whole, halved)
    loaded = load(whole)
    if kind == "vq":
        assert float(loaded.bottleneck.uses.sum()) > 0
    assert {"psnr", "loss"} <= whole.metrics("evaluate")[-1].keys()
