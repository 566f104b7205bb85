"""What a job's row sets beside its schedule: whose rows, of which day, how many in a slot, and for how long."""

from datetime import datetime, timedelta
from typing import LiteralString

import psycopg
import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger, Row, at_once

# Their clocks are 26 hours apart: whatever the time is, each has another date.
EAST, WEST = "Pacific/Kiritimati", "Etc/GMT+12"
JOBS: list[Row] = [
    {"job": "transcription", "title": "Transcription", "source": "transcription", "every": 3600},
    {"job": "analysis", "title": "Analysis", "source": "analysis", "every": 10},
    {"job": "reconcile", "title": "Reconciliation", "source": None, "every": 300},
]


@pytest.fixture(autouse=True)
def jobs(request: pytest.FixtureRequest) -> None:
    name = "direct_ledger" if "direct_ledger" in request.fixturenames else "ledger"
    request.getfixturevalue(name).call("sync_jobs", jobs=JOBS)


def edit(ledger: Ledger, job: str = "transcription", **changes: object) -> Row:
    """Returns the job as it is then."""
    assert ledger.call("edit_job", job=job, **changes) == {"edited": True}
    return job_of(ledger, job)


def job_of(ledger: Ledger, job: str = "transcription") -> Row:
    (row,) = [row for row in ledger.call("jobs")["jobs"] if row["job"] == job]
    return dict(row)


def next_slot(ledger: Ledger) -> None:
    """What has run belongs to the slot before."""
    ledger.sql("update runs set slot = slot - interval '1 hour'")


def today(ledger: Ledger, zone: str) -> str:
    return str(ledger.one("select (now() at time zone %s)::date::text", zone))


def day_before(day: str) -> str:
    return str((datetime.fromisoformat(day) - timedelta(days=1)).date())


# --- date ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [EAST, WEST, "Asia/Tokyo"])
@pytest.mark.parametrize(("date", "days_ago"), [("today", 0), ("yesterday", 1)])
def test_a_day_of_rows_that_have_a_moment(ledger: Ledger, zone: str, date: str, days_ago: int) -> None:
    """From midnight to midnight in the zone of the claim."""
    edit(ledger, filters={"date": date})
    midnight: LiteralString = "(((now() at time zone %s)::date - %s)::timestamp at time zone %s)"
    begin = ledger.one(f"select {midnight}", zone, days_ago, zone)
    end = ledger.one(f"select {midnight}", zone, days_ago - 1, zone)
    second = timedelta(seconds=1)
    wanted = [ledger.file("d1", moment.isoformat()) for moment in (begin, end - second)]
    for moment in (begin - second, end):
        ledger.file("d1", moment.isoformat())
    ledger.heartbeat(slots=10)
    answer = ledger.claim_answer(zone=zone)
    assert [item["key"] for item in answer["items"]] == wanted
    assert answer["found"] == 2
    assert ledger.claim_answer(zone=zone)["reason"] == "nothing is due"


@pytest.mark.parametrize("zone", [EAST, WEST])
@pytest.mark.parametrize(("date", "days_ago"), [("today", 0), ("yesterday", 1)])
def test_a_day_of_rows_that_have_a_date(ledger: Ledger, zone: str, date: str, days_ago: int) -> None:
    edit(ledger, "analysis", filters={"date": date})
    day = today(ledger, zone)
    days = [day, day_before(day), day_before(day_before(day))]
    keys = [ledger.block(date=each) for each in days]
    ledger.heartbeat(slots=10)
    assert [item["key"] for item in ledger.claim(source="analysis", zone=zone)] == [keys[days_ago]]


def test_one_certain_day(ledger: Ledger) -> None:
    edit(ledger, filters={"date": "2025-07-18"})
    edit(ledger, "analysis", filters={"date": "2025-07-18"})
    key = ledger.block()
    ledger.block(date="2025-07-17")
    noon = ledger.file("d1", "2025-07-18T03:00:00Z")
    ledger.file("d1", "2025-07-18T15:00:00Z")  # the 19th in Tokyo
    early = ledger.file("d1", "2025-07-17T15:00:00Z")  # already the 18th
    ledger.heartbeat(slots=10)
    assert [item["key"] for item in ledger.claim(source="analysis")] == [key]
    assert [item["key"] for item in ledger.claim(zone="Asia/Tokyo")] == [early, noon]


