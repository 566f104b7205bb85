"""This process's `Runtime`, made when the pool is ready and no earlier: nothing connects in a parent that forks."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from billiard.process import current_process

from app import tracing
from app.runtime import Runtime
from app.services import build_services
from app.settings import load
from app.speech.pace import FRUGAL
from workers.watchdog import watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.speech.memory import Plan


@dataclass
class Worker:
    """What the parent knows before it forks: its name, queues, pool, size, and how it hears, if it does."""

    node: str = "adhoc"
    queues: "Sequence[str]" = field(default_factory=list)
    concurrency: int = 1
    forks: bool = False
    hears: bool = False
    plan: "Plan | None" = None


worker = Worker()
_runtime: Runtime | None = None


def current() -> Runtime:
    """The runtime of this process.

    One is made on the spot where no worker has: a task called directly, as a test or a shell does.
    """
    return _runtime or start(slots=0, heartbeat=False)


def start(slots: int, *, heartbeat: bool = True) -> Runtime:
    """Make this process's runtime and begin its heartbeats."""
    global _runtime  # noqa: PLW0603 - one a process
    from tasks.base import send_item, send_tick

    settings = load(audio=worker.hears)
    if slots:  # a worker, not a task that is called directly
        tracing.start(settings.traces, "-".join(worker.queues))
    _runtime = Runtime(
        build_services(settings, worker.plan.pace if worker.plan else FRUGAL),
        worker.node,
        worker.queues,
        slots,
        send_item,
        send_tick,
        killable=worker.forks,
        # Of children one is enough, and a parent that forks has no threads.
        listens=not worker.forks or getattr(current_process(), "index", None) == 0,
        memory_limit=worker.plan.child if worker.plan else None,
        models=settings.whisper.models if worker.plan else (),
        fits=worker.plan.fits if worker.plan else (),
    )
    if heartbeat:
        _runtime.start()
        if worker.plan:
            watch(_runtime, worker.plan.child, killable=worker.forks)
    return _runtime


def stop() -> None:
    global _runtime  # noqa: PLW0603 - one a process
    if _runtime is not None:
        _runtime.stop()
        _runtime = None
        tracing.stop()


def running() -> Runtime | None:
    return _runtime
