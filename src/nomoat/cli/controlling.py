"""control: a model that draws is taught to follow masks, outlines or depth.

run -> nomoat.controlling.control(..., watch=display) -> Run -> how far it follows, what to type next
"""

from __future__ import annotations

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.making import ended
from nomoat.cli.output import Output


@click.command()
@click.argument("model", metavar="RUN")
@click.argument("hint", default="mask")
@click.option("--budget", default="10m", help="As everywhere. [10m]")
@options.allow
@options.seed
@options.device
@options.as_json
@click.pass_obj
def control(output: Output, model: str, hint: str, budget: str, allow: str | None, seed: int, device: str) -> None:
    """Teach RUN, a diffusion model of pictures, to follow control pictures (ControlNet).

    HINT is mask (what transparent pictures show), edges, pair (pictures that lie beside others), or depth (the shapes
    world). The pictures are those that RUN was made of.
    """
    from nomoat import controlling

    with watching(output, f"nomoat control {model} {hint} \u00b7 {budget}") as watch:
        run = controlling.control(model, hint, budget, device, seed, watch, allow)
    ended(output, run)
