"""Waiting for work without holding a thread or a connection: one poller a process asks for all that is waited for."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.errors import TobanError
from app.web.polling import polling

log = structlog.get_logger("toban.web")

State = Mapping[str, Any]

INTERVAL = 0.3  # s between looks
MOST = 500  # requests that wait in a process; more are answered at once


class _Waiter:
    def __init__(self, what: State, done: Callable[[State, float], bool]) -> None:
        self.what = what
        self.done = done
        self.since = time.monotonic()
        self.latest: State | None = None
        self.over = asyncio.Event()

    def look(self, state: State) -> None:
        self.latest = state
        if self.done(state, time.monotonic() - self.since):
            self.over.set()


class Waiting:
    """Everything that this process's requests wait for.

    `look`: from what is waited for (each once) to its states, in the same order; called in a thread. `seen`: what is
    done about them, in the event loop.
    """

    def __init__(
        self, look: Callable[[Sequence[State]], Sequence[State]], seen: Callable[[Sequence[State]], None]
    ) -> None:
        self._look = look
        self._seen = seen
        self._waiters: set[_Waiter] = set()
        self._ending = False
        self._away = False

    def polling(self) -> AbstractAsyncContextManager[None]:
        """The poller runs inside this block."""
        return polling(self._look_once, lambda: bool(self._waiters), INTERVAL, "toban-waiting")

    def end(self) -> None:
        """The process stops: whoever waits is answered now. Called within the event loop."""
        self._ending = True
        for waiter in self._waiters:
            waiter.over.set()

    async def until(
        self, request: Request, what: State, done: Callable[[State, float], bool], seconds: float
    ) -> State | None:
        """The latest state of `what`: when `done(state, seconds so far)`, after `seconds`, or when nobody waits.

        None: nothing is known, because there was no time, too many wait, or the database does not answer.
        """
        if self._ending or len(self._waiters) >= MOST or seconds <= 0:
            return None
        waiter = _Waiter(what, done)
        self._waiters.add(waiter)
        try:
            while (left := waiter.since + seconds - time.monotonic()) > 0 and not waiter.over.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiter.over.wait(), min(left, 1.0))
                if await request.is_disconnected():
                    break
        finally:
            self._waiters.discard(waiter)
        return waiter.latest

    async def _look_once(self) -> None:
        waiters = list(self._waiters)
        wanted = {repr(sorted(waiter.what.items())): waiter.what for waiter in waiters}
        try:
            found = await run_in_threadpool(self._look, list(wanted.values()))
        except TobanError as error:
            if not self._away:
                log.warning("web.unseen", reason=str(error))
            self._away = True
            return
        except Exception:
            log.exception("web.unseen")
            return
        self._away = False
        self._seen(found)
        states = dict(zip(wanted, found, strict=True))
        for waiter in waiters:
            waiter.look(states[repr(sorted(waiter.what.items()))])
