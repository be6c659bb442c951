"""What is measured or chosen once, before the first step, and written to the run as decisions.

    family, first batch -> threads, precision, attention kernel, Newton-Schulz's dtype, micro-batch -> Settings
    budget -> (counted, or a few real steps timed and thrown away) -> steps, evaluate_every -> Plan

A resumed run finds its decisions and measures nothing. Among several processes rank 0 decides and tells the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nomoat.core import device as machine
from nomoat.core.energy import EnergyMeter
from nomoat.core.errors import RunError
from nomoat.core.family import Family
from nomoat.core.recipe import Recipe
from nomoat.core.run import Run
from nomoat.core.types import Batch
from nomoat.nn.attention import Attention, fastest_kernel
from nomoat.nn.backbone import Stack
from nomoat.train.budget import (
    EVALUATION_SHARE,
    EVALUATIONS,
    Pace,
    Plan,
    affordable,
    counted_steps,
    measure,
    timed_steps,
)
from nomoat.train.launch import Group
from nomoat.train.mover import Mover, Settings, rows, rows_of, to_device
from nomoat.train.optimizer import faster_dtype, state_bytes
from nomoat.train.state import State
from nomoat.train.warn import Memory, SavedBytes

DISK_BYTES_PER_SECOND = 2e8  # written, hashed and synced; a guess that the first checkpoint corrects
METER_SECONDS = 1.2
METER_GUESS = 60.0  # seconds, to begin with, of a budget in energy
FORWARD = 3  # a step costs about this many forward passes
TILED = 1024  # tokens up to which attention in tiles is mostly the fastest on a CPU
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Decisions:
    """A run's decisions, seen from one of its processes: found, or made by rank 0 and told to the others."""

    run: Run
    group: Group

    def take(self, name: str, choose: Callable[[], tuple[Any, str]]) -> Any:
        """The value decided for `name`; where there is none yet, what `choose` gives with its reason."""
        value = None
        if self.group.rank == 0:
            value = self.run.decided(name)
            if value is None:
                value, why = choose()
                self.run.decide(name, value, 0, why)
        return self.group.share(value)

    def plan(self) -> Plan | None:
        """The plan that the decisions named `steps` make."""
        return self.group.share(Plan.of(self.run.decisions("steps")) if self.group.rank == 0 else None)


def tokens_in(batch: Batch) -> int:
    """Tokens that a batch teaches (a row [L + 1] teaches L), or its samples where it has none."""
    tokens = batch.get("tokens")
    return tokens.numel() - tokens.shape[0] if isinstance(tokens, torch.Tensor) else rows_of(batch)