def test_the_day_and_since_and_until_hold_together(ledger: Ledger) -> None:
    since, until = "2025-07-18T02:00:00Z", "2025-07-18T04:00:00Z"
    edit(ledger, filters={"date": "2025-07-18", "since": since})
    for hour in range(6):
        ledger.file("d1", f"2025-07-18T0{hour}:00:00Z")
    ledger.file("d1", "2025-07-19T00:00:00Z")
    ledger.heartbeat(slots=10)
    edit(ledger, filters={"until": until})
    assert [item["at"] for item in ledger.claim()] == ["2025-07-18T02:00:00+00:00", "2025-07-18T03:00:00+00:00"]
    edit(ledger, filters={"since": None, "until": "2025-07-18T01:00:00Z"})
    assert [item["at"] for item in ledger.claim()] == ["2025-07-18T00:00:00+00:00"]


def test_day_and_device(ledger: Ledger) -> None:
    edit(ledger, "analysis", filters={"date": "2025-07-18", "partition": "b"})
    ledger.block("a")
    key = ledger.block("b")
    ledger.block("b", date="2025-07-17")
    ledger.heartbeat(slots=10)
    assert [item["key"] for item in ledger.claim(source="analysis")] == [key]


def test_a_run_tells_the_days_of_rows_that_have_a_date(ledger: Ledger) -> None:
    ledger.block()
    ledger.block(date="2025-07-16")
    ledger.heartbeat(slots=10)
    ledger.claim(source="analysis")
    (run,) = ledger.sql("select dates::text[] as dates, dispatched, filters from runs")
    assert run == {"dates": ["2025-07-16", "2025-07-18"], "dispatched": 2, "filters": {}}


@pytest.mark.parametrize(
    ("columns", "watch", "change", "words"),
    [
        # A date that is no part of the key is not in the item.
        ("id text primary key, day date", "p_date => 'day'", {"date": "today"}, "rows of toy are not found by date"),
        ("id text primary key", "", {"date": "today"}, "rows of toy are not found by date"),
        ("id text primary key", "", {"since": "2025-07-18T00:00:00Z"}, "rows of toy are not found by since"),
    ],
)
def test_a_filter_that_rows_have_no_column_for_is_refused(
    ledger: Ledger, columns: LiteralString, watch: LiteralString, change: Row, words: str
) -> None:
    """It would let every row pass, or none."""
    ledger.call("sync_jobs", jobs=[{"job": "toy", "title": "Toy", "source": "toy", "every": 10}])
    edit(ledger, "toy", filters=change)  # nothing is known of its rows yet
    ledger.sql(f"create table toy ({columns}, state text)")
    ledger.sql("insert into toy (id, state) values ('a', 'pending')")
    arguments = ", ".join(filter(None, ["'toy', 'toy', array['id'], 'state'", watch]))
    ledger.sql(f"select toban_watch({arguments})")
    ledger.heartbeat()
    with pytest.raises(Permanent, match=f"job toy: {words}"):
        ledger.claim(source="toy")
    edit(ledger, "toy", filters=dict.fromkeys(change))
    with pytest.raises(Permanent, match=f"job toy: {words}"):
        edit(ledger, "toy", filters=change)
    assert len(ledger.claim(source="toy")) == 1


def test_blocks_are_not_found_by_moments(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="rows of analysis are not found by until, only by partition and date"):
        edit(ledger, "analysis", filters={"until": "2025-07-18T00:00:00Z"})


# --- batch_limit -----------------------------------------------------------------------------------------------------


def test_so_many_in_a_slot_however_often_it_is_asked(ledger: Ledger) -> None:
    edit(ledger, batch_limit=3)
    ledger.files("d1", 10)
    ledger.heartbeat(slots=10)
    assert (len(ledger.claim(2)), len(ledger.claim())) == (2, 1)
    answer = ledger.claim_answer()
    assert (answer["items"], answer["found"]) == ([], 7)
    assert answer["reason"] == "the batch limit of this slot, 3, is reached"
    next_slot(ledger)
    assert len(ledger.claim()) == 3
    assert ledger.claim() == []
    edit(ledger, batch_limit=4)
    assert len(ledger.claim()) == 1
    edit(ledger, batch_limit=None)
    assert len(ledger.claim()) == 3


def test_a_limit_that_is_made_smaller(ledger: Ledger) -> None:
    ledger.files("d1", 10)
    ledger.heartbeat(slots=10)
    ledger.claim(5)
    edit(ledger, batch_limit=2)
    assert ledger.claim_answer()["reason"] == "the batch limit of this slot, 2, is reached"


