"""The handlers that report, called as Celery calls them, over a real ledger."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from app.errors import Permanent, Transient
from app.runtime import Runtime
from app.services import Services
from workers import process, signals

import tasks  # noqa: F401 isort:skip - registers the sources


def sender(name: str, *args: object, run: int | None = None) -> Any:
    return SimpleNamespace(name=name, request=SimpleNamespace(args=args, toban_run=run))


def status(database_url: str) -> dict[str, Any]:
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        rows = connection.execute("select * from job_status").fetchall()
    return {row["job_key"]: row for row in rows}


def fail_one(services: Services, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into audio_files values ('d', '2025-07-18T00:00Z', 'x.wav')")
    call = services.database.call
    call("toban_heartbeat", worker="w", node="w", pid=1, queues=["whisper"], slots=1, lease=60, stall=300, rss_bytes=1)
    [item] = services.ledger.claim("transcription", "whisper", 10, "UTC").items
    attempt = services.ledger.start(item.id, item.task_id, uuid4(), "w", timedelta(minutes=1))
    services.ledger.settle("toban_fail", attempt, error="the file is corrupt", kind="permanent")


def test_a_failure_is_reported_and_stays(runtime: Runtime, services: Services, database_url: str) -> None:
    fail_one(services, database_url)
    signals.note(sender("tasks.transcription", 1, "key"))
    runtime.reporter.flush(services)
    reported = status(database_url)["transcription"]
    assert reported["last_status"] == "error"
    assert "the file is corrupt" in reported["last_message"]

    # Another row's success comes through the same handler, and hides nothing.
    signals.note(sender("tasks.transcription", 2, "other"))
    runtime.reporter.flush(services)
    assert status(database_url)["transcription"]["last_status"] == "error"


def test_many_signals_cost_one_call(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(runtime.services.database, "call", lambda _, **p: calls.append(p))
    for number in range(1000):
        signals.note(sender("tasks.transcription", number, "key", run=number % 3))
    runtime.reporter.flush(runtime.services)
    runtime.reporter.flush(runtime.services)
    assert calls == [{"jobs": ["transcription"], "runs": [0, 1, 2]}]


def test_a_report_that_fails_is_kept_and_breaks_nothing(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_function: str, **_: object) -> None:
        raise Transient("the database is away")

    monkeypatch.setattr(runtime.services.database, "call", away)
    signals.note(sender("tasks.reconcile", "reconcile"))
    runtime.reporter.flush(runtime.services)
    assert runtime.reporter.jobs == {"reconcile"}


def test_jobs_and_commands_are_told_apart(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    signals.note(sender("tasks.dispatch", "transcription"))
    signals.note(sender("tasks.retention"))
    signals.note(sender("tasks.reprocess"))
    assert runtime.reporter.jobs == {"transcription", "retention"}


def test_a_parent_without_a_runtime_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_runtime", None)
    signals.note(sender("tasks.transcription", 1, "key"))
    signals.tell(sender("tasks.reprocess"), Permanent("no such date"))
