"""Whether a source is ready to be taken over from another system."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.database import Database
from app.errors import Permanent
from app.health import duration, room, since, worker_command
from app.shadow import known
from app.sources import SHADOW, registry

# Fewer comparisons say little.
LEAST = 10
# Of those that could be compared, so many have to be identical or near.
AGREEMENT = 0.90

Json = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One line: OK, FAIL (a take-over needs --force), or a NOTE."""

    level: Literal["OK", "FAIL", "NOTE"]
    what: str


def mode_of(database: Database, source: str) -> Json:
    """The source's entry of `toban_modes`.

    Raises `Permanent` for a source that there is not.
    """
    modes: dict[str, Json] = {one["source"]: one for one in database.call("toban_modes")["modes"]}
    if source not in modes or source not in known():
        both = sorted(modes.keys() & set(known()))
        raise Permanent(f"there is no source {source!r}; the sources are {', '.join(both)}")
    return modes[source]


def checks(database: Database, source: str, mode: Json) -> Iterator[Check]:
    """What speaks for and against taking `source` over now."""
    status = database.call("toban_status", failed=0)
    now = datetime.fromisoformat(status["now"])
    queue = registry[source].queue
    yield _worker(status, queue)
    yield _troubles(database, source, queue)
    if any(job["source"] == source and not job["enabled"] for job in database.call("toban_jobs")["jobs"]):
        yield Check("FAIL", f"its job is paused, so nothing would be taken: `toban jobs set {source} --resume`")
    if mode["compares"]:
        yield _agreement(database, source, mode)
    else:
        yield Check("NOTE", "its rows can't be done twice, so nothing was compared")
    if last := mode.get("last_elsewhere"):
        yield Check(
            "NOTE",
            f"the other system completed its last row {duration(since(last, now))} ago: switch it off for this source "
            "first, and let its run end",
        )
    waiting = next((one["pending"] for one in status["sources"] if one["source"] == source), 0)
    yield Check("NOTE", f"{waiting} rows wait; Toban takes them from the next tick on")


def _worker(status: Json, queue: str) -> Check:
    slots = room(status["workers"], queue)
    if slots:
        return Check("OK", f"live workers listen to {queue}, {slots} at once")
    return Check("FAIL", f"no worker listens to {queue}: `{worker_command(queue)}`")


def _troubles(database: Database, source: str, queue: str) -> Check:
    """A worker that refuses to start, a model that is missing, a queue that is held."""
    for one in database.call("toban_incidents")["incidents"]:
        of_queue = one["details"].get("queue") == queue or one.get("source") in {source, SHADOW + source}
        if one["kind"] in {"worker", "queue"} and of_queue:
            return Check("FAIL", f"{one['title']}: {one.get('reason') or 'see `toban status`'}")
    return Check("OK", f"no worker of {queue} refuses to start, no model is missing, and nothing is held")


def _agreement(database: Database, source: str, mode: Json) -> Check:
    sums = database.call("toban_shadow_report", source=source, since=mode.get("since"), limit=0)["sources"]
    found = sums[0] if sums else {}
    agreed = found.get("identical", 0) + found.get("near", 0)
    compared = agreed + found.get("different", 0) + found.get("missing", 0)
    if compared < LEAST:
        return Check("FAIL", f"{compared} rows were compared, and {LEAST} are the least: let shadow mode go on")
    share = agreed / compared
    words = f"{agreed} of {compared} rows agree ({share:.0%}); `toban shadow report {source}` shows the others"
    return Check("OK" if share >= AGREEMENT else "FAIL", words)
