"""The machine: which device computes, how fast, with how much memory. No other file names a device.

"auto" | "cpu" | "cuda" | "mps" -> choose -> torch.device -> autocast, has_bf16, bf16_is_faster, peak_memory
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nomoat.core.allocator import allocator_in_force
from nomoat.core.errors import ConfigError, nearest

NAMES = ("auto", "cpu", "cuda", "mps")
CGROUP = Path("/sys/fs/cgroup")


def present() -> list[str]:
    """Return the names of the devices that this machine and this build of torch have, the fastest first."""
    found = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` takes the fastest present. `cuda:1` names the second GPU.

    Raises:
        ConfigError: there is no such device here.
    """
    kind, _, number = name.partition(":")
    if kind not in NAMES or (number and not number.isdigit()):
        raise ConfigError(f"there is no device `{name}`", f"there is {', '.join(NAMES)}", nearest(kind, NAMES))
    found = present()
    if kind == "auto":
        return torch.device(found[0])
    if kind not in found:
        build = f"this torch is built for {torch.version.cuda or 'the CPU'}"
        raise ConfigError(
            f"there is no {kind} device here", f"present: {', '.join(found)}; {build}", "use --device auto"
        )
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise ConfigError(f"there is no {name}", f"this machine has {torch.cuda.device_count()}, counted from 0")
    return torch.device(name)


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on.

    Args:
        processor: the CPU's name.
        cores: cores this process may use, as limits and containers leave them.
        threads: threads torch computes with.
        memory_bytes: main memory this process may use.
        device: `cpu`, `cuda` or `mps`.
        device_name: the GPU's name, or the CPU's.
        device_memory_bytes: the GPU's memory; main memory where there is none of its own.
        torch_version: with the build's suffix, such as 2.13.0+cpu.
        cuda_build: the CUDA version that torch was built for, or None.
        python_version: of this process.
        system: the operating system.
        allocator_tuned: whether this process runs under `core.allocator`'s settings.
    """

    processor: str
    cores: int
    threads: int
    memory_bytes: int
    device: str
    device_name: str
    device_memory_bytes: int
    torch_version: str
    cuda_build: str | None
    python_version: str
    system: str
    allocator_tuned: bool


def machine(device: torch.device | None = None) -> Machine:
    """Return what this process runs on, for cards, plans and `nomoat doctor`."""
    device = device or choose()
    memory, processor = _memory_limit(), _processor()
    name, own = processor, memory
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, own = properties.name, properties.total_memory
    elif device.type == "mps":
        own = torch.mps.recommended_max_memory()
    return Machine(
        processor=processor,
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        device=device.type,
        device_name=name,
        device_memory_bytes=own,
        torch_version=torch.__version__,
        cuda_build=torch.version.cuda,
        python_version=platform.python_version(),
        system=platform.platform(),
        allocator_tuned=allocator_in_force(),
    )


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator whose start depends on the seed and the names alone: the same on every machine.

    The stream of (seed, step, player) is independent of that of (seed, step + 1, player): no state is carried along.
    """
    # As plain numbers, so that one of NumPy or of a tensor gives what the same number of Python gives.
    text = repr((int(seed), *(name if isinstance(name, str) else int(name) for name in names))).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass computes in `fp32` or `bf16`; weights stay fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    assert precision == "fp32", f"{precision}: `auto` is decided before the first step"
    return nullcontext()


