"""Checkpoints that are whole or absent, and say so when they are damaged.

    tensors, state -> step-N.tmp/ (files, SHA-256) -> fsync -> rename to step-N/ -> fsync the parent -> drop old ones
    step-N/ -> verify every byte against the manifest -> read(group) -> name -> Tensor

The tensor files are safetensors (core/tensors.py); all is written in plain system calls, so that tests can make every
one of them fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nomoat.core import durable
from nomoat.core.errors import CheckpointError
from nomoat.core.tensors import PIECE_BYTES, Later, Some, read_later, write_tensors

MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d+)(\.old)?")


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies.

    Args:
        step: the number of steps done.
        path: its folder.
        damaged: newer ones that do not verify: (folder, what is wrong with it).
    """

    step: int
    path: Path
    damaged: tuple[tuple[Path, str], ...] = ()

    def warnings(self) -> list[str]:
        """What to tell the user: one sentence for each damaged checkpoint that was passed over."""
        return [
            f"Checkpoint {path.name} is damaged ({reason}); going back to step {self.step}, the last good one."
            for path, reason in self.damaged
        ]


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Some]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-N`, then delete all but the last `keep` checkpoints.

    Args:
        folder: the run's checkpoints.
        step: the number of steps done, N.
        tensors: group ("weights", "optimizer", "ema", ...) -> name -> tensor; tensors that share memory are kept once,
            those to be made later are made one by one.
        state: JSON: whatever else resume needs.
        keep: how many to keep, this one included.

    Returns:
        The new folder.

    Raises:
        CheckpointError: the disk is full or broken. The checkpoints from before are untouched.
    """
    content = json.dumps(state, sort_keys=True, indent=1).encode()
    target, fresh = folder / f"step-{step}", folder / f"step-{step}.tmp"
    stage = "written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _check_room(folder, tensors, len(content))
        fresh.mkdir()
        files = {}
        for group, named in tensors.items():
            files[f"{group}.safetensors"] = write_tensors(fresh / f"{group}.safetensors", named)
        durable.write(fresh / STATE, [content])
        files[STATE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        durable.write(fresh / MANIFEST, [_manifest(step, files)])
        durable.sync_folder(fresh)
        _put(fresh, target)
        stage = "made durable"
        durable.sync_folder(folder)
        stage = "followed by removing older ones"
        _drop_old(folder, keep)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {target.name} could not be {stage}",
            f"{error.strerror or error} ({folder})",
            "free some disk space and resume; the checkpoints from before are untouched",
        ) from error
    return target


def latest(folder: Path) -> Found | None:
    """Return the newest checkpoint whose every byte verifies, with the newer ones that do not; None: there is none.

    Raises:
        CheckpointError: there are checkpoints and all of them are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for _ in range(5):
        damaged, gone = [], False
        for step, path in _candidates(folder):
            reason = verify(path)
            if reason is None:
                return Found(step, path, tuple(damaged))
            if path.is_dir():
                damaged.append((path, reason))
            else:
                gone = True  # a process that trains has dropped it just now, for a newer one
        if not gone:
            break
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {folder} is intact",
            "; ".join(f"{path.name}: {reason}" for path, reason in damaged),
            "restore the folder from a copy, or train anew",
        )
    return None


def newest(folder: Path) -> Found:
    """Return the same.

    Raises:
        CheckpointError: there is none, or all of them are damaged.
    """
    found = latest(folder)
    if found is None:
        name = folder.parent.name
        raise CheckpointError(f"{name} has no checkpoint yet", "", f"train it: `nomoat resume {name}`")
    return found


def model_group(path: Path) -> str:
    """Return the group of tensors in a checkpoint that is the model: the slow copy where there is one."""
    return "ema" if "ema" in groups(path) else "weights"


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, in words, or None: every file is there, whole and unchanged."""
    try:
        files = _files(path)
        for name in files:
            _check(path, name, files[name])
    except CheckpointError as error:
        return error.what
    return None


def groups(path: Path) -> list[str]:
    """Return the names of the groups of tensors in a checkpoint."""
    return [name.removesuffix(".safetensors") for name in _files(path) if name.endswith(".safetensors")]


def digest(path: Path, group: str) -> str:
    """Return the SHA-256 of a group's file, as the manifest states it."""
    return str(_entry(path, f"{group}.safetensors")["sha256"])


def read(path: Path, group: str) -> dict[str, Tensor]:
    """Return the tensors of a group, on the CPU, in memory of their own; the file is verified first.

    Raises:
        CheckpointError: there is no such group, or its file is damaged.
    """
    # One by one and cloned: what is mapped counts as memory, and would keep a deleted checkpoint's room on the disk.
    later = waiting(path, group)
    made = {id(tensor): tensor.make().clone() for tensor in {id(each): each for each in later.values()}.values()}
    return {name: made[id(tensor)] for name, tensor in later.items()}


def waiting(path: Path, group: str) -> dict[str, Later]:
    """Return the tensors of a group as ones to be read one by one; the file is verified first.

    Raises:
        CheckpointError: there is no such group, or its file is damaged.
    """
    name = f"{group}.safetensors"
    _check(path, name, _entry(path, name))
    found, shared = read_later(path / name)
    return found | {alias: found[key] for alias, key in shared.items()}


def state(path: Path) -> dict[str, Any]:
    """Return the state saved beside the tensors.

    Raises:
        CheckpointError: its file is damaged.
    """
    _check(path, STATE, _entry(path, STATE))
    return dict(json.loads((path / STATE).read_bytes()))


def _put(fresh: Path, target: Path) -> None:
    """Rename into place. A folder of that name is moved aside first, where `latest` still finds it after a crash."""
    aside = target.with_name(f"{target.name}.old")
    if target.exists():
        if aside.exists():
            _remove(aside)
        os.rename(target, aside)  # noqa: PTH104
    os.rename(fresh, target)  # noqa: PTH104


def _drop_old(folder: Path, keep: int) -> None:
    """Delete all but the last `keep`. One that lacks a file or a byte does not count among them: nothing good is
    deleted for its sake. (Sizes only: to hash the older ones anew would double the cost of every save.)"""
    kept = 0
    newest = None
    for step, path in _candidates(folder):
        if kept >= max(1, keep) or step == newest:
            _remove(path)
        elif _is_whole(path):
            kept, newest = kept + 1, step


def _remove(path: Path) -> None:
    """Rename first: a half-deleted folder must not look like a damaged checkpoint."""
    doomed = path.with_name(f"{path.name}.tmp")
    os.rename(path, doomed)  # noqa: PTH104
    shutil.rmtree(doomed)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)


def _check_room(folder: Path, tensors: Mapping[str, Mapping[str, Some]], rest: int) -> None:
    """Say that the disk is too full before it is filled to the last byte."""
    needed = rest + sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(28, f"it needs {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left")


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first; of one step, the one moved aside comes last."""
    matches = [(_NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    found = [(int(match[1]), match[2] is None, path) for match, path in matches if match and path.is_dir()]
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _manifest(step: int, files: Mapping[str, Any]) -> bytes:
    """Canonical JSON that carries its own SHA-256: one changed byte of it is found too."""
    body = {"files": dict(files), "step": step}
    bare = json.dumps(body, sort_keys=True, indent=1).encode()
    return json.dumps({**body, "sha256": hashlib.sha256(bare).hexdigest()}, sort_keys=True, indent=1).encode()


def _files(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files, after the manifest itself has been verified."""
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{MANIFEST} cannot be read: {error.strerror}") from error
    try:
        data = json.loads(content)
        step, files = data["step"], data["files"]
        whole = content == _manifest(step, files)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    match = _NAME.fullmatch(path.name)
    if not whole:
        raise CheckpointError(f"{MANIFEST} is truncated or changed")
    if match and int(match[1]) != step:
        raise CheckpointError(f"the folder says step {match[1]}, its manifest step {step}")
    return dict(files)


def _entry(path: Path, name: str) -> dict[str, Any]:
    files = _files(path)
    if name not in files:
        raise CheckpointError(f"{path.name} has no {name}", f"it has {', '.join(files)}")
    return files[name]


def _check(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Raise where a file is missing, too short, too long or changed."""
    taken = hashlib.sha256()
    size = 0
    try:
        with (path / name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                taken.update(piece)
                size += len(piece)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from error
    if size != entry["bytes"]:
        raise CheckpointError(f"{name} has {size} bytes instead of {entry['bytes']}")
    if taken.hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{name} is not what was written: its SHA-256 differs")


def _is_whole(path: Path) -> bool:
    try:
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in _files(path).items())
    except (CheckpointError, OSError):
        return False
