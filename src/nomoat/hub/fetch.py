"""Fetching files over HTTP: resumed where it broke, checked, put in place whole. The one file that opens connections.

    url -> name.part (Range: from what is there) -> size and SHA-256 -> rename -> name
    url, JSON -> post_json (again, later and later, where that may help) -> JSON

Only http and https, only to what was named; a redirect to anything else is refused, and a token goes to no other host.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from nomoat.core import durable
from nomoat.core.errors import DataError

Watch = Callable[[Mapping[str, Any]], None]

SECONDS = 30
"""Without a byte for so long a connection is broken."""
TRIES, PAUSE_SECONDS = 5, 0.5
CHUNK = 1 << 18
REASONS = {401: "it wants a token (HF_TOKEN)", 403: "it is refused to you", 404: "it is not there"}
MOST_TOLD = 1 << 26
"""Bytes of the largest list of files that is read."""
MOST_SAID = 1 << 12
"""Bytes that are read of why a server refuses."""
MOST_WAIT = 120.0
"""Seconds after which a server is asked again at the latest."""


class UnreachableError(DataError):
    """What was asked did not answer (status 0), or answered with an error (its HTTP status).

    Attributes:
        status: HTTP status.
        wait_seconds: after which it wants to be asked again, where it says so.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", status: int = 0, wait_seconds: float = 0.0) -> None:
        super().__init__(what, why, fix)
        self.status, self.wait_seconds = status, wait_seconds

    @property
    def passing(self) -> bool:
        """Whether the same request may fare better later."""
        return self.status in (0, 408, 429) or self.status >= 500


class Remote(NamedTuple):
    """A file to fetch.

    Args:
        url: where it is; may hold a user and a password, which are never shown.
        name: of the file on this disk.
        sha256: what it must be; empty: not known.
        size: bytes; None: not known.
        token: for this host alone; never shown.
    """

    url: str
    name: str
    sha256: str = ""
    size: int | None = None
    token: str = ""


class Answer(NamedTuple):
    """A short document: its bytes, where it was in the end (with the user that was asked as), and of which kind."""

    data: bytes
    url: str
    kind: str


def cache() -> Path:
    """The folder of what was fetched: $NOMOAT_CACHE, or ~/.cache/nomoat."""
    return Path(os.environ.get("NOMOAT_CACHE") or Path.home() / ".cache" / "nomoat")


def address(base: str, *parts: str, query: str = "") -> str:
    """`base` with path segments behind it, each quoted."""
    return "/".join([base.rstrip("/"), *(quote(part, safe="") for part in parts)]) + (f"?{query}" if query else "")


def joined(base: str, link: str) -> tuple[str, str]:
    """The address that a link in the document at `base` means, and its fragment."""
    whole = urlsplit(urljoin(base, link))
    return urlunsplit(whole._replace(fragment="")), whole.fragment


def parts_of(url: str) -> SplitResult:
    """Scheme, host, path and so on of an address."""
    return urlsplit(url)


