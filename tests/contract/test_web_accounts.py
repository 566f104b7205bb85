"""Accounts, sessions, links and keys over both transports; the pages' tests look at the rest."""

from datetime import timedelta

import pytest

from app.database import Database
from app.errors import Refused
from app.settings import Web
from app.web.accounts import MOST_TRIES, Accounts, Wait

PASSWORD = "a-long-enough-password"


@pytest.fixture
def accounts(db: Database) -> Accounts:
    return Accounts(db, Web(_env_file=None))


def test_from_the_first_link_to_the_last_session(accounts: Accounts) -> None:
    link = accounts.make_link()
    assert link
    assert accounts.link(link) == {"user": None}
    assert accounts.use_link(link, "Olga", PASSWORD) == "olga"
    assert accounts.link(link) is None
    assert accounts.use_link(link, "eve", PASSWORD) is None
    assert accounts.make_link() is None
    assert accounts.sign_in("olga", "wrong", "192.0.2.1") is None
    assert accounts.sign_in("nobody", PASSWORD, "192.0.2.1") is None
    session = accounts.sign_in("olga", PASSWORD, "192.0.2.1")
    assert isinstance(session, str)
    assert accounts.session(session) == {"name": "olga", "role": "operator", "local": True, "badge": 0}
    accounts.set_role("olga", "viewer")
    assert (accounts.session(session) or {})["role"] == "viewer"
    accounts.close(session)
    assert accounts.session(session) is None
    other = accounts.open(user="olga")
    accounts.remove("olga")
    assert other
    assert accounts.session(other) is None
    assert accounts.open(user="olga") is None


def test_what_the_database_refuses_is_told_in_words(accounts: Accounts) -> None:
    accounts.add("olga", PASSWORD, "viewer")
    with pytest.raises(Refused, match=r"^there is a user olga already$") as told:
        accounts.add("OLGA", PASSWORD, "viewer")
    assert not told.value.missing
    with pytest.raises(Refused, match=r"^there is no user eve$") as told:
        accounts.set_role("eve", "viewer")
    assert told.value.missing
    with pytest.raises(Refused, match="NUL"):
        accounts.database.call("toban_link", link="\0")


def test_tries_are_counted_by_account(accounts: Accounts) -> None:
    for number in range(MOST_TRIES):
        assert accounts.sign_in("olga", "wrong", f"192.0.2.{number}") is None
    waited = accounts.sign_in("olga", "wrong", "192.0.2.99")
    assert isinstance(waited, Wait)
    assert 0 < waited.seconds <= 900


def test_guests_and_keys(accounts: Accounts) -> None:
    session = accounts.open(seconds=60, guest="mika@example.com", role="viewer")
    assert session
    assert accounts.session(session) == {"name": "mika@example.com", "role": "viewer", "local": False, "badge": 0}
    key = accounts.add_key("ci", ["read", "badge"], timedelta(days=1))
    assert accounts.key(key) == {"name": "ci", "scopes": ["badge", "read"], "badge": 0}
    accounts.revoke_key("ci")
    assert accounts.key(key) is None


def test_the_stamp_and_whose_session_is_over(accounts: Accounts) -> None:
    first = accounts.database.call("toban_page_stamp", sessions=["a", "b"])
    assert sorted(first["gone"]) == ["a", "b"]
    assert accounts.database.call("toban_page_stamp")["stamp"] == first["stamp"]
    secret = accounts.database.call("toban_web_secret", candidate="first")["secret"]
    assert accounts.database.call("toban_web_secret", candidate="second")["secret"] == secret
