"""A job's state, of the timetable's jobs and of those that report themselves."""

from datetime import datetime, timedelta
from typing import LiteralString

import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger
from tests.support.monitor import alive, look, report, state, sync


def age(ledger: Ledger, since: str, job: str = "dispatch") -> None:
    """The job of the timetable last ran so long ago (and every hour since, were it alive)."""
    ledger.sql("update jobs set last_slot = now() - %s::interval, created_at = now() - interval '9 days'", since)
    ledger.sql("update job_watch set changed_at = null")


@pytest.mark.parametrize(
    ("since", "expected"), [("30 min", "ok"), ("1 hour 20 min", "late"), ("3 hours", "missed"), ("9 days", "missed")]
)
def test_a_job_that_is_not_run_is_late_then_missed(ledger: Ledger, since: str, expected: str) -> None:
    sync(ledger)
    # Its slots begin at the minute at which it last ran, whatever the time is now.
    ledger.sql(
        "update jobs set at = date_trunc('s', m - date_trunc('hour', m)) from (select now() - %s::interval) x (m)",
        since,
    )
    age(ledger, since)
    assert state(ledger, "dispatch")["state"] == expected


def test_a_run_that_goes_on_is_running_then_overran(ledger: Ledger) -> None:
    sync(ledger)
    ledger.sql("update jobs set last_slot = null")
    ledger.call("begin_run", job="dispatch", worker="w1", lease=36_000)
    assert state(ledger, "dispatch")["state"] == "running"
    ledger.sql("update runs set started_at = now() - interval '2 hours'")
    assert state(ledger, "dispatch")["state"] == "overran"
    ledger.sql("update runs set lease_until = now() - interval '1 s'")
    assert state(ledger, "dispatch")["state"] != "overran"  # its worker is dead: nothing runs


def test_a_job_fails_and_succeeds(ledger: Ledger) -> None:
    sync(ledger)
    for number in (1, 2):
        ledger.sql("update jobs set last_slot = null")
        run = ledger.call("begin_run", job="dispatch", worker="w1", lease=60)
        ledger.call("end_run", run_id=run["run_id"], status="error", message="壊れた", summary={})
        found = state(ledger, "dispatch")
        assert (found["state"], found["fails"], found["message"]) == ("failed", number, "壊れた")
        ledger.sql("delete from runs")
    ledger.sql("update jobs set last_slot = null")
    run = ledger.call("begin_run", job="dispatch", worker="w1", lease=60)
    ledger.call("end_run", run_id=run["run_id"], status="success", keep=False, summary={})
    assert (state(ledger, "dispatch")["state"], state(ledger, "dispatch")["fails"]) == ("ok", 0)


def test_a_pause_hides_everything_and_its_end_forgives_what_was_due(ledger: Ledger) -> None:
    sync(ledger)
    age(ledger, "9 days")
    ledger.call("edit_job", job="dispatch", enabled=False)
    assert state(ledger, "dispatch")["state"] == "paused"
    ledger.sql("update jobs set enabled = true")  # by hand, as the docs say
    assert state(ledger, "dispatch")["state"] == "ok"
    ledger.call("edit_job", job="dispatch", every=60)
    assert state(ledger, "dispatch")["state"] == "ok"


def test_the_runs_of_a_job_are_shown(ledger: Ledger) -> None:
    sync(ledger)
    for number in range(25):
        ledger.sql(
            "insert into runs (job, slot, state, lease_until, started_at, finished_at, found, dispatched, filters)"
            " values ('dispatch', now() - %s * interval '1 hour', 'success', now(), now(), now() + interval '2 s', 5,"
            ' 3, \'{"partition": "d1"}\')',
            number,
        )
    found = state(ledger, "dispatch")
    assert len(found["runs"]) == 20
    assert found["runs"][0]["slot"] > found["runs"][1]["slot"]
    first = found["runs"][0]
    assert (first["found"], first["dispatched"], first["seconds"]) == (5, 3, 2)
    assert first["filters"] == {"partition": "d1"}
    assert found["durations"] == [2] * 25
    assert found["settings"]["every"] == 3600
    assert found["settings"]["source"] == "transcription"


def test_a_job_that_left_the_timetable_is_not_shown(ledger: Ledger) -> None:
    sync(ledger)
    assert ledger.call("job_states", timetable=["another"])["jobs"] == []
    assert ledger.call("job_states", timetable=["dispatch"])["jobs"]


# --- jobs that report themselves ------------------------------------------------------------------------------------


def test_a_report_is_one_row_of_job_status(ledger: Ledger) -> None:
    first = report(ledger, "success", message="12件完了")
    second = report(ledger, "error", message="失敗しました")
    assert second == first
    [row] = ledger.sql("select *, now() - last_finished_at < interval '1 min' as fresh from job_status")
    assert str(row["id"]) == first["id"]
    assert (row["title"], row["last_status"], row["last_message"]) == ("夜間バックアップ", "error", "失敗しました")
    assert row["fresh"]
    report(ledger)
    assert ledger.one("select last_message from job_status") is None


