"""`toban web`, `toban user`, `toban key`, as a person types them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.support.servers import ROOT, free_port, port_open, wait_for
from tests.support.web import PASSWORD, Browser

Toban = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "TOBAN_ENV_FILE": os.devnull,
        "DATABASE_URL": database_url,
        "HOME": str(tmp_path),
    }


@pytest.fixture
def toban(environment: dict[str, str]) -> Toban:
    """Run a command; `said`: what comes by the pipe."""

    def run(*arguments: str, said: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments],
            env={**environment, **env},
            input=said,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_accounts(toban: Toban) -> None:
    assert "There is no account" in toban("user", "list").stdout
    short = toban("user", "add", "mika", said="short\n")
    assert (short.returncode, short.stdout) == (1, "")
    assert short.stderr == "toban: a password has at least 10 characters\n"
    assert toban("user", "add", "Mika", "--role", "operator", said=f"{PASSWORD}\n").returncode == 0
    again = toban("user", "add", "mika", said=f"{PASSWORD}\n")
    assert (again.returncode, again.stderr) == (1, "toban: there is a user mika already\n")
    assert toban("user", "role", "mika", "--role", "viewer").returncode == 0
    assert re.search(r"^mika\s+viewer\b.*\b0\s*$", toban("user", "list").stdout, re.MULTILINE)
    assert toban("user", "password", "mika", said="another-long-password\n").returncode == 0
    link = toban("user", "link", "mika", WEB_BASE_URL="https://toban.example.com/x/")
    assert re.search(r"^https://toban\.example\.com/x/welcome/[\w-]{43}$", link.stdout, re.MULTILINE)
    assert toban("user", "rm", "mika").returncode == 0
    assert toban("user", "rm", "mika").stderr == "toban: there is no user mika\n"
    assert toban("user", "add", "mika", "--role", "owner").returncode == 2


def test_keys(toban: Toban, database_url: str) -> None:
    assert "There is no key" in toban("key", "list").stdout
    made = toban("key", "add", "readme", "--scope", "badge", "--scope", "read", "--days", "30")
    assert re.fullmatch(r"toban_[\w-]{43}\n", made.stdout), "nothing else, so that a script can take it"
    listed = toban("key", "list").stdout
    assert "badge, read" in listed
    assert made.stdout.strip() not in listed
    assert "there is no scope all" in toban("key", "add", "x", "--scope", "all").stderr
    assert toban("key", "revoke", "readme").returncode == 0
    assert "revoked" in toban("key", "list").stdout


def test_the_web_process(environment: dict[str, str], database_url: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "web", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: process.poll() is not None or port_open(port), "toban web", seconds=60)
        base = f"http://127.0.0.1:{port}"
        wait_for(lambda: _lives(base), "toban web", seconds=60)
        with psycopg.connect(database_url) as connection:
            assert connection.execute("select count(*) from web_links").fetchone() == (1,)
        taken = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert taken.returncode == 1
        assert taken.stderr.startswith(f"toban: can't listen on 127.0.0.1:{port}: ")
        process.send_signal(signal.SIGTERM)
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
    (link,) = re.findall(rf"^{base}(/welcome/[\w-]+)$", output, re.MULTILINE)
    assert link.removeprefix("/welcome/") not in log
    assert "Traceback" not in log
    assert "web.start" in log
    # Started again, it prints another; the first still works, and makes the account.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: _lives(base), "toban web", seconds=60)
        with Browser(base) as visitor:
            assert visitor.submit(link, name="olga", password=PASSWORD).status_code == 303
            assert visitor.get("/incidents").status_code == 200
            with visitor.stream("GET", "/events") as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: hello"
                process.send_signal(signal.SIGINT)
                assert "event: goodbye" in list(lines)
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Cancel" not in log, "it ended by itself"
    assert "Traceback" not in log
    assert PASSWORD not in output + log
    assert link.removeprefix("/welcome/") not in log


def _lives(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health/live").is_success
    except httpx.HTTPError:
        return False
