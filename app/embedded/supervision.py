"""The supervisor: start it, ask it, tell it."""

import os
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from app.embedded.programs import PROJECT


@dataclass(frozen=True)
class State:
    """One program: `name`; `state`: the supervisor's word, RUNNING, BACKOFF …; `stopped`: when it last ended, s."""

    name: str
    state: str
    stopped: int
    pid: int


class Supervisor:
    """One `supervisord`, with its configuration in `config` and its socket in `run`."""

    def __init__(self, config: Path, run: Path) -> None:
        self._config = config
        self._socket = run / "supervisor.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str], errors: Path) -> None:
        """`environment`: what every program gets; `errors`: file for what it says before its own log is open."""
        with errors.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.embedded.launch", "-c", str(self._config)],
                env={**environment, "TOBAN_STARTER": str(os.getpid())},
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for the one who started us, and stops everything in good order.
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def states(self) -> dict[str, State]:
        """Every program by its name; none while the supervisor does not answer."""
        try:
            with self._remote() as remote:
                answers = remote.getAllProcessInfo()
        except (OSError, HTTPException, xmlrpc.client.Error):
            return {}
        return {
            answer["name"]: State(answer["name"], answer["statename"], answer["stop"], answer["pid"])
            for answer in answers
        }

    def start_group(self, name: str) -> None:
        with self._remote() as remote:
            remote.startProcessGroup(name, False)  # without waiting for it

    def stop(self, patience: float) -> bool:
        """Stop every program, then the supervisor itself. False: it was not done after `patience` seconds."""
        if self._process is None:
            return True
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextmanager
    def _remote(self) -> Iterator[Any]:
        """The supervisor's own functions; http://supervisord.org/api.html."""
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            yield xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor
        finally:
            transport.close()
