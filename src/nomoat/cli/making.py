"""make, plan, train, resume: the commands that end with a model.

arguments -> nomoat.verbs.make(..., watch=display) -> Run -> the report, the card's path, the next commands to type
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.output import Output
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import listing

if TYPE_CHECKING:
    from nomoat.core.run import Run


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True))
@click.option("--pictures", is_flag=True, help="A model that draws; without PATH: of the procedural shapes world.")
@options.of_pictures
@click.option("--from", "base", metavar="MODEL", help="Go on from this model: for files under about 20 MB.")
@options.budget
@options.licence
@options.allow
@options.seed
@options.device
@options.as_json
@click.pass_obj
def make(
    output: Output,
    path: str | None,
    pictures: bool,
    kind: str | None,
    size: int | None,
    base: str | None,
    budget: str,
    **asked: Any,
) -> None:
    """Make a model from a file or folder, within a budget.

    PATH holds txt, md, code, html, csv, jsonl or parquet, each also as .gz, .zst or in a .zip; or pictures, of which a
    model that draws is made. Without PATH: the modules of Python's standard library. The budget is for everything, from
    reading to the report.
    """
    from nomoat import picture_plan, picturing, tuning, verbs
    from nomoat.making import Spending

    pictures = pictures or kind is not None or size is not None
    if base is not None and pictures:
        raise ConfigError("--from goes on from a model of text", "pictures were asked for", "leave one of them out")
    if base is None and not pictures and (text := tuning.proposal(path)):
        output.event({"kind": "warning", "text": text})
    with watching(output, f"nomoat make {path or ''}".rstrip() + f" · {budget}") as watch:
        if base is None and not pictures:
            run = verbs.make(path, budget, watch=watch, **asked)
        else:
            spending = Spending.of(budget, asked.pop("price_per_hour"), asked.pop("watts"))
            if base is None:
                run = picturing.make_pictures(
                    path, spending, watch=watch, wanted=picture_plan.Wanted(kind, size), **asked
                )
            else:
                run = tuning.make_from(base, path, spending, watch=watch, **asked)
    ended(output, run)


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True))
@click.option("--pictures", is_flag=True, help="Of a model that draws; without PATH: of the shapes world.")
@options.of_pictures
@click.option("--recipe", multiple=True, metavar="NAME", help="A recipe on one H100, on paper; also with a.b=c.")
@options.budget
@options.licence
@options.device
@options.as_json
@click.pass_obj
def plan(
    output: Output,
    path: str | None,
    pictures: bool,
    kind: str | None,
    size: int | None,
    recipe: tuple[str, ...],
    budget: str,
    **asked: Any,
) -> None:
    """Show what `make` would do with PATH: model, time, loss, memory, cost, and how sure that is.

    Files are read for it, and a short rehearsal is trained, which is thrown away; of pictures a few steps are timed.
    """
    from nomoat import picture_plan, verbs
    from nomoat.core.config import to_json
    from nomoat.making import Spending

    with watching(output, "nomoat plan") as watch:
        if (pictures or kind or size is not None) and not recipe:
            spending = Spending.of(budget, asked["price_per_hour"], asked["watts"])
            wanted = picture_plan.Wanted(kind, size)
            made: Any = picture_plan.foreseen(
                path, spending, asked["licence"], watch=watch, wanted=wanted, device=asked["device"]
            )
        else:
            made = verbs.plan(path, budget, watch=watch, recipe=recipe, **asked)
    output.result({"run": None, "plan": made.expected, "recipe": to_json(made.recipe)}, made.as_text())


class _WithRecipes(click.Command):
    """Lists the recipes below its options, from their files' text."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Recipes"):
            formatter.write_dl([(listed.name.replace("_", "-"), listed.about) for listed in listing()])
        super().format_epilog(ctx, formatter)


@click.command(cls=_WithRecipes)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[a.b=c]...")
@click.option("--processes", type=int, help="How many processes share each batch. [the recipe's, 1]")
@click.option("--pictures", metavar="PATH", help="Your pictures, in place of the shapes world.")
@options.allow
@options.device
@options.as_json
@click.pass_obj
def train(
    output: Output,
    recipe: str,
    overrides: tuple[str, ...],
    processes: int | None,
    pictures: str | None,
    allow: str | None,
    device: str,
) -> None:
    """Train RECIPE (a name or a .py file), with settings changed by a.b=c."""
    from nomoat import verbs

    changes = (*overrides, *((f"processes={processes}",) if processes else ()))
    with watching(output, f"nomoat train {recipe}") as watch:
        run = verbs.train(recipe, changes, device=device, watch=watch, allow=allow, pictures=pictures)
    ended(output, run)


@click.command()
@click.argument("run")
@options.device
@options.as_json
@click.pass_obj
def resume(output: Output, run: str, device: str) -> None:
    """Go on with RUN where its last good checkpoint is; the result is the same as without the stop."""
    from nomoat import verbs

    with watching(output, f"nomoat resume {run}") as watch:
        resumed = verbs.resume(run, device=device, watch=watch)
    ended(output, resumed)


WRITES = """  nomoat generate last "..."      text from it
  nomoat surprise last FILE       the oddest lines of a file
  nomoat evaluate last PATH       bits per byte on other text
  nomoat runs                     all models so far"""
DRAWS = """  nomoat draw last "..." --n 16   pictures from it
  nomoat evaluate last            its report card once more
  nomoat runs                     all models so far"""
SEES = """  nomoat evaluate last            its report card
  nomoat draw last "..." --n 16   pictures from it, where it draws
  nomoat runs                     all models so far"""
PLAYS = """  nomoat play last                a game against it
  nomoat play last --gtp          be an engine for other programs
  nomoat runs                     all models so far"""


def ended(output: Output, run: Run) -> None:
    """The last words: the report or the figure, where the card is, and what to type next."""
    report = run.path / "report.txt"
    figure = (run.metrics("evaluate") or [{}])[-1].get("bits_per_byte")
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    if not text and figure is not None:
        text = f"{figure:.3f} bits per byte on held-out text\n"
    text += f"""
Your model: {run.path}
Its card:   {run.path / "card.md"}

What to type next:
"""
    if run.recipe.of_pictures:
        text += DRAWS if (run.path / "sheet.png").exists() else SEES
    else:
        text += PLAYS if (run.path / "player.json").exists() else WRITES
    card = run.read_json("card.json") or {}
    output.result({"run": run.path.resolve(), "status": run.status, "card": card}, text.strip("\n"))
