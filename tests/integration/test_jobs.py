"""The jobs that beat ticks, over a real ledger."""

from typing import Any

import psycopg
import pytest

from app.errors import Permanent
from app.runtime import Runtime
from app.services import Services
from tasks.jobs import dispatch, reconcile, retention


def runs(database_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute("select job, state, message from runs order by id").fetchall()


def test_a_slot_runs_once(runtime: Runtime, database_url: str) -> None:
    assert retention("retention")["ran"] is True
    assert retention("retention") == {"job": "retention", "ran": False, "reason": "this slot has run"}
    assert runs(database_url) == [("retention", "success", "nothing is old enough")]


def test_an_empty_look_leaves_no_run(runtime: Runtime, database_url: str) -> None:
    assert dispatch("transcription")["message"] == "0 sent, 0 skipped of 0 due: nothing is due"
    assert runs(database_url) == []


def test_reconcile_mends_in_batches(
    runtime: Runtime, services: Services, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("alter table audio_files disable trigger user")
        connection.execute(
            "insert into audio_files (device_id, recorded_at) select 'd', '2025-07-18'::date + n * interval '1 min'"
            " from generate_series(1, 25) n"
        )
    call = services.database.call
    monkeypatch.setattr(
        services.database, "call", lambda f, **p: call(f, **p, **({"limit": 10} if f == "toban_reconcile" else {}))
    )
    assert reconcile()["message"] == "25 opened, 0 closed"


def test_reconcile_tells_of_a_source_that_is_broken(runtime: Runtime, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create table chores (id integer primary key, state text)")
        connection.execute("select toban_watch('chores', 'chore', array['id'], 'state')")
        connection.execute("drop table chores")
    with pytest.raises(Permanent, match="chore: "):
        reconcile()
    assert [row[:2] for row in runs(database_url)] == [("reconcile", "error")]
