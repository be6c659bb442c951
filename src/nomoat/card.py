"""The model card: what a run came to, as Markdown for people and as JSON for programs.

    recipe, decisions, metrics, plan.json, dataset's manifest, report -> gather -> card.json -> markdown -> card.md

Every figure of cost says whether it was measured, assumed (stated by the user) or derived from other figures.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nomoat import __version__
from nomoat.core.config import to_json
from nomoat.core.energy import Figure
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.run import Run

if TYPE_CHECKING:
    from nomoat.core.ledger import Ledger
    from nomoat.data.manifest import Manifest

LIMITS = (
    "It continues text in the manner of its training text. It is no assistant, knows no facts reliably, and must not "
    "decide anything about people.",
    "It can repeat passages of its training text word for word; the report says how long the longest of a few were.",
    "Its figures hold for text like its held-out part, and were measured once, with one seed.",
)
OTHERS_LIMITS = (
    "Others trained it: what it was trained on, what it is good for and what it must not be used for stands in their "
    "own card. Nothing of that has been checked here.",
)


class Reported(Protocol):
    """What a run has come to, for its card; `limits` and `model` (its held-out bits per byte) where it has them."""

    def as_markdown(self) -> str: ...
    def as_json(self) -> dict[str, Any]: ...


def write(run: Run, report: Reported | None = None) -> dict[str, Any]:
    """Write card.json, card.md and ledger.json into the run; returns what card.json holds."""
    manifest = manifest_of(run)
    card = gather(run, manifest, report)
    if manifest is not None:
        run.write_json("ledger.json", {"dataset": manifest.id, "title": manifest.title, **asdict(manifest.licences)})
    run.write_json("card.json", card)
    run.write_text("card.md", markdown(card, manifest.licences if manifest else None, report))
    return card


def gather(run: Run, manifest: Manifest | None, report: Reported | None) -> dict[str, Any]:
    """All facts of the card, as plain values."""
    figure = _last(run, "evaluate")
    held_out = {"bits_per_byte": figure.get("bits_per_byte"), "loss": figure.get("loss"), "step": figure.get("step")}
    return {
        "name": run.name,
        "about": run.recipe.about,
        "status": run.status,
        "date": datetime.date.today().isoformat(),
        "nomoat": __version__,
        "model": _model(run),
        "data": _data(manifest),
        "imported": run.read_json("ledger.json") if hasattr(run.recipe.data, "absent") else None,
        "held_out": held_out if report is None else report.as_json(),
        "expected": _expected(run, report),
        "cost": {name: asdict(cost) for name, cost in costs(run).items()},
        "warnings": [event["text"] for event in run.metrics("warning")],
        "opens": opens(run.recipe.product),
        "limits": list(OTHERS_LIMITS if hasattr(run.recipe.data, "absent") else getattr(report, "limits", LIMITS)),
        "decisions": run.decisions(),
        "environment": run.read_json("environment.json"),
        "recipe": to_json(run.recipe),
    }


def manifest_of(run: Run) -> Manifest | None:
    """The manifest of the run's data, None where it has none or it is gone."""
    from nomoat.data.manifest import Manifest

    first = next(iter(getattr(run.recipe.data, "paths", ())), None)
    try:
        return None if first is None else Manifest.load(first)
    except DataError:
        return None


def costs(run: Run) -> dict[str, Figure]:
    """Time, energy and money of the training, each with how it is known; what is not known is left out."""
    found: dict[str, Figure] = {}
    seconds = _last(run, "step").get("seconds")
    if seconds:
        found["training_time"] = Figure(float(seconds), "seconds", "measured")
    whole = _last(run, "made").get("seconds")
    if whole:
        found["whole_time"] = Figure(float(whole), "seconds", "measured")
    spent = float(whole or seconds or 0.0)
    measured = _last(run, "keep").get("watt_hours")
    watts = run.decided("watts")
    if measured:
        found["energy"] = Figure(float(measured), "watt-hours", "measured")
    elif watts:
        found["energy"] = Figure(watts * spent / 3600, "watt-hours", "assumed")
    price = run.decided("price_per_hour")
    if price:
        found["money"] = Figure(price * spent / 3600, run.decided("currency") or "per the stated price", "assumed")
    if peaks := [event["peak_bytes"] for event in run.metrics("memory")]:
        found["memory"] = Figure(max(peaks) / 1e9, "GB", "measured")
    return found


