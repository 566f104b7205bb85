"""When a recording was made, from its name; and the key that it gets in the store."""

import os
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.errors import Permanent
from app.recordings import Recording, check_device, find, time_of_name, timed

TOKYO = ZoneInfo("Asia/Tokyo")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2025-07-18_12-30.wav", "2025-07-18T12:30:00+09:00"),
        ("2025-07-18 12.30.15.m4a", "2025-07-18T12:30:15+09:00"),
        ("20250718-123015.wav", "2025-07-18T12:30:15+09:00"),
        ("20250718_1230.wav", "2025-07-18T12:30:00+09:00"),
        ("20250718123015.ogg", "2025-07-18T12:30:15+09:00"),
        ("REC_20250718T123015_kitchen.wav", "2025-07-18T12:30:15+09:00"),
        ("2025-07-18T12:30:15Z.wav", "2025-07-18T12:30:15+00:00"),
        ("2025-07-18_12-30_001.wav", "2025-07-18T12:30:00+09:00"),
        ("files/d1/2025-07-18/12-30/audio.wav", "2025-07-18T12:30:00+09:00"),
        ("2025-01-01/2025-07-18_12-30.wav", "2025-07-18T12:30:00+09:00"),
    ],
)
def test_a_name_that_tells(name: str, expected: str) -> None:
    assert time_of_name(Path(name), TOKYO) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "name",
    ["meeting.wav", "2025-07-18.wav", "2025-13-18_12-30.wav", "20250718-2530.wav", "1234567890123456.wav", "12-30.wav"],
)
def test_a_name_that_does_not(name: str) -> None:
    assert time_of_name(Path(name), TOKYO) is None


def test_without_a_name_the_last_change_counts_and_two_are_kept_apart(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1_752_800_000.7, 1_752_800_000.7))
    first, second = timed(find(tmp_path), "d1", TOKYO)
    assert first.recorded_at == datetime.fromtimestamp(1_752_800_000, UTC)
    assert (second.recorded_at - first.recorded_at).total_seconds() == 1
    assert first.key(TOKYO) != second.key(TOKYO)


def test_the_key_is_in_the_devices_zone() -> None:
    at = datetime(2025, 7, 17, 22, 0, tzinfo=UTC)
    assert Recording(Path("x.WAV"), "d1", at).key(TOKYO) == "files/d1/2025-07-18/07-00/audio.wav"
    assert Recording(None, "d1", at.replace(second=5)).key(TOKYO) == "files/d1/2025-07-18/07-00/audio-05.wav"


def test_only_recordings_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.ogg", "deep/a.WAV", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find(tmp_path)] == ["b.ogg", "a.WAV"]
    assert find(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # asked for by name
    with pytest.raises(Permanent, match="no file or folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Permanent, match="no recordings in"):
        find(tmp_path / "empty")


@pytest.mark.parametrize("device", ["", "../x", "a/b", ".hidden", "a b", "x" * 101])
def test_a_device_that_cannot_be_part_of_a_key(device: str) -> None:
    with pytest.raises(Permanent, match="device id"):
        check_device(device)
