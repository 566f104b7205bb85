"""A provider's files and batches, and the lines that come back.

Source: OpenAI's reference, "Batch" and "Files".
"""

import io
import json
import re
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from app.gpt.answers import Message, request_body
from app.gpt.chat import Chat
from app.gpt.failures import CallFailed
from app.gpt.verdict import SCHEMA

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

_TIMEOUT = timedelta(minutes=2)  # of one call: files have megabytes
_LARGEST = 64 * 1024**2  # bytes of a file that are looked at; an answer has one or two thousand
_SKEW = 3600.0  # seconds by which the provider's clock may differ, when a batch is looked for
_NO_TURN = {"batch_expired", "batch_cancelled"}  # what a line says whose row was never asked

Line = Mapping[str, Any]


class BatchApi:
    """What the lane asks of a provider. Raises `CallFailed`."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.host = chat.host

    def close(self) -> None:
        self._chat.close()

    def upload(self, name: str, content: bytes) -> str:
        """Keep a file there; returns its number."""
        file = self._chat.call(
            lambda client: client.files.create(file=(name, io.BytesIO(content)), purpose="batch"),
            timeout=_TIMEOUT,
            watch=_go_on,
        )
        return file.id

    def create(self, file: str, uid: str) -> "Batch":
        """Begin the batch of an uploaded file, under a name of our own."""
        return self._chat.call(
            lambda client: client.batches.create(
                input_file_id=file,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"toban_batch": uid},
            ),
            timeout=_TIMEOUT,
            watch=_go_on,
        )

    def find(self, provider_id: str | None, uid: str, age: float) -> "Batch | None":
        """A batch by its number; without one by its name, among those of the last `age` seconds; None: not there."""

        async def found(client: "AsyncOpenAI") -> "Batch | None":
            from openai import NotFoundError

            if provider_id:
                try:
                    return await client.batches.retrieve(provider_id)
                except NotFoundError:
                    return None
            async for batch in client.batches.list(limit=100):  # the newest first
                if (batch.metadata or {}).get("toban_batch") == uid:
                    return batch
                if batch.created_at < time.time() - age - _SKEW:
                    return None
            return None

        return self._chat.call(found, timeout=_TIMEOUT, watch=_go_on)

    def cancel(self, provider_id: str) -> None:
        """Ask for the end of a batch; one that has just ended by itself is left alone."""

        async def cancel(client: "AsyncOpenAI") -> None:
            from openai import ConflictError

            with suppress(ConflictError):
                await client.batches.cancel(provider_id)

        self._chat.call(cancel, timeout=_TIMEOUT, watch=_go_on)

    def lines(self, file: str) -> Iterator[Line | None]:
        """The lines of a file.

        None for a line that can't be read, for a file that is gone, and for the rest of one larger than any real one.
        """

        async def read(client: "AsyncOpenAI") -> bytes | None:
            from openai import NotFoundError

            try:
                async with client.files.with_streaming_response.content(file) as answer:
                    return await _bounded(answer.iter_bytes())
            except NotFoundError:
                return None

        content = self._chat.call(read, timeout=_TIMEOUT, watch=_go_on)
        if content is None:
            yield None
            return
        for line in content.splitlines():
            if line.strip():
                yield _object(line)

    def forget(self, *files: str | None) -> None:
        """Delete files: they hold what people said. That it can't be is no error."""
        for file in files:
            if file is not None:
                with suppress(CallFailed):
                    self._delete(file)

    def forget_leftovers(self, out: Collection[str], ended: Collection[str]) -> int:
        """Delete the files of our batches that are not `out` (their own names) any more; returns how many.

        `ended`: the provider's names of those that have ended, after which it calls their answers.
        """

        async def left(client: "AsyncOpenAI") -> list[str]:
            found = []
            async for file in client.files.list(limit=1000):
                ours = re.fullmatch(r"toban-(.+)\.jsonl", file.filename)
                theirs = re.fullmatch(r"(.+)_(?:output|error)\.jsonl", file.filename)
                if (ours and ours[1] not in out) or (theirs and theirs[1] in ended):
                    found.append(file.id)
            return found

        files = self._chat.call(left, timeout=_TIMEOUT, watch=_go_on)
        for file in files:
            self._delete(file)
        return len(files)

    def _delete(self, file: str) -> None:
        self._chat.call(lambda client: client.files.delete(file), timeout=_TIMEOUT, watch=_go_on)


def line_of(name: str, prompt: str, model: str) -> str:
    """A line of a batch's input; its answer bears the same `name`."""
    body = request_body([Message(role="user", content=prompt)], model, SCHEMA)
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def had_no_turn(line: Line) -> bool:
    """Whether a line says that its row was never asked."""
    error = line.get("error")
    return isinstance(error, Mapping) and error.get("code") in _NO_TURN


def ending(batch: "Batch") -> str:
    """How a batch ended, in a few words."""
    errors = (batch.errors.data if batch.errors else None) or []
    codes = ", ".join(sorted({error.code for error in errors if error.code}))
    return f"{batch.status}: {codes}" if codes else batch.status


async def _bounded(chunks: AsyncIterator[bytes]) -> bytes:
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > _LARGEST:
            content += b"\n{"  # what follows can't be read
            break
    return bytes(content)


def _object(line: bytes) -> Line | None:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _go_on() -> None:
    """Nobody gives up a batch on the way."""
