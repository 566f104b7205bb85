"""The HTTP API's frame: who may ask the old endpoints, how failures look, and what stands before it."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.web.accounts import SCOPES
from tests.support.web import Site

OpenSite = Callable[..., Site]

ASK = {"prompt": "How was it?", "device_id": "d1", "date": "2025-07-18", "time_block": "12-30"}
LEGACY = {"legacy_anonymous_cidrs": "10.1.0.0/16, 2001:db8::/32", "trusted_proxies": "127.0.0.1"}


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """What every failure looks like; returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = dict(answer.json())
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    assert body.get("code") == code
    return body


def ask(program: httpx.Client, headers: dict[str, str] | None = None, **other: Any) -> httpx.Response:
    return program.post("/analyze-timeblock?wait=0", json={**ASK, **other}, headers=headers)


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_a_key_needs_the_scope(site: Site) -> None:
    program = site.browser({})
    for scope in SCOPES:
        key = {"X-API-Key": site.accounts.add_key("app", [scope])}
        answer = ask(program, key)
        if scope in {"analyze", "operate"}:
            assert answer.status_code == 202
            assert program.get(answer.json()["status_url"], headers=key).status_code == 200
        else:
            assert "does not have the scope analyze" in problem(answer, 403)["detail"]
        site.accounts.revoke_key("app")
        problem(ask(program, key), 401)


def test_a_person_needs_to_operate_and_to_come_from_a_page_of_ours(site: Site) -> None:
    viewer, operator = site.signed_in("viktor"), site.signed_in("olga")
    problem(ask(viewer, {"X-CSRF-Token": viewer.csrf("/incidents")}), 403)
    problem(ask(operator), 403)
    assert ask(operator, {"X-CSRF-Token": operator.csrf("/incidents")}).status_code == 202
    assert viewer.get("/analyses/d1/2025-07-18/12-30").json()["state"] == "pending"


def test_old_clients_need_no_key_in_their_network(open_site: OpenSite) -> None:
    program = open_site(**LEGACY).browser({})
    for address in (
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "2001:db8::7",
        "10.1.2.3:4711",
        "[2001:db8::7]:4711",
        "203.0.113.9, 10.1.2.3",
    ):
        assert ask(program, {"X-Forwarded-For": address}).status_code == 202, address
        problem(program.get("/analyses/d1/2025-07-18/12-30", headers={"X-Forwarded-For": address}), 401)
        problem(program.get("/badge.json", headers={"X-Forwarded-For": address}), 401)


def test_nobody_else_does(open_site: OpenSite) -> None:
    site = open_site(**LEGACY)
    for headers in (
        {},  # this machine itself
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "10.1.2.3, 203.0.113.9"},  # made up before a proxy added its own
        {"X-Forwarded-For": "10.1.2.3.4"},
        {"X-Forwarded-For": ""},
        {"X-Real-IP": "10.1.2.3"},
        {"Forwarded": "for=10.1.2.3"},
        {"X-Forwarded-For": "10.1.2.3", "Origin": "http://127.0.0.1"},  # a page that somebody there has open
        {"X-Forwarded-For": "10.1.2.3", "Sec-Fetch-Site": "same-origin"},
        {"X-Forwarded-For": "10.1.2.3", "Cookie": "toban_session=x"},
        {"X-Forwarded-For": "10.1.2.3", "X-API-Key": "toban_wrong"},  # a key that has been revoked is no way in
        {"X-Forwarded-For": "10.1.2.3", "Authorization": "Bearer x"},
    ):
        answer = ask(site.browser({}), headers)
        assert answer.status_code == 401, headers
        problem(answer, 401)


def test_a_proxy_that_nobody_trusts_opens_nothing(open_site: OpenSite) -> None:
    """Its own address is in the network, and it says for whom it asks; that is not believed, and not ignored either."""
    site = open_site(legacy_anonymous_cidrs="127.0.0.0/8", trusted_proxies="192.0.2.1")
    program = site.browser({})
    assert ask(program).status_code == 202
    for headers in ({"X-Forwarded-For": "127.0.0.1"}, {"Via": "1.1 proxy"}, {"X-Forwarded-Proto": "https"}):
        problem(ask(program, headers), 401)


def test_by_default_nobody_comes_in_without_a_key(site: Site) -> None:
    for address in ("127.0.0.1", "10.1.2.3", "::1"):
        problem(ask(site.browser({}), {"X-Forwarded-For": address}), 401)


# --- pages of other origins -------------------------------------------------------------------------------------------


def preflight(program: httpx.Client, path: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-api-key, idempotency-key, prefer",
    }
    return program.options(path, headers=headers)


def test_other_origins_are_kept_out_by_default(site: Site) -> None:
    answer = preflight(site.browser({}), "/analyze-timeblock", "https://app.example.com")
    assert "access-control-allow-origin" not in answer.headers
    problem(answer, 405)


