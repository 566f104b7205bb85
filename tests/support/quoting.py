"""A source whose errors quote what a row says, each in the way of another library."""

import json
import threading
from typing import Any, Never

import psycopg
from pydantic import BaseModel

from app.celery import app
from app.errors import Permanent, Transient
from app.sources import Result, Source
from app.work import Work
from tasks.base import define, run_job

TABLE = """
create table quotes (id integer primary key, words text, state text default 'pending', answer text);
select toban_watch('quotes', 'quoting', array['id'], 'state');
create function refuse() returns trigger language plpgsql as
  $$ begin raise exception 'no such words: %', new.answer using detail = new.answer; end $$;
create trigger refuse before update on quotes for each row when (new.answer is not null) execute function refuse();
"""


class Number(BaseModel):
    value: int


def _psycopg(work: Work) -> None:
    dsn = work.services.settings.database.database_url
    assert dsn is not None
    with psycopg.connect(dsn.get_secret_value()) as connection:
        connection.execute("create temp table t (words text, n integer not null)")
        connection.execute("insert into t values (%s, null)", [work.row["words"]])  # DETAIL: Failing row contains …


def _ours_from(error: type[Exception], words: str) -> Never:
    try:
        int(words)
    except ValueError as cause:
        raise error("it can't be used") from cause
    raise AssertionError(words)


def _thread(words: str) -> None:
    def fail() -> None:
        raise LookupError(words)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def _memory(words: str) -> Never:
    raise MemoryError(words)


def run(work: Work) -> Result:
    words = str(work.row["words"])
    ways: dict[str, Any] = {
        "0": lambda: int(words),
        "1": lambda: Number.model_validate({"value": words}),
        "2": lambda: _psycopg(work),
        "3": lambda: dict[str, str]()[words],
        "4": lambda: _ours_from(Permanent, words),
        "5": lambda: _ours_from(Transient, words) if work.attempt.tries == 1 else None,
        "6": lambda: _thread(words),
        "7": lambda: json.loads(words),
        "8": lambda: open(words),  # noqa: PTH123, SIM115 - no such file
        "9": lambda: _memory(words),
    }
    if work.key in ways:
        ways[work.key]()
        return {}
    return {"row": {"answer": words}}


quoting = define(Source(name="quoting", queue="gpt", title="Quoting", run=run))


@app.task(name="tasks.quote")
def quote(words: str) -> None:
    """A task of somebody else's."""
    raise ValueError(words)


@app.task(name="tasks.quote_job")
def quote_job() -> None:
    """A job that stumbles over what it reads: here, the quotes themselves."""

    def work(runtime: Any) -> Never:
        dsn = runtime.services.settings.database.database_url.get_secret_value()
        with psycopg.connect(dsn) as connection:
            (words,) = connection.execute("select words from quotes limit 1").fetchone() or ("",)
        raise RuntimeError(words)

    run_job("quote", work)
