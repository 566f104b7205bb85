"""Run a command and report how it ended. Whatever happens to the report, the command never notices.

Its output goes through as it comes, by way of pipes; its exit code is ours, and so is the signal that ended it.
"""

import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import urlsplit

from app.cli.errors import without_passwords
from app.health import duration
from app.settings import Portal

PATH = "/api/monitor/job-report"
KEPT = 64 * 1024  # bytes of the output's end
LINES = 40
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# A terminal sends these to the command itself.
OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as shells have them
ATTEMPTS, PAUSE = 3, 2.0  # of a finish's report, and seconds between them
PATIENCE = 30.0  # seconds for all of them

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_SECRET = re.compile(r"SECRET|PASSW|TOKEN|KEY|CREDENTIAL", re.IGNORECASE)


@dataclass
class Tail:
    """The end of what was written, of both streams in the order of its coming."""

    _chunks: deque[bytes] = field(default_factory=deque)
    _size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, chunk: bytes) -> None:
        with self._lock:
            self._chunks.append(chunk)
            self._size += len(chunk)
            while self._size - len(self._chunks[0]) >= KEPT:
                self._size -= len(self._chunks.popleft())

    def text(self, environment: Mapping[str, str]) -> str:
        """The last lines for a person: no colours, of progress bars their last state, no values of secret variables."""
        with self._lock:
            data = b"".join(self._chunks)[-KEPT:]
        text = _ESCAPES.sub("", data.decode("utf-8", "replace"))
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
        kept = "\n".join("".join(c for c in line if c >= " " or c == "\t") for line in lines[-LINES - 1 :]).strip("\n")
        for name, value in environment.items():
            if len(value) >= 6 and _SECRET.search(name):
                kept = kept.replace(value, "***")
        return without_passwords(kept)


@dataclass(frozen=True)
class Reporter:
    """Tells the monitor; never raises. `common`: what each report of this run says."""

    url: str
    secret: str
    common: Mapping[str, Any]

    def tell(self, attempts: int = 1, **values: Any) -> str | None:  # noqa: ANN401 - JSON
        """Send one report. Returns what went wrong, for a person."""
        problem = None
        for attempt in range(attempts):
            if attempt:
                time.sleep(PAUSE)
            problem, final = self._send({**self.common, **values})
            if final:
                break
        return problem

    def _send(self, report: Mapping[str, Any]) -> tuple[str | None, bool]:
        """What went wrong, and whether trying again is useless."""
        try:
            import httpx

            # (Redirects are not followed: the secret is for this address alone.)
            answer = httpx.post(self.url, json=report, headers={"X-TC-Portal-Webhook-Secret": self.secret}, timeout=5)
        except Exception as error:  # noqa: BLE001 - the command must not notice
            return without_passwords(f"{type(error).__name__}: {error}"), False
        if answer.is_success:
            return None, True
        return f"HTTP {answer.status_code} {answer.text[:200]}", answer.status_code < 500 and answer.status_code != 429


def reporter(portal: Portal, expectations: Mapping[str, Any]) -> Reporter | str:
    """Who tells of this run, or why nobody can."""
    if not portal.job_key:
        return "no job is named: --key or TC_PORTAL_JOB_KEY"
    if not portal.monitor_url or not portal.webhook_secret:
        return "TC_PORTAL_MONITOR_URL and TC_PORTAL_WEBHOOK_SECRET are not both set"
    url = portal.monitor_url
    if urlsplit(url).path in {"", "/"}:
        url = url.rstrip("/") + PATH
    common = {
        "job_key": portal.job_key,
        "title": portal.job_title or portal.job_key,
        "run_id": str(uuid.uuid4()),
        "started_at": datetime.now(UTC).isoformat(),
        **{name: value for name, value in expectations.items() if value is not None},
    }
    return Reporter(url, portal.webhook_secret.get_secret_value(), common)


def run(command: Sequence[str], report: Reporter | None, *, send_log: bool = True) -> int:
    """Run `command` to its end and report it.

    Returns its exit code, or minus the signal that ended it.
    """
    if report:
        # The command does not wait for this.
        threading.Thread(target=report.tell, kwargs={"status": "running"}, daemon=True).start()
    tail = Tail()
    began = time.monotonic()
    code = _carry_out(command, tail)
    seconds = duration(time.monotonic() - began)
    if report:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        problem = _in_time(
            report,
            status="error" if code else "success",
            finished_at=datetime.now(UTC).isoformat(),
            exit_code=128 - code if code < 0 else code,
            message=f"{how} after {seconds}",
            **({"log": tail.text(os.environ)} if send_log else {}),
        )
        if problem:
            say(f"the report did not get through: {problem}")
    return code


def _in_time(report: Reporter, **values: Any) -> str | None:  # noqa: ANN401 - JSON
    """Report, but give up when it takes too long or somebody presses Ctrl-C."""
    answers: list[str | None] = []
    teller = threading.Thread(target=lambda: answers.append(report.tell(ATTEMPTS, **values)), daemon=True)
    teller.start()
    with suppress(KeyboardInterrupt):
        teller.join(PATIENCE)
    return answers[0] if answers else "no answer"


def end(code: int) -> None:
    """End this process as the command ended."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def say(words: str) -> None:
    with suppress(OSError, ValueError):
        print(f"toban wrap: {words}", file=sys.stderr, flush=True)  # noqa: T201


def _carry_out(command: Sequence[str], tail: Tail) -> int:
    with _passing_on() as signals:
        try:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")
            tail.add(f"{command[0]}: {error.strerror}\n".encode())
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        signals.start(child)
        copies = [
            threading.Thread(target=_copy, args=(stream, target, tail), daemon=True)
            for stream, target in ((child.stdout, 1), (child.stderr, 2))
            if stream
        ]
        for copy in copies:
            copy.start()
        code = child.wait()
        # What it left in the background may still write, as into any pipe.
        for copy in copies:
            copy.join()
    return code


def _copy(stream: IO[bytes], target: int, tail: Tail) -> None:
    with stream:  # closed early, the command gets SIGPIPE as it would without us
        while chunk := os.read(stream.fileno(), 64 * 1024):
            tail.add(chunk)
            while chunk:
                try:
                    chunk = chunk[os.write(target, chunk) :]
                except BlockingIOError:  # somebody has made it so
                    select.select([], [target], [])
                except OSError:
                    return


@dataclass
class _Signals:
    """Passes signals on to the command; what came before it was there, when it is."""

    terminal: bool
    child: "subprocess.Popen[bytes] | None" = None
    early: list[int] = field(default_factory=list)

    def start(self, child: "subprocess.Popen[bytes]") -> None:
        self.child = child
        for number in self.early:
            child.send_signal(number)

    def __call__(self, number: int, _frame: object) -> None:
        if self.child is None:
            self.early.append(number)
        elif not (self.terminal and number in OF_TERMINAL):
            self.child.send_signal(number)


@contextmanager
def _passing_on() -> Iterator[_Signals]:
    """Signals that reach us are the command's; it decides what they mean."""
    signals = _Signals(_in_foreground())
    before = {number: signal.signal(number, signals) for number in PASSED_ON}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
