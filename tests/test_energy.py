"""Energy: meters that count, wrap and are often not there; figures that say how they were come by."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nomoat.core.energy import EnergyMeter, Figure, meter


def zone(powercap: Path, number: str, name: str, microjoules: int) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text("10000000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_packages_and_memory_are_added_and_parts_of_a_package_are_not(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 5_000_000)
    memory = zone(tmp_path, "0:1", "dram", 0)
    core = zone(tmp_path, "0:0", "core", 0)
    found = meter(tmp_path)
    assert found is not None
    assert found.sources == ("RAPL package-0", "RAPL dram")
    assert found.watt_hours() == 0
    (package / "energy_uj").write_text(str(5_000_000 + 3_600_000_000))
    (memory / "energy_uj").write_text(str(360_000_000))
    (core / "energy_uj").write_text(str(999_000_000))
    assert found.watt_hours() == pytest.approx(1.1)
    assert found.watt_hours() == pytest.approx(1.1)


def test_a_counter_that_wraps_goes_on_counting(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 9_000_000_000)
    found = meter(tmp_path)
    assert found is not None
    (package / "energy_uj").write_text("1000000000")
    assert found.watt_hours() == pytest.approx(2000 / 3600)


def test_where_nothing_can_be_read_there_is_no_meter(tmp_path: Path) -> None:
    assert meter(tmp_path / "nowhere") is None
    folder = zone(tmp_path, "0", "package-0", 0)
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").mkdir()  # root reads what it likes, but no folder
    assert meter(tmp_path) is None


def test_a_gpu_is_counted_by_its_own_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {0: 1000.0, 1: 0.0}
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: used[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = meter(tmp_path)
    assert found is not None
    assert found.sources == ("NVML GPU 0", "NVML GPU 1")
    used[0] += 3_600_000.0
    assert found.watt_hours() == pytest.approx(1.0)


def test_power_is_energy_over_time() -> None:
    now, joules = [0.0], [100.0]
    found = EnergyMeter([lambda: (joules[0], 0.0)], ("test",), clock=lambda: now[0])
    assert found.watts() is None
    now[0], joules[0] = 10.0, 550.0
    assert found.watts() == pytest.approx(45.0)


def test_a_figure_says_how_it_was_come_by() -> None:
    assert str(Figure(12.3456, "watt-hours", "assumed")) == "12.35 watt-hours (assumed)"
