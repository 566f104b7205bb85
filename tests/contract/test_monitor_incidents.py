"""What becomes an incident, for how long it is one, and what ends it."""

from datetime import datetime

import pytest

from tests.support.ledger import Ledger, at_once
from tests.support.monitor import (
    alive,
    fail_item,
    incidents,
    look,
    messages,
    recovered,
    report,
    sync,
)

NOON, ONE = "2025-07-18T03:00:00Z", "2025-07-18T04:00:00Z"


def test_nothing_is_wrong(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    report(ledger)
    assert look(ledger) == {"looked": True, "opened": [], "recovered": [], "due_alerts": 0}
    answer = ledger.call("incidents")
    assert (answer["badge"], answer["incidents"], answer["recovered"], answer["channels"]) == (0, [], [], [])


def test_a_job_that_fails_is_one_incident_until_it_succeeds(ledger: Ledger) -> None:
    for _ in range(3):
        report(ledger, "error", message="失敗しました", log="最後の行")
        look(ledger)
    [found] = incidents(ledger).values()
    assert (found["kind"], found["title"], found["reason"]) == ("job", "夜間バックアップ", "失敗しました")
    assert (found["count"], found["log_tail"], found["flapping"]) == (3, "最後の行", False)
    ledger.sql("update incidents set opened_at = opened_at - interval '10 min'")
    report(ledger)
    assert look(ledger)["recovered"] == ["job/nightly"]
    assert incidents(ledger) == {}
    [ended] = recovered(ledger)
    assert 600 <= ended["downtime"] < 700
    assert messages(ledger) == []  # nobody had been told


def test_a_failure_that_is_not_enough_in_a_row_is_none(ledger: Ledger) -> None:
    report(ledger, "error", fail_after=2)
    assert look(ledger)["opened"] == []
    report(ledger, "error")
    assert look(ledger)["opened"] == ["job/nightly"]


def test_missed_and_back(ledger: Ledger) -> None:
    report(ledger, expect_every=3600)
    ledger.sql("update job_watch set last_started_at = now() - interval '3 hours', changed_at = null")
    assert look(ledger)["opened"] == ["overdue/nightly"]
    found = incidents(ledger)["overdue/nightly"]
    assert found["details"]["state"] == "missed"
    assert "every 1 h" in found["reason"]
    report(ledger)
    assert look(ledger)["recovered"] == ["overdue/nightly"]
    [ended] = recovered(ledger)
    assert 7100 < ended["downtime"] < 7300


def test_everything_but_the_one_that_looks_is_dead(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    look(ledger, timetable=["dispatch"])
    ledger.sql("update beats set ticked_at = now() - interval '2 hours'")
    ledger.sql("update workers set seen_at = now() - interval '2 hours', expires_at = now() - interval '1 hour'")
    ledger.sql("update queue_watch set alive_at = now() - interval '2 hours'")
    ledger.sql("update jobs set last_slot = now() - interval '3 hours', created_at = now() - interval '9 days'")
    ledger.file()
    ledger.sql("update work_items set available_at = now() - interval '1 hour'")
    look(ledger, timetable=["dispatch"])
    found = incidents(ledger)
    assert set(found) == {"overdue/dispatch", "beat", "worker/default", "worker/whisper"}
    assert found["overdue/dispatch"]["reason"].endswith("no worker listens to default; no beat ticks")
    assert found["beat"]["reason"].endswith("no worker stands in for it, so no job runs")
    assert found["worker/whisper"]["count"] == 1
    # They come back.
    alive(ledger)
    ledger.call("begin_run", job="dispatch", worker="d1", lease=60)
    assert set(look(ledger, timetable=["dispatch"])["recovered"]) == set(found)


def test_beat_is_dead_and_workers_stand_in(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    look(ledger)
    ledger.sql("update beats set ticked_at = now() - interval '44 s'")
    assert look(ledger, beat_every=10)["opened"] == []
    ledger.sql("update beats set ticked_at = now() - interval '46 s'")
    assert look(ledger, beat_every=60)["opened"] == []
    assert look(ledger, beat_every=10)["opened"] == ["beat"]
    assert incidents(ledger)["beat"]["reason"].endswith("workers stand in for it")
    # Another beat is as good.
    ledger.call("beat", beat="b2", node="n2", pid=2)
    assert look(ledger)["recovered"] == ["beat"]


def test_a_beat_that_never_came(ledger: Ledger) -> None:
    sync(ledger)
    ledger.sql("update jobs set created_at = now() - interval '1 hour'")
    alive(ledger)
    ledger.sql("delete from beats")
    assert look(ledger)["opened"] == ["beat"]
    assert incidents(ledger)["beat"]["reason"].startswith("none ever has")


def test_a_queue_without_workers_matters_when_something_waits(ledger: Ledger) -> None:
    alive(ledger)
    look(ledger)
    ledger.kill_worker()
    ledger.sql("update queue_watch set alive_at = now() - interval '1 hour'")
    assert look(ledger)["opened"] == []
    ledger.file()
    ledger.sql("update work_items set available_at = now() - interval '1 hour'")
    assert look(ledger)["opened"] == ["worker/whisper"]
    ledger.heartbeat("w2")
    assert look(ledger)["recovered"] == ["worker/whisper"]


def test_failed_items_are_grouped_by_reason(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    for number in range(3):
        fail_item(
            ledger,
            f"files/d{number}/2025-07-18/12-00/audio.wav is corrupt at byte {number}",
            at=f"2025-07-18T0{number}:00:00Z",
        )
    fail_item(ledger, "HTTP 403 from the bucket", at="2025-07-18T05:00:00Z")
    fail_item(ledger, "HTTP 404 from the bucket", at="2025-07-18T06:00:00Z")
    look(ledger)
    found = list(incidents(ledger).values())
    assert sorted(one["count"] for one in found) == [1, 1, 3]
    [most] = [one for one in found if one["count"] == 3]
    assert (most["kind"], most["source"], most["job_key"], most["title"]) == (
        "items",
        "transcription",
        "dispatch",
        "書き起こし",
    )
    assert most["items"] == [f"d1/2025-07-18T0{number}:00:00Z" for number in (2, 1, 0)]
    assert "is corrupt at byte 2" in most["reason"]


def test_a_group_stays_while_its_items_are_tried_again(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    key = fail_item(ledger, "it is corrupt")
    [fingerprint] = look(ledger)["opened"]
    assert ledger.call("retry_reason", source="transcription", fingerprint=fingerprint)["opened"] == 1
    assert look(ledger)["recovered"] == []
    # It fails for another reason this time.
    ledger.end("fail", ledger.running(), error="it is empty", kind="permanent")
    answer = look(ledger)
    assert answer["recovered"] == [fingerprint]
    [other] = answer["opened"]
    ledger.call("reprocess", source="transcription", keys=[key])
    ledger.finish(ledger.running())
    assert look(ledger)["recovered"] == [other]


def test_a_worker_that_is_not_ready_or_cannot_start(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    ledger.file()
    ledger.end("retry", ledger.running(), error="the model is missing", kind="not_ready", counted=False)
    ledger.call("worker_trouble", queues=["whisper"], node="n1", reason="it does not fit")
    look(ledger)
    found = incidents(ledger)
    assert {one["kind"] for one in found.values()} == {"worker"}
    assert found["not-ready/transcription"]["reason"] == "the model is missing"
    assert found["worker-trouble/whisper"]["reason"] == "n1 can't start: it does not fit"
    ledger.finish(ledger.running())
    ledger.call("worker_trouble", queues=["whisper"], node="n1")
    assert set(look(ledger)["recovered"]) == set(found)


def test_a_held_queue_is_one_incident(ledger: Ledger) -> None:
    for number in range(3):
        ledger.call("hold", queue="gpt", cause="credit", reason=f"no credit ({number})", seconds=60, incident=True)
        look(ledger)
    [found] = incidents(ledger).values()
    assert (found["fingerprint"], found["kind"], found["reason"]) == ("queue/gpt", "queue", "no credit (2)")
    ledger.sql("update queue_holds set until = now() - interval '1 s'")
    ledger.one("select toban_lift('gpt')")
    assert look(ledger)["recovered"] == ["queue/gpt"]


def test_flapping_is_one_incident(ledger: Ledger) -> None:
    for _ in range(4):
        report(ledger, "error")
        look(ledger)
        ledger.call("claim_alerts")  # somebody is told
        report(ledger)
        look(ledger)
    assert ledger.one("select count(*) from incidents") == 1
    report(ledger, "error")
    assert look(ledger)["opened"] == ["job/nightly"]
    [found] = incidents(ledger).values()
    assert (found["flapping"], found["flaps"]) == (True, 4)


def test_a_look_that_finds_nothing_new_writes_nothing(ledger: Ledger) -> None:
    """Pages follow what is written."""
    sync(ledger)
    fail_item(ledger, "it is corrupt")
    for status in ("error", "error", "success", "error"):
        report(ledger, status)
        look(ledger)
    ledger.sql("update beats set ticked_at = now() - interval '1 hour'")
    ledger.call("worker_trouble", queues=["whisper"], node="n1", reason="it does not fit")
    look(ledger)
    tables = "select id, xmin::text, flaps from incidents order by id"
    before = ledger.sql(tables)
    look(ledger)
    assert ledger.sql(tables) == before
    assert max(row["flaps"] for row in before) == 1


def test_what_comes_back_later_is_a_new_one(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    report(ledger)
    look(ledger)
    ledger.sql("update incidents set recovered_at = now() - settle - interval '1 s'")
    report(ledger, "error")
    look(ledger)
    assert ledger.one("select count(*) from incidents") == 2
    assert not incidents(ledger)["job/nightly"]["flapping"]


def test_a_pause_ends_an_incident_without_a_recovery(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    ledger.call("claim_alerts")
    ledger.call("pause", job="nightly", paused=True)
    look(ledger)
    assert incidents(ledger) == {}
    assert messages(ledger) == [("opened", "job/nightly")]


def test_jobs_in_error_come_first_then_items_then_what_is_overdue(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    report(ledger, expect_every=60, job="late")
    ledger.sql("update job_watch set last_started_at = now() - interval '3 hours' where job_key = 'late'")
    fail_item(ledger, "it is corrupt")
    ledger.call("worker_trouble", queues=["whisper"], node="n1", reason="it does not fit")
    report(ledger, "error")
    look(ledger)
    answer = ledger.call("incidents")
    assert [one["kind"] for one in answer["incidents"]] == ["job", "items", "overdue", "worker"]
    assert answer["badge"] == 4


def test_one_looks_at_a_time_and_not_too_often(ledger: Ledger) -> None:
    report(ledger, "error")
    answers = at_once(*[lambda: ledger.call("monitor")] * 8)
    assert sum(answer["looked"] for answer in answers) == 1
    assert not ledger.call("monitor")["looked"]
    ledger.sql("update monitor_state set ran_at = now() - interval '6 s'")
    assert ledger.call("monitor")["looked"]
    assert ledger.one("select count(*) from incidents") == 1


def test_whoever_does_not_know_a_job_neither_misses_it_nor_finds_it_back(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    ledger.sql("update jobs set last_slot = now() - interval '9 hours', created_at = now() - interval '9 days'")
    ledger.sql("update job_watch set changed_at = null")
    assert look(ledger, timetable=["another"])["opened"] == []
    assert look(ledger, timetable=["dispatch"])["opened"] == ["overdue/dispatch"]
    assert look(ledger, timetable=["another"])["recovered"] == []
    ledger.call("begin_run", job="dispatch", worker="w1", lease=60)
    assert look(ledger, timetable=["another"])["recovered"] == ["overdue/dispatch"]


def test_many_failed_items_cost_one_look(direct_ledger: Ledger) -> None:
    direct_ledger.sql(
        "insert into work_items (source, key, ref, state, incident_since, finished_at, last_error, last_error_kind)"
        " select 'transcription', 'k' || n, '{}', 'failed', now() - n * interval '1 s', now(),"
        " 'reason ' || chr(97 + n % 26) || chr(97 + n / 26 % 26), 'permanent' from generate_series(1, 10000) n"
    )
    look(direct_ledger)
    found = direct_ledger.call("incidents")
    assert found["badge"] == 200  # no more reasons are told
    assert sum(one["count"] for one in found["incidents"]) < 10_000
    # A reason that is not among the first ones is not taken for resolved.
    assert look(direct_ledger)["recovered"] == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("files/a/2025-07-18/audio.wav is corrupt", "files/b/2025-07-19/audio.wav is corrupt", True),
        ("can't decode 'a.wav': bad header", "can't decode 'b.wav': bad header", True),
        ("device 9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93 is unknown", "device 1c2b is unknown", True),
        ("timed out after 60.5 s", "timed out after 61 s", True),
        ("HTTP 404", "HTTP 403", False),
        ("status: 404", "status: 500", False),
        ("it is corrupt", "it is empty", False),
        ("読めません: 12件", "読めません: 7件", True),
        (None, None, True),
    ],
)
def test_what_makes_two_reasons_the_same(direct_ledger: Ledger, one: str, other: str, same: bool) -> None:  # noqa: FBT001 - pytest's parameter
    found = direct_ledger.sql("select toban_fingerprint('s', 'k', %s) a, toban_fingerprint('s', 'k', %s) b", one, other)
    assert (found[0]["a"] == found[0]["b"]) is same
    assert found[0]["a"] != direct_ledger.one("select toban_fingerprint('other', 'k', %s)", one)


def test_opened_at_is_since_when_it_fails(ledger: Ledger) -> None:
    report(ledger, "error", finished_at="2026-01-01T00:00:00Z")
    look(ledger)
    [found] = incidents(ledger).values()
    assert datetime.fromisoformat(found["since"]) == datetime.fromisoformat("2026-01-01T00:00:00Z")
