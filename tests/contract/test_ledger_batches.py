"""Rows that go to the language model in batches: who takes them, how they come back, and what it costs."""

from typing import Any, LiteralString

import pytest

from tests.support.ledger import Ledger, at_once

DAY, HOUR = 86400, 3600


def blocks(ledger: Ledger, count: int, device: str = "d1", prompt: str = "how was it?") -> list[str]:
    """The app writes `count` rows with a prompt, a minute apart, the first now; returns their items' keys."""
    ledger.sql(
        "insert into dashboard (device_id, date, time_block, prompt)"
        " select %s, t, to_char(t, 'HH24-MI'), %s"
        " from (select '2025-07-18'::timestamp + n * interval '30 min' as t from generate_series(0, %s) n) x",
        device, prompt, count - 1,
    )  # fmt: skip
    rows = ledger.sql("select key from work_items where source = 'analysis' and partition = %s order by id", device)
    return [row["key"] for row in rows]


def age(ledger: Ledger, seconds: float, key: str | None = None) -> None:
    """Rows have been waiting for so long."""
    ledger.sql(
        "update work_items set opened_at = now() - %s * interval '1 s' where %s::text is null or key = %s",
        seconds, key, key,
    )  # fmt: skip


def open_answer(ledger: Ledger, **params: object) -> dict[str, Any]:
    """Rows may wait a day, 20 hours of it in the lane."""
    defaults = {"source": "analysis", "queue": "gpt", "model": "m", "limit": 100, "least": 1, "patience": 600}
    defaults |= {"pause": 600, "stay": 20 * HOUR, "deadline": DAY, "busy": 600, "max_attempts": 5}
    return dict(ledger.call("open_batch", **{**defaults, **params}))


def opened(ledger: Ledger, **params: object) -> dict[str, Any]:
    answer = open_answer(ledger, **params)
    assert answer["batch"], answer
    return answer


def begun(ledger: Ledger, batch: dict[str, Any], cost: float = 0.01, **params: object) -> dict[str, Any]:
    calls = [{"id": item["id"], "cost": cost} for item in batch["items"]]
    return dict(ledger.call("begin_batch", batch=batch["batch"], calls=calls, zone="UTC", **params))


def sent(ledger: Ledger, **params: object) -> dict[str, Any]:
    """A batch that the provider has."""
    batch = opened(ledger, **params)
    assert len(begun(ledger, batch)["sent"]) == len(batch["items"])
    assert ledger.call("batch_submitted", batch=batch["batch"], provider_id="b1") == {"submitted": True}
    return batch


def taken(ledger: Ledger, after: int = 0) -> dict[str, Any] | None:
    answer = ledger.call("take_batch", source="analysis", busy=600, after=after)["batch"]
    return dict(answer) if answer else None


def items(ledger: Ledger, batch: dict[str, Any]) -> list[dict[str, Any]]:
    return list(ledger.call("batch_items", batch=batch["batch"])["items"])


def ended(ledger: Ledger, batch: dict[str, Any], **params: object) -> int:
    defaults = {"message": "completed", "direct": True, "lost": False, "days": 90}
    return int(ledger.call("end_batch", batch=batch["batch"], **{**defaults, **params})["left"])


def answer(ledger: Ledger, item: dict[str, Any], cost: str = "0.004") -> dict[str, Any]:
    fence = {name: item[name] for name in ("id", "attempt", "token")}
    call = {"call": item["call"], "outcome": "ok", "cost": cost}
    return dict(ledger.call("finish", **fence, result={"row": {"vibe_score": 7}, "call": call}, error=None))


def calls(ledger: Ledger) -> list[tuple[Any, ...]]:
    rows = ledger.sql("select lane, outcome, possibly_billed, cost from llm_calls order by id")
    return [(row["lane"], row["outcome"], row["possibly_billed"], float(row["cost"])) for row in rows]


def day(ledger: Ledger) -> tuple[int, float]:
    row = ledger.sql("select coalesce(sum(calls), 0) as n, coalesce(sum(cost), 0) as cost from llm_days")[0]
    return int(row["n"]), float(row["cost"])


