"""Jobs: one run a slot, reports, retention and the status page's numbers."""

from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import LiteralString

import psycopg
import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger, Row, at_once

# From where slots are counted, seconds since 1970.
MONDAY = datetime(2000, 1, 3, tzinfo=UTC).timestamp()
JOB: Row = {"job": "dispatch", "title": "書き起こし", "source": "transcription", "every": 3600, "at": 600}


def sync(ledger: Ledger, **changes: object) -> None:
    ledger.call("sync_jobs", jobs=[JOB | changes])


def begin(ledger: Ledger, worker: str = "w1", lease: int = 60) -> Row:
    return dict(ledger.call("begin_run", job="dispatch", worker=worker, lease=lease))


def end(ledger: Ledger, run: Row, status: str = "success", **params: object) -> Row:
    return dict(ledger.call("end_run", run_id=run["run_id"], status=status, **{"summary": {}, "keep": True, **params}))


def report(ledger: Ledger) -> Row:
    ledger.call("report")
    return ledger.sql("select * from job_status")[0]


def test_sync_keeps_what_a_person_edited(ledger: Ledger) -> None:
    sync(ledger)
    ledger.sql("update jobs set enabled = false, every = '2 hours'")
    sync(ledger, title="Transcription", every=1800)
    row = ledger.sql("select title, enabled, extract(epoch from every)::int as every from jobs")[0]
    assert row == {"title": "Transcription", "enabled": False, "every": 7200}


def test_one_run_a_slot(ledger: Ledger) -> None:
    sync(ledger)
    for _ in range(5):
        ledger.sql("update jobs set last_slot = null, last_started_at = null")
        ledger.sql("delete from runs")
        answers = at_once(*[lambda: begin(ledger)] * 8)
        assert Counter(answer["run"] for answer in answers) == {True: 1, False: 7}
        assert {answer["reason"] for answer in answers if not answer["run"]} == {"this slot has run"}


@pytest.mark.parametrize("keep", [True, False])
def test_begin_and_end_at_once(ledger: Ledger, keep: bool) -> None:  # noqa: FBT001 - pytest's parameter
    """Both write the job and its run; in different orders they would deadlock."""
    sync(ledger)
    run = begin(ledger)
    for _ in range(10):
        ledger.sql("update runs set lease_until = now() - interval '1 s'")
        answers = at_once(lambda: begin(ledger), partial(end, ledger, run, keep=keep), lambda: begin(ledger))
        assert sum(answer.get("run", False) for answer in answers) <= 1
        ledger.sql("update jobs set last_slot = null")
        ledger.sql("delete from runs")
        run = begin(ledger)


def test_a_slot_begins_in_the_wall_clock_of_its_zone(ledger: Ledger) -> None:
    sync(ledger, every=86_400, at=3 * 3600, zone="Asia/Tokyo")
    slot = datetime.fromisoformat(begin(ledger)["slot"]).astimezone(UTC)
    assert (slot.hour, slot.minute) == (18, 0)


def test_the_next_slot_runs(ledger: Ledger) -> None:
    sync(ledger)
    first = begin(ledger)
    end(ledger, first)
    ledger.sql("update jobs set last_slot = last_slot - interval '1 hour'")
    ledger.sql("update runs set slot = slot - interval '1 hour'")
    second = begin(ledger)
    assert set(second) == {"run", "run_id", "slot"}
    assert second["run"]
    assert second["run_id"] != first["run_id"]


def test_paused_and_unknown_jobs(ledger: Ledger) -> None:
    assert begin(ledger) == {"run": False, "reason": "there is no job dispatch"}
    sync(ledger)
    ledger.sql("update jobs set enabled = false")
    assert begin(ledger) == {"run": False, "reason": "paused"}


def test_a_job_that_does_not_catch_up(ledger: Ledger) -> None:
    # A slot that began half a day ago, whatever the time is now.
    sync(ledger, every=86_400, at=0, catch_up=False)
    ledger.sql("update jobs set at = (now() at time zone 'UTC')::time + case when (now() at time zone 'UTC')::time"
               " < '12:00' then 1 else -1 end * interval '12 hours'")  # fmt: skip
    ledger.sql("update jobs set created_at = now() - interval '9 days'")
    ledger.sql("update job_watch set changed_at = now() - interval '9 days'")
    assert ledger.heartbeat()["overdue"] == ["dispatch"]
    assert begin(ledger) == {"run": False, "reason": "its moment has passed"}
    # It counts as noticed: nobody is asked for it again until the next slot is overdue.
    ledger.sql("update jobs set nudged_at = null")
    assert ledger.heartbeat()["overdue"] == []
    ledger.sql("update jobs set catch_up = true")
    assert begin(ledger)["reason"] == "this slot has run"
    ledger.sql("update jobs set last_slot = null")
    assert begin(ledger)["run"]


