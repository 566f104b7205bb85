"""`toban jobs`: what is set for each job, and how to set it."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import typer
from rich.markup import escape

from app.cli.console import Grid, console
from app.cli.hints import here
from app.database import open_database
from app.errors import Permanent
from app.health import duration as coarse
from app.jobs import (
    HIGHEST_LIMIT,
    LONGEST_TIMEOUT,
    Row,
    day,
    duration,
    edit,
    in_database,
    in_timetable,
    introduced,
    takes,
    written,
)
from app.settings import Database, load_group


def list_jobs(*, as_json: bool) -> None:
    database = open_database(load_group(Database), shared=False)
    try:
        jobs = in_database(database)
    finally:
        database.close()
    if as_json:
        typer.echo(json.dumps({"jobs": list(jobs.values())}, ensure_ascii=False))
        return
    screen = console()
    if jobs:
        screen.print(table(jobs.values()))
    if missing := sorted(in_timetable().keys() - jobs.keys()):
        told = (
            f"Not introduced yet: {', '.join(missing)}. A worker does it when it starts, and so does `toban jobs set`."
        )
        screen.print(escape(here(told)))


def set_job(job: str, *, enabled: bool | None, **texts: str | None) -> None:
    """Change what is not None, and print what is set then.

    `texts`: every, at, zone, batch_limit, timeout, device, date as they are written. Raises `Permanent`.
    """
    changes: dict[str, Any] = {name: _read(name, text) for name, text in texts.items() if text is not None}
    if enabled is not None:
        changes["enabled"] = enabled
    if not changes:
        raise Permanent(f"say what to set, as `toban jobs set {job} --pause`; `toban jobs set --help` lists it all")
    filters = {name: changes.pop(option) for option, name in FILTERS.items() if option in changes}
    if filters:
        changes["filters"] = filters
    database = open_database(load_group(Database), shared=False)
    try:
        edit(database, introduced(database, job)[job], changes)
        row = in_database(database)[job]
    finally:
        database.close()
    console().print(table([row]))
    typer.echo("This holds from the job's next tick on, within a minute.")


def _read(name: str, text: str) -> object:
    try:
        return PARSERS[name](text)
    except ValueError as error:
        raise Permanent(f"--{name.replace('_', '-')} is {text!r}; {error}") from None


def _seconds(text: str) -> float:
    return duration(text).total_seconds()


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= HIGHEST_LIMIT:
        raise ValueError(f"it is a whole number from 1 to {HIGHEST_LIMIT}, or none")
    return int(text)


def _timeout(text: str) -> float | None:
    if text == "none":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:  # (and so not NaN)
        raise ValueError(f"it is seconds, above 0 and up to {LONGEST_TIMEOUT}, or none")
    return seconds


def _device(text: str) -> str | None:
    if not text.strip():
        raise ValueError("it is a device's id, or none")
    return None if text == "none" else text.strip()


FILTERS = {"device": "partition", "date": "date"}
PARSERS: Mapping[str, Callable[[str], object]] = {
    "every": _seconds, "at": _seconds, "zone": str, "batch_limit": _limit, "timeout": _timeout, "device": _device,
    "date": day,
}  # fmt: skip


def table(jobs: Iterable[Row]) -> Grid:
    """What is set for `jobs`, and how the last run of each went."""
    shown = Grid("job", "every", "state", "rows", "limit", "timeout", "last run", "outcome", "message",
                 texts={"message"})  # fmt: skip
    now = datetime.now().astimezone()
    for job in jobs:
        started = job["last_started_at"]
        ago = f"{coarse((now - datetime.fromisoformat(started)) / timedelta(seconds=1))} ago" if started else ""
        shown.add_row(
            job["job"],
            escape(cadence(job)),
            "on" if job["enabled"] else "[yellow]paused[/]",
            escape(rows_of(job)),
            str(job["batch_limit"] or ""),
            written(job["timeout"]) if job["timeout"] else "",
            ago,
            job["last_status"] or "",
            escape(job["last_message"] or ""),
            style="red" if job["last_status"] == "error" else "",
        )
    return shown


def cadence(job: Row) -> str:
    """When its slots begin: `1h at 10m (Asia/Tokyo)`."""
    at = f" at {written(job['at'])}" if job["at"] else ""
    zone = f" ({job['zone']})" if job["zone"] != "UTC" else ""
    return f"{written(job['every'])}{at}{zone}"


def rows_of(job: Row) -> str:
    """Which rows it takes."""
    filters = job["filters"]
    parts = [f"device {filters['partition']}"] if "partition" in filters else []
    parts += [filters["date"]] if "date" in filters else []
    parts += [f"{name} {filters[name]}" for name in ("since", "until") if name in filters]
    return ", ".join(parts) or ("all" if takes(job) else "")
