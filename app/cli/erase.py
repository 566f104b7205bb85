"""`toban erase`: a dry run, or the erasure and its receipt."""

import getpass
import json
import socket
from datetime import date
from functools import partial
from pathlib import Path

import typer

from app.cli.console import Grid, console
from app.database import open_database
from app.erase import Counts, Eraser, Wanted
from app.errors import Permanent
from app.gpt.batches import forget_leftovers
from app.settings import read

import tasks  # noqa: F401 isort:skip - registers the sources, and so their queues

AUDIO_STAYS = "Recordings in the folder or bucket were not looked at; --audio erases them too."


def erase(
    device: str,
    since: str | None,
    until: str | None,
    *,
    audio: bool,
    yes: bool,
    who: str | None,
    receipt: Path | None,
    as_json: bool,
) -> None:
    """Raises `TobanError`, `SettingsError`; exit code 1 for a device of which nothing is known."""
    wanted = _wanted(device, since, until, audio=audio)
    if yes and receipt is not None:
        _writable(receipt)
    settings = read(audio=audio)
    database = open_database(settings.database, shared=False)
    try:
        eraser = Eraser(database, settings, wanted, partial(forget_leftovers, settings, database))
        found = eraser.preview()
        # (One that was killed before its receipt still gets it.)
        if not any(found.values()) and not (yes and eraser.unfinished()):
            raise typer.Exit(_nothing(eraser, device, audio=audio, as_json=as_json))
        if not yes:
            _show(found, device, audio=audio, as_json=as_json)
            return
        done = eraser.erase(who or _user())
    finally:
        database.close()
    text = json.dumps(done, ensure_ascii=False, indent=2) + "\n"
    path = receipt or Path(f"toban-erasure-{done['erasure']}.json")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"The receipt could not be written ({error}); it is in the table `erasures`, and here:", err=True)
        as_json = True
    if as_json:
        typer.echo(text, nl=False)
        return
    total = sum(done["erased"].values())
    what = "rows, messages and objects" if audio else "rows and messages"
    typer.echo(f"Erased: {total} {what} of device {device}. The receipt is {path}.")
    if not audio:
        typer.echo(AUDIO_STAYS)
    typer.echo("Out of reach:\n" + "\n".join(f"  - {what}" for what in done["out_of_reach"]))


def _wanted(device: str, since: str | None, until: str | None, *, audio: bool) -> Wanted:
    if not device.strip():
        raise Permanent("--device is empty; say which device is to be erased")
    wanted = Wanted(device, _day(since, "--from"), _day(until, "--to"), audio)
    if wanted.since and wanted.until and wanted.since > wanted.until:
        raise Permanent(f"--from {since} is after --to {until}")
    return wanted


def _nothing(eraser: Eraser, device: str, *, audio: bool, as_json: bool) -> int:
    """Says that there is nothing; returns the exit code."""
    earlier = [one["ended_at"] for one in eraser.earlier()]
    if as_json:
        typer.echo(json.dumps({"found": {}, "erased_before": earlier}))
    elif earlier:
        typer.echo(f"Nothing of device {device} is left; it was erased at {earlier[0]}.")
        if not audio:
            typer.echo(AUDIO_STAYS)
    else:
        typer.echo(f"Nothing of device {device} is here; is the id right?")
    return 0 if earlier else 1


def _show(found: Counts, device: str, *, audio: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"found": found}))
        return
    shown = Grid("what", "there is", right={"there is"})
    for name, count in sorted(found.items()):
        if count:
            shown.add_row(name.replace("_", " "), str(count))
    console().print(shown)
    typer.echo(f"This is what there is of device {device}. Nothing was erased; --yes does it.")
    if not audio:
        typer.echo(AUDIO_STAYS)


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Permanent(f"{option} is {text!r}; write it as 2025-07-18") from None


def _writable(path: Path) -> None:
    """Before anything is gone. Raises `Permanent`."""
    try:
        path.touch()
    except OSError as error:
        raise Permanent(f"the receipt can't be written to {path}: {error.strerror}") from None


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = "somebody"
    return f"{name}@{socket.gethostname()}"
