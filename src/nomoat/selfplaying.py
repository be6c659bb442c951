"""From the name of a game and a budget to a player of it: self-play, a ladder on the way, a report and a card.

game -> recipe of its own, or one sized to its board -> the loop over SelfPlay -> ladder, health -> report, card
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nomoat import making
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe, find, listing
from nomoat.core.run import Run
from nomoat.making import Spending

if TYPE_CHECKING:
    from nomoat.games.ladder import Rung
    from nomoat.games.match import MatchResult, Player
    from nomoat.games.rules import Game

Watch = Callable[[Mapping[str, Any]], None]

PLAYER = "player.json"
"""What a run knows that `selfplay` began; by this file it is known for one."""
REPORT_SHARE, LEAST_REPORT, MOST_REPORT = 0.08, 5.0, 240.0
"""Of a budget, what is kept for the ladder: a share of it, between so many seconds and so many."""
PLAYOUTS = (10, 100, 1000)
"""Players without a network that the ladder has: so many random playouts a move."""
SIMULATIONS = 64
"""Of the player on the ladder, beside its raw policy."""
GAMES, OPENINGS = 40, 2
"""Of each match, and random plies at the beginning of each pair of games."""
PROVED = 6000
"""Games of up to so many positions are shown not to be lost by trying everything."""


def is_player(run: Run) -> bool:
    """Whether `selfplay` began this run, so that its end is a ladder."""
    return (run.path / PLAYER).exists()


def selfplay(
    game: str,
    budget: str = "30m",
    device: str = "auto",
    seed: int = 0,
    watch: Watch | None = None,
    workers: int | None = None,
    changes: tuple[str, ...] = (),
) -> Run:
    """Train a player of a game from nothing by playing itself.

    Args:
        game: `connect-four`, `go:5`, `othello:6`, `tic-tac-toe`, `open-spiel:NAME`, or a file with a game of one's own.
        budget: as everywhere; for the whole way, the ladder at the end included.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: same seed, same player, where no workers play.
        watch: told what happens.
        workers: processes that play beside the training; None: as the recipe says.
        changes: settings of the recipe, such as `data.manner.simulations=64`.

    Raises:
        ConfigError: there is no such game, or a setting that cannot be.
        StoppedError: Ctrl-C; a good checkpoint and a card are there, `resume` goes on.
    """
    from nomoat.core.config import override
    from nomoat.games.known import find as named

    spending = Spending.of(budget)
    recipe = override(suited(named(game)), list(changes))
    data = recipe.data if workers is None else replace(recipe.data, workers=workers)
    whole = spending.budget.seconds()
    if whole is not None:
        kept = min(max(REPORT_SHARE * whole, LEAST_REPORT), MOST_REPORT, whole / 2)
        recipe = replace(recipe, budget=Budget.parse(f"{whole - kept:.1f}s"))
    else:
        recipe = replace(recipe, budget=spending.budget)
    run = making.started(
        recipe.family.game.name.replace(":", "-"), replace(recipe, data=data, seed=seed), None, watch, None
    )
    spending.state(run)
    run.write_json(PLAYER, {"game": recipe.family.game.name, "seconds": None if whole is None else kept})
    return played(run, device, watch, spending.began)


def suited(game: Game) -> Recipe:
    """The recipe of a game: its own, or that of connect four with a network and games sized to its board."""
    from nomoat.families.alphazero import AlphaZero, Tower

    for listed in listing():
        if isinstance((recipe := find(listed.name)).family, AlphaZero) and recipe.family.game == game:
            return recipe
    plain = find("connect-four")
    cells = game.planes[1] * game.planes[2]
    tower = Tower(32, 2) if cells <= 42 else Tower(48, 3) if cells <= 64 else Tower(64, 4)
    games = max(32, min(256, 256 * 42 * 7 // max(1, game.plies * game.actions)))
    return replace(
        plain,
        about=f"{game.name} by self-play (AlphaZero).",
        family=replace(plain.family, game=game, trunk=tower),
        data=replace(plain.data, game=game, games=games),
        expect={},
    )


def played(run: Run, device: str, watch: Watch | None, began: float | None = None) -> Run:
    """Train a run to its end, then set it on a ladder: report.txt, report.json and the card."""
    making.trained(run, device, watch)
    known = run.read_json(PLAYER) or {}
    return making.reported(run, judged(run, device, watch, known.get("seconds") or MOST_REPORT), began)


def judged(run: Run, device: str = "auto", watch: Watch | None = None, seconds: float = MOST_REPORT) -> PlayerReport:
    """How strong a player is, beside players without a network; of a small game, whether it can be beaten at all.

    Args:
        run: of a player.
        device: where its network computes.
        watch: told what happens.
        seconds: that matches may take; those that would take longer are left out.
    """
    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.games.ladder import ladder, meetings
    from nomoat.games.match import Random, match
    from nomoat.search.players import Searcher, playouts
    from nomoat.search.selfplay import health, playing

    began, place = time.perf_counter(), choose(device)
    family: Any = load(run).to(place)
    game: Game = family.config.game
    results: list[MatchResult] = []
    with playing(family, run.decided("precision", "fp32")) as guess:
        raw, searched = Searcher(game, guess, 0), Searcher(game, guess, SIMULATIONS)
        others: list[Player] = [Random(game), *(playouts(game, count) for count in PLAYOUTS)]
        for number, other in enumerate(others):
            for one in (raw, searched):
                if watch is not None:
                    detail = f"{one.name} against {other.name}"
                    watch(
                        {"kind": "phase", "phase": "reporting", "detail": detail, "step": number, "steps": len(others)}
                    )
                results.append(match(game, one, other, GAMES, seed=number, openings=OPENINGS))
            spent = time.perf_counter() - began
            # The next is ten times as slow.
            if number + 1 < len(others) and spent + 10 * spent / (number + 1) > seconds:
                break
        results.append(match(game, searched, raw, GAMES, seed=99, openings=OPENINGS))
        proof = _proof(game, raw, searched)
    rungs = ladder(meetings(results), "random")
    return PlayerReport(game.name, tuple(results), tuple(rungs), health(run.path)[-1:], proof)


def _proof(game: Game, *players: Any) -> dict[str, int]:
    """Of small games: at how many ends each player had lost, of all that can come."""
    import numpy as np

    from nomoat.search.proof import prove

    found = {}
    for player in players:
        try:
            found[player.name] = prove(game, lambda state: np.array(player.choose(None, state)), PROVED).lost  # noqa: B023
        except ConfigError:
            return {}
    return found


@dataclass(frozen=True)
class PlayerReport:
    """How strong a player is.

    Args:
        game: its name.
        results: of its matches.
        rungs: of the ladder, in Elo points above a random player.
        health: of the last round of self-play, where there was one.
        proof: of a small game, ends at which each had lost.
    """

    game: str
    results: tuple[MatchResult, ...]
    rungs: tuple[Rung, ...]
    health: list[dict[str, Any]]
    proof: Mapping[str, int]

    def as_text(self) -> str:
        """Matches, the ladder, how sound the self-play was."""
        from nomoat.search.selfplay import panel

        lines = [f"{'player':<16}{'against':<16}{'won':>6}{'drawn':>7}{'lost':>6}"]
        for each in self.results:
            won, drawn, lost = each.counts()
            lines.append(f"{each.one:<16}{each.other:<16}{won:>6}{drawn:>7}{lost:>6}")
        lines += ["", "Elo above a random player (95 %)"]
        for rung in sorted(self.rungs, key=lambda rung: -rung.points):
            lines.append(f"{rung.name:<16}{rung.points:>6.0f} ({rung.low:.0f} to {rung.high:.0f})")
        for name, lost in self.proof.items():
            told = "never loses" if not lost else f"loses at {lost} ends"
            lines.append(f"{name}: {told}, whatever the other plays")
        lines += [f"self-play: {told}" for told in map(panel, self.health)]
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """For the card."""
        return f"## How strong\n\n```\n{self.as_text()}\n```\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        matches = [{"one": r.one, "other": r.other, "won_drawn_lost": r.counts()} for r in self.results]
        rungs = [{"name": r.name, "elo": r.points, "low": r.low, "high": r.high} for r in self.rungs]
        return {"game": self.game, "matches": matches, "ladder": rungs, "health": self.health, "lost": dict(self.proof)}
