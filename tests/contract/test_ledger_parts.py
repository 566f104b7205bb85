"""Parts of long work that outlive their attempt; workers that can't start; children that died."""

import uuid

from tests.support.ledger import Ledger


def save(ledger: Ledger, run: object, data: object) -> bool:
    return bool(ledger.call("save_part", **run.ids(), data=data)["saved"])  # type: ignore[attr-defined]


def test_the_next_attempt_gets_what_the_last_one_saved(ledger: Ledger) -> None:
    key = ledger.file()
    first = ledger.running()
    assert save(ledger, first, {"until": 1, "text": "一つ"})
    assert save(ledger, first, {"until": 2})
    ledger.expire(key)
    ledger.heartbeat("w2")
    ledger.sql("update work_items set available_at = now()")
    second = ledger.running(worker="w2")
    assert second.attempt == 2
    assert ledger.call("saved_parts", **second.ids()) == {"parts": [{"until": 1, "text": "一つ"}, {"until": 2}]}
    assert save(ledger, second, {"until": 3})
    assert not save(ledger, first, {"until": 9})
    assert ledger.call("saved_parts", **first.ids()) == {"parts": []}
    assert len(ledger.call("saved_parts", **second.ids())["parts"]) == 3
    ledger.finish(second)
    assert ledger.sql("select * from saved_parts") == []


def test_a_row_that_changed_starts_from_nothing(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    save(ledger, run, {"until": 1})
    ledger.sql("update audio_files set file_path = 'other.wav'")
    assert ledger.sql("select * from saved_parts") == []
    save(ledger, run, {"until": 2})  # of the old revision, by an attempt that does not know yet
    ledger.finish(run)
    again = ledger.running()
    assert ledger.call("saved_parts", **again.ids()) == {"parts": []}
    ledger.finish(again)
    assert ledger.sql("select * from saved_parts") == []


def test_parts_go_with_their_item_and_survive_a_retry_and_a_failure(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    save(ledger, run, [])
    ledger.end("retry", run)
    assert len(ledger.sql("select * from saved_parts")) == 1
    ledger.sql("update work_items set available_at = now()")
    run = ledger.running()
    ledger.end("fail", run)
    assert len(ledger.sql("select * from saved_parts")) == 1  # for a person's `reprocess`? it opens a new revision
    ledger.call("reprocess", source="transcription", only_failed=True)
    assert ledger.sql("select * from saved_parts") == []
    save(ledger, ledger.running(), [])
    ledger.sql("delete from work_items")
    assert ledger.sql("select * from saved_parts") == []


def test_only_the_owner_saves(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    stranger = {**run.ids(), "token": str(uuid.uuid4())}
    assert ledger.call("save_part", **stranger, data={}) == {
        "saved": False, "reason": "another attempt owns the item",
    }  # fmt: skip
    assert not ledger.call("save_part", **{**run.ids(), "id": 999_999_999}, data={})["saved"]


def test_a_child_that_was_killed_leaves_a_word_for_the_next_try(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    task = ledger.item(key)["task_id"]
    assert ledger.call("lost", task_id=str(task), reason="killed", params={"frugal": True}) == {"reaped": 1}
    assert (ledger.item(key)["state"], ledger.item(key)["params"]) == ("pending", {"frugal": True})
    ledger.sql("update work_items set available_at = now()")
    again = ledger.running()
    assert again.answer["params"] == {"frugal": True}
    assert not ledger.finish(run)["written"]
    ledger.finish(again)
    ledger.set_status("pending", key)
    assert ledger.item(key)["params"] == {}


def test_a_worker_that_cannot_start_is_an_incident_until_one_does(ledger: Ledger) -> None:
    trouble = {"queues": ["whisper"], "node": "host"}
    assert ledger.call("worker_trouble", **trouble) == {"incidents": 0}  # all is well, and nothing is told
    assert ledger.call("other_incidents") == {"incidents": []}
    assert ledger.call("worker_trouble", **trouble, reason="medium needs 2.9 GB") == {"incidents": 1}
    (told,) = ledger.call("other_incidents")["incidents"]
    assert (told["job_key"], told["message"]) == ("worker-whisper", "host can't start: medium needs 2.9 GB")
    assert ledger.one("select last_status from job_status where job_key = 'worker-whisper'") == "error"
    assert ledger.call("worker_trouble", **trouble) == {"incidents": 1}
    assert ledger.call("other_incidents") == {"incidents": []}
    assert ledger.one("select last_status from job_status where job_key = 'worker-whisper'") == "success"
