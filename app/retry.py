"""What is done about an error: one pure decision, the only owner of retries."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.errors import (
    BadAnswer,
    Halted,
    LeaseLost,
    NothingThere,
    NotReady,
    OutOfMemory,
    Permanent,
    RateLimited,
    Transient,
)

BASE = timedelta(seconds=2)
CAP = timedelta(minutes=10)
NOT_READY_PAUSE = timedelta(minutes=1)
MEMORY_TRIES = 2
ANSWER_TRIES = 2  # each is paid for
BUG_TRIES = 3


@dataclass(frozen=True)
class Retry:
    """Due again at `at`; `counted`: whether this try counts towards the limit."""

    at: datetime
    counted: bool = True


@dataclass(frozen=True)
class Fail:
    """Give up; a person is needed."""


@dataclass(frozen=True)
class Skip:
    """Nothing to do; no incident."""


@dataclass(frozen=True)
class Stop:
    """Somebody else owns the item; write nothing."""


Decision = Retry | Fail | Skip | Stop


def backoff(tries: int, uniform: Callable[[float, float], float] = random.uniform) -> timedelta:
    """Delay before the next try after `tries` (≥ 1) failed ones.

    Exponential with full jitter: uniform in [0, min(CAP, BASE · 2^tries)].
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return timedelta(seconds=uniform(0, min(CAP, BASE * 2 ** min(tries, 30)).total_seconds()))


def decide(
    error: BaseException,
    tries: int,
    now: datetime,
    max_tries: int,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Decision:
    """What to do after try number `tries` (1 for the first) ended with `error` at `now` (aware)."""
    match error:
        case LeaseLost():
            return Stop()
        case NothingThere(final_at=final_at):
            return Retry(final_at, counted=False) if final_at and now < final_at else Skip()
        case Permanent():
            return Fail()
        case RateLimited(retry_after=seconds):
            # The server's own figure is a lower bound; a little jitter keeps the waiters from returning as one crowd.
            return Retry(now + timedelta(seconds=seconds + uniform(0, 1)), counted=False)
        case NotReady():
            # The rows are not to blame: they wait, however long it takes a person to mend the worker.
            pause = timedelta(seconds=error.seconds) if isinstance(error, Halted) else NOT_READY_PAUSE
            return Retry(now + pause, counted=False)
        case Transient():
            limit = max_tries
        case OutOfMemory():
            limit = min(MEMORY_TRIES, max_tries)
        case BadAnswer():
            limit = min(ANSWER_TRIES, max_tries)
        case _:
            limit = min(BUG_TRIES, max_tries)
    return Retry(now + backoff(tries, uniform)) if tries < limit else Fail()
