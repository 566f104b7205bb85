"""The group `Web`: the pages' server, who may sign in, and what scripts report with."""

from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr

from app.settings.group import Group, Seconds, scheme
from app.settings.problems import Problem

# RFC 7518, section 3.2: as long as the hash.
SECRET_LENGTH = 32

# The slash at the end is how proxies' configurations write such a path.
RootPath = Annotated[str, BeforeValidator(lambda value: value.rstrip("/") if isinstance(value, str) else value)]


class Web(Group):
    """The web pages (`toban web`) and who may see them."""

    web_host: str = Field(
        "127.0.0.1",
        description="the address it listens on; 0.0.0.0: all, which needs HTTPS before it",
    )
    web_port: int = Field(8000, ge=1, le=65535, description="its port")
    web_extra_ports: str = Field(
        "",
        description="further ports, separated by commas, such as 8001,8002: those of the old services",
    )
    web_base_url: str | None = Field(
        None,
        description="where people reach it, such as https://toban.example.com; for printed links; with https, cookies "
        "travel only so",
    )
    root_path: RootPath = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="the path under which a proxy shows it, such as /toban, whether it cuts that off or not",
    )
    web_secret_key: SecretStr | None = Field(
        None,
        min_length=SECRET_LENGTH,
        description="signs cookies; at least 32 characters; default: made once and kept in the database",
    )
    wake_secret: SecretStr | None = Field(
        None,
        min_length=SECRET_LENGTH,
        description="what POST /wake/… has to bring along, as a header or as the key of its signature; at least 32 "
        "characters; default: it takes nothing",
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
    legacy_anonymous_cidrs: str = Field(
        "",
        description="addresses and networks, separated by commas, whose programs need no API key for "
        "`/fetch-and-transcribe` and `/analyze-timeblock`; default: nobody",
    )
    cors_origins: str = Field(
        "",
        description="origins, separated by commas, such as https://app.example.com, whose pages may use the HTTP API "
        "(with a key, never with a session); default: none",
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
        yield from self._problems_of_api()
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

    def _problems_of_api(self) -> Iterator[Problem]:
        for entry in _parts(self.web_extra_ports):
            if not (entry.isascii() and entry.isdecimal() and 1 <= int(entry) <= 65535):
                yield Problem(
                    "E050",
                    "WEB_EXTRA_PORTS",
                    f"{entry!r} is no port",
                    "write ports from 1 to 65535, separated by commas: 8001,8002",
                )
        for entry in _parts(self.legacy_anonymous_cidrs):
            if wrong := _wrong_network(entry):
                yield Problem(
                    "E051",
                    "LEGACY_ANONYMOUS_CIDRS",
                    f"{entry!r} {wrong}",
                    "write the addresses of the old clients, or networks such as 172.18.0.0/16, separated by commas",
                )
        for entry in _parts(self.cors_origins):
            if not _is_origin(entry):
                yield Problem(
                    "E052",
                    "CORS_ORIGINS",
                    f"{entry!r} is no origin",
                    "write scheme, host and, if it is not the usual one, port, and nothing else: "
                    "https://app.example.com; each origin has to be named",
                )

    @property
    def ports(self) -> list[int]:
        """All ports, the pages' own first."""
        return list(dict.fromkeys([self.web_port, *map(int, _parts(self.web_extra_ports))]))

    @cached_property
    def anonymous(self) -> list[IPv4Network | IPv6Network]:
        """Whose programs need no API key for the old endpoints."""
        return [ip_network(entry) for entry in _parts(self.legacy_anonymous_cidrs)]

    @property
    def origins(self) -> list[str]:
        """Whose pages may use the HTTP API."""
        return _parts(self.cors_origins)

    @property
    def flower(self) -> str | None:
        """Flower's address, without a slash at its end."""
        return self.flower_url.rstrip("/") if self.flower_url else None

    def trusted(self) -> list[str]:
        return _parts(self.trusted_proxies)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _wrong_network(text: str) -> str | None:
    try:
        network = ip_network(text)
    except ValueError:
        return "is no IP address or network"
    if network.prefixlen == 0:
        return "is everybody: a key would protect nothing"
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        return "is an IPv4 address in IPv6 form"
    return None


def _is_origin(text: str) -> bool:
    """Whether it is what a browser sends as `Origin`; RFC 6454, section 6.2."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or not parts.hostname or "*" in text:
        return False
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    return text == f"{parts.scheme}://{host}" + (f":{port}" if port not in {None, usual} else "")


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
