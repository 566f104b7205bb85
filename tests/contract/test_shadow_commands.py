"""`toban shadow report`, `takeover`, `rollback` and what doctor says, over both transports."""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from app.cli import main
from app.database import Database
from app.doctor.ledger import side_by_side
from app.jobs import in_timetable
from tests.contract.test_job_commands import Lasting
from tests.support.ledger import Ledger

Run = Callable[..., str]


@pytest.fixture
def toban(db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command that ends with `code`; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://x/y")
    monkeypatch.setenv("COLUMNS", "250")
    for command in ("shadow", "takeover"):
        monkeypatch.setattr(import_module(f"app.cli.{command}"), "open_database", lambda *_, **__: Lasting(db))

    def run(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        shown = capsys.readouterr()
        assert (ended.value.code or 0) == code, shown
        assert "Traceback" not in shown.err
        return (shown.err or shown.out) if code else shown.out

    return run


def follow(ledger: Ledger, agreed: int, different: int = 0, failed: int = 0) -> None:
    """Shadow mode, and as many comparisons that have been made."""
    ledger.call("sync_jobs", jobs=list(in_timetable().values()))
    ledger.call("sync_modes", shadow=["transcription"], limit=0, zone="Asia/Tokyo")
    ledger.files("d1", agreed + different + failed)
    ledger.set_status("completed")
    for number in range(agreed + different + failed):
        attempt = ledger.running("shadow_transcription", slots=4)
        if number >= agreed + different:
            ledger.end("fail", attempt, error="the sound is broken")
            continue
        good = number < agreed
        row = {"verdict": "near" if good else "different", "difference": 0.0 if good else 0.7, "ours": {"text": "ours"}}
        ledger.call("finish", **attempt.ids(), result={"row": {**row, "seconds": 2.5}})


def test_a_take_over_that_nothing_speaks_against(toban: Run, ledger: Ledger) -> None:
    follow(ledger, agreed=10, different=1)
    ledger.file("d2")
    dry = toban("takeover", "transcription", "--dry-run")
    assert [line.split()[0] for line in dry.splitlines()[:5]] == ["OK", "OK", "OK", "NOTE", "NOTE"]
    assert "10 of 11 rows agree (91%)" in dry
    assert re.search(r"the other system completed its last row \d+ (s|min) ago: switch it off", dry)
    assert "1 rows wait" in dry
    assert dry.endswith("Every check is good.\nNothing was changed.\n")
    assert ledger.claim_answer()["reason"] == "shadow"
    assert "transcription is live." in toban("takeover", "transcription")
    assert len(ledger.claim()) == 1
    assert toban("takeover", "transcription") == "transcription is live already; nothing was changed.\n"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("few", "9 rows were compared, and 10 are the least"),
        ("different", "10 of 12 rows agree (83%); `toban shadow report transcription`"),
        ("worker", "no worker listens to whisper: `celery -A workers.whisper worker"),
        ("model", "Worker of the queue whisper: host can't start: there is no model medium"),
        ("paused", "its job is paused, so nothing would be taken: `toban jobs set transcription --resume`"),
    ],
)
def test_a_check_that_fails_keeps_a_source_in_shadow_mode(toban: Run, ledger: Ledger, wrong: str, words: str) -> None:
    follow(ledger, 9 if wrong == "few" else 10, different=wrong == "different", failed=wrong == "different")
    match wrong:
        case "worker":
            ledger.kill_worker()
        case "model":
            ledger.call("worker_trouble", queues=["whisper"], node="host", reason="there is no model medium")
            ledger.call("monitor", min_every=0)
        case "paused":
            ledger.call("edit_job", job="transcription", enabled=False)
    shown = toban("takeover", "transcription", "--dry-run", code=1)
    assert f"FAIL {words}" in shown
    assert shown.endswith("A check fails; --force takes over all the same.\nNothing was changed.\n")
    assert "--force does it all the same" in toban("takeover", "transcription", code=1)
    assert ledger.claim_answer()["reason"] in {"shadow", "paused"}
    assert "is live" in toban("takeover", "transcription", "--force")


def test_a_rollback_says_what_becomes_of_the_rows(toban: Run, ledger: Ledger) -> None:
    ledger.files("d1", 4)
    ledger.end("fail", ledger.running(slots=2))
    ledger.running(slots=2)
    ledger.claim(1)
    assert "1 queued rows would be given back, 1 running ones finished by Toban; 1 wait" in toban(
        "rollback", "transcription", "--dry-run"
    )
    assert "given back; 1 wait" in toban("rollback", "transcription", "--dry-run", "--now")
    assert ledger.states()["queued"] == 1
    shown = toban("rollback", "transcription")
    assert "1 rows were given back; 1 still run and will be finished." in shown
    assert "1 rows have failed" in shown
    assert ledger.states() == {"failed": 1, "processing": 1, "pending": 2}
    assert toban("rollback", "transcription") == "transcription is in shadow mode already; nothing was changed.\n"


def test_what_the_report_shows(toban: Run, ledger: Ledger) -> None:
    assert "Nothing was compared." in toban("shadow", "report")
    follow(ledger, agreed=2, different=1, failed=1)
    shown = toban("shadow", "report")
    assert "transcription: in shadow mode since" in shown
    assert "analysis: live" in shown
    assert "error rate 0.70" in shown
    assert "failed here: the sound is broken" in shown
    assert "2.5 s, 95 %: 2.5 s" in shown
    assert "ours" not in shown
    assert "ours" in toban("shadow", "report", "--show-text")
    told = json.loads(toban("shadow", "report", "transcription", "--device", "d1", "--since", "1h", "--json"))
    assert (told["sources"][0]["near"], told["sources"][0]["missing"]) == (2, 1)
    assert [one["mode"] for one in told["modes"]] == ["live", "shadow"]
    for none in (["--device", "d9"], ["--since", "2100-01-01"], ["analysis"]):
        assert "Nothing was compared." in toban("shadow", "report", *none)


def test_what_there_is_not(toban: Run) -> None:
    for command in (["takeover"], ["rollback"], ["shadow", "report"]):
        for source in ("transcripton", "shadow_transcription", ""):
            words = f"there is no source {source!r}; the sources are analysis, transcription"
            assert words in toban(*command, source, code=1)
    for since in ("yesterday", "2025-13-01", "1", "99999999999d"):
        assert f"--since is {since!r}; write it as" in toban("shadow", "report", "--since", since, code=1)


def test_doctor_tells_of_both(ledger: Ledger) -> None:
    ledger.file()
    ledger.running()
    ledger.set_status("completed")
    ledger.call("set_mode", source="analysis", mode="shadow", who="ann")
    found = list(side_by_side(ledger.call("modes")["modes"]))
    assert [(one.level, one.code) for one in found] == [("OK", "D405"), ("WARN", "D406")]
    assert "analysis is in shadow mode, by ann" in found[0].what
    assert "transcription: 1 rows were completed twice" in found[1].what
