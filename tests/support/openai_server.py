"""A server that speaks OpenAI's protocol, well or as badly as asked: chat completions, models, files and batches.

Source: OpenAI's API reference, "Chat", "Files", "Batch", and its guides "Rate limits" and "Error codes".

In a test: `with serving(OpenAIServer(shares={"429": 0.1})) as server: … server.url`. Beside a benchmark:
`python -m tests.support.openai_server --port 8009 --fault 429=0.1 --limit 60`; `GET /stats` tells what it has seen.
"""

import argparse
import json
import re
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Event, Lock, Thread
from typing import Any

from tests.support.openai_batches import Batches

KEY = "sk-test-0123456789abcdefWXYZ"
PRICES = {"input": Decimal("0.40"), "cached": Decimal("0.10"), "output": Decimal("1.60")}  # USD per million tokens

_SCORE = re.compile(r'-?\d+(?=, "behavior)')

# What a fault does. A share or a script names them; "" is a good answer.
ANSWERS = {"invalid_json", "nan", "infinity", "out_of_range", "missing", "refusal", "truncated", "content_filter"}
STATUSES: dict[str, tuple[int, dict[str, Any]]] = {
    "400": (400, {"message": "Invalid value: {prompt}", "type": "invalid_request_error", "param": "messages"}),
    "401": (401, {"message": "Incorrect API key provided: {key}.", "type": "invalid_request_error"}),
    "402": (402, {"message": "Insufficient Balance", "type": "unknown_error"}),
    "403": (
        403,
        {"message": "Country, region, or territory not supported", "code": "unsupported_country_region_territory"},
    ),
    "404": (404, {"message": "The model `{model}` does not exist", "code": "model_not_found"}),
    "408": (408, {"message": "timeout"}),
    "429": (429, {"message": "Rate limit reached for {model}", "type": "requests", "code": "rate_limit_exceeded"}),
    "500": (500, {"message": "The server had an error while processing your request", "type": "server_error"}),
    "502": (502, {"message": "Bad gateway", "type": "server_error"}),
    "503": (503, {"message": "Overloaded", "type": "server_error", "code": "service_unavailable"}),
    "content_filter_400": (400, {"message": "The response was filtered: {prompt}", "code": "content_filter"}),
    "quota": (
        429,
        {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"},
    ),
    "too_long": (
        400,
        {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"},
    ),
}
# Faults below HTTP: no answer until the client goes; one byte at a time; the connection reset, or ended half way;
# a page instead of JSON; more bytes than anybody wants.
WIRE = {"hang", "drip", "reset", "cut", "html", "huge"}
UNBILLED = {"reset", *STATUSES}


@dataclass
class Reply:
    """What a call is answered with. `tokens`: prompt, cached, completion; () where nothing is billed."""

    status: int
    body: dict[str, Any]
    fault: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    tokens: tuple[int, int, int] | tuple[()] = ()


@dataclass(frozen=True)
class Call:
    """A call as it came, and how it went."""

    at: float
    prompt: str
    status: int
    fault: str
    body: Mapping[str, Any] = field(repr=False)


@dataclass
class OpenAIServer:
    """What the server does, and what it has seen.

    `shares`: fault → share of the calls; by seed, prompt and number of the call, whatever the order. `script`: faults
    of the next calls, in order, before any share. `by_prompt`: faults of the next calls whose prompt holds a text.
    `limit`, `tokens`: requests and tokens in each moving `window` of seconds; one more is a 429. `retry_after`: seconds
    that a 429 asks for; `retry_style`: how (`seconds`, `date`, `ms`, `reset`, `none`). `knows`: the best
    `response_format` (json_schema, json_object, none). `latency`: seconds of an answer, at the mean.
    """

    key: str | None = KEY
    shares: dict[str, float] = field(default_factory=dict)
    script: deque[str] = field(default_factory=deque)
    by_prompt: dict[str, deque[str]] = field(default_factory=dict)
    seed: int = 1
    limit: int | None = None
    tokens: int | None = None
    window: float = 60.0
    retry_after: float = 1.0
    retry_style: str = "seconds"
    knows: str = "json_schema"
    latency: float = 0.0
    models: tuple[str, ...] = ("gpt-4.1-mini", "gpt-4o-mini")
    batches: Batches = field(default_factory=Batches)

    calls: list[Call] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # by prompt, or by custom_id
    billed: Counter[str] = field(default_factory=Counter)  # the same, only those that cost something
    dollars: Decimal = Decimal(0)
    early: int = 0  # calls in a pause that a 429 asked for
    headers: list[Mapping[str, str]] = field(default_factory=list)
    released: Event = field(default_factory=Event)  # ends what hangs
    url: str = ""

    def __post_init__(self) -> None:
        self.lock = Lock()
        self._arrivals: deque[tuple[float, int]] = deque()
        self._quiet_until = 0.0

    def answer(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        """One call of `POST /v1/chat/completions`."""
        at = time.monotonic()
        prompt = prompt_of(body)
        size = max(len(prompt) // 4, 1)
        with self.lock:
            self.headers.append(headers)
            self.early += at < self._quiet_until
            self.counts[prompt] += 1
            reply = self._limited(at, size, str(body.get("model")))
            fault = self.draw(prompt, self.counts[prompt]) if reply is None else "limit"
            if reply is None:
                reply = self.made(body, fault, prompt, repeated=self.counts[prompt] > 1)
            if reply.fault == "429":
                reply.headers |= self._please_wait(self.retry_after)
                self._quiet_until = at + self.retry_after
            reply.headers |= self._rates(at)
            self.calls.append(Call(at, prompt, reply.status, reply.fault, body))
            self.bill(prompt, reply.tokens)
        return reply

    def made(self, body: Mapping[str, Any], fault: str, prompt: str, *, repeated: bool = False) -> Reply:
        """The answer to a body, with a fault."""
        model = str(body.get("model"))
        if model not in self.models:
            fault = "404"
        kind = (body.get("response_format") or {}).get("type", "none")
        order = ("none", "json_object", "json_schema")
        if order.index(kind) > order.index(self.knows):
            words = f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
            return Reply(400, _error({"message": words, "type": "invalid_request_error", "param": "response_format"}))
        if fault in STATUSES:
            status, error = STATUSES[fault]
            words = error["message"].format(prompt=prompt, model=model, key=f"{KEY[:8]}****{KEY[-4:]}")
            return Reply(status, _error(error | {"message": words}), fault)
        content, finish, refusal = _content(fault, prompt)
        size = max(len(prompt) // 4, 1)
        tokens = (size, size // 2 if repeated else 0, max(len(content) // 4, 1))
        return Reply(
            200, _completion(model, content, finish, refusal, tokens), fault, {}, () if fault in UNBILLED else tokens
        )

    def bill(self, key: str, tokens: tuple[int, ...], share: Decimal = Decimal(1)) -> None:
        """Note what a call cost."""
        if not tokens:
            return
        prompt, cached, completion = tokens
        spent = (prompt - cached) * PRICES["input"] + cached * PRICES["cached"] + completion * PRICES["output"]
        self.dollars += spent * share / 1_000_000
        self.billed[key] += 1

    def stats(self) -> dict[str, Any]:
        """What it has seen so far."""
        with self.lock:
            return {
                "calls": len(self.calls),
                "faults": Counter(call.fault or "good" for call in self.calls),
                "statuses": Counter(str(call.status) for call in self.calls),
                "prompts": len(self.counts),
                "most_calls_of_a_prompt": max(self.counts.values(), default=0),
                "billed": sum(self.billed.values()),
                "dollars": str(self.dollars),
                "early": self.early,
            }

    def draw(self, prompt: str, number: int) -> str:
        """The fault of the call with this number of a prompt; "": none."""
        for text, faults in self.by_prompt.items():
            if text in prompt and faults:
                return faults.popleft()
        if self.script:
            return self.script.popleft()
        drawn = Random(f"{self.seed}/{prompt}/{number}").random()
        for fault, share in self.shares.items():
            if drawn < share:
                return fault
            drawn -= share
        return ""

    def _limited(self, at: float, size: int, model: str) -> Reply | None:
        """A 429, if the windows are full; else the call counts."""
        while self._arrivals and self._arrivals[0][0] <= at - self.window:
            self._arrivals.popleft()
        full = self.limit is not None and len(self._arrivals) >= self.limit
        if self.tokens is not None and sum(tokens for _, tokens in self._arrivals) + size > self.tokens:
            full = True
        if not full:
            self._arrivals.append((at, size))
            return None
        words = f"Rate limit reached for {model}. Please try again in {self._reset(at):.3f}s."
        error = {"message": words, "type": "requests", "code": "rate_limit_exceeded"}
        return Reply(429, _error(error), "limit", self._please_wait(self._reset(at)))

    def _reset(self, at: float) -> float:
        return self._arrivals[0][0] + self.window - at if self._arrivals else 0.0

    def _please_wait(self, seconds: float) -> dict[str, str]:
        now = datetime.now(UTC)
        match self.retry_style:
            case "seconds":
                return {"Retry-After": f"{seconds:.3f}".rstrip("0").rstrip(".")}
            case "ms":
                return {"retry-after-ms": str(int(seconds * 1000)), "Retry-After": "99"}
            case "date":
                return {"Retry-After": format_datetime(now + timedelta(seconds=seconds), usegmt=True)}
            case "reset":
                return {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{seconds}s"}
            case _:
                return {}

    def _rates(self, at: float) -> dict[str, str]:
        said = {}
        used = sum(tokens for _, tokens in self._arrivals)
        for name, limit, count in (("requests", self.limit, len(self._arrivals)), ("tokens", self.tokens, used)):
            if limit is not None:
                said[f"x-ratelimit-limit-{name}"] = str(limit)
                said[f"x-ratelimit-remaining-{name}"] = str(max(limit - count, 0))
                said[f"x-ratelimit-reset-{name}"] = f"{self._reset(at):.3f}s"
        return said


def prompt_of(body: Mapping[str, Any]) -> str:
    """What was asked last; a question that is asked again with a complaint counts for the same prompt."""
    asked = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return str(asked[0]) if asked else ""


def verdict_for(prompt: str) -> dict[str, Any]:
    """The good answer: always the same for a prompt."""
    score = Random(prompt).randint(-100, 100)
    return {"summary": f"A block of {len(prompt)} characters.", "vibe_score": score, "behavior": "talking"}


def _content(fault: str, prompt: str) -> tuple[str, str, str | None]:
    """Content, finish_reason and refusal."""
    good = json.dumps(verdict_for(prompt))
    special: dict[str, tuple[str, str, str | None]] = {
        "invalid_json": ('{"summary": "cut off he', "stop", None),
        "nan": (_SCORE.sub("NaN", good), "stop", None),
        "infinity": (_SCORE.sub("-Infinity", good), "stop", None),
        "out_of_range": (json.dumps(verdict_for(prompt) | {"vibe_score": 1000}), "stop", None),
        "missing": ('{"summary": "no score"}', "stop", None),
        "refusal": ("", "stop", "I'm sorry, I can't help with that."),
        "truncated": (good[:20], "length", None),
        "content_filter": ("", "content_filter", None),
    }
    return special.get(fault, (good, "stop", None))


def _completion(
    model: str, content: str, finish: str, refusal: str | None, tokens: tuple[int, int, int]
) -> dict[str, Any]:
    prompt, cached, completion = tokens
    message = {"role": "assistant", "content": None if refusal else content, "refusal": refusal}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"{model}-2025-04-14",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": {"message": "", "type": None, "param": None, "code": None} | dict(error)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer takes 40 ms
    server: "_Server"

    def do_GET(self) -> None:
        self.handle_call(b"")

    def do_DELETE(self) -> None:
        self.handle_call(b"")

    def do_POST(self) -> None:
        self.handle_call(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def handle_call(self, content: bytes) -> None:
        fake = self.server.fake
        path = self.path.partition("?")[0]
        if path == "/stats":
            self.send(200, fake.stats())
        elif fake.key is not None and self.headers.get("Authorization") != f"Bearer {fake.key}":
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            words = f"Incorrect API key provided: {given[:8]}****{given[-4:]}. You can find your API key at …"
            self.send(401, _error({"message": words, "type": "invalid_request_error", "code": "invalid_api_key"}))
        elif path == "/v1/chat/completions":
            self.chat(json.loads(content))
        elif path == "/v1/models":
            self.send(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in fake.models]})
        else:
            status, answer = fake.batches.answer(fake, self.command, self.path, dict(self.headers.items()), content)
            self.send(status, answer)

    def chat(self, body: Mapping[str, Any]) -> None:
        fake = self.server.fake
        reply = fake.answer(body, {name.lower(): value for name, value in self.headers.items()})
        if fake.latency and reply.status != 429:  # nobody thinks long about a refusal
            fake.released.wait(Random(f"{fake.seed}/{len(fake.calls)}").uniform(0.5, 1.5) * fake.latency)
        if reply.fault in WIRE:
            self.close_connection = True
            with suppress(OSError):  # whoever asked is gone
                getattr(self, f"_{reply.fault}")(reply)
        else:
            self.send(reply.status, reply.body, reply.headers)

    def send(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        given = {"Content-Type": kind, "x-request-id": f"req_{id(body):x}", "Content-Length": str(len(content))}
        for name, value in {**given, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _head(self, length: int, kind: str = "application/json") -> None:
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode())

    def _is_left(self, seconds: float) -> bool:
        """Whether the client went away, or the server ends, within this time."""
        gone, _, _ = select.select([self.connection], [], [], seconds)
        return bool(gone) or self.server.fake.released.is_set()

    def _hang(self, _reply: Reply) -> None:
        while not self._is_left(0.1):
            pass

    def _drip(self, reply: Reply) -> None:
        content = json.dumps(reply.body).encode()
        self._head(len(content))
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self._is_left(0.2):
                return

    def _reset(self, _reply: Reply) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _cut(self, reply: Reply) -> None:
        content = json.dumps(reply.body).encode()
        self._head(len(content))
        self.wfile.write(content[: len(content) // 2])

    def _html(self, _reply: Reply) -> None:
        page = b"<html>Please log in to this network.</html>"
        self._head(len(page), "text/html")
        self.wfile.write(page)

    def _huge(self, _reply: Reply) -> None:
        self._head(10**9)
        while not self.server.fake.released.is_set():
            self.wfile.write(b" " * 65536)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    fake: OpenAIServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients that give up, or are killed, are meant
            super().handle_error(request, client_address)


@contextmanager
def serving(fake: OpenAIServer, port: int = 0) -> Iterator[OpenAIServer]:
    """The server behind an address of its own; `url` is what goes into OPENAI_BASE_URL."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.fake = fake
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=SHARE")
    parser.add_argument("--limit", type=int, help="requests in a window")
    parser.add_argument("--tokens", type=int, help="tokens in a window")
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    parser.add_argument("--retry-after", type=float, default=1.0, help="seconds")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    given = parser.parse_args()
    fake = OpenAIServer(
        key=given.key,
        shares={name: float(share) for name, _, share in (fault.partition("=") for fault in given.fault)},
        seed=given.seed,
        limit=given.limit,
        tokens=given.tokens,
        window=given.window,
        retry_after=given.retry_after,
        latency=given.latency,
    )
    with serving(fake, given.port), suppress(KeyboardInterrupt):
        print(fake.url, flush=True)  # noqa: T201 - whoever started it needs it
        Event().wait()


if __name__ == "__main__":
    main()
