"""What the ledger costs: the same empty work through plain Celery and through Toban, in turn, in one run.

`python -m bench.ledger`, or `make bench`. Both use the same Valkey, worker (two prefork children) and
result backend. Plain Celery keeps no row, so the difference is the price of claim, lease, fence and status. Writes
`bench/results/ledger.json`; only the ratio is worth quoting, for the machine's speed is its own.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from celery import group

from app.embedded import Stack

ITEMS = 1000
ROUNDS = 5
PATIENCE = 300  # seconds for one round, which takes some
RESULTS = Path(__file__).parent / "results/ledger.json"


def plain() -> float:
    """Seconds for `ITEMS` tasks of plain Celery, from the first send to the last result."""
    from bench.chores import plain as task

    started = time.perf_counter()
    group(task.s(number).set(queue="chores") for number in range(ITEMS))().get(timeout=PATIENCE)
    return time.perf_counter() - started


def ledger(connection: psycopg.Connection[Any], batch: int) -> float:
    """Seconds for `ITEMS` rows, from the first claim to the last one completed.

    What goes before the first claim is the wait for a tick or a heartbeat, which is a setting. Raises `TimeoutError`
    when they are not done.
    """
    started = time.perf_counter()
    connection.execute("insert into chores (id) select %s + n from generate_series(1, %s) n", [batch * ITEMS, ITEMS])
    while connection.execute("select 1 from chores where state <> 'completed' limit 1").fetchone():
        if time.perf_counter() - started > PATIENCE:
            raise TimeoutError(f"{ITEMS} rows were not done after {PATIENCE} s")
        time.sleep(0.05)
    [seconds] = connection.execute(
        "select extract(epoch from max(finished_at) - min(claimed_at))::float from work_items where key::int > %s",
        [batch * ITEMS],
    ).fetchone() or [0.0]
    return float(seconds)


@contextmanager
def worker(log: Path) -> Iterator[None]:
    """A worker of the queue `chores` with two children, gone for sure afterwards."""
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-Q", "chores", "-c", "2", "-n", "bench@%h"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--without-mingle"], stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    except BaseException:
        print(log.read_text(encoding="utf-8", errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="toban-bench-") as folder, Stack(Path(folder), {}, workers=False) as stack:
        os.environ.update(stack.environment)
        os.environ |= {"TOBAN_SOURCES": "bench.chores", "TOBAN_HEARTBEAT": "1"}
        from bench.chores import TABLE

        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(TABLE)
            with worker(Path(folder) / "worker.log"):
                plain(), ledger(connection, 0)  # both warm
                pairs = [(plain(), ledger(connection, number)) for number in range(1, ROUNDS + 1)]
    ratios = [toban / celery for celery, toban in pairs]
    figures = {
        "items": ITEMS,
        "rounds": ROUNDS,
        "celery_seconds": [round(celery, 3) for celery, _ in pairs],
        "toban_seconds": [round(toban, 3) for _, toban in pairs],
        "ratio": {
            "median": round(statistics.median(ratios), 2),
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
        },
        "added_ms_per_item": round(statistics.median(t - c for c, t in pairs) / ITEMS * 1000, 2),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
