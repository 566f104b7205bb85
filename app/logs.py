"""Structured logs: a fixed event name and fields, `work.retry source=transcription key=… attempt=2 seconds=37`."""

import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

import structlog

from app.settings import Log
from app.telling import trace

log = structlog.get_logger("toban.log")

# Libraries that tell every request would drown what matters, and may print addresses with keys in them, or what is
# asked and answered. Celery's lines on each task say less than the work.* events, at more length.
QUIET = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "openai",
    "botocore",
    "boto3",
    "s3transfer",
    "urllib3",
    "apprise",
    "faster_whisper",
    "psycopg.pool",
    "celery.worker.strategy",
    "celery.app.trace",
)


def tell_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    """A structlog processor: the traceback as `app.telling` has it, in place of the exception."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else None
    if given and error is None:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = trace(error)
    return event


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    name = failed.thread.name if failed.thread else ""
    log.error("thread.failed", thread=name, exc_info=failed.exc_value)


def _discreet(record: logging.LogRecord) -> bool:
    """Whether a line may go out: libraries set their own levels too (OPENAI_LOG), and would print what is asked."""
    if record.name == "asyncio":  # its further lines hold the error's own words
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return record.levelno >= logging.WARNING or not record.name.startswith(QUIET)


def configure(settings: Log, asked: int = logging.WARNING) -> None:
    """Send the program's and its libraries' logs to standard error, as text or as JSON lines.

    `asked`: the level of a command line's `--loglevel`; the more talkative of it and `LOG_LEVEL` counts.
    """
    level = min(asked, logging.getLevelNamesMapping()[settings.level])
    as_json = settings.format == "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                tell_exception,
                renderer,
            ],
        )
    )
    handler.addFilter(_discreet)
    threading.excepthook = _thread_failed  # Python's own would print the error's words
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