def test_an_empty_run_leaves_no_row_but_its_slot_is_used(ledger: Ledger) -> None:
    sync(ledger)
    run = begin(ledger)
    assert end(ledger, run, keep=False) == {"ended": True}
    assert ledger.sql("select from runs") == []
    assert begin(ledger) == {"run": False, "reason": "this slot has run"}
    assert end(ledger, run) == {"ended": False}


def test_a_lost_run_may_run_again(ledger: Ledger) -> None:
    sync(ledger)
    first = begin(ledger)
    assert not begin(ledger)["run"]
    ledger.sql("update runs set lease_until = now() - interval '1 s'")
    assert ledger.call("reconcile")["runs_lost"] == 1
    second = begin(ledger, "w2")
    assert (second["run"], second["run_id"]) == (True, first["run_id"])
    assert end(ledger, second)["ended"]
    assert not begin(ledger)["run"]


def test_heartbeat_tells_which_ticks_are_overdue(ledger: Ledger) -> None:
    sync(ledger)
    assert ledger.heartbeat()["overdue"] == []
    ledger.sql("update jobs set last_slot = now() - interval '2 hours'")
    assert ledger.heartbeat()["overdue"] == ["dispatch"]
    assert ledger.heartbeat("w2")["overdue"] == []
    ledger.sql("update jobs set enabled = false, nudged_at = null")
    assert ledger.heartbeat()["overdue"] == []


@pytest.mark.parametrize(("every", "tick"), [(10, 10), (60, 60), (90, 60), (300, 60), (86_400, 60)])
def test_a_beat_that_ticks_is_not_overdue_wherever_in_the_slot_it_ticks(ledger: Ledger, every: int, tick: int) -> None:
    sync(ledger, every=every, at=0)
    for waited, overdue in ((0, []), (tick - 1, []), (tick + 5, []), (tick + 15, ["dispatch"])):
        # A slot began `waited` seconds ago, and the last one that has run is the one before.
        now = float(ledger.one("select extract(epoch from now())"))
        ledger.sql(
            "update jobs set at = %s * interval '1 s', last_slot = now() - %s * interval '1 s', nudged_at = null",
            (now - waited - MONDAY) % every, every + waited,
        )  # fmt: skip
        ledger.sql("update job_watch set changed_at = null")
        assert ledger.heartbeat()["overdue"] == overdue, waited


def test_what_was_edited_or_resumed_has_a_tick_to_come(ledger: Ledger) -> None:
    sync(ledger, every=60, at=0)
    ledger.sql("update jobs set last_slot = now() - interval '2 hours', enabled = false")
    ledger.sql("update jobs set enabled = true")
    assert ledger.heartbeat()["overdue"] == []
    ledger.sql("update job_watch set changed_at = changed_at - interval '90 s'")
    assert ledger.heartbeat()["overdue"] == ["dispatch"]


def test_only_jobs_that_the_worker_knows_are_overdue(ledger: Ledger) -> None:
    """A row of a job that left the timetable would be called overdue for ever."""
    sync(ledger)
    sync(ledger, job="old", source=None)
    for names, overdue in ((["dispatch", "new"], ["dispatch"]), ([], []), (None, ["dispatch", "old"])):
        ledger.sql("update jobs set last_slot = now() - interval '2 hours', nudged_at = null")
        assert ledger.heartbeat(jobs=names)["overdue"] == overdue


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("every = '1 month'", "every is 1 mon, but months and years are not all of one length"),
        ("every = '0'", "every is 00:00:00, but has to be at least 1 second"),
        ("every = '-1 day'", "has to be at least 1 second"),
        ("at = '1 hour'", "at is 01:00:00, but has to be at least 0 and less than every"),
        ("at = '-1 min'", "at is -00:01:00, but has to be at least 0"),
        ("zone = 'Tokyo'", "there is no time zone Tokyo; one is called Asia/Tokyo"),
        ("""filters = '{"device": "d1"}'""", "there is no filter device, only partition, since, until and date"),
        ("""filters = '{"partition": 7}'""", "the filter partition has to be a text, not 7"),
        ("""filters = '{"since": "soon"}'""", 'the filter since has to be a moment like .*, not "soon"'),
        ("""filters = '{"until": null}'""", "the filter until has to be a text, not null"),
        ("filters = '[]'", "filters have to be an object"),
    ],
)
def test_a_wrong_edit_is_refused_and_stops_nothing(direct_ledger: Ledger, change: LiteralString, words: str) -> None:
    sync(direct_ledger)
    with pytest.raises(psycopg.errors.CheckViolation, match=f"job dispatch: .*{words}"):
        direct_ledger.sql(f"update jobs set {change}")
    direct_ledger.file()
    direct_ledger.heartbeat()
    assert len(direct_ledger.claim()) == 1


