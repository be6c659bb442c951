"""Licences: what binds a run or data, why, and what would change it; and a training that may not begin is refused.

RUN | DATA ... -> streams -> one verdict each for weights, data, code and outputs -> text, JSON, NOTICE, Croissant
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from nomoat.core import durable
from nomoat.core.errors import ConfigError, NomoatError, RunError, nearest
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.terms import LAYERS, USES, Removal, Routes, Terms, Verdict, judge
from nomoat.data.croissant import addresses, croissant
from nomoat.data.manifest import NAME, Manifest
from nomoat.data.rules import OVERRIDES, Override, Rules, override, overrides_at
from nomoat.data.sources import Stream, of_recipe, streams_of

Watch = Callable[[Mapping[str, Any]], None]

PROFILES = {
    "strict": "what is trained on a text is derived from it, and contracts are flagged",
    "contract-blind": "as strict, without the contracts of providers",
    "tdm": "training under an exception for text and data mining: conditions are shown, not passed on to weights",
}
ASKED = {"weights": "a model trained on it", "data": "the data themselves, passed on", "outputs": "what it writes"}
ASKED["code"] = "nomoat itself is Apache-2.0; no licence of data or weights reaches it"
SHOWN = 12
"""Streams of a mixture that are listed; the others are counted."""


@dataclass(frozen=True)
class Assessment:
    """What a mixture comes to.

    Args:
        title: what was asked about.
        profile: one of `PROFILES`.
        streams: what it consists of.
        verdicts: of each of `LAYERS`.
        unit: what the sizes count: `tokens`, `bytes` or `documents`.
        limits: what must be kept in mind, printed every time.
        rules: of each rule that was applied, its text's title, address and date.
        targets: what was named.
        reason: the user's, for the profile.
    """

    title: str
    profile: str
    streams: tuple[Stream, ...]
    verdicts: Mapping[str, Verdict]
    unit: str
    limits: tuple[str, ...]
    rules: Mapping[str, Mapping[str, Any]]
    targets: tuple[str, ...] = ()
    reason: str = ""

    @property
    def word(self) -> str:
        """The verdict on the weights of a model made of all this."""
        return self.verdicts["weights"].word

    def share(self, numbers: Sequence[int]) -> float:
        """What part of the data some streams are, from 0 to 1."""
        whole = sum(getattr(each, self.unit) for each in self.streams if each.role == "data")
        return min(1.0, sum(getattr(self.streams[n], self.unit) for n in numbers) / max(1, whole))

    def label(self, stream: Stream) -> str:
        """A stream's name, without its source where there is no other."""
        alone = len({each.source for each in self.streams}) == 1
        return stream.name.removeprefix(f"{stream.source}: ") if alone else stream.name

    def named(self, numbers: Sequence[int]) -> str:
        """Some streams by name, with their share where they are data."""
        names = [self.label(self.streams[n]) for n in numbers]
        said = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        part = self.share(numbers)
        return f"{said} ({100 * part:.1f} % of the {self.unit})" if part else said

    def as_text(self) -> str:
        """For people: the verdicts, why, the way out, the duties, the limits."""
        main, lines = self.verdicts["weights"], [f"{self.title}: {self.word}", ""]
        lines += [f"  {layer:<9}{self.verdicts[layer].word:<16}{ASKED[layer]}" for layer in LAYERS]
        lines += ["", "What it consists of"]
        for stream in self.streams[:SHOWN]:
            label, size = self.label(stream), stream.role
            if stream.bytes:
                size = f"{getattr(stream, self.unit):,} {self.unit}, documents: {stream.documents:,}"
            told = label if label.endswith(stream.licence) else f"{label}: {stream.licence}"
            lines.append(f"  {told} ({', '.join(stream.bound.rules)}), {size}")
            lines.append(f"    {stream.evidence or 'nobody has said what licence it has'}")
            if stream.bound.override:
                lines.append(f"    overridden: {stream.bound.override}")
        if len(self.streams) > SHOWN:
            lines.append(f"  and {len(self.streams) - SHOWN} more; --json names all")
        if main.causes:
            lines += ["", f"Why {main.word}: because of {self.named(main.causes)}"]
            lines += [f"  without {self.named(each.streams)}: {each.word}" for each in self.ways()]
        lines += ["", *self._section("Flags", self.flags()), *self._section("What it asks of you", self.duties())]
        texts = [f"{name}: {each['effect']} ({each['source']}; {each['date']})" for name, each in self.rules.items()]
        lines += self._section("Rules and their texts", texts)
        signed = f" ({self.reason})" if self.reason else ""
        lines += self._section(f"Profile {self.profile}{signed}: {PROFILES[self.profile]}. Limits", self.limits)
        return "\n".join(lines).rstrip()

    def ways(self) -> list[Removal]:
        """What would change the verdict on the weights; of what is no cause, only what leaves half the data or more."""
        main, data = self.verdicts["weights"], {n for n, each in enumerate(self.streams) if each.role == "data"}
        causes = {(n,) for n in main.causes[:3]}
        some_left = [each for each in main.without if not data or data - set(each.streams)]
        return [each for each in some_left if each.streams in causes or self.share(each.streams) < 0.5]

    @staticmethod
    def _section(title: str, items: Sequence[str]) -> list[str]:
        folded = (textwrap.fill(f"- {item}", 100, initial_indent="  ", subsequent_indent="    ") for item in items)
        return [title, *folded, ""] if items else []

    def flags(self) -> list[str]:
        """What decides nothing by itself, but must be known: contracts and reservations."""
        clauses = sorted(self.verdicts["weights"].terms.contract)
        return [
            f"contract of {party}{f' ({day})' if day else ''}: {text}. It binds you if you agreed to it"
            for party, text, day in clauses
        ]

    def duties(self) -> list[str]:
        """What the weights' terms ask of whoever passes the model on."""
        main = self.verdicts["weights"]
        terms, under = main.terms, sorted(main.terms.share_alike & main.targets or main.targets)
        offered = (
            f"under {' or '.join(under)}" if under else "under no licence that all of it allows: keep it, or drop some"
        )
        said = {
            "names and licence texts go along: `--notice NOTICE` writes them": terms.attribution,
            f"{', '.join(sorted(terms.share_alike))}: a model made public is offered {offered}": terms.share_alike,
            f"use: {terms.use}": terms.use != "any",
            "no altered forms may be made public; whether weights are one is not settled": terms.no_derivatives,
            **dict.fromkeys(sorted(terms.naming), True),
            **{f"passes on the {policy}": True for policy in sorted(terms.policies)},
            "an author has reserved text and data mining: leave it out": terms.opt_out,
            "find out whose the unknown part is, or keep the model to yourself": not terms.known,
        }
        return [text for text, holds in said.items() if holds]

    def notice(self) -> str:
        """The NOTICE file: who is to be named, with licences and evidence."""
        terms = self.verdicts["weights"].terms
        lines = [f"NOTICE for {self.title}", "", "Made with nomoat (Apache-2.0) from:", ""]
        lines += [f"- {line}" for line in sorted(terms.credits)] + ["", *sorted(terms.naming)]
        lines += [f"Subject to the {policy}." for policy in sorted(terms.policies)] + ["", "Texts of the licences:", ""]
        lines += [f"- {text}" for text in addresses(each.licence for each in self.streams) if "://" in text]
        return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        names = [stream.name for stream in self.streams]
        fields = {name: getattr(self, name) for name in ("title", "profile", "reason", "unit")} | {"verdict": self.word}
        layers = {
            layer: {
                "words": verdict.words,
                "causes": [names[n] for n in verdict.causes],
                "without": [
                    {"streams": [names[n] for n in each.streams], "share": self.share(each.streams), "word": each.word}
                    for each in verdict.without
                ],
            }
            for layer, verdict in self.verdicts.items()
        }
        streams = [
            {key: value for key, value in asdict(each).items() if key != "bound"}
            | {"rules": each.bound.rules, "override": each.bound.override}
            for each in self.streams
        ]
        said = {"flags": self.flags(), "duties": self.duties(), "limits": self.limits, "rules": self.rules}
        return {**fields, "layers": layers, "streams": streams, **said}


