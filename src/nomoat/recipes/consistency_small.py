"""diffusion-small distilled: pictures in one to four steps.

nomoat train diffusion-small
nomoat train consistency-small parts.teacher=RUN start=RUN
nomoat draw last "a small red circle" --steps 2
"""

from dataclasses import replace

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.families.consistency import Consistency
from nomoat.nn.objective import CONSISTENCY
from nomoat.recipes.diffusion_small import recipe as plain

recipe = Recipe(
    about="diffusion-small distilled to pictures in one to four steps (consistency distillation).",
    family=Consistency(replace(plain.family, objective=CONSISTENCY), guidance=2.0),
    data=plain.data,
    budget=Budget.parse("10m"),
    batch_size=plain.batch_size,
    optimizer=Optimizer("adamw", adam_learning_rate=3e-4, weight_decay=0.0),
    ema=0.998,
    parts={"teacher": Ref("diffusion-small")},
    start=Ref("diffusion-small"),
)