def test_a_wrong_timetable_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="there is no time zone Tokyo"):
        sync(ledger, zone="Tokyo")
    assert ledger.sql("select from jobs") == []


def test_report_shows_failed_items_until_they_are_resolved(ledger: Ledger) -> None:
    sync(ledger)
    end(ledger, begin(ledger), message="2 of 2")
    row = report(ledger)
    assert (row["last_status"], row["title"], row["last_message"]) == ("success", "書き起こし", "2 of 2")
    key = ledger.file()
    ledger.end("fail", ledger.running(), error="音声が壊れています")
    row = report(ledger)
    assert row["last_status"] == "error"
    assert row["last_message"] == f"1 failed; the latest, {key}: 音声が壊れています"
    ledger.call("reprocess", source="transcription", keys=[key])
    row = report(ledger)
    again = f"1 failed and is being tried again; the latest, {key}: 音声が壊れています"
    assert (row["last_status"], row["last_message"]) == ("error", again)
    assert ledger.call("status")["failed"] == []
    run = ledger.running()
    assert report(ledger)["last_message"] == again
    ledger.end("retry", run, error="忙しい")
    assert report(ledger)["last_status"] == "error"
    ledger.end("fail", ledger.running(), error="まだ壊れています")
    assert report(ledger)["last_message"] == f"1 failed; the latest, {key}: まだ壊れています"
    ledger.call("reprocess", source="transcription", keys=[key])
    ledger.drain()
    assert report(ledger)["last_status"] == "success"


def test_report_of_some_that_failed_and_some_that_are_tried_again(ledger: Ledger) -> None:
    sync(ledger)
    ledger.files("d1", 3)
    for _ in range(3):
        ledger.end("fail", ledger.running(max_attempts=1))
    ledger.set_status("pending", "d1/2025-07-18T00:01:00Z")
    message = "3 failed, 1 of them being tried again; the latest, d1/2025-07-18T00:03:00Z: it broke"
    assert report(ledger)["last_message"] == message
    ledger.set_status("pending", "d1/2025-07-18T00:02:00Z")
    ledger.set_status("pending", "d1/2025-07-18T00:03:00Z")
    assert report(ledger)["last_message"].startswith("3 failed and are being tried again; the latest, d1/")


@pytest.mark.parametrize("how", ["skip", "skip_claimed", "reap", "elsewhere", "deleted", "start", "finish"])
def test_what_resolves_an_incident(ledger: Ledger, how: str) -> None:
    sync(ledger)
    key = ledger.file()
    if how == "reap":  # this is how one begins
        ledger.running(max_attempts=1)
        ledger.expire()
        ledger.heartbeat("w2")
        since = ledger.item(key)["incident_since"]
        assert since is not None
        ledger.set_status("pending")
        ledger.running(max_attempts=1)
        ledger.expire()
        ledger.heartbeat("w3")
        assert (ledger.state(key), ledger.item(key)["incident_since"]) == ("failed", since)
        return
    ledger.end("fail", ledger.running())
    if how == "elsewhere":
        ledger.set_status("completed")
    elif how == "deleted":
        ledger.sql("delete from audio_files")
    else:
        ledger.set_status("pending")
        assert ledger.item(key)["incident_since"] is not None
        if how == "finish":
            ledger.drain()
        elif how == "skip":
            ledger.end("skip", ledger.running())
        else:
            ledger.heartbeat()
            (item,) = ledger.claim()
            if how == "skip_claimed":
                ledger.call("skip_claimed", tasks=[item["task_id"]], reason="no recording")
            else:
                with ledger.altered(
                    "alter table audio_files disable trigger user", "alter table audio_files enable trigger user"
                ):
                    ledger.set_status("completed")
                assert not ledger.start_answer(item, item["task_id"])["started"]
    assert ledger.item(key)["incident_since"] is None
    assert ledger.one("select count(*) from work_items where incident_since is not null") == 0


