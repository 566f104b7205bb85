"""The Celery application: `celery -A app worker | beat | call | flower`.

Importing it connects to nothing and loads no task; settings are read when Celery first needs its configuration.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import setup_logging

from app import logs
from app.settings import Broker, Ledger, Log, SettingsError, load_group


def configuration() -> dict[str, Any]:
    """Celery's configuration from the settings. Ends the program with one message when they can't be used."""
    try:
        settings, ledger = load_group(Broker), load_group(Ledger)
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    url = settings.url.get_secret_value()
    return {
        "broker_url": url,
        "result_backend": settings.backend_url(),
        "result_expires": settings.toban_result_expires,
        "include": ["tasks", "workers.broker", "workers.lifecycle", "workers.signals", *ledger.extra_sources()],
        # Only JSON goes in and out: a message can't make a worker run code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # Early acknowledgement: the ledger brings back what a dead worker held (docs/decisions/0002).
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "task_default_queue": "default",
        "task_routes": (route,),
        "task_create_missing_queues": True,
        "task_ignore_result": False,
        "task_store_errors_even_if_ignored": True,
        "worker_send_task_events": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A broker that is away must not hold up a dispatcher: it gives the items back and the next tick tries again.
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 1},
        "broker_transport_options": {"socket_connect_timeout": 5, "socket_timeout": 30, "socket_keepalive": True}
        if url.startswith("redis")
        else {},
        "redis_socket_timeout": 30,
        "redis_socket_connect_timeout": 5,
        "redis_retry_on_timeout": True,
        "redis_socket_keepalive": not url.startswith("redis+socket"),
        "beat_scheduler": "celery.beat:Scheduler",  # in memory: begin_run() remembers what has run
        "beat_max_loop_interval": 5,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
        "timezone": "UTC",
    }


def route(name: str, *_args: object, **_kwargs: object) -> Mapping[str, str] | None:
    """A source's task goes to the source's queue, also when it is sent by name alone."""
    from app.sources import registry

    source = registry.sources.get(name.removeprefix("tasks."))
    return {"queue": source.queue} if source else None


app = Celery("toban")
app.add_defaults(configuration)  # called when the configuration is first needed
# Flower looks for it in the folder where it is started, and lets everybody in where there is none.
os.environ.setdefault("FLOWER_CONF", str(Path(__file__).parents[1] / "flowerconfig.py"))


@setup_logging.connect
def _configure_logging(loglevel: int | None = None, **_: object) -> None:
    logs.configure(load_group(Log), loglevel or logging.WARNING)
