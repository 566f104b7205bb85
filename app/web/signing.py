"""What is signed: the cookie of a session, and the token that shows that a form came from one of our pages."""

import secrets
from hashlib import sha256
from threading import Lock

from itsdangerous import BadSignature, Signer

from app.database import Database
from app.settings import Web


def new_token() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(32)


def fingerprint(token: str) -> str:
    """What the database keeps of a token. It is random, so a plain hash can't be guessed back."""
    return sha256(token.encode()).hexdigest()


class Signing:
    """Signs with WEB_SECRET_KEY, else with a secret that the database keeps for all web processes."""

    def __init__(self, settings: Web, database: Database) -> None:
        self._own = settings.web_secret_key
        self._database = database
        self._kept: str | None = None
        self._lock = Lock()

    def _secret(self) -> str:
        if self._own is not None:
            return self._own.get_secret_value()
        with self._lock:
            if self._kept is None:
                self._kept = str(self._database.call("toban_web_secret", candidate=new_token())["secret"])
            return self._kept

    def _signer(self, purpose: str) -> Signer:
        return Signer(self._secret(), salt=f"toban.{purpose}", digest_method=sha256)

    def sign(self, purpose: str, value: str) -> str:
        return self._signer(purpose).sign(value).decode()

    def read(self, purpose: str, signed: str | None) -> str | None:
        """The value that was signed for `purpose`; None if it was not."""
        if not signed or not signed.isascii():
            return None
        try:
            return self._signer(purpose).unsign(signed).decode()
        except BadSignature:
            return None

    def form_token(self, binding: str) -> str:
        """What a form carries; `binding`: the token of the session or visit that it is shown in."""
        return self._signer("form").get_signature(binding).decode()

    def form_token_fits(self, binding: str, token: str) -> bool:
        return secrets.compare_digest(self.form_token(binding).encode(), token.encode())
