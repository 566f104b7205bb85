"""`toban jobs` and `toban import-config`, over both transports."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.database import Database
from app.jobs import in_database, in_timetable
from tests.support.ledger import Ledger, Row

DEVICE = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
OLD: Row = {"enabled": False, "timeout": 60, "batchLimit": 50, "deviceId": DEVICE, "processDate": "today"}
Run = Callable[..., str]


class Lasting:
    """The transport under test, which a command may not close."""

    def __init__(self, database: Database) -> None:
        self.call: Callable[..., Any] = database.call

    def close(self) -> None:
        pass


@pytest.fixture
def toban(db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command that ends with `code`; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://x/y")
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("jobs", "import_config"):
        monkeypatch.setattr(import_module(f"app.cli.{command}"), "open_database", lambda *_, **__: Lasting(db))

    def run(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        shown = capsys.readouterr()
        assert (ended.value.code or 0) == code, shown
        assert "Traceback" not in shown.err
        return shown.err if code else shown.out

    return run


def job_of(ledger: Ledger, job: str = "analysis") -> Row:
    return dict(in_database(ledger.db)[job])


@pytest.fixture
def introduced(ledger: Ledger) -> None:
    """As a worker does when it starts."""
    ledger.call("sync_jobs", jobs=list(in_timetable().values()))


@pytest.mark.usefixtures("introduced")
def test_what_is_set_for_every_job(toban: Run, ledger: Ledger) -> None:
    ledger.call("edit_job", job="transcription", every=3600, at=600, zone="Asia/Tokyo", batch_limit=50, timeout=90,
                enabled=False, filters={"date": "today", "partition": "[kitchen]"})  # fmt: skip
    ledger.sql("update jobs set last_started_at = now() - interval '3 h', last_status = 'error',"
               " last_message = 'no [x]' where job = 'analysis'")  # fmt: skip
    shown = toban("jobs")
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.splitlines()}
    assert set(in_timetable()) < lines.keys()
    assert lines["transcription"] == ("transcription 1h at 10m (Asia/Tokyo) paused device [kitchen], today 50 1m30s")
    assert lines["analysis"] == "analysis 10s on all 3 h ago error no [x]"
    assert lines["reconcile"] == "reconcile 5m on"
    assert lines["timeblock-prompt"].startswith("timeblock-prompt 10s paused all")
    assert "Not introduced yet" not in shown


@pytest.mark.usefixtures("introduced")
def test_the_ledgers_answer_as_json(toban: Run, ledger: Ledger) -> None:
    assert json.loads(toban("jobs", "--json")) == ledger.call("jobs")


def test_before_any_worker_has_started(toban: Run, ledger: Ledger) -> None:
    assert toban("jobs").startswith("Not introduced yet: analysis, ")
    assert json.loads(toban("jobs", "--json")) == {"jobs": []}
    assert ledger.sql("select from jobs") == []
    toban("jobs", "set", "analysis", "--pause")
    assert job_of(ledger)["enabled"] is False
    assert {row["job"] for row in ledger.call("jobs")["jobs"]} == set(in_timetable())


@pytest.mark.usefixtures("introduced")
def test_setting_everything_and_taking_it_away(toban: Run, ledger: Ledger) -> None:
    before = job_of(ledger)
    shown = toban(
        "jobs", "set", "analysis", "--pause", "--every", "1h", "--at", "50m", "--zone", "Asia/Tokyo",
        "--batch-limit", "50", "--device", DEVICE, "--date", "yesterday", "--timeout", "60",
    )  # fmt: skip
    assert job_of(ledger) == before | {
        "enabled": False, "every": 3600, "at": 3000, "zone": "Asia/Tokyo", "batch_limit": 50, "timeout": 60,
        "filters": {"partition": DEVICE, "date": "yesterday"},
    }  # fmt: skip
    line = " ".join(shown.splitlines()[1].split())
    assert line == f"analysis 1h at 50m (Asia/Tokyo) paused device {DEVICE}, yesterday 50 1m"
    toban("jobs", "set", "analysis", "--resume", "--date", "2025-07-18")
    assert job_of(ledger)["filters"] == {"partition": DEVICE, "date": "2025-07-18"}
    toban("jobs", "set", "analysis", "--batch-limit", "none", "--device", "none", "--date", "any", "--timeout", "none",
          "--every", "10s", "--at", "0s", "--zone", "UTC")  # fmt: skip
    assert job_of(ledger) == before


@pytest.mark.usefixtures("introduced")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say what to set, as `toban jobs set analysis --pause`"),
        (("--every", "10"), "--every is '10'; write it as 90s, 10m, 1h30m or 1d"),
        (("--every", "0s"), "job analysis: every is 00:00:00, but has to be at least 1 second"),
        (("--at", "soon"), "--at is 'soon'; write it as"),
        (("--at", "1h"), "job analysis: at is 01:00:00, but has to be at least 0 and less than every"),
        (("--zone", "Tokyo"), "job analysis: there is no time zone Tokyo; one is called Asia/Tokyo"),
        (("--batch-limit", "0"), "--batch-limit is '0'; it is a whole number from 1 to 1000000, or none"),
        (("--batch-limit", "many"), "--batch-limit is 'many'; it is a whole number"),
        (("--batch-limit", "2.5"), "--batch-limit is '2.5'; it is a whole number"),
        (("--device", " "), "--device is ' '; it is a device's id, or none"),
        (("--date", "tomorrow"), "--date is 'tomorrow'; write it as today, yesterday, 2025-07-18 or any"),
        (("--date", "2025-02-30"), "--date is '2025-02-30'; there is no day 2025-02-30"),
        (("--timeout", "0"), "--timeout is '0'; it is seconds, above 0 and up to 86400, or none"),
        (("--timeout", "nan"), "--timeout is 'nan'; it is seconds"),
        (("--timeout", "1m"), "--timeout is '1m'; it is seconds"),
    ],
)
def test_a_bad_value_is_one_message_and_changes_nothing(
    toban: Run, ledger: Ledger, arguments: tuple[str, ...], words: str
) -> None:
    before = job_of(ledger)
    pause = ("--pause",) if arguments else ()
    error = toban("jobs", "set", "analysis", *pause, *arguments, code=1)
    assert error.startswith(f"toban: {words}")
    assert job_of(ledger) == before


@pytest.mark.parametrize(
    ("job", "arguments", "words"),
    [
        ("nightly", ("--pause",), "there is no job 'nightly'; the jobs are analysis, "),
        ("reconcile", ("--batch-limit", "5"), "the job reconcile knows no batch limit: it would change nothing"),
        ("reconcile", ("--date", "today"), "the job reconcile knows no date"),
        ("transcription", ("--timeout", "5"), "the job transcription knows no timeout"),
        ("timeblock-prompt", ("--batch-limit", "5"), "the job timeblock-prompt knows no batch limit"),
    ],
)
def test_what_a_job_does_not_know(toban: Run, job: str, arguments: tuple[str, ...], words: str) -> None:
    assert toban("jobs", "set", job, *arguments, code=1).startswith(f"toban: {words}")


@pytest.mark.usefixtures("introduced")
def test_a_job_of_another_version_may_be_paused(toban: Run, ledger: Ledger) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "old", "title": "Old", "source": None, "every": 60}])
    toban("jobs", "set", "old", "--pause")
    assert job_of(ledger, "old")["enabled"] is False


def test_the_next_claim_follows(toban: Run, ledger: Ledger) -> None:
    toban("jobs", "set", "transcription", "--pause")
    ledger.file()
    ledger.heartbeat()
    assert ledger.claim_answer()["reason"] == "paused"
    toban("jobs", "set", "transcription", "--resume", "--batch-limit", "1")
    ledger.file("d2")
    assert len(ledger.claim()) == 1


# --- import-config ---------------------------------------------------------------------------------------------------


def config(**apis: Row) -> str:
    Path("config.json").write_text(json.dumps({"apis": {k.replace("_", "-"): v for k, v in apis.items()}}), "utf-8")
    return "config.json"


def test_the_old_switchboard_is_taken_over(toban: Run, ledger: Ledger) -> None:
    """Into a database that no worker has seen."""
    path = config(timeblock_analysis=OLD, whisper={**OLD, "enabled": True, "deviceId": ""}, sed={})
    shown = toban("import-config", path)
    analysis, transcription = job_of(ledger), job_of(ledger, "transcription")
    assert (analysis["enabled"], analysis["timeout"], analysis["batch_limit"]) == (False, 60, 50)
    assert analysis["filters"] == {"partition": DEVICE, "date": "today"}
    assert (transcription["enabled"], transcription["batch_limit"], transcription["timeout"]) == (True, 50, None)
    assert transcription["filters"] == {"date": "today"}
    assert {row["job"] for row in ledger.call("jobs")["jobs"]} == set(in_timetable())
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines == [
        "config.json value job setting was is",
        "apis.timeblock-analysis.enabled false analysis enabled true false",
        "apis.timeblock-analysis.timeout 60 analysis timeout none 60",
        "apis.timeblock-analysis.batchLimit 50 analysis batch limit none 50",
        f"apis.timeblock-analysis.deviceId {DEVICE} analysis device none {DEVICE}",
        "apis.timeblock-analysis.processDate today analysis date none today",
        "apis.whisper.enabled true transcription enabled true true",
        "apis.whisper.batchLimit 50 transcription batch limit none 50",
        "apis.whisper.deviceId none transcription device none none",
        "apis.whisper.processDate today transcription date none today",
        "Not taken over: apis.whisper.timeout: it means nothing to the job transcription",
        "Not taken over: apis.sed: there is no such job here",
        "7 of 9 changed. They hold from each job's next tick on, within a minute.",
    ]


def test_twice_is_once(toban: Run, ledger: Ledger) -> None:
    path = config(timeblock_analysis=OLD, timeblock_prompt={"enabled": True})
    toban("import-config", path)
    before = ledger.call("jobs")
    assert toban("import-config", path).endswith("All of it is set already; nothing was changed.\n")
    assert ledger.call("jobs") == before
    assert job_of(ledger, "timeblock-prompt")["enabled"] is True


def test_a_dry_run_changes_nothing(toban: Run, ledger: Ledger) -> None:
    path = config(timeblock_analysis=OLD)
    dry = toban("import-config", path, "--dry-run")
    assert ledger.sql("select from jobs") == []
    assert dry.endswith("5 of 5 would change; nothing was changed.\n")
    real = toban("import-config", path)
    assert real.splitlines()[:-1] == dry.splitlines()[:-1]


@pytest.mark.usefixtures("introduced")
def test_what_was_set_by_hand_gives_way(toban: Run, ledger: Ledger) -> None:
    ledger.call("edit_job", job="analysis", every=3600, batch_limit=7, timeout=5,
                filters={"partition": "d1", "date": "yesterday"})  # fmt: skip
    none = {"deviceId": None, "processDate": "any", "batchLimit": None, "timeout": None}
    assert toban("import-config", config(timeblock_analysis=none)).endswith("within a minute.\n")
    job = job_of(ledger)
    assert (job["every"], job["batch_limit"], job["timeout"], job["filters"]) == (3600, None, None, {})


def test_a_bad_value_changes_nothing(toban: Run, ledger: Ledger) -> None:
    path = config(whisper=OLD, timeblock_analysis={**OLD, "batchLimit": -1})
    error = toban("import-config", path, code=1)
    assert error == (
        "toban: config.json can't be used, and nothing was changed:\n"
        "  apis.timeblock-analysis.batchLimit: Input should be greater than or equal to 1\n"
    )
    assert ledger.sql("select from jobs") == []


def test_nothing_to_take_over(toban: Run, ledger: Ledger) -> None:
    assert toban("import-config", config(sed={})).splitlines() == [
        "Not taken over: apis.sed: there is no such job here",
        "Nothing to take over: the apis that have a job here are timeblock-analysis, whisper, timeblock-prompt.",
    ]
    assert "can't be read: No such file" in toban("import-config", "nowhere.json", code=1)
