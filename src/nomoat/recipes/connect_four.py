"""A player of connect four, from nothing, in half an hour on two cores.

nomoat selfplay connect-four --budget 30m
nomoat play last
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.families.alphazero import AlphaZero, Tower
from nomoat.games.connect_four import ConnectFour
from nomoat.search.selfplay import SelfPlay
from nomoat.search.table import Manner

recipe = Recipe(
    about="Connect four by self-play (AlphaZero), a convolutional net of 50,000 parameters.",
    family=AlphaZero(ConnectFour(), Tower(32, 2)),
    data=SelfPlay(
        ConnectFour(), Manner(simulations=32, cheap=8, full=0.5, openings=12, forks=0.5), games=256, workers=1
    ),
    budget=Budget.parse("30m"),
    batch_size=256,
    optimizer=Optimizer("adamw", adam_learning_rate=2e-3, weight_decay=1e-4, warmdown=0.5),
    ema=0.999,
)
