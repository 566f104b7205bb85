"""One attempt: start, finish, retry, fail, skip, release; the fence, and repeated calls."""

import uuid

import pytest

from app.errors import Permanent
from tests.support.ledger import NOON, Ledger, at_once


def test_finish_writes_row_transcript_and_item(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    assert (run.attempt, run.answer["tries"], run.answer["row"]["file_path"]) == (1, 1, "audio.wav")
    answer = ledger.finish(run, "おはようございます。今日は良い天気ですね")
    assert (answer["written"], answer["state"]) == (True, "completed")
    assert ledger.status_of(key) == "completed"
    assert ledger.state(key) == "completed"
    assert ledger.sql("select * from vibe_whisper")[0]["transcription"] == "おはようございます。今日は良い天気ですね"
    assert ledger.consistent()


def test_hundred_thousand_characters(ledger: Ledger) -> None:
    ledger.file()
    text = "会議の記録。" * 20_000
    ledger.finish(ledger.running(), text)
    assert ledger.one("select text from transcripts") == text


def test_nul_is_refused_by_name(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    with pytest.raises(Permanent, match=r"toban_finish\.result\.text holds a NUL character"):
        ledger.finish(run, "a\0b")
    assert ledger.state(key) == "processing"


def test_start_is_idempotent_with_the_same_token(ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    (item,) = ledger.claim()
    token = str(uuid.uuid4())
    first, second = at_once(*[lambda: ledger.start_answer(item, token)] * 2)
    assert first == second
    assert first["attempt"] == 1
    other = ledger.start_answer(item, str(uuid.uuid4()))
    assert other == {"started": False, "reason": "this message is out of date: the item is processing"}


def test_start_of_an_older_claim_is_refused(ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    (old,) = ledger.claim()
    ledger.call("release", tasks=[old["task_id"]])
    ledger.claim()
    assert not ledger.start_answer(old, str(uuid.uuid4()))["started"]


@pytest.mark.parametrize("change", ["delete from audio_files", "update audio_files set transcriptions_status = 'x'"])
def test_start_finds_that_the_row_no_longer_waits(ledger: Ledger, change: str) -> None:
    key = ledger.file()
    ledger.heartbeat()
    (item,) = ledger.claim()
    with ledger.altered("alter table audio_files disable trigger user", "alter table audio_files enable trigger user"):
        ledger.app.execute(change)
    answer = ledger.start_answer(item, str(uuid.uuid4()))
    assert answer == {"started": False, "reason": "the row no longer waits"}
    assert ledger.state(key) == "skipped"


def test_finish_is_idempotent_with_the_same_token(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    first, second = at_once(*[lambda: ledger.finish(run)] * 2)
    assert (first["written"], first["state"]) == (second["written"], second["state"]) == (True, "completed")
    finished_at = ledger.item(key)["finished_at"]
    assert ledger.finish(run)["written"]
    assert ledger.item(key)["finished_at"] == finished_at


def test_stale_finish_writes_nothing_and_says_so(ledger: Ledger) -> None:
    key = ledger.file()
    slow = ledger.running()
    ledger.kill_worker()
    ledger.expire()
    fast = ledger.running(worker="w2")
    assert fast.attempt == 2
    answer = ledger.finish(slow, "late words")
    assert answer == {"written": False, "reason": "another attempt owns the item: it is processing"}
    ledger.finish(fast, "right words")
    assert not ledger.finish(slow, "late words")["written"]
    assert ledger.one("select transcription from vibe_whisper") == "right words"
    assert ledger.status_of(key) == "completed"


@pytest.mark.parametrize("how", ["retry", "fail", "skip"])
def test_every_stale_ending_is_refused(ledger: Ledger, how: str) -> None:
    key = ledger.file()
    slow = ledger.running()
    ledger.expire()
    ledger.running(worker="w2")
    assert not ledger.end(how, slow)["written"]
    assert ledger.state(key) == "processing"


def test_late_finish_of_an_item_that_was_given_up_says_so(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running(max_attempts=1)
    ledger.expire()
    ledger.heartbeat("w2")
    assert ledger.state(key) == "failed"
    assert not ledger.finish(run)["written"]
    assert ledger.sql("select from vibe_whisper") == []


def test_retry_counts_and_is_due_later(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    later = "2099-01-01T00:00:00+00:00"
    answer = ledger.end("retry", run, at=later, params={"window": 10}, traceback="Traceback …")
    assert (answer["written"], answer["state"]) == (True, "pending")
    item = ledger.item(key)
    assert (item["state"], item["tries"], item["params"]) == ("pending", 1, {"window": 10})
    assert item["available_at"].isoformat() == later
    assert (item["last_error"], item["last_error_kind"], item["last_traceback"]) == (
        "it broke", "transient", "Traceback …",
    )  # fmt: skip
    assert ledger.claim() == []
    assert ledger.status_of(key) == "pending"


def test_retry_that_is_not_counted(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.end("retry", ledger.running(), counted=False)
    assert ledger.item(key)["tries"] == 0
    again = ledger.running()
    assert (again.attempt, again.answer["tries"]) == (2, 1)


@pytest.mark.parametrize(("how", "status"), [("fail", "failed"), ("skip", "skipped")])
def test_fail_and_skip_mark_the_row(ledger: Ledger, how: str, status: str) -> None:
    key = ledger.file()
    run = ledger.running()
    for _ in range(2):  # a repeated call is known
        answer = ledger.end(how, run, error="the recording is broken", kind="permanent")
        assert (answer["written"], answer["state"]) == (True, status)
    item = ledger.item(key)
    assert (item["state"], item["marked"], item["last_error"]) == (status, True, "the recording is broken")
    assert ledger.status_of(key) == status


def test_release_of_a_node_costs_no_try(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    assert ledger.call("release", node="n1") == {"released": 1}
    assert (ledger.state(key), ledger.item(key)["tries"]) == ("pending", 0)
    assert ledger.sql("select from workers") == []
    assert not ledger.finish(run)["written"]
    assert ledger.running(worker="w2").attempt == 2


def test_lost_child_gives_its_item_back_at_once(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    task_id = str(ledger.item(key)["task_id"])
    assert ledger.call("lost", task_id=task_id, reason="signal 9") == {"reaped": 1}
    item = ledger.item(key)
    assert (item["state"], item["tries"], item["last_error"]) == ("pending", 1, "try 1 of 5: signal 9")
    assert ledger.sql("select from workers") == []
    assert not ledger.finish(run)["written"]
    assert ledger.call("lost", task_id=task_id, reason="signal 9") == {"reaped": 0}


def test_row_set_back_to_pending_while_it_runs_goes_again(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    ledger.set_status("completed")
    ledger.set_status("pending")
    # The first statement closed the item, the second opened it anew; this attempt no longer owns it.
    assert not ledger.finish(run)["written"]
    assert ledger.state(key) == "pending"
    ledger.finish(ledger.running(), "second")
    assert ledger.status_of(key) == "completed"


def test_inputs_changed_while_it_runs(ledger: Ledger) -> None:
    key = ledger.file(path="old.wav")
    run = ledger.running()
    ledger.sql("update audio_files set file_path = 'new.wav'")
    assert ledger.state(key) == "processing"
    for _ in range(2):  # and a repeated call is told the same
        assert not ledger.finish(run, "old words")["written"]
    item = ledger.item(key)
    assert (item["state"], item["tries"], item["revision"]) == ("pending", 0, 2)
    assert ledger.status_of(key) == "pending"
    assert ledger.sql("select from vibe_whisper") == []
    again = ledger.running()
    assert again.answer["row"]["file_path"] == "new.wav"
    assert ledger.finish(again)["written"]


def test_inputs_changed_before_it_starts(ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    (item,) = ledger.claim()
    ledger.sql("update audio_files set file_path = 'new.wav'")
    run = ledger.start(item)
    assert run.answer["row"]["file_path"] == "new.wav"
    assert ledger.finish(run)["written"]


def test_other_columns_do_not_matter(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    ledger.sql("update audio_files set created_at = now()")
    assert ledger.finish(run)["written"]
    assert ledger.item(key)["revision"] == 1


def test_row_deleted_while_it_runs(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    ledger.sql("delete from audio_files")
    assert ledger.finish(run)["reason"] == "another attempt owns the item: it is skipped"
    assert ledger.item(key)["last_error"] == "the row is gone"
    assert ledger.sql("select from vibe_whisper") == []


def test_z_and_offset_are_one_key(ledger: Ledger) -> None:
    key = ledger.file(at=NOON)
    ledger.sql("delete from audio_files")
    assert ledger.file(at="2025-07-18T03:00:00+00:00") == key
    ledger.sql("update audio_files set recorded_at = '2025-07-18T12:00:00+09:00'")
    assert [row["key"] for row in ledger.sql("select key from work_items")] == [key]
    assert ledger.state(key) == "pending"
