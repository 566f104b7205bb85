"""`toban import-config`: the old switchboard's settings become those of jobs."""

from pathlib import Path

from rich.markup import escape

from app.cli.console import Grid, console
from app.config_import import JOBS, Setting, Switchboard, read
from app.database import open_database
from app.jobs import Row, edit, in_database, in_timetable, introduced
from app.settings import Database, load_group


def import_config(path: Path, *, dry_run: bool) -> None:
    """Read `path`, change the jobs (unless `dry_run`), and print each value, what it was and what it is.

    Raises `Permanent`.
    """
    settings = load_group(Database)
    # Before the database is asked for anything, so that a bad file changes nothing.
    known = in_timetable()
    found = read(path, known)
    database = open_database(settings, shared=False)
    try:
        before = {**known, **in_database(database)}
        if not dry_run:
            there = introduced(database, *found.jobs)
            for job in found.jobs:
                edit(database, there[job], found.changes(job))
    finally:
        database.close()
    screen = console()
    if found.settings:
        screen.print(_table(found, before))
    for where, why in found.unmapped.items():
        screen.print(f"[yellow]Not taken over:[/] {escape(where)}: {escape(why)}", soft_wrap=True)
    screen.print(_summary(found, before, dry_run=dry_run), soft_wrap=True)


def _table(found: Switchboard, before: dict[str, Row]) -> Grid:
    table = Grid("config.json", "value", "job", "setting", "was", "is")
    for one in found.settings:
        was = one.of(before[one.job])
        table.add_row(
            escape(one.path), escape(_shown(one.value)), one.job, _setting(one), escape(_shown(was)),
            escape(_shown(one.value)), style="" if was != one.value else "dim",
        )  # fmt: skip
    return table


def _setting(one: Setting) -> str:
    return {"partition": "device", "batch_limit": "batch limit"}.get(one.name, one.name)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(found: Switchboard, before: dict[str, Row], *, dry_run: bool) -> str:
    changed = sum(one.of(before[one.job]) != one.value for one in found.settings)
    if not found.settings:
        return f"Nothing to take over: the apis that have a job here are {', '.join(JOBS)}."
    if not changed:
        return "All of it is set already; nothing was changed."
    if dry_run:
        return f"{changed} of {len(found.settings)} would change; nothing was changed."
    return f"{changed} of {len(found.settings)} changed. They hold from each job's next tick on, within a minute."
