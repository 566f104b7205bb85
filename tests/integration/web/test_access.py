"""Nothing answers without sign-in, and what each way in may do."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from app.errors import Refused
from app.web.api.problems import PATHS
from tests.support.jwks import Jwks
from tests.support.web import PASSWORD, Site

OpenSite = Callable[..., Site]

# What answers to strangers, and what leads to a sign-in. Everything else must not.
OPEN = {
    ("GET", "/health/live"),
    ("HEAD", "/health/live"),
    ("HEAD", "/health/ready"),
    ("GET", "/health/ready"),
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    ("GET", "/welcome/{token}"),
    ("POST", "/welcome/{token}"),
    ("POST", "/preferences"),
    # With a secret of their own:
    ("POST", "/api/session"),
    ("POST", "/api/monitor/job-report"),
    ("POST", "/wake/{source}"),
}
SECRET = "a-jwt-secret-of-the-project-that-is-long-enough"


def routes(site: Site) -> list[tuple[str, str]]:
    """Method and path of every route of the app."""
    found = []
    for route in iter_route_contexts(site.app.routes):
        if isinstance(route.route, Mount):
            assert route.route.path in {"/static", "/static/swagger-ui"}
        else:
            assert route.path
            found += [(method, route.path) for method in route.methods or ()]
    return found


def filled(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "1", path)


def test_no_route_answers_without_sign_in(site: Site) -> None:
    found = routes(site)
    assert set(found) >= OPEN | {("GET", "/incidents"), ("GET", "/events"), ("GET", "/badge.svg")}
    for method, path in found:
        if (method, path) in OPEN:
            continue
        program, person = site.browser({}), site.browser()
        answer = program.request(method, filled(path))
        assert answer.status_code == 401, (method, path)
        assert answer.json()["title"] == "Unauthorized"
        if path.startswith(PATHS):
            continue
        answer = person.request(method, filled(path))
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/sign-in"), (method, path)


def test_the_open_ones_tell_nothing(site: Site) -> None:
    visitor = site.browser()
    assert visitor.get("/health/live").json() == {"status": "ok"}
    ready = visitor.get("/health/ready")
    assert set(ready.json()) == {"status", "parts"}
    assert not [word for word in ("localhost", "postgres", "toban-pg", "6379", "Error") if word in ready.text]
    assert visitor.post("/wake/transcription").status_code == 404  # no secret is set here
    assert visitor.post("/api/session").status_code == 401
    assert visitor.post("/api/monitor/job-report", json={}).status_code == 500  # no secret is set here
    for path in ("/redoc", "/static/../application.py", "/static/", "/nothing"):
        answer = visitor.get(path)
        assert answer.status_code == 404, path
        assert "Traceback" not in answer.text


def test_forms_need_their_token(site: Site) -> None:
    found = [(method, path) for method, path in routes(site) if method not in {"GET", "HEAD"}]
    browser, other = site.signed_in(), site.signed_in("viktor")
    stolen = other.csrf("/incidents")
    for method, path in found:
        if path.startswith(("/api/", "/wake/")):
            continue
        for fields in ({}, {"csrf": ""}, {"csrf": "x" * 43}, {"csrf": stolen}, {"csrf": "é"}):
            answer = browser.request(method, filled(path), data=fields)
            assert answer.status_code == 403, (method, path, fields)
            assert "This form is out of date" in answer.text
    assert browser.get("/incidents").status_code == 200, "still signed in"
    visitor = site.browser()
    fields = {"name": "olga", "password": PASSWORD}
    assert visitor.post("/sign-in", data={**fields, "csrf": "x"}).status_code == 403
    assert visitor.post("/sign-in", data={**fields, "csrf": site.browser().csrf("/sign-in")}).status_code == 403
    assert visitor.submit("/sign-in", **fields).status_code == 303


def test_a_made_up_header_does_not_stand_in_for_a_forms_token(site: Site) -> None:
    browser = site.signed_in()
    for headers in ({"Authorization": "Basic eDp5"}, {"Authorization": "x"}, {"X-API-Key": ""}):
        assert browser.post("/sign-out", headers=headers).status_code == 403
    # With a wrong key nobody is signed in, whatever the cookie.
    assert browser.post("/sign-out", headers={"X-API-Key": "toban_x"}).status_code == 303
    assert browser.get("/incidents").status_code == 200


@pytest.mark.parametrize(
    "path", ["/incidents", "/sign-in", "/nothing", "/static/toban.css", "/health/live", "/badge.svg"]
)
def test_every_answer_has_the_headers(site: Site, path: str) -> None:
    for browser in (site.browser(), site.signed_in()):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "server" not in headers
        assert ("no-store" in headers["cache-control"]) or path in {"/static/toban.css", "/badge.svg"}
        assert "access-control-allow-origin" not in headers
        assert "strict-transport-security" not in headers
    headers = site.browser().get(path, headers={"X-Forwarded-Proto": "https"}).headers
    assert "max-age" in headers["strict-transport-security"]


def test_no_page_has_what_its_policy_forbids(site: Site) -> None:
    browser = site.signed_in()
    for path in ("/incidents", "/preferences", "/nothing"):
        text = browser.get(path).text
        assert "<style" not in text
        assert " style=" not in text
        assert not [tag for tag in text.split("<script")[1:] if "src=" not in tag.partition(">")[0]]
        assert " onclick" not in text
        assert "https://" not in text, "nothing comes from elsewhere"


def test_what_is_too_large_is_refused(site: Site) -> None:
    browser = site.browser()
    form = {"csrf": browser.csrf("/sign-in"), "name": "x" * 2_000_000, "password": "x"}
    answer = browser.post("/sign-in", data=form)
    assert answer.status_code == 413
    assert "Too much" in answer.text

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    with suppress(httpx.WriteError):  # it may hang up in the middle
        assert browser.post("/api/monitor/job-report", content=endless()).status_code == 413


def test_bad_requests_get_clear_answers(site: Site) -> None:
    visitor = site.browser()
    odd: list[Any] = [
        {"content": b"\xff\xfe", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"\xff\xfe", "headers": {"Content-Type": "application/x-www-form-urlencoded; charset=utf-16"}},
        {"files": {"name": ("x", b"x")}},
        {"content": b"name=" + b"%00" * 10},
    ]
    for request in odd:
        answer = visitor.post("/sign-in", **request)
        assert answer.status_code in {400, 403, 422}
        assert "Traceback" not in answer.text
        assert "<html" in answer.text
    assert visitor.request("DELETE", "/sign-in").status_code == 405
    assert visitor.get("/welcome/%00").status_code == 404


def test_behind_a_proxys_path(open_site: OpenSite) -> None:
    site = open_site(root_path="/toban")
    site.accounts.add("olga", PASSWORD, "operator")
    visitor = site.browser()
    answer = visitor.get("/incidents")  # as a proxy asks that cuts the path off
    assert answer.headers["location"] == "/toban/sign-in?next=%2Fincidents"
    answer = visitor.sign_in(next="/incidents")
    assert answer.headers["location"] == "/toban/incidents"
    page = visitor.get("/incidents")
    assert page.status_code == 200
    assert page.text.count('href="/toban/') > 5
    assert not re.findall(r'(?:href|src|action|data-events)="/(?!toban)', page.text)
    assert 'aria-current="page"' in page.text
    assert visitor.get("/static/toban.css").status_code == 200


# --- API keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("badge", {"/badge.json"}),
        ("read", {"/incidents"}),
        ("operate", {"/incidents"}),
    ],
)
def test_a_key_may_do_what_its_scope_says(site: Site, scope: str, allowed: set[str]) -> None:
    key = site.accounts.add_key("ci", [scope])
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
        for path in ("/badge.json", "/incidents"):
            answer = site.browser({}).get(path, headers=headers)
            assert answer.status_code == (200 if path in allowed else 403), path
            if path not in allowed:
                assert "does not have the scope" in answer.json()["detail"]


def test_keys_end(site: Site, database_url: str) -> None:
    program = site.browser({})
    key = site.accounts.add_key("ci", ["badge"])
    assert program.get("/badge.json", headers={"X-API-Key": key}).json() == {"incidents": 0}
    assert program.get("/badge.json", headers={"X-API-Key": key + "x"}).status_code == 401
    with pytest.raises(Refused, match="there is a key ci already"):
        site.accounts.add_key("ci", ["badge"])
    site.accounts.revoke_key("ci")
    assert program.get("/badge.json", headers={"X-API-Key": key}).status_code == 401
    with pytest.raises(Refused, match="there is no live key ci"):
        site.accounts.revoke_key("ci")
    newer = site.accounts.add_key("ci", ["badge"], timedelta(days=1))
    assert program.get("/badge.json", headers={"X-API-Key": newer}).status_code == 200
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update web_keys set expires_at = now()")
    assert program.get("/badge.json", headers={"X-API-Key": newer}).status_code == 401
    with pytest.raises(Refused, match="there is no scope all"):
        site.accounts.add_key("more", ["all"])
    (shown,) = site.accounts.keys()
    assert shown["used_at"]
    assert newer not in str(shown)


def test_guessing_keys_is_slowed(site: Site) -> None:
    program = site.browser({})
    answers = [program.get("/badge.json", headers={"X-API-Key": f"toban_{n}"}).status_code for n in range(30)]
    assert answers == [401] * 20 + [429] * 10
    good = site.accounts.add_key("ci", ["badge"])
    assert program.get("/badge.json", headers={"X-API-Key": good}).status_code == 429
    other = {"X-API-Key": good, "X-Forwarded-For": "203.0.113.9"}
    assert program.get("/badge.json", headers=other).status_code == 200


def test_the_badge(site: Site, database_url: str) -> None:
    browser = site.signed_in("viktor")
    assert "all well" in browser.get("/badge.svg").text
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "insert into incidents (fingerprint, kind, title, opened_at, last_at, settle)"
            " select 'job:' || n, 'job', 'J', now(), now(), '1 min' from generate_series(1, 2) n"
        )
    answer = browser.get("/badge.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "2 incidents" in answer.text
    assert "障害 2 件" in browser.get("/badge.svg", headers={"Accept-Language": "ja"}).text
    assert browser.get("/badge.json").json() == {"incidents": 2}
    assert '<span class="badge">' in browser.get("/incidents").text


# --- Supabase Auth ----------------------------------------------------------------------------------------------------


def claims(**other: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "sub": "8d0fd2b3-9ca7-4d9e-a95f-9e13dded323e",
        "aud": "authenticated",
        "role": "authenticated",
        "email": "mika@example.com",
        "exp": now + 3600,
        "iat": now,
        "app_metadata": {"provider": "email", "toban_role": "operator"},
        **other,
    }


def signed(secret: str = SECRET, **other: object) -> str:
    return jwt.encode(claims(**other), secret, "HS256")


def test_a_person_of_supabase_auth(open_site: OpenSite, database_url: str) -> None:
    site = open_site(supabase_jwt_secret=SECRET)
    bearer = {"Authorization": f"Bearer {signed()}"}
    assert "mika@example.com" in site.browser().get("/incidents", headers=bearer).text
    browser = site.browser({})
    assert browser.post("/api/session", headers=bearer).json() == {"name": "mika@example.com", "role": "operator"}
    assert browser.get("/incidents").status_code == 200
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute("select expires_at <= now() + interval '1 h 1 s' from web_sessions").fetchone()
        assert row == (True,), "no longer than the token"
        connection.execute(
            "update web_sessions set seen_at = now() - interval '2 min', expires_at = now() + interval '5 min'"
        )
        assert browser.get("/incidents").status_code == 200
        row = connection.execute("select expires_at <= now() + interval '5 min' from web_sessions").fetchone()
        assert row == (True,), "use does not extend it"


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda: signed(exp=int(time.time()) - 60), id="expired"),
        pytest.param(lambda: signed(aud="another"), id="audience"),
        pytest.param(lambda: signed("another-secret-that-is-also-long-enough"), id="signature"),
        pytest.param(lambda: jwt.encode(claims(), "", "none"), id="alg none"),
        pytest.param(lambda: jwt.encode(claims(), 2 * SECRET, "HS512"), id="another algorithm"),
        pytest.param(lambda: jwt.encode(claims(), ec.generate_private_key(ec.SECP256R1()), "ES256"), id="ES256"),
        pytest.param(lambda: signed(role="anon"), id="role anon"),
        pytest.param(lambda: signed(role="service_role"), id="role service_role"),
        pytest.param(lambda: signed(app_metadata={}), id="no role here"),
        pytest.param(lambda: signed(app_metadata={"toban_role": "owner"}), id="unknown role"),
        pytest.param(lambda: signed(app_metadata=["toban_role"]), id="odd metadata"),
        pytest.param(lambda: signed(user_metadata={"toban_role": "operator"}, app_metadata=None), id="role by oneself"),
        pytest.param(lambda: jwt.encode({"role": "anon", "iss": "supabase", "exp": 2**31}, SECRET), id="the anon key"),
        pytest.param(lambda: signed(nbf=int(time.time()) + 600), id="not yet"),
        pytest.param(lambda: "a.b.c", id="no token"),
    ],
)
def test_other_tokens_open_nothing(open_site: OpenSite, token: Callable[[], str]) -> None:
    site = open_site(supabase_jwt_secret=SECRET)
    bearer = {"Authorization": f"Bearer {token()}"}
    assert site.browser({}).get("/incidents", headers=bearer).status_code == 401
    assert site.browser({}).post("/api/session", headers=bearer).status_code == 401


@pytest.mark.parametrize("missing", ["exp", "sub", "aud"])
def test_a_token_needs_its_claims(open_site: OpenSite, missing: str) -> None:
    site = open_site(supabase_jwt_secret=SECRET)
    some = {name: value for name, value in claims().items() if name != missing}
    bearer = {"Authorization": f"Bearer {jwt.encode(some, SECRET)}"}
    assert site.browser({}).get("/incidents", headers=bearer).status_code == 401


def test_without_the_setting_no_token_is_good(site: Site) -> None:
    assert site.browser({}).get("/incidents", headers={"Authorization": f"Bearer {signed()}"}).status_code == 401


def test_signing_keys(open_site: OpenSite) -> None:
    with Jwks() as keys:
        site = open_site(supabase_jwks_url=keys.url)
        for token, status in (
            (keys.sign(claims()), 200),
            (keys.sign(claims(aud="another")), 401),
            (keys.sign(claims(), kid="unknown"), 401),
            (keys.confused(claims()), 401),
        ):
            bearer = {"Authorization": f"Bearer {token}"}
            assert site.browser({}).get("/incidents", headers=bearer).status_code == status
    away = open_site(supabase_jwks_url=keys.url)
    answer = away.browser({}).get("/incidents", headers={"Authorization": f"Bearer {keys.sign(claims())}"})
    assert answer.status_code == 503


def test_a_viewer_by_token_has_no_more(open_site: OpenSite) -> None:
    site = open_site(supabase_jwt_secret=SECRET)
    bearer = {"Authorization": f"Bearer {signed(app_metadata={'toban_role': 'viewer'})}"}
    assert "Viewer" in site.browser().get("/incidents", headers=bearer).text
