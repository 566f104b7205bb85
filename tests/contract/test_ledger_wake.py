"""Who opens items tells whoever listens, and never fails for it; how all is."""

from collections.abc import Iterator

import httpx
import psycopg
import pytest

from tests.support.ledger import NOON, Ledger
from tests.support.servers import PostgREST, key_of, wait_for

LOCK = "select pg_try_advisory_lock(hashtextextended('toban:listen', 0))"


class Ear:
    """A listener as the program's."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("listen toban")

    def lock(self) -> bool:
        row = self.connection.execute(LOCK).fetchone()
        return bool(row and row[0])

    def heard(self) -> list[str]:
        """What has been told since the last time."""
        self.connection.execute("select 1")  # the server's answer brings along what came before it
        return [notify.payload for notify in self.connection.notifies(timeout=0)]


@pytest.fixture
def ear(clean_url: str) -> Iterator[Ear]:
    own = Ear(clean_url)
    assert own.lock()
    yield own
    own.connection.close()


def test_one_word_for_each_statement(ledger: Ledger, ear: Ear) -> None:
    ledger.file()
    assert ear.heard() == ["transcription"]
    ledger.files("d2", 500)
    assert ear.heard() == ["transcription"]
    ledger.block()
    assert ear.heard() == ["analysis"]


def test_rows_that_wait_again_are_told(ledger: Ledger, ear: Ear) -> None:
    ledger.files("d1", 20)
    ledger.drain()
    ear.heard()
    ledger.set_status("pending")
    assert ear.heard() == ["transcription"]
    ledger.drain()
    ear.heard()
    ledger.call("reprocess", source="transcription")
    assert ear.heard() == ["transcription"]


def test_what_opens_nothing_is_not_told(ledger: Ledger, ear: Ear) -> None:
    ledger.file()
    ledger.file("d2", status="completed")
    ear.heard()
    ledger.finish(ledger.running())
    ledger.sql("update audio_files set file_path = 'other.wav'")
    ledger.file("d3", status="completed")
    ledger.block(prompt=None)
    ledger.sql("delete from audio_files")
    assert ear.heard() == []


def test_a_given_back_item_is_not_told(ledger: Ledger, ear: Ear) -> None:
    """A listener whose broker is away gives back what it took; hearing of that it would never rest."""
    ledger.file()
    ledger.heartbeat()
    items = ledger.claim()
    ear.heard()
    ledger.call("release", tasks=[item["task_id"] for item in items])
    assert ledger.states() == {"pending": 1}
    assert ear.heard() == []


def test_nobody_is_told_while_nobody_listens(ledger: Ledger, clean_url: str) -> None:
    ear = Ear(clean_url)  # without the lock
    assert ledger.call("listening") == {"listening": False}
    ledger.file()
    assert ear.heard() == []
    assert ear.lock()
    assert ledger.call("listening") == {"listening": True}
    other = Ear(clean_url)
    assert not other.lock(), "one listens"
    ear.connection.close()
    wait_for(other.lock, "the next one's turn when it is gone")
    assert ledger.call("health")["listening"] is True
    other.connection.close()


@pytest.mark.parametrize(
    "broken", ["select (1 / 0)::text::boolean", "select pg_notify('toban', repeat('x', 9000)) is null"]
)
def test_trouble_with_telling_fails_nothing(ledger: Ledger, ear: Ear, broken: str) -> None:
    [original] = ledger.sql("select pg_get_functiondef('public.toban_listened'::regproc) as text")
    ledger.app.execute(f"create or replace function public.toban_listened() returns boolean language sql"
                       f" set search_path = '' as $$ {broken} $$".encode())  # fmt: skip
    try:
        key = ledger.file()
        assert ledger.state(key) == "pending"
        ledger.drain()
        ledger.set_status("pending")
        assert ledger.state(key) == "pending"
        assert ear.heard() == []
    finally:
        ledger.app.execute(original["text"].encode())


def test_an_upload_with_the_anon_key_is_told(direct_ledger: Ledger, ear: Ear, postgrest: PostgREST) -> None:
    with direct_ledger.altered(
        "create policy uploads on audio_files for insert to anon with check (true);"
        " grant insert on audio_files to anon; notify pgrst, 'reload schema'",
        "drop policy uploads on audio_files",
    ):
        row = {"device_id": "d1", "recorded_at": NOON, "file_path": "audio.wav"}
        key = key_of("anon")
        answer = httpx.post(
            f"{postgrest.url}/audio_files", json=row, headers={"apikey": key, "Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 201, answer.text
        assert ear.heard() == ["transcription"]


def test_how_all_is(ledger: Ledger) -> None:
    health = ledger.call("health")
    assert (health["tick"], health["beats"], health["workers"]) == (None, [], [])
    idle = {"source": "transcription", "used": False, "paused": False, "shadow": False, "due": None}
    assert idle in health["sources"]
    ledger.call("beat", beat="h#1", node="h", pid=1)
    ledger.heartbeat(slots=3)
    ledger.files("d1", 2)
    ledger.sql("update work_items set opened_at = now() - interval '2 min', available_at = now() - interval '1 min'"
               " where id = (select min(id) from work_items)")  # fmt: skip
    health = ledger.call("health")
    assert 0 <= health["tick"] < 60
    assert (health["beats"][0]["node"], health["beats"][0]["pid"]) == ("h", 1)
    assert [(worker["node"], worker["queues"], worker["slots"]) for worker in health["workers"]] == [
        ("n1", ["whisper"], 3)
    ]
    (source,) = [one for one in health["sources"] if one["source"] == "transcription"]
    assert source["used"]
    assert 60 <= source["due"] < 120
    ledger.kill_worker()
    assert ledger.call("health")["workers"] == []
