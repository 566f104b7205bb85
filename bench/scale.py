"""What saturates first: the processor time that a fleet's calls take of PostgreSQL, PostgREST and the broker.

`python -m bench.scale`, or `make bench`; two to three minutes. Ten, a hundred and a thousand workers are rows of the
ledger, and their heartbeats, claims, starts and finishes are the real functions over real connections, one after the
other. Counted is the servers' processor time, which others on the machine disturb less than seconds on the clock. What
a fleet needs in a second follows from that: docs/scale.md says how. Writes `bench/results/scale.json`.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import psutil
import psycopg
from kombu import Connection

from app.database import Database
from app.database.migrate import migrate
from app.database.postgres import PostgresDatabase
from app.database.supabase import SupabaseDatabase
from tests.support.servers import Postgres, PostgREST, RabbitMQ, Redis, key_of, postgrest_binary

FLEETS = (10, 100, 1000)
WAITING = 20_000
FINISHED = 500_000
CALLS = 200
ROUNDS = 3
MESSAGES = 1000
RESULTS = Path(__file__).parent / "results/scale.json"
TABLE = """
create table chores (id integer primary key, owner text, state text default 'pending');
select toban_watch('chores', 'chore', array['id'], 'state', p_partition => 'owner');
"""
JOB = {"job": "chore", "title": "Chores", "source": "chore", "every": 10, "at": 0, "zone": "UTC", "catch_up": True}


class Used:
    """Processor time of a server's processes, ms."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def now(self) -> float:
        family = [self._root, *self._root.children(recursive=True)]
        return sum(1000 * (times.user + times.system) for times in (one.cpu_times() for one in family))


class Fleet:
    """`size` workers with one slot each, all of them busy, a queue that is full, and rows that wait."""

    def __init__(self, database: Database, size: int) -> None:
        self.database = database
        self.size = size
        self.running: dict[int, dict[str, Any]] = {}
        self.queued: list[dict[str, Any]] = []
        self._tick = 0
        database.call("toban_sync_jobs", jobs=[JOB])
        for worker in range(size):
            self.beat(worker)
        while self.claim():
            pass
        for worker in range(size):
            self.start(worker)
        while self.claim():
            pass

    def beat(self, worker: int) -> None:
        item = self.running.get(worker)
        self._tick += 1
        items = [{"id": item["id"], "attempt": item["attempt"], "progress": {"done": self._tick}}] if item else []
        self.database.call(
            "toban_heartbeat", worker=f"w{worker}", node=f"n{worker}", pid=worker, queues=["chores"], slots=1,
            rss_bytes=1, lease=3600, stall=3600, items=items, jobs=[JOB["job"]],
        )  # fmt: skip

    def claim(self) -> int:
        answer = self.database.call(
            "toban_claim", source="chore", queue="chores", limit=500, lease=3600, max_attempts=5, zone="UTC"
        )
        self.queued += answer["items"]
        return len(answer["items"])

    def start(self, worker: int) -> None:
        item, token = self.queued.pop(0), str(uuid4())
        answer = self.database.call(
            "toban_start", id=item["id"], task_id=item["task_id"], token=token, worker=f"w{worker}", max_run=3600,
            lease=3600,
        )  # fmt: skip
        self.running[worker] = {"id": item["id"], "attempt": answer["attempt"], "token": token, "run": answer["run_id"]}

    def finish(self, worker: int) -> None:
        item = self.running.pop(worker)
        self.database.call("toban_finish", id=item["id"], attempt=item["attempt"], token=item["token"], result={})

    def report(self, run: int | None) -> None:
        self.database.call("toban_report", jobs=[JOB["job"]], runs=[run])

    def look(self) -> None:
        self.database.call("toban_monitor", timetable=[JOB["job"]], queues={"chores": ["chore"]}, waited=0)


