"""A server that answers S3 requests badly, in a way chosen by the test."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

_BODY = b"x" * 1000
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"


class FaultyS3:
    """Answers every request as `fault` says.

    That is a status with an S3 error code ("403 AccessDenied"), or one of: `good` 1,000 bytes; `drip` one byte of the
    body at a time, for ever; `drip-head` the same with the header; `silent` no answer at all; `midway` half of the
    body, then the connection ends; `short` a Content-Length of half the body; `lies` a Content-Length of 10 GB;
    `endless` a body without a length; `garbage` no HTTP.
    """

    def __init__(self) -> None:
        self.fault = "good"
        self.requests: list[str] = []
        self._stop = Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (got := connection.recv(65536)):
                        return
                    request += got
                self.requests.append(request.split(b"\r\n", 1)[0].decode())
                self._answers().get(self.fault, self._status)(connection)
            except OSError:
                return  # the client went away

    def _answers(self) -> dict[str, Callable[[socket.socket], None]]:
        return {
            "good": lambda c: c.sendall(_head(1000) + _BODY),
            "drip": lambda c: self._drip(c, _head(1_000_000)),
            "drip-head": lambda c: self._drip(c, b""),
            "silent": lambda c: self._wait_for(30),
            "midway": lambda c: c.sendall(_head(1000) + _BODY[:500]),
            "short": lambda c: c.sendall(_head(500) + _BODY),
            "lies": lambda c: c.sendall(_head(10 * 1024**3) + _BODY),
            "endless": self._endless,
            "garbage": lambda c: c.sendall(b"\0\1\2 this is no HTTP\r\n\r\n"),
        }

    def _status(self, connection: socket.socket) -> None:
        status, code = self.fault.split()
        body = _ERROR.format(code=code).encode()
        connection.sendall(
            f"HTTP/1.1 {status} No\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def _drip(self, connection: socket.socket, head: bytes) -> None:
        connection.sendall(head or b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self._wait_for(0.02):
            connection.sendall(b"x")

    def _endless(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not self._stop.is_set():
            connection.sendall(b"3e8\r\n" + _BODY + b"\r\n")

    def _wait_for(self, seconds: float) -> bool:
        return self._stop.wait(seconds)


def _head(length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode()


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    server = FaultyS3()
    try:
        yield server
    finally:
        server.close()
