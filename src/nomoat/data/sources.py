"""What a mixture consists of: each source's streams by licence, whether it is a run, a dataset, or plain files.

    RUN | DATASET | PATH -> [Stream(source, role, licence, Bound, size, evidence)]

A run's streams are its data, its base model (`start`), its parts, and the teachers that wrote some of the data. What
makes data ours to read (`nomoat synth`): jsonl rows with `messages`, `origin` {"teacher", "licence", "terms"},
`generation`, `derived_from` and `licence`; a row without a licence has its teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.core.errors import DataError, NomoatError
from nomoat.core.ledger import HUMAN, UNKNOWN, Entry, Ledger, Origin, Share, summarise
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run
from nomoat.data.document import Document
from nomoat.data.licence import README_FILE, LicenceFinder
from nomoat.data.manifest import NAME, Manifest
from nomoat.data.readers import Found, read, walk
from nomoat.data.rules import Bound, Rules

ROWS = "rows.jsonl"
"""What `nomoat synth` writes."""


@dataclass(frozen=True)
class Stream:
    """What one source holds under one licence, a base model, or a teacher.

    Args:
        source: what it came in with: what is combined are sources.
        name: for people; unlike any other in the mixture.
        role: `data`, `base` or `teacher`.
        licence: SPDX expression, or `unknown`.
        bound: what it asks.
        documents, tokens, bytes: how much it is; 0 where that is not known.
        evidence: where the licence was read.
    """

    source: str
    name: str
    role: str
    licence: str
    bound: Bound
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    evidence: str = ""


def streams_of(target: Path | str, rules: Rules) -> list[Stream]:
    """The streams of a run, by path or name, of a dataset folder, or of files.

    Raises:
        DataError: there is nothing at that path, and no such run.
    """
    path = Path(target)
    if (path / "recipe.json").is_file() or not path.exists():
        try:
            return of_recipe(Run.open(target).recipe, rules, Run.open(target))
        except NomoatError as error:
            if path.exists():
                raise
            raise DataError(f"there is no file or folder {target}, and no such run", error.fix, "check it") from error
    if (path / NAME).is_file():
        return of_dataset(path, rules)
    rows = path / ROWS  # beside them lie a report and what was left out
    return of_ledger(summarise(lines_of(rows if rows.is_file() else path)), path.resolve().name, rules)


def lines_of(path: Path) -> Iterator[tuple[Entry, int, int]]:
    """(entry, 0 tokens, bytes) of each document below a path; of files without text, of each file."""
    finder, silent, some = LicenceFinder(path if path.is_dir() else path.parent), [], False
    for found in walk(path):
        if isinstance(found, Found):
            card = path.is_dir() and README_FILE.fullmatch(found.path.name)  # evidence, not data
            documents = [item for item in read(found.path, found.shown, finder) if isinstance(item, Document)]
            if card or not documents:
                silent.append(found)
                continue
            some = True
            for item in documents:
                entry = Entry(
                    "", item.source, item.licence, item.evidence, origin=item.origin, generation=item.generation
                )
                yield entry, 0, len(item.text.encode())
    for found in silent if not some else ():
        licence, evidence = finder.around(found.path.parent)
        yield Entry("", found.shown, licence, evidence), 0, found.size


def of_dataset(folder: Path, rules: Rules, own: Iterable[str] = ()) -> list[Stream]:
    """The streams of a dataset folder; conversations note their teachers, with licence and terms, in the settings."""
    manifest = Manifest.load(folder)
    ledger, teachers = manifest.licences, manifest.settings.get("teachers")
    if teachers:
        ledger = replace(ledger, origins=tuple((str(Origin.of(each)), each["rows"]) for each in teachers))
    return of_ledger(ledger, manifest.title, rules, own)


def of_ledger(ledger: Ledger, source: str, rules: Rules, own: Iterable[str] = ()) -> list[Stream]:
    """A stream for each licence, and one for each generator."""
    streams = []
    for share in ledger.shares:
        name = source if len(ledger.shares) == 1 else f"{source}: {share.licence}"
        evidence = "; ".join(text for text, _ in share.evidence)
        bound = rules.of(share.licence, source if source in rules.overrides else name)
        sizes = share.documents, share.tokens, share.bytes
        streams.append(Stream(source, name, "data", share.licence, bound, *sizes, evidence))
    for said, count in ledger.origins:
        if said != HUMAN:
            part = count / max(1, ledger.documents)
            sizes = count, round(part * ledger.tokens), round(part * ledger.bytes)
            streams.append(_teacher(Origin.of(said), source, sizes, rules, own))
    return streams


def _teacher(origin: Origin, source: str, sizes: tuple[int, int, int], rules: Rules, own: Iterable[str]) -> Stream:
    """What a generator's outputs come with: its licence, its terms, or what its name is known for."""
    name = f"{source}: written by {origin.name}"
    stated = [each for each in (origin.licence, origin.terms) if each not in ("", "none", UNKNOWN)]
    licence = " AND ".join(stated) or rules.teacher(origin.name) or UNKNOWN
    bound = rules.of(licence, origin.name if origin.name in rules.overrides else name, own)
    if bound.rules == ("R2",):
        bound = bound._replace(rules=("R12",))
    evidence = "stated with the data" if stated else "looked up by that name" if licence != UNKNOWN else "unheard of"
    return Stream(source, name, "teacher", licence, bound, *sizes, evidence)


