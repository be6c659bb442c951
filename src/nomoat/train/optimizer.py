"""The optimizers of one player: Muon for hidden matrices, fused AdamW for tables, output layers and vectors.

    gradient_RC -> momentum -> Nesterov -> stacked with all of its shape -> five Newton-Schulz steps (bmm)
                -> about U V^T -> cautious weight decay -> weights_RC

R rows (outputs) and C columns (inputs) of a matrix, N matrices of one shape.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Loshchilov and Hutter 2019,
arXiv:1711.05101 (AdamW); Chen et al. 2025, arXiv:2510.12402 (cautious weight decay).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor, nn

from nomoat.core.device import Faster, has_bf16
from nomoat.core.errors import CheckpointError
from nomoat.core.recipe import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at zero among those that keep singular values near 1
NEWTON_SCHULZ_STEPS = 5
ADAM_EPSILON = 1e-8


def orthogonalise(matrix_NRC: Tensor) -> Tensor:
    """About the nearest orthogonal matrices: U S V^T becomes U S' V^T with all of S' between about 0.7 and 1.2.

    Args:
        matrix_NRC: N matrices of one shape, in the dtype to compute in. The polynomial runs on the short side.
    """
    a, b, c = QUINTIC
    tall = matrix_NRC.shape[-2] > matrix_NRC.shape[-1]
    X = matrix_NRC.mT.contiguous() if tall else matrix_NRC
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=torch.float32) + 1e-7).to(X.dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


def blocks_of(parameter: Tensor) -> tuple[int, ...]:
    """The row sizes of the matrices that lie fused in one parameter (`parameter.blocks`), or all its rows."""
    return tuple(getattr(parameter, "blocks", ())) or (parameter.shape[0],)


@dataclass(frozen=True)
class Named:
    """A parameter, its name, and the rows of the matrices fused in it."""

    name: str
    parameter: nn.Parameter

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.flatten(1).split(blocks_of(self.parameter))


class Muon:
    """Momentum, made orthogonal, for hidden matrices; all matrices of one shape go through one bmm.

    Args:
        named: the parameters, two-dimensional or flattened to rows x rest.
        settings: learning_rate, momentum, weight_decay and cautious of the recipe.
        dtype: what Newton-Schulz computes in.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], settings: Optimizer, dtype: torch.dtype) -> None:
        self.named = [Named(name, parameter) for name, parameter in named]
        self.settings, self.dtype = settings, dtype
        self.momentum = {one.name: torch.zeros_like(one.parameter) for one in self.named}

    @torch.no_grad()
    def step(self, multiplier: float, scale: float = 1.0) -> None:
        """Move every parameter with a gradient, `scale` times that, by `multiplier` times the learning rate."""
        moving = [one for one in self.named if one.parameter.grad is not None]
        if not moving:
            return
        gradients = [one.parameter.grad for one in moving if one.parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)
        momenta = [self.momentum[one.name] for one in moving]
        torch._foreach_lerp_(momenta, gradients, 1 - self.settings.momentum)
        updates = torch._foreach_lerp(gradients, momenta, self.settings.momentum)
        learning_rate = self.settings.learning_rate * multiplier
        decay = learning_rate * self.settings.weight_decay
        for block, update, weights in self._orthogonal(moving, updates):
            # sqrt(max(1, R / C)) of Jordan 2024: rows and columns of an update are about as long as those of the input.
            self._apply(weights, update, learning_rate * sqrt(max(1, block[0] / block[1])), decay)

    def _orthogonal(
        self, moving: Sequence[Named], updates: Sequence[Tensor]
    ) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
        """For every block of every parameter: its shape, its update made orthogonal, and the weights it is for."""
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for one, update in zip(moving, updates, strict=True):
            for update_RC, weights_RC in zip(one.split(update), one.split(one.parameter), strict=True):
                by_shape.setdefault((update_RC.shape[0], update_RC.shape[1]), []).append((update_RC, weights_RC))
        for shape, pairs in by_shape.items():
            stacked_NRC = pairs[0][0].new_empty((len(pairs), *shape), dtype=self.dtype)
            for place_RC, (update_RC, _) in zip(stacked_NRC, pairs, strict=True):
                place_RC.copy_(update_RC)
            for done_RC, (_, weights_RC) in zip(orthogonalise(stacked_NRC), pairs, strict=True):
                yield shape, done_RC, weights_RC

    def _apply(self, weights_RC: Tensor, update_RC: Tensor, learning_rate: float, decay: float) -> None:
        if decay and self.settings.cautious:  # decay only where the step itself goes towards zero
            towards_RC = (update_RC * weights_RC).gt_(0)
            weights_RC.addcmul_(weights_RC, towards_RC, value=-decay)
        elif decay:
            weights_RC.mul_(1 - decay)
        weights_RC.add_(update_RC, alpha=-learning_rate)


