"""Calls to language models: noted before they are sent, within the budget, each with its cost."""

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, LiteralString

import pytest

from tests.support.ledger import Attempt, Ledger, Row, at_once

# Their clocks are 26 hours apart: whatever the time is, each has another date.
EAST, WEST = "Pacific/Kiritimati", "Etc/GMT+12"
OK: Row = {"outcome": "ok", "prompt_tokens": 90, "cached_tokens": 10, "completion_tokens": 20, "latency_ms": 800}


def begin_answer(ledger: Ledger, run: Attempt, cost: Any = 0.01, **params: object) -> Row:
    return dict(ledger.call("begin_call", **{**run.ids(), "model": "small", "cost": cost, "zone": "UTC", **params}))


def begin(ledger: Ledger, run: Attempt, cost: Any = 0.01, **params: object) -> int:
    answer = begin_answer(ledger, run, cost, **params)
    assert answer.keys() == {"call"}, answer
    return int(answer["call"])


def end(ledger: Ledger, call: int, **params: object) -> bool:
    return bool(ledger.call("end_call", call=call, **{**OK, **params})["ended"])


def a_run(ledger: Ledger) -> Attempt:
    """An analysis that has started."""
    ledger.block()
    return ledger.running("analysis")


def again(ledger: Ledger, run: Attempt) -> Attempt:
    """The worker has died; another takes the item."""
    ledger.sql("update work_items set lease_until = now() - interval '1 s' where id = %s", run.id)
    ledger.heartbeat()
    ledger.sql("update work_items set available_at = now() where id = %s", run.id)
    return ledger.running("analysis")


def call_of(ledger: Ledger, call: int) -> Row:
    return ledger.sql("select * from llm_calls where id = %s", call)[0]


def days(ledger: Ledger) -> list[tuple[int, Decimal]]:
    return [(row["calls"], row["cost"]) for row in ledger.sql("select calls, cost from llm_days order by day")]


def spent(ledger: Ledger, day: str, cost: float) -> None:
    ledger.sql("insert into llm_days (day, calls, cost) values (%s, 1, %s)", day, cost)


def date(ledger: Ledger, zone: str, expression: LiteralString = "d") -> str:
    """A day of the calendar of `zone`; `expression`: over today's date, d."""
    return str(
        ledger.one(f"select ({expression})::date::text from (select (now() at time zone %s)::date as d) x", zone)
    )


# --- one call --------------------------------------------------------------------------------------------------------


def test_a_call_is_noted_with_its_estimate_before_it_is_sent(ledger: Ledger) -> None:
    run = a_run(ledger)
    row = call_of(ledger, begin(ledger, run, 0.01))
    assert (row["item_id"], row["source"], row["key"]) == (run.id, "analysis", "d1/2025-07-18/12-00")
    assert (row["attempt"], row["lane"], row["model"], row["outcome"]) == (1, "direct", "small", "sent")
    assert (row["cost"], row["possibly_billed"], row["ended_at"]) == (Decimal("0.01"), False, None)
    assert str(row["day"]) == date(ledger, "UTC")
    assert days(ledger) == [(1, Decimal("0.01"))]


def test_the_actual_cost_replaces_the_estimate(ledger: Ledger) -> None:
    run = a_run(ledger)
    calls = [begin(ledger, run, 0.01) for _ in range(3)]
    assert end(ledger, calls[0], cost=0.0031, model="small-2025-07-18")
    assert end(ledger, calls[1], cost=0.02)
    assert end(ledger, calls[2])  # no price is known: the estimate stays
    row = call_of(ledger, calls[0])
    assert (row["model"], row["outcome"], row["cost"]) == ("small-2025-07-18", "ok", Decimal("0.0031"))
    assert [row[name] for name in OK] == list(OK.values())
    assert row["ended_at"] is not None
    assert call_of(ledger, calls[2])["cost"] == Decimal("0.01")
    assert days(ledger) == [(3, Decimal("0.0331"))]


def test_what_costs_less_than_can_be_noted_adds_up_all_the_same(ledger: Ledger) -> None:
    run = a_run(ledger)
    for _ in range(3):
        end(ledger, begin(ledger, run, "0.000000123456"), cost="0.000000056789")
    assert days(ledger) == [(3, ledger.one("select sum(cost) from llm_calls"))]


def test_a_refused_call_costs_nothing(ledger: Ledger) -> None:
    call = begin(ledger, a_run(ledger), 0.01)
    ledger.call("end_call", call=call, outcome="rate_limited", cost=0)
    row = call_of(ledger, call)
    assert (row["outcome"], row["cost"], row["completion_tokens"]) == ("rate_limited", 0, None)
    assert days(ledger) == [(1, Decimal(0))]


