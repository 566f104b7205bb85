"""Reports of jobs outside: the old contract to the letter, a script of the old kind, and what is new."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from app.database import Database
from app.database.postgres import PostgresDatabase
from app.errors import Transient
from app.monitor.report import MAX_BODY, checked, handle
from tests.support.receiver import receiving
from tests.support.servers import ROOT, free_port

SECRET = SecretStr("a secret of the webhook")
HEADERS = {"X-TC-Portal-Webhook-Secret": SECRET.get_secret_value()}
REPORT = {"job_key": "nightly", "title": "夜間バックアップ", "status": "success", "finished_at": "2026-11-25T03:00:00Z"}

# As they are in use: the standard library, four variables, and a report that never breaks the script.
[EXAMPLE] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/monitor.md").read_text(encoding="utf-8"), flags=re.DOTALL)
SCRIPT = f"""{EXAMPLE}
try:
    raise RuntimeError("容量が足りません")
except RuntimeError as error:
    report("error", f"バックアップに失敗しました: {{error}}")
print("done")
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = PostgresDatabase(database_url)
    yield database
    database.close()


def send(database: Database, report: Mapping[str, Any], **changes: Any) -> tuple[int, dict[str, Any]]:
    return handle(database, SECRET, HEADERS, json.dumps({**report, **changes}).encode())


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in REPORT.items() if key != name}


