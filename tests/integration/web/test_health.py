"""/health/ready says what is wrong, and is fine again by itself."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest

from app.web import health
from beat_schedule import timetable
from tests.support.away import away
from tests.support.servers import Postgres, Redis, wait_for
from tests.support.web import Site

OpenSite = Callable[..., Site]


@pytest.fixture(autouse=True)
def _no_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "KEPT", 0.0)


@pytest.fixture
def site(open_site: OpenSite, redis_server: Redis) -> Site:
    return open_site(broker=redis_server.url)


def asked(site: Site, **query: str) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{site.address}/health/ready", params=query, timeout=10)
    return answer.status_code, answer.json()


def failing(site: Site) -> set[str]:
    return {name for name, part in asked(site)[1]["parts"].items() if part["state"] == "failing"}


def call(site: Site, function: str, **params: object) -> Any:
    return site.services.database.call(f"toban_{function}", **params)


def heartbeat(site: Site, queue: str = "default") -> None:
    call(
        site, "heartbeat", worker=f"{queue}@h#1", node=f"{queue}@h/1", pid=1, queues=[queue], slots=2, rss_bytes=1,
        lease=60, stall=300, items=[],
    )  # fmt: skip


def sql(site: Site, statement: str) -> None:
    url = site.services.settings.database.database_url
    assert url
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        connection.execute(statement.encode())


def test_redis_is_killed_and_comes_back(site: Site, redis_server: Redis) -> None:
    assert asked(site)[0] == 200
    redis_server.stop()
    try:
        status, answer = asked(site)
        assert (status, answer["status"]) == (503, "down")
        assert answer["parts"]["broker"] == {
            "state": "failing",
            "needed": True,
            "reason": "can't be used; the log says why",
        }
        assert answer["parts"]["database"]["state"] == "ok"
        assert asked(site, need="database")[0] == 200, "a balancer of pages need not care"
        assert httpx.get(f"{site.address}/health/live").status_code == 200
    finally:
        redis_server.start()
    wait_for(lambda: asked(site)[0] == 200, "the readiness")


def test_the_database_is_gone_and_comes_back(site: Site, postgres: Postgres) -> None:
    with away(postgres, site):
        status, answer = asked(site)
        assert status == 503
        assert answer["parts"].keys() == {"database", "broker"}, "the rest can't be seen"
        assert answer["parts"]["database"]["state"] == "failing"
        assert "allow_connections" not in str(answer)
        assert asked(site, need="beat")[0] == 503
    wait_for(lambda: asked(site)[0] == 200, "the readiness")


def test_beat_and_workers_come_and_die(site: Site) -> None:
    assert failing(site) == {"beat", "worker:default"}
    assert asked(site)[1]["status"] == "degraded"
    heartbeat(site)
    call(site, "beat", beat="h#1", node="h", pid=1)
    assert asked(site)[1]["status"] == "ready"
    sql(site, "update beats set ticked_at = now() - interval '46 s'")
    assert failing(site) == {"beat"}
    assert asked(site)[0] == 200
    assert asked(site, need="database,beat")[0] == 503
    call(site, "beat", beat="h#1", node="h", pid=1)
    # All children of the whisper worker are dead; their parent would still answer a ping.
    sql(site, "insert into audio_files (device_id, recorded_at, file_path) values ('d', now(), 'a.wav')")
    heartbeat(site, "whisper")
    assert failing(site) == set()
    sql(site, "update workers set expires_at = now() where node like 'whisper%'")
    assert failing(site) == {"worker:whisper"}
    assert "and rows wait" in asked(site)[1]["parts"]["worker:whisper"]["reason"]
    assert asked(site, need="worker:whisper")[0] == 503


def test_a_row_that_waits_too_long_is_told(site: Site) -> None:
    sql(site, "insert into audio_files (device_id, recorded_at, file_path) values ('d', now(), 'a.wav')")
    assert "rows" not in failing(site)
    sql(site, "update work_items set opened_at = now() - interval '11 min', available_at = now() - interval '11 min'")
    assert "rows" in failing(site)
    assert "11 min (transcription)" in asked(site)[1]["parts"]["rows"]["reason"]
    call(site, "sync_jobs", jobs=[timetable()["transcription"].row()])
    call(site, "edit_job", job="transcription", enabled=False)
    assert "rows" not in failing(site), "whoever pauses a job knows that its rows wait"


def test_a_check_that_hangs_holds_up_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEADLINE", 0.2)
    go_on, begun = threading.Event(), []

    def hang() -> None:
        begun.append(1)
        go_on.wait(20)

    monkeypatch.setattr(site.app.state.toban.ready._broker, "_check", hang)
    try:
        for _ in range(4):
            status, answer = asked(site)
            assert status == 503
            assert "has not answered within" in answer["parts"]["broker"]["reason"]
        assert len(begun) == 1, "a second one would hang, too"
        assert httpx.get(f"{site.address}/health/live").status_code == 200
    finally:
        go_on.set()


def test_probing_often_asks_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "KEPT", 60.0)
    asks = []
    monkeypatch.setattr(site.app.state.toban.ready._broker, "_check", lambda: asks.append(1))
    for _ in range(5):
        asked(site)
    assert len(asks) == 1
