"""The ledger's functions with types: what a worker or dispatcher says to it, and what it answers.

The functions themselves, and all their rules, are SQL: `migrations/` and `docs/ledger.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from app.database import Database
from app.errors import LeaseLost, Transient

Json = Any


@dataclass(frozen=True)
class Claimed:
    """An item taken by a dispatcher, on its way to a worker."""

    id: int
    key: str
    ref: Mapping[str, Json]
    task_id: str
    claim_no: int
    partition: str
    at: datetime | None
    opened_at: datetime
    params: Mapping[str, Json]

    @classmethod
    def of(cls, answer: Mapping[str, Json]) -> Self:
        return cls(**{**answer, "at": moment(answer["at"]), "opened_at": datetime.fromisoformat(answer["opened_at"])})


@dataclass(frozen=True)
class Claim:
    """`found`: items that were due (counted up to 10,000); `reason`: why no item was taken, where none was."""

    items: Sequence[Claimed]
    found: int
    reason: str | None


@dataclass(frozen=True)
class Attempt:
    """One start of the work on an item; `attempt` is its fence, `token` makes repeated calls the same call.

    `timeout`: how long one outside call may take, as the source's job says, seconds; None: it says nothing.
    """

    id: int
    attempt: int
    token: str
    tries: int
    max_attempts: int
    run_id: int | None
    key: str
    ref: Mapping[str, Json]
    params: Mapping[str, Json]
    at: datetime | None
    opened_at: datetime
    row: Mapping[str, Json]
    queue: str
    timeout: float | None

    @property
    def fence(self) -> dict[str, Json]:
        return {"id": self.id, "attempt": self.attempt, "token": self.token}


@dataclass(frozen=True)
class Pulse:
    """The answer to a heartbeat.

    `lost`: ids of items that this process runs but no longer owns; `overdue`: jobs whose tick nobody sent;
    `hungry`: there is room for more work in this process's queues.
    """

    lost: Sequence[int]
    overdue: Sequence[str]
    hungry: bool
    reaped: int


def moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


class Ledger:
    """Typed calls over a `Database`; safe to share among threads."""

    def __init__(self, database: Database, lease: timedelta, queue_lease: timedelta, max_attempts: int) -> None:
        self.database = database
        self._lease = lease.total_seconds()
        self._queue_lease = queue_lease.total_seconds()
        self._max_attempts = max_attempts

    def claim(self, source: str, queue: str, limit: int, zone: str, opened_before: datetime | None = None) -> Claim:
        """Take up to `limit` due items, never more than the queue's live workers can soon run.

        `zone`: the time zone in which the run's dates are told; `opened_before`: leave what has waited for less, unless
        it is urgent.
        """
        answer = self.database.call(
            "toban_claim",
            source=source,
            queue=queue,
            limit=limit,
            lease=self._queue_lease,
            max_attempts=self._max_attempts,
            zone=zone,
            opened_before=opened_before.isoformat() if opened_before else None,
        )
        return Claim([Claimed.of(item) for item in answer["items"]], answer["found"], answer.get("reason"))

    def start(self, item_id: int, task_id: str, token: UUID, worker: str, max_run: timedelta) -> Attempt:
        """Begin an attempt. A lost answer is asked for again with the same token.

        Raises `LeaseLost` when the message is out of date.
        """
        answer = self._persist(
            timedelta(seconds=30),
            lambda: self.database.call(
                "toban_start",
                id=item_id,
                task_id=task_id,
                token=str(token),
                worker=worker,
                max_run=max_run.total_seconds(),
                lease=self._lease,
            ),
        )
        if not answer.pop("started"):
            raise LeaseLost(answer["reason"])
        answer |= {"at": moment(answer["at"]), "opened_at": datetime.fromisoformat(answer["opened_at"])}
        return Attempt(id=item_id, token=str(token), **answer)

    def settle(self, function: str, attempt: Attempt, **values: Json) -> Mapping[str, Json]:
        """End an attempt by `toban_finish`, `toban_retry`, `toban_fail` or `toban_skip`.

        What was worked out over minutes is worth some patience: an unreachable database is asked for ten minutes.
        Raises `LeaseLost` when another attempt owns the item or the row changed meanwhile: nothing was written.
        """
        answer: Mapping[str, Json] = self._persist(
            timedelta(minutes=10), lambda: self.database.call(function, **attempt.fence, **values)
        )
        if not answer["written"]:
            raise LeaseLost(answer["reason"])
        return answer

    def hold(self, queue: str, cause: str, reason: str, pause: timedelta, *, incident: bool) -> None:
        """Let nothing of `queue` be claimed for a while; `incident`: nor started, and a person is told, once."""
        seconds = pause.total_seconds()
        self.database.call("toban_hold", queue=queue, cause=cause, reason=reason, seconds=seconds, incident=incident)

    def heartbeat(self, **values: Json) -> Pulse:
        return Pulse(**self.database.call("toban_heartbeat", lease=self._lease, **values))

    @staticmethod
    def _persist(patience: timedelta, call: Callable[[], Json]) -> Json:
        """Repeat an idempotent call while the database is away."""
        return Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_delay(patience),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            reraise=True,
        )(call)
