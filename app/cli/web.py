"""`toban web`."""

import typer

from app import logs
from app.errors import Permanent
from app.services import build_services
from app.settings import load


def told(first: str) -> str:
    return f"There is no account yet. This link makes the first one, once, within a day:\n{first}"


def web(host: str | None, port: int | None, *, link: bool) -> None:
    from app.web.accounts import Accounts
    from app.web.server import PATIENCE, address, first_link, listen, serve

    settings = load(audio=False)
    logs.configure(settings.log)
    chosen = settings.web.model_copy(
        update={"web_host": host or settings.web.web_host, "web_port": port or settings.web.web_port}
    )
    settings = settings.model_copy(update={"web": chosen})
    try:
        own = listen(chosen.web_host, chosen.web_port)
    except OSError as error:
        raise Permanent(
            f"can't listen on {chosen.web_host}:{chosen.web_port}: {error.strerror}; "
            "`--port` or WEB_PORT names another port"
        ) from None
    services = build_services(settings, patience=PATIENCE)
    try:
        base = address(chosen, own.getsockname()[1])
        typer.echo(f"Toban's pages: {base}")
        if link and (first := first_link(Accounts(services.database, chosen), base)):
            typer.echo(told(first))
        serve(services, own)
    finally:
        services.close()
