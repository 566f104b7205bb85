"""A person before the pages: what is broken, why, and what to press."""

import re
import shutil
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.support.believable import HOME, ZONE, Believable, believable, fill
from tests.support.ledger import Ledger
from tests.support.servers import wait_for
from tests.support.web import Site

from .conftest import OpenPage

DAY = "2025-07-18"


def look(ledger: Ledger) -> None:
    """The monitor's tick."""
    ledger.call("monitor", min_every=0)


def transcription_job(ledger: Ledger) -> None:
    job = {"job": "transcription", "title": "Transcription", "source": "transcription", "every": 10}
    ledger.call("sync_jobs", jobs=[job])


def failed_item(ledger: Ledger) -> str:
    key = ledger.file()
    ledger.end("fail", ledger.running(), error="audio.wav holds no sound", kind="permanent")
    look(ledger)
    return key


def paths(what: Believable) -> list[str]:
    """Every page, as the believable database fills it."""
    midnight = what.now.astimezone(ZONE).replace(hour=0, minute=0, second=0, microsecond=0)
    afternoon = (midnight - timedelta(hours=10)).astimezone(UTC)
    day = f"/days/{HOME}/{(midnight - timedelta(hours=10)):%Y-%m-%d}"
    at = f"{afternoon:%Y-%m-%dT%H:%M:%SZ}"
    return [
        "/incidents", "/jobs", "/jobs/transcription", "/jobs/nightly-backup", "/days", day, f"{day}?at={at}",
        "/search?q=%E6%95%A3%E6%AD%A9", "/work", "/work/transcription", "/work/transcription?state=failed",
        f"/work/transcription/{HOME}/{at}", "/workers",
    ]  # fmt: skip


@pytest.fixture
def filled(site: Site, ledger: Ledger, recordings: Path) -> list[str]:
    what = believable(devices=[HOME], weeks=0.3)
    fill(site.services.database, ledger.url, what)
    return paths(what)


# --- what is broken -------------------------------------------------------------------------------------------------


def test_a_failing_item_appears_by_itself_is_understood_and_retried(ledger: Ledger, open_page: OpenPage) -> None:
    transcription_job(ledger)
    page = open_page()
    expect(page.get_by_text("All is well")).to_be_visible()
    page.evaluate("window.sameWindow = true")
    key = failed_item(ledger)
    card = page.locator(".incident", has_text="Transcription")
    expect(card).to_contain_text("audio.wav holds no sound")
    expect(page.locator("#badge")).to_contain_text("1")
    assert page.evaluate("window.sameWindow")  # nobody has loaded the page again
    card.get_by_role("button", name="Retry d1").click()
    expect(page.get_by_role("status").first).to_contain_text("It waits again")
    assert ledger.state(key) == "pending"
    page.goto(f"/work/transcription/{key}")
    expect(page.locator("h1 + .state")).to_contain_text("Waiting")
    ledger.finish(ledger.running())
    look(ledger)
    expect(page.locator("h1 + .state.good")).to_contain_text("Done")
    expect(page.locator("#badge")).not_to_contain_text("1")
    page.goto("/incidents")
    expect(page.get_by_text("All is well")).to_be_visible()
    expect(page.get_by_role("table", name="Recovered")).to_contain_text("Transcription")


def test_all_of_one_reason_are_retried_at_once(ledger: Ledger, open_page: OpenPage) -> None:
    transcription_job(ledger)
    ledger.files("d1", 7)
    for _ in range(7):
        ledger.end("fail", ledger.running(), error="audio.wav holds no sound", kind="permanent")
    look(ledger)
    page = open_page()
    expect(page.locator(".incident")).to_contain_text("7 items")
    page.get_by_role("button", name="Retry all of this reason").click()
    expect(page.get_by_role("status").first).to_contain_text("All of them wait again")
    assert ledger.states() == {"pending": 7}


def test_dismissing_asks_first(ledger: Ledger, open_page: OpenPage) -> None:
    failed_item(ledger)
    page = open_page()
    page.locator("summary", has_text="Dismiss").click()
    expect(page.get_by_text("The failed items stay failed")).to_be_visible()
    page.locator(".confirm").get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text("All is well")).to_be_visible()
    assert ledger.sql("select who, what from audit_log") == [{"who": "olga", "what": "dismiss"}]


