"""The device's date and half hour of a moment."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.speech.transcribe import time_block

TOKYO = ZoneInfo("Asia/Tokyo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-07-18T03:00:00Z", ("2025-07-18", "12-00")),
        ("2025-07-18T03:00:00+00:00", ("2025-07-18", "12-00")),
        ("2025-07-18T03:29:59.999999Z", ("2025-07-18", "12-00")),
        ("2025-07-18T03:30:00Z", ("2025-07-18", "12-30")),
        ("2025-07-18T15:00:00Z", ("2025-07-19", "00-00")),
        ("2025-07-18T14:59:59Z", ("2025-07-18", "23-30")),
        ("2025-07-18T12:10:00+09:00", ("2025-07-18", "12-00")),
    ],
)
def test_examples(text: str, expected: tuple[str, str]) -> None:
    assert time_block(datetime.fromisoformat(text), TOKYO) == expected


@given(st.integers(min_value=0, max_value=4 * 10**9))
def test_the_block_holds_the_moment(seconds: int) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    date, block = time_block(moment, TOKYO)
    start = datetime.strptime(f"{date} {block}", "%Y-%m-%d %H-%M").replace(tzinfo=TOKYO)
    assert start <= moment < start + timedelta(minutes=30)
