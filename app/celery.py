"""The Celery application: `celery -A app worker | beat | call | flower`.

Importing it connects to nothing and loads no task; settings are read when Celery first needs its configuration.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from celery import Celery, Task
from celery.exceptions import TaskError, TaskPredicate
from celery.signals import setup_logging

from app import logs
from app.errors import TobanError
from app.settings import Broker, Ledger, Log, SettingsError, load_group
from app.telling import bare, reason

log = structlog.get_logger("toban.worker")


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
        "include": [
            "tasks",
            "workers.broker",
            "workers.lifecycle",
            "workers.signals",
            "workers.tracing",
            *ledger.extra_sources(),
        ],
        # Only JSON goes in and out: a message can't make a worker run code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # Early acknowledgement: the ledger brings back what a dead worker held (docs/decisions/0002).
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "task_default_queue": "default",
        "task_default_queue_type": settings.queue_type(),
        "task_routes": (route,),
        "task_create_missing_queues": True,
        "task_create_missing_queue_type": settings.queue_type(),
        "task_ignore_result": False,
        "task_store_errors_even_if_ignored": True,
        "worker_send_task_events": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # RabbitMQ takes back what a worker holds behind a long recording, and closes the channel: one connects again.
        "broker_channel_error_retry": True,
        # Nothing of ours is acknowledged late, so nothing is cancelled; it keeps a page of advice out of the log.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        # A broker that is away must not hold up a dispatcher: it gives the items back and the next tick tries again.
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 1},
        **transport(url),
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


def transport(url: str) -> dict[str, Any]:
    """What the broker's connections need, by its kind."""
    if url.startswith("redis"):
        return {
            "broker_transport_options": {"socket_connect_timeout": 5, "socket_timeout": 30, "socket_keepalive": True}
        }
    if not url.startswith("amqp"):
        return {}
    return {
        # A message counts as sent when the broker says that it has it, not when it is on its way.
        "broker_transport_options": {"confirm_publish": True},
        "broker_heartbeat": 30,
        # The certificate has to be of the host in the address (None), not only of somebody whom one trusts.
        "broker_use_ssl": {"server_hostname": None} if url.startswith("amqps") else False,
    }


def route(name: str, *_args: object, **_kwargs: object) -> Mapping[str, str] | None:
    """A source's task goes to the source's queue, also when it is sent by name alone."""
    from app.sources import registry

    source = registry.sources.get(name.removeprefix("tasks."))
    return {"queue": source.queue} if source else None


class WorkFailed(Exception):
    """What Celery sees of an error that is none of ours."""


class Told(Task[Any, Any]):
    """Base of every task: what an error quotes goes neither to the result backend nor into events and logs."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery's own
        try:
            return self.run(*args, **kwargs)
        except (TaskPredicate, TaskError, WorkFailed):
            raise
        except TobanError as error:
            raise bare(error) from None
        except Exception as error:
            log.exception("task.failed", task=self.name, reason=reason(error))
            raise WorkFailed(reason(error)) from None


app: Celery[Task[Any, Any]] = Celery("toban", task_cls=Told)
app.add_defaults(configuration)  # called when the configuration is first needed
# Flower looks for it in the folder where it is started, and lets everybody in where there is none.
os.environ.setdefault("FLOWER_CONF", str(Path(__file__).parents[1] / "flowerconfig.py"))


@setup_logging.connect
def _configure_logging(loglevel: int | None = None, **_: object) -> None:
    logs.configure(load_group(Log), loglevel or logging.WARNING)
