"""Files that survive a kill: written whole or not at all, lines that may tear only at the end, locks that let go.

Order of the calls (write, fsync, rename, fsync of the folder): Pillai et al. 2014, "All File Systems Are Not Created
Equal".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any


def replace(path: Path, content: bytes) -> None:
    """Write a file so that after a crash at any moment it is the old one or the new one.

    Raises:
        OSError: the disk is full or broken; the old file is untouched.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(fresh, [content])
        os.replace(fresh, path)  # noqa: PTH105 - the same few calls everywhere, so that tests can make each one fail
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write(path: Path, pieces: Iterator[Any] | list[Any]) -> None:
    """Write a new file from buffers and fsync it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for piece in pieces:
            _put(handle, piece)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, which fsync of the files alone does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append(path: Path, event: Mapping[str, Any], *, sync: bool = False) -> None:
    """Append one JSON line in one system call; a tail torn by an earlier kill is closed first.

    Args:
        path: the file; made where it is missing.
        event: JSON values; NaN and infinity as `strict` says.
        sync: return only when the line is on disk.
    """
    line = dump(event).encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        _put(handle, line)
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def lines(path: Path, tail_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line; a torn line is passed over, a missing file is empty.

    Args:
        path: the file.
        tail_bytes: read only the lines within this many last bytes.
    """
    try:
        with path.open("rb") as file:
            if tail_bytes is not None and path.stat().st_size > tail_bytes:
                file.seek(-tail_bytes, os.SEEK_END)
                file.readline()
            content = file.read()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield _numbers(event)


def dump(event: Mapping[str, Any]) -> str:
    """Return one line of strict JSON."""
    return json.dumps(strict(event), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def strict(value: Any) -> Any:
    """Return JSON values with NaN and infinity, for which JSON has no number, as the texts NaN, Infinity, -Infinity."""
    if isinstance(value, float):
        return value if isfinite(value) else "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value


def acquire(path: Path) -> int:
    """Lock a file for this process and return its handle; closing it, or the end of the process, lets go.

    Raises:
        BlockingIOError: another process holds it (`holder` names it).
        OSError: this file system has no locks.
    """
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def holder(path: Path) -> str | None:
    """Return the id of the process that holds the lock file ("unknown" between lock and id), or None if it is free."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


def _put(handle: int, content: Any) -> None:
    left = memoryview(content).cast("B")
    while left:  # a disk that fills up takes a part first
        left = left[os.write(handle, left) :]


def _numbers(value: Any) -> Any:
    """Undo `strict`."""
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value
