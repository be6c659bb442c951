"""Draw: pictures from a run, each as a PNG that carries what it was asked for, so that it can be drawn again.

    run, prompt, given pictures -> prompts (a batch) -> family.generate, some rows at a time -> PNG + its parameters
    PNG -> its parameters -> the same rows again -> the same picture

A picture's chance is its own: with the same seed the third of sixteen is the third of three, but for rounding.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import __version__
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.recipe import Ref
from nomoat.core.run import Run
from nomoat.sampling.drawing import Drawing, noise
from nomoat.sampling.solvers import slerp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Watch = Callable[[Mapping[str, Any]], None]

ROWS = 16
"""Pictures that are drawn together, and together again: how many there are changes the last bits of sums."""
CHUNK = "nomoat"
"""The text chunk of a PNG that holds its parameters."""
GUIDANCE = 3.0
"""How much a prompt is exaggerated unless somebody says otherwise; Ho and Salimans 2022 and others use 2 to 8."""
MOST = 10_000
"""Pictures of one call."""
GIVEN = {
    "init": ("be given a picture to begin with (--init)", "name a diffusion model"),
    "mask": ("redraw a part of a picture (--mask)", "name a diffusion model"),
    "hint": ("be led by a control picture (--control)", "train one: `nomoat train control-small`"),
    "small": ("enlarge a picture (--upscale)", "train one that does: `nomoat train upsampler-small`"),
    "like": ("vary a picture (--variation-of)", "name a run of DALL-E 2's design: `nomoat train unclip-small`"),
}
"""What a family may read beside captions: in words, and what to do where it does not."""


@dataclass(frozen=True)
class Given:
    """Pictures that a drawing is given, as files.

    Args:
        init: to begin with.
        mask: white where `init` may be changed.
        hint: a control picture: mask, edges, depth or a sketch, as the model was taught.
        small: to be enlarged.
        like: to be varied.
        between: two pictures, or two seeds; what is drawn lies between them in equal steps.
        fit: crop and scale what has another size, in place of refusing it.
    """

    init: Path | str | None = None
    mask: Path | str | None = None
    hint: Path | str | None = None
    small: Path | str | None = None
    like: Path | str | None = None
    between: tuple[str, str] | None = None
    fit: bool = False


@dataclass(frozen=True)
class Drawn:
    """One picture.

    Args:
        image_YXC: 8 bits a channel.
        settings: all that it was asked for.
        path: where it was written; None: nowhere.
    """

    image_YXC: NDArray[np.uint8]
    settings: dict[str, Any]
    path: Path | None = None


def draw(
    run: Run | Path | str,
    prompt: str = "",
    n: int = 1,
    drawing: Drawing | None = None,
    given: Given | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> list[Drawn]:
    """Draw pictures.

    Args:
        run: of a model that draws.
        prompt: what is to be seen, in the words of its captions; a class where it knows classes; empty: anything.
        n: how many.
        drawing: how; None: twenty steps, and with a prompt the guidance that suits it.
        given: pictures to begin with, to be led by, and so on.
        out: the folder of the PNGs; None: they are not written.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told {"kind": "picture", "done": ..., "of": ..., "path": ...} after each.

    Raises:
        ConfigError: the model does not draw, or not so; a size that does not fit.
        DataError: a word that it does not know (all of them are named), a file that is no picture.
        RunError, CheckpointError: no such run, no weights.
    """
    if not 1 <= n <= MOST:
        raise ConfigError(f"{n:,} pictures cannot be asked for", fix=f"1 to {MOST:,}")
    opened, given = Run.open(run), given or Given()
    family, drawing = drawer(opened, device), drawing or Drawing(guidance=guidance(opened, prompt))
    pictures = _pictures(given, family)
    asked = {"prompt": prompt, "n": n, "between": given.between, **asdict(drawing)}
    _check(opened, family, prompt, pictures, given, drawing)
    found = []
    for row, image_YXC in enumerate(rows_of(opened, family, asked, pictures, range(n))):
        settings = settings_of(opened, asked, pictures, row)
        path = None if out is None else written(Path(out), f"{opened.label}-{drawing.seed}", row, image_YXC, settings)
        found.append(Drawn(image_YXC, settings, path))
        if watch is not None:
            watch({"kind": "picture", "done": row + 1, "of": n, "path": path})
    return found


def again(picture: Path | str, out: Path | str | None = None, device: str = "auto") -> Drawn:
    """Draw a picture once more, by the parameters that it carries.

    Raises:
        DataError: it carries none.
        RunError: the run that drew it is not there, or has been trained further.
    """
    settings = parameters(picture)
    opened = Run.open(settings["run"])
    if Ref(str(opened.path)).pinned().sha256 != settings["sha256"]:
        raise RunError(
            f"{opened.name} is no longer what drew {picture}", "its weights are others now", "draw with an older copy"
        )
    family, row = drawer(opened, device), int(settings["row"])
    pictures = {name: _read(io.BytesIO(base64.b64decode(text))) for name, text in settings.get("pictures", {}).items()}
    [image_YXC] = rows_of(opened, family, settings, pictures, range(row, row + 1))
    path = None if out is None else written(Path(out), f"{opened.label}-{settings['seed']}", row, image_YXC, settings)
    return Drawn(image_YXC, settings, path)


def guidance(run: Run, prompt: str) -> float:
    """What suits a prompt: `GUIDANCE` where the model was taught to do without, else 1."""
    taught: float = getattr(run.recipe.product, "drop", 0.0)
    return GUIDANCE if prompt and taught else 1.0


def parameters(picture: Path | str) -> dict[str, Any]:
    """What a PNG of ours was asked for.

    Raises:
        DataError: it is not one.
    """
    from PIL import Image

    why = "other programs drop them when they save or send it"
    try:
        with Image.open(picture) as opened:
            held = json.loads(getattr(opened, "text", {})[CHUNK])
        if not isinstance(held, dict) or not {"run", "sha256", "row", "prompt"} <= held.keys():
            raise KeyError(CHUNK)
    except FileNotFoundError:
        raise DataError(f"there is no file {picture}", "", "check the path") from None
    except (KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{picture} carries no parameters of ours", why, "name a PNG that `nomoat draw` wrote"
        ) from error
    return held


def drawer(run: Run, device: str) -> Any:
    """The model of a run that draws.

    Raises:
        ConfigError: it does not.
    """
    from nomoat.core.device import choose
    from nomoat.core.run import load

    family: Any = load(run)
    if not hasattr(family, "generate") or not hasattr(family.config, "size"):
        raise ConfigError(
            f"{run.name} does not draw", f"it is {type(family).__name__}", "name a run that was made of pictures"
        )
    return family.to(choose(device))


def _check(run: Run, family: Any, prompt: str, pictures: Mapping[str, Any], given: Given, drawing: Drawing) -> None:
    """Refuse what this model cannot be asked."""
    reads = family.reads
    for name in ("top_k", "candidates"):
        if getattr(drawing, name) is not None and name not in getattr(family, "takes", ()):
            why = f"it is {type(family).__name__}"
            raise ConfigError(f"{run.name} takes no {name}", why, "a model of DALL-E's design does; leave it out")
    for name in pictures:
        key = "init" if name in ("from", "to") and "like" not in reads else "like" if name in ("from", "to") else name
        if key not in reads:
            what, fix = GIVEN[key]
            raise ConfigError(f"{run.name} cannot {what}", f"it reads {', '.join(sorted(reads)) or 'nothing'}", fix)
    if given.mask is not None and given.init is None:
        raise ConfigError("--mask says which part of a picture may be changed", "there is no picture", "add --init")
    if "hint" in reads and "hint" not in pictures:
        raise ConfigError(f"{run.name} is led by a control picture", "none was given", "add --control PICTURE")
    if "small" in reads and "small" not in pictures:
        raise ConfigError(f"{run.name} enlarges pictures", "none was given", "add --upscale PICTURE")
    if prompt and not {"caption", "label"} & reads:
        raise ConfigError(
            f"{run.name} was taught no captions", "so it cannot be told what to draw", "leave the prompt out"
        )


def rows_of(
    run: Run, family: Any, asked: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]], rows: range
) -> Iterator[NDArray[np.uint8]]:
    """The pictures of some rows, drawn with those beside which they would always stand."""
    import numpy as np
    import torch

    names = {field for field in asdict(Drawing()) if field in asked}
    drawing = Drawing(**{name: asked[name] for name in names})
    place = next(family.parameters()).device
    for first in range(rows.start - rows.start % ROWS, rows.stop, ROWS):
        prompts = prompts_of(run, family, asked, pictures, range(first, min(first + ROWS, asked["n"])))
        with torch.no_grad(), run.autocast(place):
            placed = {
                name: value.to(place) if isinstance(value, torch.Tensor) else value for name, value in prompts.items()
            }
            made = family.generate(placed, drawing, torch.Generator().manual_seed(drawing.seed))["image"]
        images = made.float().cpu().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for row in range(max(first, rows.start), min(first + ROWS, rows.stop)):
            yield np.ascontiguousarray(images[row - first])


def prompts_of(
    run: Run, family: Any, asked: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]], rows: range
) -> dict[str, Any]:
    """The batch that a family reads."""
    import numpy as np
    import torch

    config, count = family.config, len(rows)
    made: dict[str, Any] = {"first": rows.start, "rows": count, "index": torch.arange(rows.start, rows.stop)}
    if "caption" in family.reads:
        made |= _caption(run, config, asked["prompt"], count)
    elif "label" in family.reads:
        made["label"] = torch.full((count,), _label(run, asked["prompt"]))
    for name in set(pictures) - {"from", "to"}:
        image = _tensor(pictures[name]).expand(count, -1, -1, -1)
        if name == "hint":
            grey = getattr(config, "hint_channels", 3) == 1
            image = (image + 1) / 2
            image = image.mean(1, keepdim=True) if grey else image
        made[name] = image[:, :1] > 0 if name == "mask" else image
    if asked.get("noise"):  # found by a search
        found = np.frombuffer(base64.b64decode(asked["noise"]), np.float32).reshape(1, *family.noise_shape)
        made["noise"] = torch.from_numpy(found.copy()).expand(count, *family.noise_shape)
    if asked.get("between"):
        share_B = torch.tensor([row / max(1, asked["n"] - 1) for row in rows]).clamp(max=1.0)
        share_B111 = share_B[:, None, None, None]
        if "from" in pictures:
            one, other = _tensor(pictures["from"]), _tensor(pictures["to"])
            if "like" in family.reads:
                made |= {
                    "like": one.expand(count, -1, -1, -1),
                    "towards": other.expand(count, -1, -1, -1),
                    "blend": share_B,
                }
            else:  # in the space of noisy pictures, with the same noise for all (Ho et al. 2020, section 4.4)
                made["init"] = torch.lerp(one, other, share_B111)
                made["noise"] = noise(1, family.noise_shape, asked["seed"]).expand(count, *family.noise_shape)
        else:
            one, other = (noise(1, family.noise_shape, int(seed)) for seed in asked["between"])
            made["noise"] = slerp(one, other, share_B)
    return made


def _caption(run: Run, config: Any, prompt: str, count: int) -> dict[str, Any]:
    import torch

    from nomoat.data.words import padded
    from nomoat.texts import spelling

    words = spelling(run)
    ids_BM, there_BM = padded([words.encode(prompt)] * count, config.caption_length, words.eot)
    return {"caption": torch.from_numpy(ids_BM), "caption_mask": torch.from_numpy(there_BM)}


def _label(run: Run, prompt: str) -> int:
    classes = run.read_json("classes.json") or []
    if not prompt:
        return -1
    if prompt not in classes:
        raise DataError(
            f"there is no class `{prompt}`", f"{run.name} knows {', '.join(classes[:20])}", "name one of them"
        )
    return int(classes.index(prompt))


def _pictures(given: Given, family: Any) -> dict[str, NDArray[Any]]:
    """What was given, read and of the size that the model needs."""
    from nomoat.data.picture_files import fitted

    size = int(family.config.size)
    found: dict[str, NDArray[Any]] = {}
    files = {name: getattr(given, name) for name in ("init", "mask", "hint", "small", "like")}
    if given.between and not all(_is_seed(end) for end in given.between):
        files |= dict(zip(("from", "to"), given.between, strict=True))
    for name, path in files.items():
        if path is None:
            continue
        side = size // int(getattr(family.config, "upscale", 1)) if name == "small" else size
        image = _read(path)
        if image.shape[:2] != (side, side) and name != "like" and not given.fit:
            height, width = image.shape[:2]
            raise ConfigError(
                f"{path} has {width} x {height} pixels, {'it enlarges' if name == 'small' else 'the model draws'} "
                f"{side} x {side}",
                "what is to lie beneath a picture must have its size",
                "add --fit to have it cropped and scaled, or do it yourself",
            )
        found[name] = image if image.shape[:2] == (side, side) else fitted(image, side, name == "mask")
    return found


def _is_seed(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _read(file: Path | str | io.BytesIO) -> NDArray[np.uint8]:
    """A picture as [Y, X, 3]."""
    from nomoat.data.picture_files import whole_of
    from nomoat.data.streams import UnreadableError

    try:
        return whole_of(file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no file {file}", "", "check the path") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read", error.strerror or str(error), "check the path") from error
    except UnreadableError as error:
        why = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise DataError(f"{file} cannot be read as a picture", why, "name a PNG or JPEG") from error


def _tensor(image_YXC: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(image_YXC).permute(2, 0, 1)[None].float() / 127.5 - 1


def settings_of(run: Run, asked: Mapping[str, Any], pictures: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What a picture carries, so that it can be drawn again."""
    held = {name: base64.b64encode(_png(image, {})).decode() for name, image in pictures.items()}
    whole = {"nomoat": __version__, "run": run.name, "sha256": Ref(str(run.path)).pinned().sha256, "row": row, **asked}
    return {**whole, **({"pictures": held} if held else {})}


def _png(image_YXC: NDArray[Any], settings: Mapping[str, Any]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    if settings:
        told.add_itxt(CHUNK, json.dumps(settings, ensure_ascii=False))
        told.add_text("Software", f"nomoat {__version__}")
    image = Image.fromarray(image_YXC[..., 0] if image_YXC.shape[-1] == 1 else image_YXC)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=told)
    return file.getvalue()


def written(folder: Path, stem: str, row: int, image_YXC: NDArray[Any], settings: Mapping[str, Any]) -> Path:
    """The PNG, under a name that nothing has yet."""
    from nomoat.core import durable

    folder.mkdir(parents=True, exist_ok=True)
    data, number = _png(image_YXC, settings), 1
    while (path := folder / (f"{stem}-{row:03}.png" if number == 1 else f"{stem}-{row:03}-{number}.png")).exists():
        number += 1
    durable.replace(path, data)
    return path
