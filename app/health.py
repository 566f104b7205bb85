"""What the answer of `toban_status` says about the system: queues without a worker, jobs without ticks; in words."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from app.sources import SHADOW

Json = dict[str, Any]
Status = Mapping[str, Any]

STATES = ("pending", "queued", "processing", "completed", "skipped", "failed")


def expected_queues(status: Status) -> set[str]:
    """The queues that need a worker: the jobs' own, and those of the sources that have ever had work.

    Who transcribes and analyses nothing starts no gpt worker, and nothing is wrong. Where no source has had any yet,
    all are named.
    """
    import tasks  # noqa: F401 - registers the sources
    from app.sources import registry

    used = {source["source"] for source in status["sources"] if any(source[state] for state in STATES)}
    needed = [source for name, source in registry.sources.items() if name in used or not used]
    return {"default", *(source.queue for source in needed)}


def in_use(sources: Iterable[Json], counts: Iterable[str]) -> list[Json]:
    """`sources` without the shadows that have no rows; `counts`: where each tells how many it has."""
    return [one for one in sources if not one["source"].startswith(SHADOW) or any(one[name] for name in counts)]


def slots(status: Status) -> dict[str, int]:
    """Each expected queue and how much its live workers can run at once."""
    return {queue: room(status["workers"], queue) for queue in sorted(expected_queues(status))}


def room(workers: Iterable[Mapping[str, Any]], queue: str) -> int:
    """How much the workers of a queue can run at once; `workers` as the ledger's functions list the living ones."""
    return sum(worker["slots"] for worker in workers if queue in worker["queues"])


def worker_command(queue: str) -> str:
    """What starts a worker of a queue; queues of sources from elsewhere have no profile in `workers`."""
    start = f"-A workers.{queue} worker" if find_spec(f"workers.{queue}") else f"-A app worker -Q {queue}"
    return f"celery {start} -n {queue}@%h"


def overdue(status: Status) -> dict[str, float]:
    """Jobs whose last start is longer ago than two of their slots and a minute, and how long, seconds."""
    now = datetime.fromisoformat(status["now"])
    late = {}
    for job in status["jobs"]:
        if job["enabled"] and job["last_started_at"]:
            seconds = since(job["last_started_at"], now)
            if seconds > 2 * float(job["every"]) + 60:
                late[job["job"]] = seconds
    return late


def share(progress: Mapping[str, float] | None) -> float | None:
    """How much of an item is done, 0 to 1; None: unknown."""
    if not progress or not progress.get("total"):
        return None
    return min(progress["done"] / progress["total"], 1.0)


def since(moment: str, now: datetime) -> float:
    """Seconds from `moment` (ISO 8601) to `now`, at least 0."""
    return max(0.0, (now - datetime.fromisoformat(moment)).total_seconds())


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`, `5 d`: as coarse as people say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
