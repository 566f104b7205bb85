"""A source of one file and one `toban_watch` line has everything: queue, beat entry, retries, reports."""

import json
import re
from typing import Any

import pytest
import redis

from tests.e2e.conftest import NewSystem
from tests.support import toy
from tests.support.system import System


def start(system: System, pool: str) -> None:
    system.sql(toy.TABLE)
    system.start("beat", "default")
    system.run("toy", "-A", "app", "worker", "-Q", "toy", "-P", pool, "-c", "2", "-n", f"toy-{id(system)}@%h")


def wish(system: System, *wishes: str) -> None:
    for number, words in enumerate(wishes):
        system.sql("insert into chores (id, owner, wish) values (%s, 'me', %s)", number, words)


def result_of(system: System, item: dict[str, Any]) -> dict[str, Any]:
    with redis.Redis.from_url(system.redis.url) as client:
        answer = client.get(f"celery-task-meta-{item['task_id']}")
    assert isinstance(answer, bytes)
    return dict(json.loads(answer))


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_way_to_end(new_system: NewSystem, pool: str) -> None:
    system = new_system(TOBAN_SOURCES="tests.support.toy", TOBAN_MAX_ATTEMPTS="3")
    start(system, pool)
    wish(system, "tea", "flaky", "limited", "hopeless", "bug", "memory", "native memory", "nothing", "nul", "日本茶")
    system.wait_done()

    items = {int(item["key"]): item for item in system.items()}
    rows = {row["id"]: row for row in system.sql("select * from chores")}
    assert {number: item["state"] for number, item in items.items()} == {
        **dict.fromkeys((0, 1, 2, 9), "completed"),
        **dict.fromkeys((3, 4, 5, 6, 8), "failed"),
        7: "skipped",
    }
    assert {number: row["state"] for number, row in rows.items()} == {n: item["state"] for n, item in items.items()}
    assert rows[9]["answer"] == "done: 日本茶"
    assert (items[1]["tries"], items[2]["tries"]) == (2, 1), "a pause that was asked for costs no try"
    assert items[2]["attempt"] == 2
    assert items[3]["last_error"] == "it can't be done; ask for something else"
    assert items[3]["last_traceback"] is None
    assert re.fullmatch(r"ZeroDivisionError in run \(toy\.py, line \d+\)", items[4]["last_error"])
    assert "in run" in items[4]["last_traceback"]
    assert (items[4]["tries"], items[5]["tries"], items[6]["tries"]) == (3, 2, 2)
    assert items[5]["last_error"].startswith("not enough memory")
    assert items[7]["last_error"] == "there is nothing to do"
    assert "NUL character" in items[8]["last_error"]
    assert "row.answer" in items[8]["last_error"]

    assert result_of(system, items[0])["status"] == "SUCCESS"
    assert result_of(system, items[3])["status"] == "FAILURE"
    assert "Worker" not in result_of(system, items[5])["result"]["exc_type"], "no child died of a MemoryError"
    # Celery takes a MemoryError for its own end; the worker must be there for the next row.
    system.sql("insert into chores (id, owner, wish) values (10, 'me', 'more tea')")
    system.wait_until(lambda states: states["completed"] == 5)
    assert system.processes["toy"].child.poll() is None


def test_reports_follow_the_ledger(new_system: NewSystem) -> None:
    """The job is in error until the failed item itself is resolved; other rows' success does not hide it."""
    system = new_system(TOBAN_SOURCES="tests.support.toy")
    start(system, "threads")
    wish(system, "hopeless", "tea")
    system.wait_done()

    def status() -> tuple[str, str]:
        [row] = system.sql("select * from job_status where job_key = 'toy'") or [
            {"last_status": "", "last_message": ""}
        ]
        return row["last_status"], row["last_message"] or ""

    system.wait_until(lambda _: status()[0] == "error")
    assert "1 failed; the latest, 0: it can't be done" in status()[1]
    system.sql("insert into chores (id, owner, wish) values (7, 'me', 'more tea')")
    system.wait_done()
    system.wait_until(lambda states: states["completed"] == 2 and status()[0] == "error")

    system.sql("update chores set wish = 'water', state = 'pending' where id = 0")
    system.wait_until(lambda states: states["completed"] == 3)
    system.wait_until(lambda _: status()[0] == "success")

    def counted() -> tuple[int, int, int]:
        [sums] = system.sql("select sum(dispatched) as d, sum(finished) as f, sum(failed) as x from runs")
        return int(sums["d"]), int(sums["f"]), int(sums["x"])

    system.wait_until(lambda _: counted() == (4, 3, 1))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stopping_worker_gives_its_work_back(new_system: NewSystem, pool: str) -> None:
    """After the grace the worker quits; what it ran is due again at once and has cost no try."""
    system = new_system(TOBAN_SOURCES="tests.support.toy", TOBAN_SHUTDOWN_GRACE="1")
    start(system, pool)
    wish(system, "slow", "slow")
    system.wait_until(lambda states: states["processing"] == 2)
    system.processes["toy"].stop(30)
    assert system.processes["toy"].child.returncode is not None
    assert system.states() == {"pending": 2}
    assert [item["tries"] for item in system.items()] == [0, 0]
    assert system.sql("select * from workers where 'toy' = any (queues)") == []


def test_stopping_one_worker_leaves_its_neighbour_alone(new_system: NewSystem) -> None:
    """Two workers of one host that were given no names have the same Celery name."""
    system = new_system(TOBAN_SOURCES="tests.support.toy", TOBAN_SHUTDOWN_GRACE="1")
    system.sql(toy.TABLE)
    system.start("default")
    for name in ("toy", "neighbour"):
        system.run(name, "-A", "app", "worker", "-Q", "toy", "-c", "1")
    wish(system, "slow", "slow")
    system.wait_until(lambda states: states["processing"] == 2)
    system.processes["toy"].stop(30)
    pids = {str(child.pid) for child in system.children("neighbour")}
    running = [item for item in system.items() if item["state"] == "processing"]
    assert [item["worker"].partition("#")[2] in pids for item in running] == [True]
    assert running[0]["attempt"] == 1


def test_work_without_progress_is_taken_over(new_system: NewSystem) -> None:
    """A child that is frozen loses its lease; another one does the work, and the frozen one can't write any more."""
    system = new_system(TOBAN_SOURCES="tests.support.toy")
    start(system, "prefork")
    wish(system, "slow")
    system.wait_until(lambda states: states["processing"] == 1)
    [item] = system.items()
    system.sql("update chores set wish = 'tea' where id = 0")  # seen by the next attempt
    frozen = int(item["worker"].partition("#")[2])
    [child] = [child for child in system.children("toy") if child.pid == frozen]
    child.suspend()
    system.wait_until(lambda states: states["completed"] == 1)
    child.resume()
    system.wait_until(lambda _: "work.lost" in system.log("toy"))
    [row] = system.sql("select * from chores")
    assert row["answer"] == "done: tea"