def test_report_shows_a_run_that_failed(ledger: Ledger) -> None:
    sync(ledger)
    end(ledger, begin(ledger), "error", message="no database")
    row = report(ledger)
    assert (row["last_status"], row["last_message"]) == ("error", "no database")


def test_report_is_derived_and_may_be_repeated_by_many(ledger: Ledger) -> None:
    sync(ledger)
    end(ledger, begin(ledger))
    ledger.files("d1", 4)
    for how in ("fail", "skip", "finish"):
        run = ledger.running()
        ledger.finish(run) if how == "finish" else ledger.end(how, run)
    runs = [row["id"] for row in ledger.sql("select id from runs")]
    at_once(*[lambda: ledger.call("report", runs=runs)] * 6)
    counts = ledger.sql("select sum(finished) as f, sum(failed) as x, sum(skipped) as s from runs")
    assert counts == [{"f": 1, "x": 1, "s": 1}]
    assert ledger.call("report", runs=runs) == {"jobs": 0}


def test_a_runs_counts_stay_when_its_items_go_again(ledger: Ledger) -> None:
    sync(ledger)
    ledger.files("d1", 5)
    ledger.finish(ledger.running())
    ledger.end("fail", ledger.running())
    ledger.end("skip", ledger.running())
    ledger.running(max_attempts=1)
    ledger.expire()
    ledger.heartbeat("w2")
    ledger.sql("delete from workers")
    ledger.heartbeat()
    (item,) = ledger.claim(1)
    ledger.call("skip_claimed", tasks=[item["task_id"]], reason="no recording")
    ledger.sql("update runs set slot = slot - interval '1 hour'")
    ledger.set_status("pending")
    assert ledger.drain() == 5
    ledger.call("report", runs=[row["id"] for row in ledger.sql("select id from runs")])
    counts = ledger.sql("select dispatched, finished, failed, skipped from runs order by slot")
    assert counts == [
        {"dispatched": 5, "finished": 1, "failed": 2, "skipped": 2},
        {"dispatched": 5, "finished": 5, "failed": 0, "skipped": 0},
    ]


def test_what_the_app_ends_itself_counts_only_while_it_is_claimed(ledger: Ledger) -> None:
    sync(ledger)
    ledger.files("d1", 3)
    ledger.end("retry", ledger.running())
    ledger.finish(ledger.running())
    ledger.heartbeat()
    ledger.claim(1)
    ledger.set_status("completed")
    results = ledger.sql("select state, count(*) as n from run_results group by 1")
    assert results == [{"state": "completed", "n": 2}]


def test_a_finish_does_not_wait_for_who_holds_its_run(ledger: Ledger) -> None:
    sync(ledger)
    ledger.file()
    run = ledger.running()
    with ledger.app.transaction():
        ledger.sql("select from runs for update")
        assert ledger.finish(run)["written"]


def test_a_run_begins_anew_after_a_claim_was_entered(ledger: Ledger) -> None:
    sync(ledger)
    ledger.file()
    ledger.heartbeat()
    ledger.claim()
    begin(ledger)
    row = ledger.sql("select state, dispatched, finished_at from runs")[0]
    assert row == {"state": "running", "dispatched": 1, "finished_at": None}


def test_a_claim_that_takes_nothing_leaves_no_run(ledger: Ledger) -> None:
    sync(ledger)
    key = ledger.file()
    ledger.heartbeat()
    with ledger.app.transaction():
        ledger.sql("select from work_items where key = %s for update", key)
        answer = ledger.claim_answer()
    assert (answer["items"], answer["reason"]) == ([], "somebody else holds what is due")
    assert ledger.sql("select from runs") == []


def test_a_claim_is_entered_into_the_run_of_its_slot(ledger: Ledger) -> None:
    sync(ledger)
    run = begin(ledger)
    ledger.files("d1", 3)
    ledger.heartbeat()
    taken = ledger.claim(1, zone="Asia/Tokyo") + ledger.claim(1, zone="Asia/Tokyo")
    assert len(taken) == 2
    row = ledger.sql("select id, found, dispatched, dates, period_from, period_to from runs")[0]
    assert (row["id"], row["found"], row["dispatched"]) == (run["run_id"], 3, 2)
    assert [day.isoformat() for day in row["dates"]] == ["2025-07-18"]
    assert row["period_from"] == datetime(2025, 7, 18, 0, 1, tzinfo=UTC)
    assert row["period_to"] == datetime(2025, 7, 18, 0, 2, tzinfo=UTC)
    end(ledger, run, keep=False)
    assert ledger.one("select count(*) from runs") == 1


