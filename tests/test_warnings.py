"""Warnings in plain words: at chance, diverging, not learning from its input, out of memory before it happens."""

import math
from dataclasses import replace

import pytest
import torch
from toys import Chain, TableConfig, recipe

from nomoat.core.errors import RunError
from nomoat.core.recipe import Optimizer
from nomoat.core.run import Run
from nomoat.train import start
from nomoat.train.loop import train
from nomoat.train.state import build
from nomoat.train.warn import Memory, SavedBytes, Watch, not_finite

CPU = torch.device("cpu")


def told(watch, losses, progress=None):
    found = []
    for number, loss in enumerate(losses):
        found += watch.see(number + 1, progress or (number + 0.5) / len(losses), loss)
    return found


def test_a_loss_that_stays_at_chance_is_told_once():
    found = told(Watch(chance=math.log(65)), [4.17] * 400)
    assert len(found) == 1
    assert "still that of guessing: 4.17 nats a token" in found[0]
    assert "training loss" in found[0]


def test_a_loss_that_falls_is_not_told():
    assert not told(Watch(chance=4.17), [4.17 * 0.99**step for step in range(400)])


def test_a_rising_loss_is_told_with_what_to_do():
    falling = [4.0 * 0.98**step for step in range(120)]
    found = told(Watch(chance=4.17), falling + [3.0] * 100)
    assert len(found) == 1
    assert "Training is diverging" in found[0]
    assert "Ctrl-C" in found[0]
    assert "half the learning rates" in found[0]


def test_noise_is_no_divergence():
    generator = torch.Generator().manual_seed(0)
    losses = (2.0 + 0.4 * torch.randn(500, generator=generator)).tolist()
    assert not told(Watch(chance=4.17), losses)


def test_a_model_that_only_counts_is_told():
    chain = Chain(vocab_size=11, noise=True)
    watch = Watch(chance=math.log(40))
    for number in range(50):
        watch.read(chain.rows(0, range(8 * number, 8 * number + 8)))
    assert watch.entropy() == pytest.approx(math.log(11), abs=0.05)
    found = told(watch, [2.45] * 300)
    assert len(found) == 1
    assert "not learning from its input" in found[0]
    assert "2.39" in found[0] or "2.38" in found[0] or "2.40" in found[0]


def test_few_tokens_say_nothing_of_their_entropy():
    watch = Watch()
    assert watch.entropy() is None
    watch.read({"tokens": torch.arange(100).view(1, 100)})
    assert watch.entropy() is None
    watch.read({"image": torch.zeros(2, 3)})
    watch.read({"tokens": torch.zeros(2, 3)})  # not counted: no token ids
    assert watch.counts.sum() == 100


def test_training_on_noise_says_so(tmp_path):
    made = recipe(budget="150steps", data=Chain(noise=True), family=TableConfig(vocab_size=11))
    run = Run.create(tmp_path, "toy", made)
    train(made, run)
    texts = [event["text"] for event in run.metrics("warning")]
    assert len(texts) == 1
    assert "still that of guessing" in texts[0]


def test_a_learning_rate_far_too_large_says_so(tmp_path):
    rates = Optimizer(kind="adamw", adam_learning_rate=3.0, clip=0.0, warmup=1.0, warmdown=0.0)
    made = recipe(budget="100steps", optimizer=rates)
    run = Run.create(tmp_path, "toy", made)
    train(made, run)
    assert ["diverging" in event["text"] for event in run.metrics("warning")] == [True]


def test_what_is_no_number_names_the_step_and_the_good_checkpoint():
    assert "step 7" in not_finite(7, "model", 5)[0]
    assert "checkpoint of step 5 is good" in not_finite(7, "model", 5)[1]
    assert "no checkpoint had been made" in not_finite(7, "model", None)[1]


def test_saved_bytes_are_those_of_the_activations():
    layer = torch.nn.Linear(100, 50)
    x = torch.randn(10, 100)
    with SavedBytes(list(layer.parameters())) as saved:
        y = torch.tanh(layer(x))
    assert saved.bytes == 4 * (10 * 100 + 10 * 50)  # the input of the product, the output of tanh
    y.sum().backward()


def test_the_estimate_counts_weights_gradients_optimizer_and_slow_copy():
    made = recipe(ema=0.9)
    family = build(made, CPU)
    memory = start.estimate(made, family, CPU, Chain().rows(0, range(8)), "fp32")
    weights = 4 * sum(p.numel() for p in family.parameters())
    matrices = 4 * (family.hidden.weight.numel() + family.back.weight.numel())
    assert memory.fixed == weights + weights + weights + matrices + 2 * (weights - matrices)
    assert memory.row > 0
    assert memory.needs(8) - memory.needs(4) == pytest.approx(2 * (memory.needs(4) - memory.needs(2)), abs=4)


def test_rows_that_fit_do_fit():
    memory = Memory(fixed=1000, row=100, free=5000, held=300)
    rows = memory.rows_that_fit()
    assert memory.needs(rows) <= 0.9 * memory.free < memory.needs(rows + 1)
    assert Memory(fixed=10_000, row=1, free=10, held=0).rows_that_fit() == 0


def test_a_batch_too_large_for_memory_is_computed_in_parts(tmp_path, monkeypatch):
    made = recipe()
    whole = Run.create(tmp_path, "toy", made)
    train(made, whole)
    memory = start.estimate(made, build(made, CPU), CPU, Chain().rows(0, range(8)), "fp32")
    monkeypatch.setattr("nomoat.core.device.free_memory", lambda device: int(memory.needs(3) / 0.9) + 10)
    run = Run.create(tmp_path, "toy", made)
    train(made, run)
    assert run.decided("micro_batch") == 3
    texts = [event["text"] for event in run.metrics("warning")]
    assert len(texts) == 1
    assert "8 rows at once would not fit" in texts[0]
    last = [whole.metrics("step")[-1]["training_loss"], run.metrics("step")[-1]["training_loss"]]
    assert last[0] == pytest.approx(last[1], rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 4}, {"family": TableConfig("coupled")}])
def test_a_model_too_large_for_memory_is_refused_before_the_first_step(tmp_path, monkeypatch, changes):
    made = replace(recipe(), **changes)
    monkeypatch.setattr("nomoat.core.device.free_memory", lambda device: 100)
    run = Run.create(tmp_path, "toy", made)
    with pytest.raises(RunError, match="training would run out of memory: it needs about"):
        train(made, run)
    assert run.status == "failed"
    assert not run.metrics("step")
