"""Every way in, and what keeps others out."""

import html
import re
import threading
from collections.abc import Callable

import psycopg
import pytest

from app.web.accounts import MOST_TRIES, MOST_TRIES_OF_ADDRESS
from tests.support.web import PASSWORD, Site

OpenSite = Callable[..., Site]


def test_a_visitor_signs_in_and_out(site: Site) -> None:
    visitor = site.browser()
    answer = visitor.get("/incidents?a=1&b=x%26y")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Fincidents%3Fa%3D1%26b%3Dx%2526y")
    page = visitor.get(answer.headers["location"])
    wanted = re.findall(r'name="next" value="([^"]+)"', page.text)[0]
    answer = visitor.sign_in(next=html.unescape(wanted))
    assert (answer.status_code, answer.headers["location"]) == (303, "/incidents?a=1&b=x%26y")
    assert visitor.get("/incidents").status_code == 200
    assert visitor.get("/sign-in?next=/incidents").headers["location"] == "/incidents"
    kept = dict(visitor.cookies)
    assert visitor.submit("/sign-out", page="/incidents").headers["location"] == "/sign-in"
    assert "toban_session" not in visitor.cookies
    visitor.cookies.update(kept)
    assert visitor.get("/incidents").status_code == 303, "a cookie that was kept is worth nothing"


def test_names_have_one_spelling(site: Site) -> None:
    assert site.browser().sign_in("  OLGA ").status_code == 303
    assert site.browser().sign_in("ｏｌｇａ").status_code == 303  # full width, as a Japanese keyboard has it


@pytest.mark.parametrize(
    ("name", "password"), [("olga", "wrong"), ("nobody", PASSWORD), ("", ""), ("olga", ""), ("olga", PASSWORD + " ")]
)
def test_a_wrong_name_or_password_gets_the_same_answer(site: Site, name: str, password: str) -> None:
    answer = site.browser().sign_in(name, password)
    assert answer.status_code == 403
    assert "The name or the password is wrong." in answer.text
    assert "toban_session" not in answer.cookies


@pytest.mark.parametrize("password", ["x" * 100_000, "\0", "\ud7ff😀"])
def test_strange_passwords_are_only_wrong(site: Site, password: str) -> None:
    assert site.browser().sign_in("olga", password).status_code == 403


def test_too_many_tries_of_one_account_wait(site: Site, database_url: str) -> None:
    visitor = site.browser()
    token = visitor.csrf("/sign-in")
    form = {"csrf": token, "name": "olga", "password": "wrong"}
    answers = [visitor.post("/sign-in", data=form).status_code for _ in range(MOST_TRIES + 1)]
    assert answers == [403] * MOST_TRIES + [429]
    # The right password is no way around it, from wherever; another account is free.
    answer = visitor.post("/sign-in", data={**form, "password": PASSWORD})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 900
    assert "Too many tries" in answer.text
    assert site.browser().sign_in("viktor").status_code == 303
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update web_tries set until = now() - interval '1 s'")
    assert visitor.post("/sign-in", data={**form, "password": PASSWORD}).status_code == 303
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*) from web_tries where subject = 'account:olga'").fetchone() == (0,)


