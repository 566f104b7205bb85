"""The one decision about errors, as a table."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.errors import (
    BadAnswer,
    Halted,
    LeaseLost,
    NothingThere,
    NotReady,
    OutOfMemory,
    Permanent,
    RateLimited,
    Refused,
    TobanError,
    Transient,
)
from app.retry import CAP, Fail, Retry, Skip, Stop, backoff, decide

NOW = datetime(2025, 7, 18, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=2)


def most(_low: float, high: float) -> float:
    return high


@pytest.mark.parametrize(
    ("error", "tries", "decision"),
    [
        (Transient("reset"), 1, Retry(NOW + timedelta(seconds=4))),
        (Transient("reset"), 2, Retry(NOW + timedelta(seconds=8))),
        (Transient("reset"), 4, Retry(NOW + timedelta(seconds=32))),
        (Transient("reset"), 5, Fail()),
        (RateLimited("slow down", retry_after=30), 1, Retry(NOW + timedelta(seconds=31), counted=False)),
        (RateLimited("slow down", retry_after=30), 99, Retry(NOW + timedelta(seconds=31), counted=False)),
        (NotReady("no model"), 5, Retry(NOW + timedelta(minutes=1), counted=False)),
        (Halted("no credit", "credit"), 1, Retry(NOW + timedelta(minutes=10), counted=False)),
        (Halted("over budget", "budget", seconds=90), 99, Retry(NOW + timedelta(seconds=90), counted=False)),
        (Permanent("corrupt"), 1, Fail()),
        (Refused("there is no such row", missing=True), 1, Fail()),
        (BadAnswer("no JSON"), 1, Retry(NOW + timedelta(seconds=4))),
        (BadAnswer("no JSON"), 2, Fail()),
        (OutOfMemory("bad_alloc"), 1, Retry(NOW + timedelta(seconds=4))),
        (OutOfMemory("bad_alloc"), 2, Fail()),
        (NothingThere("404"), 1, Skip()),
        (NothingThere("404", final_at=LATER), 1, Retry(LATER, counted=False)),
        (NothingThere("404", final_at=NOW), 1, Skip()),
        (LeaseLost("taken"), 1, Stop()),
        (ZeroDivisionError(), 1, Retry(NOW + timedelta(seconds=4))),
        (ZeroDivisionError(), 3, Fail()),
        (MemoryError(), 3, Fail()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_decide(error: Exception, tries: int, decision: object) -> None:
    assert decide(error, tries, NOW, max_tries=5, uniform=most) == decision


def test_no_error_is_forgotten() -> None:
    """Each class of app/errors.py has a row in the table above."""
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TobanError)} - {TobanError}
    assert classes == {
        BadAnswer,
        Halted,
        LeaseLost,
        NothingThere,
        NotReady,
        OutOfMemory,
        Permanent,
        RateLimited,
        Refused,
        Transient,
    }


@given(st.integers(min_value=1, max_value=10**6))
def test_backoff_stays_between_nothing_and_the_cap(tries: int) -> None:
    assert timedelta(0) <= backoff(tries) <= CAP


@given(st.integers(min_value=1, max_value=4))
def test_an_attempt_limit_of_one_never_retries(tries: int) -> None:
    assert decide(Transient("x"), tries, NOW, max_tries=1) == Fail()
