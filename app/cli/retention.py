"""`toban retention`: what is old enough to be forgotten."""

import json

import typer

from app.cli.console import Grid, console
from app.retention import KINDS, limits, preview, retain, told
from app.services import build_services
from app.settings import read


def retention(*, dry_run: bool, as_json: bool) -> None:
    """Raises `TobanError`, `SettingsError`."""
    settings = read(audio=False)
    services = build_services(settings)
    try:
        if not dry_run:
            gone = retain(services)
            typer.echo(json.dumps({"gone": gone}) if as_json else told(gone).capitalize() + ".")
            return
        days, found = limits(settings), preview(services.database, settings)
    finally:
        services.close()
    if as_json:
        typer.echo(json.dumps({"days": days, "would_go": found}))
        return
    shown = Grid("what", "kept for", "would go now", "setting")
    for kind, (name, setting) in KINDS.items():
        kept = days[name]
        period = "ever" if not kept else "1 day" if kept == 1 else f"{kept} days"
        shown.add_row(kind.replace("_", " "), period, str(found.get(kind, "")), setting or "")
    console().print(shown)
