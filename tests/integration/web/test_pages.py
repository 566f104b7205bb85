"""What the pages ask of the database, what they give away, and what they refuse."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.celery import app as celery
from app.database import Database
from app.jobs import in_timetable
from app.services import Services, build_services
from tests.support.believable import HOME, ZONE, believable, fill
from tests.support.ledger import NOON, Ledger
from tests.support.moto import moto_bucket
from tests.support.servers import Redis, free_port
from tests.support.web import PASSWORD, Browser, Site, settings_for

MOST_CALLS = 12  # of one page
DAY = "2025-07-18"
OWN = f"/recordings/d1/{NOON}"


class Counting:
    """A database that remembers what it was asked."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.calls: list[str] = []

    def call(self, function: str, **params: object) -> Any:
        self.calls.append(function)
        return self.database.call(function, **params)

    def close(self) -> None:
        self.database.close()


def opened(services: Services) -> Site:
    site = Site(services).start()
    site.accounts.add("olga", PASSWORD, "operator")
    site.accounts.add("viktor", PASSWORD, "viewer")
    return site


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    (folder / "files").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture
def site(database_url: str, audio: Path) -> Iterator[Site]:
    site = opened(build_services(settings_for(database_url, audio), patience=2))
    yield site
    site.stop()


@pytest.fixture
def ledger(site: Site, database_url: str) -> Iterator[Ledger]:
    helper = Ledger(site.services.database, database_url)
    yield helper
    helper.close()


@pytest.fixture
def olga(site: Site) -> Browser:
    return site.signed_in()


# --- what a page costs ----------------------------------------------------------------------------------------------


def test_no_page_asks_the_database_more_than_twelve_times(database_url: str, audio: Path) -> None:
    """With 10,000 items; how long each took is printed (`pytest -s`)."""
    services = build_services(settings_for(database_url, audio), patience=2)
    counting = Counting(services.database)
    what = believable(devices=[HOME, *(f"device-{n}" for n in range(17))], weeks=8 / 7)
    assert len(what.rows["work_items"]) > 10_000
    fill(services.database, database_url, what)
    site = opened(dataclasses.replace(services, database=counting))
    try:
        olga = site.signed_in()
        yesterday = datetime.now(ZONE).replace(hour=14, minute=0, second=0, microsecond=0) - timedelta(days=1)
        day = f"/days/{HOME}/{yesterday:%Y-%m-%d}"
        at = f"{yesterday.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        report = []
        for path in (
            "/incidents", "/jobs", "/jobs/transcription", "/days", f"/days/{HOME}", day, f"{day}?at={at}",
            "/search?q=散歩", "/search?q=雪", "/work", "/work/transcription", "/work/transcription?state=failed",
            f"/work/transcription/{HOME}/{at}", "/workers",
        ):  # fmt: skip
            olga.get(path)
            counting.calls.clear()
            begun = time.perf_counter()
            answer = olga.get(path)
            took = (time.perf_counter() - begun) * 1000
            assert answer.status_code == 200 or path == f"/days/{HOME}", answer.text
            assert len(counting.calls) <= MOST_CALLS, counting.calls
            report.append(f"{took:6.0f} ms {len(counting.calls):3} calls  {path}")
        print(f"\n{len(what.rows['work_items'])} items", *report, sep="\n")  # noqa: T201 - told, not asserted
    finally:
        site.stop()


# --- who may what ---------------------------------------------------------------------------------------------------

PAGES = [
    "/incidents",
    "/jobs",
    "/jobs/x",
    "/days",
    f"/days/d1/{DAY}",
    "/search",
    "/work",
    "/work/transcription",
    "/workers",
]
FILES = [f"{OWN}/audio", f"{OWN}/transcript.srt", f"{OWN}/transcript.vtt", f"{OWN}/transcript.json"]
ACTIONS = [
    "/incidents/retry", "/incidents/retry-reason", "/incidents/dismiss", "/jobs/run", "/jobs/pause", "/jobs/edit",
    "/jobs/watch", "/jobs/forget", "/workers/stop",
]  # fmt: skip


def test_nothing_answers_without_sign_in(site: Site, ledger: Ledger, audio: Path) -> None:
    recorded(ledger, audio)
    visitor = site.browser()
    for path in [*PAGES, *FILES]:
        answer = visitor.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/sign-in"), path
        assert site.browser({"Accept": "application/json"}).get(path).status_code == 401
    for path in ACTIONS:
        assert visitor.post(path, data={}).status_code in {303, 403}, path


