"""The composition root: everything that work needs, built once a process from the settings."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from app.database import Database, open_database
from app.ledger import Ledger
from app.settings import Settings

if TYPE_CHECKING:
    from app.audio.store import AudioStore
    from app.speech.engine import Engine


@dataclass(frozen=True)
class Services:
    """What tasks, dispatchers and commands share. Nothing connects or loads before its first use.

    `threads`: processor threads that one piece of work may use.
    """

    settings: Settings
    database: Database
    ledger: Ledger
    threads: int

    @cached_property
    def audio(self) -> "AudioStore":
        from app.audio.store import build_store

        return build_store(self.settings.audio)

    @cached_property
    def engine(self) -> "Engine":
        from app.speech.engine import build_engine

        return build_engine(
            self.settings.whisper,
            max_seconds=self.settings.audio.audio_max_seconds.total_seconds(),
            threads=self.threads,
        )

    def close(self) -> None:
        self.database.close()


def build_services(settings: Settings, threads: int = 1) -> Services:
    database = open_database(settings.database)
    ledger = Ledger(
        database,
        lease=settings.ledger.lease,
        queue_lease=settings.ledger.queue_lease,
        max_attempts=settings.ledger.max_attempts,
    )
    return Services(settings, database, ledger, settings.whisper.threads or threads)
