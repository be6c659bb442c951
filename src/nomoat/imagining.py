"""Pictures by search: each is drawn from several noises, a judge keeps the best, a second says what that is worth.

run, prompt, judge, tries -> search/noises.py -> PNGs that carry the noise that was found -> how both judges went

A judge is a run that scores pictures against captions (a CLIP), or `reader`: the rules of the shapes world, which read
what is there.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import drawing
from nomoat.core.errors import ConfigError
from nomoat.core.run import Run
from nomoat.sampling.drawing import Drawing
from nomoat.texts import at_hand

if TYPE_CHECKING:
    from nomoat.drawing import Drawn
    from nomoat.search.noises import Judge, Search, Tried

Watch = Callable[[Mapping[str, Any]], None]

READER = "reader"


@dataclass(frozen=True)
class Imagined:
    """What a search came to.

    Args:
        pictures: the best.
        course: how the judges' scores went with the tries.
        warning: what the second judge exposes.
    """

    pictures: tuple[Drawn, ...]
    course: tuple[Tried, ...]
    warning: str

    def as_text(self) -> str:
        """A table."""
        lines = [f"{'tries':>6}{'judge':>10}{'second':>10}{'spread':>9}"]
        for each in self.course:
            second = "" if each.reported is None else f"{each.reported:.3f}"
            lines.append(f"{each.tries:>6}{each.chosen:>10.3f}{second:>10}{each.spread:>9.3f}")
        return "\n".join([*lines, *([f"note: {self.warning}"] if self.warning else [])])


def imagine(
    model: Run | Path | str,
    prompt: str,
    judges: Sequence[str],
    n: int = 4,
    search: Search | None = None,
    out: Path | str | None = None,
    drawn: Drawing | None = None,
    device: str = "auto",
) -> Imagined:
    """Draw a prompt several times and keep what a judge likes best.

    Args:
        model: a run that draws from noise.
        prompt: in the words of its captions.
        judges: who chooses, a CLIP's run or `reader` for the shapes world; and, if there is one, who is only asked.
        n: pictures.
        search: how many tries, and how; its seed is that of `drawn`.
        out: the folder of the PNGs; None: they are not written.
        drawn: how each is drawn.
        device: where.

    Raises:
        ConfigError: a model that draws without noise, a judge that scores nothing, or the same judge twice.
        DataError: a word that the model or a judge does not know.
    """
    from nomoat.search.noises import Search, searched

    run = at_hand(model)
    family = drawing.drawer(run, device)
    how = drawn or Drawing(guidance=drawing.guidance(run, prompt))
    if not hasattr(family.config, "shape") or "caption" not in family.reads:
        raise ConfigError(
            f"{run.name} cannot be searched", "it draws from no noise, or by no caption", "name a diffusion model"
        )
    names = [each if each == READER else at_hand(each).name for each in judges]
    if not 1 <= len(names) <= 2:
        raise ConfigError(f"there are {len(names)} judges", "one chooses, and another may be asked", "name one or two")
    if len(set(names)) < len(names):
        raise ConfigError(
            "both judges are the same", "the second is to find out whether the first is fooled", "name another"
        )
    asked = {"prompt": prompt, "n": n, "between": None, **asdict(how)}
    place = next(family.parameters()).device
    prompts = drawing.prompts_of(run, family, asked, {}, range(n))
    prompts = {name: each.to(place) if hasattr(each, "to") else each for name, each in prompts.items()}

    def draw(given: Mapping[str, Any]) -> Any:
        import torch

        with run.autocast(place):
            return family.generate(dict(given), how, torch.Generator())["image"].float()

    search = replace(search or Search(), seed=how.seed)
    found = searched(draw, prompts, family.config.shape, search, *(_judge(each, prompt, place) for each in judges))
    pictures = []
    for row in range(n):
        noise = base64.b64encode(found.noise[row].float().cpu().numpy().tobytes()).decode()
        one = {**asked, "n": 1, "noise": noise, "judges": names, "search": asdict(search)}
        [image_YXC] = drawing.rows_of(run, family, one, {}, range(1))
        settings = drawing.settings_of(run, one, {}, 0)
        name = f"{run.label}-{how.seed}-searched-{row}"
        path = None if out is None else drawing.written(Path(out), name, 0, image_YXC, settings)
        pictures.append(drawing.Drawn(image_YXC, settings, path))
    return Imagined(tuple(pictures), tuple(found.course), found.warning)


def _judge(name: str, prompt: str, place: Any) -> Judge:
    """A judge by its name."""
    import torch

    if name == READER:
        return _reader(prompt)
    from nomoat.core.run import load
    from nomoat.data.words import padded
    from nomoat.texts import spelling

    run = at_hand(name)
    family: Any = load(run).to(place)
    if not hasattr(family, "score") or not hasattr(family, "captions"):
        raise ConfigError(f"{run.name} judges no pictures", run.recipe.about, "name a CLIP: `nomoat train clip-small`")
    words = spelling(run)
    ids_1M, there_1M = padded([words.encode(prompt)], family.config.caption_length, words.eot)

    def score(image: Any, prompts: Mapping[str, Any]) -> Any:
        size = family.config.size
        small = torch.nn.functional.interpolate(image.to(place), (size, size), mode="area")
        caption, mask = (torch.from_numpy(each).to(place).expand(len(image), -1) for each in (ids_1M, there_1M))
        with run.autocast(place):
            return family.score({"image": small, "caption": caption, "caption_mask": mask})[:, 0]

    return score


def _reader(prompt: str) -> Judge:
    """The rules of the shapes world: the share of what the caption says that is there."""
    import torch

    from nomoat.evaluate.shapes import marks, read

    scene = _scene(prompt)

    def score(image: Any, prompts: Mapping[str, Any]) -> Any:
        told = ("count", *scene.said)
        found = [marks(scene, reading) for reading in read(image.float().cpu())]
        return torch.tensor([sum(each[name] for name in told) / len(told) for each in found])

    return score


def _scene(prompt: str) -> Any:
    """What a caption of one thing says.

    Raises:
        ConfigError: it tells of no thing of the shapes world, or of several.
    """
    from nomoat.data.shapes_captions import SYNONYMS
    from nomoat.data.shapes_scene import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

    plain = {word: name for name, words in SYNONYMS.items() for word in words}
    said = [plain.get(word, word) for word in prompt.lower().replace(",", " ").split()]
    kinds = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
    told = {kind: [word for word in said if word in known] for kind, known in kinds.items()}
    if len(told["shape"]) != 1 or any(len(words) > 1 for words in told.values()):
        raise ConfigError(f"`{READER}` reads captions of one thing", prompt, "say for example `a small red circle`")
    found = {kind: words[0] for kind, words in told.items() if words}
    colour, size, texture = (found.get(kind, kinds[kind][0]) for kind in ("colour", "size", "texture"))
    thing = Thing(found["shape"], colour, size, texture)
    return Scene((thing,), said=tuple(found))