def licence(
    *targets: Path | str,
    profile: str = "strict",
    overrides: Mapping[str, str] | None = None,
    reason: str = "",
    watch: Watch | None = None,
) -> Assessment:
    """Say what binds a run or data, or the mixture of several; no legal advice.

    Args:
        targets: runs, dataset folders, files and folders.
        profile: one of `PROFILES`; `tdm` wants a reason.
        overrides: licence or name of a stream -> rules (`R2+R4`) or a licence; written to `licences.json` beside the
            data (or here, where that cannot be written) with the reason.
        reason: why the overrides, or the exception, hold.
        watch: told where overrides were written.

    Raises:
        ConfigError: an unknown profile or rule, or no reason.
        DataError: nothing there, or a damaged `licences.json`; the line is named.
    """
    if profile not in PROFILES:
        raise ConfigError(
            f"there is no profile `{profile}`", f"there is {', '.join(PROFILES)}", nearest(profile, PROFILES)
        )
    if profile == "tdm" and not reason.strip():
        raise ConfigError("the profile tdm has no reason", "who invokes an exception answers for it", "add --reason")
    said = {name: override(name, rule, reason, Rules()) for name, rule in (overrides or {}).items()}
    rules = _rules(targets, said)
    if said:
        _remember(said, targets, watch)
    streams = [stream for target in targets for stream in streams_of(target, rules)]
    title = " + ".join(Path(target).name or str(target) for target in targets)
    return replace(assess(title, streams, rules, profile), targets=tuple(map(str, targets)), reason=reason)


