"""One attempt at one item: start, run, then finish, retry, fail or skip. Once, for every source."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from app import tracing
from app.errors import Halted, LeaseLost, OutOfMemory, Permanent, RateLimited, TobanError
from app.ledger import Attempt, Ledger
from app.retry import Fail, Retry, Skip, Stop, decide

if TYPE_CHECKING:
    from app.runtime import Runtime
    from app.services import Services
    from app.sources import Source

log = structlog.get_logger("toban.work")

# A held queue looks again at least this often, so that what a person has mended takes effect.
LONGEST_HOLD = timedelta(minutes=10)

FRUGAL = {"frugal": True}
"""An item's parameter after an attempt that ran out of memory, or may have: use as little as possible."""


@dataclass
class Work:
    """What a source's `run` gets: the row, the services, and a way to say how far it is.

    `row`: the watched row when the attempt started; `params`: what was asked for beside it, such as a model; `facts`:
    what log lines about it say; `if_unwritten`: called when the result of the run could not be stored after all.
    """

    services: "Services"
    attempt: Attempt
    max_run: timedelta
    note: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    if_unwritten: Callable[[], None] | None = None
    _done: tuple[float, float] | None = None
    _phase: tuple[str, float, float] | None = None
    _cancelled: TobanError | None = None
    _started: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        return self.attempt.key

    @property
    def row(self) -> "dict[str, Any]":
        return dict(self.attempt.row)

    @property
    def params(self) -> "dict[str, Any]":
        return dict(self.attempt.params)

    def timeout(self, default: timedelta) -> timedelta:
        """How long one outside call may take: as the source's job says, else `default`."""
        seconds = self.attempt.timeout
        return default if seconds is None else timedelta(seconds=seconds)

    def check(self) -> None:
        """Raises `LeaseLost` when another attempt has taken over or the worker stops: let it pass."""
        if self._cancelled:
            raise self._cancelled

    def progress(self, done: float, total: float) -> None:
        """Say how far the work is, in any unit; the heartbeat carries it on.

        Raises what `check` raises.
        """
        self.check()
        self._done = (done, total)

    @contextmanager
    def phase(self, name: str, limit: timedelta) -> Iterator[None]:
        """A step that can't say how far it is: being in it counts as progress, for `limit` at most."""
        self._phase = (name, time.monotonic(), limit.total_seconds())
        try:
            yield
        finally:
            self._phase = None

    def allow(self, max_run: timedelta) -> None:
        """Set how long this attempt may take in all, once the size of the work is known."""
        self.max_run = max_run

    def remark(self, note: str | None) -> None:
        """Leave a note for a person on an item that succeeds."""
        self.note = note

    def save(self, part: Any) -> None:  # noqa: ANN401 - JSON of the source's own shape
        """Save a part of what is done, for the next attempt should this one die. That it can't be is no error."""
        try:
            self.services.database.call("toban_save_part", **self.attempt.fence, data=part)
        except TobanError as error:
            log.warning("work.unsaved", key=self.key, reason=str(error))

    def saved(self) -> list[Any]:
        """The parts that earlier attempts at this revision of the row have saved, in order."""
        try:
            parts: list[Any] = self.services.database.call("toban_saved_parts", **self.attempt.fence)["parts"]
        except TobanError as error:
            log.warning("work.unsaved", key=self.key, reason=str(error))
            return []
        return parts

    def cancel(self, reason: str | TobanError) -> None:
        """End the work at its next word of progress: its lease is lost, or the error says why."""
        self._cancelled = LeaseLost(reason) if isinstance(reason, str) else reason

    @property
    def elapsed(self) -> float:
        """Seconds since the attempt started."""
        return time.monotonic() - self._started

    def report(self) -> dict[str, Any]:
        """What a heartbeat says of this work; a `progress` that does not change counts as standing still."""
        progress: dict[str, Any] | None = None
        if phase := self._phase:
            name, since, limit = phase
            progress = {"phase": name, "seconds": round(min(time.monotonic() - since, limit))}
        elif done := self._done:
            progress = {"done": done[0], "total": done[1]}
        return {
            "id": self.attempt.id,
            "attempt": self.attempt.attempt,
            "progress": progress,
            "max_run": self.max_run.total_seconds(),
        }


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    `state`: the item's state now, or `lost` when somebody else owns it; `error`: what ended it, if anything did;
    `due`: when a retry is due.
    """

    state: str
    key: str = ""
    run_id: int | None = None
    error: BaseException | None = None
    due: datetime | None = None


def attempt_item(
    runtime: "Runtime",
    source: "Source",
    item_id: int,
    task_id: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Outcome:
    """Run one attempt at an item and write how it ended. Raises nothing but `SystemExit` and `KeyboardInterrupt`."""
    ledger = runtime.services.ledger
    try:
        attempt = ledger.start(item_id, task_id, uuid4(), runtime.worker, source.max_run)
    except TobanError as error:
        # Out of date, or the database is away; in both cases the ledger knows, and takes the item back where it must.
        log.info("work.refused", source=source.name, item=item_id, reason=str(error))
        return Outcome("lost", error=error)
    facts = {"source": source.name, "key": attempt.key, "attempt": attempt.attempt}
    work = Work(runtime.services, attempt, source.max_run, facts=facts)
    tracing.note({"toban.source": source.name, "toban.item": item_id, "toban.attempt": attempt.attempt})
    log.info("work.start", **facts)
    with runtime.running(work):
        try:
            try:
                result = dict(source.run(work))
            except Exception as error:  # noqa: BLE001 - every error has its decision in app/retry.py
                return end_badly(ledger, attempt, error, facts, now())
            try:
                answer = ledger.settle("toban_finish", attempt, result=result, error=work.note)
            except TobanError as error:
                if work.if_unwritten:
                    work.if_unwritten()
                if not isinstance(error, Permanent):
                    raise
                return end_badly(ledger, attempt, error, facts, now())  # the result itself can't be stored
        except TobanError as error:
            # The end could not be written: lost to another attempt, or the database stays away until the lease is over.
            log.warning("work.lost", **facts, reason=str(error))
            return Outcome("lost", attempt.key, attempt.run_id, error)
    log.info("work.done", **facts, seconds=round(work.elapsed, 2), note=work.note)
    if answer.get("hungry"):
        runtime.feed()
    return Outcome("completed", attempt.key, attempt.run_id)


def give_up(runtime: "Runtime", work: Work, error: TobanError) -> None:
    """Write from outside how an attempt ends, when it can't any more. Raises `TobanError` when that is not possible."""
    end_badly(runtime.services.ledger, work.attempt, error, work.facts, datetime.now(UTC))


