"""POST /fetch-and-transcribe and what follows: the old answer, the new one, and what nobody should send."""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from app.database.postgres import PostgresDatabase
from app.services import build_services
from app.web.prefer import patience
from tests.conftest import TEMPLATE
from tests.support.ledger import NOON, Ledger
from tests.support.servers import Postgres, Redis, free_port, wait_for
from tests.support.system import System
from tests.support.web import PASSWORD, Browser, Site, settings_for

OpenSite = Callable[..., Site]
ASKED = {"device_id": "d1", "date": "2025-07-18", "model": "base"}
OLD = ["status", "device_id", "date", "summary", "processed_files", "processed_time_blocks", "error_files",
       "execution_time_seconds", "message"]  # fmt: skip
NEW = ["batch_id", "status_url", "events_url", "eta_seconds", "waits_for"]


EMPTY = """
truncate audio_files, vibe_whisper, transcripts, work_items, work_attempts, jobs, runs, run_results, workers,
  batch_requests, web_keys restart identity cascade
"""


@pytest.fixture(scope="module")
def shared(migrated: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all; there is no broker, so it sends nothing off by itself."""
    settings = settings_for(migrated.create("transcribe", TEMPLATE), tmp_path_factory.mktemp("audio"))
    site = Site(build_services(settings, patience=5)).start()
    site.app.state.toban.wakes.ask = lambda _: None
    site.accounts.add("olga", PASSWORD, "operator")
    site.accounts.add("viktor", PASSWORD, "viewer")
    yield site
    site.stop()


@pytest.fixture
def ledger(shared: Site, migrated: Postgres) -> Iterator[Ledger]:
    helper = Ledger(shared.services.database, migrated.url("transcribe"))
    with psycopg.connect(migrated.url("transcribe"), autocommit=True) as connection:
        connection.execute(EMPTY)
    yield helper
    helper.close()


@pytest.fixture
def site(shared: Site, ledger: Ledger) -> Site:
    return shared


@pytest.fixture
def client(site: Site) -> Browser:
    key = site.accounts.add_key("ci", ["transcribe"])
    return site.browser({"X-API-Key": key})


def post(client: httpx.Client, wait: float | None = 0, **changes: Any) -> httpx.Response:
    query = "" if wait is None else f"?wait={wait}"
    return client.post(f"/fetch-and-transcribe{query}", json={**ASKED, **changes})


def done_soon(ledger: Ledger, files: int) -> threading.Thread:
    """A worker that does some files, one after the other."""

    def work() -> None:
        for _ in range(files):
            ledger.finish(ledger.running())

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- the old answer ---------------------------------------------------------------------------------------------------


def test_a_batch_that_is_done_in_time_is_the_old_answer(site: Site, client: Browser, ledger: Ledger) -> None:
    ledger.file("d1", "2025-07-18T01:00:00Z", "completed")
    for hour, minute in ((3, 0), (3, 10), (4, 0), (5, 0)):
        ledger.file("d1", f"2025-07-18T{hour:02}:{minute:02}:00Z", path=f"files/d1/{hour}-{minute}/audio.wav")
    worker = threading.Timer(0.3, lambda: done_soon(ledger, 4).join())
    worker.start()
    answer = post(client, wait=None)
    worker.join()
    assert answer.status_code == 200
    told = answer.json()
    assert list(told) == OLD
    seconds = told.pop("execution_time_seconds")
    assert isinstance(seconds, float)
    assert told == {
        "status": "success",
        "device_id": "d1",
        "date": "2025-07-18",
        "summary": {"total_files": 5, "already_completed": 1, "pending_processed": 4, "errors": 0},
        "processed_files": [f"files/d1/{at}/audio.wav" for at in ("3-0", "3-10", "4-0", "5-0")],
        "processed_time_blocks": ["12-00", "13-00", "14-00"],
        "error_files": None,
        "message": "pendingステータスの4件中4件を正常に処理しました",
    }
    assert "pendingステータス" in answer.text, "no escapes"


@pytest.mark.parametrize("device", ["d1", "nobody", "   ", "台所/recorder 1"])
def test_nothing_to_do_is_answered_at_once(client: Browser, ledger: Ledger, device: str) -> None:
    ledger.file("d1", NOON, "completed")
    answer = post(client, wait=None, device_id=device)
    count = int(device == "d1")
    assert (answer.status_code, list(answer.json())) == (200, OLD)
    assert answer.json() == {
        "status": "success", "device_id": device, "date": "2025-07-18",
        "summary": {"total_files": count, "already_completed": count, "pending_processed": 0, "errors": 0},
        "processed_files": [], "processed_time_blocks": [], "error_files": None, "execution_time_seconds": 0.0,
        "message": "pendingステータスの0件中0件を正常に処理しました",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "status"),
    [(["fail"], "error"), (["fail", "finish"], "partial"), (["skip", "finish"], "success"), (["skip"], "success")],
)
def test_what_failed_is_told(client: Browser, ledger: Ledger, ends: list[str], status: str) -> None:
    for hour, _ in enumerate(ends):
        ledger.file("d1", f"2025-07-18T0{hour}:00:00Z", path=f"{hour}.wav")
    batch = post(client).json()
    for how in ends:
        attempt = ledger.running()
        if how == "finish":
            ledger.finish(attempt)
        else:
            ledger.end(how, attempt, error=f"{how}: reason", kind="permanent")
    told = client.get(batch["status_url"]).json()
    failed = ends.count("fail")
    assert told["status"] == status
    assert told["summary"]["errors"] == failed
    assert told["summary"]["pending_processed"] == ends.count("finish")
    assert told["error_files"] == (["0.wav"] if failed else None)
    assert [file["error"] for file in told["files"]] == [None if how == "finish" else f"{how}: reason" for how in ends]


# --- the new one ------------------------------------------------------------------------------------------------------


def test_a_batch_that_takes_longer_is_followed(site: Site, client: Browser, ledger: Ledger) -> None:
    ledger.file("d1", NOON, path="noon.wav")
    ledger.file("d1", "2025-07-18T04:00:00Z", path="later.wav")
    ledger.heartbeat(slots=2)
    answer = post(client, wait=1)
    told = answer.json()
    assert (answer.status_code, list(told)) == (202, OLD + NEW)
    assert answer.headers["location"] == told["status_url"] == f"/batches/{told['batch_id']}"
    assert told["events_url"] == told["status_url"] + "/events"
    assert int(answer.headers["retry-after"]) > 0
    assert (told["status"], told["eta_seconds"], told["waits_for"]) == ("processing", None, [])
    assert told["message"] == "pendingステータスの2件中0件を処理しました。残りの2件は処理中です"
    running = ledger.running(slots=2)
    ledger.heartbeat(slots=2, items=[{"id": running.id, "attempt": 1, "progress": {"done": 1, "total": 4}}])
    files = client.get(told["status_url"]).json()["files"]
    assert files[0] == {"file": "noon.wav", "recorded_at": "2025-07-18T03:00:00+00:00", "time_block": "12-00",
                        "state": "processing", "progress": 0.25, "error": None}  # fmt: skip
    assert (files[1]["state"], files[1]["progress"]) == ("pending", None)


def test_it_says_why_it_waits(client: Browser, ledger: Ledger) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "transcription", "title": "T", "source": "transcription", "every": 10}])
    ledger.file()
    assert post(client).json()["waits_for"] == [{"code": "no_worker", "detail": "no worker listens to whisper"}]
    ledger.heartbeat()
    ledger.call("pause", job="transcription", paused=True)
    answer = client.post("/fetch-and-transcribe?wait=0", json=ASKED, headers={"Accept-Language": "ja"})
    assert answer.json()["waits_for"] == [{"code": "paused", "detail": "一時停止中"}]


@pytest.mark.parametrize(
    ("prefer", "wait", "held"),
    [
        ("", None, (55, None)),
        ("", 0, (0, None)),
        ("wait=10", 3, (3, None)),
        ("wait=10", None, (10, "wait=10")),
        ('respond-async, Wait = "7"; x=1', None, (7, "wait=7")),
        ("wait=10, wait=20", None, (10, "wait=10")),
        ("wait=120", None, (120, "wait=120")),
        ("wait=6000", None, (600, "wait=600")),
        ("", 600, (600, None)),
        ("respond-async", None, (0, "respond-async")),
        ("wait=soon, handling=lenient", None, (55, None)),
        ("wait=-1", None, (55, None)),
        ("wait=" + "9" * 5000, None, (55, None)),
        ('=,;,"', None, (55, None)),
    ],
)
def test_how_long_is_waited(prefer: str, wait: float | None, held: tuple[float, str | None]) -> None:
    assert patience(prefer, wait, 55) == held


def test_what_of_prefer_was_followed_is_said(client: Browser, ledger: Ledger) -> None:
    ledger.file()
    answer = client.post("/fetch-and-transcribe", json=ASKED, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")
    assert "preference-applied" not in post(client).headers


def test_addresses_behind_a_proxy(open_site: OpenSite, database_url: str) -> None:
    for settings, base in (
        ({"root_path": "/vibe-transcriber"}, "/vibe-transcriber"),
        ({"web_base_url": "https://toban.example.com/t/"}, "https://toban.example.com/t"),
    ):
        site = open_site(**settings)
        site.app.state.toban.wakes.ask = lambda _: None
        client = site.browser({"X-API-Key": site.accounts.add_key(base[-9:], ["transcribe"])})
        ledger = Ledger(site.services.database, database_url)
        ledger.sql("truncate audio_files, work_items cascade")
        ledger.file()
        told = post(client).json()
        assert told["status_url"] == f"{base}/batches/{told['batch_id']}"
        assert client.get(f"/batches/{told['batch_id']}").status_code == 200
        ledger.close()


def test_a_model_that_no_worker_holds(client: Browser, ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    ledger.call("memory_limit", worker="w1", bytes=1, models=["tiny", "tiny.en"], fits=["tiny", "base"])
    answer = post(client)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    problem = answer.json()
    assert problem["detail"] == (
        "no worker holds the model base; they hold: tiny, tiny.en; of the sizes of models these would fit there: "
        "tiny, base"
    )
    assert (problem["models"], problem["fits"]) == (["tiny", "tiny.en"], ["tiny", "base"])
    assert post(client, model="tiny").status_code == 202
    assert post(client, model=None).status_code == 202


def test_an_idempotency_key(site: Site, client: Browser, ledger: Ledger) -> None:
    ledger.file()
    key = {"Idempotency-Key": '"8e03978e"'}
    told = [client.post("/fetch-and-transcribe?wait=0", json=ASKED, headers=key).json() for _ in range(2)]
    assert told[0]["batch_id"] == told[1]["batch_id"]
    bare = client.post("/fetch-and-transcribe?wait=0", json=ASKED, headers={"Idempotency-Key": "8e03978e"})
    assert bare.json()["batch_id"] == told[0]["batch_id"]
    assert post(client).json()["batch_id"] != told[0]["batch_id"]
    answer = client.post("/fetch-and-transcribe", json={**ASKED, "model": None}, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    other = site.browser({"X-API-Key": site.accounts.add_key("other", ["transcribe"])})
    assert other.post("/fetch-and-transcribe?wait=0", json=ASKED, headers=key).json() != told[0]
    long = {"Idempotency-Key": "x" * 256}
    assert client.post("/fetch-and-transcribe", json=ASKED, headers=long).status_code == 422


def test_cancelling(client: Browser, ledger: Ledger) -> None:
    key = ledger.file()
    told = post(client).json()
    assert ledger.item(key)["priority"] == 5
    for _ in range(2):
        answer = client.delete(told["status_url"])
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert answer.json()["files"][0]["state"] == "cancelled"
    assert ledger.item(key)["priority"] == 0
    assert answer.json()["message"] == "pendingステータスの1件中0件を処理しました。残りは取り消されました"


def test_a_wait_ends_with_the_cancelling(client: Browser, ledger: Ledger, site: Site) -> None:
    ledger.file()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, client, None)
        wait_for(lambda: bool(ledger.sql("select from batch_requests")), "the batch")
        batch = str(ledger.one("select id from batch_requests"))
        site.browser(dict(client.headers)).delete(f"/batches/{batch}")
        answer = waiting.result()
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_in_shadow_mode_nobody_waits(client: Browser, ledger: Ledger) -> None:
    ledger.call("set_mode", source="transcription", mode="shadow", who="olga")
    try:
        ledger.file()
        answer = post(client, 600)
        assert (answer.status_code, [one["code"] for one in answer.json()["waits_for"]]) == (202, ["shadow"])
    finally:
        ledger.call("set_mode", source="transcription", mode="live", who="olga")


def test_a_batch_that_is_erased_while_it_is_followed(client: Browser, ledger: Ledger, site: Site) -> None:
    ledger.file(path="files/d1/noon.wav")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, client, None)
        wait_for(lambda: bool(ledger.sql("select from batch_requests")), "the batch")
        url = f"/batches/{ledger.one('select id from batch_requests')}"
        stream = Stream(site.browser(dict(client.headers)), f"{url}/events")
        stream.until("batch")
        ledger.call("erase", device="d1")
        answer = waiting.result()
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    _, _, last = stream.until("done")[-1]
    assert (last["status"], last["processed_files"], last["waits_for"]) == ("cancelled", [], [])
    assert stream.heard.get(timeout=30) is None


def test_batches_that_there_are_not(client: Browser) -> None:
    nothing = "/batches/00000000-0000-4000-8000-000000000000"
    for answer in (client.get(nothing), client.delete(nothing), client.get(f"{nothing}/events")):
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert "there is no batch" in answer.json()["detail"]
    assert client.get("/batches/1").status_code == 422
    answer = client.put(nothing)
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")


# --- who, and what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "status"), [("transcribe", 202), ("operate", 202), ("read", 403), ("badge", 403)])
def test_a_keys_scope(site: Site, ledger: Ledger, scope: str, status: int) -> None:
    ledger.file()
    client = site.browser({"X-API-Key": site.accounts.add_key("x", [scope])})
    assert post(client).status_code == status


def test_who_may_look_and_who_may_cancel(site: Site, client: Browser, ledger: Ledger) -> None:
    ledger.file()
    url = post(client).json()["status_url"]
    reader = site.browser({"X-API-Key": site.accounts.add_key("reader", ["read"])})
    badge = site.browser({"X-API-Key": site.accounts.add_key("badge", ["badge"])})
    viewer, operator = site.signed_in("viktor"), site.signed_in()
    assert [one.get(url).status_code for one in (reader, badge, viewer, operator)] == [200, 403, 200, 200]
    assert [one.delete(url).status_code for one in (reader, badge, viewer, operator)] == [403] * 4
    token = {"X-CSRF-Token": operator.csrf("/incidents")}
    assert operator.delete(url, headers=token).json()["status"] == "cancelled"


def test_people_need_the_operators_role_and_a_forms_token(site: Site, ledger: Ledger) -> None:
    ledger.file()
    assert post(site.signed_in("viktor")).status_code == 403
    browser = site.signed_in()
    assert post(browser).status_code == 403
    token = {"X-CSRF-Token": browser.csrf("/incidents")}
    assert browser.post("/fetch-and-transcribe?wait=0", json=ASKED, headers=token).status_code == 202


RUBBISH: list[tuple[Any, int]] = [
    (b"", 422), (b"{", 422), (b"[]", 422), (b"null", 422), (b'"x"', 422), (b"\xff\xfe{}", 422), (b"{}", 422),
    (b"[" * 100_000, 400), (b'{"a":' * 50_000, 400), (b"x" * 2_000_000, 413),
    (b'{"device_id": "d1", "date": "2025-07-18", "device_id": ["x"]}', 422),
    ({**ASKED, "device_id": 1}, 422), ({**ASKED, "device_id": ""}, 422), ({**ASKED, "device_id": "x" * 201}, 422),
    ({**ASKED, "device_id": "a\0b"}, 422), ({**ASKED, "device_id": {"$ne": 1}}, 422),
    ({**ASKED, "device_id": None}, 422),
    (b'{"device_id": "\\ud800", "date": "2025-07-18"}', 422), (b'{"device_id": "d", "date": "\\ud800"}', 422),
    (b'{"device_id": "d", "date": "2025-07-18", "model": "\\udfff"}', 422),
    ({**ASKED, "date": "18.7.2025"}, 422), ({**ASKED, "date": "2025-02-30"}, 422),
    ({**ASKED, "date": "2025-7-18"}, 422), ({**ASKED, "date": "2025-07-18T00:00"}, 422),
    ({**ASKED, "date": "today"}, 422), ({**ASKED, "date": 1752796800}, 422),
    ({**ASKED, "date": "２０２５-07-18"}, 422), ({**ASKED, "date": "0000-01-01"}, 422), ({**ASKED, "date": None}, 422),
    ({**ASKED, "model": "x\0"}, 422), ({**ASKED, "model": 7}, 422), ({**ASKED, "model": "'; drop table jobs --"}, 422),
    ({**ASKED, "date": "0001-01-01"}, 200), ({**ASKED, "date": "9999-12-31"}, 200),
    ({**ASKED, "device_id": "x", "more": {"a": [1]}}, 200), ({**ASKED, "device_id": "d\u202e🎧"}, 200),
]  # fmt: skip


def test_rubbish_gets_a_clear_answer(client: Browser) -> None:
    for sent, status in RUBBISH:
        content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        with suppress(httpx.WriteError):  # it may hang up before it has read what is too large
            answer = client.post("/fetch-and-transcribe", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == status, (content[:100], answer.text)
            if status != 200:
                assert answer.headers["content-type"] == "application/problem+json"
                assert "Traceback" not in answer.text


def test_a_date_that_is_none_is_told_how_to_write_it(client: Browser) -> None:
    for day in ("18.7.2025", "2025-02-30", "today", "２０２５-07-18", "0000-01-01", 20250718, None):
        assert "date: " in (detail := post(client, date=day).json()["detail"])
        assert "YYYY-MM-DD" in detail


def test_waits_that_are_none(client: Browser) -> None:
    for wait in ("-1", "x", "nan", "inf", "", "601"):
        assert client.post(f"/fetch-and-transcribe?wait={wait}", json=ASKED).status_code == 422, wait


# --- events -----------------------------------------------------------------------------------------------------------


class Stream:
    """Events as they come, `(id, event, data)`; None: the stream ended."""

    def __init__(self, client: Browser, url: str, last: str | None = None) -> None:
        self.heard: queue.Queue[tuple[str, str, Any] | None] = queue.Queue()
        self._client, self._url = client, url
        self._headers = {"Last-Event-ID": last} if last else {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with self._client.stream("GET", self._url, headers=self._headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "event" in fields:
                    self.heard.put((fields["id"], fields["event"], json.loads(fields["data"])))
                    fields = {}
        self.heard.put(None)

    def next(self) -> tuple[str, str, Any]:
        event = self.heard.get(timeout=30)
        assert event
        return event

    def until(self, event: str) -> list[tuple[str, str, Any]]:
        heard = [self.next()]
        while heard[-1][1] != event:
            heard.append(self.next())
        return heard


def test_events_tell_everything_to_the_end(client: Browser, ledger: Ledger) -> None:
    for hour in (3, 4):
        ledger.file("d1", f"2025-07-18T0{hour}:00:00Z", path=f"{hour}.wav")
    url = post(client).json()["events_url"]
    stream = Stream(client, url)
    first = stream.until("batch")
    assert [(event, data.get("file")) for _, event, data in first] == [
        ("file", "3.wav"),
        ("file", "4.wav"),
        ("batch", None),
    ]
    assert list(first[2][2]) == OLD + NEW
    attempt = ledger.running(slots=2)
    heard = stream.until("file")
    assert heard[-1][2]["state"] in {"queued", "processing"}
    ledger.finish(attempt)
    while (event := stream.until("file")[-1])[2]["state"] != "completed":
        pass
    # A second listener that has heard this much, some time ago, is told of the rest alone.
    ledger.sql("update batch_request_items set ended_at = ended_at - interval '1 min' where state <> 'open'")
    late = Stream(client, url, event[0])
    assert {data["file"] for _, name, data in late.until("batch") if name == "file"} == {"4.wav"}
    ledger.finish(ledger.running(slots=2))
    for listener in (stream, late):
        last = listener.until("done")
        assert (last[-1][0], last[-1][2]["status"], last[-1][2]["summary"]["pending_processed"]) == (
            "done",
            "success",
            2,
        )
        assert listener.heard.get(timeout=30) is None
    assert client.get(url, headers={"Last-Event-ID": "done"}).status_code == 204
    for odd in ("x", "2025", "9" * 500, "0001-01-01T00:00:00+00:00"):
        assert Stream(client, url, odd).until("done")[-1][1] == "done"


# --- many, and broken ones --------------------------------------------------------------------------------------------


def test_two_hundred_wait_without_a_thread_each(site: Site, client: Browser, ledger: Ledger) -> None:
    ledger.files("d1", 10)
    ledger.sql("update audio_files set recorded_at = recorded_at + interval '3 h'")
    before = threading.active_count()
    with httpx.Client(limits=httpx.Limits(max_connections=300), timeout=60, headers=client.headers,
                      base_url=site.address) as many, ThreadPoolExecutor(200) as pool:  # fmt: skip
        waiting = [pool.submit(post, many, None) for _ in range(200)]
        wait_for(lambda: ledger.one("select count(*) from batch_requests") == 200, "all of them", 60)
        wait_for(lambda: site.app.state.toban.batches._waiting == 200, "their waiting")
        assert threading.active_count() - 200 - before <= 60, "those of the pool that the pages have anyway"
        assert client.get("/badge.json").status_code == 403, "others are answered meanwhile"
        ledger.heartbeat(slots=10)
        for _ in range(10):
            ledger.finish(ledger.running(slots=10))
        answers = [one.result() for one in waiting]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["summary"]["pending_processed"] for answer in answers} == {10}


def test_a_client_that_hangs_up_leaves_its_batch(site: Site, client: Browser, ledger: Ledger) -> None:
    ledger.file()
    with pytest.raises(httpx.ReadTimeout):
        client.post("/fetch-and-transcribe", json=ASKED, timeout=1)
    wait_for(lambda: site.app.state.toban.batches._waiting == 0, "the end of the wait")
    told = client.get(f"/batches/{ledger.one('select id from batch_requests')}").json()
    assert told["status"] == "processing"


def test_a_process_that_stops_answers_those_who_wait(open_site: OpenSite, database_url: str) -> None:
    site = open_site()
    client = site.browser({"X-API-Key": site.accounts.add_key("ci", ["transcribe"])})
    ledger = Ledger(site.services.database, database_url)
    ledger.file()
    ledger.close()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, client, None)
        wait_for(lambda: site.app.state.toban.batches._waiting == 1, "the wait")
        site.server.should_exit = True
        assert waiting.result().status_code == 202


def test_what_is_asked_for_is_sent_off_at_once(database_url: str, redis_server: Redis, tmp_path: Path) -> None:
    database = PostgresDatabase(database_url)
    ledger = Ledger(database, database_url)
    with System(database_url, redis_server, tmp_path) as system, redis.Redis(port=redis_server.port) as broker:
        port = free_port()
        system.web("web", port)
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": system.key("ci", "transcribe")}, timeout=30
        )
        ledger.heartbeat(queues=["whisper"])
        key = ledger.file()
        with client:
            assert post(client, model=None).status_code == 202
            wait_for(lambda: broker.llen("whisper") == 1, "the message")
            assert ledger.state(key) == "queued"
            # Without a broker it is given back, for the next tick.
            redis_server.stop()
            later = ledger.file("d2")
            assert post(client, device_id="d2", model=None).json()["summary"]["total_files"] == 1
            wait_for(lambda: "wake.failed" in system.log("web"), "the failure")
            assert ledger.state(later) == "pending"
    ledger.close()
    database.close()
