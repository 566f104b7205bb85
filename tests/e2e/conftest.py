"""A system for each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.servers import Redis
from tests.support.system import System

NewSystem = Callable[..., System]


@pytest.fixture
def new_system(database_url: str, redis_server: Redis, tmp_path: Path) -> Iterator[NewSystem]:
    """Makes the system with more of an environment; ends it after the test."""
    with ExitStack() as stack:
        yield lambda **env: stack.enter_context(System(database_url, redis_server, tmp_path, **env))
