"""Where the rows are: the group `Database`, and what its address and its key tell without a connection."""

import base64
import binascii
import json
from collections.abc import Iterator

from pydantic import Field, SecretStr

from app.settings.group import Group, scheme
from app.settings.problems import Problem

FORM = "postgresql://user:password@host:5432/name"


class Database(Group):
    """Where the rows are: a direct connection (`DATABASE_URL`) or Supabase's REST API. The direct one wins."""

    database_url: SecretStr | None = Field(
        None,
        description=f"{FORM}, its special characters percent-encoded; a transaction pooler works too",
    )
    supabase_url: str | None = Field(
        None,
        description="https://<project>.supabase.co; used when DATABASE_URL is not set",
    )
    supabase_service_role_key: SecretStr | None = Field(
        None,
        description="the key that passes row level security",
    )
    supabase_key: SecretStr | None = Field(
        None,
        description="older name; used when SUPABASE_SERVICE_ROLE_KEY is not set; must not be the anon key",
    )
    database_listen_url: SecretStr | None = Field(
        None,
        description="a direct connection (or a session pooler) to the same database, for hearing of new rows at once; "
        "needed where DATABASE_URL leads through a transaction pooler or is not set; default: DATABASE_URL",
    )
    database_pool_size: int = Field(
        4,
        ge=1,
        description="most connections that one process opens",
    )

    def rest_key(self) -> SecretStr | None:
        return self.supabase_service_role_key or self.supabase_key

    def listen_url(self) -> str | None:
        """Where to hear of new rows; None: nowhere, the REST API tells of none."""
        url = self.database_listen_url or self.database_url
        return url.get_secret_value() if url else None

    def problems(self) -> Iterator[Problem]:
        if self.database_url is None and self.supabase_url is None:
            yield Problem(
                "E002",
                "DATABASE_URL",
                "no database is set",
                "set DATABASE_URL, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY; `toban up` starts an embedded one",
            )
        for name, secret in (("DATABASE_URL", self.database_url), ("DATABASE_LISTEN_URL", self.database_listen_url)):
            url = secret.get_secret_value() if secret else None
            if url is None:
                continue
            if scheme(url) not in {"postgresql", "postgres"}:
                yield Problem("E010", name, "is not a PostgreSQL address", f"write it as {FORM}")
            elif not address_is_clear(url):
                yield Problem(
                    "E010",
                    name,
                    "can't be read as an address without doubt",
                    f"write it as {FORM}, and the password's special characters as %40 for @, %2F for /, %3A for :, "
                    "%23 for #, %3F for ? and %25 for %",
                )
        if self.database_url is not None or self.supabase_url is None:
            return
        if scheme(self.supabase_url) not in {"http", "https"}:
            yield Problem("E011", "SUPABASE_URL", "is not an http(s) address", "copy the project URL from Supabase")
        key = self.rest_key()
        name = "SUPABASE_SERVICE_ROLE_KEY" if self.supabase_service_role_key else "SUPABASE_KEY"
        if key is None:
            yield Problem(
                "E003",
                "SUPABASE_SERVICE_ROLE_KEY",
                "is not set",
                "copy the service_role (secret) key from the project's API settings",
            )
        elif (role := key_role(key.get_secret_value())) in {"anon", "authenticated"}:
            yield Problem(
                "E004",
                name,
                f"holds the {role} key, which may not read or write the work ledger",
                "put the service_role (secret) key into SUPABASE_SERVICE_ROLE_KEY; the old value may stay",
            )


def address_is_clear(url: str) -> bool:
    """Whether a PostgreSQL URL means what it seems to mean.

    An `@` or `/` of the password, written as it is, makes a part of it the host, the port or the database's name. Such
    a host can't be found, and the message that says so would show that part.
    """
    import psycopg  # 0.3 s, which only those pay who have such an address
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, ValueError):
        return False
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    hosts, ports = parts.get("host", "").split(","), parts.get("port", "").split(",")
    return (
        " " not in url  # libpq drops some
        and "@" not in path
        and all(host.startswith("/") or not set(host) & set("@/ ") for host in hosts)
        and all(not port or (port.isdecimal() and 0 < int(port) < 65536) for port in ports)
    )


def key_role(key: str) -> str:
    """The role that a Supabase key speaks for: `anon`, `service_role` … or `unknown`.

    Old keys are JSON Web Tokens with the role inside (the signature is the server's business); new ones say it by
    their prefix, `sb_publishable_` for what was anon and `sb_secret_` for service_role.
    Source: Supabase documentation, "Understanding API keys".
    """
    if key.startswith("sb_publishable_"):
        return "anon"
    if key.startswith("sb_secret_"):
        return "service_role"
    parts = key.split(".")
    if len(parts) != 3:
        return "unknown"
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return "unknown"
    return str(claims.get("role", "unknown")) if isinstance(claims, dict) else "unknown"
