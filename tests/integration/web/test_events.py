"""Open pages hear of changes, and of the end of their session."""

import queue
import threading
from typing import LiteralString

import psycopg
import pytest

from tests.support.web import Browser, Site

INCIDENT: LiteralString = """insert into incidents (fingerprint, kind, title, opened_at, last_at, settle)
  values ('job:j', 'job', 'J', now(), now(), '1 min')"""
WORKER: LiteralString = """insert into workers (id, node, queues, slots, expires_at)
  values ('w', 'n', '{whisper}', 1, now() + interval '1 h')"""
CHANGES: list[LiteralString] = [
    "insert into audio_files values ('d1', '2025-07-18T03:00:00Z', 'a.wav', 'pending')",
    "update jobs set enabled = not enabled, updated_at = now()",
    "insert into job_status (job_key, title, last_status, last_finished_at) values ('j', 'J', 'error', now())",
    INCIDENT,
    "update incidents set dismissed_at = now()",
    "update incidents set recovered_at = now()",
    WORKER,
    "update work_items set state = 'processing', started_at = now(), attempt = 1, queue = 'whisper'",
    'update work_items set progress = \'{"done": 1, "total": 2}\'',
    "update work_items set state = 'failed', incident_since = now(), finished_at = now()",
    "update work_items set state = 'completed', incident_since = null, finished_at = now()",
    "update workers set expires_at = now()",
]


class Listener:
    """An open page: what it hears stands in `heard`; None: the stream ended."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.heard: queue.Queue[str | None] = queue.Queue()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        assert self.next() == "hello"

    def _listen(self) -> None:
        with self.browser.stream("GET", "/events", headers={"Accept": "text/event-stream"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    self.heard.put(line.removeprefix("event: "))
        self.heard.put(None)

    def next(self) -> str | None:
        return self.heard.get(timeout=30)

    def rest(self) -> list[str]:
        """Everything until the stream ends."""
        heard = []
        while (event := self.next()) is not None:
            heard.append(event)
        return heard


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "toban_x"}])
def test_strangers_hear_nothing(site: Site, headers: dict[str, str]) -> None:
    answer = site.browser({"Accept": "text/event-stream"}).get("/events", headers=headers)
    assert answer.status_code == 401


def test_every_kind_of_change_is_told(site: Site, database_url: str) -> None:
    site.services.database.call("toban_sync_jobs", jobs=[{"job": "j", "title": "J", "every": 60}])
    stamps = [site.services.database.call("toban_page_stamp")["stamp"]]
    assert site.services.database.call("toban_page_stamp")["stamp"] == stamps[0]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for change in CHANGES:
            connection.execute(change)
            stamps.append(site.services.database.call("toban_page_stamp")["stamp"])
            assert stamps[-1] != stamps[-2], change


def test_open_pages_hear_of_changes(site: Site, database_url: str) -> None:
    pages = [Listener(site.signed_in()), Listener(site.signed_in("viktor"))]
    # The first look at the stamp is news for whoever came before it.
    assert [page.next() for page in pages] == ["change", "change"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for change in CHANGES[:1] + CHANGES[3:5]:
            assert all(page.heard.empty() for page in pages)
            connection.execute(change)
            assert [page.next() for page in pages] == ["change", "change"]


def test_signing_out_ends_the_streams_of_this_session_alone(site: Site) -> None:
    mine, other = site.signed_in(), site.signed_in()
    page, kept = Listener(mine), Listener(other)
    second = site.browser()
    second.cookies.update(mine.cookies)
    token = second.csrf("/incidents")
    assert second.post("/sign-out", data={"csrf": token}).status_code == 303
    assert page.rest()[-1] == "goodbye"
    assert kept.thread.is_alive()
    assert "goodbye" not in kept.heard.queue


def test_a_session_that_ended_elsewhere_ends_its_streams_too(site: Site) -> None:
    page = Listener(site.signed_in())
    site.accounts.remove("olga")
    assert page.rest()[-1] == "goodbye"


def test_one_person_has_only_so_many_streams(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.events.MOST_OF_ONE", 2)
    browsers = [site.signed_in() for _ in range(3)]
    pages = [Listener(browser) for browser in browsers[:2]]
    answer = browsers[2].get("/events")
    assert answer.status_code == 429
    assert Listener(site.signed_in("viktor")).thread.is_alive()
    assert all(page.thread.is_alive() for page in pages)
