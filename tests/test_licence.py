"""Licences: the order of the sources, names and texts, evidence; unknown rather than guessed."""

import json
import zipfile

import pytest

from nomoat.data.document import Document
from nomoat.data.licence import LicenceFinder, is_licence_file, of_readme
from nomoat.data.readers import read
from nomoat.data.spdx import expression, licence_id, licences_of_text

MIT = """MIT License

Copyright (c) 2020 Ann

Permission is hereby granted, free of charge, to any person obtaining a copy of this software, to deal in the
Software without restriction. The above copyright notice and this permission notice shall be included in all copies.
THE SOFTWARE IS PROVIDED "AS IS".
"""
BSD = """# Redistribution and use in source and binary forms, with or without
# modification, are permitted provided that the conditions are met.
# Neither the name of the holder may be used to endorse or promote products derived from this software.
"""
APACHE = "Apache License\n   Version 2.0, January 2004\n   http://www.apache.org/licenses/\n"


def found(path, root=None, stated=None):
    items = read(path, licences=LicenceFinder(root or path.parent, stated))
    return [(item.licence, item.evidence) for item in items if isinstance(item, Document)]


def put(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_order_of_the_sources(tmp_path):
    source = tmp_path / "a.jsonl"
    rows = [{"text": "A text that is long enough.", "license": "ISC"}, {"text": "Another text, also long enough."}]
    header = {"text": "# SPDX-License-Identifier: 0BSD\nA text with a header of its own."}
    source.write_text("\n".join(map(json.dumps, [*rows, header])))
    assert found(source) == [("ISC", "column license"), (None, ""), ("0BSD", "SPDX header, line 1")]
    (tmp_path / "README.md").write_text("# Data\n\nLicense: CC-BY-4.0\n")
    assert found(source)[1] == ("CC-BY-4.0", "README.md, line 3: 'CC-BY-4.0'")
    (tmp_path / "LICENSE").write_text(MIT)
    both = ("MIT AND CC-BY-4.0", "LICENSE, the text of MIT; README.md, line 3: 'CC-BY-4.0'")
    assert found(source)[1] == both  # they contradict each other: both are kept
    assert found(source)[2] == ("0BSD", "SPDX header, line 1")
    (tmp_path / "a.jsonl.license").write_text("SPDX-FileCopyrightText: Ann\n\nSPDX-License-Identifier: MPL-2.0\n")
    assert found(source)[1:] == [("MPL-2.0", "a.jsonl.license, SPDX header, line 3")] * 2
    assert found(source)[0] == ("ISC", "column license")
    assert found(source, stated="apache 2.0") == [("Apache-2.0", "stated with --licence")] * 3


def test_the_nearest_folder_speaks(tmp_path):
    put(tmp_path, LICENSE=MIT, a__b__x_txt="Text.\n", c__y_txt="Text.\n", c__README_md="license: cc0-1.0\n")
    assert found(tmp_path / "a/b/x.txt", tmp_path) == [("MIT", "LICENSE, the text of MIT")]
    assert found(tmp_path / "c/y.txt", tmp_path) == [("CC0-1.0", "c/README.md, line 1: 'cc0-1.0'")]
    assert found(tmp_path / "a/b/x.txt", tmp_path / "a") == [(None, "")]  # what lies outside the folder is not ours


def test_a_header_holds_for_all_pieces_of_a_file(tmp_path):
    body = "/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */\n" + "int x;\n" * 2000
    (tmp_path / "a.h").write_text(body)
    (tmp_path / "b.h").write_text("int y;\n" * 2000)
    finder = LicenceFinder(tmp_path)
    pieces = [item for name in ("a.h", "b.h") for item in read(tmp_path / name, licences=finder, limit=4000)]
    assert len(pieces) > 5
    expected = {"a.h": "GPL-2.0-only WITH Linux-syscall-note", "b.h": None}
    assert all(item.licence == expected[item.source] for item in pieces)


def test_of_several_licences_all_are_kept(tmp_path):
    (tmp_path / "x.txt").write_text("Text.\n")
    (tmp_path / "LICENSE-MIT").write_text(MIT)
    (tmp_path / "LICENSE-APACHE").write_text(APACHE)
    licence, evidence = found(tmp_path / "x.txt")[0]
    assert licence == "Apache-2.0 AND MIT" and "LICENSE-MIT, the text of MIT" in evidence and "Apache-2.0" in evidence
    (tmp_path / "LICENSE-MIT").unlink()
    (tmp_path / "LICENSE-APACHE").write_text(APACHE + "\n" + MIT)
    licence, evidence = found(tmp_path / "x.txt")[0]
    assert sorted(licence.split(" AND ")) == ["Apache-2.0", "MIT"] and "all count" in evidence


def test_an_unknown_text_is_unknown_and_the_readme_is_asked(tmp_path):
    put(tmp_path, x_txt="Text.\n", COPYING="You may read this on Sundays.\n" * 30)
    assert found(tmp_path / "x.txt") == [(None, "COPYING, a text that is none of the known licences")]
    (tmp_path / "README.md").write_text("## Licence\n\nThis data is published under the CC BY-SA 4.0 license.\n")
    assert found(tmp_path / "x.txt")[0][0] == "CC-BY-SA-4.0"


def test_inside_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("repo/LICENSE", MIT)
        archive.writestr("repo/src/a.py", "x = 1\n")
        archive.writestr("other/b.py", "y = 1\n")
    (tmp_path / "README").write_text("License: ISC\n")
    assert found(tmp_path / "z.zip") == [
        ("ISC", "README, line 1: 'ISC'"),
        ("MIT", "repo/LICENSE, the text of MIT"),
    ]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("mit", "MIT"),
        ("The MIT License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache 2.0", "Apache-2.0"),
        ("cc-by-sa 4.0", "CC-BY-SA-4.0"),
        ("CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International License", "CC-BY-NC-SA-4.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "CC-BY-NC-SA-4.0"),
        ("https://creativecommons.org/licenses/by/3.0/legalcode", "CC-BY-3.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("GPLv3", "GPL-3.0"),
        ("GNU General Public License v3.0", "GPL-3.0"),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ("public domain", "LicenseRef-public-domain"),
        ("(MIT OR Apache-2.0) AND CC0-1.0", "(MIT OR Apache-2.0) AND CC0-1.0"),
        ("LicenseRef-ours", "LicenseRef-ours"),
        ("BSD", None),
        ("GPL", None),
        ("Creative Commons", None),
        ("other", None),
        ("free", None),
        ("MIT and some more", None),
        ("", None),
    ],
)
def test_names(said, name):
    assert licence_id(said) == name


def test_expressions():
    assert expression("mit") == "MIT"
    assert expression("(GPL-2.0-only OR BSD-3-Clause) AND LicenseRef-x") == (
        "(GPL-2.0-only OR BSD-3-Clause) AND LicenseRef-x"
    )
    for broken in ("MIT OR", "OR MIT", "(MIT", "MIT Apache-2.0", "see LICENSE file", ""):
        assert expression(broken) is None, broken


def test_texts():
    assert licences_of_text(MIT) == ["MIT"]
    assert licences_of_text(BSD) == ["BSD-3-Clause"]
    assert licences_of_text(APACHE) == ["Apache-2.0"]
    assert licences_of_text("Some words about nothing.") == []
    assert licences_of_text("A proprietary agreement. " * 100 + MIT) == []  # a part's licence is not the whole's


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Card\n", "Apache-2.0"),
        ("---\nlicense:\n- mit\n---\n", "MIT"),
        ("# X\n\n## License\n\nMIT\n", "MIT"),
        ("# X\n\n## License\n\nApache-2.0. See [LICENSE](LICENSE).\n", "Apache-2.0"),
        ("Released under the [MIT License](LICENSE).\n", "MIT"),
        ("This project is licensed under the MIT License - see the LICENSE file for details\n", "MIT"),
        ("- **Licence:** CC-BY-NC-SA-4.0\n", "CC-BY-NC-SA-4.0"),
        ("Licence: MIT (Hendrycks 2021)\n", "MIT"),
        ("Licence: public domain in the USA (boilerplate removed)\n", "LicenseRef-public-domain"),
        ("Licence: CC-BY-4.0 (data), Apache-2.0 (code)\n", "CC-BY-4.0"),
        ("Licence: CC0-1.0 / MIT\n", "CC0-1.0 AND MIT"),
        ("Licence: CC-BY-4.0 (annotations); each photograph has its own; MIT (repository)\n", None),
        ("Licence: none stated in the repository (its source is published as MIT; not checked)\n", None),
        ("License: see below\n", None),
        ("License: MIT\n\nThe data is licensed under CC-BY-4.0.\n", "MIT AND CC-BY-4.0"),
    ],
)
def test_readme_lines(text, name):
    assert of_readme(text, "README.md")[0] == name


def test_readmes_that_say_nothing():
    assert of_readme("# A project\n\nIt does things.\n", "README.md") is None


def test_names_of_licence_files():
    assert all(map(is_licence_file, ["LICENSE", "LICENCE.txt", "COPYING", "license.md", "LICENSE-MIT", "UNLICENSE"]))
    assert not any(map(is_licence_file, ["license.py", "licenses.csv", "relicense", "copyingtool.c", "LICENSE.json"]))


def test_on_the_shared_data_cards(shared):
    said = {folder.name: (of_readme((folder / "README.md").read_text(), "README.md") or (None,))[0]
            for folder in (shared / "data").iterdir() if (folder / "README.md").exists()}  # fmt: skip
    known = {"gsm8k": "MIT", "dialogsum": "CC-BY-NC-SA-4.0", "piqa": "AFL-3.0", "wikitext-2": "CC-BY-SA-3.0"}
    known |= {"condition-pairs": "LicenseRef-research-only", "alpaca-eval-pairs": "CC-BY-NC-4.0"}
    assert {name: said[name] for name in known} == known
    for name in ("ag-news", "cifar10", "mctest", "nouns", "tiny-coco-256"):
        assert said[name] is None, name
