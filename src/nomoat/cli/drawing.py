"""draw: pictures from a model, as PNGs, and as a grid where the terminal has colours.

run + prompt + given pictures -> nomoat.drawing.draw(..., watch) -> paths, a grid of half blocks
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nomoat.cli import options
from nomoat.cli.output import Output
from nomoat.core.errors import ConfigError

if TYPE_CHECKING:
    pass

FILE = click.Path(exists=True, dir_okay=False)
NAMES = ("steps", "solver", "temperature", "top_k", "candidates", "strength", "seed")
GAP = 1  # columns, and pairs of rows, between two pictures


@click.command()
@click.argument("run", required=False)
@click.argument("prompt", default="")
@click.option("--n", type=click.IntRange(1), default=1, help="How many. [1]")
@click.option("--guidance", type=float, help="How much the prompt is exaggerated; 1: not at all. [3 with a prompt]")
@click.option("--steps", type=click.IntRange(1), default=20, help="Of the solver. [20]")
@click.option("--solver", metavar="NAME", help="euler, heun, ddim or dpm. [what suits the model]")
@click.option("--temperature", type=float, default=1.0, help="Of models that draw token by token. [1]")
@click.option("--top-k", type=click.IntRange(0), help="Codes among which one is drawn. [as the model has it]")
@click.option(
    "--candidates", type=click.IntRange(1), help="Drawn for each, the best by CLIP kept. [as the model has it]"
)
@click.option("--init", type=FILE, help="A picture to begin with.")
@click.option("--strength", type=float, default=0.7, help="How much of --init is forgotten, 0 to 1. [0.7]")
@click.option("--mask", type=FILE, help="White where --init may be changed; the rest stays, to the bit.")
@click.option("--control", type=FILE, help="A control picture: mask, edges, depth or a sketch.")
@click.option("--upscale", type=FILE, metavar="PICTURE", help="A small picture to be enlarged.")
@click.option("--variation-of", type=FILE, help="A picture to be varied.")
@click.option("--interpolate", nargs=2, metavar="A B", help="Two pictures or two seeds, and what lies between.")
@click.option("--fit", is_flag=True, help="Crop and scale given pictures to the model's size.")
@click.option("--judge", metavar="RUN", help="Search: who chooses among --tries, a CLIP; or reader, for shapes.")
@click.option("--second", metavar="RUN", help="Another judge, who is asked whether the first is fooled.")
@click.option("--tries", type=click.IntRange(1), default=16, help="Drawn for each picture, with --judge. [16]")
@click.option("--way", default="best-of-n", help="How noises are searched: best-of-n or zero-order. [best-of-n]")
@click.option("--out", default="drawn", metavar="FOLDER", help="Where the PNGs go. [drawn]")
@click.option("--again", type=FILE, metavar="PNG", help="Draw this picture once more, by what it carries.")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def draw(output: Output, run: str | None, prompt: str, again: str | None, out: str, device: str, **asked: Any) -> None:
    """Draw what PROMPT says with RUN: PNGs that carry their parameters."""
    from nomoat import drawing
    from nomoat.core.run import Run
    from nomoat.sampling.drawing import Drawing

    if run is not None and again is None:
        given = drawing.Given(asked["init"], asked["mask"], asked["control"], asked["upscale"], asked["variation_of"],
                              asked["interpolate"] or None, asked["fit"])  # fmt: skip
        guidance = asked["guidance"] if asked["guidance"] is not None else drawing.guidance(Run.open(run), prompt)
        same = {name: asked[name] for name in NAMES}
        how = Drawing(guidance=guidance, **same)
        if asked["judge"] is not None:
            return _searched(output, run, prompt, how, out, device, asked)
        found = drawing.draw(run, prompt, asked["n"], how, given, out, device, output.event)
    elif run is None and again is not None:
        found = [drawing.again(again, out, device)]
    else:
        raise ConfigError("draw needs one run, or --again", "it is one or the other", "nomoat draw last 'a red circle'")
    told = _shown(output, found)
    return output.result({"run": told[0]["run"], "pictures": told})


def _searched(output: Output, run: str, prompt: str, how: Any, out: str, device: str, asked: dict[str, Any]) -> None:
    """Pictures that a judge has chosen."""
    from nomoat import imagining
    from nomoat.search.noises import Search

    judges = [each for each in (asked["judge"], asked["second"]) if each is not None]
    search = Search(asked["tries"], asked["way"])
    found = imagining.imagine(run, prompt, judges, asked["n"], search, out, how, device)
    told = _shown(output, found.pictures)
    course = [each._asdict() for each in found.course]
    fields = {"run": told[0]["run"], "pictures": told, "course": course, "warning": found.warning}
    output.result(fields, found.as_text())


def _shown(output: Output, found: Sequence[Any]) -> list[dict[str, Any]]:
    """Show pictures, and say what each was asked for."""
    if not output.json and in_colour():
        output.stream(grid([one.image_YXC for one in found], shutil.get_terminal_size().columns))
    for one in found:
        output.say(str(one.path))
    hidden = ("pictures", "noise")
    return [{"path": one.path, **{k: v for k, v in one.settings.items() if k not in hidden}} for one in found]


def in_colour() -> bool:
    """Whether standard output is a terminal that shows any colour."""
    return (
        sys.stdout.isatty()
        and os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
        and "NO_COLOR" not in os.environ
    )


def grid(images: Sequence[Any], columns: int) -> str:
    """Pictures side by side, two pixels a character: the upper one in the letter's colour, the lower one behind it.

    Args:
        images: [Y, X, C] each, 8 bits, of one size; they are thinned out where one alone is wider than the terminal.
        columns: of the terminal.
    """
    step = max(1, -(-images[0].shape[1] // max(1, columns)))
    thin = [image[::step, ::step] for image in images]
    height, width = thin[0].shape[:2]
    across = max(1, (columns + GAP) // (width + GAP))
    lines: list[str] = []
    for first in range(0, len(thin), across):
        row = thin[first : first + across]
        lines += [(" " * GAP).join(_cells(image, y) for image in row) for y in range(0, height, 2)] + [""]
    return "\n".join(lines[:-1]) + "\n"


def _cells(image: Any, y: int) -> str:
    upper, lower = image[y], image[min(y + 1, len(image) - 1)]
    colour = [
        tuple(int(value) for value in (pixel if len(pixel) == 3 else [pixel[0]] * 3)) for pixel in (*upper, *lower)
    ]
    pairs = zip(colour[: len(upper)], colour[len(upper) :], strict=True)
    return "".join(f"\x1b[38;2;{a};{b};{c}m\x1b[48;2;{d};{e};{f}m\u2580" for (a, b, c), (d, e, f) in pairs) + "\x1b[0m"
