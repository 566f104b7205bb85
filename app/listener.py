"""Who opens items notifies the channel `toban` (PostgreSQL's NOTIFY); one process of all listens, and claims.

One is enough for a database: it holds a lock that PostgreSQL frees when its connection ends, and then another process
takes its place. Until then, and where nobody can listen, rows wait for the next tick.
"""

import random
import threading
import time
from typing import Any

import psycopg
import structlog

from app.database.postgres import CONNECTION
from app.dispatch import Send
from app.errors import TobanError
from app.services import Services
from app.sources import SHADOW, registry
from app.wake import look, more_after, pause_after

log = structlog.get_logger("toban.wake")

# How often a process that does not listen sees whether somebody does, and the longest pause while the database is away.
STANDBY, LONGEST = 15.0, 30.0
# How soon a listener notices that it is to stop, seconds.
IDLE = 1.0
# Looks for others on a pooler's connection before it counts as ours alone.
TRIES = 5

Connection = psycopg.Connection[tuple[Any, ...]]


class Deaf(Exception):
    """This connection will never hear anything."""


class Listener:
    """`send` publishes an item's message; `url`: libpq connection string."""

    def __init__(self, services: Services, send: Send, url: str) -> None:
        self._services = services
        self._send = send
        self._url = url
        self._away = False

    def run(self, stop: threading.Event) -> None:
        """Listen, or wait for the turn to, until `stop`. Trouble is told once, and tried again."""
        pause = 0.1
        while not stop.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311 - so that not all try at once
            try:
                if not self._services.database.call("toban_listening")["listening"]:
                    self._lead(stop)
                self._away, pause = False, STANDBY
            except Deaf as error:
                log.warning("listen.impossible", reason=str(error))
                return
            except (psycopg.Error, TobanError) as error:
                if not self._away:
                    log.warning("listen.lost", reason=str(error).strip() or type(error).__name__)
                self._away, pause = True, min(max(2 * pause, 1.0), LONGEST)

    def _lead(self, stop: threading.Event) -> None:
        """Listen until `stop`, unless somebody else began at the same moment.

        Raises `Deaf`, or `psycopg.Error` when the connection ends.
        """
        with psycopg.connect(self._url, **CONNECTION, application_name="toban-listener") as connection:
            if is_shared(connection, self._url):
                raise Deaf(
                    "the database is reached through a transaction pooler, so new rows wait for the next tick; set "
                    "DATABASE_LISTEN_URL to a direct connection or a session pooler"
                )
            if not _value(connection, "select pg_try_advisory_lock(hashtextextended('toban:listen', 0))"):
                return
            connection.execute("listen toban")
            log.info("listen.start")
            self._away = False
            self._follow(connection, stop)

    def _follow(self, connection: Connection, stop: threading.Event) -> None:
        wanted = registry.dispatched()  # what began to wait while nobody listened
        rest = 0.0  # until when what is heard is collected
        while not stop.is_set():
            left = rest - time.monotonic()
            if wanted and left <= 0:
                rest = time.monotonic() + self._look(wanted)
                continue
            timeout, most = (min(left, IDLE), None) if left > 0 else (IDLE, 1)
            heard = {
                notify.payload.removeprefix(SHADOW) for notify in connection.notifies(timeout=timeout, stop_after=most)
            }
            wanted |= heard & registry.dispatched()

    def _look(self, wanted: set[str]) -> float:
        """Claim for the sources of `wanted`, and leave in it those that are to be looked at again.

        Returns how long to collect what is heard before that, seconds.
        """
        looks = {source: look(self._services, source, self._send) for source in sorted(wanted)}
        wanted.clear()
        wanted |= {source for source, done in looks.items() if more_after(done)}
        return max(pause_after(done) for done in looks.values())


def is_shared(connection: Connection, url: str) -> bool:
    """Whether others use this server connection between our transactions, as behind a transaction pooler.

    A pooler tells a client another number than the server process's own. It is one for sessions if the process stays
    ours while somebody else is served; in transaction mode that somebody is given the one that has just become free.
    (Unless a third one was quicker: 1 of 20 times under load, so it is tried some times.)
    """
    who = "select pg_backend_pid()"
    own = _value(connection, who)
    if own == connection.info.backend_pid:
        return False
    for _ in range(TRIES):
        with psycopg.connect(url, **{**CONNECTION, "autocommit": False}) as other:
            if _value(other, who) == own or _value(connection, who) != own:
                return True
    return False


def _value(connection: Connection, statement: str) -> Any:  # noqa: ANN401 - whatever it selects
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None
