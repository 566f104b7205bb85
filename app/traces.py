"""What the broker and the result backend hold of a device: messages that wait, and results that have not expired."""

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from app.errors import Transient
from app.settings import Broker

Client = Any  # redis.Redis, whose answers have no one type

_RESULTS = "celery-task-meta-*"
_AT_ONCE = 1000


class Traces:
    """Of one device, in the Redis servers of the settings; anything else is named by `out_of_reach`."""

    def __init__(self, broker: Broker, queues: Collection[str], device: str) -> None:
        self._urls = {"messages": broker.url.get_secret_value(), "results": broker.backend_url() or ""}
        self._queues = queues
        escaped = json.dumps(device)[1:-1]  # as JSON in ASCII has it
        words = "|".join(re.escape(one) for one in dict.fromkeys([device, device.replace("/", "%2F"), escaped]))
        self._named = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])")

    @property
    def out_of_reach(self) -> list[str]:
        """Of `messages` and `results`, what is in no Redis."""
        return [name for name, url in self._urls.items() if url and not url.startswith("redis")]

    def count(self) -> dict[str, int]:
        """How many there are. Raises `Transient` when a server is away."""
        return self._all(delete=False)

    def erase(self) -> dict[str, int]:
        """Deletes them; returns how many there were. Raises `Transient` when a server is away."""
        return self._all(delete=True)

    def _all(self, *, delete: bool) -> dict[str, int]:
        from redis import Redis
        from redis.exceptions import RedisError

        from app.gpt.limiter import redis_url

        found = {}
        for name, url in self._urls.items():
            if not url.startswith("redis"):
                continue
            try:
                with Redis.from_url(redis_url(url), socket_timeout=30, socket_connect_timeout=5) as client:
                    look = self._messages if name == "messages" else self._results
                    found[name] = sum(1 for _ in look(client, delete=delete))
            except RedisError as error:
                raise Transient(f"the Redis of the {name} is away: {error}") from None
        return found

    def _messages(self, client: Client, *, delete: bool) -> Iterator[bytes]:
        for queue in self._queues:
            for key in (queue, *client.scan_iter(f"{queue}\x06\x16*")):
                for message in client.lrange(key, 0, -1):
                    if self._names(_readable(message)):
                        if delete:
                            client.lrem(key, 0, message)
                        yield message
        for tag, message in client.hscan_iter("unacked"):  # on its way to a worker, or to one that died
            if self._names(_readable(message)):
                if delete:
                    client.hdel("unacked", tag)
                    client.zrem("unacked_index", tag)
                yield message

    def _results(self, client: Client, *, delete: bool) -> Iterator[bytes]:
        some: list[bytes] = []
        for key in client.scan_iter(_RESULTS, count=_AT_ONCE):
            some.append(key)
            if len(some) == _AT_ONCE:
                yield from self._of(client, some, delete=delete)
                some = []
        yield from self._of(client, some, delete=delete)

    def _of(self, client: Client, keys: list[bytes], *, delete: bool) -> Iterator[bytes]:
        values = client.mget(keys) if keys else []
        named = [key for key, value in zip(keys, values, strict=True) if value and self._names(value.decode())]
        if named and delete:
            client.delete(*named)
        yield from named

    def _names(self, text: str) -> bool:
        return bool(self._named.search(text))


def _readable(message: bytes) -> str:
    """A message as text, its body too."""
    text = message.decode(errors="replace")
    try:
        told = json.loads(text)
        body = (told[0] if isinstance(told, list) else told)["body"]
        return text + base64.b64decode(body).decode(errors="replace")
    except (ValueError, KeyError, IndexError, TypeError, binascii.Error):
        return text
