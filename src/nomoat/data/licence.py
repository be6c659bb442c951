"""Whose text is it? The licence of a document, with the evidence, or unknown; never guessed.

    --licence > column > sidecar > SPDX header > LICENSE or COPYING > README or data card > unknown

The last two are looked for beside the file, then one folder up and so on to the folder that was given. Where they
contradict each other, or one names several licences without saying which one holds, all are kept (`A AND B`): whoever
keeps to the strictest is right in any case. Of "A (data), B (code)" the data's counts. A README that says which model
wrote the text gives the origin.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath

from nomoat.core.ledger import HUMAN
from nomoat.data.document import Document
from nomoat.data.rules import written_by
from nomoat.data.spdx import expression, licence_id, licences_of_text

HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n]{1,120})")
LICENCE_FILE = re.compile(r"(?:licen[cs]e|copying|unlicen[cs]e)(?:[-_.][\w.+-]*)?", re.IGNORECASE)
README_FILE = re.compile(r"(?:readme|data_?-?set_?-?card|data_?-?card)(?:\.(?:md|txt|rst|markdown))?", re.IGNORECASE)
NO_LICENCE = (
    ".py",
    ".js",
    ".ts",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".rs",
    ".go",
    ".java",
    ".rb",
    ".cs",
    ".swift",
    ".css",
    ".html",
    ".htm",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".xml",
    ".yml",
    ".yaml",
    ".toml",
    ".gz",
    ".zst",
    ".zip",
    ".parquet",
    ".png",
    ".svg",
)
STATED = re.compile(r"^[\s>#*\-_|]*(?:data |dataset )?licen[cs]e[\s*_|]*[:=|][\s*_`|]*(.+)$", re.IGNORECASE)
HEADING = re.compile(r"^#+\s*(?:\d+\.?\s*)?licen[cs](?:e|ing)\b[^:]*$", re.IGNORECASE)
UNDER = re.compile(
    r"\b(?:licen[cs]ed|released|distributed|available|published|provided)\s+under\s+(?:the\s+)?(?:terms\s+of\s+)?"
    r"(?:the\s+)?(.{2,80})$",
    re.IGNORECASE,
)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
ASIDE = re.compile(r"\([^()]*\)")
BETWEEN = re.compile(r"\s*(?:[;,/]|\s(?:and|&)\s)\s*(?![^()]*\))")
DATA = re.compile(r"\b(?:data|data ?sets?|texts?|annotations?|contents?)\b")
MOST_BYTES = 1 << 18

Finding = tuple[str | None, str]
UNKNOWN: Finding = (None, "")


def is_licence_file(name: str) -> bool:
    """LICENSE, LICENCE.txt, COPYING, LICENSE-MIT, ...; not license.py."""
    return bool(LICENCE_FILE.fullmatch(name)) and PurePath(name).suffix.lower() not in NO_LICENCE


def is_sidecar(name: str) -> bool:
    """`data.csv.license` beside `data.csv`, as https://reuse.software says."""
    return PurePath(name).suffix.lower() in (".license", ".licence") and bool(PurePath(name).stem)


