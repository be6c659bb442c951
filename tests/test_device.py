"""The machine: devices by name, chance from names, precision by measurement, the allocator's settings."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core import device as devices
from nomoat.core.allocator import SETTINGS, VARIABLE, allocator_in_force, tune_allocator
from nomoat.core.errors import ConfigError

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


def test_auto_takes_the_fastest_present() -> None:
    assert devices.choose().type == devices.present()[0]
    assert devices.choose("cpu") == torch.device("cpu")
    assert devices.present()[-1] == "cpu"


@pytest.mark.parametrize(
    ("name", "said"), [("gpu", "there is no device"), ("cudda", "did you mean `cuda`"), ("cpu:x", "no device")]
)
def test_an_unknown_device_names_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        devices.choose(name)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_says_what_is_there(name: str) -> None:
    if name in devices.present():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(ConfigError, match=r"present: .*cpu"):
        devices.choose(name)


def test_a_gpu_too_many_is_refused() -> None:
    if "cuda" not in devices.present():
        pytest.skip("needs a GPU")
    assert devices.choose("cuda:0").index == 0
    with pytest.raises(ConfigError, match="counted from 0"):
        devices.choose("cuda:99")


def test_the_machine_is_described(device: torch.device) -> None:
    machine = devices.machine(device)
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.threads == 1
    assert 100e6 < machine.memory_bytes < 100e12
    assert (machine.device, machine.torch_version) == (device.type, torch.__version__)
    assert machine.device_name
    assert machine.device_memory_bytes > 0


def test_memory_is_counted(device: torch.device) -> None:
    free, peak = devices.free_memory(device), devices.peak_memory(device)
    held = torch.ones(1 << 25, device=device)
    devices.synchronize(device)
    assert devices.peak_memory(device) - peak > 0 or peak > held.nbytes
    assert 0 < free <= devices.machine(device).device_memory_bytes


@given(st.integers(), st.lists(st.text() | st.integers(), max_size=3))
def test_chance_depends_on_the_seed_and_the_names_alone(seed: int, names: list) -> None:
    first = torch.rand(4, generator=devices.generator(seed, *names))
    assert torch.equal(first, torch.rand(4, generator=devices.generator(seed, *names)))
    for other in ((seed + 1, *names), (seed, *names, 0), (seed, "x", *names)):
        assert not torch.equal(first, torch.rand(4, generator=devices.generator(*other)))


def test_chance_is_the_same_on_every_machine() -> None:
    assert devices.generator(0, "model", 1).initial_seed() == 267666059269610412
    assert devices.generator(0, "model", torch.tensor(1)).initial_seed() == 267666059269610412
    state = torch.get_rng_state()
    devices.generator(0)
    assert torch.equal(state, torch.get_rng_state())


def test_autocast_computes_in_the_precision_asked_for(device: torch.device) -> None:
    layer = torch.nn.Linear(8, 8).to(device)
    x_BD = torch.randn(2, 8, device=device)
    with devices.autocast(device, "bf16"):
        assert layer(x_BD).dtype == torch.bfloat16
    with devices.autocast(device, "fp32"):
        assert layer(x_BD).dtype == torch.float32


def test_bf16_is_chosen_by_the_ratio_measured(device: torch.device) -> None:
    with torch.no_grad():  # wherever it is asked
        faster = devices.bf16_is_faster(device, 64, 32, seconds=0.02)
    assert faster.yes == (faster.ratio > 1.1)
    assert (faster.ratio > 0) == devices.has_bf16(device)


def test_bf16_is_not_even_tried_where_the_processor_would_emulate_it(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    monkeypatch.setattr(devices, "_in_turns", lambda *_: pytest.fail("it was measured"))
    faster = devices.bf16_is_faster(device, 64, 32)
    assert not faster.yes and faster.words("a block") == "this processor has no bf16"


def test_the_rate_of_a_matmul_is_that_of_a_computer(device: torch.device) -> None:
    assert 1e7 < devices.matmul_rate(device, 128, 128, 128, seconds=0.02) < 1e16


@on_glibc
def test_the_allocator_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "glibc.malloc.hugetlb=0:glibc.malloc.check=1")
    assert not allocator_in_force()
    environment = tune_allocator()
    pairs = dict(pair.split("=") for pair in environment[VARIABLE].split(":"))
    assert pairs == {**SETTINGS, "glibc.malloc.hugetlb": "0", "glibc.malloc.check": "1"}
    monkeypatch.setenv(VARIABLE, environment[VARIABLE])
    assert allocator_in_force()
    assert tune_allocator() == environment


@on_glibc
def test_the_allocator_keeps_freed_memory() -> None:
    code = """
import resource, sys
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(100_000_000)
before = faults()
for _ in range(5): bytearray(100_000_000)
from nomoat.core.allocator import allocator_in_force
print(faults() - before, allocator_in_force(), "torch" in sys.modules)
"""

    def run(environment: dict[str, str]) -> list[str]:
        whole = {**{name: value for name, value in os.environ.items() if name != VARIABLE}, **environment}
        return subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=whole
        ).stdout.split()

    plain, tuned = run({}), run(tune_allocator())
    assert (plain[1:], tuned[1:]) == (["False", "False"], ["True", "False"])
    assert int(tuned[0]) < int(plain[0]) / 10
