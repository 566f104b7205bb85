"""Structured logs: a fixed event name and fields, `work.retry source=transcription key=… attempt=2 seconds=37`."""

import logging
import sys
from typing import Any

import structlog

from app.settings import Log


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
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([structlog.processors.format_exc_info] if as_json else []),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Celery's lines on each task say less than the work.* events, at more length.
    # Libraries that tell every request would drown what matters, and may print addresses with keys in them.
    for name in (
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
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