def test_two_dispatchers_share_the_limit(ledger: Ledger) -> None:
    edit(ledger, batch_limit=5)
    ledger.files("d1", 30)
    ledger.heartbeat(slots=50)
    for _ in range(5):
        at_once(*[lambda: ledger.claim(2)] * 3)
    assert ledger.states() == {"queued": 5, "pending": 25}


def test_what_could_not_be_sent_uses_up_no_limit(ledger: Ledger) -> None:
    edit(ledger, batch_limit=3)
    ledger.files("d1", 10)
    ledger.heartbeat(slots=10)
    sent, *unsent = ledger.claim()
    ledger.call("release", tasks=[item["task_id"] for item in unsent])
    assert ledger.one("select dispatched from runs") == 1
    assert len(ledger.claim()) == 2
    # What a worker gives back at its end was sent.
    ledger.start(sent)
    ledger.call("release", node="n1")
    ledger.heartbeat(slots=10)
    assert ledger.claim() == []


def test_what_a_hold_sent_back_uses_up_no_limit(ledger: Ledger) -> None:
    edit(ledger, batch_limit=2)
    ledger.files("d1", 3)
    ledger.heartbeat(slots=10)
    first, second = ledger.claim()
    ledger.finish(ledger.start(first))
    ledger.call("hold", queue="whisper", cause="credit", reason="no credit", seconds=60, incident=True)
    assert not ledger.start_answer(second, second["task_id"])["started"]
    ledger.sql("delete from queue_holds")
    assert len(ledger.claim()) == 1
    assert ledger.one("select dispatched from runs") == 2


# --- timeout ---------------------------------------------------------------------------------------------------------