def claimed(ledger: Ledger, before: LiteralString = "10 hours") -> list[str]:
    """What the direct lane takes."""
    ledger.heartbeat("gpt1", slots=50, queues=["gpt"])
    moment = ledger.sql("select now() - %s::interval as t", before)[0]["t"].isoformat()
    return [item["key"] for item in ledger.claim(100, "analysis", queue="gpt", opened_before=moment)]


def test_a_row_goes_and_comes_back(ledger: Ledger) -> None:
    (key,) = blocks(ledger, 1)
    batch = opened(ledger)
    (item,) = batch["items"]
    assert (item["attempt"], item["row"]["prompt"]) == (1, "how was it?")
    row = ledger.item(key, "analysis")
    assert (row["state"], row["worker"], row["queue"]) == ("processing", f"batch {batch['batch']}", None)
    assert (row["lease_until"] - row["opened_at"]).total_seconds() == DAY
    assert begun(ledger, batch)["sent"] == [item["id"]]
    assert (calls(ledger), day(ledger)) == ([("batch", "sent", False, 0.01)], (1, 0.01))
    assert ledger.call("batch_submitted", batch=batch["batch"], provider_id="b1") == {"submitted": True}
    assert ledger.call("batch_submitted", batch=batch["batch"], provider_id="b1") == {"submitted": True}
    look = taken(ledger)
    assert look is not None
    assert (look["provider_id"], look["state"], look["out"], look["due"]) == ("b1", "submitted", 1, False)
    (out,) = items(ledger, batch)
    assert out["out"]
    assert answer(ledger, out)["written"]
    assert answer(ledger, out)["written"]  # a second reading of the same file
    assert ended(ledger, batch) == 0
    assert ended(ledger, batch) == 0
    assert ledger.state(key, "analysis") == "completed"
    assert ledger.one("select vibe_score from dashboard") == 7
    assert (calls(ledger), day(ledger)) == ([("batch", "ok", False, 0.004)], (1, 0.004))
    assert ledger.sql("select state, size, answered, message from llm_batches") == [
        {"state": "ended", "size": 1, "answered": 1, "message": "completed"}
    ]
    assert ledger.sql("select * from llm_batch_items") == []


def test_a_batch_waits_for_more_rows_but_not_for_long(ledger: Ledger) -> None:
    blocks(ledger, 2)
    assert open_answer(ledger, least=3) == {"batch": None, "reason": "2 wait"}
    age(ledger, 700)
    assert len(opened(ledger, least=3)["items"]) == 2
    assert open_answer(ledger) == {"batch": None, "reason": "0 wait"}
    blocks(ledger, 3, "d2")
    assert len(opened(ledger, least=3)["items"]) == 3


def test_the_oldest_go_first_and_one_batch_has_so_many(ledger: Ledger) -> None:
    keys = blocks(ledger, 3)
    age(ledger, 900, keys[2])
    (first,) = opened(ledger, limit=1)["items"]
    assert first["row"]["time_block"] == "01-00"
    assert len(opened(ledger, limit=5)["items"]) == 2


def test_either_lane_takes_what_the_other_leaves(ledger: Ledger) -> None:
    fresh, urgent, direct, model, old, skipped = blocks(ledger, 6)
    ledger.call("reprocess", source="analysis", keys=[urgent])
    ledger.sql("update work_items set params = '{\"direct\": true}' where key = %s", direct)
    ledger.call("reprocess", source="analysis", keys=[model], params={"model": "x"}, priority=0)
    age(ledger, 11 * HOUR, old)
    ledger.sql("update work_items set available_at = now() + interval '1 h' where key = %s", skipped)
    (item,) = opened(ledger)["items"]
    assert ledger.one("select key from work_items where id = %s", item["id"]) == fresh
    assert set(claimed(ledger)) == {urgent, direct, model, old}