def test_claims_beginnings_and_ends_at_once(ledger: Ledger) -> None:
    """All of them write the job's run, and the job; none may wait for another in a circle."""
    sync(ledger)
    ledger.files("d1", 60)

    def tick() -> None:
        run = begin(ledger)
        if run["run"]:
            end(ledger, run, keep=False)

    for _ in range(12):
        ledger.heartbeat(slots=2)
        ledger.sql("update jobs set last_slot = null")
        ledger.sql("delete from runs")
        at_once(
            partial(ledger.claim, 4), tick, partial(ledger.claim, 2), tick, partial(ledger.call, "report", runs=[1])
        )
        tasks = [str(row["task_id"]) for row in ledger.sql("select task_id from work_items where state = 'queued'")]
        ledger.call("release", tasks=tasks)


def test_a_paused_job_claims_nothing(ledger: Ledger) -> None:
    sync(ledger)
    ledger.sql("update jobs set enabled = false")
    ledger.file()
    ledger.heartbeat()
    assert ledger.claim_answer()["reason"] == "paused"


def test_a_jobs_own_filters(ledger: Ledger) -> None:
    sync(ledger)
    ledger.sql("""update jobs set filters = '{"partition": "b"}'""")
    ledger.file("a")
    ledger.file("b")
    ledger.heartbeat()
    assert [item["partition"] for item in ledger.claim()] == ["b"]


def test_rows_of_items(ledger: Ledger) -> None:
    ledger.file("a", path="a.wav")
    ledger.file("b", path="b.wav")
    ids = [row["id"] for row in ledger.sql("select id from work_items order by id")]
    rows = ledger.call("rows", source="transcription", ids=ids[:1])
    assert [(row["id"], row["row"]["file_path"]) for row in rows] == [(ids[0], "a.wav")]


def test_retention_keeps_incidents_and_waiting_work(ledger: Ledger) -> None:
    sync(ledger)
    end(ledger, begin(ledger))
    ledger.files("d1", 3)
    ledger.finish(ledger.running())
    ledger.end("fail", ledger.running())
    ledger.kill_worker()
    nothing = {"items": 0, "runs": 0, "workers": 0, "more": False}
    assert ledger.call("retention", items_days=1, runs_days=1) == nothing
    ledger.sql("update work_items set finished_at = now() - interval '2 days', opened_at = now() - interval '2 days'")
    ledger.sql("update runs set started_at = now() - interval '2 days'")
    ledger.sql("update workers set expires_at = now() - interval '2 days'")
    gone = {"items": 1, "runs": 1, "workers": 1, "more": False}
    assert ledger.call("retention", items_days=1, runs_days=1) == gone
    assert ledger.states() == {"failed": 1, "pending": 1}
    assert ledger.sql("select from run_results") == []
    assert {source["opened"] for source in ledger.call("reconcile")["sources"]} == {0}


def test_retention_in_batches_and_without_waiting(ledger: Ledger) -> None:
    sync(ledger)
    ledger.files("d1", 5)
    ledger.drain()
    ledger.sql("update work_items set finished_at = now() - interval '2 days'")
    with ledger.app.transaction():
        ledger.sql("select from work_items where key = 'd1/2025-07-18T00:05:00Z' for update")
        answers = [ledger.call("retention", items_days=1, runs_days=1, limit=2) for _ in range(3)]
    assert [(answer["items"], answer["more"]) for answer in answers] == [(2, True), (2, True), (0, False)]
    assert ledger.call("retention", items_days=1, runs_days=1)["items"] == 1


def test_status(ledger: Ledger) -> None:
    sync(ledger)
    ledger.files("d1", 4)
    ledger.finish(ledger.running())
    ledger.end("fail", ledger.running(), error="壊れた")
    ledger.running()
    status = ledger.call("status")
    (source,) = [s for s in status["sources"] if s["source"] == "transcription"]
    assert [source[state] for state in ("pending", "queued", "processing", "completed", "failed")] == [1, 0, 1, 1, 1]
    assert source["oldest_due"] is not None
    ledger.heartbeat("w2")
    # It runs since its last heartbeat.
    workers = ledger.call("status")["workers"]
    assert [(worker["id"], worker["busy"]) for worker in workers] == [("w1", 1), ("w2", 0)]
    assert [job["job"] for job in status["jobs"]] == ["dispatch"]
    assert [item["key"] for item in status["running"]] == ["d1/2025-07-18T00:03:00Z"]
    assert [item["last_error"] for item in status["failed"]] == ["壊れた"]
