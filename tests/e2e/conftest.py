"""A system for each test, and a Supabase project for those that want one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.servers import Postgres, PostgREST, Redis, postgrest_binary, service_missing
from tests.support.system import System

NewSystem = Callable[..., System]


@pytest.fixture
def new_system(database_url: str, redis_server: Redis, tmp_path: Path) -> Iterator[NewSystem]:
    """Makes the system with more of an environment; ends it after the test."""
    with ExitStack() as stack:
        yield lambda **env: stack.enter_context(System(database_url, redis_server, tmp_path, **env))


@pytest.fixture
def project(migrated: Postgres, database_url: str) -> Iterator[str]:
    """The address of a project whose database is this test's own."""
    try:
        rest = PostgREST(database_url.replace("postgres@", "authenticator@"), postgrest_binary())
        gateway = Gateway(rest)
        try:
            rest.start()
            yield gateway.start().url
        finally:
            gateway.stop()
            rest.stop()
    except FileNotFoundError as error:
        service_missing(str(error))
