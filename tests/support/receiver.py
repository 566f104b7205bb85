"""A local HTTP server that keeps what it is sent: a channel of alerts, or a monitor that takes reports."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Mapping[str, Any]]
Handle = Callable[[Mapping[str, str], bytes], Answer]


class Receiver:
    """`answer` decides what each request gets; `received`: the bodies so far."""

    def __init__(self, answer: Handle | None = None) -> None:
        self.answer: Handle = answer or (lambda _headers, _body: (200, {}))
        self.received: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = receiver.answer(dict(self.headers), body)
                receiver.received.append(json.loads(body or b"null"))
                text = json.dumps(answer, ensure_ascii=False).encode()
                self.send_response(status)
                if "Location" in answer:
                    self.send_header("Location", answer["Location"])
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])


@contextmanager
def receiving(answer: Handle | None = None) -> Iterator[Receiver]:
    receiver = Receiver(answer)
    thread = threading.Thread(target=receiver.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()