def test_an_end_that_is_repeated_changes_nothing(ledger: Ledger) -> None:
    call = begin(ledger, a_run(ledger), 0.01)
    assert sorted(at_once(*[partial(end, ledger, call, cost=0.5)] * 6)) == [False] * 5 + [True]
    before = call_of(ledger, call)
    assert not end(ledger, call, cost=0.7, outcome="refusal")
    assert call_of(ledger, call) == before
    assert days(ledger) == [(1, Decimal("0.5"))]
    assert not end(ledger, call + 1)


def test_only_who_owns_the_item_may_call(ledger: Ledger) -> None:
    run = a_run(ledger)
    ids = run.ids()
    for wrong in ({"attempt": 2}, {"token": "00000000-0000-0000-0000-000000000000"}, {"id": run.id + 1}):
        assert begin_answer(ledger, Attempt(**{**ids, **wrong}, answer={})) == {"lost": True}
    later = again(ledger, run)
    assert begin_answer(ledger, run) == {"lost": True}
    ledger.call("finish", **later.ids(), result={})
    assert begin_answer(ledger, later) == {"lost": True}
    assert ledger.sql("select from llm_calls") == []
    assert days(ledger) == []


# --- calls without an end --------------------------------------------------------------------------------------------


def test_a_call_whose_worker_died_is_possibly_billed(ledger: Ledger) -> None:
    run = a_run(ledger)
    ended, lost = begin(ledger, run, 0.01), begin(ledger, run, 0.02)
    end(ledger, ended, cost=0.01)
    run = again(ledger, run)
    assert call_of(ledger, lost)["outcome"] == "sent"
    new = begin(ledger, run, 0.01)
    row = call_of(ledger, lost)
    assert (row["outcome"], row["possibly_billed"], row["cost"]) == ("lost", True, Decimal("0.02"))
    assert row["ended_at"] is not None
    assert call_of(ledger, ended)["outcome"] == "ok"
    assert call_of(ledger, new)["outcome"] == "sent"
    assert days(ledger) == [(3, Decimal("0.04"))]


def test_a_lost_call_that_ends_after_all(ledger: Ledger) -> None:
    run = a_run(ledger)
    lost = begin(ledger, run, 0.02)
    begin(ledger, again(ledger, run), 0.01)
    assert end(ledger, lost, cost=0.005)
    row = call_of(ledger, lost)
    assert (row["outcome"], row["possibly_billed"], row["cost"]) == ("ok", False, Decimal("0.005"))
    assert days(ledger) == [(2, Decimal("0.015"))]
    assert not end(ledger, lost, cost=0.005)


def test_upkeep_finds_calls_of_items_that_never_went_again(ledger: Ledger) -> None:
    run = a_run(ledger)
    call = begin(ledger, run)

    def lost() -> int:
        return int(ledger.call("upkeep_calls", calls_days=90)["lost"])

    assert lost() == 0
    ledger.sql("update llm_calls set sent_at = now() - interval '1 h'")
    assert lost() == 0  # it runs, and waits for the answer
    ledger.end("fail", run)
    ledger.sql("update llm_calls set sent_at = now() - interval '4 min'")
    assert lost() == 0  # its end may be on the way
    ledger.sql("update llm_calls set sent_at = now() - interval '6 min'")
    assert lost() == 1
    assert (call_of(ledger, call)["outcome"], call_of(ledger, call)["possibly_billed"]) == ("lost", True)
    assert lost() == 0


def test_upkeep_finds_calls_of_earlier_attempts_and_of_items_that_are_gone(ledger: Ledger) -> None:
    run = a_run(ledger)
    begin(ledger, run)
    again(ledger, run)
    ledger.block("d2")
    begin(ledger, ledger.running("analysis"))
    ledger.sql("delete from work_items where partition = 'd2'")
    ledger.sql("update llm_calls set sent_at = now() - interval '6 min'")
    assert ledger.call("upkeep_calls", calls_days=90)["lost"] == 2


def test_upkeep_leaves_calls_of_the_batch_lane(ledger: Ledger) -> None:
    run = a_run(ledger)
    begin(ledger, run)
    ledger.end("fail", run)
    ledger.sql("update llm_calls set lane = 'batch', sent_at = now() - interval '20 h'")
    assert ledger.call("upkeep_calls", calls_days=90)["lost"] == 0


