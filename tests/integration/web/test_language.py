"""English and Japanese, the reader's zone and theme."""

import html
import re

import pytest

from app.web.reader import Language, accepted
from tests.support.web import Site


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("ja", "ja"),
        ("ja-JP,ja;q=0.9,en-US;q=0.8,en;q=0.7", "ja"),
        ("en-GB,en;q=0.9,ja;q=0.8", "en"),
        ("de-DE,de;q=0.9,ja;q=0.5,en;q=0.3", "ja"),
        ("de", "en"),
        ("ja;q=0", "en"),
        ("ja;q=x,en;q=0.1", "en"),
        ("*", "en"),
        (";;;,,,q=1;ja", "en"),
        ("x" * 10_000, "en"),
    ],
)
def test_the_browser_says_which_language(header: str, language: Language) -> None:
    assert accepted(header, "en") == language


def test_the_default_is_for_those_who_ask_for_neither() -> None:
    assert accepted("de", "ja") == "ja"
    assert accepted("de, en;q=0.1", "ja") == "en"


def test_pages_follow_the_browser_and_the_switch(site: Site) -> None:
    browser = site.signed_in()
    page = browser.get("/incidents", headers={"Accept-Language": "ja"})
    assert '<html lang="ja"' in page.text
    assert "障害情報" in page.text
    assert page.headers["content-language"] == "ja"
    assert "Accept-Language" in page.headers["vary"]
    answer = browser.submit("/preferences", page="/incidents", language="ja", next="/incidents")
    assert (answer.status_code, answer.headers["location"]) == (303, "/incidents")
    assert "障害情報" in browser.get("/incidents").text
    browser.submit("/preferences", page="/incidents", language="en")
    assert "障害情報" not in browser.get("/incidents", headers={"Accept-Language": "ja"}).text
    browser.submit("/preferences", page="/incidents", language="xx", theme="xx")
    assert '<html lang="en" data-theme="auto">' in browser.get("/incidents").text


def test_strangers_switch_too(site: Site) -> None:
    visitor = site.browser()
    visitor.submit("/preferences", page="/sign-in", language="ja", next="/sign-in")
    page = visitor.get("/sign-in").text
    assert "サインイン" in page
    assert visitor.sign_in("olga", "wrong").text.count("名前またはパスワードが違います。") == 1


def test_the_theme_is_kept(site: Site) -> None:
    visitor = site.browser()
    visitor.submit("/preferences", page="/sign-in", theme="dark")
    assert 'data-theme="dark"' in visitor.get("/sign-in").text


def test_times_are_the_readers(site: Site) -> None:
    database = site.services.database
    report = {"job_key": "nightly", "title": "夜間", "status": "error", "finished_at": "2026-01-02T03:04:05Z"}
    database.call("toban_job_report", **report)
    database.call("toban_monitor", min_every=0)
    browser = site.signed_in()
    assert "2026-01-02 12:04:05" in browser.get("/incidents").text, "DEVICE_TIMEZONE where the browser says nothing"
    browser.cookies.set("toban_zone", "Europe/Berlin")
    text = browser.get("/incidents").text
    element = re.search(r"<time[^>]*>[^<]+</time>", text)
    assert element
    assert 'title="2026-01-02 04:04:05 CET"' in element[0] or "04:04:05" in element[0]
    assert "ago" in element[0] or "前" in element[0]
    assert "Times in Europe/Berlin" in text
    browser.cookies.set("toban_zone", "../../etc/passwd")
    assert "Times in Asia/Tokyo" in browser.get("/incidents").text
    assert browser.submit("/preferences", page="/incidents", zone="Nowhere/At-all").status_code == 400


def test_what_others_write_is_shown_as_text(site: Site) -> None:
    nasty = "<script>alert('x')</script>\" onload=\"x"
    report = {"job_key": "j", "status": "error", "finished_at": "2026-01-02T03:04:05Z"}
    site.services.database.call("toban_job_report", **report, title=nasty, message=nasty)
    site.services.database.call("toban_monitor", min_every=0)
    text = site.signed_in().get("/incidents").text
    assert "<script>alert" not in text
    assert nasty in html.unescape(text)
