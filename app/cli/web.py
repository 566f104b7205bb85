"""`toban web`."""

import socket

import typer

from app import logs
from app.errors import Permanent
from app.services import build_services
from app.settings import Web, load


def told(first: str) -> str:
    return f"There is no account yet. This link makes the first one, once, within a day:\n{first}"


def _listen(web: Web) -> list[socket.socket]:
    """Every port, or none. Raises `Permanent`."""
    from app.web.server import listen

    sockets: list[socket.socket] = []
    for port in web.ports:
        try:
            sockets.append(listen(web.web_host, port))
        except OSError as error:
            for own in sockets:
                own.close()
            name = "`--port` or WEB_PORT" if port == web.web_port else "WEB_EXTRA_PORTS"
            raise Permanent(
                f"can't listen on {web.web_host}:{port}: {error.strerror}; {name} names another port"
            ) from None
    return sockets


def web(host: str | None, port: int | None, *, link: bool) -> None:
    from app.web.accounts import Accounts
    from app.web.server import PATIENCE, address, first_link, serve

    settings = load(audio=False)
    logs.configure(settings.log)
    chosen = settings.web.model_copy(
        update={"web_host": host or settings.web.web_host, "web_port": port or settings.web.web_port}
    )
    settings = settings.model_copy(update={"web": chosen})
    sockets = _listen(chosen)
    services = build_services(settings, patience=PATIENCE)
    try:
        base = address(chosen, chosen.web_port)
        typer.echo(f"Toban's pages: {base}")
        if others := chosen.ports[1:]:
            typer.echo(f"The same on port {', '.join(map(str, others))}")
        if link and (first := first_link(Accounts(services.database, chosen), base)):
            typer.echo(told(first))
        serve(services, sockets)
    finally:
        services.close()
