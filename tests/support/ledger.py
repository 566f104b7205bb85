"""Short words for the ledger's calls, and a second connection on which the app lives."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg.pq import ExecStatus
from psycopg.rows import DictRow, dict_row

from app.database import Database

QUEUE = "whisper"
NOON = "2025-07-18T03:00:00Z"  # 12:00 in Tokyo
# The key of an audio_files row (of whole seconds).
KEY: LiteralString = """device_id || '/' || to_char(recorded_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """A started item, as its worker knows it."""

    id: int
    attempt: int
    token: str
    answer: Row = field(repr=False)

    def ids(self) -> Row:
        return {"id": self.id, "attempt": self.attempt, "token": self.token}


class Ledger:
    """`db`: the transport under test; `url`: the same database for the app's own statements."""

    def __init__(self, db: Database, url: str) -> None:
        self.db = db
        self.url = url
        self.app = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        self.app.close()

    # --- the app and its tables ---------------------------------------------------------------------------------

    def sql(self, statement: LiteralString, *values: object) -> list[Row]:
        cursor: psycopg.Cursor[DictRow] = self.app.execute(statement, values or None)
        # (Not its description: there is none for `select from …`, whose rows have no columns.)
        has_rows = cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK
        return cursor.fetchall() if has_rows else []

    def one(self, statement: LiteralString, *values: object) -> Any:
        """The first column of the first row."""
        return next(iter(self.sql(statement, *values)[0].values()))

    def file(self, device: str = "d1", at: str = NOON, status: str = "pending", path: str = "audio.wav") -> str:
        """The app inserts a row; returns the item's key."""
        self.sql("insert into audio_files values (%s, %s, %s, %s)", device, at, path, status)
        return str(self.one(f"select {KEY} from audio_files where device_id = %s and recorded_at = %s", device, at))

    def files(self, device: str, count: int) -> None:
        """`count` recordings of `device`, a minute apart."""
        self.sql(
            "insert into audio_files select %s, '2025-07-18Z'::timestamptz + i * interval '1 min', 'a.wav', 'pending'"
            " from generate_series(1, %s) i",
            device,
            count,
        )

    def block(
        self, device: str = "d1", block: str = "12-00", prompt: str | None = "How was it?", date: str = "2025-07-18"
    ) -> str:
        """The app inserts a dashboard row that waits; returns the item's key."""
        self.sql(
            "insert into dashboard (device_id, date, time_block, prompt) values (%s, %s, %s, %s)",
            device, date, block, prompt,
        )  # fmt: skip
        return f"{device}/{date}/{block}"

    def status_of(self, key: str) -> str | None:
        """What the app's row says."""
        rows = self.sql(f"select transcriptions_status as s from audio_files where {KEY} = %s", key)
        return rows[0]["s"] if rows else None

    def set_status(self, status: str, key: str | None = None) -> None:
        """The app writes its status column, of one row or of all."""
        self.sql(
            f"update audio_files set transcriptions_status = %s where %s::text is null or {KEY} = %s",
            status,
            key,
            key,
        )

    # --- the ledger's rows --------------------------------------------------------------------------------------

    def item(self, key: str, source: str = "transcription") -> Row:
        return self.sql("select * from work_items where source = %s and key = %s", source, key)[0]

    def state(self, key: str, source: str = "transcription") -> str:
        return str(self.item(key, source)["state"])

    def states(self) -> dict[str, int]:
        """How many items are in each state."""
        return {row["state"]: row["n"] for row in self.sql("select state, count(*) as n from work_items group by 1")}

    def expire(self, key: str | None = None) -> None:
        """The lease of one item, or of all, is over."""
        self.sql(
            "update work_items set lease_until = now() - interval '1 s' where id in (select id from work_items"
            " where lease_until is not null and (%s::text is null or key = %s) for update skip locked)",
            key,
            key,
        )

    def kill_worker(self, worker: str = "w1") -> None:
        """It sends no more heartbeats and its last one is long ago."""
        self.sql("update workers set expires_at = now() - interval '1 s' where id = %s", worker)

    def consistent(self) -> bool:
        """A row waits if and only if its item is still to be done or being done."""
        return not self.sql(
            f"select from audio_files r full join work_items i on i.key = {KEY}"
            " where (coalesce(r.transcriptions_status, '') = 'pending')"
            " <> (coalesce(i.state, '') in ('pending', 'queued', 'processing'))"
        )

    def waits(self, lock: str) -> bool:
        """Whether a session waits for such a lock, as `advisory` or `transactionid`."""
        statement = "select from pg_stat_activity where datname = current_database() and wait_event = %s"
        return bool(self.sql(statement, lock))

    # --- the program's calls ------------------------------------------------------------------------------------

    def call(self, function: str, **params: object) -> Any:
        return self.db.call(f"toban_{function}", **params)

    def heartbeat(self, worker: str = "w1", slots: int = 1, items: Iterable[Row] = (), **params: object) -> Row:
        defaults = {"node": "n1", "pid": 1, "queues": [QUEUE], "rss_bytes": 1, "lease": 60, "stall": 300}
        return dict(self.call("heartbeat", worker=worker, slots=slots, items=list(items), **{**defaults, **params}))

    def claim_answer(self, limit: int = 100, source: str = "transcription", **params: object) -> Row:
        defaults = {"queue": QUEUE, "max_attempts": 5, "lease": 30}
        return dict(self.call("claim", source=source, limit=limit, **{**defaults, **params}))

    def claim(self, limit: int = 100, source: str = "transcription", **params: object) -> list[Row]:
        return list(self.claim_answer(limit, source, **params)["items"])

    def start_answer(self, item: Row, token: str, worker: str = "w1", **params: object) -> Row:
        defaults = {"id": item["id"], "task_id": item["task_id"], "max_run": 600, "lease": 60}
        return dict(self.call("start", token=token, worker=worker, **{**defaults, **params}))

    def start(self, item: Row, worker: str = "w1", **params: object) -> Attempt:
        token = str(uuid.uuid4())
        answer = self.start_answer(item, token, worker, **params)
        assert answer["started"], answer
        return Attempt(item["id"], answer["attempt"], token, answer)

    def running(self, source: str = "transcription", worker: str = "w1", slots: int = 1, **params: object) -> Attempt:
        """A worker reports, the next item is claimed and started."""
        self.heartbeat(worker, slots)
        (item,) = self.claim(1, source, **params)
        return self.start(item, worker)

    def finish(self, attempt: Attempt, text: str = "hello", block: str = "12-00", **params: object) -> Row:
        result = {
            "date": "2025-07-18",
            "time_block": block,
            "text": text,
            "segments": [],
            "duration_seconds": 1.0,
            "model": "tiny",
            "engine": "test",
        }
        return dict(self.call("finish", **{**attempt.ids(), "result": result, **params}))

    def end(self, how: str, attempt: Attempt, **params: object) -> Row:
        """`how`: retry, fail or skip."""
        defaults: Row = {"error": "it broke", "kind": "transient"}
        if how == "retry":
            defaults |= {"at": "2020-01-01T00:00:00Z", "counted": True}
        return dict(self.call(how, **{**attempt.ids(), **defaults, **params}))

    def drain(self, most: int = 100) -> int:
        """Work until nothing waits; returns how many items were finished."""
        for done in range(most):
            self.heartbeat()
            items = self.claim(1)
            if not items:
                return done
            self.finish(self.start(items[0]))
        raise AssertionError(f"more than {most} items")

    @contextmanager
    def altered(self, change: LiteralString, undo: LiteralString) -> Iterator[None]:
        """The schema is different for a while."""
        self.sql(change)
        try:
            yield
        finally:
            self.sql(undo)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls in threads of their own; returns their answers in order, or raises the first error."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