def settings(recipe: Recipe, family: Family, device: torch.device, batch: Batch, decisions: Decisions) -> Settings:
    """Decide how a step is computed, on a batch with all chance drawn; sets threads and attention's kernel.

    Raises:
        RunError: not even one row fits in memory.
    """
    per_process = max(1, rows_of(batch) // recipe.processes)
    guess = min(per_process, recipe.micro_batch or per_process)
    length = family.positions_a_sample or max(1, tokens_in(batch) // rows_of(batch))
    torch.set_num_threads(decisions.take("threads", lambda: _threads(recipe, family, device, guess * length)))
    precision = decisions.take("precision", lambda: _precision(recipe, family, device, guess * length))
    dtype = decisions.take("muon_dtype", lambda: _muon_dtype(recipe, family, device))
    micro = decisions.take("micro_batch", lambda: _micro_batch(recipe, family, device, batch, (precision, guess)))
    _set_kernels(family, decisions, (min(micro, per_process), length, DTYPES[precision]))
    return Settings(device, precision, micro, DTYPES[dtype])


def seconds_a_step(recipe: Recipe, batch: Batch, device: torch.device) -> float:
    """The middle one of three real steps of all players, for planners: precision as training will have it.

    Args:
        recipe: what would be trained; its first weights are drawn and thrown away.
        batch: from its data, no chance drawn yet.
        device: where.
    """
    family, count = recipe.build().to(device), rows_of(batch)
    length = family.positions_a_sample or max(1, tokens_in(batch) // count)
    precision, _ = _precision(recipe, family, device, count * length)
    for stack in (module for module in family.modules() if isinstance(module, Stack)):
        stack.kernel = "tiled" if length <= TILED else "fused"  # the run itself measures which is faster
    dtype = torch.bfloat16 if machine.has_bf16(device) else torch.float32
    chosen, taken = Settings(device, precision, count, dtype), list[float]()
    movers = [Mover(family, player, recipe, chosen) for player in family.players]
    for number in range(3):
        began = time.perf_counter()
        for mover in movers:
            mover.move(family.draw(batch, torch.Generator().manual_seed(number)), 0.5)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[1]


def plan(recipe: Recipe, state: State, chosen: Settings, decisions: Decisions, tools: Tools) -> Plan:
    """Turn the budget into steps, once; decides `steps`, `seconds` (not of steps and tokens) and the evaluations.

    Args:
        recipe: for the budget.
        state: at step 0, its movers not yet prepared; what is measured is undone bit for bit.
        chosen: how a step is computed.
        decisions: where to find or put them.
        tools: how to take a step, to evaluate, to read the clock and the meter.

    Raises:
        ConfigError: energy that can be neither measured nor reckoned.
    """
    found = decisions.plan() or _counted(recipe, decisions, tools)
    if found is None:
        found = _timed(recipe, state, chosen, decisions, tools)
    elif tools.batches:
        _evaluations(decisions, (found.steps, tools.batch_tokens / (FORWARD * tools.tokens_per_step)), tools, found)
    every = recipe.evaluate_every or math.ceil(found.steps / EVALUATIONS)
    decisions.take("evaluate_every", lambda: (every, "the recipe says so" if recipe.evaluate_every else "20 times"))
    return found


def _counted(recipe: Recipe, decisions: Decisions, tools: Tools) -> Plan | None:
    counted = counted_steps(recipe.budget, tools.tokens_per_step)
    return Plan(((0, decisions.take("steps", lambda: counted)),)) if counted is not None else None


def _timed(recipe: Recipe, state: State, chosen: Settings, decisions: Decisions, tools: Tools) -> Plan:
    """Time a few steps and throw them away."""
    share = decisions.group.share
    by_meter = share(recipe.budget.unit == "watt_hours" and tools.meter is not None)
    guess = METER_GUESS if by_meter else recipe.budget.seconds() or METER_GUESS
    with state.thrown_away():
        state.prepare(recipe, chosen, decisions.group)
        pace = measure(tools.step, guess, share, METER_SECONDS if by_meter else 0.0)
        evaluation = share(tools.evaluate())
    seconds = decisions.take("seconds", lambda: _seconds(recipe, tools.meter))
    size = sum(p.numel() * p.element_size() for p in state.family.parameters()) * (4 if recipe.ema else 3)
    pace = Pace(pace.step, pace.low, pace.high, pace.count, evaluation, size / DISK_BYTES_PER_SECOND)
    times, each = affordable(seconds, evaluation, tools.batches) if evaluation else (0, 0)
    saves = seconds / max(recipe.keep_every_seconds, 1.0)
    bounded = recipe.budget.bounded
    steps = decisions.take("steps", lambda: bounded(*timed_steps(seconds, tools.elapsed(), pace, saves, times * each)))
    found = Plan(((0, steps),))
    if evaluation:
        _evaluations(decisions, (seconds, evaluation), tools, found, "s")
    return found


def _evaluations(
    decisions: Decisions, costs: tuple[float, float], tools: Tools, found: Plan, unit: str = "steps"
) -> None:
    """Decide how often and on how much to evaluate, for the cost of the whole run and of one held-out batch."""
    times, each = affordable(*costs, tools.batches)
    why = (
        f"a held-out batch costs about {costs[1]:.2g} {unit}, and all of them at most {EVALUATION_SHARE:.0%} of the run"
    )
    decisions.take("evaluation_batches", lambda: (each, why))
    if not decisions.run.recipe.evaluate_every:
        decisions.take("evaluate_every", lambda: (max(1, math.ceil(found.steps / times)), why))


def warnings(recipe: Recipe, run: Run, chosen: Settings) -> list[str]:
    """What to tell of the decisions: that memory, not the recipe, has set the size of the micro-batches."""
    if recipe.micro_batch is not None or chosen.micro_batch >= recipe.batch_size // recipe.processes:
        return []
    why = next(line["why"] for line in run.decisions("micro_batch"))
    return [f"Memory is short: {why}. The result is the same, each step takes a little longer."]


@dataclass(frozen=True)
class Tools:
    """What measuring needs from the loop.

    Args:
        step: takes step number i, all players.
        evaluate: evaluates one held-out batch and returns the seconds it took (0 where there is nothing held out).
        elapsed: seconds since training began.
        meter: of energy, where one can be read; it began with the training.
        tokens_per_step: tokens (or samples) that a step teaches.
        batches: how many held-out batches there are.
        batch_tokens: tokens (or samples) in one of them.
    """

    step: Callable[[int], None]
    evaluate: Callable[[], float]
    elapsed: Callable[[], float]
    meter: EnergyMeter | None
    tokens_per_step: int
    batches: int
    batch_tokens: int


def _seconds(recipe: Recipe, meter: EnergyMeter | None) -> tuple[float, str]:
    watts = meter.watts() if meter is not None else None
    seconds = recipe.budget.seconds(watts)
    assert seconds is not None
    if recipe.budget.unit == "money":
        return seconds, f"{recipe.budget.text} at {recipe.budget.price_per_hour} an hour"
    if recipe.budget.unit == "watt_hours":
        power = f"{watts:.1f} W as measured" if watts else f"{recipe.budget.watts} W as stated"
        return seconds, f"{recipe.budget.text} at {power}"
    return seconds, f"the budget is {recipe.budget.text}"


def _threads(recipe: Recipe, family: Family, device: torch.device, tokens: int) -> tuple[int, str]:
    if workers := getattr(recipe.data, "workers", 0):
        return max(1, torch.get_num_threads() - workers), f"{workers} of the data's workers compute beside it"
    named = [p for name, p in family.named_parameters() if family.role_of(name, p) == "matrix"]
    widths = [min(len(p), p.numel() // len(p)) for p in named]  # a convolution's, by all that a place sees
    number, ratio = machine.worthwhile_threads(device, tokens, max(widths, default=64))
    return number, f"all of torch's threads together run {ratio:.2f}x as fast as one"


def _precision(recipe: Recipe, family: Family, device: torch.device, tokens: int) -> tuple[str, str]:
    if recipe.precision != "auto":
        return recipe.precision, "the recipe says so"
    shapes = [p.shape for name, p in family.named_parameters() if family.role_of(name, p) == "matrix"]
    if not shapes:
        return "fp32", "there is no matrix to multiply by"
    narrow, wide = sorted(max(shapes, key=math.prod))[-2:]
    faster = machine.bf16_is_faster(device, tokens, narrow, wide)
    return ("bf16" if faster.yes else "fp32"), faster.words(f"a block of {narrow} x {wide} on {tokens:,} tokens")


def _muon_dtype(recipe: Recipe, family: Family, device: torch.device) -> tuple[str, str]:
    if recipe.optimizer.kind != "muon":
        return "fp32", "the recipe does not use Muon"
    if recipe.precision != "auto":  # asked for fp32, one gets it everywhere: two processes then equal one to 1e-5
        return recipe.precision, "the recipe says so"
    faster = faster_dtype([(name, p, family.role_of(name, p)) for name, p in family.named_parameters()])
    return ("bf16" if faster.yes else "fp32"), faster.words("Newton-Schulz")


def _micro_batch(
    recipe: Recipe, family: Family, device: torch.device, batch: Batch, how: tuple[str, int]
) -> tuple[int, str]:
    """As the recipe says, or as many rows of this process's share as fit in memory."""
    precision, most = how
    memory = estimate(recipe, family, device, batch, precision)
    fits = memory.rows_that_fit()
    wanted = most if family.splittable else rows_of(batch)
    if fits >= wanted or (recipe.micro_batch and memory.needs(wanted) <= memory.free):
        return wanted, f"it takes {memory.words(wanted)}"
    least = 1 if family.splittable and not recipe.micro_batch else wanted
    if memory.needs(least) > memory.free:
        raise RunError(
            f"training would run out of memory: it needs {memory.words(least)}",
            "",
            "set micro_batch=1" if recipe.micro_batch else "use a narrower or shallower model, or a shorter context",
        )
    if not family.splittable or recipe.micro_batch:
        return wanted, f"close to the limit: it takes {memory.words(wanted)}"
    return max(1, fits), f"{wanted} rows at once would not fit; it takes {memory.words(max(1, fits))}"


def estimate(recipe: Recipe, family: Family, device: torch.device, batch: Batch, precision: str) -> Memory:
    """The bytes that training this family will take, from one forward pass over one row."""
    named = [(name, p, family.role_of(name, p)) for name, p in family.named_parameters()]
    weights = sum(p.numel() * p.element_size() for _, p, _ in named)
    learned = sum(p.numel() * p.element_size() for _, p, _ in named if p.requires_grad)
    slow = learned if recipe.ema is not None else 0
    count = 1 if family.splittable else rows_of(batch)
    row = 0
    for player in family.players:
        held = [p for _, p, _ in named] + list(family.buffers())
        with SavedBytes(held) as saved, machine.autocast(device, precision):
            family.loss(to_device(rows(batch, 0, count), device), player, 0.5)
        row = max(row, saved.bytes // count)
    fixed = weights + learned + slow + state_bytes(named, recipe.optimizer)
    return Memory(fixed, row, machine.free_memory(device) // recipe.processes, weights)


def _set_kernels(family: Family, decisions: Decisions, shape: tuple[int, int, torch.dtype]) -> None:
    """Give every stack the faster attention kernel, measured at the micro-batch's shape on its first layer."""
    stacks = [module for module in family.modules() if isinstance(module, Stack)]
    for number, stack in enumerate(stacks):
        layer = next((module for module in stack.modules() if isinstance(module, Attention)), None)
        if layer is not None:
            name = "kernel" if len(stacks) == 1 else f"kernel_{number}"
            stack.kernel = decisions.take(name, partial(_kernel, layer, stack, shape))


def _kernel(layer: Attention, stack: Stack, shape: tuple[int, int, torch.dtype]) -> tuple[str, str]:
    batch_size, length, dtype = shape
    with torch.random.fork_rng(devices=[]):
        name, seconds = fastest_kernel(layer, batch_size, length, dtype, stack.backbone.causal)
    each = ", ".join(f"{kernel} {1e3 * time:.3g} ms" for kernel, time in seconds.items())
    return name, f"attention on {batch_size} x {length} tokens, forward and backward: {each}"