def test_rows_in_a_batch_take_no_turn_of_their_device(ledger: Ledger) -> None:
    blocks(ledger, 3, "busy")
    opened(ledger)
    ledger.sql("insert into dashboard (device_id, date, time_block, prompt) values ('busy', '2025-08-01', '00-00', '')")
    blocks(ledger, 1, "idle")
    age(ledger, 12 * HOUR, "busy/2025-08-01/00-00")
    age(ledger, 11 * HOUR, "idle/2025-07-18/00-00")
    ledger.heartbeat("gpt1", slots=5, queues=["gpt"])
    assert [item["key"] for item in ledger.claim(1, "analysis", queue="gpt")] == ["busy/2025-08-01/00-00"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("update jobs set enabled = false", "paused"),
        (
            "insert into queue_holds values ('gpt', 'credit', 'no money', true, now(), now() + interval '1 min')",
            "held: no money",
        ),
        ('update jobs set filters = \'{"partition": "other"}\'', "0 wait"),
        ('update jobs set filters = \'{"date": "2025-07-19"}\'', "0 wait"),
    ],
)
def test_the_jobs_switchboard_holds_for_the_lane(ledger: Ledger, change: LiteralString, reason: str) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "analysis", "title": "A", "source": "analysis", "every": 10}])
    blocks(ledger, 1)
    ledger.sql(change)
    assert open_answer(ledger) == {"batch": None, "reason": reason}


def test_the_jobs_limit_is_a_batchs_limit(ledger: Ledger) -> None:
    ledger.call("sync_jobs", jobs=[{"job": "analysis", "title": "A", "source": "analysis", "every": 10}])
    ledger.sql("update jobs set batch_limit = 2")
    blocks(ledger, 5)
    assert len(opened(ledger, least=50)["items"]) == 2


def test_rows_that_no_longer_wait_stay_where_they_are(ledger: Ledger) -> None:
    gone, _ = blocks(ledger, 2)
    with ledger.altered("alter table dashboard disable trigger user", "alter table dashboard enable trigger user"):
        ledger.sql("update dashboard set status = 'completed' where time_block = '00-00'")
    batch = opened(ledger)
    assert [item["row"]["time_block"] for item in batch["items"]] == ["00-30"]
    assert ledger.one("select size from llm_batches") == 1
    assert ledger.state(gone, "analysis") == "pending"
    assert open_answer(ledger) == {"batch": None, "reason": "somebody else holds what is due"}
    assert ledger.one("select count(*) from llm_batches") == 1


def test_two_senders_share_the_rows(ledger: Ledger) -> None:
    blocks(ledger, 40)
    answers = at_once(*[lambda: open_answer(ledger, limit=20)] * 4)
    ids = [item["id"] for answer in answers if answer["batch"] for item in answer["items"]]
    assert len(ids) == len(set(ids))
    assert len(ids) >= 20


def test_the_budget_takes_the_oldest(ledger: Ledger) -> None:
    keys = blocks(ledger, 3)
    age(ledger, 900, keys[2])
    age(ledger, 800, keys[1])
    batch = opened(ledger)
    noted = begun(ledger, batch, cost=0.4, daily="1")
    by_id = {item["id"]: item["row"]["time_block"] for item in batch["items"]}
    assert {by_id[item] for item in noted["sent"]} == {"00-30", "01-00"}
    assert "LLM_BUDGET_DAILY" in noted["over"]["reason"]
    assert day(ledger) == (2, 0.8)
    left = [item for item in by_id if item not in noted["sent"]]
    assert ledger.call("leave_batch", batch=batch["batch"], ids=left, direct=False) == {"left": 1}
    row = ledger.item(keys[0], "analysis")
    assert (row["state"], row["params"], row["tries"]) == ("pending", {}, 0)


def test_a_spent_budget_allows_none_and_a_price_that_is_not_known_all(ledger: Ledger) -> None:
    blocks(ledger, 2)
    batch = opened(ledger)
    noted = begun(ledger, batch, cost=2, daily="1")
    assert noted["sent"] == []
    assert noted["over"]["seconds"] > 0
    assert ended(ledger, batch, direct=False) == 2
    batch = opened(ledger, pause=0)
    unknown = [{"id": item["id"], "cost": None} for item in batch["items"]]
    noted = ledger.call("begin_batch", batch=batch["batch"], calls=unknown, zone="UTC", daily="1")
    assert len(noted["sent"]) == 2
    assert "over" not in noted


