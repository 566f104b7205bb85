"""What may be set for a job, and the old file that sets it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config_import import JOBS, KEYS, Switchboard, read
from app.errors import Permanent
from app.jobs import day, duration, in_timetable, takes, written

DEVICE = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
OLD = {"enabled": False, "timeout": 60, "batchLimit": 50, "deviceId": DEVICE, "processDate": "today"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h", 3600), ("1d", 86_400), ("1h30m", 5400), ("0s", 0), (" 1m1.5s ", 61.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text).total_seconds() == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10 m", "-1m", "1m1h", "1.5h", "one hour", "1w", "1:30", "1m 1s", "inf"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 90s, 10m, 1h30m or 1d"):
        duration(text)


def test_a_duration_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="that is too long"):
        duration("99999999999999d")


@given(st.integers(0, 10**9).map(lambda tenths: tenths / 10))
def test_a_duration_is_written_so_that_it_can_be_read(seconds: float) -> None:
    assert duration(written(seconds)).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "value"),
    [("today", "today"), ("yesterday", "yesterday"), (" 2024-02-29 ", "2024-02-29"), ("any", None)],
)
def test_days(text: str, value: str | None) -> None:
    assert day(text) == value


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "Today", "20250718", "2025-7-18", "2025-W29-5", "18.7.2025", "infinity"]
)
def test_what_is_no_day(text: str) -> None:
    with pytest.raises(ValueError, match="write it as today, yesterday, 2025-07-18 or any"):
        day(text)


def test_a_day_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="there is no day 2025-02-29"):
        day("2025-02-29")


def test_what_means_something_to_a_job() -> None:
    jobs = in_timetable()
    assert takes(jobs["analysis"]) == {"batch_limit", "partition", "date", "timeout"}
    assert takes(jobs["transcription"]) == {"batch_limit", "partition", "date"}
    assert takes(jobs["timeblock-prompt"]) == {"partition", "date"}
    assert takes(jobs["reconcile"]) == set()


# --- config.json -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def of(config: Path, **apis: Any) -> Switchboard:
    config.write_text(json.dumps({"apis": {name.replace("_", "-"): api for name, api in apis.items()}}), "utf-8")
    return read(config, in_timetable())


def test_every_api_has_a_job_and_every_key_a_setting() -> None:
    assert set(JOBS.values()) <= in_timetable().keys()
    assert set(KEYS) == set(OLD)


def test_the_old_switchboard(config: Path) -> None:
    found = of(config, timeblock_analysis=OLD)
    assert found.changes("analysis") == {
        "enabled": False, "timeout": 60, "batch_limit": 50, "filters": {"partition": DEVICE, "date": "today"},
    }  # fmt: skip
    assert found.unmapped == {}
    assert found.jobs == ["analysis"]


def test_all_three(config: Path) -> None:
    found = of(config, timeblock_analysis=OLD, whisper=OLD, timeblock_prompt=OLD)
    assert found.jobs == ["analysis", "transcription", "timeblock-prompt"]
    rows = {"partition": DEVICE, "date": "today"}
    assert found.changes("transcription") == {"enabled": False, "batch_limit": 50, "filters": rows}
    assert found.changes("timeblock-prompt") == {"enabled": False, "filters": rows}
    assert found.unmapped == {
        "apis.whisper.timeout": "it means nothing to the job transcription",
        "apis.timeblock-prompt.timeout": "it means nothing to the job timeblock-prompt",
        "apis.timeblock-prompt.batchLimit": "it means nothing to the job timeblock-prompt",
    }


def test_only_what_the_file_has_is_changed(config: Path) -> None:
    assert of(config, whisper={"enabled": True}).changes("transcription") == {"enabled": True}
    assert of(config, whisper={}).changes("transcription") == {}
    assert of(config).jobs == []


@pytest.mark.parametrize("none", [None, "", "  "])
def test_no_device_and_any_day(config: Path, none: str | None) -> None:
    api = {"deviceId": none, "processDate": None if none is None else "any", "batchLimit": None, "timeout": None}
    none_of_all = {"timeout": None, "batch_limit": None, "filters": {"partition": None, "date": None}}
    assert of(config, timeblock_analysis=api).changes("analysis") == none_of_all


def test_what_has_no_counterpart_is_named(config: Path) -> None:
    config.write_text(
        json.dumps({"apis": {"whisper": {"enabled": True, "model": "base"}, "sed": {}, "vad": None}, "version": 2}),
        "utf-8",
    )
    assert read(config, in_timetable()).unmapped == {
        "version": "only `apis` is read",
        "apis.whisper.model": "there is no such setting here",
        "apis.sed": "there is no such job here",
        "apis.vad": "there is no such job here",
    }


def test_a_file_that_begins_with_a_byte_order_mark(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbf" + json.dumps({"apis": {"whisper": {"enabled": True}}}).encode())
    assert read(config, in_timetable()).jobs == ["transcription"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("enabled", "false", "enabled: Input should be a valid boolean"),
        ("enabled", 0, "enabled: Input should be a valid boolean"),
        ("enabled", None, "enabled: Input should be a valid boolean"),
        ("timeout", "60", "timeout: Input should be a valid number"),
        ("timeout", 0, "timeout: Input should be greater than 0"),
        ("timeout", -1, "timeout: Input should be greater than 0"),
        ("timeout", 1e9, "timeout: Input should be less than or equal to 86400"),
        ("timeout", float("nan"), "timeout: Input should be less than or equal to 86400"),
        ("timeout", True, "timeout: Input should be a valid number"),
        ("batchLimit", 0, "batchLimit: Input should be greater than or equal to 1"),
        ("batchLimit", 2.5, "batchLimit: Input should be a valid integer"),
        ("batchLimit", "50", "batchLimit: Input should be a valid integer"),
        ("batchLimit", 10**30, "batchLimit: Input should be less than or equal to 1000000"),
        ("deviceId", 7, "deviceId: Input should be a valid string"),
        ("processDate", "tomorrow", "processDate: write it as today, yesterday, 2025-07-18 or any"),
        ("processDate", "2025-02-30", "processDate: there is no day 2025-02-30"),
        ("processDate", 20250718, "processDate: Input should be a valid string"),
    ],
)
def test_a_value_that_cannot_be_used(config: Path, key: str, value: object, words: str) -> None:
    with pytest.raises(Permanent) as refused:
        of(config, timeblock_analysis={**OLD, key: value}, whisper=OLD)
    assert str(refused.value) == f"{config} can't be used, and nothing was changed:\n  apis.timeblock-analysis.{words}"


def test_every_problem_is_told_at_once(config: Path) -> None:
    with pytest.raises(Permanent) as refused:
        of(config, timeblock_analysis={"batchLimit": 0, "enabled": 1}, whisper=[], timeblock_prompt={"deviceId": {}})
    assert str(refused.value).splitlines()[1:] == [
        "  apis.timeblock-analysis.enabled: Input should be a valid boolean",
        "  apis.timeblock-analysis.batchLimit: Input should be greater than or equal to 1",
        "  apis.whisper: Input should be a valid dictionary or instance of Api",
        "  apis.timeblock-prompt.deviceId: Input should be a valid string",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Invalid JSON: EOF while parsing"),
        ('{"apis": {', "Invalid JSON: EOF while parsing an object at line 1 column 10"),
        ('{"apis": {}} // old', "Invalid JSON: trailing characters"),
        ("[]", "Input should be an object"),
        ("{}", "apis: Field required"),
        ('{"apis": null}', "apis: Input should be"),
    ],
)
def test_a_file_of_another_shape(config: Path, text: str, words: str) -> None:
    config.write_text(text, "utf-8")
    with pytest.raises(Permanent) as refused:
        read(config, in_timetable())
    assert str(refused.value).startswith(f"{config} can't be used, and nothing was changed:\n  {words}")


def test_a_file_that_cannot_be_read(config: Path, tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"config\.json can't be read: No such file or directory"):
        read(config, in_timetable())
    with pytest.raises(Permanent, match="can't be read: Is a directory"):
        read(tmp_path, in_timetable())
    config.write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(Permanent, match=r"can't be read: .*utf-8"):
        read(config, in_timetable())
