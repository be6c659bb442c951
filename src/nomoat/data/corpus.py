"""The text that every machine with Python has: the modules of the standard library, about 12 MB, PSF-2.0.

sysconfig's stdlib folder -> *.py, without packages, tests and what the build wrote -> Found
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nomoat.core.errors import DataError
from nomoat.data.document import Dropped
from nomoat.data.licence import Finding, LicenceFinder
from nomoat.data.readers import Found, walk

LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload", "__pycache__")
WRITTEN_HERE = ("_sysconfigdata", "sitecustomize.py", "usercustomize.py")  # by the build and the system, not PSF's
SAID = "the licence of Python itself, https://docs.python.org/3/license.html"


def library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def title() -> str:
    return f"standard library of Python {platform.python_version()}"


def modules(root: Path) -> Iterator[Found | Dropped]:
    """The modules below `root`, in order.

    Raises:
        DataError: where this Python keeps no readable modules (an embedded one has them compiled in a zip).
    """
    none = True
    for item in walk(root, left_out):
        if isinstance(item, Found) and item.shown.endswith(".py"):
            none = False
            yield item
    if none:
        raise DataError(
            f"no modules in {root}", "this Python has its standard library compiled or packed", "name a folder of text"
        )


def left_out(path: Path) -> str:
    """Why a path is no module of the library; empty where it is one."""
    if path.name in LEFT_OUT or path.name.startswith(("config-", *WRITTEN_HERE)):
        return "not a module of the library"
    if path.is_symlink() and not path.resolve().is_relative_to(library().resolve()):
        return "not a module of the library"
    return ""


class LibraryLicences(LicenceFinder):
    """PSF-2.0 for what says nothing else, with the file that says so: `LICENSE.txt`, where the system has it."""

    def __init__(self, root: Path, stated: str | None = None) -> None:
        super().__init__(root, stated)
        beside = (root, Path(sys.base_prefix), Path("/usr/share/doc") / f"python3.{sys.version_info.minor}")
        found = (self.in_folder(folder) for folder in beside)
        self.ours: Finding = next((f for f in found if f and f[0] == "PSF-2.0"), ("PSF-2.0", SAID))

    def around(self, folder: object) -> Finding:
        return self.ours
