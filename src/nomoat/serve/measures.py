"""What the server counts, as Prometheus reads it.

    engine thread -> Histogram.observe         engines' stats + histograms -> page -> GET /metrics

Text format 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/. Counters begin anew when a model is
loaded again, which Prometheus takes for a restart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nomoat.serve.models import Served

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STATS = (
    ("queued", "requests_queued", "gauge", "Requests that wait for a slot."),
    ("active", "requests_active", "gauge", "Texts being written."),
    ("slots_free", "slots_free", "gauge", "Slots without a text."),
    ("tokens_in", "prompt_tokens_total", "counter", "Tokens of prompts."),
    ("tokens_out", "generated_tokens_total", "counter", "Tokens written."),
    ("prefix_tokens_reused", "prefix_tokens_reused_total", "counter", "Tokens of prompts that were in the cache."),
    ("drafts_proposed", "draft_tokens_proposed_total", "counter", "Tokens that a draft proposed."),
    ("drafts_accepted", "draft_tokens_accepted_total", "counter", "Tokens of drafts that were kept."),
    ("steps", "steps_total", "counter", "Calls of the model."),
    ("cancelled", "requests_cancelled_total", "counter", "Requests given up before their end."),
)
"""Field of the engine's stats, name, kind, and what it is."""


class Histogram:
    """How often something took how long; written by one thread.

    Args:
        bounds: upper bounds of the buckets, in seconds, rising.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> list[str]:
        """The samples as Prometheus reads them: buckets add up."""
        sums = list(accumulate(self.counts))
        bounds = [*map(repr, self.bounds), "+Inf"]
        buckets = [f'{name}_bucket{{{labels},le="{bound}"}} {sum_}' for bound, sum_ in zip(bounds, sums, strict=True)]
        return [*buckets, f"{name}_sum{{{labels}}} {self.total!r}", f"{name}_count{{{labels}}} {sums[-1]}"]


class Measures:
    """What is counted for one model besides its engine's own stats."""

    def __init__(self) -> None:
        self.first_token, self.between_tokens = Histogram(), Histogram()


def page(loaded: Iterable[Served], responses: Counter[int]) -> str:
    """Everything, as text.

    Args:
        loaded: the models in memory.
        responses: how many answers went out under each HTTP status.
    """
    loaded = list(loaded)
    labels = {
        served.name: 'model="{}"'.format(served.name.replace("\\", r"\\").replace('"', r"\"")) for served in loaded
    }
    lines = _head("http_responses_total", "counter", "Answers by HTTP status.")
    lines += [
        f'nomoat_http_responses_total{{status="{status}"}} {count}' for status, count in sorted(responses.items())
    ]
    engines = {id(served.engine): served for served in reversed(loaded)}  # what several share is counted once
    stats = {served.name: served.engine.stats() for served in engines.values()}
    for field, name, kind, about in STATS:
        lines += _head(name, kind, about)
        lines += [f"nomoat_{name}{{{labels[model]}}} {getattr(found, field)}" for model, found in stats.items()]
    for field, name, about in (
        ("first_token", "time_to_first_token_seconds", "From the queue to the first token."),
        ("between_tokens", "inter_token_seconds", "From one token of a text to the next."),
    ):
        lines += _head(name, "histogram", about)
        for served in loaded:
            lines += getattr(served.measures, field).lines(f"nomoat_{name}", labels[served.name])
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP nomoat_{name} {about}", f"# TYPE nomoat_{name} {kind}"]
