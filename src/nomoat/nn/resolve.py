"""From what a call of a stack is given to the Scene that its layers share.

x_BLD, positions, Ports, Memory, slots -> check -> seat (memory) -> order and positions -> masks, angles -> Scene
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.nn.masks import RelativePositions, additive, is_needed, is_triangle, seen
from nomoat.nn.memory import Memory
from nomoat.nn.rotary import Rotary
from nomoat.nn.scene import Scene, with_adapters, working_dtype

Slots = Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Rules:
    """What a stack fixes when it is built and every call obeys.

    Args:
        causal, window: as in Backbone.
        depth: layers.
        axes: position axes.
        rotary: frequencies of the rotary positions; None: no such positions.
        table: rows of the table of learned positions; 0: no table.
        cond, context: whether the stack has that port.
        attends: whether any layer is attention (else no mask is made).
        adapters: how many a row may be read with.
    """

    causal: bool
    window: int | None
    depth: int
    axes: int
    rotary: Rotary | None
    table: int
    cond: bool
    context: bool
    attends: bool
    adapters: int = 0


@dataclass(frozen=True)
class Call:
    """What one call of a stack is given, beside its input."""

    positions: Tensor | None
    ports: Ports
    memory: Memory | None
    slots: Slots
    kernel: str


def resolve(rules: Rules, call: Call, x_BLD: Tensor, relative: RelativePositions | None = None) -> Scene:
    """Everything that the layers share. Raises ConfigError where a port is used that the stack lacks."""
    _check(rules, call)
    ports = call.ports
    scene = Scene(
        causal=rules.causal,
        valid_BL=None if ports.valid_BL is None or bool(ports.valid_BL.all()) else ports.valid_BL,
        documents_BL=None if ports.documents_BL is None or _single(ports.documents_BL) else ports.documents_BL,
        prefix_B=ports.prefix_B,
        reach=x_BLD.shape[1],
        context_BMD=ports.context_BMD,
        context_valid_BM=ports.context_valid_BM,
        cond_B1D=None if ports.cond_BD is None else F.silu(ports.cond_BD).unsqueeze(1),
        kernel=call.kernel,
    )
    if call.memory is not None:
        scene = _seat(scene, call.memory, call.slots, x_BLD)
    scene = _adapt(scene, rules, call, x_BLD) if rules.adapters else scene
    scene = _listen(scene, call.memory, x_BLD) if rules.context else scene
    scene = _place(scene, rules, call, x_BLD)
    return _see(scene, rules, x_BLD, relative)


def _check(rules: Rules, call: Call) -> None:
    """Refuse what would be ignored in silence."""
    ports, axes = call.ports, rules.axes
    for given, has, port, field in (
        (ports.cond_BD, rules.cond, "condition", "cond_width"),
        (ports.context_BMD, rules.context, "context", "context_width"),
    ):
        if given is not None and not has:
            raise ConfigError(f"this stack has no {port} port", fix=f"build the backbone with {field} > 0")
    if ports.adapter_B is not None and not rules.adapters:
        raise ConfigError("this stack has no low-rank adapters", "adapter_B names one for each row")
    if ports.residuals is not None and len(ports.residuals) != rules.depth:
        raise ConfigError(f"{len(ports.residuals)} residuals for {rules.depth} layers", fix="pass one for each layer")
    if call.memory is not None and not rules.causal:
        raise ConfigError(
            "a stack that sees in both directions has no memory", "what it read would change with each token"
        )
    if call.memory is not None and ports.documents_BL is not None:
        raise ConfigError("documents and a memory do not mix", "one slot holds one document", "pass documents_BL=None")
    if call.positions is None and axes > 1:
        raise ConfigError(f"positions on {axes} axes must be passed", fix=f"pass integers [B, L, {axes}]")


def _single(documents_BL: Tensor) -> bool:
    """True where no row holds more than one document."""
    return bool((documents_BL == documents_BL[:, :1]).all())


def _seat(scene: Scene, memory: Memory, slots: Slots, x_BLD: Tensor) -> Scene:
    """Where in the memory each row goes on; makes room for what it brings."""
    rows, length = x_BLD.shape[:2]
    seats = list(range(rows)) if slots is None else [int(slot) for slot in slots]
    if len(seats) != rows or len(set(seats)) != rows:
        raise ConfigError(f"slots {seats} for {rows} rows", "each row goes on in a slot of its own")
    lengths = tuple(memory.lengths[seat] for seat in seats)
    counts = (length,) * rows if scene.valid_BL is None else tuple(scene.valid_BL.sum(1).tolist())
    for seat, held, new in zip(seats, lengths, counts, strict=True):
        memory.reserve(seat, held + new)
    device = x_BLD.device
    slots_B = torch.tensor(seats, device=device)
    first = seats[0]
    together = seats == list(range(first, first + rows))
    return replace(
        scene,
        slots=slots_B,
        seats=tuple(seats),
        rows=slice(first, first + rows) if together else slots_B,
        lengths=lengths,
        counts=counts,
        lengths_B=torch.tensor(lengths, device=device),
        reach=max(held + new for held, new in zip(lengths, counts, strict=True)),
    )


def _adapt(scene: Scene, rules: Rules, call: Call, x_BLD: Tensor) -> Scene:
    """Which adapter each row is read with: as the port says, else as its slot of the memory was begun."""
    chosen = call.ports.adapter_B
    if chosen is None and call.memory is not None:
        chosen = torch.tensor([call.memory.adapters[seat] for seat in scene.seats])
    if chosen is None or bool((chosen == -1).all()):
        return scene
    if chosen.shape != x_BLD.shape[:1] or not -1 <= int(chosen.min()) <= int(chosen.max()) < rules.adapters:
        why = f"the stack has {rules.adapters}, counted from 0, and -1 is none"
        raise ConfigError(f"{chosen.tolist()} are no adapters of {len(x_BLD)} rows", why)
    return replace(scene, linear=with_adapters((chosen % (rules.adapters + 1)).to(x_BLD.device)))


def _listen(scene: Scene, memory: Memory | None, x_BLD: Tensor) -> Scene:
    """Which columns of the context each row hears: those passed, else those that the memory holds."""
    valid_BM = scene.context_valid_BM
    if scene.context_BMD is None:
        if memory is None:
            return scene
        held = [memory.context_lengths[seat] for seat in scene.seats]
        reach = max(held)
        scene = replace(scene, context_reach=reach)
        if min(held) < reach:
            columns = torch.arange(reach, device=x_BLD.device)
            valid_BM = columns < torch.tensor(held, device=x_BLD.device)[:, None]
    if valid_BM is None or bool(valid_BM.all()):
        return scene
    some_B1 = valid_BM.any(1, keepdim=True)
    # A softmax needs a term: a row without context sees its padding, and what it gets is multiplied by 0.
    mask = additive((valid_BM | ~some_B1).unsqueeze(1), working_dtype(x_BLD))
    return replace(scene, context_mask=mask, context_given=None if some_B1.all() else some_B1.unsqueeze(2))


def _place(scene: Scene, rules: Rules, call: Call, x_BLD: Tensor) -> Scene:
    """The index of each position among the valid ones, and the positions where none were passed."""
    length = x_BLD.shape[1]
    if scene.valid_BL is None:
        order_BL = torch.arange(length, device=x_BLD.device)[None]
    else:
        order_BL = (scene.valid_BL.long().cumsum(1) - 1).clamp(min=0)
    if scene.lengths_B is not None:
        order_BL = order_BL + scene.lengths_B[:, None]
    positions = call.positions
    if positions is None:
        positions = order_BL
        if rules.table:
            if scene.documents_BL is not None:  # rotary positions need no restart: only differences count there
                positions = _restarted(order_BL, scene.documents_BL)
            elif max((*scene.lengths, 0)) + length > rules.table and int(order_BL.max()) >= rules.table:
                raise ConfigError(
                    f"position {int(order_BL.max()) + 1} of a stack with {rules.table} learned positions",
                    fix=f"pass at most {rules.table} tokens, or build the backbone with a greater positions_length",
                )
    return replace(scene, order_BL=order_BL, positions=positions)


def _restarted(order_BL: Tensor, documents_BL: Tensor) -> Tensor:
    """The index since the start of each position's document."""
    starts = documents_BL.diff(dim=1, prepend=documents_BL[:, :1] - 1) != 0
    first = torch.where(starts, order_BL, 0).cummax(1).values
    return order_BL - first


def _see(scene: Scene, rules: Rules, x_BLD: Tensor, relative: RelativePositions | None) -> Scene:
    """Masks and angles, for the stacks that attend."""
    dtype = working_dtype(x_BLD)
    mask, triangle = None, False
    if rules.attends:
        triangle = is_triangle(scene)
        drawn = triangle and scene.kernel != "plain" and relative is None
        if is_needed(scene, rules.window, x_BLD.shape[1]) or (triangle and not drawn):
            mask = additive(seen(scene, rules.window), dtype)
        if relative is not None:
            bias = relative(scene).to(dtype)
            mask = bias if mask is None else mask + bias
    angles = rules.rotary.angles(scene.positions, dtype) if rules.rotary and scene.positions is not None else None
    return replace(scene, triangle=triangle, mask=mask, angles=angles)