def test_tries_at_once_are_all_counted(site: Site) -> None:
    answers: list[int] = []

    def guess() -> None:
        visitor = site.browser()
        answers.append(visitor.sign_in("olga", "wrong").status_code)

    threads = [threading.Thread(target=guess) for _ in range(MOST_TRIES + 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [403] * MOST_TRIES + [429] * 4


def test_too_many_tries_of_one_address_wait_whatever_the_account(site: Site) -> None:
    visitor = site.browser()
    form = {"csrf": visitor.csrf("/sign-in"), "password": "wrong"}
    for number in range(MOST_TRIES_OF_ADDRESS):
        assert visitor.post("/sign-in", data={**form, "name": f"guess-{number}"}).status_code == 403
    assert visitor.post("/sign-in", data={**form, "name": "viktor", "password": PASSWORD}).status_code == 429
    # A proxy that is trusted tells who it is.
    elsewhere = {"X-Forwarded-For": "203.0.113.7"}
    assert visitor.post(
        "/sign-in", data={**form, "name": "viktor", "password": PASSWORD}, headers=elsewhere
    ).is_redirect


def test_an_untrusted_proxy_is_not_believed(open_site: OpenSite) -> None:
    site = open_site(trusted_proxies="")
    visitor = site.browser()
    form = {"csrf": visitor.csrf("/sign-in"), "password": "wrong"}
    answers = [
        visitor.post(
            "/sign-in",
            data={**form, "name": f"guess-{number}"},
            headers={"X-Forwarded-For": f"203.0.113.{number}", "X-Forwarded-Proto": "https"},
        )
        for number in range(MOST_TRIES_OF_ADDRESS + 1)
    ]
    assert answers[-1].status_code == 429
    assert not any("Secure" in answer.headers.get("set-cookie", "") for answer in answers)


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "/\t/evil.example",
        "http:evil.example",
        "javascript:alert(1)",
        " //evil.example",
        "/%0d%0aSet-Cookie:x",
        "/\r\nSet-Cookie: x=1",
        "",
    ],
)
def test_nobody_is_led_to_another_site(site: Site, target: str) -> None:
    visitor = site.browser()
    answer = visitor.sign_in(next=target)
    assert answer.status_code == 303
    location = answer.headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))
    assert "set-cookie: x" not in str(answer.headers).lower()
    for path in ("/sign-in", "/preferences"):
        page = visitor.get(path, params={"next": target})
        assert "evil.example" not in page.headers.get("location", "").partition("/evil")[0]
    answer = visitor.submit("/preferences", page="/incidents", language="ja", next=target)
    assert answer.headers["location"].startswith("/")
    assert not answer.headers["location"].startswith(("//", "/\\"))


def test_the_first_link_makes_an_operator_and_is_used_up(open_site: OpenSite) -> None:
    site = open_site()
    token, other = site.accounts.make_link(), site.accounts.make_link()
    assert token
    assert other
    visitor = site.browser()
    page = f"/welcome/{token}"
    assert visitor.get(page).status_code == 200
    assert visitor.submit(page, name="olga", password="short").status_code == 400
    assert visitor.submit(page, name="two words", password=PASSWORD).status_code == 400
    answer = visitor.submit(page, name="Olga", password=PASSWORD)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "Operator" in visitor.get("/incidents").text
    for used in (page, f"/welcome/{other}", "/welcome/anything"):
        assert site.browser().get(used).status_code == 404
        assert site.browser().submit(used, name="eve", password=PASSWORD).status_code == 404
    assert site.accounts.make_link() is None
    assert [user["name"] for user in site.accounts.users()] == ["olga"]


def test_a_link_makes_one_account_whoever_comes_at_once(open_site: OpenSite) -> None:
    site = open_site()
    tokens = [site.accounts.make_link() for _ in range(6)]
    made: list[str | None] = []
    threads = [
        threading.Thread(target=lambda token=token, i=i: made.append(site.accounts.use_link(token, f"u{i}", PASSWORD)))
        for i, token in enumerate(tokens)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(name is not None for name in made) == 1
    assert len(site.accounts.users()) == 1


def test_a_link_to_a_new_password_ends_the_old_sessions(site: Site, database_url: str) -> None:
    browser = site.signed_in()
    link = site.accounts.make_link("olga")
    visitor = site.browser()
    assert "olga" in visitor.get(f"/welcome/{link}").text
    # The name of a form can't make it another's.
    assert visitor.submit(f"/welcome/{link}", name="viktor", password="another-long-password").status_code == 303
    assert browser.get("/incidents").status_code == 303
    assert site.browser().sign_in().status_code == 403
    assert site.browser().sign_in("olga", "another-long-password").status_code == 303
    assert site.browser().sign_in("viktor").status_code == 303
    late = site.accounts.make_link("olga")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update web_links set expires_at = now()")
    assert visitor.get(f"/welcome/{late}").status_code == 404


def test_who_is_removed_or_changed_is_so_at_once(site: Site) -> None:
    olga, viktor = site.signed_in(), site.signed_in("viktor")
    assert "Viewer" in viktor.get("/incidents").text
    site.accounts.set_role("viktor", "operator")
    assert "Operator" in viktor.get("/incidents").text
    site.accounts.set_password("viktor", "another-long-password")
    assert viktor.get("/incidents").status_code == 303
    site.accounts.remove("olga")
    assert olga.get("/incidents").status_code == 303


def test_a_session_ends_when_it_is_not_used(site: Site, database_url: str) -> None:
    browser = site.signed_in()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "update web_sessions set seen_at = now() - interval '2 min', expires_at = now() + interval '1 h'"
        )
        assert browser.get("/incidents").status_code == 200
        left = connection.execute("select expires_at - now() > interval '6 days' from web_sessions").fetchone()
        assert left == (True,), "it lasts from its last use"
        connection.execute("update web_sessions set expires_at = now()")
    assert browser.get("/incidents").status_code == 303


