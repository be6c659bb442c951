"""The diffusion family: what it is taught and told, and how pictures are drawn; and consistency distillation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Frozen
from nomoat.core.recipe import find
from nomoat.core.run import Run, load
from nomoat.core.types import Codec, Denoises, Generates, Ports
from nomoat.families.consistency import Consistency
from nomoat.families.diffusion import Diffusion
from nomoat.nn.backbone import Backbone
from nomoat.nn.objective import (
    CONSISTENCY,
    DDPM,
    EDM,
    FLOW,
    MEANFLOW,
    SHORTCUT,
    Objective,
    meanflow_target,
    shortcut_target,
    step_ends,
)
from nomoat.nn.unet import UNet
from nomoat.sampling.drawing import Drawing
from nomoat.sampling.solvers import move, slerp
from nomoat.train.loop import train

TRUNK = Backbone(32, 2, 2)
PLAIN = Diffusion(size=8, patch=4, trunk=TRUNK, vocab_size=11, caption_length=5, caption_depth=1)
NAMES = {"flow": FLOW, "ddpm": DDPM, "edm": EDM, "shortcut": SHORTCUT, "meanflow": MEANFLOW}


def made(config=PLAIN, parts=None, moved=True):
    torch.manual_seed(0)
    family = config.build(parts or {})
    with torch.no_grad():
        for weight in family.parameters() if moved else ():
            weight.add_(0.1 * torch.randn_like(weight))
    return family


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(family, rows=8, seed=0):
    return family.draw(family.example(rows), seeded(seed))


def mean(loss):
    return (loss.total / loss.count).item()


def pictures(family, prompts=None, **options):
    prompts = {"index": torch.arange(3)} if prompts is None else prompts
    return family.generate(prompts, Drawing(**{"steps": 3, **options}), None)["image"]


def told(family, rows=3):
    """Prompts that all say something."""
    batch = family.example(rows)
    return {name: batch[name] for name in ("caption", "caption_mask", "label", "embedding") if name in batch}


# What is taught


def test_edm_is_preconditioned_as_in_the_paper():
    clean, noise, output = torch.randn(3, 4, 5, generator=seeded()).double()
    sigma = torch.tensor([[0.01], [0.3], [2.0], [50.0]]).double()
    t, spread = sigma / (1 + sigma), 0.5
    x_ve, x = clean + sigma * noise, (1 - t) * clean + t * noise
    total = sigma**2 + spread**2
    torch.testing.assert_close(EDM.enter(x, t), x_ve / total.sqrt())
    expected = spread**2 / total * x_ve + sigma * spread / total.sqrt() * output
    torch.testing.assert_close(EDM.clean(output, x, t), expected)
    torch.testing.assert_close(EDM.weight_at(t[1:, 0]), (total / (sigma * spread) ** 2)[1:, 0])
    logs = torch.logit(EDM.times_at(torch.tensor([0.1587, 0.5, 0.8413]).double()))
    torch.testing.assert_close(logs, torch.tensor([-2.4, -1.2, 0.0]).double(), rtol=0, atol=1e-3)


def test_ddpm_reads_unit_variance_and_its_loss_is_that_of_the_noise():
    clean, noise, guess = torch.randn(3, 4, 5, generator=seeded()).double()
    time_B = torch.tensor([0.1, 0.4, 0.7, 1.0]).double()
    t_B = DDPM.times_at(time_B)
    t = t_B[:, None]
    alpha2 = torch.exp(-(0.1 * time_B + 9.95 * time_B.square()))[:, None]
    x = (1 - t) * clean + t * noise
    torch.testing.assert_close(DDPM.enter(x, t), alpha2.sqrt() * clean + (1 - alpha2).sqrt() * noise)
    error = (DDPM.clean(guess, x, t) - clean).square() * DDPM.weight_at(t_B)[:, None]
    torch.testing.assert_close(error, (guess - noise).square())


@pytest.mark.parametrize("predicts", ["clean", "noise", "velocity"])
def test_every_prediction_names_the_same_picture(predicts):
    clean, noise = torch.randn(2, 4, 5, generator=seeded()).double()
    t = torch.tensor([[0.2], [0.5], [0.9], [0.99]]).double()
    right = {"clean": clean, "noise": noise, "velocity": noise - clean}[predicts]
    found = Objective(predicts=predicts).clean(right, (1 - t) * clean + t * noise, t)
    torch.testing.assert_close(found, clean)


def test_an_error_in_velocity_is_clamped_near_the_clean_picture():
    assert FLOW.weight_at(torch.tensor([0.5, 0.05, 0.001])).tolist() == pytest.approx([4, 400, 400])


def test_a_shortcut_is_two_half_steps():
    asked = []

    def denoise(x, t_B, r_B):
        asked.append((t_B.tolist(), r_B.tolist()))
        return 0.3 * x + t_B[:, None] - 0.5 * r_B[:, None]

    x, t_B, r_B = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([0.75, 1 / 64]), torch.tensor([0.25, 0.0])
    found = shortcut_target(denoise, x, t_B, r_B)
    assert asked[0] == ([0.75, 1 / 64], [0.5, 1 / 64]), "the finest halves are slopes"
    assert asked[1] == ([0.5, 1 / 128], [0.25, 1 / 128])
    for row, (t, r) in enumerate([(0.75, 0.25), (1 / 64, 0.0)]):
        m, y = (t + r) / 2, x[row]
        for begin, end in ((t, m), (m, r)):
            to = begin if t - m <= 1 / 128 else end
            clean = 0.3 * y + begin - 0.5 * to
            y = y + (end - begin) * (y - clean) / begin
        torch.testing.assert_close(move(x[row], found[row], t, r), y)


def test_meanflow_finds_the_mean_velocity_of_a_linear_field():
    field = torch.tensor([[0.3, 1.0], [-1.0, 0.2]]).double()
    x, t_B, r_B = (
        torch.randn(3, 2, generator=seeded()).double(),
        *torch.tensor([[0.9, 0.5, 0.6], [0.2, 0.0, 0.6]]).double(),
    )

    def mean_velocity(x, t_B, r_B):
        ends = [torch.linalg.matrix_exp(field * (r - t)) @ row for row, t, r in zip(x, t_B, r_B, strict=True)]
        return (x - torch.stack(ends)) / (t_B - r_B)[:, None]

    def denoise(x, t_B, r_B):
        # The flow over (t - r) as a power series, which can be derived in t as well.
        step_B1 = (r_B - t_B)[:, None]
        term, total = x, torch.zeros_like(x)
        for power in range(1, 25):
            term = term @ field.T * (step_B1 if power > 1 else 1) / power
            total = total + term
        return x - t_B[:, None] * total

    velocity = x @ field.T
    found = meanflow_target(denoise, x, velocity, t_B, r_B)
    mean = (x - found) / t_B[:, None]
    torch.testing.assert_close(mean[:2], mean_velocity(x, t_B, r_B)[:2])
    torch.testing.assert_close(mean[2], velocity[2])  # a step of no length: the velocity itself


def test_steps_begin_and_end_where_they_should():
    t_B, r_B = step_ends(SHORTCUT, torch.rand(2000), seeded())
    length_B = t_B - r_B
    assert set(length_B.tolist()) == {0.5**level for level in range(7)}
    assert torch.equal((t_B / length_B) % 1, torch.zeros(2000))
    assert (r_B >= 0).all() and (t_B <= 1).all()
    t_B, r_B = step_ends(MEANFLOW, torch.rand(2000), seeded())
    assert (t_B >= r_B).all() and (t_B - r_B).mean() > 0.1


# What is drawn for the loss, and what is reported


@pytest.mark.parametrize("name", NAMES)
def test_times_are_stratified_and_the_share_of_steps_is_kept(name):
    family = made(replace(PLAIN, objective=NAMES[name]))
    batch = drawn(family, 64)
    steps_B = batch["r"] < batch["t"]
    assert steps_B.sum() == (16 if name in ("shortcut", "meanflow") else 0)
    if name not in ("shortcut", "meanflow"):
        edges = family.objective.times_at(torch.tensor([0.25, 0.5, 0.75]))
        assert torch.bucketize(batch["t"], edges).bincount().tolist() == [16] * 4
    assert 0.75 < batch["given"].float().mean() < 1
    assert drawn(made(replace(PLAIN, drop=0.0)), 64)["given"].all()


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_are_means_of_their_quarters_and_add_up(name):
    family = made(replace(PLAIN, objective=NAMES[name]))
    batch = drawn(family, 64)
    loss = family.loss(batch)
    parts = {part: value.item() / 64 for part, value in loss.parts.items()}
    if name not in ("shortcut", "meanflow"):
        assert sum(parts.values()) / 4 == pytest.approx(mean(loss), rel=1e-5)
        first_B = batch["t"].argsort()[:16]
        quarter = {key: value[first_B] for key, value in batch.items()}
        assert parts["noise_1"] == pytest.approx(mean(family.loss(quarter)), rel=1e-4)
    else:
        steps_B = batch["r"] < batch["t"]
        steps = {key: value[steps_B] for key, value in batch.items()}
        assert parts["flow_map"] == pytest.approx(mean(family.loss(steps)), rel=1e-3)


@pytest.mark.parametrize("name", ["flow", "shortcut", "meanflow"])
@pytest.mark.parametrize("trunk", [TRUNK, UNet((16, 32), heads=2)], ids=["transformer", "unet"])
def test_gradients_in_bf16_are_those_in_fp32(name, trunk):
    """Targets without a gradient must not leave cast weights behind that have none."""
    family = made(replace(PLAIN, objective=NAMES[name], trunk=trunk))
    batch, found = drawn(family, 16), []
    for half in (False, True):
        family.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            family.loss(batch).total.backward()
        found.append(torch.cat([weight.grad.flatten() for weight in family.parameters() if weight.grad is not None]))
        assert all(weight.grad is not None for key, weight in family.named_parameters() if "nothing" not in key)
    assert torch.cosine_similarity(*found, dim=0) > 0.99


def test_a_plain_model_ignores_where_a_step_ends_and_a_few_step_model_does_not():
    batch = drawn(made(), 4)
    for name, hears in {"flow": False, "shortcut": True, "meanflow": True}.items():
        family = made(replace(PLAIN, objective=NAMES[name]))
        assert isinstance(family, Denoises) and isinstance(family, Generates)
        ends = [family.denoise(batch["noise"], batch["t"], r_B) for r_B in (batch["t"], 0 * batch["t"])]
        assert torch.equal(*ends) != hears


def coloured(rows):
    """Pictures of one colour each, which their first word names."""
    word_B = torch.arange(rows) % 3
    image = torch.full((rows, 3, 8, 8), -0.8)
    image[torch.arange(rows), word_B] = 0.8
    words_BM = torch.stack((word_B, torch.full_like(word_B, 5)), 1)
    return {"image": image, "caption": words_BM, "caption_mask": torch.ones_like(words_BM, dtype=torch.bool)}


@pytest.fixture(scope="module")
def painter():
    """A model that has learned which word means which colour."""
    family, batch = made(moved=False), coloured(24)
    optimizer = torch.optim.Adam(family.parameters(), lr=4e-3)
    for step in range(250):
        optimizer.zero_grad()
        loss = family.loss(family.draw(batch, seeded(step)))
        (loss.total / loss.count).backward()
        optimizer.step()
    return family.eval()


def test_shuffled_captions_make_the_loss_worse(painter):
    batch = painter.draw(coloured(24), seeded(1000)) | {"given": torch.ones(24, dtype=torch.bool)}
    shuffled = {**batch, "caption": batch["caption"].roll(1, 0)}
    with torch.no_grad():
        assert mean(painter.loss(shuffled)) > 2 * mean(painter.loss(batch))


def test_it_draws_what_it_is_told(painter):
    wanted = coloured(6)
    for options in ({}, {"guidance": 2.0}, {"solver": "euler"}, {"solver": "heun"}, {"solver": "ddim"}):
        image = pictures(painter, wanted, steps=8, **options)
        assert torch.equal(image.mean((2, 3)).argmax(1), torch.arange(6) % 3), options


# How pictures are drawn


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", [None, "euler", "heun", "ddim", "dpm"])
def test_every_objective_draws_by_every_solver(name, solver):
    family = made(replace(PLAIN, objective=NAMES[name]))
    for steps in (1, 3):
        image = pictures(family, told(family), steps=steps, solver=solver)
        assert image.shape == (3, 3, 8, 8) and torch.isfinite(image).all()
        assert image.abs().max() <= 1


def test_guidance_of_one_is_none_and_of_zero_forgets_the_prompt():
    family = made()
    prompts = told(family)
    plain, nothing = pictures(family, prompts), pictures(family, {"index": torch.arange(3)})
    torch.testing.assert_close(pictures(family, prompts, guidance=1.0), plain)
    torch.testing.assert_close(pictures(family, prompts, guidance=1.0 + 1e-7), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(pictures(family, prompts, guidance=0.0), nothing, rtol=0, atol=1e-4)
    assert (pictures(family, prompts, guidance=4.0) - plain).abs().max() > 1e-3


def test_guidance_of_a_model_that_was_trained_without_is_refused():
    with pytest.raises(ConfigError, match=r"trained without.*family.drop=0.1"):
        pictures(made(replace(PLAIN, drop=0.0)), guidance=2.0)
    with pytest.raises(ConfigError, match="reads no prompt"):
        pictures(made(replace(PLAIN, vocab_size=0)), guidance=2.0)


def test_a_model_that_reads_nothing_draws_as_many_rows_as_it_is_told():
    family = made(replace(PLAIN, vocab_size=0))
    assert torch.equal(pictures(family, {"rows": 3}), pictures(family))
    torch.testing.assert_close(pictures(family, {"rows": 2, "first": 1}), pictures(family)[1:], rtol=0, atol=1e-5)


def test_a_picture_does_not_depend_on_what_stands_beside_it():
    family = made()
    prompts = told(family)
    together = pictures(family, prompts, seed=4)
    alone = pictures(family, {name: value[2:] for name, value in prompts.items()} | {"first": 2}, seed=4)
    torch.testing.assert_close(alone, together[2:], rtol=0, atol=1e-5)
    assert not torch.allclose(pictures(family, prompts, seed=5), together, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("solver", ["euler", "heun", "ddim", "dpm"])
def test_kept_pixels_are_equal_to_the_bit(solver, guidance):
    family = made()
    init, mask = 2 * torch.rand(3, 3, 8, 8, generator=seeded()) - 1, torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    init[0, 0, 0, 0] = -0.0
    mask[:, :, 2:5, 3:7] = True
    image = pictures(family, {**told(family), "init": init, "mask": mask}, solver=solver, guidance=guidance)
    kept = ~mask.expand_as(init)
    assert torch.equal(image[kept].view(torch.int32), init[kept].view(torch.int32))
    assert (image[~kept] - init[~kept]).abs().max() > 0.01


def test_what_is_kept_is_seen_while_the_rest_is_drawn():
    family, mask = made(), torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True
    inits = [torch.full((3, 3, 8, 8), value) for value in (-1.0, 1.0)]
    left, right = (pictures(family, {"init": init, "mask": mask}) for init in inits)
    assert (left - right)[..., 4:].abs().max() > 1e-3


def test_full_strength_forgets_the_picture_and_little_keeps_it():
    family = made()
    init = 2 * torch.rand(3, 3, 8, 8, generator=seeded()) - 1
    for solver in ("euler", "heun", "dpm"):
        forgotten = pictures(family, {"init": init}, strength=1.0, solver=solver)
        torch.testing.assert_close(forgotten, pictures(family, solver=solver))
    far, near = (
        (pictures(family, {"init": init}, strength=strength, solver="euler", steps=1) - init).abs().mean()
        for strength in (0.9, 0.1)
    )
    assert far > near * 0.5
    point = made(replace(PLAIN, objective=replace(FLOW, predicts="velocity")), moved=False)  # velocity zero: x stays
    kept = pictures(point, {"init": init}, strength=0.01)
    assert (kept - init).abs().max() < 0.06


def test_noise_may_be_given_and_lies_on_an_arc():
    family = made()
    a, b = torch.randn(2, 1, 3, 8, 8, generator=seeded())
    between = torch.cat([slerp(a, b, share) for share in (0.0, 0.5, 1.0)])
    image = pictures(family, {"noise": between})
    torch.testing.assert_close(image[:1], pictures(family, {"noise": a}), rtol=0, atol=1e-5)
    torch.testing.assert_close(image[2:], pictures(family, {"noise": b}), rtol=0, atol=1e-5)


def test_a_small_picture_is_enlarged():
    config = replace(PLAIN, upscale=2)
    family = made(config)
    batch = drawn(family, 8)
    assert batch["small_noise"].shape == (8, 3, 4, 4) and batch["small_share"].max() <= 0.5
    other = {**batch, "small": torch.zeros(8, 3, 4, 4)}
    with torch.no_grad():
        assert mean(family.loss(batch)) != mean(family.loss(other))
        same = {**batch, "small": torch.nn.functional.avg_pool2d(batch["image"], 2)}
        assert mean(family.loss(batch)) == mean(family.loss(same))
    small = torch.randn(3, 3, 4, 4, generator=seeded()).clamp(-1, 1)
    image = pictures(family, {"small": small}, guidance=2.0)
    assert image.shape == (3, 3, 8, 8)
    assert not torch.allclose(image, pictures(family, {"small": -small}, guidance=2.0), atol=1e-3)


def test_an_embedding_is_heard_whatever_its_length_and_zeros_are_nothing():
    family = made(replace(PLAIN, vocab_size=0, embedding_width=6))
    embedding = torch.randn(3, 6, generator=seeded())
    image = pictures(family, {"embedding": embedding}, guidance=2.0)
    torch.testing.assert_close(pictures(family, {"embedding": 7 * embedding}, guidance=2.0), image, rtol=0, atol=1e-4)
    assert not torch.allclose(pictures(family, {"embedding": -embedding}, guidance=2.0), image, atol=1e-3)
    nothing = pictures(family)
    torch.testing.assert_close(pictures(family, {"embedding": 0 * embedding}), nothing, rtol=0, atol=1e-5)
    assert family.conditions({"embedding": embedding}).ports.context_BMD.shape == (3, 4, 32)


def test_classes_have_a_row_for_none():
    family = made(replace(PLAIN, vocab_size=0, classes=3))
    nothing = pictures(family)
    torch.testing.assert_close(pictures(family, {"label": torch.tensor([-1, -1, -1])}), nothing)
    assert not torch.allclose(pictures(family, {"label": torch.tensor([0, 1, 2])}), nothing, atol=1e-4)


# Latents


class Halves(Family):
    """A codec whose latents are the picture's 2 x 2 blocks, far from standardised."""

    def encode(self, batch):
        return 5 * torch.nn.functional.pixel_unshuffle(batch["image"], 2) + 3

    def decode_latent(self, latent):
        return {"image": torch.nn.functional.pixel_shuffle((latent - 3) / 5, 2)}


