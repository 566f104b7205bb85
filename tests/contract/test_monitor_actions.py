"""What people do: each action, and what the audit log says of it."""

import httpx
import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger, Row
from tests.support.monitor import alive, fail_item, incidents, look, report, state, sync
from tests.support.servers import PostgREST, key_of


def audited(ledger: Ledger) -> list[tuple[str, str, str | None]]:
    return [(one["who"], one["what"], one["target"]) for one in ledger.call("audited")["entries"]]


def begin(ledger: Ledger) -> Row:
    return dict(ledger.call("begin_run", job="dispatch", worker="w1", lease=60))


def test_an_edit_is_written_down_with_what_changed(ledger: Ledger) -> None:
    sync(ledger)
    ledger.call("edit_job", job="dispatch", every=7200, filters={"partition": "d1"}, batch_limit=5, who="aya")
    [entry] = ledger.call("audited")["entries"]
    assert (entry["who"], entry["what"], entry["target"]) == ("aya", "edit job", "dispatch")
    assert entry["details"] == {
        "every": ["01:00:00", "02:00:00"], "filters": [{}, {"partition": "d1"}], "batch_limit": [None, 5],
    }  # fmt: skip
    ledger.call("edit_job", job="dispatch", batch_limit=None)  # nobody's: a script
    assert len(audited(ledger)) == 1
    assert ledger.one("select batch_limit from jobs") is None
    with pytest.raises(Permanent, match="at least 1 second"):
        ledger.call("edit_job", job="dispatch", every=0, who="aya")
    with pytest.raises(Permanent, match="there is no job nothing; the jobs are dispatch"):
        ledger.call("edit_job", job="nothing", every=60, who="aya")
    assert len(audited(ledger)) == 1


def test_run_now_runs_at_the_next_tick_beside_the_slots(ledger: Ledger) -> None:
    sync(ledger)
    ledger.sql("update jobs set last_slot = null, created_at = now() - interval '9 days'")
    slot = begin(ledger)["slot"]
    assert not begin(ledger)["run"]
    assert ledger.heartbeat()["overdue"] == []
    assert ledger.call("run_now", job="dispatch", who="aya") == {"wanted": True}
    assert state(ledger, "dispatch")["wanted"]
    assert state(ledger, "dispatch")["state"] in {"ok", "running"}
    assert ledger.heartbeat()["overdue"] == ["dispatch"]  # a worker sends it, should beat be slow or dead
    run = begin(ledger)
    assert run["run"]
    assert run["slot"] != slot
    assert begin(ledger) == {"run": False, "reason": "this slot has run"}
    assert not state(ledger, "dispatch")["wanted"]
    assert audited(ledger) == [("aya", "run now", "dispatch")]


def test_run_now_of_a_job_that_does_not_catch_up_or_is_paused(ledger: Ledger) -> None:
    sync(ledger, catch_up=False, every=86_400)
    ledger.sql("update jobs set at = (now() at time zone 'UTC')::time + case when (now() at time zone 'UTC')::time"
               " < '12:00' then 1 else -1 end * interval '12 hours'")  # fmt: skip
    assert not begin(ledger)["run"]
    ledger.call("run_now", job="dispatch")
    assert begin(ledger)["run"]
    ledger.call("pause", job="dispatch", paused=True)
    with pytest.raises(Permanent, match="the job dispatch is paused"):
        ledger.call("run_now", job="dispatch")
    with pytest.raises(Permanent, match="there is no job nothing"):
        ledger.call("run_now", job="nothing")


@pytest.mark.parametrize("job", ["dispatch", "nightly"])
def test_pause_and_resume(ledger: Ledger, job: str) -> None:
    sync(ledger)
    report(ledger)
    ledger.call("pause", job=job, paused=True, who="aya")
    assert state(ledger, job)["state"] == "paused"
    ledger.call("pause", job=job, paused=False, who="aya")
    assert state(ledger, job)["state"] == "ok"
    assert audited(ledger) == [("aya", "resume", job), ("aya", "pause", job)]


