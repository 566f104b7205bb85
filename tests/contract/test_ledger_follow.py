"""What the app does to its rows, and what reconcile mends when the triggers did not see it."""

from functools import partial
from typing import LiteralString

import psycopg
import pytest

from tests.support.ledger import NOON, Ledger, at_once

TRIGGERS_OFF: LiteralString = "alter table audio_files disable trigger user"
TRIGGERS_ON: LiteralString = "alter table audio_files enable trigger user"


def reconcile(ledger: Ledger) -> dict[str, int]:
    (answer,) = [s for s in ledger.call("reconcile")["sources"] if s["source"] == "transcription"]
    return {"opened": answer["opened"], "closed": answer["closed"]}


# --- triggers -------------------------------------------------------------------------------------------------------


def test_app_sets_a_finished_row_back(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.drain()
    ledger.set_status("pending")
    item = ledger.item(key)
    assert (item["state"], item["revision"], item["tries"]) == ("pending", 2, 0)
    assert ledger.drain() == 1


@pytest.mark.parametrize(("status", "state"), [("completed", "completed"), ("failed", "failed"), ("other", "skipped")])
def test_app_finishes_a_waiting_row_itself(ledger: Ledger, status: str, state: str) -> None:
    key = ledger.file()
    ledger.set_status(status)
    item = ledger.item(key)
    assert (item["state"], item["last_error"]) == (state, f"the row was set to '{status}' elsewhere")
    ledger.heartbeat()
    assert ledger.claim() == []


def test_app_finishes_a_failed_row_itself(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("fail", ledger.running())
    ledger.set_status("completed")
    assert ledger.state(key) == "completed"


def test_app_deletes_rows(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.heartbeat()
    ledger.claim(1)
    ledger.sql("delete from audio_files")
    assert ledger.states() == {"skipped": 3}


def test_app_changes_a_key(ledger: Ledger) -> None:
    old = ledger.file("d1")
    ledger.sql("update audio_files set device_id = 'd2'")
    assert ledger.state(old) == "skipped"
    assert ledger.state("d2/" + NOON) == "pending"


def test_upsert(ledger: Ledger) -> None:
    key = ledger.file(status="completed")
    ledger.sql(
        "insert into audio_files values ('d1', %s, 'b.wav', 'pending'), ('d2', %s, 'c.wav', 'pending')"
        " on conflict (device_id, recorded_at) do update set transcriptions_status = 'pending'",
        NOON,
        NOON,
    )
    assert (ledger.state(key), ledger.state("d2/" + NOON)) == ("pending", "pending")


def test_rolled_back_rows_leave_nothing(ledger: Ledger) -> None:
    with ledger.app.transaction(force_rollback=True):
        ledger.file()
    assert ledger.sql("select from work_items") == []


def test_trouble_in_the_trigger_never_fails_the_apps_statement(ledger: Ledger) -> None:
    with ledger.altered("alter table work_items rename to mislaid", "alter table mislaid rename to work_items"):
        ledger.sql("insert into audio_files values ('d1', %s, 'a.wav', 'pending')", NOON)
        ledger.sql("update audio_files set file_path = 'b.wav'")
        ledger.sql("insert into audio_files values ('d2', %s, 'a.wav', 'pending')", NOON)
        ledger.sql("delete from audio_files where device_id = 'd2'")
    assert ledger.sql("select from work_items") == []
    assert reconcile(ledger) == {"opened": 1, "closed": 0}
    assert ledger.drain() == 1


def test_an_item_that_is_held_does_not_use_up_the_apps_time(ledger: Ledger) -> None:
    """A statement's own deadline is no error that a trigger may catch; so it must not wait that long."""
    key = ledger.file()
    ledger.drain()
    with psycopg.connect(ledger.url) as other, psycopg.connect(ledger.url, autocommit=True) as app:
        other.execute("select from work_items where key = %s for update", [key])
        warnings: list[str | None] = []
        app.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
        app.execute("set statement_timeout = '1s'")
        app.execute("update audio_files set transcriptions_status = 'pending'")
        assert warnings == [
            "toban: UPDATE on public.audio_files was not followed: canceling statement due to lock timeout"
        ]
        # Nor does reconcile wait, and what it leaves it mends the next time.
        assert reconcile(ledger) == {"opened": 0, "closed": 0}
    assert reconcile(ledger) == {"opened": 1, "closed": 0}
    assert ledger.state(key) == "pending"


def test_app_updates_against_finishes(ledger: Ledger) -> None:
    """Whichever comes first, a row that says pending afterwards has an item that waits; and nobody is made to fail."""
    ledger.files("d1", 12)
    bulk, single = Ledger(ledger.db, ledger.url), Ledger(ledger.db, ledger.url)
    keys = [row["key"] for row in ledger.sql("select key from work_items")]

    def in_bulk() -> None:
        bulk.sql("update audio_files set file_path = file_path || 'x'")
        bulk.set_status("pending")

    def one_by_one() -> None:
        for key in keys:
            single.set_status("pending", key)

    for _ in range(5):
        ledger.heartbeat(slots=12)
        runs = [ledger.start(item) for item in ledger.claim()]
        at_once(*[partial(ledger.finish, run) for run in runs[:6]], in_bulk, one_by_one)
        assert ledger.consistent()
        ledger.call("release", node="n1")
        assert ledger.states() == {"pending": 12}
    bulk.close()
    single.close()
    assert ledger.drain() == 12


def test_every_session_makes_the_same_key(ledger: Ledger) -> None:
    ledger.sql("create table toy (day date, at timestamptz, state text, primary key (day, at))")
    ledger.one("select toban_watch('toy', 'toy', array['day', 'at'], 'state')")
    for number, style in enumerate(["ISO, MDY", "SQL, DMY", "German", "Postgres, MDY"]):
        with psycopg.connect(ledger.url, autocommit=True) as session:
            session.execute(
                "select set_config('timezone', %s, false)", [["Asia/Tokyo", "America/New_York"][number % 2]]
            )
            session.execute("select set_config('datestyle', %s, false)", [style])
            session.execute(
                "insert into toy values (date '2025-07-18', timestamptz '2025-07-18 03:00:00.5+00', 'pending')"
            )
            session.execute("update toy set state = 'completed'")
            session.execute("delete from toy")
    rows = ledger.sql("select key, ref, revision from work_items")
    ref = {"day": "2025-07-18", "at": "2025-07-18T03:00:00.5Z"}
    assert rows == [{"key": "2025-07-18/2025-07-18T03:00:00.5Z", "ref": ref, "revision": 4}]


# --- reconcile ------------------------------------------------------------------------------------------------------


def test_reconcile_after_truncate(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.sql("truncate audio_files")
    assert reconcile(ledger) == {"opened": 0, "closed": 3}
    assert ledger.states() == {"skipped": 3}


def test_reconcile_what_disabled_triggers_missed(ledger: Ledger) -> None:
    ledger.files("gone", 2)
    done = ledger.file("done")
    with ledger.altered(TRIGGERS_OFF, TRIGGERS_ON):
        new = ledger.file("new")
        ledger.sql("delete from audio_files where device_id = 'gone'")
        ledger.set_status("completed", done)
    assert reconcile(ledger) == {"opened": 1, "closed": 3}
    assert (ledger.state(new), ledger.state(done)) == ("pending", "completed")
    assert reconcile(ledger) == {"opened": 0, "closed": 0}


def test_reconcile_a_failed_row_that_the_app_mended(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("fail", ledger.running())
    with ledger.altered(TRIGGERS_OFF, TRIGGERS_ON):
        ledger.set_status("completed")
    assert reconcile(ledger) == {"opened": 0, "closed": 1}
    assert ledger.state(key) == "completed"


def test_reconcile_leaves_running_work_alone(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    assert reconcile(ledger) == {"opened": 0, "closed": 0}
    assert ledger.finish(run)["written"]


def test_reconcile_in_batches(ledger: Ledger) -> None:
    ledger.files("gone", 5)
    with ledger.altered(TRIGGERS_OFF, TRIGGERS_ON):
        ledger.sql("delete from audio_files")
        ledger.files("new", 5)
    rounds = []
    for _ in range(4):
        answer = ledger.call("reconcile", limit=2)
        (source,) = [s for s in answer["sources"] if s["source"] == "transcription"]
        rounds.append((source["opened"], source["closed"], answer["more"]))
    assert rounds == [(2, 2, True), (2, 2, True), (1, 1, False), (0, 0, False)]
    assert ledger.states() == {"pending": 5, "skipped": 5}


def test_reconcile_leaves_alone_what_somebody_holds(ledger: Ledger) -> None:
    held, free = ledger.file("held"), ledger.file("free")
    with ledger.altered(TRIGGERS_OFF, TRIGGERS_ON):
        ledger.set_status("completed")
    with psycopg.connect(ledger.url) as other:
        other.execute("select from work_items where key = %s for update", [held])
        assert reconcile(ledger) == {"opened": 0, "closed": 1}
    assert (ledger.state(held), ledger.state(free)) == ("pending", "completed")
    assert reconcile(ledger) == {"opened": 0, "closed": 1}
