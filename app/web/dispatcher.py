"""Sends what was just asked for, so that it starts at once and not with the next tick.

Workers with room and beat's ticks would send it too: a broker that is away costs time, and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from starlette.concurrency import run_in_threadpool

from app.dispatch import dispatch
from app.errors import TobanError
from app.services import Services

log = structlog.get_logger("toban.web")

# After a failure, seconds.
PAUSE = 5.0


class Dispatcher:
    """One look at the waiting rows at a time, however many ask for one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._wanted: set[str] = set()
        self._woken = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It works inside this block."""
        task = asyncio.create_task(self._work(), name="toban-dispatcher")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def poke(self, source: str) -> None:
        """Soon claim and send rows of `source`; called within the event loop."""
        self._wanted.add(source)
        self._woken.set()

    async def _work(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._wanted:
                source = self._wanted.pop()
                try:
                    await run_in_threadpool(self._dispatch, source)
                except TobanError as error:
                    log.warning("web.undispatched", source=source, reason=str(error))
                    await asyncio.sleep(PAUSE)
                except Exception:
                    log.exception("web.undispatched", source=source)
                    await asyncio.sleep(PAUSE)

    def _dispatch(self, source: str) -> None:
        import tasks  # noqa: F401 - registers the sources
        from app.sources import registry
        from tasks.base import send_item

        dispatch(self._services, registry[source], send_item)
