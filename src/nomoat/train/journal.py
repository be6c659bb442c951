"""What is told of a training: every step, what is wrong, how fast it goes and how long it will take.

    Moved -> Journal.step -> run.note("step", ...) -> metrics.jsonl, run.watch
                          -> Watch -> run.note("warning", text=...)

Events: `step` (steps, training_loss, learning_rate, gradient_norm, tokens, seconds, tokens_per_second, seconds_left;
`player` where there are several), `evaluate` (loss, bits_per_byte: held out), `keep` (watt_hours where they can be
measured), `phase`, `warning` (text). `step` counts the steps done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.types import Batch
from nomoat.train.mover import Moved
from nomoat.train.warn import Watch

COUNTED_STEPS = 200  # the first ones of this process, whose tokens are counted for their entropy
RATE_SECONDS = 1.0


class Journal:
    """Writes the steps of a run.

    Args:
        run: where.
        recipe: for the learning rates.
        players: of the family.
        chance: nats of a guess that knows nothing, or None.
        tokens_per_step: tokens (or samples) of a step.
    """

    def __init__(
        self, run: Run, recipe: Recipe, players: Sequence[str], chance: float | None, tokens_per_step: int
    ) -> None:
        self.run, self.recipe, self.tokens_per_step = run, recipe, tokens_per_step
        self.watches = {player: Watch(chance if len(players) == 1 else None) for player in players}
        self.rate: float | None = None
        self._counted = 0
        self._since: tuple[int, float] | None = None

    def count(self, batch: Batch) -> None:
        """Take in the tokens of a batch, for their entropy."""
        if self._counted < COUNTED_STEPS:
            self._counted += 1
            for watch in self.watches.values():
                watch.read(batch)

    def step(self, player: str, moved: Moved, done: int, steps: int, told: dict[str, float | int | None]) -> None:
        """Note one player's step.

        Args:
            player: who moved.
            moved: what came of it.
            done: steps done with this one.
            steps: how many there will be.
            told: further fields: tokens, seconds, progress, seconds_left of a budget in time.
        """
        settings = self.recipe.optimizer
        rate = settings.learning_rate if settings.kind == "muon" else settings.adam_learning_rate
        self._measure(done)
        left = told.get("seconds_left")
        if left is None and self.rate:
            left = (steps - done) * self.tokens_per_step / self.rate
        self.run.note(
            "step",
            step=done,
            steps=steps,
            **({"player": player} if len(self.watches) > 1 else {}),
            **moved.parts,
            training_loss=moved.loss,
            learning_rate=rate * moved.multiplier,
            gradient_norm=moved.gradient_norm,
            tokens_per_second=self.rate,
            **{**told, "seconds_left": left},
        )
        if len(self.watches) == 1:  # of players against each other no loss need fall
            for text in self.watches[player].see(done, (done - 0.5) / steps, moved.loss):
                self.warn(done, text)

    def warn(self, done: int, text: str) -> None:
        """Note a warning in plain words."""
        self.run.note("warning", step=done, text=text)

    def _measure(self, done: int) -> None:
        """Tokens a second over about the last second, all that goes on beside the steps included."""
        now = time.perf_counter()
        if self._since is None:
            self._since = done, now
        elif now - self._since[1] >= RATE_SECONDS and done > self._since[0]:
            self.rate = (done - self._since[0]) * self.tokens_per_step / (now - self._since[1])
            self._since = done, now
