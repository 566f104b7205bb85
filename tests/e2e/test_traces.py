"""One trace from a request or a tick to the calls outside; nothing private in it; and no harm without a collector."""

import json
import sys
from collections.abc import Iterator

import httpx
import pytest

from app.database.postgres import PostgresDatabase
from app.settings import Web
from app.web.accounts import Accounts
from tests.e2e.conftest import NewSystem
from tests.support import asking
from tests.support.collector import Collector
from tests.support.openai_server import KEY, OpenAIServer, serving
from tests.support.servers import Process, free_port, wait_for
from tests.support.system import System

WORDS = "what-was-said-at-home"


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector().start()
    yield server
    server.stop()


@pytest.fixture
def asked() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as server:
        yield server


def pages(system: System) -> tuple[str, str]:
    """Start the web process; its address, and a key that may press buttons."""
    port = free_port()
    folder = system.logs.path / "web"
    folder.mkdir()
    command = [sys.executable, "-m", "app.cli", "web", "--port", str(port), "--no-link"]
    system.processes["web"] = Process(command, folder, env=system.env)
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return httpx.get(f"{address}/health/ready").is_success
        except httpx.HTTPError:
            return False

    system.processes["web"].wait_for(up, "the pages")
    database = PostgresDatabase(system.database_url)
    key = Accounts(database, Web()).add_key("ci", ["operate"])
    database.close()
    return address, key


def add(system: System, number: int, prompt: str) -> None:
    system.sql("insert into asked (device, prompt) values (%s, %s)", f"private-device-{number}", f"{prompt} {WORDS}")


def state(system: System, number: int) -> str:
    return str(system.sql("select state from work_items where key = %s", f"private-device-{number}")[0]["state"])


