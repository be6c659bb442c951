"""What is known of a training at a moment, folded from its events; shown by the live display and by plain lines.

event -> Standing.fold -> progress, time left, held-out bits per byte, tokens per second, losses, latest sample
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nomoat.cli.output import Event

BLOCKS = "▁▂▃▄▅▆▇█"
KEPT_LOSSES = 4096
STAGES = {
    "read": "files",
    "compare": "looking for duplicates",
    "tokenizer": "training the tokenizer",
    "encode": "turning text into tokens",
    "write": "writing shards",
}


@dataclass
class Standing:
    """A training as its events tell it.

    Args:
        title: what is being done, for the head of the display.
        phase: `reading`, `planning`, `training` or `reporting`.
        done: bytes read or steps done.
        total: of how many; 0 where unknown.
        detail: a few words beside the bar.
        tokens_per_second: over the last few events.
        seconds_left: of this phase, None where unknown.
        losses: training losses in nats, oldest first.
        counts: what they are divided by: token, pair, ...
        bits_per_byte: the last held-out figure.
        measured_at: the step it was measured at.
        sample: the last text that the model wrote, with its prompt.
        warnings: in plain words, oldest first.
    """

    title: str = ""
    phase: str = "reading"
    done: float = 0
    total: float = 0
    detail: str = ""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    losses: list[float] = field(default_factory=list)
    counts: str = "token"
    bits_per_byte: float | None = None
    measured_at: int = 0
    sample: str = ""
    warnings: list[str] = field(default_factory=list)
    phase_began: float = field(default_factory=time.monotonic)
    phase_from: float = 0
    spent: float = 0.0

    def fold(self, event: Event) -> None:
        """Take in one event; kinds that say nothing here are ignored."""
        match event.get("kind"):
            case "ingest":
                self._enter("reading")
                self._advance(event)
                self.detail = STAGES.get(str(event.get("stage")), "")
            case "score" | "verbatim" | "choice":
                self._advance(event)
            case "phase":
                self._enter(str(event["phase"]))
                self.detail = str(event.get("detail") or "")
                self.done, self.total = float(event.get("step") or 0), float(event.get("steps") or 0)
                self.counts = str(event.get("counts") or self.counts)
            case "step":
                self._step(event)
            case "evaluate":
                if isinstance(figure := event.get("bits_per_byte"), float):
                    self.bits_per_byte, self.measured_at = figure, int(event.get("step") or 0)
            case "sample":
                self.sample = f"{event.get('prompt') or ''}{event.get('text') or ''}"
            case "warning":
                self.warnings.append(str(event.get("text") or ""))

    def _advance(self, event: Event) -> None:
        done = float(event.get("done") or 0)
        if done < self.done:  # another part of the same phase begins
            self.phase_began, self.phase_from = time.monotonic(), done
        self.done, self.total = done, float(event.get("total") or 0)
        self._estimate()

    def _enter(self, phase: str) -> None:
        if phase != self.phase:
            self.phase, self.done, self.total, self.detail, self.seconds_left = phase, 0, 0, "", None
            self.phase_began, self.phase_from = time.monotonic(), 0

    def _step(self, event: Event) -> None:
        fresh = self.phase != "training"
        self._enter("training")
        self.done = float(event.get("step") or 0)
        self.total = float(event.get("steps") or self.total)
        if fresh:  # a resumed run does not begin at 0
            self.phase_from = max(0.0, self.done - 1)
        if isinstance(loss := event.get("training_loss"), float):
            self.losses = [*self.losses, loss][-KEPT_LOSSES:]
        if event.get("tokens_per_second"):
            self.tokens_per_second = float(event["tokens_per_second"])
        self._estimate(event.get("seconds_left"))
        if event.get("seconds") and self.seconds_left is not None:  # of time: a step more or less is nothing to see
            self.spent = float(event["seconds"])

    def _estimate(self, told: Any = None) -> None:
        made = self.done - self.phase_from
        if isinstance(told, int | float):
            self.seconds_left = float(told)
        elif made > 0 and self.total > self.done:
            self.seconds_left = (time.monotonic() - self.phase_began) / made * (self.total - self.done)
        else:
            self.seconds_left = None

    @property
    def share(self) -> float:
        """The part of the phase that is done, 0 to 1."""
        if self.phase == "training" and self.spent and self.seconds_left is not None:
            return self.spent / (self.spent + self.seconds_left)
        return min(1.0, self.done / self.total) if self.total else 0.0


def spark(values: list[float], width: int = 24) -> str:
    """The course of `values` in `width` characters at most: means of equal stretches, from lowest to highest block."""
    if not values:
        return ""
    stretches = min(width, len(values))
    bounds = [round(number * len(values) / stretches) for number in range(stretches + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def clock(seconds: float | None) -> str:
    """A duration as people read it: `0:42`, `12:07`, `1:02:33`; empty where unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Bytes in three digits: `812 kB`, `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
