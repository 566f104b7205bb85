"""POST /analyze-timeblock over a real ledger, with a worker in threads and a model that behaves as it is told."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from app.errors import Transient
from app.ledger import Claimed
from app.runtime import Runtime
from app.services import Services, build_services
from app.sources import Source
from app.work import attempt_item
from beat_schedule import timetable
from tests.conftest import TEMPLATE
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for
from tests.support.servers import Postgres, wait_for
from tests.support.web import Site, settings_for

import tasks  # noqa: F401 isort:skip - registers the sources

DAY = {"device_id": "d1", "date": "2025-07-18"}
OLD = ["status", "message", "device_id", "date", "time_block", "analysis_result", "database_save", "processed_at",
       "model_used"]  # fmt: skip
EMPTY = """
delete from dashboard; delete from work_items; delete from work_attempts; delete from workers; delete from llm_calls;
delete from llm_days; delete from queue_holds; delete from analysis_requests; delete from job_status;
update jobs set enabled = true, filters = '{}', batch_limit = null, timeout = null
"""


class Hands:
    """A gpt worker without Celery: each message is an attempt in a thread."""

    def __init__(self, services: Services) -> None:
        self.broken = False  # the broker takes no messages
        self.pool = ThreadPoolExecutor(16)
        self.runtime = Runtime(services, "gpt@host", ["gpt"], 16, self.send, lambda _: None, killable=False)

    def listen(self) -> None:
        self.runtime.beat()

    def send(self, source: Source, item: Claimed) -> None:
        if self.broken:
            raise Transient("the broker takes no messages")
        self.pool.submit(attempt_item, self.runtime, source, item.id, item.task_id)


@pytest.fixture(scope="module")
def model() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as server:
        yield server


@pytest.fixture(scope="module")
def api(migrated: Postgres, model: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    gpt = {"openai_base_url": model.url, "openai_api_key": KEY, "llm_budget_daily": "1"}
    url = migrated.create("analysis_api", TEMPLATE)
    site = Site(build_services(settings_for(url, tmp_path_factory.mktemp("audio"), gpt=gpt), patience=10)).start()
    site.services.database.call("toban_sync_jobs", jobs=[job.row() for job in timetable().values()])
    yield site
    site.stop()


@pytest.fixture(scope="module")
def worker(api: Site) -> Iterator[Hands]:
    hands = Hands(api.services)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.base.send_item", hands.send)
        patch.setattr("app.wake.AFTER_FAILURE", 0.2)
        yield hands
    hands.pool.shutdown()


@pytest.fixture
def hands(api: Site, worker: Hands, model: OpenAIServer) -> Hands:
    """Nobody listens until `listen`; what was there before is gone."""
    sql(api, EMPTY)
    model.script.clear()
    model.by_prompt.clear()
    model.calls.clear()
    model.latency = 0.0
    worker.broken = False
    return worker


@pytest.fixture(scope="module")
def program(api: Site) -> httpx.Client:
    return api.browser({"X-API-Key": api.accounts.add_key("app", ["analyze"])})


def sql(api: Site, statement: str) -> list[Any]:
    with psycopg.connect(str(api.services.settings.database.database_url.get_secret_value()), autocommit=True) as own:  # type: ignore[union-attr]
        cursor = own.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def ask(program: httpx.Client, prompt: str = "How was it?", block: str = "12-30", **more: Any) -> httpx.Response:
    query, headers = more.pop("query", ""), more.pop("headers", None)
    body = {**DAY, "time_block": block, "prompt": prompt, **more}
    return program.post(f"/analyze-timeblock{query}", json=body, headers=headers)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_it_answers_as_the_old_service_did(hands: Hands, program: httpx.Client, api: Site) -> None:
    hands.listen()
    answer = ask(program, "Was it loud? 庭の話")
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == OLD
    assert body == {
        "status": "success", "message": "タイムブロックの分析が完了しました", **DAY, "time_block": "12-30",
        "analysis_result": verdict_for("Was it loud? 庭の話"), "database_save": True,
        "processed_at": body["processed_at"], "model_used": "gpt-4.1-mini-2025-04-14",
    }  # fmt: skip
    ((status, summary, prompt),) = sql(api, "select status, summary, prompt from dashboard")
    assert (status, summary, prompt) == ("completed", body["analysis_result"]["summary"], "Was it loud? 庭の話")
    state = program.get("/analyses/d1/2025-07-18/12-30").json()
    assert {name: state[name] for name in OLD} == body
    assert (state["state"], state["waits_for"]) == ("completed", [])
    # Asked again it is answered again, and paid for again.
    assert ask(program, "Was it loud? 庭の話").status_code == 200
    assert sql(api, "select count(*) from llm_calls where outcome = 'ok'") == [(2,)]


def test_what_takes_longer_goes_on(hands: Hands, program: httpx.Client, model: OpenAIServer) -> None:
    hands.listen()
    model.latency = 2.0
    answer = ask(program, query="?wait=1")
    assert answer.status_code == 202
    body = answer.json()
    assert list(body)[:9] == OLD
    assert (body["status"], body["state"], body["database_save"]) == ("processing", "processing", False)
    assert body["analysis_result"] is None
    assert answer.headers["location"] == body["status_url"] == "/analyses/d1/2025-07-18/12-30"
    assert "preference-applied" not in answer.headers
    again = ask(program, headers={"Prefer": "respond-async, wait=20"})  # the same prompt joins it
    assert (again.status_code, again.headers["preference-applied"]) == (200, "wait=20")
    assert len(model.calls) == 1
    assert program.get(body["status_url"]).json()["state"] == "completed"


def test_at_once_does_not_wait(hands: Hands, program: httpx.Client) -> None:
    for query, headers in (("?wait=0", None), ("", {"Prefer": "wait=0"}), ("?wait=0", {"Prefer": "wait=99"})):
        answer = ask(program, query=query, headers=headers)
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("refusal", (422, "refusal")),
        ("content_filter", (422, "content_filter")),
        ("content_filter_400", (422, "content_filter")),
        ("too_long", (422, "rejected")),
        ("400", (422, "rejected")),
        ("truncated", (502, "truncated")),
        ("quota", (503, "credit")),
        ("401", (503, "key")),
        ("404", (503, "model")),
    ],
)
def test_each_failure_says_what_it_is(
    hands: Hands, program: httpx.Client, model: OpenAIServer, fault: str, expected: tuple[int, str]
) -> None:
    hands.listen()
    model.script.append(fault)
    answer = ask(program, "Tell me about SECRETWORD")
    assert code(answer) == expected
    assert "SECRETWORD" not in answer.text
    assert KEY not in answer.text
    if expected[0] == 503:
        assert 0 < int(answer.headers["retry-after"]) <= 600
        assert "the block waits" in answer.json()["detail"]
        # The next one need not find that out by itself.
        calls = len(model.calls)
        assert code(ask(program, block="13-00")) == expected
        assert len(model.calls) == calls
    else:
        failed = program.get("/analyses/d1/2025-07-18/12-30").json()
        assert (failed["status"], failed["state"]) == ("failed", "failed")
        assert ask(program, "Tell me about SECRETWORD").status_code == 200, "asked again it goes again"


def test_a_bad_answer_twice_is_a_bad_gateway(
    hands: Hands, program: httpx.Client, model: OpenAIServer, api: Site
) -> None:
    hands.listen()
    model.script.extend(["nan"] * 4)
    pending = ask(program, query="?wait=1")
    assert (pending.status_code, [one["code"] for one in pending.json()["waits_for"]]) == (202, ["later"])
    assert "can't be used" in pending.json()["error"]
    sql(api, "update work_items set available_at = now()")
    assert code(ask(program)) == (502, "bad_answer")


def test_a_spent_budget(hands: Hands, program: httpx.Client, api: Site) -> None:
    hands.listen()
    sql(api, "insert into llm_days (day, cost) values ((now() at time zone 'Asia/Tokyo')::date, 5)")
    answer = ask(program)
    assert code(answer) == (503, "budget")
    assert "LLM_BUDGET_DAILY" in answer.json()["detail"]


def test_what_keeps_it_from_being_taken(hands: Hands, program: httpx.Client, api: Site) -> None:
    hands.listen()
    for change, expected in (
        ("enabled = false", "paused"),
        ("""filters = '{"partition": "d2"}'""", "excluded"),
        ("""filters = '{"date": "2025-07-19"}'""", "excluded"),
    ):
        sql(api, f"update jobs set {change} where job = 'analysis'")
        answer = ask(program)
        assert code(answer) == (503, expected)
        state = program.get("/analyses/d1/2025-07-18/12-30").json()
        assert (state["status"], state["waits_for"][0]["code"]) == ("processing", expected)
        sql(api, "update jobs set enabled = true, filters = '{}'")
    assert ask(program).status_code == 200, "the block was not lost"


def test_without_a_worker(hands: Hands, program: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    early = ask(program, query="?wait=1")
    assert (early.status_code, [one["code"] for one in early.json()["waits_for"]]) == (202, ["no_worker"])
    monkeypatch.setattr("app.web.api.analysis.GRACE", 1.0)
    answer = ask(program)
    assert code(answer) == (503, "no_worker")
    assert "no worker listens to the queue gpt" in answer.json()["detail"]

    # One that comes back within the grace is none.
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, program)
        hands.listen()
        assert waiting.result().status_code == 200


def test_in_shadow_mode_nothing_is_written(hands: Hands, program: httpx.Client, api: Site) -> None:
    api.services.database.call("toban_set_mode", source="analysis", mode="shadow", who="olga")
    try:
        assert code(ask(program)) == (503, "shadow")
        assert sql(api, "select 1 from dashboard") == []
    finally:
        api.services.database.call("toban_set_mode", source="analysis", mode="live", who="olga")


def test_shadow_mode_while_it_waits(hands: Hands, program: httpx.Client, api: Site) -> None:
    key = {"Idempotency-Key": "before"}
    hands.listen()
    done = ask(program, headers=key)
    sql(api, "update jobs set enabled = false where job = 'analysis'")
    ask(program, block="13-00", query="?wait=0")
    api.services.database.call("toban_set_mode", source="analysis", mode="shadow", who="olga")
    try:
        assert ask(program, headers=key).text == done.text
        state = program.get("/analyses/d1/2025-07-18/13-00").json()
        assert [one["code"] for one in state["waits_for"]] == ["shadow"]
        sql(api, "update work_items set state = 'pending' where state = 'completed'")
        answer = ask(program, headers=key)
        assert code(answer) == (503, "shadow")
        assert "the block waits" in answer.json()["detail"]
    finally:
        api.services.database.call("toban_set_mode", source="analysis", mode="live", who="olga")


def test_a_device_that_is_erased_while_it_waits(hands: Hands, program: httpx.Client, api: Site) -> None:
    key = {"Idempotency-Key": "erased"}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, program, headers=key)
        wait_for(lambda: bool(sql(api, "select 1 from work_items")), "the item")
        api.services.database.call("toban_erase", device="d1")
        assert code(waiting.result()) == (409, "withdrawn")
    hands.listen()
    assert ask(program, headers=key).status_code == 200


def test_a_row_that_is_withdrawn(hands: Hands, program: httpx.Client, api: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, program)
        wait_for(lambda: bool(sql(api, "select 1 from dashboard")), "the row")
        sql(api, "delete from dashboard")
        assert code(waiting.result()) == (409, "withdrawn")


def test_two_at_once_with_different_prompts(
    hands: Hands, program: httpx.Client, model: OpenAIServer, api: Site
) -> None:
    hands.listen()
    model.latency = 1.0
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, program, "first")
        wait_for(lambda: bool(sql(api, "select 1 from work_items where state = 'processing'")), "the first call")
        second = pool.submit(ask, program, "second")
        assert code(first.result()) == (409, "superseded")
        assert second.result().json()["analysis_result"] == verdict_for("second")
    assert sql(api, "select prompt, vibe_score from dashboard") == [("second", verdict_for("second")["vibe_score"])]


def test_an_idempotency_key(hands: Hands, program: httpx.Client, model: OpenAIServer, api: Site) -> None:
    hands.listen()
    model.latency = 0.5
    key = {"Idempotency-Key": "9f7d6e27"}
    with ThreadPoolExecutor(4) as pool:
        answers = [one.result() for one in [pool.submit(ask, program, headers=key) for _ in range(4)]]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.text for answer in answers}) == 1
    assert ask(program, headers=key).text == answers[0].text
    assert len(model.calls) == 1
    assert code(ask(program, "another", headers=key)) == (422, "idempotency_key_reused")
    assert code(ask(program, block="13-00", headers=key)) == (422, "idempotency_key_reused")
    other = api.browser({"X-API-Key": api.accounts.add_key("other", ["analyze"])})
    assert ask(other, "another", block="13-00", headers=key).status_code == 200, "keys are each caller's own"


def test_a_hundred_wait_at_once_and_the_pages_go_on(hands: Hands, api: Site, model: OpenAIServer) -> None:
    hands.listen()
    model.latency = 0.5
    headers = {"X-API-Key": api.accounts.add_key("many", ["analyze"])}
    blocks = [f"{hour:02d}-{minute}" for hour in range(24) for minute in ("00", "30")]
    asked = [(device, block) for device in ("a", "b", "c") for block in blocks][:100]

    def one(device: str, block: str) -> httpx.Response:
        return httpx.post(
            f"{api.address}/analyze-timeblock",
            json={"prompt": f"{device} {block}", "device_id": device, "date": "2025-07-18", "time_block": block},
            headers=headers,
            timeout=60,
        )

    with ThreadPoolExecutor(100) as pool:
        futures: list[Future[httpx.Response]] = [pool.submit(one, *which) for which in asked]
        wait_for(lambda: len(api.app.state.toban.analyses._waiters) > 50, "many that wait")
        assert httpx.get(f"{api.address}/health/live").is_success
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in answers] == [200] * 100
    assert [answer.json()["analysis_result"] for answer in answers] == [verdict_for(f"{d} {b}") for d, b in asked]
    assert len(model.calls) == 100
    assert not api.app.state.toban.analyses._waiters


def test_too_many_are_answered_at_once(hands: Hands, program: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.api.waiting.MOST", 0)
    assert ask(program).status_code == 202


def test_who_hangs_up_is_not_waited_for(hands: Hands, program: httpx.Client, api: Site) -> None:
    with pytest.raises(httpx.ReadTimeout):
        program.post("/analyze-timeblock", json={**DAY, "time_block": "12-30", "prompt": "?"}, timeout=0.5)
    wait_for(lambda: not api.app.state.toban.analyses._waiters, "nobody")
    assert sql(api, "select state from work_items") == [("pending",)]


def test_a_broker_that_is_away_loses_nothing(hands: Hands, program: httpx.Client) -> None:
    """Redis is gone: the item is given back, and goes when somebody can send it."""
    hands.listen()
    hands.broken = True
    answer = ask(program, query="?wait=1")
    assert (answer.status_code, answer.json()["state"], answer.json()["waits_for"]) == (202, "pending", [])
    hands.broken = False
    assert ask(program).status_code == 200


def test_a_process_that_stops_answers_who_waits(hands: Hands, api: Site) -> None:
    site = Site(build_services(api.services.settings, patience=2)).start()
    key = {"X-API-Key": api.accounts.add_key("leaving", ["analyze"])}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, site.browser(key))
        wait_for(lambda: site.app.state.toban.analyses._waiters, "one that waits")
        begun = time.monotonic()
        site.stop()
        assert waiting.result().status_code == 202
        assert time.monotonic() - begun < 30, "not only at the end of its wait"
