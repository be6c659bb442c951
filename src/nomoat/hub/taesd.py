"""The tiny autoencoders of diffusion models (TAESD): two files of tensors that are named by layer number.

    X_encoder.safetensors, X_decoder.safetensors -> shapes -> Autoencoder(nets=TAESD(...)) -> tensors under our names

Nothing in the files says what they are; the shapes do, and whatever they do not agree with is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nomoat.core.device import hollow
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.tensors import Later, read_later
from nomoat.families.autoencoder import Autoencoder
from nomoat.nn.quantizers import Plain
from nomoat.nn.taesd import TAESD

ENCODER, DECODER = "encoder.safetensors", "decoder.safetensors"
NAME = re.compile(r"(\d+)\.(.+)")
SIZE = 256
"""Pixels a side for which it stands; the nets take any that their factor divides."""


def pair(path: Path) -> tuple[Path, Path] | None:
    """The encoder's and the decoder's file: of a folder that holds such, or beside the one that is named.

    Raises:
        DataError: one of them is missing, or there are several pairs.
    """
    ours = path.name.endswith((ENCODER, DECODER))
    folder = path.parent if ours else path
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    stems = sorted(
        {each.name.removesuffix(ENCODER).removesuffix(DECODER) for each in folder.glob("*coder.safetensors")}
    )
    if ours:
        stems = [path.name.removesuffix(ENCODER).removesuffix(DECODER)]
    if not stems:
        return None
    if len(stems) > 1:
        named = ", ".join(f"{stem}{ENCODER}" for stem in stems)
        raise DataError(f"{folder.name} holds {len(stems)} autoencoders", named, "name the file of one of them")
    files = folder / f"{stems[0]}{ENCODER}", folder / f"{stems[0]}{DECODER}"
    for file in files:
        if not file.is_file():
            raise DataError(f"there is no file {file}", "an autoencoder is an encoder and a decoder", "put it there")
    return files


def opened(encoder: Path, decoder: Path) -> tuple[Autoencoder, dict[str, Later]]:
    """The config that the shapes of both files say, and their tensors under our names.

    Raises:
        DataError, CheckpointError: they are damaged, or of another architecture.
    """
    theirs = {
        f"{half}.{name}": tensor
        for half, file in (("encoder", encoder), ("decoder", decoder))
        for name, tensor in read_later(file)[0].items()
    }
    source = f"{encoder.name} and {decoder.name}"
    config = _config(theirs, source)
    with hollow():
        wanted = {name: tuple(tensor.shape) for name, tensor in config.build({}).state_dict().items()}
    has = {name: tensor.shape for name, tensor in theirs.items()}
    for name in sorted(wanted.keys() | has.keys()):
        if wanted.get(name) != has.get(name):
            found, fits = has.get(name, "missing"), wanted.get(name, "not there")
            raise DataError(
                f"{source} are no autoencoder of this kind", f"`{name}` is {found}, by the other shapes it is {fits}"
            )
    return config, theirs


def _config(theirs: Mapping[str, Later], source: str) -> Autoencoder:
    """From the order of the layers: blocks, and between them convolutions without bias, which change the size."""
    first, last = _layer(theirs, "encoder", 0), _layer(theirs, "encoder", -1)
    down, up = _sizes(theirs, "encoder"), _sizes(theirs, "decoder")
    if not first or not last or len(first["weight"].shape) != 4 or "weight" not in last:
        raise DataError(f"{source} are no autoencoder of this kind", "the encoder begins and ends with a convolution")
    width, channels = first["weight"].shape[:2]
    try:
        nets = TAESD(width, down, up, any(".pool." in name for name in theirs))
        return Autoencoder(max(SIZE, nets.factor), channels, Plain(last["weight"].shape[0]), nets)
    except ConfigError as error:
        raise DataError(f"{source} are no autoencoder of this kind", str(error)) from error


def _numbered(theirs: Mapping[str, Later], half: str) -> dict[int, dict[str, Later]]:
    layers: dict[int, dict[str, Later]] = {}
    for name, tensor in theirs.items():
        if name.startswith(half) and (found := NAME.fullmatch(name.removeprefix(f"{half}."))):
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
    return dict(sorted(layers.items()))


def _layer(theirs: Mapping[str, Later], half: str, place: int) -> dict[str, Later]:
    layers = list(_numbered(theirs, half).values())
    return layers[place] if layers and "weight" in layers[place] else {}


def _sizes(theirs: Mapping[str, Later], half: str) -> tuple[int, ...]:
    """Blocks at each size."""
    counts = [0]
    for layer in _numbered(theirs, half).values():
        if "conv.0.weight" in layer:
            counts[-1] += 1
        elif "bias" not in layer:
            counts.append(0)
    return tuple(counts)
