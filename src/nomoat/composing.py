"""Composing: runs that draw together become one run, which is drawn from like any other.

prior run, decoder run, upsampler runs -> Recipe(family=UnCLIP, parts) -> Run without weights of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run

WORDS = ("tokenizer.json", "classes.json")


def compose(
    prior: Run | Path | str,
    decoder: Run | Path | str,
    upsamplers: Sequence[Run | Path | str] = (),
    name: str = "unclip",
    root: Path | str | None = None,
) -> Run:
    """Make a run of DALL-E 2's design. The parts are named by their SHA-256, and stay where they are.

    Args:
        prior: a run of `Prior`; its own part `clip` is the chain's.
        decoder: a run of `Diffusion` that reads embeddings of that CLIP.
        upsamplers: runs of `Diffusion` that enlarge, the one for the smallest pictures first.
        name: of the run.
        root: the folder of runs; None: `runs_root()`.

    Raises:
        ConfigError: the parts do not fit each other.
        RunError, CheckpointError: one of them is no run, or has no weights.
    """
    from nomoat.core import checkpoint
    from nomoat.families.unclip import Prior, UnCLIP

    runs = [Run.open(each) for each in (prior, decoder, *upsamplers)]
    first = runs[0].recipe
    if not isinstance(first.product, Prior) or "clip" not in first.parts:
        raise ConfigError(f"{runs[0].name} is no prior", "it makes no embeddings of captions", "train unclip-small")
    names = ["prior", "decoder", *(f"upsampler_{number}" for number in range(len(upsamplers)))]
    parts = {part: Ref(str(run.path.resolve())) for part, run in zip(names, runs, strict=True)}
    _one_clip(runs[0], runs[1])
    recipe = Recipe(
        about=f"DALL-E 2's design, composed of {', '.join(run.name for run in runs)}.",
        family=UnCLIP.of(first.product, runs[-1].recipe.product),
        data=first.data,
        budget=Budget.parse("1steps"),
        batch_size=1,
        parts={"clip": first.parts["clip"], **parts},
    )
    family = recipe.build()  # what does not fit is found before there is a run
    made = Run.create(root, name, recipe)
    checkpoint.save(made.checkpoints, 0, {"weights": family.kept()}, {"step": 0})
    for each in WORDS:
        if (runs[0].path / each).exists():
            made.write_text(each, (runs[0].path / each).read_text(encoding="utf-8"))
    made.decide("composed", {part: run.name for part, run in zip(names, runs, strict=True)}, 0, "asked for")
    made.decide("precision", runs[1].decided("precision", "fp32"), 0, "as the decoder was trained")
    made.mark("done")
    return made


def _one_clip(prior: Run, decoder: Run) -> None:
    """Refuse a decoder that was taught the embeddings of another CLIP, as far as its data says which."""
    encoder = getattr(decoder.recipe.data, "encoder", None)
    if encoder is None:
        return
    own, other = prior.recipe.parts["clip"].pinned(), encoder.pinned()
    if own.sha256 != other.sha256:
        raise ConfigError(
            f"{prior.name} makes embeddings of {own.run}, {decoder.name} reads those of {other.run}",
            "each CLIP has a space of its own",
            "train both on one",
        )
