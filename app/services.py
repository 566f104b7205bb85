"""The composition root: everything that work needs, built once a process from the settings."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from app.database import Database, open_database
from app.ledger import Ledger
from app.settings import Settings
from app.speech.pace import FRUGAL, Pace

if TYPE_CHECKING:
    from app.audio.store import AudioStore
    from app.gpt.analyst import Analyst
    from app.speech.hearing import Engine


@dataclass(frozen=True)
class Services:
    """What tasks, dispatchers and commands share. Nothing connects or loads before its first use.

    `pace`: how much the speech engine does at once.
    """

    settings: Settings
    database: Database
    ledger: Ledger
    pace: Pace

    def introduce(self) -> None:
        """Tell the database, once, which sources the settings put in shadow mode: before anything is claimed.

        Raises `TobanError` when it can't be told now.
        """
        _ = self._introduced

    @cached_property
    def _introduced(self) -> bool:
        from app.shadow import introduce

        introduce(self.database, self.settings)
        return True

    @cached_property
    def audio(self) -> "AudioStore":
        from app.audio.store import build_store

        return build_store(self.settings.audio)

    @cached_property
    def engine(self) -> "Engine":
        from app.speech.hearing import Engine

        return Engine(
            self.settings.whisper,
            max_seconds=self.settings.audio.audio_max_seconds.total_seconds(),
            pace=self.pace,
        )

    @cached_property
    def analyst(self) -> "Analyst":
        from app.gpt.analyst import Analyst

        return Analyst(self.settings, self.database)

    def close(self) -> None:
        if "analyst" in self.__dict__:
            self.analyst.close()
        self.database.close()


def build_services(settings: Settings, pace: Pace = FRUGAL, patience: float = 15) -> Services:
    """`patience`: how long a call waits for a database connection, seconds."""
    database = open_database(settings.database, patience=patience)
    ledger = Ledger(
        database,
        lease=settings.ledger.lease,
        queue_lease=settings.ledger.queue_lease,
        max_attempts=settings.ledger.max_attempts,
    )
    return Services(settings, database, ledger, pace)