def shown(url: str) -> str:
    """The address without user, password and query, for eyes and ledgers."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read(url: str, accept: str = "*/*", token: str = "") -> Answer:
    """A short document.

    Raises:
        UnreachableError: no answer, or an error.
        DataError: the address is none of http or https, or the document is too long.
    """
    with _open(url, {"Accept": accept}, token) as answer:
        with _told(url):
            data = answer.read(MOST_TOLD + 1)
        if len(data) > MOST_TOLD:
            raise DataError(f"{shown(url)} is too long", f"more than {MOST_TOLD:,} bytes for a list of files")
        user = urlsplit(url).netloc.rpartition("@")[0]
        final = urlsplit(answer.url)
        if user and shown(url).startswith(f"{final.scheme}://{final.netloc}/"):  # what it links to here may ask as well
            final = final._replace(netloc=f"{user}@{final.netloc}")
        return Answer(data, urlunsplit(final), answer.headers.get_content_type())


def post_json(
    url: str,
    body: Mapping[str, Any],
    token: str = "",
    seconds: float = SECONDS,
    again: Callable[[], None] | None = None,
) -> Any:
    """Send an object and read the JSON that comes back.

    What may pass (no answer, half an answer, 429, 5xx) is tried again, later each time, and not before the server
    says; nothing is sent on to another address.

    Args:
        url: where to; http or https.
        body: JSON values.
        token: for this host alone; never shown.
        seconds: without a byte for so long nobody answers.
        again: told before every further sending.

    Raises:
        UnreachableError: no answer, or an error; what the server says of it is in it.
        DataError: the address is none, or it leads elsewhere.
    """
    data = json.dumps(body, ensure_ascii=False).encode()
    for number in range(TRIES):
        try:
            return _posted(url, data, token, seconds)
        except UnreachableError as error:
            if number == TRIES - 1 or not error.passing:
                raise
            time.sleep(min(MOST_WAIT, max(error.wait_seconds, PAUSE_SECONDS * 2**number)))
        if again is not None:
            again()
    raise AssertionError


def _posted(url: str, data: bytes, token: str, seconds: float) -> Any:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    with _open(url, headers, token, data, seconds) as answer, _told(url):
        raw = answer.read(MOST_TOLD + 1)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        why = f"{len(raw):,} bytes came, which are no whole JSON"
        raise UnreachableError(f"{shown(url)} answers in pieces", why, "try again") from None


def fetch(remote: Remote, folder: Path, watch: Watch | None = None) -> Path:
    """The file in `folder`, fetched unless it is there; what is there is checked as well.

    Args:
        remote: what to fetch.
        folder: made where it is missing.
        watch: told {"kind": "fetch", "name", "done", "total"} in bytes.

    Raises:
        UnreachableError: no answer, or an error; what was fetched so far is kept as `name.part` for the next time.
        DataError: the disk is full, another process fetches it, or it is not what it must be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    with _alone(folder, remote.name):
        if target.exists():
            if _fits(target, remote):
                return target
            target.unlink()
        _complete(remote, part, watch)
        if not _fits(part, remote):
            found = f"it has {part.stat().st_size:,} bytes and the SHA-256 {sha256_of(part)}"
            part.unlink()
            wanted = f"{remote.size or '?'} bytes and {remote.sha256 or 'any'} were promised"
            fix = "try again; if it stays, whoever serves it has changed it: do not use it"
            raise DataError(f"{remote.name} is not what it must be", f"{found}, {wanted}", fix)
        os.replace(part, target)  # noqa: PTH105 - as in durable.py
        durable.sync_folder(folder)
    return target


def _complete(remote: Remote, part: Path, watch: Watch | None) -> None:
    """Fetch until the part is whole; a broken connection is tried again where it broke, as long as that helps."""
    tries = 0
    while True:
        before = _size(part)
        try:
            return _transfer(remote, part, before, watch)
        except UnreachableError as error:
            after = _size(part)
            tries = 0 if after > before else tries + 1
            if error.status == 416 and before:  # nothing behind what is there: it is of another file
                part.unlink(missing_ok=True)
            elif tries >= TRIES or not error.passing:
                kept = f"{after:,} bytes of it are kept: the same command goes on from there"
                raise UnreachableError(error.what, error.why, kept if after else error.fix, error.status) from error
            time.sleep(PAUSE_SECONDS * 2 ** max(0, tries - 1))