def test_a_batch_that_was_not_sent_costs_nothing_and_its_rows_wait_on(ledger: Ledger) -> None:
    (key,) = blocks(ledger, 1)
    batch = opened(ledger)
    begun(ledger, batch)
    assert ended(ledger, batch, direct=False, message="away") == 1
    assert (calls(ledger), day(ledger)) == ([], (0, 0))
    row = ledger.item(key, "analysis")
    assert (row["state"], row["params"], row["tries"]) == ("pending", {}, 0)
    assert open_answer(ledger) == {"batch": None, "reason": "the last batch could not be sent: away"}
    ledger.sql("update llm_batches set ended_at = now() - interval '11 min'")
    assert len(opened(ledger)["items"]) == 1


def test_what_a_batch_did_not_answer_is_asked_alone_at_no_try(ledger: Ledger) -> None:
    done, rest = blocks(ledger, 2)
    batch = sent(ledger)
    answer(ledger, items(ledger, batch)[0])
    assert ended(ledger, batch, message="expired") == 1
    assert ledger.state(done, "analysis") == "completed"
    row = ledger.item(rest, "analysis")
    assert (row["state"], row["params"], row["tries"]) == ("pending", {"direct": True}, 0)
    assert calls(ledger) == [("batch", "ok", False, 0.004), ("batch", "unanswered", False, 0)]
    assert day(ledger) == (2, 0.004)
    assert open_answer(ledger) == {"batch": None, "reason": "0 wait"}
    assert claimed(ledger) == [rest]


def test_answers_that_are_lost_may_have_been_billed(ledger: Ledger) -> None:
    blocks(ledger, 1)
    assert ended(ledger, sent(ledger), lost=True) == 1
    assert (calls(ledger), day(ledger)) == ([("batch", "lost", True, 0.01)], (1, 0.01))


def test_a_row_that_changes_leaves_its_batch_and_goes_as_a_new_one(ledger: Ledger) -> None:
    changed, _ = blocks(ledger, 2)
    batch = sent(ledger)
    age(ledger, 5 * HOUR)
    before, _ = items(ledger, batch)
    ledger.sql("update dashboard set prompt = 'and now?' where time_block = '00-00'")
    look = taken(ledger)
    assert look is not None
    assert (look["out"], look["due"]) == (1, False)
    row = ledger.item(changed, "analysis")
    assert (row["state"], row["params"], row["tries"]) == ("pending", {}, 0)
    assert ledger.one("select now() - opened_at < '1 hour' from work_items where key = %s", changed)
    assert not answer(ledger, before)["written"]
    assert [item["out"] for item in items(ledger, batch)] == [False, True]
    (again,) = opened(ledger)["items"]
    assert again["row"]["prompt"] == "and now?"
    assert not answer(ledger, before)["written"]
    assert ledger.state(changed, "analysis") == "processing"


def test_a_row_asked_for_by_hand_leaves_its_batch_and_waits_no_more(ledger: Ledger) -> None:
    key, _ = blocks(ledger, 2)
    batch = sent(ledger)
    ledger.call("reprocess", source="analysis", keys=[key], params={"model": "better"})
    taken(ledger)
    assert open_answer(ledger) == {"batch": None, "reason": "0 wait"}
    assert claimed(ledger) == [key]
    assert ended(ledger, batch) == 1


def test_a_row_that_the_app_finishes_is_left_alone(ledger: Ledger) -> None:
    key, _ = blocks(ledger, 2)
    batch = sent(ledger)
    ledger.sql("update dashboard set status = 'completed' where time_block = '00-00'")
    ledger.sql("delete from dashboard where time_block = '00-30'")
    look = taken(ledger)
    assert look is not None
    assert (look["out"], look["due"]) == (0, True)  # nobody waits for its answers
    assert ended(ledger, batch) == 0
    assert ledger.state(key, "analysis") == "completed"


def test_a_batch_is_one_callers(ledger: Ledger) -> None:
    blocks(ledger, 4)
    numbers = [sent(ledger, limit=2)["batch"], sent(ledger, limit=2)["batch"]]
    looks = at_once(*[lambda: taken(ledger)] * 4)
    assert sorted(look["id"] for look in looks if look) == numbers
    assert taken(ledger) is None
    assert ledger.call("note_batch", batch=numbers[1], message="in_progress") == {"noted": True}
    assert taken(ledger, after=numbers[1]) is None
    look = taken(ledger, after=numbers[0])
    assert look is not None
    assert look["id"] == numbers[1]
    assert ledger.one("select message from llm_batches where id = %s", numbers[1]) == "in_progress"


