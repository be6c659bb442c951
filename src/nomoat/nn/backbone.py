"""The backbone: one frozen config, one stack of mixers and MLPs, for every family.

    x_BLD + learned positions -> [norm -> mixer -> +] [norm -> cross-attention -> +] [norm -> MLP -> +] x depth
          -> norm -> Trace(x_BLD, layers)

Vaswani et al. 2017, arXiv:1706.03762; the dialects' sources stand in nn/dialect.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from nomoat.core.errors import ConfigError, nearest
from nomoat.nn.dialect import OURS, Dialect, MambaConfig

MIXERS = ("attention", "mamba")


@dataclass(frozen=True)
class Backbone:
    """A stack of layers. `width`, `depth` and `heads` are enough; the rest follows.

    Args:
        width: D, numbers a position.
        depth: layers.
        heads: query heads H.
        kv_heads: key-value heads G; None: as many as heads.
        head_width: K; None: width / heads.
        mlp_width: inner width of the MLP; None: 4 width, or 8/3 width rounded up to 32 where it is gated.
        mixers: "attention", "mamba", or a pattern of both that repeats over the depth.
        dialect: the closed set of choices, nn/dialect.py.
        causal: read from left to right; False: every position sees every other.
        window: attention sees this many tokens back (and forth, where not causal); None: all.
        positions_length: rows of the table of learned positions, or number of relative buckets.
        position_axes: 1 for text, 2 for pictures: rotary positions are [B, L, axes].
        cond_width: width of the condition vector; 0: no such port.
        context_width: width of the sequence for cross-attention; 0: no such port.
        mamba: sizes of the Mamba mixer.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_width: int | None = None
    mlp_width: int | None = None
    mixers: str | tuple[str, ...] = "attention"
    dialect: Dialect = OURS
    causal: bool = True
    window: int | None = None
    positions_length: int = 0
    position_axes: int = 1
    cond_width: int = 0
    context_width: int = 0
    mamba: MambaConfig = MambaConfig()

    @property
    def pattern(self) -> tuple[str, ...]:
        """The mixer of each layer."""
        words = (self.mixers,) if isinstance(self.mixers, str) else self.mixers
        return tuple(words[layer % len(words)] for layer in range(self.depth))
