"""What this machine has for making models, and what ails it, each with the line that mends it.

Python, torch build, device, cores, memory, disk, speed, allocator, energy meters, runs folder -> findings
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from nomoat import __version__
from nomoat.core import allocator, energy
from nomoat.core.runs import runs_root

TORCH = "'torch>=2.11,<2.14'"
TO_CPU = (
    "pip uninstall -y torch triton $(pip list --format freeze | grep -o '^nvidia[^=]*'); "
    f"pip install {TORCH} --index-url https://download.pytorch.org/whl/cpu"
)
TO_GPU = f"pip install --force-reinstall {TORCH} --index-url https://pypi.org/simple"
NEEDED_DISK = 2 * 10**9
NEEDED_MEMORY = 2 * 10**9
LAYER = (1024, 768, 3072)
"""The linear layer whose rate is shown: rows, inputs, outputs."""


class Finding(NamedTuple):
    """One thing looked at.

    Args:
        name: what.
        value: what was found.
        ok: False where something should be mended.
        fix: the line to type, or what to do.
    """

    name: str
    value: str
    ok: bool = True
    fix: str = ""

    def __str__(self) -> str:
        head = f"{'ok' if self.ok else '!!'}  {self.name:<10} {self.value}"
        return f"{head}\n      fix: {self.fix}" if self.fix else head


def examine(device: str = "auto", speed: bool = True) -> list[Finding]:
    """Look at everything; nothing is changed.

    Args:
        device: where to measure the speed.
        speed: measure it (a few seconds), or leave it out.

    Raises:
        ConfigError: there is no such device.
    """
    from nomoat.core import device as devices

    chosen = devices.choose(device)
    machine = devices.machine(chosen)
    found = [
        Finding("nomoat", f"{__version__} in {Path(__file__).parent}"),
        python(sys.version_info[:3]),
        build(machine.torch_version, machine.cuda_build, devices.present(), graphics_card()),
        Finding("device", f"{machine.device}: {machine.device_name}"),
        Finding("cores", f"{machine.cores}, of which torch uses {machine.threads}"),
        memory(devices.free_memory(), machine.memory_bytes),
        disk(runs_root()),
        runs_folder(runs_root()),
        allocation(),
        decoding(),
        sandbox(),
        meters(),
    ]
    if speed:
        has = ("fp32", "bf16") if devices.has_bf16(chosen) else ("fp32",)
        rates = ", ".join(f"{each} {devices.matmul_rate(chosen, *LAYER, each) / 1e9:.0f}" for each in has)
        faster = devices.bf16_is_faster(chosen, LAYER[0], LAYER[1])
        word = f"training takes bf16 ({faster.ratio:.1f} x fp32)" if faster.yes else "training takes fp32"
        shape = " x ".join(f"{size:,}" for size in LAYER)
        found.append(Finding("speed", f"{word}; linear layer {shape}: {rates} GFLOP/s"))
    return found


def python(version: tuple[int, ...]) -> Finding:
    """Whether the Python is new enough."""
    shown = f"{'.'.join(map(str, version))} ({platform.python_implementation()}, {sys.executable})"
    return Finding("python", shown, version >= (3, 11), "" if version >= (3, 11) else "install Python 3.11 or newer")


def graphics_card() -> str:
    """The make of the graphics card that the system shows, or nothing; torch is not asked."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists():
        return "NVIDIA"
    return ""


def build(version: str, cuda: str | None, present: list[str], card: str) -> Finding:
    """Whether torch's build suits the machine.

    Args:
        version: of torch, with the build's suffix.
        cuda: the CUDA version it was built for, None for a CPU build.
        present: the devices that torch can use, the fastest first.
        card: the make of the graphics card that the system shows.
    """
    shown = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    usable = len(present) > 1
    if cuda and not card and not usable:
        return Finding("torch", f"{shown}, but there is no GPU: 3.5 GB for nothing", False, TO_CPU)
    if cuda and not usable:
        return Finding(
            "torch", f"{shown}; there is an {card} card that it cannot use", False, "update the driver (see nvidia-smi)"
        )
    if card and not cuda:
        return Finding("torch", f"{shown}, but there is an {card} card", False, TO_GPU)
    return Finding("torch", shown)


def memory(free: int, total: int) -> Finding:
    """Whether there is enough main memory left."""
    shown = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    enough = free >= NEEDED_MEMORY
    return Finding("memory", shown, enough, "" if enough else "close other programs, or use small budgets")


def disk(root: Path) -> Finding:
    """Whether the disk of the runs folder has room."""
    free = shutil.disk_usage(_existing(root)).free
    enough = free >= NEEDED_DISK
    fix = "" if enough else "free some space, or set NOMOAT_RUNS to a folder on another disk"
    return Finding("disk", f"{free / 1e9:.1f} GB free for {root.resolve()}", enough, fix)


def runs_folder(root: Path) -> Finding:
    """Whether runs can be written: a file is made and removed again."""
    place = _existing(root)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("runs", f"{root.resolve()} cannot be written: {error.strerror}", False, "set NOMOAT_RUNS")
    state = "can be written" if root.exists() else "does not exist yet, and can be made"
    return Finding("runs", f"{root.resolve()} {state}")


def allocation() -> Finding:
    """Whether commands that train run under the tuned allocator."""
    if not allocator.tune_allocator():
        return Finding("allocator", "the system's own; there is nothing to tune here (not glibc)")
    if os.environ.get("NOMOAT_ALLOCATOR") == "off":
        return Finding("allocator", "not tuned: NOMOAT_ALLOCATOR=off")
    if allocator.allocator_in_force():
        return Finding("allocator", f"tuned: {allocator.VARIABLE}={os.environ[allocator.VARIABLE]}")
    return Finding("allocator", "tuned when a command trains (it starts itself again with GLIBC_TUNABLES)")


def decoding() -> Finding:
    """Whether models decode by native code."""
    if find_spec("numba") is None:
        line = "by PyTorch alone, several times slower than this machine can: Numba is not there"
        return Finding("decoding", line, False, "pip install 'nomoat[fast]'")
    from nomoat.nn.vectors import has_byte_products

    kind = "with products of bytes (AVX-512 VNNI)" if has_byte_products() else "with plain vectors"
    return Finding("decoding", f"native, {kind}; translated once for a machine, in about ten seconds")


def sandbox() -> Finding:
    """What keeps programs apart that models write, for verifiers that run them."""
    from nomoat.core.errors import NomoatError
    from nomoat.search.sandbox import Sandbox

    try:
        with Sandbox() as box:
            missing = box.missing
    except NomoatError as error:
        return Finding("sandbox", f"{error.what}: {error.why}", False, error.fix)
    fix = "run as a user other than root, and allow user namespaces: `unshare -Urn true` must work" if missing else ""
    return Finding("sandbox", "; ".join(missing) or "programs have no network and can write nothing", not missing, fix)


def meters() -> Finding:
    """Which energy meters can be read."""
    meter = energy.meter()
    if meter is not None:
        return Finding("energy", f"measured: {', '.join(meter.sources)}")
    return Finding("energy", "cannot be measured here (no RAPL, no NVML): state --watts for budgets and cards in Wh")


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
