"""Low-rank adapters: frozen matrices, and beside each a product of two thin ones that learns.

    x -> x W^T + b             (frozen; floats, or packed in 8 or 4 bits) -----------------+-> y
      -> x A^T [parts x rank] -> each part's own rows of it B^T [outputs] -> alpha / rank -+

    DoRA: each row of W + alpha / rank B A is brought to a length that is learned by itself (`magnitude`).

A layer that holds several matrices of one input (queries, keys and values; gate and up) has an A and a B for each, all
computed as one product. B starts at zero, so an adapted model starts as its base. A convolution's kernels count as the
rows of a matrix [outputs, inputs x height x width].

Hu et al. 2021, arXiv:2106.09685 (LoRA); Liu et al. 2024, arXiv:2402.09353 (DoRA; the length's divisor is held constant
in the gradient, section 4.3); Dettmers et al. 2023, arXiv:2305.14314 (packed bases).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.family import Family
from nomoat.nn.backbone import Stack
from nomoat.nn.derive import derivable, forward_mode
from nomoat.nn.linear import INSIDE, Cast
from nomoat.nn.packed import Packed, PackedEmbedding, PackedLinear
from nomoat.nn.scene import working_dtype
from nomoat.nn.unet import UNetTrunk

TARGETS = ("qkv", "out", "up", "down", "conv_1", "conv_2")
ALSO = {"in_proj": "qkv"}
"""A Mamba layer's first projection is to it what `qkv` is to attention: it is meant by that name too."""
MERGE_FIRST = "merge it first: `nomoat export RUN`, then `nomoat import` what that wrote"


