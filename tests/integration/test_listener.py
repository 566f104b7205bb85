"""One process listens, and claims what it hears of."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from app import listener
from app.errors import Transient
from app.ledger import Claimed
from app.services import Services, build_services
from app.sources import Source
from app.wake import listen
from tests.integration.conftest import settings_for
from tests.support.servers import PgBouncer, wait_for


class Listening:
    """Listeners in threads of this process, and what they have sent."""

    def __init__(self, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
        self.services = services
        self.sent: list[str] = []
        self.claims = 0
        self._claim = services.ledger.claim
        self._stops: list[threading.Event] = []
        self._threads: list[threading.Thread] = []
        monkeypatch.setattr(services.ledger, "claim", self._counted)

    def _counted(self, *args: object) -> object:
        self.claims += 1
        return self._claim(*args)  # type: ignore[arg-type]

    def send(self, _: Source, item: Claimed) -> None:
        self.sent.append(item.key)

    def start(self, send: Callable[[Source, Claimed], None] | None = None) -> threading.Event:
        self._stops.append(threading.Event())
        arguments = (self.services, send or self.send, self._stops[-1])
        self._threads.append(threading.Thread(target=listen, args=arguments, daemon=True))
        self._threads[-1].start()
        return self._stops[-1]

    def settled(self) -> None:
        """Somebody listens, and has looked for what came before."""
        wait_for(lambda: self.services.database.call("toban_listening")["listening"], "a listener")
        wait_for(lambda: self.claims >= 2, "its first look")

    def stop(self) -> None:
        for stop in self._stops:
            stop.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def app(database_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def listening(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setattr(listener, "STANDBY", 0.2)
    monkeypatch.setattr(listener, "IDLE", 0.2)
    services.database.call(
        "toban_heartbeat", worker="w", node="w", pid=1, queues=["whisper"], slots=5, rss_bytes=1, lease=600, stall=300,
        items=[],
    )  # fmt: skip
    own = Listening(services, monkeypatch)
    yield own
    own.stop()


def add(app: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    app.execute("insert into audio_files values (%s, '2025-07-18T03:00:00Z', 'a.wav')", [name])


def test_a_new_row_is_sent_without_a_tick(
    listening: Listening, app: psycopg.Connection[tuple[object, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    add(app, "before")
    listening.start()
    wait_for(lambda: len(listening.sent) == 1, "what came before anybody listened")
    listening.settled()
    for number in range(3):
        add(app, f"d{number}")
        wait_for(lambda: len(listening.sent) == number + 2, "the new row")  # noqa: B023 - within this turn


def test_many_inserts_are_a_few_claims(listening: Listening, app: psycopg.Connection[tuple[object, ...]]) -> None:
    listening.start()
    listening.settled()
    before = listening.claims
    for number in range(1500):
        add(app, f"d{number}")
    wait_for(lambda: len(listening.sent) == 10, "as many as there is room for")
    assert listening.claims - before < 100


def test_two_listeners_send_nothing_twice(listening: Listening, app: psycopg.Connection[tuple[object, ...]]) -> None:
    listening.start()
    listening.start()
    listening.settled()
    for number in range(10):
        add(app, f"d{number}")
    wait_for(lambda: len(listening.sent) == 10, "the rows")
    assert len(set(listening.sent)) == 10
    listeners = "select count(*) from pg_stat_activity where application_name = 'toban-listener'"
    wait_for(lambda: app.execute(listeners).fetchone() == (1,), "one that stays")


def test_another_one_takes_over(listening: Listening, app: psycopg.Connection[tuple[object, ...]]) -> None:
    first = listening.start()
    listening.settled()
    listening.start()
    first.set()
    listening._threads[0].join(10)
    wait_for(lambda: listening.services.database.call("toban_listening")["listening"], "the second one")
    add(app, "d1")
    wait_for(lambda: listening.sent == ["d1/2025-07-18T03:00:00Z"], "the row")


def test_a_lost_connection_is_made_again(listening: Listening, app: psycopg.Connection[tuple[object, ...]]) -> None:
    listening.start()
    listening.settled()
    app.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'toban-listener'")
    add(app, "meanwhile")
    wait_for(lambda: len(listening.sent) == 1, "what came while nobody listened")


def test_a_broker_that_is_away_loses_nothing(listening: Listening, app: psycopg.Connection[tuple[object, ...]]) -> None:
    tried = threading.Event()

    def refuse(_: Source, __: Claimed) -> None:
        tried.set()
        raise Transient("no broker")

    listening.start(refuse)
    listening.settled()
    add(app, "d1")
    assert tried.wait(10)
    wait_for(lambda: app.execute("select state from work_items").fetchall() == [("pending",)], "the row to wait")
    assert listening.claims < 10


def test_behind_a_transaction_pooler_nobody_listens(
    database_url: str, pgbouncer: PgBouncer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(conninfo_to_dict(database_url)["dbname"])
    pooled = build_services(settings_for(pgbouncer.url(name), tmp_path))
    with pytest.raises(listener.Deaf, match="DATABASE_LISTEN_URL"):
        listener.Listener(pooled, lambda *_: None, pgbouncer.url(name))._lead(threading.Event())
    assert not pooled.database.call("toban_listening")["listening"], "no lock is left in the pooler"
    # It ends by itself, and says so once.
    listen(pooled, lambda *_: None, threading.Event())
    pooled.close()
    with psycopg.connect(database_url) as direct:
        assert not listener.is_shared(direct, database_url)


def test_it_can_be_switched_off(services: Services) -> None:
    ledger = services.settings.ledger.model_copy(update={"listen": False})
    off = services.settings.model_copy(update={"ledger": ledger})
    own = Services(off, services.database, services.ledger, services.pace)
    listen(own, lambda *_: None, threading.Event())  # returns at once