class PlayerOptimizer:
    """All that moves one player's parameters: Muon on role "matrix" (unless kind is "adamw"), AdamW on the rest.

    Args:
        named: name, parameter and role (`core.family.ROLES`) of each parameter of the player.
        settings: the recipe's optimizer.
        dtype: what Muon computes in, as `faster_dtype` found.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter, str]], settings: Optimizer, dtype: torch.dtype = torch.float32
    ) -> None:
        named = [(name, parameter, role) for name, parameter, role in named if parameter.requires_grad]
        is_muon = settings.kind == "muon"
        self.settings = settings
        self.muon = Muon([(name, p) for name, p, role in named if is_muon and role == "matrix"], settings, dtype)
        rest = [(name, p, role) for name, p, role in named if not (is_muon and role == "matrix")]
        self._names = {name: parameter for name, parameter, _ in rest}
        self._device = rest[0][1].device if rest else None
        # With Muon, tables and output layers are left undecayed (nanochat); AdamW alone decays all but vectors (GPT-3).
        decayed = [p for _, p, role in rest if not is_muon and role != "vector"]
        plain = [p for _, p, role in rest if is_muon or role == "vector"]
        groups = [
            {"params": parameters, "weight_decay": decay}
            for parameters, decay in ((decayed, settings.weight_decay), (plain, 0.0))
            if parameters
        ]
        self.adam = (
            torch.optim.AdamW(
                groups, lr=settings.adam_learning_rate, betas=settings.betas, eps=ADAM_EPSILON, fused=True
            )
            if groups
            else None
        )

    def step(self, multiplier: float, scale: float = 1.0) -> None:
        """One step at `multiplier` times the learning rates; parameters without a gradient stay.

        Args:
            multiplier: of the learning rates.
            scale: what the gradients are multiplied by first. AdamW does it where it reads them anyway: a pass of its
                own over them costs 3 % of a step of a 124 M model.
        """
        self.muon.step(multiplier, scale)
        if self.adam is not None:
            setattr(self.adam, "grad_scale", torch.tensor(1 / scale, device=self._device))  # noqa: B010  it divides by this
            for group in self.adam.param_groups:
                group["lr"] = self.settings.adam_learning_rate * multiplier
            self.adam.step()

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as plain tensors, for the checkpoint: `kind/name` -> tensor."""
        state = {f"momentum/{name}": momentum for name, momentum in self.muon.momentum.items()}
        for name, parameter in self._names.items():
            for kind, value in (self.adam.state[parameter] if self.adam else {}).items():
                state[f"{kind}/{name}"] = value
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave, on the parameters' device.

        Raises:
            CheckpointError: names or shapes are not those of this player.
        """
        for key, value in state.items():
            kind, _, name = key.partition("/")
            momentum = self.muon.momentum.get(name) if kind == "momentum" else None
            if momentum is not None and momentum.shape == value.shape:
                momentum.copy_(value)
            elif kind != "momentum" and name in self._names and self.adam is not None:
                parameter = self._names[name]
                self.adam.state[parameter][kind] = value.to(parameter.device, copy=True)
            else:
                raise CheckpointError(
                    f"the optimizer's state `{key}` {list(value.shape)} belongs to no parameter of this model",
                    "the checkpoint was made with another recipe or another version",
                    "resume with the recipe that lies in the run",
                )


def state_bytes(named: Iterable[tuple[str, nn.Parameter, str]], settings: Optimizer) -> int:
    """Bytes that the optimizer will keep for these parameters: one copy for Muon, two for AdamW."""
    return sum(
        parameter.numel() * parameter.element_size() * (1 if settings.kind == "muon" and role == "matrix" else 2)
        for _, parameter, role in named
        if parameter.requires_grad
    )


def faster_dtype(named: Iterable[tuple[str, nn.Parameter, str]], repeats: int = 3) -> Faster:
    """Whether Newton-Schulz runs faster in bf16 here on this player's largest group of matrices, and how much.

    Returns:
        the ratio is seconds in float32 over seconds in bfloat16 (1.0 where there is no matrix).
    """
    count: dict[tuple[int, ...], list[Tensor]] = {}
    for _, parameter, role in named:
        if role == "matrix":
            for block in parameter.detach().flatten(1).split(blocks_of(parameter)):
                count.setdefault(tuple(block.shape), []).append(block)
    if not count:
        return Faster(False, 1.0)
    if not has_bf16(next(iter(count.values()))[0].device):
        return Faster(False, 0.0)
    group_NRC = torch.stack(max(count.values(), key=lambda blocks: len(blocks) * prod(blocks[0].shape)))
    group_NRC = group_NRC + torch.eye(*group_NRC.shape[-2:], device=group_NRC.device)  # zeros would be too easy
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        best = float("inf")
        for _ in range(repeats):
            began = time.perf_counter()
            orthogonalise(group_NRC.to(dtype)).float().sum().item()  # .item() waits for the device
            best = min(best, time.perf_counter() - began)
        seconds[dtype] = best
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    return Faster(ratio > 1, ratio)
