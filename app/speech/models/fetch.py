"""One file over HTTP: resumed where it broke off, checked, and only then given its name.

After a kill the hub's own client starts a file from its first byte (huggingface_hub 2.4, its issue 4196), and so does
openai-whisper: a 3-GB model would never arrive at a worker that has 20 minutes for each try.
"""

import base64
import hashlib
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from app.speech.models.places import check_room

TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds without a byte
TRIES = 3  # in a row that bring nothing, once something has come
PAUSE = 1.0  # seconds between them


class Damaged(Exception):
    """What arrived is not what was promised."""


@dataclass(frozen=True)
class Checksum:
    """`git`: the SHA-1 by which git knows the content of a file."""

    kind: Literal["sha256", "git"]
    value: str

    def of(self, file: Path) -> bool:
        """Whether the file's content has it."""
        return digest(file, self.kind) == self.value


@dataclass(frozen=True)
class Remote:
    """A file on a server; `bytes`: its size, where that is known beforehand."""

    url: str
    checksum: Checksum
    bytes: int | None = None

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


def digest(file: Path, kind: Literal["sha256", "git"] = "sha256") -> str:
    """The checksum of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        if kind == "sha256":
            return hashlib.file_digest(content, "sha256").hexdigest()
        head = b"blob %d\0" % os.fstat(content.fileno()).st_size
        return hashlib.sha1(head + content.read(), usedforsecurity=False).hexdigest()


def client() -> httpx.Client:
    """A client for downloads; proxies and certificate authorities come from the environment."""
    return httpx.Client(follow_redirects=True, timeout=TIMEOUT, verify=_authorities())


@cache
def _authorities() -> ssl.SSLContext:
    """Reading them takes 50 ms."""
    return httpx.create_ssl_context()


def without_login(address: str) -> tuple[str, dict[str, str]]:
    """An address without the login in it, which log lines would show, and the headers that stand for that."""
    parts = urlsplit(address)
    login, found, host = parts.netloc.rpartition("@")
    if not found:
        return address, {}
    token = base64.b64encode(unquote(login).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


def fetch(
    session: httpx.Client,
    remote: Remote,
    to: Path,
    *,
    headers: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> None:
    """Download `remote` to `to`, in a folder that only this process writes.

    `progress` is called with (done, total) bytes of this file. Raises `httpx.HTTPError`, `OSError`, `NotReady` when the
    disk is too small, and `Damaged`.
    """
    if to.is_file() and remote.checksum.of(to):
        return None
    part = to.with_name(f"{to.name}.{remote.checksum.value[:12]}.part")
    resumed = part.exists()
    if remote.bytes or not (resumed and remote.checksum.of(part)):  # else it only had to be given its name
        _collect(session, remote, part, headers, progress)
    if not remote.checksum.of(part):
        part.unlink()
        if not resumed:
            raise Damaged("what arrived has another checksum than the model's: it was damaged or replaced on its way")
        return fetch(session, remote, to, headers=headers, progress=progress)
    part.replace(to)
    return None


def _collect(
    session: httpx.Client,
    remote: Remote,
    part: Path,
    headers: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> None:
    """Append to `part` until the file is whole."""
    most, left = 0, 0  # tries are earned by what comes: a server that is away is told at once
    while remote.bytes is None or _size(part) != remote.bytes:
        try:
            _transfer(session, remote, part, headers, progress)
        except httpx.TransportError:
            if (come := _size(part)) > most:
                most, left = come, TRIES
            elif left:
                left -= 1
            if not left:
                raise
            time.sleep(PAUSE)
        else:
            return


def _transfer(
    session: httpx.Client,
    remote: Remote,
    part: Path,
    headers: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> None:
    """One request, for what is missing."""
    start = _size(part)
    # Compressed on the way, a part would not be counted in the file's own bytes.
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with session.stream("GET", remote.url, headers=asked) as response:
        if start and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # it is longer than the file
            return _transfer(session, remote, part, headers, progress)
        response.raise_for_status()
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # a server that always sends all
        total = remote.bytes or start + int(response.headers.get("Content-Length", 0))  # 0: nobody knows
        check_room(part.parent, total - start)
        done = start
        progress(done, total)
        with part.open("ab" if start else "wb") as file:
            for chunk in response.iter_bytes():  # as they come: a given size would hold back a last, incomplete one
                file.write(chunk)
                file.flush()
                done += len(chunk)
                progress(done, max(done, total))
            os.fsync(file.fileno())
    if remote.bytes is not None and done < remote.bytes:
        raise httpx.RemoteProtocolError("fewer bytes than promised")
    return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
