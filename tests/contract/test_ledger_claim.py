"""Claim: atomic, fair, and never more than can run."""

from collections import Counter

import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger, at_once


def test_claimed_item_says_what_to_run(ledger: Ledger) -> None:
    key = ledger.file("d1")
    ledger.heartbeat()
    answer = ledger.claim_answer()
    (item,) = answer["items"]
    assert item["key"] == key
    assert item["ref"] == {"device_id": "d1", "recorded_at": "2025-07-18T03:00:00Z"}
    assert item["partition"] == "d1"
    assert (item["claim_no"], item["params"]) == (1, {})
    assert (answer["found"], answer["slots"], answer["queued"]) == (1, 1, 0)
    assert ledger.state(key) == "queued"
    assert ledger.status_of(key) == "pending"


def test_two_dispatchers_never_take_the_same_item(ledger: Ledger) -> None:
    ledger.files("d1", 60)
    ledger.heartbeat(slots=100)
    taken: Counter[int] = Counter()
    for _ in range(15):
        for items in at_once(*[lambda: ledger.claim(4)] * 2):
            taken.update(item["id"] for item in items)
    assert set(taken.values()) == {1}
    assert ledger.states()["queued"] == len(taken)


def test_two_queues_never_take_the_same_item(ledger: Ledger) -> None:
    """The lock that lets one dispatcher through is the queue's; the items' own locks have to do here."""
    ledger.files("d1", 60)
    ledger.heartbeat(slots=100, queues=["whisper", "gpt"])
    taken: Counter[int] = Counter()
    for _ in range(10):
        for items in at_once(lambda: ledger.claim(4), lambda: ledger.claim(4, queue="gpt")):
            taken.update(item["id"] for item in items)
    assert set(taken.values()) == {1}


def test_ten_thousand_files_of_one_device_do_not_starve_another(ledger: Ledger) -> None:
    ledger.files("busy", 10_000)
    ledger.files("small", 3)
    ledger.heartbeat(slots=4)
    assert Counter(item["partition"] for item in ledger.claim()) == {"busy": 5, "small": 3}


def test_what_is_in_flight_counts_for_fairness(ledger: Ledger) -> None:
    ledger.files("a", 10)
    ledger.heartbeat(slots=2)
    assert len(ledger.claim()) == 4
    ledger.files("b", 10)
    ledger.heartbeat(slots=4)
    assert Counter(item["partition"] for item in ledger.claim()) == {"b": 4}


def test_the_oldest_goes_first_and_priority_before_all(ledger: Ledger) -> None:
    late = ledger.file("d1", "2025-07-18T09:00:00Z")
    early = ledger.file("d1", "2025-07-18T01:00:00Z")
    urgent = ledger.file("d1", "2025-07-18T10:00:00Z")
    ledger.sql("update work_items set priority = 5 where key = %s", urgent)
    ledger.heartbeat(slots=3)
    assert [ledger.claim(1)[0]["key"] for _ in range(3)] == [urgent, early, late]


def test_never_more_than_twice_the_live_slots(ledger: Ledger) -> None:
    ledger.files("d1", 50)
    ledger.heartbeat("w1", slots=3)
    ledger.heartbeat("w2", slots=2)
    ledger.heartbeat("other", slots=7, queues=["gpt"])
    assert len(ledger.claim()) == 10
    full = ledger.claim_answer()
    assert (full["items"], full["reason"], full["queued"]) == ([], "the queue is full", 10)
    ledger.kill_worker("w2")
    assert ledger.claim() == []


def test_without_a_live_worker_nothing_is_claimed(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    assert ledger.claim_answer()["reason"] == "no worker listens to whisper"
    ledger.heartbeat()
    ledger.kill_worker()
    answer = ledger.claim_answer()
    assert (answer["items"], answer["found"]) == ([], 2)
    assert answer["reason"] == "no worker listens to whisper"


def test_nothing_is_due(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    ledger.sql("update work_items set available_at = now() + interval '1 h' where key = %s", key)
    assert ledger.claim_answer()["reason"] == "nothing is due"


def test_a_retried_item_keeps_its_place(ledger: Ledger) -> None:
    """By the row's own time, not by when it may go again: one that failed once would wait for the whole backlog."""
    first, second, third = (ledger.file("d1", f"2025-07-18T0{hour}:00:00Z") for hour in (1, 2, 3))
    now = ledger.one("select now()").isoformat()
    ledger.end("retry", ledger.running(), at=now)
    assert [ledger.running().answer["key"] for _ in range(3)] == [first, second, third]


def test_rows_without_a_time_go_in_the_order_of_their_opening(ledger: Ledger) -> None:
    ledger.sql("create table toy (id text primary key, state text)")
    ledger.one("select toban_watch('toy', 'toy', array['id'], 'state', p_partition => 'state')")
    for name in ("z", "a", "m"):
        ledger.sql("insert into toy values (%s, 'pending')", name)
    ledger.end("retry", ledger.running("toy"), at=ledger.one("select now()").isoformat())
    assert [ledger.running("toy").answer["key"] for _ in range(3)] == ["z", "a", "m"]


def test_filters(ledger: Ledger) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "j", "title": "J", "source": "transcription", "every": 60}])
    ledger.files("a", 5)
    ledger.files("b", 5)
    ledger.heartbeat(slots=20)
    ledger.sql(
        """update jobs set filters = '{"partition": "b", "since": "2025-07-18T00:02:00Z",
        "until": "2025-07-18T00:04:00Z"}'"""
    )
    assert [item["key"] for item in ledger.claim()] == [
        "b/2025-07-18T00:02:00Z",
        "b/2025-07-18T00:03:00Z",
    ]


