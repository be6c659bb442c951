"""A player of Go on 5 x 5, from nothing, in an hour on two cores.

nomoat selfplay go:5@7 --budget 1h
nomoat play last --opponent "gnugo --mode gtp --level 10"
"""

from dataclasses import replace

from nomoat.core.budget import Budget
from nomoat.families.alphazero import Tower
from nomoat.games.go import Go
from nomoat.recipes.connect_four import recipe as plain

game = Go(5, komi=7.0)
recipe = replace(
    plain,
    about="Go on 5 x 5 by self-play (AlphaZero), a convolutional net.",
    family=replace(plain.family, game=game, trunk=Tower(48, 3)),
    data=replace(plain.data, game=game, games=128),
    budget=Budget.parse("60m"),
)
