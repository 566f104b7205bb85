"""Recordings that are to be put in: which files, when each was made, and their keys in the store."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from app.errors import Permanent

SUFFIXES = {
    ".3gp", ".aac", ".aif", ".aiff", ".amr", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4",
    ".oga", ".ogg", ".opus", ".wav", ".webm", ".wma",
}  # fmt: skip

# 2025-07-18_12-30, 20250718-123015, 2025-07-18T12:30:15Z, 2025-07-18/12-30/…
_MOMENT = re.compile(
    r"(?<!\d)(?P<year>(?:19|20)\d\d)[-_.]?(?P<month>\d\d)[-_.]?(?P<day>\d\d)"
    r"[-_.T /]*(?P<hour>\d\d)[-_.:h]?(?P<minute>\d\d)(?:[-_.:m]?(?P<second>\d\d))?(?P<utc>Z)?(?!\d)"
)


@dataclass(frozen=True)
class Recording:
    """A recording to put in; `file` None: only its row, as for a slot in which nothing was measured.

    `recorded_at`: aware, whole seconds.
    """

    file: Path | None
    device_id: str
    recorded_at: datetime

    def key(self, zone: ZoneInfo) -> str:
        """Its key in the store: `files/{device_id}/{YYYY-MM-DD}/{HH-MM}/audio.wav`, in the devices' `zone`.

        One that begins within a minute says so in its name, so that two of one minute do not share a file.
        """
        local = self.recorded_at.astimezone(zone)
        seconds = f"-{local:%S}" if local.second else ""
        suffix = self.file.suffix.lower() if self.file else ".wav"
        return f"files/{self.device_id}/{local:%Y-%m-%d/%H-%M}/audio{seconds}{suffix}"

    @property
    def item_keys(self) -> set[str]:
        """The keys its item may have in the ledger: a database with a column of type uuid has its letters small."""
        moment = f"{self.recorded_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}".rstrip("0").rstrip(".") + "Z"
        return {f"{device}/{moment}" for device in (self.device_id, self.device_id.lower())}


def time_of_name(path: Path, zone: ZoneInfo) -> datetime | None:
    """The moment that a file's name tells, or the names of its two folders; None if they tell none.

    A time without `Z` is meant in `zone`.
    """
    for text in (path.stem, "/".join(path.parts[-3:-1])):
        for match in _MOMENT.finditer(text):
            parts = {name: int(value) for name, value in match.groupdict("0").items() if name != "utc"}
            try:
                return datetime(**parts, tzinfo=UTC if match["utc"] else zone)
            except ValueError:
                continue
    return None


def find(path: Path) -> list[Path]:
    """The recordings at `path`: the file itself, or all below the folder, by name.

    Raises `Permanent` when there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise Permanent(f"there is no file or folder {path}")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise Permanent(f"there are no recordings in {path}; known are {', '.join(sorted(SUFFIXES))}")
    return found


def timed(files: Iterable[Path], device_id: str, zone: ZoneInfo) -> list[Recording]:
    """Recordings with the time of their name, else of their last change; those of one second a second apart."""
    check_device(device_id)
    recordings: list[Recording] = []
    taken: set[datetime] = set()
    for file in files:
        moment = time_of_name(file, zone) or datetime.fromtimestamp(int(file.stat().st_mtime), UTC)
        while moment in taken:
            moment += timedelta(seconds=1)
        taken.add(moment)
        recordings.append(Recording(file, device_id, moment))
    return recordings


def check_device(device_id: str) -> None:
    """Raises `Permanent` for a device id that can't be part of a key."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", device_id):
        raise Permanent(f"the device id {device_id!r} should be letters, digits, '-', '_' and '.', as in a UUID")