def test_an_item_says_why_it_waits_and_what_happened_before(ledger: Ledger, open_page: OpenPage) -> None:
    key = ledger.file()
    ledger.end("retry", ledger.running(), error="the bucket was away", at="2099-01-01T00:00:00Z")
    ledger.kill_worker()
    page = open_page()
    page.goto(f"/work/transcription/{key}")
    why = page.get_by_role("region", name="Why it still waits")
    expect(why).to_contain_text("no worker listens to whisper")
    expect(why).to_contain_text("attempt 2 of 5")
    expect(page.get_by_role("table", name="Attempts")).to_contain_text("the bucket was away")
    task = ledger.item(key)["task_id"]
    expect(page.get_by_role("link", name="Open in Flower")).to_have_attribute(
        "href", f"https://flower.example.com/task/{task}"
    )
    ledger.heartbeat("w2")
    expect(why).not_to_contain_text("no worker listens")


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_is_paused_resumed_and_run(ledger: Ledger, open_page: OpenPage) -> None:
    transcription_job(ledger)
    page = open_page()
    page.goto("/jobs")
    page.get_by_role("button", name="Pause Transcription").click()
    expect(page.locator(".job .state")).to_contain_text("Paused")
    assert not ledger.one("select enabled from jobs")
    page.get_by_role("button", name="Resume Transcription").click()
    expect(page.get_by_role("button", name="Pause Transcription")).to_be_visible()
    assert ledger.one("select enabled from jobs")
    page.get_by_role("button", name="Run Transcription now").click()
    expect(page.locator(".job")).to_contain_text("with the next tick")
    assert ledger.one("select wanted_at is not null from jobs")
    page.goto("/jobs/transcription")
    changes = page.get_by_role("table", name="Changes")
    for words in ("olga", "paused it", "resumed it", "ran it"):
        expect(changes).to_contain_text(words)


def test_a_jobs_settings_are_edited_and_told(ledger: Ledger, open_page: OpenPage) -> None:
    transcription_job(ledger)
    page = open_page()
    page.goto("/jobs/transcription")
    for name, value in {
        "every": "1 h", "at": "00:10", "zone": "Asia/Tokyo", "batch_limit": "50", "device": HOME, "date": "yesterday",
        "timeout": "90 s",
    }.items():  # fmt: skip
        page.locator(f"#field-{name}").fill(value)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").first).to_contain_text("Saved")
    (job,) = ledger.call("jobs")["jobs"]
    assert (job["every"], job["at"], job["zone"]) == (3600, 600, "Asia/Tokyo")
    assert (job["batch_limit"], job["timeout"]) == (50, 90)
    assert job["filters"] == {"partition": HOME, "date": "yesterday"}
    expect(page.get_by_role("table", name="Changes")).to_contain_text("batch_limit none → 50")
    page.locator("#field-batch_limit").fill("")
    page.locator("#field-device").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").first).to_contain_text("Saved")
    (job,) = ledger.call("jobs")["jobs"]
    assert (job["batch_limit"], job["filters"]) == (None, {"date": "yesterday"})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("every", "soon", "“soon” is no length of time"),
        ("at", "ten", "“ten” is no time"),
        ("zone", "Mars/Olympus", "there is no time zone Mars/Olympus"),
        ("date", "2025-02-30", "has to be today, yesterday or a day"),
        ("batch_limit", "0", "has to be at least 1"),
    ],
)
def test_what_would_not_work_is_refused_and_stays_typed(
    ledger: Ledger, open_page: OpenPage, field: str, value: str, told: str
) -> None:
    transcription_job(ledger)
    page = open_page()
    page.goto("/jobs/transcription")
    page.locator(f"#field-{field}").fill(value)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text(told)
    expect(page.locator(f"#field-{field}")).to_have_value(value)
    assert ledger.sql("select from audit_log") == []


def test_a_viewer_sees_everything_and_presses_nothing(open_page: OpenPage, filled: list[str]) -> None:
    page = open_page("viktor")
    for path in filled:
        page.goto(path)
        buttons = page.locator("main form[method=post] button")
        expect(buttons, path).to_have_count(0)


# --- a day ----------------------------------------------------------------------------------------------------------


def heard(ledger: Ledger) -> str:
    """A recording with two sentences; returns its item's key."""
    key = ledger.file(path="files/d1/noon.wav")
    run = ledger.running()
    segments = [{"start": 0.2, "end": 1.0, "text": "おはよう。"}, {"start": 1.5, "end": 2.5, "text": "散歩に行こう。"}]
    result = {
        "date": DAY, "time_block": "12-00", "text": "おはよう。散歩に行こう。", "segments": segments, "language": "ja",
        "duration_seconds": 2.6, "model": "tiny", "engine": "test",
    }  # fmt: skip
    ledger.call("finish", **run.ids(), result=result)
    return key


def until(page: Page, expression: str) -> None:
    """Playwright's own wait makes JavaScript from text, which the pages' policy forbids."""
    wait_for(lambda: bool(page.evaluate(expression)), expression)


