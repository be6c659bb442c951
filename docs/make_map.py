"""Write the map of files in ARCHITECTURE.md from the first line of each file's docstring.

python docs/make_map.py            (tests/test_docs.py checks that it has been run)
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nomoat"
TARGET = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- map: docs/make_map.py -->", "<!-- end of map -->"


def lines() -> list[str]:
    """One heading a folder, one line a file."""
    found = ["### nomoat/", "", _table(SOURCE.glob("*.py"))]
    for folder in sorted(path for path in SOURCE.iterdir() if (path / "__init__.py").exists()):
        found += ["", f"### {folder.name}/", "", _first(folder / "__init__.py"), "", _table(folder.glob("*.py"))]
    return found


def _table(paths: object) -> str:
    files = [path for path in sorted(paths) if path.name != "__init__.py"]  # type: ignore[call-overload]
    return "\n".join(f"- `{path.name}` {_first(path)}" for path in files)


def _first(path: Path) -> str:
    """The first sentence of a file's docstring, on one line."""
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(words.partition("\n\n")[0].split())


def written(text: str) -> str:
    """`text` with the map between its two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    return "\n".join([before + BEGIN, "", *lines(), "", END + rest.partition(END)[2]])


if __name__ == "__main__":
    TARGET.write_text(written(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
