"""Asking again for work that ended, waits or runs."""

import pytest

from app.errors import Permanent
from tests.support.ledger import Ledger, Row, at_once


def reprocess(ledger: Ledger, **params: object) -> Row:
    return dict(ledger.call("reprocess", **{"source": "transcription", **params}))


def test_by_key(ledger: Ledger) -> None:
    key, other = ledger.file("a"), ledger.file("b")
    ledger.drain()
    answer = reprocess(ledger, keys=[key])
    assert answer == {"matched": 1, "opened": 1, "waiting": 0, "running": 0}
    assert (ledger.state(key), ledger.status_of(key)) == ("pending", "pending")
    assert ledger.state(other) == "completed"
    assert ledger.drain() == 1
    assert ledger.item(key)["revision"] == 2


def test_row_that_was_finished_before_the_ledger_knew_it(ledger: Ledger) -> None:
    key = ledger.file(status="completed")
    assert ledger.sql("select from work_items") == []
    assert reprocess(ledger, keys=[key])["opened"] == 1
    assert ledger.drain() == 1


def test_by_device_and_time(ledger: Ledger) -> None:
    ledger.files("a", 5)
    ledger.files("b", 5)
    ledger.drain()
    window = {"since": "2025-07-18T00:02:00Z", "until": "2025-07-18T00:04:00Z"}
    assert reprocess(ledger, partition="a", **window)["matched"] == 2
    assert reprocess(ledger, partition="b", since=window["since"])["matched"] == 4
    assert reprocess(ledger, partition="b", until=window["since"])["matched"] == 1
    assert ledger.states() == {"pending": 7, "completed": 3}


def test_keys_are_taken_apart_as_they_were_made(ledger: Ledger) -> None:
    ledger.sql("create table toy (a text, day date, n int, state text, primary key (a, day, n))")
    ledger.one("select toban_watch('toy', 'toy', array['a', 'day', 'n'], 'state')")
    ledger.sql("insert into toy select a, '2025-07-18', 7, 'pending' from unnest(array['x/y', 'x%2Fy', 'x', '日本']) a")
    keys = [row["key"] for row in ledger.sql("select key from work_items order by id")]
    ledger.sql("update toy set state = 'completed'")
    for key in keys:
        assert ledger.call("reprocess", source="toy", keys=[key, key])["matched"] == 1
        assert ledger.state(key, "toy") == "pending"


def test_what_is_null_was_not_asked_for(ledger: Ledger) -> None:
    ledger.files("a", 2)
    ledger.drain()
    asked = {"keys": None, "since": None, "until": None, "only_failed": None, "params": None, "priority": None}
    assert reprocess(ledger, partition="a", **asked)["opened"] == 2


def test_only_failed(ledger: Ledger) -> None:
    good, bad = ledger.file("a"), ledger.file("b")
    ledger.finish(ledger.running())
    ledger.end("fail", ledger.running())
    assert reprocess(ledger, only_failed=True) == {"matched": 1, "opened": 1, "waiting": 0, "running": 0}
    assert (ledger.state(good), ledger.state(bad)) == ("completed", "pending")
    assert (ledger.item(bad)["last_error"], ledger.item(bad)["last_error_kind"]) == ("it broke", None)


def test_params_and_priority_hold_for_this_round_only(ledger: Ledger) -> None:
    key = ledger.file()
    ledger.drain()
    reprocess(ledger, keys=[key], params={"model": "small"}, priority=20)
    run = ledger.running()
    assert run.answer["params"] == {"model": "small"}
    assert ledger.item(key)["priority"] == 20
    ledger.finish(run)
    ledger.set_status("pending")
    assert (ledger.item(key)["params"], ledger.item(key)["priority"]) == ({}, 0)


def test_running_work_goes_again_after_it_ends(ledger: Ledger) -> None:
    key = ledger.file()
    run = ledger.running()
    assert reprocess(ledger, keys=[key], params={"model": "small"}) == {
        "matched": 1, "opened": 0, "waiting": 0, "running": 1,
    }  # fmt: skip
    assert ledger.state(key) == "processing"
    assert not ledger.finish(run)["written"]
    again = ledger.running()
    assert again.answer["params"] == {"model": "small"}
    assert ledger.finish(again)["written"]


def test_waiting_work_only_moves_forward(ledger: Ledger) -> None:
    pending, queued = ledger.file("b"), ledger.file("a")
    ledger.heartbeat()
    (item,) = ledger.claim(1)
    assert {item["key"]} == {queued} or {item["key"]} == {pending}
    ledger.sql("update work_items set available_at = now() + interval '1 h', tries = 3 where state = 'pending'")
    assert reprocess(ledger, keys=[pending, queued]) == {"matched": 2, "opened": 0, "waiting": 2, "running": 0}
    rows = ledger.sql("select state, revision, tries, available_at <= now() as due from work_items order by state")
    assert rows == [
        {"state": "pending", "revision": 1, "tries": 0, "due": True},
        {"state": "queued", "revision": 1, "tries": 0, "due": True},
    ]


def test_unknown_source_key_and_condition(ledger: Ledger) -> None:
    with pytest.raises(Permanent, match="there is no source nothing"):
        reprocess(ledger, source="nothing")
    with pytest.raises(Permanent, match="does not fit the rows of transcription"):
        reprocess(ledger, keys=["no/such"])
    assert reprocess(ledger, keys=["d1/2025-01-01T00:00:00Z"]) == {
        "matched": 0,
        "opened": 0,
        "waiting": 0,
        "running": 0,
    }
    ledger.file()
    ledger.drain()
    with pytest.raises(Permanent, match="rows of transcription are not found by date"):
        reprocess(ledger, partition="d1", date="2025-07-18")
    assert ledger.states() == {"completed": 1}


def test_by_date_and_block(ledger: Ledger) -> None:
    ledger.sql(
        "create table toy (device_id text, date date, block text, state text, primary key (device_id, date, block))"
    )
    ledger.one(
        "select toban_watch('toy', 'toy', array['device_id', 'date', 'block'], 'state', p_date => 'date',"
        " p_block => 'block')"
    )
    ledger.sql("insert into toy select 'd', date '2025-07-18' + i, '12-00', 'completed' from generate_series(0, 2) i")
    answer = ledger.call("reprocess", source="toy", date="2025-07-19", block="12-00")
    assert answer["opened"] == 1
    assert ledger.one("select key from work_items") == "d/2025-07-19/12-00"
    with pytest.raises(Permanent, match="since and until"):
        ledger.call("reprocess", source="toy", since="2025-07-19T00:00:00Z")


def test_waits_for_the_app_without_holding_anything(ledger: Ledger) -> None:
    """The app holds the last row and wants the first: whoever waited for one with others in hand would deadlock."""
    ledger.files("a", 3)
    ledger.drain()
    other = Ledger(ledger.db, ledger.url)

    def app() -> None:
        with other.app.transaction():
            for order in ("desc", "asc"):
                other.app.execute(
                    "update audio_files set file_path = 'x' where recorded_at ="
                    f" (select recorded_at from audio_files order by recorded_at {order} limit 1)"
                )
                other.sql("select pg_sleep(0.2)")

    answer, _ = at_once(lambda: reprocess(ledger, partition="a"), app)
    other.close()
    assert answer["opened"] == 3
    assert ledger.drain() == 3
