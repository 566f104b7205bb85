"""The pages in a real browser: one Chromium, one server, one database for all tests; each begins with empty tables."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from app.services import build_services
from tests.conftest import TEMPLATE
from tests.support.chromium import chromium
from tests.support.ledger import Ledger
from tests.support.servers import Postgres, service_missing
from tests.support.web import PASSWORD, Site, settings_for

EMPTY = """
truncate work_items, work_attempts, runs, run_results, jobs, workers, audio_files, vibe_whisper, transcripts, dashboard,
  job_status, job_watch, job_reports, beats, queue_watch, incidents, alerts, alert_channels, audit_log, monitor_state,
  llm_calls, llm_days, queue_holds restart identity cascade
"""

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as browser:
            yield browser
    except FileNotFoundError as error:
        service_missing(str(error))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audio folder."""
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="session")
def site(migrated: Postgres, recordings: Path) -> Iterator[Site]:
    url = migrated.create("pages", TEMPLATE)
    settings = settings_for(url, recordings, flower_url="https://flower.example.com/")
    site = Site(build_services(settings, patience=2)).start()
    site.accounts.add("olga", PASSWORD, "operator")
    site.accounts.add("viktor", PASSWORD, "viewer")
    yield site
    site.stop()


@pytest.fixture
def ledger(migrated: Postgres, site: Site) -> Iterator[Ledger]:
    """The ledger of the site's database, empty."""
    helper = Ledger(site.services.database, migrated.url("pages"))
    with psycopg.connect(migrated.url("pages"), autocommit=True) as connection:
        connection.execute(EMPTY)
    yield helper
    helper.close()


def _complains(said: ConsoleMessage) -> bool:
    """An answer that says no (a form refused, a recording that is not there) is none."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@pytest.fixture
def open_page(browser: Browser, site: Site, ledger: Ledger) -> Iterator[OpenPage]:
    """A function: a new browser window, signed in as `name`; what its scripts complain about fails the test."""
    complaints: list[str] = []
    contexts = []

    def start(name: str | None = "olga", **options: Any) -> Page:
        context = browser.new_context(base_url=site.address, **{"timezone_id": "Asia/Tokyo", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if _complains(said) else None)
        if name:
            page.goto("/sign-in")
            page.locator("[name=name]").fill(name)
            page.locator("[name=password]").fill(PASSWORD)
            page.locator("[name=password]").press("Enter")
            page.wait_for_url("**/incidents")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []
