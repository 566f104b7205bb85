"""One server that speaks OpenAI's protocol, asked once a call, within a total deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from datetime import timedelta
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from app import tracing
from app.errors import Halted, Transient
from app.gpt.answers import SCHEMA_LEVEL, Completion, Message, completion_of, request_body
from app.gpt.failures import CallFailed
from app.gpt.pace import limits_of
from app.gpt.verdict import SCHEMA
from app.settings import Gpt

if TYPE_CHECKING:
    from httpx2 import Timeout
    from openai import AsyncOpenAI

PLACEHOLDER = "none"  # the key where none is needed, such as Ollama's
_LOOK = 1.0  # seconds between two looks at whether the work was cancelled
_GRACE = 5.0  # seconds after the deadline in which a call has to end
_T = TypeVar("_T")


def build_chat(gpt: Gpt) -> "Chat":
    """The client of the settings. It must not be made where `gpt.offline`."""
    key = gpt.openai_api_key
    return Chat(gpt.base_url, key.get_secret_value() if key else None, SCHEMA)


class Chat:
    """A client of one server; serves all threads of a process. Nothing connects before the first call.

    `schema`: JSON schema of the answers. A server that does not know schemas is asked for a JSON object, then for
    plain text; what it knows is remembered as long as this object lives.
    """

    def __init__(self, base_url: str, key: str | None, schema: Mapping[str, Any]) -> None:
        # Here, and not with the first call: it takes a second, by which that call would come later than was counted.
        from app.gpt import http, library

        self._http, self._library = http, library
        parts = urlsplit(base_url)
        self.host = (parts.hostname or "the server") + (f":{parts.port}" if parts.port else "")
        self.level = SCHEMA_LEVEL
        self._base_url = base_url
        self._key = (key or "").strip() or PLACEHOLDER
        self._schema = schema
        self._lock = Lock()
        self._client: AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def __repr__(self) -> str:
        return f"Chat({self.host})"

    def complete(
        self, messages: Sequence[Message], *, model: str, timeout: timedelta, watch: Callable[[], None]
    ) -> Completion:
        """The answer to `messages`, by one HTTP request.

        `timeout`: of everything, from the look-up of the name to the last byte. `watch` is called about once a second
        and gives the call up by raising, which is passed on; then it is possibly billed.
        Raises `CallFailed`.
        """
        level = self.level
        body = request_body(messages, model, self._schema, level)
        private = [message["content"] for message in messages]
        began = time.monotonic()
        asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "server.address": self.host}
        try:
            with tracing.outside("chat", asked) as span:
                content, headers = self._run(
                    lambda client: _post(client, body, self._http.within(timeout)),
                    model,
                    timeout,
                    watch,
                    private,
                    level,
                )
                found = completion_of(self._http.decoded(content), self.host, model, secret=self._key, private=private)
                if usage := found.usage:
                    span.set_attribute("gen_ai.usage.input_tokens", usage.prompt)
                    span.set_attribute("gen_ai.usage.output_tokens", usage.completion)
        except CallFailed as failed:
            failed.seconds = time.monotonic() - began
            if failed.outcome == "schema_unsupported":
                self.level = min(self.level, level - 1)
            raise
        return Completion(
            found.text,
            found.model,
            found.usage,
            time.monotonic() - began,
            limits_of(headers),
            headers.get("x-request-id", ""),
        )

    def call(
        self,
        what: Callable[["AsyncOpenAI"], Awaitable[_T]],
        *,
        timeout: timedelta,
        watch: Callable[[], None],
        model: str = "",
    ) -> _T:
        """Any other use of the client (files, batches), with the same deadline, cancellation and failures.

        `what` runs in the loop of this object: `chat.call(lambda client: client.batches.retrieve(id), …)`.
        """
        with tracing.outside("batch", {"server.address": self.host}):
            return self._run(what, model, timeout, watch, (), 0)

    def close(self) -> None:
        """Ends what runs and frees the connections."""
        with self._lock:
            loop, thread, client = self._loop, self._thread, self._client
            self._loop = self._thread = self._client = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_end(loop, client), loop)
        thread.join(_GRACE)

    def _run(
        self,
        what: Callable[["AsyncOpenAI"], Awaitable[_T]],
        model: str,
        timeout: timedelta,
        watch: Callable[[], None],
        private: Sequence[str],
        level: int,
    ) -> _T:
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            reason = "OPENAI_API_KEY holds characters that no key has; copy it again"
            raise CallFailed("key_refused", Halted(reason, "key"), billed=False)
        seconds = timeout.total_seconds()
        future = self._submit(what, seconds)
        until = time.monotonic() + seconds + _GRACE
        try:
            while not wait([future], timeout=_LOOK).done:
                watch()
                if time.monotonic() > until:  # something holds up the loop itself
                    raise self._library.too_slow(self.host, seconds)
        finally:
            future.cancel()
        if future.cancelled():
            raise CallFailed("unreachable", Transient(f"the call to {self.host} was given up"), billed=None)
        value, error = future.result()
        if error is not None:
            # Not raised from the library's error: its text and its request hold what nobody may read.
            raise self._library.translated(
                error, self.host, model, seconds=seconds, secret=self._key, private=private, level=level
            )
        return cast("_T", value)

    def _submit(
        self, what: Callable[["AsyncOpenAI"], Awaitable[_T]], seconds: float
    ) -> Future[tuple[_T | None, Exception | None]]:
        """Begins it in the loop of this process: one thread for all calls, begun with the first."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = Thread(target=_turn, args=(self._loop,), name="gpt-calls", daemon=True)
                self._thread.start()
            if self._client is None:
                self._client = self._http.client(self._base_url, self._key)
            return asyncio.run_coroutine_threadsafe(_bounded(what, self._client, seconds), self._loop)


async def _bounded(
    what: Callable[["AsyncOpenAI"], Awaitable[_T]], client: "AsyncOpenAI", seconds: float
) -> tuple[_T | None, Exception | None]:
    """The value or the error. It raises nothing: asyncio would log what nobody has fetched, words and all."""
    try:
        # Socket timeouts start anew with every byte: this one doesn't.
        async with asyncio.timeout(seconds):
            return await what(client), None
    except Exception as error:  # noqa: BLE001 - translated in the thread that waits
        return None, error


async def _post(client: "AsyncOpenAI", body: dict[str, Any], within: "Timeout") -> tuple[bytes, Mapping[str, str]]:
    """Content and headers of the answer."""
    answer = await client.chat.completions.with_raw_response.create(**body, timeout=within)
    return answer.content, answer.headers


async def _end(loop: asyncio.AbstractEventLoop, client: "AsyncOpenAI | None") -> None:
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if client is not None:
        await client.close()
    loop.stop()


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
