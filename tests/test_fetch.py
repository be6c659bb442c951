"""Fetching from a server of this machine: resumed, checked, whole or not there, and nowhere else."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from nomoat.core import durable
from nomoat.core.errors import DataError
from nomoat.hub import fetch as fetching
from nomoat.hub.fetch import Remote, UnreachableError, address, fetch, joined, read, shown

DATA = bytes(range(256)) * 4000
SHA = hashlib.sha256(DATA).hexdigest()


class Served(BaseHTTPRequestHandler):
    """Answers from `server.files`: path -> bytes, or a function of the request that answers for itself."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        content = self.server.files.get(self.path.partition("?")[0])
        if callable(content):
            content(self)
        elif content is None:
            self.send_error(404)
        else:
            self.give(content)

    def give(self, content, kind="application/octet-stream", ranges=True):
        start = 0
        if ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def go(self, where):
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(files):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    server.files, server.asked = files, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=server.asked, files=files)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def breaking(after, ranges=True):
    """Says that it sends all and ends the connection after so many bytes of what was asked for."""

    def answer(request):
        start = int(request.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        request.send_header("Content-Length", str(len(DATA) - start))
        request.end_headers()
        request.wfile.write(DATA[start : start + after])

    return answer


def test_a_file_comes_whole_with_progress_and_is_not_fetched_twice(tmp_path):
    events = []
    with serving({"/a": DATA}) as server:
        remote = Remote(server.url + "/a", "a.bin", SHA, len(DATA))
        for _ in range(2):
            path = fetch(remote, tmp_path / "new" / "folder", events.append)
            assert path.read_bytes() == DATA
        assert len(server.asked) == 1
        (tmp_path / "new" / "folder" / "a.bin").write_bytes(b"damaged")
        assert fetch(remote, tmp_path / "new" / "folder").read_bytes() == DATA
    assert events[-1] == {"kind": "fetch", "name": "a.bin", "done": len(DATA), "total": len(DATA)}
    assert {path.name for path in path.parent.iterdir()} == {"a.bin", ".lock"}


def test_empty_files_come_too(tmp_path):
    with serving({"/a": b""}) as server:
        for size in (0, None):
            assert fetch(Remote(server.url + "/a", f"a{size}", size=size), tmp_path).read_bytes() == b""
        with pytest.raises(DataError, match="not what it must be"):
            fetch(Remote(server.url + "/a", "b", size=-1), tmp_path)


def test_what_broke_off_goes_on_where_it_broke(tmp_path):
    with serving({"/a": breaking(300_000)}) as server:
        path = fetch(Remote(server.url + "/a", "a", SHA, len(DATA)), tmp_path)
        assert path.read_bytes() == DATA
        starts = [headers.get("Range") for _, headers in server.asked]
        assert starts[:2] == [None, "bytes=300000-"] and len(starts) == 4


def test_a_connection_that_stays_broken_is_told_and_the_part_kept(tmp_path):
    def dead(request):
        request.connection.close()

    with serving({"/a": breaking(200_000)}) as server:
        remote = Remote(server.url + "/a", "a", SHA, len(DATA))
        (tmp_path / "a.part").write_bytes(DATA[:200_000])
        server.files["/a"] = dead
        with pytest.raises(UnreachableError, match="cannot be reached") as told:
            fetch(remote, tmp_path)
        assert "200,000 bytes of it are kept" in told.value.fix
        assert len(server.asked) == fetching.TRIES
        server.files["/a"] = DATA
        assert fetch(remote, tmp_path).read_bytes() == DATA
        assert server.asked[-1][1]["Range"] == "bytes=200000-"


def test_a_server_without_ranges_sends_it_all_again(tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    with serving({"/a": lambda request: request.give(DATA, ranges=False)}) as server:
        assert fetch(Remote(server.url + "/a", "a", SHA), tmp_path).read_bytes() == DATA


def test_a_part_of_another_file_is_thrown_away(tmp_path):
    def elsewhere(request):
        if "Range" not in request.headers:
            request.give(DATA)
            return
        request.send_response(206)
        request.send_header("Content-Range", "bytes 0-9/10")
        request.end_headers()
        request.wfile.write(DATA[:10])

    with serving({"/a": DATA, "/b": elsewhere}) as server:
        (tmp_path / "a.part").write_bytes(DATA + b"more")  # 416
        assert fetch(Remote(server.url + "/a", "a", SHA), tmp_path).read_bytes() == DATA
        (tmp_path / "b.part").write_bytes(DATA[:5])
        assert fetch(Remote(server.url + "/b", "b", SHA), tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": len(DATA) - 1}, {"size": 7, "sha256": SHA}])
def test_what_is_not_what_it_must_be_does_not_stay(tmp_path, wrong):
    with serving({"/a": DATA}) as server, pytest.raises(DataError, match="not what it must be"):
        fetch(Remote(server.url + "/a", "a", **wrong), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_whole_part_with_the_wrong_contents_does_not_stay(tmp_path):
    (tmp_path / "a.part").write_bytes(b"0" * len(DATA))
    with serving({"/a": DATA}) as server:
        remote = Remote(server.url + "/a", "a", SHA, len(DATA))
        with pytest.raises(DataError, match="not what it must be"):
            fetch(remote, tmp_path)
        assert fetch(remote, tmp_path).read_bytes() == DATA


def test_a_file_that_never_ends_is_cut_at_its_promised_size(tmp_path):
    def endless(request):
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(DATA)
        except OSError:
            pass

    with serving({"/a": endless}) as server, pytest.raises(DataError, match="not what it must be"):
        fetch(Remote(server.url + "/a", "a", SHA, 1000), tmp_path)


def test_a_full_disk_is_told_and_the_part_kept(tmp_path, monkeypatch):
    with serving({"/a": DATA}) as server:
        remote = Remote(server.url + "/a", "a", SHA, len(DATA))
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(DataError, match="disk is full") as told:
            fetch(remote, tmp_path)
        assert "1,000 are free" in told.value.why and "NOMOAT_CACHE" in told.value.fix
        monkeypatch.undo()
        monkeypatch.setattr(fetching, "CHUNK", 1000)
        real = fetching._next
        chunks = []

        def failing(url, answer):
            chunks.append(1)
            if len(chunks) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(url, answer)

        monkeypatch.setattr(fetching, "_next", failing)
        with pytest.raises(DataError, match="disk is full"):
            fetch(remote, tmp_path)
        assert (tmp_path / "a.part").read_bytes() == DATA[:3000]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        raise fetching.no_room(tmp_path, PermissionError(errno.EACCES, "no"))


def test_two_processes_do_not_fetch_one_file(tmp_path):
    handle = durable.acquire(tmp_path / ".lock")
    try:
        with pytest.raises(DataError, match="another process"):
            fetch(Remote("http://127.0.0.1:9/a", "a"), tmp_path)
    finally:
        os.close(handle)


def test_redirects_stay_on_the_web_and_keep_a_token_at_home(tmp_path):
    with serving({"/far": DATA, "/near": lambda request: request.go("/far")}) as far, serving({}) as server:
        server.files |= {
            "/here": lambda request: request.go("/there"),
            "/there": DATA,
            "/away": lambda request: request.go(far.url + "/far"),
            "/file": lambda request: request.go("file:///etc/passwd"),
            "/ftp": lambda request: request.go("ftp://127.0.0.1/x"),
            "/round": lambda request: request.go("/round"),
        }
        for number, (path, data) in enumerate((("/here", DATA), ("/away", DATA))):
            assert fetch(Remote(server.url + path, str(number), token="secret"), tmp_path).read_bytes() == data
        assert [headers["Authorization"] for _, headers in server.asked] == ["Bearer secret"] * 3
        assert [headers.get("Authorization") for _, headers in far.asked] == [None]
        for path in ("/file", "/ftp", "/round"):
            with pytest.raises(DataError) as told:
                read(server.url + path, token="secret")
            assert "secret" not in str(told.value) and "root:" not in str(told.value)


def test_https_does_not_fall_back_to_http():
    import urllib.request

    request = urllib.request.Request("https://example.invalid/a")
    with pytest.raises(DataError, match="leads to http"):
        fetching._Redirects().redirect_request(request, None, 302, "", {}, "http://example.invalid/a")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:text/plain,a", "http://", "a/b"])
def test_other_addresses_are_refused(url):
    with pytest.raises(DataError, match="no address"):
        read(url)


def test_errors_are_in_words_and_hold_no_secrets(tmp_path):
    files = {"/401": lambda request: request.send_error(401), "/500": lambda request: request.send_error(500)}
    with serving(files) as server:
        host = server.url.removeprefix("http://")
        for path, status in (("/401", 401), ("/404", 404), ("/500", 500)):
            with pytest.raises(UnreachableError, match=f"answers {status}") as told:
                read(f"http://user:geheim@{host}{path}?key=geheim")
            assert told.value.status == status and "geheim" not in str(told.value)
        assert server.asked[0][1]["Authorization"] == "Basic dXNlcjpnZWhlaW0="
        with pytest.raises(UnreachableError, match="answers 404"):
            fetch(Remote(server.url + "/none", "a"), tmp_path)
        assert len(server.asked) == 4  # what is not there is asked for once
        with pytest.raises(UnreachableError):
            fetch(Remote(server.url + "/500", "a"), tmp_path)
        assert len(server.asked) == 4 + fetching.TRIES
    with pytest.raises(UnreachableError, match="cannot be reached") as told:
        read(server.url)
    assert told.value.status == 0


def test_long_lists_and_compressed_answers_are_refused(monkeypatch):
    def packed(request):
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()

    monkeypatch.setattr(fetching, "MOST_TOLD", 1000)
    with serving({"/long": DATA, "/packed": packed}) as server:
        with pytest.raises(DataError, match="too long"):
            read(server.url + "/long")
        with pytest.raises(DataError, match="compressed"):
            read(server.url + "/packed")


def test_addresses():
    assert address("https://a.b/c/", "d e", "f/g", query="h=1") == "https://a.b/c/d%20e/f%2Fg?h=1"
    assert joined("https://a.b/simple/x/", "../../files/x.whl#sha256=12") == ("https://a.b/files/x.whl", "sha256=12")
    assert shown("https://me:pass@a.b/c?token=1#d") == "https://a.b/c"
