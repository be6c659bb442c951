"""What a licence asks, looked up: rules with their sources as data, and the user's own entries with their reasons.

    "MIT OR GPL-2.0-only", overrides -> licences.json | licence_rules.json -> Bound(terms of each layer, rules)

AND binds by both, of OR the lenient one may be chosen, WITH leaves the licence before it as strict as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.ledger import UNKNOWN
from nomoat.core.terms import Clause, Routes, Terms, join
from nomoat.data.spdx import licence_id

OVERRIDES = "licences.json"
TABLE = resources.files(__package__).joinpath("licence_rules.json")
WRITTEN = (
    r"\b(?:written|generated|produced|distilled|synthesi[sz]ed|outputs?|answers?|completions?)\b(?:\s\w+)?"
    r"\s(?:by|with|from|of|using)\s(?:an?\s|the\s)?(?P<name>(?:{})[\w.-]*)"
)
REACHED = ("weights", "data", "outputs")


class Bound(NamedTuple):
    """What a licence comes to.

    Args:
        layers: what binds the weights of a model made with it, the data themselves, and what the model writes.
        rules: R1 to R14, those that were applied.
        override: the user's reason, where it is their entry that holds.
    """

    layers: Mapping[str, Terms]
    rules: tuple[str, ...]
    override: str = ""

    def __and__(self, other: Bound) -> Bound:
        layers = {name: self.layers[name] | other.layers[name] for name in REACHED}
        reasons = "; ".join(dict.fromkeys(filter(None, (self.override, other.override))))
        return Bound(layers, tuple(dict.fromkeys(self.rules + other.rules)), reasons)


class Override(NamedTuple):
    """The user's own word on a licence or a stream: rules (`R2+R4`) or a known licence, and why."""

    rule: str
    reason: str


class Rules:
    """The table, and what the user says instead.

    Args:
        path: a table in place of the package's own.
        overrides: licence or name of a stream -> `Override`.

    Raises:
        DataError: the table is damaged; the line is named.
    """

    def __init__(self, path: Path | None = None, overrides: Mapping[str, Override] | None = None) -> None:
        self.table = _read(path or TABLE)
        self.overrides = dict(overrides or {})
        self.by_name = {name.lower(): name for name in self.table["licences"]}
        for name, entry in self.table["licences"].items():
            if unknown := set(entry["rules"]) - self.table["rules"].keys():
                _damaged(path or TABLE, name, f"there is no rule {', '.join(sorted(unknown))}")

    @cached_property
    def routes(self) -> Routes:
        """Which share-alike licence may become which, over several steps too."""
        steps, reach = self.table["routes"], {}
        for name in self.table["licences"]:
            found, open_ends = {name}, [name]
            while open_ends:
                fresh = steps.get(open_ends.pop(), {}).keys() - found
                found |= fresh
                open_ends += fresh
            reach[name] = frozenset(found)
        uses = {name: "non-commercial" for name in reach if "R4" in self.table["licences"][name]["rules"]}
        return Routes(reach, uses)

    def entry(self, name: str) -> dict[str, Any] | None:
        """The table's line for a licence, in any spelling that is known."""
        known = self.by_name.get(name.lower()) or self.by_name.get((licence_id(name) or "").lower())
        return {"id": known, **self.table["licences"][known]} if known else None

    def teacher(self, name: str) -> str | None:
        """The licence or the terms that a generator's outputs come with, by its name alone."""
        for pattern, licence in self.table["teachers"]:
            if re.search(pattern, name, re.IGNORECASE):
                return str(licence)
        return None

    def of(self, licence: str | None, stream: str = "", own: Iterable[str] = ()) -> Bound:
        """What a licence expression asks; of an override for the stream or the licence, what that says.

        Args:
            licence: an SPDX expression or what somebody wrote; None: nobody has said.
            stream: its name, which an override may have.
            own: families of the base model: Llama's outputs may be used to train Llama.
        """
        for key in (stream, licence or UNKNOWN):
            if key in self.overrides:
                rule, reason = self.overrides[key]
                return self._parsed(rule.replace("+", " AND ").split(), own)._replace(override=reason)
        if not licence or licence == UNKNOWN:
            return self._bound(["R7"], {"id": UNKNOWN}, own)
        if entry := self.entry(licence):
            return self._bound(entry["rules"], entry, own)
        return self._parsed(licence.replace("(", " ( ").replace(")", " ) ").split(), own)

    def _parsed(self, words: list[str], own: Iterable[str]) -> Bound:
        for operator in ("OR", "AND"):
            parts = _split(words, operator)
            if len(parts) > 1:
                bounds = [self._parsed(part, own) for part in parts]
                if operator == "OR":
                    return min(bounds, key=lambda bound: self.routes.rank([bound.layers["weights"]]))
                whole = bounds[0]
                for bound in bounds[1:]:
                    whole &= bound
                return whole
        if words[:1] == ["("] and words[-1:] == [")"]:
            return self._parsed(words[1:-1], own)
        name = " ".join(words[: words.index("WITH")] if "WITH" in words else words)
        if name in self.table["rules"]:
            return self._bound([name], {"id": name}, own)
        entry = self.entry(name) or {"id": name, "rules": ["R7"]}
        return self._bound(entry["rules"], entry, own)

    def _bound(self, rules: Iterable[str], entry: Mapping[str, Any], own: Iterable[str]) -> Bound:
        """The vectors of some rules, filled in with what the entry names."""
        applied = ["R10" if name == "R9" and entry.get("family") in set(own) else name for name in rules]
        layers = {
            layer: join(self._terms(name, entry) for name in applied if layer in self.table["rules"][name]["reaches"])
            for layer in REACHED
        }
        return Bound(layers, tuple(applied))

    def _terms(self, rule: str, entry: Mapping[str, Any]) -> Terms:
        told, name = self.table["rules"][rule], str(entry["id"])
        fields: dict[str, Any] = dict(told["vector"])
        for key, said in (("share_alike", name), ("naming", entry.get("naming")), ("policies", entry.get("policies"))):
            if fields.pop(key, False):
                fields[key] = frozenset((said or f"what {name} says of it",))
        if fields.pop("contract", False):
            text = entry.get("contract") or told["effect"]
            clause = Clause(entry.get("party", "the provider"), text, entry.get("date", told["date"]))
            fields["contract"] = frozenset((clause,))
        return Terms(**fields, evidence=frozenset((f"{rule}: {entry.get('source') or told['source']}",)))


