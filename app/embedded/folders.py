"""The stack's folders: what is kept, the sockets, and the lock that lets one stack at a time use them."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from app.embedded.errors import StackError

# A socket's path may have 107 bytes (103 on macOS), and PostgreSQL's socket is named .s.PGSQL.5432.
SOCKET_ROOM = 88


def make(data: Path) -> None:
    for name in ("logs", "audio", "tmp"):
        (data / name).mkdir(mode=0o700, exist_ok=True)


def lock(data: Path) -> TextIO:
    """Hold the folder until the returned file is closed, or this process dies.

    Raises `StackError` when another process holds it.
    """
    file = (data / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        number = file.read().strip() or "unknown"
        file.close()
        raise StackError(
            f"the stack in {data} runs already, started by process {number}; use it, or stop it there first"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def make_run(data: Path) -> Path:
    """A new folder for sockets that nobody else can enter: `run`, or one in /tmp where that name is too long."""
    run = data / "run"
    # Addresses, command lines and the supervisor's configuration each have their own way with other characters.
    if len(os.fsencode(run)) <= SOCKET_ROOM and re.fullmatch(r"[A-Za-z0-9_./-]+", str(run)):
        run.mkdir(mode=0o700)
        return run
    folder = Path(tempfile.mkdtemp(prefix="toban-", dir="/tmp"))
    run.symlink_to(folder)
    return folder


def clean(data: Path) -> None:
    """Remove what lives only while the stack runs, also what a killed one has left; not the lock."""
    run = data / "run"
    if run.is_symlink():
        shutil.rmtree(run.readlink(), ignore_errors=True)
        run.unlink()
    # A worker that is killed leaves its copy of a recording in `tmp`.
    for folder in (run, data / "tmp"):
        shutil.rmtree(folder, ignore_errors=True)
    (data / "env").unlink(missing_ok=True)


def write_env(data: Path, values: Mapping[str, str]) -> Path:
    """The file that `celery -A app call …` and `toban status` in another terminal read; it may hold a password."""
    env = data / "env"
    env.touch(mode=0o600)
    env.write_text("".join(f"{name}={quoted(value)}\n" for name, value in values.items()), encoding="utf-8")
    return env


def quoted(value: str) -> str:
    """`value` as python-dotenv reads it back.

    Inside its single quotes a backslash and a quote are escaped, and `${name:-default}` is filled in all the same: one
    without a name gives its default, so that `${` can be written.
    """
    text = value.replace("\\", "\\\\").replace("'", "\\'").replace("${", "${:-$}{")
    if text.endswith("\\"):
        text += "${:-}"  # nothing, between the backslash and the closing quote, which would seem to be escaped
    return f"'{text}'"