@dataclass(frozen=True)
class LoRA:
    """What is trained instead of the weights themselves: `Recipe(..., start=Ref(base), adapt=LoRA())`.

    Args:
        rank: of the product, at most the least width of a layer that it stands beside.
        alpha: the product is multiplied by alpha / rank.
        targets: names of the stacks' linear layers and of a UNet's convolutions that get one; those that a model does
            not have are passed over, as long as it has any of them.
        dora: learn the length of each row by itself.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(
                f"an adapter of rank {self.rank} holds nothing", fix="use a rank of 1 or more; 8 is usual"
            )
        if not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"alpha is {self.alpha}", "the product is multiplied by alpha / rank", "2 x rank is usual"
            )

    def apply(self, family: Family) -> Family:
        """Freeze the model and put adapters beside its layers, drawn from torch's generator; returns it, changed.

        Raises:
            ConfigError: a target that there is not, a rank above a layer's width, a model that is adapted already.
        """
        product = family.starts
        if adapted_layers(product):
            raise ConfigError("this model is adapted already", "one adapter on another is not kept apart", MERGE_FIRST)
        layers: dict[str, Any] = {**dict(linear_layers(product)), **dict(convolutions(product))}
        names = {name.rsplit(".", 1)[-1] for name in layers}
        if unknown := [target for target in self.targets if target not in names and target not in TARGETS]:
            near = nearest(unknown[0], names)
            raise ConfigError(f"no layer is called `{unknown[0]}`", f"there is {', '.join(sorted(names))}", near)
        chosen = [name for name in layers if {(leaf := name.rsplit(".", 1)[-1]), ALSO.get(leaf)} & set(self.targets)]
        if not chosen:
            why = f"it has {', '.join(sorted(names)) or 'none in a stack'}"
            raise ConfigError(f"this model has no layer {' or '.join(self.targets)}", why, "name some in adapt.targets")
        product.requires_grad_(False)
        for layer in layers.values():
            if isinstance(layer, PackedLinear):
                layer.exact = True
        for name in chosen:
            kind = AdaptedConv if isinstance(layers[name], nn.Conv2d) else Adapted
            put(product, name, kind(layers[name], self, name))
        held = {id(one) for one in (*product.parameters(), *product.buffers()) if not one.requires_grad}
        for each in (family, product):
            state = each.state_dict(keep_vars=True)
            each.shared = frozenset(name for name, tensor in state.items() if id(tensor) in held)
        return family

    @staticmethod
    def merged(family: Family) -> Family:
        """See `merged`: for the core, which does not know this file."""
        return merged(family)


class Adapted(nn.Module):
    """A frozen linear layer with its adapter; weights and biases keep the names that they have without it.

    Args:
        base: the layer.
        lora: rank, alpha, whether DoRA.
        name: for errors.
    """

    weight: Tensor
    matrix: Packed
    squares: Tensor

    def __init__(self, base: Any, lora: LoRA, name: str = "layer") -> None:
        super().__init__()
        packed = isinstance(base, PackedLinear)
        outputs, inputs = (base.matrix.outputs, base.matrix.inputs) if packed else base.weight.flatten(1).shape
        self.blocks: tuple[int, ...] = getattr(base, "blocks", (outputs,))
        self.scale, rank = lora.alpha / lora.rank, lora.rank
        if rank > (most := min(inputs, *self.blocks)):
            raise ConfigError(f"rank {rank} is above {most}, a width of `{name}`", fix=f"use a rank of {most} or less")
        if packed:
            self.matrix = base.matrix
        else:
            self.weight = base.weight
        self.bias = base.bias
        like = base.matrix.scales if packed else base.weight
        self.a = nn.Parameter(torch.empty(len(self.blocks) * rank, inputs, device=like.device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=like.device))
        nn.init.uniform_(self.a, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        for parameter, rows in ((self.a, (rank,) * len(self.blocks)), (self.b, self.blocks)):
            setattr(parameter, "blocks", rows)  # noqa: B010  each is a matrix of its own to the optimizer
        self.magnitude: nn.Parameter | None = None
        if lora.dora:
            squares = self.dense().square().sum(1)
            self.register_buffer("squares", squares, persistent=False)
            self.magnitude = nn.Parameter(squares.sqrt())
        self._cast = Cast()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        dtype = working_dtype(x)
        weight = self.matrix if hasattr(self, "matrix") else self._cast.of(self.weight, dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        shape = self.scale, self.blocks
        if self.magnitude is None:
            return product(x.to(dtype), weight, bias, self.a, self.b, shape)
        y = product(x.to(dtype), weight, None, self.a, self.b, shape)
        y = y * (self.magnitude / self.lengths()).to(dtype)
        return y if bias is None else y + bias

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """The length of each row of W + alpha / rank B A, [outputs], from |W|^2 and thin products alone."""
        with torch.autocast(self.a.device.type, enabled=False):
            crossed, squared = [], []
            rows = self.dense().split(self.blocks), self.a.chunk(len(self.blocks)), self.b.split(self.blocks)
            for w, a, b in zip(*rows, strict=True):
                crossed.append(((w @ a.T) * b).sum(1))
                squared.append(((b @ (a @ a.T)) * b).sum(1))
            grown = 2 * self.scale * torch.cat(crossed) + self.scale**2 * torch.cat(squared)
            return (self.squares + grown).clamp_(min=1e-12).sqrt_()

    def dense(self) -> Tensor:
        """The frozen weights [outputs, inputs] in float."""
        return dense(self).detach().flatten(1).to(torch.promote_types(self.a.dtype, torch.float32))

    def thin(self) -> tuple[Tensor, Tensor]:
        """A [parts x rank, inputs] and B [outputs, parts x rank], times the scale and zero outside of its parts."""
        return self.a.detach(), spread(self.b.detach() * self.scale, self.blocks)

    def whole(self) -> Tensor:
        """The weights [outputs, inputs] that layer and adapter come to."""
        a, b = self.thin()
        weight = self.dense() + b @ a
        if self.magnitude is not None:
            weight *= (self.magnitude.detach() / torch.linalg.vector_norm(weight, dim=1).clamp(min=1e-6))[:, None]
        return weight


class AdaptedConv(Adapted):
    """A frozen convolution with its adapter: the small product is added to its kernels, which are then used once."""

    def __init__(self, base: nn.Conv2d, lora: LoRA, name: str = "layer") -> None:
        super().__init__(base, lora, name)
        self.kept: dict[str, Any] = {"stride": base.stride, "padding": base.padding}

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, Y, X] to the other number of channels."""
        weight = self.weight + self.scale * (self.b @ self.a).view_as(self.weight)
        if self.magnitude is not None:
            weight = weight * (self.magnitude / self.lengths())[:, None, None, None]
        dtype = working_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.conv2d(x.to(dtype), weight.to(dtype), bias, **self.kept)


def dense(layer: nn.Module) -> Tensor:
    """The weights of a linear layer or a table; packed ones become what they stand for."""
    matrix = getattr(layer, "matrix", None)
    return cast(Tensor, layer.weight) if matrix is None else cast(Packed, matrix).weight()


def spread(b: Tensor, blocks: Sequence[int]) -> Tensor:
    """Each part's B [rows, rank] as the blocks of one matrix [outputs, parts x rank], zero elsewhere."""
    return b if len(blocks) == 1 else torch.block_diag(*b.split(list(blocks)))


def gathered(wide: Tensor, blocks: Sequence[int]) -> Tensor:
    """The blocks of such a matrix again, [outputs, rank]."""
    rank, parts = wide.shape[1] // len(blocks), wide.split(list(blocks))
    return torch.cat([part[:, place * rank : (place + 1) * rank] for place, part in enumerate(parts)])


Shape = tuple[float, tuple[int, ...]]
"""The scale of an adapter, and the rows of the matrices that its layer holds."""


