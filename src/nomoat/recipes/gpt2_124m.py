"""GPT-2 124M, the published network (124,439,808 parameters), as one would train it on one GPU.

    nomoat plan --recipe gpt2-124m
    nomoat train gpt2-124m data.path=MY_FOLDER

Radford et al. 2019. Ten billion tokens are what llm.c and modded-nanogpt take as their yardstick; nobody has run this
recipe here, so that it states no expected loss.
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.files import Files
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import GPT2

recipe = Recipe(
    about="GPT-2 124M, the published network, for one GPU.",
    family=LM(
        vocab_size=50257,
        context_length=1024,
        backbone=Backbone(width=768, depth=12, heads=12, dialect=GPT2, positions_length=1024),
    ),
    data=Files(vocab_size=50257, context_length=1024),
    budget=Budget.parse("10Gtokens"),
    batch_size=512,
    micro_batch=32,
    optimizer=Optimizer(learning_rate=0.01, adam_learning_rate=6e-4),
    expect={"parameters": 124_439_808},
)
