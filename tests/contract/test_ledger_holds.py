"""A held queue: nothing of it is claimed for a while, and a person is told once."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.ledger import QUEUE, Ledger, Row, at_once
from tests.support.servers import wait_for

NO_CREDIT: Row = {"queue": QUEUE, "cause": "credit", "reason": "the credit is used up", "seconds": 600,
                  "incident": True}  # fmt: skip
SLOW_DOWN: Row = {"queue": QUEUE, "cause": "rate", "reason": "too many requests", "seconds": 30,
                  "incident": False}  # fmt: skip


def hold(ledger: Ledger, what: Row = NO_CREDIT, **changes: object) -> str:
    return str(ledger.call("hold", **{**what, **changes})["until"])


def over(ledger: Ledger, ago: str = "1 s") -> None:
    """The time of every hold is over."""
    ledger.sql("update queue_holds set until = now() - %s::interval", ago)


def told(ledger: Ledger) -> Row:
    """What `job_status` says of the queue."""
    (row,) = ledger.sql("select job_key, title, last_status, last_message from job_status")
    assert (row.pop("job_key"), row.pop("title")) == (f"queue-{QUEUE}", f"Queue {QUEUE}")
    return row


IN_ERROR = {"last_status": "error", "last_message": "the credit is used up"}


def test_of_a_held_queue_nothing_is_claimed(ledger: Ledger) -> None:
    ledger.files("d1", 3)
    ledger.heartbeat(slots=2, queues=[QUEUE, "other"])
    hold(ledger)
    answer = ledger.claim_answer()
    assert (answer["items"], answer["found"]) == ([], 3)
    assert answer["reason"] == "held: the credit is used up"
    assert ledger.states() == {"pending": 3}
    # … of another one everything is.
    assert len(ledger.claim(queue="other")) == 3


def test_what_was_sent_before_is_not_started_and_costs_no_try(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    (item,) = ledger.claim()
    hold(ledger)
    answer = ledger.start_answer(item, item["task_id"])
    assert answer == {"started": False, "reason": "held: the credit is used up"}
    row = ledger.item(key)
    assert (row["state"], row["attempt"], row["tries"]) == ("pending", 0, 0)
    assert row["available_at"] == ledger.one("select until from queue_holds")
    assert ledger.status_of(key) == "pending"
    # The old message stays out of date when the hold is over.
    over(ledger)
    assert not ledger.start_answer(item, item["task_id"])["started"]
    ledger.sql("update work_items set available_at = now()")
    assert ledger.finish(ledger.running())["state"] == "completed"


def test_what_runs_may_end_and_asks_again_for_its_start(ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    (item,) = ledger.claim()
    run = ledger.start(item)
    hold(ledger)
    assert ledger.start_answer(item, run.token)["attempt"] == run.attempt
    assert ledger.finish(run)["written"]
    assert told(ledger) == IN_ERROR  # its call went out before


def test_a_row_that_no_longer_waits_is_skipped_even_while_its_queue_is_held(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.heartbeat()
    (item,) = ledger.claim()
    with ledger.altered("alter table audio_files disable trigger user", "alter table audio_files enable trigger user"):
        ledger.set_status("completed")
    hold(ledger)
    assert ledger.start_answer(item, item["task_id"])["reason"] == "the row no longer waits"
    assert ledger.state(key) == "skipped"


def test_a_pause_without_an_incident_lets_starts_pass_and_tells_nobody(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    ledger.heartbeat()
    (item,) = ledger.claim(1)
    hold(ledger, SLOW_DOWN)
    assert ledger.claim_answer()["reason"] == "held: too many requests"
    ledger.finish(ledger.start(item))
    assert ledger.sql("select from job_status") == []
    over(ledger)
    ledger.finish(ledger.running())
    assert ledger.sql("select from queue_holds") == []
    assert ledger.sql("select from job_status") == []


def test_an_incident_is_the_reason_that_is_told(ledger: Ledger) -> None:
    ledger.file()
    ledger.heartbeat()
    hold(ledger, SLOW_DOWN, seconds=900)
    hold(ledger)
    assert ledger.claim_answer()["reason"] == "held: the credit is used up"


def test_a_thousand_refusals_are_one_incident(ledger: Ledger) -> None:
    for _ in range(3):
        at_once(*[partial(hold, ledger)] * 8)
    assert told(ledger) == IN_ERROR
    assert ledger.one("select count(*) from queue_holds") == 1
    (incident,) = ledger.call("other_incidents")["incidents"]
    assert (incident["job_key"], incident["message"]) == (f"queue-{QUEUE}", "the credit is used up")


def test_renewed_it_is_the_same_hold(ledger: Ledger) -> None:
    first = hold(ledger)
    since = ledger.one("select since from queue_holds")
    assert hold(ledger, seconds=1) == first  # never shorter
    assert hold(ledger, seconds=3600, reason="still no credit") > first
    over(ledger)
    hold(ledger, reason="again no credit")
    assert ledger.one("select since from queue_holds") == since
    assert told(ledger)["last_message"] == "again no credit"


def test_it_lasts_until_an_item_is_completed(ledger: Ledger) -> None:
    ledger.files("d1", 5)
    hold(ledger)
    since = ledger.one("""select to_char(since at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') from queue_holds""")
    over(ledger)
    # Claims go on, but that is no proof, and neither is any of these.
    ledger.end("retry", ledger.running())
    ledger.end("fail", ledger.running())
    ledger.end("skip", ledger.running())
    ledger.set_status("completed", ledger.running().answer["key"])
    assert told(ledger) == IN_ERROR
    ledger.finish(ledger.running())
    assert told(ledger) == {"last_status": "success", "last_message": f"it goes on; it was held since {since}"}
    assert ledger.sql("select from queue_holds") == []


def test_an_item_that_is_completed_meanwhile_does_not_end_it(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    hold(ledger)
    ledger.finish(run)
    assert told(ledger) == IN_ERROR
    assert ledger.one("select count(*) from queue_holds") == 1


def test_a_result_that_is_out_of_date_does_not_end_it(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    hold(ledger)
    over(ledger)
    ledger.set_status("completed", key)
    ledger.set_status("pending", key)
    assert not ledger.finish(run)["written"]
    assert told(ledger) == IN_ERROR


def test_of_two_causes_both_have_to_end(ledger: Ledger) -> None:
    ledger.files("d1", 2)
    run = ledger.running()
    hold(ledger)
    over(ledger)
    hold(ledger, cause="budget", reason="the budget is used up")
    ledger.finish(run)
    assert [row["cause"] for row in ledger.sql("select cause from queue_holds")] == ["budget"]
    assert told(ledger) == {"last_status": "error", "last_message": "the budget is used up"}
    over(ledger)
    ledger.finish(ledger.running())
    assert told(ledger)["last_status"] == "success"


def test_a_cause_that_is_no_longer_an_incident_leaves_none_behind(ledger: Ledger) -> None:
    ledger.file()
    run = ledger.running()
    hold(ledger)
    hold(ledger, incident=False)
    assert told(ledger) == IN_ERROR
    over(ledger)
    ledger.finish(run)
    assert told(ledger)["last_status"] == "success"


@pytest.mark.parametrize(("ago", "lifted"), [("14 min", 0), ("16 min", 1)])
def test_of_a_queue_with_nothing_to_do_upkeep_ends_it(ledger: Ledger, ago: str, lifted: int) -> None:
    hold(ledger)
    over(ledger, ago)
    assert ledger.call("upkeep_calls", calls_days=90)["lifted"] == lifted
    assert told(ledger)["last_status"] == ("success" if lifted else "error")


def test_upkeep_leaves_what_holds(ledger: Ledger) -> None:
    hold(ledger)
    over(ledger, "16 min")
    hold(ledger, SLOW_DOWN)
    hold(ledger, queue="gpt")
    assert ledger.call("upkeep_calls", calls_days=90)["lifted"] == 1
    causes = ledger.sql("select queue, cause from queue_holds order by queue")
    assert causes == [{"queue": "gpt", "cause": "credit"}, {"queue": QUEUE, "cause": "rate"}]


def test_an_incident_that_begins_while_another_hold_ends(ledger: Ledger) -> None:
    """The end of the one must not be told as the end of the other."""
    ledger.file()
    run = ledger.running()
    hold(ledger)
    over(ledger)
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(ledger.url) as other:
            refused = {**NO_CREDIT, "cause": "key", "reason": "the key is refused"}
            other.execute("select toban_hold(%s)", [Jsonb(refused)])
            finished = pool.submit(ledger.finish, run)
            wait_for(partial(ledger.waits, "advisory"), "the finish at the lock")
        assert finished.result()["written"]
    assert told(ledger) == {"last_status": "error", "last_message": "the key is refused"}