def test_rows_have_to_leave_in_time(ledger: Ledger) -> None:
    blocks(ledger, 1)
    age(ledger, 2 * HOUR)
    batch = sent(ledger)
    stays = "select extract(epoch from leave_by - now()) / 3600 from llm_batches"
    assert round(float(ledger.one(stays))) == 18
    ledger.sql("update llm_batches set leave_by = now()")
    look = taken(ledger)
    assert look is not None
    assert look["due"]
    ledger.call("note_batch", batch=batch["batch"], state="cancelling")
    look = taken(ledger)
    assert look is not None
    assert look["state"] == "cancelling"


def test_a_batch_that_nobody_looks_after_loses_its_rows_at_their_deadline(ledger: Ledger) -> None:
    (key,) = blocks(ledger, 1)
    sent(ledger)
    ledger.sql(
        "update work_items set opened_at = opened_at - interval '1 day', lease_until = now() - interval '1 s',"
        " run_until = now() - interval '1 s', available_at = now() - interval '1 day'"
    )
    ledger.heartbeat("gpt1", slots=5, queues=["gpt"])
    assert ledger.state(key, "analysis") == "pending"
    ledger.sql("update work_items set available_at = now()")
    assert claimed(ledger) == [key]
    look = taken(ledger)
    assert look is not None
    assert look["due"]


def test_a_batch_given_up_is_not_taken_as_sent(ledger: Ledger) -> None:
    blocks(ledger, 1)
    batch = opened(ledger)
    begun(ledger, batch)
    ended(ledger, batch, direct=False)
    assert ledger.call("batch_submitted", batch=batch["batch"], provider_id="late") == {"submitted": False}
    assert begun(ledger, batch)["sent"] == []
    assert ledger.call("note_batch", batch=batch["batch"], state="cancelling") == {"noted": False}


def test_the_lanes_calls_are_not_taken_for_lost_by_upkeep(ledger: Ledger) -> None:
    blocks(ledger, 1)
    sent(ledger)
    ledger.sql("update llm_calls set sent_at = now() - interval '5 hours'")
    assert ledger.call("upkeep_calls", calls_days=90)["lost"] == 0
    assert calls(ledger)[0][1] == "sent"


def test_old_batches_are_forgotten_as_others_end(ledger: Ledger) -> None:
    blocks(ledger, 1)
    ended(ledger, sent(ledger))
    ledger.sql("update llm_batches set ended_at = now() - interval '91 days'")
    blocks(ledger, 1, "d2")
    second = sent(ledger)
    ended(ledger, second)
    assert ledger.one("select array_agg(id) from llm_batches") == [second["batch"]]


def test_status_tells_a_batch_in_one_line(ledger: Ledger) -> None:
    blocks(ledger, 3)
    batch = sent(ledger)
    answer(ledger, items(ledger, batch)[0])
    status = ledger.call("status")
    assert status["running"] == []
    (told,) = status["batches"]
    assert (told["id"], told["size"], told["out"], told["state"]) == (batch["batch"], 3, 2, "submitted")
    ended(ledger, batch)
    assert ledger.call("status")["batches"] == []


def test_a_batch_back_says_nothing_of_whether_its_queue_goes_on(ledger: Ledger) -> None:
    blocks(ledger, 1)
    batch = sent(ledger)
    ledger.sql("insert into queue_holds values ('gpt', 'credit', 'no money', true, now(), now())")
    answer(ledger, items(ledger, batch)[0])
    assert ledger.one("select count(*) from queue_holds") == 1


def test_a_hundred_rows_and_more_come_through_one_answer(ledger: Ledger) -> None:
    blocks(ledger, 1200)
    batch = sent(ledger, limit=1200)
    assert len(batch["items"]) == len(items(ledger, batch)) == 1200
    assert ended(ledger, batch) == 1200
    assert day(ledger) == (1200, 0)
