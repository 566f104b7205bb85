"""Who watches when somebody dies: whoever lives, and one message goes out to a real receiver."""

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.receiver import Receiver, receiving
from tests.support.servers import Process, free_port, wait_for
from tests.support.system import System, kill_tree

NewSystem = Callable[..., System]
# Long ago, for a beat or a queue that died just now: the test need not wait for a minute's grace.
AGED = """
update beats set ticked_at = ticked_at - interval '10 min';
update queue_watch set alive_at = alive_at - interval '10 min';
delete from workers
"""


@pytest.fixture
def channel() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def opened(system: System) -> set[str]:
    return {row["fingerprint"] for row in system.sql("select fingerprint from incidents where recovered_at is null")}


def titles(channel: Receiver) -> list[str]:
    return [one["title"] for one in channel.received]


def test_beat_dies_and_comes_back(new_system: NewSystem, channel: Receiver) -> None:
    system = new_system(ALERT_URLS=f"json://127.0.0.1:{channel.port}/")
    system.start("beat", "default")
    wait_for(lambda: bool(system.sql("select beat from beats")), "beat's news", 60)
    wait_for(lambda: bool(system.sql("select ran_at from monitor_state")), "a look", 60)
    kill_tree(system.processes["beat"].child.pid)
    system.sql("update beats set ticked_at = ticked_at - interval '10 min'")
    wait_for(lambda: titles(channel) == ["[Toban] Failing: No beat ticks"], "the message", 60)
    assert "workers stand in for it" in channel.received[0]["message"]
    assert "beat" in opened(system)
    system.start("beat")
    wait_for(lambda: "beat" not in opened(system), "the recovery", 60)
    wait_for(lambda: len(channel.received) == 2, "its message", 60)
    assert titles(channel)[1] == "[Toban] Recovered: No beat ticks"
    [downtime] = system.sql("select extract(epoch from recovered_at - opened_at) as s from incidents")
    assert downtime["s"] >= 600


def test_all_workers_die_and_beat_notices(new_system: NewSystem, channel: Receiver) -> None:
    system = new_system(ALERT_URLS=f"json://127.0.0.1:{channel.port}/")
    system.start("beat", "default")
    wait_for(lambda: bool(system.sql("select ran_at from monitor_state")), "a look", 60)
    wait_for(lambda: bool(system.sql("select job from jobs where last_slot is not null")), "a run", 60)
    kill_tree(system.processes["default"].child.pid)
    system.sql(AGED)
    system.sql("update jobs set last_slot = last_slot - interval '10 min', created_at = now() - interval '9 days'")
    system.sql("update job_watch set changed_at = null")
    wait_for(lambda: {"worker/default", "overdue/transcription"} <= opened(system), "the incidents", 60)
    assert "beat" not in opened(system)  # it tells so itself
    [state] = system.sql("select state from job_watch where job_key = 'transcription'")
    assert state["state"] == "missed"
    wait_for(lambda: "[Toban] Failing: No worker listens to default" in titles(channel), "the message", 60)
    system.start("default")
    wait_for(lambda: not {"worker/default", "overdue/transcription"} & opened(system), "the recovery", 60)
    wait_for(lambda: "[Toban] Recovered: No worker listens to default" in titles(channel), "its message", 60)
    assert len(titles(channel)) == len(set(titles(channel)))  # each once, though two looked


def test_everything_dies_but_the_web_server(new_system: NewSystem, channel: Receiver) -> None:
    system = new_system(ALERT_URLS=f"json://127.0.0.1:{channel.port}/", WEB_PORT=str(free_port()))
    system.start("beat", "default")
    wait_for(lambda: bool(system.sql("select 1 from jobs where last_slot is not null")), "a run", 60)
    wait_for(lambda: bool(system.sql("select beat from beats")), "beat's news", 60)
    wait_for(lambda: bool(system.sql("select ran_at from monitor_state")), "a look", 60)
    logs = system.logs.path / "web"
    logs.mkdir()
    start = "from app.cli import main; main(['web'])"
    system.processes["web"] = Process([sys.executable, "-c", start], logs, env=system.env)
    for name in ("beat", "default"):
        kill_tree(system.processes[name].child.pid)
    system.sql(AGED)
    system.sql("update jobs set last_slot = last_slot - interval '10 min', created_at = now() - interval '9 days'")
    system.sql("update job_watch set changed_at = null")
    dead = {"beat", "worker/default", "overdue/transcription"}
    wait_for(lambda: dead <= opened(system), "the incidents", 60)
    wait_for(lambda: "[Toban] Failing: No beat ticks" in titles(channel), "the message", 60)
    for name in ("beat", "default"):
        system.start(name)
    wait_for(lambda: not dead & opened(system), "the recovery", 90)
    wait_for(lambda: "[Toban] Recovered: No beat ticks" in titles(channel), "its message", 60)
    gone = system.sql("select extract(epoch from recovered_at - opened_at) as s from incidents where kind = 'beat'")
    assert [row["s"] >= 600 for row in gone] == [True]
