"""Quantize: a run's matrices in 8 or 4 bits as a run of its own, with what that costs beside what it gains.

run -> its tensors, packed one by one -> new run -> bits per byte and tokens a second, before and after -> card
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import card
from nomoat.core.errors import ConfigError
from nomoat.core.run import Run, load
from nomoat.texts import held_out, spelling, texts_of

if TYPE_CHECKING:
    from nomoat.data.tokenizer import Tokenizer

Watch = Callable[[Mapping[str, Any]], None]

WORDS = ("tokenizer.json", "chat.json", "ledger.json", "report.txt")
TEXT_BYTES = 64_000
"""Text that a model without held-out data of its own is measured on."""
TOKENS = 48
"""Tokens that are written to find the speed."""


def quantize(
    run: Run | Path | str,
    bits: int = 8,
    text: Path | str | None = None,
    root: Path | str | None = None,
    watch: Watch | None = None,
) -> Run:
    """Make a run whose matrices have 8 or 4 bits; the old one stays.

    Args:
        run: a run of a language model.
        bits: 8 or 4.
        text: a file or folder to measure the loss on; None: the run's held-out part, or else some of Python's own
            modules.
        root: the folder of runs; None: `runs_root()`.
        watch: told {"kind": "quantize", ...} with both figures of each model.

    Raises:
        ConfigError: no such number of bits, or no language model of floats.
        CheckpointError: no checkpoint is good.
        DataError: there is no text at `text`, or the held-out part is gone.
    """
    from nomoat.core import checkpoint
    from nomoat.families.lm import LM
    from nomoat.hub.exporting import weights_of
    from nomoat.hub.packing import packed

    opened = Run.open(run)
    config = opened.recipe.product
    if bits not in (8, 4):
        raise ConfigError(f"weights of {bits} bits are not known", fix="use --bits 8 or --bits 4")
    if not isinstance(config, LM):
        raise ConfigError(f"{opened.name} is no language model", "only those are packed so far")
    recipe = opened.recipe
    if recipe.adapt is not None:  # what it adapted is worked into its weights, which are floats then
        config, recipe = replace(config, bits=16), replace(recipe, start=None, adapt=None)
    small, made = packed(config, weights_of(opened), bits)
    about = f"{opened.recipe.about.rstrip('.')}; matrices of {bits} bits, from {opened.name}."
    label = opened.name[11:].rsplit("-", 1)[0]  # without the date and the hash
    fresh = Run.create(root, f"{label}-q{bits}", replace(recipe, family=small, about=about))
    checkpoint.save(fresh.checkpoints, 0, {"weights": made}, {"step": 0})
    for name in WORDS:
        if (opened.path / name).exists():
            fresh.write_text(name, (opened.path / name).read_text(encoding="utf-8"))
    fresh.decide("quantized", {"from": opened.name, "bits": bits}, 0, "asked for")
    fresh.mark("done")
    if (fresh.path / "tokenizer.json").exists():
        _compare(opened, fresh, text, watch)
    card.write(fresh)
    return fresh


def _compare(old: Run, new: Run, text: Path | str | None, watch: Watch | None) -> None:
    """Both models' size, bits per byte and speed, noted in the new run."""
    from nomoat.core import checkpoint
    from nomoat.nn.native import quickest

    tokenizer, measured = spelling(old), {}
    for name, each in (("before", old), ("after", new)):
        model: Any = load(each)
        bits_per_byte, where = _bits_per_byte(old, model, tokenizer, text)
        latest = checkpoint.latest(each.checkpoints)
        assert latest is not None
        size = (latest.path / "weights.safetensors").stat().st_size
        measured[name] = {"bits_per_byte": bits_per_byte, "bytes": size, "tokens_per_second": _pace(quickest(model))}
    gain = {**measured, "measured_on": where}
    new.note("quantize", step=0, **gain)
    if watch is not None:
        watch({"kind": "quantize", **gain})


def _bits_per_byte(run: Run, model: Any, tokenizer: Tokenizer, text: Path | str | None) -> tuple[float, str]:
    from nomoat.evaluate import bits

    if text is None and getattr(run.recipe.data, "path", None):
        return bits.measure(model, held_out(run), tokenizer.lengths, tokenizer.eot).value, "held-out part"
    return bits.measure_begun(model, tokenizer, _texts(text)).value, str(text or "Python's own modules")


def _texts(text: Path | str | None) -> list[str]:
    """The texts named, or the beginnings of some modules of Python's library."""
    if text is not None:
        return list(texts_of([text]).values())
    from nomoat.data.corpus import library, modules
    from nomoat.data.readers import Found

    files = [each.path for each in modules(library()) if isinstance(each, Found)]
    some = files[:: max(1, len(files) // 16)][:16]
    return [path.read_text(encoding="utf-8", errors="replace")[: TEXT_BYTES // 16] for path in some]


def _pace(model: Any) -> float:
    """Tokens a second, one after the other, the first ones not counted."""
    import torch

    memory, token = model.memory(1, TOKENS + 8), torch.ones(1, 1, dtype=torch.int64)
    for count in range(TOKENS + 8):
        if count == 8:
            start = time.perf_counter()
        with torch.no_grad():
            token = model.decode(token, memory, [0])[:, -1:].argmax(-1)
    return TOKENS / (time.perf_counter() - start)