LATENT = replace(PLAIN, patch=2, latent=(12, 2))


def test_latents_are_standardised_by_the_first_batch_and_decoded():
    assert isinstance(Halves(), Codec)
    family = made(LATENT, {"codec": Frozen(Halves())})
    batch = {"image": torch.rand(32, 3, 8, 8, generator=seeded())}
    first = family.draw(batch, seeded())
    latents = family.latents.clean(first)
    assert latents.shape == (32, 12, 4, 4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(12))
    torch.testing.assert_close(family.latents.pixels(latents), batch["image"], rtol=0, atol=1e-5)
    measured = {name: value.clone() for name, value in family.kept().items() if name.startswith("latents")}
    assert sorted(measured) == ["latents.mean", "latents.std"]
    family.draw({"image": -batch["image"]}, seeded())
    assert all(torch.equal(value, family.kept()[name]) for name, value in measured.items()), "measured once"
    assert torch.isfinite(family.loss(first).total)
    image, mask = batch["image"][:3], torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    mask[..., 3:5, 3:5] = True
    painted = pictures(family, {"init": image, "mask": mask})
    assert torch.equal(painted[~mask.expand_as(image)], image[~mask.expand_as(image)])
    assert pictures(family, {"init": image}, strength=0.5).shape == image.shape


