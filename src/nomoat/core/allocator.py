"""The C allocator's settings: keep freed memory and ask for huge pages. Imports no torch.

    tune_allocator -> GLIBC_TUNABLES -> (the process starts itself again) -> allocator_in_force

A training step frees and takes the same hundreds of megabytes; by default glibc hands them back to the system each
time and takes a page fault for every 4 KiB. On the two-core reference machine this is worth +17 to +31 % in training
tokens/s at width 384 and +19 % at width 768 (docs/experiments.md). glibc reads the setting only when a process starts.
"""

from __future__ import annotations

import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
# Above any tensor and any heap that fits this library's machines; both switch glibc's own adaption off.
SETTINGS = {
    "glibc.malloc.mmap_threshold": str(1 << 32),
    "glibc.malloc.trim_threshold": str(1 << 34),
    "glibc.malloc.hugetlb": "1",
}


def tune_allocator() -> dict[str, str]:
    """Return the environment variables to start again with; empty where the C library is not glibc.

    What the user has set in GLIBC_TUNABLES stays as it is.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return {}
    chosen = {**SETTINGS, **_chosen()}
    return {VARIABLE: ":".join(f"{name}={value}" for name, value in chosen.items())}


def allocator_in_force() -> bool:
    """Return whether this process was started with our settings, or with others that the user chose for all of them."""
    return bool(tune_allocator()) and all(name in _chosen() for name in SETTINGS)


def _chosen() -> dict[str, str]:
    pairs = (pair.partition("=") for pair in os.environ.get(VARIABLE, "").split(":"))
    return {name: value for name, equals, value in pairs if equals}
