"""One pace for all calls to a server, of all workers: requests and tokens a minute, and pauses that it asks for.

Counted in Redis by `limits`: a moving window for requests, as exact as the strictest server's, and a sliding counter
for tokens. In each process the waiting threads stand in line and only the first one asks Redis.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import uniform
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from redis.exceptions import RedisError

from app.errors import RateLimited
from app.gpt.counts import Counts, Need
from app.gpt.pace import LONGEST, Limits
from app.settings import Broker, Gpt

_T = TypeVar("_T")
log = structlog.get_logger(__name__)

# A server counts requests when they arrive. One that travelled a moment longer than the one that follows a window later
# would make the window too full, so the window is this much longer here. It costs 1.7 % of a minute's requests.
MARGIN = 1  # second
_LOOK = 1.0  # seconds between two looks at whether the work was cancelled
_SHORTEST = 0.02  # seconds between two questions to Redis
_UNKNOWN = {"requests": 10_000, "tokens": 10**9}  # in a window, until the server has told its limit
_AWAY = 10.0  # seconds for which a Redis that failed is left alone


def limiter_url(gpt: Gpt, broker: Broker) -> str | None:
    """The Redis that is shared: LLM_LIMITER_URL, else the broker or the result backend where that is one."""
    named = [gpt.llm_limiter_url.get_secret_value()] if gpt.llm_limiter_url else []
    urls = [*named, broker.url.get_secret_value(), broker.backend_url() or ""]
    return next((url for url in urls if url.startswith("redis")), None)


def redis_url(url: str) -> str:
    """An address as redis-py reads it, from one as Celery writes it: `redis+socket:///path?virtual_host=1` and such."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if "virtual_host" in options:
        options["db"] = options.pop("virtual_host")
    if (needed := options.get("ssl_cert_reqs", "")).startswith("CERT_"):
        options["ssl_cert_reqs"] = needed.removeprefix("CERT_").lower()
    scheme = "unix" if parts.scheme in {"redis+socket", "redis+unix"} else parts.scheme
    query = f"?{urlencode(options)}" if options else ""
    return f"{scheme}://{parts.netloc}{parts.path}{query}"


def build_limiter(gpt: Gpt, broker: Broker) -> "Limiter":
    """The limiter of the settings."""
    parts = urlsplit(gpt.base_url)
    # OpenAI's headers tell what it takes in a minute. Others mean a day, or a second.
    learns = (parts.hostname or "").endswith("api.openai.com")
    limits = gpt.llm_requests_per_minute, gpt.llm_tokens_per_minute
    return Limiter(limiter_url(gpt, broker), *limits, parts.netloc.lower(), learns=learns)