def test_latents_that_were_computed_before_need_no_codec_to_train():
    family = made(LATENT)
    batch = drawn(family, 8)
    family.loss(batch).total.backward()
    del batch["latent"]
    for use in (lambda: family.loss(batch), lambda: pictures(family)):
        with pytest.raises(ConfigError, match="no codec"):
            use()
    other = made(replace(LATENT, latent=(4, 2)), {"codec": Frozen(Halves())})
    with pytest.raises(ConfigError, match=r"latent=12,2"):
        other.draw({"image": torch.rand(2, 3, 8, 8)}, seeded())


# What others build on


def test_a_control_network_can_add_to_every_layer():
    family = made()
    batch = drawn(family, 4)
    condition = family.conditions(batch)
    zero = [torch.zeros(4, 4, 32)] * 2
    x, t_B = batch["noise"], batch["t"]
    plain = family.denoise(x, t_B, t_B, condition)
    same = replace(condition, ports=replace(condition.ports, residuals=zero))
    torch.testing.assert_close(family.denoise(x, t_B, t_B, same), plain)
    other = replace(condition, ports=replace(condition.ports, residuals=[each + 1 for each in zero]))
    changed = family.denoise(x, t_B, t_B, other)
    assert not torch.allclose(changed, plain, atol=1e-3)
    torch.testing.assert_close(family.denoise(x[:2], t_B[:2], t_B[:2], other.of(torch.arange(2))), changed[:2])
    torch.testing.assert_close(family.denoise(x, t_B, t_B, condition.ports), plain)
    trace = family.features(batch, want=(0, 1))
    assert trace.x_BLD.shape == trace.layers[1].shape == (4, 4, 32)

    class Control:
        conditions = family.conditions

        def denoise(self, x, t_B, r_B, condition):
            return family.denoise(x, t_B, r_B, condition) + 0.1

    assert mean(family.loss_by(Control(), batch)) != mean(family.loss(batch))
    options = Drawing(steps=2, guidance=2.0)
    drawn_by = family.generate_by(Control(), told(family), options)["image"]
    assert drawn_by.shape == (3, 3, 8, 8)


