"""Source `analysis`: dashboard rows with a prompt, whose verdict and its call are stored together."""

from decimal import Decimal

import pytest

from app.errors import Permanent
from tests.support.ledger import Attempt, Ledger, Row

VERDICT: Row = {
    "summary": "静かな昼でした", "vibe_score": -30, "behavior": "eating", "processed_at": "2025-07-18T04:00:00Z",
    "analysis_result": {"summary": "静かな昼でした", "vibe_score": -30, "behavior": "eating"},
}  # fmt: skip
DEVICE = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"


def row_of(ledger: Ledger, device: str = "d1") -> Row:
    return ledger.sql("select * from dashboard where device_id::text = %s", device)[0]


def called(ledger: Ledger, run: Attempt) -> int:
    return int(ledger.call("begin_call", **run.ids(), model="m", cost=0.01, zone="UTC")["call"])


def finish(ledger: Ledger, run: Attempt, call: int | None = None, **row: object) -> Row:
    result: Row = {"row": VERDICT | row}
    if call is not None:
        result["call"] = {"call": call, "outcome": "ok", "cost": 0.002, "completion_tokens": 7}
    return dict(ledger.call("finish", **run.ids(), result=result))


def outcomes(ledger: Ledger) -> list[str]:
    return [row["outcome"] for row in ledger.sql("select outcome from llm_calls order by id")]


def test_a_row_is_due_only_with_a_prompt(ledger: Ledger) -> None:
    ledger.block("d1", prompt=None)
    key = ledger.block("d2")
    ledger.heartbeat(slots=5)
    assert [item["key"] for item in ledger.claim(source="analysis")] == [key]
    ledger.sql("update dashboard set prompt = 'now there is one' where device_id = 'd1'")
    (item,) = ledger.claim(source="analysis")
    assert item["ref"] == {"device_id": "d1", "date": "2025-07-18", "time_block": "12-00"}
    assert (item["partition"], item["at"]) == ("d1", None)


def test_a_prompt_that_is_taken_away_closes_the_item(ledger: Ledger) -> None:
    key = ledger.block()
    ledger.sql("update dashboard set prompt = null")
    assert ledger.state(key, "analysis") == "skipped"


def test_rows_that_waited_before_are_found(ledger: Ledger) -> None:
    with ledger.altered("alter table dashboard disable trigger user", "alter table dashboard enable trigger user"):
        ledger.block("d1", prompt=None)
        key = ledger.block("d2")
    ledger.call("reconcile")
    assert [row["key"] for row in ledger.sql("select key from work_items")] == [key]


def test_the_verdict_is_written_with_its_call(ledger: Ledger) -> None:
    key = ledger.block()
    run = ledger.running("analysis")
    assert run.answer["row"]["prompt"] == "How was it?"
    assert finish(ledger, run, called(ledger, run))["state"] == "completed"
    row = row_of(ledger)
    assert {name: row[name] for name in VERDICT if name != "processed_at"} == {
        name: value for name, value in VERDICT.items() if name != "processed_at"
    }
    assert row["processed_at"].isoformat().startswith("2025-07-18T04:00:00")
    assert (row["status"], row["prompt"]) == ("completed", "How was it?")
    call = ledger.sql("select outcome, cost, completion_tokens from llm_calls")[0]
    assert call == {"outcome": "ok", "cost": Decimal("0.002"), "completion_tokens": 7}
    assert ledger.one("select cost from llm_days") == Decimal("0.002")
    assert ledger.state(key, "analysis") == "completed"


def test_a_verdict_without_a_call(ledger: Ledger) -> None:
    ledger.block()
    assert finish(ledger, ledger.running("analysis"))["written"]
    assert row_of(ledger)["vibe_score"] == -30
    assert outcomes(ledger) == []


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", 100.5, -101])
def test_a_score_that_is_none_is_never_stored(ledger: Ledger, score: object) -> None:
    """Neither the row nor the call is written: what is in one transaction stays out together."""
    key = ledger.block()
    run = ledger.running("analysis")
    call = called(ledger, run)
    with pytest.raises(Permanent, match="has to be from -100 to 100"):
        finish(ledger, run, call, vibe_score=score)
    assert (row_of(ledger)["status"], row_of(ledger)["summary"]) == ("pending", None)
    assert outcomes(ledger) == ["sent"]
    assert ledger.state(key, "analysis") == "processing"
    assert finish(ledger, run, call, vibe_score=100)["written"]
    assert outcomes(ledger) == ["ok"]


