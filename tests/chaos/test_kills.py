"""Kill something in the middle of ten recordings: all ten end completed, each stored once.

A short round runs with every test run; `make chaos` (TOBAN_CHAOS=long) does it all with the leases of production.
"""

import enum
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Redis
from tests.support.speech import make_wav
from tests.support.system import System, kill_tree

pytestmark = pytest.mark.chaos
LONG = os.environ.get("TOBAN_CHAOS") == "long"
PRODUCTION = {"TOBAN_HEARTBEAT": "15", "TOBAN_LEASE": "60", "TOBAN_QUEUE_LEASE": "30", "TOBAN_SHUTDOWN_GRACE": "25"}


class Fault(enum.Enum):
    """What happens in the middle."""

    CHILD = "kill -9 of a whisper child"
    WORKER = "kill -9 of the whole whisper worker, and a new one"
    BEAT = "kill -9 of beat, for good"
    BEAT_AND_DEFAULT = "kill -9 of beat and of the default worker, for good"
    FLUSHALL = "FLUSHALL"
    RESTART = "a Redis restart that loses everything"
    STOP = "SIGTERM of the whisper worker, and a new one"

    def strike(self, system: System) -> None:
        match self:
            case Fault.CHILD:
                system.children("whisper")[0].kill()
            case Fault.WORKER:
                kill_tree(system.processes["whisper"].child.pid)
                system.start("whisper")
            case Fault.BEAT:
                kill_tree(system.processes["beat"].child.pid)
            case Fault.BEAT_AND_DEFAULT:
                kill_tree(system.processes["beat"].child.pid)
                kill_tree(system.processes["default"].child.pid)
            case Fault.FLUSHALL:
                system.redis.flush()
            case Fault.RESTART:
                system.redis.restart()
            case Fault.STOP:
                system.processes["whisper"].stop(60)
                system.start("whisper")


@pytest.fixture
def system(database_url: str, redis_server: Redis, tmp_path: Path) -> Iterator[System]:
    with System(database_url, redis_server, tmp_path, **(PRODUCTION if LONG else {})) as running:
        yield running


def check_ten(system: System) -> None:
    """All ten are completed, and each transcript is stored once, in its own block."""
    items = system.items()
    assert [item["state"] for item in items] == ["completed"] * 10
    transcripts = system.sql("select * from transcripts where text <> ''")
    assert len(transcripts) == 10
    assert all(row["updated_at"] == row["created_at"] for row in transcripts), "each is stored once"
    assert len(system.sql("select * from vibe_whisper where transcription not like E'%%\\n%%'")) == 10
    assert {row["transcriptions_status"] for row in system.sql("select * from audio_files")} == {"completed"}
    assert all(item["lease_until"] is None for item in items)


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
def test_ten_recordings_survive(system: System, long_recording: Path, fault: Fault) -> None:
    system.add(long_recording, 10)
    system.start()
    system.in_the_middle()
    fault.strike(system)
    system.wait_done(240 if LONG else 100)
    check_ten(system)
    if fault is Fault.STOP:
        assert max(item["tries"] for item in system.items()) == 1, "a stop costs no try"


def test_a_killed_recording_goes_on_where_it_was_saved(database_url: str, redis_server: Redis, tmp_path: Path) -> None:
    with System(database_url, redis_server, tmp_path, TOBAN_SOURCES="tests.support.eager") as system:
        system.add(make_wav(tmp_path / "long.wav", repeats=6))
        system.start()
        system.wait_until(lambda _: bool(system.sql("select * from saved_parts")))
        # Nobody says this word, so it is in the transcript only if the next attempt took over what was saved.
        system.sql("update saved_parts set data = jsonb_set(data, '{segments,0,2}', '\"Rumpelstiltskin\"')")
        max(system.children("whisper"), key=lambda child: child.cpu_times().user).kill()
        system.wait_done()
        [item] = system.items()
        assert (item["state"], item["tries"]) == ("completed", 2)
        [transcript] = system.sql("select * from transcripts")
        assert transcript["text"].startswith("Rumpelstiltskin ")
        starts = [segment["start"] for segment in transcript["segments"]]
        assert starts == sorted(starts)
        assert starts[-1] > 0.95 * transcript["duration_seconds"]
        assert system.sql("select * from saved_parts") == []


def test_a_file_that_kills_its_child_is_set_aside(
    database_url: str, redis_server: Redis, tmp_path: Path, recording: Path
) -> None:
    env = {"TOBAN_SOURCES": "tests.support.poison", "TOBAN_MAX_ATTEMPTS": "3"}
    with System(database_url, redis_server, tmp_path, **env) as system:
        system.add(recording, 2)
        system.add(b"POISON", 1)
        system.add(recording, 3)
        system.start()
        states = system.wait_done()
        assert states == {"completed": 5, "failed": 1}
        [poison] = [item for item in system.items() if item["state"] == "failed"]
        assert poison["tries"] == 3
        assert "given up after 3 of 3 tries" in poison["last_error"]
        assert "SIGKILL" in poison["last_error"]
        [row] = system.sql("select * from audio_files where transcriptions_status = 'failed'")
        assert row["recorded_at"] == poison["at"]


def test_two_beats_and_two_workers_double_nothing(system: System, recording: Path) -> None:
    system.add(recording, 10)
    system.start()
    system.run("beat2", "-A", "app", "beat")
    system.run("default2", "-A", "workers.default", "worker", "-n", f"default2-{id(system)}@%h")
    system.run("whisper2", "-A", "app", "worker", "-Q", "whisper", "-n", f"whisper2-{id(system)}@%h", "-c", "2")
    system.wait_done()
    check_ten(system)
    assert [item["attempt"] for item in system.items()] == [1] * 10
