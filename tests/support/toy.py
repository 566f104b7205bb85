"""A whole new source in one file; its table and its `toban_watch` line stand in the test that uses it."""

import time
from datetime import timedelta

from app.errors import NothingThere, OutOfMemory, Permanent, RateLimited, Transient
from app.sources import Result, Source
from app.work import Work
from tasks.base import define

TABLE = """
create table chores (id integer primary key, owner text, wish text, state text default 'pending', answer text);
select toban_watch('chores', 'toy', array['id'], 'state', p_partition => 'owner', p_inputs => array['wish']);
"""


def run(work: Work) -> Result:  # noqa: C901 - one case a wish
    """Do what the row's `wish` says."""
    first = work.attempt.tries == 1
    match work.row["wish"]:
        case "flaky" if first:
            raise Transient("the line was busy")
        case "limited" if work.attempt.attempt == 1:
            raise RateLimited("too many at once", retry_after=1)
        case "hopeless":
            raise Permanent("it can't be done; ask for something else")
        case "bug":
            raise ZeroDivisionError("an unforeseen thing")
        case "memory":
            raise MemoryError
        case "native memory":
            raise OutOfMemory("std::bad_alloc")
        case "nothing":
            raise NothingThere("there is nothing to do")
        case "exit":
            raise SystemExit(3)
        case "nul":
            return {"row": {"answer": "a\0b"}}
        case "slow" | "a while" as wish:
            tenths = 300 if wish == "slow" else 30
            for tenth in range(tenths):
                work.progress(tenth, tenths)
                time.sleep(0.1)
    return {"row": {"answer": f"done: {work.row['wish']}"}}


toy = define(Source(name="toy", queue="toy", title="A toy", run=run, every=timedelta(seconds=1)))
