"""Several adapters beside one base at once: each row of a batch says which it is read with, or none.

    x_BLD, adapter_B -> base(x) + (x A^T) B^T with each row's own A and B -> times the row's factors (DoRA) -> y_BLE

The rows' choice is resolved once a call of the stack (nn/resolve.py) and comes to a layer as `Scene.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.family import Family
from nomoat.nn.backbone import Stack
from nomoat.nn.lora import Adapted, adapted_layers, dense, linear_layers, put

ASKED = ("qkv", "out", "up", "down", "in_proj", "query")
"""Layers that are called through `Scene.linear`."""


class Several(nn.Module):
    """A linear layer with N adapters; called plainly, it is the layer alone.

    Args:
        base: the layer.
        adapters: one each, None where an adapter leaves this layer alone. Index N stands for none.
    """

    a_NRD: Tensor
    b_NER: Tensor
    factor_NE: Tensor
    shift_NE: Tensor

    @torch.no_grad()
    def __init__(self, base: Any, adapters: Sequence[Adapted | None]) -> None:
        super().__init__()
        self.base = base
        weight = dense(base).detach().float()
        bias = torch.zeros(len(weight)) if base.bias is None else base.bias.detach().float()
        whole = [*adapters, None]
        thin = [each.thin() if each else (weight.new_zeros(1, weight.shape[1]), bias[:, None] * 0) for each in whole]
        rank = max(len(a) for a, _ in thin)
        factors = [torch.ones_like(bias) for _ in whole]
        for number, each in enumerate(adapters):
            if each is not None and each.magnitude is not None:
                a, b = thin[number]
                factors[number] = each.magnitude.detach() / (weight + b @ a).norm(dim=1).clamp(min=1e-6)
        self.register_buffer("a_NRD", torch.stack([F.pad(a, (0, 0, 0, rank - len(a))) for a, _ in thin]))
        self.register_buffer("b_NER", torch.stack([F.pad(b, (0, rank - b.shape[1])) for _, b in thin]))
        self.register_buffer("factor_NE", torch.stack(factors))
        self.register_buffer("shift_NE", (1 - self.factor_NE) * bias)  # the bias is not multiplied

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] to [B, L, E] without any adapter."""
        return self.base(x_BLD)

    def chosen(self, x_BLD: Tensor, adapter_B: Tensor) -> Tensor:
        """[B, L, D] to [B, L, E], each row with its adapter of 0 to N."""
        thin_BLR = torch.bmm(x_BLD, self.a_NRD[adapter_B].mT)
        y_BLE = torch.baddbmm(self.base(x_BLD), thin_BLR, self.b_NER[adapter_B].mT)
        return torch.addcmul(self.shift_NE[adapter_B].unsqueeze(1), y_BLE, self.factor_NE[adapter_B].unsqueeze(1))


def together(base: Family, adapted: Sequence[Family]) -> Family:
    """The base with the adapters of models that were adapted from it; returns it, changed.

    Their own copies of the base's weights are not read: they may be on the meta device.

    Raises:
        ConfigError: an adapter at a layer that does not hear which row is whose.
    """
    layers = [adapted_layers(each) for each in adapted]
    for name, layer in list(linear_layers(base)):
        own = [each.get(name) for each in layers]
        if any(own) and name.rsplit(".", 1)[-1] not in ASKED:
            raise ConfigError(f"`{name}` cannot have several adapters at once", "", "serve them one by one")
        if any(own):
            put(base, name, Several(layer, own))
    for module in base.modules():
        if isinstance(module, Stack):
            module.rules = replace(module.rules, adapters=len(adapted))
    return base
