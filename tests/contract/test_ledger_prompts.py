"""The planner's functions: which blocks want a prompt, and how it gets into the dashboard."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb

from app.errors import Permanent, Transient
from tests.support.ledger import Ledger, Row, at_once
from tests.support.servers import wait_for

DEVICE = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
ZONE, JOB = "Asia/Tokyo", "timeblock-prompt"
NOON, QUARTER_PAST, HALF_PAST = ("2025-07-18T03:00:00Z", "2025-07-18T03:15:00Z", "2025-07-18T03:30:00Z")


def hear(ledger: Ledger, text: str = "こんにちは", device: str = "d1", at: str = NOON, block: str = "12-00") -> None:
    """A recording comes in and becomes its transcript."""
    ledger.file(device, at)
    ledger.finish(ledger.running(), text, block)


def unprompted(ledger: Ledger, filters: Row | None = None, **params: object) -> list[Row]:
    """`filters`: those of the planner's job from now on."""
    if filters is not None:
        ledger.call("sync_jobs", jobs=[{"job": JOB, "title": "P", "source": None, "every": 60}])
        ledger.sql("update jobs set filters = %s", Jsonb(filters))
    return list(ledger.call("unprompted_blocks", **{"zone": ZONE, "job": JOB, "limit": 100, **params})["blocks"])


def write(ledger: Ledger, blocks: list[Row], words: str = "Of: ") -> Row:
    """As the planner does: a prompt for each block that it was given."""
    prompts = [{**block, "prompt": words + block["transcription"]} for block in blocks]
    return dict(ledger.call("write_prompts", blocks=prompts))


def plan(ledger: Ledger, **params: Any) -> Row:
    return write(ledger, unprompted(ledger, **params))


def board(ledger: Ledger) -> list[Row]:
    return ledger.sql("select device_id::text as device, time_block, prompt, status from dashboard order by 1, 2")


def test_a_block_in_which_somebody_spoke_gets_its_prompt_once(ledger: Ledger) -> None:
    hear(ledger)
    (block,) = unprompted(ledger)
    heard_at = ledger.one("select to_jsonb(updated_at) from transcripts")
    assert block == {
        "device_id": "d1", "date": "2025-07-18", "time_block": "12-00", "transcription": "こんにちは",
        "heard_at": heard_at,
    }  # fmt: skip
    assert write(ledger, [block]) == {"written": 1, "refused": []}
    row = {"device": "d1", "time_block": "12-00", "prompt": "Of: こんにちは", "status": "pending"}
    assert board(ledger) == [row]
    assert ledger.state("d1/2025-07-18/12-00", "analysis") == "pending"
    assert unprompted(ledger) == []
    assert plan(ledger) == {"written": 0, "refused": []}


def test_a_block_waits_for_its_other_recording(ledger: Ledger) -> None:
    ledger.file(at=NOON)
    ledger.file(at=QUARTER_PAST)
    ledger.file(at=HALF_PAST)  # of the next block
    ledger.file("d2", at=QUARTER_PAST)  # of another device
    ledger.file(at="2025-07-18T02:59:59Z")
    ledger.sql("update work_items set available_at = 'infinity' where key not in (%s, %s)",
               f"d1/{NOON}", f"d1/{QUARTER_PAST}")  # fmt: skip
    ledger.finish(ledger.running(), "早い")
    assert unprompted(ledger) == []
    ledger.heartbeat()
    (item,) = ledger.claim()
    assert unprompted(ledger) == []
    run = ledger.start(item)
    assert unprompted(ledger) == []
    ledger.finish(run, "遅い")
    assert [block["transcription"] for block in unprompted(ledger)] == ["早い\n遅い"]


def test_a_recording_that_was_given_up_or_is_not_there_keeps_no_block_waiting(ledger: Ledger) -> None:
    hear(ledger)
    ledger.file(at=QUARTER_PAST)
    ledger.file(at="2025-07-18T03:20:00Z")
    ledger.end("fail", ledger.running())
    assert unprompted(ledger) == []
    ledger.end("skip", ledger.running())
    assert len(unprompted(ledger)) == 1


def test_the_block_is_the_half_hour_in_the_zone(ledger: Ledger) -> None:
    """Elsewhere the other recording belongs to another block."""
    hear(ledger)
    ledger.file(at=QUARTER_PAST)
    assert len(unprompted(ledger, zone="UTC")) == 1
    assert unprompted(ledger) == []