def of_recipe(recipe: Recipe, rules: Rules, run: Run | None = None, role: str = "base") -> list[Stream]:
    """The streams of what a recipe trains on and begins with; of an imported model, its weights.

    Args:
        recipe: its data read into shards.
        rules: what licences ask.
        run: whose recipe it is, for the ledger that lies in it.
        role: what an imported model is here.
    """
    streams: list[Stream] = []
    refs = {"base": recipe.start, **dict(recipe.parts or {})}
    for name, ref in refs.items():
        if ref is not None:
            streams += _of_ref(ref, "teacher" if name == "teacher" else "base", rules)
    own = {entry["family"] for each in streams if (entry := rules.entry(each.licence)) and "family" in entry}
    ledger: dict[str, Any] = (run.read_json("ledger.json") or {}) if run else {}
    folders = [Path(path) for path in getattr(recipe.data, "paths", ())]
    for folder in folders:
        if (folder / NAME).is_file():
            streams += of_dataset(folder, rules, own)
    if not folders and (title := getattr(recipe.data, "title", "")):  # made while it is read, by our own program
        bound = rules.of(recipe.data.licence, title)
        streams.append(Stream(title, title, "data", recipe.data.licence, bound, evidence="drawn by nomoat itself"))
    if "shares" in ledger and not any((folder / NAME).is_file() for folder in folders):
        shares = [Share(**{**share, "evidence": tuple(map(tuple, share["evidence"]))}) for share in ledger["shares"]]
        origins = tuple((name, count) for name, count in ledger.get("origins", ()))
        streams += of_ledger(Ledger(tuple(shares), origins), str(ledger.get("title", "data")), rules, own)
    elif "licence" in ledger and run is not None:
        licence = ledger["licence"] or UNKNOWN
        bound = rules.of(licence, run.name, [str((rules.entry(licence) or {}).get("family"))])
        bound = bound._replace(rules=(*bound.rules, "R13"))
        streams.append(Stream(run.name, run.name, role, licence, bound, evidence=str(ledger.get("evidence") or "")))
    return streams


def _of_ref(ref: Ref, role: str, rules: Rules) -> list[Stream]:
    """The streams of a run that is begun with, or used; one that is gone is unknown."""
    try:
        run = Run.open(ref)
    except NomoatError as error:
        return [Stream(ref.run, ref.run, role, UNKNOWN, rules.of(None, ref.run), evidence=error.what)]
    return of_recipe(run.recipe, rules, run, role)
