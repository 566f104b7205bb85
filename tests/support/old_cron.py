"""The systems that Toban replaces, as far as the database sees them: read what is pending, work, write, mark it done.

Once an hour they read all pending rows, then work on one after another; only the status decides what they read. One
speaks SQL, one the REST API, as the old programs do.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import httpx
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

Row = dict[str, Any]
TOKYO = ZoneInfo("Asia/Tokyo")
MARK: dict[str, LiteralString] = {
    "audio_files": "update audio_files set transcriptions_status = %(transcriptions_status)s"
    " where device_id = %(device_id)s and recorded_at = %(recorded_at)s",
    "dashboard": "update dashboard set status = %(status)s, analysis_result = %(analysis_result)s,"
    " vibe_score = %(vibe_score)s, summary = %(summary)s, behavior = %(behavior)s, processed_at = %(processed_at)s"
    " where device_id = %(device_id)s and date = %(date)s and time_block = %(time_block)s",
}


class Way(ABC):
    """How an old program reaches its tables."""

    @abstractmethod
    def pending(self, table: str) -> list[Row]: ...

    @abstractmethod
    def upsert_words(self, row: Row) -> None: ...

    @abstractmethod
    def update(self, table: str, key: Row, values: Row) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class Sql(Way):
    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def pending(self, table: str) -> list[Row]:
        if table == "audio_files":
            return self._db.execute("select * from audio_files where transcriptions_status = 'pending'").fetchall()
        return self._db.execute("select * from dashboard where status = 'pending' and prompt is not null").fetchall()

    def upsert_words(self, row: Row) -> None:
        self._db.execute(
            "insert into vibe_whisper values (%(device_id)s, %(date)s, %(time_block)s, %(transcription)s)"
            " on conflict (device_id, date, time_block) do update set transcription = excluded.transcription",
            row,
        )

    def update(self, table: str, key: Row, values: Row) -> None:
        self._db.execute(MARK[table], {**key, **{k: Jsonb(v) if isinstance(v, dict) else v for k, v in values.items()}})

    def close(self) -> None:
        self._db.close()


class Rest(Way):
    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def pending(self, table: str) -> list[Row]:
        if table == "audio_files":
            return self._done(self._http.get("/audio_files", params={"transcriptions_status": "eq.pending"}))
        return self._done(self._http.get("/dashboard", params={"status": "eq.pending", "prompt": "not.is.null"}))

    def upsert_words(self, row: Row) -> None:
        self._done(self._http.post("/vibe_whisper", json=row, headers={"Prefer": "resolution=merge-duplicates"}))

    def update(self, table: str, key: Row, values: Row) -> None:
        self._done(self._http.patch(f"/{table}", params={k: f"eq.{v}" for k, v in key.items()}, json=values))

    def close(self) -> None:
        self._http.close()

    @staticmethod
    def _done(answer: httpx.Response) -> list[Row]:
        answer.raise_for_status()
        rows: list[Row] = answer.json() if answer.content else []
        return rows


@dataclass
class OldCron:
    """`words`: what it makes of a recording; `think`: how long it works on a row, seconds; `completed`: rows it did."""

    way: Way
    table: str
    words: Callable[[Row], str] = lambda _: "what the old one heard"
    think: float = 0.0
    completed: list[str] = field(default_factory=list)

    def run(self) -> None:
        """One run of the cron."""
        self.work(self.way.pending(self.table))

    def work(self, rows: list[Row]) -> None:
        """The rows that a run has read, one after another, whatever has become of them since."""
        for row in rows:
            time.sleep(self.think)
            self.write(row)
            self.mark(row)

    def loop(self, stop: threading.Event) -> None:
        """One run after another until `stop`."""
        while not stop.is_set():
            self.run()

    def write(self, row: Row) -> None:
        """The first of the two writes of a transcription."""
        if self.table == "audio_files":
            local = moment(row).astimezone(TOKYO)
            block = f"{local:%H}-{local.minute // 30 * 30:02d}"
            place = {"device_id": row["device_id"], "date": str(local.date()), "time_block": block}
            self.way.upsert_words({**place, "transcription": self.words(row)})

    def mark(self, row: Row) -> None:
        """The write that ends it."""
        if self.table == "audio_files":
            at = moment(row).astimezone(UTC).isoformat().replace("+00:00", "Z")
            key = {"device_id": row["device_id"], "recorded_at": at}
            values: Row = {"transcriptions_status": "completed"}
        else:
            key = {name: str(row[name]) for name in ("device_id", "date", "time_block")}
            verdict = {"summary": "quiet", "vibe_score": -30.0, "behavior": "resting"}
            now = datetime.now(UTC).isoformat()
            values = {**verdict, "analysis_result": verdict, "status": "completed", "processed_at": now}
        self.way.update(self.table, key, values)
        self.completed.append("/".join(key.values()))


def moment(row: Row) -> datetime:
    at = row["recorded_at"]
    return at if isinstance(at, datetime) else datetime.fromisoformat(at)


def blocks(first: datetime, count: int) -> list[datetime]:
    """The beginnings of `count` time blocks, one after another."""
    return [first + number * timedelta(minutes=30) for number in range(count)]
