"""A model's files from the Hugging Face hub, over its public HTTP interface: no account, no package of theirs.

    owner/name@revision -> /api/models -> commit, files with sizes and SHA-256 -> /resolve/<commit>/<file>

The commit is fixed first, so that all files are of one state. Only weights in safetensors or GGUF and what describes
them are taken: no pickles, no code. $HF_ENDPOINT names another hub, $HF_TOKEN is sent to it alone.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.spdx import licence_id
from nomoat.hub.fetch import Remote, address, read
from nomoat.hub.wheel import belongs

ENDPOINT = "https://huggingface.co"
NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:/(?P<file>[\w.-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?")


class Repository(NamedTuple):
    """A model on the hub, at one commit.

    Args:
        name: `owner/name`.
        commit: of its files.
        files: what to fetch; one .gguf, or all that belongs to the safetensors.
        licence, evidence: as its card says; None: it says nothing that is known.
    """

    name: str
    commit: str
    files: tuple[Remote, ...]
    licence: str | None
    evidence: str


def find(named: str) -> Repository:
    """What to fetch for `owner/name`, `owner/name@revision` or `owner/name/FILE.gguf`.

    Raises:
        ConfigError: the name cannot be one, or there are several GGUF files to choose from.
        UnreachableError: the hub does not answer, or has no such model.
        DataError: the model has no weights that are read here.
    """
    parts = NAME.fullmatch(named)
    if parts is None or ".." in named:
        raise ConfigError(f"`hf:{named}` names no model", "", "write hf:owner/name or hf:owner/name@revision")
    endpoint, token = os.environ.get("HF_ENDPOINT") or ENDPOINT, os.environ.get("HF_TOKEN", "")
    owner, name = parts["repository"].split("/")
    asked = address(endpoint, "api", "models", owner, name, "revision", parts["revision"] or "main", query="blobs=true")
    try:
        said = json.loads(read(asked, "application/json", token).data)
        commit = re.fullmatch(r"[0-9a-f]{40,64}", said["sha"])[0]  # type: ignore[index]
        there = {one["rfilename"]: one for one in said["siblings"]}
        chosen = _chosen(there, parts["file"], parts["repository"])
        card = (said.get("cardData") or {}).get("license")
        files = tuple(
            Remote(address(endpoint, owner, name, "resolve", commit, file), file, *_known(there[file]), token)
            for file in chosen
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"the hub's answer about {named} cannot be read", why, "check $HF_ENDPOINT") from error
    licence = licence_id(card) if isinstance(card, str) else None
    return Repository(parts["repository"], commit, files, licence, "the model's card on the hub" if licence else "")


def _known(file: dict[str, Any]) -> tuple[str, int | None]:
    """SHA-256 and size, as far as the hub says them: the hash of large files alone."""
    large = file.get("lfs") or {}
    size = large.get("size", file.get("size"))
    return str(large.get("sha256", "")), size if isinstance(size, int) else None


def _chosen(there: dict[str, Any], file: str | None, name: str) -> list[str]:
    top = sorted(one for one in there if "/" not in one and "\\" not in one and belongs(one))
    ggufs, weights = [[one for one in top if one.endswith(kind)] for kind in (".gguf", ".safetensors")]
    if file is not None and file not in ggufs:
        raise ConfigError(
            f"{name} has no {file}", f"it has {', '.join(ggufs) or 'no .gguf at all'}", "name one of them"
        )
    if file is not None or (not weights and len(ggufs) == 1):
        return [file or ggufs[0], *(one for one in ("README.md", "LICENSE") if one in top)]
    if not weights and ggufs:
        raise ConfigError(f"{name} has {len(ggufs)} GGUF files", ", ".join(ggufs), f"name one: hf:{name}/{ggufs[0]}")
    if not weights or "config.json" not in top:
        why = "no .gguf, and no .safetensors with a config.json"
        raise DataError(f"{name} has no weights that are read here", why, "take another")
    # Other copies of the weights lie beside them in some: half precision, or the makers' own layout.
    usual = [one for one in weights if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", one)] or weights
    return [*usual, *(one for one in top if one not in weights and one not in ggufs)]
