"""What a person sees while a model is made: a live display on a terminal, a line now and then anywhere else.

event -> Standing -> Live (rich, redrawn four times a second) or Steady (plain lines) or straight on as JSON
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nomoat.cli.output import Event, Output, Watch, colours
from nomoat.cli.standing import Standing, clock, size, spark

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SECONDS_BETWEEN_LINES = 10.0
SAMPLE_LINES = 6


@contextmanager
def watching(output: Output, title: str) -> Iterator[Watch]:
    """Yield the function that takes events, shown as `output` and the terminal allow."""
    if output.json:
        yield output.event
    elif colours(sys.stdout):
        from rich.console import Console

        with live(Console(), Standing(title)) as watch:
            yield watch
    else:
        yield Steady(Standing(title)).watch


class Steady:
    """Plain lines: what changed, at most every ten seconds; figures, samples and warnings at once."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self._last, self._phase = 0.0, ""

    def watch(self, event: Event) -> None:
        """Take in an event and print what is new."""
        standing = self.standing
        standing.fold(event)
        match event.get("kind"):
            case "warning":
                print(f"note: {standing.warnings[-1]}", flush=True)
            case "sample":
                print(f"sample at step {event.get('step')}: {_one_line(standing.sample)}", flush=True)
            case "evaluate" if standing.bits_per_byte is not None:
                print(f"held out {standing.bits_per_byte:.3f} bits per byte at step {standing.measured_at}", flush=True)
            case "plan":
                print(event.get("text", ""), flush=True)
            case _:
                self._progress()

    def _progress(self) -> None:
        phase = f"{self.standing.phase} {self.standing.detail}"
        fresh = self._phase != phase
        if fresh or time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last, self._phase = time.monotonic(), phase
            print(" · ".join([self.standing.phase, *_facts(self.standing)]), flush=True)


@contextmanager
def live(console: Console, standing: Standing) -> Iterator[Watch]:
    from rich.live import Live

    with Live(get_renderable=lambda: panel(standing), console=console, refresh_per_second=4) as shown:

        def watch(event: Event) -> None:
            standing.fold(event)
            if event.get("kind") == "warning":
                shown.console.print("note:", standing.warnings[-1], style="yellow", highlight=False, markup=False)
            elif event.get("kind") == "plan":
                shown.console.print(event.get("text", ""), highlight=False, markup=False)

        yield watch


def panel(standing: Standing) -> RenderableType:
    """The live display at a moment: bar, figures, course of the training loss, latest sample."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(
        total=1.0, completed=standing.share, pulse=not standing.total, complete_style="green", finished_style="green"
    )
    head.add_row(Text(standing.phase, "bold"), bar, " · ".join(_place(standing)) or "...")
    rows: list[RenderableType] = [head]
    if standing.phase == "training" or standing.bits_per_byte is not None:
        rows += [Text(), _figures(standing)]
    if standing.sample:
        text = "\n".join(standing.sample.strip("\n").splitlines()[:SAMPLE_LINES])
        rows += [Text(), Text("latest sample", "dim"), Text(text, "italic", overflow="ellipsis")]
    return Panel(
        Group(*rows), title=Text(standing.title, "bold"), title_align="left", border_style="dim", padding=(1, 2)
    )


def _figures(standing: Standing) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column()
    if standing.bits_per_byte is not None:
        table.add_row("held out", f"{standing.bits_per_byte:.3f}", f"bits per byte at step {standing.measured_at:,}")
    if standing.losses:
        course = Text(f"nats per {standing.counts}  {spark(standing.losses, 32)}")
        table.add_row("training", f"{standing.losses[-1]:.3f}", course)
    if standing.tokens_per_second:
        table.add_row("speed", f"{standing.tokens_per_second:,.0f}", "tokens per second")
    return table


def _place(standing: Standing) -> list[str]:
    """How far: `step 120 of 1,900`, `38 %`, `2:10 left`."""
    facts = [standing.detail] if standing.detail else []
    if standing.phase == "training":
        facts.append(f"step {standing.done:,.0f}" + (f" of {standing.total:,.0f}" if standing.total else ""))
    elif standing.phase == "reading" and standing.total:
        facts.append(f"{size(standing.done)} of {size(standing.total)}")
    if standing.total:
        facts.append(f"{standing.share:.0%}")
    if standing.seconds_left is not None:
        facts.append(f"{clock(standing.seconds_left)} left")
    return facts


def _facts(standing: Standing) -> list[str]:
    facts = _place(standing)
    if standing.phase == "training" and standing.losses:
        facts.append(f"training {standing.losses[-1]:.3f} nats per {standing.counts}")
        if standing.tokens_per_second:
            facts.append(f"{standing.tokens_per_second:,.0f} tokens/s")
    return facts


def _one_line(text: str, width: int = 160) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= width else shown[: width - 3] + "..."
