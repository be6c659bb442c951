"""A slow copy of weights: the exponential moving average that diffusion, GANs and teachers keep.

    slow <- decay slow + (1 - decay) live          after every step

Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class SlowCopy:
    """The slow copy of a set of named tensors.

    Args:
        live: the tensors that are trained, by name (`dict(module.named_parameters())`); they are followed, not copied
            to, until `swapped` or `copy_to_live` is called.

    `tensors` holds the copy, in fp32 where the live tensor is of lower precision: it is what a checkpoint saves.
    """

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        self.live = dict(live)
        self.tensors = {name: _precise(tensor).clone() for name, tensor in self.live.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the copy by 1 - decay towards the live tensors."""
        slow, live = list(self.tensors.values()), [_precise(tensor) for tensor in self.live.values()]
        if slow:
            torch._foreach_lerp_(slow, live, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the copy from a checkpoint. Raises KeyError where a name is missing."""
        for name, slow in self.tensors.items():
            slow.copy_(tensors[name])

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Overwrite the live tensors with the copy."""
        for name, live in self.live.items():
            live.copy_(self.tensors[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the live tensors hold the copy's values; afterwards their own again, bit for bit."""
        kept = {name: tensor.detach().clone() for name, tensor in self.live.items()}
        self.copy_to_live()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, live in self.live.items():
                    live.copy_(kept[name])


def _precise(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