class _Undrawn(TorchFunctionMode):
    """Leaves out what only changes numbers: where there are none, PyTorch would load its compiler (77 MiB) for that."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "__itruediv__", "__idiv__", "div_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def hollow() -> Iterator[None]:
    """Modules that are built within have shapes and types, but take no memory and draw no first weights."""
    with torch.device("meta"), _Undrawn():
        yield


def has_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are the device's own; a CPU without them emulates them, a hundred times slower."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type != "cpu" or bool(known and known())


class Faster(NamedTuple):
    """Whether bf16 is worth it, and how much faster than fp32 it was: 0 where it was not even tried."""

    yes: bool
    ratio: float

    def words(self, what: str) -> str:
        """A sentence about `what` was measured."""
        if not self.ratio:
            return "this processor has no bf16"
        return f"{what} runs {self.ratio:.2f}x as fast in bf16 as in fp32"


def bf16_is_faster(
    device: torch.device, rows: int, width: int, hidden: int | None = None, seconds: float = 0.5
) -> Faster:
    """Measure a block of the model's shape (norm, two linear layers, SiLU; forward and backward) in fp32 and bf16.

    The two take turns, so that a busy machine slows both; the ratio is that of their medians.

    Args:
        device: where to measure.
        rows: tokens at a time (micro-batch times context length).
        width: the model's width.
        hidden: width of the MLP; None: 4 x width.
        seconds: about how long the measurement may take.
    """
    if not has_bf16(device):  # a single round of it could take minutes
        return Faster(False, 0.0)
    hidden = hidden or 4 * width
    block = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)).to(device)
    x_LD = torch.randn(rows, width, generator=generator(0, "bf16")).to(device).requires_grad_()

    def step(precision: str) -> None:
        with torch.enable_grad(), autocast(device, precision):
            loss = block(x_LD).float().square().mean()
        loss.backward()
        block.zero_grad()

    times = _in_turns(device, [lambda: step("fp32"), lambda: step("bf16")], seconds)
    ratio = median(times[0]) / median(times[1])
    # Below this the casts of a whole network, more than of this block, take back what is won.
    return Faster(ratio > 1.1, ratio)


def worthwhile_threads(device: torch.device, rows: int, width: int, seconds: float = 0.6) -> tuple[int, float]:
    """Threads to compute with on the CPU: all that torch would take, or one where they get in each other's way.

    On a machine that is busy with other work, threads that wait for each other can be many times slower than one.

    Returns:
        The number, and how many times as fast as one thread all of them were.
    """
    all_threads = torch.get_num_threads()
    if all_threads == 1 or device.type != "cpu":
        return all_threads, 1.0
    hidden = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    x_LD = torch.randn(rows, width, generator=generator(0, "threads")).requires_grad_()

    def step(threads: int) -> None:
        torch.set_num_threads(threads)
        hidden(x_LD).square().mean().backward()

    try:
        times = _in_turns(device, [lambda: step(1), lambda: step(all_threads)], seconds)
    finally:
        torch.set_num_threads(all_threads)
    ratio = sum(times[0]) / sum(times[1])  # the mean, not the median: what hurts are the stalls
    return (all_threads if ratio > 0.9 else 1), ratio


def matmul_rate(
    device: torch.device, rows: int, inner: int, columns: int, precision: str = "fp32", seconds: float = 0.5
) -> float:
    """Return the FLOP/s of a linear layer [rows, inner] x [inner, columns], the median of several rounds."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x_LD = torch.randn(rows, inner, generator=generator(0, "rate")).to(device, dtype)
    weight_MD = torch.randn(columns, inner, generator=generator(1, "rate")).to(device, dtype)
    with torch.no_grad():
        times = _in_turns(device, [lambda: F.linear(x_LD, weight_MD)], seconds)
    return 2.0 * rows * inner * columns / median(times[0])


def peak_memory(device: torch.device | None = None) -> int:
    """Return the most bytes this process has held so far: of the GPU's memory, or of main memory."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device is not None and device.type == "mps":
        return torch.mps.driver_allocated_memory()
    import resource

    held = Path("/proc/self/status")
    if held.exists():  # getrusage would count what the process that started this one held
        return next(int(line.split()[1]) * 1024 for line in held.read_text().splitlines() if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # the one counts bytes, the other KiB


def free_memory(device: torch.device | None = None) -> int:
    """Return the bytes that can still be taken before something is killed or fails."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device is not None and device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    free = _meminfo("MemAvailable") or _memory_limit() - peak_memory()
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is not None and used is not None:
        cache = _stat(CGROUP / "memory.stat", "inactive_file")  # dropped before anything is killed
        free = min(free, limit - used + cache)
    return max(0, free)


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` is done, so that a clock can be read."""
    torch.get_device_module(device).synchronize()


def _in_turns(device: torch.device, actions: list[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Seconds of each call of each action, called in turns; at least three rounds after one that is not counted."""
    times: list[list[float]] = [[] for _ in actions]
    end = time.perf_counter() + seconds
    while len(times[0]) < 4 or (time.perf_counter() < end and len(times[0]) < 200):
        for action, taken in zip(actions, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            action()
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return [taken[1:] for taken in times]


def _cores() -> int:
    """Cores that this process may use: affinity and the container's quota, not what the board has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota: "max"
        return cores


def _memory_limit() -> int:
    total = _meminfo("MemTotal")
    if total is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(CGROUP / "memory.max")
    return total if limit is None else min(total, limit)


def _meminfo(name: str) -> int | None:
    kibibytes = _stat(Path("/proc/meminfo"), f"{name}:")
    return kibibytes * 1024 or None


def _stat(path: Path, name: str) -> int:
    """The number after `name` in a file of lines `name number`, or 0."""
    try:
        rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0
    return next((int(row[1]) for row in rows if len(row) > 1 and row[0] == name), 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such limit here, or "max"
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
