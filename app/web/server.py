"""The web process: uvicorn before `create_app`."""

import socket
from collections.abc import Sequence

import structlog
import uvicorn
from fastapi import FastAPI

from app.errors import TobanError
from app.services import Services
from app.settings import Web
from app.web.accounts import Accounts
from app.web.application import create_app

log = structlog.get_logger("toban.web")

# A page should soon say that the database is away, seconds.
PATIENCE = 5.0


def address(settings: Web, port: int) -> str:
    """Where people reach the pages, as far as this process knows."""
    if settings.web_base_url:
        return settings.web_base_url.rstrip("/")
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(settings.web_host, settings.web_host)  # noqa: S104 - read, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{settings.root_path}"


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises `OSError` where another program has the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        own.bind((host, port))
    except OSError:
        own.close()
        raise
    return own


def first_link(accounts: Accounts, base: str) -> str | None:
    """A one-time link to the first account; None where there are accounts, or the database does not answer."""
    try:
        token = accounts.make_link()
    except TobanError as error:
        log.warning("web.no_link", reason=str(error))
        return None
    return None if token is None else f"{base}/welcome/{token}"


class Server(uvicorn.Server):
    """Asked to stop, it first answers the requests that wait for work: that goes on without it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.toban.analyses.end()
            app.state.toban.batches.end()
        await super().shutdown(sockets)


def build_server(services: Services) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(services),
        log_config=None,  # the program's own
        access_log=False,  # addresses of one-time links would be in it
        server_header=False,
        root_path=services.settings.web.root_path,
        proxy_headers=False,  # app/web/proxies.py does that
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
    )
    return Server(config)


def serve(services: Services, sockets: Sequence[socket.socket]) -> None:
    """Answer at all of them until SIGTERM or Ctrl-C."""
    ports = [own.getsockname()[1] for own in sockets]
    log.info("web.start", address=address(services.settings.web, ports[0]), ports=ports)
    build_server(services).run(sockets=list(sockets))
