"""The embedded stack: everything Toban needs on one machine, without root, Docker or an account."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from app.database import Database, open_database
from app.embedded import checks, folders, processes, servers
from app.embedded.environment import StandIn, absolute, own_values, settings_of, stand_ins
from app.embedded.errors import StackError
from app.embedded.programs import GRACE_MARGIN, WORKERS, Program, celery, configuration, pages
from app.embedded.supervision import State, Supervisor
from app.settings import Settings

# A program that ends this often while the stack comes up will not come up.
FALLS = 3


class Stack:
    """PostgreSQL, Valkey, the workers and beat under a supervisor; what the user has set is used instead.

    `data`: folder that keeps everything; `own`: what the user has set, default: the environment and `.env`;
    `workers`: False starts the servers alone; `web`: the pages too, on another port where theirs is taken; `say`: gets
    a line for each step.
    As a context manager it is ready inside the block, and stopped after it.
    """

    def __init__(
        self,
        data: Path,
        own: Mapping[str, str] | None = None,
        *,
        workers: bool = True,
        web: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data = data.resolve()
        self.stand_ins: list[StandIn] = []
        self.environment: dict[str, str] = {}
        self._own = own
        self._workers = workers
        self._web = web
        self._say = say
        self._lock: TextIO | None = None
        self._run = self.data / "run"
        self._supervisor: Supervisor | None = None
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the stack's processes, once it has started."""
        if self._settings is None:
            raise StackError("the stack has not been started")
        return self._settings

    @property
    def filled(self) -> dict[str, str]:
        """The settings that a stand-in provides."""
        return {stand_in.setting: stand_in.value for stand_in in self.stand_ins if stand_in.value}

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The database of the stack."""
        database = open_database(self.settings.database)
        try:
            yield database
        finally:
            database.close()

    def start(self) -> None:
        """Start the servers.

        Raises `StackError` when another one uses the folder or a part is missing, `SettingsError` for bad settings.
        """
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = folders.lock(self.data)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        if left := processes.ours(str(self.data)):
            self._say("Stopping what a killed run has left behind")
            processes.end(left, patience=60)
        folders.clean(self.data)
        folders.make(self.data)
        self._run = folders.make_run(self.data)
        own = own_values() if self._own is None else self._own
        self.stand_ins = stand_ins(own, self.data, self._run)
        checks.check_installed({stand_in.setting for stand_in in self.stand_ins})
        port = self._free_port(own) if self._web else {}
        env = folders.write_env(self.data, self.filled | port)
        self.environment = {
            **absolute(own),
            **self.filled,
            **port,
            "TOBAN_ENV_FILE": str(env),  # the user's own files have been read
            "TMPDIR": str(self.data / "tmp"),
            processes.MARK: str(self.data),
        }
        self._settings = settings_of(self.environment)
        programs = self._programs()
        config = self.data / "supervisord.conf"
        config.write_text(configuration(programs, self.data, self._run), encoding="utf-8")
        for stand_in in self.stand_ins:
            with (self.data / f"logs/{stand_in.log}.log").open("a", encoding="utf-8") as log:
                log.write(f"toban: {stand_in.setting} is not set; the local stand-in is used: {stand_in.what}\n")
        self._supervisor = Supervisor(config, self._run)
        self._supervisor.start(self.environment, self.data / "logs/supervisor.err")

    def _free_port(self, own: Mapping[str, str]) -> dict[str, str]:
        """WEB_PORT, where the pages' own port is taken."""
        from app.web.server import listen

        web = settings_of({**absolute(own), **self.filled, "TOBAN_ENV_FILE": os.devnull}).web
        for port in (web.web_port, 0):
            with contextlib.suppress(OSError), listen(web.web_host, port) as free:
                return {} if port else {"WEB_PORT": str(free.getsockname()[1])}
        return {}  # its host is not this machine's, as the program will say

    def _programs(self) -> list[Program]:
        programs = []
        if "DATABASE_URL" in self.filled:
            self._say("Starting PostgreSQL")
            programs.append(servers.postgres(self.data, self._run))
        if "CELERY_BROKER_URL" in self.filled:
            self._say("Starting Valkey")
            programs.append(servers.valkey(self.data, self._run))
        if self._workers:
            programs += celery(self._run, self._mark, self.settings.ledger.shutdown_grace.total_seconds())
        if self._web:
            programs.append(pages())
        return programs

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait for the servers, apply the migrations, then start the workers and wait for them; `timeout`: seconds.

        Raises `StackError` with the end of the right log when something does not come up.
        """
        deadline = time.monotonic() + timeout
        falls: dict[str, set[int]] = {}
        if "CELERY_BROKER_URL" in self.filled:
            self._wait("valkey", partial(checks.broker_answers, self._run), deadline, falls)
        if "DATABASE_URL" in self.filled:
            from app.database.migrate import migrate

            self._wait("postgres", partial(checks.database_answers, self._run), deadline, falls)
            migrate(self.filled["DATABASE_URL"])
        with self.database() as database:
            if "DATABASE_URL" not in self.filled:
                checks.check_own(database)
            if not (self._workers or self._web) or self._supervisor is None:
                return
            self._say("Starting the workers and beat" if self._workers else "Starting the pages")
            self._supervisor.start_group("work")
            for name, queues in WORKERS.items() if self._workers else ():
                listens = partial(checks.listens, database, queues, self._mark)
                self._wait(f"worker-{name}", listens, deadline, falls)
            if self._web:
                self._wait("web", partial(checks.web_answers, self.settings.web), deadline, falls)

    def _wait(self, name: str, ready: Callable[[], bool], deadline: float, falls: dict[str, set[int]]) -> None:
        while not ready():
            for state in self.states().values():
                if state.stopped:
                    falls.setdefault(state.name, set()).add(state.stopped)
                if state.state == "FATAL" or len(falls.get(state.name, ())) >= FALLS:
                    raise StackError(f"{state.name} does not start; {self.tail(state.name)}")
            if time.monotonic() > deadline:
                raise StackError(f"{name} was not ready in time; {self.tail(name)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything in good order and make sure that nothing is left; when interrupted, stop it at once.

        Raises `StackError` when a process could not be stopped.
        """
        if self._lock is None:
            return  # whatever runs is another's
        try:
            if self._supervisor is not None and not self._supervisor.stop(self._patience):
                self._supervisor.kill()
            processes.end(processes.ours(str(self.data)), patience=GRACE_MARGIN)
        except KeyboardInterrupt:
            if self._supervisor is not None:
                self._supervisor.kill()
            processes.end(processes.ours(str(self.data)), patience=1)
        left = processes.ours(str(self.data))
        folders.clean(self.data)
        self._lock.close()
        self._lock = self._supervisor = None
        if left:
            raise StackError(f"these processes could not be stopped: {sorted(process.pid for process in left)}")

    @property
    def _patience(self) -> float:
        """How long the supervisor may take to stop everything, seconds."""
        grace = self._settings.ledger.shutdown_grace.total_seconds() if self._settings else 0
        return grace + 2 * GRACE_MARGIN + 2 * servers.GRACE

    def states(self) -> dict[str, State]:
        """How each program is.

        Raises `StackError` when the supervisor is gone.
        """
        if self._supervisor is None or not self._supervisor.alive:
            raise StackError(f"the supervisor has ended; {self.tail('supervisor')}")
        return self._supervisor.states()

    def tail(self, name: str, lines: int = 12) -> str:
        """The end of a program's log."""
        for file in (f"{name}.log", "supervisor.log", "supervisor.err"):
            log = self.data / "logs" / file
            if log.is_file() and (text := log.read_text(encoding="utf-8", errors="replace").strip()):
                return f"the end of {log}:\n" + "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
        return f"its log in {self.data}/logs is empty"

    @property
    def _mark(self) -> str:
        """Tells this stack's workers from another copy's."""
        return sha256(os.fsencode(self.data)).hexdigest()[:6]

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
