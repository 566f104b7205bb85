"""The whole system as a user runs it: real beat and workers as processes of their own, on real servers."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
from psycopg.rows import dict_row

from app.database.postgres import PostgresDatabase
from app.settings import Web
from app.web.accounts import Accounts
from tests.support.servers import ROOT, Folder, Process, RabbitMQ, Redis, port_open

OPEN = {"pending", "queued", "processing"}
DEVICES = ("9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "1c2b3a49-5d6e-4f70-8192-a3b4c5d6e7f8")
FIRST = datetime(2025, 7, 18, 0, 0, tzinfo=UTC)

# Short leases, so that a test sees in seconds what takes a minute in production.
QUICK = {
    "TOBAN_HEARTBEAT": "1",
    "TOBAN_LEASE": "6",
    "TOBAN_QUEUE_LEASE": "4",
    "TOBAN_SHUTDOWN_GRACE": "2",
    "AUDIO_MISSING_GRACE": "1",
}


class System:
    """Beat, a whisper worker with two children and a default worker, over `database_url` and the broker `redis`.

    The environment decides as in production; `env` adds to it.
    """

    def __init__(self, database_url: str, redis: Redis | RabbitMQ, folder: Path, **env: str) -> None:
        self.database_url = database_url
        self.redis = redis
        self.folder = folder
        self.audio = folder / "audio"
        self.audio.mkdir()
        self.logs = Folder("toban-sys-")
        self.processes: dict[str, Process] = {}
        self.env = {
            **QUICK,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis.url,
            "AUDIO_FOLDER": str(self.audio),
            "WHISPER_MODEL": "tiny.en",
            "TOBAN_ENV_FILE": os.devnull,
            "PYTHONPATH": str(ROOT),
            "LOG_FORMAT": "json",
            "C_FORCE_ROOT": "1",
            **env,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.child.send_signal(signal.SIGCONT)
            kill_tree(process.child.pid)
            process.stop()
        self.logs.remove()

    def run(self, name: str, *arguments: str, join: Path | None = None) -> Process:
        """Start `celery …` under `name`, with a log of its own; one that had the name before is ended.

        `join`: a control group to run it in.
        """
        if old := self.processes.get(name):
            old.stop()
        folder = self.logs.path / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "celery", *arguments]
        if join:
            command = ["/bin/sh", "-c", f'echo $$ > {join}/cgroup.procs && exec "$@"', "sh", *command]
        self.processes[name] = Process(command, folder, env=self.env)
        return self.processes[name]

    def start(self, *names: str) -> None:
        """Start some of `beat`, `whisper` and `default`; all of them without names."""
        for name in names or ("beat", "default", "whisper"):
            if name == "beat":
                self.run("beat", "-A", "app", "beat")
            elif name == "whisper":
                self.run("whisper", "-A", "workers.whisper", "worker", "-n", f"whisper-{id(self)}@%h", "-c", "2")
            else:
                self.run("default", "-A", "workers.default", "worker", "-n", f"default-{id(self)}@%h")

    def web(self, name: str, port: int, **env: str) -> Process:
        """Start `toban web` under `name`, with more of an environment."""
        folder = self.logs.path / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "app.cli", "web", "--port", str(port), "--no-link"]
        self.processes[name] = Process(command, folder, env={**self.env, **env})
        self.processes[name].wait_for(lambda: port_open(port), name)
        return self.processes[name]

    def key(self, name: str, *scopes: str) -> str:
        """A new API key."""
        database = PostgresDatabase(self.database_url)
        try:
            return Accounts(database, Web(_env_file=None)).add_key(name, scopes)
        finally:
            database.close()

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `celery -A app call …` as an operator would."""
        return self.celery("call", *arguments)

    def celery(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `celery -A app …` to its end."""
        command = [sys.executable, "-m", "celery", "-A", "app", *arguments]
        return subprocess.run(
            command, env={**os.environ, **self.env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )

    def log(self, name: str) -> str:
        return self.processes[name].log.read_text(encoding="utf-8", errors="replace")

    def sql(self, statement: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.database_url, row_factory=dict_row, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, recording: Path | bytes, count: int = 1) -> None:
        """Put `count` copies of a recording in as pending rows, one time block each, for two devices in turn."""
        content = recording if isinstance(recording, bytes) else recording.read_bytes()
        start = self.sql("select count(*) as n from audio_files")[0]["n"]
        for number in range(start, start + count):
            device = DEVICES[number % 2]
            path = Path("files", device, "2025-07-18", f"{number:02d}", "audio.wav")
            (self.audio / path).parent.mkdir(parents=True)
            (self.audio / path).write_bytes(content)
            self.sql(
                "insert into audio_files (device_id, recorded_at, file_path) values (%s, %s, %s)",
                device,
                FIRST + number * timedelta(minutes=30),
                str(path),
            )

    def items(self) -> list[dict[str, Any]]:
        return self.sql("select * from work_items order by key")

    def states(self) -> Counter[str]:
        return Counter(item["state"] for item in self.items())

    def wait_until(self, done: Callable[[Counter[str]], bool], seconds: float = 100) -> Counter[str]:
        """Wait until the items' states satisfy `done`; fail with everything that helps when they never do."""
        deadline = time.monotonic() + seconds
        while not done(states := self.states()):
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in self.processes)
                raise AssertionError(f"after {seconds:g} s: {states}, {self.items()}\n{logs}")
            time.sleep(0.1)
        return states

    def wait_done(self, seconds: float = 100) -> Counter[str]:
        return self.wait_until(lambda states: not OPEN & states.keys(), seconds)

    def in_the_middle(self) -> None:
        """Wait until some recordings are done, some are being worked on, and some wait."""
        self.wait_until(lambda states: states["completed"] >= 1 and states["processing"] >= 1)

    def children(self, name: str) -> list[psutil.Process]:
        return psutil.Process(self.processes[name].child.pid).children()


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that it started, as the kernel or an operator would."""
    for process in family(pid):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def family(pid: int) -> Iterator[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        yield parent
        yield from parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
