"""Captions of the shapes world: a small grammar with paraphrases, and the words that it knows.

    Scene + chance -> sentence form, one of those trained or of those never trained -> "a small red striped circle"

A form has slots in braces. The forms that are never trained use no word that others do not: whoever reads words alone
can follow them. A caption tells of a thing what the scene's `said` names, always its shape and its colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

from nomoat.data.order import Words, key
from nomoat.data.shapes_scene import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, Thing
from nomoat.data.shapes_splits import uniform
from nomoat.data.words import WordTokenizer, split

FORMS: dict[str, tuple[str, ...]] = {
    "alone": (
        "{a}",
        "there is {a}",
        "a picture of {a}",
        "one {bare}",
        "a {noun} that is {list}",
        "there is a {noun} that is {list}",
        "the {noun} is {list}",
    ),
    "related": (
        "{a} {relation} {b}",
        "{a} is {relation} {b}",
        "there is {a} {relation} {b}",
        "a picture of {a} {relation} {b}",
        "{relation} {b} is {a}",
    ),
    "listed": ("{all}", "there is {all}", "a picture of {all}"),
    "counted": ("{number} {bare}", "there are {number} {bare}", "a picture of {number} {bare}",
                "{number} {noun} that are {list}"),
}  # fmt: skip
HELD_FORMS: dict[str, tuple[str, ...]] = {
    "alone": ("a {noun}, {row}", "the {most} is {last}", "there is a {first} {noun} that is {rest}"),
    "related": ("{a} and {b}, the {noun} {relation} the {other}", "{relation} {b} there is {a}"),
    "listed": ("{each}",),
    "counted": ("the {number} {noun} are {list}", "{number} {noun}, {row}"),
}
"""Of the split `paraphrase`."""
TOLD = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SYNONYMS = {"small": ("small", "little"), "large": ("large", "big")}
NUMBERS = ("one", "two", "three", "four")
NONSENSE = ("blicket", "dax", "fep", "gazzer", "koba", "toma", "wug", "zav")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
ORDERS = (("size", "colour", "texture"), ("size", "texture", "colour"))
"""In which adjectives stand before a noun; after "is" any order may be."""
Choice = TypeVar("Choice")
CHOICES = 20  # at most: form, order, four words of three things, relation, places of three adjectives


def captions(scenes: Sequence[Scene], chance_B: Words, split: str) -> list[str]:
    """One caption for each scene.

    Args:
        scenes: B of them.
        chance_B: 64-bit numbers; all chance comes from them.
        split: `paraphrase` takes the forms that are never trained, `nonsense` words without a meaning.
    """
    drawn = uniform(key(chance_B, 8), 0, CHOICES).tolist()
    return [caption(scene, row, split) for scene, row in zip(scenes, drawn, strict=True)]


def caption(scene: Scene, chance: Iterable[float] = (0.0,) * CHOICES, split: str = "seen") -> str:
    """A caption of a scene; without chance its plainest.

    Args:
        scene: of what.
        chance: a number in [0, 1) for each choice.
        split: as `captions` takes it.
    """
    left = iter(chance)
    form = _one((HELD_FORMS if split == "paraphrase" else FORMS)[layout(scene)], left)
    return form.format_map(_slots(scene, left, split == "nonsense"))


def layout(scene: Scene) -> str:
    """Which kind of sentence tells a scene: `alone`, `related`, `counted` or `listed`."""
    if len(scene.things) == 1:
        return "alone"
    return "related" if scene.relation else "counted" if scene.alike else "listed"


@cache
def words() -> WordTokenizer:
    """All words and signs of the grammar, those of the held-out forms and those without a meaning among them."""
    forms = [form for kinds in (FORMS, HELD_FORMS) for each in kinds.values() for form in each]
    ways = [way for each in TOLD.values() for way in each]
    plain = [re.sub(r"{\w+}", " ", form) for form in (*forms, *ways)]
    known = {*SHAPES, *PLURALS.values(), *COLOURS, *SIZES, *TEXTURES, *NUMBERS, *NONSENSE, "an", "and", ","}
    known |= {word for each in SYNONYMS.values() for word in each}
    return WordTokenizer(known | {word for text in plain for word in split(text)})


@cache
def longest(objects: int) -> int:
    """The most words and signs of a caption in the world of so many objects, of any split."""
    found = 0
    for count in range(1, objects + 2):
        alike, other = (Thing("circle", "red"), Thing("square", "blue"))
        kinds = {"alone": (alike,)} if count == 1 else {"counted": (alike,) * count}
        kinds |= {"listed": (*(alike, other, alike)[:count],)} if 1 < count <= objects else {}
        kinds |= {"related": (alike, other)} if 2 == count <= objects else {}
        for name, things in kinds.items():
            scene = Scene(things, relation=RELATIONS[0] if name == "related" else None)
            short = scene if count == 1 else Scene(things, relation=scene.relation, said=("shape", "colour"))
            for told, forms in ((scene, FORMS[name]), (short, HELD_FORMS[name])):
                slots = _slots(told, iter([0.99] * CHOICES), False)  # the last of its synonyms is a relation's longest
                found = max(found, *(len(split(form.format_map(slots))) for form in forms))
    return found


def _slots(scene: Scene, chance: Iterator[float], nonsense: bool) -> dict[str, str]:
    """What stands in each slot of a form."""
    many = layout(scene) == "counted"
    order = [name for name in _one(ORDERS, chance) if name in scene.said]
    told = [_told(thing, order, chance, nonsense) for thing in (scene.things[:1] if many else scene.things)]
    (adjectives, noun), (_, other) = told[0], told[-1]
    noun = PLURALS.get(noun, noun) if many else noun
    singles = [_article(" ".join([*some, name])) for some, name in told]
    relation = _one(TOLD[scene.relation], chance) if scene.relation else ""
    free = [word for _, word in sorted((next(chance), word) for word in adjectives)]
    return {
        "a": singles[0],
        "b": singles[-1],
        "all": _and(singles),
        "each": _and([f"the {name} is {_and(some)}" for some, name in told]),
        "noun": noun,
        "other": other,
        "number": NUMBERS[len(scene.things) - 1],
        "bare": " ".join([*adjectives, noun]),
        "relation": relation,
        "list": _and(free),
        "row": ", ".join(free),
        "most": " ".join([*adjectives[:-1], noun]),
        "last": adjectives[-1],
        "first": adjectives[0],
        "rest": _and(adjectives[1:] or adjectives),
    }


def _told(thing: Thing, order: Sequence[str], chance: Iterator[float], nonsense: bool) -> tuple[list[str], str]:
    """Adjectives and noun of a thing."""
    said = [getattr(thing, name) for name in (*order, "shape")]
    *adjectives, noun = [_one(NONSENSE if nonsense else SYNONYMS.get(word, (word,)), chance) for word in said]
    return adjectives, noun


def _one(choices: Sequence[Choice], chance: Iterator[float]) -> Choice:
    return choices[int(next(chance) * len(choices))]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
