"""Muon against a naive matrix-by-matrix reference, AdamW by role, state through a checkpoint."""

import itertools
import math

import pytest
import torch
from torch import nn

from nomoat.core.errors import CheckpointError
from nomoat.core.recipe import Optimizer, schedule
from nomoat.train.optimizer import PlayerOptimizer, faster_dtype, orthogonalise, state_bytes

A, B, C = 3.4445, -4.7750, 2.0315


def naive_orthogonal(matrix):
    """Newton-Schulz as Jordan 2024 writes it, for one matrix at a time."""
    X = matrix / (matrix.norm() + 1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        X = X.T
    for _ in range(5):
        Y = X @ X.T
        X = A * X + (B * Y + C * (Y @ Y)) @ X
    return X.T if matrix.shape[0] > matrix.shape[1] else X


def naive_muon(weights, gradients, settings):
    """All steps of Muon on one matrix: momentum, Nesterov, orthogonal, cautious decay, step."""
    momentum = torch.zeros_like(weights)
    for gradient in gradients:
        momentum = settings.momentum * momentum + (1 - settings.momentum) * gradient
        nesterov = settings.momentum * momentum + (1 - settings.momentum) * gradient
        update = naive_orthogonal(nesterov) * math.sqrt(max(1, weights.shape[0] / weights.shape[1]))
        decayed = weights * (1 - settings.learning_rate * settings.weight_decay)
        weights = torch.where(update * weights > 0, decayed, weights) if settings.cautious else decayed
        weights = weights - settings.learning_rate * update
    return weights


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def gradients_of(shape, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def test_orthogonalise_makes_all_singular_values_about_one():
    for shape in [(3, 16, 16), (2, 8, 40), (2, 40, 8), (1, 64, 64)]:
        generator = torch.Generator().manual_seed(1)
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
        # A square Gaussian matrix has singular values near zero, which five steps cannot lift all the way.
        assert values.max() < 1.25
        assert values.median() > 0.65
        if shape[1] != shape[2]:
            assert values.min() > 0.65


def test_orthogonalise_keeps_the_singular_vectors():
    generator = torch.Generator().manual_seed(2)
    matrix_NRC = torch.randn(2, 6, 24, generator=generator)
    U, _, Vh = torch.linalg.svd(matrix_NRC, full_matrices=False)
    inner = U.mT @ orthogonalise(matrix_NRC) @ Vh.mT
    off_diagonal = inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-4


@pytest.mark.parametrize("cautious", [True, False])
def test_muon_equals_the_naive_reference_for_every_matrix(cautious):
    settings = Optimizer(learning_rate=0.05, weight_decay=0.3, cautious=cautious)
    shapes = {"a": (12, 20), "b": (12, 20), "tall": (20, 12), "square": (12, 12), "c": (12, 20)}
    moved = parameters(shapes)
    before = {name: parameter.detach().clone() for name, parameter in moved.items()}
    streams = {name: gradients_of(shape, 4, seed) for seed, (name, shape) in enumerate(shapes.items())}
    optimizer = PlayerOptimizer([(name, p, "matrix") for name, p in moved.items()], settings)
    for step in range(4):
        for name, parameter in moved.items():
            parameter.grad = streams[name][step].clone()
        optimizer.step(1.0)
    for name, parameter in moved.items():
        torch.testing.assert_close(parameter.detach(), naive_muon(before[name], streams[name], settings))


def test_fused_blocks_are_made_orthogonal_one_by_one():
    settings = Optimizer(learning_rate=0.05)
    whole = parameters({"qkv": (16, 8)})["qkv"]
    whole.blocks = (8, 4, 4)  # queries, keys, values
    before = whole.detach().clone()
    stream = gradients_of((16, 8), 3, 5)
    optimizer = PlayerOptimizer([("qkv", whole, "matrix")], settings)
    for gradient in stream:
        whole.grad = gradient.clone()
        optimizer.step(1.0)
    expected = [
        naive_muon(before[rows], [gradient[rows] for gradient in stream], settings)
        for rows in (slice(0, 8), slice(8, 12), slice(12, 16))
    ]
    torch.testing.assert_close(whole.detach(), torch.cat(expected))


def test_roles_decide_who_moves_what():
    named = parameters({"w": (8, 8), "table": (10, 8), "out": (10, 8), "gain": (8,)})
    roles = {"w": "matrix", "table": "embedding", "out": "head", "gain": "vector"}
    listed = [(name, p, roles[name]) for name, p in named.items()]
    muon = PlayerOptimizer(listed, Optimizer())
    assert set(muon.muon.momentum) == {"w"}
    adamw = PlayerOptimizer(listed, Optimizer(kind="adamw"))
    assert not adamw.muon.momentum
    decays = {id(p): group["weight_decay"] for group in adamw.adam.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in named.items()} == {"w": 0.1, "table": 0.1, "out": 0.1, "gain": 0.0}
    assert state_bytes(listed, Optimizer()) == 4 * (64 + 2 * 80 + 2 * 80 + 2 * 8)
    assert state_bytes(listed, Optimizer(kind="adamw")) == 4 * 2 * (64 + 80 + 80 + 8)


def test_adamw_equals_the_formula():
    settings = Optimizer(kind="adamw", adam_learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    weights = parameters({"w": (4, 3)})["w"]
    expected, first, second = weights.detach().double(), 0.0, 0.0
    optimizer = PlayerOptimizer([("w", weights, "matrix")], settings)
    for step, gradient in enumerate(gradients_of((4, 3), 5, 3), start=1):
        weights.grad = gradient.clone()
        optimizer.step(0.5)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        expected = expected * (1 - 0.005 * 0.1)
        expected = expected - 0.005 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weights.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_through_plain_tensors_is_bit_equal(kind):
    settings = Optimizer(kind=kind)
    shapes = {"w": (8, 8), "wide": (4, 8), "table": (10, 8), "gain": (8,)}
    roles = {"w": "matrix", "wide": "matrix", "table": "embedding", "gain": "vector"}

    def run(named, optimizer, first, last):
        for step in range(first, last):
            for seed, (name, parameter) in enumerate(named.items()):
                parameter.grad = gradients_of(shapes[name], 1, 100 * step + seed)[0]
            optimizer.step(1.0)

    straight = parameters(shapes)
    whole = PlayerOptimizer([(n, p, roles[n]) for n, p in straight.items()], settings)
    run(straight, whole, 0, 6)

    half = parameters(shapes)
    first = PlayerOptimizer([(n, p, roles[n]) for n, p in half.items()], settings)
    run(half, first, 0, 3)
    saved = {key: value.clone() for key, value in first.tensors().items()}
    again = {name: nn.Parameter(p.detach().clone()) for name, p in half.items()}
    second = PlayerOptimizer([(n, p, roles[n]) for n, p in again.items()], settings)
    second.load(saved)
    run(again, second, 3, 6)
    for name in shapes:
        assert torch.equal(straight[name], again[name]), name
    for key, value in whole.tensors().items():
        assert torch.equal(value, second.tensors()[key]), key


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_scale_is_as_good_as_gradients_multiplied_before(kind):
    ends = []
    for scale in (1.0, 0.125):
        named = parameters({"a": (6, 4), "v": (4,)})
        optimizer = PlayerOptimizer(
            [("a", named["a"], "matrix"), ("v", named["v"], "vector")], Optimizer(kind=kind, weight_decay=0.1)
        )
        for step in range(3):
            for name, parameter in named.items():
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step + len(name)))
                parameter.grad = drawn * step / scale
            optimizer.step(0.5, scale)
        ends.append([parameter.detach() for parameter in named.values()] + list(optimizer.tensors().values()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


def test_state_of_another_model_is_refused():
    named = parameters({"w": (8, 8)})
    optimizer = PlayerOptimizer([("w", named["w"], "matrix")], Optimizer())
    with pytest.raises(CheckpointError, match="momentum/other"):
        optimizer.load({"momentum/other": torch.zeros(8, 8)})
    with pytest.raises(CheckpointError, match=r"momentum/w.*\[4, 8\]"):
        optimizer.load({"momentum/w": torch.zeros(4, 8)})


def test_a_parameter_without_gradient_stays():
    named = parameters({"w": (8, 8), "unused": (8, 8), "gain": (8,)})
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = PlayerOptimizer([(n, p, "vector" if n == "gain" else "matrix") for n, p in named.items()], Optimizer())
    named["w"].grad = torch.ones(8, 8)
    optimizer.step(1.0)
    assert not torch.equal(named["w"], before["w"])
    assert torch.equal(named["unused"], before["unused"])
    assert torch.equal(named["gain"], before["gain"])


def test_the_faster_dtype_is_measured():
    named = parameters({"w": (16, 16), "gain": (8,)})
    yes, ratio = faster_dtype([("w", named["w"], "matrix"), ("gain", named["gain"], "vector")])
    assert yes == (ratio > 1)
    assert faster_dtype([("gain", named["gain"], "vector")]) == (False, 1.0)


def test_schedule_rises_stays_and_falls():
    settings = Optimizer(warmup=0.1, warmdown=0.4, final=0.05)
    assert schedule(0.0, settings) == 0.0
    assert schedule(0.05, settings) == pytest.approx(0.5)
    assert schedule(0.1, settings) == schedule(0.35, settings) == schedule(0.6, settings) == 1.0
    assert schedule(0.8, settings) == pytest.approx(0.05 + 0.95 * 0.5)
    assert schedule(1.0, settings) == pytest.approx(0.05)
    points = [schedule(step / 1000, settings) for step in range(1001)]
    assert max(abs(a - b) for a, b in itertools.pairwise(points)) < 0.011  # no jump anywhere
