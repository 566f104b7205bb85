"""toban_watch(): a new table, its columns, its keys, and what is refused."""

from typing import LiteralString

import psycopg
import pytest

from tests.support.ledger import Ledger

TOY: LiteralString = "create table toy (id text primary key, state text default 'pending', answer text, prompt text)"
WATCH: LiteralString = "select toban_watch('toy', 'toy', array['id'], 'state')"


def reconciled(ledger: Ledger) -> int:
    """How many items reconcile opened or closed."""
    return sum(source["opened"] + source["closed"] for source in ledger.call("reconcile")["sources"])


# --- columns that allow no other value ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fail", "skip", "reap", "skip_claimed"])
def test_a_row_that_may_not_say_failed(ledger: Ledger, how: str) -> None:
    """The row stays pending; the item says how it ended, and only a real change opens it again."""
    with ledger.altered(
        "alter table audio_files add constraint two check (transcriptions_status in ('pending', 'completed'))",
        "alter table audio_files drop constraint two",
    ):
        key = ledger.file()
        if how == "skip_claimed":
            ledger.heartbeat()
            ledger.call("skip_claimed", tasks=[ledger.claim()[0]["task_id"]], reason="no recording")
        else:
            run = ledger.running(max_attempts=1)
            if how == "reap":
                ledger.expire()
                ledger.heartbeat("w2")
            else:
                assert ledger.end(how, run)["written"]
        state = "failed" if how in {"fail", "reap"} else "skipped"
        assert (ledger.state(key), ledger.item(key)["marked"]) == (state, False)
        assert ledger.status_of(key) == "pending"
        assert reconciled(ledger) == 0
        ledger.set_status("pending")
        assert ledger.state(key) == state
        ledger.sql("update work_items set finished_at = now() - interval '1 year'")
        ledger.call("retention", items_days=1, runs_days=1)
        assert reconciled(ledger) == 0
        ledger.sql("update audio_files set file_path = 'new.wav'")
        assert (ledger.state(key), ledger.item(key)["marked"]) == ("pending", True)
        assert ledger.drain() == 1


def test_an_unmarked_row_that_the_app_finished_unseen(ledger: Ledger) -> None:
    ledger.sql("create table toy (id text primary key, state text check (state in ('pending', 'completed')))")
    ledger.one(WATCH)
    ledger.sql("insert into toy values ('x', 'pending')")
    ledger.end("fail", ledger.running("toy"))
    ledger.sql("alter table toy disable trigger user")
    ledger.sql("update toy set state = 'completed'")
    ledger.call("reconcile")
    assert ledger.state("x", "toy") == "completed"


# --- toban_watch() --------------------------------------------------------------------------------------------------


def test_a_new_table_takes_one_line(ledger: Ledger) -> None:
    ledger.sql(TOY)
    ledger.sql("insert into toy (id) values ('old'), ('old 2')")
    assert ledger.one(WATCH) == 2
    ledger.sql("insert into toy (id) values ('new')")
    for _ in range(3):
        run = ledger.running("toy")
        answer = {"answer": f"to {run.answer['key']}", "prompt": None}
        assert ledger.call("finish", **run.ids(), result={"row": answer})["written"]
    assert ledger.sql("select id, state, answer from toy order by id") == [
        {"id": "new", "state": "completed", "answer": "to new"},
        {"id": "old", "state": "completed", "answer": "to old"},
        {"id": "old 2", "state": "completed", "answer": "to old 2"},
    ]


def test_watching_twice_changes_the_settings_and_nothing_else(ledger: Ledger) -> None:
    ledger.sql(TOY)
    ledger.sql("insert into toy (id) values ('x')")
    assert ledger.one(WATCH) == 1
    assert ledger.one("select toban_watch('toy', 'toy', array['id'], 'state', p_failed => 'broken')") == 1
    assert ledger.item("x", "toy")["revision"] == 1
    ledger.end("fail", ledger.running("toy"))
    assert ledger.one("select state from toy") == "broken"
    assert ledger.one("select count(*) from pg_trigger where tgrelid = 'toy'::regclass") == 4


def test_watching_another_table_under_the_same_name(ledger: Ledger) -> None:
    ledger.sql(TOY)
    ledger.one(WATCH)
    ledger.sql("create table toy2 (id text primary key, state text)")
    ledger.one("select toban_watch('toy2', 'toy', array['id'], 'state')")
    assert ledger.one("select count(*) from pg_trigger where tgrelid = 'toy'::regclass") == 0
    ledger.sql("insert into toy2 values ('x', 'pending')")
    assert ledger.state("x", "toy") == "pending"


def test_slashes_in_values_make_distinct_keys(ledger: Ledger) -> None:
    ledger.sql("create table toy (a text, b text, state text default 'pending', primary key (a, b))")
    ledger.one("select toban_watch('toy', 'toy', array['a', 'b'], 'state')")
    ledger.sql("insert into toy values ('x/y', 'z'), ('x', 'y/z'), ('x%2Fy', 'z')")
    assert {row["key"] for row in ledger.sql("select key from work_items")} == {"x%2Fy/z", "x/y%2Fz", "x%252Fy/z"}
    for _ in range(3):
        ledger.call("finish", **ledger.running("toy").ids(), result={})
    assert ledger.one("select count(*) from toy where state = 'completed'") == 3


def test_a_further_condition(ledger: Ledger) -> None:
    ledger.sql(TOY)
    ledger.one(
        "select toban_watch('toy', 'toy', array['id'], 'state', p_due => 'r.prompt is not null',"
        " p_inputs => array['prompt'])"
    )
    ledger.sql("insert into toy (id) values ('x')")
    assert ledger.sql("select from work_items") == []
    ledger.sql("update toy set prompt = 'how was it?'")
    assert ledger.state("x", "toy") == "pending"
    ledger.sql("update toy set prompt = null")
    assert ledger.state("x", "toy") == "skipped"


def test_a_row_that_keeps_its_status_when_work_fails(ledger: Ledger) -> None:
    ledger.sql(TOY)
    ledger.one("select toban_watch('toy', 'toy', array['id'], 'state', p_failed => null)")
    ledger.sql("insert into toy (id) values ('x')")
    ledger.end("fail", ledger.running("toy"))
    assert ledger.one("select state from toy") == "pending"
    ledger.call("reconcile")
    assert ledger.state("x", "toy") == "failed"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("select toban_watch('nowhere', 'toy', array['id'], 'state')", "there is no table nowhere"),
        ("select toban_watch('toy', 'toy', array['number'], 'state')", "toy has no column number"),
        ("select toban_watch('toy', 'toy', array['id'], 'status')", "toy has no column status"),
        ("select toban_watch('toy', 'toy', array['id'], 'state', p_time => 'at')", "toy has no column at"),
        ("select toban_watch('toy', 'toy', array['id'], 'state', p_inputs => array['x'])", "toy has no column x"),
        ("select toban_watch('toy', 'Toy!', array['id'], 'state')", "a source is named in lower case"),
    ],
)
def test_what_watch_refuses(direct_ledger: Ledger, call: LiteralString, words: str) -> None:
    direct_ledger.sql(TOY)
    with pytest.raises(psycopg.errors.RaiseException, match=words):
        direct_ledger.sql(call)
    assert direct_ledger.one("select count(*) from toban_sources where source like 'toy%'") == 0
