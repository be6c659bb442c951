"""FID's own network, for whoever has its weights on disk: nothing else here is called FID.

    image_NCYX -> 299 x 299 (bicubic, antialiased, as clean-fid does) -> InceptionV3 -> x_ND, 2,048 -> Fréchet distance

The network is torch-fidelity's, an optional package; the weights are its `weights-inception-2015-12-05-*.pth`. It is
handed the file's path and so never fetches anything.

Heusel et al. 2017, arXiv:1706.08500; Parmar et al. 2022, arXiv:2104.11222 (resizing).
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.core.device import choose
from nomoat.core.errors import ConfigError
from nomoat.evaluate.features import Features
from nomoat.evaluate.seen import as_colour

SIDE = 299
PIP = "pip install torch-fidelity"


def inception(weights: Path | str, device: torch.device | None = None) -> Features:
    """Return InceptionV3 as features, with which the Fréchet distance is FID.

    Args:
        weights: its weights on disk, in torch-fidelity's format.
        device: where it computes.

    Raises:
        ConfigError: the weights or torch-fidelity are not there, or the weights are others.
    """
    path = Path(weights)
    fix = "name the file that torch-fidelity publishes, weights-inception-2015-12-05-6726825d.pth"
    if not path.is_file():
        raise ConfigError(f"there are no Inception weights at {path}", "FID is only ever computed with them", fix)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found]
            FeatureExtractorInceptionV3,
        )
    except ImportError as missing:
        why = "the network that FID is defined by comes with torch-fidelity"
        raise ConfigError(f"FID cannot be computed here ({missing.name} is missing)", why, PIP) from missing
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run what is in the file
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError) as wrong:
        raise ConfigError(f"{path} holds no Inception weights", str(wrong).partition("\n")[0], fix) from wrong
    device = device or choose("cpu")
    net = net.to(device).eval()

    def read(image_BCYX: Tensor) -> Tensor:
        image_BCYX = F.interpolate(as_colour(image_BCYX), size=(SIDE, SIDE), mode="bicubic", antialias=True)
        levels_BCYX = ((image_BCYX.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        found: tuple[Tensor, ...] = net(levels_BCYX)
        return found[0]

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Features("Inception", f"InceptionV3 ({path.name}), 2,048 features", digest, read, device)
