"""What beat tells the database: that its ticks go out. A tick that the broker did not take is none."""

import atexit
import os
import threading
from socket import gethostname
from typing import Any

import structlog
from celery.signals import after_task_publish

from app import tracing
from app.errors import TobanError
from app.monitor.tick import Monitor
from app.services import build_services
from app.settings import load
from app.wake import listen

log = structlog.get_logger("toban.beat")

# How often it is told at most, seconds.
PAUSE = 5.0

_ticked = threading.Event()


def start() -> None:
    """Tell of the ticks from now on, and look after the rest as every process does."""
    tracing.start(load(audio=False).traces, "beat")
    atexit.register(tracing.stop)
    after_task_publish.connect(_note)
    threading.Thread(target=_tell, name="toban-beat", daemon=True).start()


def _note(**_: object) -> None:
    _ticked.set()


def _tell() -> None:
    from tasks.base import send_item

    services = build_services(load(audio=False))
    stop = threading.Event()
    threading.Thread(target=Monitor(services).run, args=(stop,), name="toban-monitor", daemon=True).start()
    threading.Thread(target=listen, args=(services, send_item, stop), name="toban-listener", daemon=True).start()
    name: dict[str, Any] = {"beat": f"{gethostname()}#{os.getpid()}", "node": gethostname(), "pid": os.getpid()}
    while _ticked.wait():
        _ticked.clear()
        try:
            services.database.call("toban_beat", **name)
        except TobanError as error:
            log.warning("beat.untold", reason=str(error))
        stop.wait(PAUSE)
