"""The database is away: a calm page, and everything goes on by itself when it is back."""

import logging

import pytest

from tests.support.away import away
from tests.support.servers import Postgres, wait_for
from tests.support.web import PASSWORD, Site


def test_the_database_goes_away_and_comes_back(site: Site, postgres: Postgres) -> None:
    browser, stranger = site.signed_in(), site.browser()
    form = {"csrf": stranger.csrf("/sign-in"), "name": "olga", "password": PASSWORD}
    assert site.browser().get("/health/ready?need=database").status_code == 200
    with away(postgres, site):
        for _ in range(2):
            answer = browser.get("/incidents")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert '<meta http-equiv="refresh" content="5">' in answer.text
            assert "The database does not answer" in answer.text
            assert "Traceback" not in answer.text
            assert "allow_connections" not in answer.text
        assert "データベースが応答していません" in browser.get("/incidents", headers={"Accept-Language": "ja"}).text
        program = site.browser({"Accept": "application/json", "X-API-Key": "toban_x"})
        assert program.get("/badge.json").status_code == 503
        assert "database does not answer" in program.get("/badge.json").json()["detail"]
        assert stranger.post("/sign-in", data=form).status_code == 503
        assert stranger.get("/sign-in").status_code == 200, "what needs no database is there"
        assert site.browser().get("/health/live").status_code == 200
        assert site.browser().get("/health/ready?need=database").status_code == 503
    wait_for(lambda: browser.get("/incidents").status_code == 200, "the pages")
    assert stranger.post("/sign-in", data=form).status_code == 303
    wait_for(lambda: site.browser().get("/health/ready?need=database").status_code == 200, "the readiness")


def test_a_broken_page_is_calm_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = site.signed_in()
    logging.getLogger("toban.web").setLevel(logging.CRITICAL)

    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(site.services.database, "call", broken)
    answer = browser.get("/incidents")
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "secret detail" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert site.browser({}).get("/badge.json", headers={"X-API-Key": "toban_x"}).json()["detail"]


def test_what_the_database_refuses_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = site.signed_in()
    call = site.services.database.call

    def missing(function: str, **params: object) -> object:
        if function == "toban_incidents":
            return call("toban_edit_job", job="nothing")
        return call(function, **params)

    monkeypatch.setattr(site.services.database, "call", missing)
    answer = browser.get("/incidents")
    assert answer.status_code == 404
    assert "there is no job nothing" in answer.text
    assert "olga" in answer.text, "whoever is signed in stays so"