def test_a_start_is_told_the_timeout_of_its_job(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    assert ledger.running().answer["timeout"] is None
    edit(ledger, timeout=1.5)
    ledger.heartbeat()
    (item,) = ledger.claim(1)
    run = ledger.start(item)
    assert run.answer["timeout"] == 1.5
    edit(ledger, timeout=90)
    assert ledger.start_answer(item, run.token)["timeout"] == 90
    edit(ledger, timeout=None)
    assert ledger.running().answer["timeout"] is None


def test_a_job_that_was_renamed_stops_no_start(ledger: Ledger) -> None:
    """The old row stays, with the same source."""
    ledger.call("sync_jobs", jobs=[{"job": "whisper", "title": "W", "source": "transcription", "every": 60}])
    edit(ledger, timeout=5)
    edit(ledger, "whisper", timeout=7)
    ledger.file()
    assert ledger.running().answer["timeout"] == 5


def test_a_source_without_a_job_has_no_timeout(ledger: Ledger) -> None:
    ledger.sql("delete from jobs")
    ledger.file()
    assert ledger.running().answer["timeout"] is None


# --- toban_jobs, toban_edit_job --------------------------------------------------------------------------------------


def test_what_is_set_and_what_is_not(ledger: Ledger) -> None:
    assert [job["job"] for job in ledger.call("jobs")["jobs"]] == ["analysis", "reconcile", "transcription"]
    assert job_of(ledger) == {
        "job": "transcription", "title": "Transcription", "source": "transcription", "enabled": True, "every": 3600,
        "at": 0, "zone": "UTC", "filters": {}, "batch_limit": None, "timeout": None, "last_started_at": None,
        "last_finished_at": None, "last_status": None, "last_message": None,
    }  # fmt: skip
    before = job_of(ledger, "analysis")
    changes: Row = {
        "enabled": False, "every": 7200, "at": 600.5, "zone": "Asia/Tokyo", "batch_limit": 50, "timeout": 60,
        "filters": {"partition": "9f7d", "date": "today"},
    }  # fmt: skip
    assert edit(ledger, **changes) == job_of(ledger) | changes
    assert {name: job_of(ledger)[name] for name in changes} == changes
    assert job_of(ledger, "analysis") == before


def test_what_is_not_named_stays_and_null_takes_away(ledger: Ledger) -> None:
    edit(ledger, enabled=False, batch_limit=5, timeout=9, filters={"partition": "a", "date": "today"})
    assert edit(ledger, every=60)["batch_limit"] == 5
    after = edit(ledger, batch_limit=None, filters={"partition": None})
    assert (after["batch_limit"], after["timeout"], after["filters"]) == (None, 9, {"date": "today"})
    after = edit(ledger, timeout=None, filters={"date": None, "since": None})
    assert (after["timeout"], after["filters"]) == (None, {})
    # Of these there is no "none".
    after = edit(ledger, enabled=None, every=None, at=None, zone=None, filters={})
    assert (after["enabled"], after["every"], after["at"], after["zone"]) == (False, 60, 0, "UTC")


def test_edits_outlive_the_next_sync(ledger: Ledger) -> None:
    before = edit(ledger, enabled=False, batch_limit=5, timeout=9, filters={"date": "yesterday"}, every=60, at=10)
    ledger.call("sync_jobs", jobs=[job | {"enabled": True} for job in JOBS])
    assert job_of(ledger) == before


def test_a_job_may_come_disabled(ledger: Ledger) -> None:
    new = {"job": "planner", "title": "P", "source": None, "every": 60}
    ledger.call("sync_jobs", jobs=[new | {"enabled": False}])
    assert job_of(ledger, "planner")["enabled"] is False
    edit(ledger, "planner", enabled=True)
    ledger.call("sync_jobs", jobs=[new | {"enabled": False}])
    assert job_of(ledger, "planner")["enabled"] is True


def test_a_job_that_is_not_there(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="there is no job nightly; the jobs are analysis, reconcile, transcription"):
        ledger.call("edit_job", job="nightly", enabled=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"every": 0.5}, "every is 00:00:00.5, but has to be at least 1 second"),
        ({"every": -60}, "has to be at least 1 second"),
        ({"at": 3600}, "at is 01:00:00, but has to be at least 0 and less than every"),
        ({"at": -1}, "at is -00:00:01, but has to be at least 0"),
        ({"every": 60, "at": 60}, "less than every"),
        ({"zone": "Tokyo"}, "there is no time zone Tokyo"),
        ({"zone": ""}, "there is no time zone"),
        ({"batch_limit": 0}, "batch_limit is 0, but has to be at least 1"),
        ({"batch_limit": -3}, "batch_limit is -3"),
        ({"batch_limit": 2.5}, "invalid input syntax for type integer"),
        ({"batch_limit": "many"}, "invalid input syntax for type integer"),
        ({"timeout": 0}, "timeout is 00:00:00, but has to be more than 0"),
        ({"timeout": -1}, "timeout is -00:00:01, but has to be more than 0"),
        ({"timeout": "soon"}, "invalid input syntax for type numeric"),
        ({"enabled": "perhaps"}, "invalid input syntax for type boolean"),
        ({"filters": []}, "filters have to be an object"),
        ({"filters": None}, "filters have to be an object"),
        ({"filters": {"device": "d1"}}, "there is no filter device, only partition, since, until and date"),
        ({"filters": {"date": 20250718}}, "the filter date has to be a text, not 20250718"),
        ({"filters": {"date": "tomorrow"}}, 'the filter date has to be today, yesterday or a day .*, not "tomorrow"'),
        ({"filters": {"date": "infinity"}}, 'the filter date has to be today, yesterday or a day .*, not "infinity"'),
        ({"filters": {"date": "2025-02-30"}}, 'the filter date has to be .*, not "2025-02-30"'),
        ({"filters": {"date": "18.7.2025"}}, 'the filter date has to be .*, not "18.7.2025"'),
        ({"filters": {"date": "99999-01-01"}}, 'the filter date has to be .*, not "99999-01-01"'),
        ({"filters": {"date": ""}}, 'the filter date has to be .*, not ""'),
        ({"filters": {"since": "soon"}}, "the filter since has to be a moment"),
    ],
)
def test_a_bad_value_is_refused_and_changes_nothing(ledger: Ledger, changes: Row, words: str) -> None:
    before = job_of(ledger)
    with pytest.raises(Permanent, match=words):
        ledger.call("edit_job", job="transcription", **{"enabled": False, **changes})
    assert job_of(ledger) == before
    ledger.file()
    ledger.heartbeat()
    assert len(ledger.claim()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("batch_limit = 0", "batch_limit is 0, but has to be at least 1, or null for no limit"),
        ("timeout = '0'", "timeout is 00:00:00, but has to be more than 0"),
        ("timeout = '1 month'", "timeout is 1 mon, but has to be more than 0, in seconds, minutes"),
        ("timeout = '1 year'", "timeout is 1 year"),
        ("timeout = 'infinity'", "timeout is infinity"),
        ("""filters = '{"date": "morgen"}'""", "the filter date has to be today, yesterday or a day like 2025-07-18"),
        ("""filters = '{"date": null}'""", "the filter date has to be a text, not null"),
    ],
)
def test_a_wrong_edit_by_sql_is_refused(direct_ledger: Ledger, change: LiteralString, words: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=f"job transcription: .*{words}"):
        direct_ledger.sql(f"update jobs set {change} where job = 'transcription'")