def test_one_trace_shows_it_all(new_system: NewSystem, collector: Collector, asked: OpenAIServer) -> None:
    system = new_system(
        TOBAN_SOURCES="tests.support.asking",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=ours",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OPENAI_BASE_URL=asked.url,
        OPENAI_API_KEY=KEY,
        # Workers claim for themselves at each heartbeat, and who listens at once; here it is beat's turn.
        TOBAN_LISTEN="false",
        TOBAN_HEARTBEAT="10",
        TOBAN_LEASE="60",
    )
    system.sql(asking.TABLE)
    system.start("beat", "default")
    system.run("toy", "-A", "app", "worker", "-Q", "toy", "-c", "1", "-n", f"toy-{id(system)}@%h")
    address, key = pages(system)
    wait_for(lambda: bool(system.sql("select id from workers where 'toy' = any (queues)")), "the worker")

    # From a tick of beat to the server outside.
    def from_beat() -> bool:
        ticks = {span.trace for span in collector.spans if span.service == "toban-beat"}
        return bool(ticks & {span.trace for span in collector.named("chat")})

    for number in range(30):
        if from_beat():
            break
        add(system, number, "hello")
        wait_for(lambda n=number: state(system, n) == "completed", "the answer")  # type: ignore[misc]
        wait_for(lambda n=number: len(collector.named("chat")) > n, "its span")  # type: ignore[misc]
    [trace, *_] = {s.trace for s in collector.named("chat")} & {
        s.trace for s in collector.spans if s.service == "toban-beat"
    }
    wait_for(lambda: bool({"run tasks.dispatch", "run tasks.asking"} <= {s.name for s in collector.of(trace)}), "ends")
    by_name = {span.name: span for span in collector.of(trace)}
    assert (by_name["tick asking"].service, by_name["tick asking"].parent) == ("toban-beat", "")
    assert by_name["run tasks.dispatch"].service == "toban-default"
    assert by_name["run tasks.dispatch"].parent == by_name["tick asking"].id
    assert by_name["dispatch asking"].parent == by_name["run tasks.dispatch"].id
    assert by_name["toban_claim"].parent == by_name["run tasks.dispatch"].id
    task = by_name["run tasks.asking"]
    assert (task.service, task.parent) == ("toban-toy", by_name["dispatch asking"].id)
    assert task.attributes["toban.source"] == "asking"
    assert task.attributes["toban.attempt"] == 1
    assert task.attributes["toban.state"] == "success"
    for name in ("toban_start", "chat", "toban_finish"):
        assert by_name[name].parent == task.id
    assert by_name["chat"].attributes["gen_ai.usage.output_tokens"] > 0

    # A retry names the attempt before it.
    add(system, 100, "flaky")
    wait_for(lambda: state(system, 100) == "completed", "the retry", 30)
    item = system.sql("select id from work_items where key = 'private-device-100'")[0]["id"]
    wait_for(lambda: len([s for s in collector.spans if s.attributes.get("toban.item") == item]) == 2, "both attempts")
    first, second = sorted(
        (s for s in collector.spans if s.attributes.get("toban.item") == item),
        key=lambda span: span.attributes["toban.attempt"],
    )
    assert (first.attributes["toban.state"], first.failed) == ("retry", False)
    assert first.id in second.links

    # From a request to the server outside, whoever sends the item.
    add(system, 200, "hopeless")
    wait_for(lambda: state(system, 200) == "failed", "the failure")
    caller = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    answer = httpx.post(
        f"{address}/incidents/retry?secret-query=1",
        headers={"Authorization": f"Bearer {key}", "traceparent": caller},
        data={"source": "asking", "key": "private-device-200"},
    )
    assert answer.status_code == 303
    wait_for(lambda: state(system, 200) == "completed", "the second try", 30)
    wait_for(lambda: {"chat", "POST /incidents/retry"} <= {s.name for s in collector.of("ab" * 16)}, "its trace")
    wait_for(lambda: "run tasks.asking" in {s.name for s in collector.of("ab" * 16)}, "its task")
    mine = {span.name: span for span in collector.of("ab" * 16)}
    assert mine["POST /incidents/retry"].service == "toban-web"
    assert mine["POST /incidents/retry"].parent == "cd" * 8
    assert mine["toban_retry_items"].parent == mine["POST /incidents/retry"].id
    assert mine["run tasks.asking"].parent == mine["toban_retry_items"].id
    assert mine["run tasks.asking"].links, "who sent it"
    [failed] = [s for s in collector.named("run tasks.asking") if s.failed]
    assert failed.attributes["toban.attempt"] == 1
    # A stranger's trace is not gone on with.
    httpx.get(f"{address}/sign-in", headers={"traceparent": "00-" + "ef" * 16 + "-" + "cd" * 8 + "-01"})
    wait_for(lambda: bool(collector.named("GET /sign-in")), "the page's span")
    assert not collector.of("ef" * 16)
    # The page of the item does not show what only traces need.
    page = httpx.get(f"{address}/work/asking/private-device-200", headers={"Authorization": f"Bearer {key}"}).text
    assert "ab" * 16 not in page

    # Nothing private, anywhere.
    assert all(header["x-tenant"] == "ours" for header in collector.headers)
    for span in collector.spans:
        for secret in ("private-device", WORDS, "secret-query", KEY, key, "busy", "nobody can answer"):
            assert secret not in span.text, span
    assert not {s.name for s in collector.spans} & {"toban_heartbeat", "toban_monitor", "toban_page_stamp"}

    # Without a collector everything goes on, and each process tells it once.
    collector.stop()
    for number in range(300, 306):
        add(system, number, "hello")
    wait_for(lambda: all(state(system, n) == "completed" for n in range(300, 306)), "work without a collector", 30)
    wait_for(lambda: "traces.away" in system.log("toy") and "traces.away" in system.log("beat"), "the line", 30)
    for name in ("toy", "default", "beat"):
        lines = [json.loads(line) for line in system.log(name).splitlines() if line.startswith("{")]
        told = [line for line in lines if "trace" in line["logger"] or "opentelemetry" in line["logger"]]
        assert [line["event"] for line in told] in (["traces.away"], [])
        assert "Traceback" not in system.log(name)
