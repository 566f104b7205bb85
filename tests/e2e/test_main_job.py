"""The main job with everything real: beat, workers, Redis, PostgreSQL, Whisper weights, speech."""

import os
import re
import wave
from datetime import timedelta
from pathlib import Path

import jiwer
import pytest

from tests.e2e.conftest import NewSystem
from tests.support.speech import spoken
from tests.support.system import DEVICES, FIRST


def plain(words: str) -> str:
    """Words without case, punctuation and spacing, for a fair comparison."""
    return " ".join(re.findall(r"\w+", words.lower()))


def test_a_pending_recording_becomes_a_transcript(new_system: NewSystem) -> None:
    system = new_system()
    recordings = spoken()
    for entry in recordings:
        system.add(entry.path)
    missing = (DEVICES[0], FIRST + timedelta(hours=20), "files/nowhere/2025-07-18/20-00/audio.wav")
    system.sql("insert into audio_files (device_id, recorded_at, file_path) values (%s, %s, %s)", *missing)
    # The second recording of the first one's time block.
    again = (
        DEVICES[0],
        FIRST + timedelta(minutes=10),
        system.sql("select file_path from audio_files limit 1")[0]["file_path"],
    )
    system.sql("insert into audio_files (device_id, recorded_at, file_path) values (%s, %s, %s)", *again)
    system.start()
    states = system.wait_done()
    assert states == {"completed": len(recordings) + 1, "skipped": 1}

    transcripts = system.sql("select * from transcripts order by recorded_at")
    heard = {row["recorded_at"]: row for row in transcripts}
    for number, entry in enumerate(recordings):
        row = heard[FIRST + number * timedelta(minutes=30)]
        assert jiwer.wer(plain(entry.words), plain(row["text"])) <= 0.15, (entry.words, row["text"])
        assert (row["model"], row["engine"], row["language"]) == ("tiny.en", "faster-whisper", "en")
        assert row["segments"][0]["start"] < row["segments"][-1]["end"] <= row["duration_seconds"] + 0.5
        assert row["real_time_factor"] > 0
    blocks = {
        (row["device_id"], str(row["date"]), row["time_block"]): row["transcription"]
        for row in system.sql("select * from vibe_whisper")
    }
    assert len(blocks) == len(recordings)
    # 00:00 in UTC is 09:00 in the devices' zone; both recordings of the block stand in it.
    words = heard[FIRST]["text"]
    assert blocks[DEVICES[0], "2025-07-18", "09-00"] == f"{words}\n{words}"
    assert {row["transcriptions_status"] for row in system.sql("select * from audio_files")} == {"completed", "skipped"}

    system.wait_until(lambda _: bool(system.sql("select * from job_status where job_key = 'transcription'")))
    [status] = system.sql("select * from job_status where job_key = 'transcription'")
    assert (status["last_status"], status["title"]) == ("success", "Transcription")

    def finished() -> bool:
        [sums] = system.sql("select sum(dispatched) as d, sum(finished) as f, sum(skipped) as s from runs")
        # What is missing may have been sent once before its grace was over.
        return bool(sums["d"] >= sum(states.values()) and sums["f"] == states["completed"] and sums["s"] == 1)

    system.wait_until(lambda _: finished())
    runs = system.sql("select * from runs where job = 'transcription' order by slot")
    assert runs[0]["period_from"] is not None
    assert {str(day) for run in runs for day in run["dates"]} <= {"2025-07-18", "2025-07-19"}


def test_ad_hoc_reprocessing(new_system: NewSystem, recording: Path) -> None:
    """A whole day of a device, one block, or what failed, by the usual Celery command."""
    system = new_system()
    system.add(recording, 4)
    system.start()
    system.wait_done()
    system.sql("update transcripts set text = 'old'")
    system.sql("update vibe_whisper set transcription = 'old'")

    day = f'{{"source": "transcription", "device_id": "{DEVICES[0]}", "date": "2025-07-18", "time_block": "09-00"}}'
    system.call("tasks.reprocess", "--kwargs", day)
    system.wait_until(lambda _: len(system.sql("select * from transcripts where text <> 'old'")) == 1)
    system.call(
        "tasks.reprocess",
        "--kwargs",
        f'{{"source": "transcription", "device_id": "{DEVICES[0]}", "date": "2025-07-18"}}',
    )
    system.wait_until(lambda _: len(system.sql("select * from transcripts where text <> 'old'")) == 2)
    key = system.sql("select key from work_items where partition = %s limit 1", DEVICES[1])[0]["key"]
    system.call("tasks.reprocess", "--kwargs", f'{{"source": "transcription", "key": "{key}"}}')
    system.wait_until(lambda _: len(system.sql("select * from transcripts where text <> 'old'")) == 3)
    # Nothing has failed, and a date that is none: neither disturbs anything.
    system.call("tasks.reprocess", "--kwargs", '{"source": "transcription", "date": "2025-07-18", "only_failed": true}')
    system.call("tasks.reprocess", "--kwargs", '{"source": "transcription", "date": "18.7.2025"}')
    system.wait_until(lambda states: "18.7.2025" in system.log("default") and states == {"completed": 4})
    assert len(system.sql("select * from transcripts where text = 'old'")) == 1


