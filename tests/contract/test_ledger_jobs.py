"""Jobs: one run a slot, reports, retention and the status page's numbers."""

from collections import Counter
from datetime import UTC, datetime
from functools import partial

import pytest

from tests.support.ledger import Ledger, Row, at_once

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
    sync(ledger, title="Transcription", every=60)
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


def test_the_next_slot_runs_and_knows_the_previous_one(ledger: Ledger) -> None:
    sync(ledger)
    first = begin(ledger)
    end(ledger, first)
    ledger.sql("update jobs set last_slot = last_slot - interval '1 hour'")
    ledger.sql("update runs set slot = slot - interval '1 hour'")
    second = begin(ledger)
    assert second["run"]
    assert datetime.fromisoformat(second["previous"]) < datetime.fromisoformat(second["slot"])


def test_paused_and_unknown_jobs(ledger: Ledger) -> None:
    assert begin(ledger) == {"run": False, "reason": "there is no job dispatch"}
    sync(ledger)
    ledger.sql("update jobs set enabled = false")
    assert begin(ledger) == {"run": False, "reason": "paused"}


def test_a_job_that_does_not_catch_up(ledger: Ledger) -> None:
    # A slot that began half a day ago, whatever the time is now.
    sync(ledger, every=86_400, at=0, catch_up=False)
    ledger.sql("update jobs set at = (now() at time zone 'UTC')::time - interval '12 hours' + interval '24 hours'")
    ledger.sql("update jobs set at = at - interval '24 hours' where at >= interval '24 hours'")
    assert begin(ledger) == {"run": False, "reason": "its moment has passed"}
    ledger.sql("update jobs set catch_up = true")
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
    ledger.drain()
    assert report(ledger)["last_status"] == "success"


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
    assert ledger.call("retention", items_days=1, runs_days=1) == {"items": 0, "runs": 0, "workers": 0}
    ledger.sql("update work_items set finished_at = now() - interval '2 days', opened_at = now() - interval '2 days'")
    ledger.sql("update runs set started_at = now() - interval '2 days'")
    ledger.sql("update workers set expires_at = now() - interval '2 days'")
    assert ledger.call("retention", items_days=1, runs_days=1) == {"items": 1, "runs": 1, "workers": 1}
    assert ledger.states() == {"failed": 1, "pending": 1}
    assert ledger.call("reconcile")["sources"][0]["opened"] == 0


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
    assert [worker["id"] for worker in status["workers"]] == ["w1"]
    assert [job["job"] for job in status["jobs"]] == ["dispatch"]
    assert [item["key"] for item in status["running"]] == ["d1/2025-07-18T00:03:00Z"]
    assert [item["last_error"] for item in status["failed"]] == ["壊れた"]
