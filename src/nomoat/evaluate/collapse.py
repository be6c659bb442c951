"""The collapse guard: what a model wrote is laid beside real text, never in its place, and must stay as varied.

    dataset folders -> tokens by generation -> share of real tokens, depth    -> refused | warned | fine
                    -> documents of each generation, real documents -> drift  /     (pictures count as they are)

A model that learns from what a model wrote loses the tails of the real text first, then everything else (Shumailov
et al. 2024, Nature 631:755); not where real text stays in the mixture (Gerstgrasser et al. 2024, arXiv:2404.01413).
Whatever begins a training on mixed data calls `guard` before its first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nomoat.core.errors import DataError
from nomoat.data.picture_ingest import FACTS
from nomoat.data.shards import ShardReader
from nomoat.evaluate.diversity import MOST_TOKENS, Ids, compare

WARN_REAL = 0.5
"""Below this share of real tokens it is said aloud: half is what one round of accumulating ends at."""
LEAST_REAL = 0.1
"""Below it, no training: Shumailov et al. 2024 found collapse minor with a tenth of real data kept, not with none."""
DEEPEST = 2
"""Generations above are said aloud: each adds the errors of one more model."""
LIMITS: Mapping[str, tuple[float, float]] = {
    "distinct_2": (0.6, 2.0),
    "distinct_3": (0.7, 1.5),
    "shared": (0.0, 2.0),
    "tail": (0.3, 3.0),
    "entropy": (0.88, 1.15),
}
"""How far the deepest generation may be from real text, as a multiple of the real text's own figure.