def _transfer(remote: Remote, part: Path, have: int, watch: Watch | None) -> None:
    if have and remote.size is not None and have >= remote.size:
        return
    with _open(remote.url, {"Range": f"bytes={have}-"} if have else {}, remote.token) as answer:
        if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise UnreachableError(f"{shown(remote.url)} sends another part than was asked for")
        have = have if answer.status == 206 else 0  # a server may send all of it nevertheless
        total = remote.size if answer.length is None else have + answer.length
        if (needed := (total or 0) - have) > (free := shutil.disk_usage(part.parent).free):
            raise no_room(part.parent, OSError(errno.ENOSPC, f"{needed:,} more bytes are needed, {free:,} are free"))
        told = 0.0
        try:
            with part.open("ab" if have else "wb") as file:
                while (remote.size is None or have <= remote.size) and (chunk := _next(remote.url, answer)):
                    have += file.write(chunk)
                    if watch is not None and (time.monotonic() - told > 0.1 or have == total):
                        watch({"kind": "fetch", "name": remote.name, "done": have, "total": total})
                        told = time.monotonic()
        except OSError as error:
            raise no_room(part.parent, error) from error
    if total is not None and have < total:
        raise UnreachableError(f"{shown(remote.url)} broke off", f"after {have:,} of {total:,} bytes")


def _next(url: str, answer: Any) -> bytes:
    with _told(url):
        return answer.read(CHUNK)


def no_room(folder: Path, error: OSError) -> DataError:
    """What to say where a file cannot be written."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{folder} cannot be written", str(error), "check its rights, or set NOMOAT_CACHE to another")
    fix = "free some space, or set NOMOAT_CACHE to a folder on another disk; what was fetched is kept"
    return DataError("the disk is full", f"{folder}: {error.strerror}", fix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fits(path: Path, remote: Remote) -> bool:
    if remote.size is not None and path.stat().st_size != remote.size:
        return False
    return not remote.sha256 or sha256_of(path) == remote.sha256


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """One process a folder: two would write over each other."""
    try:
        handle = durable.acquire(folder / ".lock")
    except BlockingIOError:
        raise DataError(f"another process is fetching {name}", "", "wait for it, then type this again") from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever the network does wrong, in our words; nothing of what was sent is in them."""
    try:
        yield
    except urllib.error.HTTPError as error:
        wait, why = error.headers.get("Retry-After", ""), REASONS.get(error.code) or _said(error)
        error.close()
        seconds = (
            float(wait) if wait.isascii() and wait.isdigit() else 0.0
        )  # the other form is a date: as if it said none
        raise UnreachableError(
            f"{shown(url)} answers {error.code}", why, "check the name", error.code, seconds
        ) from None
    except (OSError, HTTPException) as error:
        why = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise UnreachableError(f"{shown(url)} cannot be reached", why, "check the network, then try again") from None


def _said(error: urllib.error.HTTPError) -> str:
    """What the server itself says is wrong, where it does in OpenAI's form."""
    with suppress(OSError, HTTPException, ValueError, TypeError, KeyError, RecursionError):
        return f"it says: {' '.join(str(json.loads(error.read(MOST_SAID))['error']['message']).split())[:300]}"
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects stay on http and https, never fall back to http, and take a token to no other host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if req.data is not None:
            raise DataError(f"{shown(req.full_url)} leads elsewhere", "what is sent is sent on to no other address")
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise DataError(f"{shown(req.full_url)} leads to {new.scheme}:", "that is not followed")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if made is not None and token and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            made.add_unredirected_header("Authorization", token)
        return made


@lru_cache(maxsize=2)
def _trust(certificates: str | None) -> ssl.SSLContext:
    """Reading all certificates takes ten milliseconds: once is enough."""
    return ssl.create_default_context(cafile=certificates)


def _open(url: str, headers: Mapping[str, str], token: str, data: bytes | None = None, seconds: float = SECONDS) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(f"{shown(url)} is no address to fetch from", "it must begin with http:// or https://")
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")), data, dict(headers))
    request.add_header("Accept-Encoding", "identity")
    request.add_header("User-Agent", "nomoat")
    if token or user:
        basic = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Bearer {token}" if token else f"Basic {basic}")
    trusted = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    https = urllib.request.HTTPSHandler(context=_trust(trusted))
    with _told(url):
        answer = urllib.request.build_opener(https, _Redirects).open(request, timeout=seconds)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        answer.close()
        raise DataError(f"{shown(url)} sends compressed what was asked for as it is")
    return answer
