"""What the pages of work, items and workers say."""

from typing import Any

import pytest

from app.errors import Permanent
from app.health import in_use
from tests.support.ledger import NOON, QUEUE, Ledger

QUEUES = {"transcription": QUEUE, "analysis": "gpt"}


@pytest.fixture(autouse=True)
def _nothing_left(clean_url: str, ledger: Ledger) -> None:
    ledger.sql("truncate queue_holds, llm_calls, llm_days, dashboard")


def add_job(ledger: Ledger, every: float = 10) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "transcription", "title": "T", "source": "transcription", "every": every}])


def item(ledger: Ledger, key: str, queue: str = QUEUE) -> dict[str, Any]:
    return dict(ledger.call("page_item", source="transcription", key=key, queue=queue, zone="Asia/Tokyo"))


def codes(ledger: Ledger, key: str) -> list[str]:
    return [reason["code"] for reason in item(ledger, key)["why"]]


def outcomes(ledger: Ledger, key: str) -> list[str]:
    return [attempt["outcome"] for attempt in item(ledger, key)["attempts"]]


# --- attempts -------------------------------------------------------------------------------------------------------


def test_every_attempt_is_kept_with_how_it_ended(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("retry", ledger.running(), error="the bucket was away")
    ledger.running()
    ledger.expire(key)
    ledger.heartbeat("w2")
    ledger.sql("update work_items set available_at = now()")
    ledger.kill_worker()
    ledger.end("fail", ledger.running(worker="w2"), error="no audio", kind="permanent")
    newest, lost, oldest = item(ledger, key)["attempts"]
    assert (newest["outcome"], newest["error"], newest["kind"]) == ("failed", "no audio", "permanent")
    assert (newest["worker"], newest["try"], newest["attempt"]) == ("w2", 3, 3)
    assert lost["outcome"] == "lost"
    assert "gave no more news" in lost["error"]
    assert (oldest["outcome"], oldest["error"]) == ("retry", "the bucket was away")
    assert newest["seconds"] >= 0


def test_attempts_that_were_nobodys_fault_say_so(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("retry", ledger.running(), error="the bucket was away")
    ledger.running()
    ledger.call("release", node="n1")
    run = ledger.running()
    ledger.sql("update audio_files set file_path = 'other.wav'")
    ledger.finish(run)
    ledger.finish(ledger.running())
    assert outcomes(ledger, key) == ["completed", "outdated", "released", "retry"]
    assert [attempt["error"] for attempt in item(ledger, key)["attempts"]][:3] == [None] * 3


def test_an_item_that_is_put_off_for_days_keeps_its_latest_attempts(ledger: Ledger) -> None:
    key = ledger.file()
    for _ in range(53):
        ledger.end("retry", ledger.running(), counted=False)
    assert ledger.one("select count(*) from work_attempts") == 50
    assert item(ledger, key)["attempts"][0]["attempt"] == 53


# --- why an item still waits ----------------------------------------------------------------------------------------


def test_no_worker_listens(ledger: Ledger) -> None:
    key = ledger.file()
    assert item(ledger, key)["why"] == [{"code": "no_worker", "queue": QUEUE}]
    ledger.heartbeat()
    assert item(ledger, key)["why"] == [{"code": "turn", "ahead": 0}]


def test_paused_comes_before_everything_else(ledger: Ledger) -> None:
    key = ledger.file()
    add_job(ledger)
    ledger.call("edit_job", job="transcription", enabled=False)
    assert codes(ledger, key) == ["paused", "no_worker"]


def test_due_later_says_when_and_which_try_it_will_be(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("retry", ledger.running(), at="2099-01-01T00:00:00Z")
    (why,) = item(ledger, key)["why"]
    assert why == {"code": "later", "at": "2099-01-01T00:00:00+00:00", "try": 2, "max_attempts": 5}


def test_a_held_queue_says_why_and_until_when(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    ledger.sql(
        "insert into queue_holds (queue, cause, reason, incident, until)"
        " values (%s, 'budget', 'the budget is used up', true, now() + interval '10 min')",
        QUEUE,
    )
    (why,) = item(ledger, key)["why"]
    assert (why["code"], why["cause"], why["reason"]) == ("held", "budget", "the budget is used up")
    assert why["until"] is not None


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"partition": "d2"}, ("partition", "d2")),
        ({"date": "2025-07-17"}, ("date", "2025-07-17")),
        ({"since": "2025-07-18T04:00:00Z"}, ("since", "2025-07-18T04:00:00Z")),
        ({"until": NOON}, ("until", NOON)),
    ],
)
def test_filters_that_leave_it_out(ledger: Ledger, filters: dict[str, str], told: tuple[str, str]) -> None:
    key = ledger.file()
    ledger.heartbeat()
    add_job(ledger)
    ledger.call("edit_job", job="transcription", filters=filters)
    (why,) = item(ledger, key)["why"]
    assert (why["code"], why["filter"], why["value"]) == ("excluded", *told)


