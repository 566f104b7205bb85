"""What was used of a server's limits, in Redis or in this process's memory; and until when nobody asks."""

import math
import threading
import time
from dataclasses import dataclass
from typing import Literal

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_TIMEOUT = 1.0  # seconds that Redis may take
_PREFIX = "toban-limit"
_REMEMBERED = 24 * 3600  # seconds
_ROUGHLY = 0.25  # seconds until tokens are tried for again


@dataclass(frozen=True)
class Need:
    """`amount` of the `limit` that there is of `what` in `span` seconds."""

    what: Literal["requests", "tokens"]
    limit: int
    span: int
    amount: int = 1

    @property
    def item(self) -> RateLimitItemPerSecond:
        return _Item(self.limit, self.span, self.what)


class _Item(RateLimitItemPerSecond):
    """A limit whose counts go on when it is changed: by its key `limits` would begin anew."""

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return f"{self.namespace}/{self.multiples}/{'/'.join(map(str, identifiers))}"


class Counts:
    """Counts of one server. `url`: the Redis that others count in too; None: in memory.

    Raises redis-py's errors, and `ValueError` for an address that is none.
    """

    def __init__(self, name: str, url: str | None = None) -> None:
        self._name = name
        self._redis: Redis | None = None
        self._quiet_until = 0.0
        storage: RedisStorage | MemoryStorage = MemoryStorage()
        if url is not None:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=4,
                timeout=_TIMEOUT,
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                retry=Retry(NoBackoff(), 1),  # the default ones take 10 s
            )
            self._redis = Redis(connection_pool=pool)
            storage = RedisStorage("redis://", connection_pool=pool, key_prefix=_PREFIX)
        self._lock = threading.Lock()
        self._moving = MovingWindowRateLimiter(storage)
        self._sliding = SlidingWindowCounterRateLimiter(storage)

    def take(self, need: Need) -> float:
        """0: it is taken; else it is not, and may be in so many seconds."""
        return 0.0 if self._counter(need).hit(need.item, self._name, cost=need.amount) else self._free_in(need)

    def wait_for(self, need: Need) -> float:
        """Seconds until it can be taken; 0: now. Takes nothing."""
        return 0.0 if self._counter(need).test(need.item, self._name, cost=need.amount) else self._free_in(need)

    def remember(self, limits: dict[str, int]) -> None:
        """Limits that the server has told, for processes that have not asked it yet."""
        if self._redis is not None and limits:
            for name, limit in limits.items():
                self._redis.hset(self._key("learned"), name, str(limit))
            self._redis.expire(self._key("learned"), _REMEMBERED)

    def remembered(self) -> dict[str, int]:
        """What others have learned."""
        if self._redis is None:
            return {}
        found = self._redis.hmget(self._key("learned"), ["requests", "tokens"])
        return {name: int(limit) for name, limit in zip(("requests", "tokens"), found, strict=True) if limit}

    def pause(self, seconds: float) -> None:
        """Nobody asks for so many seconds; a shorter pause does not end a longer one."""
        if self._redis is None:
            with self._lock:
                self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)
        elif self._redis.pttl(self._key("pause")) < seconds * 1000:
            self._redis.set(self._key("pause"), 1, px=math.ceil(seconds * 1000))

    def paused(self) -> float:
        """Seconds until somebody may ask again."""
        if self._redis is None:
            return max(self._quiet_until - time.monotonic(), 0.0)
        return max(self._redis.pttl(self._key("pause")), 0) / 1000  # -2: there is none

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()
            self._redis.connection_pool.disconnect()

    def _key(self, what: str) -> str:
        return f"{_PREFIX}:{self._name}:{what}"

    def _counter(self, need: Need) -> MovingWindowRateLimiter | SlidingWindowCounterRateLimiter:
        # A moving window keeps an entry for each unit: too many, if they are tokens.
        return self._moving if need.what == "requests" else self._sliding

    def _free_in(self, need: Need) -> float:
        if need.what == "tokens":
            return _ROUGHLY
        return max(self._moving.get_window_stats(need.item, self._name).reset_time - time.time(), 0.001)
