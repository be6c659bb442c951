"""Import: a model in another program's format becomes a run like any other, tensor by tensor.

path -> Foreign -> SHA-256 of its files -> Run(recipe, checkpoint of step 0, tokenizer.json, chat.json, ledger.json)
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomoat.core import checkpoint
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.tensors import Later
from nomoat.data.imported import Imported
from nomoat.data.spdx import licence_id
from nomoat.hub.adapters import is_adapter, open_adapter
from nomoat.hub.foreign import Foreign, open_foreign
from nomoat.hub.packing import packed

Watch = Callable[[Mapping[str, Any]], None]

PACKED = {"q8": 8, "q4": 4}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def import_model(
    path: Path | str,
    root: Path | str | None = None,
    name: str | None = None,
    dtype: str = "auto",
    licence: str | None = None,
    watch: Watch | None = None,
    base: Run | Path | str | None = None,
) -> Run:
    """Make a run of a model in another program's format; arguments and errors as in `verbs.import_model`.

    No more than one tensor is in memory at a time. What the file holds in F32, F16 or BF16 is kept in that type;
    quantised blocks become the very float32 numbers that they stand for. `load` gives float32 in any case.

    `watch` is told {"kind": "import", "done", "total"} in bytes written.
    """
    known = ("auto", *DTYPES, *PACKED)
    if dtype not in known:
        raise ConfigError(f"there is no dtype `{dtype}`", f"there is {', '.join(known)}", nearest(dtype, known))
    found = open_adapter(path, base) if is_adapter(path) or base is not None else open_foreign(path)
    hashes = {file.name: _sha256(file) for file in found.files}
    lines = "".join(f"{digest}  {file}\n" for file, digest in sorted(hashes.items()))
    whole = next(iter(hashes.values())) if len(hashes) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    title = name or (found.path.resolve().name if found.path.is_dir() else found.path.stem)
    data = Imported(str(found.path.resolve()), whole, found.format)
    about = f"{title}, imported from {found.format}{f', beside {found.start.run}' if found.start else ''}."
    # A recipe names a budget; this one is never spent, because there is nothing to train on.
    config, tensors = found.config, typed(found.tensors, dtype)
    if dtype in PACKED:
        config, tensors = packed(config, tensors, PACKED[dtype])
    never = Budget("nothing", 1, "steps")
    recipe = Recipe(about, config, data, never, batch_size=1, start=found.start, adapt=found.adapt)
    run = Run.create(root, title, recipe)
    try:
        tensors = told(tensors, "import", watch)
        checkpoint.save(run.checkpoints, 0, {"weights": tensors}, {"step": 0})
        _write_words(run, found, licence, hashes, watch)
        run.mark("done")
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)  # half a model must not look like one
        raise
    return run


def _write_words(run: Run, found: Foreign, licence: str | None, hashes: Mapping[str, str], watch: Watch | None) -> None:
    """The tokenizer, the chat template, and whose work it is."""
    vocabulary = found.vocabulary()
    if vocabulary is None and not hasattr(found.config, "vocab_size"):
        pass  # it reads no text
    elif vocabulary is None:
        text = f"{found.path.name} came without a tokenizer: the model can be loaded and exported, but not write text"
        run.note("warning", text=text)
        if watch is not None:
            watch({"kind": "warning", "text": text})
    else:
        run.write_text("tokenizer.json", vocabulary[0])
        if vocabulary[1] is not None:
            run.write_json("chat.json", vocabulary[1])
    stated = (licence_id(licence) or licence, "stated with --licence") if licence else found.licence
    ledger = {
        **asdict(run.recipe.data),
        "source": found.path.resolve().name,
        "licence": stated[0],
        "evidence": stated[1],
        "files": dict(hashes),
    }
    run.write_json("ledger.json", ledger)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def typed(tensors: Mapping[str, Later], word: str) -> dict[str, Later]:
    """Tensors in the type asked for.

    Raises:
        DataError: when one is made, and that type cannot hold it.
    """

    def fitting(name: str, tensor: Later, dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
        def pieces() -> Iterator[Tensor]:
            for made in tensor.rows():
                cast = made.to(dtype)
                if dtype == torch.float16 and bool((cast.isinf() & made.isfinite()).any()):
                    largest = float(made.abs().max())
                    raise DataError(f"`{name}` holds {largest:.3g}", "f16 ends at 65,504", "use bf16 or f32")
                yield cast

        return pieces

    found = {}
    for name, tensor in tensors.items():
        dtype = DTYPES.get(word, torch.float32 if tensor.dtype == torch.float64 else tensor.dtype)
        same = dtype == tensor.dtype
        found[name] = tensor if same else Later.by_rows(tensor.shape, dtype, fitting(name, tensor, dtype))
    return found


def told(tensors: Mapping[str, Later], kind: str, watch: Watch | None) -> dict[str, Later]:
    """The same, telling `watch` {"kind", "done", "total"} in bytes as they are made."""
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0

    def telling(tensor: Later) -> Callable[[], Iterator[Tensor]]:
        def pieces() -> Iterator[Tensor]:
            nonlocal done
            for made in tensor.rows():
                done += made.nbytes
                if watch is not None:
                    watch({"kind": kind, "done": done, "total": total})
                yield made

        return pieces

    return {name: Later.by_rows(tensor.shape, tensor.dtype, telling(tensor)) for name, tensor in tensors.items()}
