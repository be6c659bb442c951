"""What a function with a backward pass of its own owes to those who derive it otherwise.

forward mode (Jacobian-vector products)   `forward_mode` -> call the plain form instead
torch.compile                             `plainly_derived` -> the plain form, which the compiler derives and fuses
a second derivative                       `derivable` -> gradients from the plain form, with a graph
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def forward_mode(inputs: Sequence[Any]) -> bool:
    """Whether any input carries a tangent, or a transform of torch.func is at work."""
    return torch._C._are_functorch_transforms_active() or any(
        isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None for each in inputs
    )


def plainly_derived(inputs: Sequence[Any]) -> bool:
    """Whether plain operations are to be used: nothing is derived, or in forward mode, or the compiler does it."""
    return not torch.is_grad_enabled() or torch.compiler.is_compiling() or forward_mode(inputs)


def derivable(
    plain: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Any], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradient of each input of `plain` (None where none is wanted), as a function that can be derived again."""
    wanted = [each for each in inputs if isinstance(each, Tensor) and each.requires_grad]
    outputs = plain(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if isinstance(each, Tensor) and each.requires_grad else None for each in inputs)
