"""The base tasks: `WorkTask` runs one item, `JobTask` one run of a job. What they call knows nothing of Celery."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from amqp.exceptions import AMQPError, MessageNacked
from celery import Task
from celery.exceptions import Ignore, Retry
from celery.result import denied_join_result
from kombu.exceptions import OperationalError

from app import tracing
from app.celery import app
from app.errors import TobanError, Transient
from app.ledger import Claimed
from app.runtime import Runtime
from app.services import Services
from app.shadow import shadow_of
from app.sources import Source, registry
from app.work import attempt_item
from beat_schedule import timetable
from workers.process import current

Summary = Mapping[str, Any]

# A job's run without an end after this many seconds is lost; its slot may run again.
RUN_LEASE = 600


class WorkFailed(Exception):
    """What Celery sees of an error that is none of ours."""


class WorkTask(Task[Any, Any]):
    """One item of a source, in one message: `(item id, key)`. The only place where an outcome becomes Celery's."""

    abstract = True
    source: Source
    # An outcome, told by the ledger and the log; no traceback of Celery's.
    throws = (TobanError, WorkFailed)

    def run(self, item: int, key: str) -> dict[str, Any]:
        outcome = attempt_item(current(), self.source, item, str(self.request.id))
        self.request.update(toban_run=outcome.run_id)
        match outcome.state:
            case "lost":
                raise Ignore
            case "retry":
                # Raised, not published: the ledger brings the item back when it is due.
                raise Retry(str(outcome.error), exc=None, when=outcome.due)
            case "failed":
                # Not the error itself: Celery takes a raw MemoryError for its own (celery#10462), and the ledger and
                # the log have the traceback.
                raise outcome.error if isinstance(outcome.error, TobanError) else WorkFailed(repr(outcome.error))
        return {"key": key, "state": outcome.state}


def define(source: Source) -> Task[Any, Any]:
    """Register a source: its Celery task, its queue, its dispatcher's beat entry; and its shadow, if it has one."""
    registry.add(source)
    task: Task[Any, Any] = app.register_task(
        type(f"{source.name.title()}Task", (WorkTask,), {"name": f"tasks.{source.name}", "source": source})()
    )
    if source.compare:
        define(shadow_of(source))
    schedule()
    return task


def schedule() -> None:
    """Put the timetable into beat's configuration."""
    app.conf.beat_schedule = {name: job.entry() for name, job in timetable().items()}


def send_item(source: Source, item: Claimed) -> None:
    """Publish the message of a claimed item.

    Raises `Transient` when the broker does not take it.
    """
    _publish(
        f"tasks.{source.name}",
        args=[item.id, item.key],
        task_id=item.task_id,
        queue=source.queue,
        headers={
            "toban": {"source": source.name, "key": item.key, "claim": item.claim_no},
            **tracing.headers(item.params),
        },
        argsrepr=f"{item.key} (claim {item.claim_no})",
    )


def send_tick(job: str) -> None:
    """Publish a job's tick in beat's stead."""
    entry = timetable().get(job)
    if entry is None:
        return  # a job of another version of the program
    _publish(entry.task, args=[job], queue="default", expires=entry.tick.total_seconds())


def _publish(task: str, **options: Any) -> None:  # noqa: ANN401 - Celery's own
    try:
        # Nobody here waits for the result, so no channel of the result backend is listened to for it.
        with denied_join_result():
            app.send_task(task, **options)
    except (OperationalError, AMQPError, MessageNacked, OSError) as error:
        raise Transient(f"the broker takes no messages: {error}") from error


def run_job(name: str, work: Callable[[Runtime], Summary]) -> dict[str, Any]:
    """Run a job's tick, if its slot has not run: begin, work, end.

    `work` returns a summary: `message` for people, `changed` (or `dispatched`) true where a row in `runs` is worth its
    place, and whatever else is known.
    """
    runtime = current()
    call = runtime.services.database.call
    runtime.services.introduce()
    run = call("toban_begin_run", job=name, worker=runtime.worker, lease=RUN_LEASE)
    end = partial(call, "toban_end_run", run_id=run.get("run_id"), worker=runtime.worker)
    if not run["run"]:
        return {"job": name, "ran": False, "reason": run["reason"]}
    try:
        summary = dict(work(runtime))
    except Exception as error:
        words = str(error) if isinstance(error, TobanError) else f"{type(error).__name__}: {error}"
        end(status="error", message=words)
        raise
    keep = bool(summary.get("changed") or summary.get("dispatched"))
    message = summary.pop("message", None)
    end(status="success", message=message, summary=summary, keep=keep)
    return {"job": name, "ran": True, "message": message}


def services() -> Services:
    return current().services
