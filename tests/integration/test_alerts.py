"""Alerts by Apprise to real receivers, over a real ledger."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr

from app.database import Database
from app.database.postgres import PostgresDatabase
from app.monitor.alerts import channels, send_due
from app.monitor.alerts import test as try_channels
from app.monitor.messages import message
from app.monitor.tick import Monitor
from app.settings import Alerts
from app.settings import Ledger as LedgerSettings
from tests.support.receiver import Receiver, receiving
from tests.support.servers import free_port

TOKYO = ZoneInfo("Asia/Tokyo")
KEY = "s3cr3t-key-of-the-channel"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = PostgresDatabase(database_url)
    yield database
    database.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def settings(*ports: int, **changes: Any) -> Alerts:
    urls = " ".join(f"json://127.0.0.1:{port}/{KEY}" for port in ports)
    return Alerts.model_construct(**{**Alerts().model_dump(), "urls": SecretStr(urls), **changes})


def fail(database: Database, job: str = "nightly", message: str = "失敗しました") -> None:
    database.call(
        "toban_job_report", job_key=job, title="夜間バックアップ", status="error", finished_at="2026-01-01T00:00:00Z",
        message=message, log="the log's secret words",
    )  # fmt: skip
    database.call("toban_monitor", min_every=0)


def recover(database: Database) -> None:
    database.call(
        "toban_job_report", job_key="nightly", title="夜間バックアップ", status="success",
        finished_at="2026-01-01T02:00:00Z",
    )  # fmt: skip
    database.call("toban_monitor", min_every=0)


def test_an_incident_and_its_recovery_reach_the_channel_once(database: Database, receiver: Receiver) -> None:
    alerts = settings(receiver.port, base_url="https://toban.example/")
    fail(database)
    assert send_due(database, alerts, TOKYO) == 1
    assert send_due(database, alerts, TOKYO) == 0
    recover(database)
    assert send_due(database, alerts, TOKYO) == 1
    first, second = receiver.received
    assert first["title"] == "[Toban] Failing: 夜間バックアップ"
    assert first["type"] == "failure"
    assert first["message"].splitlines() == [
        "the job failed, 1 in a row",
        "失敗しました",
        "since 2026-01-01 09:00 JST",
        "https://toban.example/incidents",
    ]
    assert second["title"] == "[Toban] Recovered: 夜間バックアップ"
    assert second["type"] == "success"
    assert "it was so from 2026-01-01 09:00 JST to 2026-01-01 11:00 JST, for 2 h" in second["message"]
    assert "secret words" not in str(receiver.received)


def test_in_japanese(database: Database, receiver: Receiver) -> None:
    alerts = settings(receiver.port, language="ja")
    fail(database)
    send_due(database, alerts, TOKYO)
    recover(database)
    send_due(database, alerts, TOKYO)
    assert [one["title"] for one in receiver.received] == [
        "[Toban] 障害: 夜間バックアップ", "[Toban] 復旧: 夜間バックアップ",
    ]  # fmt: skip
    assert "連続1回" in receiver.received[0]["message"]


def test_messages_wait_for_the_end_of_the_quiet_hours(
    database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = datetime.now(TOKYO)
    around = f"{local - timedelta(hours=1):%H:%M}-{local + timedelta(hours=1):%H:%M}"
    fail(database)
    assert send_due(database, settings(receiver.port, quiet_hours=around), TOKYO) == 0
    assert receiver.received == []
    assert send_due(database, settings(receiver.port), TOKYO) == 1


def test_a_channel_that_fails_is_shown_and_gets_its_message_later(database: Database, receiver: Receiver) -> None:
    other = free_port()
    alerts = settings(receiver.port, other)
    fail(database)
    assert send_due(database, alerts, TOKYO) == 0
    assert len(receiver.received) == 1
    database.call("toban_monitor", min_every=0)
    [channel] = database.call("toban_incidents")["channels"]
    assert channel["channel"].startswith("JSON ")
    assert "127.0.0.1" in channel["error"]
    assert KEY not in str(database.call("toban_alerts"))
    # That it fails is told to the one that works.
    send_due(database, alerts, TOKYO)
    assert len(receiver.received) == 2
    assert receiver.received[1]["title"].startswith("[Toban] Failing: Alerts don't get through to JSON ")


def test_a_test_message_says_how_each_channel_did(database: Database, receiver: Receiver) -> None:
    fine, broken, unknown = try_channels(
        database,
        settings(receiver.port, free_port(), urls=SecretStr(
            f"json://127.0.0.1:{receiver.port}/{KEY}, json://127.0.0.1:{free_port()}/{KEY} nosuch://{KEY}")),
        TOKYO,
        "aya",
    )  # fmt: skip
    assert fine.error is None
    assert broken.error
    assert KEY not in broken.error
    assert (unknown.channel, unknown.error) == ("address 3", "Apprise can't read this address of ALERT_URLS")
    [received] = receiver.received
    assert received["title"] == "[Toban] Test message"
    states = {row["channel"]: row["failing_since"] is not None for row in database.call("toban_alerts")["channels"]}
    assert states == {fine.channel: False, broken.channel: True, unknown.channel: True}


def test_a_test_message_goes_out_without_the_database(receiver: Receiver) -> None:
    away = PostgresDatabase("postgresql://x@127.0.0.1:9/y", pool_size=0)
    [outcome] = try_channels(away, settings(receiver.port), TOKYO, None)
    assert outcome.error is None
    assert len(receiver.received) == 1


def test_no_key_is_logged(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fail(database)
    send_due(database, settings(free_port()), TOKYO)
    assert KEY not in "".join(record.getMessage() for record in caplog.records if record.name == "apprise")
    assert KEY not in repr(settings(1))
    assert all(KEY not in channel.name for channel in channels(settings(1)))


def test_a_tick_looks_and_sends(database: Database, receiver: Receiver) -> None:
    services: Any = SimpleNamespace(
        database=database,
        settings=SimpleNamespace(
            alerts=settings(receiver.port), audio=SimpleNamespace(zone=TOKYO), ledger=LedgerSettings()
        ),
    )
    monitor = Monitor(services)
    database.call("toban_job_report", job_key="j", title="J", status="error", finished_at="2026-01-01T00:00:00Z")
    look = monitor.tick()
    assert look["opened"] == ["job/j"]
    assert len(receiver.received) == 1
    assert not monitor.tick()["looked"]  # too soon
    assert database.call("toban_incidents")["badge"] == 1


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("job", {"fails": 2}),
        ("items", {"kind": "permanent"}),
        ("overdue", {"state": "missed"}),
        ("overdue", {"state": "overran"}),
        ("beat", {"stood_in": True}),
        ("worker", {"state": "none", "queue": "whisper"}),
        ("worker", {"state": "refuses", "queue": "whisper"}),
        ("worker", {"state": "not_ready"}),
        ("queue", {"state": "held", "queue": "gpt"}),
        ("alerts", {"channel": "Slack 1"}),
    ],
)
def test_every_kind_has_words(kind: str, details: dict[str, Any], language: Any) -> None:
    incident = {
        "kind": kind, "details": details, "title": "A {title}", "reason": "see postgresql://me:pw@db/x {}",
        "job_key": None, "count": 3, "flaps": 1, "since": "2026-01-01T00:00:00+00:00", "recovered_at": None,
        "downtime": None,
    }  # fmt: skip
    words = message({"kind": "opened", "incident": incident}, language, TOKYO, None)
    assert "pw@" not in words.body
    assert len(words.body.splitlines()) >= 3
    assert details.get("queue", "") in words.body
    assert ("A {title}" in words.title) or language == "ja"