def test_named_origins_may_use_the_api_with_a_key(open_site: OpenSite) -> None:
    site = open_site(cors_origins="https://app.example.com", legacy_anonymous_cidrs="127.0.0.1")
    program, key = site.browser({}), site.accounts.add_key("app", ["analyze"])
    for origin, welcome in (("https://app.example.com", True), ("https://evil.example", False), ("null", False)):
        answer = preflight(program, "/analyze-timeblock", origin)
        assert (answer.headers.get("access-control-allow-origin") == origin) is welcome
        assert "access-control-allow-credentials" not in answer.headers
        answer = ask(program, {"Origin": origin, "X-API-Key": key})
        assert (answer.headers.get("access-control-allow-origin") == origin) is welcome
        assert "access-control-allow-credentials" not in answer.headers
        problem(ask(program, {"Origin": origin}), 401)  # not by its address
        page = program.get("/incidents", headers={"Origin": origin})
        assert "access-control-allow-origin" not in page.headers
    failure = ask(program, {"Origin": "https://app.example.com", "X-API-Key": "toban_wrong"})
    assert failure.headers["access-control-allow-origin"] == "https://app.example.com", "a page may read its failure"


# --- how failures look ------------------------------------------------------------------------------------------------


@pytest.fixture
def program(site: Site) -> httpx.Client:
    """A program with a key that may ask for analyses."""
    return site.browser({"X-API-Key": site.accounts.add_key("app", ["analyze"])})


def test_a_bad_value_is_named_with_the_remedy(program: httpx.Client) -> None:
    bad: list[tuple[dict[str, Any], str, str]] = [
        ({"date": "18.07.2025"}, "date", "write it as YYYY-MM-DD"),
        ({"date": "2025-02-30"}, "date", "there is no such day; write it as YYYY-MM-DD"),
        ({"date": "２０２５-07-18"}, "date", "write it as YYYY-MM-DD"),
        ({"date": 20250718}, "date", "write text, in quotes"),
        ({"time_block": "12:30"}, "time_block", "write it as HH-00 or HH-30"),
        ({"time_block": "24-00"}, "time_block", "write it as HH-00 or HH-30"),
        ({"time_block": "12-30\n"}, "time_block", "write it as HH-00 or HH-30"),
        ({"time_block": None}, "time_block", "write text, in quotes"),
        ({"prompt": " \n"}, "prompt", "is empty"),
        ({"prompt": "x" * 100_001}, "prompt", "has 100001 characters; at most 100000 are taken"),
        ({"prompt": "a\0b"}, "prompt", "NUL character"),
        ({"prompt": float("nan")}, "prompt", "write text, in quotes"),
        ({"prompt": ["x"]}, "prompt", "write text, in quotes"),
        ({"device_id": ""}, "device_id", "is empty"),
        ({"device_id": " "}, "device_id", "is empty"),
        ({"device_id": "d" * 201}, "device_id", "write at most 200 characters"),
        ({"device_id": "d\0"}, "device_id", "NUL character"),
    ]
    for other, field, words in bad:
        content = json.dumps({**ASK, **other})
        answer = program.post("/analyze-timeblock", content=content, headers={"Content-Type": "application/json"})
        body = problem(answer, 422, "invalid")
        assert [error["field"] for error in body["errors"]] == [field]
        assert words in body["errors"][0]["message"]
        assert f"{field}: " in body["detail"]
        assert "x" * 50 not in answer.text, "what was sent is not repeated"


def test_bad_bodies_and_parameters(program: httpx.Client) -> None:
    def post(content: bytes, kind: str | None = "application/json", query: str = "") -> httpx.Response:
        headers = {"Content-Type": kind} if kind else {}
        return program.post(f"/analyze-timeblock{query}", content=content, headers=headers)

    good = json.dumps(ASK).encode()
    assert {error["field"] for error in problem(post(b"{}"), 422, "invalid")["errors"]} == set(ASK)
    assert "this is no JSON" in problem(post(b'{"prompt": '), 422, "invalid")["detail"]
    assert problem(post(b""), 422, "invalid")["detail"] == "body: is missing"
    assert problem(post(b"[]"), 422, "invalid")["detail"] == "body: send an object of JSON, with its fields by name"
    problem(post(b"null"), 422, "invalid")
    surrogate = json.dumps(ASK).replace("How was it?", "\\ud83c").encode()
    assert "surrogate" in problem(post(surrogate), 422, "invalid")["detail"]
    problem(post(b"\xff\xff{"), 400)
    problem(post(b"[" * 200_000), 400)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = post(good, kind)
        problem(answer, 415)
        assert answer.headers["accept"] == "application/json"
    problem(post(b'{"prompt": "' + b"x" * 2_000_000 + b'"}'), 413)
    for query, words in (("-1", "0 or more"), ("601", "600 or less"), ("x", "a number"), ("nan", "a number")):
        said = problem(post(good, query=f"?wait={query}"), 422, "invalid")
        assert said["errors"] == [{"field": "wait", "message": f"write {words}"}]
    answer = program.post("/analyze-timeblock", json=ASK, headers={"Idempotency-Key": "two words"})
    assert problem(answer, 422, "invalid")["errors"][0]["field"] == "idempotency-key"


