"""`toban reprocess`."""

from typing import Any

import typer

from app.cli.hints import here
from app.database import open_database
from app.reprocess import held_models
from app.reprocess import reprocess as ask
from app.settings import read


def reprocess(source: str, **selectors: Any) -> None:  # noqa: ANN401 - those of app.reprocess
    settings = read(audio=False)
    database = open_database(settings.database, shared=False)
    try:
        held = held_models(source, settings)
        done = ask(database, settings.audio.zone, source=source, held=held, **selectors)
    finally:
        database.close()
    if not done["matched"]:
        typer.echo(here("No row fits; nothing was changed. `toban status` shows sources and keys."))
        return
    typer.echo(
        f"{done['matched']} rows fit: {done['opened']} wait again, {done['waiting']} were waiting already, "
        f"{done['running']} run now and go again afterwards."
    )
