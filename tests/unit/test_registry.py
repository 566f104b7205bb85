"""A source is complete: queue, worker, beat entry, job, trigger, page in the docs."""

import importlib
import re

import pytest

import tasks
from app.celery import app
from app.sources import SHADOW, Registry, Source, registry
from beat_schedule import timetable
from tests.support.servers import ROOT

# (Tests define sources of their own.)
ALL = sorted(name for name, source in registry.sources.items() if not source.run.__module__.startswith("tests."))
SOURCES = [name for name in ALL if not name.startswith(SHADOW)]
SHADOWS = [name for name in ALL if name.startswith(SHADOW)]


def test_there_are_sources() -> None:
    assert tasks.__path__
    assert SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_complete(name: str) -> None:
    source = registry[name]
    profile = importlib.import_module(f"workers.{source.queue}").profile
    assert source.queue in profile.queues
    assert f"tasks.{name}" in app.tasks
    assert app.amqp.router.route({}, f"tasks.{name}")["queue"].name == source.queue
    job = timetable()[name]
    assert job.entry()["task"] in app.tasks
    assert app.conf.beat_schedule[name] == job.entry()
    assert watched(name) not in {None, "shadow_rows"}
    assert (source.compare is not None) is (f"{SHADOW}{name}" in SHADOWS)
    page = ROOT / "docs/sources" / f"{name}.md"
    assert page.read_text(encoding="utf-8").startswith("# ")


def watched(name: str) -> str | None:
    """The table that a migration watches for a source."""
    migrations = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "migrations").glob("*.sql"))
    found = re.search(rf"toban_watch\(\s*'([\w.]+)',\s*'{name}'", migrations)
    return found[1] if found else None


@pytest.mark.parametrize("name", SHADOWS)
def test_a_shadow_writes_into_its_own_table_only(name: str) -> None:
    """Its work goes the way of its source's; it has no dispatcher that could send it while the source is live."""
    source, twin = registry[name.removeprefix(SHADOW)], registry[name]
    assert (twin.queue, twin.max_run, twin.compare) == (source.queue, source.max_run, None)
    assert app.amqp.router.route({}, f"tasks.{name}")["queue"].name == source.queue
    assert name not in timetable()
    assert twin not in registry.of_queue([twin.queue])
    assert watched(name) == "shadow_rows"


@pytest.mark.parametrize("name", sorted(timetable()))
def test_a_tick_expires_before_the_next(name: str) -> None:
    job = timetable()[name]
    assert 0 < job.entry()["options"]["expires"] <= job.tick.total_seconds() <= job.every.total_seconds()
    assert job.entry()["options"]["queue"] == "default"


def test_two_sources_of_one_name_are_refused() -> None:
    own = Registry()
    source = Source("a", "q", "A", run=lambda _: {})
    own.add(source)
    own.add(source)
    with pytest.raises(ValueError, match="two sources"):
        own.add(Source("a", "q", "Another", run=lambda _: {}))
