"""`toban web` as an old client meets it: its port, its path, its one call, and a worker that dies in the middle."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import NewSystem
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for
from tests.support.servers import Process, free_port, wait_for
from tests.support.system import System, kill_tree

BLOCK = {"device_id": "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93", "date": "2025-07-18", "time_block": "12-30"}


@pytest.fixture
def model() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as server:
        yield server


def web(system: System) -> None:
    folder = system.logs.path / "web"
    folder.mkdir()
    system.processes["web"] = Process([sys.executable, "-m", "app.cli", "web", "--no-link"], folder, env=system.env)


def gpt(system: System, name: str) -> None:
    system.run(name, "-A", "workers.gpt", "worker", "-c", "4", "-n", f"{name}-{id(system)}@%h", "--without-mingle")


def alive(address: str) -> bool:
    try:
        return httpx.get(f"{address}/").is_success
    except httpx.HTTPError:
        return False


def test_an_old_client_finds_everything_where_it_was(new_system: NewSystem, model: OpenAIServer) -> None:
    first, second = free_port(), free_port()
    system = new_system(
        OPENAI_BASE_URL=model.url,
        OPENAI_API_KEY=KEY,
        WEB_PORT=str(first),
        WEB_EXTRA_PORTS=str(second),
        ROOT_PATH="/vibe-transcriber/",
        LEGACY_ANONYMOUS_CIDRS="127.0.0.1",
    )
    web(system)
    gpt(system, "one")
    addresses = [f"http://127.0.0.1:{first}", f"http://127.0.0.1:{second}/vibe-transcriber"]
    for address in addresses:
        wait_for(lambda address=address: alive(address), address)  # type: ignore[misc]

    def ask(prompt: str, address: str, wait: int = 60) -> dict[str, Any]:
        answer = httpx.post(f"{address}/analyze-timeblock?wait={wait}", json={**BLOCK, "prompt": prompt}, timeout=90)
        assert answer.status_code in {200, 202}, answer.text
        return dict(answer.json())

    wait_for(lambda: bool(system.sql("select 1 from workers")), "the worker", 60)
    for address in addresses:
        assert ask(f"Asked at {address}", address)["analysis_result"] == verdict_for(f"Asked at {address}")

    # The worker dies with the call; the caller waits on, and another worker answers.
    model.script.append("hang")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, "Is anybody there?", addresses[0])
        wait_for(lambda: len(model.calls) == 3, "the call")
        kill_tree(system.processes["one"].child.pid)
        gpt(system, "two")
        assert waiting.result()["analysis_result"] == verdict_for("Is anybody there?")

    # Redis dies: what is asked for waits, and is done when it is back.
    system.redis.stop()
    assert ask("Without a broker?", addresses[0], wait=1)["status"] == "processing"
    # Whoever claims it first finds out: the process that was asked, or the worker, which hears of every new row.
    wait_for(lambda: "wake.failed" in system.log("web") + system.log("two"), "the failure's line", 60)
    system.redis.start()
    assert ask("Without a broker?", addresses[0])["analysis_result"] == verdict_for("Without a broker?")

    log = system.log("web")
    assert "Traceback" not in log
    assert "anybody there" not in log
    assert "Without a broker" not in log + system.log("two")
