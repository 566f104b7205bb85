"""What headers say about waiting."""

from datetime import UTC, datetime

import pytest

from app.gpt.pace import DEFAULT, LONGEST, limits_of, seconds_of

NOW = datetime(2025, 7, 18, 12, 0, tzinfo=UTC)
FULL = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("1s", 1),
        ("20ms", 0.02),
        ("2m59.56s", 179.56),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400),
        ("7.66", 7.66),
        ("0", 0),
        ("", None),
        ("soon", None),
        ("-1s", None),
        ("1s later", None),
        ("nan", None),
        ("inf", None),
        ("1752840000", None),  # a moment, no duration
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry-after": "30"}, 30),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "99", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Fri, 18 Jul 2025 12:00:20 GMT"}, 20),
        # The server's clock is an hour ahead: what counts is how long after its own date.
        ({"retry-after": "Fri, 18 Jul 2025 13:00:20 GMT", "date": "Fri, 18 Jul 2025 13:00:00 GMT"}, 20),
        ({"retry-after": "Fri, 18 Jul 2025 11:00:00 GMT"}, 0),
        ({"retry-after": "5", **FULL}, 5),
        (FULL, 12),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "3s"}, 3),
        ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1h",
          "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}, 2),
        ({}, DEFAULT),
        ({"retry-after": "tomorrow"}, DEFAULT),
        ({"retry-after": "-1"}, DEFAULT),
        ({"retry-after": "999999"}, LONGEST),
        ({"retry-after": "nan"}, DEFAULT),
    ],
)  # fmt: skip
def test_after_a_429(headers: dict[str, str], pause: float) -> None:
    assert limits_of(headers, refused=True, now=NOW).pause == pytest.approx(pause)


def test_after_an_answer_only_what_is_used_up_counts() -> None:
    assert limits_of({}).pause == 0
    assert limits_of({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "60s"}).pause == 0
    assert limits_of(FULL).pause == 12
    assert limits_of({"x-ratelimit-remaining-requests": "0"}).pause == 0
    limits = limits_of({"x-ratelimit-limit-requests": "7", "x-ratelimit-limit-tokens": "x"})
    assert (limits.requests, limits.tokens) == (7, None)