Fixed on `gutenberg-stories` (benchmarks/collapse.py, 0.87 M parameters, text drawn at 0.8 and top-p 0.95). The text of
a model that had read real text alone came to 0.84, 0.91, 1.15, 0.48 and 0.92; that of a model that had read only the
former, whose loss on real text was 14 % worse already, to 0.48, 0.62, 2.5, 0.20 and 0.85: the lower limits of the
first, second and fourth, the upper one of the third and the lower one of the last lie between. The other sides are for
noise, which has more different n-grams than text has. What lies outside stops a training on next to no real text;
beside `LEAST_REAL` of it or more it is told: over five rounds of accumulating, down to 14 % of real text, models stayed
as good on real text although what each wrote had drifted from the second on (docs/experiments.md).
"""
LEAST_TOKENS = 5_000
"""With fewer on either side, differences are chance."""


class CollapseError(DataError):
    """A training that the guard stops."""


@dataclass(frozen=True)
class Mixture:
    """What a training would read.

    Args:
        tokens: of each generation; 0 is real text.
        unit: what is counted; `pictures` where there is nothing else.
    """

    tokens: Mapping[int, int]
    unit: str = "tokens"

    @property
    def real(self) -> int:
        """Real tokens."""
        return self.tokens.get(0, 0)

    @property
    def real_share(self) -> float:
        """Real tokens of all."""
        return self.real / max(1, sum(self.tokens.values()))

    @property
    def generation(self) -> int:
        """The deepest."""
        return max(self.tokens, default=0)

    def as_text(self) -> str:
        """One line for people."""
        return (
            f"{self.real_share:.1%} of {sum(self.tokens.values()):,} {self.unit} are real, generation {self.generation}"
        )


@dataclass(frozen=True)
class Guarded:
    """What the guard found.

    Args:
        mixture: tokens by generation.
        drift: of each generation of synthetic text, its figures as multiples of the real text's.
        warnings: in words.
    """

    mixture: Mixture
    drift: Mapping[int, Mapping[str, float]]
    warnings: tuple[str, ...]


def mixture(folders: Sequence[Path | str]) -> Mixture:
    """Tokens, or pictures, by generation of the training parts of dataset folders.

    Raises:
        DataError: see `ShardReader`.
    """
    tokens: dict[int, int] = {}
    for folder in folders:
        for generation, size in _pictures(folder) if _is_pictures(folder) else _documents(folder):
            tokens[generation] = tokens.get(generation, 0) + size
    unit = "pictures" if folders and all(map(_is_pictures, folders)) else "tokens"
    return Mixture(dict(sorted(tokens.items())), unit)


def _documents(folder: Path | str) -> Iterator[tuple[int, int]]:
    reader = ShardReader(folder, "train")
    yield from zip(_generations(reader), np.diff(reader.ends, prepend=0).tolist(), strict=True)


def _is_pictures(folder: Path | str) -> bool:
    return (Path(folder) / FACTS).is_file()


def _pictures(folder: Path | str) -> Iterator[tuple[int, int]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(Path(folder) / FACTS, columns=["generation"], filters=[("split", "=", "train")])
    yield from ((int(each or 0), 1) for each in rows.column("generation").to_pylist())


def guard(
    folders: Sequence[Path | str],
    before: Mixture | None = None,
    real: Sequence[Ids] = (),
    override: str = "",
    taught: bool = False,
) -> Guarded:
    """Look at what a training would read, and stop it where a model would collapse.

    Args:
        folders: of datasets; their held-out parts serve as real text too, where they are real.
        before: what the model, or the one it follows, was trained on: its real text must still be there.
        real: ids of real documents that are not in the folders, to hold synthetic ones against.
        override: the reason why what is refused is to be done all the same; it stands in the warnings.
        taught: whether a model is taught by another one on purpose (tuned from a base, or distilled): the real text is
            then behind its teacher, and a small share is told instead of refused, down to generation `DEEPEST`.

    Raises:
        CollapseError: real text was taken away, hardly any is left, or hardly any and the synthetic text has drifted.
    """
    found = mixture(folders)
    refused: list[CollapseError] = []
    warnings = []
    if before is not None and found.real < before.real:
        what = f"real text was taken away: {before.real:,} tokens before, {found.real:,} now"
        refused.append(CollapseError(what, "synthetic text is added to real text, never put in its place", BACK))
    if found.real_share < LEAST_REAL and not (taught and found.generation <= DEEPEST):
        what = f"only {found.as_text()}"
        refused.append(CollapseError(what, f"below {LEAST_REAL:.0%} a model forgets what is rare", BACK))
    elif found.real_share < WARN_REAL:
        why = "what else is real it has from its teacher or base" if taught else "below half, rare things begin to go"
        warnings.append(f"{found.as_text()}: {why}")
    if found.generation > DEEPEST:
        what = "made by models that learned from what models made"
        warnings.append(f"{found.unit} of generation {found.generation}: {what}")
    drift = _drift(folders, found, real)
    if found.generation in drift and (wrong := drifted(drift[found.generation])):
        what = f"the text of generation {found.generation} has drifted from real text: {'; '.join(wrong)}"
        if found.real_share < LEAST_REAL:
            refused.append(CollapseError(what, "a model that learns from it loses what is rare", BACK))
        else:
            warnings.append(f"{what}; it adds little, and {found.real_share:.0%} of real text keep it from doing harm")
    if refused and not override.strip():
        raise refused[0]
    warnings += [f"{error.what}; overridden: {override.strip()}" for error in refused]
    return Guarded(found, drift, tuple(warnings))


BACK = "put back what is real, or give a reason to train all the same: NOMOAT_SYNTHETIC='the reason'"


def drifted(figures: Mapping[str, float]) -> list[str]:
    """Which figures lie outside `LIMITS`, in words."""
    return [
        f"{name.replace('_', '-')} {figures[name]:.2f} times the real text's (limits {low:g} to {high:g})"
        for name, (low, high) in LIMITS.items()
        if not low <= figures[name] <= high
    ]


def _drift(folders: Sequence[Path | str], found: Mixture, real: Sequence[Ids]) -> dict[int, dict[str, float]]:
    """The figures of each synthetic generation; none where there is too little text to tell."""
    if not found.generation:
        return {}
    held: dict[int, list[Any]] = {0: [*real]}
    for folder in folders:
        for split in () if _is_pictures(folder) else ("train", "heldout"):
            if split == "heldout" and not list(Path(folder).glob("heldout-*.bin")):
                continue
            _collect(ShardReader(folder, split), held, split == "heldout")
    return {
        generation: (lambda pair: pair[0].against(pair[1]))(compare(documents, held[0]))
        for generation, documents in sorted(held.items())
        if generation and min(sum(map(len, documents)), sum(map(len, held[0]))) >= LEAST_TOKENS
    }


def _collect(reader: ShardReader, held: dict[int, list[Any]], real_only: bool) -> None:
    """Add documents of each generation, without their ends, in an order of chance, up to what is looked at."""
    generations = _generations(reader)
    sizes = {generation: sum(map(len, documents)) for generation, documents in held.items()}
    for place in np.random.default_rng(0).permutation(reader.documents).tolist():
        generation = generations[place]
        if sizes.get(generation, 0) >= MOST_TOKENS or (real_only and generation):
            continue
        start, end = reader.span(place)
        held.setdefault(generation, []).append(reader.window(start, end - start)[:-1])
        sizes[generation] = sizes.get(generation, 0) + end - start - 1


def _generations(reader: ShardReader) -> list[int]:
    return [int(each or 0) for each in reader.ledger().column("generation").to_pylist()]