def test_a_report_is_written(database: Database, database_url: str) -> None:
    status, answer = send(database, REPORT, message="12件完了")
    assert status == 200
    assert set(answer) == {"success", "id", "job_key"}
    assert (answer["success"], answer["job_key"]) == (True, "nightly")
    with psycopg.connect(database_url) as connection:
        [row] = connection.execute(
            "select id::text, title, last_status, last_finished_at = '2026-11-25T03:00Z', last_message from job_status"
        )
    assert row == (answer["id"], "夜間バックアップ", "success", True, "12件完了")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "Invalid JSON body"),
        (b"{", "Invalid JSON body"),
        (b"[]", "Invalid JSON body"),
        (b'"text"', "Invalid JSON body"),
        ('{"title": "夜間"}'.encode("shift-jis"), "Invalid JSON body"),
        (b"[" * 100_000, "Invalid JSON body"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "Invalid JSON body"),
        ({}, "job_key is required"),
        (without("job_key"), "job_key is required"),
        ({**REPORT, "job_key": "  "}, "job_key is required"),
        ({**REPORT, "job_key": 7}, "job_key is required"),
        (without("title"), "title is required"),
        (without("status"), "status must be 'success' or 'error'"),
        ({**REPORT, "status": "ok"}, "status must be 'success' or 'error'"),
        ({**REPORT, "status": ["success"]}, "status must be 'success' or 'error'"),
        ({**REPORT, "status": "running"}, "status must be 'success' or 'error'"),
        (without("finished_at"), "finished_at is required"),
        ({**REPORT, "finished_at": ""}, "finished_at is required"),
        ({**REPORT, "finished_at": "yesterday"}, "finished_at must be valid ISO 8601"),
        ({**REPORT, "finished_at": ["2026-11-25"]}, "finished_at must be valid ISO 8601"),
        ({**REPORT, "finished_at": "9999-12-31T23:59:59-14:00"}, "finished_at must be valid ISO 8601"),
        ({**REPORT, "expect_every": "1 fortnight"}, "expect_every must be seconds, or like 90s, 15m, 24h, 1d"),
        ({**REPORT, "grace": -1}, "grace must be seconds, or like 90s, 15m, 24h, 1d"),
        ({**REPORT, "exit_code": 2**40}, "exit_code must be a whole number"),
        ({**REPORT, "exit_code": True}, "exit_code must be a whole number"),
        ({**REPORT, "fail_after": 0}, "fail_after must be at least 1"),
        ({**REPORT, "started_at": 5}, "started_at must be valid ISO 8601"),
    ],
)
def test_what_is_wrong_is_said_as_ever(database: Database, body: bytes | Mapping[str, Any], error: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert handle(database, SECRET, HEADERS, raw) == (400, {"error": error})


@pytest.mark.parametrize(
    "headers", [{}, {"X-TC-Portal-Webhook-Secret": "another"}, {"X-TC-Portal-Webhook-Secret": "é"}]
)
def test_a_wrong_secret(database: Database, headers: dict[str, str]) -> None:
    answer = handle(database, SECRET, headers, b"not even JSON")
    assert answer == (401, {"error": "Invalid or missing webhook secret"})


@pytest.mark.parametrize("secret", [None, SecretStr("")])
def test_no_secret_is_set(database: Database, secret: SecretStr | None) -> None:
    assert handle(database, secret, {"X-TC-Portal-Webhook-Secret": ""}, b"") == (
        500, {"error": "Server configuration error"},
    )  # fmt: skip


def test_header_names_have_no_case_and_a_secret_may_be_japanese(database: Database) -> None:
    body = json.dumps(REPORT).encode()
    assert handle(database, SECRET, {"x-tc-portal-webhook-secret": SECRET.get_secret_value()}, body)[0] == 200
    on_the_wire = "ひみつ".encode().decode("latin-1")
    assert handle(database, SecretStr("ひみつ"), {"X-TC-Portal-Webhook-Secret": on_the_wire}, body)[0] == 200


def test_a_body_that_is_too_large(database: Database) -> None:
    assert handle(database, SECRET, HEADERS, b"x" * (MAX_BODY + 1)) == (413, {"error": "Request body too large"})


def test_a_database_that_is_away_and_a_value_that_it_would_refuse(database: Database) -> None:
    class Away:
        def call(self, function: str, **params: object) -> Any:
            raise Transient("the database is away")

        def close(self) -> None:
            pass

    failed = (500, {"error": "Failed to update job status"})
    assert handle(Away(), SECRET, HEADERS, json.dumps(REPORT).encode()) == failed
    assert send(database, REPORT, tool_id="no uuid") == (400, {"error": "tool_id must be a UUID"})


@pytest.mark.parametrize(
    "finished", ["2026-11-25T03:00:00Z", "2026-11-25T12:00:00+09:00", "2026-11-25T03:00:00.000000", "20261125T030000Z"]
)
def test_every_way_to_write_a_moment(finished: str) -> None:
    report = checked(json.dumps({**REPORT, "finished_at": finished}).encode())
    assert report["finished_at"] == "2026-11-25T03:00:00+00:00"


def test_text_that_a_database_can_not_hold(database: Database, database_url: str) -> None:
    assert send(database, REPORT, message="a\0b\ud800c", title="夜\0間")[0] == 200
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select last_message, title from job_status").fetchone() == ("a�b�c", "夜�間")


def test_what_is_new_is_optional(database: Database, database_url: str) -> None:
    start = {"job_key": "nightly", "title": "夜間", "status": "running", "run_id": "r1", "expect_every": "1d"}
    assert send(database, start) == (200, {"success": True, "id": None, "job_key": "nightly"})
    log = "x" * 10_000 + " postgresql://me:hunter2@db/x done"
    assert send(database, REPORT, run_id="r1", exit_code=0, log=log, grace=90, fail_after=2)[0] == 200
    [job] = database.call("toban_job_states")["jobs"]
    assert job["settings"] == {"every": 86_400, "grace": 90, "fail_after": 2}
    assert len(job["log_tail"]) == 8000
    assert job["log_tail"].endswith("postgresql://me:***@db/x done")


def run_script(folder: Path, port: int) -> "subprocess.CompletedProcess[str]":
    (folder / "backup.py").write_text(SCRIPT, encoding="utf-8")
    env = {
        "TC_PORTAL_MONITOR_URL": f"http://127.0.0.1:{port}/api/monitor/job-report",
        "TC_PORTAL_WEBHOOK_SECRET": SECRET.get_secret_value(),
        "TC_PORTAL_JOB_KEY": "nightly-backup",
        "TC_PORTAL_JOB_TITLE": "夜間バックアップ",
    }
    command = [sys.executable, "-I", "-S", str(folder / "backup.py")]  # no library but the standard one
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=True)


def test_a_script_of_the_old_kind_needs_no_change(database: Database, database_url: str, tmp_path: Path) -> None:
    with receiving(lambda headers, body: handle(database, SECRET, headers, body)) as monitor:
        assert run_script(tmp_path, monitor.port).stdout == "done\n"
    with psycopg.connect(database_url) as connection:
        [row] = connection.execute("select job_key, title, last_status, last_message from job_status")
    assert row == (
        "nightly-backup", "夜間バックアップ", "error", "バックアップに失敗しました: 容量が足りません",
    )  # fmt: skip
    database.call("toban_monitor", min_every=0)
    assert [one["title"] for one in database.call("toban_incidents")["incidents"]] == ["夜間バックアップ"]


def test_a_script_of_the_old_kind_goes_on_without_a_monitor(tmp_path: Path) -> None:
    assert run_script(tmp_path, free_port()).stdout.endswith("done\n")