@pytest.mark.parametrize("text", ["", " ", "\n", " \n\t "])
def test_where_nobody_spoke_there_is_no_prompt(ledger: Ledger, text: str) -> None:
    hear(ledger, text)
    hear(ledger, text, at=QUARTER_PAST)
    assert unprompted(ledger) == []


def test_new_words_get_a_new_prompt_and_verdict(ledger: Ledger) -> None:
    hear(ledger, "one")
    plan(ledger)
    ledger.call("finish", **ledger.running("analysis").ids(), result={"row": {"vibe_score": 1}})
    hear(ledger, "two", at=QUARTER_PAST)
    assert plan(ledger)["written"] == 1
    (row,) = board(ledger)
    assert (row["prompt"], row["status"]) == ("Of: one\ntwo", "pending")
    assert ledger.state("d1/2025-07-18/12-00", "analysis") == "pending"


def test_new_words_make_running_work_out_of_date(ledger: Ledger) -> None:
    hear(ledger, "one")
    plan(ledger)
    run = ledger.running("analysis")
    hear(ledger, "two", at=QUARTER_PAST)
    plan(ledger)
    assert not ledger.call("finish", **run.ids(), result={"row": {"vibe_score": 1}})["written"]


def test_the_same_words_heard_again_get_no_second_verdict(ledger: Ledger) -> None:
    hear(ledger, "one")
    plan(ledger)
    ledger.call("finish", **ledger.running("analysis").ids(), result={"row": {"vibe_score": 1}})
    ledger.set_status("pending")
    ledger.finish(ledger.running(), "one")
    assert len(unprompted(ledger)) == 1
    assert plan(ledger) == {"written": 0, "refused": []}
    assert board(ledger)[0]["status"] == "completed"
    assert unprompted(ledger) == []


def test_words_that_came_while_the_prompt_was_written(ledger: Ledger) -> None:
    hear(ledger, "one")
    blocks = unprompted(ledger)
    hear(ledger, "two", at=QUARTER_PAST)
    assert write(ledger, blocks)["written"] == 1
    assert [block["transcription"] for block in unprompted(ledger)] == ["one\ntwo"]


def test_an_older_prompt_does_not_replace_a_newer_one(ledger: Ledger) -> None:
    hear(ledger, "one")
    older = unprompted(ledger)
    hear(ledger, "two", at=QUARTER_PAST)
    plan(ledger)
    assert write(ledger, older)["written"] == 0
    assert board(ledger)[0]["prompt"] == "Of: one\ntwo"
    assert unprompted(ledger) == []


def test_whose_and_which_days_blocks(ledger: Ledger) -> None:
    hear(ledger, device="d1")
    hear(ledger, device="d2")
    ledger.sql("update transcripts set date = '2025-07-19' where device_id = 'd2'")
    ledger.sql("update vibe_whisper set date = '2025-07-19' where device_id = 'd2'")
    for filters, devices in (
        (None, ["d1", "d2"]),
        ({"partition": "d2"}, ["d2"]),
        ({"date": "2025-07-18"}, ["d1"]),
        ({"date": "today"}, []),
        ({"date": "2025-07-19", "partition": "d1"}, []),
    ):
        assert [block["device_id"] for block in unprompted(ledger, filters=filters)] == devices
    with pytest.raises(Permanent, match="job timeblock-prompt: rows of analysis are not found by since"):
        unprompted(ledger, filters={"since": NOON})


@pytest.mark.parametrize(("date", "days_ago"), [("today", 0), ("yesterday", 1)])
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_todays_blocks_are_those_of_the_zone(ledger: Ledger, zone: str, date: str, days_ago: int) -> None:
    hear(ledger)
    day: LiteralString = "((now() at time zone %s)::date - %s::integer)"
    ledger.sql(f"update transcripts set date = {day}", zone, days_ago)
    ledger.sql(f"update vibe_whisper set date = {day}", zone, days_ago)
    assert len(unprompted(ledger, zone=zone, filters={"date": date})) == 1
    other = {"today": "yesterday", "yesterday": "today"}[date]
    assert unprompted(ledger, zone=zone, filters={"date": other}) == []


