"""The monitor's look at everything, in every process that lives: workers, beat and the web server."""

import threading
from datetime import timedelta
from typing import Any

import structlog

from app.errors import TobanError
from app.monitor.alerts import send_due
from app.services import Services
from app.sources import load_sources, registry
from beat_schedule import timetable

log = structlog.get_logger("toban.monitor")


class Monitor:
    """Asks the database to look, and sends what people are to be told.

    `patience`: a message that others have left for so long is sent by this process too. Sending takes some 40 MB, which
    a process with little memory spends only when nobody else lives.
    """

    def __init__(self, services: Services, patience: timedelta = timedelta(0)) -> None:
        load_sources(services.settings.ledger)
        self._services = services
        self._patience = patience

    def tick(self) -> dict[str, Any]:
        """Look, unless somebody has within the last seconds, and send what is due.

        Returns the answer of `toban_monitor`. Raises `TobanError` when the database can't be asked.
        """
        settings, database = self._services.settings, self._services.database
        waited = self._patience.total_seconds()
        look: dict[str, Any] = database.call("toban_monitor", **watched(), waited=waited)
        for fingerprint in look["opened"]:
            log.warning("incident.opened", incident=fingerprint)
        for fingerprint in look["recovered"]:
            log.info("incident.recovered", incident=fingerprint)
        if look["due_alerts"]:
            send_due(database, settings.alerts, settings.audio.zone, waited)
        return look

    def run(self, stop: threading.Event, every: float = 10.0) -> None:
        """Tick every so many seconds until `stop`; whatever goes wrong is told and tried again."""
        while not stop.wait(every):
            try:
                self.tick()
            except TobanError as error:
                log.warning("monitor.failed", reason=str(error))
            except Exception:
                log.exception("monitor.failed")


def watched() -> dict[str, Any]:
    """What the database can't know: this program's jobs, which queue each source needs, how often beat ticks."""
    jobs = timetable()
    queues: dict[str, list[str]] = {"default": []}
    for source in registry.sources.values():
        queues.setdefault(source.queue, []).append(source.name)
    return {
        "timetable": list(jobs),
        "queues": queues,
        "beat_every": min(job.tick for job in jobs.values()).total_seconds(),
    }
