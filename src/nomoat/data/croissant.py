"""A Croissant 1.1 card of data: what it is, its files with their hashes, and its licences, as JSON-LD.

    targets, licences, description -> {"@context": ..., "conformsTo": "http://mlcommons.org/croissant/1.1", ...}

MLCommons, Croissant Format Specification 1.1, 2026: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from nomoat.data.manifest import NAME, Manifest, digest
from nomoat.data.readers import Found, walk
from nomoat.data.spdx import KNOWN

VERSION = "http://mlcommons.org/croissant/1.1"
TERMS = (
    "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet format "
    "includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "samplingRate separator source subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    **{term: f"cr:{term}" for term in TERMS.split()},
}


def addresses(licences: Iterable[str]) -> list[str]:
    """Where the texts of the licences in some expressions stand; of one that SPDX does not know, its name."""
    names = {name for each in licences for name in each.replace("(", " ").replace(")", " ").split()}
    known = sorted(names - {"AND", "OR", "WITH"})
    return [f"https://spdx.org/licenses/{name}" if name.lower() in KNOWN else name for name in known]


def croissant(title: str, about: str, licences: Iterable[str], folders: Iterable[Path]) -> dict[str, Any]:
    """The card of the files in some folders.

    Args:
        title: its name.
        about: what it is, and what its licences come to.
        licences: SPDX expressions, or `unknown`.
        folders: dataset folders, whose original files are listed, and plain files and folders.
    """
    files = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": name,
            "contentSize": f"{size} B",
            "encodingFormat": mimetypes.guess_type(name.removesuffix(".gz"))[0] or "application/octet-stream",
            "sha256": sha256,
        }
        for name, size, sha256 in (line for folder in folders for line in _files(folder))
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": title,
        "description": about,
        "license": addresses(licences),
        "version": "1.0.0",
        "datePublished": date.today().isoformat(),
        "distribution": files,
    }


def _files(path: Path) -> Iterator[tuple[str, int, str]]:
    """Name, bytes and SHA-256 of each file; of a dataset, of those that it was made from."""
    if (path / NAME).is_file():
        manifest = Manifest.load(path)
        for each in manifest.files:
            yield f"{manifest.title}/{each['path']}", each["size"], each["sha256"]
        return
    for found in walk(path):
        if isinstance(found, Found):
            name = f"{path.resolve().name}/{found.shown}" if path.is_dir() else found.shown
            yield name, found.size, digest(found.path)
