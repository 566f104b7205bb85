"""What runs under the supervisor: Celery's programs, and the configuration file for them and the servers."""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import app

PROJECT = Path(app.__file__).parent.parent
# The queues of each worker; what waits for others shares a process, which costs 100 MB less.
WORKERS = {"whisper": ["whisper"], "default": ["default", "gpt"]}
# One that shares: room for jobs beside calls that take their time.
_THREADS = 8

# Seconds beside a worker's own grace: to write down what it gives back, and to leave.
GRACE_MARGIN = 10


@dataclass(frozen=True)
class Program:
    """One supervised program.

    `user`: run as this one; `signal`: asks it to stop; `grace`: seconds until it is killed; `settled_after`: seconds
    after which it counts as started.
    """

    name: str
    command: Sequence[str]
    group: str
    cwd: Path
    grace: int
    user: str | None = None
    signal: str = "TERM"
    settled_after: int = 1


def celery(run: Path, mark: str, grace: float) -> list[Program]:
    """Workers and beat.

    `mark` makes the workers' names differ from another copy's; `grace`: TOBAN_SHUTDOWN_GRACE, seconds.
    """
    python = [sys.executable, "-m", "celery"]
    # Looking for other workers costs a second at the start; what they would tell each other, the ledger knows.
    alone = ["--without-mingle", "--without-gossip"]
    lines = {
        f"worker-{name}": [*python, "-A", f"workers.{name}", "worker", "-n", f"{name}-{mark}@%h", *alone]
        for name in WORKERS
    }
    for name, queues in WORKERS.items():
        if len(queues) > 1:
            lines[f"worker-{name}"] += ["-Q", ",".join(queues), "-c", str(_THREADS)]
    lines["beat"] = [*python, "-A", "app", "beat", "--pidfile=", "--schedule", str(run / "beat")]
    seconds = round(grace) + GRACE_MARGIN
    return [Program(name, line, "work", cwd=PROJECT, grace=seconds, settled_after=5) for name, line in lines.items()]


def pages() -> Program:
    """The web pages. `toban up` prints the link to the first account itself, so that no log has it."""
    command = [sys.executable, "-m", "app.cli", "web", "--no-link"]
    return Program("web", command, "work", cwd=PROJECT, grace=GRACE_MARGIN)


def configuration(programs: Iterable[Program], data: Path, run: Path) -> str:
    """The supervisor's configuration. It starts the servers itself; the group `work` is started when they are ready."""
    programs = list(programs)
    sections: dict[str, dict[str, object]] = {
        "unix_http_server": {"file": run / "supervisor.sock", "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface",
        },
        "supervisorctl": {"serverurl": f"unix://{run}/supervisor.sock"},
        "supervisord": {
            "nodaemon": "true",
            "silent": "true",
            "logfile": data / "logs/supervisor.log",
            "logfile_maxbytes": "5MB",
            "logfile_backups": 1,
            "pidfile": run / "supervisor.pid",
            "childlogdir": data / "logs",
        },
    }
    if os.geteuid() == 0:
        sections["supervisord"]["user"] = "root"  # meant, so it need not warn
    for program in programs:
        sections[f"program:{program.name}"] = _section(program, data)
    # Groups are stopped one after the other, the last one first: the workers before what they write to.
    for priority, group in enumerate(("postgres", "valkey", "work"), start=1):
        if names := [program.name for program in programs if program.group == group]:
            sections[f"group:{group}"] = {"programs": ",".join(names), "priority": priority}
    lines: list[str] = []
    for title, values in sections.items():
        lines += [f"[{title}]", *(f"{key}={str(value).replace('%', '%%')}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _section(program: Program, data: Path) -> dict[str, object]:
    section: dict[str, object] = {
        "command": shlex.join(program.command),
        "directory": program.cwd,
        "autostart": str(program.group != "work").lower(),
        "autorestart": "true",
        "startsecs": program.settled_after,
        "startretries": 60,  # the waits between tries grow by a second each, so this goes on for half an hour
        "stopsignal": program.signal,
        "stopwaitsecs": program.grace,
        # The parent ends its own children in good order; if it has to be killed, they go along.
        "stopasgroup": "false",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": str(data / f"logs/{program.name}.log").replace("%", "%%"),  # it is expanded twice
        "stdout_logfile_maxbytes": "10MB",
        "stdout_logfile_backups": 2,
    }
    if program.user:
        section["user"] = program.user
    return section