def test_a_report_keeps_the_tool_that_it_does_not_name(ledger: Ledger) -> None:
    tool = "00000000-0000-0000-0000-000000000001"
    report(ledger, tool_id=tool)
    report(ledger)
    assert str(ledger.one("select tool_id from job_status")) == tool
    report(ledger, tool_id=None)
    assert ledger.one("select tool_id from job_status") is None
    with pytest.raises(Permanent):
        report(ledger, tool_id="no uuid")


def test_a_start_never_reaches_job_status(ledger: Ledger) -> None:
    assert report(ledger, "running", run_id="r1") == {"id": None, "job_key": "nightly"}
    assert ledger.sql("select from job_status") == []
    assert state(ledger, "nightly")["state"] == "running"
    answer = report(ledger, run_id="r1", exit_code=0)
    assert report(ledger, "running", run_id="r2")["id"] == answer["id"]
    assert ledger.one("select last_status from job_status") == "success"


def test_start_and_finish_of_a_run_are_paired(ledger: Ledger) -> None:
    started = datetime.fromisoformat(str(ledger.one("select now() - interval '90 s'")))
    report(ledger, "running", run_id="r1", started_at=started.isoformat())
    report(
        ledger, "error", run_id="r1", exit_code=3, log="last words",
        finished_at=(started + timedelta(seconds=60)).isoformat(),
    )  # fmt: skip
    found = state(ledger, "nightly")
    assert found["durations"] == [60]
    assert [(run["state"], run["exit_code"]) for run in found["runs"]] == [("error", 3)]
    assert (found["state"], found["exit_code"], found["log_tail"]) == ("failed", 3, "last words")


def test_a_finish_told_twice_counts_once_and_a_late_start_starts_nothing(ledger: Ledger) -> None:
    for _ in range(3):
        report(ledger, "error", run_id="r1")
    assert state(ledger, "nightly")["fails"] == 1
    report(ledger, "running", run_id="r1")
    assert state(ledger, "nightly")["state"] == "failed"
    report(ledger, "error", run_id="r2")
    assert state(ledger, "nightly")["fails"] == 2


def test_fail_after(ledger: Ledger) -> None:
    states = []
    for _ in range(4):
        report(ledger, "error", fail_after=3)
        states.append(state(ledger, "nightly")["state"])
    assert states == ["ok", "ok", "failed", "failed"]
    report(ledger)
    assert state(ledger, "nightly")["state"] == "ok"


MISSED: LiteralString = "update job_watch set last_started_at = now() - %s::interval, changed_at = null"


@pytest.mark.parametrize(
    ("since", "expected"), [("59 min", "ok"), ("62 min", "late"), ("69 min", "late"), ("71 min", "missed")]
)
def test_expected_period_and_grace(ledger: Ledger, since: str, expected: str) -> None:
    report(ledger, expect_every=3600, grace=600)
    ledger.sql(MISSED, since)
    assert state(ledger, "nightly")["state"] == expected


def test_without_a_period_nothing_is_expected(ledger: Ledger) -> None:
    report(ledger)
    ledger.sql(MISSED, "900 days")
    assert state(ledger, "nightly")["state"] == "ok"


def test_a_run_of_a_reported_job_overruns(ledger: Ledger) -> None:
    report(ledger, "running", run_id="r1", expect_every=3600, grace=600)
    ledger.sql("update job_reports set started_at = now() - interval '69 min'")
    ledger.sql("update job_watch set last_started_at = (select started_at from job_reports)")
    assert state(ledger, "nightly")["state"] == "running"
    ledger.sql("update job_reports set started_at = now() - interval '71 min'")
    ledger.sql("update job_watch set last_started_at = (select started_at from job_reports)")
    assert state(ledger, "nightly")["state"] == "overran"


def test_a_clock_that_goes_fast_does_not_hide_a_missed_run(ledger: Ledger) -> None:
    report(ledger, expect_every=3600, finished_at="2999-01-01T00:00:00Z")
    assert ledger.one("select last_started_at <= now() from job_watch")


def test_a_script_that_writes_job_status_itself_is_watched_too(ledger: Ledger) -> None:
    ledger.sql(
        "insert into job_status (job_key, title, last_status, last_finished_at) values ('old', 'Old', 'error', now())"
    )
    assert state(ledger, "old")["state"] == "failed"


def test_what_is_expected_is_edited(ledger: Ledger) -> None:
    report(ledger)
    ledger.call("edit_watch", job_key="nightly", every=3600, grace=60, fail_after=2, paused=True)
    found = state(ledger, "nightly")
    assert found["state"] == "paused"
    assert found["settings"] == {"every": 3600, "grace": 60, "fail_after": 2}
    ledger.call("edit_watch", job_key="nightly", paused=False, grace=None)
    assert state(ledger, "nightly")["settings"] == {"every": 3600, "grace": 1800, "fail_after": 2}
    for job, changes in {"nightly": {"every": 0}, "nobody": {"every": 60}}.items():
        with pytest.raises(Permanent):
            ledger.call("edit_watch", job_key=job, **changes)


def test_since_when_is_what_the_last_look_found(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    look(ledger)
    ledger.sql("update job_watch set state_since = now() - interval '1 hour'")
    look(ledger)
    since = datetime.fromisoformat(state(ledger, "dispatch")["since"])
    assert ledger.one("select now()") - since > timedelta(minutes=59)