def test_buttons_are_for_operators_and_need_the_forms_token(site: Site, ledger: Ledger, olga: Browser) -> None:
    key = ledger.file()
    ledger.end("fail", ledger.running())
    viktor = site.signed_in("viktor")
    values = {"source": "transcription", "key": key, "job": "x", "fingerprint": "x", "node": "x", "paused": "yes"}
    for path in ACTIONS:
        assert viktor.submit(path, "/preferences", **values).status_code == 403, path
        assert olga.post(path, data=values).status_code == 403, path
    assert ledger.state(key) == "failed"


def test_what_was_said_and_typed_is_shown_as_text(site: Site, ledger: Ledger, olga: Browser) -> None:
    evil = "<script>alert(1)</script>"
    ledger.file("d1", path="a.wav")
    run = ledger.running()
    segments = [{"start": 0, "end": 1, "text": evil}]
    result = {
        "date": DAY, "time_block": "12-00", "text": evil, "segments": segments, "duration_seconds": 1.0, "model": evil,
        "engine": "test",
    }  # fmt: skip
    ledger.call("finish", **run.ids(), result=result)
    ledger.file("d<b>", at="2025-07-18T04:00:00Z")
    ledger.end("fail", ledger.running(), error=evil)
    ledger.call("monitor", min_every=0)
    for path in (
        "/incidents", f"/days/d1/{DAY}?at={NOON}", "/search?q=alert", f"/search?q={evil}", "/work/transcription",
        "/days", f"/work/transcription?q={evil}",
    ):  # fmt: skip
        text = olga.get(path).text
        assert "<script>alert" not in text, path
        assert "<b>" not in text, path
    assert "alert" in olga.get(f"/days/d1/{DAY}?at={NOON}").text


def test_a_source_that_only_follows_says_so(ledger: Ledger, olga: Browser) -> None:
    ledger.call("sync_jobs", jobs=list(in_timetable().values()))
    key = ledger.file("d1")
    ledger.running()
    ledger.set_status("completed", key)
    waiting = ledger.file("d2")
    pages = ("/work", "/jobs", "/jobs/transcription", f"/work/transcription/{waiting}")
    assert not any("Shadow" in olga.get(path).text or "only follows" in olga.get(path).text for path in pages)
    work = olga.get("/work").text
    assert "1 row was completed by Toban and by another system in the last 24 hours." in work
    assert "Transcription (shadow)" not in work, "it has no rows"

    ledger.call("set_mode", source="transcription", mode="shadow", who="ann")
    first, second = ledger.file("d3"), ledger.file("d4")
    ledger.set_status("completed", first)
    ledger.set_status("completed", second)
    assert all("Shadow" in olga.get(path).text or "only follows" in olga.get(path).text for path in pages)
    assert "Transcription (shadow)" in olga.get("/work").text
    assert "put it in shadow mode" in olga.get("/jobs/transcription").text


