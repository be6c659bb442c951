"""A glimpse of what a model writes while it is trained: after a checkpoint, as long as it costs next to nothing.

    event "keep" -> the checkpoint's model -> a few tokens -> run.note("sample", text=...)

The checkpoint is read back, so the training itself is not touched; its random numbers are left as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nomoat.core import run as runs
from nomoat.core.run import Run
from nomoat.data import tokenizer
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import continue_text
from nomoat.train.budget import SAMPLING_SHARE

OPTIONS = SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=60)
SHOWN_CHARACTERS = 400


def glimpsing(run: Run, watch: Callable[[Mapping[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
    """The function to set as `run.watch`: hands every event to `watch`, and notes a sample now and then.

    Samples are taken after a checkpoint, from the second on, while they have cost less than the share of the time that
    the plan left for them.
    """
    began, spent, seen = time.perf_counter(), 0.0, 0

    def watching(event: dict[str, Any]) -> None:
        nonlocal spent, seen
        if watch is not None:
            watch(event)
        if event.get("kind") != "keep":
            return
        seen += 1
        start = time.perf_counter()
        if seen == 1 or spent <= SAMPLING_SHARE * (start - began):
            text = sample(run)
            spent += time.perf_counter() - start
            if text:
                run.note("sample", step=event.get("step"), prompt="", text=text)

    return watching


def sample(run: Run) -> str:
    """What the model of the last checkpoint writes at the start of a document; empty if it does not write text."""
    with torch.random.fork_rng(devices=[]):
        model: Any = runs.load(run)
    spelling = run.path / "tokenizer.json"
    if not hasattr(model, "decode") or not spelling.exists():
        return ""
    return "".join(continue_text(model, tokenizer.load(spelling), "", OPTIONS))[:SHOWN_CHARACTERS]
