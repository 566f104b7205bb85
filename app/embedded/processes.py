"""Find and end the processes of one stack, also those whose supervisor is gone.

Each carries the stack's data folder in its environment (`MARK`), which children inherit. A server writes its title over
its environment; it works in a folder of its own there. So whatever became of pid files, ours are known for sure.
"""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK = "TOBAN_STACK"
_SERVERS = ("postgres", "valkey-server")


def ours(data: str) -> list[psutil.Process]:
    """The living processes of the stack whose data folder is `data`, other than this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and _is_ours(process, data):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    return [process for process in found if process.pid != os.getpid()]


def _is_ours(process: psutil.Process, data: str) -> bool:
    if process.name() in _SERVERS:
        return Path(process.cwd()).parent == Path(data)
    return process.environ().get(MARK) == data


def end(processes: Iterable[psutil.Process], patience: float) -> None:
    """End processes in good order: what works first, then the servers under it; after `patience` seconds, by force."""
    everybody = list(processes)
    pids = {process.pid for process in everybody}
    # A signal for a parent is enough: it ends its own children as it should.
    heads = [process for process in everybody if _parent(process) not in pids]
    servers = [process for process in heads if _name(process) in _SERVERS]
    for part in ([process for process in heads if process not in servers], servers):
        for process in part:
            # PostgreSQL waits for its clients at SIGTERM, and ends at once, cleanly, at SIGINT.
            _send(process, signal.SIGINT if _name(process) == "postgres" else signal.SIGTERM)
        psutil.wait_procs(part, timeout=patience)
        if not servers:
            break
    # Those that a dead parent left behind.
    _, alive = psutil.wait_procs(everybody, timeout=0.5)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=10)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None
