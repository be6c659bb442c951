"""Kahneman-Tversky optimization of SmolLM2-135M-Instruct on answers called good or bad.

nomoat pull smollm2-135m-instruct
nomoat train kto-small data.source=preferences.jsonl
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.data.pairs import Pairs
from nomoat.families.kto import KTO

recipe = Recipe(
    about="Kahneman-Tversky optimization of SmolLM2-135M-Instruct on answers called good or bad.",
    family=KTO(),
    data=Pairs("preferences.jsonl", Ref("smollm2-135m-instruct"), single=True),
    start=Ref("smollm2-135m-instruct"),
    budget=Budget.parse("110steps"),
    batch_size=8,
    optimizer=Optimizer("adamw", adam_learning_rate=1e-5, weight_decay=0.0, warmup=0.1, warmdown=0.9),
)
