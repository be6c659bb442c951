"""Does a generator draw what it is asked for? Read from its pictures by somebody who had no part in making them.

    pictures [N], what was asked of each -> reader(picture) -> attributes -> share right, each alone and all together
    the same pictures, asked for something else                           -> right by chance: the floor
    real pictures of what was asked                                       -> how well the reader reads: the ceiling

Beside the joint share stands the product of the single ones: what it would be if the attributes were got right
independently of one another (Okawa et al. 2023, arXiv:2310.09336). The reader is any function of a picture [C, Y, X].
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nomoat.core.errors import DataError, nearest
from nomoat.evaluate.bits import RESAMPLES
from nomoat.evaluate.figure import Figure, plain, wilson
from nomoat.evaluate.seen import as_seen

Attributes = Mapping[str, Hashable]
Reader = Callable[[Tensor], Attributes]
TRUSTED = 0.99
"""Below this joint share on real pictures, a reader's verdict on others is void."""


@dataclass(frozen=True)
class Agreed:
    """How often what was read is what was asked for.

    Args:
        single: attribute -> share.
        joint: share in which all attributes are right.
        product: of the single shares.
        modes: different combinations that were asked for and drawn right at least once.
    """

    single: Mapping[str, Figure]
    joint: Figure
    product: Figure
    modes: int


@dataclass(frozen=True)
class Condition:
    """One group of prompts, such as those of combinations that were never trained on.

    Args:
        name: of the group.
        count: pictures drawn for it.
        combinations: different combinations that were asked for.
        drawn: the drawn pictures.
        otherwise: the same pictures, read against what was asked of other ones.
        real: real pictures of what was asked for; None: there are none.
        real_otherwise: these, read against what was asked of other ones.
    """

    name: str
    count: int
    combinations: int
    drawn: Agreed
    otherwise: Agreed
    real: Agreed | None = None
    real_otherwise: Agreed | None = None

    @property
    def trusted(self) -> bool:
        """Whether the reader reads real pictures well enough."""
        return self.real is None or self.real.joint.value >= TRUSTED

    @property
    def verdict(self) -> str:
        """In plain words."""
        joint, chance = self.drawn.joint, self.otherwise.joint
        said = f"{self.name}: all that was asked for is there in {joint.value:.0%} of {self.count:,} pictures"
        said += f" (95 %: {joint.low:.0%} to {joint.high:.0%}; by chance {chance.value:.0%})."
        if joint.low <= chance.high:
            said += " That is not more than chance: it does not follow its prompts."
        if not self.trusted and self.real is not None:
            said += f" The reader itself is right about {self.real.joint.value:.0%} of real pictures only."
        return said

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**plain(self), "trusted": self.trusted, "verdict": self.verdict}


def condition(
    name: str,
    image_NCYX: Tensor,
    asked: Sequence[Attributes],
    reader: Reader,
    real_NCYX: Tensor | None = None,
    seed: int = 0,
) -> Condition:
    """Read the pictures of one group of prompts.

    Args:
        name: of the group.
        image_NCYX: what was drawn.
        asked: of each picture, the attributes that were asked for; the reader may tell of more.
        reader: one picture [C, Y, X] in [-1, 1] -> its attributes; None or another value for what it cannot read.
        real_NCYX: real pictures of the same conditions, in the same order.
        seed: of the other conditions and of the intervals.

    Raises:
        DataError: as many conditions as pictures are needed; or the reader does not read what was asked.
    """
    if len(asked) != len(image_NCYX) or not len(asked):
        raise DataError(
            f"{name}: {len(asked):,} conditions for {len(image_NCYX):,} pictures", "each picture needs its own"
        )
    if len({tuple(sorted(one)) for one in asked}) > 1:
        raise DataError(
            f"{name}: the conditions do not all name the same attributes", fix="make one group of each kind"
        )
    if not asked[0]:
        raise DataError(f"{name}: the conditions name no attribute", "there is nothing to read")
    if real_NCYX is not None and len(real_NCYX) != len(asked):
        raise DataError(f"{name}: {len(real_NCYX):,} real pictures for {len(asked):,} conditions", "each needs its own")
    other = other_conditions(asked, seed)
    sides = [(image_NCYX, True)] + ([] if real_NCYX is None else [(real_NCYX, False)])
    found: list[Agreed] = []
    for side_NCYX, drawn in sides:
        read = [reader(image_CYX) for image_CYX in as_seen(side_NCYX, name, drawn)]
        _check(name, asked[0], read)
        found += [agreed(read, asked, seed), agreed(read, other, seed)]
    combinations = len({_key(one) for one in asked})
    return Condition(name, len(asked), combinations, *found)


def agreed(read: Sequence[Attributes], asked: Sequence[Attributes], seed: int = 0) -> Agreed:
    """Compare what was read with what was asked for."""
    names = sorted(asked[0])
    right_NA = np.array([[got.get(name) == one[name] for name in names] for got, one in zip(read, asked, strict=True)])
    all_N = np.asarray(right_NA.all(1))
    drawn_RN = np.random.default_rng(seed).multinomial(len(asked), np.full(len(asked), 1 / len(asked)), RESAMPLES)
    product_R = (drawn_RN @ right_NA / len(asked)).prod(1)
    low, high = map(float, np.percentile(product_R, [2.5, 97.5]))
    return Agreed(
        single={name: wilson(int(right_NA[:, at].sum()), len(asked)) for at, name in enumerate(names)},
        joint=wilson(int(all_N.sum()), len(asked)),
        product=Figure(float(right_NA.mean(0).prod()), low, high),
        modes=len({_key(one) for one, right in zip(asked, all_N, strict=True) if right}),
    )


def other_conditions(asked: Sequence[Attributes], seed: int = 0) -> list[Attributes]:
    """What was asked of another picture, for each: an order of chance, moved on by one, so that none keeps its own."""
    order_N = np.random.default_rng(seed).permutation(len(asked))
    other: list[Attributes] = [{}] * len(asked)
    for here, there in zip(order_N.tolist(), np.roll(order_N, 1).tolist(), strict=True):
        other[here] = asked[there]
    return other


def _check(name: str, asked: Attributes, read: Sequence[Attributes]) -> None:
    known = {attribute for one in read for attribute in one}
    absent = sorted(attribute for attribute in asked if attribute not in known)
    if known and absent:
        why = f"it reads {', '.join(sorted(known))}"
        raise DataError(f"{name}: the reader does not read {', '.join(absent)}", why, nearest(absent[0], known))


def _key(one: Attributes) -> tuple[tuple[str, Hashable], ...]:
    return tuple(sorted(one.items()))