def product(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """x W^T + bias + scale (x A^T) B^T, part by part; W gets no gradient.

    Args:
        x: [..., inputs], in the dtype to compute in.
        weight: [outputs, inputs] in that dtype, or packed: unpacked for each product, and again for its gradient.
        bias: [outputs] or None; it gets no gradient.
        a: [parts x rank, inputs].
        b: [outputs, rank].
        shape: scale and rows of each part.
    """
    inputs = (x, weight, bias, a, b, shape)
    return plain_product(*inputs) if forward_mode(inputs) else _Product.apply(*inputs)


def plain_product(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None, a: Tensor, b: Tensor, shape: Shape
) -> Tensor:
    """The same in ordinary operations, which can be derived in any way."""
    scale, blocks = shape
    grown = F.linear(F.linear(x, a.to(x.dtype)), spread(b * scale, blocks).to(x.dtype))
    return F.linear(x, _plain(weight, x.dtype), bias) + grown


def _plain(weight: Tensor | Packed, dtype: torch.dtype) -> Tensor:
    return weight.weight().to(dtype) if isinstance(weight, Packed) else weight


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Packed, bias: Tensor | None, a: Tensor, b: Tensor, shape: Shape
    ) -> Tensor:
        scale, blocks = shape
        low_a, wide_b = a.to(x.dtype), spread(b * scale, blocks).to(x.dtype)
        held = _plain(weight, x.dtype)
        inside = INSIDE is not None and bias is not None and x.dtype == torch.bfloat16 and x.is_cpu
        with torch.autocast(x.device.type, enabled=False):
            y = INSIDE(x, held, bias, "none", [], "") if inside and INSIDE else F.linear(x, held, bias)
            rows = x.reshape(-1, x.shape[-1])
            thin = rows @ low_a.T
            y.view(-1, y.shape[-1]).addmm_(thin, wide_b.T)
        ctx.save_for_backward(x, a, b, low_a, wide_b, thin)
        ctx.given = weight, bias, shape  # frozen: to save them would count them among what a row of a batch costs
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, low_a, wide_b, thin = ctx.saved_tensors
        weight, bias, (scale, blocks) = ctx.given
        if torch.is_grad_enabled():
            return derivable(plain_product, (x, weight, bias, a, b, (scale, blocks)), (grad,))
        rows = grad.reshape(-1, grad.shape[-1])
        grad_thin = rows @ wide_b
        grad_a = (grad_thin.T @ x.reshape(-1, x.shape[-1])).to(a.dtype)
        grad_b = gathered(rows.T @ thin, blocks).to(b.dtype) * scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (rows @ _plain(weight, x.dtype)).addmm_(grad_thin, low_a).view(x.shape)
        return grad_x, None, None, grad_a, grad_b, None


def linear_layers(product: nn.Module) -> Iterator[tuple[str, nn.Linear | PackedLinear]]:
    """The linear layers of a model's stacks, by name; its output layer is in none."""
    for above, stack in product.named_modules():
        if isinstance(stack, Stack):
            for name, module in stack.named_modules():
                if isinstance(module, nn.Linear | PackedLinear):
                    yield f"{above}.{name}".lstrip("."), module


def convolutions(product: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """The convolutions of a model's UNets, by name."""
    for above, trunk in product.named_modules():
        if isinstance(trunk, UNetTrunk):
            for name, module in trunk.named_modules():
                if isinstance(module, nn.Conv2d):
                    yield f"{above}.{name}".lstrip("."), module


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The adapted layers of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of that name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


@torch.no_grad()
def merged(family: Family) -> Family:
    """The model with its adapters worked into plain float weights; one that has none comes back as it is.

    The model given is changed. Packed weights all become the floats that they stand for.
    """
    layers = adapted_layers(family)
    if not layers:
        return family
    for name, module in list(family.named_modules()):
        if isinstance(module, Adapted | PackedLinear):
            weight = module.whole() if isinstance(module, Adapted) else dense(module)
            plain: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            if isinstance(module, AdaptedConv):
                weight = weight.view_as(module.weight)
                outputs, inputs, *sides = weight.shape
                plain = nn.Conv2d(inputs, outputs, (sides[0], sides[1]), **module.kept, bias=False, device="meta")
            plain.weight = nn.Parameter(weight, requires_grad=False)
            plain.register_parameter("bias", module.bias)
            setattr(plain, "blocks", getattr(module, "blocks", (len(weight),)))  # noqa: B010
            put(family, name, plain)
        elif isinstance(module, PackedEmbedding):
            put(family, name, nn.Embedding.from_pretrained(dense(module)))
    if getattr(family.config, "bits", 16) < 16:
        family.config = replace(family.config, bits=16)
    family.shared = frozenset()
    return family.train(family.training)