def test_a_row_that_cannot_be_written_leaves_the_call_open(ledger: Ledger) -> None:
    ledger.block()
    run = ledger.running("analysis")
    call = called(ledger, run)
    with pytest.raises(Permanent):
        finish(ledger, run, call, processed_at="at noon")
    assert outcomes(ledger) == ["sent"]
    assert ledger.one("select cost from llm_days") == Decimal("0.01")


def test_a_finish_whose_answer_was_lost_is_paid_once(ledger: Ledger) -> None:
    ledger.block()
    run = ledger.running("analysis")
    call = called(ledger, run)
    assert [finish(ledger, run, call)["written"] for _ in range(3)] == [True] * 3
    assert ledger.one("select cost from llm_days") == Decimal("0.002")


def test_a_changed_prompt_makes_running_work_out_of_date(ledger: Ledger) -> None:
    key = ledger.block()
    run = ledger.running("analysis")
    call = called(ledger, run)
    ledger.sql("update dashboard set prompt = 'And now?'")
    answer = finish(ledger, run, call)
    assert (answer["written"], answer["reason"]) == (False, "the row changed meanwhile; it goes again")
    assert row_of(ledger)["summary"] is None
    assert outcomes(ledger) == ["sent"]  # its caller ends it: it was paid for
    run = ledger.running("analysis")
    assert run.answer["row"]["prompt"] == "And now?"
    assert finish(ledger, run)["written"]
    assert ledger.state(key, "analysis") == "completed"


def test_what_changes_nothing_of_the_prompt_disturbs_nothing(ledger: Ledger) -> None:
    ledger.block()
    run = ledger.running("analysis")
    ledger.sql("update dashboard set updated_at = now(), behavior = 'x', prompt = prompt")
    assert finish(ledger, run)["written"]


def test_a_new_prompt_of_a_finished_block_alone_opens_nothing(ledger: Ledger) -> None:
    """The app says `pending` when it wants another verdict."""
    key = ledger.block()
    finish(ledger, ledger.running("analysis"))
    ledger.sql("update dashboard set prompt = 'Another?'")
    assert ledger.state(key, "analysis") == "completed"
    ledger.sql("update dashboard set status = 'pending'")
    assert ledger.state(key, "analysis") == "pending"


def test_failed_and_skipped_rows_say_so(ledger: Ledger) -> None:
    for device, how, status in (("d1", "fail", "failed"), ("d2", "skip", "skipped")):
        ledger.block(device)
        ledger.end(how, ledger.running("analysis"))
        assert row_of(ledger, device)["status"] == status


@pytest.mark.parametrize(
    ("selection", "matched"),
    [
        ({"date": "2025-07-18"}, 2),
        ({"date": "2025-07-18", "since": "2025-07-17T15:00:00Z", "until": "2025-07-18T15:00:00Z"}, 2),
        ({"date": "2025-07-18", "block": "12-30"}, 1),
        ({"partition": "d1"}, 3),
        ({"keys": ["d1/2025-07-17/12-00"]}, 1),
    ],
)
def test_doing_it_again(ledger: Ledger, selection: Row, matched: int) -> None:
    for date, block in (("2025-07-17", "12-00"), ("2025-07-18", "12-00"), ("2025-07-18", "12-30")):
        ledger.block("d1", block, date=date)
    ledger.sql("update dashboard set status = 'completed'")
    answer = ledger.call("reprocess", source="analysis", **selection)
    assert (answer["matched"], answer["opened"]) == (matched, matched)


def test_devices_that_are_uuids(ledger: Ledger, uuids: None) -> None:
    key = ledger.block(DEVICE)
    assert key == f"{DEVICE}/2025-07-18/12-00"
    run = ledger.running("analysis")
    assert run.answer["row"]["device_id"] == DEVICE
    finish(ledger, run, called(ledger, run))
    assert (row_of(ledger, DEVICE)["vibe_score"], row_of(ledger, DEVICE)["status"]) == (-30, "completed")
    assert ledger.call("reprocess", source="analysis", keys=[key])["opened"] == 1
    with pytest.raises(Permanent, match="does not fit the rows of analysis"):
        ledger.call("reprocess", source="analysis", keys=["d1/2025-07-18/12-00"])
    ledger.sql("delete from dashboard")
    assert ledger.state(key, "analysis") == "skipped"
