"""What a process that runs items keeps: who it is, what it runs now, and the threads that keep the ledger informed.

In a prefork pool each child has one; a worker with threads has one for all of them.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import psutil
import structlog

from app.dispatch import Send, dispatch
from app.errors import TobanError
from app.monitor.tick import Monitor
from app.services import Services
from app.sources import registry
from app.wake import listen
from app.work import Work, give_up
from beat_schedule import timetable

log = structlog.get_logger("toban.worker")

# How long a report may wait for others to go with it, seconds.
REPORT_PAUSE = 2.0
# A child with a memory limit leaves messages for so long to processes that can better afford to send them.
LAST_RESORT = timedelta(minutes=1)
# How long work that has lost its lease may take to notice, before the process that runs it ends itself, seconds.
PATIENCE = 20.0


@dataclass
class Reporter:
    """Collects what changed, so that many finished items cost one call."""

    jobs: set[str] = field(default_factory=set)
    runs: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def mark(self, job: str, run_id: int | None = None) -> None:
        with self._lock:
            self.jobs.add(job)
            if run_id is not None:
                self.runs.add(run_id)

    def flush(self, services: Services) -> None:
        """Bring `job_status` and the runs' counts up to date; what can't be told now is kept for the next time."""
        with self._lock:
            jobs, runs = sorted(self.jobs), sorted(self.runs)
            self.jobs.clear()
            self.runs.clear()
        if not jobs:
            return
        try:
            services.database.call("toban_report", jobs=jobs, runs=runs)
        except TobanError as error:
            log.warning("report.failed", reason=str(error))
            with self._lock:
                self.jobs.update(jobs)
                self.runs.update(runs)


class Runtime:
    """`worker`: this process's name in the ledger; `node`: the Celery worker it belongs to; `slots`: items at once.

    `send` publishes an item's message, `tick` a job's; `killable`: whether the process may end itself to stop work that
    hangs, because a parent will replace it; `memory_limit`: bytes at which that happens, `models`: those that a row may
    ask for, `fits`: the sizes that there would be room for; all three for those who look at it from outside; `listens`:
    whether it may be the one that hears of new rows.
    """

    def __init__(
        self,
        services: Services,
        node: str,
        queues: Collection[str],
        slots: int,
        send: Send,
        tick: Callable[[str], None],
        *,
        killable: bool,
        listens: bool = False,
        memory_limit: int | None = None,
        models: Collection[str] = (),
        fits: Collection[str] = (),
    ) -> None:
        self.services = services
        self.node = node
        self.worker = f"{node}#{os.getpid()}"
        self.queues = list(queues)
        self.slots = slots
        self.reporter = Reporter()
        self._send = send
        self._tick = tick
        self._killable = killable
        self._memory_limit = memory_limit
        self._models = list(models)
        self._fits = list(fits)
        self._works: dict[int, Work] = {}
        self._lost: dict[int, float] = {}
        self._overdue: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._hungry = threading.Event()
        self._process = psutil.Process()
        # Leases depend on the first one, so whatever may have to wait for a broker or a bucket is left to the second.
        self._threads = [
            threading.Thread(target=self._live, name="toban-heartbeat", daemon=True),
            threading.Thread(target=self._serve, name="toban-feeder", daemon=True),
            # Sending a message may take long; nobody else waits for it.
            threading.Thread(target=self._watch, name="toban-monitor", daemon=True),
        ]
        if listens:
            self._threads.append(threading.Thread(target=self._listen, name="toban-listener", daemon=True))

    @property
    def stopped(self) -> threading.Event:
        """Set when this process begins to leave."""
        return self._stop

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Leave in good order: the last reports go out, and the ledger forgets this process."""
        self._stop.set()
        self._hungry.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)
        self.reporter.flush(self.services)
        try:
            self.services.database.call("toban_goodbye", worker=self.worker)
        except TobanError as error:
            log.info("worker.goodbye_failed", reason=str(error))
        self.services.close()

    @contextmanager
    def running(self, work: Work) -> Iterator[None]:
        """The heartbeat looks after `work` inside this block."""
        with self._lock:
            self._works[work.attempt.id] = work
        try:
            yield
        finally:
            with self._lock:
                self._works.pop(work.attempt.id, None)
                self._lost.pop(work.attempt.id, None)

    def cancel_all(self, reason: str | TobanError) -> None:
        """Ask all running work to stop at its next word of progress; see `Work.cancel`."""
        with self._lock:
            for work in self._works.values():
                work.cancel(reason)

    def give_up(self, error: TobanError) -> None:
        """End all running work with `error` in the ledger, before this process ends itself."""
        with self._lock:
            works = list(self._works.values())
        for work in works:
            with _told("work.unsettled"):
                give_up(self, work, error)

    def feed(self) -> None:
        """Soon claim and send more for this process's queues."""
        self._hungry.set()

    def beat(self) -> None:
        """One heartbeat, and what its answer asks for."""
        with self._lock:
            reports = [work.report() for work in self._works.values()]
        ledger = self.services.settings.ledger
        pulse = self.services.ledger.heartbeat(
            worker=self.worker,
            node=self.node,
            pid=os.getpid(),
            queues=self.queues,
            slots=self.slots,
            rss_bytes=self._process.memory_info().rss,
            stall=ledger.stall.total_seconds(),
            jobs=list(timetable()),
            items=reports,
        )
        self._mind_lost(pulse.lost)
        if pulse.reaped:
            log.warning("ledger.reaped", items=pulse.reaped)
        with self._lock:
            self._overdue.update(pulse.overdue)
        if pulse.hungry or pulse.overdue:
            self._hungry.set()

    def _mind_lost(self, lost: Collection[int]) -> None:
        now = time.monotonic()
        with self._lock:
            for item in lost:
                if work := self._works.get(item):
                    work.cancel("the lease was lost")
                    self._lost.setdefault(item, now)
            hanging = [item for item, since in self._lost.items() if now - since > PATIENCE]
        if hanging and self._killable:
            # Native code that hangs can't be cancelled. The parent starts a new child, the ledger has the item already.
            log.error("worker.hangs", items=hanging, pid=os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)

    def _live(self) -> None:
        interval = self.services.settings.ledger.heartbeat.total_seconds()
        introduced = limit_told = False
        while not self._stop.is_set():
            with _told("heartbeat.failed"):
                if not introduced:
                    # The timetable comes first: what is dispatched belongs to a job's run, and a beat that never came
                    # is missed only by those who know its jobs.
                    self.services.database.call("toban_sync_jobs", jobs=[job.row() for job in timetable().values()])
                    self.services.introduce()
                    introduced = True
                self.beat()
                if self._memory_limit and not limit_told:
                    self.services.database.call(
                        "toban_memory_limit",
                        worker=self.worker,
                        bytes=self._memory_limit,
                        models=self._models,
                        fits=self._fits,
                    )
                    limit_told = True
            self._stop.wait(interval)

    def _serve(self) -> None:
        reported = 0.0
        while not self._stop.is_set():
            if self._hungry.wait(REPORT_PAUSE) and not self._stop.is_set():
                self._hungry.clear()
                self._stand_in()
                for source in registry.of_queue(self.queues):
                    with _told("dispatch.failed"):
                        dispatch(self.services, source, self._send)
            if time.monotonic() - reported >= REPORT_PAUSE:
                reported = time.monotonic()
                with _told("report.failed"):
                    self.reporter.flush(self.services)

    def _watch(self) -> None:
        with _told("monitor.failed"):
            Monitor(self.services, LAST_RESORT if self._killable else timedelta(0)).run(self._stop)

    def _listen(self) -> None:
        with _told("listen.lost"):
            listen(self.services, self._send, self._stop)

    def _stand_in(self) -> None:
        """Beat is late or dead: whoever lives sends its ticks. `toban_begin_run` keeps a slot from running twice."""
        with self._lock:
            overdue = sorted(self._overdue)
            self._overdue.clear()
        for job in overdue:
            log.warning("beat.overdue", job=job)
            with _told("tick.failed"):
                self._tick(job)


@contextmanager
def _told(event: str) -> Iterator[None]:
    """Whatever goes wrong is told, and the thread goes on: leases and reports depend on it."""
    try:
        yield
    except TobanError as error:
        log.warning(event, reason=str(error))
    except Exception:
        log.exception(event)
