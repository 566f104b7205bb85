"""Shadow mode of the analysis: real calls to a server that counts them, a real ledger, the program's own dispatch."""

from collections import deque
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row

import tasks
from app.dispatch import dispatch
from app.ledger import Claimed
from app.runtime import Runtime
from app.services import Services, build_services
from app.settings import GROUPS, Settings
from app.sources import Source, registry
from app.work import attempt_item
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for

ROWS: LiteralString = (
    "insert into dashboard (device_id, date, time_block, prompt) select 'd', '2025-07-18', format('%%s-00', i),"
    " format('block %%s?', i) from generate_series(10, 9 + %s) i"
)
ALL: LiteralString = "select xmin::text, * from dashboard order by time_block"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as fake:
        yield fake


@pytest.fixture
def own(database_url: str, server: OpenAIServer) -> Iterator[Services]:
    assert tasks.__path__
    values: dict[str, dict[str, Any]] = {
        "database": {"database_url": database_url},
        "broker": {"url": "memory://"},
        "gpt": {"openai_api_key": KEY, "openai_base_url": server.url},
        "ledger": {"shadow": "analysis", "shadow_limit": 4},
    }
    services = build_services(
        Settings(**{name: group(_env_file=None, **values.get(name, {})) for name, group in GROUPS.items()})
    )
    services.introduce()
    yield services
    services.close()


def work(own: Services) -> list[str]:
    """What a worker does for what is due; returns how each ended."""
    runtime = Runtime(own, "n", ["gpt"], 8, lambda *_: None, lambda _: None, killable=False)
    runtime.beat()
    sent: list[tuple[Source, Claimed]] = []
    done = dispatch(own, registry["analysis"], lambda source, item: sent.append((source, item)))
    assert done.shadow
    assert str(done).startswith("shadow: ")
    assert {source.name for source, _ in sent} <= {"shadow_analysis"}
    return [attempt_item(runtime, source, item.id, item.task_id).state for source, item in sent]


def test_a_bounded_number_of_calls_is_paid_and_nothing_is_written(
    own: Services, server: OpenAIServer, database_url: str
) -> None:
    server.by_prompt["block 11?"] = deque(["refusal"])
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as app:
        app.execute(ROWS, [6])
        assert work(own) == [], "they are the old cron's"
        score = verdict_for("block 10?")["vibe_score"]
        app.execute("update dashboard set status = 'completed', vibe_score = %s, processed_at = now()", [score])
        before = app.execute(ALL).fetchall()
        assert sorted(work(own)) == ["completed"] * 3 + ["failed"]
        assert work(own) == []
        assert app.execute(ALL).fetchall() == before
        calls = app.execute("select source, sum(cost) as cost, count(*) as n from llm_calls group by 1").fetchall()
    assert len(server.calls) == calls[0]["n"] == 4
    assert [call["source"] for call in calls] == ["shadow_analysis"]
    report = own.database.call("toban_shadow_report", texts=True)
    [found] = report["sources"]
    assert (found["rows"], found["missing"], found["waiting"]) == (4, 1, 0)
    assert found["identical"] >= 1
    assert found["identical"] + found["near"] + found["different"] == 3
    assert found["cost"] == pytest.approx(float(calls[0]["cost"]))
    assert own.database.call("toban_spending", zone="UTC")["paid_calls"] >= 3
    [missing] = [row for row in report["differences"] if row["state"] == "failed"]
    assert missing["key"] == "d/2025-07-18/11-00"
    assert "refused the prompt" in missing["reason"]
