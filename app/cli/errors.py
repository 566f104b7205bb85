"""What a person reads when a command ends badly: one message, no traceback."""

import re

from app.cli.hints import here
from app.embedded.errors import StackError
from app.errors import TobanError
from app.settings import SettingsError

EXPECTED = (SettingsError, TobanError, StackError)
# Of libraries, by the package that defines them: their classes need not be loaded to be told apart.
CONNECTIONS = {
    "amqp": "the broker",
    "httpcore": "Supabase",
    "httpx": "Supabase",
    "kombu": "the broker",
    "psycopg": "the database",
    "psycopg_pool": "the database",
    "redis": "the broker",
}


def without_passwords(text: str) -> str:
    """`text`, with the passwords of addresses in it left out."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)


def told(error: BaseException) -> str:
    """The message for `error`."""
    return here(without_passwords(_told(error)))


def _told(error: BaseException) -> str:
    if isinstance(error, EXPECTED):
        return f"toban: {error}"
    words = str(error).strip() or type(error).__name__
    if party := CONNECTIONS.get(type(error).__module__.split(".")[0]):
        return f"toban: {party} can't be used: {words}\n`toban doctor` looks into it."
    if isinstance(error, OSError):
        return f"toban: {words}"
    return f"toban: unexpected {type(error).__name__}: {words}\nTOBAN_DEBUG=1 shows where; please report it."