def bad_files(folder: Path, recording: Path) -> dict[str, tuple[bytes, str, str]]:
    """File name → content, the state it ends in, and words of the reason."""
    with wave.open(str(folder / "silent.wav"), "wb") as output:
        output.setparams((1, 2, 16_000, 0, "NONE", ""))
        output.writeframes(bytes(2 * 16_000 * 30))
    whole = (folder / "silent.wav").read_bytes()
    header = whole[:44]
    return {
        "empty": (b"", "failed", "empty"),
        "random": (os.urandom(20_000), "failed", "not an audio file"),
        "text": (b"this is no sound at all\n" * 100, "failed", "not an audio file"),
        "truncated": (whole[: len(whole) // 3], "completed", "truncated"),
        "zero-length": (header[:40] + bytes(4), "failed", "no audio"),
        "one-sample": (header[:40] + (2).to_bytes(4, "little") + bytes(2), "failed", "too short"),
        "too-big": (whole + bytes(2_000_000), "failed", "over the limit"),
    }


def test_bad_input_is_told_and_disturbs_nobody(new_system: NewSystem, recording: Path, tmp_path: Path) -> None:
    system = new_system(AUDIO_MAX_BYTES="2000000", AUDIO_MISSING_GRACE="1")
    cases = bad_files(tmp_path, recording)
    expected: dict[str, tuple[str, str]] = {}

    def insert(device: str, path: str | None, number: int) -> None:
        system.sql(
            "insert into audio_files (device_id, recorded_at, file_path) values (%s, %s, %s)",
            device,
            FIRST + number * timedelta(minutes=30),
            path,
        )

    for number, (name, (content, state, words)) in enumerate(cases.items()):
        (system.audio / f"{name}.wav").write_bytes(content)
        insert(name, f"{name}.wav", number)
        expected[name] = (state, words)
    insert("outside", "../../../../etc/passwd", 0)
    expected["outside"] = ("failed", "leaves the audio folder")
    insert("no path", None, 0)
    expected["no path"] = ("failed", "no file_path")
    insert("missing", "files/missing/2025-07-18/09-00/audio.wav", 0)
    expected["missing"] = ("skipped", "no such audio object")
    # A recorder's id need not be a UUID, and may hold what a key is made of.
    (system.audio / "good.ogg").write_bytes(recording.read_bytes())
    insert("台所/recorder 1", "good.ogg", 0)
    expected["台所/recorder 1"] = ("completed", "")
    system.add(recording, 2)
    system.start()
    system.wait_done()

    items = {item["ref"]["device_id"]: item for item in system.items()}
    for device, (state, words) in expected.items():
        assert items[device]["state"] == state, (device, items[device]["last_error"])
        assert words in (items[device]["last_error"] or ""), (device, items[device]["last_error"])
    assert {items[device]["state"] for device in DEVICES} == {"completed"}
    assert all(item["tries"] <= 1 for item in items.values()), "what can't succeed is not tried again"
    rows = {row["device_id"]: row["transcriptions_status"] for row in system.sql("select * from audio_files")}
    assert rows == {device: item["state"] for device, item in items.items()}
    system.wait_until(lambda _: [row["last_status"] for row in system.sql("select * from job_status")][:1] == ["error"])


@pytest.mark.parametrize(
    ("app", "setting", "value"),
    [
        ("app", "DATABASE_URL", "hello"),
        ("app", "CELERY_BROKER_URL", "hello"),
        ("app", "AUDIO_FOLDER", "/nowhere/at/all"),
        ("workers.whisper", "WHISPER_CHILDREN", "abc"),
    ],
)
def test_a_worker_refuses_bad_settings_in_words(new_system: NewSystem, app: str, setting: str, value: str) -> None:
    system = new_system(**{setting: value})
    worker = system.run("worker", "-A", app, "worker", "-Q", "whisper")
    assert worker.child.wait(30) != 0
    words = system.log("worker")
    assert setting in words
    assert "→" in words
    assert "Traceback" not in words


def test_who_hears_nothing_needs_no_recordings(new_system: NewSystem) -> None:
    """Beat and the default worker run on machines that know of no bucket."""
    system = new_system(AUDIO_FOLDER="")
    system.start("beat", "default")
    system.wait_until(lambda _: bool(system.sql("select * from workers where 'default' = any (queues)")))
    system.wait_until(lambda _: bool(system.sql("select * from jobs where last_started_at is not null")))
    assert system.processes["beat"].child.poll() is None
