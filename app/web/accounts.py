"""Accounts, sessions, one-time links and API keys.

The rules are SQL (`migrations/20261125002000_web_accounts.sql`), the hashing is here.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from threading import BoundedSemaphore
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.database import Database
from app.errors import Refused
from app.settings import Web
from app.web.signing import fingerprint, new_token

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")
SCOPES = {
    "badge": "how many incidents there are",
    "metrics": "the numbers for Prometheus",
    "read": "what a viewer sees",
    "transcribe": "have recordings transcribed (POST /fetch-and-transcribe)",
    "analyze": "have time blocks analysed (POST /analyze-timeblock)",
    "operate": "what an operator may do, too",
}

# Tries of one account, and from one address, within the window; then it has to pass.
MOST_TRIES, MOST_TRIES_OF_ADDRESS, WINDOW = 10, 30, timedelta(minutes=15)
SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 1000
LINK_LIFE = timedelta(hours=24)
KEY_PREFIX = "toban_"


@dataclass(frozen=True)
class Wait:
    """Too many tries; `seconds` until the next is allowed."""

    seconds: int


def canonical(name: str) -> str:
    """One spelling for each account's name.

    Raises `Refused`.
    """
    name = unicodedata.normalize("NFKC", name).strip().casefold()
    if not name or len(name) > 100 or not name.isprintable() or any(character.isspace() for character in name):
        raise Refused("a name has 1 to 100 characters and no spaces")
    return name


def check_password(password: str) -> None:
    """Raises `Refused`."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise Refused(f"a password has at least {SHORTEST_PASSWORD} characters")


class Accounts:
    """Typed calls over a `Database`; safe to share among threads."""

    def __init__(self, database: Database, settings: Web) -> None:
        self.database = database
        self._seconds = settings.web_session.total_seconds()
        self._hasher = PasswordHasher()  # RFC 9106's second choice: 64 MiB
        self._room = BoundedSemaphore(2)  # so many at once, whatever comes in

    # --- passwords and sessions ---------------------------------------------------------------------------------------

    def hashed(self, password: str) -> str:
        """Raises `Refused` where it is too short."""
        check_password(password)
        with self._room:
            return self._hasher.hash(password)

    @cached_property
    def _nobody(self) -> str:
        """The hash of no account, so that an unknown name takes as long as a known one."""
        return self._hasher.hash(new_token())

    def _fits(self, password_hash: str, password: str) -> bool:
        with self._room:
            try:
                return self._hasher.verify(password_hash, password)
            except (VerificationError, InvalidHashError):
                return False

    def sign_in(self, name: str, password: str, address: str) -> str | Wait | None:
        """The token of a new session; None: wrong name or password."""
        try:
            name = canonical(name)
        except Refused:
            name = ""
        answer = self.database.call(
            "toban_try_sign_in",
            name=name,
            address=address,
            most=MOST_TRIES,
            most_address=MOST_TRIES_OF_ADDRESS,
            window=WINDOW.total_seconds(),
        )
        if "wait" in answer:
            return Wait(int(answer["wait"]))
        known = answer["password_hash"]
        fits = self._fits(known or self._nobody, password[: LONGEST_PASSWORD + 1])
        if known is None or not fits:
            return None
        if self._hasher.check_needs_rehash(known):
            return self.open(user=name, new_hash=self.hashed(password))
        return self.open(user=name)

    def open(self, *, seconds: float | None = None, **whose: str) -> str | None:
        """The token of a new session for `user`, or for `guest` with `role`; None: the account is gone."""
        token = new_token()
        answer = self.database.call(
            "toban_open_session", session=fingerprint(token), seconds=seconds or self._seconds, **whose
        )
        return token if answer["opened"] else None

    def session(self, token: str) -> Mapping[str, Any] | None:
        """name, role, local, badge of a session."""
        answer: Mapping[str, Any] | None = self.database.call(
            "toban_session", session=fingerprint(token), seconds=self._seconds
        )
        return answer

    def close(self, token: str) -> None:
        self.database.call("toban_close_session", session=fingerprint(token))

    # --- accounts -----------------------------------------------------------------------------------------------------

    def add(self, name: str, password: str, role: Role) -> None:
        self.database.call("toban_add_user", name=canonical(name), password_hash=self.hashed(password), role=role)

    def set_password(self, name: str, password: str) -> None:
        """Ends the account's sessions."""
        self.database.call("toban_edit_user", name=canonical(name), password_hash=self.hashed(password))

    def set_role(self, name: str, role: Role) -> None:
        self.database.call("toban_edit_user", name=canonical(name), role=role)

    def remove(self, name: str) -> None:
        self.database.call("toban_remove_user", name=canonical(name))

    def users(self) -> Sequence[Mapping[str, Any]]:
        users: Sequence[Mapping[str, Any]] = self.database.call("toban_users")["users"]
        return users

    # --- one-time links -----------------------------------------------------------------------------------------------

    def make_link(self, name: str | None = None) -> str | None:
        """The token of a link to a new password for `name`, or to the first account.

        None: there are accounts already.
        """
        token = new_token()
        whose = {} if name is None else {"user": canonical(name)}
        answer = self.database.call(
            "toban_make_link", link=fingerprint(token), seconds=LINK_LIFE.total_seconds(), **whose
        )
        return token if answer["made"] else None

    def link(self, token: str) -> Mapping[str, Any] | None:
        """{user: the account whose password it sets; None: the first account}; None: used, or too old."""
        answer: Mapping[str, Any] | None = self.database.call("toban_link", link=fingerprint(token))
        return answer

    def use_link(self, token: str, name: str, password: str) -> str | None:
        """Use a link up; returns the account's name, None if the link was used, or is too old.

        Raises `Refused` for a bad name or password, which leaves the link as it is.
        """
        answer = self.database.call(
            "toban_use_link",
            link=fingerprint(token),
            name=canonical(name),
            password_hash=self.hashed(password),
        )
        return None if answer is None else str(answer["user"])

    # --- API keys -----------------------------------------------------------------------------------------------------

    def add_key(self, name: str, scopes: Sequence[str], life: timedelta | None = None) -> str:
        """The new key, which nobody can look up later."""
        if unknown := set(scopes) - SCOPES.keys():
            raise Refused(f"there is no scope {min(unknown)}; the scopes are {', '.join(SCOPES)}")
        key = KEY_PREFIX + new_token()
        span = {} if life is None else {"seconds": life.total_seconds()}
        self.database.call(
            "toban_add_key",
            name=canonical(name),
            key=fingerprint(key),
            hint=key[: len(KEY_PREFIX) + 4],
            scopes=sorted(set(scopes)),
            **span,
        )
        return key

    def key(self, key: str) -> Mapping[str, Any] | None:
        """name, scopes, badge of a live key."""
        answer: Mapping[str, Any] | None = self.database.call("toban_key", key=fingerprint(key))
        return answer

    def keys(self) -> Sequence[Mapping[str, Any]]:
        keys: Sequence[Mapping[str, Any]] = self.database.call("toban_keys")["keys"]
        return keys

    def revoke_key(self, name: str) -> None:
        self.database.call("toban_revoke_key", name=canonical(name))
