"""What a process that runs items keeps: who it is, what it runs now, and the thread that tells the ledger so.

In a prefork pool each child has one; a worker with threads has one for all of them.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import structlog

from app.dispatch import Send, dispatch
from app.errors import TobanError
from app.services import Services
from app.sources import Source, registry
from app.work import Work
from beat_schedule import timetable

log = structlog.get_logger("toban.worker")

# How long a report may wait for others to go with it, seconds.
REPORT_PAUSE = 2.0
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
        """Bring `job_status` and the runs' counts up to date; trouble here never reaches the work."""
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
    hangs, because a parent will replace it.
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
        self._works: dict[int, Work] = {}
        self._lost: dict[int, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._feeding = threading.Lock()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._live, name="toban-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Leave in good order: the last reports go out, and the ledger forgets this process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
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

    def cancel_all(self, reason: str) -> int:
        """Ask all running work to stop at its next word of progress. Returns how many there are."""
        with self._lock:
            for work in self._works.values():
                work.cancel(reason)
            return len(self._works)

    def feed(self, source: Source) -> None:
        """Claim and send more of `source`; one thread of the process at a time is enough."""
        if self._stop.is_set() or not self._feeding.acquire(blocking=False):
            return
        try:
            dispatch(self.services, source, self._send)
        except TobanError as error:
            log.warning("dispatch.failed", source=source.name, reason=str(error))
        finally:
            self._feeding.release()

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
            items=reports,
        )
        self._mind_lost(pulse.lost)
        if pulse.reaped:
            log.warning("ledger.reaped", items=pulse.reaped)
        for job in pulse.overdue:
            # Beat is late or dead: whoever lives sends its ticks. begin_run() keeps a slot from running twice.
            log.warning("beat.overdue", job=job)
            self._tick(job)
        if pulse.hungry:
            for source in registry.of_queue(self.queues):
                self.feed(source)

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
        beats = reports = 0.0
        interval = self.services.settings.ledger.heartbeat.total_seconds()
        introduced = False
        while True:
            now = time.monotonic()
            try:
                if now >= beats:
                    beats = now + interval
                    if not introduced:
                        # The timetable comes first: what is dispatched belongs to a job's run, and a beat that never
                        # came is missed only by those who know its jobs.
                        self.services.database.call("toban_sync_jobs", jobs=[j.row() for j in timetable().values()])
                        introduced = True
                    self.beat()
                if now >= reports:
                    reports = now + REPORT_PAUSE
                    self.reporter.flush(self.services)
            except TobanError as error:
                log.warning("heartbeat.failed", reason=str(error))
            except Exception:
                # This thread keeps the leases: whatever goes wrong in it is told, and it goes on.
                log.exception("heartbeat.failed")
            if self._stop.wait(min(1.0, interval)):
                return