def test_the_oldest_first_and_no_more_than_asked_for(ledger: Ledger) -> None:
    for number in (3, 1, 2):
        hear(ledger, device=f"d{number}")
    assert [block["device_id"] for block in unprompted(ledger, limit=2)] == ["d3", "d1"]
    plan(ledger, limit=2)
    assert [block["device_id"] for block in unprompted(ledger, limit=2)] == ["d2"]


def test_words_of_long_ago_are_left_alone(ledger: Ledger) -> None:
    """Whoever turns the planner on does not pay for a year."""
    hear(ledger)
    ledger.sql("update transcripts set updated_at = now() - interval '8 days'")
    assert unprompted(ledger) == []
    assert len(unprompted(ledger, days=9)) == 1


def test_a_device_that_is_no_uuid_is_refused_alone(ledger: Ledger, uuids: None) -> None:
    for device in ("kitchen", DEVICE, "z"):
        hear(ledger, device=device)
    answer = plan(ledger)
    assert answer["written"] == 1
    assert [(one["device_id"], one["date"], one["time_block"]) for one in answer["refused"]] == [
        ("kitchen", "2025-07-18", "12-00"),
        ("z", "2025-07-18", "12-00"),
    ]
    assert 'invalid input syntax for type uuid: "kitchen"' in answer["refused"][0]["error"]
    assert answer["refused"][0].keys() == {"device_id", "date", "time_block", "error"}  # no words, no prompt
    assert [row["device"] for row in board(ledger)] == [DEVICE]
    # Not every minute again.
    assert unprompted(ledger) == []
    hear(ledger, "more", "kitchen", QUARTER_PAST)
    assert [block["device_id"] for block in unprompted(ledger)] == ["kitchen"]


def test_what_the_apps_table_does_not_take_is_refused_alone(ledger: Ledger) -> None:
    with ledger.altered(
        "alter table dashboard add constraint known check (device_id <> 'd1')",
        "alter table dashboard drop constraint known",
    ):
        hear(ledger, device="d1")
        hear(ledger, device="d2")
        answer = plan(ledger)
    assert (answer["written"], [one["device_id"] for one in answer["refused"]]) == (1, ["d1"])
    assert [row["device"] for row in board(ledger)] == ["d2"]


def test_two_planners_at_once(ledger: Ledger) -> None:
    for number in range(6):
        hear(ledger, device=f"d{number}")
    blocks = unprompted(ledger)
    answers = at_once(*[partial(write, ledger, blocks), partial(write, ledger, blocks[::-1])] * 3)
    assert sum(answer["written"] for answer in answers) == 6
    assert [row["prompt"] for row in board(ledger)] == ["Of: こんにちは"] * 6
    assert ledger.one("select count(*) from work_items where source = 'analysis' and revision = 1") == 6


def test_a_planner_waits_for_another_one(ledger: Ledger) -> None:
    hear(ledger)
    blocks = [{**block, "prompt": "first"} for block in unprompted(ledger)]
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(ledger.url) as other:
            other.execute("select toban_write_prompts(%s)", [Jsonb({"blocks": blocks})])
            second = pool.submit(plan, ledger)
            wait_for(partial(ledger.waits, "advisory"), "the second planner at the lock")
        assert second.result() == {"written": 0, "refused": []}
    assert [row["prompt"] for row in board(ledger)] == ["first"]


def test_a_row_that_the_app_holds_is_left_for_the_next_time(ledger: Ledger) -> None:
    """The app may want another of these rows next; it must not be the one that loses."""
    for device in ("d1", "d2", "d3"):
        ledger.block(device, prompt="the app's")
        hear(ledger, device=device)
    with ledger.app.transaction():
        ledger.sql("update dashboard set updated_at = now() where device_id = 'd2'")
        assert plan(ledger)["written"] == 2
        ledger.sql("update dashboard set updated_at = now() where device_id in ('d1', 'd3')")
    assert [block["device_id"] for block in unprompted(ledger)] == ["d2"]
    assert plan(ledger)["written"] == 1


def test_a_row_that_the_app_is_inserting(ledger: Ledger) -> None:
    hear(ledger)
    with ledger.app.transaction():
        ledger.block(prompt="the app's")
        with pytest.raises(Transient, match="lock timeout"):
            plan(ledger)
    assert plan(ledger)["written"] == 1
    assert board(ledger)[0]["prompt"] == "Of: こんにちは"