def test_filters_that_let_it_through(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    add_job(ledger)
    ledger.call("edit_job", job="transcription", filters={"partition": "d1", "date": "2025-07-18"})
    assert codes(ledger, key) == ["turn"]


def test_the_batch_limit_is_reached(ledger: Ledger) -> None:
    first, second = ledger.file(), ledger.file(at="2025-07-18T03:30:00Z")
    add_job(ledger, every=86400)
    ledger.call("edit_job", job="transcription", batch_limit=1)
    ledger.running()
    assert ledger.state(first) == "processing"
    (why,) = item(ledger, second)["why"]
    assert (why["code"], why["limit"]) == ("batch_limit", 1)
    assert why["next"] > item(ledger, second)["now"]


def test_the_queue_is_full(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.heartbeat()
    ledger.claim(2)
    (why,) = item(ledger, "d1/2025-07-18T00:03:00Z")["why"]
    assert why == {"code": "full", "queue": QUEUE, "queued": 2, "slots": 1}


def test_its_turn_comes_after_others(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.heartbeat()
    assert item(ledger, "d1/2025-07-18T00:03:00Z")["why"] == [{"code": "turn", "ahead": 2}]


def test_what_does_not_wait_needs_no_reason(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.running()
    assert item(ledger, key)["why"] == []


def test_an_item_that_is_not_there(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="there is no item nothing of transcription"):
        item(ledger, "nothing")


# --- the pages ------------------------------------------------------------------------------------------------------


def test_work_counts_states_ages_and_the_last_hour(ledger: Ledger) -> None:
    ledger.files("d1", 4)
    ledger.finish(ledger.running())
    ledger.end("fail", ledger.running())
    ledger.running()
    work = ledger.call("page_work", queues=QUEUES)
    by_source = {source["source"]: source for source in in_use(work["sources"], ["states"])}
    assert by_source.keys() == {"analysis", "transcription"}, "shadows without rows are not shown"
    shown = by_source["transcription"]
    assert {state: told["count"] for state, told in shown["states"].items()} == {
        "completed": 1,
        "failed": 1,
        "pending": 1,
        "processing": 1,
    }
    assert all(told["oldest"] <= work["now"] for told in shown["states"].values())
    assert (shown["due"], shown["slots"], shown["queued"], shown["enabled"]) == (1, 1, 0, True)
    hour = shown["hour"]
    assert (hour["completed"], hour["failed"], hour["retried"]) == (1, 1, 0)
    assert hour["minutes"] == [0] * 11 + [1]
    assert len(hour["wait"]) == len(hour["run"]) == 2
    assert by_source["analysis"]["hour"]["wait"] is None
    assert by_source["analysis"]["states"] == {}


def test_items_are_listed_by_state_and_key(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.file("d2")
    listed = ledger.call("page_items", source="transcription", state="pending", limit=2)
    assert [one["key"] for one in listed["items"]] == ["d1/2025-07-18T00:01:00Z", "d1/2025-07-18T00:02:00Z"]
    assert listed["more"]
    listed = ledger.call("page_items", source="transcription", state="pending", limit=2, skip=2)
    assert len(listed["items"]) == 2
    assert not listed["more"]
    assert len(ledger.call("page_items", source="transcription", q="D2/")["items"]) == 1
    assert ledger.call("page_items", source="transcription", q="d%2")["items"] == []
    assert ledger.call("page_items", source="transcription", state="failed")["items"] == []
    with pytest.raises(Permanent, match="there is no source nothing"):
        ledger.call("page_items", source="nothing")


def test_workers_with_what_they_run(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    assert ledger.call("page_workers")["workers"][0]["busy"] == 1  # before its heartbeat says so
    ledger.heartbeat(items=[{"id": run.id, "attempt": 1, "progress": {"done": 3, "total": 9}}], rss_bytes=5)
    assert ledger.call("memory_limit", worker="w1", bytes=10) == {"known": True}
    assert ledger.call("memory_limit", worker="w9", bytes=10) == {"known": False}
    ledger.heartbeat("w2", node="n2")
    ledger.kill_worker("w2")
    ledger.call("worker_trouble", queues=[QUEUE], node="n3", reason="the model does not fit")
    page = ledger.call("page_workers")
    alive, dead = page["workers"]
    assert (alive["id"], alive["alive"], alive["rss_bytes"], alive["memory_limit"]) == ("w1", True, 5, 10)
    assert [(one["key"], one["progress"]) for one in alive["items"]] == [(key, {"done": 3, "total": 9})]
    assert (dead["id"], dead["alive"], dead["items"], dead["memory_limit"]) == ("w2", False, [], None)
    assert (alive["busy"], dead["busy"]) == (1, 0)
    assert [trouble["queue"] for trouble in page["troubles"]] == [QUEUE]
    ledger.heartbeat("w1")
    assert ledger.call("page_workers")["workers"][0]["memory_limit"] == 10
