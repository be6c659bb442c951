"""Consistency distillation: a denoiser learns to say at once where its teacher would arrive in many steps.

    x at t -> teacher's step -> x at s, a little less noisy;   student(x at t) -> what student(x at s) says; at s = 0: x
    no teacher: x at s is the same picture with less of the same noise (consistency training)

Song et al. 2023, arXiv:2303.01469, algorithms 2 and 3; the student itself, without a gradient, is its own target (Song
and Dhariwal 2023, arXiv:2310.14189); the teacher's guidance is learned too (Luo et al. 2023, arXiv:2310.04378).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Frozen, Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.objective import CONSISTENCY
from nomoat.sampling.solvers import Denoise, guided, move

TEACHER = "teacher"


@dataclass(frozen=True)
class Consistency:
    """What is distilled into what. The teacher is the part `teacher`: whatever Denoises and has `conditions`.

    Args:
        student: the config of the model that is taught and kept; its objective's flow_map is `consistency`. With the
            teacher's sizes it can start with the teacher's weights.
        steps: into which the whole way is cut; the teacher takes one of them.
        guidance: of the teacher; the student then draws so without being asked.
    """

    student: Any = None
    steps: int = 18
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.guidance >= 0:
            raise ConfigError(
                f"{self.steps} steps with guidance {self.guidance} cannot be", "at least 1, and 0 or more"
            )
        if self.student is not None and self.student.objective.flow_map != "consistency":
            raise ConfigError(
                f"a student of `{self.student.objective.flow_map}` steps cannot learn to go to the end at once",
                fix="set family.student.objective=CONSISTENCY",
            )

    @property
    def product(self) -> Any:
        return self.student

    def build(self, parts: Parts) -> ConsistencyDistillation:
        return ConsistencyDistillation(self, parts)

    @classmethod
    def tiny(cls) -> Consistency:
        student = import_module("nomoat.families.diffusion").Diffusion.tiny()
        return cls(replace(student, objective=CONSISTENCY), steps=2)


class ConsistencyDistillation(Family):
    """See the module's first lines. What is kept is the student."""

    counts: ClassVar[str] = "picture"

    def __init__(self, config: Consistency, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        others = {name: part for name, part in (parts or {}).items() if name != TEACHER}
        self.student: Any = config.student.build(others)
        self.teacher: Frozen | None = (parts or {}).get(TEACHER)
        if self.teacher is not None and config.guidance != 1 and not getattr(self.teacher.config, "drop", 0):
            raise ConfigError(
                f"guidance {config.guidance} of a teacher that was trained without",
                "it never saw a picture without its prompt",
                "leave guidance at 1, or train the teacher with family.drop=0.1",
            )

    @property
    def positions_a_sample(self) -> int:
        """Of the student."""
        return int(self.student.positions_a_sample)

    @property
    def product(self) -> Family:
        return self.student

    def kept(self) -> dict[str, Tensor]:
        return self.student.kept()

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        self.student.take(tensors)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """As the student's; the times are neighbours on its grid, stratified over the batch."""
        drawn = self.student.draw(batch, generator)
        times = torch.tensor(self.student.objective.grid.times(self.config.steps))
        rows = len(drawn["t"])
        chance_B = (torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)) / rows
        place_B = (chance_B * self.config.steps).long().clamp(max=self.config.steps - 1)
        return {**drawn, "t": times[place_B], "r": times[place_B + 1]}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Squared error, summed over pictures."""
        clean, x, t_B, s_B = self.student.noisy(batch)
        condition, end_B = self.student.conditions(batch), torch.zeros_like(t_B)
        guess = self.student.denoise(x, t_B, end_B, condition)
        with torch.no_grad():
            s_B111 = s_B[:, None, None, None]
            if self.teacher is None:
                nearer = (1 - s_B111) * clean + s_B111 * batch["noise"]
            else:
                nearer = self._taught(batch, x, t_B, s_B)
            aim = torch.where(s_B111 > 0, self.student.denoise(nearer, s_B, end_B, condition), nearer)
        error_B = (guess.float() - aim.float()).square().flatten(1).mean(1)
        return Loss(error_B.sum(), torch.tensor(len(t_B)))

    def _taught(self, batch: Batch, x: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
        """Where the teacher's step from t to s leads: Heun's, and Euler's where s is 0."""
        denoise = self._teacher(batch, x)
        t, s = (each_B[:, None, None, None] for each_B in (t_B, s_B))
        clean = denoise(x, t_B, t_B)
        ahead = move(x, clean, t, s)
        some = s.clamp(min=1e-4)  # where it is 0, the second slope is not used
        slopes = (x - clean) / t, (ahead - denoise(ahead, some.flatten(), some.flatten())) / some
        return torch.where(s > 0, x + (s - t) * (slopes[0] + slopes[1]) / 2, ahead)

    def _teacher(self, batch: Batch, x: Tensor) -> Denoise:
        assert self.teacher is not None
        teacher = self.teacher.to(x.device)
        guidance, rows = self.config.guidance, len(x)
        if guidance != 1:
            batch = {
                name: torch.cat((each, each)) if isinstance(each, Tensor) else each for name, each in batch.items()
            }
            batch["given"] = torch.arange(2 * rows) < rows
        condition = teacher.conditions(batch)

        def denoise(x: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
            return teacher.denoise(x, t_B, r_B, condition)

        return denoise if guidance == 1 else guided(denoise, guidance)

    def first_loss(self, batch: Batch) -> float | None:
        """None with a teacher: one starts from it. Else nothing is said at first: an error where the clean picture is
        the aim."""
        if self.teacher is not None:
            return None
        clean, x, t_B, s_B = self.student.noisy(batch)
        first = self.student.objective.clean(torch.zeros_like(x), x, t_B[:, None, None, None])
        return float(((first - clean).square().flatten(1).mean(1) * (s_B == 0)).mean())

    def example(self, samples: int = 2) -> Batch:
        return self.student.example(samples)