def test_what_is_wrong_is_said_in_the_language_of_whoever_asks(program: httpx.Client) -> None:
    asked = {**ASK, "date": "18.07.2025", "device_id": None}
    body = problem(
        program.post("/analyze-timeblock?wait=x", json=asked, headers={"Accept-Language": "ja"}), 422, "invalid"
    )
    assert {error["field"]: error["message"] for error in body["errors"]} == {
        "date": "2025-07-18 のように YYYY-MM-DD の形で書いてください",
        "device_id": "引用符で囲んだ文字列で書いてください",
        "wait": "数値で書いてください",
    }


def test_wrong_paths_and_methods(program: httpx.Client) -> None:
    problem(program.get("/nothing"), 404)
    problem(program.get("/analyses/d1/2025-07-18/12-30"), 404)
    problem(program.get("/analyses/d1/2025-07-18/12-31"), 422, "invalid")
    problem(program.get("/analyses/d1/2025-07-18"), 404)
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
        answer = program.request(method, "/analyze-timeblock")
        problem(answer, 405)
        assert answer.headers["allow"] == "POST"
    overridden = program.get("/analyze-timeblock", headers={"X-HTTP-Method-Override": "POST"})
    problem(overridden, 405)
    # A browser gets a page of pages, and a problem of the API.
    browser = {"Accept": "text/html"}
    assert "<html" in program.get("/nothing", headers=browser).text
    problem(program.get("/analyses/d1/2025-07-18/12-31", headers=browser), 422, "invalid")


def test_the_webhook_keeps_its_old_failures(site: Site) -> None:
    program = site.browser({})
    assert program.post("/api/monitor/job-report", json={}).json() == {"error": "Server configuration error"}
    assert set(program.get("/api/monitor/job-report").json()) == {"error"}
    assert set(program.post("/api/monitor/job-report", content=b"x" * 2_000_000).json()) == {"error"}


def test_a_database_that_is_away(site: Site, program: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    site.services.database.close()
    answer = ask(program)
    problem(answer, 503)
    assert int(answer.headers["retry-after"]) > 0


# --- what stands before it --------------------------------------------------------------------------------------------


def test_the_root_says_that_it_lives(site: Site) -> None:
    for accept in ("*/*", "application/json", ""):
        answer = site.browser({"Accept": accept}).get("/")
        assert answer.json() == {"status": "ok", "service": "toban", "docs": "/docs", "openapi": "/openapi.json"}
    assert site.browser({}).head("/").status_code == 200
    assert site.browser().get("/").headers["location"] == "/sign-in"
    assert site.signed_in().get("/").headers["location"] == "/incidents"


@pytest.mark.parametrize("root", ["/vibe-transcriber/", "/a/b"])
def test_a_proxy_may_cut_its_path_off_or_not(open_site: OpenSite, root: str) -> None:
    site = open_site(root_path=root)
    key = {"X-API-Key": site.accounts.add_key("app", ["analyze"])}
    path = root.rstrip("/")
    for before in ("", path):
        answer = site.browser({}).post(f"{before}/analyze-timeblock?wait=0", json=ASK, headers=key)
        assert answer.status_code == 202
        assert answer.json()["status_url"] == f"{path}/analyses/d1/2025-07-18/12-30"
        assert site.browser({}).get(f"{before}/").json()["docs"] == f"{path}/docs"
        assert site.browser({}).get(f"{before}/static/toban.css").status_code == 200
        document = site.browser({}).get(f"{before}/openapi.json", headers=key).json()
        assert document["servers"] == [{"url": path}]
    assert site.browser({}).get(path).status_code == 200
    assert site.browser({}).get(f"{path}{path}/").status_code == 404
    assert site.browser({}).get(f"{path}x/").status_code == 404


def test_a_path_like_a_page_of_ours_has_to_be_cut_off(open_site: OpenSite) -> None:
    visitor = open_site(root_path="/work").browser()
    assert visitor.get("/work").headers["location"] == "/work/sign-in?next=%2Fwork"


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_documentation_is_for_whoever_may_come_in(site: Site) -> None:
    problem(site.browser({}).get("/openapi.json"), 401)
    assert site.browser().get("/docs").headers["location"].startswith("/sign-in")
    key = {"X-API-Key": site.accounts.add_key("ci", ["badge"])}
    assert site.browser({}).get("/openapi.json", headers=key).json()["openapi"].startswith("3.1")
    assert site.browser({}).get("/docs", headers=key).status_code == 403
    page = site.signed_in("viktor").get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text, "nothing comes from elsewhere"
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"/static/swagger-ui/{name}" in page.text
        assert site.browser().get(f"/static/swagger-ui/{name}").status_code == 200