class LicenceFinder:
    """Finds the licence of the documents below one folder; what stands beside files is looked up once a folder.

    Args:
        root: looked for no further up than this.
        stated: the user's own word (`--licence`), which wins over everything.
        names: lists the names in a folder; load: gives a file's text. Both default to the disk.
        outside: what holds where nothing is found: for a zip, the surroundings of the zip itself.
    """

    def __init__(
        self,
        root: PurePath,
        stated: str | None = None,
        names: Callable[[PurePath], list[str]] | None = None,
        load: Callable[[PurePath], str] | None = None,
        outside: Finding = UNKNOWN,
    ) -> None:
        self.root, self.outside = root, outside
        self.stated = (licence_id(stated) or expression(stated) or stated.strip()) if stated else None
        self.names, self.load = names or names_on_disk, load or text_on_disk
        self.beside: dict[PurePath, Finding] = {}
        self.writers: dict[PurePath, str] = {}
        self.headed: tuple[PurePath, Finding] = (PurePath(), UNKNOWN)
        self.listed_last: tuple[PurePath | None, list[str], frozenset[str]] = (None, [], frozenset())

    def settle(self, item: Document, path: PurePath) -> Document:
        """Give a document the licence of the file it comes from, unless a column of its own has spoken."""
        if self.stated:
            item.licence, item.evidence = self.stated, "stated with --licence"
        elif not item.evidence:
            item.licence, item.evidence = self.sidecar(path) or self.header(item, path) or self.around(path.parent)
        if item.origin == HUMAN and not item.generation and (writer := self.writer(path.parent)):
            item.origin, item.generation = writer, 1
        return item

    def writer(self, folder: PurePath) -> str:
        """The model that wrote the text, as the READMEs there or above say; empty: people, for all that is said."""
        if folder not in self.writers:
            cards = [self.load(folder / name) for name in self.listing(folder)[1] if README_FILE.fullmatch(name)]
            found = next(filter(None, map(written_by, cards)), "")
            if not found and folder != self.root and folder.parent != folder:
                found = self.writer(folder.parent)
            self.writers[folder] = found
        return self.writers[folder]

    def sidecar(self, path: PurePath) -> Finding | None:
        """What `FILE.license` beside the file says."""
        for suffix in (".license", ".licence"):
            name = path.name + suffix
            if name in self.listing(path.parent)[2]:
                return of_licence_text(self.load(path.parent / name), name)
        return None

    def header(self, item: Document, path: PurePath) -> Finding | None:
        """The SPDX line at the head of the text, which holds for the later pieces of the same file too."""
        head = item.text[:4096]
        if "SPDX-License-Identifier:" in head:
            found = spdx_header(head)
            if found:
                self.headed = (path, found)
                return found
        return self.headed[1] if self.headed[0] == path and item.member.startswith("line ") else None

    def around(self, folder: PurePath) -> Finding:
        """What LICENSE, COPYING, README or a data card say, in the folder or the nearest one above."""
        if folder not in self.beside:
            found = self.in_folder(folder)
            if not found and folder != self.root and folder.parent != folder:
                found = self.around(folder.parent)
            self.beside[folder] = found or self.outside
        return self.beside[folder]

    def in_folder(self, folder: PurePath) -> Finding | None:
        names = self.listing(folder)[1]
        shown = folder.relative_to(self.root).as_posix() if folder.is_relative_to(self.root) else str(folder)
        prefix = "" if shown == "." else shown + "/"
        findings = [of_licence_text(self.load(folder / name), prefix + name) for name in names if is_licence_file(name)]
        cards = [of_readme(self.load(folder / name), prefix + name) for name in names if README_FILE.fullmatch(name)]
        known = [finding for finding in (*findings, *filter(None, cards)) if finding[0]]
        if known:
            return all_of(known)
        return next(filter(None, cards), None) or (findings[0] if findings else None)

    def listing(self, folder: PurePath) -> tuple[PurePath | None, list[str], frozenset[str]]:
        """The names in a folder; the last folder's are kept, for files come folder by folder."""
        if self.listed_last[0] != folder:
            try:
                names = self.names(folder)
            except OSError:
                names = []
            self.listed_last = (folder, names, frozenset(names))
        return self.listed_last

    def within(self, members: Mapping[str, zipfile.ZipInfo], archive: zipfile.ZipFile, path: PurePath) -> LicenceFinder:
        """The same for the members of a zip, with the zip's own surroundings where nothing in it speaks."""
        folders: dict[PurePath, list[str]] = {}
        for name in sorted(members):
            folders.setdefault(PurePosixPath(name).parent, []).append(PurePosixPath(name).name)

        def load(member: PurePath) -> str:
            try:
                with archive.open(members[str(member)]) as file:
                    return file.read(MOST_BYTES).decode("utf-8", "replace")
            except (OSError, RuntimeError, zipfile.BadZipFile, KeyError):
                return ""

        outside = self.sidecar(path) or self.around(path.parent)
        return LicenceFinder(PurePosixPath(), self.stated, lambda folder: folders.get(folder, []), load, outside)


