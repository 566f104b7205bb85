"""How soon a new row starts: told by the database, by a webhook, or found by a tick. And what telling costs the app.

`python -m bench.wake`, or `make bench`. One row at a time, at random moments, into an idle system of one worker with
threads, beat and the web process, all on this machine with the settings of production; PostgreSQL waits for the disk.
Times are the database's own: from the transaction that inserts to the one that starts. Writes
`bench/results/wake.json`.
"""

import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg

from app.embedded import Stack
from bench.chores import TABLE

ROWS, TICKED = 50, 10  # one by one; those that wait for ticks take some seconds each
BURST, APPS = 5_000, 4  # rows, each a transaction of its own, and connections that insert them
PATIENCE = 60  # seconds
RESULTS = Path(__file__).parent / "results/wake.json"

Connection = psycopg.Connection[tuple[Any, ...]]


class Bench:
    """`url`: the database; `folder`: for logs."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.numbers = count(1)
        self.secret = secrets.token_hex(20)
        self.port = 0

    @contextmanager
    def system(self, *, listen: bool) -> Iterator[Connection]:
        """A worker, beat and the web process, and the app's own connection."""
        own = {"TOBAN_LISTEN": str(listen).lower(), "WAKE_SECRET": self.secret, "WEB_PORT": str(self.port)}
        celery = [sys.executable, "-m", "celery", "-A", "app"]
        commands = {
            "worker": [*celery, "worker", "-Q", "chores,default", "-P", "threads", "-c", "8", "-n", "bench@%h"],
            "beat": [*celery, "beat", "--pidfile=", "--schedule", str(self.folder / "beat")],
            "web": [sys.executable, "-m", "app.cli", "web", "--no-link"],
        }
        with ExitStack() as running, psycopg.connect(self.url, autocommit=True) as app:
            for name, command in commands.items():
                log = running.enter_context((self.folder / f"{name}.log").open("wb"))
                process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
                running.callback(process.wait)
                running.callback(process.terminate)
            wait(lambda: asked(app, "select count(*) from workers where 'chores' = any (queues)") == 1)
            wait(lambda: bool(asked(app, "select toban_health('{}') ->> 'tick' is not null")))
            wait(lambda: asked(app, "select toban_listening('{}') ->> 'listening'") == str(listen).lower())
            wait(lambda: answers(f"http://127.0.0.1:{self.port}/health/live"))
            self.row(app)  # warm
            yield app

    def row(self, app: Connection, then: Callable[[], object] = lambda: None) -> float:
        """Milliseconds from a row's insert to its start; `then`: what the app does after the commit."""
        number = next(self.numbers)
        app.execute("insert into chores (id) values (%s)", [number])
        then()
        told = "select extract(epoch from started_at - opened_at)::float * 1000 from work_items where key = %s"
        wait(lambda: asked(app, told, str(number)) is not None)
        return float(asked(app, told, str(number)))

    def rows(self, app: Connection, most: int, then: Callable[[], object] = lambda: None) -> dict[str, float]:
        every = []
        for _ in range(most):
            time.sleep(random.uniform(0.2, 0.8))  # noqa: S311
            every.append(self.row(app, then))
        ranks = statistics.quantiles(every, n=20, method="inclusive")
        return {
            "rows": most,
            "median_ms": round(statistics.median(every), 1),
            "p95_ms": round(ranks[18], 1),
            "most_ms": round(max(every), 1),
        }

    def webhook(self) -> Callable[[], object]:
        """Posts what Supabase's webhook does."""
        client = httpx.Client(headers={"X-Toban-Wake-Secret": self.secret}, trust_env=False)
        address = f"http://127.0.0.1:{self.port}/wake/chore"
        return lambda: client.post(address, json={"type": "INSERT", "table": "chores"}).raise_for_status()

    def burst(self) -> float:
        """Rows a second that the app inserts one by one, over several connections. They are no more than inserted."""

        def insert(numbers: range) -> None:
            with psycopg.connect(self.url, autocommit=True) as app:
                for number in numbers:
                    app.execute("insert into chores (id) values (%s)", [number])

        first = next(self.numbers) + 1_000_000
        self.numbers = count(first + BURST)
        parts = [range(first + part * BURST // APPS, first + (part + 1) * BURST // APPS) for part in range(APPS)]
        began = time.perf_counter()
        with ThreadPoolExecutor(APPS) as pool:
            list(pool.map(insert, parts))
        return round(BURST / (time.perf_counter() - began))


def asked(app: Connection, statement: str, *values: object) -> Any:  # noqa: ANN401 - whatever it selects
    row = app.execute(statement.encode(), values or None).fetchone()
    return row[0] if row else None


def wait(ready: Callable[[], bool]) -> None:
    """Raises `TimeoutError`."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)


def answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def main() -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="toban-bench-") as folder, Stack(Path(folder), {}, workers=False) as stack:
        os.environ.update(stack.environment)
        os.environ["TOBAN_SOURCES"] = "bench.chores"
        url = os.environ["DATABASE_URL"]
        bench = Bench(url, Path(folder))
        from app.web.server import listen

        with listen("127.0.0.1", 0) as free:
            bench.port = free.getsockname()[1]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLE.encode())
        with bench.system(listen=True) as app:
            told = bench.rows(app, ROWS)
        with bench.system(listen=False) as app:
            hooked = bench.rows(app, ROWS, bench.webhook())
            ticked = bench.rows(app, TICKED)
        # Nobody works meanwhile; one listens, or nobody does.
        with psycopg.connect(url, autocommit=True) as ear:
            rates: dict[str, list[float]] = {"nobody": [], "listening": []}
            for _ in range(2):
                rates["nobody"].append(bench.burst())
                ear.execute("select pg_advisory_lock(hashtextextended('toban:listen', 0))")
                ear.execute("listen toban")
                rates["listening"].append(bench.burst())
                ear.execute("unlisten *")
                ear.execute("select pg_advisory_unlock_all()")
                for _ in ear.notifies(timeout=0):
                    pass
    figures = {
        "load_before": round(load, 2),
        "listen": told,
        "webhook": hooked,
        "tick": ticked,
        "burst": {"rows": BURST, "connections": APPS, "inserts_per_second": rates},
    }
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