def test_old_calls_are_forgotten_in_batches(ledger: Ledger) -> None:
    run = a_run(ledger)
    for _ in range(5):
        end(ledger, begin(ledger, run))
    begin(ledger, run)
    ledger.sql("update llm_calls set sent_at = now() - interval '31 days' where id > 1")
    spent(ledger, "2020-01-01", 1)
    spent(ledger, date(ledger, "UTC", "d - 40"), 1)
    answers = [ledger.call("upkeep_calls", calls_days=30, limit=3) for _ in range(2)]
    assert [(answer["forgotten"], answer["more"]) for answer in answers] == [(3, True), (1, False)]
    outcomes = ledger.sql("select outcome from llm_calls order by id")
    assert outcomes == [{"outcome": "ok"}, {"outcome": "sent"}]  # the last still runs
    # A month's budget needs its days, however soon calls are forgotten.
    assert len(days(ledger)) == 2


def test_beginnings_ends_and_upkeep_at_once(ledger: Ledger) -> None:
    """All of them lock days and calls; none may wait for another in a circle."""
    runs = []
    for n in range(6):
        ledger.block(f"d{n}")
        runs.append(ledger.running("analysis"))
    for _ in range(10):
        calls = [begin(ledger, run) for run in runs]
        ledger.sql("update llm_calls set sent_at = now() - interval '6 min', attempt = 0 where outcome = 'sent'")
        at_once(
            *[partial(begin, ledger, run) for run in runs],
            *[partial(end, ledger, call, cost=0.001) for call in calls],
            *[partial(ledger.call, "upkeep_calls", calls_days=90)] * 2,
        )
        ledger.sql("update llm_calls set outcome = 'ok' where outcome = 'sent'")
    assert ledger.one("select sum(calls) from llm_days") == 120
    assert ledger.one("select sum(cost) from llm_days") == ledger.one("select sum(cost) from llm_calls")


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_call_that_would_exceed_the_days_budget_is_not_sent(ledger: Ledger) -> None:
    run = a_run(ledger)
    begin(ledger, run, 0.06, daily=0.1)
    over = begin_answer(ledger, run, 0.05, daily=0.1)["over"]
    assert over["reason"].startswith(
        "the budget of 0.1 USD a day is used up (0.06 spent, and the next call may cost 0.05); it goes on at "
    )
    assert over["reason"].endswith(" 00:00 UTC, or soon after LLM_BUDGET_DAILY is raised")
    assert days(ledger) == [(1, Decimal("0.06"))]
    assert ledger.one("select count(*) from llm_calls") == 1
    begin(ledger, run, 0.04, daily=0.1)  # exactly the budget
    assert "over" in begin_answer(ledger, run, 0.00000001, daily=0.1)
    begin(ledger, run, 0.05, daily=0.2)  # raised


def test_a_cheaper_answer_gives_its_estimate_back_to_the_budget(ledger: Ledger) -> None:
    run = a_run(ledger)
    call = begin(ledger, run, 0.1, daily=0.1)
    assert "over" in begin_answer(ledger, run, 0.01, daily=0.1)
    end(ledger, call, cost=0.02)
    begin(ledger, run, 0.01, daily=0.1)


@pytest.mark.parametrize("zone", [EAST, WEST, "America/New_York"])
@pytest.mark.parametrize(("budget", "unit"), [("daily", "day"), ("monthly", "month")])
def test_it_goes_on_when_the_day_or_the_month_ends_in_the_zone(
    ledger: Ledger, zone: str, budget: str, unit: str
) -> None:
    run = a_run(ledger)
    over = begin_answer(ledger, run, 2, zone=zone, **{budget: 1})["over"]
    next_one = ledger.one(
        "select (date_trunc(%s, now() at time zone %s) + ('1 ' || %s)::interval) at time zone %s",
        unit, zone, unit, zone,
    )  # fmt: skip
    now = ledger.one("select now()")
    off = now + timedelta(seconds=over["seconds"]) - next_one
    assert abs(off) < timedelta(minutes=5)
    wall = ledger.one("select to_char(%s::timestamptz at time zone %s, 'YYYY-MM-DD HH24:MI')", next_one, zone)
    assert f"it goes on at {wall} {zone}, or soon after LLM_BUDGET_{budget.upper()} is raised" in over["reason"]


def test_another_day_has_its_own_budget(ledger: Ledger) -> None:
    run = a_run(ledger)
    begin(ledger, run, 0.1, daily=0.1, zone=EAST)
    assert "over" in begin_answer(ledger, run, 0.1, daily=0.1, zone=EAST)
    begin(ledger, run, 0.1, daily=0.1, zone=WEST)
    calls = ledger.sql("select day::text from llm_calls order by id")
    assert [row["day"] for row in calls] == [date(ledger, EAST), date(ledger, WEST)]


