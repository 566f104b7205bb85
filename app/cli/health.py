"""`toban health`: one process of this machine, or everything, in a sentence and an exit code."""

import httpx
import typer

from app.broker import ping
from app.database import open_database
from app.errors import TobanError
from app.readiness import Health, Part, own_beat, own_worker, parts_of
from app.settings import Broker, Database, Ledger, Web, load_group
from app.sources import load_sources

TIMEOUT = 5  # seconds


def health(what: str | None, queue: str | None) -> None:
    """Exit with 1 unless it is well."""
    if what == "web":
        tell({"web": web(load_group(Web))})
        return
    try:
        seen = asked(load_group(Database))
    except TobanError as error:
        parts = {"database": Part(False, str(error))}
        if what is None:
            parts |= {"broker": broker()}
        tell(parts)
        return
    match what:
        case "worker":
            tell({"worker": own_worker(seen, queue)})
        case "beat":
            tell({"beat": own_beat(seen)})
        case _:
            load_sources(load_group(Ledger))
            tell({"database": Part(True, "answers"), "broker": broker(), **parts_of(seen)})


def tell(parts: dict[str, Part]) -> None:
    for name, part in parts.items():
        typer.echo(f"{name}: {part.reason}")
    if not all(part.fine for part in parts.values()):
        raise typer.Exit(1)


def asked(settings: Database) -> Health:
    """The answer of `toban_health`. Raises `TobanError`."""
    database = open_database(settings, shared=False)
    try:
        answer: Health = database.call("toban_health")
    finally:
        database.close()
    return answer


def broker() -> Part:
    try:
        ping(load_group(Broker))
    except TobanError as error:
        return Part(False, str(error))
    return Part(True, "answers")


def web(settings: Web) -> Part:
    """The web process of this machine, by its /health/ready."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.web_host, settings.web_host)  # noqa: S104 - read, not bound
    address = f"http://{f'[{host}]' if ':' in host else host}:{settings.web_port}/health/ready"
    try:
        answer = httpx.get(address, timeout=TIMEOUT, trust_env=False)
        failing = [
            f"{name} ({part['reason']})" for name, part in answer.json()["parts"].items() if part["state"] != "ok"
        ]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return Part(False, f"{address} does not answer: {str(error) or type(error).__name__}")
    return Part(answer.is_success, "; ".join(failing) or "all is well")
