"""Licence names and texts: what people write -> the SPDX identifier, or nothing where it is not plain.

    "Apache License, Version 2.0" -> "Apache-2.0";  the text of a LICENSE file -> ["MIT"]

Identifiers, spellings and the phrases that only a licence's text has stand in spdx.json.
"""

from __future__ import annotations

import json
import re
from importlib import resources

TABLE = json.loads(resources.files(__package__).joinpath("spdx.json").read_text(encoding="utf-8"))
KNOWN = {name.lower(): name for name in TABLE["identifiers"]}
PUBLIC_DOMAIN = "LicenseRef-public-domain"  # SPDX has no identifier for work on which no right is claimed or left

# Lower case, without the words that NOISE takes away.
ALIASES = {spelling: name for name, spellings in TABLE["spellings"].items() for spelling in spellings}
NAMED = re.compile(
    r"(?:(?:https?://)?(?:www\.)?creativecommons\.org/licenses/(?P<path>[a-z-]+)/(?P<v>\d\.\d)(?:/(?:legalcode)?)?|"
    r"(?:creative commons|cc)[ -]*"
    r"(?P<words>(?:attribution|by|non-?commercial|nc|share-?alike|sa|no-?deriv\w*|nd|[ -])+)"
    r"(?P<w>\d\.\d))(?: (?:international|unported|generic))?",
    re.IGNORECASE,
)
PARTS = (
    ("by", r"attribution|\bby\b"),
    ("nc", r"non-?commercial|\bnc\b"),
    ("sa", r"share-?alike|\bsa\b"),
    ("nd", r"no-?deriv|\bnd\b"),
)
IDSTRING = re.compile(r"(?:DocumentRef-[\w.-]+:)?(?:LicenseRef-)?[A-Za-z0-9][\w.+-]*")
NOISE = re.compile(r"\b(?:the|licen[cs]ed?|under|terms|of|version)\b|\bv(?=\d)|[,\"'`*\[\]]", re.IGNORECASE)


def licence_id(said: str) -> str | None:
    """The SPDX expression for a licence's name as people write it; None where it is not one that we know.

    >>> licence_id("Apache License, Version 2.0"), licence_id("cc-by-sa 4.0"), licence_id("MIT OR Apache-2.0")
    ('Apache-2.0', 'CC-BY-SA-4.0', 'MIT OR Apache-2.0')
    >>> licence_id("other") is None
    True
    """
    said = said.strip().strip(".")
    operators = re.split(r"\s+(AND|OR)\s+", said.strip("()"))
    if len(operators) > 1:
        names = [licence_id(name.strip("() ")) for name in operators[0::2]]
        if not all(names) or said.count("(") != said.count(")"):
            return None
        joined = [word for pair in zip(names, [*operators[1::2], ""], strict=True) for word in pair if word]
        return expression(said) or " ".join(joined)
    if said.startswith("LicenseRef-") and IDSTRING.fullmatch(said):
        return said
    key = " ".join(said.lower().split())
    bare = " ".join(NOISE.sub(" ", key).split())
    commons = NAMED.fullmatch(key) or NAMED.fullmatch(bare)
    if commons:
        return creative_commons(commons)
    return (
        KNOWN.get(key) or ALIASES.get(key) or KNOWN.get(bare) or ALIASES.get(bare) or KNOWN.get(bare.replace(" ", "-"))
    )


def creative_commons(found: re.Match[str]) -> str | None:
    """CC-BY-NC-4.0 from the match of an address or of words."""
    words, version = found["path"] or found["words"], found["v"] or found["w"]
    parts = [short for short, pattern in PARTS if re.search(pattern, words, re.IGNORECASE)]
    spelled = [
        "-".join(["cc", *order, version]) for order in (parts, sorted(parts, key=("by", "nc", "nd", "sa").index))
    ]
    return next((KNOWN[name] for name in spelled if name in KNOWN), None)


def expression(said: str) -> str | None:
    """A licence expression after `SPDX-License-Identifier:`, as its author wrote it; None where it is malformed."""
    words = said.replace("(", " ( ").replace(")", " ) ").split()
    depth, want_name = 0, True
    for word in words:
        if word == "(" and want_name:
            depth += 1
        elif word == ")" and not want_name and depth:
            depth -= 1
        elif word in ("AND", "OR", "WITH") and not want_name:
            want_name = True
        elif want_name and word not in ("AND", "OR", "WITH") and IDSTRING.fullmatch(word):
            want_name = False
        else:
            return None
    if depth or want_name:
        return None
    return " ".join(KNOWN.get(word.lower(), word) for word in words).replace("( ", "(").replace(" )", ")")


LEADERS = re.compile(r"^[ \t]*(?:\*+/?|/\*+|//+|#+|;+|--)[ \t]?|[=_*~-]{3,}|\*\*", re.MULTILINE)  # comment signs, rules
QUOTES = str.maketrans({"“": "'", "”": "'", "‘": "'", "’": "'", '"': "'", "`": "'"})
COMMONS_TEXT = re.compile(
    r"(?:creative commons )?(?P<words>attribution(?:[ -](?:non-?commercial|share-?alike|no-?deriv\w*))*)"
    r" (?P<w>\d\.\d) (?:international|unported)(?: public license)?"
    r"(?=.{0,4000}(?:by exercising (?:the|any) (?:licensed )?rights|license the work is provided))",
    re.IGNORECASE,
)


def licences_of_text(text: str) -> list[str]:
    """Which licences' full texts stand in a file, in the order of the table; [] where none is known.

    A text that begins only after the first 2,000 characters is that of a part and does not speak for the whole.
    """
    plain = " ".join(LEADERS.sub(" ", text.lower()).translate(QUOTES).split())
    starts: dict[str, int] = {}
    for text_of in TABLE["texts"]:
        name, needed = text_of["id"], text_of["all"]
        if all(phrase in plain for phrase in needed) and not any(phrase in plain for phrase in text_of["none"]):
            starts[name] = min(plain.index(needed[0]), starts.get(name, len(plain)))
    commons = COMMONS_TEXT.search(plain)
    if commons and (named := licence_id(f"creative commons {commons['words']} {commons['w']}")):
        starts[named] = commons.start()
    if "PSF-2.0" in starts:  # Python's own file carries the licences of its parts after its own
        return ["PSF-2.0"]
    if "LGPL-3.0" in starts:  # it is written as an addition to the GPL, which often stands in the same file
        starts.pop("GPL-3.0", None)
    return [] if min(starts.values(), default=0) > 2000 else list(starts)