def assess(title: str, streams: Sequence[Stream], rules: Rules, profile: str = "strict") -> Assessment:
    """The verdicts on some streams."""
    data = [each for each in streams if each.role == "data"]
    units = [unit for unit in ("tokens", "bytes", "documents") if data and all(getattr(each, unit) for each in data)]
    unit = units[0] if units else "documents"
    sizes = [float(getattr(each, unit) or 1) for each in streams]
    verdicts = {}
    for layer in LAYERS:
        terms = [_seen(each, layer, profile) for each in streams] if layer != "code" else [Terms(attribution=True)]
        routes = rules.routes
        if layer == "data":  # side by side, each part keeps its own licence: a collection derives nothing
            shared = frozenset(("each its own",))
            routes = Routes({name: shared for each in terms for name in each.share_alike}, {"each its own": USES[-1]})
        verdicts[layer] = judge(terms, routes, sizes if layer != "code" else None)
    applied = sorted({name for each in streams for name in each.bound.rules}, key=lambda name: int(name[1:]))
    told = {
        name: {key: rules.table["rules"][name][key] for key in ("effect", "source", "url", "date")} for name in applied
    }
    return Assessment(title, profile, tuple(streams), verdicts, unit, tuple(rules.table["limits"]), told)


def _seen(stream: Stream, layer: str, profile: str) -> Terms:
    """A stream's terms in a profile."""
    terms = stream.bound.layers[layer]
    if stream.role != "teacher" or terms.attribution:  # where nothing is asked, the source is listed all the same
        line = f"{stream.name}: {stream.licence}. {stream.evidence}".rstrip()
        terms = replace(terms, credits=frozenset((line,)))
    if profile == "contract-blind":
        return replace(terms, contract=frozenset())
    if profile == "tdm" and stream.role == "data" and layer != "data":
        return Terms(contract=terms.contract, opt_out=terms.opt_out, credits=terms.credits, evidence=terms.evidence)
    return terms


def _beside(target: Path | str) -> list[Path]:
    """The folders whose `licences.json` speaks of a target: its own, and those that a run's data came from."""
    path = Path(target)
    if (path / "recipe.json").is_file() or not path.exists():
        with suppress(NomoatError):
            run = Run.open(target)
            return [run.path, *(folder for each in getattr(run.recipe.data, "paths", ()) for folder in _beside(each))]
    if (path / NAME).is_file() and (source := Manifest.load(path).source):
        path = Path(source)
    return [path if path.is_dir() else path.parent]


