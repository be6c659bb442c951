"""Conversations in files: every form, every compression, and what is broken is left out with its number and reason."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.conversations import Columns, Conversation, read_conversations
from nomoat.data.document import Dropped

ASKED, SAID = "Who wrote Dune?", "Frank Herbert."
PAIR = [("user", ASKED), ("assistant", SAID)]


def read(path: Path, columns: Columns | None = None) -> tuple[list[Conversation], list[Dropped]]:
    items = list(read_conversations([path], columns))
    return [i for i in items if isinstance(i, Conversation)], [i for i in items if isinstance(i, Dropped)]


def said(row: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


CHAT = {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]}
FORMS = {
    "messages": CHAT,
    "ShareGPT": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
    "Alpaca": {"instruction": ASKED, "input": "", "output": SAID},
    "prompt and completion": {"prompt": ASKED, "completion": SAID},
    "prompt and response": {"prompt": ASKED, "response": SAID},
    "question and answer": {"question": ASKED, "answer": SAID},
    "dialogue and summary": {"dialogue": ASKED, "summary": SAID},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known_by_its_keys(tmp_path: Path, form: str) -> None:
    [row], lost = read(jsonl(tmp_path / "a.jsonl", FORMS[form]))
    assert (row.form, said(row), row.line, lost) == (form, PAIR, 1, [])


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    row = FORMS["Alpaca"] | {"input": "In one word."}
    whole = json.dumps([row])
    (tmp_path / "list.json").write_text(whole)
    (tmp_path / "held.json").write_text(json.dumps({"version": 1, "data": [row]}))
    (tmp_path / "lines.json").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    (tmp_path / "table.csv").write_text(f'instruction,input,output\n"{ASKED}",In one word.,"{SAID}"\n')
    (tmp_path / "table.tsv").write_text(f"instruction\tinput\toutput\n{ASKED}\tIn one word.\t{SAID}\n")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("inner/list.json", whole)
        archive.writestr("../out.jsonl", whole)
        archive.writestr("picture.png", b"\x89PNG")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "table.parquet")
    for name, count in {path.name: 1 + (path.name == "lines.json") for path in tmp_path.iterdir()}.items():
        rows, _ = read(tmp_path / name)
        assert [said(one) for one in rows] == count * [[("user", f"{ASKED}\n\nIn one word."), PAIR[1]]], name


def test_several_conversations_of_one_row(tmp_path: Path) -> None:
    seed = {"instruction": "Name the capital.", "instances": [{"input": c, "output": o} for c, o in ("ab", "cd")]}
    rows, _ = read(jsonl(tmp_path / "seeds.jsonl", seed))
    assert [said(row)[1][1] for row in rows] == ["b", "d"] and said(rows[0])[0][1] == "Name the capital.\n\na"
    story = {"story": "Tom has a dog.", "questions": [{"question": "Who?", "options": ["Tom", "Ann"], "answer": "A"}]}
    [row], _ = read(
        jsonl(tmp_path / "story.jsonl", story),
        Columns("story,questions.question,questions.options", "questions.answer"),
    )
    assert said(row) == [("user", "Tom has a dog.\n\nWho?\n\nA. Tom\nB. Ann"), ("assistant", "A")]


def test_columns_of_other_names_are_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"talk": "Hi there.", "short": ["A greeting.", "Hello."]})
    assert "talk" in read(path)[1][0].detail
    [row], _ = read(path, Columns("Summarise:\\n{talk}", "short"))
    assert said(row) == [("user", "Summarise:\nHi there."), ("assistant", "A greeting.")]
    with pytest.raises(DataError, match="no column `tlak`"):
        read(path, Columns("tlak", "short"))
    with pytest.raises(ConfigError, match="belong together"):
        Columns("talk", "")


BROKEN = {
    "no prompt": {"messages": [{"role": "assistant", "content": SAID}]},
    "role out of order": {"messages": [*CHAT["messages"], {"role": "assistant", "content": "And more."}]},
    "unknown role": {"messages": [{"role": "narrator", "content": "It rained."}, *CHAT["messages"]]},
    "empty answer": {"prompt": ASKED, "completion": "  \n"},
    "no answer at its end": {"messages": CHAT["messages"][:1]},
    "content that is no text": {"messages": [{"role": "user", "content": [1]}, CHAT["messages"][1]]},
    "empty message": {"messages": [{"role": "system", "content": ""}, *CHAT["messages"]]},
    "broken JSON": '{"prompt": "half',
    "not a JSON object": "[1, 2]",
    "no conversation in it": {"id": 7},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_row_is_left_out_with_its_number(tmp_path: Path, reason: str) -> None:
    rows, [lost] = read(jsonl(tmp_path / "a.jsonl", CHAT, BROKEN[reason], CHAT))
    assert [row.line for row in rows] == [1, 3]
    assert (lost.source, lost.member, lost.reason) == ("a.jsonl", "line 2", reason)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").write_text("x,y\n" + "".join(f"{n},{n * n}\n" for n in range(500)))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(CHAT).encode() * 9999)[:400])
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    (tmp_path / "torn.json").write_text('[{"prompt": ')
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "notes.md").write_text("# Notes")
    rows, lost = read(tmp_path)
    assert rows == []
    assert {item.source: item.reason for item in lost} == {
        "cut.jsonl.gz": "damaged archive", "empty.jsonl": "empty", "notes.md": "no table",
        "numbers.csv": "no conversation in it", "picture.json": "binary file", "torn.json": "broken JSON",
        "torn.zip": "damaged archive",
    }  # fmt: skip
    assert next(item.detail for item in lost if item.source == "numbers.csv") == "its columns are x, y"
    with pytest.raises(ConfigError, match="no file or folder"):
        read(tmp_path / "gone")


def test_whose_a_row_is(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("- Licence: MIT\n")
    teacher = {"teacher": "big-1", "licence": "Apache-2.0", "terms": "openai"}
    jsonl(
        tmp_path / "a.jsonl",
        CHAT,
        CHAT | {"licence": "CC-BY-4.0"},
        CHAT | {"origin": teacher, "generation": 2, "derived_from": ["ab"]},
        CHAT | {"origin": "London"},
    )
    rows, _ = read(tmp_path)
    assert [row.licence for row in rows] == ["MIT", "CC-BY-4.0", "Apache-2.0", "MIT"]
    assert [(row.origin, row.terms, row.generation) for row in rows[2:]] == [("big-1", "openai", 2), ("human", "", 0)]
    assert rows[2].derived_from == ("ab",)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda s: (
            st.lists(s, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "messages",
                        "role",
                        "content",
                        "prompt",
                        "completion",
                        "instruction",
                        "output",
                        "instances",
                        "from",
                        "value",
                        "conversations",
                        "origin",
                        "licence",
                    ]
                ),
                s,
                max_size=4,
            )
        ),
    )
)
def test_nothing_in_a_row_raises(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = jsonl(tmp_path_factory.getbasetemp() / "any.jsonl", CHAT, value)
    rows, _ = read(path)
    assert rows[0].canonical == Conversation(tuple(CHAT["messages"])).canonical
    assert all(one.messages[-1]["role"] == "assistant" and one.messages[-1]["content"].strip() for one in rows)


COUNTS = {
    "self-instruct": 286, "alpaca-libre": 5407, "dolly-short": 5906, "instructions-raschka": 1963,
    "alpaca-gpt4-1k": 999, "code-alpaca-2k": 2015, "dialogsum": 500, "gsm8k": 8140,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_the_shared_sets_are_read_as_they_are(shared: Path, name: str) -> None:
    assert len(read(shared / "data" / name)[0]) == COUNTS[name]


def test_a_shared_set_with_questions_in_a_list(shared: Path) -> None:
    columns = Columns("story,questions.question,questions.options", "questions.answer")
    rows, _ = read(shared / "data" / "mctest", columns)
    assert len(rows) == 584 * 4 and {said(row)[1][1] for row in rows} == {*"ABCD"}
