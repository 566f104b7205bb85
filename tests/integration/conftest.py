"""The services of a process over a real ledger, and its runtime without its threads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.runtime import Runtime
from app.services import Services, build_services
from app.settings import GROUPS, Settings
from beat_schedule import timetable
from workers import process

import tasks  # noqa: F401 isort:skip - registers the sources


def settings_for(database_url: str, audio: Path) -> Settings:
    values: dict[str, dict[str, Any]] = {
        "database": {"database_url": database_url},
        "audio": {"audio_folder": str(audio)},
        "whisper": {"model": "tiny.en"},
    }
    return Settings(**{name: group(_env_file=None, **values.get(name, {})) for name, group in GROUPS.items()})


@pytest.fixture
def services(database_url: str, tmp_path: Path) -> Iterator[Services]:
    own = build_services(settings_for(database_url, tmp_path))
    own.database.call("toban_sync_jobs", jobs=[job.row() for job in timetable().values()])
    yield own
    own.close()


@pytest.fixture
def runtime(services: Services, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    own = Runtime(services, "test@host", ["whisper"], 1, lambda *_: None, lambda _: None, killable=False)
    monkeypatch.setattr(process, "_runtime", own)
    return own