def _rules(targets: Iterable[Path | str], said: Mapping[str, Override] | None = None) -> Rules:
    """The table, under what the user says now, beside the targets, and here."""
    rules = Rules()
    folders = [*(folder for target in targets for folder in _beside(target)), Path()]
    rules.overrides = overrides_at(folders, rules) | dict(said or {})
    return rules


def _remember(said: Mapping[str, Override], targets: Iterable[Path | str], watch: Watch | None) -> None:
    """Write overrides beside the data, or here where that cannot be written."""
    lines = {name: {**each._asdict(), "date": date.today().isoformat()} for name, each in said.items()}
    for folder in (*(folder for target in targets for folder in _beside(target)), Path()):
        path = folder / OVERRIDES
        try:
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            durable.replace(path, (json.dumps(before | lines, indent=1, ensure_ascii=False) + "\n").encode())
        except OSError:
            continue
        if watch is not None:
            watch({"kind": "override", "path": str(path), "entries": lines})
        return


def refuse(recipe: Recipe, allow: str | None = None, watch: Watch | None = None) -> list[tuple[str, Any, str]]:
    """Refuse a training whose streams may not be combined; returns decisions for the run, [] as a rule.

    Refused are a conflict, a use that is forbidden, an opt-out, and a part under no known licence beside another source
    that wants the whole under its own. One's own files under no known licence only get a warning.

    Args:
        recipe: its data read into shards.
        allow: the user's reason to go on all the same.
        watch: told of the warning.

    Raises:
        RunError: it may not begin; says because of what, and what would change it.
    """
    rules = _rules(getattr(recipe.data, "paths", ()))
    streams = of_recipe(recipe, rules)
    found = assess("this training", streams, rules)
    verdict, why = found.verdicts["weights"], ""
    binding = [each for each in streams if each.bound.layers["weights"].share_alike]
    unknown = [each for each in streams if not each.bound.layers["weights"].known]
    pairs = [(one, other) for one in unknown for other in binding if one.source != other.source]
    if "conflict" in verdict.words:
        why = f"the licences of {found.named(verdict.causes)} cannot be kept together"
    elif verdict.terms.use == "forbidden" or verdict.terms.opt_out:
        why = f"{found.named(verdict.causes)}: " + "; ".join(found.duties())
    elif pairs:
        one, other = pairs[0]
        why = f"{other.name} wants the whole under {other.licence}, and whose {one.name} is, is not known"
    elif unknown and watch is not None:
        names = ", ".join(dict.fromkeys(each.name for each in unknown))
        watch(
            {"kind": "warning", "text": f"no licence is known for {names}: keep the model to yourself until you know"}
        )
    if not why:
        return []
    if allow and allow.strip():
        return [("licence_allowed", {"verdict": verdict.word, "because": why}, allow.strip())]
    ways = "; ".join(f"without {found.named(each.streams)}: {each.word}" for each in verdict.without)
    fix = 'state what you know with --licence or licences.json, or go on with --allow "reason"'
    raise RunError("these may not be trained on together", why, f"{ways}; or {fix}" if ways else fix)


def write_notice(found: Assessment, path: Path) -> None:
    """Write the NOTICE file."""
    path.write_text(found.notice(), encoding="utf-8")


def write_croissant(found: Assessment, path: Path) -> None:
    """Write the Croissant card of the data that was asked about.

    Raises:
        ConfigError: no data was asked about, only runs.
    """
    folders = [
        Path(each) for each in found.targets if Path(each).exists() and not (Path(each) / "recipe.json").exists()
    ]
    if not folders:
        raise ConfigError("a run has no Croissant card", "it is a card of data", "name the data's folder")
    about = f"Licences, read by nomoat: {found.verdicts['data'].word} (no legal advice)."
    card = croissant(found.title, about, {each.licence for each in found.streams}, folders)
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ship(run: Run, exported: Path) -> Path:
    """Put a NOTICE beside an exported model, where the verdict asks for attribution; returns the model's path."""
    rules = _rules([run.path])
    found = assess(run.name, of_recipe(run.recipe, rules, run), rules)
    if found.verdicts["weights"].terms.attribution:
        beside = exported / "NOTICE" if exported.is_dir() else exported.with_name(f"{exported.name}.NOTICE")
        write_notice(found, beside)
    return exported
