"""Batches that somebody asks for: what they put first, how they are followed, and what a cancelled one gives back."""

from typing import Any

import pytest

from app.errors import Refused
from tests.support.ledger import NOON, Ledger, Row, at_once

DAY = {"day": "2025-07-18", "since": "2025-07-17T15:00:00Z", "until": "2025-07-18T15:00:00Z"}
WHERE = {"queue": "whisper", "zone": "Asia/Tokyo"}
EVENING = "2025-07-18T12:00:00Z"


def answer(ledger: Ledger, device: str = "d1", **params: Any) -> Row:
    asked = {"source": "transcription", "partition": device, "file": "file_path", "priority": 5, "owner": "key ci",
             "held": ["base"], "key_life": 86400, **DAY, **WHERE, **params}  # fmt: skip
    return dict(ledger.call("request_batch", **asked))


def ask(ledger: Ledger, device: str = "d1", **params: Any) -> Row:
    return dict(answer(ledger, device, **params)["batch"])


def see(ledger: Ledger, batch: Row) -> Row:
    return dict(ledger.call("requested_batch", batch=batch["id"], **WHERE))


def cancel(ledger: Ledger, batch: Row) -> Row:
    return dict(ledger.call("cancel_request", batch=batch["id"], **WHERE))


def states(batch: Row) -> list[str]:
    return [item["state"] for item in batch["items"]]


def urgency(ledger: Ledger, key: str) -> tuple[int, Any]:
    item = ledger.item(key)
    return item["priority"], item["params"].get("model")


def test_a_days_waiting_rows_of_a_device_go_first(ledger: Ledger) -> None:
    other = ledger.file("d0", "2025-07-01T03:00:00Z")
    ledger.file("d1", "2025-07-17T14:59:59Z")  # the day before, by the devices' clocks
    ledger.file("d1", "2025-07-18T04:00:00Z", "completed")
    key = ledger.file("d1", NOON, path="files/d1/noon.wav")
    batch = ask(ledger)
    assert (batch["total"], batch["completed"], batch["open"]) == (2, 1, 1)
    assert batch["items"] == [
        {"key": key, "at": "2025-07-18T03:00:00+00:00", "file": "files/d1/noon.wav", "state": "pending",
         "error": None, "ended_at": None, "progress": None, "tries": 0}
    ]  # fmt: skip
    assert urgency(ledger, key) == (5, None)
    ledger.heartbeat()
    assert [item["key"] for item in ledger.claim(2)] == [key, other]
    assert states(see(ledger, batch)) == ["queued"]


def test_it_is_followed_to_its_end(ledger: Ledger) -> None:
    for hour in range(4):
        ledger.file("d1", f"2025-07-18T0{hour}:00:00Z")
    batch = ask(ledger)
    ids = {"batches": [batch["id"]], "followed": [batch["id"]]}
    look = ledger.call("requested_batches", **ids)["batches"][0]
    assert look["open"] == 4
    ledger.heartbeat(slots=4)
    done, failed, skipped, running = [ledger.start(item) for item in ledger.claim(4)]
    ledger.finish(done)
    ledger.end("fail", failed, error="empty", kind="permanent")
    ledger.end("skip", skipped, error="there is no such audio object", kind="nothing_there")
    ledger.heartbeat(slots=4, items=[{"id": running.id, "attempt": 1, "progress": {"done": 3, "total": 4}}])
    batch = see(ledger, batch)
    assert states(batch) == ["completed", "failed", "skipped", "processing"]
    assert [item["error"] for item in batch["items"]] == [None, "empty", "there is no such audio object", None]
    assert batch["items"][3]["progress"] == {"done": 3, "total": 4}
    (later,) = ledger.call("requested_batches", **ids)["batches"]
    assert ledger.call("requested_batches", batches=[batch["id"]])["batches"][0]["open"] == 1
    assert (later["open"], later["mark"] == look["mark"]) == (1, False)
    ledger.finish(running)
    assert see(ledger, batch)["open"] == 0
    # What becomes of its rows afterwards is not the batch's business.
    ledger.call("reprocess", source="transcription", partition="d1")
    assert states(see(ledger, batch)) == ["completed", "failed", "skipped", "completed"]


def test_nothing_to_do(ledger: Ledger) -> None:
    ledger.file("d1", NOON, "completed")
    for device, total in (("d1", 1), ("nobody", 0), ("", 0), ("d1' or true --", 0)):
        batch = ask(ledger, device)
        assert (batch["total"], batch["completed"], batch["open"], batch["items"]) == (total, total, 0, []), device


def test_devices_that_are_uuids(ledger: Ledger) -> None:
    change = "alter table audio_files alter device_id type uuid using device_id::uuid;"
    watch = (
        " select toban_watch('audio_files', 'transcription', array['device_id', 'recorded_at'],"
        " 'transcriptions_status', p_time => 'recorded_at', p_inputs => array['file_path'],"
        " p_store => 'public.toban_store_transcription')"
    )
    back = change.replace("type uuid", "type text").replace("::uuid", "::text")
    device = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
    with ledger.altered(change + watch, "truncate audio_files; " + back + watch):
        ledger.file(device)
        assert ask(ledger, device)["open"] == 1
        assert ask(ledger, "no uuid")["total"] == 0