class Limiter:
    """The pace of one server; serves all threads of a process. Nothing connects before the first use.

    `url`: the shared Redis; without it, or while it is away, each process keeps the limits by itself. `name`: what the
    processes share them by, such as the server's host. `learns`: whether a limit that is not given is taken from the
    server's headers, as being for a window. `window`: seconds that the limits are meant for.
    """

    def __init__(
        self,
        url: str | None,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        name: str,
        *,
        learns: bool = False,
        window: int = 60,
    ) -> None:
        self.name = name
        self._url = url
        self._span = window + MARGIN
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._learned = dict(_UNKNOWN) if learns else {}
        self._line = _Line()
        self._lock = threading.Lock()
        self._own = Counts(name)
        self._shared: Counts | None = None
        self._away_until = 0.0
        self._is_away = False

    def acquire(self, tokens: int, watch: Callable[[], None], patience: float) -> None:
        """Waits for the right to make one call of about `tokens` tokens. It counts, whatever becomes of the call.

        `watch` is called about once a second and gives up by raising. Raises `RateLimited` once the turn is known to
        be more than `patience` seconds away.
        """
        until = time.monotonic() + patience
        with self._line.place() as place:
            while not place.is_first():
                if time.monotonic() >= until:
                    raise self._busy(place.position() * self._span / (self._limit("requests") or self._span))
                place.wait(min(_LOOK, max(until - time.monotonic(), 0)))
                watch()
            needs = self._needs(tokens)
            while (seconds := self._take(needs)) > 0:
                if time.monotonic() + seconds > until:
                    raise self._busy(seconds)
                _sleep(seconds + uniform(0, _SHORTEST), watch)  # noqa: S311 - not all at once

    def observe(self, limits: Limits) -> None:
        """Slows everybody down where an answer's headers, or a refusal, ask for it."""
        if self._learned:
            told = {name: limit for name in _UNKNOWN if (limit := getattr(limits, name))}
            if any(self._learned[name] != limit for name, limit in told.items()):
                self._learned |= told
                self._ask(lambda shared: shared.remember(told), None)
        if limits.pause > 0:
            self.pause(limits.pause)

    def pause(self, seconds: float) -> None:
        """Nobody calls for so many seconds. A shorter pause does not end a longer one."""
        self._own.pause(seconds)
        self._ask(lambda shared: shared.pause(seconds), None)

    def close(self) -> None:
        """Frees the connections."""
        with self._lock:
            if self._shared is not None:
                self._shared.close()
            self._shared = None

    def _limit(self, what: str) -> int | None:
        return self._limits[what] or self._learned.get(what)

    def _needs(self, tokens: int) -> list[Need]:
        """Tokens first: they are counted roughly, a request to the moment."""
        if self._learned == _UNKNOWN:
            nothing: dict[str, int] = {}
            self._learned |= self._ask(Counts.remembered, nothing)
        needs = []
        if limit := self._limit("tokens"):
            needs.append(Need("tokens", limit, self._span, min(max(tokens, 1), limit)))
        if limit := self._limit("requests"):
            needs.append(Need("requests", limit, self._span))
        return needs

    def _take(self, needs: list[Need]) -> float:
        """Takes what there is of `needs`; seconds until the next try, 0: everything is taken."""
        pause = max(self._own.paused(), self._ask(Counts.paused, 0.0))
        if pause > 0:
            return pause
        while needs:
            need = needs[0]
            # This process's own counts are a part of the shared ones. They go on when Redis is away or has forgotten.
            seconds = self._own.wait_for(need) or self._ask(partial(Counts.take, need=need), 0.0)
            if seconds > 0:
                return max(seconds, _SHORTEST)
            self._own.take(need)
            needs.pop(0)
        return 0.0

    def _ask(self, question: Callable[[Counts], _T], otherwise: _T) -> _T:
        """What the shared counts say; `otherwise` while they are away, which is told once and fails nobody."""
        if self._url is None or time.monotonic() < self._away_until:
            return otherwise
        try:
            answer = question(self._connected(self._url))
        except (RedisError, OSError, ValueError) as error:
            self._away_until = time.monotonic() + _AWAY
            if not self._is_away:
                log.warning("limiter.alone", limiter=self.name, reason=type(error).__name__)
            self._is_away = True
            return otherwise
        if self._is_away:
            log.info("limiter.together", limiter=self.name)
        self._is_away = False
        return answer

    def _connected(self, url: str) -> Counts:
        with self._lock:
            if self._shared is None:
                self._shared = Counts(self.name, redis_url(url))
            return self._shared

    def _busy(self, seconds: float) -> RateLimited:
        pause = min(max(seconds, 1.0), LONGEST)
        return RateLimited(f"the limits of {self.name} leave no room for {pause:.0f} s", retry_after=pause)


class _Line:
    """Threads in the order of their coming; the first one is served."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: deque[threading.Event] = deque()

    @contextmanager
    def place(self) -> Iterator["_Place"]:
        turn = threading.Event()
        with self.lock:
            self.waiting.append(turn)
            self.waiting[0].set()
        try:
            yield _Place(self, turn)
        finally:
            with self.lock:
                self.waiting.remove(turn)
                if self.waiting:
                    self.waiting[0].set()


class _Place:
    """One thread's place in a line."""

    def __init__(self, line: _Line, turn: threading.Event) -> None:
        self._line = line
        self._turn = turn

    def is_first(self) -> bool:
        return self._turn.is_set()

    def wait(self, seconds: float) -> None:
        self._turn.wait(seconds)

    def position(self) -> int:
        with self._line.lock:
            return self._line.waiting.index(self._turn)


def _sleep(seconds: float, watch: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK))
        if left > _LOOK:
            watch()
