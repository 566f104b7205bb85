"""`toban wrap`: the command's output, exit code and signals go through, and its report never breaks it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.monitor.wrap import Tail
from tests.support.receiver import Receiver, receiving
from tests.support.servers import ROOT, free_port, wait_for

SECRET = "a secret of the webhook"
TOBAN = [sys.executable, "-c", "from app.cli import main; main()", "wrap"]


@pytest.fixture
def monitor() -> Iterator[Receiver]:
    def answer(headers: Mapping[str, str], _body: bytes) -> tuple[int, dict[str, Any]]:
        given = {name.lower(): value for name, value in headers.items()}
        return (200, {}) if given.get("x-tc-portal-webhook-secret") == SECRET else (401, {})

    with receiving(answer) as receiver:
        yield receiver


def environment(port: int, **more: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("TC_PORTAL_")},
        "TC_PORTAL_MONITOR_URL": f"http://127.0.0.1:{port}",
        "TC_PORTAL_WEBHOOK_SECRET": SECRET,
        "TC_PORTAL_JOB_KEY": "nightly",
        "TC_PORTAL_JOB_TITLE": "夜間バックアップ",
        "TOBAN_ENV_FILE": os.devnull,
        "PYTHONPATH": str(ROOT),
        **more,
    }


def wrap(*arguments: str, env: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*TOBAN, *arguments], env=env, capture_output=True, check=False, timeout=60, **options)


def finished(monitor: Receiver) -> dict[str, Any]:
    [report] = [one for one in monitor.received if one["status"] != "running"]
    return dict(report)


def test_a_command_that_ends_well(monitor: Receiver) -> None:
    ran = wrap("--", "sh", "-c", "echo 出力; echo 警告 >&2; sleep 0.2", env=environment(monitor.port))
    assert (ran.returncode, ran.stdout.decode(), ran.stderr.decode()) == (0, "出力\n", "警告\n")
    report = finished(monitor)
    assert (report["job_key"], report["title"], report["status"]) == ("nightly", "夜間バックアップ", "success")
    assert (report["exit_code"], sorted(report["log"].splitlines())) == (0, ["出力", "警告"])
    assert report["message"].startswith("exit code 0 after ")
    assert report["started_at"] < report["finished_at"]
    [start] = [one for one in monitor.received if one["status"] == "running"]
    assert start["run_id"] == report["run_id"]


def test_a_command_that_fails_and_what_is_expected_of_it(monitor: Receiver) -> None:
    expectations = ("--every", "1d", "--grace", "30m", "--fail-after", "2")
    ran = wrap("--key", "other", *expectations, "sh", "-c", "exit 3", env=environment(monitor.port))
    assert ran.returncode == 3
    report = finished(monitor)
    assert (report["job_key"], report["title"]) == ("other", "other")  # the title in the environment is another job's
    assert (report["status"], report["exit_code"]) == ("error", 3)
    assert (report["expect_every"], report["grace"], report["fail_after"]) == (86_400, 1800, 2)


def test_options_after_the_command_are_the_commands(monitor: Receiver) -> None:
    ran = wrap("echo", "--key", "x", "-n", env=environment(monitor.port))
    assert ran.stdout == b"--key x -n\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_that_is_killed_by_a_signal(monitor: Receiver, number: signal.Signals) -> None:
    ran = wrap("sh", "-c", f"kill -{int(number)} $$", env=environment(monitor.port))
    assert ran.returncode == -number
    report = finished(monitor)
    assert (report["status"], report["exit_code"]) == ("error", 128 + number)
    assert report["message"].startswith(f"ended by {number.name} after ")


def test_a_signal_is_passed_on_to_the_command(monitor: Receiver, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'echo cleaned up; exit 7' TERM; touch {ready}; while :; do sleep 0.05; done"
    child = subprocess.Popen(
        [*TOBAN, "sh", "-c", script], env=environment(monitor.port), stdout=subprocess.PIPE, start_new_session=True
    )
    wait_for(ready.exists, "the command")
    child.terminate()
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (7, b"cleaned up\n")
    assert finished(monitor)["exit_code"] == 7


def test_huge_output_goes_through_and_its_end_is_kept(monitor: Receiver) -> None:
    program = "import sys; [sys.stdout.write(f'line {n} ' + 'x' * 100 + '\\n') for n in range(300_000)]"
    ran = wrap(sys.executable, "-c", program, env=environment(monitor.port))
    assert ran.returncode == 0
    assert ran.stdout.count(b"\n") == 300_000
    assert ran.stdout.endswith(b"line 299999 " + b"x" * 100 + b"\n")
    log = finished(monitor)["log"]
    assert log.splitlines()[-1].startswith("line 299999 ")
    assert len(log.splitlines()) <= 41


def test_a_reader_that_goes_away_ends_the_command_as_ever(monitor: Receiver) -> None:
    ran = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "from app.cli import main; main()" wrap yes | head -1'],
        env=environment(monitor.port), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.stdout == b"y\n"
    wait_for(lambda: any(one["status"] == "error" for one in monitor.received), "the report")
    assert finished(monitor)["message"].startswith("ended by SIGPIPE")


def test_standard_input_is_the_commands(monitor: Receiver) -> None:
    assert wrap("cat", env=environment(monitor.port), input=b"in").stdout == b"in"


def test_a_command_that_is_not_there(monitor: Receiver) -> None:
    ran = wrap("no-such-command", env=environment(monitor.port))
    assert ran.returncode == 127
    assert b"no-such-command: No such file or directory" in ran.stderr
    assert finished(monitor)["exit_code"] == 127
    assert wrap("/etc/passwd", env=environment(monitor.port)).returncode == 126


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"TC_PORTAL_MONITOR_URL": ""}, "nothing is reported"),
        ({"TC_PORTAL_MONITOR_URL": "nonsense"}, "nothing is reported"),
        ({"TC_PORTAL_JOB_KEY": ""}, "nothing is reported: no job is named"),
        ({"TC_PORTAL_WEBHOOK_SECRET": "wrong"}, "the report did not get through: HTTP 401"),
    ],
)
def test_trouble_with_the_report_never_breaks_the_command(monitor: Receiver, env: dict[str, str], said: str) -> None:
    ran = wrap("sh", "-c", "echo out; exit 5", env={**environment(monitor.port), **env})
    assert (ran.returncode, ran.stdout) == (5, b"out\n")
    assert said in ran.stderr.decode()
    assert SECRET not in ran.stderr.decode()


def test_without_a_server_the_command_runs_at_once(tmp_path: Path) -> None:
    ran = wrap("sh", "-c", "echo out; exit 5", env=environment(free_port()))
    assert (ran.returncode, ran.stdout) == (5, b"out\n")
    assert b"the report did not get through" in ran.stderr


def test_a_server_that_never_answers_holds_nothing_up(tmp_path: Path) -> None:
    def slow(_headers: Mapping[str, str], _body: bytes) -> tuple[int, dict[str, Any]]:
        time.sleep(3)
        return 500, {}

    with receiving(slow) as monitor:
        done = tmp_path / "done"
        child = subprocess.Popen([*TOBAN, "touch", str(done)], env=environment(monitor.port), stderr=subprocess.PIPE)
        wait_for(done.exists, "the command")
        assert child.poll() is None  # it still tries to report
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_the_log_has_no_secrets_and_can_be_left_out(monitor: Receiver) -> None:
    env = environment(monitor.port, DB_PASSWORD="hunter2hunter2")
    wrap("sh", "-c", "echo using $DB_PASSWORD at redis://:pw@host/0 with $TC_PORTAL_WEBHOOK_SECRET", env=env)
    assert finished(monitor)["log"] == "using *** at redis://:***@host/0 with ***"
    monitor.received.clear()
    wrap("--no-log", "echo", "hello", env=env)
    assert "log" not in finished(monitor)
    assert "hello" not in json.dumps(monitor.received)


def test_a_message_is_not_sent_to_where_a_redirect_points() -> None:
    with receiving() as elsewhere:

        def answer(_headers: Mapping[str, str], _body: bytes) -> tuple[int, dict[str, Any]]:
            return 307, {"Location": f"http://127.0.0.1:{elsewhere.port}"}

        with receiving(answer) as monitor:
            assert wrap("true", env=environment(monitor.port)).returncode == 0
        assert elsewhere.received == []


def test_the_tail_is_what_a_person_would_see() -> None:
    tail = Tail()
    tail.add(b"\x1b[31mred\x1b[0m\n 10%\r 50%\r100%\r\ncut \xe5\x87")
    tail.add(b"\xba\xff\x07\n")
    assert tail.text({}) == "red\n100%\ncut 出�"
