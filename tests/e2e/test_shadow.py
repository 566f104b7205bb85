"""Moving in beside an old cron: shadow, take-over, rollback; real beat, workers, Whisper weights, speech, commands."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from app.cli import main
from tests.e2e.conftest import NewSystem
from tests.support.old_cron import OldCron, Row, Sql, moment
from tests.support.speech import spoken
from tests.support.system import FIRST, System

APPS = ("audio_files", "vibe_whisper", "dashboard", "transcripts", "prompted_blocks")


Run = Callable[..., str]


@pytest.fixture
def toban(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a system's environment, which has to end with `code`; returns what it prints."""

    def run(system: System, *arguments: str, code: int = 0) -> str:
        for name, value in {**system.env, "COLUMNS": "250"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        shown = capsys.readouterr()
        assert (ended.value.code or 0) == code, shown
        return shown.err if code else shown.out

    return run


def apps(system: System) -> dict[str, Any]:
    """All rows of the apps' tables, with the transaction that last wrote each."""
    return {table: system.sql(f"select xmin::text, * from {table} r order by r::text") for table in APPS}


def status_of(system: System, number: int) -> str:
    at = FIRST + number * timedelta(minutes=30)
    return str(system.sql("select transcriptions_status as s from audio_files where recorded_at = %s", at)[0]["s"])


def looked(system: System) -> None:
    """Wait until workers with room have looked for work a few times: they do with each heartbeat, every second."""
    [now] = system.sql("select now() as at")
    since = now["at"] + timedelta(seconds=2.5)
    query = "select 1 from workers where 'whisper' = any (queues) and slots > busy and seen_at > %s"
    system.wait_until(lambda _: bool(system.sql(query, since)))


def test_moving_in(new_system: NewSystem, toban: Run) -> None:
    system = new_system(TOBAN_SHADOW="1")
    recordings = spoken()
    for entry in recordings[:2]:
        system.add(entry.path)

    def words(row: Row) -> str:
        """It has heard the first recording well, and nothing of the second."""
        return recordings[0].words if moment(row) == FIRST else "la la la"

    old = OldCron(Sql(system.database_url), "audio_files", words)
    system.start()
    looked(system)
    assert system.states() == {"pending": 2}

    old.run()
    before = apps(system)
    system.add(recordings[0].path)  # the old cron has not seen this one yet
    before["audio_files"] = apps(system)["audio_files"]
    system.wait_until(lambda states: states == {"completed": 4, "pending": 1})
    assert apps(system) == before, "whatever was compared, the apps' tables are as they were"
    told = json.loads(toban(system, "shadow", "report", "--json", "--since", "1h"))
    [found] = told["sources"]
    assert (found["rows"], found["identical"] + found["near"], found["different"]) == (2, 1, 1)
    assert found["seconds"][0] > 0
    assert found["their_seconds"][0] > 0
    assert len(told["differences"]) == 1
    assert "la la la" not in json.dumps(told)
    shown = toban(system, "shadow", "report", "transcription", "--show-text")
    assert "la la la" in shown
    assert "in shadow mode since" in shown
    assert not any("la la la" in system.log(name) for name in system.processes)

    # Two comparisons are few.
    assert "was not taken over" in toban(system, "takeover", "transcription", code=1)
    assert status_of(system, 2) == "pending"
    assert "transcription is live." in toban(system, "takeover", "transcription", "--force")
    system.wait_until(lambda states: states == {"completed": 5})
    assert status_of(system, 2) == "completed"
    assert len(system.sql("select * from transcripts where text <> ''")) == 1

    assert "Toban claims nothing of it" in toban(system, "rollback", "transcription")
    system.add(recordings[1].path)
    looked(system)
    assert status_of(system, 3) == "pending"
    old.run()
    system.wait_until(lambda states: states == {"completed": 7})
    assert status_of(system, 3) == "completed"
    assert len(system.sql("select * from transcripts")) == 1
    assert system.sql("select * from work_collisions") == []
    old.way.close()


def test_a_typo_stops_the_worker_with_the_list(new_system: NewSystem) -> None:
    system = new_system(TOBAN_SHADOW="transcripton")
    worker = system.run("worker", "-A", "workers.default", "worker")
    assert worker.child.wait(30) != 0
    assert "[E060] TOBAN_SHADOW: names no source: transcripton" in system.log("worker")
    assert "analysis, transcription" in system.log("worker")
    assert "Traceback" not in system.log("worker")
