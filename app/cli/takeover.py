"""`toban takeover` and `toban rollback`: who works on a source's rows."""

from contextlib import closing

import typer
from rich.markup import escape

from app.cli.console import console
from app.cli.hints import here
from app.database import open_database
from app.errors import Permanent
from app.settings import read
from app.shadow import bounds
from app.takeover import checks, mode_of

STYLES = {"OK": "green", "FAIL": "bold red", "NOTE": "yellow"}


def takeover(source: str, *, dry_run: bool, force: bool) -> None:
    """Raises `Permanent` where a check fails, unless `force`."""
    settings = read(audio=False)
    with closing(open_database(settings.database, shared=False)) as database:
        mode = mode_of(database, source)
        if mode["mode"] == "live":
            typer.echo(f"{source} is live already; nothing was changed.")
            return
        found = list(checks(database, source, mode))
        screen = console()
        for check in found:
            screen.print(f"[{STYLES[check.level]}]{check.level:<4}[/] {escape(here(check.what))}", soft_wrap=True)
        failed = any(check.level == "FAIL" for check in found)
        if dry_run:
            typer.echo("A check fails; --force takes over all the same." if failed else "Every check is good.")
            typer.echo("Nothing was changed.")
            raise typer.Exit(int(failed))
        if failed and not force:
            raise Permanent(f"{source} was not taken over, since a check fails; --force does it all the same")
        done = database.call("toban_set_mode", source=source, mode="live", who="toban takeover", **bounds(settings))
    left = f" {done['dropped']} comparisons were left." if done["dropped"] else ""
    typer.echo(here(f"{source} is live.{left} `toban rollback {source}` turns it back."))


def rollback(source: str, *, dry_run: bool, now: bool) -> None:
    settings = read(audio=False)
    with closing(open_database(settings.database, shared=False)) as database:
        if mode_of(database, source)["mode"] == "shadow":
            typer.echo(f"{source} is in shadow mode already; nothing was changed.")
            return
        status = database.call("toban_status", failed=0)
        counts = next(one for one in status["sources"] if one["source"] == source)
        if dry_run:
            runs = "given back" if now else "finished by Toban"
            typer.echo(
                f"{counts['queued']} queued rows would be given back, {counts['processing']} running ones {runs}; "
                f"{counts['pending']} wait for the other system. Nothing was changed."
            )
            return
        done = database.call(
            "toban_set_mode", source=source, mode="shadow", who="toban rollback", release=now, **bounds(settings)
        )
    typer.echo(
        f"{source} is in shadow mode: Toban claims nothing of it. {done['released']} rows were given back; "
        f"{done['running']} still run and will be finished. Rows that wait say so, for the other system to take."
    )
    if counts["failed"]:
        typer.echo(f"{counts['failed']} rows have failed; a system that looks for waiting rows passes over them.")
