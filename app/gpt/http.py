"""The bytes of an answer, below the client library."""

import json
from collections.abc import AsyncIterator

import httpx2

LARGEST = 2 * 1024**2  # bytes of an answer; a verdict has some hundred
_LARGEST_PACKED = 32 * 1024  # bytes of a compressed one, which may become a thousand times as many


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
