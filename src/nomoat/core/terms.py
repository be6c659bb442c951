"""The licence algebra: what binds a text is a vector; what binds a mixture is the join of its parts' vectors.

    Terms | Terms -> Terms;  streams -> judge -> Verdict(words, causes, without)

The join takes the stricter value of every field, so it is associative, commutative and idempotent, and `Terms()`, which
asks nothing, changes nothing. Whether share-alike licences can be met together is not a field but a question to the
whole set (`Routes.targets`): asked at the end, it depends on no order. Classes of use after the Data Provenance
Initiative (Longpre et al. 2023, arXiv:2310.16787).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import combinations
from typing import NamedTuple

USES = ("any", "behaviour", "non-commercial", "research-only", "forbidden")
WORDS = (
    "permissive",
    "attribution",
    "share-alike",
    "non-commercial",
    "research-only",
    "restricted",
    "unknown",
    "conflict",
)
"""What a verdict can be, the stricter the later."""
LAYERS = ("weights", "data", "code", "outputs")
Texts = frozenset[str]
NONE: Texts = frozenset()


class Clause(NamedTuple):
    """A term of a contract: it binds whoever agreed to it, not the text."""

    party: str
    text: str
    date: str


@dataclass(frozen=True)
class Terms:
    """What binds a text, a base model or a teacher's output.

    Args:
        use: one of `USES`.
        attribution: whether names and licence texts must go along.
        credits: whom to name, one line each.
        share_alike: licences that want what is derived under themselves.
        no_derivatives: whether altered forms may not be made public.
        contract: clauses of providers; flags that decide nothing by themselves.
        naming: what the model must be called or show.
        policies: use policies that go on to whoever gets the model.
        opt_out: whether the author has reserved text and data mining.
        known: False: nobody has said what binds it.
        evidence: where all this was read, and who asserted it.
    """

    use: str = "any"
    attribution: bool = False
    credits: Texts = NONE
    share_alike: Texts = NONE
    no_derivatives: bool = False
    contract: frozenset[Clause] = frozenset()
    naming: Texts = NONE
    policies: Texts = NONE
    opt_out: bool = False
    known: bool = True
    evidence: Texts = NONE

    def __or__(self, other: Terms) -> Terms:
        """Both at once."""
        pairs = {each.name: (getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        use, known = max(pairs.pop("use"), key=USES.index), all(pairs.pop("known"))
        return Terms(use=use, known=known, **{name: one | two for name, (one, two) in pairs.items()})


def join(parts: Iterable[Terms]) -> Terms:
    """What binds all parts together; of none: nothing."""
    return reduce(Terms.__or__, parts, Terms())


@dataclass(frozen=True)
class Routes:
    """Which share-alike licence may become which.

    Args:
        reach: licence -> all that a work under it may be passed on under, itself among them.
        uses: licence -> the use that it allows, where that is not any.
    """

    reach: Mapping[str, Texts] = field(default_factory=dict)
    uses: Mapping[str, str] = field(default_factory=dict)

    def targets(self, terms: Terms) -> Texts:
        """The licences under which a whole could be offered that all share-alike terms agree to.

        They forbid further restrictions (CC BY-SA 4.0, section 3(b)(3); GPL 3, section 10), so that beside a
        non-commercial part only a licence will do that is non-commercial itself.
        """
        asked = [self.reach.get(name, frozenset((name,))) for name in terms.share_alike]
        common = frozenset.intersection(*asked) if asked else NONE
        return frozenset(name for name in common if USES.index(self.uses.get(name, "any")) >= USES.index(terms.use))

    def words(self, terms: Terms) -> tuple[str, ...]:
        """The words of `WORDS` that hold, the strictest first."""
        special = (terms.naming, terms.policies, terms.no_derivatives, terms.opt_out, terms.use == "forbidden")
        holds = {
            "conflict": bool(terms.share_alike) and not self.targets(terms),
            "unknown": not terms.known,
            "restricted": any(special),
            "research-only": terms.use == "research-only",
            "non-commercial": terms.use == "non-commercial",
            "share-alike": bool(terms.share_alike),
            "attribution": terms.attribution,
        }
        return tuple(word for word, held in holds.items() if held) or ("permissive",)

    def rank(self, terms: Iterable[Terms]) -> int:
        """The place in `WORDS` of the verdict on these together."""
        return WORDS.index(self.words(join(terms))[0])


@dataclass(frozen=True)
class Removal:
    """What leaving some streams out would change.

    Args:
        streams: their numbers.
        word: the verdict without them.
    """

    streams: tuple[int, ...]
    word: str


@dataclass(frozen=True)
class Verdict:
    """What a mixture comes to.

    Args:
        words: those of `WORDS` that hold, the strictest first.
        terms: the join.
        causes: numbers of the streams that bring the first word about: each that does so alone, else the fewest that
            do so together.
        without: what the verdict would be without each cause, and the cheapest way to each better one.
        targets: licences under which the whole could be offered, where some part wants that.
    """

    words: tuple[str, ...]
    terms: Terms
    causes: tuple[int, ...]
    without: tuple[Removal, ...]
    targets: Texts = NONE

    @property
    def word(self) -> str:
        """The strictest word that holds."""
        return self.words[0]


def judge(streams: Sequence[Terms], routes: Routes, sizes: Sequence[float] | None = None) -> Verdict:
    """Say what a mixture comes to, why, and what would change it.

    Args:
        streams: one vector each.
        routes: which share-alike licence may become which.
        sizes: what leaving a stream out costs; None: all the same.
    """
    whole = join(streams)
    words, rank = routes.words(whole), routes.rank(streams)
    causes = _causes(streams, routes, rank) if rank else ()
    everyone, cost = range(len(streams)), sizes or [1.0] * len(streams)
    drops: set[tuple[int, ...]] = {(number,) for number in causes} if len(streams) > 1 else set()
    for better in range(rank):
        kept = max(_kept(streams, routes, better), key=lambda keep: sum(cost[n] for n in keep))
        if kept:
            drops.add(tuple(n for n in everyone if n not in kept))
    removals = [
        Removal(drop, WORDS[routes.rank(streams[n] for n in everyone if n not in drop)]) for drop in drops if drop
    ]
    removals.sort(key=lambda found: (sum(cost[n] for n in found.streams), found.streams))
    return Verdict(words, whole, causes, tuple(removals), routes.targets(whole))


def _causes(streams: Sequence[Terms], routes: Routes, rank: int) -> tuple[int, ...]:
    alone = tuple(n for n, terms in enumerate(streams) if routes.rank([terms]) == rank)
    if alone:
        return alone
    for size in (2, 3):
        for some in combinations(range(len(streams)), size):
            if routes.rank(streams[n] for n in some) == rank:
                return some
    return tuple(range(len(streams)))


def _kept(streams: Sequence[Terms], routes: Routes, rank: int) -> Iterable[tuple[int, ...]]:
    """Sets of streams that together come to no more than `rank`, among them a largest."""
    fine = [n for n, terms in enumerate(streams) if routes.rank([terms]) <= rank]
    yield tuple(n for n in fine if not streams[n].share_alike)
    for target in sorted({name for n in fine for name in routes.targets(streams[n])}):
        under = USES.index(routes.uses.get(target, "any"))
        yield tuple(
            n
            for n in fine
            if USES.index(streams[n].use) <= under
            and (not streams[n].share_alike or target in routes.targets(streams[n]))
        )