def test_unknown_source(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="there is no source nothing"):
        ledger.claim(source="nothing")


def test_five_thousand_items_in_one_answer(ledger: Ledger) -> None:
    """PostgREST cuts tables at 1,000 rows here, one JSON value it does not."""
    ledger.files("d1", 5_000)
    ledger.heartbeat(slots=2_500)
    items = ledger.claim(5_000)
    assert len({item["id"] for item in items}) == 5_000


def test_release_of_what_could_not_be_sent(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    ledger.heartbeat()
    first, second = ledger.claim()
    assert ledger.call("release", tasks=[first["task_id"]]) == {"released": 1}
    assert ledger.state(first["key"]) == "pending"
    assert ledger.state(second["key"]) == "queued"
    again = ledger.claim(1)[0]
    assert (again["key"], again["claim_no"]) == (first["key"], 2)
    assert again["task_id"] != first["task_id"]


def test_skip_claimed(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.heartbeat(slots=2)
    first, second, _ = ledger.claim()
    ledger.start(second)
    tasks = [first["task_id"], second["task_id"]]
    assert ledger.call("skip_claimed", tasks=tasks, reason="no recording") == {"skipped": 1}
    assert ledger.item(first["key"])["state"] == "skipped"
    assert ledger.item(first["key"])["last_error"] == "no recording"
    assert ledger.status_of(first["key"]) == "skipped"
    assert ledger.state(second["key"]) == "processing"


def test_skip_claimed_does_not_wait_for_a_row_that_the_app_holds(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    ledger.heartbeat()
    held, free = ledger.claim()
    with ledger.app.transaction():
        ledger.sql("update audio_files set file_path = file_path where recorded_at = %s", held["at"])
        tasks = [held["task_id"], free["task_id"]]
        assert ledger.call("skip_claimed", tasks=tasks, reason="gone") == {"skipped": 1}
    assert ledger.state(held["key"]) == "queued"


def test_what_came_later_is_left_to_somebody_else(ledger: Ledger) -> None:
    """`opened_before`, unless it is urgent, or has the parameter `direct`."""
    old, fresh, urgent, direct = (ledger.file("d1", f"2025-07-18T0{hour}:00:00Z") for hour in range(4))
    ledger.sql("update work_items set opened_at = now() - interval '2 h' where key = %s", old)
    ledger.sql("update work_items set priority = 1 where key = %s", urgent)
    ledger.sql("update work_items set params = '{\"direct\": true}' where key = %s", direct)
    ledger.heartbeat(slots=10)
    before = ledger.one("select now() - interval '1 h'").isoformat()
    answer = ledger.claim_answer(opened_before=before)
    assert answer["found"] == 3
    assert {item["key"] for item in answer["items"]} == {old, urgent, direct}
    assert ledger.claim_answer(opened_before=before)["reason"] == "nothing is due"
    assert [item["key"] for item in ledger.claim(opened_before=None)] == [fresh]


def test_many_that_came_later_do_not_hide_an_old_one(ledger: Ledger) -> None:
    ledger.files("d1", 500)
    last = ledger.file("d1", "2025-07-19T00:00:00Z")
    ledger.sql("update work_items set opened_at = now() - interval '2 h' where key = %s", last)
    ledger.heartbeat()
    before = ledger.one("select now() - interval '1 h'").isoformat()
    assert [item["key"] for item in ledger.claim(opened_before=before)] == [last]


def test_a_reprocessed_item_is_urgent(ledger: Ledger) -> None:
    key = ledger.file(status="completed")
    ledger.call("reprocess", source="transcription", keys=[key])
    ledger.heartbeat()
    assert [item["key"] for item in ledger.claim(opened_before="2020-01-01T00:00:00Z")] == [key]