def names_on_disk(folder: PurePath) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def text_on_disk(path: PurePath) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def spdx_header(text: str) -> Finding | None:
    """The expression after `SPDX-License-Identifier:`, with its line."""
    found = HEADER.search(text)
    if not found:
        return None
    said = re.sub(r"(?:\*/|-->|\"\"\"|''')\s*$", "", found[1].strip()).strip()
    line = text.count("\n", 0, found.start()) + 1
    name = expression(said)
    return (name, f"SPDX header, line {line}") if name else None


def of_licence_text(text: str, name: str) -> Finding:
    """The licence whose text stands in a LICENSE, COPYING or sidecar file."""
    header = spdx_header(text[:4096])
    if header:
        return header[0], f"{name}, {header[1]}"
    found = licences_of_text(text)
    if len(found) == 1:
        return found[0], f"{name}, the text of {found[0]}"
    if found:
        return " AND ".join(found), f"{name} holds the texts of {', '.join(found)}; all count"
    first = text.strip().split("\n")[0]
    named = licence_id(first) if len(text) < 400 else None
    return (named, f"{name}, line 1") if named else (None, f"{name}, a text that is none of the known licences")


def of_readme(text: str, name: str) -> Finding | None:
    """What the licence lines of a README or data card say; None where there is none."""
    lines = text.split("\n")
    front = lines.index("---", 1) if lines[0].strip() == "---" and "---" in lines[1:] else 0
    said: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        stated = STATED.match(line)
        if stated:
            said.append((number, stated[1]))
        elif re.match(r"licen[cs]e\s*:\s*$", line) and number < front and lines[number + 1].strip().startswith("- "):
            said += [(n, lines[n].strip()[2:]) for n in list_below(lines, number)]
        elif HEADING.match(line):
            below = next((n for n in range(number + 1, min(number + 4, len(lines))) if lines[n].strip()), None)
            if below is not None and not STATED.match(lines[below]):
                said.append((below, lines[below]))
        elif under := UNDER.search(line):
            said.append((number, under[1]))
    if not said:
        return None
    shown = [f"{name}, line {number + 1}: {words.strip()[:80]!r}" for number, words in said]
    found = [of_claims(words) for _, words in said]
    if not all(found):
        return None, f"{shown[found.index(None)]} names no single known licence"
    return all_of([(licence, line) for licence, line in zip(found, shown, strict=True)])


def all_of(findings: list[Finding]) -> Finding:
    """What several places say: where they differ, all of it, for the strictest must be kept."""
    said: dict[str, str] = {}
    for licence, evidence in findings:
        for name in (licence or "").split(" AND ") if " OR " not in (licence or "") else [f"({licence})"]:
            said.setdefault(name, evidence)
    names = [name.strip("()") for name in said] if len(said) == 1 else list(said)
    return " AND ".join(names), "; ".join(dict.fromkeys(said.values()))


def of_claims(words: str) -> str | None:
    """The licence of the data in a statement that may name several: "CC-BY-4.0 (data), MIT (code)" -> CC-BY-4.0."""
    if whole := of_statement(words):
        return whole
    claims = [(of_statement(part), "".join(ASIDE.findall(part)).lower()) for part in BETWEEN.split(words)]
    if len(claims) == 1 or not all(licence for licence, _ in claims):
        return None
    of_data = [licence for licence, scope in claims if licence and DATA.search(scope)]
    return " AND ".join(dict.fromkeys(of_data or [licence for licence, _ in claims if licence]))


def list_below(lines: list[str], number: int) -> list[int]:
    end = number + 1
    while end < len(lines) and lines[end].strip().startswith("- "):
        end += 1
    return list(range(number + 1, end))


def of_statement(words: str) -> str | None:
    """The one licence that a few words name, remarks in brackets left aside: "MIT (see LICENSE)" -> MIT."""
    plain = ASIDE.sub(" ", LINK.sub(r"\1", words)).strip(" .*_`|")
    under = UNDER.search(plain)
    plain = re.split(r"\s(?:-|–|see)\s", under[1] if under else plain)[0].strip(" .*_`|")
    for candidate in (plain, re.split(r"\.\s|[.;,]?\s+see\b", plain)[0]):
        name = licence_id(candidate.strip(" .,;*_`"))
        if name:
            return name
    domain = re.match(r"public domain\b(?!.*[,;/])", plain, re.IGNORECASE)
    return licence_id("public domain") if domain else None
