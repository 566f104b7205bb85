"""A server that has models: it speaks the hub's protocol and serves openai's checkpoints, well or as badly as asked."""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from random import Random
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit
from zipfile import ZipFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file is a large one (LFS), known by its SHA-256
Answer = tuple[int, dict[str, str], bytes]  # status, headers, content


def ctranslate2_files(seed: int = 1) -> dict[str, bytes]:
    """What a small repository holds; no library can load it."""
    return {
        "README.md": b"not downloaded",
        "config.json": b"{}",
        "model.bin": Random(seed).randbytes(300_000),
        "preprocessor_config.json": b'{"feature_size": 128}',
        "tokenizer.json": b'{"model": {}}',
        "vocabulary.json": b"[]",
    }


def checkpoint(seed: int = 1) -> bytes:
    """A file that looks like PyTorch's; no library can load it."""
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        archive.writestr("tiny/data.pkl", Random(seed).randbytes(200_000))
    return content.getvalue()


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass
class ModelHub:
    """What the server has, does and was asked for.

    `faults`: what happens to requests, by the end of their path. A status ("403"), or one of: `gated` 403 as the hub
    says it; `page` a login page instead; `wrong` other bytes; `cut` half, then the connection ends; `hang` half, then
    nothing until `released`; `no range` the whole file, whatever part was asked for.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # by path
    faults: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    released: Event = field(default_factory=Event)  # what `hang` waits for
    cdn: str | None = None  # large files are redirected to this server
    url: str = ""

    def downloads(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [request.file for request in self.requests if "/api/" not in request.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small file takes 40 ms
    hub: ModelHub

    def do_GET(self) -> None:
        address = urlsplit(self.path)  # a proxy is asked with the whole address
        self.hub.requests.append(Request(self.command, address.path, dict(self.headers.items())))
        status, headers, content = self.found(address.path)
        fault = next((fault for end, fault in self.hub.faults.items() if address.path.endswith(end)), "")
        if fault.isdigit():
            status, content = int(fault), b"no"
        elif fault == "gated":
            status, headers, content = 403, {"X-Error-Code": "GatedRepo"}, b"no"
        elif fault == "page":
            content = b"<html>Please log in to this network.</html>"
        elif fault == "wrong":
            content = bytes(len(content))
        start = 0
        if status == 200 and fault != "no range" and (asked := self.headers.get("Range")):
            start, whole = int(asked.removeprefix("bytes=").removesuffix("-")), len(content)
            if start < whole:
                status, headers = 206, headers | {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
            else:
                status, start, content = 416, 0, b""
        self.answer(status, headers, content[start:], until=max(len(content) // 2 - start, 0), fault=fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        self.hub.requests.append(Request(self.command, self.path, dict(self.headers.items())))
        self.answer(403, {}, b"")

    def found(self, path: str) -> Answer:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:] == ["revision", "main"]:
            repository = "/".join(parts[2:4])
            if files := self.hub.repositories.get(repository):
                return 200, {"Content-Type": "application/json"}, json.dumps(_listing(repository, files)).encode()
        elif parts[2:4] in (["resolve", "main"], ["resolve", COMMIT]):
            content = self.hub.repositories.get("/".join(parts[:2]), {}).get(parts[4])
            if content and self.hub.cdn and len(content) >= LARGE:
                return 302, {"Location": self.hub.cdn + path}, b""
            if content is not None:
                etag = _sha256(content) if len(content) >= LARGE else _git(content)
                headers = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                return 200, headers, content
        elif path in self.hub.files:
            return 200, {}, self.hub.files[path]
        return 404, {"X-Error-Code": "RepoNotFound"}, b"nothing here"

    def answer(self, status: int, headers: dict[str, str], content: bytes, *, until: int = 0, fault: str = "") -> None:
        """Send it; with `cut` and `hang` only so far, and the rest never or when the test says so."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if fault in {"cut", "hang"}:
                self.close_connection = True
                self.wfile.write(content[:until])
                if fault == "cut":
                    return
                self.hub.released.wait()
                content = content[until:]
            self.wfile.write(content)
        except ConnectionError:  # whoever asked is gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients that give up, or are killed, are meant
            super().handle_error(request, client_address)


@contextmanager
def serving(hub: ModelHub) -> Iterator[ModelHub]:
    """The hub behind an address of its own."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _listing(repository: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = []
    for name, content in files.items():
        entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _git(content)}
        if len(content) >= LARGE:
            entry["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    return {"id": repository, "sha": COMMIT, "siblings": siblings}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


BASE = "Systran/faster-whisper-base"
WANTED = ["config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json"]
TINY = checkpoint()
TINY_PATH = f"/main/whisper/models/{_sha256(TINY)}/tiny.pt"