def test_the_machine_is_measured_at_the_length_of_the_stack():
    assert made().positions_a_sample == 4
    assert made(Diffusion()).positions_a_sample == 64
    assert made(replace(PLAIN, trunk=UNet((16, 32), heads=2))).positions_a_sample == 16
    assert made(Consistency.tiny()).positions_a_sample == 4


def test_a_stem_of_convolutions_starts_at_zero_and_learns():
    family = made(replace(PLAIN, stem=8), moved=False)
    batch = drawn(family, 4)
    assert mean(family.loss(batch)) == pytest.approx(family.first_loss(batch))
    family.loss(batch).total.backward()
    assert family.trunk.head.weight.grad.abs().sum() > 0


BAD = {
    "cut into patches": lambda: Diffusion(size=30),
    "nearest size that can: 32": lambda: Diffusion(size=30),
    "at least 1": lambda: Diffusion(channels=0),
    "no share": lambda: replace(PLAIN, drop=1.0),
    "no words": lambda: replace(PLAIN, vocab_size=1),
    "upscale 3": lambda: replace(PLAIN, upscale=3),
    "cut into latents": lambda: Diffusion(latent=(4, 5)),
    "convolutions of its own": lambda: Diffusion(trunk=UNet(), stem=8),
    "objective.predicts is 'score'": lambda: Objective(predicts="score"),
    "objective.flow_map is 'reflow'": lambda: Objective(flow_map="reflow"),
    "few-step model cannot predict `noise`": lambda: replace(DDPM, flow_map="shortcut"),
    "data's standard deviation": lambda: Objective(predicts="edm"),
    "unlearned": lambda: replace(SHORTCUT, share=0.0),
    "`init` is 3 x 3 x 16 x 16": lambda: pictures(made(), {"init": torch.zeros(3, 3, 16, 16)}),
    "resize it to 8 x 8": lambda: pictures(made(), {"init": torch.zeros(3, 3, 16, 16)}),
    "`mask` is": lambda: pictures(made(), {"init": torch.zeros(1, 3, 8, 8), "mask": torch.zeros(1, 3, 8, 8)}),
    "mask without a picture": lambda: pictures(made(), {"index": torch.arange(1), "mask": torch.zeros(1, 1, 8, 8)}),
    "enlarges nothing": lambda: pictures(made(), {"small": torch.zeros(1, 3, 8, 8)}),
    "no picture to enlarge": lambda: pictures(made(replace(PLAIN, upscale=2))),
    "does not draw by `heun`": lambda: pictures(made(replace(PLAIN, objective=CONSISTENCY)), solver="heun"),
    "not trained by itself": lambda: made(replace(PLAIN, objective=CONSISTENCY)).loss(
        drawn(made(replace(PLAIN, objective=CONSISTENCY)))
    ),
    "no features": lambda: made(replace(PLAIN, trunk=UNet((16, 32), heads=2))).features({}),
    "objective=CONSISTENCY": lambda: Consistency(PLAIN),
    "0 residuals for 2 levels": lambda: made(replace(PLAIN, trunk=UNet((16, 32), heads=2))).denoise(
        torch.zeros(1, 3, 8, 8), torch.ones(1), torch.ones(1), Ports(residuals=[])
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_is_refused_in_words(words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        BAD[words]()


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
@pytest.mark.parametrize("trunk", [TRUNK, UNet((16, 32), heads=2)], ids=["transformer", "unet"])
def test_the_compiler_can_derive_it(trunk):
    family = made(replace(PLAIN, trunk=trunk))
    batch, found = drawn(family, 4), []
    for loss in (family.loss, torch.compile(family.loss, backend="aot_eager")):
        family.zero_grad()
        loss(batch).total.backward()
        found.append({name: p.grad.clone() for name, p in family.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


# Consistency distillation


STUDENT = replace(PLAIN, objective=CONSISTENCY)


def test_a_student_with_its_teachers_weights_says_what_it_says():
    teacher = made()
    family = Consistency(STUDENT).build({"teacher": Frozen(teacher)})
    family.starts.load_state_dict(teacher.state_dict())
    batch = drawn(family, 4)
    with torch.no_grad():
        of_teacher = teacher.denoise(batch["noise"], batch["t"], batch["t"])
        of_student = family.student.denoise(batch["noise"], batch["t"], 0 * batch["t"])
    torch.testing.assert_close(of_student, of_teacher)
    assert family.product is family.student and set(family.kept()) == set(teacher.kept())
    assert family.first_loss(batch) is None


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_aim_is_where_the_teachers_step_leads(guidance):
    teacher, family = made(), made(Consistency(STUDENT, steps=4, guidance=guidance), {"teacher": Frozen(made())})
    batch = drawn(family, 8)
    assert (batch["t"] - batch["r"]).tolist() == [0.25] * 8
    assert sorted(batch["t"].tolist()) == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    expected = torch.zeros(())
    with torch.no_grad():
        for row in range(8):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            _, x, t_B, s_B = family.student.noisy(one)
            conditions = [teacher.conditions({**one, "given": torch.tensor([shown])}) for shown in (False, True)]
            if guidance == 1:
                conditions = [teacher.conditions(one)]

            def says(x, t_B, conditions=conditions):
                guesses = [teacher.denoise(x, t_B, t_B, condition) for condition in conditions]
                return guesses[0] + guidance * (guesses[-1] - guesses[0]) if guidance != 1 else guesses[0]

            slope = (x - says(x, t_B)) / t_B
            nearer = x - 0.25 * slope
            if s_B > 0:
                nearer = x - 0.25 * (slope + (nearer - says(nearer, s_B)) / s_B) / 2
            own = family.student.conditions(one)
            aim = family.student.denoise(nearer, s_B, 0 * s_B, own) if s_B > 0 else nearer
            expected += (family.student.denoise(x, t_B, 0 * t_B, own) - aim).square().mean()
        assert mean(family.loss(batch)) == pytest.approx(expected.item() / 8, rel=1e-4)


def test_distilled_it_draws_in_one_step_what_the_teacher_draws_in_many(painter):
    family = Consistency(replace(painter.config, objective=CONSISTENCY), steps=4).build({"teacher": Frozen(painter)})
    family.starts.load_state_dict(painter.state_dict())
    optimizer = torch.optim.Adam(family.parameters(), lr=1e-3)
    for step in range(20):
        optimizer.zero_grad()
        loss = family.loss(family.draw(coloured(24), seeded(step)))
        (loss.total / loss.count).backward()
        optimizer.step()
    for steps in (1, 2):
        image = pictures(family.product.eval(), coloured(6), steps=steps)
        assert torch.equal(image.mean((2, 3)).argmax(1), torch.arange(6) % 3)


def test_guidance_of_a_teacher_that_was_trained_without_is_refused():
    with pytest.raises(ConfigError, match="trained without"):
        Consistency(STUDENT, guidance=2.0).build({"teacher": Frozen(made(replace(PLAIN, drop=0.0)))})
    with pytest.raises(ConfigError, match="at least 1"):
        Consistency(STUDENT, steps=0)


def test_a_distilled_run_with_a_slow_copy_is_loaded_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path))
    few = {"budget": Budget.parse("4steps"), "batch_size": 4, "precision": "fp32", "ema": 0.5}
    plain = find("diffusion-small")
    plain = replace(plain, family=replace(plain.family, trunk=TRUNK, patch=8, caption_depth=0), **few)
    train(plain, Run.create(tmp_path, "diffusion-small", plain))
    recipe, student = find("consistency-small"), replace(plain.family, objective=CONSISTENCY)
    recipe = replace(recipe, family=replace(recipe.family, student=student), keep_every_seconds=0.0, **few)
    whole, cut = (Run.create(tmp_path, name, recipe) for name in ("whole", "cut"))
    train(recipe, whole)

    def stop(event):
        if event["kind"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    cut.watch = stop
    with pytest.raises(KeyboardInterrupt):
        train(recipe, cut)
    train(recipe, Run.open(cut.path))
    loaded, again = load(whole).state_dict(), load(Run.open(cut.path)).state_dict()
    live = load(whole, weights="weights").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.items())
    assert any(not torch.equal(tensor, live[name]) for name, tensor in loaded.items())
