"""Checkpoints that are whole or absent, and say so when they are damaged.

    tensors, state -> step-N.tmp/ (files, SHA-256) -> fsync -> rename to step-N/ -> fsync the parent -> drop old ones
    step-N/ -> verify every byte against the manifest -> read(group) -> name -> Tensor

Format of the tensor files: safetensors (huggingface.co/docs/safetensors), written here in one pass together with its
SHA-256, and in plain system calls, so that tests can make every one of them fail.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomoat.core import durable
from nomoat.core.errors import CheckpointError

MANIFEST, STATE = "manifest.json", "state.json"
PIECE_BYTES = 1 << 24
_NAME = re.compile(r"step-(\d+)(\.old)?")
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Later:
    """A tensor that is made when it is needed: a model larger than memory can be read and written one by one.

    Args:
        shape: its sizes.
        dtype: its type.
        make: makes it, on the CPU; called anew each time.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


Some = Tensor | Later
"""A tensor, now or later."""


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


def read_later(path: Path) -> tuple[dict[str, Later], dict[str, str]]:
    """Return the tensors of any safetensors file as ones to be read one by one, and the header's texts.

    Raises:
        CheckpointError: it is no sound safetensors file, or holds a type that is not read here.
    """
    from safetensors import SafetensorError, safe_open

    types = {word: dtype for dtype, word in _TYPES.items()}

    def reading(key: str) -> Callable[[], Tensor]:
        def make() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)

        return make

    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
        shapes = {key: (tuple(part.get_shape()), types[part.get_dtype()]) for key, part in slices.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path.name} is no safetensors file that can be read", str(error)) from error
    return {key: Later(shape, dtype, reading(key)) for key, (shape, dtype) in shapes.items()}, texts


def state(path: Path) -> dict[str, Any]:
    """Return the state saved beside the tensors.

    Raises:
        CheckpointError: its file is damaged.
    """
    _check(path, STATE, _entry(path, STATE))
    return dict(json.loads((path / STATE).read_bytes()))


def write_tensors(path: Path, tensors: Mapping[str, Some], metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write one safetensors file; returns its size and SHA-256, taken on the way.

    Args:
        path: the file.
        tensors: name -> tensor, or one to be made when its turn comes.
        metadata: texts for the header; None: which names share a tensor's memory, as `read` expects.

    Raises:
        OSError: the disk is full or broken.
    """
    header: dict[str, Any] = {}
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    order: list[Some] = []
    offset = 0
    # Wider types first, as the format's own writer does, so that every tensor is aligned when mapped.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        place = (tensor.data_ptr(), tensor.stride(), tensor.device) if isinstance(tensor, Tensor) else (name,)
        place = (*place, tensor.shape, tensor.dtype)
        if tensor.nbytes and place in first and metadata is None:
            shared[name] = first[place]
            continue
        first[place] = name
        size = tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        order.append(tensor)
        offset += size
    if shared or metadata:
        header["__metadata__"] = dict(metadata or shared)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    taken = hashlib.sha256()
    count = 0

    def pieces() -> Iterator[memoryview]:
        nonlocal count
        for piece in _pieces(len(text).to_bytes(8, "little") + text, order):
            taken.update(piece)
            count += len(piece)
            yield piece

    durable.write(path, pieces())
    return {"bytes": count, "sha256": taken.hexdigest()}


def _pieces(head: bytes, tensors: list[Some]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        if tensor.nbytes:
            made = tensor.make() if isinstance(tensor, Later) else tensor
            assert (made.shape, made.dtype) == (torch.Size(tensor.shape), tensor.dtype)
            flat = made.detach().cpu().contiguous().view(-1).view(torch.uint8)
            view = flat.numpy().data
            for start in range(0, len(view), PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]
            del made, flat, view  # before the next one is made


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
