"""Traces over Celery: a message goes on with the trace of whoever sent it, and each task is a step of it.

A tick that beat sends begins a trace. See app/tracing.py.
"""

from typing import Any

from celery.signals import before_task_publish, task_postrun, task_prerun
from opentelemetry.trace import SpanKind

from app import tracing

# What says that a task failed; a retry or a message out of date is no failure.
FAILED = {"FAILURE", "REVOKED"}


@before_task_publish.connect
def _sent(sender: str, headers: dict[str, Any], body: Any, **_: object) -> None:  # noqa: ANN401 - Celery's message
    if "traceparent" in headers:
        return
    if context := tracing.traceparent():
        headers["traceparent"] = context
        return
    job = body[0][0] if body[0] and isinstance(body[0][0], str) else sender
    with tracing.span(f"tick {job}", {"toban.task": sender}, kind=SpanKind.PRODUCER):
        if context := tracing.traceparent():
            headers["traceparent"] = context


@task_prerun.connect
def _begins(task: Any, **_: object) -> None:  # noqa: ANN401 - a Celery task
    request = task.request
    step = tracing.span(
        f"run {task.name}",
        {"toban.task": task.name},
        kind=SpanKind.CONSUMER,
        parent=request.get("traceparent"),
        links=request.get("tracelinks") or (),
    )
    request.update(toban_step=(step, step.__enter__()))


@task_postrun.connect
def _ends(task: Any, state: str | None = None, **_: object) -> None:  # noqa: ANN401 - a Celery task
    begun = task.request.get("toban_step")
    if begun is None:
        return
    step, span = begun
    if state:
        span.set_attribute("toban.state", state.lower())
    if state in FAILED:
        tracing.fail(span, state.lower())
    step.__exit__(None, None, None)