def test_retry_all_of_one_reason(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    keys = [fail_item(ledger, f"file{n}.wav is corrupt", at=f"2025-07-18T0{n}:00:00Z") for n in range(3)]
    other = fail_item(ledger, "it is empty", at="2025-07-18T05:00:00Z")
    look(ledger)
    [fingerprint] = [one["fingerprint"] for one in incidents(ledger).values() if one["count"] == 3]
    answer = ledger.call("retry_reason", source="transcription", fingerprint=fingerprint, limit=2, who="aya")
    assert (answer["opened"], answer["more"]) == (2, True)
    answer = ledger.call("retry_reason", source="transcription", fingerprint=fingerprint, limit=2, who="aya")
    assert (answer["opened"], answer["more"]) == (1, False)
    assert {ledger.state(key) for key in keys} == {"pending"}
    assert ledger.state(other) == "failed"
    assert ledger.status_of(keys[0]) == "pending"
    answer = ledger.call("retry_reason", source="transcription", fingerprint=fingerprint, who="aya")
    assert (answer["matched"], answer["more"]) == (0, False)
    assert audited(ledger) == [("aya", "retry all", fingerprint)] * 3


def test_retry_one(ledger: Ledger) -> None:
    key = fail_item(ledger, "it is corrupt")
    assert ledger.call("retry_items", source="transcription", keys=[key], who="aya")["opened"] == 1
    assert ledger.state(key) == "pending"
    assert audited(ledger) == [("aya", "retry", "transcription")]


def test_dismissing_failed_items_lets_their_job_recover(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    keys = [fail_item(ledger, f"file{n}.wav is corrupt", at=f"2025-07-18T0{n}:00:00Z") for n in range(2)]
    ledger.call("report")
    assert ledger.one("select last_status from job_status") == "error"
    [fingerprint] = look(ledger)["opened"]
    ledger.call("dismiss", source="transcription", key=keys[0], who="aya")
    look(ledger)
    assert incidents(ledger)[fingerprint]["count"] == 1
    ledger.call("dismiss", incident=incidents(ledger)[fingerprint]["id"], who="aya")
    assert incidents(ledger) == {}
    assert {ledger.state(key) for key in keys} == {"failed"}
    assert ledger.one("select last_status from job_status") != "error"
    assert look(ledger)["opened"] == []
    with pytest.raises(Permanent, match="there is no failed item"):
        ledger.call("dismiss", source="transcription", key=keys[0])
    with pytest.raises(Permanent, match="there is no incident 99"):
        ledger.call("dismiss", incident=99)
    # Another one fails later: that is told again.
    fail_item(ledger, "file7.wav is corrupt", at="2025-07-18T07:00:00Z")
    assert look(ledger)["opened"] == [fingerprint]
    assert [what for _, what, _ in audited(ledger)] == ["dismiss", "dismiss"]


def test_a_job_outside_is_forgotten(ledger: Ledger) -> None:
    sync(ledger)
    report(ledger, "error", run_id="r1")
    look(ledger)
    assert ledger.call("forget_job", job_key="nightly", who="aya") == {"forgotten": True}
    assert ledger.call("forget_job", job_key="nightly") == {"forgotten": False}
    assert look(ledger)["opened"] == []
    assert ledger.sql("select from job_status") == []
    with pytest.raises(Permanent, match="is of the timetable: pause it"):
        ledger.call("forget_job", job_key="dispatch")


def test_upkeep_forgets_what_is_old(ledger: Ledger) -> None:
    for job in ("old", "new", "open"):
        report(ledger, "error", job=job, run_id="r1")
        ledger.call("pause", job=job, paused=False, who="aya")
    look(ledger)
    for job in ("old", "new"):
        report(ledger, job=job, run_id="r2")
    look(ledger)
    ledger.call("beat", beat="b1", node="n1", pid=1)
    ledger.sql("update incidents set recovered_at = now() - interval '11 days' where job_key = 'old'")
    ledger.sql("update incidents set opened_at = now() - interval '99 days'")
    ledger.sql("update job_reports set reported_at = now() - interval '11 days' where job_key = 'old'")
    ledger.sql("update audit_log set at = now() - interval '21 days' where target = 'old'")
    ledger.sql("update beats set ticked_at = now() - interval '9 days'")
    answer = ledger.call("upkeep_monitor", days=10, audit_days=20)
    assert (answer["incidents"], answer["reports"], answer["entries"], answer["more"]) == (1, 2, 1, False)
    assert {row["job_key"] for row in ledger.sql("select job_key from incidents")} == {"new", "open"}
    assert ledger.sql("select from beats")  # the last one that was known
    assert ledger.call("upkeep_monitor", days=10, audit_days=20, limit=1)["more"] is False
    ledger.sql("update job_reports set reported_at = now() - interval '11 days'")
    assert ledger.call("upkeep_monitor", days=10, audit_days=20, limit=1)["more"] is True


# --- job_status over the REST server ------------------------------------------------------------------------------


ROW = {"job_key": "mine", "title": "Mine", "last_status": "success", "last_finished_at": "2026-01-01T00:00:00Z"}


def ask(rest: PostgREST, role: str, method: str, **options: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key_of(role)}", "Prefer": "return=representation"}
    return httpx.request(method, f"{rest.url}/job_status", headers=headers, **options)  # type: ignore[arg-type]


def test_job_status_over_rest_is_read_by_users_alone(postgrest: PostgREST, direct_ledger: Ledger) -> None:
    report(direct_ledger, "error", message="失敗しました")
    answer = ask(postgrest, "authenticated", "GET")
    assert [(row["job_key"], row["last_message"]) for row in answer.json()] == [("nightly", "失敗しました")]
    assert ask(postgrest, "anon", "GET").status_code == 401


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_job_status_over_rest_is_written_by_no_public_key(
    postgrest: PostgREST, direct_ledger: Ledger, role: str
) -> None:
    report(direct_ledger)
    before = direct_ledger.sql("select * from job_status")
    mine = {"params": {"job_key": "eq.nightly"}}
    for answer in (
        ask(postgrest, role, "POST", json=ROW),
        ask(postgrest, role, "PATCH", json={"title": "mine"}, **mine),
        ask(postgrest, role, "DELETE", **mine),
    ):
        assert answer.status_code in {401, 403}, answer.text
    assert direct_ledger.sql("select * from job_status") == before
    headers = {"Authorization": f"Bearer {key_of(role)}"}
    for function in ("toban_job_report", "toban_dismiss", "toban_incidents", "toban_monitor"):
        answer = httpx.post(f"{postgrest.url}/rpc/{function}", headers=headers, json={"p": {}})
        assert answer.status_code in {401, 403}, answer.text
    for table in ("incidents", "audit_log", "alerts", "job_watch"):
        assert httpx.get(f"{postgrest.url}/{table}", headers=headers).status_code in {401, 403}


def test_the_service_writes_job_status_over_rest(postgrest: PostgREST, direct_ledger: Ledger) -> None:
    """A script that writes with the service key itself, as some do."""
    assert ask(postgrest, "service_role", "POST", json=ROW).status_code == 201
    assert ask(postgrest, "authenticated", "GET").json()[0]["job_key"] == "mine"
