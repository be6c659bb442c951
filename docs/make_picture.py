"""Draw docs/make.svg, the picture of the live display in the README, from a real run.

    python docs/make_picture.py RUN [PROGRESS]

RUN: path or name of a run that `nomoat make` made. PROGRESS: how far along the picture is, 0 to 1. [0.7]
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from nomoat.cli.display import panel
from nomoat.cli.standing import Standing
from nomoat.core.run import Run

WIDTH = 100


def draw(run: Run, progress: float, title: str) -> str:
    """The live display of `run` as it was at `progress`, as SVG."""
    from rich.console import Console

    events = run.metrics()
    steps = steps_of(events)
    until = next(event for event in events if event["kind"] == "step" and event["step"] >= progress * steps)
    standing = Standing(title)
    for event in events[: events.index(until) + 1]:
        standing.fold(event)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(panel(standing))
    # Without rich's web fonts: a picture of ours fetches nothing.
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="nomoat"), flags=re.DOTALL)


def steps_of(events: list[dict[str, object]]) -> int:
    """How many steps the run took."""
    return max(int(str(event["step"])) for event in events if event["kind"] == "step")


if __name__ == "__main__":
    opened = Run.open(sys.argv[1])
    share = float(sys.argv[2]) if len(sys.argv) > 2 else 0.7
    target = Path(__file__).with_name("make.svg")
    target.write_text(draw(opened, share, f"nomoat make · {opened.recipe.budget.text}"), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
