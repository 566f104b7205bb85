"""Heartbeats, leases, and what is taken back. Leases are ended by hand: no test waits for one."""

import contextlib
import itertools
import threading
import uuid
from functools import partial

from app.errors import Transient
from tests.support.ledger import Attempt, Ledger, at_once


def lease_of(ledger: Ledger, key: str) -> object:
    return ledger.item(key)["lease_until"]


def test_heartbeat_extends_lease_and_keeps_progress(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    ledger.sql("update work_items set lease_until = now() + interval '1 s'")
    answer = ledger.heartbeat(items=[{"id": run.id, "attempt": 1, "progress": {"seconds": 30}}])
    assert (answer["lost"], answer["reaped"]) == ([], 0)
    assert ledger.item(key)["progress"] == {"seconds": 30}
    assert ledger.one("select lease_until > now() + interval '50 s' from work_items")


def test_lease_is_not_extended_without_progress(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    beat = {"id": run.id, "attempt": 1, "progress": {"seconds": 30}}
    ledger.heartbeat(items=[beat])
    ledger.sql("update work_items set progress_at = now() - interval '1 h'")
    before = lease_of(ledger, key)
    ledger.heartbeat(items=[beat])
    assert lease_of(ledger, key) == before
    ledger.heartbeat(items=[beat | {"progress": {"seconds": 31}}])
    assert lease_of(ledger, key) != before


def test_lease_is_not_extended_after_run_until(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    ledger.sql("update work_items set run_until = now() - interval '1 s'")
    before = lease_of(ledger, key)
    ledger.heartbeat(items=[{"id": run.id, "attempt": 1, "progress": {"seconds": 1}}])
    assert lease_of(ledger, key) == before
    ledger.expire()
    ledger.heartbeat(items=[{"id": run.id, "attempt": 1, "progress": {"seconds": 2}}])
    assert ledger.item(key)["last_error"] == "try 1 of 5: it ran longer than allowed on w1"


def test_heartbeat_names_the_items_that_its_worker_lost(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    ledger.heartbeat(slots=2)
    kept, lost = [ledger.start(item) for item in ledger.claim(2)]
    ledger.sql("update work_items set lease_until = now() - interval '1 s' where id = %s", lost.id)
    ledger.heartbeat("w2")
    beats = [{"id": run.id, "attempt": 1, "progress": None} for run in (kept, lost)]
    assert ledger.heartbeat(slots=2, items=beats)["lost"] == [lost.id]
    assert ledger.heartbeat("w2", items=beats)["lost"] == [kept.id, lost.id]


def test_expired_running_item_goes_again_until_its_tries_are_used_up(ledger: Ledger) -> None:
    key = ledger.file()
    for number in (1, 2):
        ledger.running(max_attempts=3)
        ledger.expire()
        assert ledger.heartbeat("w2")["reaped"] == 1
        item = ledger.item(key)
        assert (item["state"], item["tries"], item["last_error_kind"]) == ("pending", number, "lost")
        ledger.sql("update work_items set available_at = now()")
    ledger.running(max_attempts=3)
    ledger.expire()
    ledger.heartbeat("w2")
    item = ledger.item(key)
    assert (item["state"], item["marked"]) == ("failed", True)
    assert item["last_error"].startswith("given up after 3 of 3 tries: its worker w1 gave no more news")
    assert ledger.status_of(key) == "failed"


def test_last_try_of_a_row_that_became_pending_again_is_not_the_end(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.running(max_attempts=1)
    ledger.sql("update audio_files set file_path = 'new.wav'")
    ledger.expire()
    ledger.heartbeat("w2")
    assert (ledger.state(key), ledger.item(key)["tries"]) == ("pending", 0)
    assert ledger.status_of(key) == "pending"


def test_queued_item_stays_while_its_worker_is_busy(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    run = ledger.running()
    ledger.claim()
    ledger.expire()
    ledger.sql("update workers set last_claimed_at = now() - interval '1 min'")
    busy = [{"id": run.id, "attempt": 1, "progress": {"seconds": 1}}]
    assert ledger.heartbeat(items=busy)["reaped"] == 0
    assert ledger.states() == {"processing": 1, "queued": 1}


def test_lost_message_is_found_when_a_worker_stands_idle(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    ledger.claim()
    ledger.expire()
    assert ledger.heartbeat()["reaped"] == 0
    ledger.sql("update workers set idle_since = now() - interval '11 s'")
    assert ledger.heartbeat()["reaped"] == 1
    item = ledger.item(key)
    assert (item["state"], item["tries"], item["last_error"]) == ("pending", 0, None)


def test_lost_message_is_found_when_no_worker_is_left(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    ledger.claim()
    ledger.expire()
    ledger.kill_worker()
    assert ledger.heartbeat("other", queues=["gpt"])["reaped"] == 1
    assert ledger.state(key) == "pending"


def test_lost_message_is_found_when_a_later_one_overtakes_it(ledger: Ledger) -> None:
    first, second = ledger.file("a"), ledger.file("b")
    ledger.heartbeat()
    ledger.claim(1)
    ledger.sql("update work_items set lease_until = now() - interval '1 s' where key = %s", first)
    (later,) = ledger.claim(1)
    assert later["key"] == second
    run = ledger.start(later)
    busy = [{"id": run.id, "attempt": 1, "progress": None}]
    assert ledger.heartbeat(items=busy)["reaped"] == 1
    assert ledger.states() == {"pending": 1, "processing": 1}


def test_start_and_finish_keep_the_idle_clock(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    assert ledger.one("select idle_since from workers") is None
    ledger.finish(run)
    assert ledger.one("select idle_since from workers") is not None


def test_goodbye(ledger: Ledger) -> None:
    ledger.heartbeat()
    assert ledger.call("goodbye", worker="w1") == {"gone": 1}
    ledger.file()
    assert ledger.claim_answer()["slots"] == 0


def test_hungry_says_whether_more_should_be_claimed(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    run = ledger.running()
    assert ledger.finish(run)["hungry"]
    run = ledger.running()
    ledger.claim(1)
    assert not ledger.finish(run)["hungry"]
    ledger.drain()
    assert not ledger.call("release", tasks=[])["released"]


def test_running_item_whose_row_is_gone_is_given_up(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.running(max_attempts=1)
    ledger.sql("truncate audio_files")
    ledger.expire()
    assert ledger.heartbeat("w2")["reaped"] == 1
    assert ledger.state(key) == "failed"
    ledger.call("reconcile")
    assert (ledger.state(key), ledger.item(key)["last_error"]) == ("skipped", "the row is gone")


def test_a_table_that_was_dropped_does_not_stop_the_heartbeats(ledger: Ledger) -> None:
    ledger.sql("create table toy (id text primary key, state text)")
    ledger.one("select toban_watch('toy', 'toy', array['id'], 'state')")
    ledger.sql("insert into toy values ('x', 'pending')")
    key = ledger.file()
    ledger.heartbeat(slots=2)
    ledger.start(ledger.claim(source="toy", max_attempts=1)[0])
    ledger.start(ledger.claim(max_attempts=1)[0])
    ledger.sql("drop table toy")
    ledger.expire()
    assert ledger.heartbeat("w2")["reaped"] == 2
    assert (ledger.state("x", "toy"), ledger.state(key)) == ("failed", "failed")
    sources = {source.pop("source"): source for source in ledger.call("reconcile")["sources"]}
    assert 'relation "public.toy" does not exist' in sources["toy"]["error"]
    assert sources["transcription"] == {"opened": 0, "closed": 0}


def test_heartbeat_does_not_wait_for_the_app(ledger: Ledger) -> None:
    """The app holds one row, and by its trigger the item; the other items' leases go on."""
    ledger.files("d1", 2)
    ledger.heartbeat(slots=2)
    runs = [ledger.start(item) for item in ledger.claim(2)]
    ledger.sql("update work_items set lease_until = now() + interval '1 s'")
    with ledger.app.transaction():
        ledger.sql("update audio_files set file_path = 'new.wav' where recorded_at = %s", runs[0].answer["at"])
        beats = [{"id": run.id, "attempt": 1, "progress": {"seconds": 1}} for run in runs]
        assert ledger.heartbeat(slots=2, items=beats)["lost"] == []
    extended = ledger.sql("select id from work_items where lease_until > now() + interval '50 s'")
    assert [row["id"] for row in extended] == [runs[1].id]


def test_heartbeat_and_finish_at_once(ledger: Ledger) -> None:
    """Both write the worker's row and the item; in different orders they would deadlock."""
    ledger.files("d1", 25)
    for _ in range(25):
        run = ledger.running()
        beat = {"id": run.id, "attempt": run.attempt, "progress": {"seconds": 1}}
        beats = [partial(ledger.heartbeat, items=[beat])] * 2
        answers = at_once(*beats, partial(ledger.finish, run))
        assert answers[2]["written"]
    assert ledger.states() == {"completed": 25}


def test_everything_at_once_loses_nothing(ledger: Ledger) -> None:
    """The app resets and changes rows, three in a transaction, while they are claimed, run, reaped and reprocessed."""
    ledger.files("d1", 12)
    ledger.heartbeat(slots=6)
    stop = threading.Event()

    def app() -> None:
        helper = Ledger(ledger.db, ledger.url)
        for number in itertools.count():
            if stop.is_set():
                break
            with helper.app.transaction():
                for minute in range(number % 12 + 1, number % 12 + 4):
                    helper.sql(
                        "update audio_files set transcriptions_status = 'pending', file_path = %s"
                        " where extract(minute from recorded_at) = %s",
                        f"{number}.wav",
                        minute,
                    )
        helper.close()

    def work() -> None:
        for _ in range(6):
            for item in ledger.claim(3):
                token = str(uuid.uuid4())
                answer = ledger.start_answer(item, token)
                if answer["started"]:
                    ledger.finish(Attempt(item["id"], answer["attempt"], token, answer))
            ledger.expire()
            ledger.heartbeat("w2", 6)
            with contextlib.suppress(Transient):  # it may give up, but never makes the app's statement fail
                ledger.call("reprocess", source="transcription", keys=["d1/2025-07-18T00:05:00Z"])
            ledger.call("reconcile")

    def work_and_stop() -> None:
        try:
            work()
        finally:
            stop.set()

    at_once(app, work_and_stop, work, work)
    assert ledger.consistent()
    ledger.expire()
    ledger.sql("delete from workers")
    ledger.heartbeat("w3")
    ledger.sql("update work_items set available_at = now() where state = 'pending'")
    ledger.drain()
    assert ledger.states() == {"completed": 12}
    assert ledger.consistent()