def costs(fleet: Fleet, used: Used) -> dict[str, float]:
    """Ms of processor time for one call each."""
    sums: dict[str, list[float]] = {}

    def counted(name: str, calls: int, call: Callable[[int], object]) -> None:
        before = used.now()
        for number in range(calls):
            call(number % fleet.size)
        sums.setdefault(name, []).append((used.now() - before) / calls)

    for _ in range(ROUNDS):
        counted("heartbeat", CALLS, fleet.beat)
        part = min(fleet.size, CALLS)
        runs = [fleet.running[worker]["run"] for worker in range(part)]
        counted("finish", part, fleet.finish)
        counted("start", part, fleet.start)
        counted("claim_ten", max(part // 10, 1), lambda _: fleet.claim())
        counted("claim_full", CALLS // 4, lambda _: fleet.claim())
        counted("report", CALLS // 4, lambda worker, runs=runs: fleet.report(runs[worker % len(runs)]))  # type: ignore[misc]
        counted("look", CALLS // 4, lambda _: fleet.look())
    return {name: round(median(found), 3) for name, found in sums.items()}


def updates(connection: psycopg.Connection[Any], table: str) -> dict[str, int]:
    """How many of a table's updates left its indexes alone (HOT)."""
    connection.execute("select pg_stat_force_next_flush()")
    row = connection.execute(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = %s", [table]
    ).fetchone()
    return {"updates": row[0], "hot": row[1]} if row else {}


def fleets(postgres: Postgres) -> dict[str, Any]:
    used = Used(postgres.server.get_pid())
    found = {}
    for size in FLEETS:
        url = postgres.create(f"fleet{size}")
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLE.encode())
            connection.execute(
                "insert into chores (id, owner) select n, 'owner ' || n %% 100 from generate_series(1, %s) n", [WAITING]
            )
            connection.execute("analyze")
            database = PostgresDatabase(url, pool_size=1)
            try:
                fleet = Fleet(database, size)
                found[str(size)] = {
                    "ms": costs(fleet, used),
                    "work_items": updates(connection, "work_items"),
                    "workers": updates(connection, "workers"),
                }
            finally:
                database.close()
    return found


def history(postgres: Postgres) -> dict[str, Any]:
    """The same for a hundred workers beside many finished items, and what looks at all of them, ms on the clock."""
    url = postgres.create("history")
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE.encode())
        connection.execute(
            "insert into chores (id, owner) select n, 'owner ' || n %% 100 from generate_series(1, %s) n", [WAITING]
        )
        connection.execute("vacuum analyze")
        before = connection.execute("select pg_total_relation_size('work_items')").fetchone() or [0]
        connection.execute(
            """insert into work_items (source, key, ref, partition, state, queue, task_id, attempt, tries, token,
                 settled_token, finished_at, started_at, claimed_at, worker)
               select 'chore', 'old ' || n, jsonb_build_object('id', n), 'owner ' || n %% 100, 'completed', 'chores',
                 gen_random_uuid(), 1, 1, gen_random_uuid(), gen_random_uuid(), now() - interval '91 days', now(),
                 now(), 'w' from generate_series(1, %s) n""",
            [FINISHED],
        )
        connection.execute("vacuum analyze")
        after = connection.execute("select pg_total_relation_size('work_items')").fetchone() or [0]
        database = PostgresDatabase(url, pool_size=1)
        try:
            fleet = Fleet(database, 100)
            found: dict[str, Any] = {
                "rows": FINISHED,
                "bytes_a_row": round((after[0] - before[0]) / FINISHED),
                "ms": costs(fleet, Used(postgres.server.get_pid())),
            }
            for name, function, params in (
                ("status", "toban_status", {}),
                ("work_page", "toban_page_work", {"queues": {"chore": "chores"}}),
                ("forget_ten_thousand", "toban_retention", {"items_days": 90, "runs_days": 30}),
            ):
                clock = []
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    database.call(function, **params)
                    clock.append((time.perf_counter() - started) * 1000)
                found[name] = round(median(clock))
            return found
        finally:
            database.close()


def over_rest(postgres: Postgres) -> dict[str, float]:
    """A heartbeat through PostgREST: ms of the two servers' processor time, and of the clock beside psycopg."""
    url = postgres.create("rest")
    migrate(url)
    server = PostgREST(postgres.url("rest", user="authenticator"), postgrest_binary()).start()
    try:
        pid = server.process.child.pid if server.process else 0
        rest, direct = (
            SupabaseDatabase(server.url, key_of("service_role"), rest_url=server.url),
            PostgresDatabase(url, pool_size=1),
        )
        used = {"postgrest": Used(pid), "postgres": Used(postgres.server.get_pid())}
        sums: dict[str, list[float]] = {}
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLE.encode())
            connection.execute("insert into chores (id, owner) select n, 'me' from generate_series(1, 50) n")
        fleet = Fleet(direct, 10)
        for database in (rest, direct) * (ROUNDS + 1):
            fleet.database = database
            before = {name: one.now() for name, one in used.items()}
            started = time.perf_counter()
            for number in range(CALLS):
                fleet.beat(number % 10)
            name = "rest" if database is rest else "direct"
            sums.setdefault(f"{name}_clock", []).append((time.perf_counter() - started) * 1000 / CALLS)
            for server_name, one in used.items():
                sums.setdefault(f"{name}_{server_name}", []).append((one.now() - before[server_name]) / CALLS)
        return {name: round(median(values[1:]), 3) for name, values in sums.items()}
    finally:
        server.stop()


@contextmanager
def brokers() -> Iterator[list[tuple[str, str, dict[str, Any], Used]]]:
    """The brokers that are on this machine: name, address, the queue's arguments, processor time."""
    redis = Redis().start()
    pid = redis.server._process.pid  # noqa: SLF001 - it tells it in no other way
    rabbit = RabbitMQ(consumer_timeout=1800)
    try:
        found: list[tuple[str, str, dict[str, Any], Used]] = [("Valkey", redis.url, {}, Used(pid))]
        try:
            rabbit.start()
        except FileNotFoundError as error:
            print(f"without RabbitMQ: {error}")
        else:
            pid = rabbit.process.child.pid if rabbit.process else 0
            found += [
                ("RabbitMQ, classic", rabbit.url, {}, Used(pid)),
                ("RabbitMQ, quorum", rabbit.url, {"x-queue-type": "quorum"}, Used(pid)),
            ]
        yield found
    finally:
        rabbit.stop()
        redis.stop()


def messages() -> dict[str, Any]:
    """One sender, one message after the other, each of them acknowledged by the broker; then all are taken."""
    told = {}
    with brokers() as there:
        for name, url, arguments, used in there:
            seconds, spent = [], []
            for number in range(ROUNDS):
                before, started = used.now(), time.perf_counter()
                options = {"confirm_publish": True} if url.startswith("amqp") else {}
                with Connection(url, transport_options=options) as connection:
                    queue: Any = connection.SimpleQueue(f"{name} {number}", queue_args=arguments)
                    for message in range(MESSAGES):
                        queue.put({"id": message, "key": "9f7d6e27/2025-07-18T03:00:00Z"})
                    seconds.append(time.perf_counter() - started)
                    for _ in range(MESSAGES):
                        queue.get(timeout=10).ack()
                spent.append(used.now() - before)
            told[name] = {
                "sent_per_s": round(MESSAGES / median(seconds)),
                "ms": round(median(spent) / MESSAGES, 3),
                "mb": psutil.Process(used._root.pid).memory_info().rss >> 20,  # noqa: SLF001 - its own
            }
    return told


def main() -> None:
    os.environ.setdefault("TOBAN_ENV_FILE", os.devnull)
    postgres = Postgres().start()
    try:
        figures = {
            "waiting": WAITING,
            "rounds": ROUNDS,
            "load_before": round(os.getloadavg()[0], 2),
            "fleets": fleets(postgres),
            "history": history(postgres),
            "rest": over_rest(postgres),
        }
    finally:
        postgres.stop()
    figures["messages"] = messages()
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
