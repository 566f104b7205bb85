"""The work of `bench.ledger`: nothing at all, once as a plain Celery task and once as a source of the ledger."""

from datetime import timedelta

from app.celery import app
from app.sources import Source
from tasks.base import define

TABLE = """
create table if not exists chores (id integer primary key, state text not null default 'pending');
select toban_watch('chores', 'chore', array['id'], 'state');
"""


@app.task(name="bench.plain", acks_late=True)
def plain(number: int) -> int:
    """What one would write without Toban: acknowledged late, so that a dead worker's message comes back."""
    return number


chore = define(Source("chore", "chores", "A chore", run=lambda _: {}, every=timedelta(seconds=10)))