@pytest.mark.parametrize("alive", [True, False])
def test_a_model_that_no_worker_holds_is_refused(ledger: Ledger, *, alive: bool) -> None:
    key = ledger.file()
    assert answer(ledger, model="small") == {"refused": {"models": ["base"], "fits": []}}, "as the caller knows"
    for worker, models in (("w1", ["tiny"]), ("w2", ["tiny", "small"]), ("w3", ["medium"])):
        ledger.heartbeat(worker, queues=["whisper"] if worker != "w3" else ["gpt"])
        assert ledger.call("memory_limit", worker=worker, bytes=1, models=models, fits=["base"])["known"]
        if not alive:
            ledger.kill_worker(worker)
    assert answer(ledger, model="base") == {"refused": {"models": ["small", "tiny"], "fits": ["base"]}}
    assert urgency(ledger, key) == (0, None)
    ask(ledger, model="small")
    assert urgency(ledger, key) == (5, "small")


def test_what_is_under_way_is_joined_and_not_done_twice(ledger: Ledger) -> None:
    running = ledger.file("d1", NOON)
    attempt = ledger.running()
    waiting = ledger.file("d1", EVENING)
    first = ask(ledger, model="base")
    second = ask(ledger)
    assert states(first) == states(second) == ["processing", "pending"]
    assert urgency(ledger, waiting) == (5, "base")
    assert ledger.finish(attempt)["written"]
    assert ledger.state(running) == "completed"
    ledger.finish(ledger.running())
    assert [see(ledger, batch)["open"] for batch in (first, second)] == [0, 0]


