"""Is everything there that work needs: database, broker, beat, workers, and nothing that waits too long.

A worker's own word is worth nothing here (`inspect ping` is answered by a parent whose children are all dead), so what
counts is what the ledger sees: heartbeats of processes that can run items, ticks that the broker took, rows that wait.
Reasons name no host, no person and no key: whoever can reach the page may read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from socket import gethostname
from typing import Any

import psutil

from app.health import duration, room
from app.sources import registry
from beat_schedule import timetable

# What `toban_health` answers.
Health = Mapping[str, Any]

# Due rows that wait longer than this have a reason that somebody should know, seconds.
WAIT = 600


@dataclass(frozen=True)
class Part:
    """`reason`: in a few words, also of what is fine."""

    fine: bool
    reason: str


def tick_patience() -> float:
    """Seconds without a tick after which no beat is alive, as for the incident `beat`."""
    return 3 * min(job.tick for job in timetable().values()).total_seconds() + 15


def parts_of(health: Health) -> dict[str, Part]:
    """What the ledger sees: `beat`, `worker:<queue>` for each queue that is needed, `rows`, `listener`."""
    parts = {"beat": beat(health)}
    for queue, sources in sorted(_queues(health).items()):
        parts[f"worker:{queue}"] = _worker(health, queue, sources)
    parts["rows"] = _rows(health)
    listening = health["listening"]
    parts["listener"] = Part(True, "new rows start at once" if listening else "new rows start at the next tick")
    return parts


def beat(health: Health) -> Part:
    """Whether any beat ticks."""
    tick = health["tick"]
    if tick is None:
        return Part(False, "no beat has ever ticked")
    if tick > tick_patience():
        return Part(False, f"the last tick came {duration(tick)} ago; workers stand in, as long as there are any")
    return Part(True, f"the last tick came {duration(tick)} ago")


def _queues(health: Health) -> dict[str, list[str]]:
    """The queues that need a worker, with their sources: the jobs' own, and those of sources that have had work."""
    queues: dict[str, list[str]] = {"default": []}
    for one in health["sources"]:
        if one["used"] and (source := registry.sources.get(one["source"])):
            queues.setdefault(source.queue, []).append(source.name)
    return queues


def _worker(health: Health, queue: str, sources: list[str]) -> Part:
    slots = room(health["workers"], queue)
    if slots:
        return Part(True, f"room for {slots} at once")
    waits = any(one["due"] is not None and not one["shadow"] for one in health["sources"] if one["source"] in sources)
    return Part(False, "no living worker listens to it" + (", and rows wait" if waits else ""))


def _rows(health: Health) -> Part:
    due = {
        one["source"]: one["due"]
        for one in health["sources"]
        if one["due"] is not None and not one["paused"] and not one["shadow"]
    }
    if not due:
        return Part(True, "none is due")
    source = max(due, key=lambda name: float(due[name]))
    told = f"the oldest that is due has waited {duration(due[source])} ({source})"
    return Part(due[source] <= WAIT, told)


# --- this machine's own processes -------------------------------------------------------------------------------------


def own_beat(health: Health) -> Part:
    """The beat of this machine or container."""
    mine = [beat for beat in health["beats"] if beat["node"] == gethostname()]
    ticks = [beat["tick"] for beat in mine if _lives(beat["pid"])]
    if not ticks:
        gone = f"this machine's beat is gone; it ticked {duration(mine[0]['tick'])} ago" if mine else None
        return Part(False, gone or "no beat of this machine has ever ticked")
    if min(ticks) > tick_patience():
        return Part(False, f"the last tick of this machine's beat that the broker took was {duration(min(ticks))} ago")
    return Part(True, f"this machine's beat ticked {duration(min(ticks))} ago")


def own_worker(health: Health, queue: str | None = None) -> Part:
    """The workers of this machine or container, or those that listen to `queue`: their heartbeats, and their pids."""
    mine = [
        worker
        for worker in health["workers"]
        if worker["node"].partition("@")[2].rpartition("/")[0] == gethostname()
        and (queue is None or queue in worker["queues"])
    ]
    whose = f"worker of this machine that listens to {queue}" if queue else "worker of this machine"
    alive = [worker for worker in mine if _lives(worker["pid"])]
    if not alive:
        return Part(False, f"no {whose} has a living process" + (": all that reported are gone" if mine else ""))
    slots, queues = sum(worker["slots"] for worker in alive), {name for one in alive for name in one["queues"]}
    seen = min(worker["seen"] for worker in alive)
    return Part(True, f"room for {slots} at once on {', '.join(sorted(queues))}; the last heartbeat came "
                f"{duration(seen)} ago")  # fmt: skip


def _lives(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