def test_a_recording_is_heard_read_and_found(
    ledger: Ledger, open_page: OpenPage, recordings: Path, recording: Path
) -> None:
    heard(ledger)
    (recordings / "files/d1").mkdir(parents=True, exist_ok=True)
    shutil.copy(recording, recordings / "files/d1/noon.wav")
    page = open_page()
    page.goto(f"/days/d1/{DAY}")
    expect(page.locator(".slot.completed")).to_have_count(1)
    page.locator(".slot.completed a").click()
    player = page.locator("audio")
    expect(player).to_have_count(1)
    until(page, "document.querySelector('audio').duration > 1")
    page.locator(".segments a", has_text="0:01").click()
    until(page, "document.querySelector('audio').currentTime >= 1.4")
    assert "t=1.5" not in page.url  # the player moved, the page stayed
    player.evaluate("one => one.pause()")
    page.locator("#search").fill("散歩")
    page.locator("#search").press("Enter")
    hit = page.locator(".hits li")
    expect(hit.locator("mark")).to_have_text("散歩")
    hit.get_by_role("link").click()
    expect(page.locator(".segments mark")).to_have_text("散歩")
    with page.expect_download() as download:
        page.get_by_role("link", name="SRT").click()
    assert "00:00:01,500 --> 00:00:02,500\n散歩に行こう。" in download.value.path().read_text("utf-8")


def test_a_running_recording_fills_its_slot(ledger: Ledger, open_page: OpenPage) -> None:
    ledger.file()
    run = ledger.running()
    page = open_page()
    page.goto(f"/days/d1/{DAY}")
    expect(page.locator(".slot.processing")).to_have_count(1)
    ledger.heartbeat(items=[{"id": run.id, "attempt": 1, "progress": {"done": 3, "total": 4}}])
    expect(page.locator(".slot.processing rect")).to_have_attribute("height", "0.75")
    ledger.finish(run)
    expect(page.locator(".slot.completed")).to_have_count(1)


# --- every page, for everybody --------------------------------------------------------------------------------------


def test_two_languages(ledger: Ledger, open_page: OpenPage, filled: list[str]) -> None:
    page = open_page(locale="ja-JP")
    expect(page.get_by_role("heading", level=1)).to_have_text("障害情報")
    expect(page.get_by_role("link", name="ジョブ")).to_be_visible()
    for path in filled:
        page.goto(path)
        assert page.locator("html").get_attribute("lang") == "ja"
    page.goto("/workers")
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Workers")


@pytest.mark.parametrize("language", ["en-GB", "ja-JP"])
def test_a_phone_never_scrolls_sideways(open_page: OpenPage, filled: list[str], language: str) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, locale=language, java_script_enabled=True)
    for path in filled:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path


def test_without_scripts_everything_can_be_done(ledger: Ledger, open_page: OpenPage) -> None:
    key = heard(ledger)
    other = ledger.file("d2")
    ledger.end("fail", ledger.running(), error="audio.wav holds no sound", kind="permanent")
    look(ledger)
    page = open_page(java_script_enabled=False)
    page.get_by_role("button", name="Retry d2").click()
    expect(page.get_by_role("status").first).to_contain_text("It waits again")
    assert ledger.state(other) == "pending"
    page.goto(f"/days/d1/{DAY}")
    page.locator(".slot.completed a").click()
    page.locator(".segments a", has_text="0:01").click()
    expect(page.locator("audio")).to_have_attribute("src", re.compile(r"#t=1\.5$"))
    page.goto(f"/work/transcription/{key}")
    expect(page.locator("h1 + .state")).to_contain_text("Done")
    page.goto("/workers")
    page.locator("summary", has_text="Stop").click()
    expect(page.get_by_text("It takes nothing new")).to_be_visible()


def test_the_keyboard_is_enough(ledger: Ledger, open_page: OpenPage) -> None:
    key = failed_item(ledger)
    page = open_page()
    page.goto("/incidents")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label') || ''").startswith("Retry"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("It waits again")
    assert ledger.state(key) == "pending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: OpenPage, filled: list[str], scheme: Any) -> None:
    page = open_page(color_scheme=scheme)
    found = {}
    for path in [*filled, "/preferences", "/work/transcription/nothing"]:
        quiet(page, path)
        if violations := axe(page):
            found[path] = violations
    assert found == {}


def quiet(page: Page, path: str) -> None:
    """The page with all that is folded opened."""
    page.goto(path)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")


def axe(page: Page) -> list[str]:
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    answer = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:200]}"
        for one in answer["violations"]
        for node in one["nodes"][:3]
    ]
