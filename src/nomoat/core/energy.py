"""Energy that was used, read from the machine's own meters; and figures that say how they were come by.

RAPL counts the processor's packages and memory (Linux powercap, often readable by root alone), NVML the GPU. What
neither sees, such as fans, disks and the power supply's losses, is not in the figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_WATT_HOUR = 3600.0

How = Literal["measured", "assumed", "derived"]


@dataclass(frozen=True)
class Figure:
    """A number of a card with its unit and where it comes from.

    Args:
        value: the number.
        unit: spelled out, such as `watt-hours`, `EUR`, `seconds`.
        how: `measured` here, `assumed` (stated by the user), or `derived` from other figures.
    """

    value: float
    unit: str
    how: How

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.unit} ({self.how})"


class EnergyMeter:
    """Counts joules from its making on. RAPL's counters wrap every few minutes under load: read it once a minute.

    Args:
        counters: each returns its joules so far and the joules at which it wraps (0: it does not).
        sources: what is counted, for the card.
        clock: seconds.
    """

    def __init__(
        self,
        counters: list[Callable[[], tuple[float, float]]],
        sources: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sources = sources
        self._counters, self._clock = counters, clock
        self._last = [counter()[0] for counter in counters]
        self._joules, self._start = 0.0, clock()

    def watt_hours(self) -> float:
        """Return the watt-hours used since this meter was made."""
        for number, counter in enumerate(self._counters):
            now, wrap = counter()
            used = now - self._last[number]
            self._joules += used + wrap if used < 0 else used
            self._last[number] = now
        return self._joules / JOULES_PER_WATT_HOUR

    def watts(self) -> float | None:
        """Return the mean power since this meter was made; None in its first second."""
        used, seconds = self.watt_hours(), self._clock() - self._start
        return used * JOULES_PER_WATT_HOUR / seconds if seconds >= 1 else None


def meter(powercap: Path = POWERCAP) -> EnergyMeter | None:
    """Return a meter over everything that can be read here, or None where nothing can."""
    counters, sources = _rapl(powercap)
    gpu_counters, gpu_sources = _nvml()
    if not counters and not gpu_counters:
        return None
    return EnergyMeter(counters + gpu_counters, (*sources, *gpu_sources))


def _rapl(powercap: Path) -> tuple[list[Callable[[], tuple[float, float]]], list[str]]:
    """Packages and memory; the other zones (core, uncore) are parts of a package and would count twice."""
    counters: list[Callable[[], tuple[float, float]]] = []
    sources = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text(encoding="utf-8").strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            counter = _rapl_counter(zone)
            counter()
        except (OSError, ValueError):
            continue
        counters.append(counter)
        sources.append(f"RAPL {name}")
    return counters, sources


def _rapl_counter(zone: Path) -> Callable[[], tuple[float, float]]:
    wrap = int((zone / "max_energy_range_uj").read_text(encoding="utf-8")) / 1e6
    return lambda: (int((zone / "energy_uj").read_text(encoding="utf-8")) / 1e6, wrap)


def _nvml() -> tuple[list[Callable[[], tuple[float, float]]], list[str]]:
    try:
        import pynvml
    except ImportError:
        return [], []
    counters: list[Callable[[], tuple[float, float]]] = []
    sources = []
    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            counter = _nvml_counter(pynvml, handle)
            counter()
            counters.append(counter)
            sources.append(f"NVML GPU {number}")
    except pynvml.NVMLError:  # no driver, or a GPU too old to count
        pass
    return counters, sources


def _nvml_counter(nvml: Any, handle: Any) -> Callable[[], tuple[float, float]]:
    return lambda: (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)
