"""How a worker starts, stops and loses a child, told to the ledger.

A prefork parent opens no connection that its children could inherit and starts no thread before it stops.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from socket import gethostname
from typing import Any

import structlog
from celery.exceptions import WorkerLostError
from celery.signals import (
    beat_embedded_init,
    beat_init,
    celeryd_after_setup,
    celeryd_init,
    task_failure,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from app.celery import app
from app.database import Database, open_database
from app.errors import TobanError
from app.settings import Settings, SettingsError, Whisper, load
from app.shadow import named
from app.speech.memory import DoesNotFit, cores, plan
from app.work import FRUGAL
from workers import process, ticking
from workers.broker import check_login

log = structlog.get_logger("toban.worker")


@celeryd_init.connect
def _check_worker(conf: Any, options: Mapping[str, Any], **_: object) -> None:  # noqa: ANN401 - Celery's settings
    """Refuse to start with settings that can't be used; only who hears recordings needs a source of them."""
    asked = options.get("queues") or [queue.name for queue in conf.task_queues or ()]
    queues = asked.split(",") if isinstance(asked, str) else list(asked)
    process.worker.hears = "whisper" in queues
    settings = _check(audio=process.worker.hears)
    check_login(app)
    if process.worker.hears:
        _size(settings.whisper, conf, options)
    elif "gpt" in queues and conf.worker_concurrency is None and not options.get("concurrency"):
        conf.worker_concurrency = settings.gpt.llm_concurrency


@beat_init.connect
def _check_beat(**_: object) -> None:
    _check(audio=False)
    check_login(app)
    ticking.start()


@beat_embedded_init.connect
def _embedded_beat(**_: object) -> None:
    ticking.start()


def _check(*, audio: bool) -> Settings:
    try:
        settings = load(audio=audio)
        named(settings.ledger)
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    return settings


def _size(settings: Whisper, conf: Any, options: Mapping[str, Any]) -> None:  # noqa: ANN401 - Celery's settings
    """Cut the worker to its memory, or refuse to start where its model does not fit: that stops nobody else."""
    if asked := options.get("concurrency"):
        settings = settings.model_copy(update={"children": asked})
    elif str(options.get("pool_cls") or conf.worker_pool) != "prefork":
        settings = settings.model_copy(update={"children": 1})
    try:
        process.worker.plan = plan(settings, cores())
    except DoesNotFit as error:
        _tell_trouble(str(error))
        raise SystemExit(f"Toban's whisper worker does not start: {error}") from None
    conf.worker_concurrency = process.worker.plan.children
    # Between two recordings a child that has grown beyond its share is replaced, KB.
    conf.worker_max_memory_per_child = process.worker.plan.child // 1024


def _tell_trouble(reason: str | None) -> None:
    """Open the incident of this worker's queues, or close it."""
    try:
        with_database(
            "toban_worker_trouble", queues=process.worker.queues or ["whisper"], node=gethostname(), reason=reason
        )
    except TobanError as error:
        log.warning("worker.trouble_untold", reason=str(error))


@celeryd_after_setup.connect
def _remember(sender: str, instance: Any, **_: object) -> None:  # noqa: ANN401 - celery.apps.worker.Worker
    # Two workers of one host may have one Celery name; what stops must take back its own work only.
    process.worker.node = f"{sender}/{os.getpid()}"
    process.worker.queues = sorted(instance.app.amqp.queues.consume_from)
    pool = str(instance.pool_cls)
    process.worker.concurrency = 1 if "solo" in pool else instance.concurrency
    process.worker.forks = "prefork" in pool


@worker_process_init.connect
def _child_starts(**_: object) -> None:
    if process.worker.forks:  # a solo pool sends this too, before it knows its queues
        process.start(slots=1)


@worker_process_shutdown.connect
def _child_stops(**_: object) -> None:
    process.stop()


@worker_ready.connect
def _worker_ready(**_: object) -> None:
    if process.worker.plan:
        log.info("worker.plan", model=load().whisper.model, plan=str(process.worker.plan))
        _tell_trouble(None)
    if not process.worker.forks and process.running() is None:
        process.start(slots=process.worker.concurrency)


def with_database(function: str, **params: object) -> Any:  # noqa: ANN401 - see Database
    """One call over a connection of its own, closed at once: what a parent that forks may do."""
    database: Database = open_database(load(audio=False).database, shared=False)
    try:
        return database.call(function, **params)
    finally:
        database.close()


@task_failure.connect
def _child_died(task_id: str, exception: BaseException, **_: object) -> None:
    """The parent saw its child die in the middle of a task: the item goes back at once, its try stays counted."""
    if not isinstance(exception, WorkerLostError):
        return
    reason = f"the worker process died: {str(exception).split(' Job:')[0].removeprefix('Worker exited prematurely: ')}"
    # The kernel kills so when memory runs out. Whoever else did: to go on with less of it does no harm.
    params = {"params": FRUGAL} if "SIGKILL" in reason else {}
    try:
        with_database("toban_lost", task_id=task_id, reason=reason, **params)
    except TobanError as error:
        log.warning("worker.lost_unreported", task=task_id, reason=str(error))


@worker_shutting_down.connect
def _grace(sig: str, how: str, **_: object) -> None:
    """SIGTERM alone would wait without limit for running items; after the grace they are given back unharmed."""
    if how != "Warm":
        return
    # Nothing else in here: a signal handler may have interrupted somebody who holds the log's lock.
    threading.Thread(target=_stop_after_grace, args=(sig,), name="toban-grace", daemon=True).start()


def _stop_after_grace(sig: str) -> None:
    seconds = load(audio=False).ledger.shutdown_grace.total_seconds()
    log.info("worker.stopping", signal=sig, grace=seconds)
    time.sleep(seconds)
    log.warning("worker.grace_over", node=process.worker.node)
    if runtime := process.running():
        runtime.cancel_all("the worker stops")
    _release()
    if process.worker.forks:
        os.kill(os.getpid(), signal.SIGQUIT)  # cold shutdown: the children are ended
        return
    # Threads can't be killed. Their work has been given back, and what they still find out is refused by its fence.
    time.sleep(1)
    os._exit(0)


@worker_shutdown.connect
def _worker_stops(**_: object) -> None:
    process.stop()
    _release()


def _release() -> None:
    try:
        released = with_database("toban_release", node=process.worker.node)["released"]
    except TobanError as error:
        log.warning("worker.release_failed", reason=str(error))
    else:
        if released:
            log.info("worker.released", items=released)
