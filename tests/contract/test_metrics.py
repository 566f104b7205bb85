"""What is counted for Prometheus: each thing once, whoever asks, and however often."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from tests.support.ledger import Ledger


def age(ledger: Ledger, seconds: int) -> None:
    """The last picture is so old, and took no time."""
    ledger.sql(
        "with x as (select now() - %s * interval '1 s' as at) update metric_snapshot"
        " set took = '0', ended_took = '0', taken_at = x.at, ended_at = x.at from x",
        seconds,
    )


def counts(ledger: Ledger, *metrics: str) -> dict[tuple[str, ...], float]:
    """Name and labels of what is counted, up to this moment; `metrics`: of these only."""
    age(ledger, 60)
    return {
        (row["metric"], *row["labels"]): row["value"]
        for row in ledger.call("metrics")["counts"]
        if not metrics or row["metric"] in metrics
    }


def test_items_by_state_and_how_long_they_are_due(ledger: Ledger) -> None:
    ledger.files("d1", 5)
    ledger.finish(ledger.running())
    ledger.end("fail", ledger.running())
    ledger.running()
    ledger.sql(
        "update work_items set available_at = now() + interval '1 h' where id = (select max(id) from work_items)"
    )
    (due,) = (
        row["id"] for row in ledger.sql("select id from work_items where state = 'pending' and available_at < now()")
    )
    ledger.sql("update work_items set opened_at = now() - interval '90 s' where id = %s", due)
    answer = ledger.call("metrics")
    waiting = answer["picture"]["waiting"]["transcription"]
    assert (waiting["pending"], waiting["due"]) == (2, 1)
    assert 89 < answer["now"] - waiting["since"] < 120, "it was recorded long before, but not due"
    assert answer["picture"]["under_way"] == [{"source": "transcription", "state": "processing", "n": 1}]
    assert answer["ended"] == {"transcription": {"completed": 1, "failed": 1}}
    [worker] = answer["picture"]["workers"]
    assert (worker["node"], worker["queue"], worker["processes"], worker["slots"]) == ("n1", "whisper", 1, 1)


def test_attempts_are_counted_once_whatever_ends_them(ledger: Ledger) -> None:
    ledger.files("d1", 6)
    ledger.finish(ledger.running())
    ledger.end("skip", ledger.running(), kind="nothing_there")
    ledger.end("fail", ledger.running(), kind="permanent")
    ledger.end("retry", ledger.running(), kind="rate_limited", at="2100-01-01T00:00:00Z")
    lost = ledger.running()
    ledger.expire()
    ledger.kill_worker()
    ledger.heartbeat("w2")
    assert ledger.sql("select state from work_items where id = %s", lost.id) == [{"state": "pending"}]
    expected = {
        ("attempts", "transcription", outcome, kind): 1
        for outcome, kind in [
            ("completed", ""),
            ("skipped", "nothing_there"),
            ("failed", "permanent"),
            ("retry", "rate_limited"),
            ("lost", "lost"),
        ]
    }
    assert counts(ledger, "attempts") == expected
    assert counts(ledger, "attempts") == expected, "asking counts nothing"
    assert ledger.sql("select from metric_events") == []


def test_waiting_and_running_times_fall_into_their_buckets(ledger: Ledger) -> None:
    ledger.files("d1", 4)
    for waited, ran in [(1, 5), (1.5, 5.5), (100_000, 0.01)]:
        attempt = ledger.running()
        ledger.sql(
            "update work_items set opened_at = started_at - %s * interval '1 s' where id = %s", waited, attempt.id
        )
        # (The end is the moment of the transaction.)
        ledger.sql("update work_items set started_at = now() - %s * interval '1 s' where id = %s", ran, attempt.id)
        ledger.sql(
            "update work_items set opened_at = started_at - %s * interval '1 s' where id = %s", waited, attempt.id
        )
        ledger.finish(attempt)
    found = counts(ledger)
    waits = {key[2]: n for key, n in found.items() if key[0] == "wait_bucket"}
    runs = {key[2]: n for key, n in found.items() if key[0] == "run_bucket"}
    assert waits == {"1": 1, "2.5": 1, "Infinity": 1}, "a bound belongs to its bucket"
    assert sum(runs.values()) == 3
    assert found["wait_sum", "transcription"] == 100_002.5
    assert 10.5 <= found["run_sum", "transcription"] < 12
    bounds = ledger.call("metrics")["bounds"]
    assert {*waits, *runs} <= set(bounds)


def test_speech_and_calls(ledger: Ledger) -> None:
    ledger.file()
    attempt = ledger.running()
    result = {"date": "2025-07-18", "time_block": "12-00", "text": "hello", "segments": [], "duration_seconds": 60,
              "model": "tiny", "engine": "test", "real_time_factor": 0.25}  # fmt: skip
    ledger.call("finish", **attempt.ids(), result=result)
    ledger.block()
    asking = ledger.running("analysis", queue="whisper")
    call = ledger.call("begin_call", **asking.ids(), model="gpt", cost="0.5", zone="UTC")["call"]
    assert not counts(ledger, "calls", "cost"), "one that is sent is not over"
    # Its worker seems to have died; then its end comes after all.
    ledger.sql("update llm_calls set sent_at = now() - interval '1 h'; update work_items set state = 'pending'")
    assert ledger.call("upkeep_calls", calls_days=400)["lost"] == 1
    usage = {"prompt_tokens": 100, "cached_tokens": 40, "completion_tokens": 20}
    for _ in range(2):
        ledger.call("end_call", call=call, outcome="ok", cost="0.25", **usage)
    assert counts(ledger, "audio", "work", "calls", "tokens", "cost") == {
        ("audio", "tiny", "test"): 60,
        ("work", "tiny", "test"): 15,
        ("calls", "gpt", "lost", "direct"): 1,
        ("calls", "gpt", "ok", "direct"): 1,
        ("tokens", "gpt", "prompt"): 100,
        ("tokens", "gpt", "cached"): 40,
        ("tokens", "gpt", "completion"): 20,
        ("cost", "gpt", "direct"): 0.5,
    }


def test_names_that_come_from_outside_stay_few_and_short(direct_ledger: Ledger) -> None:
    add = "insert into metric_events values ('call', array[%s, 'ok', 'direct'], array[1, 0, 1, 0.1])"
    for number in range(20):
        direct_ledger.sql(add, f"model-{number:02}")
    counts(direct_ledger)
    odd = ['new\nline{x="1"}\\', "x" * 500, "ж" * 80, ""]
    for name in [*odd, *(f"more-{number:02}" for number in range(40))]:
        direct_ledger.sql(add, name)
    found = counts(direct_ledger, "calls")
    models = {key[1] for key in found}
    assert len(models) == 31
    assert {"other", *(f"model-{number:02}" for number in range(20))} <= models
    assert sum(found.values()) == 64
    assert not [model for model in models if "\n" in model or len(model) > 60]
    # What has a line keeps it; what has none stays with the others.
    direct_ledger.sql(add, "model-07")
    direct_ledger.sql(add, "yet-another")
    later = counts(direct_ledger, "calls")
    assert later["calls", "model-07", "ok", "direct"] == 2
    assert later["calls", "other", "ok", "direct"] == found["calls", "other", "ok", "direct"] + 1


def test_a_picture_is_taken_now_and_then(ledger: Ledger) -> None:
    ledger.file()
    first = ledger.call("metrics")
    ledger.files("d2", 3)
    assert ledger.call("metrics")["taken_at"] == first["taken_at"]
    age(ledger, 11)
    second = ledger.call("metrics")
    assert second["picture"]["waiting"]["transcription"]["pending"] == 4
    # Where it takes long it is taken less often.
    ledger.sql("update metric_snapshot set taken_at = now() - interval '11 s', took = '1 s'")
    assert ledger.call("metrics")["picture"] == second["picture"]
    ledger.sql("update metric_snapshot set taken_at = now() - interval '21 s'")
    assert ledger.call("metrics")["taken_at"] > second["taken_at"]


def test_whoever_asks_at_the_same_time_counts_nothing_twice(direct_ledger: Ledger) -> None:
    def ask(_: int) -> Any:
        return direct_ledger.call("metrics", max_age=0)

    for _ in range(3):
        direct_ledger.sql(
            "insert into metric_events select 'attempt', '{transcription,completed,\"\"}', '{1,1}'"
            " from generate_series(1, 100)"
        )
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(16)))
    assert counts(direct_ledger, "attempts") == {("attempts", "transcription", "completed", ""): 300}


def test_an_end_that_is_not_committed_yet_is_counted_later(direct_ledger: Ledger) -> None:
    """Nothing is lost to a transaction that takes long, and nobody waits for it."""
    direct_ledger.file()
    attempt = direct_ledger.running()
    with psycopg.connect(direct_ledger.url) as slow:
        slow.execute("update work_items set state = 'completed', finished_at = now() where id = %s", [attempt.id])
        assert counts(direct_ledger, "attempts") == {}
    assert counts(direct_ledger, "attempts") == {("attempts", "transcription", "completed", ""): 1}


def test_what_piles_up_is_counted_bit_by_bit(direct_ledger: Ledger) -> None:
    direct_ledger.sql(
        "insert into metric_events select 'call', '{m,ok,direct}', '{1,0,1,0}' from generate_series(1, 100001)"
    )
    assert counts(direct_ledger, "calls") == {("calls", "m", "ok", "direct"): 100_000}
    assert counts(direct_ledger, "calls") == {("calls", "m", "ok", "direct"): 100_001}
