"""The parts of a layer, put together when the stack is built: norm, body, bound, factor and condition, then the sum.

    pre:   x -> norm -> enter -> body -> bound -> factor -> leave -> + x
    post:  x -> enter -> body -> bound -> factor -> leave -> + x -> norm
    layer: (x, x0) -> blend -> mixer part -> cross-attention part -> MLP part

Post: Vaswani et al. 2017; pre: Xiong et al. 2020, arXiv:2002.04745; factor: Touvron et al. 2021, arXiv:2103.17239.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.nn.attention import Attention, CrossAttention
from nomoat.nn.condition import make_port
from nomoat.nn.dialect import Dialect
from nomoat.nn.linear import draw_
from nomoat.nn.mamba import MambaMixer
from nomoat.nn.masks import RelativePositions
from nomoat.nn.memory import LayerMemory
from nomoat.nn.mlp import MLP, GatedMLP
from nomoat.nn.norms import make_norm
from nomoat.nn.resolve import Rules
from nomoat.nn.rotary import Rotary
from nomoat.nn.scene import Scene

if TYPE_CHECKING:
    from nomoat.nn.backbone import Backbone


class Factor(nn.Module):
    """A learned factor on each of the `width` numbers (layer scale)."""

    def __init__(self, width: int, first: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), first))

    def forward(self, y_BLD: Tensor) -> Tensor:
        """y * weight."""
        return y_BLD * self.weight


class Bound(nn.Module):
    """y / sqrt(1 + mean(y^2)): small outputs pass, large ones come to a root mean square of 1."""

    def forward(self, y_BLD: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        power_BL1 = y_BLD.float().square().mean(-1, keepdim=True)
        return y_BLD * (1 + power_BL1).rsqrt().to(y_BLD.dtype)


class PrePart(nn.Module):
    """x + body(norm(x)): the norm before the body."""

    body: Any

    def __init__(self, body: nn.Module, width: int, dialect: Dialect, cond_width: int = 0) -> None:
        super().__init__()
        self.norm = make_norm(dialect, width)
        self.body = body
        self.factor = nn.Identity() if dialect.layer_scale is None else Factor(width, dialect.layer_scale)
        self.bound = Bound() if dialect.bounded else nn.Identity()
        self.cond = make_port(cond_width, width)

    def forward(self, x_BLD: Tensor, scene: Scene, memory: LayerMemory | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        change = self.cond(scene)
        y_BLD = self.body(change.enter(self.norm(x_BLD)), scene, memory)
        return x_BLD + change.leave(self.factor(self.bound(y_BLD)))


class PostPart(PrePart):
    """norm(x + body(x)): the norm after the sum."""

    def forward(self, x_BLD: Tensor, scene: Scene, memory: LayerMemory | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        change = self.cond(scene)
        y_BLD = self.body(change.enter(x_BLD), scene, memory)
        return self.norm(x_BLD + change.leave(self.factor(self.bound(y_BLD))))


class Skip(nn.Module):
    """Stands where a layer has no such part."""

    def forward(self, x_BLD: Tensor, *_: object) -> Tensor:
        """x."""
        return x_BLD


class Blend(nn.Module):
    """a x + b x0 with learned a (1 at first) and b (0 at first): each layer may go back to the stack's input.

    Jordan et al. 2024, modded-nanogpt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x_BLD: Tensor, first_BLD: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        return self.weight[0] * x_BLD + self.weight[1] * first_BLD


class Layer(nn.Module):
    """One layer: mixer, cross-attention where there is a context, MLP."""

    cross: PrePart | Skip

    def __init__(self, mixer: PrePart, cross: PrePart | Skip, mlp: nn.Module, blend: nn.Module) -> None:
        super().__init__()
        self.blend, self.mixer, self.cross, self.mlp = blend, mixer, cross, mlp

    def forward(
        self, x_BLD: Tensor, first_BLD: Tensor, scene: Scene, memories: tuple[LayerMemory | None, ...]
    ) -> Tensor:
        """[B, L, D] to [B, L, D]; `memories` are the mixer's and the cross-attention's."""
        x_BLD = self.mixer(self.blend(x_BLD, first_BLD), scene, memories[0])
        if scene.context_BMD is not None or scene.context_reach:
            x_BLD = self.cross(x_BLD, scene, memories[1])
        return self.mlp(x_BLD, scene)


class Table(nn.Module):
    """Learned positions, added to the stack's input; none where the position is negative."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw_(torch.empty(rows, width), 0.02))

    def forward(self, x_BLD: Tensor, positions: Tensor) -> Tensor:
        """[B, L, D] and integers [1 or B, L] to [B, L, D]."""
        return x_BLD + F.embedding(positions.clamp(min=0), self.weight) * (positions >= 0).unsqueeze(-1)


def make_table(backbone: Backbone) -> nn.Module:
    """The table of learned positions, or what stands in its place."""
    if backbone.dialect.positions != "learned":
        return Skip()
    return Table(backbone.positions_length, backbone.width)


def make_relative(backbone: Backbone) -> RelativePositions | None:
    """The bias of relative positions that all layers share, where the dialect has one."""
    dialect = backbone.dialect
    if dialect.positions != "relative" or "attention" not in backbone.pattern:
        return None
    return RelativePositions(backbone.positions_length, backbone.heads, dialect.relative_distance, backbone.causal)


def make_rules(backbone: Backbone) -> Rules:
    """What every call of the stack obeys."""
    dialect, attends = backbone.dialect, "attention" in backbone.pattern
    turns = attends and dialect.positions == "rope"
    return Rules(
        causal=backbone.causal,
        window=backbone.window,
        depth=backbone.depth,
        axes=backbone.position_axes,
        rotary=Rotary.of(dialect, backbone.head_size, backbone.position_axes) if turns else None,
        table=backbone.positions_length if dialect.positions == "learned" else 0,
        cond=backbone.cond_width > 0,
        context=backbone.context_width > 0,
        attends=attends,
    )


def _attention(backbone: Backbone) -> nn.Module:
    return Attention(backbone.width, backbone.heads, backbone.groups, backbone.head_size, backbone.dialect)


def _mamba(backbone: Backbone) -> nn.Module:
    return MambaMixer(backbone.width, backbone.mamba, backbone.causal, backbone.dialect)


MIXERS = {"attention": _attention, "mamba": _mamba}


def make_layer(backbone: Backbone, mixer: str) -> Layer:
    """One layer around the mixer of that name. The cross-attention port's norm stands before it in any dialect, so
    that it changes nothing at the start."""
    dialect, width = backbone.dialect, backbone.width
    part = PrePart if dialect.place == "pre" else PostPart
    cross: PrePart | Skip = Skip()
    if backbone.context_width:
        body = CrossAttention(
            width, backbone.context_width, backbone.heads, backbone.groups, backbone.head_size, dialect
        )
        cross = PrePart(body, width, dialect)
    mlp: nn.Module = Skip()
    if dialect.mlp == "every":
        inner = (GatedMLP if dialect.gated else MLP)(width, backbone.inner, dialect)
        mlp = part(inner, width, dialect, backbone.cond_width)
    return Layer(
        part(MIXERS[mixer](backbone), width, dialect, backbone.cond_width),
        cross,
        mlp,
        Blend() if dialect.residual_scalars else Skip(),
    )
