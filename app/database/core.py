"""The one way to the ledger: call a SQL function with named values, get its answer.

Every function of the ledger takes one jsonb object and returns one jsonb value (see `docs/ledger.md`), so both
transports decode alike and no row limit of a REST server can cut an answer short.
"""

import re
from typing import Any, Protocol

from app.errors import Permanent, Refused, Transient

# SQLSTATE classes after which the same call may succeed: connection, resources, operator intervention, and the two
# ways in which concurrent transactions lose. https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT_CLASSES = ("08", "53", "57", "58")
TRANSIENT_STATES = ("40001", "40P01", "55P03", "25006")

FORBIDDEN = (
    "the ledger refused this key: only the service_role (secret) key or the database's owner may use it; "
    "check SUPABASE_SERVICE_ROLE_KEY or DATABASE_URL"
)
MISSING = "the database lacks {function}(); run `toban migrate` or `supabase db push`"


class Database(Protocol):
    """A transport to the ledger; safe to share among threads."""

    def call(self, function: str, **params: object) -> Any:  # noqa: ANN401 - the answer's shape is the function's
        """Call `function` with `params` (JSON values) and return its answer.

        Raises `Transient` when the same call may succeed later, `Permanent` when it will not.
        """

    def close(self) -> None:
        """Give back every connection."""


def from_sqlstate(state: str | None, message: str, function: str) -> Transient | Permanent:
    """The error of ours for an error of PostgreSQL. A value that it quotes may be what somebody said."""
    if state and state.startswith("22"):
        message = re.sub(r'"[^"]*"', '"…"', message)
    elif state == "P0001":  # none of our functions raises it
        message = "a trigger or function of the app refused it (P0001); the database's log says why"
    if state == "42501":
        return Permanent(f"{FORBIDDEN} ({message})")
    if state == "42883" and function in message:  # else something that the function itself calls
        return Permanent(MISSING.format(function=function))
    if state in {"TB400", "TB404"}:  # the functions' own, in words for people
        return Refused(message, missing=state == "TB404")
    if state and (state[:2] in TRANSIENT_CLASSES or state in TRANSIENT_STATES):
        return Transient(f"{function}: {message}")
    return Permanent(f"{function}: {message}")


def refuse_nul(value: object, path: str) -> None:
    """PostgreSQL's text holds no NUL character; say where it stands instead of passing on its error.

    Raises `Refused`.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise Refused(f"{path} holds a NUL character, which the database cannot store")
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_nul(key, f"a key of {path}")
            refuse_nul(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            refuse_nul(item, f"{path}[{index}]")
