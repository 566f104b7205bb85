"""Batches that somebody asks for over the API, and whoever waits for one.

One poller a process looks at all batches that anybody waits for or follows; a wait holds no thread and no connection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from typing import Any, Literal
from zoneinfo import ZoneInfo

import anyio
import structlog
from starlette.concurrency import run_in_threadpool

from app.errors import Refused, TobanError
from app.services import Services
from app.web.polling import polling

log = structlog.get_logger("toban.web")

Found = Mapping[str, Any]
"""A batch as `toban_requested_batch` answers it."""

SOURCE, QUEUE = "transcription", "whisper"
# Before what merely waits, after what a person asks for by hand (10).
PRIORITY = 5
KEY_LIFE = timedelta(hours=24)
INTERVAL = 0.5  # s between looks at the batches
MOST = 500  # requests that wait, and streams, of a process
# The last look of a request that has waited: a slow database must not hold it beyond its proxy's patience, seconds.
LAST_LOOK = 2.0


@dataclass(eq=False)
class Watched:
    """A batch that somebody waits for or follows; `news` is set, and replaced, when anything about it changes."""

    open: int
    mark: str | None = None
    waiters: int = 0
    followers: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    found: tuple[str | None, Found] | None = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def tell(self) -> None:
        old, self.news = self.news, asyncio.Event()
        old.set()


def day_of(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The moments (UTC) between which a day lies in `zone`."""

    def midnight(days: int, otherwise: datetime) -> datetime:
        try:
            return datetime.combine(day + timedelta(days=days), clock.min, zone).astimezone(UTC)
        except OverflowError:  # of the calendar's first and last day
            return otherwise.replace(tzinfo=UTC)

    return midnight(0, datetime.min), midnight(1, datetime.max)  # noqa: DTZ901 - it is replaced


class Batches:
    """All batches that this process is asked about. `ending`: it has been asked to stop."""

    def __init__(self, services: Services) -> None:
        self.ending = False
        self._services = services
        self._watched: dict[str, Watched] = {}
        self._waiting = 0
        self._away = False

    # --- the ledger; these wait for it ------------------------------------------------------------------------------

    def ask(
        self, device: str, day: date, model: str | None, owner: str, key: str | None, fingerprint: str
    ) -> dict[str, Any]:
        """As `toban_request_batch` answers; `key`: an idempotency key."""
        since, until = day_of(day, self._services.settings.audio.zone)
        answer: dict[str, Any] = self._services.database.call(
            "toban_request_batch",
            source=SOURCE,
            partition=device,
            day=day.isoformat(),
            since=since.isoformat(),
            until=until.isoformat(),
            file="file_path",
            model=model,
            held=list(self._services.settings.whisper.models),
            priority=PRIORITY,
            owner=owner,
            idempotency_key=key,
            fingerprint=fingerprint,
            key_life=KEY_LIFE.total_seconds(),
            **self._where,
        )
        return answer

    def see(self, batch: str) -> Found:
        """Raises `Refused` where there is none."""
        found: Found = self._services.database.call("toban_requested_batch", batch=batch, **self._where)
        return found

    def cancel(self, batch: str) -> Found:
        """Raises `Refused` where there is none."""
        found: Found = self._services.database.call("toban_cancel_request", batch=batch, **self._where)
        return found

    @property
    def _where(self) -> dict[str, str]:
        return {"queue": QUEUE, "zone": self._services.settings.audio.device_timezone}

    # --- waiting ------------------------------------------------------------------------------------------------------

    def polling(self) -> AbstractAsyncContextManager[None]:
        """The poller runs inside this block."""
        return polling(self._look, lambda: bool(self._watched), INTERVAL, "toban-batches")

    async def _look(self) -> None:
        asked = dict(self._watched)  # whoever comes while the database is asked is not in its answer
        try:
            answer = await run_in_threadpool(
                self._services.database.call,
                "toban_requested_batches",
                batches=list(asked),
                followed=[batch for batch, watched in asked.items() if watched.followers],
            )
        except TobanError as error:
            if not self._away:
                log.warning("web.batches_unseen", reason=str(error))
            self._away = True
            return
        except Exception:
            log.exception("web.batches_unseen")
            return
        self._away = False
        now = {look["id"]: look for look in answer["batches"]}
        for batch, watched in asked.items():
            look = now.get(batch, {"open": 0, "mark": "forgotten"})
            if (watched.open, watched.mark) != (look["open"], look["mark"]):
                watched.open, watched.mark = look["open"], look["mark"]
                watched.tell()

    def end(self) -> None:
        """The process stops: whoever waits is answered now. Called within the event loop."""
        self.ending = True
        for watched in self._watched.values():
            watched.tell()

    @property
    def room(self) -> bool:
        """Whether one more may wait."""
        return self._waiting < MOST

    @asynccontextmanager
    async def watching(self, found: Found, *, closely: bool) -> AsyncIterator[Watched]:
        """The poller looks at this batch inside the block; `closely`: at each of its files."""
        batch = found["id"]
        watched = self._watched.setdefault(batch, Watched(found["open"]))
        self._count(watched, 1, closely=closely)
        try:
            yield watched
        finally:
            self._count(watched, -1, closely=closely)
            if not watched.waiters + watched.followers:
                del self._watched[batch]

    def _count(self, watched: Watched, more: int, *, closely: bool) -> None:
        self._waiting += more
        if closely:
            watched.followers += more
        else:
            watched.waiters += more

    async def done(self, found: Found) -> None:
        """Return when nothing of the batch is left to do, or this process stops."""
        async with self.watching(found, closely=False) as watched:
            while watched.open and not self.ending:
                await watched.news.wait()

    async def latest(self, watched: Watched, batch: str) -> Found:
        """The batch as of the poller's last look; asked for once for all who follow it. Raises `TobanError`."""
        async with watched.looking:
            if watched.found is None or watched.found[0] != watched.mark:
                mark = watched.mark
                watched.found = mark, await run_in_threadpool(self.see, batch)
            return watched.found[1]

    async def last_look(self, found: Found) -> Found:
        """How the batch gets on; what was known of it if that takes too long. Raises `Refused` if it is gone."""
        with anyio.move_on_after(LAST_LOOK):
            try:
                seen: Found = await anyio.to_thread.run_sync(self.see, found["id"], abandon_on_cancel=True)
            except Refused:
                raise
            except TobanError:
                return found
            return seen
        return found


How = Literal["done", "late", "gone"]


async def hold(batches: Batches, found: Found, until: float, gone: Callable[[], Any]) -> How:
    """Wait for a batch: it is `done`, it is too `late` (`time.monotonic` is `until`), or who asked is `gone`.

    `gone`: makes an awaitable that ends when the client has hung up.
    """
    done, leaving = asyncio.ensure_future(batches.done(found)), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(
            {done, leaving}, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
        return "done" if done.done() else "gone" if leaving.done() else "late"
    finally:
        for task in (done, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
