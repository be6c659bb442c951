"""What goes wrong in training, said in plain words and once, with what to do.

    training losses, tokens -> Watch.see -> warnings
    weights, gradients, optimizer, slow copy, saved activations of one row -> Memory -> rows that fit

Every figure here is of training data, and says so.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from nomoat.core.types import Batch

WINDOW = 25  # losses whose mean is looked at
ENOUGH_STEPS = 100
ENOUGH_PROGRESS = 0.1
BESIDE = 1.3  # peak memory over what is counted: temporaries of forward and backward
OVERHEAD = 2.0  # the same for the activations of a row: gradients on the way back


class Watch:
    """Looks at the training losses of one player as they come.

    Args:
        chance: nats of a guess that knows nothing (`family.chance`), or None.
        unit: what a loss is divided by, in words.
    """

    def __init__(self, chance: float | None = None, unit: str = "token") -> None:
        self.chance, self.unit = chance, unit
        self.counts: Tensor | None = None
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._best = math.inf
        self._best_step = 0
        self._said: set[str] = set()

    def read(self, batch: Batch) -> None:
        """Count the tokens to be learned, for their entropy: what one knows who only counts."""
        tokens, mask = batch.get("tokens"), batch.get("mask")
        if not isinstance(tokens, Tensor) or tokens.dtype.is_floating_point:
            return
        counted = (tokens if mask is None else tokens[mask]).flatten()
        counts = torch.bincount(counted)
        if self.counts is None:
            self.counts = counts
        elif len(self.counts) < len(counts):
            self.counts = counts + torch.nn.functional.pad(self.counts, (0, len(counts) - len(self.counts)))
        else:
            self.counts[: len(counts)] += counts

    def entropy(self) -> float | None:
        """Nats a token of the tokens read, taken one by one; None where there are too few to say."""
        if self.counts is None or self.counts.sum() < 20 * int((self.counts > 0).sum()):
            return None
        share = self.counts[self.counts > 0].double() / self.counts.sum()
        return float(-(share * share.log()).sum())

    def see(self, step: int, progress: float, loss: float) -> list[str]:
        """Take in the training loss of step `step` (counted from 1); returns what is new and wrong.

        Args:
            step: number of steps done.
            progress: how far along, in [0, 1].
            loss: of this step.
        """
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return []
        mean = sum(self._recent) / WINDOW
        found = [self._diverging(mean)]
        if step >= ENOUGH_STEPS and progress >= ENOUGH_PROGRESS:
            found.append(self._nothing_learned(step, mean))
        if mean < self._best:
            self._best, self._best_step = mean, step
        return [text for text in found if text]

    def _diverging(self, mean: float) -> str:
        rise = mean - self._best
        if "diverging" in self._said or not rise > max(0.5, 0.2 * abs(self._best)):
            return ""
        self._said.add("diverging")
        return (
            f"Training is diverging: the training loss has risen from {self._best:.2f} (step {self._best_step}) to "
            f"{mean:.2f} nats a {self.unit}. Stop it with Ctrl-C and start again with half the learning rates "
            "(optimizer.learning_rate, optimizer.adam_learning_rate), or with a longer optimizer.warmup."
        )

    def _nothing_learned(self, step: int, mean: float) -> str:
        if self.chance is not None and mean > 0.99 * self.chance:
            if "chance" in self._said or self._best < 0.95 * self.chance:  # it had learned: that is diverging
                return ""
            self._said.add("chance")
            return (
                f"After {step:,} steps the training loss is still that of guessing: {mean:.2f} nats a {self.unit}, "
                f"where knowing nothing gives {self.chance:.2f}. The learning rate may be far too small or far too "
                "large, or the data may be noise: look at some of it, then try another optimizer.learning_rate."
            )
        entropy = self.entropy()
        if entropy is None or mean < 0.99 * entropy or "input" in self._said or entropy < 0.05:
            return ""
        self._said.add("input")
        return (
            f"After {step:,} steps the model is not learning from its input: the training loss is {mean:.2f} nats a "
            f"{self.unit}, and who only counts how often each token occurs gets {entropy:.2f}. It may need more steps, "
            "a larger learning rate, or text whose parts have to do with each other."
        )


def not_finite(step: int, player: str, kept: int | None) -> tuple[str, str, str]:
    """What, why and fix for a loss or gradient that is no number."""
    good = f"the checkpoint of step {kept:,} is good and is kept" if kept is not None else "no checkpoint had been made"
    return (
        f"the training loss of `{player}` is no longer a finite number at step {step:,}",
        f"the weights have grown out of bounds, or the data holds a value that is not finite; {good}",
        "start again with half the learning rates, or with precision=fp32 if it was bf16",
    )


@dataclass(frozen=True)
class Memory:
    """An estimate of the bytes that training needs on its device.

    Args:
        fixed: weights, gradients, optimizer and slow copy, whatever the batch.
        row: activations saved for the backward pass, for one row of the batch.
        free: what the device had left before anything but the weights was there.
        held: of `fixed`, what is there already.
    """

    fixed: int
    row: int
    free: int
    held: int

    def needs(self, rows: int) -> int:
        """Bytes beyond those held already, for micro-batches of `rows` rows."""
        return int(BESIDE * self.fixed - self.held + OVERHEAD * self.row * rows)

    def rows_that_fit(self) -> int:
        """The largest micro-batch that stays within nine tenths of what is free."""
        left = 0.9 * self.free - (BESIDE * self.fixed - self.held)
        return max(0, int(left / max(1.0, OVERHEAD * self.row)))

    def words(self, rows: int) -> str:
        """The estimate in one clause."""
        total, have = (self.needs(rows) + self.held) / 1e9, (self.free + self.held) / 1e9
        row = OVERHEAD * self.row / 1e9
        return (
            f"about {total:.2g} GB for {rows} rows at a time ({self.fixed / 1e9:.2g} GB of it for weights, gradients "
            f"and optimizer, {row:.2g} GB a row), and {have:.2g} GB can be had"
        )


class SavedBytes:
    """Counts the bytes that a forward pass keeps for its backward pass; use it as a context around the forward.

    Args:
        weights: tensors that are there anyway and do not count.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.bytes = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor
