"""Short words for the monitor's calls."""

from typing import Any

from tests.support.ledger import Ledger, Row

DISPATCH: Row = {"job": "dispatch", "title": "書き起こし", "source": "transcription", "every": 3600, "at": 0}
QUEUES = {"default": [], "whisper": ["transcription"]}


def look(ledger: Ledger, **params: object) -> Row:
    """One look, however soon after the last one."""
    return dict(ledger.call("monitor", **{"min_every": 0, "queues": QUEUES, **params}))


def incidents(ledger: Ledger) -> dict[str, Row]:
    """The open ones by fingerprint."""
    return {one["fingerprint"]: one for one in ledger.call("incidents")["incidents"]}


def recovered(ledger: Ledger) -> list[Row]:
    return list(ledger.call("incidents")["recovered"])


def state(ledger: Ledger, job: str) -> Row:
    [found] = [row for row in ledger.call("job_states")["jobs"] if row["job_key"] == job]
    return dict(found)


def report(ledger: Ledger, status: str = "success", job: str = "nightly", **params: object) -> Row:
    """A job outside reports; its finish is now unless `finished_at` says otherwise."""
    if status != "running":
        params = {"finished_at": str(ledger.one("select now()")), **params}
    return dict(ledger.call("job_report", job_key=job, title="夜間バックアップ", status=status, **params))


def sync(ledger: Ledger, **changes: object) -> None:
    """The job `dispatch`, whose slot has just run."""
    ledger.call("sync_jobs", jobs=[DISPATCH | changes])
    ledger.sql(
        "update jobs set last_slot = date_trunc('hour', now()), last_started_at = now(), last_finished_at = now(),"
        " last_status = 'success'"
    )


def alive(ledger: Ledger) -> None:
    """Beat ticks and both workers live."""
    ledger.call("beat", beat="b1", node="n1", pid=1)
    ledger.heartbeat("w1")
    ledger.heartbeat("d1", queues=["default"], slots=4)


def messages(ledger: Ledger) -> list[tuple[str, str]]:
    """What was put into the outbox and not taken back: kind and fingerprint."""
    rows = ledger.sql(
        "select a.kind, i.fingerprint from alerts a join incidents i on i.id = a.incident_id"
        " where a.cancelled_at is null order by a.id"
    )
    return [(row["kind"], row["fingerprint"]) for row in rows]


def deliver(ledger: Ledger, *errors: str) -> list[Any]:
    """Take every due message and send it, or fail with `errors`; returns them."""
    sent = list(ledger.call("claim_alerts", limit=100)["alerts"])
    for alert in sent:
        outcome = {"channel": "Slack 1"} | ({"error": errors[0]} if errors else {})
        ledger.call("alert_sent", id=alert["id"], channels=[outcome])
    return sent


def fail_item(ledger: Ledger, error: str, device: str = "d1", at: str = "2025-07-18T03:00:00Z") -> str:
    """A recording that fails for good; returns its key."""
    key = ledger.file(device, at)
    ledger.end("fail", ledger.running(), error=error, kind="permanent")
    return key
