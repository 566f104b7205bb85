"""What a person may set for a job, and how it is written; the settings themselves are rows of `jobs`.

Changes are those of `toban_edit_job`: `enabled`, `every`, `at` (seconds), `zone`, `batch_limit`, `timeout` (seconds)
and `filters`; None takes `batch_limit`, `timeout` or a filter away.
"""

import re
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from app.database import Database
from app.errors import Permanent

Row = Mapping[str, Any]
Changes = Mapping[str, Any]

# Seconds: what takes longer than a day hangs.
LONGEST_TIMEOUT = 86_400
# Items: far more than any slot can send, and few enough for the column.
HIGHEST_LIMIT = 1_000_000

# Of these jobs not every setting means something: the length of a transcription follows from its recording, and
# what is not listed here and has no source takes no rows at all.
_TAKES = {
    "transcription": {"batch_limit", "partition", "date"},
    "timeblock-prompt": {"partition", "date"},
}
_ALL = {"batch_limit", "partition", "date", "timeout"}
_WORDS = {"batch_limit": "batch limit", "partition": "device", "date": "date", "timeout": "timeout"}

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))


def duration(text: str) -> timedelta:
    """`90s`, `10m`, `1h30m`, `1d`.

    Raises `ValueError`.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError("write it as 90s, 10m, 1h30m or 1d")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    try:
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        raise ValueError("that is too long") from None


def written(seconds: float) -> str:
    """The inverse of `duration`, exactly."""
    parts = []
    for size, unit in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count:.0f}{unit}")
    if seconds or not parts:
        parts.append(f"{seconds:g}s")
    return "".join(parts)


def day(text: str) -> str | None:
    """What the filter `date` says for `today`, `yesterday`, `YYYY-MM-DD`; None for `any`.

    Raises `ValueError`.
    """
    text = text.strip()
    if text == "any":
        return None
    if text in {"today", "yesterday"}:
        return text
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError("write it as today, yesterday, 2025-07-18 or any")
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"there is no day {text}") from None


def in_timetable() -> dict[str, Row]:
    """The jobs of this program as rows of `toban_sync_jobs`."""
    import tasks  # noqa: F401 - registers the sources
    from beat_schedule import timetable

    return {name: job.row() for name, job in timetable().items()}


def in_database(database: Database) -> dict[str, Row]:
    """The jobs that have been introduced, as `toban_jobs` answers."""
    return {row["job"]: row for row in database.call("toban_jobs")["jobs"]}


def introduced(database: Database, *jobs: str) -> dict[str, Row]:
    """The jobs in the database, among them `jobs`: those that no worker has introduced yet are introduced now.

    Raises `Permanent` for a name that is no job.
    """
    there = in_database(database)
    if set(jobs) <= there.keys():
        return there
    known = in_timetable()
    for name in jobs:
        if name not in there and name not in known:
            raise Permanent(f"there is no job {name!r}; the jobs are {', '.join(sorted(known.keys() | there.keys()))}")
    database.call("toban_sync_jobs", jobs=list(known.values()))
    return in_database(database)


def edit(database: Database, job: Row, changes: Changes) -> None:
    """Change what `changes` names of an introduced job.

    Raises `Permanent` for what means nothing to the job, and for what the ledger refuses.
    """
    for name, value in named(changes):
        if value is not None and name not in takes(job):
            raise Permanent(f"the job {job['job']} knows no {_WORDS[name]}: it would change nothing")
    try:
        database.call("toban_edit_job", job=job["job"], **changes)
    except Permanent as error:
        raise Permanent(str(error).removeprefix("toban_edit_job: ")) from error


def takes(job: Row) -> set[str]:
    """Which of `batch_limit`, `partition`, `date` and `timeout` mean something to a job."""
    return _TAKES.get(job["job"], _ALL if job["source"] else set())


def named(changes: Changes) -> list[tuple[str, Any]]:
    """The changes that are about rows, filters among them."""
    flat = {**changes, **changes.get("filters", {})}
    return [(name, flat[name]) for name in _WORDS if name in flat]
