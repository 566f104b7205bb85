"""The client library's client, and the bytes of an answer below it."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

LARGEST = 2 * 1024**2  # bytes of an answer; a verdict has some hundred
_CONNECT = 10.0  # seconds
_LARGEST_PACKED = 32 * 1024  # bytes of a compressed one, which may become a thousand times as many


def client(base_url: str, key: str) -> AsyncOpenAI:
    """A client that sends a request once, follows nobody elsewhere, and takes no endless answer."""
    hooks = {"response": [bound]}
    http_client = DefaultAsyncHttpxClient(event_hooks=hooks, follow_redirects=False)
    return AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, http_client=http_client)


def within(deadline: timedelta) -> httpx2.Timeout:
    """Timeouts of the socket: to connect gets less than the whole, so that one knows that nothing was asked."""
    seconds = deadline.total_seconds()
    return httpx2.Timeout(seconds, connect=min(_CONNECT, 0.9 * seconds))


class TooLarge(Exception):
    """An answer has more bytes than any real one."""


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends with `TooLarge`."""

    def __init__(self, stream: httpx2.AsyncByteStream, largest: int) -> None:
        self._stream = stream
        self._left = largest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise TooLarge
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def bound(response: httpx2.Response) -> None:
    """Hook of the HTTP client: no answer of a chat, error or not, fills the memory. Files are as large as they are."""
    if response.request.url.path.endswith("/chat/completions") and isinstance(response.stream, httpx2.AsyncByteStream):
        packed = response.headers.get("content-encoding", "identity") != "identity"
        response.stream = _Bounded(response.stream, _LARGEST_PACKED if packed else LARGEST)


def decoded(content: bytes) -> object:
    """The JSON of an answer; None: it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