def opens(family: Any) -> str:
    """Which programs can open the model, in a sentence."""
    if getattr(family, "backbone", None) is None:
        return "nomoat."
    from nomoat.hub.config import CLASSES, model_type
    from nomoat.hub.gguf_keys import metadata_of

    try:
        kind = model_type(family)
    except ConfigError as error:
        return f"nomoat alone: {error.what}."
    try:
        metadata_of(family)
        return f"nomoat; `nomoat export` writes it for transformers and llama.cpp (as {CLASSES[kind]})."
    except ConfigError:
        return f"nomoat; `nomoat export` writes it for transformers (as {CLASSES[kind]})."


def _model(run: Run) -> dict[str, Any]:
    """Kind, size and shape of the model, and its weights' file."""
    from nomoat.core import checkpoint

    found = checkpoint.latest(run.checkpoints)
    family = run.recipe.product
    facts: dict[str, Any] = {"kind": type(family).__name__, "family": to_json(family)}
    if found is not None:
        group = checkpoint.model_group(found.path)
        tensors = checkpoint.waiting(found.path, group).values()
        facts["parameters"] = sum(math.prod(tensor.shape) for tensor in tensors if tensor.dtype.is_floating_point)
        if run.recipe.adapt is not None and (base := run.recipe.start) is not None:
            facts["adapts"] = {"base": base.run, "sha256": base.sha256}
        facts |= {"step": found.step, "sha256": checkpoint.digest(found.path, group), "checkpoint": found.path.name}
    return facts


