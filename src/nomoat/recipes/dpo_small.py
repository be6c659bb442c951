"""Direct preference optimization of SmolLM2-135M-Instruct on pairs of answers.

nomoat pull smollm2-135m-instruct
nomoat train dpo-small data.source=preferences.jsonl

On the 978 pairs of instructions-raschka (one epoch): 90.6 % of 96 held-out pairs have the higher reward, a bag of words
has 85.9 %, and the chosen answers gain 3.6 nats.
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe, Ref
from nomoat.data.pairs import Pairs
from nomoat.families.dpo import DPO

recipe = Recipe(
    about="Direct preference optimization of SmolLM2-135M-Instruct on pairs of answers.",
    family=DPO(beta=0.1, nll=0.2),
    data=Pairs("preferences.jsonl", Ref("smollm2-135m-instruct")),
    start=Ref("smollm2-135m-instruct"),
    budget=Budget.parse("110steps"),
    batch_size=8,
    optimizer=Optimizer("adamw", adam_learning_rate=3e-5, weight_decay=0.0, warmup=0.1, warmdown=0.9),
)
