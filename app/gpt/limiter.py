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
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from redis.exceptions import RedisError

from app.errors import RateLimited
from app.gpt.counts import Counts, Need
from app.gpt.pace import LONGEST, Limits
from app.settings import Broker, Gpt

log = structlog.get_logger(__name__)

# A server counts requests when they arrive. One that travelled a moment longer than the one that follows a window later
# would make the window too full, so the window is this much longer here. It costs 1.7 % of a minute's requests.
MARGIN = 1  # second
_LOOK = 1.0  # seconds between two looks at whether the work was cancelled
_SHORTEST = 0.02  # seconds between two questions to Redis
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


class Limiter:
    """The pace of one server; serves all threads of a process. Nothing connects before the first use.

    `url`: the shared Redis; without it, or while it is away, each process keeps the limits by itself. `name`: what the
    processes share them by, such as the server's host. `window`: seconds that the limits are meant for.
    """

    def __init__(
        self,
        url: str | None,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        name: str,
        *,
        window: int = 60,
    ) -> None:
        self.name = name
        self._url = url
        self._span = window + MARGIN
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
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
        needs = self._needs(tokens)
        with self._line.place() as place:
            while not place.is_first():
                if time.monotonic() >= until:
                    raise self._busy(place.position() * self._span / (self._requests or self._span))
                place.wait(min(_LOOK, max(until - time.monotonic(), 0)))
                watch()
            while (seconds := self._take(needs)) > 0:
                if time.monotonic() + seconds > until:
                    raise self._busy(seconds)
                _sleep(seconds + uniform(0, _SHORTEST), watch)  # noqa: S311 - not all at once

    def observe(self, limits: Limits) -> None:
        """Slows everybody down where an answer's headers, or a refusal, ask for it."""
        if limits.pause > 0:
            self.pause(limits.pause)

    def pause(self, seconds: float) -> None:
        """Nobody calls for so many seconds. A shorter pause does not end a longer one."""
        self._own.pause(seconds)
        self._ask(lambda shared: shared.pause(seconds))

    def close(self) -> None:
        """Frees the connections."""
        with self._lock:
            if self._shared is not None:
                self._shared.close()
            self._shared = None

    def _needs(self, tokens: int) -> list[Need]:
        """Tokens first: they are counted roughly, a request to the moment."""
        needs = []
        if self._tokens:
            needs.append(Need("tokens", self._tokens, self._span, min(max(tokens, 1), self._tokens)))
        if self._requests:
            needs.append(Need("requests", self._requests, self._span))
        return needs

    def _take(self, needs: list[Need]) -> float:
        """Takes what there is of `needs`; seconds until the next try, 0: everything is taken."""
        pause = max(self._own.paused(), self._ask(Counts.paused))
        if pause > 0:
            return pause
        while needs:
            need = needs[0]
            # This process's own counts are a part of the shared ones. They go on when Redis is away or has forgotten.
            seconds = self._own.wait_for(need) or self._ask(partial(Counts.take, need=need))
            if seconds > 0:
                return max(seconds, _SHORTEST)
            self._own.take(need)
            needs.pop(0)
        return 0.0

    def _ask(self, question: Callable[[Counts], float]) -> float:
        """Seconds to wait as the shared counts say; none while they are away, which is told once and fails nobody."""
        if self._url is None or time.monotonic() < self._away_until:
            return 0.0
        try:
            answer = question(self._connected(self._url))
        except (RedisError, OSError, ValueError) as error:
            self._away_until = time.monotonic() + _AWAY
            if not self._is_away:
                log.warning("limiter.alone", limiter=self.name, reason=type(error).__name__)
            self._is_away = True
            return 0.0
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