def _data(manifest: Manifest | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    return {
        "id": manifest.id,
        "title": manifest.title,
        "source": manifest.source,
        "splits": manifest.splits,
        "dropped": manifest.dropped,
        "near_duplicates": manifest.near_duplicates,
        "licences": asdict(manifest.licences),
        "duties": manifest.licences.duties(),
    }


def _expected(run: Run, report: Reported | None) -> list[dict[str, Any]]:
    """Name, expected, actual and actual / expected of what the plan, or the recipe, foresaw."""
    from nomoat.train.plan import compare

    actual = actuals(run)
    plan = run.read_json("plan.json") or {name: {"value": value} for name, value in run.recipe.expect.items()}
    if "seconds" in actual:  # the plan counts itself
        actual["seconds"] += plan.get("planning_seconds", 0.0)
    if figure := getattr(report, "model", None):
        actual["held_out_bits_per_byte"] = figure.value
    return [
        {"name": name, "expected": foreseen, "actual": came, "off": off}
        for name, foreseen, came, off in compare(plan, actual)
    ]


def actuals(run: Run) -> dict[str, float]:
    """What came, under the names that plans use."""
    steps, evaluated = run.metrics("step"), _last(run, "evaluate")
    if not steps:
        return {}
    first, last = steps[min(1, len(steps) - 1)], steps[-1]
    found = {"steps": float(last["step"]), "tokens": float(last["tokens"]), "seconds": float(last["seconds"])}
    seconds = last["seconds"] - first["seconds"]
    if seconds > 0:
        found["tokens_per_second"] = (last["tokens"] - first["tokens"]) / seconds
    if peaks := [event["peak_bytes"] for event in run.metrics("memory")]:
        found["memory_bytes"] = float(max(peaks))
    if (bits := evaluated.get("bits_per_byte")) is not None and math.isfinite(bits):
        found["held_out_bits_per_byte"] = float(bits)
    if (loss := evaluated.get("loss")) is not None and math.isfinite(loss):
        found["held_out_loss"] = float(loss)
    return found


def _last(run: Run, kind: str) -> dict[str, Any]:
    return next(reversed(run.metrics(kind)), {})


def markdown(card: Mapping[str, Any], ledger: Ledger | None, report: Reported | None) -> str:
    """The card for people."""
    model, held = card["model"], card["held_out"]
    size = f"{model['parameters'] / 1e6:.2f} M parameters" if "parameters" in model else "no checkpoint yet"
    parts = [f"# {card['name']}", "", card["about"], "", *_facts(card, size)]
    if report is not None:
        parts += ["", report.as_markdown().rstrip()]
    elif held["bits_per_byte"] is not None:
        parts += ["", "## Held-out text", "", f"{held['bits_per_byte']:.3f} bits per byte at step {held['step']:,}."]
    words = _source_words(card["imported"]) if card["imported"] else _data_words(card["data"], ledger)
    parts += ["", "## Data and licences", "", *words]
    if card["expected"]:
        rows = [
            f"| {row['name'].replace('_', ' ')} | {_number(row['expected'])} | {_number(row['actual'])} "
            f"| {row['off']:+.1%} |"
            for row in card["expected"]
        ]
        parts += ["", "## Expected and actual", "", "| | expected | actual | off by |", "|---|---:|---:|---:|", *rows]
    if not card["imported"]:
        parts += ["", "## Cost", "", "| | figure | how |", "|---|---:|---|", *_cost_rows(card["cost"])]
    if card["warnings"]:
        parts += [
            "",
            "## Warnings while it was trained",
            "",
            *(f"- {text}" for text in dict.fromkeys(card["warnings"])),
        ]
    parts += ["", "## How to load it", "", *_loading(card["name"]), "", f"What opens it: {card['opens']}"]
    parts += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"])]
    return "\n".join(parts) + "\n"


def _facts(card: Mapping[str, Any], size: str) -> Iterable[str]:
    model = card["model"]
    state = "imported" if card["imported"] else f"step {model.get('step', 0):,}; training is {card['status']}"
    yield f"- {model['kind']}, {size}, {state}"
    if "sha256" in model:
        yield f"- weights: `checkpoints/{model['checkpoint']}`, SHA-256 `{model['sha256']}`"
    if base := model.get("adapts"):
        yield f"- an adapter beside the weights of `{base['base']}`, SHA-256 `{base['sha256']}`, which it needs"
    yield f"- made on {card['date']} with nomoat {card['nomoat']}; all settings: recipe.json and decisions.jsonl"


def _data_words(data: Mapping[str, Any] | None, ledger: Ledger | None) -> list[str]:
    if data is None or ledger is None:
        return ["What it was trained on is not recorded, or is gone."]
    train, held = data["splits"]["train"], data["splits"]["heldout"]
    words = [
        f"{data['title']}: {train['documents']:,} documents, {train['bytes']:,} bytes, {train['tokens']:,} tokens; "
        f"held out, and never read for training: {held['documents']:,} documents, {held['bytes']:,} bytes. "
        f"Dataset `{data['id'][:16]}`.",
        "",
        ledger.table(),
    ]
    if data["duties"]:
        words += ["", *(f"- {duty}" for duty in data["duties"])]
    if data["dropped"]:
        left = ", ".join(f"{count:,} x {reason}" for reason, count in data["dropped"].items())
        words += ["", f"Left out: {left}."]
    return words


def _source_words(source: Mapping[str, Any]) -> list[str]:
    licence = source["licence"] or "unknown: keep the model to yourself until you know"
    evidence = f" ({source['evidence']})" if source["evidence"] else ""
    return [
        f"The weights were imported from {source['format']}: `{source['source']}`.",
        "",
        f"- licence: {licence}{evidence}",
        *(f"- {name}: SHA-256 `{digest}`" for name, digest in source["files"].items()),
    ]


def _cost_rows(cost: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    for name, figure in cost.items():
        yield f"| {name.replace('_', ' ')} | {_number(figure['value'])} {figure['unit']} | {figure['how']} |"
    if "energy" not in cost:
        yield "| energy | unknown | no meter can be read here and no watts were stated (`--watts`) |"
    if "money" not in cost:
        yield "| money | unknown | no price was stated (`--price-per-hour`) |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _loading(name: str) -> list[str]:
    run = Path(name).name
    return [
        "```python",
        "import nomoat",
        "",
        f'model = nomoat.load("{run}")  # a torch.nn.Module in eval mode',
        f'print(nomoat.generate("{run}", "Once upon a time"))',
        "```",
        "",
        f'`nomoat generate {run} "Once upon a time"` does the same. The weights are safetensors.',
    ]
