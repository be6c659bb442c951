"""Licence verdicts: the algebra, the fourteen rules, mixtures of real data, overrides, and what may not be trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nomoat
from nomoat import licensing
from nomoat.cli.entry import main
from nomoat.core.budget import Budget
from nomoat.core.errors import ConfigError, DataError, RunError
from nomoat.core.ledger import Ledger, Origin, Share
from nomoat.core.recipe import Recipe, Ref
from nomoat.core.run import Run
from nomoat.core.terms import USES, WORDS, Clause, Terms, join, judge
from nomoat.data.croissant import VERSION
from nomoat.data.imported import Imported
from nomoat.data.ingest import ingest
from nomoat.data.rules import Override, Rules, overrides_at, written_by
from nomoat.data.sources import of_ledger, streams_of
from nomoat.data.spdx import TABLE as SPDX
from nomoat.data.text import Text
from nomoat.families.lm import LM
from nomoat.licensing import assess, licence, refuse

RULES = Rules()
SA = ["CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "GPL-2.0-only", "GPL-3.0-only", "MPL-2.0", "ODbL-1.0"]
few = st.frozensets(st.sampled_from(["one", "two"]))
vectors = st.builds(
    Terms,
    use=st.sampled_from(USES),
    attribution=st.booleans(),
    credits=few,
    share_alike=st.frozensets(st.sampled_from(SA), max_size=2),
    no_derivatives=st.booleans(),
    contract=st.frozensets(st.sampled_from([Clause("a", "b", "c"), Clause("d", "e", "f")])),
    naming=few,
    policies=few,
    opt_out=st.booleans(),
    known=st.booleans(),
    evidence=few,
)


def weights(*licences):
    return [RULES.of(each).layers["weights"] for each in licences]


def verdict(*licences, sizes=None):
    return judge(weights(*licences), RULES.routes, sizes)


@given(vectors, vectors, vectors)
def test_the_join_is_associative_commutative_and_idempotent(a, b, c):
    assert (a | b) | c == a | (b | c) == join([a, b, c])
    assert a | b == b | a
    assert a | a == a == a | Terms() == Terms() | a


@given(st.lists(vectors, min_size=1, max_size=5), st.randoms())
def test_the_verdict_depends_on_no_order_and_only_gets_stricter(streams, chance):
    shuffled = chance.sample(streams, len(streams))
    routes = RULES.routes
    assert routes.words(join(streams)) == routes.words(join(shuffled))
    assert all(routes.rank(streams) >= routes.rank([each]) for each in streams)


@given(st.lists(vectors, min_size=1, max_size=6), st.lists(st.integers(1, 9), min_size=6, max_size=6))
def test_causes_cause_it_and_what_is_said_of_leaving_out_is_true(streams, sizes):
    found = judge(streams, RULES.routes, [float(size) for size in sizes[: len(streams)]])
    rank = WORDS.index(found.word)
    assert bool(found.causes) == (rank > 0)
    if rank:
        assert RULES.routes.rank(streams[n] for n in found.causes) == rank
    for each in found.without:
        rest = [terms for n, terms in enumerate(streams) if n not in each.streams]
        assert WORDS[RULES.routes.rank(rest)] == each.word and (rest or each.word == "permissive")


@given(st.lists(vectors, min_size=2, max_size=5))
def test_no_smaller_removal_reaches_what_the_cheapest_one_does(streams):
    found = judge(streams, RULES.routes)
    for better in range(WORDS.index(found.word)):
        subsets = [[n for n in range(len(streams)) if bits >> n & 1] for bits in range(1, 2 ** len(streams))]
        fine = [keep for keep in subsets if RULES.routes.rank(streams[n] for n in keep) <= better]
        if fine:
            most = max(map(len, fine))
            said = [len(each.streams) for each in found.without if WORDS.index(each.word) <= better]
            assert min(said) == len(streams) - most


def test_the_table_is_whole():
    entries = RULES.table["licences"]
    assert set(SPDX["identifiers"]) <= entries.keys()
    assert set(SPDX["spellings"]) <= entries.keys()
    assert list(RULES.table["rules"]) == [f"R{n}" for n in range(1, 15)]
    assert all(rule["source"] and rule["url"] and rule["date"] for rule in RULES.table["rules"].values())
    for start, ends in RULES.table["routes"].items():
        for name, source in [(start, "-"), *ends.items()]:
            assert "R3" in entries[name]["rules"] or name == "GFDL-1.3-only", name
            assert source
    assert all(licence in entries for _, licence in RULES.table["teachers"])


@pytest.mark.parametrize(
    ("rule", "licence", "words", "outputs"),
    [
        ("R1", "CC0-1.0", ("permissive",), "permissive"),
        ("R1", "public domain", ("permissive",), "permissive"),
        ("R2", "Apache-2.0", ("attribution",), "permissive"),
        ("R2", "CDLA-Permissive-2.0", ("attribution",), "permissive"),
        ("R3", "CC-BY-SA-4.0", ("share-alike", "attribution"), "permissive"),
        ("R3", "GPL-3.0-only", ("share-alike", "attribution"), "permissive"),
        ("R4", "CC-BY-NC-4.0", ("non-commercial", "attribution"), "non-commercial"),
        ("R5", "CC-BY-ND-4.0", ("restricted", "attribution"), "permissive"),
        ("R6", "research only", ("research-only",), "research-only"),
        ("R7", "the licence of my uncle", ("unknown",), "unknown"),
        ("R7", None, ("unknown",), "unknown"),
        ("R8", "openai", ("permissive",), "permissive"),
        ("R9", "LicenseRef-llama2", ("restricted",), "permissive"),
        ("R10", "LicenseRef-llama3.1", ("restricted", "attribution"), "restricted"),
        ("R11", "LicenseRef-gemma", ("restricted", "attribution"), "permissive"),
        ("R14", "LicenseRef-opt-out", ("restricted",), "permissive"),
    ],
)
def test_the_rules(rule, licence, words, outputs):
    bound = RULES.of(licence)
    assert rule in bound.rules
    assert RULES.routes.words(bound.layers["weights"]) == words
    if rule != "R9":
        assert RULES.routes.words(bound.layers["outputs"])[0] == outputs


def test_a_contract_is_a_flag_and_is_not_turned_into_non_commercial():
    terms = RULES.of("openai").layers["weights"]
    (clause,) = terms.contract
    assert (clause.party, terms.use) == ("OpenAI", "any") and clause.date and "compete" in clause.text


def test_llama_may_be_trained_on_llama_and_nothing_else_may():
    assert RULES.of("LicenseRef-llama2").layers["weights"].use == "forbidden"
    own = RULES.of("LicenseRef-llama2", own={"llama"})
    assert own.layers["weights"].use == "behaviour" and "Llama" in str(own.layers["weights"].naming)


def written(origin, licence="MIT", own=()):
    ledger = Ledger((Share(licence, 4, 10, 40),), ((str(origin), 2), ("human", 2)), 1)
    return of_ledger(ledger, "mine", RULES, own)[1]


def test_r12_a_permissive_teacher_asks_for_its_name_alone():
    found = written(Origin("some-qwen", "Apache-2.0"))
    assert found.bound.rules == ("R12",) and (found.documents, found.tokens, found.bytes) == (2, 5, 20)
    assert RULES.routes.words(found.bound.layers["weights"]) == ("attribution",)
    assert written(Origin("deepseek-r1-distill")).bound.rules == ("R12",)


def test_teachers_by_terms_by_name_and_unheard_of():
    stated = written(Origin("our-proxy", "unknown", "anthropic"))
    assert stated.bound.rules == ("R8",) and "Anthropic" in str(stated.bound.layers["weights"].contract)
    assert written("gpt-4o-mini").licence == "openai"
    assert written("llama-3-8b").bound.layers["weights"].use == "forbidden"
    assert written("llama-3-8b", own={"llama"}).bound.layers["weights"].use == "behaviour"
    assert written("llama-3.1-8b").bound.rules == ("R10",)
    assert written("gemma-2-2b").bound.rules == ("R11",)
    assert written("nobody-knows-me").bound.rules == ("R7",)


@pytest.mark.parametrize(
    ("licences", "word", "causes"),
    [
        (["MIT", "Apache-2.0"], "attribution", (0, 1)),
        (["CC-BY-SA-3.0", "CC-BY-4.0"], "share-alike", (0,)),
        (["CC0-1.0 AND MIT", "CC-BY-NC-4.0"], "non-commercial", (1,)),
        (["CC-BY-SA-3.0", "CC-BY-NC-SA-4.0"], "conflict", (0, 1)),
        (["MIT", None], "unknown", (1,)),
        (["CC-BY-SA-4.0", "CC-BY-NC-4.0"], "conflict", (0, 1)),
        (["CC-BY-SA-4.0", "GPL-3.0-only"], "share-alike", (0, 1)),
        (["CC-BY-SA-3.0", "GPL-3.0-or-later"], "share-alike", (0, 1)),
        (["CC-BY-SA-4.0", "GPL-2.0-only"], "conflict", (0, 1)),
        (["CC-BY-SA-1.0", "CC-BY-SA-4.0"], "conflict", (0, 1)),
        (["GPL-2.0-only", "GPL-3.0-only"], "conflict", (0, 1)),
        (["GPL-2.0-or-later", "GPL-3.0-only"], "share-alike", (0, 1)),
        (["MIT OR GPL-2.0-only", "GPL-3.0-only"], "share-alike", (1,)),
        (["MIT AND GPL-2.0-only", "MIT", "GPL-3.0-only"], "conflict", (0, 2)),
        (["(MIT OR CC-BY-NC-4.0) AND CC-BY-SA-3.0"], "share-alike", (0,)),
    ],
)
def test_mixtures(licences, word, causes):
    found = verdict(*licences)
    assert (found.word, found.causes) == (word, causes)


def test_the_cheapest_way_is_named():
    found = verdict("MIT", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", sizes=[90.0, 9.0, 1.0])
    assert [(each.streams, each.word) for each in found.without] == [
        ((2,), "share-alike"),
        ((1,), "non-commercial"),
        ((1, 2), "attribution"),
        ((0, 1, 2), "permissive"),
    ][: len(found.without)]


def put(folder, text, **files):
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text * 40)
    for name, said in files.items():
        (folder / name.replace("_", ".")).write_text(said)
    return folder


@pytest.mark.parametrize(
    ("names", "word", "causes"),
    [
        (["gsm8k", "instructions-raschka"], "attribution", ["gsm8k", "instructions-raschka"]),
        (["dolly-short", "wikigold"], "share-alike", ["dolly-short"]),
        (["alpaca-libre", "code-alpaca-2k"], "non-commercial", ["code-alpaca-2k"]),
        (["dolly-short", "dialogsum"], "conflict", ["dolly-short", "dialogsum"]),
        (["gsm8k", "sst2"], "unknown", ["sst2"]),
    ],
)
def test_mixtures_of_real_data(shared, names, word, causes):
    found = licence(*(shared / "data" / name for name in names))
    assert found.word == word and found.unit == "bytes"
    assert [found.streams[n].name for n in found.verdicts["weights"].causes] == causes
    text = found.as_text()
    assert "no legal advice" in text and all(f"without {name} (" in text for name in causes)


def test_the_contract_of_a_teacher_is_flagged(shared):
    found = licence(shared / "data" / "alpaca-gpt4-1k")
    assert found.word == "attribution" and "teacher that is not named" in found.flags()[0]
    assert licence(shared / "data" / "code-alpaca-2k").flags()[0].startswith("contract of OpenAI")
    blind = licence(shared / "data" / "code-alpaca-2k", profile="contract-blind")
    assert not blind.flags() and blind.word == "non-commercial"
    assert not licence(shared / "data" / "gsm8k").flags()  # its README names openai, as where it comes from


def test_each_photograph_has_its_own_licence(shared):
    found = licence(shared / "data" / "tiny-coco-256")
    counts = {each.licence: each.documents for each in found.streams}
    assert counts["CC-BY-NC-ND-2.0"] == 30 and counts["CC-BY-2.0"] == 19 and counts["CC-BY-NC-SA-2.0"] == 14
    assert sum(counts.values()) == 80 and "unknown" not in counts
    ways = {found.named(each.streams): each.word for each in found.ways()}
    assert ways["CC-BY-SA-2.0 (7.6 % of the bytes)"] == "restricted"


def test_who_wrote_it_is_read_from_prose_only_where_it_says_so():
    assert written_by("- Note: written by text-davinci-003") == "text-davinci-003"
    assert written_by("(repository; the answers come from language models)") == "language models"
    assert written_by("Answers generated with GPT-4o-mini.") == "GPT-4o-mini"
    for silent in (
        "- Source: github openai/grade-school-math",
        "each with the answers of four Flan-T5 models",
        "people",
    ):
        assert not written_by(silent), silent


def test_contradicting_evidence_the_stricter_counts(tmp_path):
    folder = put(
        tmp_path / "d", "Text. ", LICENSE="SPDX-License-Identifier: MIT\n", README_md="Licence: CC-BY-NC-4.0\n"
    )
    found = licence(folder)
    (stream,) = found.streams
    assert found.word == "non-commercial" and stream.licence == "MIT AND CC-BY-NC-4.0"
    assert "LICENSE" in stream.evidence and "README.md" in stream.evidence


def test_a_folder_without_any_licence_and_one_without_text(tmp_path):
    found = licence(put(tmp_path / "d", "Text. "))
    assert found.word == "unknown" and "nobody has said" in found.as_text()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "x.npz").write_bytes(b"\0\1\2" * 99)
    (tmp_path / "e" / "README.md").write_text("Licence: CC-BY-SA-4.0\n")
    assert licence(tmp_path / "e").word == "share-alike"


def test_rows_that_a_teacher_wrote(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"question {n}"}], "generation": 1, "derived_from": ["x"], **more}
        for n, more in enumerate(
            [
                {"origin": {"teacher": "llama-3.1-8b", "licence": "llama3.1", "terms": ""}, "licence": "CC0-1.0"},
                {"origin": {"teacher": "gpt-4o", "licence": "unknown", "terms": "openai"}},
                {"origin": {"teacher": "own-run", "licence": "Apache-2.0", "terms": ""}},
            ]
        )
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = licence(path)
    said = {each.name.rpartition(": ")[2]: each for each in found.streams}
    assert said["written by llama-3.1-8b"].bound.rules == ("R10",)
    assert said["written by gpt-4o"].bound.rules == ("R8",)
    assert said["written by own-run"].bound.rules == ("R12",)
    assert {"CC0-1.0", "LicenseRef-provider-output", "Apache-2.0"} <= said.keys()
    assert found.word == "restricted" and found.flags() and "begins with Llama" in found.as_text()


@given(st.text("abc-.", min_size=1), st.sampled_from(["", "MIT", "unknown"]), st.sampled_from(["", "openai"]))
def test_an_origin_is_read_back_as_it_was_written(name, licence, terms):
    assert Origin.of(str(Origin(name, licence, terms))) == Origin(name, licence, terms)


def test_teachers_that_conversations_note_in_their_manifest(tmp_path):
    folder = dataset(tmp_path, "talks", "CC0-1.0")
    told = json.loads((folder / "dataset.json").read_text())
    told["settings"]["teachers"] = [{"teacher": "proxy", "terms": "openai", "licence": None, "rows": 1}]
    (folder / "dataset.json").write_text(json.dumps(told))
    found = licence(folder)
    assert found.streams[1].bound.rules == ("R8",) and found.flags()[0].startswith("contract of OpenAI")


def test_a_row_that_says_unknown_is_not_talked_out_of_it(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    row = {"messages": [{"role": "user", "content": "a"}], "generation": 1, "licence": "unknown"}
    row["origin"] = {"teacher": "qwen", "licence": "Apache-2.0", "terms": "none"}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (folder / "report.json").write_text("{}")
    found = licence(folder)
    assert found.word == "unknown" and [each.role for each in found.streams] == ["data", "teacher"]
    assert found.streams[1].bound.rules == ("R12",)


def test_overrides_are_kept_with_their_reason_and_printed(tmp_path, capsys):
    folder = put(tmp_path / "d", "Text. ")
    assert main(["licence", str(folder), "--override", "d=CC-BY-4.0"]) == 2
    assert "reason" in capsys.readouterr().err
    assert main(["licence", str(folder), "--override", "d=R99", "--reason", "they said so"]) == 2
    assert main(["licence", str(folder), "--override", "d=CC-BY-4.0", "--reason", "they said so"]) == 0
    assert "they said so" in capsys.readouterr().out
    kept = json.loads((folder / "licences.json").read_text())["d"]
    assert kept["reason"] == "they said so" and kept["date"]
    again = licence(folder)
    assert again.word == "attribution" and "overridden: they said so" in again.as_text()
    assert len(again.streams) == 1  # licences.json is no text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{\n "MIT": {"rule": "R2", "reason": "x"},\n "x": {"rule": "R2"}\n}', "line 3, x: it has no reason"),
        ('{\n "x": {"rule": "R2", "reason": " "}\n}', "line 2, x: it has no reason"),
        ('{\n "x": {"rule": "R77", "reason": "y"}\n}', "line 2, x: `R77` is no rule"),
        ('{\n "x": "R2"\n}', "line 2, x: an entry is"),
        ('{\n "x": {,}\n}', "line 2"),
        ("[]", "line 1"),
    ],
)
def test_a_damaged_override_file_names_the_line(tmp_path, text, says):
    (tmp_path / "licences.json").write_text(text)
    with pytest.raises(DataError) as caught:
        overrides_at([tmp_path], RULES)
    assert says in caught.value.why


def test_a_damaged_table_names_the_line(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text('{"rules": {"R1": {}},\n"licences": {\n"MIT": {"rules": ["R2"]}}}')
    with pytest.raises(DataError) as caught:
        Rules(path)
    assert "line 3, MIT: there is no rule R2" in caught.value.why


def test_what_cannot_be_asked(tmp_path):
    folder = put(tmp_path / "d", "Text. ")
    with pytest.raises(ConfigError, match="no profile"):
        licence(folder, profile="stric")
    with pytest.raises(ConfigError, match="tdm has no reason"):
        licence(folder, profile="tdm")
    with pytest.raises(DataError, match="no such run"):
        licence(tmp_path / "nowhere")


def test_under_an_exception_conditions_are_not_passed_on(tmp_path):
    folder = put(tmp_path / "d", "Text. ", README_md="Licence: CC-BY-NC-SA-4.0\n")
    found = licence(folder, profile="tdm", reason="research in the EU")
    assert found.word == "permissive" and found.verdicts["data"].word == "non-commercial"
    opted = streams_of(put(tmp_path / "o", "Text. "), Rules(overrides={"o": Override("R14", "robots.txt")}))
    assert assess("o", opted, RULES, "tdm").word == "restricted"


def test_side_by_side_data_conflict_with_nothing():
    shares = (Share("CC-BY-SA-4.0", 1, 0, 9), Share("CC-BY-NC-SA-4.0", 1, 0, 9))
    found = assess("both", of_ledger(Ledger(shares), "both", RULES), RULES)
    assert found.word == "conflict" and found.verdicts["data"].words[0] == "non-commercial"
    assert "share-alike" in found.verdicts["data"].words and found.verdicts["code"].word == "attribution"


def recipe(folders=(), start=None):
    data = Text(tuple(map(str, folders))) if folders else Imported("x.gguf", "0" * 64, "GGUF")
    return Recipe("test", LM.tiny(), data, Budget.parse("1steps"), batch_size=1, start=start)


def model(root, said, name="base"):
    run = Run.create(root, name, recipe())
    run.write_json("ledger.json", {"source": "x", "licence": said, "evidence": "README.md", "files": {}})
    return run


def dataset(tmp_path, name, said=None):
    folder = put(tmp_path / name, f"{name} is a text of its own, with words. ")
    ingest(folder, tmp_path / f"{name}-made", tokenizer="byte", licence=said)
    return tmp_path / f"{name}-made"


def test_the_licence_of_a_base_model_always_joins(tmp_path, runs_root):
    base = model(runs_root, "LicenseRef-llama2")
    notes = dataset(tmp_path, "notes", "CC0-1.0")
    tuned = Run.create(runs_root, "tuned", recipe([notes], Ref(str(base.path))))
    found = licence(tuned.path)
    assert found.word == "restricted" and found.unit == "tokens"
    (cause,) = (found.streams[n] for n in found.verdicts["weights"].causes)
    assert cause.role == "base" and "R13" in cause.bound.rules and "begins with Llama" in found.as_text()
    assert refuse(tuned.recipe) == []  # of Llama itself it is allowed
    assert nomoat.licence(tuned.name, overrides={base.name: "Apache-2.0"}, reason="asked").word == "attribution"
    assert (tuned.path / "licences.json").is_file() and licence(tuned.path).word == "attribution"
    assert licence(base.path).word == "restricted"
    gone = recipe([notes], Ref("nowhere"))
    warned = []
    assert refuse(gone, watch=warned.append) == [] and "nowhere" in warned[0]["text"]


def test_what_may_not_be_trained_on_together(tmp_path, runs_root):
    one, other = dataset(tmp_path, "one", "CC-BY-SA-4.0"), dataset(tmp_path, "other", "CC-BY-NC-SA-4.0")
    mine, free = dataset(tmp_path, "mine"), dataset(tmp_path, "free", "CC0-1.0")
    with pytest.raises(RunError, match="may not be trained") as caught:
        refuse(recipe([one, other]))
    assert "one" in caught.value.why and "without" in caught.value.fix and "--allow" in caught.value.fix
    ((name, value, why),) = refuse(recipe([one, other]), allow="for myself alone")
    assert (name, value["verdict"], why) == ("licence_allowed", "conflict", "for myself alone")
    with pytest.raises(RunError):
        refuse(recipe([one, other]), allow="  ")
    warned = []
    assert refuse(recipe([mine, free]), watch=warned.append) == [] and "mine" in warned[0]["text"]
    assert refuse(recipe([mine]), watch=warned.append) == [] and len(warned) == 2
    with pytest.raises(RunError) as caught:
        refuse(recipe([mine, one]))
    assert "wants the whole under CC-BY-SA-4.0" in caught.value.why
    assert refuse(recipe([one, free])) == []


def test_train_and_make_stop_at_the_door_and_keep_the_reason(tmp_path, runs_root):
    folder = put(tmp_path / "both", "A text with some words in it. ", LICENSE="SPDX-License-Identifier: GPL-2.0-only\n")
    put(folder / "below", "Another text with other words. ", LICENSE="SPDX-License-Identifier: GPL-3.0-only\n")
    with pytest.raises(RunError, match="may not be trained"):
        nomoat.make(folder, budget="2steps")
    assert not list(runs_root.glob("20*"))
    (tmp_path / "notes").mkdir()
    data = dataset(tmp_path, "both2", "CC-BY-SA-4.0"), dataset(tmp_path, "third", "CC-BY-NC-4.0")
    wanted = replace(recipe(data), family=replace(LM.tiny(), vocab_size=257, context_length=16))
    wanted = replace(wanted, data=replace(wanted.data, context_length=16))
    with pytest.raises(RunError, match="may not be trained"):
        nomoat.train(wanted)
    run = nomoat.train(wanted, device="cpu", allow="a test")
    (decision,) = run.decisions("licence_allowed")
    assert decision["why"] == "a test"


def test_the_notice_goes_along(tmp_path, runs_root):
    run, target = model(runs_root, "Apache-2.0"), tmp_path / "exported"
    target.mkdir()
    assert licensing.ship(run, target) == target
    text = (target / "NOTICE").read_text()
    assert "Apache-2.0" in text and run.name in text
    (target / "NOTICE").unlink()
    licensing.ship(model(runs_root, "CC0-1.0", "free"), target)
    assert not (target / "NOTICE").exists()
    licensing.ship(run, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf.NOTICE").is_file()


def test_the_croissant_card(tmp_path):
    folder = put(tmp_path / "d", "Text. ", README_md="Licence: CC-BY-4.0\n")
    out = tmp_path / "card.json"
    assert main(["licence", str(folder), "--croissant", str(out), "--notice", str(tmp_path / "NOTICE")]) == 0
    card = json.loads(out.read_text())
    needed = {"@context", "@type", "conformsTo", "name", "description", "license", "datePublished", "distribution"}
    assert needed <= card.keys() and card["conformsTo"] == VERSION and card["@type"] == "sc:Dataset"
    assert card["license"] == ["https://spdx.org/licenses/CC-BY-4.0"]
    for file in card["distribution"]:
        assert file["@type"] == "cr:FileObject" and len(file["sha256"]) == 64
        assert {"@id", "name", "contentUrl", "encodingFormat"} <= file.keys()
    assert "CC-BY-4.0" in (tmp_path / "NOTICE").read_text()


def test_a_run_has_no_croissant_card(runs_root, capsys):
    run = model(runs_root, "MIT")
    assert main(["licence", str(run.path), "--croissant", "x.json"]) == 2
    assert "it is a card of data" in capsys.readouterr().err and not Path("x.json").exists()


def test_both_spellings_and_json(tmp_path, capfd):
    folder = put(tmp_path / "d", "Text. ", README_md="Licence: MIT\n")
    for verb in ("licence", "license"):
        assert main([verb, str(folder), "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == lines[1] and lines[0]["verdict"] == "attribution" and lines[0]["limits"]
    assert lines[0]["streams"][0]["rules"] == ["R2"] and lines[0]["rules"]["R2"]["date"]