def test_a_month_begins_with_its_first_day(ledger: Ledger) -> None:
    run = a_run(ledger)
    first, last = (
        date(ledger, EAST, each) for each in ("date_trunc('month', d)", "date_trunc('month', d) - interval '1 day'")
    )
    spent(ledger, last, 9)
    begin(ledger, run, 0.5, monthly=1, zone=EAST)
    ledger.sql("insert into llm_days as t (day, calls, cost) values (%s, 1, 0.4)"
               " on conflict (day) do update set cost = t.cost + 0.4", first)  # fmt: skip
    over = begin_answer(ledger, run, 0.2, monthly=1, zone=EAST)["over"]
    assert "the budget of 1 USD a month is used up (0.9 spent, and the next call may cost 0.2)" in over["reason"]
    begin(ledger, run, 0.1, monthly=1, zone=EAST)


def test_the_month_is_told_before_the_day(ledger: Ledger) -> None:
    assert " a month " in begin_answer(ledger, a_run(ledger), 2, daily=1, monthly=1)["over"]["reason"]


def test_without_a_price_only_a_budget_that_is_exceeded_stops_calls(ledger: Ledger) -> None:
    run = a_run(ledger)
    begin(ledger, run, 0, daily=0)
    begin(ledger, run, None, daily=0)
    end(ledger, begin(ledger, run, 0, daily=0), cost=0.01)
    assert "over" in begin_answer(ledger, run, 0, daily=0)


@pytest.mark.parametrize("budget", ["daily", "monthly"])
def test_ten_at_once_never_exceed_the_budget(ledger: Ledger, budget: str) -> None:
    runs = []
    for n in range(10):
        ledger.block(f"d{n}")
        runs.append(ledger.running("analysis"))
    for _ in range(5):
        ledger.sql("truncate llm_days")
        answers = at_once(*[partial(begin_answer, ledger, run, 0.3, **{budget: 1}) for run in runs])
        assert Counter("call" in answer for answer in answers) == {True: 3, False: 7}
        assert days(ledger) == [(3, Decimal("0.9"))]


# --- what was spent --------------------------------------------------------------------------------------------------


def test_spending(ledger: Ledger) -> None:
    run = a_run(ledger)
    end(ledger, begin(ledger, run, 0.01), outcome="invalid_json", cost=0.01)
    begin(ledger, run, 0.02)
    run = again(ledger, run)
    call = begin(ledger, run, 0.01)
    ledger.call("finish", **run.ids(), result={"call": {**OK, "call": call, "cost": 0.03}})
    ledger.block("d2")
    refused = begin(ledger, ledger.running("analysis"), 0.01, model="large")
    ledger.call("end_call", call=refused, outcome="rate_limited", cost=0)
    spent(ledger, "2020-01-01", 5)
    spending = ledger.call("spending", zone="UTC", daily=1, monthly=1)
    today = date(ledger, "UTC")
    assert spending == {
        "today": 0.06, "month": 0.06,
        "outcomes": {"invalid_json": 1, "lost": 1, "ok": 1, "rate_limited": 1},
        "models": {"small": {"calls": 3, "cost": 0.06}, "large": {"calls": 1, "cost": 0}},
        "paid_calls": 3, "possibly_billed": 1, "completed": 1,
        "days": [{"day": today, "calls": 4, "cost": 0.06}],
    }  # fmt: skip


def test_spending_of_so_many_days(ledger: Ledger) -> None:
    run = a_run(ledger)
    end(ledger, begin(ledger, run), cost=1)
    yesterday = date(ledger, "UTC", "d - 1")
    ledger.sql("update llm_calls set day = %s", yesterday)
    ledger.sql("update llm_days set day = %s", yesterday)
    end(ledger, begin(ledger, run), cost=2)
    one, two = (ledger.call("spending", zone="UTC", days=n) for n in (1, 2))
    assert [len(answer["days"]) for answer in (one, two)] == [1, 2]
    assert [answer["outcomes"] for answer in (one, two)] == [{"ok": 1}, {"ok": 2}]
    assert one["today"] == two["today"] == 2


def test_nothing_was_spent(ledger: Ledger) -> None:
    assert ledger.call("spending", zone="Asia/Tokyo") == {
        "today": 0, "month": 0, "outcomes": {}, "models": {}, "paid_calls": 0, "possibly_billed": 0, "completed": 0,
        "days": [],
    }  # fmt: skip