def end_badly(
    ledger: Ledger,
    attempt: Attempt,
    error: Exception,
    facts: dict[str, Any],
    now: datetime,
    params: dict[str, Any] | None = None,
) -> Outcome:
    """Write how an attempt ended that brought no result; `params`: for its next try. Raises `TobanError`."""
    if isinstance(error, MemoryError):
        error = OutOfMemory(f"not enough memory: {error or 'MemoryError'}")
    expected = isinstance(error, TobanError)
    kind = error.kind if isinstance(error, TobanError) else "bug"
    words = str(error) if expected else f"{type(error).__name__}: {error}"
    told: dict[str, Any] = {"error": words.replace("\0", "�"), "kind": kind}
    if not expected:
        told["traceback"] = "".join(traceback.format_exception(error)).replace("\0", "�")[-20_000:]
    again = {**(params or {}), **(FRUGAL if isinstance(error, OutOfMemory) else {}), **tracing.earlier()}
    hold(ledger, attempt.queue, error)
    match decide(error, attempt.tries, now, attempt.max_attempts):
        case Stop():
            raise LeaseLost(words)
        case Retry(at=at, counted=counted):
            ledger.settle("toban_retry", attempt, at=at.isoformat(), counted=counted, params=again, **told)
            wait = max(0, round((at - now).total_seconds()))
            log.warning("work.retry", **facts, seconds=wait, kind=kind, reason=words)
            return Outcome("retry", attempt.key, attempt.run_id, error, at)
        case Skip():
            ledger.settle("toban_skip", attempt, **told)
            log.info("work.skip", **facts, reason=words)
            return Outcome("skipped", attempt.key, attempt.run_id, error)
        case Fail():
            ledger.settle("toban_fail", attempt, **told)
            log.error("work.fail", **facts, kind=kind, reason=words, exc_info=None if expected else error)
            return Outcome("failed", attempt.key, attempt.run_id, error)


def hold(ledger: Ledger, queue: str, error: Exception) -> None:
    """What one row has found out about its whole queue spares the others. That it can't be told is no error."""
    match error:
        case Halted(cause=cause, seconds=seconds):
            incident = True
        case RateLimited(retry_after=seconds):
            cause, incident = "rate", False
        case _:
            return
    pause = min(timedelta(seconds=seconds), LONGEST_HOLD)
    try:
        ledger.hold(queue, cause, str(error), pause, incident=incident)
    except TobanError as problem:
        log.warning("queue.unheld", queue=queue, reason=str(problem))
