"""Licence names and texts: what people write -> the SPDX identifier, or nothing where it is not plain.

    "Apache License, Version 2.0" -> "Apache-2.0";  the text of a LICENSE file -> ["MIT"]

Identifiers: SPDX licence list 3.25, https://spdx.org/licenses/. Texts are known by phrases that only they have.
"""

from __future__ import annotations

import re

IDS = re.findall(
    r"\S+",
    "0BSD AFL-3.0 AGPL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-2.0 BSD-2-Clause "
    "BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 BUSL-1.1 BlueOak-1.0.0 "
    "CC-BY-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 "
    "CC-BY-NC-2.0 CC-BY-NC-2.5 CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-NC-ND-2.0 CC-BY-NC-ND-2.5 CC-BY-NC-ND-3.0 "
    "CC-BY-NC-ND-4.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-2.5 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CC-BY-ND-2.0 CC-BY-ND-2.5 "
    "CC-BY-ND-3.0 CC-BY-ND-4.0 CC-BY-SA-1.0 CC-BY-SA-2.0 CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-PDDC CC0-1.0 "
    "CDLA-Permissive-1.0 CDLA-Permissive-2.0 CDLA-Sharing-1.0 CECILL-2.1 EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 "
    "GFDL-1.2-only GFDL-1.2-or-later GFDL-1.3-only GFDL-1.3-or-later GPL-2.0 GPL-2.0-only GPL-2.0-or-later GPL-3.0 "
    "GPL-3.0-only GPL-3.0-or-later HPND ISC LGPL-2.0-only LGPL-2.1 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0 "
    "LGPL-3.0-only LGPL-3.0-or-later MIT MIT-0 MPL-1.1 MPL-2.0 MS-PL NCSA ODbL-1.0 ODC-By-1.0 OFL-1.1 OpenSSL "
    "PDDL-1.0 PSF-2.0 PostgreSQL Python-2.0 Unicode-3.0 Unlicense Vim W3C WTFPL X11 Zlib",
)
KNOWN = {name.lower(): name for name in IDS}
PUBLIC_DOMAIN = "LicenseRef-public-domain"  # SPDX has no identifier for work on which no right is claimed or left

SPELLINGS = {  # lower case, without the words that NOISE takes away
    "Apache-2.0": "apache 2|apache 2.0|apache2|apache2.0|apache-2|asl 2.0",
    "MIT": "mit/expat|expat",
    "BSD-3-Clause": "new bsd|modified bsd|3-clause bsd",
    "BSD-2-Clause": "simplified bsd|2-clause bsd",
    "GPL-2.0": "gpl2|gplv2|gnu general public 2|gnu general public 2.0",
    "GPL-3.0": "gpl3|gplv3|gpl 3|gnu gplv3|gnu gpl 3|gnu gpl 3.0|gnu general public 3|gnu general public 3.0",
    "AGPL-3.0": "gnu affero general public 3.0|agplv3",
    "LGPL-3.0": "gnu lesser general public 3.0|lgplv3",
    "LGPL-2.1": "gnu lesser general public 2.1|lgplv2.1",
    "GPL-3.0-or-later": "gpl-3.0+|gplv3+",
    "GPL-2.0-or-later": "gpl-2.0+|gplv2+",
    "MPL-2.0": "mozilla public 2.0",
    "CC0-1.0": "cc0|cc0 1.0 universal",
    "BSL-1.0": "boost software 1.0",
    "ODbL-1.0": "odbl|odbl 1.0",
    "ODC-By-1.0": "odc-by|odc-by 1.0",
    "PDDL-1.0": "pddl",
    "PSF-2.0": "psf|python software foundation|python software foundation 2",
    "OFL-1.1": "sil open font 1.1",
    PUBLIC_DOMAIN: "public domain|public-domain|publicdomain",
}
ALIASES = {spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings.split("|")}
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


