"""`toban alerts test`."""

import typer

from app.cli.console import console
from app.database import open_database
from app.errors import Permanent
from app.monitor.alerts import test as send
from app.settings import read


def test() -> None:
    settings = read(audio=False)
    if not settings.alerts.addresses:
        raise Permanent("ALERT_URLS names no channel; docs/monitor.md has examples")
    database = open_database(settings.database, shared=False)
    try:
        outcomes = send(database, settings.alerts, settings.audio.zone, who="toban alerts test")
    finally:
        database.close()
    screen = console()
    for outcome in outcomes:
        screen.print(f"{outcome.channel}: {outcome.error or 'sent'}", markup=False)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)
