"""What is asked of the ledger when somebody asks for rows again."""

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.errors import Permanent
from app.reprocess import reprocess

TOKYO = ZoneInfo("Asia/Tokyo")
ANSWER = {"matched": 1, "opened": 1, "waiting": 0, "running": 0}


class Asked:
    """A database that remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, function: str, **params: object) -> dict[str, int]:
        self.calls.append((function, params))
        return ANSWER

    def close(self) -> None:
        pass


def asked(zone: ZoneInfo = TOKYO, **selectors: Any) -> dict[str, Any]:
    database = Asked()
    assert reprocess(database, zone, **{"source": "transcription", **selectors}) == ANSWER
    ((function, params),) = database.calls
    assert function == "toban_reprocess"
    return params


def test_a_key_and_many() -> None:
    assert asked(key="d/2025-07-18T03:00:00Z") == {"source": "transcription", "keys": ["d/2025-07-18T03:00:00Z"]}
    assert asked(key=["a", " b "])["keys"] == ["a", "b"]


def test_a_device_is_a_partition() -> None:
    assert asked(device_id="d1") == {"source": "transcription", "partition": "d1"}


def test_a_date_is_meant_in_the_devices_zone() -> None:
    assert asked(date="2025-07-18") == {
        "source": "transcription",
        "date": "2025-07-18",
        "since": "2025-07-17T15:00:00+00:00",
        "until": "2025-07-18T15:00:00+00:00",
    }


def test_a_time_block_is_half_an_hour() -> None:
    assert asked(date="2025-07-18", time_block="12-30") == {
        "source": "transcription",
        "date": "2025-07-18",
        "block": "12-30",
        "since": "2025-07-18T03:30:00+00:00",
        "until": "2025-07-18T04:00:00+00:00",
    }


@pytest.mark.parametrize(
    ("date", "block", "since", "until"),
    [
        # 26 October 2025, 03:00 → 02:00: the day has 25 hours, and 02-00 comes twice.
        ("2025-10-26", None, "2025-10-25T22:00:00", "2025-10-26T23:00:00"),
        ("2025-10-26", "02-00", "2025-10-26T00:00:00", "2025-10-26T01:30:00"),
        ("2025-10-26", "03-00", "2025-10-26T02:00:00", "2025-10-26T02:30:00"),
        # 30 March 2025, 02:00 → 03:00: the day has 23 hours.
        ("2025-03-30", None, "2025-03-29T23:00:00", "2025-03-30T22:00:00"),
        ("2025-03-30", "01-30", "2025-03-30T00:30:00", "2025-03-30T01:00:00"),
        ("2025-03-30", "03-00", "2025-03-30T01:00:00", "2025-03-30T01:30:00"),
    ],
)
def test_days_on_which_the_clocks_change(date: str, block: str | None, since: str, until: str) -> None:
    params = asked(ZoneInfo("Europe/Berlin"), date=date, time_block=block)
    assert (params["since"], params["until"]) == (f"{since}+00:00", f"{until}+00:00")


def test_a_model_goes_along_and_only_failed_narrows() -> None:
    params = asked(device_id="d1", only_failed=True, model="base")
    assert params["params"] == {"model": "base"}
    assert params["only_failed"] is True


def test_a_model_that_no_worker_holds_is_refused_before_any_row_is_touched() -> None:
    database = Asked()
    with pytest.raises(Permanent, match=r"no worker has the model 'small' for transcription; it may be: base, tiny"):
        reprocess(database, TOKYO, source="transcription", device_id="d1", model="small", held={"tiny", "base"})
    assert not database.calls
    assert asked(device_id="d1", model="base", held=["base"])["params"] == {"model": "base"}
    assert "held" not in asked(device_id="d1", held=["base"])


def test_only_failed_alone_is_everything_that_has_failed() -> None:
    assert asked(only_failed=True) == {"source": "transcription", "only_failed": True}


@pytest.mark.parametrize(
    ("selectors", "reason"),
    [
        ({}, "every row"),
        ({"model": "base"}, "every row"),
        ({"source": " "}, "which source"),
        ({"date": "2025-7-18"}, "YYYY-MM-DD"),
        ({"date": "2025-02-30"}, "no date"),
        ({"date": "9999-12-31"}, "no date"),
        ({"date": 20250718}, "YYYY-MM-DD"),
        ({"time_block": "12-00"}, "needs a date"),
        ({"date": "2025-07-18", "time_block": "12-15"}, "HH-00"),
        ({"date": "2025-07-18", "time_block": "24-00"}, "HH-00"),
        ({"date": "2025-07-18", "time_block": "12:00"}, "HH-00"),
        ({"key": []}, "one key or a list"),
        ({"key": [1]}, "should be text"),
        ({"key": ""}, "should be text"),
        ({"device_id": ""}, "should be text"),
        ({"device_id": "d", "model": 3}, "should be text"),
    ],
)
def test_what_cannot_be_meant_is_refused(selectors: dict[str, Any], reason: str) -> None:
    database = Asked()
    with pytest.raises(Permanent, match=reason):
        reprocess(database, TOKYO, **{"source": "transcription", **selectors})
    assert not database.calls
