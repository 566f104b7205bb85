"""The whole timetable on one page: each job, what it does, and how often by default.

Beat sends a job's tick; `toban_begin_run()` in the database decides whether its slot runs, so any number of beats may
run. A job's row in `jobs` has its real schedule, pause and filters: edit it there and the next tick follows. A row of
`job_status` knows a job by the name it has here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app.sources import SHADOW, registry

# A job that runs rarely is still asked this often, so that an edited schedule takes effect soon.
LONGEST_TICK = timedelta(minutes=1)


@dataclass(frozen=True)
class Job:
    """`every`: one slot begins every so often; `at`: how far into `every` it begins, in the wall clock of `zone`.

    `enabled`: False for a job that somebody has to switch on.
    """

    name: str
    task: str
    title: str
    every: timedelta
    at: timedelta = timedelta(0)
    zone: str = "UTC"
    source: str | None = None
    enabled: bool = True

    @property
    def tick(self) -> timedelta:
        return min(self.every, LONGEST_TICK)

    def entry(self) -> dict[str, Any]:
        """The job's entry for Celery beat; a tick that nobody took expires before the next is due."""
        return {
            "task": self.task,
            "schedule": self.tick,
            "args": [self.name],
            "options": {"queue": "default", "expires": self.tick.total_seconds()},
        }

    def row(self) -> dict[str, Any]:
        """The job's row for `toban_sync_jobs`."""
        return {
            "job": self.name,
            "title": self.title,
            "source": self.source,
            "every": self.every.total_seconds(),
            "at": self.at.total_seconds(),
            "zone": self.zone,
            "enabled": self.enabled,
        }


OTHERS = (
    Job(
        "timeblock-prompt",
        "tasks.timeblock_prompt",
        "Time block prompts",
        every=timedelta(seconds=10),
        enabled=False,  # a prompt is a paid call
    ),
    Job("analysis-batch", "tasks.analysis_batch", "Time block analysis in batches", every=timedelta(minutes=1)),
    Job("reconcile", "tasks.reconcile", "Ledger reconciliation", every=timedelta(minutes=5)),
    Job("retention", "tasks.retention", "Retention", every=timedelta(days=1), at=timedelta(hours=3), zone="Asia/Tokyo"),
)


def timetable() -> dict[str, Job]:
    """Every job: a dispatcher for each source, and the others above."""
    dispatchers: Iterable[Job] = (
        Job(source.name, "tasks.dispatch", source.title, every=source.every, source=source.name)
        for source in registry.sources.values()
        if not source.name.startswith(SHADOW)  # their source's dispatcher sends them too
    )
    return {job.name: job for job in (*dispatchers, *OTHERS)}
