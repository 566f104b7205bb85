"""The database, and what the ledger in it says about workers, beat and the rows that wait."""

import time
from datetime import datetime
from typing import Any

from app.database import open_database
from app.doctor.finding import Finding, Findings
from app.errors import TobanError
from app.health import Status, duration, overdue, since, slots, worker_command
from app.readiness import WAIT, Health, beat
from app.settings import Database, key_role

Mode = dict[str, Any]

# Ticks expire by the sender's clock, so clocks that differ by more than this lose some, seconds.
CLOCK = 10


def rows(settings: Database) -> Findings:
    """The database: reachable, up to date, allowed; then what it knows about workers and work."""
    if settings.database_url is None and (secret := settings.rest_key()):
        role = key_role(secret.get_secret_value())
        if role != "service_role":
            yield Finding("WARN", "D201", f"the Supabase key's role is {role}", "use the service_role (secret) key")
    if settings.database_url is not None:
        from app.database.migrate import pending

        try:
            waiting = pending(settings.database_url.get_secret_value())
        except TobanError as error:
            yield Finding("FAIL", "D202", str(error), "start the server, or correct DATABASE_URL")
            return
        if waiting:
            yield Finding("FAIL", "D203", f"the schema lacks {', '.join(waiting)}", "run `toban migrate`")
            return
    database = open_database(settings, shared=False)
    try:
        began = time.time()
        status = database.call("toban_status")
        took = time.time() - began
        health = database.call("toban_health")
        modes = database.call("toban_modes")["modes"]
    except TobanError as error:
        remedy = "check the address and the key; `toban migrate` or `supabase db push` brings the functions"
        yield Finding("FAIL", "D202", str(error), remedy)
        return
    finally:
        database.close()
    way = "PostgreSQL" if settings.database_url else "Supabase's REST API"
    yield Finding("OK", "D202", f"the ledger answers over {way} in {took * 1000:.0f} ms")
    if settings.database_url is not None:
        yield Finding("OK", "D203", "every migration is applied")
    else:
        yield Finding(
            "WARN",
            "D203",
            "which migrations are applied can't be seen over the REST API",
            "`supabase migration list` shows it; with DATABASE_URL set, this does",
        )
    now = datetime.fromisoformat(status["now"])
    skew = abs(now.timestamp() - (began + took / 2)) - took / 2
    if skew > CLOCK:
        yield Finding(
            "WARN",
            "D204",
            f"this machine's clock and the database's differ by {skew:.0f} s",
            "set the clock by NTP on both",
        )
    yield from work(status, health, now)
    yield from side_by_side(modes)
    yield from wakes(settings, health)


def work(status: Status, health: Health, now: datetime) -> Findings:
    """What the ledger says about workers, beat and the rows that wait."""
    # What waits there waits for the other system.
    followed = {one["source"] for one in health["sources"] if one["shadow"]}
    due = [source for source in status["sources"] if source["oldest_due"] and source["source"] not in followed]
    for queue, count in slots(status).items():
        if count:
            yield Finding("OK", "D401", f"live workers listen to {queue}, {count} at once")
        else:
            remedy = f"start one: `{worker_command(queue)}`, or everything with `toban up`"
            yield Finding("FAIL" if due else "WARN", "D401", f"no worker listens to {queue}", remedy)
    ticks, late = beat(health), overdue(status)
    if ticks.fine and not late:
        yield Finding("OK", "D402", ticks.reason)
    else:
        what = f"{ticks.reason}; {', '.join(late)} should have run" if late else ticks.reason
        yield Finding("WARN", "D402", what, "start beat: `celery -A app beat`, or everything with `toban up`")
    for source in due:
        if (waited := since(source["oldest_due"], now)) > WAIT:
            what = f"{source['source']}: {source['pending']} rows wait, the oldest for {duration(waited)}"
            yield Finding("WARN", "D403", what, "more workers or a smaller model; `toban status` shows what runs")
    for source in status["sources"]:
        if source["failed"]:
            remedy = f"`toban status` shows why; then `toban reprocess {source['source']} --only-failed`"
            yield Finding("WARN", "D404", f"{source['source']}: {source['failed']} rows have failed", remedy)


def side_by_side(modes: list[Mode]) -> Findings:
    """Sources that another system works on too."""
    for mode in modes:
        source = mode["source"]
        if mode["mode"] == "shadow":
            yield Finding("OK", "D405", f"{source} is in shadow mode, by {mode['by']}: Toban only follows")
        if mode["collisions"]:
            what = (
                f"{source}: {mode['collisions']} rows were completed twice within 24 h, by Toban and by somebody else"
            )
            yield Finding("WARN", "D406", what, f"switch the old cron off, or `toban rollback {source}`")


def wakes(settings: Database, health: Health) -> Findings:
    """Whether new rows start at once."""
    if health["listening"]:
        yield Finding("OK", "D407", "a process hears of new rows, which start at once")
    elif settings.listen_url() is None:
        yield Finding(
            "OK",
            "D407",
            "new rows start at the next tick: the REST API tells of none. With DATABASE_LISTEN_URL, or a webhook "
            "to /wake/…, they start at once",
        )
    else:
        yield Finding(
            "WARN",
            "D407",
            "nobody hears of new rows, so they start at the next tick",
            "start a worker or beat. Behind a transaction pooler set DATABASE_LISTEN_URL to a direct connection or a "
            "session pooler. With TOBAN_LISTEN=false: ignore this",
        )
