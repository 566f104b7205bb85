"""The signal handlers that write `job_status` and `runs`: they note what changed, and a thread reports it soon.

What is reported is derived from the ledger (`toban_report`), so a lost or repeated report does no harm, and a failed
item keeps its job in error until that item is resolved, whatever succeeds after it.
"""

from typing import Any

import structlog
from celery.signals import task_failure, task_prerun, task_retry, task_revoked, task_success

from app.errors import TobanError
from app.sources import registry
from beat_schedule import timetable
from workers import process

log = structlog.get_logger("toban.worker")


def _job_of(name: str, args: Any) -> str | None:  # noqa: ANN401 - a message's arguments
    short = name.removeprefix("tasks.")
    if short in registry.sources:
        return short
    if args and isinstance(args[0], str):
        return args[0]
    return short if short in timetable() else None


def note(sender: Any, **_: object) -> None:  # noqa: ANN401 - a Celery task
    """A task has started or ended: its job's report is due."""
    runtime = process.running()
    if runtime is None:
        return  # the parent of a prefork pool; the ledger's reconcile job reports what happens there
    request = sender.request
    if job := _job_of(sender.name, request.args):
        runtime.reporter.mark(job, getattr(request, "toban_run", None))


@task_failure.connect
def tell(sender: Any, exception: BaseException, **_: object) -> None:  # noqa: ANN401 - a Celery task
    """An error of ours in a job or a command: one line. A source's work has told its own, a bug is Celery's to tell."""
    if isinstance(exception, TobanError) and sender.name.removeprefix("tasks.") not in registry.sources:
        log.error("task.failed", task=sender.name, reason=str(exception))


for _signal in (task_prerun, task_retry, task_success, task_failure, task_revoked):
    _signal.connect(note, weak=False)