@cache
def _prose() -> re.Pattern[str]:
    names = (pattern.strip("^$") for pattern, _ in _read(TABLE)["teachers"])
    return re.compile(WRITTEN.format("|".join(f"(?:{name})" for name in names)), re.IGNORECASE)


def written_by(text: str) -> str:
    """The model that a README says wrote its data ("written by text-davinci-003"); empty where it says none."""
    found = _prose().search(text)
    return found["name"].rstrip(".-") if found else ""


def _split(words: list[str], operator: str) -> list[list[str]]:
    """Cut an expression at an operator that stands in no brackets."""
    parts: list[list[str]] = [[]]
    depth = 0
    for word in words:
        depth += (word == "(") - (word == ")")
        if word == operator and not depth:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def overrides_at(folders: Iterable[Path], rules: Rules) -> dict[str, Override]:
    """What `licences.json` in some folders says, the first of them first.

    Raises:
        DataError: one is damaged, lacks a reason or names no rule; the line is named.
    """
    found: dict[str, Override] = {}
    for path in dict.fromkeys(folder / OVERRIDES for folder in folders):
        if path.is_file():
            for name, line in _read(path).items():
                if not isinstance(line, dict) or not str(line.get("rule", "")).strip():
                    _damaged(path, name, 'an entry is {"rule": ..., "reason": ...}')
                if not str(line.get("reason") or "").strip():
                    _damaged(path, name, "it has no reason")
                try:
                    found.setdefault(name, override(name, str(line["rule"]), str(line["reason"]), rules))
                except ConfigError as error:
                    _damaged(path, name, error.what)
    return found


def override(name: str, rule: str, reason: str, rules: Rules) -> Override:
    """Check an override.

    Raises:
        ConfigError: no reason, or neither rules nor a licence that is known.
    """
    if not reason.strip():
        raise ConfigError(f"the override of {name} has no reason", "it is kept and printed", 'add --reason "..."')
    for part in rule.replace("+", " ").split():
        if part not in rules.table["rules"] and rules.entry(part) is None:
            known = [*rules.table["rules"], *rules.table["licences"]]
            raise ConfigError(f"`{part}` is no rule and no known licence", "rules are R1 to R14", nearest(part, known))
    return Override(rule, reason.strip())


def _read(path: Any) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged", f"line {error.lineno}: {error.msg}", "mend the line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read", str(error)) from error
    if not isinstance(table, dict):
        raise DataError(f"{path} is damaged", "line 1: it is no JSON object", 'write {"NAME": {...}}')
    return table


def _damaged(path: Any, name: str, why: str) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    key = re.compile(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:")
    number = next((n for n, line in enumerate(lines, 1) if key.search(line)), 1)
    raise DataError(f"{path} is damaged", f"line {number}, {name}: {why}", "mend the line, or take it out")
