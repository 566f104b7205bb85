"""`toban health`: what a container's health check runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from socket import gethostname

import psycopg
import pytest

from app.cli import main
from app.database.postgres import PostgresDatabase
from tests.support.servers import Redis, free_port
from tests.support.web import Site

Health = Callable[..., tuple[int, str]]


@pytest.fixture
def health(
    database_url: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Health:
    """Runs the command; returns exit code and words."""
    monkeypatch.setenv("TOBAN_ENV_FILE", os.devnull)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.url)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["health", *arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return int(ended.value.code or 0), shown.out + shown.err

    return run


@pytest.fixture
def database(database_url: str) -> Iterator[PostgresDatabase]:
    own = PostgresDatabase(database_url)
    yield own
    own.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that could be a worker's child."""
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield own
    own.kill()
    own.wait()


def report(database: PostgresDatabase, pid: int, host: str = "", queue: str = "whisper") -> None:
    node = f"{queue}@{host or gethostname()}/1"
    database.call(
        "toban_heartbeat", worker=f"{node}#{pid}", node=node, pid=pid, queues=[queue], slots=1, rss_bytes=1, lease=60,
        stall=300, items=[],
    )  # fmt: skip


def test_a_worker_is_as_well_as_its_children(
    health: Health, database: PostgresDatabase, child: subprocess.Popen[bytes]
) -> None:
    assert health("worker")[0] == 1
    report(database, child.pid, host="elsewhere")
    assert health("worker")[0] == 1, "another machine's"
    report(database, child.pid)
    code, words = health("worker")
    assert code == 0
    assert "room for 1 at once on whisper" in words
    assert health("worker", "--queue", "whisper")[0] == 0
    assert health("worker", "--queue", "gpt")[0] == 1
    child.kill()  # a zombie, as long as its parent does not ask
    code, words = health("worker")
    assert code == 1
    assert "all that reported are gone" in words


def test_a_worker_that_hangs_is_not_well(
    health: Health, database: PostgresDatabase, child: subprocess.Popen[bytes], database_url: str
) -> None:
    report(database, child.pid)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update workers set expires_at = now()")
    assert health("worker")[0] == 1


def test_a_beat_is_as_well_as_its_ticks(
    health: Health, database: PostgresDatabase, child: subprocess.Popen[bytes], database_url: str
) -> None:
    assert health("beat")[0] == 1
    database.call("toban_beat", beat="x#1", node="elsewhere", pid=child.pid)
    assert health("beat")[0] == 1
    database.call("toban_beat", beat="y#1", node=gethostname(), pid=child.pid)
    assert health("beat") == (0, "beat: this machine's beat ticked 0 s ago\n")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update beats set ticked_at = now() - interval '2 min'")
    code, words = health("beat")
    assert code == 1
    assert "2 min ago" in words
    database.call("toban_beat", beat="y#1", node=gethostname(), pid=child.pid)
    child.kill()
    assert health("beat") == (1, "beat: this machine's beat is gone; it ticked 0 s ago\n")


def test_everything(health: Health, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    report(database, 1, queue="default")
    database.call("toban_beat", beat="b", node="n", pid=1)
    code, words = health()
    assert code == 0, words
    assert "broker: answers" in words
    assert "worker:default: room for 1 at once" in words
    monkeypatch.setenv("CELERY_BROKER_URL", f"redis://:secret-word@127.0.0.1:{free_port()}/0")
    code, words = health()
    assert code == 1
    assert "broker: the broker can't be used" in words
    assert "secret-word" not in words


def test_rabbitmq_that_is_away(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", f"amqp://guest:secret-word@127.0.0.1:{free_port()}//")
    code, words = health()
    assert code == 1
    assert "broker: the broker can't be used" in words
    assert "secret-word" not in words


def test_the_database_is_away(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:secret-word@127.0.0.1:{free_port()}/d")
    for what in ("worker", "beat"):
        code, words = health(what)
        assert code == 1
        assert words.startswith("database: ")
        assert "secret-word" not in words


def test_the_web_process(
    health: Health, open_site: Callable[..., Site], redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = open_site(broker=redis_server.url)
    monkeypatch.setenv("WEB_PORT", site.address.rpartition(":")[2])
    code, words = health("web")
    assert code == 0
    assert "beat (no beat has ever ticked)" in words
    monkeypatch.setenv("WEB_PORT", str(free_port()))
    code, words = health("web")
    assert code == 1
    assert "does not answer" in words
