"""The ledger and the card of written data: whose it is, how it came about, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nomoat.core.ledger import UNKNOWN, Entry, summarise
from nomoat.data.synth import Seed, Synth


def ledger(rows: Sequence[Mapping[str, Any]], recipe: Synth) -> str:
    """ledger.json of rows: licences, origins, generation. Their tokens depend on who reads them: 0."""
    lines = []
    for row in rows:
        text = "\n\n".join(turn["content"] for turn in row["messages"])
        licence = None if row["licence"] == UNKNOWN else row["licence"]
        origin, derived = row["origin"], tuple(row["derived_from"])
        evidence = f"teacher {origin['teacher']}: {origin['licence']}" + (
            f", {origin['terms']}" * bool(origin["terms"])
        )
        made = Entry(
            Seed(text).hash, "rows.jsonl", licence, evidence, "", "", origin["teacher"], row["generation"], derived
        )
        lines.append((made, 0, len(text.encode())))
    return json.dumps({"title": recipe.about, **asdict(summarise(lines))}, ensure_ascii=False, indent=1) + "\n"


def card(recipe: Synth, report: Mapping[str, Any]) -> str:
    """card.md of written data."""
    cost, dropped = report["cost"], report["dropped"]
    energy, priced = cost["watt_hours_here"], any(recipe.price)
    spent = [
        f"{cost['prompt_tokens']:,} tokens read and {cost['completion_tokens']:,} written",
        f"{cost['answers']:,} answers",
        f"{cost['seconds']:,.0f} seconds",
        f"{cost['money']:.4g} {cost['currency']}".strip() if priced else "no price given",
        "energy not measured" if energy is None else f"{energy:.3g} watt-hours here in the last session",
    ]
    again = f"{cost['again']:,} requests ({cost['in_flight']:,} in flight at a kill, {cost['failed']:,} failed)"
    left = "\n".join(f"- {count:,} x {reason}" for reason, count in dropped.items()) or "- nothing"
    return f"""# {recipe.about}

{report["rows"]:,} of {report["wanted"]:,} rows, written by {report["teacher"]} ({recipe.method}); {report["status"]}.

- Teacher's licence: {report["licence"]}; contract: {report["terms"] or "none"}
- Seeds: {recipe.seeds}
- Cost: {"; ".join(spent)}
- Sent more than once: {again}

Left out (dropped.jsonl names each):

{left}

A machine wrote this. It may be wrong, and what learns from it learns its faults; keep text by people beside it.
"""
