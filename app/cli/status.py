"""`toban status`: what waits, what runs, who works, what failed."""

import json
import time
from collections.abc import Iterator
from datetime import datetime

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape

from app.cli.console import Grid, console
from app.cli.hints import here
from app.database import Database, open_database
from app.errors import Transient
from app.health import STATES, Status, duration, in_use, overdue, share, since, slots, worker_command
from app.settings import Database as DatabaseSettings
from app.settings import load_group


def status(*, as_json: bool, watch: bool) -> None:
    database = open_database(load_group(DatabaseSettings), shared=False)
    screen = console()
    try:
        if watch:
            _watch(database, screen, as_json=as_json)
        elif as_json:
            typer.echo(json.dumps(_asked(database), ensure_ascii=False))
        else:
            screen.print(rendered(_asked(database)))
    finally:
        database.close()


def _watch(database: Database, screen: Console, *, as_json: bool) -> None:
    try:
        if as_json:  # one line each
            while True:
                typer.echo(json.dumps(_asked(database), ensure_ascii=False))
                time.sleep(2)
        with Live(console=screen, screen=screen.is_terminal, auto_refresh=False) as live:
            while True:
                try:
                    live.update(rendered(_asked(database)), refresh=True)
                except Transient as error:
                    live.update(f"{escape(str(error))}\nTrying again …", refresh=True)
                time.sleep(1)
    except KeyboardInterrupt:
        return


def _asked(database: Database) -> Status:
    return {
        **database.call("toban_status"),
        "incidents": database.call("toban_incidents")["incidents"],
        "modes": database.call("toban_modes")["modes"],
    }


def rendered(status: Status) -> RenderableType:
    """The whole answer of `toban_status` for a person."""
    now = datetime.fromisoformat(status["now"])
    parts: list[RenderableType] = [_sources(status, now), _workers(status, now)]
    parts += [
        f"[bold red]{escape(one['title'])}: {escape(one.get('reason') or one['kind'])}[/]"
        for one in status["incidents"]
        if one["kind"] != "items"  # they have a table
    ]
    parts += [f"[bold yellow]{escape(here(warning))}[/]" for warning in warnings(status)]
    parts.append(_jobs(status, now))
    if status["running"]:
        parts.append(_running(status, now))
    if status.get("batches"):
        parts.append(_batches(status, now))
    if status["failed"]:
        parts.append(_failed(status, now))
    return Group(*parts)


def warnings(status: Status) -> Iterator[str]:
    """What a person should know about: queues that nobody serves, ticks that do not come."""
    for queue, count in slots(status).items():
        if not count:
            yield f"No worker listens to {queue}: start one with `{worker_command(queue)}`, or `toban up`"
    for job, seconds in overdue(status).items():
        yield f"The job {job} has not run for {duration(seconds)}: is a beat or a worker alive?"
    now = datetime.fromisoformat(status["now"])
    for mode in status["modes"]:
        if mode["collisions"]:
            last = duration(since(mode["last_collision"], now))
            yield (
                f"{mode['source']}: {mode['collisions']} rows were completed by Toban and by somebody else in 24 h, "
                f"the last {last} ago: is the old cron still running?"
            )


def _sources(status: Status, now: datetime) -> Grid:
    modes = {mode["source"]: mode["mode"] for mode in status["modes"]}
    mode_column = ["mode"] if "shadow" in modes.values() else []
    table = Grid("source", *STATES, "oldest due", *mode_column, title="Sources", right=STATES, turns=True)
    for source in in_use(status["sources"], STATES):
        counts = [str(source[state]) if source[state] else "[dim]0[/]" for state in STATES]
        if source["failed"]:
            counts[-1] = f"[bold red]{source['failed']}[/]"
        mode = ["[yellow]shadow[/]" if modes.get(source["source"]) == "shadow" else ""] if mode_column else []
        table.add_row(source["source"], *counts, _for(source["oldest_due"], now), *mode)
    return table


def _workers(status: Status, now: datetime) -> Grid:
    table = Grid("worker", "queues", "busy", "memory", "last news", title="Workers")
    for worker in status["workers"]:
        memory = f"{worker['rss_bytes'] / 1024**2:.0f} MB" if worker["rss_bytes"] else ""
        busy = f"{worker['busy']} of {worker['slots']}"
        table.add_row(worker["id"], ", ".join(worker["queues"]), busy, memory, _since(worker["seen_at"], now))
    return table


def _jobs(status: Status, now: datetime) -> Grid:
    table = Grid("job", "every", "last start", "outcome", "message", title="Jobs", texts={"message"})
    for job in status["jobs"]:
        outcome = "paused" if not job["enabled"] else job["last_status"] or ""
        style = "red" if outcome == "error" else ""
        table.add_row(
            job["job"],
            duration(float(job["every"])),
            _since(job["last_started_at"], now),
            outcome,
            escape(job["last_message"] or ""),
            style=style,
        )
    return table


def _running(status: Status, now: datetime) -> Grid:
    table = Grid("source", "key", "worker", "try", "for", "progress", title="Running", keys=2)
    for item in status["running"]:
        started = _for(item["started_at"], now)
        progress = share(item["progress"])
        done = f"{progress:.0%}" if progress is not None else ""
        table.add_row(item["source"], escape(item["key"]), item["worker"], str(item["tries"]), started, done)
    return table


def _batches(status: Status, now: datetime) -> Grid:
    table = Grid("source", "batch", "rows", "still out", "for", "direct in", "at the provider",
                 title="Batches", keys=2, texts={"at the provider"})  # fmt: skip
    for batch in status["batches"]:
        made = _for(batch["created_at"], now)
        left = duration(max(0.0, (datetime.fromisoformat(batch["leave_by"]) - now).total_seconds()))
        theirs = escape(batch["message"] or batch["state"])
        table.add_row(batch["source"], str(batch["id"]), str(batch["size"]), str(batch["out"]), made, left, theirs)
    return table


def _failed(status: Status, now: datetime) -> Grid:
    table = Grid("source", "key", "tries", "when", "reason", title="Failed (the latest)", keys=2, texts={"reason"})
    for item in status["failed"]:
        reason = escape(item["last_error"] or "")
        table.add_row(item["source"], escape(item["key"]), str(item["tries"]), _since(item["finished_at"], now), reason)
    return table


def _for(moment: str | None, now: datetime) -> str:
    return duration(since(moment, now)) if moment else ""


def _since(moment: str | None, now: datetime) -> str:
    return f"{_for(moment, now)} ago" if moment else ""