def test_what_waits_for_its_next_try_is_tried_at_once(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("retry", ledger.running(), at="2100-01-01T00:00:00Z", counted=True, error="away", kind="transient")
    assert ledger.claim() == []
    ask(ledger)
    assert ledger.item(key)["tries"] == 1
    assert [item["key"] for item in ledger.claim()] == [key]


def test_rows_that_say_pending_are_opened_whatever_the_ledger_knew(ledger: Ledger) -> None:
    key = ledger.file()
    with ledger.altered(
        "alter table audio_files add constraint old check (transcriptions_status in ('pending', 'completed'))",
        "alter table audio_files drop constraint old",
    ):
        ledger.end("fail", ledger.running(), error="empty", kind="permanent")
        assert (ledger.state(key), ledger.status_of(key)) == ("failed", "pending")
        assert states(ask(ledger)) == ["pending"]
        ledger.sql("delete from work_items")  # as after a restored backup
        assert states(ask(ledger)) == ["pending"]


def test_rows_that_end_elsewhere_end_for_the_batch(ledger: Ledger) -> None:
    for hour in range(3):
        ledger.file("d1", f"2025-07-18T0{hour}:00:00Z")
    batch = ask(ledger)
    ledger.set_status("completed", "d1/2025-07-18T00:00:00Z")
    ledger.sql("delete from audio_files where recorded_at = '2025-07-18T01:00:00Z'")
    ledger.sql("delete from work_items where key = 'd1/2025-07-18T02:00:00Z'")
    batch = see(ledger, batch)
    assert (states(batch), batch["open"]) == (["completed", "skipped", "skipped"], 0)
    assert [item["error"] for item in batch["items"]] == [None, "the row is gone", "the row is gone"]
    ids = {"batches": [batch["id"]], "followed": [batch["id"]]}
    assert ledger.call("requested_batches", **ids)["batches"][0]["open"] == 0


def test_a_cancelled_batch_gives_back_what_has_not_begun(ledger: Ledger) -> None:
    keys = [ledger.file("d1", f"2025-07-18T0{hour}:00:00Z") for hour in range(3)]
    batch = ask(ledger, model="base")
    assert [urgency(ledger, key) for key in keys] == [(5, "base")] * 3
    attempt = ledger.running()
    ledger.claim(1)
    assert states(see(ledger, batch)) == ["processing", "queued", "pending"]
    for _ in range(2):  # twice is once
        told = cancel(ledger, batch)
        assert (states(told), told["open"]) == (["processing", "cancelled", "cancelled"], 1)
        assert told["cancelled_at"]
    assert [ledger.state(key) for key in keys] == ["processing", "queued", "pending"]
    assert [urgency(ledger, key) for key in keys[1:]] == [(0, None)] * 2
    assert ledger.finish(attempt)["written"]
    done = see(ledger, batch)
    assert (states(done), done["open"]) == (["completed", "cancelled", "cancelled"], 0)


def test_a_cancelled_batch_gives_back_what_was_asked_for_before(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.call("reprocess", source="transcription", keys=[key], priority=3, params={"model": "tiny", "frugal": True})
    batch = ask(ledger, model="base")
    assert urgency(ledger, key) == (5, "base")
    cancel(ledger, batch)
    assert urgency(ledger, key) == (3, "tiny")
    assert ledger.item(key)["params"]["frugal"] is True


def test_a_cancelled_batch_leaves_what_another_waits_for(ledger: Ledger) -> None:
    key = ledger.file()
    first = ask(ledger, model="base")
    second = ask(ledger, model="tiny", held=["tiny"])
    assert urgency(ledger, key) == (5, "tiny")
    assert states(cancel(ledger, second)) == ["cancelled"]
    assert urgency(ledger, key) == (5, "base")
    assert states(see(ledger, first)) == ["pending"]
    cancel(ledger, first)
    assert urgency(ledger, key) == (0, None), "as before the first"


def test_what_a_person_asked_for_later_is_left(ledger: Ledger) -> None:
    key = ledger.file()
    batch = ask(ledger, model="base")
    ledger.call("reprocess", source="transcription", keys=[key], params={"model": "tiny"})
    cancel(ledger, batch)
    assert urgency(ledger, key) == (10, "tiny")


def test_a_batch_that_is_done_is_not_cancelled(ledger: Ledger) -> None:
    ledger.file()
    batch = ask(ledger)
    ledger.finish(ledger.running())
    told = cancel(ledger, batch)
    assert (states(told), told["cancelled_at"]) == (["completed"], None)


def test_there_is_no_such_batch(ledger: Ledger) -> None:
    nothing = {"id": "00000000-0000-4000-8000-000000000000"}
    for call in (see, cancel):
        with pytest.raises(Refused, match="there is no batch") as caught:
            call(ledger, nothing)
        assert caught.value.missing
    assert ledger.call("requested_batches", batches=[nothing["id"]])["batches"] == []


def test_an_idempotency_key_is_one_batch(ledger: Ledger) -> None:
    ledger.file()
    first = answer(ledger, idempotency_key="k", fingerprint="a")
    ledger.finish(ledger.running())
    ledger.file("d1", EVENING)
    again = answer(ledger, idempotency_key="k", fingerprint="a")
    assert (first["known"], again["known"]) == (False, True)
    assert first["batch"]["id"] == again["batch"]["id"]
    assert states(again["batch"]) == ["completed"]
    assert answer(ledger, idempotency_key="k", fingerprint="b") == {"conflict": True}
    other = answer(ledger, idempotency_key="k", fingerprint="b", owner="key other")
    assert not other["known"], "each owner's keys are its own"
    ledger.sql("update batch_requests set created_at = created_at - interval '25 h'")
    assert answer(ledger, idempotency_key="k", fingerprint="b")["known"] is False, "forgotten after a day"


def test_requests_at_once(ledger: Ledger) -> None:
    for hour in range(10):
        ledger.file("d1", f"2025-07-18T{hour:02}:00:00Z")
    batches = at_once(*[lambda: answer(ledger, idempotency_key="k", fingerprint="a") for _ in range(4)])
    assert len({told["batch"]["id"] for told in batches}) == 1
    assert sorted(told["known"] for told in batches) == [False, True, True, True]
    own = at_once(*[lambda: ask(ledger) for _ in range(4)])
    assert len({batch["id"] for batch in own}) == 4
    assert {batch["open"] for batch in own} == {10}


def test_why_it_waits_and_how_long(ledger: Ledger) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "transcription", "title": "T", "source": "transcription", "every": 10}])
    ledger.file()
    batch = ask(ledger)
    assert [why["code"] for why in batch["why"]] == ["no_worker"]
    ledger.heartbeat()
    batch = see(ledger, batch)
    assert (batch["why"], batch["eta"]) == ([], None), "nothing has been measured"
    ledger.file("d0", "2025-07-01T00:00:00Z")
    ledger.call("reprocess", source="transcription", partition="d0")
    ledger.finish(ledger.running())
    ledger.sql("update work_attempts set started_at = ended_at - interval '100 s'")
    assert see(ledger, batch)["eta"] == pytest.approx(100)
    ledger.file("d1", EVENING)
    assert ask(ledger)["eta"] == pytest.approx(200)
    ledger.call("pause", job="transcription", paused=True)
    batch = see(ledger, batch)
    assert (batch["why"], batch["eta"]) == ([{"code": "paused", "job": "transcription"}], None)


def test_old_batches_are_forgotten_when_they_are_done(ledger: Ledger) -> None:
    ledger.file("d1")
    ledger.file("d2")
    done, waits = ask(ledger), ask(ledger, "d2")
    ledger.finish(ledger.running())
    assert ledger.call("upkeep_requests", days=7) == {"forgotten": 0, "keys": 0, "more": False}
    ledger.sql("update batch_requests set created_at = now() - interval '8 days'")
    assert ledger.call("upkeep_requests", days=7, limit=1) == {"forgotten": 1, "keys": 0, "more": True}
    with pytest.raises(Refused):
        see(ledger, done)
    assert states(see(ledger, waits)) == ["pending"]
