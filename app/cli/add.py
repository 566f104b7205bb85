"""`toban add`."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import typer

from app.cli.hints import here
from app.errors import Permanent
from app.intake import put_files, put_rows
from app.recordings import Recording, check_device, find, timed
from app.settings import Audio, Database, load_group


def add(path: Path, device_id: str, at: str | None) -> None:
    audio, database = load_group(Audio), load_group(Database)
    check_device(device_id)
    files = find(path)
    if at is None:
        recordings = timed(files, device_id, audio.zone)
    elif len(files) > 1:
        raise Permanent(f"--at is for one recording, and {path} has {len(files)}; leave it out to use their names")
    else:
        recordings = [Recording(files[0], device_id, moment(at, audio.zone))]
    put_files(audio, recordings)  # before the rows: whoever sees a row finds its recording
    put_rows(database, audio.zone, recordings)
    for recording in recordings:
        local = recording.recorded_at.astimezone(audio.zone)
        typer.echo(f"{local:%Y-%m-%d %H:%M:%S} {recording.file} → {recording.key(audio.zone)}")
    typer.echo(here(f"{len(recordings)} put in and waiting; `toban status --watch` shows them go."))


def moment(text: str, zone: ZoneInfo) -> datetime:
    """The time on the command line; without an offset it is meant in `zone`. Whole seconds.

    Raises `Permanent`.
    """
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise Permanent(f"--at is {text!r}; write it as 2025-07-18T12:30 or 2025-07-18T03:30:00Z") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)).replace(microsecond=0)
