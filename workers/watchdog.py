"""Keeps a process that hears recordings within its share of the memory, where no container does.

What grows too big fails alone, with a reason, and goes again with less; the worker and its other children live on.
"""

import os
import threading

import psutil
import structlog

from app.errors import OutOfMemory
from app.runtime import Runtime

log = structlog.get_logger("toban.worker")

_EVERY = 0.5  # seconds
_PATIENCE = 1.1  # times the share; above it there is no time left to end in good order


def watch(runtime: Runtime, share: int, *, killable: bool) -> None:
    """Look at this process's memory from now on, in a thread.

    `share`: bytes. Above it running work is asked to end as out of memory; 10 % above it, where a parent replaces this
    process (`killable`), the work is ended in the ledger and the process with it.
    """
    threading.Thread(target=_watch, args=(runtime, share, killable), name="toban-watchdog", daemon=True).start()


def _watch(runtime: Runtime, share: int, killable: bool) -> None:  # noqa: FBT001 - a thread's argument
    own = psutil.Process()
    asked = False
    while not runtime.stopped.wait(_EVERY):
        used = own.memory_info().rss
        if used <= share:
            asked = False
            continue
        error = OutOfMemory(
            f"it took {used >> 20} MB, and a child may use {share >> 20} MB: it goes again with less at once. If that "
            "fails too, use a smaller WHISPER_MODEL or fewer WHISPER_CHILDREN, or raise WHISPER_MEMORY_LIMIT"
        )
        if killable and used > share * _PATIENCE:
            log.error("worker.memory", pid=os.getpid(), rss_mb=used >> 20, share_mb=share >> 20)
            runtime.give_up(error)
            os._exit(1)
        if not asked:
            log.warning("worker.memory", pid=os.getpid(), rss_mb=used >> 20, share_mb=share >> 20)
            runtime.cancel_all(error)
            asked = True
