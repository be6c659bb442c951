"""A player of tic-tac-toe that never loses, from nothing, in a minute on two cores.

nomoat selfplay tic-tac-toe --budget 1m
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.families.alphazero import AlphaZero, Tower
from nomoat.games.tic_tac_toe import TicTacToe
from nomoat.search.selfplay import SelfPlay
from nomoat.search.table import Manner

recipe = Recipe(
    about="Tic-tac-toe by self-play (AlphaZero), a convolutional net.",
    family=AlphaZero(TicTacToe(), Tower(32, 2)),
    data=SelfPlay(TicTacToe(), Manner(simulations=16, full=1.0, openings=4), games=128, window=20_000),
    budget=Budget.parse("1m"),
    batch_size=128,
    optimizer=Optimizer("adamw", adam_learning_rate=2e-3, weight_decay=1e-4, warmdown=0.5),
)