def test_a_forged_cookie_opens_nothing(site: Site) -> None:
    browser = site.signed_in()
    good = browser.cookies["toban_session"]
    token, _, signature = good.rpartition(".")
    bad = [token, f"{token}.", f"{token}x.{signature}", f"{token}.{signature[::-1]}", "", "x" * 5000, f"{good}é"]
    for cookie in bad:
        headers = {b"Cookie": f"toban_session={cookie}".encode("latin-1")}
        assert site.browser().get("/incidents", headers=headers).status_code == 303, cookie


def test_cookies_are_for_the_server_alone(site: Site, open_site: OpenSite) -> None:
    cookie = site.browser().sign_in().headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    secure = open_site(web_base_url="https://toban.example.com")
    page = secure.browser().get("/sign-in")
    (visit,) = page.headers.get_list("set-cookie")
    (token,) = set(re.findall(r'name="csrf" value="([^"]+)"', page.text))
    answer = secure.browser().post(
        "/sign-in",
        data={"csrf": token, "name": "olga", "password": PASSWORD},
        headers={"Cookie": visit.partition(";")[0]},  # this client would not send it without https
    )
    session = next(cookie for cookie in answer.headers.get_list("set-cookie") if "session" in cookie)
    for cookie in (visit, session):
        assert cookie.startswith("__Host-toban_")
        assert "Secure" in cookie
        assert "Path=/;" in cookie
        assert "Domain" not in cookie
    # Behind a proxy that says so, without the setting too.
    proxied = {"X-Forwarded-Proto": "https"}
    assert "Secure" in site.browser().get("/sign-in", headers=proxied).headers["set-cookie"]


def test_the_secret_is_made_once_and_shared(open_site: OpenSite, database_url: str) -> None:
    first, second = open_site(web_secret_key=None), open_site(web_secret_key=None)
    first.accounts.add("olga", PASSWORD, "operator")
    browser = first.signed_in()
    visitor = second.browser()
    visitor.cookies.update(browser.cookies)
    assert visitor.get("/incidents").status_code == 200, "two processes, one secret"
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("select length(value) from web_secrets").fetchall()
    assert rows == [(43,)]
    other = open_site(web_secret_key="another" * 6).browser()
    other.cookies.update(browser.cookies)
    assert other.get("/incidents").status_code == 303


def test_no_password_token_or_key_is_kept_as_it_is(site: Site, database_url: str) -> None:
    browser = site.signed_in()
    key, link = site.accounts.add_key("ci", ["read"]), site.accounts.make_link("viktor")
    secrets = [PASSWORD, browser.cookies["toban_session"].partition(".")[0], key, str(link)]
    tables = ["web_users", "web_sessions", "web_links", "web_keys", "web_tries", "web_secrets"]
    with psycopg.connect(database_url) as connection:
        for table in tables:
            text = str(
                connection.execute(psycopg.sql.SQL("select * from {}").format(psycopg.sql.Identifier(table))).fetchall()
            )
            assert not [secret for secret in secrets if secret in text], table
        hashes = connection.execute("select password_hash from web_users").fetchall()
    assert all(value.startswith("$argon2id$") for (value,) in hashes)


def test_an_old_hash_is_replaced_at_the_next_sign_in(site: Site, database_url: str) -> None:
    from argon2 import PasswordHasher

    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    site.accounts._hasher = PasswordHasher()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update web_users set password_hash = %s where name = 'olga'", [weak])
        assert site.browser().sign_in().status_code == 303
        row = connection.execute("select password_hash from web_users where name = 'olga'").fetchone()
    assert row
    assert "m=65536" in row[0]
    assert site.browser().sign_in().status_code == 303
