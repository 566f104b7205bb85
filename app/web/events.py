"""GET /events: tells open pages that something has changed (Server-Sent Events).

One poller a process asks the database for a cheap stamp every second, as long as anybody listens, and tells everybody.
A listener whose session is over is sent away.

Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress

import anyio
import structlog
from fastapi import APIRouter, HTTPException, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from app.database import Database
from app.errors import TobanError
from app.web.auth import Viewer
from app.web.i18n import t
from app.web.polling import polling
from app.web.signing import fingerprint
from app.web.state import state_of

log = structlog.get_logger("toban.web")

INTERVAL = 1.0  # s between looks at the stamp
PING = 15  # s between heartbeats, so that proxies keep a silent stream open
MOST_OF_ONE = 20  # streams of one person
MOST = 500  # streams of a process

CHANGE, AWAY, GOODBYE = "change", "away", "goodbye"


class Listener:
    """One open page; `session`: the fingerprint of its session, None for a program."""

    def __init__(self, name: str, session: str | None) -> None:
        self.name = name
        self.session = session
        self.waiting: asyncio.Queue[str] = asyncio.Queue(maxsize=4)
        self.closing = anyio.Event()  # set when this process is asked to stop

    def tell(self, event: str) -> None:
        with suppress(asyncio.QueueFull):  # it has news to fetch already
            self.waiting.put_nowait(event)


class Events:
    """All open pages of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: set[Listener] = set()
        self._stamp: str | None = None
        self._away = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def polling(self) -> AbstractAsyncContextManager[None]:
        """The poller runs inside this block."""
        self._loop = asyncio.get_running_loop()
        return polling(self._look, lambda: bool(self._listeners), INTERVAL, "toban-stamp")

    async def _look(self) -> None:
        sessions = sorted({listener.session for listener in self._listeners if listener.session})
        try:
            answer = await run_in_threadpool(self._database.call, "toban_page_stamp", sessions=sessions)
        except TobanError as error:
            if not self._away:
                log.warning("web.stamp_failed", reason=str(error))
                self._tell_all(AWAY)
            self._away = True
            return
        except Exception:
            log.exception("web.stamp_failed")
            return
        gone = set(answer["gone"])
        for listener in [listener for listener in self._listeners if listener.session in gone]:
            self._send_away(listener)
        if answer["stamp"] != self._stamp or self._away:
            self._tell_all(CHANGE)
            self._stamp, self._away = answer["stamp"], False

    def _tell_all(self, event: str) -> None:
        for listener in self._listeners:
            listener.tell(event)

    def _send_away(self, listener: Listener) -> None:
        while not listener.waiting.empty():
            listener.waiting.get_nowait()
        listener.tell(GOODBYE)

    def drop(self, session: str | None = None) -> None:
        """The streams of a session end now; without one, all. May be called from any thread."""
        mark = fingerprint(session) if session else None

        def end() -> None:
            for listener in [one for one in self._listeners if mark is None or one.session == mark]:
                self._send_away(listener)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(end)

    def room(self, name: str) -> bool:
        return len(self._listeners) < MOST and sum(one.name == name for one in self._listeners) < MOST_OF_ONE

    async def stream(self, listener: Listener) -> AsyncIterator[ServerSentEvent]:
        self._listeners.add(listener)
        leaving = asyncio.create_task(self._leave(listener))
        try:
            yield ServerSentEvent(event="hello", data="", retry=2000)
            while True:
                event = await listener.waiting.get()
                yield ServerSentEvent(event=event, data="")
                if event == GOODBYE:
                    return
        finally:
            leaving.cancel()
            self._listeners.discard(listener)

    async def _leave(self, listener: Listener) -> None:
        await listener.closing.wait()
        self._send_away(listener)


router = APIRouter()


@router.get("/events")
async def events(request: Request, user: Viewer) -> EventSourceResponse:
    """`change`: fetch the page again; `away`: the database does not answer; `goodbye`: session or process ends."""
    hub = state_of(request).events
    if not hub.room(user.name):
        raise HTTPException(429, t("Too many open pages."), headers={"Retry-After": "60"})
    listener = Listener(user.name, fingerprint(user.session) if user.session else None)
    return EventSourceResponse(
        hub.stream(listener),
        ping=PING,
        headers={"Cache-Control": "no-store"},
        shutdown_event=listener.closing,
        shutdown_grace_period=2,
    )
