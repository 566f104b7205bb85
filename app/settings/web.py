"""The group `Web`: the pages' server, who may sign in, and what scripts report with."""

from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from app.settings.group import Group, Seconds, scheme
from app.settings.problems import Problem

# RFC 7518, section 3.2: as long as the hash.
SECRET_LENGTH = 32


class Web(Group):
    """The web pages (`toban web`) and who may see them."""

    web_host: str = Field(
        "127.0.0.1",
        description="the address it listens on; 0.0.0.0: all, which needs HTTPS before it",
    )
    web_port: int = Field(8000, ge=1, le=65535, description="its port")
    web_base_url: str | None = Field(
        None,
        description="where people reach it, such as https://toban.example.com; for printed links; with https, cookies "
        "travel only so",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="the path under which a proxy shows it, such as /toban, if it cuts that off",
    )
    web_secret_key: SecretStr | None = Field(
        None,
        min_length=SECRET_LENGTH,
        description="signs cookies; at least 32 characters; default: made once and kept in the database",
    )
    web_session: Seconds = Field(
        timedelta(days=7),
        description="a session ends after so long without use, seconds",
    )
    web_wait: Seconds = Field(
        timedelta(seconds=55),
        description="how long a request of the API waits for its batch unless it says otherwise, seconds; shorter than "
        "the read timeout of every proxy before it (nginx: 60)",
    )
    web_language: Literal["en", "ja"] = Field(
        "en",
        description="for readers whose browser asks for neither English nor Japanese",
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="addresses and networks, separated by commas, whose X-Forwarded-For and -Proto are believed",
    )
    supabase_jwt_secret: SecretStr | None = Field(
        None,
        description="accept people whom Supabase Auth has signed in: the project's (legacy) JWT secret",
    )
    supabase_jwks_url: str | None = Field(
        None,
        description="the same with signing keys: https://<project>.supabase.co/auth/v1/.well-known/jwks.json",
    )
    supabase_jwt_audience: str = Field("authenticated", min_length=1, description="the audience their tokens must have")
    flower_url: str | None = Field(
        None,
        description="where people reach Flower; the pages then lead to its tasks",
    )

    @property
    def secure(self) -> bool:
        """Whether people reach it by https, as far as the settings say."""
        return self.web_base_url is not None and scheme(self.web_base_url) == "https"

    def problems(self) -> Iterator[Problem]:
        if self.web_base_url is not None and not _is_base(self.web_base_url):
            yield Problem(
                "E030",
                "WEB_BASE_URL",
                "is not an http(s) address",
                "write it as https://toban.example.com, with the path if there is one",
            )
        if self.flower_url is not None and not _is_base(self.flower_url):
            yield Problem(
                "E035",
                "FLOWER_URL",
                "is not an http(s) address",
                "write it as https://flower.example.com, with the path if there is one",
            )
        for entry in self.trusted():
            try:
                ip_network(entry)
            except ValueError:
                yield Problem(
                    "E031",
                    "TRUSTED_PROXIES",
                    f"{entry!r} is no IP address or network",
                    "write addresses and networks such as 10.0.0.0/8, separated by commas",
                )
        if self.supabase_jwks_url is not None and not _is_safe(self.supabase_jwks_url):
            yield Problem(
                "E032",
                "SUPABASE_JWKS_URL",
                "is not an https address",
                "write it as https://<project>.supabase.co/auth/v1/.well-known/jwks.json",
            )
        if self.supabase_jwt_secret is not None and self.supabase_jwks_url is not None:
            yield Problem(
                "E033",
                "SUPABASE_JWT_SECRET",
                "is set beside SUPABASE_JWKS_URL, and one of them would be ignored",
                "set SUPABASE_JWKS_URL where the project has signing keys, else SUPABASE_JWT_SECRET",
            )
        if self.supabase_jwt_secret and len(self.supabase_jwt_secret.get_secret_value()) < SECRET_LENGTH:
            yield Problem(
                "E034",
                "SUPABASE_JWT_SECRET",
                f"is shorter than {SECRET_LENGTH} characters, so tokens could be forged",
                "copy the whole JWT secret from the project's settings",
            )

    @property
    def flower(self) -> str | None:
        """Flower's address, without a slash at its end."""
        return self.flower_url.rstrip("/") if self.flower_url else None

    def trusted(self) -> list[str]:
        return [entry.strip() for entry in self.trusted_proxies.split(",") if entry.strip()]


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not (parts.query or parts.fragment)


def _is_safe(url: str) -> bool:
    """Whether nobody on the way can answer in its place."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"})