@pytest.mark.parametrize(
    "path",
    ["/jobs/nothing", "/days/d1/2025-02-30", "/days/d1/0001-01-01", f"/days/d1/{DAY}?at=noon",
     f"/days/d1/{DAY}?at={NOON}", "/work/nothing", "/work/transcription?state=odd", "/work/transcription/nothing",
     f"{OWN}/audio", f"{OWN}/transcript.srt", "/recordings/d1/2025-07-18T03:00:00/audio"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(olga: Browser, path: str) -> None:
    assert olga.get(path).status_code == 404


# --- sound and words ------------------------------------------------------------------------------------------------


def recorded(ledger: Ledger, audio: Path, path: str = "files/noon.wav", sound: bytes = b"0123456789") -> None:
    ledger.file(path=path)
    (audio / "files/noon.wav").write_bytes(sound)


@pytest.mark.parametrize(
    ("wanted", "status", "content", "told"),
    [
        ("", 200, b"0123456789", None),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=4-2", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_browser_gets_the_part_it_asked_for(
    ledger: Ledger, audio: Path, olga: Browser, wanted: str, status: int, content: bytes, told: str | None
) -> None:
    """RFC 9110, section 14: a range that makes no sense is as if there was none."""
    recorded(ledger, audio)
    answer = olga.get(f"{OWN}/audio", headers={"Range": wanted} if wanted else {})
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers.get("content-range") == told
    if status != 416:
        assert answer.headers["content-type"].startswith("audio/")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "files/../../secret", "files", "link"])
def test_a_path_never_leaves_the_audio_folder(ledger: Ledger, audio: Path, olga: Browser, path: str) -> None:
    recorded(ledger, audio, path)
    (audio / "link").symlink_to(audio.parent / "secret")
    answer = olga.get(f"{OWN}/audio")
    assert answer.status_code == 404
    assert b"root:" not in answer.content
    assert answer.content != b"secret"


def test_a_buckets_recording_is_read_from_the_bucket_for_a_while(
    database_url: str, audio: Path, site: Site, ledger: Ledger
) -> None:
    ledger.file(path="files/noon.wav")
    with moto_bucket() as bucket:
        bucket.put("files/noon.wav", b"0123456789")
        settings = settings_for(database_url, audio).model_copy(update={"audio": bucket.settings()})
        other = Site(build_services(settings, patience=2)).start()
        try:
            olga = other.signed_in()
            answer = olga.get(f"{OWN}/audio")
            assert answer.status_code == 307
            address = answer.headers["location"]
            assert address.startswith(bucket.url)
            assert "X-Amz-Expires=3600" in address
            assert httpx.get(address, headers={"Range": "bytes=2-4"}).content == b"234"
            page = olga.get(f"/days/d1/{DAY}?at={NOON}")
            assert f"media-src 'self' {bucket.url};" in page.headers["content-security-policy"]
        finally:
            other.stop()


def test_transcripts_are_downloaded(ledger: Ledger, olga: Browser) -> None:
    ledger.file()
    run = ledger.running()
    segments = [{"start": 0.5, "end": 2, "text": "おはよう"}]
    result = {
        "date": DAY, "time_block": "12-00", "text": "おはよう", "segments": segments, "language": "ja",
        "duration_seconds": 2.0, "model": "tiny", "engine": "test",
    }  # fmt: skip
    ledger.call("finish", **run.ids(), result=result)
    srt = olga.get(f"{OWN}/transcript.srt")
    assert srt.text == "1\n00:00:00,500 --> 00:00:02,000\nおはよう\n"
    assert srt.headers["content-disposition"] == "attachment; filename*=UTF-8''d1_2025-07-18_12-00.srt"
    vtt = olga.get(f"{OWN}/transcript.vtt")
    assert vtt.text.startswith("WEBVTT\n")
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
    told = olga.get(f"{OWN}/transcript.json").json()
    assert told["segments"] == segments
    assert (told["device_id"], told["date"], told["time_block"], told["text"]) == ("d1", DAY, "12-00", "おはよう")


# --- stopping a worker ----------------------------------------------------------------------------------------------


def drain(connection: Any) -> None:
    with suppress(TimeoutError):
        connection.drain_events(timeout=1)


def test_a_worker_is_asked_to_stop_over_the_broker(
    site: Site, ledger: Ledger, olga: Browser, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Celery worker's own mailbox gets the order."""
    monkeypatch.setattr(celery.conf, "broker_url", redis_server.url)
    monkeypatch.setattr(celery, "_pool", None)
    monkeypatch.setattr(celery.amqp, "_producer_pool", None)
    ledger.heartbeat("whisper@v1/7#8", node="whisper@v1/7")
    orders: list[Any] = []
    with celery.connection_for_read(redis_server.url) as connection, connection.channel() as channel:
        mailbox: Any = celery.control
        node = mailbox.mailbox(connection).Node("whisper@v1", channel=channel)
        node.handlers["shutdown"] = lambda _state, **_arguments: orders.append("shutdown")
        with node.Consumer(channel=channel, callbacks=[node.handle_message]):
            drain(connection)  # the first look subscribes; what comes before is lost
            assert olga.submit("/workers/stop", "/workers", node="whisper@v1/7").status_code == 303
            for _ in range(10):
                if not orders:
                    drain(connection)
    assert orders == ["shutdown"]
    assert olga.submit("/workers/stop", "/workers", node="whisper@gone/1").status_code == 404
    entries = ledger.call("audited")["entries"]
    assert [(one["who"], one["what"], one["target"]) for one in entries] == [("olga", "stop worker", "whisper@v1/7")]


def test_without_a_broker_a_worker_is_not_stopped(
    ledger: Ledger, olga: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery, "_pool", None)
    monkeypatch.setattr(celery.amqp, "_producer_pool", None)
    monkeypatch.setattr(celery.conf, "broker_url", f"redis://127.0.0.1:{free_port()}/0")
    ledger.heartbeat("whisper@v1/7#8", node="whisper@v1/7")
    assert olga.submit("/workers/stop", "/workers", node="whisper@v1/7").status_code == 503
    assert ledger.call("audited")["entries"] == []
