"""`toban user` and `toban key`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import typer
from rich.markup import escape

from app.cli.console import Grid, console
from app.cli.hints import here
from app.database import open_database
from app.settings import Database, Web, load_group
from app.web.accounts import LINK_LIFE, Accounts, Role, check_password


@contextmanager
def _accounts() -> Iterator[Accounts]:
    database = open_database(load_group(Database), shared=False)
    try:
        yield Accounts(database, load_group(Web))
    finally:
        database.close()


def _password() -> str:
    """Asked for twice, or read from a pipe; never an argument, which every process of the machine could see."""
    if sys.stdin.isatty():
        password = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    else:
        password = sys.stdin.readline().rstrip("\n")
    check_password(password)
    return password


def add_user(name: str, role: Role) -> None:
    password = _password()
    with _accounts() as accounts:
        accounts.add(name, password, role)
    typer.echo(f"{name} may sign in, as {role}.")


def list_users() -> None:
    with _accounts() as accounts:
        users = accounts.users()
    if not users:
        typer.echo(here("There is no account. `toban user add NAME --role operator` makes one."))
        return
    table = Grid("name", "role", "made", "last sign-in", "sessions")
    for user in users:
        made, seen = _day(user["created_at"]), _day(user["signed_in_at"])
        table.add_row(escape(user["name"]), user["role"], made, seen, str(user["sessions"]))
    console().print(table)


def remove_user(name: str) -> None:
    with _accounts() as accounts:
        accounts.remove(name)
    typer.echo(f"{name} is gone, and signed out everywhere.")


def set_password(name: str) -> None:
    password = _password()
    with _accounts() as accounts:
        accounts.set_password(name, password)
    typer.echo(f"{name} has a new password, and is signed out everywhere.")


def set_role(name: str, role: Role) -> None:
    with _accounts() as accounts:
        accounts.set_role(name, role)
    typer.echo(f"{name} is {role} now.")


def link_user(name: str) -> None:
    from app.web.server import address

    web = load_group(Web)
    with _accounts() as accounts:
        token = accounts.make_link(name)
    hours = LINK_LIFE.total_seconds() / 3600
    typer.echo(f"{name} sets a new password by this link, once, within {hours:g} hours:")
    typer.echo(f"{address(web, web.web_port)}/welcome/{token}")


def add_key(name: str, scopes: list[str], days: int | None) -> None:
    with _accounts() as accounts:
        key = accounts.add_key(name, scopes, timedelta(days=days) if days else None)
    typer.echo("This key is shown once; send it as `Authorization: Bearer …` or `X-API-Key: …`:", err=True)
    typer.echo(key)


def list_keys() -> None:
    with _accounts() as accounts:
        keys = accounts.keys()
    if not keys:
        typer.echo(here("There is no key. `toban key add NAME --scope badge` makes one."))
        return
    table = Grid("name", "key", "scopes", "made", "ends", "last used", "state")
    for key in keys:
        state = "live" if key["live"] else "revoked" if key["revoked_at"] else "too old"
        table.add_row(
            escape(key["name"]),
            f"{key['hint']}…",
            ", ".join(key["scopes"]),
            *(_day(key[column]) for column in ("created_at", "expires_at", "used_at")),
            state,
        )
    console().print(table)


def revoke_key(name: str) -> None:
    with _accounts() as accounts:
        accounts.revoke_key(name)
    typer.echo(f"The key {name} opens nothing any more.")


def _day(moment: str | None) -> str:
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}" if moment else ""
