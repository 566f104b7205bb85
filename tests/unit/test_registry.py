"""A source is complete: queue, worker, beat entry, job, trigger, page in the docs."""

import importlib
import re

import pytest

import tasks
from app.celery import app
from app.sources import Registry, Source, registry
from beat_schedule import timetable
from tests.support.servers import ROOT

SOURCES = sorted(name for name in registry.sources if name != "toy")


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
    migrations = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "migrations").glob("*.sql"))
    assert re.search(rf"toban_watch\(\s*'[\w.]+',\s*'{name}'", migrations)
    page = ROOT / "docs/sources" / f"{name}.md"
    assert page.read_text(encoding="utf-8").startswith("# ")


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