GRANT = "permission is hereby granted, free of charge, to any person obtaining a copy"
MIT_NOTICE = "the above copyright notice and this permission notice shall be included in all"
ISC_GRANT = "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"
BSD_GRANT = "redistribution and use in source and binary forms, with or without modification"
GNU = "gnu {} license version {}"
LEADERS = re.compile(r"^[ \t]*(?:\*+/?|/\*+|//+|#+|;+|--)[ \t]?|[=_*~-]{3,}|\*\*", re.MULTILINE)  # comment signs, rules
QUOTES = str.maketrans({"“": "'", "”": "'", "‘": "'", "’": "'", '"': "'", "`": "'"})
# (identifier, phrases that must all stand there, phrases of which none may)
TEXTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("PSF-2.0", ("python software foundation license version 2", "psf is making python available"), ()),
    ("MIT", (GRANT, MIT_NOTICE), ("except as contained in this notice, the name",)),
    ("X11", (GRANT, MIT_NOTICE, "except as contained in this notice, the name"), ()),
    ("MIT-0", (GRANT, "without restriction"), (MIT_NOTICE, "redistributions of source code")),
    ("NCSA", (GRANT, "redistributions of source code must retain"), ()),
    ("ISC", (ISC_GRANT, "provided that the above copyright notice"), ()),
    ("0BSD", (ISC_GRANT,), ("provided that the above copyright notice",)),
    ("BSD-4-Clause", (BSD_GRANT, "all advertising materials mentioning features"), ()),
    ("BSD-3-Clause", (BSD_GRANT, "endorse or promote products derived"), ("all advertising materials",)),
    (
        "BSD-2-Clause",
        (BSD_GRANT,),
        ("endorse or promote products", "all advertising materials", "this software is provided 'as-is'"),
    ),
    ("Apache-2.0", ("apache license version 2.0, january 2004",), ()),
    ("Apache-2.0", ("licensed under the apache license, version 2.0 (the 'license')",), ()),
    ("BlueOak-1.0.0", ("blue oak model license version 1.0.0",), ()),
    ("MPL-2.0", ("mozilla public license version 2.0", "1. definitions"), ()),
    ("GPL-2.0", (GNU.format("general public", "2, june 1991"),), ()),
    ("GPL-3.0", (GNU.format("general public", "3, 29 june 2007"),), ()),
    ("LGPL-2.1", (GNU.format("lesser general public", "2.1, february 1999"),), ()),
    ("LGPL-3.0", (GNU.format("lesser general public", "3, 29 june 2007"),), ()),
    ("AGPL-3.0", (GNU.format("affero general public", "3, 19 november 2007"),), ()),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",), ()),
    ("BSL-1.0", ("boost software license - version 1.0 - august 17th, 2003",), ()),
    ("Zlib", ("this software is provided 'as-is', without any express or implied", "altered source versions"), ()),
    ("WTFPL", ("do what the fuck you want to public license",), ()),
    ("EPL-2.0", ("eclipse public license - v 2.0",), ()),
    ("Artistic-2.0", ("the artistic license 2.0", "copyright (c) 2000-2006, the perl foundation"), ()),
    ("OFL-1.1", ("sil open font license version 1.1",), ()),
    ("CC0-1.0", ("cc0 1.0 universal", "affirmer"), ()),
    ("ODbL-1.0", ("open database license (odbl)", "1.0 definitions of capitalised words"), ()),
    ("ODC-By-1.0", ("odc attribution license", "1.0 definitions of capitalised words"), ()),
    ("PDDL-1.0", ("open data commons – public domain dedication",), ()),
    ("CDLA-Permissive-2.0", ("community data license agreement - permissive - version 2.0",), ()),
    ("CDLA-Permissive-1.0", ("community data license agreement - permissive - version 1.0",), ()),
    ("CDLA-Sharing-1.0", ("community data license agreement - sharing - version 1.0",), ()),
)
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
    for name, needed, barred in TEXTS:
        if all(phrase in plain for phrase in needed) and not any(phrase in plain for phrase in barred):
            starts[name] = min(plain.index(needed[0]), starts.get(name, len(plain)))
    commons = COMMONS_TEXT.search(plain)
    if commons and (named := licence_id(f"creative commons {commons['words']} {commons['w']}")):
        starts[named] = commons.start()
    if "PSF-2.0" in starts:  # Python's own file carries the licences of its parts after its own
        return ["PSF-2.0"]
    if "LGPL-3.0" in starts:  # it is written as an addition to the GPL, which often stands in the same file
        starts.pop("GPL-3.0", None)
    return [] if min(starts.values(), default=0) > 2000 else list(starts)
