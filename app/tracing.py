"""Traces for OpenTelemetry: one from a request or a beat's tick over the claim and the task to each call outside.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set; then every function here costs next to nothing. A span says what the
code that opens it names, and nothing else: never a key, an address, a query, a prompt, or the words of an error. See
docs/tracing.md and docs/decisions/0019.

The context travels as W3C `traceparent`: in a message's headers; with the calls to the database, which keeps it in the
params of the items that a call opens; and in nothing that goes to anybody else.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.settings import Traces
from app.settings.traces import REMEDY

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger("toban.traces")

Attributes = Mapping[str, str | int]

# An item's params: the trace that it belongs to, and the attempt before this one.
PARENT, EARLIER = "traceparent", "earlier_attempt"
# How long a process that ends waits for its last spans to be taken, seconds.
PATIENCE = 3.0
# Of each call to the database; its name is the function's.
DATABASE: Attributes = {"db.system.name": "postgresql"}

_propagator = TraceContextTextMapPropagator()
_provider: "TracerProvider | None" = None
_tracer: trace.Tracer = trace.NoOpTracer()
_ending = threading.Event()
_ended = threading.Event()


def start(settings: Traces, role: str) -> None:
    """Send this process's spans from now on, where the settings say so; after a fork, not before it.

    `role`: what the process is, such as `web` or `whisper`. What goes wrong is one line in the log.
    """
    global _provider, _tracer  # noqa: PLW0603 - one a process
    if not settings.on or _provider is not None:
        return
    os.environ.update(settings.environment())
    try:
        from app.otlp import build_provider
    except ImportError:
        log.warning("traces.missing", remedy=REMEDY)
        return
    # Libraries that look for a provider of the whole process (FastAPI does) would tell addresses: this one is our own.
    _provider = build_provider(role)
    _tracer = _provider.get_tracer("toban", program())
    _ending.clear()
    _ended.clear()
    # Begun now: a process that ends begins no thread any more.
    threading.Thread(target=_end, args=(_provider,), name="toban-traces", daemon=True).start()


def stop() -> None:
    """Send what there still is, and no more."""
    global _provider, _tracer
    if _provider is None:
        return
    _provider, _tracer = None, trace.NoOpTracer()
    _ending.set()
    _ended.wait(PATIENCE)


def _end(provider: "TracerProvider") -> None:
    _ending.wait()
    provider.shutdown()
    _ended.set()


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: str | None = None,
    links: Sequence[str] = (),
) -> Iterator[Span]:
    """A step of the work, below the current one, or below `parent` (a `traceparent`).

    An exception that passes marks it as failed, by its kind alone: its words may hold what nobody else may read.
    """
    if _provider is None:
        yield INVALID_SPAN
        return
    with _tracer.start_as_current_span(
        name,
        context=_context(parent) if parent else None,
        kind=kind,
        attributes=dict(attributes or {}),
        links=[Link(context) for link in links if (context := _span_context(link)).is_valid],
        record_exception=False,
        set_status_on_exception=False,
    ) as opened:
        try:
            yield opened
        except BaseException as error:
            fail(opened, str(getattr(error, "outcome", "") or getattr(error, "kind", "") or type(error).__name__))
            raise


@contextmanager
def outside(name: str, attributes: Attributes) -> Iterator[Span]:
    """A call to somebody else. One that belongs to no request and no task (a heartbeat's) has no span."""
    if _provider is None or not trace.get_current_span().get_span_context().is_valid:
        yield INVALID_SPAN
        return
    with span(name, attributes, kind=SpanKind.CLIENT) as opened:
        yield opened


def fail(opened: Span, kind: str) -> None:
    opened.set_attribute("error.type", kind)
    opened.set_status(StatusCode.ERROR)


def note(attributes: Attributes) -> None:
    """Say more about the current step."""
    trace.get_current_span().set_attributes(dict(attributes))


def traceparent() -> str | None:
    """The current step, as others continue or name it; None: there is none."""
    if _provider is None:
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def headers(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the message of an item with these `params` carries, for `taken`."""
    current = traceparent()
    parent = params.get(PARENT) or current
    if _provider is None or parent is None:
        return {}
    links = [params.get(EARLIER), current if parent != current else None]
    return {"traceparent": parent, "tracelinks": [link for link in links if link]}


def earlier() -> dict[str, str]:
    """The params by which the next attempt at an item names this one."""
    current = traceparent()
    return {EARLIER: current} if current else {}


def _context(parent: str) -> "Context":
    return _propagator.extract({"traceparent": parent})


def _span_context(link: str) -> trace.SpanContext:
    return trace.get_current_span(_context(link)).get_span_context()


def program() -> str:
    """The version of this program."""
    try:
        return version("toban")
    except PackageNotFoundError:  # run from its folder
        return "unknown"
